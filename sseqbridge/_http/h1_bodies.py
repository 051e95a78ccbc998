"""Sans-IO reading of HTTP/1.1 bodies: bytes of the connection in, bytes of the body out.

A body is chunked, has a known length, or ends with the connection (`body_reader`). Invariants: each `feed`
returns at once all body bytes in its data, joined, including those before a fault; and at most one line is held
back. Most servers send each event in a chunk of its own, so a chunk must cost next to nothing.

Heads are in h1_heads.py: the two share nothing but the `Framing` of a message.
"""

from __future__ import annotations

import re

__all__ = ["BodyReader", "ChunkedBody", "SizedBody", "UnboundedBody", "body_reader"]

# The longest line with a chunk's size and extensions, and the longest trailers.
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 16 * 1024

# A larger size overflows a signed 64-bit integer, so that another parser could read a smaller one.
# Blanks may stand before an extension (RFC 9112, section 7.1.1), and some servers pad the size with them.
_CHUNK_LINE = re.compile(rb"([0-7]?[0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")

# The length of a chunk's line end and the size line after it, if that chunk has 256 to 4095 bytes. The size line of
# a smaller chunk is shorter, and the last bytes of its key belong to the chunk.
_KEY_BYTES = 7
_MAX_KNOWN = 256
# Cache of the bytes between two chunks: from their first _KEY_BYTES to their length and the size of the next chunk.
# Streams have few different sizes, and a chunk of a known size costs one dictionary look-up. It is emptied when it is
# full. Each step is atomic, and any thread would add the same entry.
_known: dict[bytes, tuple[int, int]] = {}
_CR = 13
# The line end of the last chunk but one, the last chunk, and no trailers.
_END = b"\r\n0\r\n\r\n"


class _BodyError(Exception):
    pass


class BodyReader:
    """Separates a body from the bytes around it.

    `complete` is True once the end of the body was fed. `error` is the reason why the body cannot be completed;
    `is_cut_off` is True if the reason is the end of the connection. `rest` holds bytes after the body.
    """

    def __init__(self) -> None:
        self.complete = False
        self.error: str | None = None
        self.is_cut_off = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the part of `data` that belongs to the body."""
        raise NotImplementedError

    def end(self, *, abruptly: bool = False) -> None:
        """Record that the connection has ended; `abruptly` if TLS did not end before it."""
        if not self.complete and self.error is None:
            self.error = "peer closed connection without sending complete message body"
            self.is_cut_off = True


class UnboundedBody(BodyReader):
    """A body that ends with the connection."""

    def feed(self, data: bytes) -> bytes:
        """Return `data`."""
        return data

    def end(self, *, abruptly: bool = False) -> None:
        """Record that the connection, and with it the body, has ended.

        Without the end of TLS, an attacker or a fault may have cut the body off (RFC 9112, section 9.8).
        """
        if abruptly:
            super().end()
        else:
            self.complete = True


class SizedBody(BodyReader):
    """A body of `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size
        self.complete = size == 0

    def feed(self, data: bytes) -> bytes:
        """Return the part of `data` that belongs to the body."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data
        self._left = 0
        self.complete = True
        self.rest += data[left:]
        return data[:left]


class ChunkedBody(BodyReader):
    """A body in chunks, each after a line with its size; a chunk of size 0 is the last (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        super().__init__()
        # The missing bytes of the current chunk; once they are there, whether its line end is missing.
        self._left = 0
        self._lacks_line_end = False
        self._held = b""
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """Return the contents of the chunks in `data`."""
        if self._held == b"\r\n":
            # Between chunks, with the line end of the last one. Most reads are one more chunk of a known size, whose
            # line end then takes the place of the held one: nothing else changes.
            between = _known.get(b"\r\n" + data[: _KEY_BYTES - 2])
            if between is not None:
                begin = between[0] - 2
                end = begin + between[1]
                if len(data) == end + 2 and data[end:] == b"\r\n":
                    return data[begin:end]
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
        except _BodyError as exc:
            self.error = str(exc)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_chunks(self, data: bytes, pieces: list[bytes]) -> None:
        at = 0
        if self._left:
            at = self._left
            pieces.append(data[:at])
            self._left = 0
            self._lacks_line_end = True
        known, append, length = _known, pieces.append, len(data)
        last = length - 2
        while True:
            if self._lacks_line_end:
                while at < last and (between := known.get(data[at : at + _KEY_BYTES])) is not None:
                    length_of_line, size = between
                    begin = at + length_of_line
                    at = begin + size
                    append(data[begin:at])
                if at > length:
                    self._left = at - length
                    self._lacks_line_end = False
                    break
                if at == last and data.endswith(b"\r\n"):
                    # The usual end of a read: held back, so that the next size line is looked up in the cache.
                    self._held = b"\r\n"
                    break
            begin, size = self._after_line(data, at)
            if not size:
                break
            at = begin + size
            append(data[begin:at])
            self._lacks_line_end = True

    def _after_line(self, data: bytes, at: int) -> tuple[int, int]:
        """Return where the next chunk begins and its size; size 0 if its line is incomplete, or the last one."""
        begin = at
        if self._lacks_line_end:
            if data.startswith(_END, at):
                # The usual end. All others take the slow path.
                self._in_trailers = self.complete = True
                self.rest = data[at + len(_END) :]
                return 0, 0
            if len(data) - at < 2:
                self._hold_line_end(data[at:])
                return 0, 0
            if not data.startswith(b"\r\n", at):
                raise _BodyError("a chunk must not be longer than its size")
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
            raise _BodyError("a chunk must begin with its size in hexadecimal")
        size = int(match[1], 16)
        begin = line_end + 2
        if not size:
            self._in_trailers = True
            self._take_trailers(data[begin:])
        elif begin - at <= _KEY_BYTES and data[at] == _CR:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[data[at : at + _KEY_BYTES]] = begin - at, size
        return begin, size

    def _hold_line_end(self, data: bytes) -> None:
        if data not in (b"\r", b""):
            raise _BodyError("a chunk must not be longer than its size")
        self._held = data

    def _hold(self, data: bytes, limit: int) -> None:
        _check_lines(data.removesuffix(b"\r"), limit)
        self._held = data

    def _take_trailers(self, data: bytes) -> None:
        """Skip the fields after the last chunk, up to the empty line that ends the body."""
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
        raise _BodyError(f"a line of a chunked body, or its trailers, must have at most {limit} bytes")
    # RFC 9112, section 2.2 allows LF alone in heads; between chunks it has made parsers disagree about the end of
    # the body. (A regular expression would be slow on trailers that arrive byte by byte.)
    line_ends = data.count(b"\r\n")
    if data.count(b"\n") != line_ends or data.count(b"\r") != line_ends:
        raise _BodyError("the lines of a chunked body must end in CRLF, got a bare CR or LF")


def body_reader(method: str, status: int, *, length: int | None, is_chunked: bool) -> BodyReader:
    """Return the reader for a response's body (RFC 9112, section 6.3)."""
    if method == "HEAD" or status in (101, 204, 304):
        return SizedBody(0)
    if is_chunked:
        return ChunkedBody()
    return UnboundedBody() if length is None else SizedBody(length)
