"""Body bytes to batches of events: decompression, parsing, the end marker, and the charge of each batch. Sans-IO.

Runs wherever its exchange runs, on the loop thread. Work is done in slices of bounded size, so that a body that
decompresses to a thousand times its size neither blocks the loop nor makes a batch larger than the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.parser import EventStreamParser

from .memory import limit_of

if TYPE_CHECKING:
    from sseqbridge._http.content_encoding import BodyDecoder
    from sseqbridge._http.request import RequestOptions

__all__ = ["EVENT_OVERHEAD", "Batch", "BatchReader", "Item"]

# The charge of an event besides its text: the object, its strings' headers, its place in a list.
EVENT_OVERHEAD = 256

# How many slices without a batch are parsed before next_batch() returns, and how many slices of one read
# feed_to() parses: after that the event loop runs other tasks.
_SLICES_AT_A_TIME = 8
_SLICES_OF_A_READ = 32

_EXHAUSTED: Any = object()

Item = ServerSentEvent | Comment


@dataclass(slots=True)
class Batch:
    """Consecutive items of a stream, and the stream's position after them.

    `events` counts the items that are events, `charge` is what the batch counts for in a bounded channel.
    """

    items: list[Item]
    events: int
    charge: int
    last_event_id: str
    retry: float | None

    def absorb(self, later: Batch) -> None:
        """Append the batch that follows this one directly."""
        self.items += later.items
        self.events += later.events
        self.charge += later.charge
        self.last_event_id, self.retry = later.last_event_id, later.retry


class BatchReader:
    """Parses the body of one response.

    `decoder` must be set before the first chunk. `events` counts the events so far. `done_event` is the event whose
    data ended the stream: nothing after it is parsed.
    """

    def __init__(self, options: RequestOptions, last_event_id: str, retry: float | None) -> None:
        """Continue a stream at `last_event_id` and `retry`."""
        self.decoder: BodyDecoder | None = None
        self.events = 0
        self.done_event: ServerSentEvent | None = None
        self._limit = limit_of(options.max_buffered_bytes)
        self._options = options
        self._parser = EventStreamParser(
            max_event_bytes=options.max_event_bytes, comments=options.comments, last_event_id=last_event_id
        )
        self._parser.retry = retry
        # The chunk that is being parsed; None if all bytes so far are parsed.
        self._parsing: Iterator[Batch | None] | None = None
        # Results of feed_to() that next_batch() returns or raises.
        self._pending: Batch | None = None
        self._failure: Exception | None = None
        # Bytes that no batch has been charged for yet.
        self._uncharged = 0

    # A slice, and a batch, are a small part of the buffer, also if its events are tiny.

    @property
    def slice_bytes(self) -> int:
        """The size of a slice of the body."""
        return min(max(self._limit.bytes // 16, 512), 64 * 1024)

    @property
    def _batch_items(self) -> int:
        return max(self._limit.bytes // (4 * EVENT_OVERHEAD), 1)

    @property
    def last_event_id(self) -> str:
        """The ID of the last complete event."""
        return self._parser.last_event_id

    @property
    def retry(self) -> float | None:
        """The reconnection time that the server has sent, in seconds."""
        return self._parser.retry

    @property
    def is_parsing(self) -> bool:
        """Whether bytes are left to be parsed."""
        return self._parsing is not None

    def feed(self, chunk: bytes) -> None:
        """Add bytes of the body. Call next_batch() until is_parsing is False before the next chunk."""
        self._parsing = self._parse(chunk)

    def feed_to(self, chunk: bytes, put: Callable[[Batch], bool]) -> bool:
        """Parse bytes of the body, and pass the batches to `put`.

        Returns False if next_batch() has to continue: `put` has returned False, the stream's last event is in, the
        body is invalid, or the chunk is long.
        """
        parsing = self._parsing = self._parse(chunk)
        left = _SLICES_OF_A_READ
        try:
            for batch in parsing:
                if batch is not None and (self.done_event is not None or not put(batch)):
                    self._pending = batch
                    return False
                left -= 1
                if not left:
                    return False
        except Exception as exc:
            self._failure = exc
            return False
        self._parsing = None
        return True

    def next_batch(self) -> Batch | None:
        """Return the next batch of the bytes so far, or None if there is none, or none after some slices.

        Raises BufferLimitError for an event that is too long, ProtocolError for a corrupt compressed body.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return pending
        if self._failure is not None:
            raise self._failure
        parsing = self._parsing
        for _ in range(_SLICES_AT_A_TIME):
            batch = _EXHAUSTED if parsing is None else next(parsing, _EXHAUSTED)
            if batch is _EXHAUSTED:
                self._parsing = None
                break
            if batch is not None:
                return batch
        return None

    def rest(self) -> Batch | None:
        """Return the next batch of the bytes so far, None if there is none. Raises what next_batch() does."""
        while self._pending is not None or self._failure is not None or self._parsing is not None:
            if (batch := self.next_batch()) is not None:
                return batch
        return None

    def discard(self) -> None:
        """Drop the bytes that are not parsed yet."""
        self._parsing = None

    def finish(self) -> None:
        """Mark the end of the body. Raises TruncatedStreamError if a compressed body is incomplete."""
        assert self.decoder is not None
        self.decoder.finish()

    def _parse(self, chunk: bytes) -> Iterator[Batch | None]:
        """Yield a batch for each slice, None for a slice that changes nothing a consumer could notice."""
        assert self.decoder is not None
        parser, options = self._parser, self._options
        last_event_id, retry = parser.last_event_id, parser.retry
        # The limit may have changed since the last chunk.
        self.decoder.size, most_items = self.slice_bytes, self._batch_items
        for piece in self.decoder.slices(chunk):
            self._uncharged += len(piece)
            items: list[Any] = parser.feed(piece)
            last = None
            if items:
                # `in` on a list of texts is faster than a loop over the events. Comments have no data.
                if options.comments:
                    texts = [getattr(item, "data", None) for item in items]
                else:
                    texts = [item.data for item in items]
                if options.done is not None and options.done in texts:
                    last = items[texts.index(options.done)]
                    del items[texts.index(options.done) :]
                if options.skip_empty and "" in texts:
                    items = [item for item in items if not _is_empty(item)]
            while len(items) > most_items:
                part, items = items[:most_items], items[most_items:]
                last_event_id = next((item.id for item in reversed(part) if type(item) is not Comment), last_event_id)
                yield self._batch(part, last_event_id, retry)
            if last is not None:
                break
            is_new = bool(items) or parser.last_event_id != last_event_id or parser.retry != retry
            last_event_id, retry = parser.last_event_id, parser.retry
            yield self._batch(items, last_event_id, retry) if is_new else None
        else:
            if parser.error is not None:
                raise parser.error
            return
        self.done_event = last
        self._parsing = None
        # The position at the last event, whatever else came in the same chunk.
        yield self._batch(items, last.id, parser.retry)

    def _batch(self, items: list[Item], last_event_id: str, retry: float | None) -> Batch:
        charge = self._uncharged + EVENT_OVERHEAD * max(1, len(items))
        self._uncharged = 0
        events = sum(type(item) is not Comment for item in items) if self._options.comments else len(items)
        self.events += events
        return Batch(items, events, charge, last_event_id, retry)


def _is_empty(event: ServerSentEvent) -> bool:
    return not event.data and event.event != "error"
