"""Sans-IO heads of HTTP/1.1 messages: a request's is written, an answer's is read (RFC 9112).

What is read and what is refused is what h11 reads and refuses, which the tests hold it against:
lines may end in LF alone, and fields may be folded. h11 is a state machine for both sides of a
conversation, which is more than a transport of this kind needs: it took a third of the time of
a short stream.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["MAX_HEAD_BYTES", "AnswerHead", "Framing", "HeadError", "HeadReader", "framing_of", "write_head"]

# A peer that sends more than this before its head ends is none of ours. As httpcore has it.
MAX_HEAD_BYTES = 100 * 1024

Headers = list[tuple[bytes, bytes]]

_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
# Other control characters do occur, in cookies for one.
_BAD_IN_VALUE = re.compile(rb"[\x00\n\x0b\x0c\r]")

_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/([0-9]\.[0-9]) ([0-9]{3})(?: ([^\x00\n\x0b\x0c\r]*))?")
_LENGTH = re.compile(rb"[0-9]{1,20}")


class HeadError(Exception):
    """A head that cannot be sent, or that no peer of ours sends."""


def write_head(method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return a request's head. Raises HeadError for what would make more, or less, than one of it."""
    if not _TOKEN.fullmatch(method):
        raise HeadError("the method is no token")
    if not _TARGET.fullmatch(target):
        raise HeadError("the target has a character that no URL has")
    lines = [b"%s %s HTTP/1.1\r\n" % (method, target)]
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _BAD_IN_VALUE.search(value):
            # No more of it: the value may be a secret.
            raise HeadError("a header that cannot be sent")
        lines.append(b"%s: %s\r\n" % (name, value))
    lines.append(b"\r\n")
    return b"".join(lines)


class Framing(NamedTuple):
    """What the fields of a message say of its body.

    `length` is the Content-Length, None where there is none or the body is chunked; `keeps_alive`
    is False where the sender closes the connection after it.
    """

    length: int | None
    is_chunked: bool
    keeps_alive: bool


class AnswerHead(NamedTuple):
    """An answer's head: `http_version` is b"1.0" or b"1.1", `headers` are as they were sent."""

    http_version: bytes
    status: int
    reason: bytes
    headers: Headers
    framing: Framing


class HeadReader:
    """Reads heads from the beginning of what a peer sends; `rest` is what came after the last one."""

    def __init__(self) -> None:
        self._data = bytearray()
        # So much of it has no head's end in it.
        self._searched = 0

    @property
    def rest(self) -> bytes:
        """What no head was read from so far."""
        return bytes(self._data)

    def feed(self, data: bytes) -> AnswerHead | None:
        """Return the next head, None while it is not whole.

        Raises HeadError for what is no head of an answer, or longer than MAX_HEAD_BYTES.
        """
        self._data += data
        if self._data and self._data[0] <= 0x20:
            raise HeadError("an answer does not begin with a blank or a line end")
        match = _HEAD_END.search(self._data, self._searched)
        if match is None:
            # The end may have begun.
            self._searched = max(len(self._data) - 2, 0)
            if len(self._data) > MAX_HEAD_BYTES:
                raise HeadError("the head is too long")
            return None
        begin, end = match.span()
        del match  # Which would keep the data from being cut.
        head = bytes(self._data[:begin])
        del self._data[:end]
        self._searched = 0
        return _head(head)


def _head(data: bytes) -> AnswerHead:
    first, *lines = data.replace(b"\r\n", b"\n").removesuffix(b"\r").split(b"\n")
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise HeadError("the first line is no status line")
    version, status, reason = status_line.groups()
    if status < b"100" or version[:1] != b"1":
        raise HeadError("a status or version that HTTP/1.1 does not have")
    headers = [_field(line) for line in _unfolded(lines)]
    framing = framing_of(headers)
    if version < b"1.1":
        framing = framing._replace(keeps_alive=False)
    return AnswerHead(version, int(status), reason or b"", headers, framing)


def _unfolded(lines: list[bytes]) -> list[bytes]:
    """Return the lines with each that begins with a blank appended to the one before it."""
    if not any(line.startswith((b" ", b"\t")) for line in lines):
        return lines
    whole: list[bytes] = []
    for line in lines:
        if not line.startswith((b" ", b"\t")):
            whole.append(line)
        elif whole:
            whole[-1] += b" " + line.lstrip(b" \t")
        else:
            raise HeadError("the first field is the rest of another")
    return whole


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name) or _BAD_IN_VALUE.search(value):
        raise HeadError("a line that is no field")
    return name, value.strip(b" \t")


def framing_of(headers: Headers) -> Framing:
    """Return what the fields say of the body. Raises HeadError where they say what cannot be."""
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    connection: list[bytes] = []
    for name, value in headers:
        key = name.lower()
        if key == b"content-length":
            lengths.update(part.strip() for part in value.split(b","))
        elif key == b"transfer-encoding":
            codings.append(value.lower())
        elif key == b"connection":
            connection += [token.strip() for token in value.lower().split(b",")]
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise HeadError("a Content-Length that is none")
    if codings not in ([], [b"chunked"]):
        raise HeadError("a Transfer-Encoding that is not chunked")
    # Where there are both, the chunks say where the body ends.
    length = int(lengths.pop()) if lengths and not codings else None
    return Framing(length, bool(codings), b"close" not in connection)
