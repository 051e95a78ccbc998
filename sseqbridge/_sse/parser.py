"""Sans-IO parser of event streams: bytes in, events out.

The algorithm is the WHATWG standard's "Interpreting an event stream", and how the bytes are cut
into chunks never changes what comes out. Two rules keep that true and the cost linear:

- only lines are parsed, and each byte is searched for a line end once, when it arrives;
- lines are told apart as bytes and decoded afterwards. In UTF-8 no line end is part of another
  character, so this gives what decoding the whole stream first would give, U+FFFD included.

Every line of every stream goes through `_take_lines`: there a call more shows in the benchmark, so
what each event needs is done in place.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sseqbridge._exceptions import BufferLimitError

from .events import Comment, ServerSentEvent

__all__ = ["DEFAULT_MAX_EVENT_BYTES", "EventStreamParser"]

# Servers that embed images and audio send events of 14 MB.
DEFAULT_MAX_EVENT_BYTES = 32 * 1024 * 1024

# Digits without end are allowed. What is kept is finite, and still more than anyone waits.
_MAX_RETRY_SECONDS = 1e12

# Up to here a copy for each line of an event costs less than a buffer that grows.
_SHORT_BYTES = 1024

_BOM = b"\xef\xbb\xbf"
_CR = 13
_LF = 10
_NUL = 0

# The fields' names, and that of a comment.
_NAMES = (b"data", b"event", b"id", b"retry", b"")

# An event is made without its __init__, which takes longer to call than its fields to set.
_new_event = ServerSentEvent.__new__


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
        self._event = "message"
        self._id = last_event_id
        self._retry: float | None = None
        self.last_event_id = last_event_id
        self.retry: float | None = None
        self.error: BufferLimitError | None = None

    def __repr__(self) -> str:
        held = len(self._tail) + len(self._data or b"")
        state = f"held={held} last_event_id={self.last_event_id!r} retry={self.retry}"
        return f"<{type(self).__name__} {state if self.error is None else 'error'}>"

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
        # bytes.splitlines knows CR, LF and CRLF and nothing else; that of str splits at more.
        lines = chunk.splitlines()
        if not lines:
            return []
        items: list[ServerSentEvent | Comment] = []
        last, tail = chunk[-1], b""
        if last == _CR:
            # A chunk may end between CR and LF. The line is complete: take it now and drop one LF
            # later; waiting for the next byte would hold back an event that is already here.
            self._skip_lf = True
        elif last != _LF:
            tail = lines.pop()
        try:
            if lines:
                if self._tail:
                    lines[0] = self._with_tail(lines[0])
                # No line can be too long where all of them together are not.
                self._take_lines(lines if len(chunk) <= self._max else self._checked(lines), items)
            if tail:
                self._tail += tail
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

    def _with_tail(self, end: bytes) -> bytes:
        """Return the line that earlier chunks began and `end` completes."""
        self._tail += end
        if len(self._tail) > self._max:
            raise BufferLimitError(self._max)
        line = bytes(self._tail)
        self._tail.clear()
        return line

    def _checked(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            if len(line) > self._max:
                raise BufferLimitError(self._max)
            yield line

    def _take_lines(self, lines: Iterable[bytes], items: list[ServerSentEvent | Comment]) -> None:
        data = self._data
        for line in lines:
            if not line:
                self.last_event_id = self._id
                if data is not None:
                    event = _new_event(ServerSentEvent)
                    event.event = self._event
                    event.data = data.decode("utf-8", "replace")
                    event.id = self._id
                    event.retry = self._retry
                    items.append(event)
                    data = None
                self._event = "message"
                self._retry = None
                continue
            name, _, value = line.partition(b": ")
            if name not in _NAMES:
                # Nobody knows the name, or no space follows its colon.
                name, _, value = line.partition(b":")
            if name == b"data":
                data = value if data is None else self._joined(data, value)
            elif name == b"event":
                self._event = value.decode("utf-8", "replace") or "message"
            elif name == b"id":
                if _NUL not in value:
                    self._id = value.decode("utf-8", "replace")
            elif name == b"retry":
                # bytes.isdigit() takes ASCII digits alone, and float() digits of any number.
                if value.isdigit():
                    seconds = float(value) / 1000
                    self.retry = self._retry = seconds if seconds < _MAX_RETRY_SECONDS else _MAX_RETRY_SECONDS
            elif not name and self._comments:
                items.append(Comment(value.decode("utf-8", "replace")))
        self._data = data

    def _joined(self, data: bytes | bytearray, value: bytes) -> bytes | bytearray:
        """Return an event's data with one line more."""
        if len(data) < _SHORT_BYTES:
            data = data + b"\n" + value
        else:
            # In place from here on, so that an event of many lines stays linear and small.
            if type(data) is not bytearray:
                data = bytearray(data)
            data += b"\n"
            data += value
        if len(data) > self._max:
            raise BufferLimitError(self._max)
        return data
