"""Answers: status, headers, items, error responses, payloads, compression; by request_sse and arequest_sse."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import (
    AsyncSSEResponse,
    CallbackError,
    Comment,
    ContentTypeError,
    DecodeError,
    ProtocolError,
    ServerSentEvent,
    SSEResponse,
    StatusError,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    request_sse,
)
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, comment, cut, hold, raw, reset, respond, send, wire
from tests.requesters import Requester

DONE = send("[DONE]")
JSON = "application/json"
NOT_JSON_MODES: list[Any] = ["text", "event", lambda event: event.data]


# The call.


def test_the_call_returns_status_headers_and_items(ask: Requester) -> None:
    with (
        SSEServer([respond(headers={"X-Request-Id": "7"}), send({"n": 1}), send({"n": 2}), DONE]) as server,
        ask(server.url, {"X-One": "1"}, {"stream": True}) as response,
    ):
        assert response.status == response.response.status == response.events.status == 200
        assert type(response.status) is int
        assert isinstance(response.headers, httpx.Headers)
        assert response.headers is response.response.headers is response.events.headers
        assert response.headers["x-request-id"] == "7"
        assert isinstance(response.response, AsyncSSEResponse if ask.is_async else SSEResponse)
        assert isinstance(response.response, tuple)
        assert response.items() == [{"n": 1}, {"n": 2}]
        assert response.items() == []
        assert response.events.outcome == "done"
        assert response.events.http_version == "HTTP/1.1"


def test_the_call_takes_url_headers_and_data() -> None:
    with SSEServer([send({"n": 1}), send({"n": 2}), DONE]) as server:
        status, headers, it = request_sse(server.url, {"Authorization": "Bearer x"}, {"stream": True})
        assert (status, headers["Content-Type"]) == (200, "text/event-stream")
        assert list(it) == [{"n": 1}, {"n": 2}]
        request = server.requests[0]
        assert (request.method, request.json(), request.headers["authorization"]) == (
            "POST",
            {"stream": True},
            "Bearer x",
        )


def test_the_call_returns_when_the_headers_arrive(ask: Requester) -> None:
    flag = threading.Event()
    with SSEServer([respond(), hold(flag), send(1), DONE]) as server, ask(server.url) as response:
        assert (response.status, response.events.stats.events) == (200, 0)
        flag.set()
        assert response.items() == [1]


def test_stream_can_end_without_done(ask: Requester) -> None:
    with SSEServer([send(1)]) as server, ask(server.url) as response:
        assert response.items() == [1]
        assert response.events.outcome == "eof"


@pytest.mark.parametrize("steps", [[], [comment("ping")], [raw(b"event: ping\nid: 7\n\nretry: 3\n\n")]])
def test_a_stream_without_events(ask: Requester, steps: list[Step]) -> None:
    with SSEServer([respond(), *steps]) as server, ask(server.url) as response:
        assert response.items() == []
        assert (response.events.outcome, response.events.last_event) == ("eof", None)


def test_repr_shows_status_and_state_but_no_header(ask: Requester) -> None:
    with (
        SSEServer([respond(headers={"X-Secret": "secret"}), send("secret"), DONE]) as server,
        ask(f"{server.url}/?key=secret", {"X-Key": "secret"}, {"p": "secret"}, decode="text") as response,
    ):
        assert "[200] open" in repr(response.events)
        assert repr(response.events) in repr(response.response)
        assert response.items() == ["secret"]
        assert "[200] done" in repr(response.response)
        assert "secret" not in repr(response.response) + str(response.response) + repr(response.events)


# Another status than 200.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "content_type", "body", "item"),
    [
        (400, JSON, b'{"error": {"message": "no such model"}}', {"error": {"message": "no such model"}}),
        (401, JSON, b'{"jsonrpc": "2.0"}', {"jsonrpc": "2.0"}),
        (404, "text/plain", b"not here", "not here"),
        (429, JSON, b"[1, 2]", [1, 2]),
        (500, "text/event-stream", b"data: 1\n\n", "data: 1\n\n"),
        (502, "text/html", b"<html>Bad \xffGateway</html>", "<html>Bad \ufffdGateway</html>"),
        (503, None, b"null", None),
        (201, JSON, b'{"a": 1}', {"a": 1}),
        (599, JSON, b'"\xc3\xa4"', "ä"),
    ],
)
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_body_of_an_error_response_is_the_only_item(
    ask: Requester, status: int, content_type: str | None, body: bytes, item: Any, framing: Any
) -> None:
    with (
        SSEServer([respond(status, framing=framing, content_type=content_type), raw(body)]) as server,
        ask(server.url, data={}) as response,
    ):
        assert response.status == status
        assert response.items() == [item]
        assert response.items() == []
        assert response.events.outcome == "eof"


@pytest.mark.parametrize("status", [204, 400, 502])
def test_error_response_with_an_empty_body_has_no_item(ask: Requester, status: int) -> None:
    with SSEServer([respond(status, framing="length", content_type=None)]) as server, ask(server.url) as response:
        assert (response.status, response.items(), response.events.outcome) == (status, [], "eof")


@pytest.mark.parametrize("decode", NOT_JSON_MODES)
def test_error_response_raises_status_error_in_text_mode(ask: Requester, decode: Any) -> None:
    steps = [respond(503, {"Retry-After": "3"}, content_type="text/plain"), raw(b"try "), raw("später".encode())]
    with SSEServer(steps) as server, ask(server.url, decode=decode) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "3")
        items, error = response.fail()
        assert items == []
        assert isinstance(error, StatusError)
        assert (error.status, error.headers, error.text) == (503, response.headers, "try später")
        assert error.body == "try später".encode()
        assert str(error) == f"{server.url}/ answered 503 Service Unavailable; its body is in .body"
        assert response.fail() == ([], error)
        assert response.events.outcome == "error"


@pytest.mark.parametrize("decode", NOT_JSON_MODES)
def test_204_has_no_items_in_every_mode(ask: Requester, decode: Any) -> None:
    with SSEServer([respond(204)]) as server, ask(server.url, decode=decode) as response:
        assert response.items() == []
        response.raise_for_status()


def test_undefined_status_is_reported_without_a_name(ask: Requester) -> None:
    with SSEServer([respond(599, content_type=None), raw(b"?")]) as server, ask(server.url, decode="text") as response:
        _, error = response.fail()
        assert str(error) == f"{server.url}/ answered 599; its body is in .body"


@pytest.mark.parametrize("decode", ["json", *NOT_JSON_MODES])
@pytest.mark.parametrize("on_stream", [True, False])
def test_raise_for_status(ask: Requester, decode: Any, on_stream: bool) -> None:
    with (
        SSEServer([respond(418, {"X-Tea": "pot"}, content_type=JSON), raw(b'{"a": 1}')]) as server,
        ask(server.url, data={"secret": 1}, decode=decode) as response,
    ):
        for _ in range(2):
            with pytest.raises(StatusError) as caught:
                response.raise_for_status(response.events if on_stream else response.response)
            error = caught.value
            assert (error.status, error.headers["x-tea"], error.body) == (418, "pot", b'{"a": 1}')


def test_raise_for_status_leaves_the_body_to_be_read(ask: Requester) -> None:
    with SSEServer([respond(500, content_type=JSON), raw(b'{"a": 1}')]) as server, ask(server.url) as response:
        with pytest.raises(StatusError):
            response.raise_for_status()
        assert response.items() == [{"a": 1}]
        with pytest.raises(StatusError) as caught:
            response.raise_for_status()
        assert caught.value.body == b'{"a": 1}'


def test_raise_for_status_returns_its_object(ask: Requester) -> None:
    with SSEServer([send(1), DONE]) as server, ask(server.url) as response:
        assert response.raise_for_status() is response.response
        assert response.raise_for_status(response.events) is response.events
        assert response.items() == [1]
        assert response.raise_for_status() is response.response


@pytest.mark.parametrize("leave", [cut, reset])
@pytest.mark.parametrize("decode", ["json", "text"])
def test_cut_off_error_body_is_kept_in_part(ask: Requester, leave: Callable[[], Step], decode: Any) -> None:
    is_asked_for = threading.Event()
    steps = [respond(500, content_type=JSON), raw(b'{"a": '), hold(is_asked_for), leave()]
    with SSEServer(steps) as server, ask(server.url, decode=decode) as response:
        is_asked_for.set()
        items, error = response.fail()
        assert (items, type(error)) == ([], StatusError)
        assert isinstance(error, StatusError)
        # A reset may discard bytes that were not read yet.
        assert error.body in ((b'{"a": ',) if leave is cut else (b'{"a": ', b""))
        assert error.__cause__ is not None
        with pytest.raises(StatusError) as caught:
            response.raise_for_status()
        assert (caught.value.status, caught.value.body) == (500, error.body)


def test_at_most_a_mebibyte_of_an_error_body_is_kept(ask: Requester) -> None:
    with (
        SSEServer([respond(500, content_type="text/plain"), *[raw(b"x" * 100_000)] * 20]) as server,
        ask(server.url) as response,
    ):
        [item] = response.items()
        assert item == "x" * 1024 * 1024
        with pytest.raises(StatusError) as caught:
            response.raise_for_status()
        assert len(caught.value.body) == 1024 * 1024


# The content type.


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "Text/Event-Stream; charset=x", "text/event-stream;charset=utf-8", " text/event-stream ; a"],
)
def test_content_type_is_compared_case_insensitively_without_parameters(ask: Requester, content_type: str) -> None:
    with SSEServer([respond(content_type=content_type), send(1), DONE]) as server, ask(server.url) as response:
        assert response.items() == [1]


@pytest.mark.parametrize(
    "content_type", ["text/event-streamish", "text/event", JSON, "text/html; text/event-stream", "", None]
)
@pytest.mark.parametrize("decode", ["json", "text"])
def test_wrong_content_type_raises_content_type_error(ask: Requester, content_type: str | None, decode: Any) -> None:
    steps = [respond(headers={"X-One": "1"}, content_type=content_type), raw(b'{"ok": '), raw(b"true}")]
    with SSEServer(steps) as server:
        with pytest.raises(ContentTypeError, match="check_content_type=False") as caught:
            ask(f"{server.url}/?key=secret", decode=decode)
        error = caught.value
        assert (error.status, error.headers["x-one"], error.body, error.text) == (
            200,
            "1",
            b'{"ok": true}',
            '{"ok": true}',
        )
        assert "secret" not in str(error)


@pytest.mark.parametrize("content_type", ["text/plain", None])
def test_check_content_type_false_accepts_any_content_type(ask: Requester, content_type: str | None) -> None:
    with (
        SSEServer([respond(content_type=content_type), send(1), DONE]) as server,
        ask(server.url, check_content_type=False) as response,
    ):
        assert response.items() == [1]


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-16", "no-such-charset"])
def test_a_charset_changes_nothing(ask: Requester, charset: str) -> None:
    with (
        SSEServer([respond(content_type=f"text/event-stream; charset={charset}"), send("ä€"), DONE]) as server,
        ask(server.url, decode="text") as response,
    ):
        assert response.items() == ["ä€"]


# Decoding, and the end of the stream.

EVENTS = [send({"a": 1}, event="m", id="7"), comment("ping"), send("2", retry=1.5), DONE]
FIRST, SECOND = ServerSentEvent("m", '{"a": 1}', "7"), ServerSentEvent("message", "2", "7", 1.5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [{"a": 1}, 2]),
        ({"decode": "json"}, [{"a": 1}, 2]),
        ({"decode": "text"}, ['{"a": 1}', "2"]),
        ({"decode": "event"}, [FIRST, SECOND]),
        ({"decode": "event", "comments": True}, [FIRST, Comment("ping"), SECOND]),
        ({"decode": lambda event: (event.event, event.id)}, [("m", "7"), ("message", "7")]),
        ({"decode": ServerSentEvent.json}, [{"a": 1}, 2]),
        ({"done": "2"}, [{"a": 1}]),
        ({"done": "2", "require_done": True}, [{"a": 1}]),
        ({"done": lambda event: event.data == "2"}, [{"a": 1}, 2]),
        ({"done": lambda event: event.event == "m", "require_done": True}, [{"a": 1}]),
        ({"done": lambda event: None, "decode": "text"}, ['{"a": 1}', "2", "[DONE]"]),
        ({"done": None, "decode": "text"}, ['{"a": 1}', "2", "[DONE]"]),
        ({"done": "", "decode": "text"}, ['{"a": 1}', "2", "[DONE]"]),
    ],
)
def test_items_are_decoded_as_requested(ask: Requester, options: dict[str, Any], expected: list[Any]) -> None:
    with SSEServer(EVENTS) as server, ask(server.url, **options) as response:
        assert response.items() == expected
        assert response.events.outcome == ("eof" if "[DONE]" in expected else "done")


@pytest.mark.parametrize("done", ["[DONE]", "", "\u2028"])
def test_done_is_the_exact_data_of_an_event(ask: Requester, done: str) -> None:
    near = [f" {done}", f"{done} ", f"{done}\n", f"[{done}]"]
    with (
        SSEServer([*(send(data) for data in near), send(done), send("after")]) as server,
        ask(server.url, decode="text", done=done) as response,
    ):
        assert response.items() == near
        assert response.events.outcome == "done"


def test_events_after_done_in_one_read_are_dropped(ask: Requester) -> None:
    with SSEServer([raw(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")]) as server:
        for options, expected in (({"done": "2"}, [1]), ({"done": lambda event: event.data == "2"}, [1, 2])):
            with ask(server.url, **options) as response:
                assert response.items() == expected
                assert response.events.outcome == "done"


@pytest.mark.parametrize("done", ["[DONE]", lambda event: False])
def test_an_end_without_the_required_done_is_an_error(ask: Requester, done: Any) -> None:
    with SSEServer([send(1), send(2)]) as server, ask(server.url, done=done, require_done=True) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([1, 2], TruncatedStreamError)
        assert response.fail() == ([], error)
        assert response.events.outcome == "error"


def test_accepted_last_event_satisfies_require_done_when_the_connection_ends(ask: Requester) -> None:
    """The loop sees the end of the body before the consumer has looked at its last event."""
    with (
        SSEServer([respond(framing="close"), raw(b"data: 1\n\ndata: 2\n\n")]) as server,
        ask(server.url, done=lambda event: event.data == "2", require_done=True) as response,
    ):
        assert response.items() == [1, 2]
        assert response.events.outcome == "done"


def test_an_error_response_needs_no_done(ask: Requester) -> None:
    with (
        SSEServer([respond(500, content_type=JSON), raw(b"{}")]) as server,
        ask(server.url, require_done=True) as response,
    ):
        assert response.items() == [{}]


@pytest.mark.parametrize(
    ("step", "payload", "quoted"),
    [
        (send({"error": {"message": "overloaded", "type": "x"}}), {"error": {"message": "overloaded", "type": "x"}}, 1),
        (send({"error": "overloaded", "n": 1}), {"error": "overloaded", "n": 1}, 1),
        (send({"error": {"code": 7}}), {"error": {"code": 7}}, 0),
        (send({}, event="error"), {}, 0),
        (send({"message": "overloaded"}, event="error"), {"message": "overloaded"}, 1),
        (send("overloaded", event="error"), "overloaded", 1),
        (send("[1]", event="error"), [1], 0),
    ],
)
def test_error_event_raises_upstream_error(ask: Requester, step: Step, payload: Any, quoted: int) -> None:
    with SSEServer([send(1), step, send(2), DONE]) as server:
        with ask(server.url) as response:
            items, error = response.fail()
            assert items == [1]
            assert isinstance(error, UpstreamError)
            assert error.payload == payload
            assert ("overloaded" in str(error)) == bool(quoted)
            assert response.fail() == ([], error)
            assert response.events.outcome == "error"
        assert server.requests[0].finished.wait(30)


def test_error_events_yield_delivers_error_events(ask: Requester) -> None:
    steps = [send({"error": "a"}), send("b", event="error"), send({"c": 1}, event="error"), DONE]
    with SSEServer(steps) as server, ask(server.url, error_events="yield") as response:
        assert response.items() == [{"error": "a"}, "b", {"c": 1}]


def test_items_that_resemble_errors_are_delivered(ask: Requester) -> None:
    items = [
        {"error": None},
        {"error": False},
        {"error": ""},
        {"error": {}},
        {"error": 3},
        {"error": []},
        {"errors": "x"},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -32600}},
        ["error"],
        "error",
    ]
    with (
        SSEServer([*(raw(b"data: %b\n\n" % json.dumps(item).encode()) for item in items), DONE]) as server,
        ask(server.url) as response,
    ):
        assert response.items() == items


@pytest.mark.parametrize("decode", NOT_JSON_MODES)
def test_error_events_are_items_in_other_modes(ask: Requester, decode: Any) -> None:
    with SSEServer([send({"error": "x"}, event="error"), DONE]) as server, ask(server.url, decode=decode) as response:
        assert len(response.items()) == 1


@pytest.mark.parametrize("data", ["hello", "{", "{'a': 1}", "[DONE", "[DONE] 1", "NaN1", "[" * 100_000])
def test_decode_error_is_raised_by_every_later_read(ask: Requester, data: str) -> None:
    with SSEServer([send(1), send(data, event="m"), send(2), DONE]) as server, ask(server.url) as response:
        items, error = response.fail()
        assert items == [1]
        assert isinstance(error, DecodeError)
        assert error.event == ServerSentEvent("m", data)
        assert isinstance(error.__cause__, (ValueError, RecursionError))
        assert 'decode="text"' in str(error)
        assert response.fail()[1] is error
        assert response.events.outcome == "error"


def test_failure_of_decode_is_raised_by_every_later_read(ask: Requester) -> None:
    def decode(event: ServerSentEvent) -> float:
        return 1 / int(event.data)

    with SSEServer([send(2), send(0), send(1)]) as server, ask(server.url, decode=decode) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([0.5], DecodeError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert response.fail()[1] is error


def test_a_done_function_that_raises_is_a_callback_error(ask: Requester) -> None:
    def done(event: ServerSentEvent) -> bool:
        return 1 / int(event.data) > 1

    with SSEServer([send(2), send(0), send(1)]) as server, ask(server.url, done=done) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([2], CallbackError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert response.fail()[1] is error
        assert response.events.outcome == "error"


def test_callbacks_run_in_the_consumers_thread() -> None:
    threads: list[threading.Thread] = []

    def note(event: ServerSentEvent) -> bool:
        threads.append(threading.current_thread())
        return False

    with SSEServer([send(1), DONE]) as server:
        assert list(request_sse(server.url, decode=note, done=note).events) == [False, False]
    assert set(threads) == {threading.current_thread()}


# Properties of the stream.


def test_last_event_belongs_to_the_last_item(ask: Requester) -> None:
    body = b"data: 1\n\nid: a\nevent: m\ndata: 2\n\nid: b\n\ndata: 3\n\nid\ndata: 4\n\nid: z\n\n"
    with SSEServer([raw(body)]) as server, ask(server.url) as response:
        events = response.events
        assert (events.last_event, events.last_event_id) == (None, "")
        seen = [(response.next(), events.last_event, events.last_event_id) for _ in range(4)]
        assert seen == [
            (1, ServerSentEvent("message", "1", ""), ""),
            (2, ServerSentEvent("m", "2", "a"), "a"),
            (3, ServerSentEvent("message", "3", "b"), "b"),
            (4, ServerSentEvent("message", "4", ""), ""),
        ]
        assert response.items() == []
        assert (events.last_event, events.last_event_id) == (ServerSentEvent("message", "4", ""), "z")


def test_block_with_only_an_id_moves_last_event_id(ask: Requester) -> None:
    with (
        SSEServer([send(1, id="a"), raw(b"id: b\n\n"), comment("ping"), raw(b"id: c\ndata: cut off")]) as server,
        ask(server.url) as response,
    ):
        assert (response.next(), response.events.last_event_id) == (1, "a")
        assert response.items() == []
        assert response.events.last_event_id == "b"


def test_comment_does_not_set_last_event(ask: Requester) -> None:
    with (
        SSEServer([send(1, id="a"), comment("x"), DONE]) as server,
        ask(server.url, decode="event", comments=True) as response,
    ):
        assert len(response.items()) == 2
        assert response.events.last_event == ServerSentEvent("message", "1", "a")
        assert response.events.stats.events == 1


def test_an_event_that_does_not_decode_is_not_consumed(ask: Requester) -> None:
    with SSEServer([send(1, id="a"), send("x", id="b")]) as server, ask(server.url) as response:
        assert response.fail()[0] == [1]
        assert response.events.last_event_id == "a"


def test_retry_is_in_seconds(ask: Requester) -> None:
    flag = threading.Event()
    steps = [send(1), hold(flag), raw(b"retry: 1500\n\n"), raw(b"retry: x\n\n"), send(2)]
    with SSEServer(steps) as server, ask(server.url) as response:
        assert (response.next(), response.events.retry) == (1, None)
        flag.set()
        assert response.items() == [2]
        assert response.events.retry == 1.5


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_retry_is_up_to_date_with_the_item_in_hand(ask: Requester, steps: int) -> None:
    parts = [b"data: 1\n\nretry: 1000\n\ndata: 2\n\n", b"data: 3\nretry: 2000\n\ndata: 4\n\n", b"retry: 3000\n\n"]
    body = [b"".join(parts)] if steps == 1 else [b"".join(parts[:2]), parts[2]] if steps == 2 else parts
    with SSEServer([raw(part) for part in body]) as server, ask(server.url) as response:
        events = response.events
        assert [(response.next(), events.retry) for _ in range(4)] == [(1, None), (2, 1.0), (3, 2.0), (4, 2.0)]
        assert response.items() == []
        assert events.retry == 3.0


def test_retry_of_an_abandoned_stream_is_its_last_items(ask: Requester) -> None:
    with (
        SSEServer([raw(b"retry: 1000\ndata: 1\n\nretry: 2000\ndata: 2\n\n")]) as server,
        ask(server.url, done=lambda event: event.data == "1") as response,
    ):
        assert response.items() == [1]
        assert response.events.retry == 1.0


def test_stats_count_events_and_bytes(ask: Requester) -> None:
    flag = threading.Event()
    frame = b"data: 1\n\n"
    with (
        SSEServer([respond(), hold(flag), raw(frame * 2), comment("x"), raw(b"data: [DONE]\n\n")]) as server,
        ask(server.url) as response,
    ):
        stats = response.events.stats
        assert (stats.bytes, stats.events, stats.buffered, stats.reconnections) == (0, 0, 0, 0)
        assert stats.time_to_first_event is None
        flag.set()
        assert response.items() == [1, 1]
        stats = response.events.stats
        assert (stats.events, stats.buffered) == (2, 0)
        assert stats.bytes >= len(frame * 2 + b": x\n\ndata: [DONE]\n\n")
        assert stats.time_to_first_event is not None
        assert stats.time_to_first_event > 0


# Payloads and framings, over the wire.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'data:{"no":"space"}\n\n', [{"no": "space"}]),
        (b'data: {\ndata:   "a": 1,\ndata\ndata: "b": 2}\n\n', [{"a": 1, "b": 2}]),
        ('data: {"sep": "a\u2028b\u2029c\x85d"}\n\n'.encode(), [{"sep": "a\u2028b\u2029c\x85d"}]),
        (b"data: 1\r\rdata: 2\r\r", [1, 2]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [1, 2]),
        (b"data: 1\n\r\ndata: 2\r\n\n", [1, 2]),
        (b"\xef\xbb\xbfdata: 1\n\n", [1]),
        (b'data: "bad \xff\xc3 bytes"\n\n', ["bad \ufffd\ufffd bytes"]),
        (b": hi\n\nevent: ping\n\nretry: 3\n\ndata: 1\n\n: bye\n\n", [1]),
        (b"data: 1\n\ndata: cut off\n", [1]),
        (b"data: " + b"9" * 4000 + b"\n\n", [int("9" * 4000)]),
        (b'data: {"n": 12345678901234567890, "f": 1e3}\n\n', [{"n": 12345678901234567890, "f": 1000.0}]),
        (b'data: "' + b"x" * 300_000 + b'"\n\n', ["x" * 300_000]),
    ],
    ids=lambda value: repr(value)[:24],
)
@pytest.mark.parametrize("size", [1 << 20, 7])
def test_payloads_are_decoded_whatever_the_size_of_reads(
    ask: Requester, body: bytes, expected: list[Any], size: int
) -> None:
    size = max(size, len(body) // 1000)
    pieces = [raw(body[start : start + size]) for start in range(0, len(body), size)]
    with SSEServer([respond(), *pieces]) as server, ask(server.url) as response:
        assert response.items() == expected


@pytest.mark.slow
@pytest.mark.parametrize("ending", [b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_each_event_is_delivered_as_it_arrives(ask: Requester, framing: Any, ending: bytes) -> None:
    flags = [threading.Event() for _ in range(3)]
    frames = [b"data: %d" % n + ending for n in range(3)]
    length = sum(map(len, frames)) if framing == "length" else None
    steps: list[Step] = [respond(framing=framing, length=length)]
    for frame, flag in zip(frames, flags, strict=True):
        steps += [raw(frame), hold(flag)]
    with SSEServer(steps) as server, ask(server.url) as response:
        for n, flag in enumerate(flags):
            # The next event is sent only after this one was received.
            assert response.next() == n
            flag.set()
        assert response.items() == []
        assert response.events.outcome == "eof"


def test_a_comment_is_delivered_as_its_line_ends(ask: Requester) -> None:
    flag = threading.Event()
    with (
        SSEServer([raw(b": ping\n"), hold(flag), send(1), DONE]) as server,
        ask(server.url, decode="event", comments=True) as response,
    ):
        assert response.next() == Comment("ping")
        flag.set()
        assert response.items() == [ServerSentEvent("message", "1")]


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_body_can_end_with_the_connection(ask: Requester, version: bytes) -> None:
    head = version + b" 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    with SSEServer([wire(head), wire(b"data: 1\n\n"), cut()]) as server, ask(server.url) as response:
        assert response.items() == [1]
        assert (response.events.http_version, response.events.outcome) == (version.decode(), "eof")


def test_early_hints_are_skipped(ask: Requester) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n"
    with SSEServer([wire(hints + head + b"data: 1\n\n")]) as server, ask(server.url) as response:
        assert (response.status, response.items()) == (200, [1])


# Compression.


def gzipped() -> Any:
    return zlib.compressobj(wbits=31)


COMPRESSIONS: list[tuple[str, Callable[[], Any]]] = [
    ("gzip", gzipped),
    ("X-GZip", gzipped),
    ("deflate", zlib.compressobj),
    ("deflate", lambda: zlib.compressobj(wbits=-15)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "make"), COMPRESSIONS, ids=["gzip", "x-gzip", "zlib", "raw deflate"])
@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_a_compressed_event_is_delivered_as_it_arrives(
    ask: Requester, encoding: str, make: Callable[[], Any], framing: Any
) -> None:
    flags = [threading.Event() for _ in range(3)]

    def script(request: ReceivedRequest) -> Iterator[Step]:
        compressor = make()
        yield respond(headers={"Content-Encoding": encoding}, framing=framing)
        for n, flag in enumerate(flags):
            yield raw(compressor.compress(b"data: %d\n\n" % n) + compressor.flush(zlib.Z_SYNC_FLUSH))
            yield hold(flag)
        yield raw(compressor.flush())

    with SSEServer(script) as server, ask(server.url, {"Accept-Encoding": "gzip, deflate"}) as response:
        assert server.requests[0].headers["accept-encoding"] == "gzip, deflate"
        for n, flag in enumerate(flags):
            assert response.next() == n
            flag.set()
        assert response.items() == []
        assert response.events.outcome == "eof"


def test_a_compressed_error_response_is_decompressed(ask: Requester) -> None:
    body = gzip.compress(b'{"error": "busy"}')
    with SSEServer([respond(503, {"Content-Encoding": "gzip"}, content_type=JSON), raw(body)]) as server:
        with ask(server.url) as response:
            assert response.items() == [{"error": "busy"}]
            with pytest.raises(StatusError) as caught:
                response.raise_for_status()
            assert caught.value.body == b'{"error": "busy"}'
        with SSEServer([respond(headers={"Content-Encoding": "gzip"}, content_type=JSON), raw(body)]) as other:
            with pytest.raises(ContentTypeError) as refused:
                ask(other.url)
            assert refused.value.body == b'{"error": "busy"}'


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress"])
def test_an_unsupported_content_encoding_is_a_protocol_error(ask: Requester, encoding: str) -> None:
    with (
        SSEServer([respond(headers={"Content-Encoding": encoding}), raw(b"??")]) as server,
        pytest.raises(ProtocolError, match="Accept-Encoding"),
    ):
        ask(server.url)


@pytest.mark.parametrize("decode", ["json", "text"])
def test_error_response_in_an_unknown_encoding_keeps_its_status(ask: Requester, decode: Any) -> None:
    steps = [respond(503, {"Content-Encoding": "br"}), raw(b"??")]
    with SSEServer(steps) as server, ask(server.url, decode=decode) as response:
        assert (response.status, response.headers["content-encoding"]) == (503, "br")
        items, error = response.fail()
        assert (items, type(error), type(error.__cause__)) == ([], StatusError, ProtocolError)
        with pytest.raises(StatusError) as caught:
            response.raise_for_status()
        assert (caught.value.status, caught.value.body) == (503, b"")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_corrupt_compressed_body_is_a_protocol_error(ask: Requester, encoding: str) -> None:
    with (
        SSEServer([respond(headers={"Content-Encoding": encoding}), raw(b"data: 1\n\n" * 9)]) as server,
        ask(server.url) as response,
    ):
        items, error = response.fail()
        assert (items, type(error)) == ([], ProtocolError)


def test_a_compressed_body_that_ends_early_is_a_truncated_stream(ask: Requester) -> None:
    compressor = gzipped()
    body = compressor.compress(b"data: 1\n\n") + compressor.flush(zlib.Z_SYNC_FLUSH)
    with SSEServer([respond(headers={"Content-Encoding": "gzip"}), raw(body)]) as server, ask(server.url) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([1], TruncatedStreamError)


# Two readers.


def test_one_stream_is_read_by_one_thread_at_a_time() -> None:
    is_reading, may_go_on = threading.Barrier(2), threading.Event()
    errors: list[BaseException] = []

    def decode(event: ServerSentEvent) -> str:
        is_reading.wait()
        assert may_go_on.wait(30)
        return event.data

    def intrude(use: Callable[[], object]) -> None:
        try:
            use()
        except BaseException as exc:
            errors.append(exc)

    with SSEServer([send("1"), DONE]) as server, request_sse(server.url, decode=decode) as (_, _, items):
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.extend(items))
        reader.start()
        is_reading.wait()
        for use in (lambda: next(items), lambda: list(items), lambda: items.next(0), lambda: next(items.keep_open())):
            intrude(use)
        may_go_on.set()
        reader.join()
        assert read == ["1"]
    assert [type(error) for error in errors] == [UsageError] * 4
    assert "one consumer at a time" in str(errors[0])


def test_message_about_an_empty_error_response_names_no_body(ask: Requester) -> None:
    with SSEServer([respond(503)]) as server, ask(server.url, decode="text") as response:
        _, error = response.fail()
        assert str(error) == f"{server.url}/ answered 503 Service Unavailable"
