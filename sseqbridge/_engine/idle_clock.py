"""Decides which bytes restart the idle limit of a response. In an event stream only the end of an event does.

Sans-IO: bytes in, a boolean out. The response's bytes are passed on as they came; this module only looks at them, and
only if the time without an event is limited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sseqbridge._exceptions import BufferLimitError, ProtocolError
from sseqbridge._http.client_encodings import client_decoder
from sseqbridge._sse.dialects import DEFAULT_DONE, event_rules
from sseqbridge._sse.parser import EventStreamParser

from .responses import is_event_stream

if TYPE_CHECKING:
    import httpx

    from sseqbridge._http.content_encoding import BodyDecoder

__all__ = ["EventDetector", "event_detector"]

# The most that is decompressed at a time.
_SLICE_BYTES = 64 * 1024
# The most slices that one read may become: looking at more would block the event loop.
_MAX_SLICES = 256


# The heartbeats that servers in the field send, whatever API they serve.
_RULES = event_rules("openai", DEFAULT_DONE, is_json=True)


class EventDetector:
    """Detects the events of one event stream. Comments and heartbeats are no events."""

    def __init__(self, decoder: BodyDecoder) -> None:
        self._decoder = decoder
        self._parser = EventStreamParser()
        # Whether the bytes can still be understood; otherwise all of them count.
        self._is_readable = True

    def feed(self, data: bytes) -> bool:
        """Take the next bytes of the body, as they were sent. Return whether they complete an event."""
        if not self._is_readable:
            return True
        found = False
        try:
            for count, piece in enumerate(self._decoder.slices(data)):
                if count == _MAX_SLICES:
                    self._is_readable = False
                    return True
                found = any(map(_RULES.counts, self._parser.feed(piece))) or found
        except (ProtocolError, BufferLimitError):
            # The client that decodes the body reports what is wrong with it.
            self._is_readable = False
            return True
        return found


def event_detector(headers: httpx.Headers) -> EventDetector | None:
    """Return the detector for a response with these headers; None if all of its bytes count.

    Those are the responses that are no event streams, and event streams in an encoding that cannot be decoded here.
    """
    if not is_event_stream(headers):
        return None
    try:
        return EventDetector(client_decoder(headers.get("content-encoding", ""), _SLICE_BYTES))
    except ProtocolError:
        return None
