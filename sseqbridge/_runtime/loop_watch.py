"""Detects a blocked event loop, and logs the cause as far as it is known.

A timer on the loop fires late if something blocks the loop thread. Callers that run the application's
code on the loop report the duration of each step, so that the log can name it. Every method runs on the
loop thread; any thread may read `longest`.
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
# Without a handler of the application's, logging would print the warning to standard error on a busy machine.
logger.addHandler(logging.NullHandler())

_BEAT_SECONDS = 0.05
# Delays above this are logged. A block that begins just before a beat is up to one beat longer than the delay.
_BLOCKED_SECONDS = 0.25
# The minimum time between two log entries.
_QUIET_SECONDS = 10.0
# A step, or the thread's CPU time, is named as the cause if it covers at least this part of the delay.
_MIN_SHARE = 0.5


class LoopWatch:
    """Watches one loop between `start` and `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The longest delay of a beat so far, in seconds.
        self.longest = 0.0
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = True
        self._beat_at = 0.0
        self._cpu_seconds = 0.0
        self._slowest_step = (0.0, "")
        self._quiet_until = 0.0

    def start(self) -> None:
        """Start watching. Idempotent."""
        self._is_stopped = False
        if self._timer is None:
            self._schedule_beat()

    def stop(self) -> None:
        """Stop watching with the next beat; `start` resumes."""
        # The timer stays, since short calls start and stop the watch thousands of times a second.
        self._is_stopped = True

    def ran(self, seconds: float, describe: Callable[[], str]) -> None:
        """Record the duration of a step that ran code of the application. `describe` returns its name."""
        if seconds > _BEAT_SECONDS and seconds > self._slowest_step[0]:
            self._slowest_step = seconds, describe()

    async def steps_of(self, coroutine: Coroutine[Any, Any, None], describe: Callable[[], str]) -> None:
        """Await a coroutine and record the duration of each of its steps."""
        await _TimedSteps(coroutine, lambda seconds: self.ran(seconds, describe))

    def _schedule_beat(self) -> None:
        self._beat_at = clock.monotonic()
        self._cpu_seconds = time.thread_time()
        self._slowest_step = (0.0, "")
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        if self._is_stopped:
            self._timer = None
            return
        now = clock.monotonic()
        late = now - self._beat_at - _BEAT_SECONDS
        self.longest = max(self.longest, late)
        if late > _BLOCKED_SECONDS and now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            logger.warning("the loop was blocked for %.2f s, and every stream stood still: %s", late, self._cause(late))
        self._schedule_beat()

    def _cause(self, late: float) -> str:
        seconds, step = self._slowest_step
        if seconds >= late * _MIN_SHARE:
            return f"{step} took {seconds:.2f} s"
        cpu_seconds = time.thread_time() - self._cpu_seconds
        if cpu_seconds >= late * _MIN_SHARE:
            return f"the loop thread computed for {cpu_seconds:.2f} s, in unknown code"
        return (
            "the loop thread waited for an unknown cause: a blocking call, the GIL held by another thread, "
            "or a processor on a busy machine"
        )


class _TimedSteps:
    """Awaits a coroutine and reports the duration of each step to `record`."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], record: Callable[[float], None]) -> None:
        self._coroutine = coroutine
        self._record = record

    def __await__(self) -> Generator[Any, Any, None]:
        run: Callable[..., Any] = self._coroutine.send
        argument: Any = None
        while True:
            began = clock.monotonic()
            try:
                future = run(argument)
            except StopIteration:
                return
            finally:
                # An exception's traceback refers to this frame: the cycle would keep the streams of the caller's
                # code open until a garbage collection.
                argument = None
                self._record(clock.monotonic() - began)
            try:
                run, argument = self._coroutine.send, (yield future)
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as exc:
                run, argument = self._coroutine.throw, exc
