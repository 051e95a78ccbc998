"""Errors that readers and producers of a log receive for exceptions of the store and of callers' functions.

Thread-safe: plain functions of their arguments.
"""

from __future__ import annotations

import logging

from sseqbridge._exceptions import CallbackError, LogError, SSEError
from sseqbridge._runtime.callbacks import original

__all__ = ["as_callback_error", "as_log_error"]

logger = logging.getLogger("sseqbridge")

def as_log_error(exc: Exception) -> SSEError:
    """Return the error for a reader, also for an exception that has none, so that no reader waits forever."""
    if isinstance(exc, SSEError):
        return exc
    logger.error("reading a log failed", exc_info=exc)
    error = LogError(f"reading the log failed with {type(exc).__name__}")
    error.__cause__ = exc
    return error


def as_callback_error(error: BaseException, function: str) -> SSEError:
    """Return the error for readers after a function of the caller's raised."""
    error = original(error)
    if isinstance(error, SSEError):
        return error
    callback_error = CallbackError(f"{function} raised {type(error).__name__}")
    callback_error.__cause__ = error
    return callback_error
