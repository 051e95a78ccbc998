"""Cancellation scopes: cancel flags, and the flag that surrounds code which opens streams.

A flag is checked on the loop thread (every 25 ms, one timer for all streams) and by the consumer between items.
`surrounding_cancel` is a context variable: each thread and task has its own value. Nothing else is shared.
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

# Set while code runs on behalf of a consumer that may leave: streams opened there end with the consumer, besides
# their own flag.
surrounding_cancel: ContextVar[CancelFlag | None] = ContextVar("sseqbridge-cancel", default=None)


class _EitherFlag:
    """Set if one of two flags is set."""

    def __init__(self, one: CancelFlag, other: CancelFlag) -> None:
        self._flags = one, other

    def is_set(self) -> bool:
        one, other = self._flags
        return bool(one.is_set()) or bool(other.is_set())


def cancel_flag(cancel: Any, before: str) -> CancelFlag | None:
    """Return the flag for a stream that is opened with `cancel` in the current scope, None if there is none.

    Raises UsageError if `cancel` is no flag, and RequestAbortedError if it is set already: the error's message ends
    with `before`, the step that it comes before.
    """
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise UsageError(f"`cancel` must have an is_set() method, got {type(cancel).__name__}. Pass a threading.Event.")
    outer = surrounding_cancel.get()
    flag: CancelFlag | None = cancel if outer is None else outer if cancel is None else _EitherFlag(outer, cancel)
    if is_cancelled(flag):
        raise RequestAbortedError(f"cancel was set before {before}")
    return flag


def is_cancelled(cancel: CancelFlag | None) -> bool:
    """Whether a flag is set. Raises CallbackError if is_set() raises; on a loop also for an exit or interrupt."""
    if cancel is None:
        return False
    with CallersCode("cancel.is_set()", passes=()):
        return bool(cancel.is_set())
