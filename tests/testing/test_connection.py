"""Connections: how they end, and that a client that leaves is detected."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    cut,
    hold,
    raw,
    reset,
    respond,
    send,
    silence,
)
from sseqbridge.testing._connection import Connection

from .clients import (
    GET,
    HEAD,
    WAITS,
    connect,
    raw_response,
    read_to_end,
    read_until,
    send_fin,
    send_rst,
    wait_until_blocked,
)


def test_cut_before_the_head_sends_nothing() -> None:
    assert raw_response([]) == b""


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
def test_client_leaving_during_its_request_does_no_harm(sent: bytes, way_out: Callable[[socket.socket], None]) -> None:
    with SSEServer([send("x")]) as server:
        way_out(connect(server, sent))
        assert httpx.get(server.url).text == "data: x\n\n"
        assert len(server.requests) == 1


# A client that leaves.


@pytest.mark.slow
@pytest.mark.parametrize("way_out", [socket.socket.close, send_rst, send_fin])
@pytest.mark.parametrize("doing", WAITS)
def test_client_leaving_is_detected_during_every_step(doing: str, way_out: Callable[[socket.socket], None]) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["silence", "a blocked write"])
@pytest.mark.parametrize("sends_close_notify", [True, False])
def test_client_leaving_is_detected_under_tls(
    doing: str, sends_close_notify: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    with SSEServer(lambda request: WAITS[doing](), ssl_context=server_context) as server:
        plain = connect(server, b"")
        with client_context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.sendall(GET)
            request = server.wait_for_request()
            if doing == "a blocked write":
                wait_until_blocked(request)
            left = time.monotonic()
            if sends_close_notify:
                client.settimeout(0)
                with contextlib.suppress(OSError):  # it does not wait for the server's close_notify
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


@pytest.mark.slow
def test_client_that_does_not_read_causes_backpressure() -> None:
    sizes = [65_536] * 50
    with SSEServer(lambda request: (raw(b"x" * size) for size in sizes)) as server, connect(server) as client:
        request = server.wait_for_request()
        wait_until_blocked(request)
        assert request.sent_bytes < 1_000_000
        assert not request.finished.is_set()
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            piece = client.recv(1_000_000)
            assert piece
            received += piece
        assert request.finished.wait(30)
        assert len(received) == request.sent_bytes > sum(sizes)


@pytest.mark.parametrize("steps", range(6))
def test_client_may_leave_during_a_reset(steps: int) -> None:
    gone = threading.Event()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield respond()
        gone.wait(30)  # the server's loop detects that the client left during the next iterations
        yield from [b""] * steps
        yield reset()

    with SSEServer(script) as server:
        client = connect(server)
        read_until(client, b"\r\n\r\n")
        send_rst(client)
        gone.set()
        assert server.requests[0].finished.wait(30)


def test_error_of_an_unaccepted_connection_is_not_kept(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio logs it when the garbage collection finds it, at any time."""
    accepting: asyncio.Task[Connection]
    made: list[tuple[asyncio.StreamReaderProtocol, asyncio.Transport]] = []
    left = threading.Event()
    client, server = socket.socketpair()
    connection_made = asyncio.StreamReaderProtocol.connection_made

    def cancel(protocol: asyncio.StreamReaderProtocol, transport: asyncio.Transport) -> None:
        connection_made(protocol, transport)
        made.append((protocol, transport))
        # The handshake is complete; the client leaves before the server's close_notify.
        accepting.cancel()
        left.wait(30)

    def connect_and_leave() -> None:
        client_context.wrap_socket(client, server_hostname="127.0.0.1").close()
        left.set()

    async def accept() -> None:
        nonlocal accepting
        accepting = asyncio.create_task(Connection.accept(server, 0, server_context))
        with pytest.raises(asyncio.CancelledError):
            await accepting
        protocol, transport = made[0]
        writer = asyncio.StreamWriter(transport, protocol, None, asyncio.get_running_loop())
        await writer.wait_closed()

    monkeypatch.setattr(asyncio.StreamReaderProtocol, "connection_made", cancel)
    server.setblocking(False)
    leaving = threading.Thread(target=connect_and_leave)
    leaving.start()
    asyncio.run(accept())
    leaving.join()
    server.close()
