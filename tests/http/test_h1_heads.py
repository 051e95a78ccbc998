"""Heads of messages, read at every split, and compared with h11, after repairs where the reader is lenient."""

from __future__ import annotations

import itertools
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sseqbridge._http.h1_heads import MAX_HEAD_BYTES, HeadError, HeadReader, ResponseHead, framing_of, write_head

from .reference_http import Head, as_h11_has_it, head_by_h11, head_by_reference

pytestmark = pytest.mark.configurations("default")


def by_us(data: bytes, cuts: list[int] | None = None) -> Head:
    reader = HeadReader()
    places = sorted({0, len(data), *(cuts or [])})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(places)]
    try:
        for index, piece in enumerate(pieces):
            head = reader.feed(piece)
            if head is not None:
                rest = reader.rest + b"".join(pieces[index + 1 :])
                return head.http_version, head.status, head.reason, as_h11_has_it(head.headers), rest
    except HeadError:
        return "refused"
    return None


def assert_read_alike(data: bytes) -> None:
    expected = head_by_reference(data)
    assert by_us(data) == expected
    assert by_us(data, list(range(len(data)))) == expected


HEADS = [
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"HTTP/1.0 404 Not Found\nServer: old\n\nbody",
    b"HTTP/1.1 200 \r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nA:\r\nB: \t \r\nC:d\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nfolded: one\r\n two\r\n\tthree\r\nnext: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n folded: first\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nname with blank: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nblank-before-colon : x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nnul: a\0b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncr: a\rb\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontrol: a\x01b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nform-feed: a\x0cb\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nlatin: \xe9t\xe9\r\n\r\n",
    b"HTTP/1.1 200 Tr\xe8s bien\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nCookie: a=1\r\ncookie: b=2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5, 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\nContent-Length: 1, 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX-Note: a\r\n Content-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
    b"HTTP/1.1 099 Low\r\n\r\n",
    b"HTTP/1.1 000 None\r\n\r\n",
    b"HTTP/1.1 999 High\r\n\r\n",
    b"HTTP/1.1 20 Short\r\n\r\n",
    b"HTTP/1.1 2000 Long\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1\t200 OK\r\n\r\n",
    b"HTTP/11 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"\nHTTP/1.1 200 OK\r\n\r\n",
    b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"\r\n\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"\r\n HTTP/1.1 200 OK\r\n\r\n",
    b"\rHTTP/1.1 200 OK\r\n\r\n",
    b"\r",
    b"\r\n\r",
    b"\r\n\r\n",
    b" HTTP/1.1 200 OK\r\n\r\n",
    b"\x16\x03\x01",
    b"HTTP/1.1 200 OK\r\nunfinished: yes\r\n",
    b"HTTP/1.1 200 OK\r\nunfinished: yes\r\n\r",
    b"<html>not HTTP</html>",
]


@pytest.mark.parametrize("data", HEADS, ids=lambda data: ascii(data[:48]))
def test_head_is_read_as_the_reference_reads_it(data: bytes) -> None:
    assert_read_alike(data)


lines = st.sampled_from(sorted({line for head in HEADS for line in head.split(b"\n")}))
pieces = lines.map(lambda line: line + b"\n") | st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b":", b"\0", b"\t", b"1"])


@pytest.mark.slow
@given(st.lists(pieces, max_size=8).map(b"".join))
@example(b"A: \r\n b\r\n\r\n")
def test_any_head_is_read_as_the_reference_reads_it(end: bytes) -> None:
    assert_read_alike(b"HTTP/1.1 200 OK\r\n" + end)


added = st.sampled_from([b"", b"\r", b"\n", b" ", b":", b"\0", b"x", b"1"])


@pytest.mark.slow
@given(st.sampled_from(HEADS), st.integers(0, 60), st.integers(0, 3), added)
def test_faulty_head_is_read_as_the_reference_reads_it(head: bytes, at: int, removed: int, added: bytes) -> None:
    assert_read_alike(head[:at] + added + head[at + removed :])


def read(fields: bytes, version: bytes = b"1.1") -> ResponseHead:
    head = HeadReader().feed(b"HTTP/%s 200 OK\r\n%s\r\n" % (version, fields))
    assert head is not None
    return head


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        (b"", (None, False, True)),
        (b"Content-Length: 12\r\n", (12, False, True)),
        # RFC 9112, section 6.3: chunked takes precedence, and another parser may have used the length.
        (b"Content-Length: 12\r\nTransfer-Encoding: chunked\r\n", (None, True, False)),
        (b"Content-Length: 12, 13\r\nTransfer-Encoding: chunked\r\n", (None, True, False)),
        (b"Content-Length:\r\nTransfer-Encoding: chunked\r\n", (None, True, False)),
        (b"Transfer-Encoding: Identity\r\n", (None, False, True)),
        (b"Content-Length: 12\r\nTransfer-Encoding: identity\r\n", (12, False, False)),
        (b"Connection : close\r\n", (None, False, False)),
        (b"Connection: close\r\n", (None, False, False)),
        (b"Connection: Upgrade, CLOSE\r\n", (None, False, False)),
        (b"connection: keep-alive\r\n", (None, False, True)),
    ],
)
def test_framing_follows_the_header_fields(fields: bytes, framing: tuple[Any, ...]) -> None:
    assert read(fields).framing == framing


def test_http_1_0_connection_is_not_kept_alive() -> None:
    assert not read(b"Connection: keep-alive\r\n", b"1.0").framing.keeps_alive


# Intended differences from h11.


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
def test_other_versions_are_refused(version: bytes) -> None:
    with pytest.raises(HeadError, match="version"):
        read(b"", version)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        (b"A: 1\r\nContent Security Policy: x\r\nB: 2\r\n", [(b"A", b"1"), (b"B", b"2")]),
        (b"no colon\r\n: no name\r\nA: 1\r\n", [(b"A", b"1")]),
        (b"A : 1\r\nB\t \t:2\r\n", [(b"A", b"1"), (b"B", b"2")]),
        (b"A: 1\r\nno field\r\n continued: x\r\nB: 2\r\n", [(b"A", b"1"), (b"B", b"2")]),
        (b"A: form\x0cfeed\r\nB: 2\r\n", [(b"B", b"2")]),
    ],
)
def test_malformed_header_line_is_skipped(fields: bytes, kept: list[tuple[bytes, bytes]]) -> None:
    assert read(fields).headers == kept


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length : 5",
        b"Transfer-Encoding\t: chunked",
        b"Transfer-Encoding\x0b: chunked",
        b"Transfer Encoding: chunked",
        b"en-US Content-Length: 5",
        b"CONTENT-LENGTH",
        b"transfer-encoding chunked",
        b"\xa0Transfer-Encoding: chunked",
        b"Content-Length: 5\x0b",
        b"A: x\x0cTransfer-Encoding: chunked",
    ],
)
def test_malformed_line_that_names_framing_is_refused(line: bytes) -> None:
    with pytest.raises(HeadError, match="well-formed"):
        read(line + b"\r\n")


@pytest.mark.parametrize("line", [b"A: 1\rB: 2", b"no\rfield", b"A\0: 1", b"no field\0", b"A: 1\r"])
def test_nul_and_bare_cr_are_refused_in_every_line(line: bytes) -> None:
    with pytest.raises(HeadError, match="NUL or a bare CR"):
        read(line + b"\r\n")


@pytest.mark.parametrize(
    "fields",
    [b"Content-Length:\r\n 5\r\n", b"A: 1\n\tTransfer-Encoding: chunked\n", b"Transfer-Enco\r\n ding: chunked\r\n"],
)
def test_folded_line_that_names_framing_is_refused(fields: bytes) -> None:
    with pytest.raises(HeadError, match="folded"):
        read(fields)


def test_many_folds_are_read_in_linear_time() -> None:
    folds = b"A: 1\r\n" + b" x\r\n" * 20_000
    assert read(folds).headers == [(b"A", b"1" + b" x" * 20_000)]


def test_identity_coding_is_refused_in_a_request() -> None:
    with pytest.raises(HeadError, match="must be chunked"):
        framing_of([(b"Transfer-Encoding", b"identity")])


def test_switch_of_protocols_is_left_to_the_transport() -> None:
    data = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"
    assert head_by_h11(data) == "refused"
    assert by_us(data) == (b"1.1", 101, b"Switching Protocols", [(b"Upgrade", b"x")], b"")


def test_endless_head_is_refused_in_linear_time() -> None:
    reader = HeadReader()
    with pytest.raises(HeadError, match="at most"):
        for _ in range(MAX_HEAD_BYTES):
            assert reader.feed(b"HTTP/1.1 200 OK\r\nx: y") is None


def test_two_heads_in_one_read_are_separated() -> None:
    reader = HeadReader()
    first, second = reader.feed(b"HTTP/1.1 103 \r\n\r\nHTTP/1.1 200 OK\r\n\r\nbody"), reader.feed(b"")
    assert first is not None
    assert second is not None
    assert (first.status, second.status, reader.rest) == (103, 200, b"body")


@pytest.mark.parametrize("body", [b"", b"body"])
@pytest.mark.parametrize("target", [b"/", b"/a%7Eb?x=%2F~&y", b"*"])
def test_request_is_written_as_h11_writes_it(target: bytes, body: bytes) -> None:
    headers = [(b"Host", b"a"), (b"Content-Length", b"%d" % len(body)), (b"x-Mixed", b"\xe9\t1"), (b"Empty", b"")]
    theirs = h11.Connection(h11.CLIENT).send(h11.Request(method="POST", target=target, headers=headers))
    assert write_head(b"POST", target, headers) == theirs


@pytest.mark.parametrize("method", [b"", b"GET /", b"G\r\n", b"G\xc9T", b"?ET:"])
def test_invalid_method_is_refused(method: bytes) -> None:
    with pytest.raises(HeadError, match="method"):
        write_head(method, b"/", [])


@pytest.mark.parametrize("target", [b"", b"/a b", b"/\r\n", b"/\xe9", b"/\x7f"])
def test_invalid_target_is_refused(target: bytes) -> None:
    with pytest.raises(HeadError, match="target"):
        write_head(b"GET", target, [])


@pytest.mark.parametrize(
    "header", [(b"", b"x"), (b"a b", b"x"), (b"a:", b"x"), (b"a", b"1\r\nb: 2"), (b"a", b"1\n"), (b"a", b"\0")]
)
def test_invalid_header_is_refused_and_not_quoted(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(HeadError) as caught:
        write_head(b"GET", b"/", [(b"Host", b"a"), header])
    assert str(caught.value) == "a header must have a token as name, and a value without NUL, CR and LF"


def test_value_may_contain_any_byte_except_nul_cr_lf() -> None:
    value = bytes(set(range(256)) - set(b"\0\r\n"))
    assert write_head(b"GET", b"/", [(b"a", value)]) == b"GET / HTTP/1.1\r\na: " + value + b"\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Content-Length", b"1,2")],
        [(b"transfer-encoding", b"gzip")],
        [(b"Content-Length", b"1,2"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"6, 6")],
        [(b"Content-Length", b"6"), (b"content-length", b"6")],
        [(b"Host", b"a"), (b"host", b"a")],
    ],
)
def test_invalid_framing_headers_are_refused(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(HeadError):
        framing_of(fields)
