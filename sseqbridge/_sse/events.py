"""The items of an event stream: events and comments.

Plain values, independent of bytes, time, threads and HTTP. Not thread-safe: the consumer owns them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Comment", "RestartEvent", "ServerSentEvent"]


@dataclass(slots=True)
class ServerSentEvent:
    """One event of an event stream, as the WHATWG standard dispatches it.

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
    """One comment line of an event stream, without its colon and one leading space."""

    text: str = ""
