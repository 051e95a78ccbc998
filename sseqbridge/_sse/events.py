"""The items of an event stream: events and comments.

Plain values, independent of bytes, time, threads and HTTP. Not thread-safe: the consumer owns them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Comment", "RestartEvent", "ServerSentEvent", "copied"]


@dataclass(slots=True)
class ServerSentEvent:
    """One event of an event stream, as the WHATWG standard dispatches it.

        for event in request_sse(url, decode="event").events:
            print(event.id, event.event, event.data)

    `event` is its type, "message" unless the server named one. `data` is its text: the values of its
    `data` fields, joined by line feeds. `id` is the last event ID of the stream at that point: an ID
    persists until the server sends another one, and is "" before the first. `retry` is the
    reconnection time in the event's own block, in seconds, or None.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: float | None = None

    def json(self) -> Any:
        """Return `data` decoded as JSON. Raises json.JSONDecodeError (a ValueError)."""
        return json.loads(self.data)


class RestartEvent(ServerSentEvent):
    """An event that a log inserts for its readers where a stream restarts. No upstream sent it."""

    __slots__ = ()


@dataclass(slots=True)
class Comment:
    """One comment line of an event stream.

        request_sse(url, decode="event", comments=True)  # yields Comment("keep-alive") among the events

    `text` is the line without its colon and one leading space.
    """

    text: str = ""


def copied(item: ServerSentEvent | Comment) -> ServerSentEvent | Comment:
    """Return a copy of an event or a comment."""
    if isinstance(item, Comment):
        return Comment(item.text)
    # Faster than __init__, and of the same class.
    copy: ServerSentEvent = item.__class__.__new__(item.__class__)
    copy.event = item.event
    copy.data = item.data
    copy.id = item.id
    copy.retry = item.retry
    return copy
