"""Entries put together for readers: a part is events that are given on as one, or one entry of another kind.

Rule: plain values. Whether something is missing between two entries, or one of them cannot be read, is
said here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sseqbridge._engine.batches import EVENT_OVERHEAD
from sseqbridge._exceptions import LogError
from sseqbridge._sse.events import ServerSentEvent

from ._entries import UNKNOWN, UNREADABLE, Entry, Position, is_next, position_of

__all__ = ["MISSING", "Part", "charge_of", "parts_of", "pieces_of"]

# The kind of a part that stands for entries which are not there.
MISSING = "missing"


class Part(NamedTuple):
    """Entries that are given as one: events, or one of another kind, or none where some are missing."""

    kind: str
    position: Position
    entry: Entry | None = None
    items: list[ServerSentEvent] = []  # noqa: RUF012 (never written to)
    size: int = 0
    # Why the entry cannot be read, for the kind UNREADABLE.
    error: LogError | None = None


def parts_of(entries: Iterable[Entry], after: Position, *, from_any: bool = False) -> Iterator[Part]:
    """Put together what comes after a position.

    The parts end with one of the kind MISSING or UNREADABLE, if entries are missing or one cannot be read.
    """
    items: list[ServerSentEvent] = []
    for entry in entries:
        try:
            event = _event_in(entry)
        except LogError as error:
            yield from _events(items, after)
            yield Part(UNREADABLE, entry.position, entry, error=error)
            return
        if not (is_next(entry.position, after) or from_any):
            yield from _events(items, after)
            yield Part(MISSING, after)
            return
        from_any = False
        if event is not None:
            items.append(event)
        else:
            yield from _events(items, after)
            items = []
            yield Part(entry.kind, entry.position, entry)
        after = entry.position
    yield from _events(items, after)


def _event_in(entry: Entry) -> ServerSentEvent | None:
    """Return the event, None if the entry is of another kind. Raises LogError if it cannot be read."""
    kind = entry.kind
    if kind in (UNKNOWN, UNREADABLE):
        raise entry.error()
    return entry.event() if kind == "event" else None


def _events(items: list[ServerSentEvent], last: Position) -> Iterator[Part]:
    if items:
        yield Part("event", last, items=items, size=sum(len(item.data) for item in items))


def charge_of(size: int, events: int) -> int:
    """Return what events of so much data count as in a channel."""
    return size + EVENT_OVERHEAD * events


def pieces_of(part: Part, most: int) -> Iterator[Part]:
    """Cut a part of events into such as are charged so much at most, or hold one event."""
    if charge_of(part.size, len(part.items)) <= most:
        yield part
        return
    items: list[ServerSentEvent] = []
    size = 0
    for item in part.items:
        if items and charge_of(size + len(item.data), len(items) + 1) > most:
            yield _piece(items, size)
            items, size = [], 0
        items.append(item)
        size += len(item.data)
    yield _piece(items, size)


def _piece(items: list[ServerSentEvent], size: int) -> Part:
    position = position_of(items[-1].id)
    assert position is not None
    return Part("event", position, items=items, size=size)
