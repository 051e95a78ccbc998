"""Sans-IO parser of event streams: bytes in, events out.

The algorithm is the WHATWG standard's "Interpreting an event stream", and how the bytes are cut
into chunks never changes what comes out. Two rules keep that true and the cost linear:

- only lines are parsed, and each byte is searched for a line end once, when it arrives;
- lines are told apart as bytes and decoded afterwards. In UTF-8 no line end is part of another
  character, so this gives what decoding the whole stream first would give, U+FFFD included.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from ._exceptions import BufferLimitError
from ._models import Comment, ServerSentEvent

__all__ = ["DEFAULT_MAX_EVENT_BYTES", "EventStreamParser"]

# Servers that embed images and audio send events of 14 MB.
DEFAULT_MAX_EVENT_BYTES = 32 * 1024 * 1024

# Digits without end are allowed. What is kept is finite, and still more than anyone waits.
_MAX_RETRY_MILLISECONDS = 1e15

_BOM = b"\xef\xbb\xbf"
_CR = 13
_LF = 10


class EventStreamParser:
    """Turns the bytes of one event stream into events, whatever the chunking.

    `max_event_bytes` bounds the data of one event and the length of one line. `comments=True`
    gives Comment items too, each as its line ends. `last_event_id` is what an earlier connection
    of the same stream left.

    A parser is for one connection. What outlives it is `last_event_id`, committed by the last
    block that was complete, and `retry`, the reconnection time in seconds that the server asked
    for last, None where it did not.
    """

    __slots__ = (
        "_at_start",
        "_comments",
        "_data",
        "_event",
        "_id",
        "_max",
        "_retry",
        "_skip_lf",
        "_tail",
        "error",
        "last_event_id",
        "retry",
    )

    def __init__(
        self,
        *,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
        comments: bool = False,
        last_event_id: str = "",
    ) -> None:
        self._max = max_event_bytes
        self._comments = comments
        self._at_start = True
        self._skip_lf = False
        self._tail = bytearray()
        # The block so far: its data (None: no data field yet), type, id and retry.
        self._data: bytes | bytearray | None = None
        self._event = ""
        self._id = last_event_id
        self._retry: float | None = None
        self.last_event_id = last_event_id
        self.retry: float | None = None
        self.error: BufferLimitError | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent | Comment]:
        """Return what `chunk` completed: events and, if asked for, comments.

        When an event outgrows `max_event_bytes`, what was complete before it is returned and
        `error` is set; every later call raises it, a BufferLimitError.
        """
        if self.error is not None:
            raise self.error
        if self._at_start:
            chunk = self._without_bom(chunk)
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[0] == _LF:
                chunk = chunk[1:]
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        items: list[ServerSentEvent | Comment] = []
        try:
            if end:
                lines = chunk[:end] if end < len(chunk) else chunk
                if self._tail:
                    lines = bytes(self._tail) + lines
                    self._tail.clear()
                # A chunk may end between CR and LF. The line is complete: take it now and drop
                # one LF later; waiting for the next byte would hold back an event that is here.
                self._skip_lf = chunk[-1] == _CR
                self._take_lines(lines, items)
            if end < len(chunk):
                self._tail += chunk[end:] if end else chunk
                if len(self._tail) > self._max:
                    raise BufferLimitError(self._max)
        except BufferLimitError as error:
            self.error = error
            if not items:
                raise
        return items

    def _without_bom(self, chunk: bytes) -> bytes:
        """Drop one leading byte order mark, which may come in pieces: `_tail` holds those."""
        chunk = bytes(self._tail) + chunk
        self._tail.clear()
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._tail += chunk
            return b""
        self._at_start = False
        return chunk[len(_BOM) :] if chunk.startswith(_BOM) else chunk

    def _take_lines(self, lines: bytes, items: list[ServerSentEvent | Comment]) -> None:
        # No line can be too long where all of them together are not.
        check_length = len(lines) > self._max
        # bytes.splitlines knows CR, LF and CRLF and nothing else; that of str splits at more.
        for line in lines.splitlines():
            if check_length and len(line) > self._max:
                raise BufferLimitError(self._max)
            if line[:5] == b"data:":
                self._add_data(line[6:] if line[5:6] == b" " else line[5:])
            elif line:
                self._take_field(line, items)
            else:
                self._end_block(items)

    def _add_data(self, value: bytes) -> None:
        if self._data is None:
            self._data = value
            return
        # A bytearray, so that an event of many lines stays linear and small.
        if type(self._data) is not bytearray:
            self._data = bytearray(self._data)
        self._data += b"\n"
        self._data += value
        if len(self._data) > self._max:
            raise BufferLimitError(self._max)

    def _take_field(self, line: bytes, items: list[ServerSentEvent | Comment]) -> None:
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"data":
            self._add_data(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry":
            # bytes.isdigit() takes ASCII digits alone, and float() digits of any number.
            if value.isdigit():
                self.retry = self._retry = min(float(value), _MAX_RETRY_MILLISECONDS) / 1000
        elif not name and self._comments:
            items.append(Comment(value.decode("utf-8", "replace")))

    def _end_block(self, items: list[ServerSentEvent | Comment]) -> None:
        self.last_event_id = self._id
        if self._data is not None:
            data = self._data.decode("utf-8", "replace")
            items.append(ServerSentEvent(self._event or "message", data, self._id, self._retry))
            self._data = None
        self._event = ""
        self._retry = None
