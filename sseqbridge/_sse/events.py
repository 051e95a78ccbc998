"""What a stream is made of: events and comments.

Rule: plain values. Nothing here knows bytes, time, threads or HTTP.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Comment", "RestartEvent", "ServerSentEvent"]


@dataclass(slots=True)
class ServerSentEvent:
    """One event of an event stream, as the WHATWG standard dispatches it.

    `event` is its type, "message" where the server named none. `data` is its text, the lines
    of several `data` fields joined by line feeds. `id` is the stream's last event ID when the
    event was dispatched: ids persist from event to event, and it is "" where none was sent so
    far. `retry` is the reconnection time that the event's own block asked for, in seconds.

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
    """The event of a log which tells its readers that a stream starts anew: no upstream sent it."""

    __slots__ = ()


@dataclass(slots=True)
class Comment:
    """One comment line of an event stream, without its colon and one leading space."""

    text: str = ""
