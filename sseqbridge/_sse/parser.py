"""Sans-IO parser of event streams: bytes in, events out.

It implements the WHATWG standard's "Interpreting an event stream". Invariant: the boundaries between
chunks never change the result. Two rules ensure this, and linear cost:

- Only whole lines are parsed, and each byte is searched for a line end once, when it arrives.
- Lines are split as bytes and decoded afterwards. In UTF-8 no line end is part of another character,
  so the result equals decoding the whole stream first, U+FFFD included.

Most chunks are whole events of one `data` line each, which `_take_plain` takes without looking at lines. All other
lines pass through `_take_lines`. One more call there shows in the benchmark, so its body is inlined. Not thread-safe:
each parser belongs to one connection.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from sseqbridge._exceptions import BufferLimitError

from .events import Comment, ServerSentEvent

__all__ = ["DEFAULT_MAX_EVENT_BYTES", "EventStreamParser", "without_bom"]

# Servers that embed images and audio send events of up to 14 MB.
DEFAULT_MAX_EVENT_BYTES = 32 * 1024 * 1024

# The standard allows any number of digits in `retry`. The limit keeps the value finite.
_MAX_RETRY_SECONDS = 1e12

# Up to this size, one copy per line of an event costs less than a growing buffer.
SHORT_BYTES = 1024

_BOM = b"\xef\xbb\xbf"
_CR = 13
_LF = 10
_NUL = 0

# The names of the fields; b"" is that of a comment.
_NAMES = (b"data", b"event", b"id", b"retry", b"")

# Setting the fields one by one is faster than calling __init__.
_new_event = ServerSentEvent.__new__


def without_bom(tail: bytearray, chunk: bytes) -> bytes | None:
    """Return the first bytes of a body without a leading byte order mark; None if they may be a part of one.

    `tail` collects a mark that arrives in pieces.
    """
    chunk = bytes(tail) + chunk
    tail.clear()
    if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
        tail += chunk
        return None
    return chunk.removeprefix(_BOM)


class EventStreamParser:
    """Parses the bytes of one connection's event stream into events, in chunks of any size.

        parser = EventStreamParser()
        for chunk in chunks_of_bytes:
            for event in parser.feed(chunk):
                print(event.data)

    `max_event_bytes` limits the data of one event and the length of one line. `comments=True` also
    returns Comment items, each when its line ends. Pass the `last_event_id` of the previous connection
    if the stream is resumed. `end_events` are types of events that are returned without a `data` line too, as
    events with empty data; the standard drops such events.

    For the next connection, keep `last_event_id`, as of the last complete block, and `retry`, the
    server's latest reconnection time in seconds, None if it sent none.

    `retries` has an entry for each `retry` field of the last chunk: how many items of that chunk came before
    it, and its value in seconds. `has_types` says whether any event so far had an `event` field.

    `error` is the BufferLimitError after which the parser reads nothing more, else None.

    Raises UsageError for a limit that is not an integer above 0.
    """

    __slots__ = (
        "_at_start",
        "_comments",
        "_data",
        "_end_types",
        "_event",
        "_has_fields",
        "_id",
        "_is_between_events",
        "_max",
        "_retry",
        "_skip_lf",
        "_tail",
        "error",
        "has_types",
        "last_event_id",
        "retries",
        "retry",
    )

    def __init__(
        self,
        *,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
        comments: bool = False,
        last_event_id: str = "",
        end_events: Collection[str] = (),
    ) -> None:
        self._max = max_event_bytes
        self._comments = comments
        self._end_types = frozenset(end_events) - {"message"}  # "message" is the type of events without one
        self._at_start = True
        self._skip_lf = False
        self._tail = bytearray()
        # The incomplete block: its data (None before the first data field), type, id and retry.
        self._data: bytes | bytearray | None = None
        self._event = "message"
        self._id = last_event_id
        self._retry: float | None = None
        self.last_event_id = last_event_id
        self.retry: float | None = None
        self.retries: list[tuple[int, float]] = []
        self.has_types = False
        self.error: BufferLimitError | None = None
        self._has_fields = False
        # Whether the next byte begins a line, and no earlier line of its block changes an event.
        self._is_between_events = True

    def __repr__(self) -> str:
        held = len(self._tail) + len(self._data or b"")
        state = f"held={held} last_event_id={self.last_event_id!r} retry={self.retry}"
        return f"<{type(self).__name__} {state if self.error is None else 'error'}>"

    def feed(self, chunk: bytes) -> list[ServerSentEvent | Comment]:
        """Return the events, and comments if enabled, that `chunk` completes.

        If an event exceeds `max_event_bytes`, returns the items before it and sets `error`, a
        BufferLimitError; every later call raises `error`. Raises it at once if there are no items.
        """
        if self.error is not None:
            raise self.error
        if self.retries:
            self.retries = []
        items: list[ServerSentEvent | Comment] = []
        if self._is_between_events and chunk[-2:] == b"\n\n" and self._take_plain(chunk, items):
            return items
        if len(chunk) > SHORT_BYTES:
            self._take_long(chunk, items)
        else:
            self._take_chunk(chunk, items)
        return items

    def _take_plain(self, chunk: bytes, items: list[ServerSentEvent | Comment]) -> bool:
        """Take a chunk of nothing but events of one `data: ` line each. Returns False, and takes nothing, for others.

        The chunk comes between events, and ends with a blank line.
        """
        if chunk[:6] != b"data: " or len(chunk) > self._max:
            return False
        values = chunk[6:-2].split(b"\n\ndata: ")
        # Each separator is the end of one event and the begin of the next, if there is no other line end.
        joined = b"".join(values)
        if _LF in joined or _CR in joined:
            return False
        self._at_start = False
        self._has_fields = True
        last_id = self._id
        new, append = _new_event, items.append
        for value in values:
            event = new(ServerSentEvent)
            event.event = "message"
            try:
                event.data = value.decode()
            except UnicodeDecodeError:
                event.data = value.decode("utf-8", "replace")
            event.id = last_id
            event.retry = None
            append(event)
        return True

    def _take_long(self, chunk: bytes, items: list[ServerSentEvent | Comment]) -> None:
        """Take a chunk in up to three parts: the rest of a block, plain events, and the begin of a block."""
        begin = 0 if self._is_between_events else chunk.find(b"\n\n") + 2
        end = chunk.rfind(b"\n\n") + 2
        if begin == 1 or end <= begin:
            self._take_chunk(chunk, items)
            return
        if begin:
            self._take_chunk(chunk[:begin], items)
            if self.error is not None:
                return
        if not (self._is_between_events and self._take_plain(chunk[begin:end], items)):
            end = begin
        if end < len(chunk):
            self._take_chunk(chunk[end:], items)

    def _take_chunk(self, chunk: bytes, items: list[ServerSentEvent | Comment]) -> None:
        """Take a chunk of any kind, line by line."""
        self._is_between_events = False
        if self._at_start:
            chunk = self._without_bom(chunk)
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[0] == _LF:
                chunk = chunk[1:]
        # bytes.splitlines splits at CR, LF and CRLF only; str.splitlines splits at other characters too.
        lines = chunk.splitlines()
        if not lines:
            return
        last, tail = chunk[-1], b""
        if last == _CR:
            # The next chunk may begin with the LF of this CR. The line is complete: take it now and skip
            # the LF later. Waiting for the next byte would delay an event that has arrived.
            self._skip_lf = True
        elif last != _LF:
            tail = lines.pop()
        try:
            if lines:
                if self._tail:
                    lines[0] = self._with_tail(lines[0])
                if not self._has_fields:
                    self._has_fields = any(line and line.partition(b":")[0] in _NAMES for line in lines)
                # A chunk within the limit cannot contain a line beyond it.
                self._take_lines(lines if len(chunk) <= self._max else self._checked(lines), items)
            if tail:
                self._tail += tail
                if len(self._tail) > self._max:
                    raise BufferLimitError(self._max)
        except BufferLimitError as error:
            self.error = error
            if not items:
                raise
            return
        is_bare = self._event == "message" and self._retry is None and self._id == self.last_event_id
        self._is_between_events = is_bare and not tail and self._data is None and not self._skip_lf

    @property
    def has_fields(self) -> bool:
        """Whether any line so far, the incomplete one included, is a field of the format or a comment."""
        if self._has_fields:
            return True
        name, colon, _ = bytes(self._tail[:8]).partition(b":")
        return bool(colon) and name in _NAMES

    @property
    def is_between_blocks(self) -> bool:
        """Whether neither a block with data nor a line is incomplete."""
        return self._data is None and not self._tail

    def take_incomplete(self) -> tuple[ServerSentEvent, bool] | None:
        """Return the event of the last block, which the end of the stream left without its blank line.

        None if the block has no data. The standard drops this event. Its `id` is that of the last complete block.
        The second value says whether the event's last line is complete. Raises BufferLimitError.
        """
        line = bytes(self._tail)
        self._tail.clear()
        # Half an `id` or `retry` must not become the stream's position.
        is_torn = line.partition(b":")[0] in (b"data", b"event")
        if is_torn:
            self._take_lines([line], [])
        data, self._data = self._data, None
        if data is None:
            return None
        text = data.decode("utf-8", "replace")
        return ServerSentEvent(self._event, text, self.last_event_id, self._retry), not is_torn

    def _without_bom(self, chunk: bytes) -> bytes:
        rest = without_bom(self._tail, chunk)
        self._at_start = rest is None
        return rest or b""

    def _with_tail(self, end: bytes) -> bytes:
        """Return the line that begins in `_tail` and ends with `end`."""
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
        data, kind, last_id, retry = self._data, self._event, self._id, self._retry
        # Whether the block has no line so far that changes one of the others.
        is_bare = kind == "message" and retry is None and last_id == self.last_event_id
        new, append = _new_event, items.append
        for line in lines:
            if not line:
                if data is None and not is_bare and kind in self._end_types:
                    data = b""
                if data is not None:
                    event = new(ServerSentEvent)
                    event.event = kind
                    try:
                        event.data = data.decode()
                    except UnicodeDecodeError:  # rare; passing "replace" always would cost every event time
                        event.data = data.decode("utf-8", "replace")
                    event.id = last_id
                    event.retry = retry
                    append(event)
                    data = None
                if not is_bare:
                    self.last_event_id = last_id
                    kind, retry, is_bare = "message", None, True
                continue
            if line[:6] == b"data: ":  # most lines; without a space after the colon, the general case below applies
                data = line[6:] if data is None else self._joined(data, line[6:])
                continue
            name, _, value = line.partition(b": ")
            if name not in _NAMES:
                # No space after the colon, or an unknown name.
                name, _, value = line.partition(b":")
            if name == b"data":
                data = value if data is None else self._joined(data, value)
                continue
            is_bare = False
            if name == b"event":
                self.has_types = True
                kind = value.decode("utf-8", "replace") or "message"
            elif name == b"id":
                if _NUL not in value:
                    last_id = value.decode("utf-8", "replace")
            elif name == b"retry":
                # bytes.isdigit() accepts ASCII digits only. float() converts any number of digits.
                if value.isdigit():
                    seconds = float(value) / 1000
                    self.retry = retry = seconds if seconds < _MAX_RETRY_SECONDS else _MAX_RETRY_SECONDS
                    self.retries.append((len(items), retry))
            elif not name and self._comments:
                append(Comment(value.decode("utf-8", "replace")))
        self._data, self._event, self._id, self._retry = data, kind, last_id, retry

    def _joined(self, data: bytes | bytearray, value: bytes) -> bytes | bytearray:
        """Return an event's data with one more line appended."""
        if len(data) < SHORT_BYTES:
            data = data + b"\n" + value
        else:
            # Append in place: copying would take O(n²) time for an event of many lines.
            if type(data) is not bytearray:
                data = bytearray(data)
            data += b"\n"
            data += value
        if len(data) > self._max:
            raise BufferLimitError(self._max)
        return data
