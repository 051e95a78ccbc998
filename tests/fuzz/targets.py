"""The targets: each accepts any bytes, and raises AssertionError if the library and the reference differ.

The first byte of an input selects the chunk sizes. The highest bit of the second byte selects whether bytes
from 128 on stand for words; its other bits select options of the target. The rest is the stream. This module
does not depend on the fuzzer, so that the corpus is also checked without it.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable

from sseqbridge._exceptions import BufferLimitError, SSEError
from sseqbridge._http.h1_bodies import ChunkedBody
from sseqbridge._http.h1_heads import HeadError, HeadReader
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.json_lines import JSONLinesParser
from sseqbridge._sse.parser import DEFAULT_MAX_EVENT_BYTES, EventStreamParser
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

# Replaces the parser's own threshold, so that short inputs reach both ways of joining lines.
SHORT_BYTES = 8

_IN_WORDS = 0x80


class Target:
    """A comparison, which is called with a stream, its chunks, and option bits."""

    def __init__(self, compare: Callable[[bytes, list[bytes], int], None], words: Iterable[bytes]) -> None:
        self._compare = compare
        words = itertools.cycle(words)
        self._spelling = [bytes([byte]) if byte < 128 else next(words) for byte in range(256)]

    def stream(self, data: bytes) -> bytes:
        """Return the stream that an input stands for."""
        if len(data) > 1 and data[1] & _IN_WORDS:
            return b"".join([self._spelling[byte] for byte in data[2:]])
        return data[2:]

    def check(self, data: bytes) -> None:
        """Raise AssertionError if the stream of an input is read differently."""
        if len(data) > 2:
            stream = self.stream(data)
            self._compare(stream, _cut(stream, _CHUNK_SIZES[data[0]]), data[1])

    def is_found(self, data: bytes) -> bool:
        """Return whether an input is read differently, or raises."""
        try:
            self.check(data)
        except Exception:
            return True
        return False

    def shrunk(self, data: bytes) -> bytes:
        """Return a short part of an input for which is_found() is still true."""
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


# The chunk sizes by the first byte of an input, repeated until the end of the stream.
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


# The parser, compared with the text of the standard.

_LIMITS = (None, None, 8, 24)
_IDS = ("", "", "", "7")
_END_EVENTS: tuple[tuple[str, ...], ...] = ((), ("e", "end", "x", "message"))


def _compare_events(stream: bytes, chunks: list[bytes], how: int) -> None:
    """With and without comments, a limit, an earlier connection's ID, end events; also in chunks of whole blocks."""
    comments, limit, last_event_id = bool(how & 2), _LIMITS[how >> 2 & 3], _IDS[how >> 4 & 3]
    end_events = _END_EVENTS[how >> 6 & 1]
    expected = parse(stream, limit or float("inf"), last_event_id, end_events)
    if not comments:
        expected.items = [item for item in expected.items if type(item) is not Comment]
    blocks = [block for block in re.split(rb"(?<=\n\n)", stream) if block]
    for pieces in ([stream], chunks, blocks):
        parser = EventStreamParser(
            max_event_bytes=limit or DEFAULT_MAX_EVENT_BYTES,
            comments=comments,
            last_event_id=last_event_id,
            end_events=end_events,
        )
        assert _parsed(parser, pieces) == expected, pieces


def _parsed(parser: EventStreamParser, chunks: Iterable[bytes]) -> Parsed:
    items: list[ServerSentEvent | Comment] = []
    try:
        for chunk in chunks:
            items += parser.feed(chunk)
    except BufferLimitError:
        pass
    return Parsed(items, parser.last_event_id, parser.retry, parser.error is not None)


# JSON Lines, compared with a split; JSON text sequences with the grammar of RFC 7464.

# The texts, a last one that is incomplete, and whether there was an error.
Lines = tuple[list[str], str, bool]

_BLANKS = " \t\r\n"


def _compare_lines(stream: bytes, chunks: list[bytes], how: int) -> None:
    limit = _LIMITS[how >> 2 & 3]
    body = stream.removeprefix(b"\xef\xbb\xbf")
    is_sequence = body.lstrip(_BLANKS.encode()).startswith(b"\x1e")
    if is_sequence:
        # How much of a document counts depends on when its end is known.
        expected, limit = _sequence_by_grammar(body), None
    else:
        expected = _lines_by_split(body, limit or len(body))
    for pieces in ([stream], chunks):
        parser = JSONLinesParser(max_event_bytes=limit or DEFAULT_MAX_EVENT_BYTES)
        got = _lines(parser, pieces)
        assert expected is None or got == expected, pieces


def _lines(parser: JSONLinesParser, chunks: Iterable[bytes]) -> Lines:
    texts: list[str] = []
    try:
        for chunk in chunks:
            texts += [event.data for event in parser.feed(chunk) if isinstance(event, ServerSentEvent)]
    except SSEError:
        pass
    if parser.error is not None:
        return texts, "", True
    rest, may_be_whole = parser.take_rest() or ("", False)
    return ([*texts, rest], "", False) if may_be_whole and _is_json(rest) else (texts, rest, False)


def _lines_by_split(body: bytes, limit: int) -> Lines:
    texts: list[str] = []
    *lines, last = body.split(b"\n")
    for line in lines:
        if len(line) > limit:
            return texts, "", True
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        if text.strip(_BLANKS):
            texts.append(text)
    if len(last) > limit:
        return texts, "", True
    text = last.removesuffix(b"\r").decode("utf-8", "replace")
    if not text.strip(_BLANKS):
        return texts, "", False
    return ([*texts, text], "", False) if _is_json(text) else (texts, text, False)


def _sequence_by_grammar(body: bytes) -> Lines | None:
    """Return what a sequence holds; None if a document that is no JSON has several lines, which may come apart."""
    texts: list[str] = []
    _, *elements = body.split(b"\x1e")
    for number, element in enumerate(elements, 1):
        text = element.decode("utf-8", "replace")
        stripped = text.strip(_BLANKS)
        if "\n" in stripped and not _is_json(stripped):
            return None
        is_cut = bool(stripped) and text[-1] not in _BLANKS and stripped[0] not in '{["'
        if number == len(elements) and (is_cut or not _is_json(stripped)):
            return texts, stripped, False
        if is_cut:
            return texts, "", True
        if stripped:
            texts.append(stripped)
    return texts, "", False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# Heads and chunked bodies, compared with h11; intended differences only with themselves in other chunks.


def _compare_heads(stream: bytes, chunks: list[bytes], how: int) -> None:
    result = _head([stream])
    assert _head(chunks) == result, chunks
    if not MEANT_OF_HEADS.match(stream):
        assert result == head_by_reference(stream), stream


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
    result = _body([stream])
    # As servers send them: the size line of a chunk, its content and its line end at a time.
    for pieces in (chunks, re.findall(rb"(?s:[^\n]*\n[^\n]*\n|.+)", stream)):
        assert _body(pieces) == result, pieces
    if not MEANT_OF_BODIES.search(stream):
        assert result == body_by_h11(stream), stream


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
    "lines": Target(
        _compare_lines,
        [
            *(b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"\t", b" \r\n", b"\x1e", b"\x1e\x1e", b"\n\x1e", b"\0"),
            *(b'{"a":1}\n', b'{"b":\n2}\n', b"[1,2]\r\n", b"12", b"true", b"null\n", b'"x"', b'"x\n', b'{"a":', b"}"),
            *(b"\x1e1\n", b'\x1e{"a":\n1}\n', b"\x1etrue", b"\x1e[\n1\n]", b'\x1e"x"\n', b"{", b"[", b"]", b'"', b","),
            *(b"\xef\xbb\xbf", b"\xef", b"\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b\x0c\x1c", b"\xff"),
            *(b"\xe2\x82", b"x" * 7, b"y" * 20, b"0", b"7", b"-", b"1e5"),
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
