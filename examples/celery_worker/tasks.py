"""The task: ask the upstream, and write what it says into the log, whoever reads that."""

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

# Within so many seconds readers are told that the worker has died in mid-answer.
LEASE = 5.0

log = RedisLog.from_url(_REDIS, lease=LEASE)


@celery.task  # type: ignore[untyped-decorator]
def answer(key: str, prompt: str) -> str | None:
    """Write the answer to its end, and return its outcome: None where another worker has it already."""
    return log.produce(key, lambda: _upstream().ask([{"role": "user", "content": prompt}]))


@cache
def _upstream() -> Upstream:
    # In the process that asks, which the worker has forked.
    return upstream_from_environment()
