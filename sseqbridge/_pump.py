"""One stream's task: it pumps a connection into a hand-off, keeps the time, and can be ended.

Everything here runs in the loop's thread but for the methods of `Pump` that say otherwise, and
those do no more than post to the loop. Whatever ends the task, its done callback puts the one
`End` into the hand-off: a task that is cancelled before its first step runs no `finally`.

Neither a pump nor anything that it refers to knows the stream object that the user holds: else
that would live as long as the request, and dropping it could abort nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from . import _runtime
from ._connection import Batch, Body, Connection, Head
from ._exceptions import BridgeClosedError, CallbackError, RequestAbortedError, SSEError, StreamTimeoutError
from ._handoff import End, HandOff

if TYPE_CHECKING:
    from ._client import ClientPool
    from ._options import RequestOptions

__all__ = ["Entry", "LoopState", "Pump"]

logger = logging.getLogger("sseqbridge")

Entry = Head | Batch | Body

# After the stream's last event: how long the consumer's end waits for the rest of the body, and
# how long that is read for in the background.
_END_SECONDS = 0.02
_DRAIN_SECONDS = 1.0

# A set cancel flag aborts within 50 ms; half of that leaves room for a busy loop.
_CANCEL_INTERVAL = 0.025


class LoopState:
    """What the streams of one event loop share: its clients, its pumps, its cancel watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clients: ClientPool) -> None:
        self.loop = loop
        self.clients = clients
        # Written in the loop's thread only.
        self.pumps: set[Pump] = set()
        self._watched: set[Pump] = set()
        self._timer: asyncio.TimerHandle | None = None
        # Kept alive here: an asynchronous generator that the loop closes when it ends.
        self.at_loop_end: AsyncGenerator[None, None] | None = None

    def watch(self, pump: Pump) -> None:
        """Look at the pump's cancel flag until it is finished: one timer for all of them."""
        self._watched.add(pump)
        if self._timer is None:
            self._timer = self.loop.call_later(_CANCEL_INTERVAL, self._look)

    def _look(self) -> None:
        self._watched &= self.pumps
        for pump in tuple(self._watched):
            pump.check_cancel()
        self._timer = self.loop.call_later(_CANCEL_INTERVAL, self._look) if self._watched else None

    async def aclose(self, reason: Callable[[], SSEError] | None, seconds: float) -> None:
        """Abort every stream and close the clients, taking `seconds` for it at most.

        The consumers get the error that `reason` makes, or end quietly where it is None.
        """
        pumps = tuple(self.pumps)
        for pump in pumps:
            if reason is None and pump.opened:
                pump.handoff.close()
            pump.abort(BridgeClosedError("the interpreter is exiting") if reason is None else reason())
        tasks = [pump.task for pump in pumps if pump.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for pump in pumps:
            # Only a task that would not end has not done this itself.
            pump.handoff.end(End("error", BridgeClosedError("the stream's task did not end in time")))
        try:
            await asyncio.wait_for(self.clients.aclose(), seconds)
        except (Exception, asyncio.CancelledError) as exc:
            logger.debug("closing the HTTP client failed: %s", type(exc).__name__)


class Pump:
    """Runs one request in the loop. Made in the caller's thread, started in the loop's."""

    def __init__(self, state: LoopState, options: RequestOptions) -> None:
        self.state = state
        self.loop = state.loop
        self.connection = Connection(state.clients, options)
        self.handoff: HandOff[Entry] = HandOff(state.loop, options.max_buffered_bytes)
        self.task: asyncio.Task[None] | None = None
        self.opened = False
        self._first_event_at: float | None = None
        self._cancel = options.cancel
        self._timeout = options.timeout
        self._started_at = self.loop.time()
        self._reason: BaseException | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ending = False
        # When the idle clock was last set back, None while it stands still.
        self._idle_since: float | None = None
        # Set once, to True, before the waiters are woken; those publish theirs and look again.
        self._finished = False
        self._finish_waiters: deque[Callable[[], None]] = deque()

    # In the loop's thread.

    def start(self) -> None:
        """Start the task, in the context that this is called in."""
        self.state.pumps.add(self)
        self.task = self.loop.create_task(self._run(), name="sseqbridge-stream")
        self.task.add_done_callback(self._done)
        total = self._timeout.total
        if total is not None:
            self._set_timer("total", self._started_at + total, self._time_out, "total", total)
        if self._cancel is not None:
            self.state.watch(self)

    def _set_timer(self, name: str, when: float, callback: Callable[..., object], *args: Any) -> None:
        self._timers[name] = self.loop.call_at(when, callback, *args)

    async def _run(self) -> None:
        connection = self.connection
        try:
            head = await connection.open()
            self.opened = True
            self.handoff.put_now(head)
            self._restart_idle_clock()
            if self._timeout.idle is not None:
                self._check_idle(self._timeout.idle)
            async for entry in connection:
                await self._put(entry)
                if connection.outcome == "done":
                    self._begin_end()
        finally:
            await connection.aclose()

    async def _put(self, entry: Batch | Body) -> None:
        if isinstance(entry, Body):
            self.handoff.put_now(entry)
            return
        if entry.items and self._first_event_at is None:
            self._first_event_at = self.loop.time()
        self._idle_since = None if entry.items else self._idle_since
        await self.handoff.put(entry, entry.charge)
        if entry.items:
            self._restart_idle_clock()

    def _restart_idle_clock(self) -> None:
        self._idle_since = self.loop.time()

    def _check_idle(self, limit: float) -> None:
        # One timer a stream, set anew when it fires: an event costs no more than a look at the clock.
        now = self.loop.time()
        since = now if self._idle_since is None else self._idle_since
        if now - since >= limit:
            self._time_out("idle", limit)
        else:
            self._set_timer("idle", since + limit, self._check_idle, limit)

    def _time_out(self, which: str, seconds: float) -> None:
        self.abort(StreamTimeoutError(which, seconds))

    def _begin_end(self) -> None:
        """The last event is in: let the consumer go soon, and the rest of the body come."""
        if not self._ending and not self._finished:
            self._ending = True
            self._cancel_timers()
            now = self.loop.time()
            self._set_timer("end", now + _END_SECONDS, self.handoff.end, End("done"))
            self._set_timer("drain", now + _DRAIN_SECONDS, self.abort, None)

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def drain(self) -> None:
        """The consumer has seen the last event: read a little further, give nothing more."""
        if not self._finished:
            self.connection.drain()
            self.handoff.close()
            self._begin_end()

    def abort(self, reason: BaseException | None) -> None:
        """Cut the connection off and end the task. The consumer gets `reason`, if there is one."""
        if self._finished or self.task is None:
            return
        if self._reason is None:
            self._reason = reason
        # First the socket: a task that waits for something else could take its time.
        self.connection.shut_down()
        self.task.cancel()

    def check_cancel(self) -> None:
        """Abort if the caller's cancel flag is set, or cannot be looked at."""
        assert self._cancel is not None
        try:
            is_set = self._cancel.is_set()
        except Exception as exc:
            error = CallbackError(f"cancel.is_set() raised {type(exc).__name__}")
            error.__cause__ = exc
            self.abort(error)
            return
        if is_set and not self._ending:
            if self.opened:
                self.handoff.close()
            self.abort(RequestAbortedError("cancel was set before the response's headers were in"))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._cancel_timers()
        self.state.pumps.discard(self)
        self.handoff.end(self._end_of(task))
        self._finished = True
        while self._finish_waiters:
            self._wake_one()

    def _end_of(self, task: asyncio.Task[None]) -> End:
        error = None if task.cancelled() else task.exception()
        if self._ending:
            return End("done")
        if self._reason is not None:
            return End("error", self._reason)
        if task.cancelled():
            return End("error", BridgeClosedError("the event loop that the stream ran on is ending"))
        if error is None:
            return End(self.connection.outcome or "eof")
        if isinstance(error, SSEError):
            return End("error", error)
        told = SSEError(f"{self.connection.target}: {type(error).__name__} in the stream's task")
        told.__cause__ = error
        return End("error", told)

    # From anywhere, between any two bytecodes: no lock, no wait.

    def request_abort(self) -> None:
        """Have the request aborted."""
        self._post(self.abort, None)

    def request_drain(self) -> None:
        """Have the rest of the body read, within bounds, since the last event has been seen."""
        self._post(self.drain)

    def _post(self, callback: Callable[..., Any], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            pass  # The loop is closed, and with it the connection.

    def in_loop_thread(self) -> bool:
        """Whether this is the loop's own thread, which must not wait."""
        return asyncio._get_running_loop() is self.loop

    @property
    def time_to_first_event(self) -> float | None:
        """Seconds from the call to the first event's arrival."""
        return None if self._first_event_at is None else self._first_event_at - self._started_at

    @property
    def finished(self) -> bool:
        """Whether the task has ended and its connection is closed or given back."""
        return self._finished

    def _wake_one(self) -> None:
        try:
            wake = self._finish_waiters.popleft()
        except IndexError:
            return
        wake()

    # In any thread but the loop's.

    def wait_finished(self, timeout: float) -> None:
        """Wait until the task has ended, `timeout` seconds at most."""
        waiter = _runtime.Waiter()
        self._finish_waiters.append(waiter.wake)
        if not self._finished and not self.loop.is_closed():
            waiter.wait(timeout)

    # In a coroutine of the loop.

    async def await_finished(self, timeout: float) -> None:
        """Wait until the task has ended, `timeout` seconds at most."""
        if self.task is not None and not self._finished:
            await asyncio.wait({self.task}, timeout=timeout)
