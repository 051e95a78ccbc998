"""What is fuzzed: each target takes any bytes, and raises AssertionError where ours and the reference differ.

An input's first byte says in which chunks the rest of it comes, the second how it is read: by its
highest bit, whether bytes from 128 on stand for words, by the others what the target makes of them.
Nothing here knows the fuzzer, so that what is kept of its inputs is checked without it too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable

from sseqbridge._exceptions import BufferLimitError
from sseqbridge._http.h1 import ChunkedBody
from sseqbridge._http.heads import HeadError, HeadReader
from sseqbridge._sse import parser as _parser
from sseqbridge._sse.events import Comment, ServerSentEvent
from tests.http.reference_http import (
    MEANT_OF_BODIES,
    MEANT_OF_HEADS,
    Body,
    Head,
    as_h11_has_it,
    body_by_h11,
    head_by_reference,
)
from tests.sse.reference_parser import Parsed, parse

__all__ = ["SHORT_BYTES", "TARGETS", "Target"]

# In place of the parser's own number, so that short inputs reach both ways in which it joins lines.
SHORT_BYTES = 8

_IN_WORDS = 0x80


class Target:
    """A comparison: it is called with all of a stream, its chunks, and how they are to be read."""

    def __init__(self, compare: Callable[[bytes, list[bytes], int], None], words: Iterable[bytes]) -> None:
        self._compare = compare
        words = itertools.cycle(words)
        self._spelling = [bytes([byte]) if byte < 128 else next(words) for byte in range(256)]

    def stream(self, data: bytes) -> bytes:
        """Return what an input stands for."""
        if len(data) > 1 and data[1] & _IN_WORDS:
            return b"".join([self._spelling[byte] for byte in data[2:]])
        return data[2:]

    def check(self, data: bytes) -> None:
        """Raise AssertionError where what an input stands for is read in two ways."""
        if len(data) > 2:
            stream = self.stream(data)
            self._compare(stream, _cut(stream, _CHUNK_SIZES[data[0]]), data[1])

    def is_found(self, data: bytes) -> bool:
        """Whether an input is read in two ways, or raises."""
        try:
            self.check(data)
        except Exception:
            return True
        return False

    def shrunk(self, data: bytes) -> bytes:
        """Return a part of an input that is found, as short as may be and found as well."""
        for size in (16, 4, 1):
            at = 0
            while at < len(data):
                shorter = data[:at] + data[at + size :]
                if self.is_found(shorter):
                    data = shorter
                else:
                    at += size
        return data


def _sizes(seed: int) -> list[int]:
    choose = random.Random(seed)
    most = choose.choice((1, 5, 20, 20, 60, 60))
    return [choose.randint(0, most) for _ in range(choose.randint(1, 40))] + [1]


# By the first byte of an input: the sizes of its chunks, over and over.
_CHUNK_SIZES = [_sizes(seed) for seed in range(256)]


def _cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    chunks: list[bytes] = []
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(stream):
            break
        chunks.append(stream[at : at + size])
        at += size
    return chunks


# The parser, beside the text of the standard.

_LIMITS = (None, None, 8, 24)
_IDS = ("", "", "", "7")


def _compare_events(stream: bytes, chunks: list[bytes], how: int) -> None:
    """With and without comments, a limit, and an id that an earlier connection left."""
    comments, limit, last_event_id = bool(how & 2), _LIMITS[how >> 2 & 3], _IDS[how >> 4 & 3]
    expected = parse(stream, limit or float("inf"), last_event_id)
    if not comments:
        expected.items = [item for item in expected.items if type(item) is not Comment]
    for pieces in ([stream], chunks):
        parser = _parser.EventStreamParser(
            max_event_bytes=limit or _parser.DEFAULT_MAX_EVENT_BYTES,
            comments=comments,
            last_event_id=last_event_id,
        )
        assert _parsed(parser, pieces) == expected, pieces


def _parsed(parser: _parser.EventStreamParser, chunks: Iterable[bytes]) -> Parsed:
    items: list[ServerSentEvent | Comment] = []
    try:
        for chunk in chunks:
            items += parser.feed(chunk)
    except BufferLimitError:
        pass
    return Parsed(items, parser.last_event_id, parser.retry, parser.error is not None)


# Heads and chunked bodies, beside h11; where that reads them otherwise, and it is meant, in all chunks alike.


def _compare_heads(stream: bytes, chunks: list[bytes], how: int) -> None:
    told = _head([stream])
    assert _head(chunks) == told, chunks
    if not MEANT_OF_HEADS.match(stream):
        assert told == head_by_reference(stream), stream


def _head(chunks: list[bytes]) -> Head:
    reader = HeadReader()
    try:
        for index, chunk in enumerate(chunks):
            if (head := reader.feed(chunk)) is not None:
                rest = reader.rest + b"".join(chunks[index + 1 :])
                return head.http_version, head.status, head.reason, as_h11_has_it(head.headers), rest
    except HeadError:
        return "refused"
    return None


def _compare_bodies(stream: bytes, chunks: list[bytes], how: int) -> None:
    told = _body([stream])
    assert _body(chunks) == told, chunks
    if not MEANT_OF_BODIES.search(stream):
        assert told == body_by_h11(stream), stream


def _body(chunks: list[bytes]) -> Body:
    body = ChunkedBody()
    data = b"".join([body.feed(chunk) for chunk in chunks])
    return data, body.rest if body.complete else None, body.error is not None


TARGETS = {
    "parser": Target(
        _compare_events,
        [
            *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b": ", b" ", b"\0"),
            *(
                b"data",
                b"data:",
                b"data: ",
                b"event",
                b"event:",
                b"event: ",
                b"id",
                b"id:",
                b"id: ",
                b"retry",
                b"retry: ",
            ),
            *(
                b"data: a\n",
                b"data: b\n\n",
                b"data\n",
                b"event: e\r\n",
                b"id: 1\n",
                b"id\r",
                b"retry: 500\n",
                b": ping\n",
            ),
            *(b"retry: 9999999999999999\n", b"id: 2\0\n", b"Data: x\n", b" data: x\n", b"data : x\n"),
            *(b"\xef\xbb\xbf", b"\xef", b"\xbb\xbf", b"\xe2\x82", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\xf0\x9f"),
            *(
                b"\xff",
                b"\xc3",
                b"\xa9",
                b"\xed\xa0\x80",
                b"\xc2\x85",
                b"\x0b\x0c\x1c",
                b"x" * 7,
                b"y" * 20,
                b"0",
                b"7",
            ),
        ],
    ),
    "head": Target(
        _compare_heads,
        [
            *(
                b"HTTP/1.1 200 OK\r\n",
                b"HTTP/1.0 404 Not Found\n",
                b"HTTP/1.1 ",
                b"HTTP/1.1 204",
                b"200 ",
                b"\r\n\r\n",
                b"\n\n",
            ),
            *(b"\n", b"\r", b"\r\n", b" ", b"\t", b":", b"\0", b"\r\n ", b"\x0b", b"\x7f", b"\xe9"),
            *(
                b"Content-Length: ",
                b"content-length:5\r\n",
                b"Content-Length: 5, 5\r\n",
                b"A: b\r\n",
                b"a:\n",
                b"B : c\r\n",
            ),
            *(b"Transfer-Encoding: chunked\r\n", b"transfer-encoding: ", b"Chunked", b"gzip", b"Connection: close\r\n"),
        ],
    ),
    "framing": Target(
        _compare_bodies,
        [
            *(
                b"0\r\n\r\n",
                b"5\r\nhello\r\n",
                b"1\r\nx\r\n",
                b"A\r\n0123456789\r\n",
                b"00\r\n",
                b"0\r\nA: 1\r\n\r\n",
                b"0\r\n",
            ),
            *(
                b"\r\n",
                b"\r",
                b"\n",
                b";",
                b";a=b\r\n",
                b" ",
                b"\t",
                b"f",
                b"1",
                b"5",
                b"g",
                b"hello",
                b"\0",
                b"x" * 16,
            ),
        ],
    ),
}
