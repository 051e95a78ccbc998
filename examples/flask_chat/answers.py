"""Where answers are kept, so that they outlive their reader's connection, and the process that has asked for them."""

from __future__ import annotations

import os

from sseqbridge.resume import Log, MemoryLog, RedisLog

__all__ = ["log_from_environment"]

# An upstream that nobody reads any more is aborted after this many seconds: time enough to reload a page, or to come
# out of a tunnel.
_ABANDON_AFTER = 30.0
# Within so many seconds another process takes over from one that died.
_LEASE = 5.0


def log_from_environment() -> Log | None:
    """Return the log in the Redis that REDIS_URL names, or in this process's memory for KEEP_ANSWERS, or none."""
    if url := os.environ.get("REDIS_URL"):
        return RedisLog.from_url(url, lease=_LEASE, abandon_after=_ABANDON_AFTER)
    if os.environ.get("KEEP_ANSWERS"):
        return MemoryLog(lease=_LEASE, abandon_after=_ABANDON_AFTER)
    return None
