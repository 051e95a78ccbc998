"""JSON Lines: request_jsonl, and SSEClient(format="jsonl") in coroutines. Over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import threading
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

import sseqbridge
from sseqbridge import (
    BufferLimitError,
    CallbackError,
    ContentTypeError,
    DecodeError,
    ReadError,
    RequestAbortedError,
    ServerSentEvent,
    SSEClient,
    StatusError,
    StreamTimeoutError,
    TransportError,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    amerge,
    gather,
    merge,
    request_jsonl,
    request_sse,
    tee,
)
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, in_turn, respond, silence
from tests.clock import FakeClock
from tests.requesters import Requester, Response
from tests.support import INTERFACES

LINES = respond(content_type="application/jsonl")
TYPES = [
    "application/jsonl",
    "application/x-ndjson; charset=utf-8",
    "application/ndjson",
    "Application/JSON-Seq",
    "application/x-jsonlines",
    "application/jsonlines",
    "application/geo+json-seq",
    # Of Kubernetes and Docker.
    "application/json",
    "application/json;stream=watch",
]


class LineRequester(Requester):
    """Sends requests with request_jsonl, or with a client's arequest."""

    def __call__(self, url: Any, headers: Any = None, data: Any = None, **options: Any) -> Response:
        if not self.is_async:
            return Response(self, request_jsonl(url, headers, data, **options))
        of_client = {name: options.pop(name) for name in ("decode", "comments") if name in options}
        client: SSEClient[Any] = SSEClient(format="jsonl", **of_client)
        return Response(self, self.run(client.arequest(url, headers, data, **options)))


@pytest.fixture(params=INTERFACES)
def ask(request: pytest.FixtureRequest) -> Iterator[LineRequester]:
    requester = LineRequester(is_async=request.param == "async")
    yield requester
    requester.close()


# Reading.


@pytest.mark.parametrize("content_type", TYPES)
def test_each_line_is_an_item(ask: LineRequester, content_type: str) -> None:
    body = [b'{"a":1}\r\n\n{"b":"\xe2\x80\xa8"}\n', b"[1,", b"2]\n3\n"]
    with SSEServer([respond(content_type=content_type), *body]) as server:
        response = ask(server.url, {"X-Mine": "1"}, {"prompt": "x"})
        assert (response.status, response.headers["content-type"]) == (200, content_type)
        assert response.items() == [{"a": 1}, {"b": "\u2028"}, [1, 2], 3]
        assert response.events.outcome == "eof"
        request = server.requests[0]
        assert (request.method, request.json(), request.headers["x-mine"]) == ("POST", {"prompt": "x"}, "1")
        accepted = request.headers["accept"]
        assert {"application/jsonl", "application/x-ndjson"} <= set(accepted.split(", "))
        assert "application/json;" in accepted
        assert "event-stream" not in accepted


def test_documents_of_a_sequence_are_items(ask: LineRequester) -> None:
    sequence = [respond(content_type="application/json-seq"), b'\x1e{"a":\n1}\n\x1e2\n', b"\x1e3 "]
    with SSEServer(sequence) as server:
        assert ask(server.url).items() == [{"a": 1}, 2, 3]


def test_item_comes_with_its_line(ask: LineRequester) -> None:
    flag = threading.Event()
    with SSEServer([LINES, b'{"a":1}\n{"b"', hold(flag), b":2}\n"]) as server:
        response = ask(server.url)
        assert response.next(30) == {"a": 1}
        flag.set()
        assert response.items() == [{"b": 2}]


@pytest.mark.parametrize(
    ("decode", "items"),
    [
        ("json", [{"a": 1}, 2]),
        ("text", ['{"a": 1} ', "2"]),
        ("event", [ServerSentEvent(data='{"a": 1} '), ServerSentEvent(data="2")]),
        (lambda event: len(event.data), [9, 1]),
    ],
    ids=["json", "text", "event", "function"],
)
def test_decode_selects_the_items(ask: LineRequester, decode: Any, items: list[Any]) -> None:
    with SSEServer([LINES, b'{"a": 1} \r\n2\n']) as server:
        response = ask(server.url, decode=decode)
        assert response.items() == items
        assert response.events.last_event == ServerSentEvent(data="2")
        assert (response.events.last_event_id, response.events.retry) == ("", None)


def test_what_other_formats_mark_is_an_ordinary_line(ask: LineRequester) -> None:
    with SSEServer([LINES, b"[DONE]\n: ping\ndata: 1\n"]) as server:
        assert ask(server.url, decode="text").items() == ["[DONE]", ": ping", "data: 1"]
        for line in (b"[DONE]\n", b": ping\n", b":\n"):
            server.play([LINES, line])
            items, error = ask(server.url).fail()
            assert items == []
            assert isinstance(error, DecodeError)
            assert "a line is not JSON" in str(error)


def test_compressed_lines(ask: LineRequester) -> None:
    body = gzip.compress(b'{"a":1}\n' * 1000)
    with SSEServer([respond(headers={"Content-Encoding": "gzip"}, content_type="application/jsonl"), body]) as server:
        assert ask(server.url).items() == [{"a": 1}] * 1000


def test_answer_other_than_200_with_lines_is_a_stream(ask: LineRequester) -> None:
    with SSEServer([respond(201, content_type="application/x-ndjson"), b"1\n2\n"]) as server:
        response = ask(server.url, data={})
        assert (response.status, response.items()) == (201, [1, 2])
        # One of plain JSON is the answer's body.
        server.play([respond(201, content_type="application/json"), b'{"a":\n1}\n'])
        assert ask(server.url, data={}).items() == [{"a": 1}]


@pytest.mark.slow
def test_refusal_is_returned(ask: LineRequester) -> None:
    with SSEServer([respond(404, content_type="application/json"), b'{"error":"model not found"}']) as server:
        response = ask(server.url, data={})
        assert (response.status, response.items()) == (404, [{"error": "model not found"}])
        with pytest.raises(StatusError, match="model not found"):
            ask(server.url, data={}).raise_for_status()


# The end.


@pytest.mark.parametrize("line", [b'{"a":1}', b'{"a":1}\r', b'  {"a":1} '])
def test_last_document_needs_no_line_end(ask: LineRequester, line: bytes) -> None:
    with SSEServer([LINES, b"0\n" + line]) as server:
        response = ask(server.url)
        assert response.items() == [0, {"a": 1}]
        assert response.events.outcome == "eof"


def test_large_last_document_is_examined_in_a_thread(ask: LineRequester) -> None:
    text = json.dumps(["x" * 100] * 2000).encode()
    with SSEServer([LINES, text]) as server:
        assert ask(server.url).items() == [["x" * 100] * 2000]
        server.play([LINES, text[:-1]])
        items, error = ask(server.url).fail()
        assert (items, isinstance(error, TruncatedStreamError)) == ([], True)


TORN = b'{"text": "Hell\x1b[31m\xc3\xb6'


def test_torn_last_line_is_an_error_with_its_text(ask: LineRequester) -> None:
    with SSEServer([LINES, b'{"a":1}\n' + TORN]) as server:
        for decode in ("json", "text"):
            items, error = ask(server.url, decode=decode).fail()
            assert len(items) == 1
            assert isinstance(error, TruncatedStreamError)
            assert error.torn_line == TORN.decode()
            assert '"{"text": "Hell\\x1b[31m\u00f6"' in str(error)
            assert "\x1b" not in str(error)


def test_line_that_a_lost_connection_has_torn(ask: LineRequester) -> None:
    """The transport's own error has the text."""
    with SSEServer([LINES, b'{"a":1}\n' + TORN, cut()]) as server:
        items, error = ask(server.url).fail()
        assert items == [{"a": 1}]
        assert isinstance(error, (TruncatedStreamError, ReadError))
        assert error.torn_line == TORN.decode()
        assert "Hell\\x1b" in str(error)
        assert "http://127.0.0.1" in str(error)
        # Behind a whole line nothing is torn.
        server.play([LINES, b'{"a":1}\n', cut()])
        items, error = ask(server.url).fail()
        assert isinstance(error, TransportError)
        assert (items, error.torn_line) == ([{"a": 1}], None)


@pytest.mark.parametrize("last", [b'{"b":2}', b"[1]", b'"text"', b"12 ", b'{"b":2}\r'])
def test_whole_document_before_a_lost_connection_is_an_item(ask: LineRequester, last: bytes) -> None:
    with SSEServer([LINES, b'{"a":1}\n' + last, cut()]) as server:
        items, error = ask(server.url).fail()
        assert items == [{"a": 1}, json.loads(last)]
        assert isinstance(error, (TruncatedStreamError, ReadError))
        assert error.torn_line is None


@pytest.mark.parametrize("last", [b"12", b"true", b"null", b"-1.5", b'{"b":2', b'"tex', b"[1"])
def test_lost_connections_error_has_a_document_that_may_be_cut(ask: LineRequester, last: bytes) -> None:
    with SSEServer([LINES, b'{"a":1}\n' + last, cut()]) as server:
        items, error = ask(server.url).fail()
        assert items == [{"a": 1}]
        assert isinstance(error, TransportError)
        assert error.torn_line == last.decode()


@pytest.mark.parametrize(
    ("last", "items", "outcome"),
    [(b"END", [{"a": 1}], "done"), (b'{"done":1}', [{"a": 1}, {"done": 1}], "done"), (b'{"b":2}', [{"a": 1}], "error")],
)
def test_last_line_before_a_lost_connection(ask: LineRequester, last: bytes, items: list[Any], outcome: str) -> None:
    """On a reused connection, which is read in callbacks."""
    done: Any = "END" if last == b"END" else (lambda event: "done" in event.data)
    with SSEServer(in_turn([LINES], [LINES, b'{"a":1}\n', last, cut()])) as server:
        assert ask(server.url).items() == []
        response = ask(server.url, done=done)
        if outcome == "done":
            assert response.items() == items
            assert response.events.outcome == "done"
        else:
            received, error = response.fail()
            assert received == [*items, {"b": 2}]
            assert isinstance(error, TransportError)


def test_done_marks_the_last_line(ask: LineRequester) -> None:
    script = [LINES, b'{"n":1}\n{"n":2,"done":true}\n', silence()]
    with SSEServer(script) as server:
        response = ask(server.url, done=lambda event: event.json().get("done"), require_done=True)
        assert response.items() == [{"n": 1}, {"n": 2, "done": True}]
        assert response.events.outcome == "done"
        server.play([LINES, b'{"n":1}\nEND\n', silence()])
        response = ask(server.url, done="END")
        assert response.items() == [{"n": 1}]
        assert response.events.outcome == "done"
        # Also without its line end.
        for last in (b'{"done":true}', b"END"):
            server.play([LINES, b'{"n":1}\n' + last])
        response = ask(server.url, done=lambda event: event.data == '{"n":1}', require_done=True)
        assert response.items() == [{"n": 1}]


def test_end_without_the_required_last_line_is_a_truncation(ask: LineRequester) -> None:
    """A proxy may end a cut upstream cleanly."""
    with SSEServer([LINES, b'{"n":1}\n']) as server:
        items, error = ask(server.url, done=lambda event: event.json().get("done"), require_done=True).fail()
        assert items == [{"n": 1}]
        assert isinstance(error, TruncatedStreamError)
        assert error.torn_line is None


def test_quoted_last_document_may_be_the_done_marker(ask: LineRequester) -> None:
    with SSEServer([LINES, b'{"n":1}\n"END"']) as server:
        response = ask(server.url, done='"END"', require_done=True)
        assert response.items() == [{"n": 1}]
        assert response.events.outcome == "done"


# Errors.


def test_error_of_the_provider_is_raised(ask: LineRequester) -> None:
    """As Ollama sends it, in mid-stream and with status 200."""
    error_line = b'{"error":"an error was encountered\\nwhile running the model"}\n'
    with SSEServer([LINES, b'{"response":"Hel"}\n' + error_line + b'{"response":"never"}\n']) as server:
        items, error = ask(server.url, data={}).fail()
        assert items == [{"response": "Hel"}]
        assert isinstance(error, UpstreamError)
        assert error.payload == json.loads(error_line)
        assert "an error was encountered while running the model" in str(error)
        assert len(ask(server.url, data={}, error_events="yield").items()) == 3


def test_invalid_line_is_a_decode_error(ask: LineRequester) -> None:
    with SSEServer([LINES, b'{"a":1}\n{"a":}\n{"a":2}\n']) as server:
        items, error = ask(server.url).fail()
        assert items == [{"a": 1}]
        assert isinstance(error, DecodeError)
        assert error.event.data == '{"a":}'
        assert '{"a":}' not in str(error)


def test_line_beyond_the_limit(ask: LineRequester) -> None:
    with SSEServer([LINES, b"1\n" + b'"' + b"x" * 2000 + b'"\n2\n']) as server:
        items, error = ask(server.url, max_event_bytes=1000).fail()
        assert items == [1]
        assert isinstance(error, BufferLimitError)
        assert error.limit == 1000


def test_other_type_is_a_content_type_error(ask: LineRequester) -> None:
    with SSEServer([respond(content_type="text/plain"), b'{"a":1}\n']) as server:
        with pytest.raises(ContentTypeError, match=r"not as JSON Lines.*check_content_type=False") as caught:
            ask(server.url)
        assert caught.value.body == b'{"a":1}\n'
        assert ask(server.url, check_content_type=False).items() == [{"a": 1}]
        server.play([respond(content_type="text/event-stream"), b"data: 1\n\n"])
        with pytest.raises(ContentTypeError, match="request_sse"):
            ask(server.url)


@pytest.mark.parametrize("content_type", [each for each in TYPES if "/json" not in each or "+" in each])
def test_request_sse_names_request_jsonl(content_type: str) -> None:
    with SSEServer([respond(content_type=content_type), b"1\n"]) as server:
        with pytest.raises(ContentTypeError, match=r"Request it with request_jsonl\."):
            request_sse(server.url)
        server.play([respond(content_type="application/json"), b"1\n"])
        with pytest.raises(ContentTypeError) as caught:
            request_sse(server.url)
        assert "request_jsonl" not in str(caught.value)


# Limits and aborts.


def test_blank_lines_do_not_hide_a_stalled_upstream(clock: FakeClock, ask: LineRequester) -> None:
    def script(request: ReceivedRequest) -> Iterable[Step]:
        yield LINES
        yield b"1\n"
        while True:
            yield b"\n"
            yield sseqbridge.testing.wait(0.005)

    timeout = sseqbridge.Timeout(connect=None, read=None, idle=30)
    with SSEServer(script) as server:
        response = ask(server.url, timeout=timeout)
        assert response.next() == 1
        with pytest.raises(StreamTimeoutError) as caught:
            clock.advance_until_done(response.next)
        assert caught.value.which == "idle"
        assert "no document from the upstream (blank lines do not count) after 30 s; " in str(caught.value)
        ask.run_blocking(server.requests[0].wait_aborted, 30)


def test_close_aborts_the_request(ask: LineRequester) -> None:
    with SSEServer([LINES, b"1\n", silence()]) as server:
        with ask(server.url) as response:
            assert response.next() == 1
        ask.run_blocking(server.requests[0].wait_aborted, 30)
        assert response.events.outcome == "closed"


def test_cancel_flag_aborts_the_request(ask: LineRequester) -> None:
    flag = threading.Event()
    with SSEServer([LINES, b"1\n", silence()]) as server:
        response = ask(server.url, cancel=flag)
        assert response.next() == 1
        flag.set()
        assert response.items() == []
        with pytest.raises(RequestAbortedError):
            ask(server.url, cancel=flag)


@pytest.mark.slow
def test_slow_consumer_holds_the_upstream_back(ask: LineRequester) -> None:
    line = json.dumps({"x": "y" * 1000}).encode() + b"\n"

    def script(request: ReceivedRequest) -> Iterable[Step]:
        yield LINES
        for _ in range(2000):
            yield line * 10

    with SSEServer(script) as server:
        response = ask(server.url, max_buffered_bytes=50_000)
        assert response.next() == {"x": "y" * 1000}
        ask.run_blocking(threading.Event().wait, 0.2)
        assert response.events.stats.buffered < 200_000
        assert server.requests[0].sent_bytes < 2000 * len(line) * 10
        assert len(response.items()) == 19_999


class ReadingAuth(httpx.Auth):
    """Reads the body of each answer."""

    requires_response_body = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        self.seen.append((response.status_code, response.content))


def test_auth_sees_no_body_of_a_stream(ask: LineRequester) -> None:
    """It may be endless, and must be delivered before it is read."""
    auth = ReadingAuth()
    with SSEServer([LINES, b"1\n", silence()]) as server, ask(server.url, auth=auth) as response:
        assert response.next() == 1
    assert auth.seen == [(200, b"")]


# Options.


@pytest.mark.parametrize(
    "option",
    [
        {"comments": True, "decode": "event"},
        {"dialect": "openai"},
        {"dialect": sseqbridge.Dialect()},
        {"last_event_id": "7"},
        {"reconnect": True},
        {"reconnect": sseqbridge.ReconnectionPolicy()},
        {"on_reconnect": print},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_without_meaning_are_refused(ask: LineRequester, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"`{next(iter(option))}` must be left out for JSON Lines"):
        ask("http://127.0.0.1:9", **option)


@pytest.mark.parametrize("value", ["7", ""])
def test_header_with_an_event_id_is_refused(ask: LineRequester, value: str) -> None:
    with pytest.raises(UsageError, match="`Last-Event-ID` must be left out for JSON Lines"):
        ask("http://127.0.0.1:9", {"last-event-id": value})
    with pytest.raises(UsageError, match="`Last-Event-ID` must be left out for JSON Lines"):
        SSEClient(format="jsonl", headers={"Last-Event-ID": value})


def test_reconnect_says_that_lines_do_not_reconnect(ask: LineRequester) -> None:
    with SSEServer([LINES, b"1\n", silence()]) as server:
        response = ask(server.url)
        with pytest.raises(UsageError, match="JSON Lines does not reconnect"):
            response.events.reconnect()
        response.close()


@pytest.mark.parametrize("option", [{"comments": True}, {"dialect": "events"}, {"reconnect": True}], ids=str)
def test_client_checks_its_options(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="JSON Lines"):
        SSEClient(format="jsonl", decode="event", **option)
    with pytest.raises(UsageError, match="JSON Lines"):
        SSEClient(decode="event", **option).with_options(format="jsonl")


def test_options_of_wrong_values_are_refused(ask: LineRequester) -> None:
    with pytest.raises(UsageError, match="done"):
        ask("http://127.0.0.1:9", require_done=True)
    with pytest.raises(UsageError, match="done"):
        ask("http://127.0.0.1:9", done=5)
    with pytest.raises(UsageError, match="decode"):
        ask("http://127.0.0.1:9", decode="lines")
    with pytest.raises(UsageError, match="format"):
        SSEClient(format="xml")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"request_jsonl\(\) got an unexpected keyword argument 'colour'"):
        request_jsonl("http://127.0.0.1:9", colour=1)  # type: ignore[call-overload]


def test_signatures() -> None:
    parameters = inspect.signature(request_jsonl).parameters
    assert "format" not in inspect.signature(request_sse).parameters
    assert {"comments", "dialect", "last_event_id", "reconnect", "on_reconnect", "format"}.isdisjoint(parameters)
    assert parameters["done"].default is None
    assert set(parameters) < set(inspect.signature(request_sse).parameters)
    assert inspect.signature(SSEClient).parameters["format"].default == "sse"


def test_client_of_lines() -> None:
    with SSEServer([LINES, b'{"a":1}\n']) as server:
        client = SSEClient(server.url, format="jsonl", headers={"X-Mine": "1"})
        assert "jsonl" in repr(client)
        assert client.request("/a").events.collect() == [{"a": 1}]
        call = client.call("/b", data={})
        assert call().events.collect() == [{"a": 1}]
        assert client.with_options(decode="text").request("/c").events.collect() == ['{"a":1}']
        assert [request.headers["x-mine"] for request in server.requests] == ["1"] * 3
        with pytest.raises(UsageError, match="format"):
            client.request("/", format="sse")  # type: ignore[call-arg]
        with pytest.raises(ContentTypeError, match="request_jsonl"):
            client.with_options(format="sse").request("/")


@pytest.mark.slow
def test_client_retries_a_refusal() -> None:
    with SSEServer(in_turn([respond(503, headers={"Retry-After": "0"})], [LINES, b"1\n"])) as server:
        client = SSEClient(server.url, format="jsonl", retries=1)
        assert client.request("/").events.collect() == [1]
        assert len(server.requests) == 2


# With the other parts of the library.


def test_many_streams_of_lines() -> None:
    with SSEServer([LINES, b"1\n2\n"]) as server:
        calls = {name: partial(request_jsonl, server.url) for name in "ab"}
        assert dict(gather(calls)) == {"a": [1, 2], "b": [1, 2]}
        merged = merge({"a": request_jsonl(server.url), "b": calls["b"]})
        assert sorted(merged) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
        call = SSEClient(server.url, format="jsonl").call("/")
        assert dict(gather({"c": call})) == {"c": [1, 2]}


def test_asynchronous_streams_of_lines() -> None:
    async def collect(url: str) -> list[Any]:
        client = SSEClient(url, format="jsonl")
        return [named async for named in amerge({"a": await client.arequest("/"), "b": client.call("/")})]

    with SSEServer([LINES, b"1\n2\n"]) as server:
        assert sorted(asyncio.run(collect(server.url))) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_tee_of_lines() -> None:
    with SSEServer([LINES, b'{"a":1}\n{"b":2}\n']) as server:
        first, second = tee(request_jsonl(server.url))
        assert first.collect() == [{"a": 1}, {"b": 2}] == second.collect()


def test_log_of_lines() -> None:
    with SSEServer([LINES, b'{"a":1}\n{"b":2}\n']) as server, MemoryLog() as log:
        assert log.open("x", start=lambda: request_jsonl(server.url)).collect() == [{"a": 1}, {"b": 2}]
        assert log.open("x").collect() == [{"a": 1}, {"b": 2}]


def test_decode_function_that_fails(ask: LineRequester) -> None:
    def decode(event: ServerSentEvent) -> Any:
        raise ValueError("x")

    def done(event: ServerSentEvent) -> bool:
        raise ValueError("x")

    with SSEServer([LINES, b"1\n"]) as server:
        assert isinstance(ask(server.url, decode=decode).fail()[1], DecodeError)
        assert isinstance(ask(server.url, done=done).fail()[1], CallbackError)
