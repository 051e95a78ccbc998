"""The encoder: its bytes parse back to an equal event, and other events are refused."""

from __future__ import annotations

import re

import pytest
from httpx_sse._decoders import SSEDecoder
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge._exceptions import UsageError
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.parser import EventStreamParser

from .reference_parser import parse

texts = st.text()
lines = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"))
names = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), min_size=1)
retries = st.none() | st.integers(0, 10**10).map(lambda milliseconds: milliseconds / 1000)
events = st.builds(ServerSentEvent, event=names, data=texts, id=lines, retry=retries)
events_with_ids = st.builds(ServerSentEvent, event=names, data=texts, id=names, retry=retries)


def with_line_feeds(text: str) -> str:
    return re.sub("\r\n?", "\n", text)


@pytest.mark.parametrize(
    ("item", "wire"),
    [
        (ServerSentEvent(data="hello"), b"data: hello\n\n"),
        (ServerSentEvent(), b"data: \n\n"),
        (ServerSentEvent(data="a\nb\r\nc\rd\n"), b"data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
        (ServerSentEvent(data=" a"), b"data:  a\n\n"),
        (ServerSentEvent(data="a\u2028b\x0bc"), b"data: a\xe2\x80\xa8b\x0bc\n\n"),
        (ServerSentEvent("tick", "1", "7", 2.5), b"event: tick\nid: 7\nretry: 2500\ndata: 1\n\n"),
        (ServerSentEvent(retry=0.0), b"retry: 0\ndata: \n\n"),
        (ServerSentEvent(retry=0.0019), b"retry: 2\ndata: \n\n"),
        (Comment("ping"), b": ping\n\n"),
        (Comment(), b": \n\n"),
        (Comment("a\nb\rc"), b": a\n: b\n: c\n\n"),
    ],
)
def test_item_on_the_wire(item: ServerSentEvent | Comment, wire: bytes) -> None:
    assert encode(item) == wire


@pytest.mark.slow
@given(events)
def test_event_parses_back_to_the_same(event: ServerSentEvent) -> None:
    parser = EventStreamParser()
    event.data = with_line_feeds(event.data)
    assert parser.feed(encode(event)) == [event]
    assert parse(encode(event)).items == [event]


@pytest.mark.heavy
@given(st.lists(events_with_ids, max_size=10))
def test_consecutive_events_parse_back_to_the_same(sent: list[ServerSentEvent]) -> None:
    parser = EventStreamParser()
    for event in sent:
        event.data = with_line_feeds(event.data)
    assert parser.feed(b"".join(map(encode, sent))) == sent


@pytest.mark.heavy
@given(st.lists(events_with_ids, max_size=10))
def test_another_implementation_reads_the_same(sent: list[ServerSentEvent]) -> None:
    decoder = SSEDecoder()
    read = [decoder.decode(line) for line in b"".join(map(encode, sent)).decode().split("\n")[:-1]]
    assert [(event.event, event.data, event.id, event.retry) for event in read if event is not None] == [
        (event.event, with_line_feeds(event.data), event.id, None if event.retry is None else round(event.retry * 1000))
        for event in sent
    ]


@pytest.mark.slow
@given(texts)
def test_line_breaks_in_data_come_back_as_line_feeds(data: str) -> None:
    assert EventStreamParser().feed(encode(ServerSentEvent(data=data))) == [ServerSentEvent(data=with_line_feeds(data))]


@pytest.mark.slow
@given(texts)
def test_comment_parses_back_as_one_per_line(text: str) -> None:
    items = EventStreamParser(comments=True).feed(encode(Comment(text)))
    assert items == [Comment(line) for line in with_line_feeds(text).split("\n")]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (ServerSentEvent(event=""), "`event` must be one non-empty line without NUL"),
        (ServerSentEvent(event="a\nb"), "`event` must be one non-empty line"),
        (ServerSentEvent(event="a\rb"), "`event` must be one non-empty line"),
        (ServerSentEvent(event="a\r\n"), "`event` must be one non-empty line"),
        (ServerSentEvent(event="a\0b"), "without NUL"),
        (ServerSentEvent(id="1\ndata: injected"), "`id` must be one line"),
        (ServerSentEvent(id="1\r"), "`id` must be one line"),
        (ServerSentEvent(id="1\x002"), "without NUL"),
        (ServerSentEvent(retry=-0.001), "`retry` must be a finite number of seconds"),
        (ServerSentEvent(retry=float("inf")), "`retry` must be a finite number of seconds"),
        (ServerSentEvent(retry=float("nan")), "`retry` must be a finite number of seconds"),
        (ServerSentEvent(retry=1e306), "`retry` must be a finite number of seconds"),
        (ServerSentEvent(event="\ud800"), "lone surrogate"),
        (ServerSentEvent(data="\ud800"), "lone surrogate"),
        (ServerSentEvent(id="\udfff"), "lone surrogate"),
        (Comment("\ud800"), "lone surrogate"),
    ],
    ids=repr,
)
def test_item_that_does_not_parse_back_is_refused(event: ServerSentEvent | Comment, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encode(event)


def test_refusal_does_not_show_the_data() -> None:
    with pytest.raises(UsageError) as raised:
        encode(ServerSentEvent(data="secret\ud800"))
    assert "secret" not in str(raised.value)
    assert raised.value.__suppress_context__
