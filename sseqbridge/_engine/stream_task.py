"""One stream's task: it moves entries from an exchange into a channel, keeps the time limits, and can be aborted.

Everything runs on the loop thread, except for the methods of StreamTask that are marked thread-safe: they close
the channel or post to the loop, and take no lock. The channel gets exactly one End: from the task's own last step,
or from its done callback if the task does not get that far.

Neither a StreamTask nor anything that it references may reference the stream object that the user holds: that
object would live as long as the request, and dropping it could abort nothing.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import (
    BridgeClosedError,
    CallbackError,
    RequestAbortedError,
    SSEError,
    StreamTimeoutError,
    UsageError,
)
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._runtime.clock import clock

from .batches import Batch
from .callback_transfer import CallbackTransfer, DirectExchange, begun
from .channel import CLOSED, Channel, End, post
from .memory import memory
from .reconnection_notice import Reconnecting
from .responses import Body, Head
from .scope import current_scope, watched_flag
from .stats import StreamStats
from .transfer_task import TransferTask

if TYPE_CHECKING:
    from sseqbridge._http.request import RequestOptions
    from sseqbridge._runtime.loop_watch import LoopWatch
    from sseqbridge._sse.events import ServerSentEvent

    from .loop_state import LoopState
    from .reconnecting import ReconnectingExchange

__all__ = ["Entry", "StreamTask"]

logger = logging.getLogger("sseqbridge")

Entry = Head | Batch | Body | Reconnecting

# After the stream's last event: how long the consumer's end waits for the rest of the body, and for how long
# the rest is read in the background. The connection can be reused if the rest comes in that time.
END_SECONDS = 0.02
DRAIN_SECONDS = 1.0


class _Phase(enum.Enum):
    """How far the exchange has come."""

    OPENING = enum.auto()
    STREAMING = enum.auto()
    # The last event is in the channel; the rest of the body may still be read.
    ENDING = enum.auto()
    # Everything that the exchange returned is in the channel. (The exchange knows its outcome before that.)
    TRANSFERRED = enum.auto()


class StreamFacts(TransferTask):
    """The parts of a stream on its loop, and its counters. Thread-safe."""

    def __init__(self, state: LoopState, options: RequestOptions) -> None:
        super().__init__(state)
        self.exchange: DirectExchange | ReconnectingExchange
        if options.reconnect is None:
            self.exchange = DirectExchange(state.clients, options)
        else:
            # Imported here: most programs do not reconnect.
            from .reconnecting import ReconnectingExchange

            self.exchange = ReconnectingExchange(state.clients, options, options.reconnect)
        self.channel: Channel[Entry] = Channel(state.loop, options.max_buffered_bytes)
        self.writer = EntryWriter(self.channel, state.loop)
        self.initial_event_id = options.last_event_id
        # Not the loop's time: uvloop's clock stands still while the loop waits.
        self.started_at = clock.monotonic()

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        return self.exchange.target

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item, if there was one."""
        return self.exchange.done_event

    @property
    def received(self) -> int:
        """The number of bytes of bodies so far."""
        return self.exchange.received

    @property
    def events(self) -> int:
        """The number of events so far."""
        return self.exchange.events

    def stats(self) -> StreamStats:
        """Return a snapshot of the stream's counters."""
        exchange = self.exchange
        return StreamStats(
            bytes=exchange.received,
            events=exchange.events,
            buffered=self.channel.buffered,
            reconnections=exchange.reconnections,
            time_to_first_event=self.time_to_first_event,
        )

    @property
    def time_to_first_event(self) -> float | None:
        """Seconds from the call to the first event's arrival."""
        first_event_at = self.writer.first_event_at
        return None if first_event_at is None else first_event_at - self.started_at


class TimedStream(StreamFacts):
    """The time limits of a stream. Used on the loop thread."""

    def __init__(self, state: LoopState, options: RequestOptions) -> None:
        super().__init__(state, options)
        self._timeout = options.timeout
        self._unit = "document" if options.format == "jsonl" else "event"
        self._pauses = options.pauses
        # An aborted stream has no idle limit any more.
        self._is_aborted = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def abort_on_loop(self, reason: BaseException | None) -> None:
        """Shut the connection down and end the task. The consumer gets `reason`, if it is not None."""
        raise NotImplementedError

    def _limit_total(self) -> None:
        total = self._timeout.total
        if total is not None:
            paused = self._paused_seconds
            left = self.started_at + total + paused - clock.monotonic()
            self._set_timer("total", self.loop.time() + left, self._check_total, total, paused)

    def _check_total(self, limit: float, paused: float) -> None:
        if self._paused_seconds > paused:
            self._limit_total()
        else:
            self._time_out("total", limit)

    @property
    def _paused_seconds(self) -> float:
        return 0.0 if self._pauses is None else self._pauses.seconds

    def _check_idle(self, limit: float) -> None:
        # One timer a stream, set again when it fires: an event only costs a look at the clock.
        now = self.loop.time()
        opened_at, idle_since = self.exchange.opened_at, self.writer.idle_since
        since = now if idle_since is None or opened_at is None else max(idle_since, opened_at)
        if now - since >= limit:
            self._time_out("idle", limit)
            since = now
        if not self._is_aborted:
            self._set_timer("idle", since + limit, self._check_idle, limit)

    def _time_out(self, which: str, seconds: float) -> None:
        error = StreamTimeoutError(which, seconds, self.target, unit=self._unit)
        if which != "idle" or not self.exchange.drop(error):
            self.abort_on_loop(error)

    def _set_timer(self, name: str, when: float, callback: Callable[..., object], *args: Any) -> None:
        self._timers[name] = self.loop.call_at(when, callback, *args)

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


class StreamTask(TimedStream):
    """Runs one request on the loop. Made in the caller's thread, started on the loop thread."""

    # See Subscription.
    shares_events = False

    def __init__(self, state: LoopState, options: RequestOptions) -> None:
        super().__init__(state, options)
        self.task: asyncio.Task[None] | None = None
        # Does the work as long as there is no task.
        self._callbacks: CallbackTransfer | None = None
        self._cancel = options.cancel
        self._phase = _Phase.OPENING
        # The error for the consumer of an aborted stream.
        self._reason: BaseException | None = None

    # Thread-safe, and safe in finalizers and signal handlers: no lock, no wait. A closed loop has closed
    # its connections, and ignores posted callbacks.

    @property
    def opened(self) -> bool:
        """Whether the response's head is in the channel."""
        return self._phase is not _Phase.OPENING

    def abort(self) -> None:
        """Close the channel and abort the request. Does nothing in a forked child."""
        if not self.is_inherited:
            self.channel.close()
            post(self.loop, self.abort_on_loop, None)

    def drain(self) -> None:
        """Read the rest of the body within bounds, since the consumer has seen the last event."""
        post(self.loop, self.drain_on_loop)

    def reconnect(self) -> None:
        """Drop the connection for another one.

        Raises UsageError if the stream does not reconnect, if the request must not be sent again, and in a
        forked child.
        """
        self.check_process()
        self.exchange.check_asked()
        post(self.loop, self.reconnect_on_loop)

    # On the loop thread.

    def start(self) -> None:
        """Start the task, in the context of the caller.

        Ends the stream with BridgeClosedError, and raises it, if that fails: for example in a task factory of a caller.
        """
        try:
            self._start()
        except BaseException as exc:
            error = BridgeClosedError(f"{self.target}: {type(exc).__name__} when the loop started the stream")
            error.__cause__ = exc
            if self.task is None and self._callbacks is None:
                self.exchange.abandon()
                self._finish(error)
            else:
                self.abort_on_loop(error)
            if isinstance(exc, Exception):
                raise error from exc
            raise

    def _start(self) -> None:
        self.state.add(self)
        memory.enter(self.channel, self.loop)
        self._callbacks = self._begun_in_callbacks()
        if self._callbacks is None:
            self._start_task()
        else:
            self._callbacks.begin()
        if self._timeout.total is not None and not self.exchange.bounds_its_opening:
            self._limit_total()
        if self._cancel is not None:
            self.state.watch(self)
        if (scope := current_scope()) is not None:
            self.ownership.move(self, scope)

    def _begun_in_callbacks(self) -> CallbackTransfer | None:
        exchange = self.exchange
        # Not for a stream that was aborted before this ran, whose request is not sent; nor if handlers of log records
        # see the request, which are code of the caller's and expect its context.
        if not isinstance(exchange, DirectExchange) or self.channel.closed or logger.isEnabledFor(logging.DEBUG):
            return None
        return begun(self, exchange, self._timeout.read)

    def _start_task(self) -> None:
        coroutine = self._run()
        try:
            self.task = self.loop.create_task(coroutine, name="sseqbridge-stream")
        except BaseException:
            coroutine.close()
            raise
        self.task.add_done_callback(self._done)

    # For the CallbackTransfer.

    def begin_streaming(self) -> None:
        """Record that the head is in the channel."""
        self._phase = _Phase.STREAMING
        self.writer.idle_since = self.loop.time()
        if self._timeout.idle is not None:
            self._check_idle(self._timeout.idle)

    def continue_in_task(self) -> None:
        """Start the task, which continues where the callbacks have ended."""
        self._callbacks = None
        self._start_task()

    def end_in_callback(self, error: Exception | None = None) -> None:
        """End the stream: the connection is closed, or back in the pool."""
        self._callbacks = None
        if self._phase is _Phase.STREAMING and error is None:
            self._phase = _Phase.TRANSFERRED
        self._finish(error)

    async def _run(self) -> None:
        error = None
        try:
            # An abort can be posted before the task has taken its first step.
            if not self._is_aborted:
                # The exchange contains the callers' code that it knows of. This contains the rest.
                with CallersCode("code of the caller's in the stream's task", passes=Exception):
                    await self._transfer_cancellably(is_direct=self.exchange.is_direct)
        except asyncio.CancelledError:
            if not self._is_aborted:
                raise
        except Exception as exc:
            error = exc
        finally:
            self._cancel_transfer = None
            try:
                with CallersCode("closing the connection", passes=Exception):
                    await self._close_exchange()
            except Exception as exc:
                error = error or exc
        # Not in the done callback, which runs one iteration of the event loop later.
        self._finish(error)
        error = None  # Its traceback references this frame.

    async def _close_exchange(self) -> None:
        # A forked child that unwinds its parent's tasks must not close the parent's connection.
        if not self.is_inherited:
            await self.exchange.aclose()

    async def _transfer(self) -> None:
        exchange = self.exchange
        if not self.opened:
            while isinstance(head := await exchange.open(), Reconnecting):
                await self.channel.send(head, head.charge)
            if exchange.bounds_its_opening:
                self._limit_total()
            self.channel.send_deferred(head)
            self.begin_streaming()
        exchange.set_sink(self.writer.try_write)
        async for entry in exchange:
            await self.writer.write(entry)
            if exchange.outcome == "done":
                self.begin_end()
        if self._phase is _Phase.STREAMING:
            self._phase = _Phase.TRANSFERRED

    def begin_end(self) -> None:
        """The last event is in: end the consumer soon, and let the rest of the body come."""
        if self._phase is _Phase.ENDING or self.finished:
            return
        self._phase = _Phase.ENDING
        self.writer.flush_deferred()
        self._cancel_timers()
        if self.exchange.is_complete:
            return
        now = self.loop.time()
        self._set_timer("end", now + END_SECONDS, self.channel.end, End("done"))
        self._set_timer("drain", now + DRAIN_SECONDS, self.abort_on_loop, None)

    def drain_on_loop(self) -> None:
        """Read the rest of the body within bounds, without forwarding any of it."""
        if not self.finished:
            self.exchange.drain()
            self.channel.close()
            self.begin_end()
            if self.exchange.opened_at is None:
                # There is no connection to read from, and none will follow.
                self.abort_on_loop(None)

    def abort_on_loop(self, reason: BaseException | None) -> None:
        """Shut the connection down and end the task. The consumer gets `reason`, if it is not None."""
        if self.finished or (self.task is None and self._callbacks is None) or self.is_inherited:
            return
        if self._reason is None:
            self._reason = reason
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            callbacks.abort()
            self._is_aborted = True
            self._finish(None)
            return
        # The socket first: a task that waits for something else could take its time.
        self.exchange.shut_down()
        self._is_aborted = True
        if self._cancel_transfer is not None:
            self._cancel_transfer()

    def reconnect_on_loop(self) -> None:
        """Drop the connection for another one."""
        if not self.finished and self._phase is not _Phase.ENDING:
            self.exchange.drop(None, was_asked_for=True)

    def check_cancel(self, watch: LoopWatch | None) -> None:
        """Abort if the caller's cancel flag is set, or raises."""
        try:
            is_set = watched_flag(self._cancel, self, watch)
        except CallbackError as error:
            self.abort_on_loop(error)
            return
        if is_set and self._phase is not _Phase.ENDING:
            if self.opened:
                self.channel.close()
            self.abort_on_loop(RequestAbortedError("cancel was set before the response's headers were in"))

    def release_consumer(self) -> None:
        """End the channel, although the task has not ended."""
        self.channel.end(End("error", self._reason or BridgeClosedError("the stream's task did not end in time")))
        self.mark_finished()

    def _done(self, task: asyncio.Task[None]) -> None:
        # If _run did not get to its end: it was cancelled, or closing the exchange raised an exit.
        if not self.finished:
            cancelled = BridgeClosedError("the event loop that the stream ran on is ending")
            self._finish(cancelled if task.cancelled() else task.exception())

    def _finish(self, error: BaseException | None) -> None:
        if self._timers:
            self._cancel_timers()
        self.state.discard(self)
        self.writer.flush()
        self.channel.end(self._end_of(error))
        self.mark_finished()

    def _end_of(self, error: BaseException | None) -> End:
        if self._phase is _Phase.ENDING:
            return End("done")
        if error is None and self._phase is _Phase.TRANSFERRED and self.exchange.outcome is not None:
            return End(self.exchange.outcome)
        if self._reason is not None:
            return End("error", self._reason)
        if error is None:
            return CLOSED
        if isinstance(error, (SSEError, UsageError)):
            return End("error", error)
        wrapped = SSEError(f"{self.target}: {type(error).__name__} in the stream's task")
        wrapped.__cause__ = error
        return End("error", wrapped)


class EntryWriter:
    """Writes a stream's entries into its channel, several batches of one network read as one.

    Used on the loop thread alone; other threads read `first_event_at`.
    """

    def __init__(self, channel: Channel[Entry], loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        # Batches that were read since the task last waited for the network.
        self._gathered: Batch | None = None
        # When the last event came, on the loop's clock; None while the consumer holds the stream back.
        self.idle_since: float | None = None
        self.first_event_at: float | None = None
        # Whether each batch of try_add() wakes the consumer.
        self.wakes_consumer = False

    def try_write(self, batch: Batch) -> bool:
        """Write a batch if it fits; called by the transport, so that the stream's task need not run."""
        if self._gathered is not None:
            self.flush()
        if not self._channel.try_send(batch, batch.charge):
            return False
        # Last, so that the consumer can start in the meantime.
        self._note(batch)
        return True

    def _note(self, batch: Batch) -> None:
        if batch.events:
            self.idle_since = self._loop.time()
            if self.first_event_at is None:
                self.first_event_at = clock.monotonic()

    def try_add(self, batch: Batch) -> bool:
        """Do the same for a transfer in callbacks; see `wakes_consumer`. A closed channel drops batches."""
        channel = self._channel
        if not channel.try_send(batch, batch.charge, wakes=self.wakes_consumer):
            return channel.closed
        self._note(batch)
        return True

    async def write(self, entry: Batch | Body | Reconnecting) -> None:
        """Write an entry, waiting until it fits."""
        if isinstance(entry, Reconnecting):
            self.flush()
            await self._channel.send(entry, entry.charge)
            return
        if isinstance(entry, Body):
            self._channel.send_nowait(entry)
            return
        if entry.incomplete is not None:
            # The consumer decides about it after the items before it.
            self.flush()
            await self._channel.send(entry, entry.charge)
            return
        self._note(entry)
        if self._channel.closed:
            # The consumer has left. Yield to the loop, so that the abort runs however much can be read at once.
            await asyncio.sleep(0)
            return
        gathered = self._gathered
        if gathered is None:
            if self._channel.fits(entry.charge):
                # Flushed once the task waits for the network: until then its batches come from one network
                # read, and reach the consumer as one.
                self._gathered = entry
                self._loop.call_soon(self.flush)
                return
        elif self._channel.has_room(gathered.charge + entry.charge):
            gathered.absorb(entry)
            return
        await self._write_when_it_fits(entry)

    async def _write_when_it_fits(self, batch: Batch) -> None:
        self.flush()
        # The idle clock stops while the consumer holds the stream back.
        since, held_at = self.idle_since, self._loop.time()
        assert since is not None
        self.idle_since = None
        await self._channel.send(batch, batch.charge)
        self.idle_since = since + self._loop.time() - held_at

    def flush(self) -> None:
        """Write the gathered batches."""
        gathered = self._gathered
        if gathered is not None:
            self._gathered = None
            self._channel.send_nowait(gathered, gathered.charge)

    def flush_deferred(self) -> None:
        """Write the gathered batches, and wake the consumer in the next iteration of the event loop.

        uvloop runs due timers, such as the stream's end, before callbacks that are posted already: the callback
        of write() could come after the End.
        """
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            self._channel.send_deferred(gathered, gathered.charge)
