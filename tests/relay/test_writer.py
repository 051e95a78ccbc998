"""The frames that a relay writes for events, items, the end and errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge import (
    Comment,
    EventStreamParser,
    ServerSentEvent,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    request_sse,
)
from sseqbridge.relay._options import SyncRelayOptions, relay_options
from sseqbridge.relay._writer import Writer
from sseqbridge.testing import (
    SSEServer,
    comment,
    cut,
    send,
    silence,
)
from tests.relay.support import DONE, Relay, error_of

keys = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), min_size=1)


def writer_with(**options: Any) -> Writer:
    return Writer(relay_options("frames", SyncRelayOptions, options))


def with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_events_are_forwarded_unchanged(relayed: Relay) -> None:
    sent = (
        b'data: {"n": 1}\n\n',
        b"data: [1,2]\n\n",
        b"event: tick\nid: 7\nretry: 1500\ndata: 2\ndata: 3\n\n",
        b"id: 7\ndata: 4\n\n",
    )
    with SSEServer([*sent, DONE]) as server:
        read = relayed(request_sse(server.url, decode="text")).rest()
    assert read == b"".join(sent) + b"data: [DONE]\n\n"


def test_id_that_the_upstream_resets_is_reset_for_the_client(relayed: Relay) -> None:
    with SSEServer([send(1, id="7"), b"id\ndata: 2\n\n", b"data: 3\n\n", DONE]) as server:
        read = relayed(request_sse(server.url, decode="text")).rest()
    assert read == b"id: 7\ndata: 1\n\nid:\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n"
    assert [event.id for event in EventStreamParser().feed(read) if isinstance(event, ServerSentEvent)] == [
        "7",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize("decode", ["json", "text", "event"])
def test_events_are_forwarded_unchanged_whatever_decode_is(relayed: Relay, decode: Any) -> None:
    with SSEServer([send('{"a":   1}', event="tick"), DONE]) as server:
        read = relayed(request_sse(server.url, decode=decode)).rest()
    assert read == b'event: tick\ndata: {"a":   1}\n\ndata: [DONE]\n\n'


def test_result_of_a_decode_function_keeps_event_name_and_id(relayed: Relay) -> None:
    with SSEServer([send("a", event="tick", id="1"), send("b"), DONE]) as server:
        read = relayed(request_sse(server.url, decode=lambda event: event.data.upper())).rest()
    assert read == b"event: tick\nid: 1\ndata: A\n\nid: 1\ndata: B\n\ndata: [DONE]\n\n"


def test_comments_are_forwarded_if_requested(relayed: Relay) -> None:
    script = [comment("one"), send("a"), DONE]
    with SSEServer(script) as server:
        assert relayed(request_sse(server.url, decode="text")).rest() == b"data: a\n\ndata: [DONE]\n\n"
        stream = request_sse(server.url, decode="event", comments=True)
        assert relayed(stream, map=lambda item: item).rest() == b": one\n\ndata: a\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    ("made", "frame"),
    [
        ("text", b"event: tick\nid: 1\ndata: text\n\n"),
        ("two\nlines", b"event: tick\nid: 1\ndata: two\ndata: lines\n\n"),
        ({"a": "\u00e4"}, b'event: tick\nid: 1\ndata: {"a":"\xc3\xa4"}\n\n'),
        # A lone surrogate, which an upstream's JSON may contain.
        ({"a": "\ud83d"}, b'event: tick\nid: 1\ndata: {"a":"\\ud83d"}\n\n'),
        ([1, None], b"event: tick\nid: 1\ndata: [1,null]\n\n"),
        (ServerSentEvent("other", "x", "9", 2.0), b"event: other\nid: 9\nretry: 2000\ndata: x\n\n"),
        (Comment("x"), b": x\n\n"),
        (None, b""),
    ],
)
def test_map_returns_the_item_to_send(relayed: Relay, made: Any, frame: bytes) -> None:
    items = []

    def note(item: Any) -> Any:
        items.append(item)
        return made

    with SSEServer([send({"n": 1}, event="tick", id="1"), DONE]) as server:
        assert relayed(request_sse(server.url), map=note).rest() == frame + b"data: [DONE]\n\n"
    assert items == [{"n": 1}]


@pytest.mark.parametrize(
    ("done", "last"),
    [
        (True, b"data: [DONE]\n\n"),
        (False, b""),
        (None, b""),
        ("over", b"data: over\n\n"),
        ("", b"data: \n\n"),
        (ServerSentEvent("end", "{}"), b"event: end\ndata: {}\n\n"),
    ],
)
def test_done_event_is_forwarded_left_out_or_replaced(relayed: Relay, done: Any, last: bytes) -> None:
    with SSEServer([send(1), DONE]) as server:
        assert relayed(request_sse(server.url), done=done).rest() == b"data: 1\n\n" + last


def test_done_event_keeps_its_name_and_its_own_id(relayed: Relay) -> None:
    first, named, with_id = send(1, id="7"), send("[DONE]", event="end"), send("[DONE]", id="8")
    with SSEServer([first, named]) as server:
        assert relayed(request_sse(server.url)).rest() == b"id: 7\ndata: 1\n\nevent: end\ndata: [DONE]\n\n"
    with SSEServer([first, with_id]) as server:
        assert relayed(request_sse(server.url)).rest() == b"id: 7\ndata: 1\n\nid: 8\ndata: [DONE]\n\n"
    with SSEServer([with_id]) as server:
        assert relayed(request_sse(server.url)).rest() == b"id: 8\ndata: [DONE]\n\n"
    # The client keeps the id that `map` has set.
    with SSEServer([first, DONE]) as server:
        read = relayed(request_sse(server.url), map=lambda item: ServerSentEvent(data="x", id="mine")).rest()
        assert read == b"id: mine\ndata: x\n\ndata: [DONE]\n\n"


def test_done_event_can_be_sent_at_an_end_without_one(relayed: Relay) -> None:
    with SSEServer([send(1)]) as server:
        assert relayed(request_sse(server.url)).rest() == b"data: 1\n\n"
        assert relayed(request_sse(server.url), done="over").rest() == b"data: 1\n\ndata: over\n\n"
    with SSEServer([send(1), send(2)]) as server:
        stream = request_sse(server.url, done=lambda event: event.data == "1")
        assert relayed(stream).rest() == b"data: 1\n\n"


@pytest.mark.slow
@given(
    st.lists(
        st.builds(ServerSentEvent, event=keys, data=st.text(), id=st.just("") | keys)
        | st.text(st.characters(codec="utf-8"))
        | st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()),
        max_size=10,
    )
)
def test_every_frame_parses_back_to_its_item(items: list[Any]) -> None:
    writer = writer_with()
    read = EventStreamParser().feed(b"".join(map(writer.item, items)))
    last_id = ""
    for item, event in zip(items, read, strict=True):
        assert isinstance(event, ServerSentEvent)
        if isinstance(item, ServerSentEvent):
            last_id = item.id or last_id
            assert (event.event, event.data) == (item.event, with_line_feeds(item.data))
        elif isinstance(item, str):
            assert (event.event, event.data) == ("message", with_line_feeds(item))
        else:
            assert event.json() == item
        assert event.id == last_id


def test_upstreams_error_event_ends_a_mapped_stream_with_its_message(relayed: Relay) -> None:
    with SSEServer([send(1), send({"error": {"message": "out of tokens", "type": "x"}})]) as server:
        error = error_of(relayed(request_sse(server.url), map=str).rest())
    assert error == {"type": "UpstreamError", "message": "out of tokens"}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"error": "short"}, "short"),
        ({"message": "plain"}, "plain"),
        ("text", "text"),
        ({"error": {"code": 1}}, "the upstream reported an error"),
        ([1], "the upstream reported an error"),
        ("x" * 300, "x" * 200),
    ],
)
def test_message_of_an_upstream_error(payload: Any, message: str) -> None:
    frame = writer_with().error(UpstreamError("secret", ServerSentEvent(), payload))
    assert error_of(frame) == {"type": "UpstreamError", "message": message}


@pytest.mark.parametrize("made", [5, True, b"bytes", object(), {"a": float("nan")}, {"a": object()}])
def test_result_of_map_that_cannot_be_sent_ends_the_relay(
    relayed: Relay, caplog: pytest.LogCaptureFixture, made: Any
) -> None:
    with SSEServer([send(1), send(2), silence()]) as server:
        read = relayed(request_sse(server.url), map=lambda item: made if item == 2 else "one").rest()
        server.requests[0].wait_aborted()
    assert read.startswith(b"data: one\n\n")
    assert error_of(read) == {"type": "ServerError", "message": "the server failed while it made the stream"}
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info


def test_ids_that_map_sets_are_not_reset(relayed: Relay) -> None:
    """The upstream sends no ids."""

    def sparse(item: int) -> Any:
        return ServerSentEvent(data="a", id="5") if item == 1 else {"n": item}

    with SSEServer([send(1), send(2), send(3), DONE]) as server:
        read = relayed(request_sse(server.url), map=sparse).rest()
    assert read == b'id: 5\ndata: a\n\ndata: {"n":2}\n\ndata: {"n":3}\n\ndata: [DONE]\n\n'


def test_error_frame_is_compact_json() -> None:
    frame = writer_with().error(TruncatedStreamError("secret"))
    message = "the upstream's stream was cut off"
    assert json.loads(frame.split(b"data: ")[1]) == {
        "type": "error",
        "message": message,
        "errorText": message,
        "error": {"type": "TruncatedStreamError", "message": message},
    }


def report_of(error: Callable[[BaseException], Any]) -> bytes:
    return writer_with(error=error).error(TruncatedStreamError("secret"))


@pytest.mark.parametrize(
    ("report", "frame"),
    [
        ("sorry", b"event: error\ndata: sorry\n\n"),
        ({"sorry": 1}, b'event: error\ndata: {"sorry":1}\n\n'),
        (ServerSentEvent("failed", "sorry"), b"event: failed\ndata: sorry\n\n"),
        (None, b""),
    ],
)
def test_error_event_is_what_the_applications_function_returns(report: Any, frame: bytes) -> None:
    assert report_of(lambda error: report) == frame


def test_result_of_the_applications_error_function_is_checked() -> None:
    with pytest.raises(UsageError, match="a result of `error` must be"):
        report_of(lambda error: 5)


def test_error_function_that_raises_breaks_the_connection_off(relayed: Relay) -> None:
    def refuse(error: BaseException) -> Any:
        assert isinstance(error, TruncatedStreamError)
        raise ConnectionAbortedError("no more")

    with SSEServer([send(1), cut()]) as server:
        reading = relayed(request_sse(server.url), error=refuse)
        assert reading.next_event() == b"data: 1\n\n"
        with pytest.raises(ConnectionAbortedError):
            reading.rest()
        assert reading.rest() == b""


def test_error_function_that_returns_nothing_ends_quietly(relayed: Relay) -> None:
    with SSEServer([send(1), cut()]) as server:
        assert relayed(request_sse(server.url), error=lambda error: None).rest() == b"data: 1\n\n"


@pytest.mark.parametrize(
    "item", ["\ud83d", ServerSentEvent(data="\ud83d"), Comment("\ud83d")], ids=["text", "event", "comment"]
)
def test_lone_surrogate_is_replaced(item: Any) -> None:
    assert "\N{REPLACEMENT CHARACTER}" in writer_with().item(item).decode()


def test_halves_of_an_emoji_do_not_end_the_stream(relayed: Relay) -> None:
    with SSEServer([send({"t": "\ud83d"}), send({"t": "\ude00"}), send({"t": "the rest"}), DONE]) as server:
        read = relayed(request_sse(server.url), map=lambda chunk: chunk["t"]).rest().decode()
    assert read.endswith("data: the rest\n\ndata: [DONE]\n\n")
    assert read.count("\N{REPLACEMENT CHARACTER}") == 2


def test_on_item_is_not_called_after_the_end() -> None:
    seen: list[Any] = []
    writer = writer_with(on_item=seen.append)
    writer.item("a")
    assert writer.end_observing()
    writer.item("b")
    assert seen == ["a"]
