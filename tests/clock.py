"""A clock that tests move: a test of a time limit advances it instead of waiting.

`FakeClock` is the real clock plus what the test added. Time still passes by itself, so that nothing
hangs that the test does not know of; `advance(30)` makes every deadline within the next 30 s due at
once, on every asyncio loop and for every thread that waits for an item. See the `clock` fixture.

A test of one limit turns the other limits off and makes this one long (30 s). Then a busy machine does
not reach it before the test advances, and nothing else can have ended the wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakSet

import pytest

from sseqbridge import _accelerators as _fast
from sseqbridge._engine import bridge as _bridge
from sseqbridge._runtime import loop_watch as _loop_watch
from sseqbridge._runtime import loops, threads
from sseqbridge._runtime.clock import clock
from tests.support import in_thread

__all__ = ["FakeClock", "fake_clock"]

T = TypeVar("T")

_POLL_SECONDS = 0.002
# Real seconds after which a wait that no advance ends is a failure.
_HANGS = 30.0


class FakeClock:
    """The real clock, and what tests have added to it. Thread-safe."""

    def __init__(self) -> None:
        self._added = 0.0
        # Guards what was added, and the sets.
        self._lock = threading.Lock()
        # The loops that ask for the time, and those that were made while this clock was in place.
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self.made: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def monotonic(self) -> float:
        return time.monotonic() + self._added

    def wait(self, lock: Any, timeout: float | None) -> bool:
        """Acquire a lock, by this clock. Returns False when `timeout` seconds have elapsed first."""
        deadline = None if timeout is None else self.monotonic() + timeout
        while not lock.acquire(timeout=_POLL_SECONDS):
            if deadline is not None and self.monotonic() >= deadline:
                return False
        return True

    def has_made(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remember that a loop was made while this clock is in place."""
        with self._lock:
            self.made.add(loop)

    def loop_time(self, loop: asyncio.AbstractEventLoop) -> float:
        """Return what `loop.time()` is, and remember the loop. A loop asks in each of its iterations."""
        if loop not in self._loops:
            with self._lock:
                self._loops.add(loop)
        return self.monotonic()

    def advance(self, seconds: float) -> None:
        """Add to the time, and wake every loop, so that its timers that are due run."""
        with self._lock:
            self._added += seconds
            loops = tuple(self._loops)
        for loop in loops:
            try:
                loop.call_soon_threadsafe(getattr(loop, "run_due", _nothing))
            except RuntimeError:
                pass  # The loop is closed.

    def advance_until_done(self, function: Callable[[], T], step: float = 1.0) -> T:
        """Return what `function` returns, run in a thread; advance by `step` seconds until it has returned.

        For a function that waits for one time limit and nothing else: any number of steps may pass
        while it does something else. Raises TimeoutError if it has not returned after 30 real seconds.
        """
        future = in_thread(function)
        self.advance_until(future.done, step)
        return future.result()

    def advance_until(self, condition: Callable[[], object], step: float = 1.0) -> None:
        """Advance by `step` seconds until `condition` holds. Raises TimeoutError after 30 real seconds."""
        stop = time.monotonic() + _HANGS
        while not condition():
            if time.monotonic() > stop:
                raise TimeoutError("advancing the clock did not end the wait")
            self.advance(step)
            time.sleep(_POLL_SECONDS)

    async def aadvance_until_done(self, awaitable: Awaitable[T], step: float = 1.0) -> T:
        """Return the result of `awaitable`, as `advance_until_done` does for a function, on the running loop."""
        future = asyncio.ensure_future(awaitable)
        stop = time.monotonic() + _HANGS
        while not future.done():
            if time.monotonic() > stop:
                raise TimeoutError("advancing the clock did not end the wait")
            self.advance(step)
            await asyncio.sleep(0)
        return await future

    def new_loop(self, kind: str) -> asyncio.AbstractEventLoop:
        """Return an event loop on this clock; `kind` is "asyncio" or "uvloop"."""
        if kind == "asyncio":
            return asyncio.new_event_loop()
        import uvloop

        return type("UvloopOnFakeClock", (_OnFakeClock, uvloop.Loop), {"clock": self})()  # type: ignore[no-any-return]


class _OnFakeClock:
    """The timers of a loop whose clock is not in Python, as uvloop's: what it is mixed with so that a test moves them.

    Each timer is one of the loop's own too, so that it also runs where nobody advances. Runs on the loop's thread.
    """

    clock: FakeClock

    def __init__(self) -> None:
        super().__init__()
        self._pending: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.clock.loop_time(self)  # type: ignore[arg-type]

    def call_later(self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        timer = asyncio.TimerHandle(when, callback, args, self, context)  # type: ignore[arg-type]
        self._pending.append(timer)
        self._run_by_itself(timer)
        return timer

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        """Called by a handle that is cancelled; `run_due` looks for itself."""

    def _run_by_itself(self, timer: asyncio.TimerHandle) -> None:
        left = max(0.001, timer.when() - self.time())

        def run() -> None:
            self.run_due()
            if timer in self._pending:  # Loops round their times, and this was early.
                self._run_by_itself(timer)

        super().call_later(left, run)  # type: ignore[misc]

    def run_due(self) -> None:
        """Run the timers whose time has come."""
        now = self.time()
        due = sorted(timer for timer in self._pending if timer.when() <= now)
        self._pending = [timer for timer in self._pending if timer.when() > now and not timer.cancelled()]
        for timer in due:
            if not timer.cancelled():
                timer._run()


def _nothing() -> None:
    """What a loop is woken with."""


def fake_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Put a FakeClock in the place of the library's clock, and of each new asyncio loop's, for one test.

    Loops that the library starts are asyncio's, since uvloop has a clock in C. The process's own bridge
    is another one in the meantime. A loop that was there before, as of a server that other tests use too,
    keeps its time: after the test it would wait for what had been added.
    """
    fake = FakeClock()
    imported = _fast.imported
    monkeypatch.setattr(_fast, "imported", lambda part: None if part == "uvloop" else imported(part))
    monkeypatch.setattr(clock, "monotonic", fake.monotonic)

    make = asyncio.BaseEventLoop.__init__

    def make_loop(loop: asyncio.BaseEventLoop) -> None:
        fake.has_made(loop)
        make(loop)

    def loop_time(loop: asyncio.AbstractEventLoop) -> float:
        return fake.loop_time(loop) if loop in fake.made else time.monotonic()

    def wait(waiter: threads.ThreadWaiter, timeout: float | None) -> bool:
        return fake.wait(waiter._lock, timeout)

    monkeypatch.setattr(threads.ThreadWaiter, "wait", wait)
    monkeypatch.setattr(asyncio.BaseEventLoop, "__init__", make_loop)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", loop_time)
    monkeypatch.setattr(loops._OwnEventLoop, "time", loop_time)
    monkeypatch.setattr(_bridge, "_default", None)
    # A loop is not blocked because the test advances the clock.
    monkeypatch.setattr(_loop_watch, "_BLOCKED_SECONDS", float("inf"))
    return fake
