"""A fake clock: a test of a time limit advances it instead of waiting.

`FakeClock` is the real clock plus an offset. Time still passes, so that unrelated timers work; `advance(30)`
makes every deadline within the next 30 s due at once, on every asyncio loop and for every waiting thread.
See the `clock` fixture. Thread-safe.

A test of one limit turns the other limits off and makes this one long (30 s): a busy machine does not reach
it before the test advances the clock, and no other limit can have ended the wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import pytest

from sseqbridge import _accelerators
from sseqbridge._engine.channel import post
from sseqbridge._runtime import loop_watch, loops, threads
from sseqbridge._runtime.clock import clock
from sseqbridge._streams import bridge
from tests.support import in_thread

__all__ = ["FakeClock", "fake_clock"]

T = TypeVar("T")

_POLL_SECONDS = 0.002
# Real seconds after which a wait that no advance ends fails.
_HANGS = 30.0
# How long the clock waits for a loop, which may be blocked, and how many iterations it lets the loop run.
_LOOP_SECONDS = 0.1
_ITERATIONS = 5


class FakeClock:
    """The real clock plus an offset that tests increase. Thread-safe."""

    def __init__(self) -> None:
        self._added = 0.0
        # Guards the offset and the sets.
        self._lock = threading.Lock()
        # The loops that read this clock, and the loops created while it is installed.
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self.made: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def monotonic(self) -> float:
        return time.monotonic() + self._added

    def wait(self, wait_for: Callable[[float], bool], timeout: float | None) -> bool:
        """Call `wait_for` with short timeouts until it returns True. Returns False after `timeout` seconds."""
        deadline = None if timeout is None else self.monotonic() + timeout
        while not wait_for(_POLL_SECONDS):
            if deadline is not None and self.monotonic() >= deadline:
                return False
        return True

    def has_made(self, loop: asyncio.AbstractEventLoop) -> None:
        """Record that a loop was created while this clock is installed."""
        with self._lock:
            self.made.add(loop)

    def loop_time(self, loop: asyncio.AbstractEventLoop) -> float:
        """Return the time for `loop.time()`, and record the loop. Called in each iteration of the loop."""
        if loop not in self._loops:
            with self._lock:
                self._loops.add(loop)
        return self.monotonic()

    def advance(self, seconds: float) -> None:
        """Add to the time, and wake every loop, so that it runs its due timers."""
        with self._lock:
            self._added += seconds
            woken = tuple(self._loops)
        for loop in woken:
            try:
                loop.call_soon_threadsafe(getattr(loop, "run_due", _nothing))
            except RuntimeError:
                pass  # The loop is closed.

    def report_blocked_loops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Log a warning if the clock advances by more than a minute while a loop is blocked."""
        # Longer than a busy machine delays a loop.
        monkeypatch.setattr(loop_watch, "_BLOCKED_SECONDS", 60.0)

    def advance_until_done(self, function: Callable[[], T], step: float = 1.0) -> T:
        """Run `function` in a thread, advance by `step` seconds until it returns, and return its result.

        For a function that waits for one time limit only: any number of steps may pass while it does
        something else. Raises TimeoutError after 30 real seconds.
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
            self._let_loops_run()
            time.sleep(_POLL_SECONDS)

    def _let_loops_run(self) -> None:
        """Wait until each loop has run its due timers: the clock must not run far ahead of a busy machine."""
        with self._lock:
            loops = tuple(self._loops)
        for loop in loops:
            if loop.is_running():
                have_run = threading.Event()
                post(loop, _iterate, loop, _ITERATIONS, have_run)
                have_run.wait(_LOOP_SECONDS)

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
    """Mixin for a loop whose clock is not in Python, such as uvloop's: its timers follow the fake clock.

    Each timer is also a timer of the loop itself, so that it runs without an advance. Runs on the loop thread.
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
        """Called by a cancelled handle; `run_due` checks for itself."""

    def _run_by_itself(self, timer: asyncio.TimerHandle) -> None:
        left = max(0.001, timer.when() - self.time())

        def run() -> None:
            self.run_due()
            if timer in self._pending:  # The loop rounded, and called this early.
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


def _iterate(loop: asyncio.AbstractEventLoop, left: int, have_run: threading.Event) -> None:
    """Set the event after some iterations of the loop."""
    if left:
        loop.call_soon(_iterate, loop, left - 1, have_run)
    else:
        have_run.set()


def _nothing() -> None:
    """A callback that only wakes the loop."""


def fake_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Replace the library's clock, and that of each new asyncio loop, by a FakeClock for one test.

    The library starts asyncio's loops, since uvloop's clock is in C, and a new default bridge. A loop from
    before the test, such as that of a shared server, keeps the real time: after the test, its timers would
    be late by the offset.
    """
    fake = FakeClock()
    imported = _accelerators.imported
    monkeypatch.setattr(_accelerators, "imported", lambda part: None if part == "uvloop" else imported(part))
    monkeypatch.setattr(clock, "monotonic", fake.monotonic)

    make = asyncio.BaseEventLoop.__init__

    def make_loop(loop: asyncio.BaseEventLoop) -> None:
        fake.has_made(loop)
        make(loop)

    def loop_time(loop: asyncio.AbstractEventLoop) -> float:
        return fake.loop_time(loop) if loop in fake.made else time.monotonic()

    real_wait = threads.ThreadWaiter.wait

    def wait(waiter: threads.ThreadWaiter, timeout: float | None) -> bool:
        return fake.wait(partial(real_wait, waiter), timeout)

    monkeypatch.setattr(threads.ThreadWaiter, "wait", wait)
    monkeypatch.setattr(asyncio.BaseEventLoop, "__init__", make_loop)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", loop_time)
    monkeypatch.setattr(loops.ClockedEventLoop, "time", loop_time)
    monkeypatch.setattr(bridge, "_default", None)
    monkeypatch.setattr(bridge, "_async", None)
    return fake
