"""Notices when a loop was kept from its work, and tells the log by what, as far as that can be known.

A timer of the loop's own: it comes late where something blocks the loop's thread. Whoever runs code
of the caller's there says how long each step of it took, so that it can be named. Everything here is
called in the loop's thread; `longest` may be read by any.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .clock import clock

__all__ = ["LoopWatch"]

logger = logging.getLogger("sseqbridge.loop")
# For a log that somebody keeps: without one it would stand in the output of a program on a machine that is busy.
logger.addHandler(logging.NullHandler())

_BEAT_SECONDS = 0.05
# What is worth a warning. A block may begin just before the next beat, and is longer then than the delay of that.
_BLOCKED_SECONDS = 0.25
_QUIET_SECONDS = 10.0
# The part of a delay that a step, or the thread's own computing, has to take to be what it is put down to.
_PART = 0.5


class LoopWatch:
    """Watches one loop, from `start` to `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The longest that something due was late, in seconds.
        self.longest = 0.0
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._beat_at = 0.0
        self._computed = 0.0
        self._step = (0.0, "")
        self._quiet_until = 0.0

    def start(self) -> None:
        """Watch from now on."""
        if self._timer is None:
            self._expect_next()

    def stop(self) -> None:
        """Watch no more, for now."""
        assert self._timer is not None
        self._timer.cancel()
        self._timer = None

    def ran(self, seconds: float, what: Callable[[], str]) -> None:
        """Note how long a step took that ran code of the caller's, and how to name it."""
        if seconds > _BEAT_SECONDS and seconds > self._step[0]:
            self._step = seconds, what()

    async def steps_of(self, coroutine: Coroutine[Any, Any, None], what: Callable[[], str]) -> None:
        """Await a coroutine, and note how long its steps take."""
        await _Steps(coroutine, lambda seconds: self.ran(seconds, what))

    def _expect_next(self) -> None:
        self._beat_at = clock.monotonic()
        self._computed = time.thread_time()
        self._step = (0.0, "")
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        now = clock.monotonic()
        late = now - self._beat_at - _BEAT_SECONDS
        self.longest = max(self.longest, late)
        if late > _BLOCKED_SECONDS and now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            logger.warning("the loop was blocked for %.2f s, and every stream stood still: %s", late, self._told(late))
        self._expect_next()

    def _told(self, late: float) -> str:
        seconds, what = self._step
        if seconds >= late * _PART:
            return f"{what} took {seconds:.2f} s"
        computed = time.thread_time() - self._computed
        if computed >= late * _PART:
            return f"its thread computed for {computed:.2f} s, by what is not known"
        return (
            "its thread waited, for what is not known: a call that blocks, the interpreter's lock, which "
            "another thread held, or a processor, on a busy machine"
        )


class _Steps:
    """Awaits a coroutine, and says of each of its steps how long it took."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], note: Callable[[float], None]) -> None:
        self._coroutine = coroutine
        self._note = note

    def __await__(self) -> Generator[Any, Any, None]:
        run: Callable[..., Any] = self._coroutine.send
        argument: Any = None
        while True:
            began = clock.monotonic()
            try:
                waited_for = run(argument)
            except StopIteration:
                return
            finally:
                self._note(clock.monotonic() - began)
            try:
                run, argument = self._coroutine.send, (yield waited_for)
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as exc:
                run, argument = self._coroutine.throw, exc
