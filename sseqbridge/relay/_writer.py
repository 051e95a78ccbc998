"""What goes out for an item: an event of the upstream's as it came, or what `map` made of it.

Rule: what is written parses back to the same event, or is refused. A reader learns of an error
its type and words of ours, never the message: that names hosts.
"""

from __future__ import annotations

import contextvars
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sseqbridge._checks import check_seconds
from sseqbridge._exceptions import SSEError, UpstreamError, UsageError
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import Comment, ServerSentEvent

__all__ = ["HEARTBEAT", "RelayOptions", "Writer", "error_frame"]

# Without a blank line, which some clients (fetch-event-source) take for an empty event.
HEARTBEAT = b":\n"

# An upstream's own words to a reader: enough to be understood.
_MAX_QUOTED = 200

_WORDS = {
    "ConnectError": "no connection to the upstream",
    "ReadError": "the connection to the upstream broke",
    "TruncatedStreamError": "the upstream's stream was cut off",
    "ReconnectionError": "the upstream's stream was cut off",
    "ProtocolError": "the upstream's answer could not be read",
    "StreamTimeoutError": "the upstream took too long",
    "BufferLimitError": "the upstream sent an event that is too large",
    "DecodeError": "the upstream sent what could not be decoded",
    "StatusError": "the upstream refused the request",
    "UpstreamError": "the upstream reported an error",
    "BridgeClosedError": "the server is shutting down",
    "ProducerLostError": "the answer was broken off",
    "EventsLostError": "what came before is not kept any more",
    "StreamNotFoundError": "there is no such stream",
    "LogError": "the log of streams failed",
    "LogAccessError": "the log of streams failed",
    "LogFullError": "the log of streams is full",
    "LogUnavailableError": "the log of streams cannot be reached",
}


@dataclass(frozen=True)
class RelayOptions:
    """How a stream goes on to a reader; see `frames`. Raises UsageError for what cannot be."""

    heartbeat: float | None = 15.0
    probe: float | None = 1.0
    map: Callable[[Any], Any] | None = None
    done: bool | str | ServerSentEvent | None = True
    # Called in the thread of an iterable's, at its end.
    after_work: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        check_seconds("heartbeat", self.heartbeat, never=True)
        check_seconds("probe", self.probe, never=True)
        if self.map is not None and not callable(self.map):
            raise UsageError(f"map is a {type(self.map).__name__}; it is a function of the item, or None")
        if not (self.done is None or isinstance(self.done, (bool, str, ServerSentEvent))):
            raise UsageError(
                f"done is a {type(self.done).__name__}; it is True (passed on), False (left out), or a str or "
                "ServerSentEvent to send instead"
            )
        if isinstance(self.done, (str, ServerSentEvent)):
            # Refused here, and not when the stream has ended.
            encode(_as_event(self.done))


class Writer:
    """Writes the items of one stream: `event` and `item` return bytes, b"" for what is left out."""

    def __init__(self, options: RelayOptions) -> None:
        self._map = options.map
        self._done = options.done
        self.after_work = options.after_work
        # Of the view that the relay is made in: what it finds there, `map` finds too.
        self.context = contextvars.copy_context()
        # Of the upstream's last event, whose ids the reader is given.
        self._id = ""

    @property
    def is_verbatim(self) -> bool:
        """Whether an upstream's events go on as they came."""
        return self._map is None

    def event(self, event: ServerSentEvent) -> bytes:
        """Return an upstream's event as it goes on."""
        frame = encode(event)
        if event.id != self._id:
            self._id = event.id
            if not event.id:
                # The reader's goes on to hold otherwise: an event without an id does not change it.
                frame = b"id:\n" + frame
        return frame

    def item(self, item: Any, source: ServerSentEvent | None = None) -> bytes:
        """Return what an item is written as: by `map`, with the name and id of the event that it came from.

        Raises UsageError for what cannot be sent, and whatever `map` raises.
        """
        if self._map is not None and type(item) is not Comment:
            item = self.context.run(self._map, item)
        if item is None:
            return b""
        if isinstance(item, Comment):
            return encode(item)
        if isinstance(item, ServerSentEvent):
            # Made here: it leaves the reader's id as it is, unless it has one.
            return encode(item)
        text = _text(item, "map returned" if self._map is not None else "the stream gave")
        if source is None:
            return encode(ServerSentEvent(data=text))
        return self.event(ServerSentEvent(source.event, text, source.id, source.retry))

    def end(self, outcome: str | None, last: ServerSentEvent | None, done: ServerSentEvent | None) -> bytes:
        """Return what follows the last item: `done` is what ended the upstream's stream after its event `last`."""
        if outcome not in ("done", "eof") or self._done is None or self._done is False:
            return b""
        if self._done is not True:
            return encode(_as_event(self._done))
        if done is None:
            return b""
        if done.id != ("" if last is None else last.id):
            return self.event(done)
        # It has no id of its own, and `map` may have given the reader others.
        return encode(ServerSentEvent(done.event, done.data, "", done.retry))


def _as_event(event: ServerSentEvent | str) -> ServerSentEvent:
    return ServerSentEvent(data=event) if isinstance(event, str) else event


def _text(item: Any, who: str) -> str:
    if isinstance(item, str):
        return item
    if not isinstance(item, (dict, list)):
        raise UsageError(
            f"{who} a {type(item).__name__}, which cannot be sent; it is a str, a dict or list (sent as JSON), "
            "a ServerSentEvent, a Comment, or None to leave it out"
        )
    # NaN is no JSON: a browser could not read it.
    text = json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a character, which an upstream may have sent the other half of later.
        text = json.dumps(item, allow_nan=False, separators=(",", ":"))
    return text


def error_frame(error: BaseException) -> bytes:
    """Return the event that tells a reader that the stream has failed: its type and words, as JSON."""
    if isinstance(error, SSEError):
        kind = type(error).__name__
        words = _WORDS.get(kind, "the stream failed")
    else:
        kind, words = "ServerError", "the server failed while it made the stream"
    if isinstance(error, UpstreamError):
        words = _upstreams_words(error.payload) or words
    return encode(ServerSentEvent("error", json.dumps({"type": kind, "message": words}, separators=(",", ":"))))


def _upstreams_words(payload: Any) -> str | None:
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    words = error.get("message") if isinstance(error, dict) else error
    return words[:_MAX_QUOTED] if isinstance(words, str) else None
