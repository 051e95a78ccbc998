"""Sans-IO framing of HTTP/1.1 bodies: bytes of the connection in, bytes of the body out.

A body is chunked, of a known length, or ends with the connection (`framing_for`). Two rules: each
`feed` returns at once all bytes of the body in its data, the chunks joined, also those before a
fault; and no more than one line is ever held back.

Most servers send each event in a chunk of its own, so a chunk must cost next to nothing.
"""

from __future__ import annotations

import re

__all__ = ["ChunkedBody", "Framing", "SizedBody", "UnboundedBody", "framing_for"]

# A chunk's size with its extensions, and all trailers: nobody sends more for a good reason.
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 16 * 1024

# A larger size overflows a signed 64-bit integer, so that another parser could read a smaller one.
# Blanks may stand before an extension (RFC 9112, section 7.1.1), and some servers pad the size with them.
_CHUNK_LINE = re.compile(rb"([0-7]?[0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")

# As long as the line end of a chunk and the line before the next, where that has 256 to 4095 bytes.
# The line of a smaller one is shorter, and its key has a byte or two of the chunk at its end.
_KEY_BYTES = 7
_MAX_KNOWN = 256
_CR = 13


class _FramingError(Exception):
    pass


class Framing:
    """How a body is told from what is around it.

    `complete` is True once its end is in, `error` says what is wrong where it cannot end any
    more; `rest` is what came after it, which nobody asked for.
    """

    def __init__(self) -> None:
        self.complete = False
        self.error: str | None = None
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return what `data` holds of the body."""
        raise NotImplementedError

    def end(self) -> None:
        """Take note that the connection has ended."""
        if not self.complete and self.error is None:
            self.error = "peer closed connection without sending complete message body"


class UnboundedBody(Framing):
    """A body that ends with the connection."""

    def feed(self, data: bytes) -> bytes:
        """Return `data`."""
        return data

    def end(self) -> None:
        """Take note that the connection, and so the body, has ended."""
        self.complete = True


class SizedBody(Framing):
    """A body of so many bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size
        self.complete = size == 0

    def feed(self, data: bytes) -> bytes:
        """Return as much of `data` as belongs to the body."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data
        self._left = 0
        self.complete = True
        self.rest += data[left:]
        return data[:left]


class ChunkedBody(Framing):
    """A body in chunks, each after a line that gives its size; a chunk of no size is the last."""

    def __init__(self) -> None:
        super().__init__()
        # Of the chunk that is under way: its bytes still to come, then whether its line end is.
        self._left = 0
        self._lacks_line_end = False
        self._held = b""
        self._in_trailers = False
        # What has stood between two chunks so far, by its first bytes: its length, and the size that
        # it gives. Few sizes make up most of a stream, and to look one up is all that they cost then.
        self._known: dict[bytes, tuple[int, int]] = {}

    def feed(self, data: bytes) -> bytes:
        """Return what the chunks hold, without what is around them."""
        if self._left > len(data):
            self._left -= len(data)
            return data
        if self.error is not None:
            return b""
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        try:
            if self.complete or self._in_trailers:
                self._take_trailers(data)
            else:
                self._take_chunks(data, pieces)
        except _FramingError as exc:
            self.error = str(exc)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_chunks(self, data: bytes, pieces: list[bytes]) -> None:
        at = 0
        if self._left:
            at = self._left
            pieces.append(data[:at])
            self._left = 0
            self._lacks_line_end = True
        known, length = self._known, len(data)
        while True:
            between = known.get(data[at : at + _KEY_BYTES]) if self._lacks_line_end else None
            if between is not None:
                skipped, size = between
                begin = at + skipped
            else:
                begin, size = self._after_line(data, at)
                if not size:
                    break
            at = begin + size
            pieces.append(data[begin:at])
            if at > length:
                self._left = at - length
                self._lacks_line_end = False
                break
            self._lacks_line_end = True
            if at + 2 == length and data.endswith(b"\r\n"):
                # The usual end of a read, kept for what comes next: with that it is looked up.
                self._held = b"\r\n"
                break

    def _after_line(self, data: bytes, at: int) -> tuple[int, int]:
        """Return where the next chunk begins and its size, which is 0 where there is none yet."""
        begin = at
        if self._lacks_line_end:
            if len(data) - at < 2:
                self._hold_line_end(data[at:])
                return 0, 0
            if not data.startswith(b"\r\n", at):
                raise _FramingError("a chunk longer than its size")
            begin += 2
        self._lacks_line_end = False
        line_end = data.find(b"\r\n", begin)
        if line_end < 0:
            self._hold(data[begin:], _MAX_LINE_BYTES)
            return 0, 0
        line = data[begin:line_end]
        match = _CHUNK_LINE.fullmatch(line)
        if match is None or len(line) > _MAX_LINE_BYTES:
            _check_lines(line, _MAX_LINE_BYTES)
            raise _FramingError("a chunk without its size")
        size = int(match[1], 16)
        begin = line_end + 2
        if not size:
            self._in_trailers = True
            self._take_trailers(data[begin:])
        elif begin - at <= _KEY_BYTES and data[at] == _CR and len(self._known) < _MAX_KNOWN:
            self._known[data[at : at + _KEY_BYTES]] = begin - at, size
        return begin, size

    def _hold_line_end(self, data: bytes) -> None:
        if data not in (b"\r", b""):
            raise _FramingError("a chunk longer than its size")
        self._held = data

    def _hold(self, data: bytes, limit: int) -> None:
        _check_lines(data.removesuffix(b"\r"), limit)
        self._held = data

    def _take_trailers(self, data: bytes) -> None:
        """Pass over the fields after the last chunk, to the empty line that ends the body."""
        if self.complete:
            self.rest += data
        elif data.startswith(b"\r\n"):
            self.complete, self.rest = True, data[2:]
        elif (end := data.find(b"\r\n\r\n")) >= 0:
            _check_lines(data[: end + 2], _MAX_TRAILER_BYTES)
            self.complete, self.rest = True, data[end + 4 :]
        else:
            self._hold(data, _MAX_TRAILER_BYTES)


def _check_lines(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise _FramingError("a line too long")
    # RFC 9112, section 2.2 allows LF alone in heads; in the lines between chunks it has let parsers
    # disagree about the end of the body. (A regular expression would be slow on trailers that drip in.)
    line_ends = data.count(b"\r\n")
    if data.count(b"\n") != line_ends or data.count(b"\r") != line_ends:
        raise _FramingError("the lines of a chunked body must end in CRLF, got a bare CR or LF")


def framing_for(method: str, status: int, *, length: int | None, is_chunked: bool) -> Framing:
    """Return the framing of an answer's body (RFC 9112, section 6.3)."""
    if method == "HEAD" or status in (101, 204, 304):
        return SizedBody(0)
    if is_chunked:
        return ChunkedBody()
    return UnboundedBody() if length is None else SizedBody(length)
