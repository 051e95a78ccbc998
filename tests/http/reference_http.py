"""References for response heads and chunked bodies: h11, and the intended differences from it."""

from __future__ import annotations

import re
from typing import Literal

import h11

from sseqbridge._http.h1_heads import MAX_HEAD_BYTES

__all__ = [
    "MEANT_OF_BODIES",
    "MEANT_OF_HEADS",
    "Body",
    "Head",
    "as_h11_has_it",
    "body_by_h11",
    "head_by_h11",
    "head_by_reference",
]

# Version, status, reason and fields of a head, and the bytes after it; "refused"; or None if the head is incomplete.
Head = tuple[bytes, int, bytes, list[tuple[bytes, bytes]], bytes] | Literal["refused"] | None

# A body's bytes, the bytes after its end (None if it is incomplete), and whether a fault was found.
Body = tuple[bytes, bytes | None, bool]

_HEAD_END = re.compile(rb"\n\r?\n")

# Heads that the library and the reference read differently: h11 accepts versions other than 1.x, and refuses an
# unrequested 101, which the transport does after it has read the head.
MEANT_OF_HEADS = re.compile(rb"[\r\n]*HTTP/(?:[^1]|1.. 101)")

# Chunked bodies that the library and h11 read differently, each also a test in tests/http/test_h1_bodies.py:
# blanks before an extension, control characters in one, a size that overflows a signed 64-bit
# integer, and anything but the empty line after the last chunk.
MEANT_OF_BODIES = re.compile(
    rb"[0-9A-Fa-f][ \t]+;|;[^\r\n]*[\x00-\x08\x0b-\x1f\x7f][^\n]"
    rb"|[0-9A-Fa-f]{17}|[89A-Fa-f][0-9A-Fa-f]{15}|0[^\r\n]*\r\n(?!\r\n)"
)

_EMPTY_LINES = re.compile(rb"(?:\r?\n){0,2}")
_FIELD = re.compile(rb"([-!#$%&'*+.^_`|~\w]+)[ \t]*(:[^\0\r\n\x0b\x0c]*)", re.ASCII)
_FRAMING = re.compile(rb"contentlength|transferencoding")
_NAMES_CODING = re.compile(rb"(?i)transfer-encoding:")
_NAMES_LENGTH = re.compile(rb"(?i)content-length:")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")


def _asked() -> h11.Connection:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    return connection


def head_by_h11(data: bytes) -> Head:
    """Read the beginning of a response with h11."""
    connection = _asked()
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return "refused"
    if event is h11.NEED_DATA:
        return None
    assert isinstance(event, (h11.Response, h11.InformationalResponse))
    end = _HEAD_END.search(data)
    assert end is not None
    return event.http_version, event.status_code, event.reason, event.headers.raw_items(), data[end.end() :]


def head_by_reference(data: bytes) -> Head:
    """Read a response with h11, after repairing its head like the library."""
    empty = _EMPTY_LINES.match(data)
    assert empty is not None
    start = empty.end()
    end = _HEAD_END.search(data, start)
    if end is None:
        # A CR may be the first half of an empty line.
        is_begun = data[start:] in (b"", b"\r") if empty[0].count(b"\n") < 2 else start == len(data)
        return None if is_begun else head_by_h11(data[start:])
    first, *lines = re.split(rb"\r?\n", data[start : end.end()])[:-2]
    repaired = _repaired(lines)
    if repaired is None:
        return "refused"
    return head_by_h11(b"\r\n".join([first, *repaired, b"", b""]) + data[end.end() :])


def _repaired(lines: list[bytes]) -> list[bytes] | None:
    """Return the lines that are fields or that h11 refuses; None if the library refuses a head that h11 reads."""
    fields: list[bytes] = []
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            if not fields:
                return None
            fields[-1] += b" " + line.lstrip(b" \t")
            if _is_about_framing(fields[-1]):
                return None
        else:
            fields.append(line)
    kept: list[bytes] = []
    for line in fields:
        match = _FIELD.fullmatch(line)
        if match is not None and match[0] == match[1] + match[2]:
            kept.append(line)
        elif b"\0" in line or b"\r" in line or _is_about_framing(line):
            return None
        elif match is not None:
            kept.append(match[1] + match[2])
    codings = [line.partition(b":")[2].strip(b" \t").lower() for line in kept if _NAMES_CODING.match(line)]
    if codings == [b"chunked"]:
        return [line for line in kept if not _NAMES_LENGTH.match(line)]
    if any(_NAMES_LENGTH.match(line) and re.search(rb"[0-9]{19}", line) for line in kept):
        return None
    if set(codings) == {b"identity"}:
        kept = [line for line in kept if not _NAMES_CODING.match(line)]
    return kept


def _is_about_framing(line: bytes) -> bool:
    return _FRAMING.search(re.sub(rb"[^a-z]", b"", line.lower())) is not None


def as_h11_has_it(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return fields with equal Content-Lengths merged, chunked in lower case, and without identity.

    Beside chunked there is no Content-Length.
    """
    is_chunked = any(name.lower() == b"transfer-encoding" and value.lower() == b"chunked" for name, value in headers)
    kept, lengths = [], 0
    for name, value in headers:
        if name.lower() == b"transfer-encoding":
            if value.lower() != b"identity":
                kept.append((name, value.lower()))
        elif name.lower() == b"content-length":
            lengths += 1
            if lengths == 1 and not is_chunked:
                kept.append((name, value.partition(b",")[0].strip()))
        else:
            kept.append((name, value))
    return kept


def body_by_h11(wire: bytes) -> Body:
    """Read a chunked body with h11; a bare CR or LF in an incomplete line is a fault at once."""
    connection = _asked()
    connection.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    data = b""
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.EndOfMessage):
                return data, connection.trailing_data[0], False
            if isinstance(event, h11.Data):
                data += event.data
    except h11.RemoteProtocolError:
        return data, None, True
    return data, None, _BARE_LINE_END.search(connection.trailing_data[0]) is not None
