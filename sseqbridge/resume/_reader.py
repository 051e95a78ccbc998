"""The reader of a log's stream: a Subscription that first catches up, then follows.

Catching up, the reader reads existing entries from the store by itself. Following, it is subscribed to its
stream's topic, which broadcasts new entries. A reader without room in its channel goes back to catching up:
the log is its backlog. So a slow reader delays no other reader, and loses nothing.

Runs on the loop thread, except the constructor and the methods under "Thread-safe", which post to the loop.

| field                         | written by      | guarded by                 |
|-------------------------------|-----------------|----------------------------|
| `channel.closed`              | any thread      | turns True once            |
| the counters of `_delivery`   | the loop thread | nothing: see _delivery.py  |
| `_options`, `_hub`, `channel` | the constructor | not written later          |
| all others                    | the loop thread | no other thread reads them |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sseqbridge._engine.channel import Channel, End, post, settle
from sseqbridge._engine.loop_state import LoopTask
from sseqbridge._engine.memory import memory
from sseqbridge._engine.scope import current_scope, is_cancelled
from sseqbridge._exceptions import (
    BridgeClosedError,
    CallbackError,
    EventsLostError,
    ProducerLostError,
    RequestAbortedError,
    SSEError,
    StreamNotFoundError,
    UsageError,
)
from sseqbridge._runtime.clock import clock

from ._delivery import Delivery
from ._entries import CANCEL, END, START, Position, is_next, parse_position, position_before
from ._errors import as_log_error
from ._segments import Segment, segments_of
from ._store import ClaimState, FencingToken, MissingLease

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag
    from sseqbridge._engine.stats import StreamStats
    from sseqbridge._runtime.loop_watch import LoopWatch
    from sseqbridge._sse.dialects import EventRules
    from sseqbridge._sse.events import ServerSentEvent

    from ._hub import Hub
    from ._store import Claim
    from ._topic import Topic

__all__ = ["ElectedProducer", "Reader", "ReaderOptions"]

# How many existing entries one read returns.
_READ_COUNT = 500
_LOOP_ENDED = "the bridge, or the log, that this stream was read on was closed, or the interpreter is exiting"


class ElectedProducer(Protocol):
    """The producer that a reader's election made, as the reader uses it."""

    is_start_called: bool
    start_loop: asyncio.AbstractEventLoop | None

    async def call_start(self) -> None: ...
    def abort(self) -> None: ...


class ReaderOptions(NamedTuple):
    """The stream to read, the position to begin at, and the limits; see `Log.open`."""

    key: str
    last_event_id: str
    replay: str
    may_begin: bool
    takeover: bool
    wait: float
    rules: EventRules
    max_buffered_bytes: int
    cancel: CancelFlag | None
    # The consumer's event loop; None in a thread.
    callers_loop: asyncio.AbstractEventLoop | None = None


class Reader(LoopTask):
    """Reads one stream of a log; see Subscription.

    `new_producer` makes the producer if the reader is elected to begin the stream. The channel then receives
    the producer before the head, and its consumer calls `start`.
    """

    is_reader = shares_events = True

    def __init__(
        self, hub: Hub, options: ReaderOptions, new_producer: Callable[[FencingToken, Claim], ElectedProducer]
    ) -> None:
        super().__init__(hub.state)
        self.channel: Channel[Any] = Channel(hub.loop, options.max_buffered_bytes)
        self.initial_event_id = options.last_event_id
        self._hub = hub
        self._options = options
        self._new_producer = new_producer
        self._delivery = Delivery(self.channel, self.target, options.max_buffered_bytes, options.rules)
        self._topic: Topic | None = None
        self._producer: ElectedProducer | None = None
        self._task: asyncio.Task[None] | None = None
        # Whether to look for a producer, and when the lease was seen missing, if that is long enough ago.
        self._must_look = False
        self._missing_lease: MissingLease | None = None
        # The topic's position when it was last ahead of the entries that the store returned.
        self._ahead: Position | None = None
        # Ends the wait in the topic.
        self._left_topic: asyncio.Future[None] | None = None
        self._opened_at = clock.monotonic()

    # On the loop thread: the task.

    def start(self) -> None:
        """Start to read."""
        if self._hub.is_closing:
            self.end_with_loop()  # Closed between the caller's check and this callback.
            return
        memory.enter(self.channel, self.loop)
        self._topic = self._hub.topic(self._options.key)
        self._topic.register(self)
        self._hub.readers.add(self)
        self._task = self._hub.spawn(self._run())
        self._task.add_done_callback(self._on_done)
        if self._options.cancel is not None:
            self._hub.state.watch(self)
        self.ownership.move(self, current_scope())

    async def _run(self) -> None:
        assert self._topic is not None
        try:
            await self._begin()
            while not (self._delivery.has_ended or self.channel.closed):
                await self._read(self._topic)
        except SSEError as error:
            self._delivery.finish(End("error", error))

    def _on_done(self, task: asyncio.Task[None]) -> None:
        assert self._topic is not None
        self._topic.unregister(self)
        self._hub.readers.discard(self)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            assert isinstance(error, Exception)
            self._delivery.finish(End("error", as_log_error(error)))
        else:
            self._delivery.finish(End("closed"))
        self.mark_finished()

    # Finding the position to begin at, and the producer.

    async def _begin(self) -> None:
        options, delivery = self._options, self._delivery
        claim = await self._claim(may_begin=options.may_begin and not options.last_event_id)
        if options.last_event_id:
            delivery.position = await _resume_position(self._hub, options, claim)
        elif options.replay == "none" and claim.last is not None:
            delivery.position = claim.last
        elif options.replay == "kept":
            delivery.from_any = True
        if delivery.position != START:
            if claim.state is ClaimState.ENDED:
                await self._end_if_no_event_is_left(is_last=delivery.position == claim.last)
            delivery.send_head()
        if claim.state is ClaimState.NONE and options.wait <= 0:
            raise _not_found()
        self._skip_deleted(claim)
        self._must_look = claim.state is ClaimState.LOST

    def _skip_deleted(self, claim: Claim) -> None:
        """Wait for the next stream of this key, if a deleted one has left an entry."""
        if claim.deleted is not None and not self._delivery.has_head:
            self._delivery.position = claim.deleted

    async def _end_if_no_event_is_left(self, *, is_last: bool) -> None:
        """Answer 204 if only the stream's end is left: an EventSource does not reconnect after a 204."""
        position = self._delivery.position
        after = position_before(position) if is_last else position
        entries = await self._hub.retry_while_unavailable(self._hub.store.read, self._options.key, after, 1)
        for segment in segments_of(entries, after, from_any=True):
            entry = segment.entry
            if entry is not None and (
                segment.kind == CANCEL or (segment.kind == END and (is_last or entry.done_event() is None))
            ):
                self._delivery.send_head(204)
            if is_last or self._delivery.has_head:
                self._delivery.try_put(segment)

    async def _claim(self, *, may_begin: bool) -> Claim:
        options, missing, self._missing_lease = self._options, self._missing_lease, None
        ttl = None if missing is None else missing.longest_ttl(self.loop.time(), self._hub.settings)
        claim, token = await self._hub.claim(
            options.key, may_begin=may_begin, takeover=options.takeover, longest_ttl=ttl
        )
        if claim.state is ClaimState.ELECTED:
            producer = self._producer = self._new_producer(token, claim)
            if self._delivery.has_head:
                self._hub.spawn(producer.call_start())
            else:
                producer.start_loop = self._options.callers_loop
                self.channel.send_nowait(producer)
        return claim

    # Catching up, then following.

    async def _read(self, topic: Topic) -> None:
        delivery = self._delivery
        entries = await self._hub.retry_while_unavailable(
            self._hub.store.read, self._options.key, delivery.position, _READ_COUNT
        )
        if entries:
            self._ahead = None
            for segment in segments_of(entries, delivery.position, from_any=delivery.from_any):
                if not delivery.try_put(segment):
                    await delivery.put(segment)
        elif self._must_look:
            await self._find_producer()
        else:
            await self._follow(topic)

    async def _follow(self, topic: Topic) -> None:
        """Receive the topic's broadcasts until there is no room, no producer, or `wait` has elapsed."""
        if self._ahead == topic.position:
            # A second read returned nothing either: the log no longer holds the entries that were broadcast.
            topic.rewind(self._delivery.position)
        self._ahead = topic.position
        if topic.try_subscribe(self):
            self._ahead = None
            try:
                await self._wait_in_topic()
            finally:
                # Catching up and following at once would deliver entries twice.
                topic.unsubscribe(self)

    async def _wait_in_topic(self) -> None:
        if self._delivery.has_ended:
            # The topic failed during the last read, and will not do so again.
            return
        self._left_topic = left_topic = self.loop.create_future()
        timer = None
        remaining = self._options.wait - (clock.monotonic() - self._opened_at)
        if not self._delivery.has_head and not self._options.may_begin and remaining > 0:
            timer = self.loop.call_later(remaining, self._look_for_producer)
        try:
            await left_topic
        finally:
            self._left_topic = None
            if timer is not None:
                timer.cancel()

    async def _find_producer(self) -> None:
        """Become the producer, or find another one. Raises ProducerLostError or StreamNotFoundError."""
        self._must_look = False
        has_head = self._delivery.has_head
        if not has_head:
            _check_callers_loop(self._options.callers_loop)
        claim = await self._claim(may_begin=self._options.may_begin and not has_head)
        if claim.state is ClaimState.NONE and not has_head:
            if clock.monotonic() - self._opened_at >= self._options.wait:
                raise _not_found()
            self._skip_deleted(claim)
        elif claim.state is ClaimState.NONE and claim.deleted is not None:
            # Deleted since the last read.
            self._delivery.finish(End("closed"))
        elif claim.state is ClaimState.LOST and not claim.is_certain:
            missing = MissingLease(self.loop.time(), claim.fence_ttl)
            # A live producer renews its lease within this time if the store has evicted it.
            await asyncio.sleep(self._hub.settings.grace)
            self._must_look, self._missing_lease = True, missing
        elif claim.state in (ClaimState.NONE, ClaimState.LOST):
            raise ProducerLostError(
                "the process that wrote this stream ended before the stream did. "
                "Pass takeover=True and `start` to have the next reader start it again."
            )
        elif claim.state is ClaimState.ENDED and self._delivery.position == claim.last:
            # The reader resumed after the end itself, before the lease was released.
            await self._end_if_no_event_is_left(is_last=True)

    # On the loop thread: as a subscriber of the topic, and a reader of the hub.

    @property
    def position(self) -> Position:
        """The position of the last entry in the channel."""
        return self._delivery.position

    def deliver(self, segments: Iterable[Segment]) -> bool:
        """Put new segments into the channel; False without room, or at an end."""
        delivery = self._delivery
        for segment in segments:
            if delivery.has_ended or not delivery.try_put(segment, wakes_later=True):
                break
        else:
            if not delivery.has_ended:
                return True
        self._leave_topic()
        return False

    def _leave_topic(self) -> None:
        if self._left_topic is not None:
            settle(self._left_topic)

    def on_lease_lost(self) -> None:
        """Look for a producer, and take the stream over if that is wanted."""
        assert self._topic is not None
        self._missing_lease = self._topic.missing_lease
        self._look_for_producer()

    def _look_for_producer(self) -> None:
        self._must_look = True
        self._leave_topic()

    def fail(self, error: SSEError) -> None:
        """End with an error of the log."""
        self._delivery.fail(error)
        self._leave_topic()

    def end_with_loop(self) -> None:
        """End because the loop, or the log, is closing."""
        self._delivery.finish(End("error", BridgeClosedError(_LOOP_ENDED)))
        self.mark_finished()

    release_consumer = end_with_loop

    def check_cancel(self, watch: LoopWatch | None) -> None:
        """End if the caller's cancel flag is set, or raises."""
        began = clock.monotonic()
        try:
            is_set = is_cancelled(self._options.cancel)
        except CallbackError as exc:
            # Also for an exit, which would end the loop.
            self._delivery.finish(End("error", exc))
            self._stop()
            return
        finally:
            # The loop of a bridge, on which every log is read, has a watch.
            assert watch is not None
            watch.ran(clock.monotonic() - began, lambda: f"the cancel flag of {self.target}")
        if is_set:
            if self._delivery.has_head:
                self.channel.close()
            elif self._producer is not None:
                # The caller of `open` waits in `start`.
                self._producer.abort()
            self._delivery.finish(End("error", RequestAbortedError("cancel was set before the stream had begun")))
            self._stop()

    def _stop(self) -> None:
        if self._producer is not None and not self._producer.is_start_called:
            # No consumer is left to call `start`. Once it is called, the stream outlives this reader.
            self._producer.abort()
        if self._task is not None:
            self._task.cancel()

    # Thread-safe, and safe in finalizers and signal handlers: no lock, no wait.

    def abort(self) -> None:
        """Close the channel and stop reading."""
        self.channel.close()
        post(self.loop, self._stop)

    # Only a `done` function asks for a drain, and a log's reader has none.
    drain = abort

    def reconnect(self) -> None:
        """Raise UsageError: a log's reader has no connection of its own."""
        raise UsageError("reconnect() drops a request's connection, and a log's stream has no connection of its own")

    @property
    def target(self) -> str:
        """The stream, for messages."""
        return f"the log's stream {self._options.key!r}"

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item; None if there is none."""
        return self._delivery.done_event

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters."""
        return self._delivery.stats(self._opened_at)


async def _resume_position(hub: Hub, options: ReaderOptions, claim: Claim) -> Position:
    """Return the position of the event that the reader has. Raises EventsLostError."""
    position = parse_position(options.last_event_id)
    if position is None or claim.last is None or position > claim.last:
        raise EventsLostError(
            "the last event ID is not one of this stream's, which may have expired. Read the stream from its start."
        )
    kept = await hub.retry_while_unavailable(hub.store.read, options.key, START, 1)
    first = kept[0].position if kept else START
    if position.fence < first.fence or (position < first and not is_next(first, position)):
        raise EventsLostError(
            "events after the last event ID were trimmed away (max_events=). Read the stream from its start."
        )
    return position


def _check_callers_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    """Raise BridgeClosedError if nobody is left who could call `start`: other readers may begin the stream."""
    if loop is not None and loop.is_closed():
        raise BridgeClosedError("the event loop that was to read this stream was closed")


def _not_found() -> StreamNotFoundError:
    return StreamNotFoundError(
        "there is no such stream, and no process began one within `wait` seconds. "
        "Pass start= to begin it, or a longer wait= for another process."
    )
