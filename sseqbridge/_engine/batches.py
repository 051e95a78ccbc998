"""Body bytes to batches of events: decompression, parsing, the end, heartbeats, and the charge of each batch. Sans-IO.

Runs wherever its exchange runs, on the loop thread. Work is done in slices of bounded size, so that a body that
decompresses to a thousand times its size neither blocks the loop nor makes a batch larger than the buffer.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sseqbridge._http.content_encoding import BodyDecoder
from sseqbridge._sse.events import Comment, ServerSentEvent, copied
from sseqbridge._sse.json_lines import JSONLinesParser
from sseqbridge._sse.parser import EventStreamParser
from sseqbridge._sse.provider_errors import unframed_body_error, unframed_end_error

from .memory import limit_of

if TYPE_CHECKING:
    from sseqbridge._exceptions import SSEError
    from sseqbridge._http.request import RequestOptions
    from sseqbridge._sse.dialects import EventRules

__all__ = ["EVENT_OVERHEAD", "Batch", "BatchReader", "Item", "Retries", "is_complete_json"]

# The charge of an event besides its text: the object, its strings' headers, its place in a list.
EVENT_OVERHEAD = 256

# How many slices without a batch are parsed before next_batch() returns, and how many slices of one read
# feed_to() parses: after that the event loop runs other tasks.
_SLICES_AT_A_TIME = 8
_SLICES_OF_A_READ = 32

_BOM = b"\xef\xbb\xbf"

# How much of a body is read before it is decided that it is no event stream.
_UNFRAMED_BYTES = 64 * 1024
# How much of the end of a body is searched for an error.
_END_BYTES = 16 * 1024

_EXHAUSTED: Any = object()

Item = ServerSentEvent | Comment


# The times that a stream's `retry` fields set: each with the number of the batch's items before it, in seconds.
Retries = Sequence[tuple[int, float]]


@dataclass(slots=True)
class Batch:
    """Consecutive items of a stream, and the stream's position after them.

    `events` counts the items that are neither comments nor heartbeats, `charge` is what the batch counts for in a
    bounded channel. In JSON mode the consumer leaves heartbeats out, unless it forwards events unchanged. `incomplete`
    is the event of a last block without its blank line: the standard drops it, unless the caller's `done` function
    accepts it as the last event. The batch then has no items.
    """

    items: list[Item]
    events: int
    charge: int
    last_event_id: str
    retry: float | None
    retries: Retries = ()
    incomplete: ServerSentEvent | None = None

    def absorb(self, later: Batch) -> None:
        """Append the batch that follows this one directly, and has items alone."""
        if later.retries:
            before = len(self.items)
            self.retries = [*self.retries, *((before + index, seconds) for index, seconds in later.retries)]
        self.items += later.items
        self.events += later.events
        self.charge += later.charge
        self.last_event_id, self.retry = later.last_event_id, later.retry

    def retry_at(self, event: ServerSentEvent | None, before: float | None) -> float | None:
        """Return the stream's reconnection time when an event of the batch was consumed last, or none of its events.

        `before` is that before the batch.
        """
        if not self.retries:
            return self.retry
        count = next((number for number, item in enumerate(self.items, 1) if item is event), 0)
        return next((seconds for index, seconds in reversed(self.retries) if index < count), before)

    def without_heartbeats(self, rules: EventRules) -> Batch:
        """Return this batch, or one without its heartbeats, if there are any."""
        if self.events == len(self.items):
            return self
        is_kept = [rules.counts(item) or rules.is_end(item) for item in self.items]  # type: ignore[arg-type]
        kept = [item for item, keeps in zip(self.items, is_kept, strict=True) if keeps]
        retries = [(sum(is_kept[:index]), seconds) for index, seconds in self.retries]
        return replace(self, items=kept, retries=retries)

    def with_own_items(self) -> Batch:
        """Return a batch with copies of the items."""
        items = [copied(item) for item in self.items]
        # Not replace(), which takes several times as long: this runs for every batch of a log's and a tee's readers.
        return Batch(items, self.events, self.charge, self.last_event_id, self.retry, self.retries, self.incomplete)

    def rest(self, items: list[Item]) -> Batch:
        """Return a batch of the last items of this one."""
        skipped = len(self.items) - len(items)
        retries = [(max(index - skipped, 0), seconds) for index, seconds in self.retries]
        return Batch(items, len(items), self.charge, self.last_event_id, self.retry, retries)


class BatchReader:
    """Parses the body of one response.

    `decoder` must be set before the first chunk. `events` counts the events so far, without heartbeats. `is_done` says
    that an event has ended the stream: nothing after it is parsed. `done_event` is that event if it is no item.
    """

    def __init__(self, options: RequestOptions, last_event_id: str, retry: float | None) -> None:
        """Continue a stream at `last_event_id` and `retry`."""
        self.decoder: BodyDecoder | None = None
        self.events = 0
        self.is_done = False
        self.done_event: ServerSentEvent | None = None
        self._limit = limit_of(options.max_buffered_bytes)
        self._rules = options.rules
        self._has_comments = options.comments
        self._parser: EventStreamParser | JSONLinesParser
        if options.format == "jsonl":
            self._parser = JSONLinesParser(max_event_bytes=options.max_event_bytes)
        else:
            self._parser = EventStreamParser(
                max_event_bytes=options.max_event_bytes,
                comments=options.comments,
                last_event_id=last_event_id,
                end_events=options.rules.end_types,
            )
        self._parser.retry = retry
        # A chunk of this size is one slice, and this many items are one batch, however many streams share the memory.
        self._short_bytes = _slice_bytes(self._limit.least_bytes)
        self._few_items = _batch_items(self._limit.least_bytes)
        # The position behind the latest batch.
        self._position = last_event_id, retry
        # The chunk that is being parsed; None if all bytes so far are parsed.
        self._parsing: Iterator[Batch | None] | None = None
        # Results of feed_to() that next_batch() returns or raises.
        self._pending: Batch | None = None
        self._failure: Exception | None = None
        # Bytes that no batch has been charged for yet.
        self._uncharged = 0
        # The body so far, as long as it has no field of the format; None from then on.
        self._unframed: bytearray | None = None if options.format == "jsonl" else bytearray()
        # The end of the slice of the body that completed the last event, and the slices behind it.
        self._latest: bytes | bytearray = b""
        # The last item of the batches, of a stream that a JSON-RPC response ends.
        self.last_item: Item | None = None

    @property
    def slice_bytes(self) -> int:
        """The size of a slice of the body."""
        return _slice_bytes(self._limit.bytes)

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
        try:
            if len(chunk) <= self._short_bytes and type(self.decoder) is BodyDecoder:
                # Most chunks: one slice, and one batch or none.
                items, plain = self._events_of(chunk)
                if self._are_plain(items, plain, self._few_items):
                    batch = self._plain_batch(items)
                    if batch is None or put(batch):
                        return True
                    self._pending = batch
                    return False
                parsing = self._parsing = self._batches_of(items, plain, self._few_items)
            else:
                parsing = self._parsing = self._parse(chunk)
            left = _SLICES_OF_A_READ
            for batch in parsing:
                if batch is not None and (self.is_done or not put(batch)):
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

    @property
    def has_pending(self) -> bool:
        """Whether feed_to() has left a batch."""
        return self._pending is not None

    def put_pending(self, put: Callable[[Batch], bool]) -> bool:
        """Pass the batch that feed_to() has left to `put`. Returns False if next_batch() has to continue."""
        if self._pending is None or not put(self._pending):
            return False
        self._pending = None
        return True

    def next_batch(self) -> Batch | None:
        """Return the next batch of the bytes so far, or None if there is none, or none after some slices.

        Raises BufferLimitError for an event that is too long, ProtocolError for a corrupt compressed body, and the
        errors of unframed_body_error().
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

    @property
    def ends_plainly(self) -> bool:
        """Whether an event stream may end here: neither finish() nor take_incomplete() would find anything."""
        assert isinstance(self._parser, EventStreamParser)
        has_begun = self._unframed is None or self._parser.has_fields
        is_plain = self._parser.is_between_blocks and (has_begun or not self._unframed)
        return is_plain and unframed_end_error(self._latest) is None

    def finish(self) -> None:
        """Mark the end of the body.

        Raises TruncatedStreamError if a compressed body is incomplete, and the errors of unframed_body_error() and
        unframed_end_error().
        """
        assert self.decoder is not None
        self.decoder.finish()
        if (error := self.error_in_body()) is not None:
            raise error

    def error_in_body(self) -> SSEError | None:
        """Return the error of unframed_end_error() or unframed_body_error() for the body so far, or None."""
        if not isinstance(self._parser, EventStreamParser):
            return None
        if (error := unframed_end_error(self._latest)) is not None:
            return error
        body = b"" if self._unframed is None or self._parser.has_fields else bytes(self._unframed)
        return unframed_body_error(body) if body.removeprefix(_BOM).strip() else None

    def take_incomplete(self) -> tuple[ServerSentEvent, bool] | None:
        """Return the event of a last block without its blank line, and whether its last line is complete.

        None if there is none, or the stream has ended before it. Raises BufferLimitError.
        """
        assert isinstance(self._parser, EventStreamParser)
        return None if self.is_done else self._parser.take_incomplete()

    def take_rest(self, *, is_broken: bool) -> tuple[str, bool] | None:
        """Return the text behind the last line end of JSON Lines, and whether it is a whole document if it is JSON.

        None if there is none, or the stream has ended before it. See JSONLinesParser.take_rest().
        """
        assert isinstance(self._parser, JSONLinesParser)
        return None if self.is_done else self._parser.take_rest(is_broken=is_broken)

    def end_at(self, event: ServerSentEvent) -> bool:
        """End the stream if the event is its end marker, or of a type that ends it; return whether it did."""
        if not self._rules.is_end(event):
            return False
        self.is_done = True
        self.done_event = None if self._rules.is_last_item(event) else event
        return True

    def last_batch(self, event: ServerSentEvent, *, is_incomplete: bool = False) -> Batch:
        """Return a batch for what take_incomplete() returned; the stream's position stays where it is."""
        items: list[Item] = [] if is_incomplete else [event]
        batch = self._batch(items, len(items), self.last_event_id, self.retry)
        batch.incomplete = event if is_incomplete else None
        return batch

    def _parse(self, chunk: bytes) -> Iterator[Batch | None]:
        """Yield batches for each slice, None for a slice that changes nothing a consumer could notice."""
        assert self.decoder is not None
        # The limit may have changed since the last chunk.
        self.decoder.size, most_items = self.slice_bytes, _batch_items(self._limit.bytes)
        for piece in self.decoder.slices(chunk):
            items, plain = self._events_of(piece)
            if self._are_plain(items, plain, most_items):
                yield self._plain_batch(items)
            else:
                # Not resumed after the batch that ends the stream.
                yield from self._batches_of(items, plain, most_items)

    def _events_of(self, piece: bytes) -> tuple[list[Any], int]:
        """Return the items that a slice of the body completes, and EventRules.count_plain() of the events in them."""
        self._uncharged += len(piece)
        items: list[Any] = self._parser.feed(piece)
        self._latest = piece[-_END_BYTES:] if items else _extended(self._latest, piece)
        if self._unframed is not None:
            self._check_framing(piece)
        events = [item for item in items if type(item) is not Comment] if self._has_comments else items
        return items, self._rules.count_plain(events, have_types=self._parser.has_types)

    def _are_plain(self, items: list[Any], plain: int, most_items: int) -> bool:
        """Whether the items of a slice are one batch of events, none of which is an end marker or heartbeat."""
        parser = self._parser
        return plain == len(items) <= most_items and not parser.retries and parser.error is None

    def _plain_batch(self, items: list[Any]) -> Batch | None:
        """Return the batch of plain items, None if neither they nor the position are new."""
        parser = self._parser
        position = parser.last_event_id, parser.retry
        if not items and position == self._position:
            return None
        self._position = position
        return self._batch(items, len(items), *position)

    def _batches_of(self, items: list[Any], plain: int, most_items: int) -> Iterator[Batch | None]:
        """Yield the batches of a slice; None if it changes nothing a consumer could notice."""
        parser = self._parser
        last_event_id, retry = self._position
        # The parser continues to use an empty list, but the consumer's thread reads the batch's.
        retries: Retries = parser.retries or ()
        last, is_plain = None, not self._has_comments
        if plain != len(items):
            if is_plain and plain >= 0 and not retries:
                last = items.pop()
            else:
                is_plain = False
                items, last, retries = _up_to_end(items, retries, self._rules)
        while len(items) > most_items:
            part, items = items[:most_items], items[most_items:]
            last_event_id = next((item.id for item in reversed(part) if type(item) is not Comment), last_event_id)
            passed, retries = _split(retries, len(part))
            retry = passed[-1][1] if passed else retry
            count = len(part) if is_plain else sum(map(self._rules.counts, part))
            yield self._batch(part, count, last_event_id, retry, passed)
        count = len(items) if is_plain else sum(map(self._rules.counts, items))
        if last is not None:
            # Only after the parts above: the consumer drops batches that are not yet yielded once `is_done` is true.
            self.is_done = True
            # The quick look has found the end marker, which is no item.
            self.done_event = last if is_plain or not self._rules.is_last_item(last) else None
            # The reader drops this generator, and with it the bytes behind the last event.
            self._parsing = None
            # The position at the last event, whatever else came in the same chunk.
            yield self._batch(items, count, last.id, retries[-1][1] if retries else retry, retries)
        else:
            is_new = bool(items) or (parser.last_event_id, parser.retry) != (last_event_id, retry)
            self._position = parser.last_event_id, parser.retry
            yield self._batch(items, count, *self._position, retries) if is_new else None
            if parser.error is not None:
                raise parser.error

    def _check_framing(self, piece: bytes) -> None:
        """Raise the error for a body that is no event stream, once enough of it was received."""
        assert self._unframed is not None
        if self._parser.has_fields:
            self._unframed = None
        # Empty lines alone are a heartbeat.
        elif self._unframed or not piece.isspace():
            self._unframed += piece
            if len(self._unframed) > _UNFRAMED_BYTES:
                raise unframed_body_error(bytes(self._unframed))

    def _batch(
        self, items: list[Item], events: int, last_event_id: str, retry: float | None, retries: Retries = ()
    ) -> Batch:
        charge = self._uncharged + EVENT_OVERHEAD * max(1, len(items))
        self._uncharged = 0
        self.events += events
        if items and self._rules.ends_at_response:
            self.last_item = items[-1]
        return Batch(items, events, charge, last_event_id, retry, retries)


# A slice, and a batch, are a small part of the buffer, also if its events are tiny.


@functools.lru_cache(maxsize=64)
def _slice_bytes(limit: int) -> int:
    return min(max(limit // 16, 512), 64 * 1024)


@functools.lru_cache(maxsize=64)
def _batch_items(limit: int) -> int:
    return max(limit // (4 * EVENT_OVERHEAD), 1)


def _extended(latest: bytes | bytearray, piece: bytes) -> bytearray:
    """Return the end of a body after a slice that completes no event; `latest`, if it is a bytearray, is changed."""
    end = latest if type(latest) is bytearray else bytearray(latest)
    end += piece
    if len(end) > 2 * _END_BYTES:
        del end[:-_END_BYTES]
    return end


def _up_to_end(
    items: list[Any], retries: Retries, rules: EventRules
) -> tuple[list[Any], ServerSentEvent | None, Retries]:
    """Return the items up to the event that ends the stream, that event or None, and the retries up to it."""
    for index, item in enumerate(items):
        if type(item) is not Comment and rules.is_end(item):
            kept = items[: index + rules.is_last_item(item)]
            return kept, item, [(before, seconds) for before, seconds in retries if before <= index]
    return items, None, retries


def _split(retries: Retries, count: int) -> tuple[Retries, Retries]:
    """Return the retries of the first `count` items, and those of the items after them."""
    if not retries:
        return (), ()
    passed = [(index, seconds) for index, seconds in retries if index < count]
    return passed, [(index - count, seconds) for index, seconds in retries if index >= count]


def is_complete_json(data: str) -> bool:
    """Whether data is a whole JSON object or array."""
    # The blanks of JSON: decoding refuses others.
    text = data.strip(" \t\r\n")
    if text[:1] + text[-1:] not in ("{}", "[]"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
