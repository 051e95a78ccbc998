"""SSEServer on real sockets: what a script says is what a client sees, and a client that leaves is noticed.

Rule: nothing here waits for time to pass where it can wait for what it needs.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trustme
from openai.types.chat import ChatCompletionMessageParam

from sseqbridge._exceptions import UsageError
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge.testing import (
    ReceivedRequest,
    Script,
    SSEServer,
    Step,
    _server,
    chat_completions,
    comment,
    cut,
    expect,
    hold,
    in_turn,
    raw,
    recording,
    reset,
    respond,
    send,
    silence,
    wait,
    wire,
)
from tests.support import in_thread, python, until

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
NEVER = threading.Event()


def connect(server: SSEServer, sent: bytes = GET) -> socket.socket:
    """Connect to `server`, with buffers so small that it soon notices who does not read."""
    client = socket.socket()
    client.settimeout(30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    url = httpx.URL(server.url)
    client.connect((url.host, url.port))
    client.sendall(sent)
    return client


def read_to_end(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65_536), b""))


def read_until(client: socket.socket, ending: bytes) -> bytes:
    data = b""
    while not data.endswith(ending):
        piece = client.recv(1)
        assert piece, data
        data += piece
    return data


def answer(script: list[Step], request: bytes = GET) -> bytes:
    """Return all that the server sends to a client that asks once and then only listens."""
    with SSEServer([*script, cut()]) as server, connect(server, request) as client:
        return read_to_end(client)


def send_rst(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def send_fin(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def wait_until_blocked(request: ReceivedRequest) -> None:
    """Wait until a write of the server has found no room for a tenth of a second."""
    before = -1
    while before != request.sent_bytes or not before:
        before = request.sent_bytes
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


# What a script says


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
    assert answer([step]) == HEAD + b"%x\r\n%b\r\n" % (len(body), body)


def test_empty_body_step_does_not_end_the_body() -> None:
    assert answer([raw(b""), raw(b"x")]) == HEAD + b"1\r\nx\r\n"


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


# Heads and framings


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
    assert answer([respond(299, content_type=None)]).startswith(b"HTTP/1.1 299 \r\n")


def test_headers_override_the_content_type() -> None:
    pairs = [("content-type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
    assert answer([respond(503, pairs)]) == head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b"X-A: 1\r\n" in answer([respond(headers={"X-A": "1"})])


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


def test_wire_can_write_the_whole_answer() -> None:
    assert answer([wire(b"ICY 200 OK\r\n\r\n"), send("x")]) == b"ICY 200 OK\r\n\r\ndata: x\n\n"


def test_wire_works_before_the_head_and_between_chunks() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert answer([wire(early), respond(), raw(b"x"), wire(b"zz\r\n")]) == early + HEAD + b"1\r\nx\r\nzz\r\n"


# How a connection ends


def test_cut_before_the_head_sends_nothing() -> None:
    assert answer([]) == b""


def test_cut_ends_the_connection_within_the_body() -> None:
    with SSEServer([send("x"), cut()]) as server:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            httpx.get(server.url)
        assert server.requests[0].finished.wait(30)
        assert not server.requests[0].aborted.is_set()


def test_reset_follows_what_was_sent() -> None:
    with SSEServer([raw(b"x"), reset()]) as server, connect(server) as client:
        assert read_until(client, b"x\r\n") == HEAD + b"1\r\nx\r\n"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_connection_close_from_the_client_is_honored() -> None:
    with SSEServer([]) as server, connect(server, GET[:-2] + b"Connection: close\r\n\r\n") as client:
        assert read_to_end(client) == HEAD + b"0\r\n\r\n"


def test_pipelined_request_waits_its_turn() -> None:
    flag = threading.Event()
    with SSEServer(lambda request: [hold(flag), raw(request.path.encode())]) as server, connect(server) as client:
        server.wait_for_request()
        client.sendall(b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\nGET /third HT")
        client.sendall(b"TP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert len(server.requests) == server.open_requests == 1
        flag.set()
        bodies = [b"1\r\n/\r\n0\r\n\r\n", b"7\r\n/second\r\n0\r\n\r\n", b"6\r\n/third\r\n0\r\n\r\n"]
        assert read_to_end(client) == b"".join(HEAD + body for body in bodies)
        assert [request.aborted.is_set() for request in server.requests] == [False] * 3


def test_bytes_that_are_not_http_get_400() -> None:
    with SSEServer([]) as server, connect(server, b"\0\r\n\r\n") as client:
        assert read_to_end(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert server.requests == []


def test_expect_100_continue_is_answered() -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    with SSEServer([]) as server, connect(server, head) as client:
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.sendall(b"ok")
        assert server.wait_for_request().body == b"ok"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"])
@pytest.mark.parametrize("way_out", [socket.socket.close, send_rst])
def test_client_leaving_during_its_request_does_no_harm(
    sent: bytes, way_out: Callable[[socket.socket], None]
) -> None:
    with SSEServer([send("x")]) as server:
        way_out(connect(server, sent))
        assert httpx.get(server.url).text == "data: x\n\n"
        assert len(server.requests) == 1


# A client that leaves


def endless() -> Iterator[Step]:
    while True:
        yield raw(b"x" * 16_384)


WAITS: dict[str, Callable[[], Iterator[Step]]] = {
    "before the head": lambda: iter([silence()]),
    "silence": lambda: iter([send("x"), silence()]),
    "wait": lambda: iter([send("x"), wait(60)]),
    "hold": lambda: iter([send("x"), hold(NEVER)]),
    "a held body": lambda: iter([respond(framing="length"), send("x"), silence()]),
    "a blocked write": endless,
}


@pytest.mark.parametrize("way_out", [socket.socket.close, send_rst, send_fin])
@pytest.mark.parametrize("doing", WAITS)
def test_client_leaving_is_detected_during_every_step(
    doing: str, way_out: Callable[[socket.socket], None]
) -> None:
    over: list[str] = []

    def script(request: ReceivedRequest) -> Iterator[Step]:
        try:
            yield from WAITS[doing]()
        finally:
            over.append(threading.current_thread().name)

    with SSEServer(script) as server, connect(server) as client:
        request = server.wait_for_request()
        if doing == "a blocked write":
            wait_until_blocked(request)
        assert (server.open_requests, request.aborted_at) == (1, None)
        left = time.monotonic()
        way_out(client)
        # No step ends by itself.
        assert request.wait_aborted() >= left
        assert request.finished.wait(30)
        assert server.open_requests == 0
    assert over == ["SSEServer"]


def test_client_leaving_is_detected_by_a_busy_script() -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield respond()
        while True:
            yield b""

    with SSEServer(script) as server:
        with connect(server) as client:
            read_until(client, b"\r\n\r\n")
        assert server.requests[0].wait_aborted()


@pytest.mark.parametrize("doing", ["silence", "a blocked write"])
@pytest.mark.parametrize("says_goodbye", [True, False])
def test_client_leaving_is_detected_under_tls(
    doing: str, says_goodbye: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    with SSEServer(lambda request: WAITS[doing](), ssl_context=server_context) as server:
        plain = connect(server, b"")
        with client_context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.sendall(GET)
            request = server.wait_for_request()
            if doing == "a blocked write":
                wait_until_blocked(request)
            left = time.monotonic()
            if says_goodbye:
                client.settimeout(0)
                with contextlib.suppress(OSError):  # it does not wait for the server's goodbye
                    client.unwrap()
            client.close()
            assert request.wait_aborted() >= left


def test_wait_aborted_times_out_if_the_client_stays() -> None:
    with SSEServer([silence()]) as server, connect(server):
        request = server.wait_for_request()
        with pytest.raises(TimeoutError, match=r"did not leave <ReceivedRequest GET /, connection 0> within 0\.01 s"):
            request.wait_aborted(timeout=0.01)


def test_client_leaving_after_the_end_aborts_nothing() -> None:
    with SSEServer([]) as server:
        with connect(server) as client:
            read_until(client, b"0\r\n\r\n")
        assert httpx.get(server.url).status_code == 200
        assert server.requests[0].finished.is_set()
        assert not server.requests[0].aborted.is_set()


def test_client_that_does_not_read_causes_backpressure() -> None:
    sizes = [65_536] * 50
    with SSEServer(lambda request: (raw(b"x" * size) for size in sizes)) as server, connect(server) as client:
        request = server.wait_for_request()
        wait_until_blocked(request)
        assert request.sent_bytes < 1_000_000
        assert not request.finished.is_set()
        client.settimeout(30)
        received = 0
        while not request.finished.is_set() or received < request.sent_bytes:
            received += len(client.recv(1_000_000))
        assert received == request.sent_bytes > sum(sizes)


@pytest.mark.parametrize("steps", range(6))
def test_client_may_leave_during_a_reset(steps: int) -> None:
    gone = threading.Event()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield respond()
        gone.wait(30)  # the server's loop learns of the client's leaving only now, in the turns of these steps
        yield from [b""] * steps
        yield reset()

    with SSEServer(script) as server:
        client = connect(server)
        read_until(client, b"\r\n\r\n")
        send_rst(client)
        gone.set()
        assert server.requests[0].finished.wait(30)


# A script that fails


class BrokenError(Exception):
    pass


def broken_at_once(request: ReceivedRequest) -> Iterator[Step]:
    raise BrokenError


def broken_midway(request: ReceivedRequest) -> Iterator[Step]:
    yield respond()
    raise BrokenError


def exits(request: ReceivedRequest) -> Iterator[Step]:
    yield respond()
    raise SystemExit


def yields_no_step(request: ReceivedRequest) -> Iterator[Step]:
    yield "data: x\n\n"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (broken_at_once, BrokenError),
        (broken_midway, BrokenError),
        (exits, SystemExit),
        (yields_no_step, UsageError),
        ([respond(), respond()], UsageError),
        ([send("x"), respond()], UsageError),
        ([respond(headers={"x": "\u2603"})], UnicodeEncodeError),
    ],
)
def test_error_of_a_script_is_raised_by_close(script: Script | list[Step], error: type[BaseException]) -> None:
    server = SSEServer(script).start()
    with connect(server) as client, pytest.raises(ConnectionResetError):
        read_to_end(client)
    assert server.requests[0].finished.wait(30)
    assert not server.requests[0].aborted.is_set()
    with pytest.raises(error):
        server.close()
    server.close()


def test_scripts_error_is_the_context_of_the_tests() -> None:
    with pytest.raises(BrokenError) as raised, SSEServer(broken_midway) as server:
        httpx.get(server.url)
    assert isinstance(raised.value.__context__, httpx.TransportError)


def test_error_of_an_aborted_script_is_raised_by_close() -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        try:
            yield silence()
        finally:
            raise BrokenError

    server = SSEServer(script).start()
    connect(server).close()
    assert server.wait_for_request().wait_aborted()
    with pytest.raises(BrokenError):
        server.close()


# The server itself


def test_wait_for_request_times_out() -> None:
    with SSEServer([]) as server:
        httpx.get(server.url)
        assert server.wait_for_request(1) is server.requests[0]
        with pytest.raises(TimeoutError, match=r"1 of 2 requests arrived within 0\.01 s"):
            server.wait_for_request(2, timeout=0.01)


def test_wait_for_request_waits_for_the_body() -> None:
    with SSEServer([]) as server, connect(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n") as client:
        until(lambda: server.connections == 1)
        waiting = in_thread(server.wait_for_request)
        assert server.requests == []
        client.sendall(b"ok")
        assert waiting.result(30).body == b"ok"


def test_server_starts_once_and_has_no_address_before() -> None:
    server = SSEServer([])
    with pytest.raises(UsageError, match="before start"):
        _ = server.url
    server.close()
    with server:
        url = server.url
        with pytest.raises(UsageError, match="only once"):
            server.start()
    assert server.url == url
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_address_can_be_chosen_or_in_use() -> None:
    with SSEServer([send("a")]) as server:
        port = httpx.URL(server.url).port
        assert port is not None
        httpx.get(server.url)
        with pytest.raises(OSError, match="in use"):
            SSEServer([], port=port).start()
    with SSEServer([send("b")], host="localhost", port=port) as server:
        assert httpx.get(f"http://127.0.0.1:{port}").text == "data: b\n\n"


def test_close_waits_for_no_client(server_context: ssl.SSLContext) -> None:
    scripts = [steps() for steps in WAITS.values()]
    turns = iter(scripts)
    servers = [
        SSEServer(lambda request: next(turns, [silence()])).start(),
        SSEServer([respond(framing="close"), b"x" * 10_000_000]).start(),
        SSEServer([], ssl_context=server_context).start(),
    ]
    with contextlib.ExitStack() as clients:
        for n in range(len(scripts)):
            clients.enter_context(connect(servers[0]))
            servers[0].wait_for_request(n + 1)
        for server in servers:
            for sent in (b"", b"GET / HT", GET):
                clients.enter_context(connect(server, sent))
        for server in servers:
            server.close()
    assert all(request.finished.is_set() for server in servers for request in server.requests)
    assert "SSEServer" not in [thread.name for thread in threading.enumerate()]


def test_close_aborts_connections_without_marking_requests_aborted() -> None:
    server = SSEServer([send("x"), silence()]).start()
    with connect(server) as client:
        read_until(client, b"\n\n\r\n")
        server.close()
        assert client.recv(1) == b""
    assert server.requests[0].finished.is_set()
    assert not server.requests[0].aborted.is_set()


def test_script_that_blocks_the_thread_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = threading.Event()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        flag.wait()
        yield cut()

    server = SSEServer(script).start()
    with connect(server):
        server.wait_for_request()
        monkeypatch.setattr(_server, "_JOIN_SECONDS", 0.01)
        with pytest.raises(TimeoutError, match="a script blocks the server's thread"):
            server.close()
    flag.set()
    monkeypatch.undo()
    server.close()


def test_tls_connections_are_served(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    with SSEServer([send("x")], ssl_context=server_context) as server, httpx.Client(verify=client_context) as client:
        assert server.url.startswith("https://127.0.0.1:")
        for _ in range(2):
            assert client.get(server.url).text == "data: x\n\n"
        assert server.connections == 1


@pytest.mark.parametrize("last", [cut(), reset()])
def test_cut_and_reset_work_under_tls(
    last: Step, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    with SSEServer([raw(b"x"), last], ssl_context=server_context) as server:
        client = client_context.wrap_socket(
            connect(server, b""), server_hostname="127.0.0.1", suppress_ragged_eofs=False
        )
        with client:
            client.sendall(GET)
            read_until(client, b"x\r\n")
            if last == cut():
                assert client.recv(1) == b""
            else:
                # Python before 3.12.3 takes an RST under TLS for an EOF without a close_notify.
                with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                    client.recv(1)


def test_failed_handshake_does_no_harm(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    with SSEServer([send("x")], ssl_context=server_context) as server:
        with connect(server) as client:
            read_to_end(client)
        assert httpx.get(server.url, verify=client_context).text == "data: x\n\n"
        assert server.connections == 2


# Chat completions

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Not this"},
    {"role": "assistant", "content": "What?"},
    {"role": "user", "content": "Say  it again"},
]


def openai_client(server: SSEServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openai_reads_the_echo_word_by_word() -> None:
    with SSEServer() as server, openai_client(server) as client:
        chunks = list(client.chat.completions.create(model="any", messages=MESSAGES, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Say  ", "it ", "again", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {(chunk.object, chunk.model) for chunk in chunks} == {("chat.completion.chunk", "echo")}


@pytest.mark.parametrize("said", ["Two words", ["Two", " words"]])
def test_openai_reads_a_fixed_answer(said: str | list[str]) -> None:
    with SSEServer(chat_completions(said, model="m")) as server, openai_client(server) as client:
        for _ in range(2):
            completion = client.chat.completions.create(model="any", messages=MESSAGES)
            assert completion.choices[0].message.content == "Two words"
    assert (completion.object, completion.model, completion.choices[0].finish_reason) == (
        "chat.completion",
        "m",
        "stop",
    )
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2


def test_delay_precedes_every_token() -> None:
    with SSEServer(chat_completions(iter("abc"), delay=0.05)) as server:
        for stream in (True, False):
            started = time.monotonic()
            httpx.post(server.url, json={"messages": [], "stream": stream})
            assert time.monotonic() - started >= 0.15


@pytest.mark.parametrize(
    ("messages", "echo"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "a "}, "?", {"type": "text", "text": "b"}]}], "a b"),
        ([{"role": "system", "content": "a"}, "?"], ""),
        ([], ""),
    ],
)
def test_echo_is_the_last_text_of_the_user(messages: list[object], echo: str) -> None:
    with SSEServer() as server:
        completion = httpx.post(server.url, json={"messages": messages}).json()
    assert completion["choices"][0]["message"]["content"] == echo


def test_stream_has_openais_exact_format() -> None:
    with SSEServer(chat_completions("hi")) as server:
        response = httpx.post(server.url, json={"messages": [], "stream": True})
    assert response.headers["content-type"] == "text/event-stream"
    lines = response.text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert [chunk.pop("choices") for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "hi"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
    ]
    assert all(chunk == chunks[0] for chunk in chunks)
    assert list(chunks[0]) == ["id", "created", "model", "object"]


@pytest.mark.parametrize(
    ("method", "body"),
    [("GET", b""), ("PUT", b'{"messages": []}'), ("POST", b"{"), ("POST", b"[]"), ("POST", b'{"messages": "hi"}')],
)
def test_request_that_is_not_a_chat_gets_400(method: str, body: bytes) -> None:
    with SSEServer() as server:
        response = httpx.request(method, server.url, content=body)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_openai_reads_the_error() -> None:
    with (
        SSEServer() as server,
        openai_client(server) as client,
        pytest.raises(openai.BadRequestError, match="messages"),
    ):
        client.models.list()


# What tests of readers want besides.


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
    ("step", "told"),
    [
        (expect("POST"), "the method is 'GET', and 'POST' was expected"),
        (expect(path="/a"), "the path is '/', and '/a' was expected"),
        (expect(last_event_id="7"), "Last-Event-ID is '', and '7' was expected"),
        (expect(headers={"x-some": "thing"}), "x-some is None, and 'thing' was expected"),
        (expect(headers={"Accept": None}), "Accept is '*/*', and None was expected"),
    ],
)
def test_unexpected_request_fails_the_test(step: Step, told: str) -> None:
    server = SSEServer([step, send(1)]).start()
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        ask(server)
    with pytest.raises(AssertionError, match=re.escape(told)):
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


def test_fixture_is_available_to_users(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert "3 passed, 1 error" in done.stdout
    assert "the method is 'GET', and 'POST' was expected" in done.stdout


def test_plugin_imports_nothing_before_use() -> None:
    status, out, _ = python("import sys, sseqbridge.pytest_plugin; print('asyncio' in sys.modules)")
    # pytest itself may have.
    bare = python("import sys, pytest; print('asyncio' in sys.modules)")
    assert (status, out) == bare[:2]
    assert python("import sys, sseqbridge.pytest_plugin; print('h11' in sys.modules)")[1] == "False\n"
