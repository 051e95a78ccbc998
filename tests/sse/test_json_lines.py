"""The parser of JSON Lines and of JSON text sequences, without a network."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge import BufferLimitError, ServerSentEvent, TruncatedStreamError
from sseqbridge._sse.json_lines import JSONLinesParser, is_json, torn_line_error


def texts(*chunks: bytes, **options: Any) -> tuple[list[str], tuple[str, bool] | None]:
    """Return the documents of a body in these chunks, and what is left behind the last one."""
    parser = JSONLinesParser(**options)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    assert all(event == ServerSentEvent(data=event.data) for event in events)  # type: ignore[union-attr]
    rest = parser.take_rest()
    whole = None if rest is None else (rest[0], rest[1] and is_json(rest[0]))
    return [event.data for event in events], whole  # type: ignore[union-attr]


def parts(body: bytes, cuts: list[int]) -> list[bytes]:
    return [body[begin:end] for begin, end in pairwise([0, *sorted(cuts), len(body)])]


def pieces(body: bytes) -> list[list[bytes]]:
    """Return the body whole, byte by byte, and in two parts, cut at each place."""
    bytewise = [body[at : at + 1] for at in range(len(body))]
    return [[body], bytewise, *([body[:at], body[at:]] for at in range(1, len(body)))]


@pytest.mark.parametrize(
    ("body", "documents", "rest"),
    [
        (b'{"a":1}\n{"b":2}\n', ['{"a":1}', '{"b":2}'], None),
        (b'{"a":1}\r\n{"b":2}\r\n', ['{"a":1}', '{"b":2}'], None),
        (b'{"a":1}\n\n \t \r\n\r\n{"b":2}\n\n', ['{"a":1}', '{"b":2}'], None),
        (b"\n\r\n  \n1\n", ["1"], None),
        (b'  {"a":1}  \n', ['  {"a":1}  '], None),
        # Other line ends of Unicode, and a bare CR, do not end a line.
        ('"\u2028\u2029\u0085\x0b\x0c"\n'.encode(), ['"\u2028\u2029\u0085\x0b\x0c"'], None),
        (b'{"a":\r1}\n', ['{"a":\r1}'], None),
        ("\u2028\n".encode(), ["\u2028"], None),
        # A byte order mark at the begin, and only there.
        (b"\xef\xbb\xbf1\n", ["1"], None),
        (b"1\n\xef\xbb\xbf2\n", ["1", "\ufeff2"], None),
        (b"\n\xef\xbb\xbf2\n", ["\ufeff2"], None),
        (b"\xef\xbb\xbf", [], None),
        (b"\xef\xbb", [], ("\ufffd", False)),
        # Invalid UTF-8 is replaced, and takes no line end with it.
        (b'"\xe2\x82"\n"\xff\n', ['"\ufffd"', '"\ufffd'], None),
        # A last line without its end.
        (b'1\n{"a":1}', ["1"], ('{"a":1}', True)),
        (b"1\n23", ["1"], ("23", True)),
        (b'1\n{"a":1}\r', ["1"], ('{"a":1}', True)),
        (b'1\n{"a":', ["1"], ('{"a":', False)),
        (b"1\n \t", ["1"], None),
        (b"", [], None),
        # JSON text sequences.
        (b'\x1e{"a":1}\n\x1e{"b":2}\n', ['{"a":1}', '{"b":2}'], None),
        (b'\x1e\x1e{\n "a": 1\n}\n\x1e[\r\n1\r\n]\r\n\x1e', ['{\n "a": 1\n}', "[\r\n1\r\n]"], None),
        (b' \n\x1e1\n\x1e"x"', ["1"], ('"x"', True)),
        (b"\xef\xbb\xbf\x1e1\n", ["1"], None),
        (b"\x1e1\n\x1e2", ["1"], ("2", False)),
        (b"\x1e1\n\x1etrue ", ["1"], ("true", True)),
        (b'\x1e1\n\x1e{"a":', ["1"], ('{"a":', False)),
        # RS elsewhere is a byte of a line.
        (b"1\n\x1e2\n", ["1", "\x1e2"], None),
    ],
    ids=ascii,
)
def test_documents_of_a_body(body: bytes, documents: list[str], rest: tuple[str, bool] | None) -> None:
    for chunks in pieces(body):
        assert texts(*chunks) == (documents, rest), chunks


def test_document_of_a_sequence_comes_with_its_line_end() -> None:
    """And not when the next one begins."""
    parser = JSONLinesParser()
    assert [event.data for event in parser.feed(b'\x1e{"a":1}\n')] == ['{"a":1}']  # type: ignore[union-attr]
    assert [event.data for event in parser.feed(b'\x1e{\n"b":\n2\n}\n')] == ['{\n"b":\n2\n}']  # type: ignore[union-attr]
    assert parser.take_rest() is None


def test_number_of_a_sequence_may_be_cut_off() -> None:
    """RFC 7464, section 2.4: only a blank after it shows that it is complete."""
    parser = JSONLinesParser()
    assert [event.data for event in parser.feed(b'\x1e1\n\x1e12\x1e{"a":1}\n')] == ["1"]  # type: ignore[union-attr]
    assert isinstance(parser.error, TruncatedStreamError)
    assert parser.error.torn_line == "12"
    with pytest.raises(TruncatedStreamError):
        parser.feed(b"\n")


@pytest.mark.parametrize("begin", [b"", b"\x1e"], ids=["lines", "sequence"])
def test_line_beyond_the_limit_is_an_error(begin: bytes) -> None:
    parser = JSONLinesParser(max_event_bytes=10)
    long = b'"' + b"x" * 10 + b'"\n'
    assert [event.data for event in parser.feed(begin + b"1\n" + begin + long + begin + b"2\n")] == ["1"]  # type: ignore[union-attr]
    assert isinstance(parser.error, BufferLimitError)
    with pytest.raises(BufferLimitError):
        parser.feed(b"3\n")
    assert repr(parser) == "<JSONLinesParser error>"
    for chunks in ([begin + long], [begin + long[:6], long[6:]], [begin + long[:12]]):
        parser = JSONLinesParser(max_event_bytes=10)
        with pytest.raises(BufferLimitError):
            for chunk in chunks:
                parser.feed(chunk)


def test_blanks_before_a_sequence_are_limited_as_lines_are() -> None:
    for chunks in ([b" " * 11 + b"\x1e1\n"], [b" " * 6, b" " * 5 + b"\x1e1\n"]):
        parser = JSONLinesParser(max_event_bytes=10)
        with pytest.raises(BufferLimitError):
            for chunk in chunks:
                parser.feed(chunk)


def test_lines_within_the_limit_may_be_many() -> None:
    documents, rest = texts(b"1234567890\n" * 1000 + b"1", max_event_bytes=10)
    assert (len(documents), rest) == (1000, ("1", True))


def test_blanks_do_not_pile_up() -> None:
    parser = JSONLinesParser(max_event_bytes=10)
    for _ in range(1000):
        assert parser.feed(b"\n  ") == []
    assert repr(parser) == "<JSONLinesParser held=2>"


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(
    documents=st.lists(DOCUMENTS, max_size=6),
    is_sequence=st.booleans(),
    indent=st.none() | st.integers(0, 2),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_documents_come_back(documents: list[Any], is_sequence: bool, indent: int | None, end: str, cuts: Any) -> None:
    dumped = [json.dumps(each, ensure_ascii=False, indent=indent if is_sequence else None) for each in documents]
    # A lone surrogate has no UTF-8.
    body = "".join(f"\x1e{text}{end}" if is_sequence else f"{text}{end}" for text in dumped).encode("utf-8", "replace")
    got, rest = texts(*parts(body, cuts))
    assert rest is None
    assert got == [text.encode("utf-8", "replace").decode() for text in dumped]


@pytest.mark.slow
@given(body=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_lines_are_those_of_a_split(body: bytes, cuts: list[int]) -> None:
    """Whatever the bytes, and wherever the chunks end."""
    for old, new in {b"\x1e": b"?", b"\x00": b"\n", b"\x01": b"\r\n", b"\x02": b"\xe2\x80\xa8"}.items():
        body = body.replace(old, new)
    got, rest = texts(*parts(body, cuts))
    split = body.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = [line.removesuffix(b"\r").decode("utf-8", "replace") for line in split]
    assert got == [line for line in lines[:-1] if line.strip(" \t\r\n")]
    assert (rest or ("",))[0] == (lines[-1] if lines[-1].strip(" \t\r\n") else "")


def test_torn_line_is_shortened_and_escaped() -> None:
    error = torn_line_error("http://host/: cut", '{"a": "\x1b[31m\n' + "x" * 1000)
    assert str(error).startswith(
        'http://host/: cut: "{"a": "\\x1b[31m\\n' + "x" * 100
    )
    assert str(error).endswith('"... (1013 characters)')
    assert len(str(error)) < 300
    assert error.torn_line == '{"a": "\x1b[31m\n' + "x" * 1000
