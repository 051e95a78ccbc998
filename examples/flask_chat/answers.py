"""The log in which answers outlive the connection of their reader and the process that requested them."""

from __future__ import annotations

import os

from sseqbridge.resume import Log, MemoryLog

__all__ = ["log_from_environment"]

# An upstream request without a reader is aborted after this many seconds: long enough to reload a page, or to lose the
# network in a tunnel.
_ABANDON_AFTER = 30.0
# If a process dies, another one takes over within this many seconds.
_LEASE = 5.0


def log_from_environment() -> Log | None:
    """Return a log in the Redis of REDIS_URL, or in memory if KEEP_ANSWERS is set, or None."""
    if url := os.environ.get("REDIS_URL"):
        from sseqbridge.resume import RedisLog  # needs the extra `redis`

        return RedisLog.from_url(url, lease=_LEASE, abandon_after=_ABANDON_AFTER)
    if os.environ.get("KEEP_ANSWERS"):
        return MemoryLog(lease=_LEASE, abandon_after=_ABANDON_AFTER)
    return None
