"""The clock of the library: every deadline, delay and timer reads it.

`clock` is an object and not a set of functions for two reasons. Tests replace its two functions, so
that a test of a timeout need not wait. And freezegun, which replaces `time.monotonic` in every
module, does not reach inside an object: a frozen application must not freeze the library's timeouts.

Thread-safe: the two attributes are written by tests alone.
"""

from __future__ import annotations

import functools
import threading
import time
import types
from collections.abc import Callable
from typing import Any

__all__ = ["Clock", "clock"]


def _real_monotonic() -> Callable[[], float]:
    if isinstance(time.monotonic, types.BuiltinFunctionType) or not hasattr(time, "clock_gettime"):
        return time.monotonic
    # The module was imported while time was frozen. freezegun leaves clock_gettime alone.
    return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)


def _acquire(lock: Any, timeout: float | None) -> bool:
    return lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))  # type: ignore[no-any-return]


class Clock:
    """Monotonic time in seconds, and waiting for a lock by that time."""

    __slots__ = ("acquire", "monotonic")

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = _real_monotonic()
        # acquire(lock, timeout) returns False when `timeout` seconds have elapsed; None waits indefinitely.
        self.acquire: Callable[[Any, float | None], bool] = _acquire


clock = Clock()
