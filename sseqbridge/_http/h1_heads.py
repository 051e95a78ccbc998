"""Sans-IO heads of HTTP/1.1 messages: write the head of a request, read the head of a response (RFC 9112).

The reader is lenient like curl and browsers where a fault cannot change where the body ends: lines may end in LF
alone, fields may be folded, up to two empty lines may come first, and a line that is not a field is skipped. It is
strict where two parsers could disagree about the end of the body (response smuggling): NUL, a bare CR, and every
malformed or folded line that names Content-Length or Transfer-Encoding are refused. tests/data/http_responses.json
holds the cases and the reasons. Everything else is read and refused as in h11, which the tests use as reference.

The project reads heads itself for two reasons: h11 refuses heads that browsers read, and as a state machine for
both sides of a connection it takes 47 instead of 24 microseconds of CPU for an exchange, which is a third of the
time of a short stream. Bodies are in h1_bodies.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .header_syntax import FORBIDDEN_IN_FETCH_VALUE_BYTES, LENGTH_BYTES, TOKEN_BYTES

__all__ = [
    "MAX_HEAD_BYTES",
    "FinalHeadReader",
    "Framing",
    "HeadError",
    "HeadReader",
    "Headers",
    "ResponseHead",
    "framing_of",
    "printable_reason",
    "write_head",
]

# The longest head that is read: httpcore's limit.
MAX_HEAD_BYTES = 100 * 1024

# The most interim responses (1xx): a server sends one or two.
_MAX_INTERIM_RESPONSES = 100

Headers = list[tuple[bytes, bytes]]

# The characters of a request target: printable ASCII.
_TARGET = re.compile(rb"[\x21-\x7e]+")
# In a received value. Other control characters do occur, for example in cookies.
_FORBIDDEN_IN_RECEIVED_VALUE = re.compile(rb"[\x00\n\x0b\x0c\r]")
# Parsers disagree whether these end a line (RFC 9110, section 5.5; RFC 9112, section 2.2).
_NUL_OR_CR = re.compile(rb"[\x00\r]")
# HTTP clients quote the reason phrase in logs and errors: it must not carry terminal escapes there.
_CONTROL_CHARACTERS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NO_LETTERS = re.compile(rb"[^a-z]+")

# As many bytes before the status line as Chromium skips.
_EMPTY_LINES = re.compile(rb"(?:\r?\n){0,2}")
_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/([0-9]\.[0-9]) ([0-9]{3})(?: ([^\x00\n\x0b\x0c\r]*))?")


# Lines that most responses of a server have in common, by their bytes, and their fields: none can hold a secret.
# Bounded; each step is atomic, and any thread would add the same entry.
_COMMON_FIELDS = frozenset(
    {b"cache-control", b"connection", b"content-type", b"server", b"transfer-encoding", b"vary", b"x-accel-buffering"}
)
_MAX_KNOWN_FIELDS = 128
_MAX_KNOWN_BYTES = 100
_known_fields: dict[bytes, tuple[bytes, bytes]] = {}


class HeadError(Exception):
    """A head that cannot be sent, or bytes that are not the head of an HTTP/1.1 response."""


def write_head(method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return the head of a request. Raises HeadError if method, target or a header would break the head's syntax."""
    if not TOKEN_BYTES.fullmatch(method):
        raise HeadError("the method must be a token, such as GET")
    if not _TARGET.fullmatch(target):
        raise HeadError("the target must be printable ASCII without spaces. Percent-encode other characters.")
    lines = [b"%s %s HTTP/1.1\r\n" % (method, target)]
    for name, value in headers:
        if not TOKEN_BYTES.fullmatch(name) or FORBIDDEN_IN_FETCH_VALUE_BYTES.search(value):
            # The message does not quote the header: its value may be a secret.
            raise HeadError("a header must have a token as name, and a value without NUL, CR and LF")
        lines.append(b"%s: %s\r\n" % (name, value))
    lines.append(b"\r\n")
    return b"".join(lines)


class Framing(NamedTuple):
    """How a message's header fields delimit its body.

    `length` is the Content-Length: None if there is none, or if the body is chunked. `keeps_alive`
    is False if the connection must not be reused after the message.
    """

    length: int | None
    is_chunked: bool
    keeps_alive: bool


class ResponseHead(NamedTuple):
    """A response's head: `http_version` is b"1.0" or b"1.1", `headers` are the fields as they were sent.

    Control characters of `reason` are replaced by spaces.
    """

    http_version: bytes
    status: int
    reason: bytes
    headers: Headers
    framing: Framing


class HeadReader:
    """Reads heads from the beginning of a peer's bytes; `rest` holds the bytes after the last head."""

    def __init__(self) -> None:
        self._data = bytearray()
        # The number of bytes at the beginning that hold no end of a head.
        self._searched = 0

    @property
    def rest(self) -> bytes:
        """The bytes after the last head that was read."""
        return bytes(self._data)

    def feed(self, data: bytes) -> ResponseHead | None:
        """Return the next head, None while it is incomplete.

        Raises HeadError if the bytes are not the head of a response, or longer than MAX_HEAD_BYTES.
        """
        self._data += data
        start = self._after_empty_lines() if self._data and self._data[0] <= 0x20 else 0
        match = _HEAD_END.search(self._data, max(self._searched, start))
        if match is None:
            # The last two bytes may be the beginning of the line ends that end the head.
            self._searched = max(len(self._data) - 2, 0)
            if len(self._data) > MAX_HEAD_BYTES:
                raise HeadError(f"the head must have at most {MAX_HEAD_BYTES} bytes")
            return None
        begin, end = match.span()
        del match  # It holds a reference to the data, which could not be cut then.
        head = bytes(self._data[start:begin])
        del self._data[:end]
        self._searched = 0
        return _head(head)

    def _after_empty_lines(self) -> int:
        """Return the index at which the status line begins, or will begin."""
        match = _EMPTY_LINES.match(self._data)
        assert match is not None
        start = match.end()
        following = bytes(self._data[start : start + 2])
        # A CR at the end of the data may be the first half of another empty line.
        if not following or following[0] > 0x20 or (following == b"\r" and match[0].count(b"\n") < 2):
            return start
        raise HeadError("a response must begin with its status line, got a blank, a control character or empty lines")


class FinalHeadReader(HeadReader):
    """A HeadReader that skips interim responses (1xx)."""

    _interim = 0

    def feed(self, data: bytes) -> ResponseHead | None:
        """Return the head of the final response, or of a 101; None while it is incomplete.

        Raises HeadError, also for too many interim responses.
        """
        head = super().feed(data)
        while head is not None and head.status < 200 and head.status != 101:
            self._interim += 1
            if self._interim > _MAX_INTERIM_RESPONSES:
                raise HeadError(f"the server sent more than {_MAX_INTERIM_RESPONSES} interim responses")
            head = super().feed(b"")
        return head


def _head(data: bytes) -> ResponseHead:
    first, *lines = data.replace(b"\r\n", b"\n").removesuffix(b"\r").split(b"\n")
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise HeadError("the first line must be a status line")
    version, status, reason = status_line.groups()
    if status < b"100" or version[:1] != b"1":
        raise HeadError("the status or version must be one of HTTP/1")
    if b"\n " in data or b"\n\t" in data:
        lines = _unfolded(lines)
    headers = []
    for line in lines:
        field = _known_fields.get(line) or _field(line)
        if field is not None:
            headers.append(field)
    framing = framing_of(headers, is_received=True)
    if version < b"1.1":
        framing = framing._replace(keeps_alive=False)
    return ResponseHead(version, int(status), printable_reason(reason or b""), headers, framing)


def printable_reason(reason: bytes) -> bytes:
    """Return a reason phrase with control characters replaced by spaces."""
    return _CONTROL_CHARACTERS.sub(b" ", reason)


def _unfolded(lines: list[bytes]) -> list[bytes]:
    """Return the lines with folded lines joined: a line that begins with a blank continues the previous one.

    Raises HeadError if a folded line names a framing field: a parser that does not unfold (RFC 9112, section 5.2)
    would read another body.
    """
    fields: list[list[bytes]] = []
    for line in lines:
        if not line.startswith((b" ", b"\t")):
            fields.append([line])
        elif fields:
            fields[-1].append(line.lstrip(b" \t"))
        else:
            raise HeadError("the first header line must not be folded")
    whole = [b" ".join(parts) for parts in fields]
    if any(len(parts) > 1 and _names_framing(line) for parts, line in zip(fields, whole, strict=True)):
        raise HeadError("Content-Length and Transfer-Encoding must stand on one line, got a folded line")
    return whole


def _field(line: bytes) -> tuple[bytes, bytes] | None:
    """Return the field on a line; None if the line is not a field and can be skipped."""
    name, colon, value = line.partition(b":")
    if not colon or not TOKEN_BYTES.fullmatch(name) or _FORBIDDEN_IN_RECEIVED_VALUE.search(value):
        if _NUL_OR_CR.search(line):
            raise HeadError("a header line must not contain NUL or a bare CR")
        if _names_framing(line):
            raise HeadError("a header line that names Content-Length or Transfer-Encoding must be well-formed")
        # Blanks before the colon do not belong to the name (RFC 9112, section 5.1).
        name = name.rstrip(b" \t")
        if not colon or not TOKEN_BYTES.fullmatch(name) or _FORBIDDEN_IN_RECEIVED_VALUE.search(value):
            return None
    field = name, value.strip(b" \t")
    if len(line) <= _MAX_KNOWN_BYTES and name.lower() in _COMMON_FIELDS and len(_known_fields) < _MAX_KNOWN_FIELDS:
        _known_fields[line] = field
    return field


def _names_framing(line: bytes) -> bool:
    """Whether a parser that ignores odd characters could find a framing field on the line."""
    letters = _NO_LETTERS.sub(b"", line.lower())
    return b"contentlength" in letters or b"transferencoding" in letters


def framing_of(headers: Headers, *, is_received: bool = False) -> Framing:
    """Return the framing of a message's body (RFC 9112, section 6.3).

    Raises HeadError for a Transfer-Encoding other than "chunked", for a Content-Length that is not one number, and
    for two Host headers. In a received message the Transfer-Encoding "identity" of RFC 2616 counts as none, no
    Content-Length counts beside "chunked", and the same length may be given several times.
    """
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] = []
    hosts = 0
    for name, value in headers:
        key = name.lower()
        if key == b"content-length":
            lengths += [part.strip(b" \t") for part in value.split(b",")]
        elif key == b"transfer-encoding":
            codings.append(value.lower())
        elif key == b"connection":
            connection += [token.strip() for token in value.lower().split(b",")]
        elif key == b"host":
            hosts += 1
    if hosts > 1 and not is_received:
        raise HeadError("Host must be given once at most")
    is_chunked = codings == [b"chunked"]
    if codings and not is_chunked and not (is_received and set(codings) == {b"identity"}):
        raise HeadError("Transfer-Encoding must be chunked")
    count = len(set(lengths) if is_received else lengths)
    is_one_number = count <= 1 and all(map(LENGTH_BYTES.fullmatch, lengths))
    if not is_one_number and not (is_received and is_chunked):
        raise HeadError("Content-Length must be one number of at most 18 digits")
    length = int(lengths[0]) if lengths and not is_chunked else None
    # With both fields, an intermediary may have found another end of the body, so the connection is not reused.
    return Framing(length, is_chunked, b"close" not in connection and not (codings and lengths))
