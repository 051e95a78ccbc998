"""What h11 makes of an answer's head and of chunked bodies, to hold ours against."""

from __future__ import annotations

import re
from typing import Literal

import h11

from sseqbridge._heads import MAX_HEAD_BYTES

__all__ = ["MEANT_OF_BODIES", "MEANT_OF_HEADS", "Body", "Head", "as_h11_has_it", "body_by_h11", "head_by_h11"]

# Version, status, reason and fields of a head, and what came after it; or that it is refused; or
# None where it is not over.
Head = tuple[bytes, int, bytes, list[tuple[bytes, bytes]], bytes] | Literal["refused"] | None

# A body's bytes, what came after its end (None where that is not in), and whether a fault was found.
Body = tuple[bytes, bytes | None, bool]

_HEAD_END = re.compile(rb"\n\r?\n")

# Where ours and h11 differ about heads: h11 takes versions other than 1.x, and refuses a 101 that
# nobody has asked for, which ours reads as an answer.
MEANT_OF_HEADS = re.compile(rb"HTTP/[^1]|HTTP/1.. 101")

# Where ours and h11 differ about chunked bodies, each of which tests/test_framing.py names: blanks
# before an extension, control characters in one, too many digits, and anything but the empty line
# after the last chunk.
MEANT_OF_BODIES = re.compile(
    rb"[0-9A-Fa-f][ \t]+;|;[^\r\n]*[\x00-\x08\x0b-\x1f\x7f][^\n]|[0-9A-Fa-f]{17}|0[^\r\n]*\r\n(?!\r\n)"
)


def _asked() -> h11.Connection:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    return connection


def head_by_h11(data: bytes) -> Head:
    """Return what h11 makes of the beginning of an answer."""
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


def as_h11_has_it(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return fields with one Content-Length where several say the same, and chunked in lower case."""
    kept, lengths = [], 0
    for name, value in headers:
        if name.lower() == b"transfer-encoding":
            kept.append((name, value.lower()))
        elif name.lower() == b"content-length":
            lengths += 1
            if lengths == 1:
                kept.append((name, value.partition(b",")[0].strip()))
        else:
            kept.append((name, value))
    return kept


def body_by_h11(wire: bytes) -> Body:
    """Return what h11 makes of a chunked body."""
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
    return data, None, False
