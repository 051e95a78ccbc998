"""Bodies, read at every split of their bytes, and compared with h11."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sseqbridge._http.h1_bodies import BodyReader, ChunkedBody, SizedBody, UnboundedBody

from .reference_http import MEANT_OF_BODIES, Body, body_by_h11

pytestmark = pytest.mark.configurations("default")


def feed_all(body: BodyReader, pieces: Iterable[bytes]) -> Body:
    data = b"".join([body.feed(piece) for piece in pieces])
    return data, body.rest if body.complete else None, body.error is not None


def by_us(wire: bytes, *, step: int | None = None) -> Body:
    size = step or max(len(wire), 1)
    return feed_all(ChunkedBody(), (wire[at : at + size] for at in range(0, len(wire), size)))


def every_way(wire: bytes) -> Iterator[list[bytes]]:
    """Yield the bytes whole, one by one, and cut in two at every place."""
    yield [wire[at : at + 1] for at in range(len(wire))]
    for at in range(len(wire) + 1):
        yield [wire[:at], wire[at:]]


def assert_read(wire: bytes, expected: Body) -> None:
    for pieces in every_way(wire):
        assert feed_all(ChunkedBody(), pieces) == expected, pieces


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


END = b"0\r\n\r\n"


# Chunked.


@pytest.mark.parametrize(
    ("wire", "data"),
    [
        (END, b""),
        (chunk(b"hello") + END, b"hello"),
        (b"".join(chunk(text) for text in (b"a", b"bc", b"d" * 15, b"e" * 16, b"f" * 300)) + END, None),
        (b"A\r\n0123456789\r\n00a\r\n0123456789\r\n" + END, b"01234567890123456789"),
        # Chunks whose content looks like framing.
        (chunk(b"\r\n") + chunk(b"0\r\n\r\n") + chunk(b"\r") + chunk(b"\n5\r\n") + END, b"\r\n0\r\n\r\n\r\n5\r\n"),
        # Equal sizes, then another.
        (chunk(b"12345") * 6 + chunk(b"123456") * 3 + chunk(b"12345") + END, b"12345" * 6 + b"123456" * 3 + b"12345"),
        (chunk(b"one", b";name=value") + chunk(b"two", b';a="b";c') + b"0;last\r\n\r\n", b"onetwo"),
        (b"0000000000000005\r\nhello\r\n0000\r\n\r\n", b"hello"),
        (chunk(b"hello") + b"0\r\nA: 1\r\n\r\n", b"hello"),
        (chunk(b"hello") + b"0\r\nA: 1\r\nB: 2\r\n\r\n", b"hello"),
    ],
    ids=lambda value: ascii(value[:24]) if value else "",
)
@pytest.mark.parametrize("rest", [b"", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_chunked_body_is_read_at_every_split(wire: bytes, data: bytes | None, rest: bytes) -> None:
    if data is None:
        data = b"a" + b"bc" + b"d" * 15 + b"e" * 16 + b"f" * 300
    assert body_by_h11(wire + rest) == (data, rest, False)
    assert_read(wire + rest, (data, rest, False))


@pytest.mark.parametrize(
    ("wire", "data"),
    [
        *[(wire, b"") for wire in (b"", b"5", b"5\r", b"5\r\n", b"0", b"0\r\n", b"0\r\n\r", b"0\r\nA: 1\r\n")],
        *[(b"5\r\nhel", b"hel"), (b"5\r\nhello", b"hello"), (b"5\r\nhello\r", b"hello"), (b"5\r\nhello\r\n", b"hello")],
    ],
)
def test_incomplete_body_is_no_error_before_the_end(wire: bytes, data: bytes) -> None:
    body = ChunkedBody()
    assert body.feed(wire) == data
    assert (body.complete, body.error) == (False, None)
    body.end()
    assert (body.complete, body.is_cut_off) == (False, True)
    assert str(body.error).startswith("peer closed connection")


def test_complete_body_ignores_the_end_of_the_connection() -> None:
    body = ChunkedBody()
    body.feed(END)
    body.end()
    assert (body.complete, body.error) == (True, None)


def test_end_of_the_connection_keeps_an_earlier_error() -> None:
    body = ChunkedBody()
    body.feed(b"x\r\n")
    error = body.error
    body.end()
    assert error is not None
    assert (body.error, body.is_cut_off) == (error, False)


FAULTS = [
    # Wrong sizes.
    (b"4\r\nhello\r\n" + END, b"hell"),
    (b"6\r\nhello\r\n" + END, b"hello\r"),
    (b"5\r\nhello\rX\r\n" + END, b"hello"),
    (b"5\r\nhelloX\n" + END, b"hello"),
    # Missing line ends.
    (b"5\r\nhello" + END, b"hello"),
    (b"5\r\nhello\n" + END, b"hello"),
    (b"5\nhello\n0\n\n\r\n", b""),
    # Refused at once, before a CRLF.
    (b"5\nhello", b""),
    (b"5\rhello", b""),
    # Invalid sizes.
    (b"\r\n" + END, b""),
    (b"x\r\n", b""),
    (b"0x5\r\nhello\r\n", b""),
    (b"-5\r\nhello\r\n", b""),
    (b"+5\r\nhello\r\n", b""),
    (b" 5\r\nhello\r\n", b""),
    (b"5_0\r\nhello\r\n", b""),
    (b"5 5\r\nhello\r\n", b""),
    (b"5,5\r\nhello\r\n", b""),
    (b";a\r\nhello\r\n", b""),
    ("٣\r\nabc\r\n".encode(), b""),
    (b"fffffffffffffffffffff\r\n", b""),
    (b"HTTP/1.1 200 OK\r\n\r\n", b""),
    # After valid chunks.
    (chunk(b"one") * 3 + b"3\r\ntwoX\r\n" + END, b"oneoneonetwo"),
    (chunk(b"one") * 3 + b"3X\r\ntwo\r\n" + END, b"oneoneone"),
    (chunk(b"one") * 3 + b"\r\n" + END, b"oneoneone"),
]


@pytest.mark.parametrize(("wire", "data"), FAULTS, ids=lambda value: ascii(value[:24]))
def test_only_bytes_before_a_fault_are_returned(wire: bytes, data: bytes) -> None:
    assert body_by_h11(wire) == (data, None, True)
    assert_read(wire + chunk(b"more") + END, (data, None, True))


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("wire", [b"5" * 20_000, b"5;" + b"x" * 20_000, b"5;" + b"x" * 20_000 + b"\r\nhello\r\n" + END])
def test_endless_line_is_refused(wire: bytes, step: int) -> None:
    assert by_us(chunk(b"one") + wire, step=step) == (b"one", None, True)


def test_long_line_is_read() -> None:
    wire = b"5;" + b"x" * 4000 + b"\r\nhello\r\n" + END
    assert_read_in_steps(wire, (b"hello", b"", False))


def test_longest_line_is_read_at_every_split() -> None:
    wire = b"5;" + b"x" * 4094 + b"\r\nhello\r\n" + END
    assert_read_in_steps(wire, (b"hello", b"", False))


def assert_read_in_steps(wire: bytes, expected: Body) -> None:
    for step in (1, 2, 3, 1000, len(wire)):
        assert by_us(wire, step=step) == expected, step


@pytest.mark.slow
def test_endless_trailers_are_refused() -> None:
    assert_read_in_steps(chunk(b"one") + b"0\r\n" + b"x" * 20_000, (b"one", None, True))


def test_body_with_too_long_trailers_never_completes() -> None:
    body = ChunkedBody()
    assert body.feed(b"0\r\n" + b"x" * 20_000) == b""
    assert body.error is not None
    assert body.feed(b"\r\n\r\n") == b""
    assert not body.complete


@pytest.mark.slow
def test_longest_trailers_are_skipped() -> None:
    trailers = b"name: value\r\n" * 1000
    assert_read_in_steps(chunk(b"one") + b"0\r\n" + trailers + b"\r\nrest", (b"one", b"rest", False))


def test_more_sizes_than_the_cache_holds() -> None:
    # The cache's key of a small chunk includes its first bytes, so that there are many keys.
    texts = [b"%03d" % n for n in range(1000)] * 2
    wire = b"".join(map(chunk, texts)) + END
    for step in (None, 1, 5, 4096):
        assert by_us(wire, step=step) == (b"".join(texts), b"", False)


def test_each_chunk_is_returned_at_once() -> None:
    body = ChunkedBody()
    assert [body.feed(chunk(b"%d" % n)) for n in range(12)] == [b"%d" % n for n in range(12)]
    assert body.feed(b"5\r\nhe") == b"he"
    assert body.feed(b"l") == b"l"
    assert body.feed(b"lo") == b"lo"
    assert body.feed(b"\r\n3\r\none\r\n3\r\ntw") == b"onetw"
    assert body.feed(b"o\r\n" + END + b"rest") == b"o"
    assert (body.complete, body.rest) == (True, b"rest")


# Intended differences from h11.


@pytest.mark.parametrize(
    "wire",
    [
        # Blanks before extensions, and extensions after them, which some servers send.
        b"5 ;a=b\r\nhello\r\n0\r\n\r\n",
        b"5\t \t; a=b\r\nhello\r\n0 ;\r\n\r\n",
        # Trailers are not parsed: they need not be fields.
        b"5\r\nhello\r\n0\r\nno field\r\n\r\n",
        b"5\r\nhello\r\n0\r\n: no name\r\n\r\n",
    ],
)
def test_lines_that_only_h11_refuses_are_read(wire: bytes) -> None:
    assert body_by_h11(wire)[2]
    assert_read(wire, (b"hello", b"", False))


@pytest.mark.parametrize(
    "wire",
    [
        # More digits than 64 bits have.
        b"00000000000000005\r\nhello\r\n" + END,
        # Control characters in extensions, which can smuggle line ends.
        b"5;a\rb\r\nhello\r\n" + END,
        b"5;a\nb\r\nhello\r\n" + END,
        b"5;\0\r\nhello\r\n" + END,
        b"5;\x7f\r\nhello\r\n" + END,
    ],
)
def test_lines_that_h11_reads_are_refused(wire: bytes) -> None:
    assert_read(wire, (b"", None, True))
    expected = body_by_h11(wire)
    # h11 refuses the line feed too.
    assert expected == ((b"", None, True) if b"a\nb" in wire else (b"hello", b"", False))


@pytest.mark.parametrize("wire", [b"5\r\nhello \r\n" + END, b"5 \r\nhello\r\n" + END, b"5\t\r\nhello\r\n0  \r\n\r\n"])
def test_blanks_after_a_size_are_read_as_by_h11(wire: bytes) -> None:
    assert_read(wire, body_by_h11(wire))


# Any bytes, compared with h11.

texts = st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"data: 1\n\n"])
extensions = st.sampled_from([b"", b"", b"", b";", b";a", b';a="b; c"', b" ", b"\t "])
sizes = st.sampled_from([b"%x", b"%X", b"0%x"])
chunks = st.builds(
    lambda size, text, extension: size % len(text) + extension + b"\r\n" + text + b"\r\n", sizes, texts, extensions
)
ends = st.sampled_from([END, END, b"0;x\r\n\r\n", b"00\r\n\r\n", b"0\r\nA: 1\r\n\r\n", b"0\r\nA: 1\r\nB: 2\r\n\r\n"])
wires = st.builds(
    lambda chunks, repeated, end, rest: b"".join(chunks) * repeated + end + rest,
    st.lists(chunks, max_size=8),
    st.integers(1, 3),
    ends | st.just(b""),
    st.sampled_from([b"", b"HTTP/1.1 ", b"\r\n"]),
)


def cut_up(wire: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    return [wire[begin:end] for begin, end in itertools.pairwise(places)]


@pytest.mark.heavy
@given(wires, st.lists(st.integers(0, 1000), max_size=6))
def test_any_chunked_body_is_read_as_h11_reads_it(wire: bytes, cuts: list[int]) -> None:
    expected = body_by_h11(wire)
    assert by_us(wire) == expected
    assert by_us(wire, step=1) == expected
    assert feed_all(ChunkedBody(), cut_up(wire, cuts)) == expected


@pytest.mark.slow
@given(st.lists(chunks, max_size=8), st.integers(1, 3), ends)
def test_chunk_in_a_separate_read_is_read_as_any_other(parts: list[bytes], repeated: int, end: bytes) -> None:
    reads = [*parts * repeated, end]
    assert feed_all(ChunkedBody(), reads) == body_by_h11(b"".join(reads))


@pytest.mark.slow
@given(st.lists(chunks, min_size=1, max_size=4), st.integers(0, 3), st.sampled_from([b"", b"\r", b"x", b"x\r\n"]))
def test_separate_chunk_with_a_wrong_end_is_refused_too(parts: list[bytes], at: int, end: bytes) -> None:
    reads = [*parts, *parts]
    at %= len(reads)
    reads[at] = reads[at][:-2] + end
    assert feed_all(ChunkedBody(), reads) == by_us(b"".join(reads))


faults = st.tuples(
    st.integers(0, 1000), st.integers(0, 3), st.sampled_from([b"", b"\r", b"\n", b" ", b"0", b"5", b"a", b";", b"x"])
)


@pytest.mark.heavy
@given(wires, st.lists(faults, min_size=1, max_size=2), st.lists(st.integers(0, 1000), max_size=6))
@example(b"5\r\nhello\r\n" + END, [(3, 0, b"x")], [])
@example(b"5\r\nhello\r\n" + END, [(9, 1, b"")], [4])
def test_chunked_body_with_faults_is_read_as_h11_reads_it(
    wire: bytes, changes: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    for place, removed, added in changes:
        at = place % (len(wire) + 1)
        wire = wire[:at] + added + wire[at + removed :]
    assume(not MEANT_OF_BODIES.search(wire))
    expected = body_by_h11(wire)
    assert by_us(wire) == expected
    assert by_us(wire, step=1) == expected
    assert feed_all(ChunkedBody(), cut_up(wire, cuts)) == expected


@pytest.mark.slow
@given(st.binary(max_size=60) | st.text("05a\r\n;", max_size=40).map(str.encode), st.lists(st.integers(0, 60)))
def test_any_bytes_are_read_alike_at_every_split(wire: bytes, cuts: list[int]) -> None:
    assert feed_all(ChunkedBody(), cut_up(wire, cuts)) == by_us(wire)


# Sized and unbounded bodies.


@pytest.mark.parametrize("rest", [b"", b"HTTP/1.1 200 OK"])
@pytest.mark.parametrize("text", [b"", b"h", b"hello"])
def test_sized_body_is_read_at_every_split(text: bytes, rest: bytes) -> None:
    for pieces in every_way(text + rest):
        assert feed_all(SizedBody(len(text)), pieces) == (text, rest, False)


def test_sized_body_of_zero_bytes_is_complete_at_once() -> None:
    assert SizedBody(0).complete
    assert not SizedBody(1).complete


@pytest.mark.parametrize("sent", range(5))
def test_incomplete_sized_body_is_an_error(sent: int) -> None:
    body = SizedBody(5)
    assert body.feed(b"hello"[:sent]) == b"hello"[:sent]
    assert (body.complete, body.error) == (False, None)
    body.end()
    assert (body.complete, str(body.error)[:22]) == (False, "peer closed connection")


def test_complete_sized_body_ignores_the_end_of_the_connection() -> None:
    body = SizedBody(5)
    assert body.feed(b"hello") == b"hello"
    body.end()
    assert (body.complete, body.error) == (True, None)


def test_unbounded_body_ends_with_the_connection() -> None:
    body = UnboundedBody()
    assert [body.feed(piece) for piece in (b"0\r\n", b"", b"\r\n")] == [b"0\r\n", b"", b"\r\n"]
    assert not body.complete
    body.end()
    assert (body.complete, body.error, body.rest) == (True, None, b"")


def test_base_class_reads_nothing() -> None:
    with pytest.raises(NotImplementedError):
        BodyReader().feed(b"")
