"""A clock that tests move: a test of a time limit advances it instead of waiting.

`FakeClock` is the real clock plus what the test added. Time still passes by itself, so that nothing
hangs that the test does not know of; `advance(30)` makes every deadline within the next 30 s due at
once, on every asyncio loop and for every thread that waits for an item. See the `clock` fixture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakSet

import pytest

from sseqbridge import _bridge, _fast, _runtime
from sseqbridge._clock import clock

from .support import in_thread

__all__ = ["FakeClock", "fake_clock"]

T = TypeVar("T")

_POLL_SECONDS = 0.002


class FakeClock:
    """The real clock, and what tests have added to it. Thread-safe."""

    def __init__(self) -> None:
        self._added = 0.0
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def monotonic(self) -> float:
        return time.monotonic() + self._added

    def wait(self, lock: Any, timeout: float | None) -> bool:
        """Acquire a lock, by this clock. Returns False when `timeout` seconds have elapsed first."""
        deadline = None if timeout is None else self.monotonic() + timeout
        while not lock.acquire(timeout=_POLL_SECONDS):
            if deadline is not None and self.monotonic() >= deadline:
                return False
        return True

    def loop_time(self, loop: asyncio.AbstractEventLoop) -> float:
        """Return what `loop.time()` is, and remember the loop. A loop asks in each of its iterations."""
        self._loops.add(loop)
        return self.monotonic()

    def advance(self, seconds: float) -> None:
        """Add to the time, and wake every loop, so that its timers that are due run."""
        self._added += seconds
        for loop in tuple(self._loops):
            try:
                loop.call_soon_threadsafe(_nothing)
            except RuntimeError:
                pass  # The loop is closed.

    def advance_until_done(self, function: Callable[[], T], step: float = 1.0) -> T:
        """Return what `function` returns, run in a thread; advance by `step` seconds until it has returned.

        For a function that waits for one time limit and nothing else: any number of steps may pass
        while it does something else.
        """
        future = in_thread(function)
        while not future.done():
            self.advance(step)
            time.sleep(_POLL_SECONDS)
        return future.result()


def _nothing() -> None:
    """What a loop is woken with."""


def fake_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Put a FakeClock in the place of the library's clock, and of every asyncio loop's, for one test.

    Loops that the library starts are asyncio's, since uvloop has a clock in C. The process's own bridge
    is another one in the meantime.
    """
    fake = FakeClock()
    imported = _fast.imported
    monkeypatch.setattr(_fast, "imported", lambda part: None if part == "uvloop" else imported(part))
    monkeypatch.setattr(clock, "monotonic", fake.monotonic)

    def loop_time(loop: asyncio.AbstractEventLoop) -> float:
        return fake.loop_time(loop)

    def wait(waiter: _runtime.ThreadWaiter, timeout: float | None) -> bool:
        return fake.wait(waiter._lock, timeout)

    monkeypatch.setattr(_runtime.ThreadWaiter, "wait", wait)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", loop_time)
    monkeypatch.setattr(_runtime._OwnEventLoop, "time", loop_time)
    monkeypatch.setattr(_bridge, "_default", None)
    return fake
