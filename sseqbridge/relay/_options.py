"""RelayOptions: the keyword arguments that all functions of sseqbridge.relay share, checked. Immutable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sseqbridge._checks import check_seconds
from sseqbridge._exceptions import UsageError
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import ServerSentEvent

__all__ = ["RelayOptions"]


@dataclass(frozen=True)
class RelayOptions:
    """How a stream is relayed.

    `heartbeat`: seconds without an event after which a comment is sent, None for never. The first heartbeat
    is sent at once if no event has arrived, so that the web server sends the response's headers.

    `probe`: seconds between checks of the client's socket while there is nothing to send, None for never.
    WSGI only, and only if the server exposes the socket: gunicorn, Werkzeug and uWSGI do.

    `map`: a function that is called with each item and returns what is sent for it: a str, a dict or list
    (sent as JSON), a ServerSentEvent, a Comment, or None to send nothing. Unless it returns a ServerSentEvent
    the name and id of the upstream's event are kept. It is called in the thread that writes to the client, by
    an asynchronous server on its event loop (so it must not block), and for an iterable in its worker thread.

    `done`: True to forward the upstream's `[DONE]`, False or None to leave it out, or a str or ServerSentEvent
    to send at every clean end instead.

    Raises UsageError for an argument of the wrong type, seconds that are not above 0, or a `done` that cannot
    be encoded.
    """

    heartbeat: float | None = 15.0
    probe: float | None = 1.0
    map: Callable[[Any], Any] | None = None
    done: bool | str | ServerSentEvent | None = True
    # Called in the worker thread of an iterable after its end; set by relays of frameworks.
    after_work: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        check_seconds("heartbeat", self.heartbeat, never=True)
        check_seconds("probe", self.probe, never=True)
        if self.map is not None and not callable(self.map):
            raise UsageError(f"`map` must be a function of the item, or None, got {type(self.map).__name__}")
        if not (self.done is None or isinstance(self.done, (bool, str, ServerSentEvent))):
            raise UsageError(
                f"`done` must be a bool, a str, a ServerSentEvent or None, got {type(self.done).__name__}. "
                "Pass True to forward [DONE], False to leave it out."
            )
        if self.done_event is not None:
            # An event that cannot be encoded is refused now, not at the end of the stream.
            encode(self.done_event)

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event to send at every clean end instead of the upstream's `[DONE]`; None if there is none."""
        if isinstance(self.done, str):
            return ServerSentEvent(data=self.done)
        return self.done if isinstance(self.done, ServerSentEvent) else None
