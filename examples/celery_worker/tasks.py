"""The task: send a request to the upstream, and write its stream into the log, with or without readers."""

from __future__ import annotations

import os
from functools import cache

from celery import Celery

from examples.flask_chat.upstream import Upstream, upstream_from_environment
from sseqbridge.resume import RedisLog

__all__ = ["LEASE", "answer", "celery", "log"]

_REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

celery = Celery("answers", broker=_REDIS)
celery.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

# If a worker dies during an answer, its readers get an error within this many seconds.
LEASE = 5.0

log = RedisLog.from_url(_REDIS, lease=LEASE)


@celery.task  # type: ignore[untyped-decorator]
def answer(key: str, prompt: str) -> str | None:
    """Write the answer into the log, and return its outcome. Returns None if another worker writes this answer."""
    return log.produce(key, lambda: _upstream().ask([{"role": "user", "content": prompt}]))


@cache
def _upstream() -> Upstream:
    # In the forked process that sends the requests.
    return upstream_from_environment()
