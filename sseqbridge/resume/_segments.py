"""Segments: consecutive events of a stream that readers receive together, or one entry of another kind.

Plain values. The only module that detects missing and unreadable entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sseqbridge._engine.batches import EVENT_OVERHEAD, Retries
from sseqbridge._exceptions import LogError
from sseqbridge._sse.events import ServerSentEvent

from ._entries import UNKNOWN, UNREADABLE, Entry, Position, is_next, parse_position

__all__ = ["MISSING", "Segment", "charge_of", "segments_of", "split_segment"]

# The kind of a segment that stands for missing entries.
MISSING = "missing"


class Segment(NamedTuple):
    """Events, one entry of another kind, or a gap. `position` is that of the last entry.

    `size` is that of the events' data, and `retries` are their reconnection times; see Batch. `error` is the reason why
    the entry cannot be read, for the kind UNREADABLE.
    """

    kind: str
    position: Position
    entry: Entry | None = None
    items: list[ServerSentEvent] = []  # noqa: RUF012 (never written to)
    size: int = 0
    retries: Retries = ()
    error: LogError | None = None


def segments_of(entries: Iterable[Entry], after: Position, *, from_any: bool = False) -> Iterator[Segment]:
    """Group the entries that follow the position `after`; with `from_any` the first may stand anywhere.

    The last segment is of the kind MISSING if entries are missing, UNREADABLE if one cannot be read.
    """
    items: list[ServerSentEvent] = []
    for entry in entries:
        try:
            event = _event_in(entry)
        except LogError as error:
            yield from _events(items, after)
            yield Segment(UNREADABLE, entry.position, entry, error=error)
            return
        if not (is_next(entry.position, after) or from_any):
            yield from _events(items, after)
            yield Segment(MISSING, after)
            return
        from_any = False
        if event is not None:
            items.append(event)
        else:
            yield from _events(items, after)
            items = []
            yield Segment(entry.kind, entry.position, entry)
        after = entry.position
    yield from _events(items, after)


def _event_in(entry: Entry) -> ServerSentEvent | None:
    """Return the event, None if the entry is of another kind. Raises LogError if it cannot be read."""
    kind = entry.kind
    if kind in (UNKNOWN, UNREADABLE):
        raise entry.error()
    return entry.event() if kind == "event" else None


def _events(items: list[ServerSentEvent], last: Position) -> Iterator[Segment]:
    if items:
        yield _of_events(items, last)


def _of_events(items: list[ServerSentEvent], last: Position) -> Segment:
    retries = [(index, item.retry) for index, item in enumerate(items) if item.retry is not None]
    return Segment("event", last, items=items, size=sum([len(item.data) for item in items]), retries=retries)


def charge_of(size: int, events: int) -> int:
    """Return how much a channel charges for `events` events with `size` characters of data."""
    return size + EVENT_OVERHEAD * events


def split_segment(segment: Segment, limit: int) -> Iterator[Segment]:
    """Split a segment of events into segments that are charged at most `limit`, or hold one event."""
    if charge_of(segment.size, len(segment.items)) <= limit:
        yield segment
        return
    items: list[ServerSentEvent] = []
    size = 0
    for item in segment.items:
        if items and charge_of(size + len(item.data), len(items) + 1) > limit:
            yield _split_off(items)
            items, size = [], 0
        items.append(item)
        size += len(item.data)
    yield _split_off(items)


def _split_off(items: list[ServerSentEvent]) -> Segment:
    position = parse_position(items[-1].id)
    assert position is not None
    return _of_events(items, position)
