"""The clock of the library: every deadline, delay and timer reads it.

`clock` is an object rather than a function for two reasons. Tests replace its attribute, so that a
test of a timeout need not wait. And freezegun replaces `time.monotonic` in every module, but not inside
objects: in an application with frozen time, the library's timeouts still elapse.

Thread-safe: only tests write the attribute.
"""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Callable

__all__ = ["Clock", "clock"]


def _real_monotonic() -> Callable[[], float]:
    if isinstance(time.monotonic, types.BuiltinFunctionType) or not hasattr(time, "clock_gettime"):
        return time.monotonic
    # The library was imported while time was frozen. freezegun does not replace clock_gettime.
    return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)


class Clock:
    """Monotonic time, in seconds."""

    __slots__ = ("monotonic",)

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = _real_monotonic()


clock = Clock()
