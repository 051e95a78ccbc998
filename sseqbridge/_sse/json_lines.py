"""Sans-IO parser of JSON Lines and of JSON text sequences: bytes in, one event for each document out.

The type of each event is "message", its data the document's text. A line ends with LF or CRLF and nowhere else: U+2028
and other separators may stand in JSON strings. Blank lines are skipped. Invariant: the boundaries between chunks never
change the texts, and each byte is searched for a line end once. The work for each byte is done in C.

A body that begins with RS (U+001E) is a JSON text sequence: its documents begin with RS, and may have several lines.

Not thread-safe: each parser belongs to one connection.

Sources: https://jsonlines.org, https://github.com/ndjson/ndjson-spec, RFC 7464
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sseqbridge._exceptions import BufferLimitError, SSEError, TruncatedStreamError

from .events import Comment, ServerSentEvent
from .parser import DEFAULT_MAX_EVENT_BYTES, without_bom
from .provider_errors import escaped

__all__ = ["JSONLinesParser", "is_json", "torn_line_error"]

_RS = b"\x1e"
# The blanks of JSON.
_BLANKS = " \t\r\n"
# With what a document begins that shows its own end; a number, true, false and null do not.
_SELF_DELIMITED = ("{", "[", '"')

# From this size on, the last document of a sequence is examined each time that its size has doubled: examining it at
# each line end would take O(n²) time.
_SMALL = 4096

# Setting the fields one by one is faster than calling __init__.
_new_event = ServerSentEvent.__new__


class JSONLinesParser:
    """Parses the bytes of one connection's JSON documents, in chunks of any size.

    `max_event_bytes` limits a line, or the document of a sequence. The other attributes are those of an
    EventStreamParser for a stream that has no field but data.
    """

    last_event_id = ""
    retries: tuple[()] = ()
    has_types = False
    has_fields = True

    __slots__ = ("_at_start", "_is_sequence", "_is_undecided", "_max", "_tail", "_try_at", "error", "retry")

    def __init__(self, *, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        # Before a byte order mark, and before the first byte of a document.
        self._at_start = True
        self._is_undecided = True
        self._is_sequence = False
        self._tail = bytearray()
        # The length from which on the last document of a sequence is examined.
        self._try_at = 0
        self.error: SSEError | None = None
        self.retry: float | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {f'held={len(self._tail)}' if self.error is None else 'error'}>"

    def feed(self, chunk: bytes) -> list[ServerSentEvent | Comment]:
        """Return an event for each document that `chunk` completes. (There are no comments.)

        If a line exceeds `max_event_bytes`, returns the events before it and sets `error`, a BufferLimitError; every
        later call raises `error`. Raises it at once if there are no events.
        """
        if self.error is not None:
            raise self.error
        if self._is_undecided:
            chunk = self._from_start(chunk)
            if self.error is not None:
                raise self.error
        events = self._sequence(chunk) if self._is_sequence else self._lines(chunk)
        if self.error is not None and not events:
            raise self.error
        return events

    def take_rest(self, *, is_broken: bool = False) -> tuple[str, bool] | None:
        """Return the text behind the last complete document, and whether it is whole if it is JSON.

        None if there is none but blanks. `is_broken`: the connection failed there, so that a number may be incomplete.
        """
        text = self._tail.decode("utf-8", "replace")
        self._tail.clear()
        stripped = text.strip(_BLANKS)
        if not stripped:
            return None
        is_uncertain = (self._is_sequence or is_broken) and _may_be_cut(text, stripped)
        return stripped if self._is_sequence else text.removesuffix("\r"), not is_uncertain

    def _from_start(self, chunk: bytes) -> bytes:
        """Return the chunk, in a sequence without the blanks before it. Everything before it is blank."""
        if self._at_start:
            rest = without_bom(self._tail, chunk)
            if rest is None:
                return b""
            self._at_start = False
            chunk = rest
        begin = chunk.lstrip(_BLANKS.encode())
        if begin:
            self._is_undecided = False
            self._is_sequence = begin.startswith(_RS)
        if self._is_sequence:
            # The blanks before it are limited as lines are.
            self._lines(chunk[: -len(begin)])
            self._tail.clear()
            return begin
        return chunk

    def _lines(self, chunk: bytes) -> list[ServerSentEvent | Comment]:
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._keep(chunk)
            return []
        lines, tail = chunk[:end], chunk[end:]
        if self._tail:
            lines = bytes(self._tail) + lines
            self._tail.clear()
        if len(lines) > self._max:
            lines = self._within_limit(lines)
        text = lines.decode("utf-8", "replace")
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        events = _events(text.split("\n"))
        if self.error is None:
            self._keep(tail)
        return events

    def _within_limit(self, lines: bytes) -> bytes:
        """Return the lines before one that is too long, which sets `error`."""
        at = 0
        for line in lines.split(b"\n"):
            if len(line) > self._max:
                self.error = BufferLimitError(self._max)
                return lines[:at]
            at += len(line) + 1
        return lines

    def _keep(self, tail: bytes) -> None:
        self._tail += tail
        if len(self._tail) > self._max:
            self.error = BufferLimitError(self._max)

    def _sequence(self, chunk: bytes) -> list[ServerSentEvent | Comment]:
        """Take the bytes of a JSON text sequence. `_tail` is the document that is not known to be complete."""
        first, *others = chunk.split(_RS)
        self._keep(first)
        events: list[ServerSentEvent | Comment] = []
        for other in others:
            if self.error is not None:
                return events
            self._end_document(events)
            self._keep(other)
        if self.error is None and self._tail.endswith(b"\n") and len(self._tail) >= self._try_at:
            self._try_at = 2 * len(self._tail) if len(self._tail) > _SMALL else 0
            # A document that ends with its line is an item now, and not when the next one arrives.
            text = self._tail.decode("utf-8", "replace").strip(_BLANKS)
            if text and is_json(text):
                self._end_document(events)
        return events

    def _end_document(self, events: list[ServerSentEvent | Comment]) -> None:
        raw = self._tail.decode("utf-8", "replace")
        text = raw.strip(_BLANKS)
        self._tail.clear()
        self._try_at = 0
        if _may_be_cut(raw, text):
            self.error = torn_line_error("a document of the sequence was cut off", text)
        else:
            events += _events([text])


def _events(texts: Iterable[str]) -> list[ServerSentEvent | Comment]:
    events: list[ServerSentEvent | Comment] = []
    for text in texts:
        if not text or not text.strip(_BLANKS):
            continue
        event = _new_event(ServerSentEvent)
        event.event = "message"
        event.data = text
        event.id = ""
        event.retry = None
        events.append(event)
    return events


def _may_be_cut(text: str, stripped: str) -> bool:
    """Whether a document that was cut off may be incomplete: 1 may be a part of 12. See RFC 7464, section 2.4."""
    return bool(stripped) and text[-1] not in _BLANKS and not stripped.startswith(_SELF_DELIMITED)


def is_json(text: str) -> bool:
    """Whether a text is a JSON document."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def torn_line_error(message: str, text: str) -> TruncatedStreamError:
    """Return the error for a line or document that was cut off, with its begin."""
    error = TruncatedStreamError(f"{message}: {escaped(text)}")
    error.torn_line = text
    return error
