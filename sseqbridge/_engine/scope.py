"""Who cancels whom: cancel flags, and the flag that surrounds whatever code opens a stream.

A flag is checked on the loop's thread (every 25 ms, one timer for all streams) and by the consumer
between items. `surrounding_cancel` is a context variable: each thread and task has its own value.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from sseqbridge._checks import CancelFlag
from sseqbridge._exceptions import RequestAbortedError, UsageError
from sseqbridge._runtime.callbacks import CallersCode

__all__ = [
    "cancel_flag",
    "is_cancelled",
    "surrounding_cancel",
]

# Set where streams are opened for somebody who may leave: they end with him, besides their own flag.
surrounding_cancel: ContextVar[CancelFlag | None] = ContextVar("sseqbridge-cancel", default=None)


class _EitherFlag:
    def __init__(self, one: CancelFlag, other: CancelFlag) -> None:
        self._flags = one, other

    def is_set(self) -> bool:
        one, other = self._flags
        return bool(one.is_set()) or bool(other.is_set())


def cancel_flag(cancel: Any, before: str) -> CancelFlag | None:
    """Return the flag that ends what is opened here with `cancel`.

    Raises UsageError for what is no flag, and RequestAbortedError for one that is set: `before` says before what.
    """
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise UsageError(f"cancel is a {type(cancel).__name__}; it is anything with is_set(), as threading.Event")
    outer = surrounding_cancel.get()
    flag: CancelFlag | None = cancel if outer is None else outer if cancel is None else _EitherFlag(outer, cancel)
    if is_cancelled(flag):
        raise RequestAbortedError(f"cancel was set before {before}")
    return flag


def is_cancelled(cancel: CancelFlag | None) -> bool:
    """Whether the caller's flag is set. Raises CallbackError if `is_set()` raises; on a loop, whatever that is."""
    if cancel is None:
        return False
    with CallersCode("cancel.is_set()", passes=()):
        return bool(cancel.is_set())
