"""Settings of gunicorn for streams: `gunicorn -c examples/gunicorn_conf.py APPLICATION`.

For a project of your own copy shutdown.py too, and change its import here.
"""

from __future__ import annotations

from examples.shutdown import end_relays_at_shutdown

worker_class = "gthread"
# Each open stream occupies a thread.
threads = 100


def post_worker_init(worker: object) -> None:
    end_relays_at_shutdown()
