"""When a request is sent again because its first response was a failure, as the SDKs of providers decide it.

Pure and thread-safe: nothing here waits or reads a clock. Invariant: after an error, only a request that certainly did
not reach the server is sent again, since it may cost money; a server that answers decides by its status.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from sseqbridge._exceptions import ConnectError, SSEError

__all__ = ["MAX_RETRY_AFTER", "Failure", "retry_delay"]

# In seconds. A longer Retry-After is not waited for: the caller gets the response, and decides.
MAX_RETRY_AFTER = 120.0

_FIRST_DELAY = 0.5
_MAX_DELAY = 8.0
# The fraction of a delay that is random, so that requests that failed together are not sent again together.
_JITTER = 0.25
_MAX_DOUBLINGS = 10

# Request Timeout, Conflict (a lock that is held), Too Many Requests.
_RETRIED_STATUSES = frozenset({408, 409, 429, *range(500, 600)})


class Failure(NamedTuple):
    """How an attempt failed: by an `error`, or by a response with `status`.

    `retry_after` is the delay that the response asks for, in seconds; `should_retry` its header X-Should-Retry.
    """

    error: SSEError | None = None
    status: int | None = None
    retry_after: float | None = None
    should_retry: str | None = None


def retry_delay(
    failure: Failure, tried: int, retries: int, chance: Callable[[], float] = random.random
) -> float | None:
    """Return after how many seconds a request is sent again, None if it is not.

    It was sent again `tried` times so far, and may be `retries` times. `chance` returns random numbers from 0 to 1.
    """
    if tried >= retries or not _is_retryable(failure):
        return None
    delay = min(_FIRST_DELAY * 2.0 ** min(tried, _MAX_DOUBLINGS), _MAX_DELAY)
    if failure.retry_after:
        return failure.retry_after + _JITTER * delay * chance()
    return delay * (1.0 - _JITTER * chance())


def _is_retryable(failure: Failure) -> bool:
    error = failure.error
    status = failure.status
    if error is not None:
        # A proxy that refuses to connect answers with a status, too.
        status = getattr(error, "proxy_status", None)
        if status is None:
            return isinstance(error, ConnectError) or getattr(error, "which", "") == "connect"
    if status is None or status < 400 or (failure.retry_after or 0.0) > MAX_RETRY_AFTER:
        return False
    if failure.should_retry in ("true", "false"):
        return failure.should_retry == "true"
    return status in _RETRIED_STATUSES
