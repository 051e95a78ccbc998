"""The parser: the events of a stream, in chunks of any size, and its limits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sseqbridge._exceptions import BufferLimitError
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.parser import DEFAULT_MAX_EVENT_BYTES, EventStreamParser

from .reference_parser import Parsed, parse
from .vectors import VECTORS, Vector

Items = list[ServerSentEvent | Comment | str]

PLAIN_VECTORS = [vector for vector in VECTORS if b"\r" not in vector.stream]


def feed(parser: EventStreamParser, chunks: Iterable[bytes]) -> Items:
    return [item for chunk in chunks for item in parser.feed(chunk)]


def single_bytes(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def splits_in_two(stream: bytes) -> Iterable[list[bytes]]:
    return ([stream[:cut], stream[cut:]] for cut in range(len(stream) + 1))


def chunkings(stream: bytes) -> Iterable[list[bytes]]:
    """Yield the stream whole, byte by byte, with empty chunks in between, and cut in two at every place."""
    yield [stream]
    yield single_bytes(stream)
    yield [chunk for byte in single_bytes(stream) for chunk in (b"", byte)]
    yield from splits_in_two(stream)


def assert_parses_as(vector: Vector, stream: bytes) -> None:
    for chunks in chunkings(stream):
        parser = EventStreamParser()
        assert feed(parser, chunks) == vector.events
        assert parser.last_event_id == vector.last_event_id
        assert parser.retry == vector.retry


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_vector_parses_alike_in_all_chunks(vector: Vector) -> None:
    assert_parses_as(vector, vector.stream)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [b"\r", b"\r\n"], ids=["CR", "CRLF"])
@pytest.mark.parametrize("vector", PLAIN_VECTORS, ids=str)
def test_vector_parses_alike_with_other_line_ends(vector: Vector, ending: bytes) -> None:
    assert_parses_as(vector, vector.stream.replace(b"\n", ending))


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_comments_are_returned_if_enabled(vector: Vector) -> None:
    for chunks in chunkings(vector.stream):
        items = feed(EventStreamParser(comments=True), chunks)
        assert [item for item in items if isinstance(item, ServerSentEvent)] == vector.events
        assert [item.text for item in items if isinstance(item, Comment)] == (vector.comments or [])


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_reference_parser_agrees_with_the_vectors(vector: Vector) -> None:
    parsed = parse(vector.stream)
    assert [item for item in parsed.items if isinstance(item, ServerSentEvent)] == vector.events
    assert (parsed.last_event_id, parsed.retry) == (vector.last_event_id, vector.retry)


def test_every_format_test_of_the_web_platform_has_a_vector() -> None:
    # Except the tests of the Content-Type (format-mime-*), which the parser does not get.
    assert {vector.see for vector in VECTORS if vector.see} == {
        "format-bom",
        "format-bom-2",
        "format-comments",
        "format-data-before-final-empty-line",
        "format-field-data",
        "format-field-event",
        "format-field-event-empty",
        "format-field-id",
        "format-field-id-2",
        "format-field-id-3",
        "format-field-id-null",
        "format-field-parsing",
        "format-field-retry",
        "format-field-retry-bogus",
        "format-field-retry-empty",
        "format-field-unknown",
        "format-leading-space",
        "format-newlines",
        "format-null-character",
        "format-utf-8",
    }


def test_names_of_vectors_are_unique() -> None:
    assert len({vector.name for vector in VECTORS}) == len(VECTORS)


# When items are returned.


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_event_is_returned_with_the_byte_that_completes_it(ending: bytes) -> None:
    parser = EventStreamParser()
    stream = b"data: a" + ending * 2
    # The CR of the final CRLF completes the blank line.
    complete = len(stream) - (ending == b"\r\n")
    for byte in single_bytes(stream[: complete - 1]):
        assert parser.feed(byte) == []
    assert parser.feed(stream[complete - 1 : complete]) == [ServerSentEvent(data="a")]
    assert parser.feed(stream[complete:]) == []
    assert parser.feed(b"data: b" + ending * 2) == [ServerSentEvent(data="b")]


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_comment_is_returned_when_its_line_ends(ending: bytes) -> None:
    parser = EventStreamParser(comments=True)
    assert parser.feed(b"data: a" + ending + b": pi") == []
    assert parser.feed(b"ng" + ending[:1]) == [Comment("ping")]
    assert parser.feed(ending[1:] + ending) == [ServerSentEvent(data="a")]


def test_last_event_id_changes_with_the_blank_line() -> None:
    parser = EventStreamParser()
    parser.feed(b"id: 1\ndata: a\n")
    assert parser.last_event_id == ""
    parser.feed(b"\n")
    assert parser.last_event_id == "1"


# Blocks without data: only those of the named types are events.
BARE = b"""event: end

event: x

id: 1
event: end

event: end
data: 1

event: end
event: x

: end

event: end
retry: 7
"""


def test_event_of_a_named_type_needs_no_data() -> None:
    expected = [
        ServerSentEvent("end", ""),
        ServerSentEvent("end", "", "1"),
        ServerSentEvent("end", "1", "1"),
        ServerSentEvent("end", "", "1", 0.007),
    ]
    for ending in (b"\n", b"\r", b"\r\n"):
        for chunks in chunkings((BARE + b"\n").replace(b"\n", ending)):
            assert feed(EventStreamParser(end_events=("end", "message")), chunks) == expected


def test_block_without_data_and_blank_line_is_no_event() -> None:
    for stream in (b"event: end\n", b"event: end"):
        parser = EventStreamParser(end_events=("end",))
        assert parser.feed(stream) == []
        taken = parser.take_incomplete()
        assert taken is None or taken[1] is False
    assert EventStreamParser(end_events=("message",)).feed(b"event:\n\nid: 1\n\n\n") == []


def test_initial_last_event_id_holds_until_another_arrives() -> None:
    parser = EventStreamParser(last_event_id="7")
    assert parser.last_event_id == "7"
    assert parser.feed(b"data: a\n\nid: 8\ndata: b\n\n") == [
        ServerSentEvent(data="a", id="7"),
        ServerSentEvent(data="b", id="8"),
    ]


# --- What the end of a stream, and retry fields, leave to the caller ---


def incomplete(stream: bytes) -> tuple[str, str, str, float | None, bool] | None:
    """Return the incomplete event and whether its last line is complete, the same for all chunks."""
    found = set()
    for chunks in chunkings(stream):
        parser = EventStreamParser(last_event_id="old")
        feed(parser, chunks)
        taken = parser.take_incomplete()
        found.add(None if taken is None else (*dataclasses.astuple(taken[0]), taken[1]))
        assert parser.take_incomplete() is None
    (only,) = found
    return only


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: 1\n", ("message", "1", "old", None, True)),
        (b"data: 1\r", ("message", "1", "old", None, True)),
        (b"data: 1", ("message", "1", "old", None, False)),
        (b"data", ("message", "", "old", None, False)),
        (b"data: 1\ndata: 2", ("message", "1\n2", "old", None, False)),
        (b"event: m\nid: new\nretry: 1500\ndata: 1\n", ("m", "1", "old", 1.5, True)),
        (b"id: a\ndata: 0\n\nid: b\ndata: 1\n", ("message", "1", "a", None, True)),
        (b"data: 1\nid: ne", ("message", "1", "old", None, True)),
        (b"data: 1\nretry: 15", ("message", "1", "old", None, True)),
        (b"data: 1\nevent: m", ("m", "1", "old", None, False)),
        (b"data: 1\n: comment", ("message", "1", "old", None, True)),
        (b"data: \xff\n", ("message", "\ufffd", "old", None, True)),
        (b"data: 1\n\n", None),
        (b"event: m\nid: 1\n", None),
        (b"dat", None),
        (b"\xef\xbb", None),
        (b"", None),
    ],
)
def test_incomplete_event_is_taken_at_the_end(
    stream: bytes, expected: tuple[str, str, str, float | None, bool] | None
) -> None:
    assert incomplete(stream) == expected


def test_half_a_position_is_not_taken_at_the_end() -> None:
    for stream in (b"data: 1\nid: ne", b"data: 1\nretry: 15"):
        parser = EventStreamParser(last_event_id="old")
        parser.feed(stream)
        parser.take_incomplete()
        assert (parser.last_event_id, parser.retry) == ("old", None)


def test_incomplete_event_over_the_limit_is_refused() -> None:
    parser = EventStreamParser(max_event_bytes=8)
    assert parser.feed(b"data: 1\ndata: 2\ndata: 3\ndata: 4\nda") == []
    parser.feed(b"ta: 5")
    with pytest.raises(BufferLimitError):
        parser.take_incomplete()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        *[(b"data: 1\n", True), (b"data", False), (b"data:", True), (b"data\n", True), (b": ping", True), (b":", True)],
        *[(b"id: 1", True), (b"retry: x\n", True), (b"event\r", True), (b"\xef\xbb\xbfdata: 1", True)],
        *[(b"", False), (b"\n\r\n\n", False), (b'{"data": 1}\n', False), (b"dataset: 1\n", False)],
        *[(b"Data: 1\n", False), (b" data: 1\n", False), (b"data :1\n", False), (b"error: 1\n\n: late", True)],
    ],
)
def test_parser_knows_whether_any_line_is_of_the_format(stream: bytes, expected: bool) -> None:
    for chunks in chunkings(stream):
        parser = EventStreamParser()
        feed(parser, chunks)
        assert parser.has_fields is expected


def test_types_of_events_are_noticed() -> None:
    parser = EventStreamParser()
    parser.feed(b"data: 1\n\n")
    assert not parser.has_types
    parser.feed(b"event: m\n")
    assert parser.has_types


def test_retries_of_a_chunk_have_their_places() -> None:
    parser = EventStreamParser()
    parser.feed(b"retry: 1000\n\ndata: 1\n\nretry: x\nretry: 2000\ndata: 2\n\ndata: 3\n\nretry: 3000\n")
    assert parser.retries == [(0, 1.0), (1, 2.0), (3, 3.0)]
    parser.feed(b"data: 4\n\n")
    assert (parser.retries, parser.retry) == ([], 3.0)


def test_reconnection_time_may_have_any_length() -> None:
    # int() refuses more than 4,300 digits, and float division of a large int overflows.
    parser = EventStreamParser()
    [event] = parser.feed(b"retry: " + b"9" * 5000 + b"\ndata: a\n\n")
    assert isinstance(event, ServerSentEvent)
    assert event.data == "a"
    assert parser.retry is not None
    assert parser.retry > 10**9


# Limits.

LIMIT = 12

REFUSED = {
    "one line too long by a byte": b"data: 1234567\n\n",
    "a line too long that never ends": b"data: 1234567",
    "a comment too long by a byte": b": 12345678901\n",
    "an unknown field too long by a byte": b"unknown: 1234\n",
    "data of two lines too large by a byte": b"data: 123456\ndata: 123456\n\n",
    "data of many empty lines": b"data\n" * 14 + b"\n",
    "a BOM before a line too long by a byte": b"\xef\xbb\xbfdata: 1234567\n\n",
}
ALLOWED = {
    "one line exactly at the limit": b"data: 123456\n\n",
    "a line exactly at the limit that has not ended": b"data: 123456",
    "a comment exactly at the limit": b": 1234567890\n",
    "data of two lines exactly at the limit": b"data: 123456\ndata: 12345\n\n",
    "empty lines exactly at the limit": b"data\n" * 13 + b"\n",
    "a BOM, which is no part of the line": b"\xef\xbb\xbfdata: 123456\n\n",
    "a CRLF, which is no part of the line": b"data: 123456\r\n\r\n",
    "many events": b"data: 123456\n\n" * 20,
    "many fields that are not data": b"id: 1\nevent: a\n: c\n" * 20,
}


def read(chunks: Iterable[bytes], limit: int) -> tuple[Items, bool]:
    """Return the items before the refusal, and whether the stream is refused."""
    parser = EventStreamParser(max_event_bytes=limit, comments=True)
    items: Items = []
    for chunk in chunks:
        try:
            items += parser.feed(chunk)
        except BufferLimitError as error:
            return items, error is parser.error and error.limit == limit
    return items, parser.error is not None


@pytest.mark.parametrize("stream", REFUSED.values(), ids=list(REFUSED))
def test_event_over_the_limit_is_refused_in_all_chunks(stream: bytes) -> None:
    for chunks in chunkings(stream):
        assert read(chunks, LIMIT) == ([], True)


@pytest.mark.parametrize("stream", ALLOWED.values(), ids=list(ALLOWED))
def test_event_up_to_the_limit_is_read_in_all_chunks(stream: bytes) -> None:
    expected = read([stream], 1000)
    for chunks in chunkings(stream):
        assert read(chunks, LIMIT) == expected


@pytest.mark.parametrize("stream", REFUSED.values(), ids=list(REFUSED))
def test_events_before_a_refused_one_are_returned_first(stream: bytes) -> None:
    stream = b": hi\n\nid: 1\ndata: a\n\n" + stream.removeprefix(b"\xef\xbb\xbf") + b"\n\ndata: b\n\n"
    for chunks in chunkings(stream):
        assert read(chunks, LIMIT) == ([Comment("hi"), ServerSentEvent(data="a", id="1")], True)


def test_long_chunk_ends_where_its_first_blocks_rest_is_refused() -> None:
    parser = EventStreamParser(max_event_bytes=2000, comments=True)
    assert parser.feed(b"data: 1\n") == []
    chunk = b": comment\ndata: " + b"x" * 2000 + b"\n\ndata: 2\n\n"
    assert parser.feed(chunk) == [Comment("comment")]
    assert isinstance(parser.error, BufferLimitError)


def test_line_too_long_is_refused_before_it_ends() -> None:
    parser = EventStreamParser(max_event_bytes=LIMIT)
    parser.feed(b"data: 123456")
    with pytest.raises(BufferLimitError):
        parser.feed(b"7")


def test_refusal_repeats_and_nothing_follows() -> None:
    parser = EventStreamParser(max_event_bytes=LIMIT)
    assert parser.feed(b"data: a\n\ndata: 1234567\n\ndata: b\n\n") == [ServerSentEvent(data="a")]
    error = parser.error
    for chunk in (b"", b"data: c\n\n"):
        with pytest.raises(BufferLimitError) as raised:
            parser.feed(chunk)
        assert raised.value is error


def test_default_limit_allows_events_of_14_megabytes() -> None:
    # Also where every line end is one of its own, and counted.
    assert DEFAULT_MAX_EVENT_BYTES > 2 * 14_000_000


# --- cost: each of these takes minutes where a step is quadratic, and the time limit fails it ---


@pytest.mark.slow
def test_event_of_many_lines_takes_linear_time() -> None:
    line = b"x" * 400
    parser = EventStreamParser()
    [event] = parser.feed(b"data:" + line + (b"\ndata:" + line) * 59_999 + b"\n\n")
    assert isinstance(event, ServerSentEvent)
    assert event.data == "\n".join([line.decode()] * 60_000)


def test_event_of_many_lines_in_small_chunks_takes_linear_time() -> None:
    stream = b"data:\n" * 60_000 + b"\n"
    parser = EventStreamParser()
    [event] = feed(parser, [stream[at : at + 7] for at in range(0, len(stream), 7)])
    assert event == ServerSentEvent(data="\n" * 59_999)


@pytest.mark.slow
def test_line_of_14_megabytes_in_small_chunks_takes_linear_time() -> None:
    value = b"0123456789abcdef" * (14_000_000 // 16)
    stream = b"data: " + value + b"\n\n"
    parser = EventStreamParser()
    [event] = feed(parser, [stream[at : at + 512] for at in range(0, len(stream), 512)])
    assert isinstance(event, ServerSentEvent)
    # Not compared with ==: to explain a difference pytest would print both.
    assert len(event.data) == len(value)
    assert hash(event.data) == hash(value.decode())


# --- any bytes, in any chunks ---

PIECES = [
    *(b"data", b"event", b"id", b"retry", b"ping", b"x", b"0", b"1", b"500"),
    *(b"data:", b"data: ", b"id: ", b"event:", b"retry:", b":", b": ", b" ", b"\t"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\x0b", b"\x1c"),
    *(b"\xef\xbb\xbf", b"\xef", b"\xe2\x80\xa8", b"\xe2\x82", b"\xf0\x9f", b"\xff", b"\xc2\x85", b"\xd9\xa1"),
]
shreds = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join) | st.binary(max_size=60)

# Blocks as servers send them, with an odd line now and then.
NAMES = [b"data", b"event", b"id", b"retry", b"", b"data ", b" id", b"Event", b"comment"]
SEPARATORS = [b": ", b":", b"", b":  ", b" : ", b"::", b":\t"]
VALUES = [
    *(b"x", b"", b" ", b" y ", b":", b": ", b"a: b", b"500", b"0x1F4", b"1\0", b"\0", b'{"a": [1, "b: c"]}', b"[DONE]"),
    *("café".encode(), "\u2028\x85".encode(), "\ufeff".encode(), "\U0001f600".encode(), "\u0661".encode()),
    *(b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc3", b"\xed\xa0\x80", b"\x0b\x0c\x1c\x1d"),
]
BLOCKS = [
    *([b'data: {"n": 1}'], [b"data: [DONE]"], [b"event: tick", b'data: {"n": "\xc3\xa9"}'], [b"data:x"]),
    *([b"id: 7", b"event: tick", b"data: a", b"data: b: c"], [b"data: a", b"data", b"data: ", b"data: b"]),
    *([b": ping"], [b": ping", b"data: x"], [b"retry: 500", b"id: 1", b"data: x"], [b"id: 8"], [b"event: end"]),
]
odd_lines = st.builds(lambda *parts: b"".join(parts), *map(st.sampled_from, (NAMES, SEPARATORS, VALUES)))
usual_blocks = st.sampled_from(BLOCKS).map(lambda lines: [*lines, b""])
odd_blocks = st.lists(odd_lines | st.sampled_from([b"", b": ping", b"data: x"]), max_size=5)
# The same line end for all lines, or a different one for each.
endings = st.sampled_from([[b"\n"], [b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r", b"\r\n"]])


@st.composite
def block_streams(draw: st.DrawFn, blocks: int = 8) -> bytes:
    """Streams of whole blocks, mostly as servers send them; some are cut off."""
    drawn = draw(st.lists(usual_blocks | usual_blocks | usual_blocks | odd_blocks, max_size=blocks))
    lines = [line for block in drawn for line in block]
    ends = draw(endings)
    stream = b"".join(line + ends[index % len(ends)] for index, line in enumerate(lines))
    if draw(st.integers(0, 4)) == 4:
        stream = b"\xef\xbb\xbf" + stream
    return stream[: draw(st.integers(0, len(stream)))] if draw(st.integers(0, 4)) == 4 else stream


streams = shreds | block_streams() | block_streams()
chunk_sizes = st.lists(st.integers(0, 7) | st.integers(0, 60), min_size=1, max_size=12).filter(any)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    chunks: list[bytes] = []
    at = 0
    while at < len(stream):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(stream[at : at + size])
        at += size
    return chunks


def after_blank_lines(stream: bytes) -> list[bytes]:
    """Return one chunk per block, the usual case."""
    return re.split(b"(?<=\n\n)|(?<=\r\r)|(?<=\r\n\r\n)", stream)


def assert_parses_to(parsed: Parsed, chunks: Iterable[bytes]) -> None:
    parser = EventStreamParser(comments=True)
    assert feed(parser, chunks) == parsed.items
    assert (parser.last_event_id, parser.retry) == (parsed.last_event_id, parsed.retry)


@pytest.mark.heavy
@given(streams, chunk_sizes)
@example(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\r\n\r\n", [1])
def test_any_bytes_parse_by_the_standard_in_any_chunks(stream: bytes, sizes: list[int]) -> None:
    parsed = parse(stream)
    for chunks in ([stream], after_blank_lines(stream), single_bytes(stream), cut(stream, sizes)):
        assert_parses_to(parsed, chunks)


@pytest.mark.slow
@given(block_streams(blocks=4))
@settings(max_examples=100)
def test_stream_parses_by_the_standard_wherever_it_is_cut(stream: bytes) -> None:
    parsed = parse(stream)
    for chunks in splits_in_two(stream):
        assert_parses_to(parsed, chunks)


@pytest.mark.heavy
@given(st.lists(block_streams(), min_size=1, max_size=4), st.lists(st.integers(1, 5000), min_size=1))
def test_long_chunks_parse_by_the_standard(parts: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(part * (1 + 800 // (len(part) + 1)) for part in parts)
    parsed = parse(stream)
    for chunks in ([stream], cut(stream, sizes)):
        assert_parses_to(parsed, chunks)


PLAIN_EVENTS = b"".join(b"data: %d\n\n" % number for number in range(400))


@pytest.mark.parametrize("odd", [b"", b"data: a\n", b"id: 7\n", b": ping\n", b"retry: 5\n", b"\r\n"])
def test_long_chunk_of_plain_events_parses_wherever_it_is_cut(odd: bytes) -> None:
    """With an odd line in the middle of an event, or none."""
    at = PLAIN_EVENTS.index(b"data: 200")
    stream = PLAIN_EVENTS[:at] + odd + PLAIN_EVENTS[at:]
    parsed = parse(stream)
    for size in range(1030, 1070):
        assert_parses_to(parsed, cut(stream, [size]))


def test_plain_events_with_invalid_utf8_have_replacement_characters() -> None:
    events = feed(EventStreamParser(), [b"data: \xff\n\ndata: \xe2\x82\n\n"])
    assert events == [ServerSentEvent(data="\ufffd"), ServerSentEvent(data="\ufffd")]


def test_reconnection_times_of_a_long_chunk_have_their_places() -> None:
    parser = EventStreamParser()
    parser.feed(b"data: cut")
    items = parser.feed(b" off\nretry: 1000\n\n" + PLAIN_EVENTS + b"retry: 2000\ndata: x\n\n")
    assert parser.retries == [(0, 1.0), (len(items) - 1, 2.0)]


@pytest.mark.heavy
@given(streams, chunk_sizes, st.integers(1, 30))
def test_any_bytes_are_refused_alike_in_any_chunks(stream: bytes, sizes: list[int], limit: int) -> None:
    parsed = parse(stream, limit)
    for chunks in ([stream], after_blank_lines(stream), single_bytes(stream), cut(stream, sizes)):
        assert read(chunks, limit) == (parsed.items, parsed.refused)


@pytest.mark.slow
@given(st.lists(st.sampled_from([0, 1, 500, 522, 523, 1023, 1024, 1025]).map(lambda size: b"x" * size), min_size=2))
def test_event_of_several_lines_is_refused_at_its_exact_size(values: list[bytes]) -> None:
    # Around the size from which the data grows in place.
    data = b"\n".join(values)
    stream = b"".join(b"data: %b\n" % value for value in values) + b"\n"
    for chunks in ([stream], stream.splitlines(keepends=True), cut(stream, [97])):
        assert read(chunks, max(len(data), len(max(values)) + 6)) == ([ServerSentEvent(data=data.decode())], False)
        assert read(chunks, len(data) - 1) == ([], True)
