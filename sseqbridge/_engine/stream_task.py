"""One stream's task: it stream_tasks a connection into a channel, keeps the time, and can be ended.

Everything here runs in the loop's thread but for the methods of `StreamTask` that say otherwise, and
those do no more than post to the loop. Whatever ends the task puts the one `End` into the
channel: its own last step, or its done callback where it does not get that far.

Neither a stream_task nor anything that it refers to knows the stream object that the user holds: else
that would live as long as the request, and dropping it could abort nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import anyio

from sseqbridge._exceptions import (
    BridgeClosedError,
    CallbackError,
    RequestAbortedError,
    SSEError,
    StreamTimeoutError,
    UsageError,
)
from sseqbridge._runtime import fork, threads
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._runtime.clock import clock

from .channel import CLOSED, Channel, End, post, settle
from .exchange import Batch, Body, Exchange, Head
from .reconnecting import Reconnecting, ReconnectingExchange
from .scope import is_cancelled

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.request import RequestOptions
    from sseqbridge._runtime.loop_watch import LoopWatch

__all__ = ["Cancellable", "Entry", "LoopState", "LoopTask", "StreamTask"]

logger = logging.getLogger("sseqbridge")

Entry = Head | Batch | Body | Reconnecting

# After the stream's last event: how long the consumer's end waits for the rest of the body, and
# how long that is read for in the background.
_END_SECONDS = 0.02
_DRAIN_SECONDS = 1.0

# A set cancel flag aborts within 50 ms; half of that leaves room for a busy loop.
_CANCEL_INTERVAL = 0.025


class Cancellable(Protocol):
    """What a caller's cancel flag ends."""

    @property
    def finished(self) -> bool: ...
    def check_cancel(self, watch: LoopWatch | None) -> None: ...


class LoopTask:
    """What runs in a loop for a consumer elsewhere: whose process it belongs to, and when it has ended."""

    def __init__(self, state: LoopState) -> None:
        self.state = state
        self.loop = state.loop
        self._finished = threads.Signal()

    # From anywhere, between any two bytecodes: no lock, no wait.

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child, and the stream its parent's."""
        return self.state.process != fork.process_token()

    def check_process(self) -> None:
        """Raise UsageError in a forked child."""
        if self.is_inherited:
            raise UsageError("this stream was opened before a fork, and is the parent's to read: open one in the child")

    def in_loop_thread(self) -> bool:
        """Whether this is the loop's own thread, which must not wait."""
        return asyncio._get_running_loop() is self.loop

    @property
    def finished(self) -> bool:
        """Whether the task has ended, and what it held is closed or given back."""
        return self._finished.is_set

    def notify_finished(self, callback: Callable[[], object]) -> None:
        """Have `callback` called once, in the loop's thread when the task has ended, or here where it has."""
        self._finished.notify(callback)

    def call_at_loop_end(self, callback: Callable[[], object]) -> None:
        """Have `callback` called in the loop's thread when the loop ends, or here where it has ended."""
        self.state.call_at_end(callback)

    def cancel_call_at_loop_end(self, callback: Callable[[], object]) -> None:
        """Take that back."""
        self.state.cancel_call_at_end(callback)

    # In any thread but the loop's.

    def wait_finished(self, timeout: float) -> None:
        """Wait until the task has ended, `timeout` seconds at most."""
        self._finished.wait(0 if self.loop.is_closed() else timeout)

    # In a coroutine of any loop.

    async def await_finished(self, timeout: float) -> None:
        """Wait until the task has ended, `timeout` seconds at most."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        self._finished.notify(partial(post, loop, settle, ended))
        if not self._finished.is_set and not self.loop.is_closed():
            await asyncio.wait({ended}, timeout=timeout)


# Those that there are, so that a forked child can tell them from its own.
_states: WeakSet[LoopState] = WeakSet()


class LoopState:
    """What the streams of one event loop share: its clients, its stream_tasks, its cancel watch, its counters.

    `watch`, which notices that the loop is blocked, is a bridge's alone: another loop has other work.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clients: ClientPool, watch: LoopWatch | None = None) -> None:
        self.loop = loop
        self.clients = clients
        self.loop_watch = watch
        # Written in the loop's thread only. Odd while what follows is being changed, so that any thread can
        # read it whole without a lock, which a signal handler might find taken.
        self._version = 0
        self.stream_tasks: set[StreamTask] = set()
        self._past_bytes = 0
        self._past_events = 0
        self._watched: set[Cancellable] = set()
        self._timer: asyncio.TimerHandle | None = None
        # Kept alive here: an asynchronous generator that the loop closes when it ends.
        self.at_loop_end: AsyncGenerator[None, None] | None = None
        self.process = fork.process_token()
        # What is still to be done when the loop ends: by whoever takes it out. Any thread may put in.
        self._at_end: set[Callable[[], object]] = set()
        self._is_over = False
        # Whether it ends with the process, of which nobody is to be told.
        self.ends_quietly = False
        _states.add(self)

    def add(self, stream_task: StreamTask) -> None:
        """A stream begins."""
        self.stream_tasks.add(stream_task)
        if self.loop_watch is not None:
            self.loop_watch.start()

    def discard(self, stream_task: StreamTask) -> None:
        """A stream has ended."""
        if stream_task not in self.stream_tasks:
            return
        self._version += 1
        self._past_bytes += stream_task.exchange.received
        self._past_events += stream_task.exchange.events
        self.stream_tasks.discard(stream_task)
        self._version += 1
        if self.loop_watch is not None and not self.stream_tasks:
            self.loop_watch.stop()

    def counted(self) -> tuple[tuple[StreamTask, ...], int, int]:
        """Return the open streams, and the bytes and events of all so far. Any thread may call it."""
        while True:
            version = self._version
            # Copied in one step, which neither another thread nor the collector comes into.
            stream_tasks = tuple(self.stream_tasks.copy())
            received = self._past_bytes + sum(stream_task.exchange.received for stream_task in stream_tasks)
            events = self._past_events + sum(stream_task.exchange.events for stream_task in stream_tasks)
            if not version % 2 and version == self._version:
                return stream_tasks, received, events
            # The loop's thread was interrupted in the midst of it.
            time.sleep(0)

    def watch(self, stream: Cancellable) -> None:
        """Look at the stream's cancel flag until it is finished: one timer for all of them."""
        self._watched.add(stream)
        if self._timer is None:
            self._timer = self.loop.call_later(_CANCEL_INTERVAL, self._look)

    def _look(self) -> None:
        self._watched = {stream for stream in self._watched if not stream.finished}
        # Before the flags, which are code of the callers': one that fails must not end the watch for all.
        self._timer = self.loop.call_later(_CANCEL_INTERVAL, self._look) if self._watched else None
        for stream in tuple(self._watched):
            stream.check_cancel(self.loop_watch)

    async def aclose(self, reason: Callable[[], SSEError] | None, seconds: float) -> None:
        """Abort every stream and close the clients, taking `seconds` for it at most.

        The consumers get the error that `reason` makes, or end quietly where it is None.
        """
        self.ends_quietly = reason is None
        stream_tasks = tuple(self.stream_tasks)
        for stream_task in stream_tasks:
            if reason is None and stream_task.opened:
                stream_task.channel.close()
            stream_task.abort(BridgeClosedError("the interpreter is exiting") if reason is None else reason())
        tasks = [stream_task.task for stream_task in stream_tasks if stream_task.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        self.give_up()
        try:
            await asyncio.wait_for(self.clients.aclose(), seconds)
        except (Exception, asyncio.CancelledError) as exc:
            logger.debug("closing the HTTP clients failed: %s", type(exc).__name__)

    def give_up(self) -> None:
        """Let the consumers go whose streams' tasks would not end."""
        for stream_task in tuple(self.stream_tasks):
            stream_task.give_up()
        self._is_over = True
        while self._at_end:
            self._call_at_end()

    def call_at_end(self, callback: Callable[[], object]) -> None:
        """Have `callback` called in the loop's thread when the loop ends, or here where it has ended."""
        self._at_end.add(callback)
        if self._is_over:
            self._call_at_end()

    def cancel_call_at_end(self, callback: Callable[[], object]) -> None:
        """Take that back."""
        self._at_end.discard(callback)

    def _call_at_end(self) -> None:
        try:
            callback = self._at_end.pop()
        except KeyError:
            return  # Another thread was first.
        callback()


def _detach_after_fork() -> None:
    for state in tuple(_states):
        fork.pin(state)
        state.clients.detach_after_fork()
        for stream_task in state.stream_tasks:
            stream_task.exchange.detach_after_fork()
            # A loop that is under way here ends at its next step.
            stream_task.channel.closed = True


fork.after_fork(_detach_after_fork)


class StreamTask(LoopTask):
    """Runs one request in the loop. Made in the caller's thread, started in the loop's."""

    def __init__(self, state: LoopState, options: RequestOptions) -> None:
        super().__init__(state)
        self.exchange: Exchange | ReconnectingExchange
        if options.reconnect is None:
            self.exchange = Exchange(state.clients, options)
        else:
            self.exchange = ReconnectingExchange(state.clients, options, options.reconnect)
        self.channel: Channel[Entry] = Channel(state.loop, options.max_buffered_bytes)
        self.task: asyncio.Task[None] | None = None
        self.opened = False
        self._first_event_at: float | None = None
        self.last_event_id = options.last_event_id
        self._cancel = options.cancel
        self._timeout = options.timeout
        # Not the loop's time: uvloop's stands still while the loop waits, as in a caller's thread.
        self._started_at = clock.monotonic()
        self._reason: BaseException | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        # Ends _transfer, while that runs.
        self._cancel_transfer: Callable[[], object] | None = None
        self._aborted = False
        # Whether all that the connection gave is in the channel: its outcome is known before that.
        self._transferred = False
        self._ending = False
        # What was read since the task last waited for the network.
        self._gathered: Batch | None = None
        # When the idle clock was last set back, None while it stands still.
        self._idle_since: float | None = None

    # In the loop's thread.

    def start(self) -> None:
        """Start the task, in the context that this is called in."""
        self.state.add(self)
        self.task = self.loop.create_task(self._run(), name="sseqbridge-stream")
        self.task.add_done_callback(self._done)
        if not self.exchange.bounds_its_opening:
            self._limit_total()
        if self._cancel is not None:
            self.state.watch(self)

    def _limit_total(self) -> None:
        total = self._timeout.total
        if total is not None:
            left = self._started_at + total - clock.monotonic()
            self._set_timer("total", self.loop.time() + left, self._time_out, "total", total)

    def _set_timer(self, name: str, when: float, callback: Callable[..., object], *args: Any) -> None:
        self._timers[name] = self.loop.call_at(when, callback, *args)

    async def _run(self) -> None:
        error = None
        try:
            # An abort can be posted before the task has taken its first step.
            if not self._aborted:
                # The connection contains what it knows to be the caller's. This is for the rest.
                with CallersCode("code of the caller's in the stream's task", passes=Exception):
                    await self._transfer_cancellably()
        except asyncio.CancelledError:
            if not self._aborted:
                raise
        except Exception as exc:
            error = exc
        finally:
            self._cancel_transfer = None
            try:
                with CallersCode("closing the connection", passes=Exception):
                    await self._close_connection()
            except Exception as exc:
                error = error or exc
        # Here, and not in a callback of the task's, which would come a turn of the loop later.
        self._finish(error)
        error = None  # It holds this frame.

    async def _close_connection(self) -> None:
        # In a child that unwinds its parent's tasks this would be the parent's.
        if not self.is_inherited:
            await self.exchange.aclose()

    async def _transfer_cancellably(self) -> None:
        if self.exchange.is_direct:
            assert self.task is not None
            self._cancel_transfer = self.task.cancel
            await self._transfer()
            return
        # Not the task's own cancel(): it goes through the shields under which httpcore closes
        # connections, other streams' among them, and would leave those open.
        watch = self.state.loop_watch
        with anyio.CancelScope() as scope:
            self._cancel_transfer = scope.cancel
            # There a client's own code may run, and hold up all the others.
            await (self._transfer() if watch is None else watch.steps_of(self._transfer(), self._told_client))

    def _told_client(self) -> str:
        return f"what the HTTP client, its transport, hooks or auth did for {self.exchange.target}"

    async def _transfer(self) -> None:
        connection = self.exchange
        while isinstance(head := await connection.open(), Reconnecting):
            await self.channel.send(head, head.charge)
        if connection.bounds_its_opening:
            self._limit_total()
        self.opened = True
        self.channel.send_deferred(head)
        self._idle_since = self.loop.time()
        if self._timeout.idle is not None:
            self._check_idle(self._timeout.idle)
        connection.put_through(self._put_now)
        async for entry in connection:
            await self._put(entry)
            if connection.outcome == "done":
                self._begin_end()
        self._transferred = True

    def _put_now(self, batch: Batch) -> bool:
        """Put a batch where that needs no wait, in the transport's callback: no step of the task."""
        if self._gathered is not None:
            self._flush()
        if not self.channel.try_send(batch, batch.charge):
            return False
        # After that: the consumer is on its way already.
        self._note(batch)
        return True

    def _note(self, batch: Batch) -> None:
        if batch.events:
            self._idle_since = self.loop.time()
            if self._first_event_at is None:
                self._first_event_at = clock.monotonic()

    async def _put(self, entry: Batch | Body | Reconnecting) -> None:
        if isinstance(entry, Reconnecting):
            self._flush()
            await self.channel.send(entry, entry.charge)
            return
        if isinstance(entry, Body):
            self.channel.send_nowait(entry)
            return
        self._note(entry)
        if self.channel.closed:
            # Nobody wants it: let the abort in, however much there is to read without waiting.
            await asyncio.sleep(0)
            return
        gathered = self._gathered
        if gathered is None:
            if self.channel.fits(entry.charge):
                # Flushed as soon as this task waits for the network: until then what it reads comes
                # from one network read, and crosses to the consumer as one batch.
                self._gathered = entry
                self.loop.call_soon(self._flush)
                return
        elif self.channel.has_room(gathered.charge + entry.charge):
            gathered.absorb(entry)
            return
        await self._put_when_there_is_room(entry)

    async def _put_when_there_is_room(self, entry: Batch) -> None:
        self._flush()
        # The idle clock stands still while the consumer holds the stream back.
        since, held_at = self._idle_since, self.loop.time()
        assert since is not None
        self._idle_since = None
        await self.channel.send(entry, entry.charge)
        self._idle_since = since + self.loop.time() - held_at

    def _flush(self) -> None:
        gathered = self._gathered
        if gathered is not None:
            self._gathered = None
            self.channel.send_nowait(gathered, gathered.charge)

    def _check_idle(self, limit: float) -> None:
        # One timer a stream, set anew when it fires: an event costs no more than a look at the clock.
        now = self.loop.time()
        opened_at = self.exchange.opened_at
        since = now if self._idle_since is None or opened_at is None else max(self._idle_since, opened_at)
        if now - since >= limit:
            self._time_out("idle", limit)
            since = now
        if not self._aborted:
            self._set_timer("idle", since + limit, self._check_idle, limit)

    def _time_out(self, which: str, seconds: float) -> None:
        error = StreamTimeoutError(which, seconds)
        if which != "idle" or not self.exchange.drop(error):
            self.abort(error)

    def _begin_end(self) -> None:
        """The last event is in: let the consumer go soon, and the rest of the body come."""
        if not self._ending and not self._finished.is_set:
            self._ending = True
            # Not by the callback: uvloop runs a timer that is due, such as the end's, before it.
            gathered, self._gathered = self._gathered, None
            if gathered is not None:
                self.channel.send_deferred(gathered, gathered.charge)
            self._cancel_timers()
            if self.exchange.is_complete:
                return
            now = self.loop.time()
            self._set_timer("end", now + _END_SECONDS, self.channel.end, End("done"))
            self._set_timer("drain", now + _DRAIN_SECONDS, self.abort, None)

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def drain(self) -> None:
        """The consumer has seen the last event: read a little further, give nothing more."""
        if not self._finished.is_set:
            self.exchange.drain()
            self.channel.close()
            self._begin_end()
            if self.exchange.opened_at is None:
                # The connection is gone, and none is to follow.
                self.abort(None)

    def abort(self, reason: BaseException | None) -> None:
        """Cut the connection off and end the task. The consumer gets `reason`, if there is one."""
        if self._finished.is_set or self.task is None or self.is_inherited:
            return
        if self._reason is None:
            self._reason = reason
        # First the socket: a task that waits for something else could take its time.
        self.exchange.shut_down()
        self._aborted = True
        if self._cancel_transfer is not None:
            self._cancel_transfer()

    def reconnect(self) -> None:
        """Drop the connection for another one."""
        if not (self._finished.is_set or self._ending):
            self.exchange.drop(None, was_asked_for=True)

    def check_cancel(self, watch: LoopWatch | None) -> None:
        """Abort if the caller's cancel flag is set, or cannot be looked at."""
        began = clock.monotonic()
        try:
            is_set = is_cancelled(self._cancel)
        except CallbackError as error:
            self.abort(error)
            return
        finally:
            if watch is not None:
                watch.ran(clock.monotonic() - began, self._told_flag)
        if is_set and not self._ending:
            if self.opened:
                self.channel.close()
            self.abort(RequestAbortedError("cancel was set before the response's headers were in"))

    def give_up(self) -> None:
        """Let the consumer go, whatever becomes of the task."""
        self.channel.end(End("error", BridgeClosedError("the stream's task did not end in time")))
        self._finished.set()

    def _told_flag(self) -> str:
        kind = type(self._cancel)
        return f"is_set() of the cancel flag, a {kind.__module__}.{kind.__qualname__}, of {self.exchange.target}"

    def _done(self, task: asyncio.Task[None]) -> None:
        # Where _run did not get to its end: it was cancelled, or closing the client failed.
        if not self._finished.is_set:
            cancelled = BridgeClosedError("the event loop that the stream ran on is ending")
            self._finish(cancelled if task.cancelled() else task.exception())

    def _finish(self, error: BaseException | None) -> None:
        self._cancel_timers()
        self.state.discard(self)
        self._flush()
        self.channel.end(self._end_of(error))
        self._finished.set()

    def _end_of(self, error: BaseException | None) -> End:
        if self._ending:
            return End("done")
        if error is None and self._transferred and self.exchange.outcome is not None:
            return End(self.exchange.outcome)
        if self._reason is not None:
            return End("error", self._reason)
        if error is None:
            return CLOSED
        if isinstance(error, SSEError):
            return End("error", error)
        told = SSEError(f"{self.exchange.target}: {type(error).__name__} in the stream's task")
        told.__cause__ = error
        return End("error", told)

    # From anywhere, between any two bytecodes: no lock, no wait.

    def request_abort(self) -> None:
        """Have the request aborted."""
        self._post(self.abort, None)

    def request_drain(self) -> None:
        """Have the rest of the body read, within bounds, since the last event has been seen."""
        self._post(self.drain)

    def request_reconnect(self) -> None:
        """Have the connection dropped for another one."""
        self._post(self.reconnect)

    def _post(self, callback: Callable[..., Any], *args: Any) -> None:
        # Where the loop is closed, so is the connection.
        post(self.loop, callback, *args)

    @property
    def time_to_first_event(self) -> float | None:
        """Seconds from the call to the first event's arrival."""
        return None if self._first_event_at is None else self._first_event_at - self._started_at
