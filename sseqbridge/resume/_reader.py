"""Reading a log's streams: each reader's own way through its stream.

A reader first reads what is there already, by itself, then joins its stream's topic, which is
given what comes. One that has no room for that goes back to reading by itself: the log is its
backlog. So a slow reader holds up nobody, and loses nothing.

Everything here runs in the loop's thread but for those methods of `Reader` that say otherwise,
which do no more than post to the loop. A reader knows nothing of the stream object that the user
holds, as a StreamTask does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, cast

from sseqbridge._engine.batches import EVENT_OVERHEAD, Batch
from sseqbridge._engine.channel import Channel, End, post, settle
from sseqbridge._engine.loop_state import LoopTask
from sseqbridge._engine.responses import made_head, status_error
from sseqbridge._engine.scope import is_cancelled
from sseqbridge._engine.stats import StreamStats
from sseqbridge._exceptions import (
    BridgeClosedError,
    CallbackError,
    EventsLostError,
    LogError,
    ProducerLostError,
    RequestAbortedError,
    SSEError,
    StreamNotFoundError,
    UsageError,
)
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.events import RestartEvent, ServerSentEvent

from ._entries import BEGIN, CANCEL, END, ERROR, START, Entry, Position, before, is_next, position_of
from ._hub import as_log_error, own_error
from ._parts import MISSING, Part, charge_of, parts_of, pieces_of
from ._store import Token

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag
    from sseqbridge._engine.batches import Item
    from sseqbridge._runtime.loop_watch import LoopWatch

    from ._hub import Hub, Topic
    from ._store import Claim

__all__ = ["Reader", "ReaderOptions"]

# How many entries that are there already are read at a time.
_READ_AT_A_TIME = 500

_HEADERS = {"content-type": "text/event-stream"}


class Begun(Protocol):
    """The producer that an election made, as far as its reader knows it."""

    @property
    def has_begun(self) -> bool: ...
    async def take_over(self) -> None: ...
    def abort(self) -> None: ...


class ReaderOptions(NamedTuple):
    """What a reader is to read, and from where; see `Log.open`."""

    key: str
    last_event_id: str
    replay: str
    may_begin: bool
    takeover: bool
    wait: float
    skip_empty: bool
    max_buffered_bytes: int
    cancel: CancelFlag | None


class Reader(LoopTask):
    """One reader's way through a stream: a Subscription. Made in the caller's thread.

    `elected` makes the producer, in the loop's thread, where this one is to begin the stream: whoever opens it
    finds that in the channel, before the head.
    """

    is_reader = True

    def __init__(self, hub: Hub, options: ReaderOptions, elected: Callable[[Token, Position], Begun]) -> None:
        super().__init__(hub.state)
        self._hub = hub
        self._options = options
        self._elected = elected
        self.channel: Channel[Any] = Channel(hub.loop, options.max_buffered_bytes)
        self.initial_event_id = options.last_event_id
        self.position = START
        self._received = self._events = 0
        self.done_event: ServerSentEvent | None = None
        self._topic: Topic | None = None
        self._producer: Begun | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_head = False
        self._retry: float | None = None
        # Whether the next entry is the first, wherever it stands.
        self._from_any = False
        self._is_over = self._is_lost = False
        # Where its topic stood, when that had come further than the log, as far as this one had read it.
        self._ahead: Position | None = None
        # Ends the wait in the topic.
        self._awaited: asyncio.Future[None] | None = None
        self._started_at = clock.monotonic()
        self._first_event_at: float | None = None

    # In the loop's thread.

    def start(self) -> None:
        """Start to read."""
        if self._hub.is_closing:
            # By another thread, meanwhile.
            self.end_with_loop(is_quiet=False)
            return
        self._topic = self._hub.topic(self._options.key)
        self._topic.enter(self)
        self._hub.readers.add(self)
        self._task = self._hub.spawn(self._run())
        self._task.add_done_callback(self._done)
        if self._options.cancel is not None:
            self._hub.state.watch(self)

    async def _run(self) -> None:
        assert self._topic is not None
        try:
            await self._begin()
            while not (self._is_over or self.channel.closed):
                await self._read_on(self._topic)
        except SSEError as error:
            self._finish(End("error", error))

    def _done(self, task: asyncio.Task[None]) -> None:
        assert self._topic is not None
        self._topic.leave(self)
        self._hub.readers.discard(self)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            assert isinstance(error, Exception)
            self._finish(End("error", as_log_error(error)))
        else:
            self._finish(End("closed"))
        self.mark_finished()

    async def _begin(self) -> None:
        """Find where to read from, and who writes."""
        options = self._options
        claim = await self._claim(may_begin=options.may_begin and not options.last_event_id)
        if options.last_event_id:
            self.position = await self._resumed(claim)
        elif options.replay == "none" and claim.last is not None:
            self.position = claim.last
        elif options.replay == "kept":
            self._from_any = True
        if self.position != START:
            if claim.state == "ended":
                await self._end_if_nothing_is_left(is_last=self.position == claim.last)
            self._give_head()
        if claim.state == "none" and options.wait <= 0:
            self._not_found()
        self._is_lost = claim.state == "lost"

    async def _end_if_nothing_is_left(self, *, is_last: bool) -> None:
        """Tell the end to who has had all before it: by 204, after which a browser does not come again."""
        after = before(self.position) if is_last else self.position
        entries = await self._hub.retry_while_unavailable(self._hub.store.read, self._options.key, after, 1)
        for part in parts_of(entries, after, from_any=True):
            entry = part.entry
            if entry is not None and (
                part.kind == CANCEL or (part.kind == END and (is_last or entry.done_event() is None))
            ):
                self._give_head(204)
            if is_last or self._has_head:
                self._take(part)

    async def _claim(self, *, may_begin: bool) -> Claim:
        options = self._options
        claim, token = await self._hub.claim(options.key, may_begin=may_begin, takeover=options.takeover)
        if claim.state == "elected":
            producer = self._producer = self._elected(token, claim.last or START)
            if self._has_head:
                self._hub.spawn(producer.take_over())
            else:
                self.channel.send_nowait(producer)
        return claim

    async def _resumed(self, claim: Claim) -> Position:
        position = position_of(self._options.last_event_id)
        if position is None or claim.last is None or position > claim.last:
            raise EventsLostError("the last event ID is none of this stream's, which may have expired: read it anew")
        kept = await self._hub.retry_while_unavailable(self._hub.store.read, self._options.key, START, 1)
        first = kept[0].position if kept else START
        if position.fence < first.fence or (position < first and not is_next(first, position)):
            raise EventsLostError("events after the last event ID are not kept any more (max_events=): read it anew")
        return position

    async def _read_on(self, topic: Topic) -> None:
        read = self._hub.store.read
        entries = await self._hub.retry_while_unavailable(read, self._options.key, self.position, _READ_AT_A_TIME)
        if entries:
            self._ahead = None
            for part in parts_of(entries, self.position, from_any=self._from_any):
                if not self._take(part):
                    await self._put(part)
            return
        if self._is_lost:
            await self._seek_producer()
            return
        if self._ahead == topic.position:
            # Read once more since, and there still is nothing: what the topic has had was deleted, or lost.
            topic.go_back_to(self.position)
        self._ahead = topic.position
        if topic.join(self):
            self._ahead = None
            try:
                await self._wait()
            finally:
                # It reads by itself from here on, and must not be given the same besides.
                topic.part(self)

    async def _wait(self) -> None:
        """Wait in the topic, until there is no room, nobody to write, or too much time has passed."""
        self._awaited = awaited = self.loop.create_future()
        timer = None
        left = self._options.wait - (clock.monotonic() - self._started_at)
        if not self._has_head and not self._options.may_begin and left > 0:
            timer = self.loop.call_later(left, self.lost)
        try:
            await awaited
        finally:
            self._awaited = None
            if timer is not None:
                timer.cancel()

    async def _seek_producer(self) -> None:
        """Nobody writes: become the producer, or find another one."""
        self._is_lost = False
        claim = await self._claim(may_begin=self._options.may_begin and not self._has_head)
        if claim.state == "none" and not self._has_head:
            self._check_wait()
        elif claim.state in ("none", "lost"):
            raise ProducerLostError(
                "the process that wrote this stream is gone, in the midst of it; takeover=True has them start it anew"
            )
        elif claim.state == "ended" and self.position == claim.last:
            # It has had the end itself, before it came.
            await self._end_if_nothing_is_left(is_last=True)

    def _check_wait(self) -> None:
        if clock.monotonic() - self._started_at >= self._options.wait:
            self._not_found()

    def _not_found(self) -> NoReturn:
        raise StreamNotFoundError(
            "nobody writes this stream, and none is kept; start= begins one, wait= says how long to wait for another"
        )

    async def _put(self, part: Part) -> None:
        for piece in pieces_of(part, self._options.max_buffered_bytes):
            batch = self._batch(piece)
            await self.channel.send(batch, batch.charge)
            self._note(piece)

    def _batch(self, part: Part) -> Batch:
        items = part.items
        if self._options.skip_empty and not all(item.data for item in items):
            items = [item for item in items if item.data or item.event == "error"]
        self._retry = next((item.retry for item in reversed(items) if item.retry is not None), self._retry)
        charge = charge_of(part.size, len(items))
        # The items are other readers' too: nobody changes them.
        return Batch(cast("list[Item]", items), len(items), charge, str(part.position), self._retry)

    def _note(self, part: Part) -> None:
        self.position = part.position
        self._from_any = False
        self._events += len(part.items)
        self._received += part.size
        if self._first_event_at is None and part.items:
            self._first_event_at = clock.monotonic()

    def _take(self, part: Part) -> bool:
        """Give a part on, if there is room."""
        if part.kind == "event":
            self._give_head()
            batch = self._batch(part)
            # More than there is ever room for goes in pieces.
            if batch.charge > self._options.max_buffered_bytes or not self.channel.try_send(batch, batch.charge):
                return False
        elif part.kind == MISSING:
            told = (
                'events were trimmed away (max_events=), or the log has lost them: read what is kept with replay="kept"'
            )
            self._finish(End("error", EventsLostError(told)))
            return True
        elif part.error is not None:
            self.fail(part.error)
        else:
            assert part.entry is not None
            try:
                self._take_other(part.entry)
            except LogError as error:
                self._finish(End("error", error))
        self._note(part)
        return True

    def _take_other(self, entry: Entry) -> None:
        if entry.kind == BEGIN:
            if self._has_head and self.position.fence != entry.position.fence:
                restart = RestartEvent("restart", '{"restart":true}', str(entry.position))
                self.channel.send_nowait(Batch([restart], 1, EVENT_OVERHEAD, restart.id, self._retry), EVENT_OVERHEAD)
            self._give_head()
        elif entry.kind == END:
            self.done_event = entry.done_event()
            self._give_head()
            self._finish(End(entry.outcome()))
        elif entry.kind == CANCEL:
            self._give_head()
            self._finish(End("closed"))
        elif entry.kind == ERROR:
            self._give_head()
            self._finish(End("error", entry.sent_error()))
        else:
            self._refuse(entry)

    def _refuse(self, entry: Entry) -> None:
        refusal = entry.refusal()
        if isinstance(refusal, SSEError):
            self._finish(End("error", refusal))
        elif self._has_head:
            self._finish(End("error", status_error(self.target, *refusal)))
        else:
            head, body = refusal
            self._has_head = True
            self.channel.send_nowait(head)
            self.channel.send_nowait(body)
            self._finish(End("eof"))

    def _give_head(self, status: int = 200) -> None:
        if not self._has_head:
            self._has_head = True
            self.channel.send_nowait(made_head(status, _HEADERS if status == 200 else {}))

    def _finish(self, end: End) -> None:
        self._is_over = True
        if end.outcome == "closed" and not self._has_head:
            end = End("error", RequestAbortedError("the stream was cancelled before it had begun"))
        self.channel.end(end)

    def _stop_waiting(self) -> None:
        if self._awaited is not None:
            settle(self._awaited)

    def deliver(self, parts: Iterable[Part]) -> bool:
        """Take what has come; False where there is no room for it, or an end."""
        for part in parts:
            if self._is_over or not self._take(part):
                break
        else:
            if not self._is_over:
                return True
        self._stop_waiting()
        return False

    def lost(self) -> None:
        """Nobody writes any more, as it seems."""
        self._is_lost = True
        self._stop_waiting()

    def fail(self, error: SSEError) -> None:
        """End with an error of the log's."""
        self._finish(End("error", own_error(error)))
        self._stop_waiting()

    def end_with_loop(self, *, is_quiet: bool) -> None:
        """The loop ends."""
        if is_quiet and self._has_head:
            self.channel.close()
        self._finish(End("error", BridgeClosedError("the bridge, or the log, that this stream was read on was closed")))
        self.mark_finished()

    def check_cancel(self, watch: LoopWatch | None) -> None:
        """End if the caller's cancel flag is set, or cannot be looked at."""
        began = clock.monotonic()
        try:
            is_set = is_cancelled(self._options.cancel)
        except BaseException as exc:
            # A SystemExit, too, is this reader's alone: let through, it would end the loop of all streams.
            error = (
                exc if isinstance(exc, CallbackError) else CallbackError(f"cancel.is_set() raised {type(exc).__name__}")
            )
            self._finish(End("error", error))
            self._leave()
            return
        finally:
            # A log is read on a bridge, which has one.
            assert watch is not None
            watch.ran(clock.monotonic() - began, lambda: f"the cancel flag of {self.target}")
        if is_set:
            if self._has_head:
                self.channel.close()
            self._finish(End("error", RequestAbortedError("cancel was set before the stream had begun")))
            self._leave()

    def _leave(self) -> None:
        if self._producer is not None and not self._producer.has_begun:
            # Nobody is there to begin.
            self._producer.abort()
        if self._task is not None:
            self._task.cancel()

    # Thread-safe, and safe in finalizers and signal handlers: no lock, no wait.

    def abort(self) -> None:
        """Close the channel and end the reading."""
        self.channel.close()
        post(self.loop, self._leave)

    # The decoder of a log's reader has no `done` function, which alone could ask for a drain.
    drain = abort

    def reconnect(self) -> None:
        """Raise UsageError: a log's reader has no connection of its own."""
        raise UsageError("a log's reader has no connection of its own that could be dropped")

    @property
    def target(self) -> str:
        """What is read, for messages."""
        return f"the log's stream {self._options.key!r}"

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters."""
        first_event_at = self._first_event_at
        return StreamStats(
            bytes=self._received,
            events=self._events,
            buffered=self.channel.buffered,
            reconnections=0,
            time_to_first_event=None if first_event_at is None else first_event_at - self._started_at,
        )
