"""Bodies that do not end, or do not begin, as an event stream does: nothing of them is lost silently."""

from __future__ import annotations

import gzip
import json
import logging
from functools import partial
from typing import Any

import pytest

from sseqbridge import (
    CallbackError,
    ProtocolError,
    ReconnectionPolicy,
    ServerSentEvent,
    SSEError,
    TruncatedStreamError,
    UpstreamError,
    gather,
    merge,
    relay,
    request_sse,
    tee,
)
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, Step, comment, cut, in_turn, raw, respond, send, silence
from tests.engine.reconnecting import AT_ONCE, LATE
from tests.requesters import Requester

DONE = send("[DONE]")
FRAMINGS: list[Step] = [respond(), respond(framing="length"), respond(framing="close")]
NOT_JSON_MODES = ["text", "event", ServerSentEvent.json]

framings = pytest.mark.parametrize("framing", FRAMINGS, ids=["chunked", "length", "close"])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the WARNINGs about dropped events."""
    records = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [record.getMessage() for record in records if "which is dropped" in record.getMessage()]


# The last block without its blank line.


@pytest.mark.slow
@framings
@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n", b"id: 9\ndata: [DONE] \r"])
@pytest.mark.parametrize("options", [{}, {"decode": "event"}, {"reconnect": AT_ONCE}], ids=repr)
def test_end_marker_counts_without_its_blank_line(
    ask: Requester, framing: Step, end: bytes, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    if "decode" in options:
        end = end.replace(b"] ", b"]")
    steps = [framing, send({"n": 1}, id="1"), raw(end)]
    with SSEServer(steps) as server, ask(server.url, require_done=True, **options) as response:
        assert len(response.items()) == 1
        assert response.events.outcome == "done"
        assert response.events.last_event_id == "1"
        assert len(server.requests) == 1
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("reconnect", [None, AT_ONCE], ids=["once", "reconnecting"])
def test_end_marker_counts_if_the_connection_breaks_behind_it(ask: Requester, reconnect: Any) -> None:
    steps = [send({"n": 1}), raw(b"data: [DONE]\n"), cut()]
    with SSEServer(steps) as server, ask(server.url, require_done=True, reconnect=reconnect) as response:
        assert response.items() == [{"n": 1}]
        assert (response.events.outcome, len(server.requests)) == ("done", 1)


@pytest.mark.parametrize("reconnect", [None, AT_ONCE], ids=["once", "reconnecting"])
@pytest.mark.parametrize("decode", ["json", "event"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_json_rpc_response_counts_if_the_connection_breaks_behind_it(
    ask: Requester, end: bytes, decode: Any, reconnect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [send({"n": 1}), raw(b'data: {"jsonrpc": "2.0", "id": 1, "result": {}}' + end), cut()]
    with (
        SSEServer(steps) as server,
        ask(server.url, data={}, dialect="mcp", decode=decode, reconnect=reconnect) as response,
    ):
        assert len(response.items()) == 2
        assert response.events.outcome == "done"
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    "block",
    [b'data: {"jsonrpc": "2.0", "method": "n"}', b'data: {"jsonrpc": "2.0", "id": 1, "result": {}', b"data: []"],
)
def test_other_json_rpc_does_not_count_before_a_broken_connection(
    ask: Requester, block: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send({"n": 1}), raw(block), cut()]) as server, ask(server.url, data={}, dialect="mcp") as response:
        items, error = response.fail()
        assert (items, type(error)) == ([{"n": 1}], TruncatedStreamError)
    assert warnings_of(caplog) == []


def test_half_an_end_marker_is_a_truncated_stream(ask: Requester) -> None:
    with SSEServer([send({"n": 1}), raw(b"data: [DO"), cut()]) as server, ask(server.url) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([{"n": 1}], TruncatedStreamError)


def test_end_marker_counts_in_an_incomplete_compressed_body(ask: Requester) -> None:
    body = gzip.compress(b'data: {"n": 1}\n\ndata: [DONE]\n')[:-4]
    steps = [respond(headers={"Content-Encoding": "gzip"}), raw(body)]
    with SSEServer(steps) as server, ask(server.url) as response:
        assert response.items() == [{"n": 1}]
        assert response.events.outcome == "done"


@pytest.mark.parametrize(
    ("block", "last"),
    [
        (b'event: message_stop\ndata: {"n": 2}', {"n": 2}),
        (b'event: message_stop\ndata: {"n": 2}\n', {"n": 2}),
        (b"event: message_stop\ndata: null\n", None),
        (b"event: message_stop\ndata: bye\n", None),
    ],
)
@pytest.mark.parametrize("reconnect", [None, AT_ONCE], ids=["once", "reconnecting"])
def test_end_event_counts_without_its_blank_line(ask: Requester, block: bytes, last: Any, reconnect: Any) -> None:
    steps = [send({"n": 1}), raw(block)]
    with SSEServer(steps) as server, ask(server.url, dialect="anthropic", reconnect=reconnect) as response:
        assert response.items() == [{"n": 1}, *([last] if last else [])]
        assert response.events.outcome == "done"


@pytest.mark.parametrize(
    ("block", "decode"),
    [
        (b'event: message_stop\ndata: {"n": ', "json"),
        (b'event: message_stop\ndata: {"n": \n', "json"),
        (b"event: message_stop\ndata: by", "json"),
        (b"event: message_stop\ndata: by", "text"),
    ],
)
def test_half_an_end_event_is_dropped(
    ask: Requester, block: bytes, decode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send("1"), raw(block)]) as server, ask(server.url, decode=decode, dialect="anthropic") as response:
        assert len(response.items()) == 1
        assert response.events.outcome == "eof"
    assert len(warnings_of(caplog)) == 1


@pytest.mark.slow
@framings
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\nid: 9\n", b"\nid: 9", b"\nretry: 15", b"\nretry: 1500\n"])
@pytest.mark.parametrize("value", [{"n": 2}, [2], {"text": "ä" * 40_000}, {"a": [{"b": "}"}]}], ids=range(4))
def test_whole_json_is_delivered_without_its_blank_line(
    ask: Requester, framing: Step, end: bytes, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    block = b"event: m\ndata: " + json.dumps(value, ensure_ascii=False).encode() + end
    with SSEServer([framing, send(1, id="1"), raw(block)]) as server, ask(server.url) as response:
        assert response.items() == [1, value]
        events = response.events
        assert (events.outcome, events.last_event_id, events.stats.events) == ("eof", "1", 2)
        assert events.last_event is not None
        assert (events.last_event.event, events.last_event.id) == ("m", "1")
        assert events.retry == (1.5 if b"1500" in end else None)
    assert warnings_of(caplog) == []


def test_error_is_raised_without_its_blank_line(ask: Requester) -> None:
    with SSEServer([send(1), raw(b'data: {"error": "busy"}\n')]) as server, ask(server.url) as response:
        items, error = response.fail()
        assert (items, str(error)) == ([1], "the upstream sent an error: busy")


def test_required_end_is_missed_after_the_last_block(ask: Requester) -> None:
    with SSEServer([send(1), raw(b'data: {"n": 2}\n')]) as server, ask(server.url, require_done=True) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([1, {"n": 2}], TruncatedStreamError)
        assert response.fail() == ([], error)


@pytest.mark.parametrize(
    ("block", "options"),
    [
        (b'data: {"n": 2', {}),
        (b'data: {"n": 2}\ndata: {"n"', {}),
        (b"data: 2\n", {}),
        (b'data: "2"\n', {}),
        (b"data: {n: 2}\n", {}),
        # No blank of JSON.
        (b'data: \xc2\xa0{"n": 2}\n', {}),
        (b"data: [DO", {}),
        (b"event: m\nid: 9\ndata: 2\n", {}),
        (b"data: " + b"[" * 100_000 + b"]", {}),
        (b'data: {"n": 2}\n', {"decode": "text"}),
        (b'data: {"n": 2}\n', {"decode": "event"}),
        (b'data: {"n": 2}\n', {"decode": ServerSentEvent.json}),
        (b'data: {"n": 2}\n', {"reconnect": ReconnectionPolicy(on_eof=False)}),
    ],
    ids=range(13),
)
def test_other_last_block_is_dropped_with_a_warning(
    ask: Requester, block: bytes, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send("1", id="1"), raw(block)]) as server, ask(server.url, **options) as response:
        assert len(response.items()) == 1
        assert (response.events.outcome, response.events.last_event_id) == ("eof", "1")
        (warning,) = warnings_of(caplog)
        name = "m" if b"event: m" in block else "message"
        assert warning.startswith(f'{server.url}/: the stream ended within an event (type "{name}", ')
    assert "n" not in warning.partition("(type")[2].partition(")")[0].replace(name, "").replace(
        "characters of data so far", ""
    ), "no data is logged"


@pytest.mark.parametrize(
    "block", [b"", b"id: 9\n", b"event: m\n", b": comment", b"retry: 15", b"dat", b"event: ping\ndata: {}\n", b"data: "]
)
def test_last_block_without_content_is_dropped_silently(
    ask: Requester, block: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send(1, id="1"), raw(block)]) as server, ask(server.url) as response:
        assert response.items() == [1]
        assert (response.events.last_event_id, response.events.retry) == ("1", None)
    assert warnings_of(caplog) == []


def test_lost_connection_drops_its_last_block_without_a_warning(
    ask: Requester, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer(in_turn([send(1, id="1"), raw(b'data: {"n": 2}\n'), cut()], [send(2), DONE])) as server:
        with ask(server.url) as response:
            items, error = response.fail()
            assert (items, type(error)) == ([1], TruncatedStreamError)
        with ask(server.url, reconnect=AT_ONCE) as response:
            assert response.items() == [2]
    assert warnings_of(caplog) == []


def test_reconnecting_stream_gets_the_last_block_again(ask: Requester, caplog: pytest.LogCaptureFixture) -> None:
    first = [send(1, id="1"), raw(b'id: 2\ndata: {"n": 2}\n')]
    with SSEServer(in_turn(first, [send({"n": 2}, id="2"), DONE])) as server:
        with ask(server.url, reconnect=AT_ONCE) as response:
            assert response.items() == [1, {"n": 2}]
        assert server.requests[1].last_event_id == "1"
    assert len(warnings_of(caplog)) == 1


# A `done` function and the last block.


@pytest.mark.parametrize("decode", ["json", "text", "event"])
@pytest.mark.parametrize("reconnect", [None, LATE], ids=["once", "reconnecting"])
def test_done_function_sees_the_last_block(
    ask: Requester, decode: Any, reconnect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def is_last(event: ServerSentEvent) -> bool:
        seen.append(event.data)
        return event.data == "[2]"

    options: dict[str, Any] = {"decode": decode, "done": is_last, "require_done": True, "reconnect": reconnect}
    with SSEServer([send("1", id="1"), raw(b"id: 2\ndata: [2]\n")]) as server, ask(server.url, **options) as response:
        assert len(response.items()) == 2
        assert (response.events.outcome, response.events.last_event_id) == ("done", "1")
        assert len(server.requests) == 1
    assert seen == ["1", "[2]"], "once for each event"
    assert warnings_of(caplog) == []


def test_last_block_that_the_done_function_refuses_is_dropped(ask: Requester, caplog: pytest.LogCaptureFixture) -> None:
    with (
        SSEServer([send("1"), raw(b"data: 2\n")]) as server,
        ask(server.url, decode="text", done=lambda event: False) as response,
    ):
        assert response.items() == ["1"]
        assert response.events.outcome == "eof"
    assert len(warnings_of(caplog)) == 1


def test_done_function_failing_for_the_last_block_is_callback_error(ask: Requester) -> None:
    def is_last(event: ServerSentEvent) -> bool:
        return 1 / int(event.data) > 1

    with SSEServer([send("1"), raw(b"data: 0\n")]) as server, ask(server.url, decode="text", done=is_last) as response:
        items, error = response.fail()
        assert (items, type(error)) == (["1"], CallbackError)
        assert response.fail() == ([], error)


# Bodies that are no event stream.

ERROR = b'{"error": {"message": "too long"}}'
LINES = b'{"n": 1}\n{"n": 2}\n'
PAGE = b"<!DOCTYPE html>\n<html><h1>Bad gateway</h1></html>\n"


@pytest.mark.slow
@framings
@pytest.mark.parametrize("decode", ["json", *NOT_JSON_MODES])
@pytest.mark.parametrize("body", [ERROR, b"\xef\xbb\xbf\n" + ERROR + b"\n", b"error: " + ERROR + b"\n\n"], ids=range(3))
def test_error_object_in_place_of_events_is_an_upstream_error(
    ask: Requester, framing: Step, decode: Any, body: bytes
) -> None:
    with SSEServer([framing, raw(body)]) as server, ask(server.url, data={}, decode=decode) as response:
        items, error = response.fail()
        assert items == []
        assert isinstance(error, UpstreamError)
        assert (error.event, error.payload) == (None, json.loads(ERROR))
        assert str(error) == "the upstream sent an error: too long"
        assert response.fail() == ([], error)
        assert response.events.outcome == "error"


@pytest.mark.parametrize("member", [True, 500, ["too long"], [{"message": "too long"}]], ids=repr)
def test_error_object_of_any_form_is_an_upstream_error(ask: Requester, member: Any) -> None:
    payload = {"error": member, "message": "too long"}
    with SSEServer([respond(), raw(json.dumps(payload).encode())]) as server, ask(server.url, data={}) as response:
        items, error = response.fail()
        assert items == []
        assert isinstance(error, UpstreamError)
        assert (error.event, error.payload) == (None, payload)
        assert "too long" in str(error)


@pytest.mark.slow
@framings
@pytest.mark.parametrize("decode", ["json", *NOT_JSON_MODES])
@pytest.mark.parametrize(
    ("body", "quotation"),
    [
        (LINES, '{"n": 1} {"n": 2}'),
        (PAGE, "Bad gateway"),
        (b"upstream connect error", "upstream connect error"),
        (b'{"choices": [{"message": "whole"}]}', "whole"),
        (b"unknown: field\n\n", "unknown: field"),
        (b"\xff\xfed\x00a\x00t\x00a\x00:\x00\n\x00", "d"),
    ],
    ids=range(6),
)
def test_other_body_is_a_protocol_error_with_its_text(
    ask: Requester, framing: Step, decode: Any, body: bytes, quotation: str
) -> None:
    with SSEServer([framing, raw(body)]) as server, ask(server.url, decode=decode) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([], ProtocolError)
        assert quotation in str(error)
        assert str(error).isprintable()


UNFRAMED_ENDS = [
    ERROR + b"\n\n",
    b"\n\n" + ERROR,
    b"error: " + ERROR + b"\r\n\r\n",
    b'{\r  "error": {\r\r    "message": "too long"\r  }\r}\r',
    b": ping\n\n" * 20_000 + b"retry: 5\n\nunknown: field\nid: 9\n" + ERROR,
]


@pytest.mark.parametrize("decode", ["json", "event"])
@pytest.mark.parametrize("before", [b'id: 1\ndata: {"n": 1}\n\n', b'data: {"n": 1}\n\n: ping\n\n'], ids=range(2))
@pytest.mark.parametrize("end", UNFRAMED_ENDS, ids=range(5))
def test_error_object_behind_the_events_is_an_upstream_error(
    ask: Requester, before: bytes, end: bytes, decode: Any
) -> None:
    with SSEServer([raw(before), raw(end)]) as server, ask(server.url, decode=decode, require_done=True) as response:
        items, error = response.fail()
        assert len(items) == 1
        assert isinstance(error, UpstreamError)
        assert (error.event, error.payload, str(error)) == (
            None,
            json.loads(ERROR),
            "the upstream sent an error: too long",
        )
        assert response.events.outcome == "error"


@pytest.mark.parametrize("body", [b": ping\n\n", b"id: 1\n\n", b"retry: 5\n\n"])
def test_error_object_behind_fields_alone_is_an_upstream_error(ask: Requester, body: bytes) -> None:
    for pieces in ([body + ERROR], [body[n : n + 1] for n in range(len(body))] + [ERROR[:9], ERROR[9:]]):
        with SSEServer([raw(piece) for piece in pieces]) as server, ask(server.url) as response:
            items, error = response.fail()
            assert (items, type(error)) == ([], UpstreamError)


@pytest.mark.parametrize(
    "end",
    [
        ERROR + b"\n\ndata: [DONE]\n\n",
        ERROR + b"\n\n: ping\n\n",
        b'{"n": 2}\n\n',
        b'{"error": ""}\n\n',
        b"error: [1]\n\n",
        ERROR[:-1],
        b"[DONE]\n\n",
    ],
)
def test_other_unknown_lines_behind_the_events_are_ignored(ask: Requester, end: bytes) -> None:
    with SSEServer([send({"n": 1}), raw(end)]) as server, ask(server.url) as response:
        assert response.items() == [{"n": 1}]


@pytest.mark.parametrize("body", [ERROR, LINES, PAGE])
def test_body_of_another_type_is_an_error_too(ask: Requester, body: bytes) -> None:
    steps = [respond(content_type="text/html"), raw(body)]
    with SSEServer(steps) as server, ask(server.url, check_content_type=False) as response:
        assert isinstance(response.fail()[1], UpstreamError if body is ERROR else ProtocolError)


@pytest.mark.parametrize("size", [10, 1000, 65_000])
def test_endless_body_is_refused_after_64_kib(ask: Requester, size: int) -> None:
    line = b"x" * size + b"\n"
    steps = [raw(line)] * (66_000 // size + 1)
    with SSEServer([*steps, silence()]) as server, ask(server.url) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([], ProtocolError)
        ask.run_blocking(server.requests[0].wait_aborted, 30)


def test_compressed_body_is_refused_with_its_text(ask: Requester) -> None:
    steps = [respond(headers={"Content-Encoding": "gzip"}), raw(gzip.compress(ERROR))]
    with SSEServer(steps) as server, ask(server.url) as response:
        assert str(response.fail()[1]) == "the upstream sent an error: too long"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\r\n\r",
        b"\xef\xbb\xbf",
        b": ping\n\n",
        b": ping",
        b":",
        b"id: 1",
        b"retry: 1\n",
        b"event: x\n\n",
        b"data\n",
        b"unknown: field\n\n: ping\n\n",
    ],
)
def test_body_with_a_field_or_comment_is_an_event_stream(ask: Requester, body: bytes) -> None:
    pieces = [raw(body[n : n + 1]) for n in range(len(body))]
    for steps in ([respond(), raw(body)] if body else [respond()], [respond(), *pieces]):
        with SSEServer(steps) as server, ask(server.url) as response:
            assert response.items() == []
            assert response.events.outcome == "eof"


def test_first_line_may_be_long(ask: Requester) -> None:
    """A field is recognized before its line ends."""
    text = "x" * 300_000
    steps = [raw(b"\n" * 100_000), raw(b"data: " + text.encode()), raw(b"\n\n")]
    with SSEServer(steps) as server, ask(server.url, decode="text") as response:
        assert response.items() == [text]
    padding = [comment(" " * 2048), raw(b"\n" * 70_000), send("1")]
    with SSEServer(padding) as server, ask(server.url, decode="text") as response:
        assert response.items() == ["1"]


@pytest.mark.parametrize("before", [[], [send(1)]], ids=["alone", "behind an event"])
def test_lost_connection_is_reported_with_the_error_before_it(ask: Requester, before: list[Step]) -> None:
    with SSEServer([*before, raw(ERROR), cut()]) as server, ask(server.url) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([1] * len(before), TruncatedStreamError)
        assert str(error).endswith("closed in mid-stream; before that, the upstream sent an error: too long")


@pytest.mark.parametrize("body", [ERROR[:-1], LINES, PAGE, b"data: " + ERROR[:-1]])
def test_lost_connection_quotes_no_other_body(ask: Requester, body: bytes) -> None:
    with SSEServer([raw(body), cut()]) as server, ask(server.url) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([], TruncatedStreamError)
        assert str(error).endswith("closed in mid-stream")


def test_reconnecting_stream_ends_with_an_upstream_error(ask: Requester) -> None:
    with SSEServer(in_turn([send(1, id="1"), cut()], [raw(ERROR)])) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert (items, type(error), len(server.requests)) == ([1], UpstreamError, 2)


def test_reconnecting_stream_tries_again_after_a_page(ask: Requester) -> None:
    with SSEServer(in_turn([raw(PAGE)], [send(1), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1]


# Wherever a stream is read.


def read(reader: str, url: str, items: list[Any]) -> None:
    """Append the items of a stream that is read in one of several ways."""
    if reader == "merge":
        items += [item for _, item in merge({"a": request_sse(url)})]
    elif reader == "gather":
        items += [item for _, collected in gather([partial(request_sse, url)]) for item in collected]
    elif reader == "tee":
        with tee(request_sse(url)) as (first, second):
            items += first
            assert list(second) == items
    elif reader == "log":
        with MemoryLog() as log:
            stream = log.open("k", lambda: request_sse(url))
            items += stream
            assert list(log.open("k")) == items
    else:
        items += request_sse(url).events


@pytest.mark.parametrize("reader", ["plain", "merge", "gather", "tee", "log"])
def test_last_block_reaches_every_reader(reader: str) -> None:
    items: list[Any] = []
    with SSEServer([send(1), raw(b'data: {"n": 2}\n')]) as server:
        read(reader, server.url, items)
    assert items == [1, {"n": 2}]


@pytest.mark.parametrize("reader", ["plain", "merge", "gather", "tee", "log"])
@pytest.mark.parametrize(("body", "kind"), [(ERROR, UpstreamError), (PAGE, ProtocolError)])
def test_body_that_is_no_event_stream_fails_every_reader(reader: str, body: bytes, kind: type[SSEError]) -> None:
    items: list[Any] = []
    with SSEServer([raw(body)]) as server, pytest.raises(kind) as caught:
        read(reader, server.url, items)
    assert items == []
    assert getattr(caught.value, "event", None) is None


def test_relay_forwards_the_last_block_and_the_end_marker() -> None:
    with SSEServer([send({"n": 1}, id="1"), raw(b'id: 2\ndata: {"n": 2}\n')]) as server:
        body = b"".join(relay.frames(request_sse(server.url)))
        assert body.removeprefix(b":\n") == b'id: 1\ndata: {"n": 1}\n\nid: 1\ndata: {"n": 2}\n\n'
    with SSEServer([send({"n": 1}), raw(b"data: [DONE]")]) as server:
        body = b"".join(relay.frames(request_sse(server.url)))
        assert body.removeprefix(b":\n") == b'data: {"n": 1}\n\ndata: [DONE]\n\n'


def test_relay_reports_an_error_in_place_of_events() -> None:
    with SSEServer([raw(b'{"error": "too \\u001b[31m long"}')]) as server:
        body = b"".join(relay.frames(request_sse(server.url)))
        assert body.removeprefix(b":\n").startswith(b"event: error\n")
        # The provider's own text stays in the log.
        assert b'"message":"the upstream reported an error"' in body
        assert b"long" not in body
