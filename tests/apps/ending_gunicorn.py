"""The configuration of a gunicorn whose relays end at SIGTERM."""

from __future__ import annotations

from examples.shutdown import end_relays_at_shutdown


def post_worker_init(worker: object) -> None:
    end_relays_at_shutdown()
