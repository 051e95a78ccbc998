"""The library's own HTTP/1.1 transport: connections, requests as they are written, answers as they are read.

Where the other side has to keep still, hurry or lie it is an Upstream, a socket that the test itself reads and
writes, on the loop of the test; else it is an SSEServer. What is said of one loop is said of asyncio's and of uvloop.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import errno
import fcntl
import gc
import logging
import os
import socket
import ssl
import struct
import sys
import termios
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import trustme

from sseqbridge import (
    Bridge,
    ConnectError,
    RequestAbortedError,
    StreamTimeoutError,
    Timeout,
    TransportError,
    arequest_sse,
    request_sse,
)
from sseqbridge._engine import caller_loops
from sseqbridge._http import client as _client
from sseqbridge._http import dial, network_stream
from sseqbridge._http.connection import BODY_EXTENSION, HTTP11Connection
from sseqbridge._http.network_stream import READ_BYTES
from sseqbridge._http.origin import Origin
from sseqbridge._http.tls import TlsSession
from sseqbridge._http.transport import Transport
from sseqbridge._runtime import sockets
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    comment,
    cut,
    hold,
    in_turn,
    reset,
    respond,
    send,
    silence,
    wire,
)
from tests.clock import FakeClock
from tests.doors import Answer, Door
from tests.support import LOOPS, in_thread, until

from .tls13 import Records, start_tls

Main = Callable[[], Awaitable[Any]]
Run = Callable[[Main], Any]

DONE = send("[DONE]")

own_transport = pytest.mark.own_transport


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """A function that runs a coroutine function on a new loop. The loop has nothing to complain of in the end."""
    options: dict[str, Any] = {"debug": True, "use_uvloop": request.param == "uvloop"}
    if "clock" in request.fixturenames:
        options["loop_factory"] = partial(request.getfixturevalue("clock").new_loop, request.param)

    def run_on_new_loop(main: Main) -> Any:
        async def patient() -> Any:
            # A busy machine is no finding.
            asyncio.get_running_loop().slow_callback_duration = 60.0
            return await main()

        return anyio.run(patient, backend_options=options)

    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield run_on_new_loop
    # A socket or transport that nobody closed warns here, which is an error.
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def no_plain() -> httpx.AsyncBaseTransport:
    raise AssertionError("nothing here is left to httpx's own transport")


def new_transport(context: ssl.SSLContext | None = None, keepalive_expiry: float = 60.0) -> Transport:
    async def tls() -> ssl.SSLContext:
        assert context is not None
        return context

    return Transport(keepalive_expiry=keepalive_expiry, tls_context=tls, plain=no_plain)


def new_client(
    context: ssl.SSLContext | None = None, keepalive_expiry: float = 60.0, timeout: Any = 10.0
) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=new_transport(context, keepalive_expiry), timeout=timeout)


class Peer:
    """The other side of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._loop = asyncio.get_running_loop()

    async def receive(self, ending: bytes = b"\r\n\r\n") -> bytes:
        """Return what comes, `ending` and what came with it included."""
        received = b""
        while ending not in received:
            received += await self.receive_some()
        return received

    async def receive_some(self) -> bytes:
        data = await self._loop.sock_recv(self.socket, 65_536)
        assert data, "the client has left"
        return data

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def answer(self, data: bytes) -> None:
        await self.receive()
        await self.send(data)

    async def client_has_left(self) -> bool:
        """Wait for the client's end of file, or its reset."""
        with contextlib.suppress(ConnectionResetError):
            while await self._loop.sock_recv(self.socket, 65_536):
                pass
        return True

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Upstream:
    """A server by hand."""

    def __init__(self, family: socket.AddressFamily, backlog: int = 100) -> None:
        self._listener = socket.create_server(
            ("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family, backlog=backlog
        )
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self.url = f"http://{self.host if family == socket.AF_INET else f'[{self.host}]'}:{self.port}"
        self._peers: list[Peer] = []

    @property
    def connections(self) -> int:
        return len(self._peers)

    async def accept(self) -> Peer:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        connection.setblocking(False)
        self._peers.append(Peer(connection))
        return self._peers[-1]

    def close(self) -> None:
        self._listener.close()
        for peer in self._peers:
            peer.socket.close()


@asynccontextmanager
async def upstream(family: socket.AddressFamily = socket.AF_INET) -> AsyncIterator[Upstream]:
    with contextlib.closing(Upstream(family)) as server:
        yield server


@asynccontextmanager
async def asking(client: httpx.AsyncClient, url: str, method: str = "GET", **options: Any) -> AsyncIterator[Any]:
    """A request under way. It is ended where it is not over at the end of the block."""
    request = client.build_request(method, url, **options)
    task = asyncio.create_task(client.send(request, stream=True))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await task.result().aclose()


SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


# Connections are used again, or not.


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_hundred_requests_one_after_the_other_use_one_connection(
    run: Run, scheme: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with new_client(client_tls) as client:
            for n in range(100):
                assert (await client.post(server.url, content=b"%d" % n)).content == b"data: 1\n\n"

    with SSEServer([send(1)], ssl_context=server_tls if scheme == "https" else None) as server:
        run(main)
        assert server.connections == 1
        assert [request.body for request in server.requests] == [b"%d" % n for n in range(100)]


def test_requests_at_the_same_time_have_a_connection_each(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                answers = asyncio.gather(*(client.get(server.url) for _ in range(30)))
                # All are under way before the first of them is answered.
                while len(server.requests) % 30 or not server.requests:
                    await asyncio.sleep(0.001)
                go.set()
                assert {answer.content for answer in await answers} == {b"data: 1\n\n"}

    go = threading.Event()
    with SSEServer([hold(go), send(1)]) as server:
        run(main)
        assert server.connections == 30


@pytest.mark.parametrize(
    ("method", "answer", "is_kept"),
    [
        ("GET", b"200 OK\r\nContent-Length: 5\r\n\r\nhello", True),
        ("GET", b"200 OK\r\nContent-Length: 0\r\n\r\n", True),
        ("GET", b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", True),
        ("GET", b"204 No Content\r\n\r\n", True),
        ("GET", b"304 Not Modified\r\nContent-Length: 5\r\n\r\n", True),
        ("HEAD", b"200 OK\r\nContent-Length: 5\r\n\r\n", True),
        ("HEAD", b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        ("GET", b"500 No\r\nContent-Length: 5\r\n\r\nhello", True),
        ("GET", b"103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", True),
        ("GET", b"200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", False),
        ("GET", b"200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x, close\r\n\r\n5\r\nhello\r\n0\r\n\r\n", False),
        ("GET", b"204 No Content\r\nConnection: close\r\n\r\n", False),
        ("HEAD", b"200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", False),
        ("GET", b"200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", False),
        # What comes after the body belongs to nobody.
        ("GET", b"200 OK\r\nContent-Length: 5\r\n\r\nhello there", False),
        ("GET", b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nthere", False),
        ("GET", b"204 No Content\r\n\r\nthere", False),
        ("HEAD", b"200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_connection_is_kept_where_the_answer_allows(
    run: Run,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    method: str,
    answer: bytes,
    is_kept: bool,
    secure: bool,
) -> None:
    async def main() -> None:
        async with new_client(client_tls) as client:
            for _ in range(2):
                response = await client.request(method, server.url)
                assert response.content == (b"hello" if b"hello" in answer and method != "HEAD" else b"")
                assert response.http_version == "HTTP/1.1"

    with SSEServer([wire(b"HTTP/1.1 " + answer)], ssl_context=server_tls if secure else None) as server:
        run(main)
        assert server.connections == (1 if is_kept else 2)


@pytest.mark.parametrize("end", [b"HTTP/1.0 200 OK\r\n\r\nhello", b"HTTP/1.1 200 OK\r\n\r\nhello"])
def test_body_may_end_with_the_connection(run: Run, end: bytes) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                assert (await client.get(server.url)).content == b"hello"

    with SSEServer([wire(end), cut()]) as server:
        run(main)
        assert server.connections == 2


def test_http_1_0_keeps_no_connection(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                response = await client.get(server.url)
                assert (response.content, response.http_version) == (b"hello", "HTTP/1.0")

    answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"
    with SSEServer([wire(answer)]) as server:
        run(main)
        assert server.connections == 2


def test_request_that_says_close_is_the_last_on_its_connection(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                assert (await client.get(server.url, headers={"Connection": "close"})).content == b"data: 1\n\n"

    with SSEServer([send(1)]) as server:
        run(main)
        assert server.connections == 2
        assert server.requests[0].headers["connection"] == "close"


def test_interim_answers_may_come_one_by_one(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.receive()
            for part in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early", b" Hints\r\nA: b\r\n\r", b"\n"):
                await peer.send(part)
                # So that the client reads it before the next.
                await until_read(peer)
                assert not answer.done()
            await peer.send(SHORT)
            assert await (await answer).aread() == b"hello"

    run(main)


async def until_read(peer: Peer) -> None:
    """Wait until the loop has read what was sent: first until the client's kernel has it, where the peer's can tell."""
    while sys.platform == "linux" and peer.socket.fileno() >= 0 and _unacknowledged(peer.socket):
        await asyncio.sleep(0)
    # After this many steps there was nothing left.
    for _ in range(10):
        await asyncio.sleep(0)


def _unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the other side's kernel has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("way", ["close", "reset", "bytes"])
@pytest.mark.parametrize("is_noticed", [False, True])
def test_idle_connection_that_the_peer_has_done_with_is_not_used(run: Run, way: str, is_noticed: bool) -> None:
    """Also where the loop has not read yet what came."""

    async def main() -> None:
        async with upstream() as server, new_client() as client:
            async with asking(client, server.url) as answer:
                peer = await server.accept()
                await peer.answer(SHORT)
                assert await (await answer).aread() == b"hello"
            if way == "bytes":
                peer.socket.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            elif way == "close":
                peer.socket.close()
            else:
                peer.reset()
            if is_noticed:
                await until_read(peer)
            async with asking(client, server.url) as answer:
                other = await server.accept()
                await other.answer(SHORT)
                assert await (await answer).aread() == b"hello"
            if way == "bytes":
                assert await peer.client_has_left()

    run(main)


def test_idle_connections_are_closed_when_their_time_has_passed(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        transport = new_transport(keepalive_expiry=400)
        async with upstream() as server, httpx.AsyncClient(transport=transport, timeout=None) as client:
            peers = []
            # At different times, so that not all of them grow old at once; to different origins.
            for host in ("127.0.0.1", "localhost"):
                url = f"http://{host}:{server.port}"
                async with asking(client, url) as answer:
                    peers.append(await server.accept())
                    await peers[-1].answer(SHORT)
                    await (await answer).aread()
                clock.advance(210)
            assert await peers[0].client_has_left()
            assert transport.connection_count == 1
            clock.advance(300)
            assert await peers[1].client_has_left()

    run(main)


def test_connection_whose_time_has_passed_is_not_used_though_nobody_has_closed_it_yet(
    clock: FakeClock, run: Run
) -> None:
    async def main() -> None:
        async with upstream() as server, new_client(keepalive_expiry=400, timeout=None) as client:
            for _ in range(2):
                async with asking(client, server.url) as answer:
                    peer = await server.accept()
                    await peer.answer(SHORT)
                    assert await (await answer).aread() == b"hello"
                clock.advance(401)
            assert server.connections == 2

    run(main)


def test_closing_the_client_closes_what_is_idle_and_later_what_was_in_use(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server:
            client = new_client()
            in_use = asyncio.create_task(client.send(client.build_request("GET", server.url), stream=True))
            first = await server.accept()
            await first.answer(SHORT)
            response = await in_use
            async with asking(client, server.url) as answer:
                second = await server.accept()
                await second.answer(SHORT)
                await (await answer).aread()
            await client.aclose()
            assert await second.client_has_left()
            assert await response.aread() == b"hello"
            assert await first.client_has_left()

    run(main)


def test_client_that_was_never_used_is_closed(run: Run) -> None:
    async def main() -> None:
        await new_client().aclose()

    run(main)


def test_answer_that_is_not_read_gives_its_connection_back_where_all_of_it_is_in(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            async with asking(client, server.url) as answer:
                peer = await server.accept()
                await peer.answer(SHORT)
                assert (await answer).status_code == 200
            async with asking(client, server.url) as answer:
                await peer.answer(SHORT)
                assert await (await answer).aread() == b"hello"
            assert server.connections == 1

    run(main)


@pytest.mark.parametrize("size", [10, 100_000])
def test_large_answer_that_is_not_read_gives_its_connection_back_too(run: Run, size: int) -> None:
    """More than is read ahead, so that reading was paused."""

    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                async with client.stream("GET", server.url) as response:
                    while not response.extensions["network_stream"].body.complete:
                        await asyncio.sleep(0.001)
                    assert not response.extensions[BODY_EXTENSION].complete

    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    with SSEServer([wire(head + bytes(size))]) as server:
        run(main)
        assert server.connections == 1


def test_answer_that_is_left_before_its_end_closes_its_connection(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(SHORT[:-1])
            await (await answer).aclose()
            assert await peer.client_has_left()

    run(main)


def test_answer_can_be_closed_twice_and_not_read_after_it(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(SHORT)
            body = (await answer).extensions[BODY_EXTENSION]
            assert [part async for part in body] == [b"hello"]
            assert body.complete
            for _ in range(2):
                await body.aclose()
                assert not body.complete
                with pytest.raises(httpx.StreamClosed):
                    await body.read()

    run(main)


def test_network_stream_tells_of_the_connection(
    run: Run, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with new_client(client_tls) as client, client.stream("GET", server.url) as response:
            stream = response.extensions["network_stream"]
            assert f"https://{stream.get_extra_info('server_addr')[0]}" == server.url.rpartition(":")[0]
            assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
            assert stream.get_extra_info("ssl_object").version().startswith("TLS")
            assert stream.get_extra_info("socket").fileno() >= 0
            assert stream.get_extra_info("no such thing") is None
            assert response.extensions["reason_phrase"] == b"OK"

    with SSEServer([send(1)], ssl_context=server_tls) as server:
        run(main)


# Requests as they are written.


def test_request_is_written_as_it_was_given(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            client.headers.clear()
            headers = [("X-b", "2"), ("x-A", "1"), ("X-b", "3"), ("X-Empty", "")]
            # Signed: with another character escaped, or none, the signature is wrong.
            target = "/a%7Eb/~c/d%2Fe//f;g=h?x=%2F~%7e&y=a+b%20c&&z"
            async with asking(client, server.url + target, headers=headers) as answer:
                peer = await server.accept()
                lines = (await peer.receive()).split(b"\r\n")
                assert lines == [
                    b"GET " + target.encode() + b" HTTP/1.1",
                    f"Host: 127.0.0.1:{server.port}".encode(),
                    *(b"X-b: 2", b"x-A: 1", b"X-b: 3", b"X-Empty: "),
                    *(b"", b""),
                ]
                await peer.send(SHORT)
                await answer

    run(main)


def test_request_through_the_public_door_is_written_in_order(ask: Door) -> None:
    with (
        SSEServer([send(1), DONE]) as server,
        ask(f"{server.url}/a%7Eb?x=%2F~", {"X-Zebra": "1", "x-apple": "2", "Accept": "*/*"}, {"a": 1}) as answer,
    ):
        assert answer.items() == [1]
        [request] = server.requests
        assert request.path == "/a%7Eb?x=%2F~"
        names = [name for name, _ in request.header_pairs]
        assert names[0] == "Host"
        assert [name for name in names if name in ("X-Zebra", "x-apple", "Accept")] == ["X-Zebra", "x-apple", "Accept"]
        assert request.json() == {"a": 1}


def test_head_and_small_body_leave_together(run: Run) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=b"x" * 5000) as answer,
        ):
            peer = await server.accept()
            # One segment on loopback, so that one read has all of it.
            data = await peer.receive_some()
            assert data.endswith(b"\r\n\r\n" + b"x" * 5000)
            await peer.send(SHORT)
            await answer

    run(main)


async def parts(*data: bytes) -> AsyncIterator[bytes]:
    for part in data:
        yield part


@pytest.mark.parametrize(
    "body",
    [
        [],
        [b""],
        [b"hello"],
        [b"", b"he", b"", b"llo", b""],
        [b"x" * 100_000, b"", b"y" * 100_000],
        [b"z" * 1000] * 200,
    ],
    ids=["nothing", "an empty part", "one", "some", "large", "many"],
)
@pytest.mark.parametrize("framing", [None, "length"])
def test_body_in_parts_is_sent_whole(run: Run, body: list[bytes], framing: str | None) -> None:
    async def main() -> None:
        async with new_client() as client:
            headers = {"Content-Length": str(len(b"".join(body)))} if framing else {}
            for _ in range(2):
                await client.post(server.url, content=parts(*body), headers=headers)

    with SSEServer([send(1)]) as server:
        run(main)
        assert [request.body for request in server.requests] == [b"".join(body)] * 2
        assert ("transfer-encoding" in server.requests[0].headers) == (framing is None)
        assert server.connections == 1


def test_each_part_of_a_body_is_sent_as_it_comes(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await go.wait()

        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=body()) as answer,
        ):
            peer = await server.accept()
            await peer.receive(b"one\r\n")
            go.set()
            await peer.receive(b"0\r\n\r\n")
            await peer.send(SHORT)
            await answer

    run(main)


@pytest.mark.parametrize("is_whole", [True, False])
def test_ten_megabytes_go_to_a_server_that_takes_them_slowly(run: Run, is_whole: bool) -> None:
    async def main() -> None:
        body = os.urandom(1024) * 10 * 1024
        pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
        content = body if is_whole else parts(*pieces)
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=content, headers={"Content-Length": str(len(body))}) as answer,
        ):
            peer = await server.accept()
            received = b""
            while len(received) < len(body):
                received += await asyncio.get_running_loop().sock_recv(peer.socket, 300_000)
                if b"\r\n\r\n" in received[:1000]:
                    received = received.partition(b"\r\n\r\n")[2]
                assert not answer.done()
            assert received == body
            await peer.send(SHORT)
            assert await (await answer).aread() == b"hello"

    run(main)


def test_files_are_sent(ask: Door) -> None:
    content = os.urandom(300_000)
    with (
        SSEServer([send(1), DONE]) as server,
        ask(server.url, files={"file": ("name.bin", content, "application/x-test")}) as answer,
    ):
        assert answer.items() == [1]
        [request] = server.requests
        assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert int(request.headers["content-length"]) == len(request.body)
        assert content in request.body
        assert b'filename="name.bin"' in request.body


@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("body", [[b"hello"], [b"he", b"llo"]])
def test_body_that_is_not_as_long_as_its_header_says_is_refused(run: Run, body: list[bytes], length: int) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            headers = {"Content-Length": str(length)}
            async with asking(client, server.url, "POST", content=parts(*body), headers=headers) as answer:
                peer = await server.accept()
                with pytest.raises(httpx.LocalProtocolError, match="as long as"):
                    await answer
                assert await peer.client_has_left()

    run(main)


@own_transport
def test_body_longer_than_its_header_says_is_a_typed_error(ask: Door) -> None:
    with SSEServer([send(1)]) as server, pytest.raises(TransportError) as caught:
        ask(server.url, {"Content-Length": "4"}, content=b"hello")
    assert isinstance(caught.value.__cause__, httpx.LocalProtocolError)


@pytest.mark.parametrize("header", [("Transfer-Encoding", "gzip"), ("Content-Length", "x")])
def test_request_whose_end_nobody_could_find_is_refused(run: Run, header: tuple[str, str]) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=parts(b"x"), headers=[header]) as answer,
        ):
            peer = await server.accept()
            with pytest.raises(httpx.LocalProtocolError):
                await answer
            assert await peer.client_has_left()

    run(main)


def test_body_that_fails_on_its_way_ends_the_connection(run: Run) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ZeroDivisionError

    async def main() -> None:
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=body()) as answer,
        ):
            peer = await server.accept()
            with pytest.raises(ZeroDivisionError):
                await answer
            assert await peer.client_has_left()

    run(main)


def test_body_that_is_not_taken_times_out(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, write=60)) as client,
            asking(client, server.url, "POST", content=bytes(50_000_000)) as answer,
        ):
            peer = await server.accept()
            with pytest.raises(httpx.WriteTimeout):
                await clock.aadvance_until_done(answer, step=10)
            assert await peer.client_has_left()

    run(main)


@pytest.mark.parametrize("limit", [60, None])
def test_body_that_is_taken_slowly_does_not_time_out(clock: FakeClock, run: Run, limit: float | None) -> None:
    async def main() -> None:
        body = bytes(12_000_000)
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, write=limit)) as client,
            asking(client, server.url, "POST", content=body) as answer,
        ):
            peer = await server.accept()
            received, began = 0, clock.monotonic()
            while received < len(body):
                received += len(await asyncio.get_running_loop().sock_recv(peer.socket, 100_000))
                # So that the client writes what there is room for now.
                await until_read(peer)
                clock.advance(1)
            # Longer than the limit: it counts only while nothing is taken.
            assert clock.monotonic() - began > 100
            await peer.send(SHORT)
            assert await (await answer).aread() == b"hello"

    run(main)


def test_what_comes_in_is_no_sign_that_anything_is_taken(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, write=60)) as client,
            asking(client, server.url, "POST", content=bytes(50_000_000)) as answer,
        ):
            peer = await server.accept()
            await peer.send(b"HTTP/1.1 200 OK\r\nX: ")
            while not answer.done():
                with contextlib.suppress(ConnectionError):
                    await peer.send(b"x")
                clock.advance(1)
                await asyncio.sleep(0)
            with pytest.raises(httpx.WriteTimeout):
                await answer

    run(main)


def test_body_is_sent_over_tls(
    ask_anew: Door, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    monkeypatch.setattr(_client, "_tls_context", client_tls)
    body = os.urandom(3_000_000)
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        assert ask_anew(server.url, content=body).items() == [1]
        assert server.requests[0].body == body


@own_transport
def test_tls_that_cannot_send_is_a_typed_error(
    ask_anew: Door, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """As where a server of TLS 1.2 wants the handshake again."""

    def encrypt(session: TlsSession, data: bytes) -> bytes:
        raise ssl.SSLWantReadError(2, "The operation did not complete (read)")

    monkeypatch.setattr(_client, "_tls_context", client_tls)
    monkeypatch.setattr(TlsSession, "encrypt", encrypt)
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        with pytest.raises(TransportError, match="did not complete"):
            ask_anew(server.url)
        assert server.requests == []


def test_body_that_is_not_taken_can_be_aborted(ask: Door) -> None:
    cancel = threading.Event()
    seen = threading.Event()

    def serve(listener: socket.socket) -> bool:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            connection.recv(1000)
            seen.set()
            cancel.set()
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(1_000_000):
                    pass
            return True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: serve(listener))
        with pytest.raises(RequestAbortedError):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}", content=bytes(50_000_000), cancel=cancel)
        assert serving.result(30)


@pytest.mark.parametrize(
    ("size", "leave"), [(5, "close"), (5, "reset"), (100_000, "reset"), (100_000, "close and read on")]
)
@pytest.mark.parametrize("content", ["bytes", "iterator", "chunked"])
def test_server_that_answers_in_the_middle_of_the_body_and_leaves_is_heard(
    run: Run, size: int, leave: str, content: str
) -> None:
    async def main() -> None:
        pieces = [bytes(100_000)] * 100
        headers = {} if content == "chunked" else {"Content-Length": str(100_000 * 100)}
        body: Any = b"".join(pieces) if content == "bytes" else parts(*pieces)
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=body, headers=headers) as answer,
        ):
            peer = await server.accept()
            await peer.receive_some()
            await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
            if leave == "reset":
                # What is unread makes it one.
                peer.socket.close()
            else:
                peer.socket.shutdown(socket.SHUT_WR)
            if leave == "close and read on":
                # As servers do that want their answer to be read.
                leaving = asyncio.create_task(peer.client_has_left())
            response = await answer
            assert response.status_code == 413
            assert await response.aread() == bytes(size)
            if leave == "close and read on":
                assert await leaving

    run(main)


def test_answer_can_be_closed_after_its_connection_is_lost(run: Run) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=bytes(10_000_000)) as answer,
        ):
            peer = await server.accept()
            await peer.receive_some()
            await peer.send(SHORT)
            peer.socket.shutdown(socket.SHUT_WR)
            response = await answer
            # What was written goes out, and then the loop closes the connection.
            assert await peer.client_has_left()
            await response.aclose()

    run(main)


def test_server_that_answers_in_the_middle_of_the_head_is_heard(run: Run) -> None:
    async def main() -> None:
        # More than the kernel takes.
        headers = {"X-Large": "x" * 20_000_000}
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=parts(b"body"), headers=headers) as answer,
        ):
            peer = await server.accept()
            await peer.receive_some()
            await peer.send(b"HTTP/1.1 431 Too Large\r\nContent-Length: 5\r\n\r\nhello")
            peer.socket.close()
            response = await answer
            assert (response.status_code, await response.aread()) == (431, b"hello")

    run(main)


def test_server_that_resets_in_the_middle_of_the_body_without_an_answer(run: Run) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=bytes(50_000_000)) as answer,
        ):
            peer = await server.accept()
            await peer.receive_some()
            peer.reset()
            with pytest.raises(httpx.ReadError) as caught:
                await answer
            assert isinstance(caught.value.__cause__, OSError)

    run(main)


def test_server_that_closes_before_the_body_has_begun(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            await go.wait()
            yield b"y" * 100_000
            yield b"z"

        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=body()) as answer,
        ):
            peer = await server.accept()
            await peer.receive()
            await peer.send(SHORT)
            peer.socket.close()
            await until_read(peer)
            go.set()
            assert await (await answer).aread() == b"hello"

    run(main)


# Answers and their ends.

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"
UNBOUNDED = b"HTTP/1.1 200 OK\r\n\r\nhello"


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("leave", [cut, reset])
@pytest.mark.parametrize("begun", [CHUNKED, SIZED, UNBOUNDED], ids=["chunked", "sized", "unbounded"])
def test_end_of_the_connection_within_a_body(
    run: Run,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    begun: bytes,
    leave: Callable[[], Step],
    secure: bool,
) -> None:
    async def main() -> None:
        async with new_client(client_tls) as client, client.stream("GET", server.url) as response:
            body = response.extensions[BODY_EXTENSION]
            assert await body.read() == b"hello"
            go.set()
            if leave is reset:
                with pytest.raises(httpx.ReadError):
                    await body.read()
            elif begun is UNBOUNDED:
                assert await body.read() == b""
                assert body.complete
            else:
                with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
                    await body.read()

    go = threading.Event()
    with SSEServer([wire(begun), hold(go), leave()], ssl_context=server_tls if secure else None) as server:
        run(main)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"HTTP/1.1 103 \r\n\r\n"])
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_end_of_the_connection_within_the_head(run: Run, begun: bytes, leave: str) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(begun)
            await until_read(peer)
            if leave == "close":
                peer.socket.close()
                with pytest.raises(httpx.RemoteProtocolError, match="disconnected"):
                    await answer
            else:
                peer.reset()
                with pytest.raises(httpx.ReadError):
                    await answer

    run(main)


def test_what_came_before_a_fault_is_read_first(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client, client.stream("GET", server.url) as response:
            body = response.extensions[BODY_EXTENSION]
            assert await body.read() == b"hello"
            for _ in range(2):
                with pytest.raises(httpx.RemoteProtocolError, match="size"):
                    await body.read()

    with SSEServer([wire(CHUNKED + b"no size\r\nmore"), silence()]) as server:
        run(main)
        server.requests[0].wait_aborted()


@pytest.mark.parametrize(
    "answer", [b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"x" * 200_000]
)
def test_what_is_no_head_closes_the_connection(run: Run, answer: bytes) -> None:
    async def main() -> None:
        async with new_client() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(server.url)

    with SSEServer([wire(answer), silence()]) as server:
        run(main)
        server.requests[0].wait_aborted()


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED])
def test_silence_times_out(clock: FakeClock, run: Run, begun: bytes) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, read=60)) as client,
            asking(client, server.url) as answer,
        ):
            peer = await server.accept()
            await peer.answer(begun)
            with pytest.raises(httpx.ReadTimeout):
                # The head of an answer comes before the clock is advanced.
                reading = (await answer).aread() if begun is CHUNKED else answer
                await clock.aadvance_until_done(reading, step=10)
            if begun is CHUNKED:
                await answer.result().aclose()
            assert await peer.client_has_left()

    run(main)


def test_bytes_that_a_sink_takes_set_the_clock_back(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        taken: list[bytes] = []

        def sink(data: bytes) -> bool:
            taken.append(data)
            # A third of the limit from piece to piece; five times the limit for all of them.
            clock.advance(30)
            next_piece.set()
            return True

        async with (
            new_client(timeout=httpx.Timeout(None, read=90)) as client,
            client.stream("GET", server.url) as response,
        ):
            body = response.extensions[BODY_EXTENSION]
            next_piece.set()
            assert await body.read(sink) == b""
            assert b"".join(taken) == b"data: 1\n\n" * 20

    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield respond()
        for _ in range(20):
            yield hold(next_piece)
            next_piece.clear()
            yield send(1)

    next_piece = threading.Event()
    with SSEServer(script) as server:
        run(main)


def test_end_that_is_in_when_the_time_is_up_may_be_told(clock: FakeClock, run: Run) -> None:
    """Loops look at sockets first, or at timers; neither may trip over the other."""

    async def main() -> None:
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, read=60)) as client,
            asking(client, server.url) as answer,
        ):
            peer = await server.accept()
            await peer.answer(SHORT[:-1])
            body = (await answer).extensions[BODY_EXTENSION]
            assert await body.read() == b"hell"
            reading = asyncio.create_task(body.read())
            await until_read(peer)
            peer.socket.close()
            clock.advance(61)
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadTimeout)):
                await reading

    run(main)


def test_no_limit_means_none(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client(timeout=None) as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.receive()
            await until_read(peer)
            await peer.send(SHORT)
            assert await (await answer).aread() == b"hello"

    run(main)


def test_sink_is_given_what_comes_until_it_has_enough(run: Run) -> None:
    """What it took last ends the wait, and what comes right after is kept for the next read."""

    async def main() -> None:
        taken: list[bytes] = []

        def sink(data: bytes) -> bool:
            taken.append(data)
            return len(taken) < 2

        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            body = (await answer).extensions[BODY_EXTENSION]
            reading = asyncio.create_task(body.read(sink))
            await until_read(peer)
            for text in (b"one", b"two"):
                assert not reading.done()
                await peer.send(b"3\r\n" + text + b"\r\n")
                while text not in taken:
                    await asyncio.sleep(0)
            await peer.send(b"5\r\nthree\r\n0\r\n\r\n")
            await until_read(peer)
            assert await reading is None
            assert taken == [b"one", b"two"]
            assert await body.read(sink) == b"three"
            assert await body.read(sink) == b""
            assert body.complete

    run(main)


def test_read_that_is_cancelled_loses_nothing(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(SHORT[:-5])
            body = (await answer).extensions[BODY_EXTENSION]
            reading = asyncio.create_task(body.read(lambda data: True))
            await until_read(peer)
            reading.cancel()
            await asyncio.wait({reading})
            await peer.send(b"hello")
            assert await body.read() == b"hello"

    run(main)


async def fill(peer: Peer) -> int:
    """Send until the client takes no more, and return how much that was."""
    sent = 0
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += peer.socket.send(bytes(65_536))
        await asyncio.sleep(0.001)
    return sent


# What the kernel holds for both sides of a connection on loopback, and more.
ENOUGH = 50_000_000


@pytest.mark.parametrize("head", [b"Content-Length: 1000000000", b"Connection: close"])
def test_what_nobody_reads_waits_at_the_peers(run: Run, head: bytes) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
            body = (await answer).extensions[BODY_EXTENSION]
            sent = await fill(peer)
            assert sent < ENOUGH
            received = 0
            while received < sent:
                received += len(await body.read())
            assert received == sent

    run(main)


@pytest.mark.heavy
def test_what_comes_after_the_end_waits_at_the_peers_too(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(SHORT)
            response = await answer
            sent = 0
            # Until nothing more is taken, or too much was.
            while sent < 2 * ENOUGH and (more := await fill(peer)):
                sent += more
            assert len(response.extensions["network_stream"].body.rest) < ENOUGH

    run(main)


@pytest.mark.parametrize("is_aborted", [False, True])
def test_peer_that_sends_without_end_leaves_turns_to_others(run: Run, is_aborted: bool) -> None:
    """uvloop would read up to 32 times before it looked at anyone else."""

    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(b"HTTP/1.1 200 OK\r\n\r\n")
            response = await answer
            body, connection = response.extensions[BODY_EXTENSION], response.extensions["network_stream"]
            sent = await fill(peer)
            peer.socket.shutdown(socket.SHUT_WR)
            turn = 0
            taken: collections.Counter[int] = collections.Counter()

            async def take_turns() -> None:
                nonlocal turn
                while True:
                    turn += 1
                    await asyncio.sleep(0)

            def sink(data: bytes) -> bool:
                taken[turn] += len(data)
                if is_aborted and len(data) == READ_BYTES:
                    # Before it is read on.
                    asyncio.get_running_loop().call_soon(connection.abort)
                return True

            taking_turns = asyncio.create_task(take_turns())
            ahead = 0
            while data := await body.read(sink):
                ahead += len(data)
            taking_turns.cancel()
            assert max(taken.values()) <= READ_BYTES
            assert (ahead + taken.total() == sent) != is_aborted

    run(main)


# Connecting.


def test_ipv6_literal(ask: Door) -> None:
    def serve(listener: socket.socket) -> bytes:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            request = connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        return request

    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        serving = in_thread(lambda: serve(listener))
        assert ask(f"http://[::1]:{port}/").items() == [1]
        assert f"Host: [::1]:{port}\r\n".encode() in serving.result(30)


@contextmanager
def full_listener() -> Iterator[int]:
    """A port whose backlog is full: connecting to it never comes to an end."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        yield listener.getsockname()[1]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have every name resolve to these ports on loopback."""

    def set_up(*ports: int) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)

    return set_up


Resolve = Callable[..., None]


@own_transport
def test_second_address_is_tried_where_the_first_refuses(ask: Door, resolve: Resolve, closed_port: int) -> None:
    with SSEServer([send(1), DONE]) as server:
        resolve(closed_port, closed_port, int(server.url.rpartition(":")[2]))
        assert ask("http://upstream.test/").items() == [1]
    gc.collect()


@own_transport
def test_second_address_is_tried_where_the_first_never_answers(ask: Door, resolve: Resolve) -> None:
    with SSEServer([send(1), DONE]) as server, full_listener() as full:
        resolve(full, int(server.url.rpartition(":")[2]))
        assert ask("http://upstream.test/").items() == [1]
    # The socket of the first is closed, or it warns here.
    gc.collect()


@own_transport
def test_name_none_of_whose_addresses_answers_times_out(clock: FakeClock, ask: Door, resolve: Resolve) -> None:
    with full_listener() as full:
        resolve(full, full)
        with pytest.raises(StreamTimeoutError) as caught:
            clock.advance_until_done(lambda: ask("http://upstream.test/", timeout=Timeout(connect=60)), step=5)
        assert caught.value.which == "connect"
    gc.collect()


@own_transport
def test_name_without_an_address(ask: Door, resolve: Resolve) -> None:
    resolve()
    with pytest.raises(ConnectError):
        ask("http://upstream.test/")


def resolve_at_once(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """As `resolve` does, on every loop: uvloop's own look-ups know nothing of the socket module."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(sockets, "literal_address", lambda host, port: found)


def test_error_is_that_of_the_first_address(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            raise OSError(errno.EHOSTUNREACH, f"of port {address[4][1]}")

        monkeypatch.setattr(dial, "attempt", attempt)
        resolve_at_once(monkeypatch, 1, 2, 3)
        async with new_client() as client:
            with pytest.raises(httpx.ConnectError, match="of port 1"):
                await client.get("http://upstream.test/")

    run(main)


def test_addresses_that_answer_at_the_same_time_leave_one_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        attempt = dial.attempt
        begun = asyncio.Event()
        made: list[socket.socket] = []

        async def attempt_together(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            made.append(await attempt(loop, address))
            if len(made) == 2:
                begun.set()
            await begun.wait()
            return made[0] if address[4][1] == first.port else made[1]

        monkeypatch.setattr(dial, "attempt", attempt_together)
        async with upstream() as first, upstream() as second, new_client() as client:
            resolve_at_once(monkeypatch, first.port, second.port)
            async with asking(client, "http://upstream.test/") as answer:
                peers = [await first.accept(), await second.accept()]
                heads = [asyncio.create_task(peer.receive_some()) for peer in peers]
                await asyncio.wait(heads, return_when=asyncio.FIRST_COMPLETED)
                [used] = [n for n, head in enumerate(heads) if head.done() and head.exception() is None]
                await peers[used].send(SHORT)
                assert await (await answer).aread() == b"hello"
                assert len([connection for connection in made if connection.fileno() >= 0]) <= 1

    run(main)


def test_last_address_is_waited_for_where_an_earlier_one_fails_late(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        attempt = dial.attempt
        begun, failed = asyncio.Event(), asyncio.Event()

        async def attempt_in_turn(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            if address[4][1] == 1:
                await begun.wait()
                loop.call_soon(loop.call_soon, failed.set)
                raise OSError(errno.EHOSTUNREACH, "no route")
            begun.set()
            await failed.wait()
            return await attempt(loop, address)

        monkeypatch.setattr(dial, "attempt", attempt_in_turn)
        async with upstream() as server, new_client() as client:
            resolve_at_once(monkeypatch, 1, server.port)
            async with asking(client, "http://upstream.test/") as answer:
                peer = await server.accept()
                await peer.answer(SHORT)
                assert await (await answer).aread() == b"hello"

    run(main)


def test_families_take_turns() -> None:
    found = [(family, 1, 6, "", (name, 80)) for family, name in ((6, "a"), (6, "b"), (6, "c"), (4, "d"), (4, "e"))]
    assert [address[4][0] for address in dial.interleaved(found)] == ["a", "d", "b", "e", "c"]


def test_time_limit_of_the_operating_system_is_no_limit_of_the_callers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async def attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

        monkeypatch.setattr(dial, "attempt", attempt)
        async with new_client() as client:
            with pytest.raises(httpx.ConnectError, match="timed out"):
                await client.get("http://127.0.0.1:1/")

    run(main)


def test_certificate_that_is_not_trusted(run: Run, server_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with new_client(ssl.create_default_context()) as client:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await client.get(server.url)

    with SSEServer([send(1)], ssl_context=server_tls) as server:
        run(main)
        assert server.requests == []


@pytest.mark.parametrize("leave", ["close", "reset", "speaks no TLS"])
def test_server_that_leaves_in_the_tls_handshake(run: Run, client_tls: ssl.SSLContext, leave: str) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(client_tls) as client,
            asking(client, server.url.replace("http:", "https:")) as answer,
        ):
            peer = await server.accept()
            await peer.receive_some()
            if leave == "speaks no TLS":
                await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            elif leave == "reset":
                peer.reset()
            else:
                peer.socket.close()
            reason = "(?i)wrong.version" if leave == "speaks no TLS" else "closed the connection during the TLS"
            with pytest.raises(httpx.ConnectError, match=reason):
                await answer

    run(main)


def test_tls_handshake_times_out(clock: FakeClock, run: Run, client_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(client_tls, timeout=httpx.Timeout(None, connect=60)) as client,
            asking(client, server.url.replace("http:", "https:")) as answer,
        ):
            peer = await server.accept()
            with pytest.raises(httpx.ConnectTimeout):
                await clock.aadvance_until_done(answer, step=10)
            assert await peer.client_has_left()

    run(main)


@pytest.fixture
def hand_made(
    ask_anew: Door, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, client_tls: ssl.SSLContext, tmp_path: Path
) -> Callable[..., AbstractContextManager[Answer]]:
    """A function that asks a server of hand-made TLS records, which serves one connection once it has a request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    authority.issue_cert("127.0.0.1").configure_cert(context)
    monkeypatch.setattr(_client, "_tls_context", client_tls)

    @contextlib.contextmanager
    def asked(serve: Callable[[socket.socket, Records], None], **options: Any) -> Iterator[Answer]:
        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(30)
                records = start_tls(connection, context, tmp_path / "keys")
                # The request, which may have come with the handshake's last part.
                with contextlib.suppress(ConnectionError):
                    serve(connection, records)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            # Little room for what it does not read.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            in_thread(run)
            with ask_anew(f"https://127.0.0.1:{listener.getsockname()[1]}/", **options) as answer:
                yield answer

    return asked


ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"


@own_transport
def test_what_tls_says_to_itself_is_no_byte_of_an_answer(
    clock: FakeClock,
    hand_made: Callable[..., AbstractContextManager[Answer]],
) -> None:
    def serve(connection: socket.socket, records: Records) -> None:
        connection.sendall(records.data(ENDLESS))
        while True:
            is_awaited.wait(30)
            connection.sendall(records.ticket())
            clock.advance(5)

    is_awaited = threading.Event()
    with hand_made(serve, timeout={"read": 60}) as answer:
        assert answer.next() == 1
        is_awaited.set()
        with pytest.raises(StreamTimeoutError) as caught:
            answer.next()
        assert caught.value.which == "read"


@own_transport
def test_keys_may_change_in_mid_stream(
    hand_made: Callable[..., AbstractContextManager[Answer]],
) -> None:
    def serve(connection: socket.socket, records: Records) -> None:
        connection.sendall(records.data(ENDLESS) + records.key_update() + records.data(b"data: 2\n\n"))
        connection.sendall(records.ticket() + records.goodbye() + b"and what is not TLS")
        # A close with the client's answer unread would reset the connection, under what it has not read itself.
        with contextlib.suppress(ConnectionError):
            while connection.recv(65_536):
                pass

    with hand_made(serve) as answer:
        assert answer.items() == [1, 2]


@own_transport
@pytest.mark.parametrize("updates_sent_with_the_head", [0, 3000])
def test_server_that_asks_tls_for_answers_and_takes_none_is_given_up(
    hand_made: Callable[..., AbstractContextManager[Answer]],
    monkeypatch: pytest.MonkeyPatch,
    updates_sent_with_the_head: int,
) -> None:
    """Events that came before are delivered, also those that came in the same read."""

    def serve(connection: socket.socket, records: Records) -> None:
        # The client's answers soon find no room any more.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(records.data(ENDLESS) + updates(records, updates_sent_with_the_head))
        while True:
            connection.sendall(updates(records, 300))

    def updates(records: Records, count: int) -> bytes:
        return b"".join(records.key_update() for _ in range(count))

    attempt = dial.attempt

    async def with_little_room(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
        connection = await attempt(loop, address)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return connection

    monkeypatch.setattr(dial, "attempt", with_little_room)
    monkeypatch.setattr(network_stream, "_MAX_UNSENT_TLS_BYTES", 10_000)
    with hand_made(serve) as answer:
        assert answer.next() == 1
        with pytest.raises(TransportError, match="does not read them"):
            answer.next(30)


@own_transport
def test_idle_connection_that_says_goodbye_is_closed_at_once(
    ask_anew: Door,
    hand_made: Callable[..., AbstractContextManager[Answer]],
) -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, records: Records) -> None:
        body = b"data: 1\n\n"
        connection.sendall(records.data(ENDLESS[:-11] + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)))
        over.wait(30)
        connection.sendall(records.goodbye())
        while connection.recv(1000):
            pass
        closed.set()

    over = threading.Event()
    with hand_made(serve) as answer:
        assert answer.items() == [1]
        over.set()
        ask_anew.meanwhile(closed.wait, 30)
        assert closed.is_set()


def test_interim_answers_without_end_are_refused(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as answer:
            peer = await server.accept()
            await peer.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200)
            with pytest.raises(httpx.RemoteProtocolError, match="interim answers"):
                await answer

    run(main)


def test_stream_leaves_nothing_to_the_collector(ask_anew: Door) -> None:
    with SSEServer([send(1), DONE]) as server:
        assert ask_anew(server.url).items() == [1]
        gc.collect()
        gc.disable()
        try:
            answer = ask_anew(server.url)
            assert answer.items() == [1]
            connection = weakref.ref(answer.events._cursor.subscription.exchange)
            del answer
            until(lambda: connection() is None)
        finally:
            gc.enable()


@own_transport
def test_name_that_nobody_could_look_up(ask: Door) -> None:
    with pytest.raises(ConnectError, match="the host is not a valid name"):
        ask("http://a..test/")


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_tls_without_a_time_limit(
    run: Run, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, timeout: float | None
) -> None:
    async def main() -> None:
        async with new_client(client_tls, timeout=timeout) as client:
            assert (await client.get(server.url)).content == b"data: 1\n\n"

    with SSEServer([send(1)], ssl_context=server_tls) as server:
        run(main)


# Aborts at each stage; those of streams that have begun are in tests/streams/test_abort.py.


@own_transport
@pytest.mark.parametrize("names", [1, 2])
def test_abort_while_connecting(ask: Door, resolve: Resolve, names: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    attempt, begun = dial.attempt, []

    async def seen_attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
        begun.append(address)
        if len(begun) == names:
            cancel.set()
        return await attempt(loop, address)

    monkeypatch.setattr(dial, "attempt", seen_attempt)
    with full_listener() as full:
        resolve(*[full] * names)
        with pytest.raises(RequestAbortedError):
            ask("http://upstream.test/", cancel=cancel)
    gc.collect()


def test_abort_while_the_head_is_awaited(ask: Door) -> None:
    cancel = threading.Event()

    def serve(listener: socket.socket) -> bool:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            assert connection.recv(65_536)
            cancel.set()
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(65_536):
                    pass
        return True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: serve(listener))
        with pytest.raises(RequestAbortedError):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}/", cancel=cancel)
        assert serving.result(30)


def test_tls_handshake_that_is_cancelled_closes_the_connection(run: Run, client_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with upstream() as server, new_client(client_tls) as client:
            async with asking(client, server.url.replace("http:", "https:")) as answer:
                peer = await server.accept()
                assert await peer.receive_some()
                assert not answer.done()
            assert answer.cancelled()
            assert await peer.client_has_left()

    run(main)


def test_abort_while_a_name_is_looked_up(ask: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, over = threading.Event(), threading.Event()

    def look_up(*args: Any, **options: Any) -> list[Any]:
        cancel.set()
        over.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with pytest.raises(RequestAbortedError):
            ask("http://upstream.test/", cancel=cancel)
    finally:
        over.set()


def test_cancelled_request_leaves_no_socket(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            async with asking(client, f"http://127.0.0.1:{full}/") as answer:
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not answer.done()
            assert answer.cancelled()

    with full_listener() as full:
        run(main)


# What is left to httpx.


def left_to_httpx(monkeypatch: pytest.MonkeyPatch) -> list[httpx.URL]:
    """Note what httpx's own transport is made to send."""
    seen: list[httpx.URL] = []
    make = _client._plain_transport

    async def noting() -> httpx.AsyncHTTPTransport:
        transport = await make()
        handle = transport.handle_async_request

        async def handle_and_note(request: httpx.Request) -> httpx.Response:
            seen.append(request.url)
            return await handle(request)

        monkeypatch.setattr(transport, "handle_async_request", handle_and_note)
        return transport

    monkeypatch.setattr(_client, "_plain_transport", noting)
    return seen


@own_transport
def test_request_with_extensions_goes_through_httpxs_own_transport(
    ask_anew: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        events.append(name)

    seen = left_to_httpx(monkeypatch)
    with SSEServer([send(1), DONE]) as server:
        assert ask_anew(server.url).items() == [1]
        assert (seen, events) == ([], [])
        for _ in range(2):
            assert ask_anew(server.url, extensions={"trace": trace}).items() == [1]
        assert len(seen) == 2
        assert events.count("http11.send_request_headers.started") == 2


def test_name_of_the_certificate_may_be_given(
    ask_anew: Door, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    monkeypatch.setattr(_client, "_tls_context", client_tls)
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        with pytest.raises(ConnectError):
            ask_anew(server.url, extensions={"sni_hostname": "other.test"})
        assert ask_anew(server.url, extensions={"sni_hostname": "localhost"}).items() == [1]


def stands_in(calls: list[str]) -> Callable[..., Awaitable[httpx.Response]]:
    async def handle(transport: object, request: httpx.Request) -> httpx.Response:
        calls.append(str(request.url))
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"data: 2\n\n")

    return handle


def test_httpxs_transport_that_was_replaced_is_honoured(ask_anew: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest-httpx does it, and OpenTelemetry; also where it comes and goes while a client is in use."""
    calls: list[str] = []
    with SSEServer([send(1), DONE]) as server:
        assert ask_anew(server.url).items() == [1]
        with monkeypatch.context() as patch:
            patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", stands_in(calls))
            assert ask_anew("http://upstream.test/a").items() == [2]
        assert calls == ["http://upstream.test/a"]
        assert ask_anew(server.url).items() == [1]
        assert len(calls) == 1


def test_httpcores_pool_that_was_replaced_is_honoured(ask_anew: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """As RESPX does it."""

    async def handle(pool: object, request: httpcore.Request) -> httpcore.Response:
        headers = [(b"Content-Type", b"text/event-stream")]
        return httpcore.Response(200, headers=headers, content=b"data: %b\n\n" % request.url.target[1:])

    with SSEServer([send(1), DONE]) as server:
        assert ask_anew(server.url).items() == [1]
        with monkeypatch.context() as patch:
            patch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", handle)
            assert ask_anew("http://upstream.test/23").items() == [23]
        assert ask_anew(server.url).items() == [1]


def test_httpcore_that_is_only_just_imported_by_another_thread(ask_anew: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([send(1), DONE]) as server:
        monkeypatch.setitem(sys.modules, "httpcore", ModuleType("httpcore"))
        assert ask_anew(server.url).items() == [1]


@pytest.mark.parametrize("name", ["send", "_send_single_request"])
def test_clients_send_that_was_replaced_is_honoured(ask_anew: Door, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls: list[str] = []
    own = getattr(httpx.AsyncClient, name)

    async def noting(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        calls.append(request.method)
        response: httpx.Response = await own(client, request, **options)
        return response

    with SSEServer([send(1), DONE]) as server:
        monkeypatch.setattr(httpx.AsyncClient, name, noting)
        assert ask_anew(server.url).items() == [1]
    assert calls == ["GET"]


@pytest.mark.parametrize(("no_proxy", "is_asked"), [("", True), ("127.0.0.1", False)])
def test_proxy_of_the_environment_is_asked(
    ask_anew: Door, monkeypatch: pytest.MonkeyPatch, no_proxy: str, is_asked: bool
) -> None:
    with SSEServer([send("proxy"), DONE]) as proxy, SSEServer([send("upstream"), DONE]) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        assert ask_anew(server.url, decode="text").items() == ["proxy" if is_asked else "upstream"]
        assert len(proxy.requests) == is_asked


# Credentials and cookies.


def credentials(request: ReceivedRequest) -> str:
    scheme, _, token = request.headers["authorization"].partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(token).decode()


@pytest.mark.parametrize("how", ["url", "auth"])
def test_credentials_are_sent(ask: Door, how: str) -> None:
    with SSEServer([send(1), DONE]) as server:
        url = server.url.replace("://", "://user:pa%2Fss@") if how == "url" else server.url
        auth = None if how == "url" else ("user", "pa/ss")
        assert ask(url, auth=auth).items() == [1]
        assert credentials(server.requests[0]) == "user:pa/ss"
        assert ask(server.url).items() == [1]
        assert "authorization" not in server.requests[1].headers


def test_auth_may_ask_twice_on_one_connection(run: Run) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if "authorization" in request.headers:
            return [send(1), DONE]
        challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
        return [respond(401, {"WWW-Authenticate": challenge}, content_type=None), b"who are you?"]

    async def main() -> None:
        async with new_client() as client:
            response = await client.post(server.url, content=b"body", auth=httpx.DigestAuth("user", "pass"))
            assert response.status_code == 200

    with SSEServer(script) as server:
        run(main)
        assert [request.body for request in server.requests] == [b"body", b"body"]
        assert server.connections == 1


def test_cookies_of_answers_are_not_kept(ask: Door) -> None:
    with SSEServer([respond(headers={"Set-Cookie": "a=1; Path=/"}), send(1), DONE]) as server:
        for auth in (None, ("user", "pass"), None):
            assert ask(server.url, auth=auth).items() == [1]
        assert ["cookie" in request.headers for request in server.requests] == [False] * 3


# Streams over it.


def test_total_counts_right_though_the_loop_was_idle(ask_anew: Door) -> None:
    """uvloop's clock stands still while it waits."""
    with SSEServer(in_turn([send(1), DONE], [silence()])) as server:
        assert ask_anew(server.url).items() == [1]
        time.sleep(0.3)
        for _ in range(2):
            # If the pause counted, the limit would be over at once.
            began = time.monotonic()
            with pytest.raises(StreamTimeoutError):
                ask_anew(server.url, timeout={"total": 0.2})
            assert time.monotonic() - began >= 0.2


def test_answer_of_another_status_gives_its_connection_back(ask_anew: Door) -> None:
    with SSEServer([respond(503, content_type="text/plain"), b"busy"]) as server:
        for _ in range(5):
            answer = ask_anew(server.url)
            assert (answer.status, answer.items()) == (503, ["busy"])
        assert server.connections == 1


@pytest.mark.parametrize("secure", [False, True])
def test_stream_that_is_held_back_gives_all_in_the_end(
    ask_anew: Door,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    secure: bool,
) -> None:
    monkeypatch.setattr(_client, "_tls_context", client_tls)
    text = "x" * 1000
    with (
        SSEServer([*[send(text)] * 2000, DONE], ssl_context=server_tls if secure else None) as server,
        ask_anew(server.url, decode="text", max_buffered_bytes=10_000) as answer,
    ):
        assert answer.next() == text
        assert answer.items() == [text] * 1999


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("framing", ["chunked", "sized", "unbounded"])
def test_nothing_is_lost_where_the_server_leaves_before_it_is_read(
    ask_anew: Door,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    framing: str,
    secure: bool,
) -> None:
    """The end of the connection, without a goodbye, lies behind what the client has not made room for."""
    monkeypatch.setattr(_client, "_tls_context", client_tls)
    body = b"".join(b"data: %d %b\n\n" % (n, b"x" * 500) for n in range(1000))
    heads = {"chunked": b"Transfer-Encoding: chunked", "sized": b"Content-Length: %d" % len(body), "unbounded": b"A: b"}
    if framing == "chunked":
        pieces = [body[at : at + 4000] for at in range(0, len(body), 4000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % heads[framing]

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if secure:
            connection = server_tls.wrap_socket(connection, server_side=True)
        with connection:
            connection.settimeout(30)
            connection.recv(65_536)
            connection.sendall(head + body)
        left.set()

    left = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: serve(listener))
        url = f"http{'s' * secure}://127.0.0.1:{listener.getsockname()[1]}/"
        with ask_anew(url, decode="text", max_buffered_bytes=20_000) as answer:
            got = [answer.next() for _ in range(100)]
            while not left.is_set():
                got.append(answer.next())
                time.sleep(0.001)
            got += answer.items()
        serving.result(30)
    assert [int(item.partition(" ")[0]) for item in got] == list(range(1000))


def test_requests_that_need_httpxs_transport_at_the_same_time_share_it(run: Run) -> None:
    async def main() -> None:
        async def plain() -> httpx.AsyncBaseTransport:
            waiting.append(1)
            await all_wait.wait()
            made.append(httpx.AsyncHTTPTransport())
            return made[-1]

        async def tls() -> ssl.SSLContext:
            raise AssertionError("nothing here is encrypted")

        waiting: list[int] = []
        made: list[httpx.AsyncHTTPTransport] = []
        all_wait = asyncio.Event()
        transport = Transport(keepalive_expiry=60.0, tls_context=tls, plain=plain)
        async with httpx.AsyncClient(transport=transport) as client:
            asks = [asyncio.create_task(client.get(server.url, extensions={"target": b"/a"})) for _ in range(3)]
            while len(waiting) < 3:
                await asyncio.sleep(0)
            all_wait.set()
            assert [(await ask).content for ask in asks] == [b"data: 1\n\n"] * 3
            assert (await client.get(server.url, extensions={"target": b"/b"})).content == b"data: 1\n\n"
            assert len(made) == 3
        # Those that lost the race were never used, and the one that was is closed.
        assert transport._plain is made[0]
        assert made[0]._pool.connections == []

    with SSEServer([send(1)]) as server:
        run(main)
        assert server.connections == 3


def test_requests_that_make_a_loops_client_at_the_same_time_share_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a proxy is named the client takes its time, and a second request comes meanwhile."""

    async def main() -> None:
        for answer in await asyncio.gather(*(arequest_sse(server.url) for _ in range(3))):
            assert [item async for item in answer.events] == [1]
        assert len(caller_loops._states) == 1

    monkeypatch.setattr(_client, "_tls_context", None)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SSEServer([send(1), DONE]) as server:
        run(main)


@pytest.mark.parametrize("is_own", [True, False])
def test_what_comes_after_the_last_event_is_read_so_that_the_connection_is_kept(is_own: bool) -> None:
    seen, over = threading.Event(), threading.Event()
    script = [send(1), DONE, hold(seen), *[comment("after the end")] * 20, hold(over)]
    with SSEServer(script) as server, Bridge(client=None if is_own else httpx.AsyncClient) as bridge:
        for _ in range(2):
            seen.clear()
            over.clear()
            assert list(request_sse(server.url, bridge=bridge).events) == [1]
            seen.set()
            # Some of it comes for itself, and the end later.
            until(lambda: server.requests[-1].sent_bytes > 20 * len(": after the end\n"))
            over.set()
            until(lambda: repr(bridge) == "<Bridge open streams=0>")
        assert server.connections == 1


def test_events_that_come_between_a_close_and_its_abort_are_dropped(ask_anew: Door) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), send(3), silence()]) as server, ask_anew(server.url) as answer:
        assert answer.next() == 1
        answer.events._channel.close()
        go.set()
        ask_anew.meanwhile(until, lambda: answer.events.stats.events == 3)
        assert answer.items() == []
        assert answer.events.stats.buffered <= 1000


def test_reading_is_paused_once_for_several_reads(run: Run) -> None:
    """A transport may still deliver what it was reading when it was paused."""

    class Calls:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args: self.calls.append(name)

    async def main() -> None:
        pool, calls = new_transport(), Calls()
        connection = HTTP11Connection(asyncio.get_running_loop(), Origin("http", "a", 80), pool)
        connection.connection_made(calls)
        connection.get_buffer(60_000)[:60_000] = b"HTTP/1.1 200 OK\r\n\r\n".ljust(60_000, b".")
        for _ in range(3):
            connection.buffer_updated(60_000)
        assert calls.calls == ["pause_reading"]
        response = await connection.exchange(httpx.Request("GET", "http://a/"), {})
        # The head frees the buffer, and the beginning of the body fills it again.
        assert calls.calls == ["pause_reading", "write", "resume_reading", "pause_reading"]
        assert len(await response.extensions[BODY_EXTENSION].read()) == 180_000 - len(b"HTTP/1.1 200 OK\r\n\r\n")
        assert calls.calls[4:] == ["resume_reading"]
        connection.abort()

    run(main)
