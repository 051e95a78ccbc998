"""The delivery side of a reader: segments of a log's stream become entries of the reader's channel.

Runs on the loop thread, the only writer of every field. `Reader.stats` reads the counters from any thread;
each is one reference, and may be older than another.

Invariants: the channel receives the head before all events and an End last, and `position` never passes an
event that the channel has not received.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sseqbridge._engine.batches import EVENT_OVERHEAD, Batch
from sseqbridge._engine.channel import Channel, End
from sseqbridge._engine.memory import limit_of
from sseqbridge._engine.responses import made_head, status_error
from sseqbridge._engine.stats import StreamStats
from sseqbridge._exceptions import EventsLostError, LogError, RequestAbortedError, SSEError, copy_error
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.events import RestartEvent, ServerSentEvent

from ._entries import BEGIN, CANCEL, END, ERROR, START, Entry
from ._segments import MISSING, Segment, charge_of, split_segment

if TYPE_CHECKING:
    from sseqbridge._sse.dialects import EventRules

__all__ = ["Delivery"]

_HEADERS = {"content-type": "text/event-stream"}


class Delivery:
    """Fills one reader's channel, within `max_bytes`.

    `from_any` accepts the first entry at any position. `rules` say which events are no items.
    """

    def __init__(self, channel: Channel[Any], target: str, max_bytes: int, rules: EventRules) -> None:
        self.position = START
        self.from_any = False
        self.has_head = False
        self.has_ended = False
        self.done_event: ServerSentEvent | None = None
        self.events = self.received = 0
        self.first_event_at: float | None = None
        self._channel = channel
        self._target = target
        self._limit = limit_of(max_bytes)
        self._rules = rules
        self._retry: float | None = None

    def try_put(self, segment: Segment, *, wakes_later: bool = False) -> bool:
        """Put a segment into the channel; False if the channel has no room for it.

        With `wakes_later`, events wake the consumer in the next iteration of the event loop: after the hub has sent its
        next read of the store, which would otherwise wait for the GIL, behind all consumers.
        """
        if segment.kind == "event":
            self.send_head()
            batch = self._batch(segment)
            # A segment above the limit never fits whole: put() splits it.
            if batch.charge > self._limit.bytes or not self._channel.try_send(
                batch, batch.charge, wakes=not wakes_later
            ):
                return False
            if wakes_later:
                self._channel.wake_consumer_soon()
        elif segment.kind == MISSING:
            message = (
                'events were trimmed away (max_events=), or the log has lost them. Read the rest with replay="kept".'
            )
            self.finish(End("error", EventsLostError(message)))
            return True
        elif segment.error is not None:
            self.fail(segment.error)
        else:
            assert segment.entry is not None
            try:
                self._put_entry(segment.entry)
            except LogError as error:
                self.finish(End("error", error))
        self._advance(segment)
        return True

    async def put(self, segment: Segment) -> None:
        """Put a segment of events into the channel, in parts if it is large; wait for room."""
        for part in split_segment(segment, self._limit.bytes):
            batch = self._batch(part)
            await self._channel.send(batch, batch.charge)
            self._advance(part)

    def _batch(self, segment: Segment) -> Batch:
        # The items are shared with other readers, and never written to.
        items: list[Any] = segment.items
        if segment.retries:
            self._retry = segment.retries[-1][1]
        charge = charge_of(segment.size, len(items))
        events = self._rules.count(items)
        # The ID of an event is its position.
        return Batch(items, events, charge, items[-1].id, self._retry, segment.retries)

    def _advance(self, segment: Segment) -> None:
        self.position = segment.position
        self.from_any = False
        self.events += len(segment.items)
        self.received += segment.size
        if self.first_event_at is None and segment.items:
            self.first_event_at = clock.monotonic()

    def _put_entry(self, entry: Entry) -> None:
        if entry.kind == BEGIN and self.has_head and entry.begins_stream:
            # The reader's own stream was deleted, and this is the next one under its key.
            self.finish(End("closed"))
        elif entry.kind == BEGIN:
            if self.has_head and self.position.fence != entry.position.fence:
                restart = RestartEvent("restart", '{"restart":true}', str(entry.position))
                self._channel.send_nowait(Batch([restart], 1, EVENT_OVERHEAD, restart.id, self._retry), EVENT_OVERHEAD)
            self.send_head()
        elif entry.kind == END:
            self.done_event = entry.done_event()
            self.send_head()
            self.finish(End(entry.outcome()))
        elif entry.kind == CANCEL:
            self.send_head()
            self.finish(End("closed"))
        elif entry.kind == ERROR:
            self.send_head()
            self.finish(End("error", entry.sent_error()))
        else:
            self._put_refusal(entry)

    def _put_refusal(self, entry: Entry) -> None:
        refusal = entry.refusal()
        if isinstance(refusal, SSEError):
            self.finish(End("error", refusal))
        elif self.has_head:
            self.finish(End("error", status_error(self._target, *refusal)))
        else:
            head, body = refusal
            self.has_head = True
            self._channel.send_nowait(head)
            self._channel.send_nowait(body)
            self.finish(End("eof"))

    def send_head(self, status: int = 200) -> None:
        """Send the head, unless it was sent."""
        if not self.has_head:
            self.has_head = True
            self._channel.send_nowait(made_head(status, _HEADERS if status == 200 else {}))

    def finish(self, end: End) -> None:
        """End the channel. The channel ignores later calls."""
        self.has_ended = True
        if end.outcome == "closed" and not self.has_head:
            end = End("error", RequestAbortedError("the stream was cancelled before it had begun"))
        self._channel.end(end)

    def fail(self, error: SSEError) -> None:
        """End the channel with a copy of an error that other readers receive too."""
        self.finish(End("error", copy_error(error)))

    def stats(self, opened_at: float) -> StreamStats:
        """Return a snapshot of the counters of a reader that was opened at this time. Thread-safe."""
        first_event_at = self.first_event_at
        return StreamStats(
            bytes=self.received,
            events=self.events,
            buffered=self._channel.buffered,
            reconnections=0,
            time_to_first_event=None if first_event_at is None else first_event_at - opened_at,
        )
