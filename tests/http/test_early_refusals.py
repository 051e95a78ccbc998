"""Responses that come while the request's body is still being sent, through proxies and on httpx's transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import httpx2
import pytest

from sseqbridge import (
    Bridge,
    BridgeTransport,
    CallbackError,
    ProtocolError,
    ReadError,
    TruncatedStreamError,
)
from sseqbridge._http import client as http_client
from sseqbridge.testing import SSEServer, respond, send
from tests.requesters import Requester
from tests.support import in_thread

REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nhello"
FRAMED = b"Content-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: 1\n\n"
# More than any socket's buffers hold.
SIZE = 20_000_000

ROUTES = ["proxy", "tunnel", "by httpx"]
BODIES = ["bytes", "iterator", "blocked iterator", "multipart"]


class Body:
    """A request's body of 20 MB as one of BODIES. The end of the block ends an iterator that is blocked."""

    def __init__(self, kind: str) -> None:
        self._released = threading.Event()
        self.was_read_to_end = False
        self.arguments: dict[str, Any] = {"content": self._parts(is_blocked=kind.startswith("blocked"))}
        if kind == "bytes":
            self.arguments = {"content": bytes(SIZE)}
        elif kind == "multipart":
            self.arguments = {"files": {"file": ("name", bytes(SIZE), "text/plain")}}

    def _parts(self, *, is_blocked: bool) -> Iterator[bytes]:
        yield bytes(1000)
        if is_blocked:
            self._released.wait(30)
        for _ in range(SIZE // 10_000):
            yield bytes(10_000)
        self.was_read_to_end = True

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._released.set()


class Server:
    """A server for one connection, reached by one of ROUTES. By itself it reads only a request's head."""

    def __init__(self, route: str, monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tls = tls if route == "tunnel" else None
        self._stack = contextlib.ExitStack()
        port = self._listener.getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}/"
        # An extension that the library's own transport does not know.
        self.options = {"extensions": {"target": b"/"}} if route == "by httpx" else {}
        if not self.options:
            monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{port}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        self._listener.close()

    def close_connections(self) -> None:
        self._stack.close()

    def accept(self) -> socket.socket:
        """Return a connection whose request has begun to arrive."""
        connection = self._stack.enter_context(self._listener.accept()[0])
        connection.settimeout(30)
        # Else the response may wait for an acknowledgement until the connection is reset.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            assert received(connection, b"\r\n\r\n").startswith(b"CONNECT ")
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            connection = self._stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
        received(connection, b"\r\n\r\n")
        return connection


def received(connection: socket.socket, ending: bytes) -> bytes:
    data = b""
    while ending not in data:
        data += connection.recv(1000)
    return data


def until_left(connection: socket.socket) -> bool:
    """Read until the client closes the connection."""
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while connection.recv(1_000_000):
            pass
    return True


@pytest.fixture(params=ROUTES)
def server(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> Iterator[Server]:
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    with Server(request.param, monkeypatch, server_tls) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("status", [b"413 Too Large", b"401 No"])
def test_early_refusal_is_returned_at_once(ask_fresh: Requester, server: Server, kind: str, status: bytes) -> None:
    def serve() -> bool:
        connection = server.accept()
        # Interim responses change nothing. The server neither reads on nor closes the connection.
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n")
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n")
        connection.sendall(b"hello")
        return until_left(connection) if answered.wait(30) else False

    answered = threading.Event()
    with Body(kind) as body:
        serving = in_thread(serve)
        with ask_fresh(server.url, timeout=60, **body.arguments, **server.options) as response:
            assert (response.status, response.items()) == (int(status[:3]), ["hello"])
        assert not body.was_read_to_end
        answered.set()
        assert ask_fresh.run_blocking(serving.result, 30)


# Not an iterator that waits: it is read in the caller's thread.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "iterator", "multipart"])
@pytest.mark.parametrize("package", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_early_refusal_of_a_bridge_transports_request(
    server: Server, package: Any, kind: str
) -> None:
    def serve() -> bool:
        connection = server.accept()
        connection.sendall(REFUSAL)
        return until_left(connection) if answered.wait(30) else False

    answered = threading.Event()
    with Body(kind) as body, Bridge() as bridge:
        serving = in_thread(serve)
        with package.Client(transport=BridgeTransport(bridge=bridge), timeout=60) as client:
            response = client.post(server.url, **body.arguments, **server.options)
            assert (response.status_code, response.text) == (413, "hello")
        answered.set()
        assert serving.result(30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "iterator"])
def test_refusal_of_a_server_that_closes_at_once_is_returned(ask_fresh: Requester, server: Server, kind: str) -> None:
    def serve() -> None:
        for _ in range(10):
            server.accept().sendall(REFUSAL)
            # The rest of the body is unread, so this resets the connection.
            server.close_connections()

    serving = in_thread(serve)
    for _ in range(10):
        with Body(kind) as body, ask_fresh(server.url, timeout=60, **body.arguments, **server.options) as response:
            assert (response.status, response.items()) == (413, ["hello"])
    ask_fresh.run_blocking(serving.result, 30)


def test_refusal_before_the_first_part_of_a_body_is_returned(ask_fresh: Requester, server: Server) -> None:
    def parts() -> Iterator[bytes]:
        released.wait(30)
        yield b"x"

    released = threading.Event()
    serving = in_thread(lambda: server.accept().sendall(REFUSAL))
    with ask_fresh(server.url, timeout=60, content=parts(), **server.options) as response:
        assert (response.status, response.items()) == (413, ["hello"])
    released.set()
    ask_fresh.run_blocking(serving.result, 30)


@pytest.mark.parametrize("response", [b"", b"nonsense\r\n\r\n"], ids=["none", "invalid"])
def test_end_of_the_connection_ends_the_sending(ask_fresh: Requester, server: Server, response: bytes) -> None:
    def serve() -> None:
        connection = server.accept()
        connection.sendall(response)
        connection.shutdown(socket.SHUT_WR)
        ended.wait(30)

    ended = threading.Event()
    serving = in_thread(serve)
    with Body("blocked iterator") as body, pytest.raises(ProtocolError if response else ReadError):
        ask_fresh(server.url, timeout=60, **body.arguments, **server.options)
    ended.set()
    ask_fresh.run_blocking(serving.result, 30)


def test_request_is_sent_on_after_an_early_success(ask_fresh: Requester, server: Server) -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        responded.wait(30)
        yield b"two"

    def serve() -> None:
        connection = server.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + FRAMED)
        responded.set()
        received(connection, b"3\r\ntwo\r\n0\r\n\r\n")
        # The next request is sent on the same connection.
        received(connection, b"3\r\ntwo\r\n0\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + FRAMED)

    responded = threading.Event()
    serving = in_thread(serve)
    for _ in range(2):
        with ask_fresh(server.url, timeout=60, done=None, content=parts(), **server.options) as response:
            assert response.items() == [1]
    ask_fresh.run_blocking(serving.result, 30)


@pytest.mark.slow
def test_early_success_is_returned_after_the_write_timeout(
    ask_fresh: Requester, server: Server
) -> None:
    def serve() -> None:
        server.accept().sendall(b"HTTP/1.1 200 OK\r\n" + FRAMED)
        ended.wait(30)

    ended = threading.Event()
    serving = in_thread(serve)
    # In real time: the response has to arrive before the limit, which cannot be seen from here.
    with Body("bytes") as body, ask_fresh(server.url, timeout=2, **body.arguments, **server.options) as response:
        assert response.items() == [1]
    ended.set()
    ask_fresh.run_blocking(serving.result, 30)


async def entered(stack: contextlib.AsyncExitStack, scope: Any) -> None:
    if isinstance(scope, anyio.CancelScope):
        stack.enter_context(scope)
    else:
        await stack.enter_async_context(scope)


@pytest.mark.parametrize("scope", [anyio.CancelScope, anyio.create_task_group])
def test_body_may_yield_within_a_scope(ask_fresh: Requester, server: Server, scope: Any) -> None:
    async def parts() -> AsyncIterator[bytes]:
        async with contextlib.AsyncExitStack() as stack:
            await entered(stack, scope())
            yield b"one"
            while not accepted.is_set():
                await anyio.sleep(0.01)
            yield b"two"

    def serve() -> None:
        connection = server.accept()
        accepted.set()
        received(connection, b"3\r\ntwo\r\n0\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + FRAMED)

    accepted = threading.Event()
    serving = in_thread(serve)
    with ask_fresh(server.url, timeout=60, content=parts(), **server.options) as response:
        assert response.items() == [1]
    ask_fresh.run_blocking(serving.result, 30)


@pytest.mark.parametrize("scope", [anyio.CancelScope, anyio.create_task_group])
def test_refusal_is_returned_while_a_body_holds_a_scope(ask_fresh: Requester, server: Server, scope: Any) -> None:
    async def parts() -> AsyncIterator[bytes]:
        async with contextlib.AsyncExitStack() as stack:
            await entered(stack, scope())
            while True:
                yield bytes(1_000_000)

    def serve() -> None:
        server.accept().sendall(REFUSAL)
        answered.wait(30)

    answered = threading.Event()
    serving = in_thread(serve)
    with ask_fresh(server.url, timeout=60, content=parts(), **server.options) as response:
        assert (response.status, response.items()) == (413, ["hello"])
    answered.set()
    ask_fresh.run_blocking(serving.result, 30)


def test_error_of_a_body_is_raised(ask_fresh: Requester, server: Server) -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        # As of a request whose response is passed on.
        raise httpx.WriteError("broken")

    serving = in_thread(lambda: until_left(server.accept()))
    with pytest.raises(CallbackError):
        ask_fresh(server.url, timeout=60, content=parts(), **server.options)
    assert ask_fresh.run_blocking(serving.result, 30)


async def forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    target.close()


async def serve_tls_proxy(listener: socket.socket, tls: ssl.SSLContext, port: int) -> None:
    """Serve one CONNECT, to a port of this machine. (In a loop: two threads must not use one SSLSocket.)"""
    ended = asyncio.Event()

    async def tunnel(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        try:
            assert (await client.readuntil(b"\r\n\r\n")).startswith(b"CONNECT ")
            upstream, onward = await asyncio.open_connection("127.0.0.1", port)
            answers.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(forward(client, onward), forward(upstream, answers))
        finally:
            ended.set()

    async with await asyncio.start_server(tunnel, sock=listener, ssl=tls):
        await asyncio.wait_for(ended.wait(), 30)


def test_proxy_is_connected_to_over_tls(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    script = [respond(framing="close"), send("x" * 100_000), send("[DONE]")]
    with socket.create_server(("127.0.0.1", 0)) as listener, SSEServer(script, ssl_context=server_tls) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{listener.getsockname()[1]}")
        port = int(server.url.rpartition(":")[2])
        serving = in_thread(lambda: asyncio.run(serve_tls_proxy(listener, server_tls, port)))
        with ask_fresh(server.url, content=bytes(200_000), timeout=60, decode="text") as response:
            assert response.items() == ["x" * 100_000]
        ask_fresh.run_blocking(serving.result, 30)


@pytest.mark.parametrize("server", ["tunnel"], indirect=True)
def test_body_that_is_cut_in_a_tunnel_is_truncated(ask_fresh: Requester, server: Server) -> None:
    def serve() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        server.accept().sendall(head + b"data: 1\n\n")
        # Without the close-notify of TLS.
        server.close_connections()

    serving = in_thread(serve)
    with ask_fresh(server.url, timeout=60) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([1], TruncatedStreamError)
    ask_fresh.run_blocking(serving.result, 30)
