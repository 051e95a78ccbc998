"""Steps: the bytes that a script sends, recorded requests, and checks of them."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from sseqbridge._exceptions import UsageError
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    comment,
    cut,
    expect,
    hold,
    in_turn,
    raw,
    recording,
    respond,
    send,
    silence,
    wait,
    wire,
)
from tests.support import python, until

from .clients import HEAD, connect, raw_response, read_to_end, read_until


def test_list_is_played_for_every_request_on_one_connection() -> None:
    with SSEServer([send({"n": 1}), send("[DONE]")]) as server, httpx.Client() as client:
        for _ in range(3):
            assert client.get(server.url).text == 'data: {"n": 1}\n\ndata: [DONE]\n\n'
        assert server.connections == 1
        assert [request.connection for request in server.requests] == [0, 0, 0]


def test_every_connection_has_its_number() -> None:
    with SSEServer([]) as server:
        for _ in range(2):
            httpx.get(server.url)
        assert server.connections == 2
        assert [request.connection for request in server.requests] == [0, 1]


@pytest.mark.parametrize(
    ("step", "body"),
    [
        (send("a\nb", event="tick", id="7", retry=1.5), b"event: tick\nid: 7\nretry: 1500\ndata: a\ndata: b\n\n"),
        (send([1, None]), b"data: [1, null]\n\n"),
        (ServerSentEvent(data="x"), b"data: x\n\n"),
        (comment("still here"), b": still here\n\n"),
        (Comment("still here"), b": still here\n\n"),
        (raw(b"data: half"), b"data: half"),
        (b"data: half", b"data: half"),
    ],
)
def test_body_step_is_one_chunk(step: Step, body: bytes) -> None:
    assert raw_response([step]) == HEAD + b"%x\r\n%b\r\n" % (len(body), body)


def test_empty_body_step_does_not_end_the_body() -> None:
    assert raw_response([raw(b""), raw(b"x")]) == HEAD + b"1\r\nx\r\n"


def test_empty_script_is_an_empty_stream() -> None:
    with SSEServer([]) as server:
        response = httpx.get(server.url)
    assert (response.status_code, response.headers["content-type"], response.content) == (200, "text/event-stream", b"")


def test_script_receives_the_request() -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield send({"got": request.json(), "by": request.method, "from": request.headers["x-from"]})

    with SSEServer(script) as server:
        text = httpx.put(server.url, json={"a": [1]}, headers={"X-From": "me"}).text
    assert text == 'data: {"got": {"a": [1]}, "by": "PUT", "from": "me"}\n\n'


def test_request_is_recorded_as_sent() -> None:
    with SSEServer([]) as server:
        connection = http.client.HTTPConnection(httpx.URL(server.url).netloc.decode())
        with contextlib.closing(connection):
            connection.putrequest("POST", "/v1/x?key=secret")
            connection.putheader("X-Two", "1")
            connection.putheader("x-two", "2")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            connection.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            assert connection.getresponse().read() == b""
        (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/x?key=secret", b"abcde")
    assert request.headers["x-two"] == "1, 2"
    assert [pair for pair in request.header_pairs if pair[0].lower() == "x-two"] == [("X-Two", "1"), ("x-two", "2")]
    assert repr(request) == "<ReceivedRequest POST /v1/x, connection 0>"


# Heads and framings.


@pytest.mark.parametrize(
    ("step", "wire_bytes"),
    [
        (respond(), HEAD + b"5\r\nhello\r\n0\r\n\r\n"),
        (respond(framing="close", content_type=None), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"),
        (respond(framing="length", content_type=None), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (respond(length=5, content_type=None), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (respond(length=9, content_type=None), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"),
        (respond(framing="none", content_type=None), b"HTTP/1.1 200 OK\r\n\r\nhello"),
    ],
)
def test_framing_bytes(step: Step, wire_bytes: bytes) -> None:
    asks_to_close = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with SSEServer([step, b"he", b"llo"] if b"chunked" not in wire_bytes else [step, b"hello"]) as server:
        with connect(server, asks_to_close) as client:
            assert read_to_end(client) == wire_bytes
        assert server.wait_for_request().finished.wait(30)
        assert server.requests[0].sent_bytes == len(wire_bytes)


@pytest.mark.parametrize(
    ("step", "reused"),
    [
        (respond(), True),
        (respond(framing="length"), True),
        (respond(length=5), True),
        (respond(framing="none", headers={"content-length": "5"}), True),
        (respond(framing="close"), False),
        (respond(length=9), False),
    ],
)
def test_connection_is_kept_if_the_body_ended(step: Step, reused: bool) -> None:
    with SSEServer([step, raw(b"hello")]) as server, httpx.Client() as client:
        for _ in range(2):
            with contextlib.suppress(httpx.RemoteProtocolError):  # 9 bytes were announced
                assert client.get(server.url).text == "hello"
        assert server.connections == (1 if reused else 2)


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_a_body_has_no_framing(status: int) -> None:
    with SSEServer([respond(status, content_type=None)]) as server, httpx.Client() as client:
        for _ in range(2):
            response = client.get(server.url)
            assert (response.status_code, dict(response.headers)) == (status, {})
        assert server.connections == 1


@pytest.mark.parametrize("step", [respond(), respond(framing="length"), respond(length=5)])
def test_head_request_is_answered_without_a_body(step: Step) -> None:
    with SSEServer([step, raw(b"hello")]) as server, httpx.Client() as client:
        for _ in range(2):
            assert client.head(server.url).status_code == 200
        assert client.get(server.url).text == "hello"
        assert server.connections == 1


def test_unknown_status_has_no_reason_phrase() -> None:
    assert raw_response([respond(299, content_type=None)]).startswith(b"HTTP/1.1 299 \r\n")


def test_headers_override_the_content_type() -> None:
    pairs = [("content-type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
    assert raw_response([respond(503, pairs)]) == head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b"X-A: 1\r\n" in raw_response([respond(headers={"X-A": "1"})])


def test_unknown_framing_is_refused() -> None:
    with pytest.raises(UsageError, match="chunked, length, close, none, got 'gzip'"):
        respond(framing="gzip")  # type: ignore[arg-type]


def test_respond_sends_the_head_and_not_earlier() -> None:
    before, after = threading.Event(), threading.Event()
    with SSEServer([hold(before), respond(), hold(after)]) as server, connect(server) as client:
        assert server.wait_for_request().sent_bytes == 0
        before.set()
        assert read_until(client, b"\r\n\r\n") == HEAD
        after.set()
        assert read_until(client, b"\r\n\r\n") == b"0\r\n\r\n"


def test_wire_can_write_the_whole_response() -> None:
    assert raw_response([wire(b"ICY 200 OK\r\n\r\n"), send("x")]) == b"ICY 200 OK\r\n\r\ndata: x\n\n"


def test_wire_works_before_the_head_and_between_chunks() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert raw_response([wire(early), respond(), raw(b"x"), wire(b"zz\r\n")]) == early + HEAD + b"1\r\nx\r\nzz\r\n"


# Scripts in turn, expectations, recordings, and the fixture.


def ask(server: SSEServer, path: str = "/", **request: Any) -> httpx.Response:
    return httpx.request(request.pop("method", "GET"), f"{server.url}{path}", trust_env=False, **request)


def test_scripts_are_played_in_turn_and_the_last_one_stays() -> None:
    with SSEServer(in_turn([send(1)], lambda request: [send(2)])) as server:
        assert [ask(server).text for _ in range(3)] == ["data: 1\n\n", "data: 2\n\n", "data: 2\n\n"]
        server.play([send(3)])
        assert ask(server).text == "data: 3\n\n"
        server.play([send(4)], [send(5)])
        assert [ask(server).text for _ in range(3)] == ["data: 4\n\n", "data: 5\n\n", "data: 5\n\n"]
    with pytest.raises(UsageError, match="at least one script"):
        in_turn()


@pytest.mark.parametrize(
    "step",
    [
        expect("post"),
        expect(path="/a?b=c"),
        expect(last_event_id="ü"),
        expect(headers={"X-Some": "thing", "x-none": None}),
        expect(json={"n": [1]}),
        expect("POST", "/a?b=c", last_event_id="ü", json={"n": [1]}),
    ],
)
def test_expected_request_passes(step: Step) -> None:
    headers = {"Last-Event-ID": "ü".encode(), "X-Some": "thing"}
    with SSEServer([step, send(1)]) as server:
        assert ask(server, "/a?b=c", method="POST", headers=headers, json={"n": [1]}).text == "data: 1\n\n"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (expect("POST"), "the method is 'GET', and 'POST' was expected"),
        (expect(path="/a"), "the path is '/', and '/a' was expected"),
        (expect(last_event_id="7"), "Last-Event-ID is '', and '7' was expected"),
        (expect(headers={"x-some": "thing"}), "x-some is None, and 'thing' was expected"),
        (expect(headers={"Accept": None}), "Accept is '*/*', and None was expected"),
    ],
)
def test_unexpected_request_fails_the_test(step: Step, message: str) -> None:
    server = SSEServer([step, send(1)]).start()
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        ask(server)
    with pytest.raises(AssertionError, match=re.escape(message)):
        server.close()


def test_cut_within_an_event_sends_half() -> None:
    with SSEServer([send("one"), cut(within=send("another"))]) as server, connect(server) as client:
        got = b"".join(iter(lambda: client.recv(65_536), b""))
        assert got.endswith(b"data: a\r\n")
    with pytest.raises(UsageError, match="cut"):
        cut(within=wait(1))


def test_aborted_requests_are_counted() -> None:
    with SSEServer([silence()]) as server:
        clients = [connect(server) for _ in range(3)]
        server.wait_for_request(3)
        assert server.aborted_requests == 0
        for client in clients[:2]:
            client.close()
        until(lambda: server.aborted_requests == 2)
        clients[2].close()


def test_repr_shows_the_state() -> None:
    server = SSEServer()
    assert repr(server) == "<SSEServer not started>"
    with server:
        assert repr(server) == f"<SSEServer open {server.url} requests=0>"
    assert repr(server) == f"<SSEServer closed {server.url} requests=0>"


def test_recording_is_checked_before_it_is_played(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="speed"):
        recording(tmp_path / "x", speed=0)
    with pytest.raises(FileNotFoundError):
        recording(tmp_path / "x")


def test_fixture(sse_server: SSEServer) -> None:
    sse_server.play([send(1)])
    assert ask(sse_server).text == "data: 1\n\n"


USERS_TEST = """
import pytest
from sseqbridge import ReconnectionPolicy, StatusError, request_sse
from sseqbridge.testing import cut, expect, respond, send

def test_reader(sse_server):
    sse_server.play([send("a", id="1"), cut(within=send("b"))], [expect(last_event_id="1"), send("b"), send("[DONE]")])
    policy = ReconnectionPolicy(delay=0.01)
    assert request_sse(sse_server.url, decode="text", reconnect=policy).events.collect() == ["a", "b"]
    assert sse_server.aborted_requests == 0

def test_refusal(sse_server):
    sse_server.play([respond(503)])
    with pytest.raises(StatusError):
        request_sse(sse_server.url).raise_for_status()

def test_that_fails(sse_server):
    sse_server.play([expect("POST"), send(1)])
    with pytest.raises(Exception):
        request_sse(sse_server.url)
"""


@pytest.mark.slow
def test_fixture_is_available_to_users(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert "3 passed, 1 error" in done.stdout
    assert "the method is 'GET', and 'POST' was expected" in done.stdout


@pytest.mark.slow
def test_plugin_imports_nothing_before_use() -> None:
    status, out, _ = python("import sys, sseqbridge.pytest_plugin; print('asyncio' in sys.modules)")
    # pytest itself may have.
    bare = python("import sys, pytest; print('asyncio' in sys.modules)")
    assert (status, out) == bare[:2]
    assert python("import sys, sseqbridge.pytest_plugin; print('h11' in sys.modules)")[1] == "False\n"


@pytest.mark.parametrize("status", ["401", 42, 1000, 200.0, None, True])
def test_respond_refuses_what_is_no_status(status: Any) -> None:
    with pytest.raises(UsageError, match=f"^`status` must be an int from 100 to 999, got {status!r}$"):
        respond(status)


@pytest.mark.parametrize("body", ["text", b"bytes"])
def test_respond_refuses_a_body_as_headers(body: Any) -> None:
    with pytest.raises(UsageError, match=r"^`headers` must be a mapping or pairs, got (str|bytes)\. .* raw\(body\)\.$"):
        respond(200, body)


def test_respond_takes_a_status_of_the_standard_library() -> None:
    assert respond(HTTPStatus.UNAUTHORIZED) == respond(401)


@pytest.mark.parametrize("seconds", ["1", -1, float("nan"), None, True])
def test_wait_refuses_what_is_no_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(UsageError, match=f"^`seconds` must be a number of at least 0, got {seconds!r}$"):
        wait(seconds)


@pytest.mark.parametrize("port", ["80", -1, 65536, 80.0, None])
def test_server_refuses_what_is_no_port(port: Any) -> None:
    with pytest.raises(UsageError, match=f"^`port` must be an int from 0 to 65535, got {port!r}$"):
        SSEServer(port=port)
