"""HTTP11Connection: writing requests, with write backpressure and with servers that respond early."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import CallbackError, TransportError
from sseqbridge._http import client as http_client
from sseqbridge._http.network_stream import InputState
from sseqbridge._http.tls import TlsSession
from sseqbridge.testing import SSEServer, send
from tests.clock import FakeClock
from tests.requesters import Requester
from tests.support import in_thread

from .upstream import DONE, SHORT, Peer, Run, asking, new_client, own_transport, parts, until_read, upstream


@contextlib.asynccontextmanager
async def posting(*, timeout: Any = 10.0, **options: Any) -> AsyncIterator[tuple[Peer, Any]]:
    """A pending POST request, and the server's side of its connection."""
    async with (
        upstream() as server,
        new_client(timeout=timeout) as client,
        asking(client, server.url, "POST", **options) as pending,
    ):
        yield await server.accept(), pending


def test_request_is_written_unchanged(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            client.headers.clear()
            headers = [("X-b", "2"), ("x-A", "1"), ("X-b", "3"), ("X-Empty", "")]
            # A signed URL must not be re-encoded: its signature would be wrong.
            target = "/a%7Eb/~c/d%2Fe//f;g=h?x=%2F~%7e&y=a+b%20c&&z"
            async with asking(client, server.url + target, headers=headers) as pending:
                peer = await server.accept()
                lines = (await peer.receive()).split(b"\r\n")
                assert lines == [
                    b"GET " + target.encode() + b" HTTP/1.1",
                    f"Host: 127.0.0.1:{server.port}".encode(),
                    *(b"X-b: 2", b"x-A: 1", b"X-b: 3", b"X-Empty: "),
                    *(b"", b""),
                ]
                await peer.send(SHORT)
                await pending

    run(main)


def test_request_headers_are_written_in_order(ask: Requester) -> None:
    headers = {"X-Zebra": "1", "x-apple": "2", "Accept": "*/*"}
    with SSEServer([send(1), DONE]) as server, ask(f"{server.url}/a%7Eb?x=%2F~", headers, {"a": 1}) as response:
        assert response.items() == [1]
        [request] = server.requests
        assert request.path == "/a%7Eb?x=%2F~"
        names = [name for name, _ in request.header_pairs]
        assert names[0] == "Host"
        assert [name for name in names if name in ("X-Zebra", "x-apple", "Accept")] == ["X-Zebra", "x-apple", "Accept"]
        assert request.json() == {"a": 1}


def test_head_and_small_body_leave_in_one_write(run: Run) -> None:
    async def main() -> None:
        async with posting(content=b"x" * 5000) as (peer, pending):
            # One segment on loopback, so one read returns all of it.
            data = await peer.receive_some()
            assert data.endswith(b"\r\n\r\n" + b"x" * 5000)
            await peer.send(SHORT)
            await pending

    run(main)


@pytest.mark.slow
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
def test_all_parts_of_a_body_are_sent(run: Run, body: list[bytes], framing: str | None) -> None:
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


def test_part_of_a_body_is_sent_before_the_next(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await go.wait()

        async with posting(content=body()) as (peer, pending):
            await peer.receive(b"one\r\n")
            go.set()
            await peer.receive(b"0\r\n\r\n")
            await peer.send(SHORT)
            await pending

    run(main)


@pytest.mark.slow
@pytest.mark.parametrize("is_whole", [True, False])
def test_large_body_is_sent_to_a_slow_server(run: Run, is_whole: bool) -> None:
    async def main() -> None:
        body = os.urandom(1024) * 10 * 1024
        pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
        content = body if is_whole else parts(*pieces)
        async with posting(content=content, headers={"Content-Length": str(len(body))}) as (peer, pending):
            received = b""
            while len(received) < len(body):
                received += await asyncio.get_running_loop().sock_recv(peer.socket, 300_000)
                if b"\r\n\r\n" in received[:1000]:
                    received = received.partition(b"\r\n\r\n")[2]
                assert not pending.done()
            assert received == body
            await peer.send(SHORT)
            assert await (await pending).aread() == b"hello"

    run(main)


def test_files_are_sent(ask: Requester) -> None:
    content = os.urandom(300_000)
    with (
        SSEServer([send(1), DONE]) as server,
        ask(server.url, files={"file": ("name.bin", content, "application/x-test")}) as response,
    ):
        assert response.items() == [1]
        [request] = server.requests
        assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert int(request.headers["content-length"]) == len(request.body)
        assert content in request.body
        assert b'filename="name.bin"' in request.body


def test_asynchronous_file_is_sent(ask: Requester) -> None:
    class AsyncFile:
        """Like the files of anyio and aiofiles, whose iterators yield lines."""

        def __init__(self) -> None:
            self.left = [b"one", b"two"]

        def __aiter__(self) -> AsyncIterator[bytes]:
            raise AssertionError("read by aread()")

        async def aread(self, size: int) -> bytes:
            assert size >= 1024
            return self.left.pop(0) if self.left else b""

    with SSEServer([send(1), DONE]) as server, ask(server.url, content=AsyncFile()) as response:
        assert response.items() == [1]
        assert server.requests[0].body == b"onetwo"


def test_file_whose_name_cannot_be_read_is_a_callback_error(ask: Requester) -> None:
    class Nameless(io.BytesIO):
        @property
        def name(self) -> str:
            raise StopIteration

    with pytest.raises(CallbackError, match="a file of the request raised StopIteration"):
        ask("http://127.0.0.1/", files={"file": Nameless(b"content")})


@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("body", [[b"hello"], [b"he", b"llo"]])
def test_body_that_contradicts_content_length_is_refused(run: Run, body: list[bytes], length: int) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            headers = {"Content-Length": str(length)}
            async with asking(client, server.url, "POST", content=parts(*body), headers=headers) as pending:
                peer = await server.accept()
                with pytest.raises(httpx.LocalProtocolError, match="as long as"):
                    await pending
                assert await peer.client_has_left()

    run(main)


BODIES = ["bytes", "iterator", "chunked", "blocked iterator"]


class Uploaded:
    """A body of 10 MB that the server does not read, as one of BODIES.

    `closed` is set when an iterator that waits for its next part ends. (Others are their owner's to close.)
    """

    def __init__(self, kind: str) -> None:
        self.closed = asyncio.Event()
        self.size = 10_000_000
        self.headers = {} if kind == "chunked" else {"Content-Length": str(self.size)}
        self.content: Any = bytes(self.size) if kind == "bytes" else self._parts(is_blocked=kind.startswith("blocked"))
        if not kind.startswith("blocked"):
            self.closed.set()

    async def _parts(self, *, is_blocked: bool) -> AsyncIterator[bytes]:
        try:
            yield bytes(1000)
            if is_blocked:
                await asyncio.Event().wait()
            for _ in range(self.size // 1000 - 1):
                yield bytes(1000)
        finally:
            self.closed.set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("status", [b"413 Too Large", b"401 No", b"307 Elsewhere"])
def test_early_refusal_is_returned_at_once_and_ends_the_sending(run: Run, kind: str, status: bytes) -> None:
    async def main() -> None:
        body = Uploaded(kind)
        async with (
            upstream() as server,
            new_client(timeout=None) as client,
            asking(client, server.url, "POST", content=body.content, headers=body.headers) as pending,
        ):
            peer = await server.accept()
            await peer.receive()
            # Interim responses change nothing. The server neither reads on nor closes the connection.
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n")
            await peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\nhello")
            response = await pending
            assert response.status_code == int(status[:3])
            assert await response.aread() == b"hello"
            await response.aclose()
            await body.closed.wait()
            assert await peer.client_has_left()
            assert server.connections == 1

    run(main)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BODIES)
def test_early_success_is_returned_at_once(run: Run, kind: str) -> None:
    """The server may stream its response while it reads the request, or without reading it."""

    async def main() -> None:
        body = Uploaded(kind)
        async with (
            upstream() as server,
            new_client(timeout=None) as client,
            asking(client, server.url, "POST", content=body.content, headers=body.headers) as pending,
        ):
            peer = await server.accept()
            await peer.receive()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\none")
            response = await pending
            chunks = response.aiter_raw()
            assert await anext(chunks) == b"one"
            await peer.send(b"two")
            assert await anext(chunks) == b"two"
            await response.aclose()
            await body.closed.wait()
            assert await peer.client_has_left()

    run(main)


@pytest.mark.slow
def test_request_is_sent_on_after_an_early_success(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await go.wait()
            yield b"two"

        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=body()) as pending,
        ):
            peer = await server.accept()
            await peer.receive(b"one\r\n")
            await peer.send(SHORT)
            response = await pending
            go.set()
            await peer.receive(b"3\r\ntwo\r\n0\r\n\r\n")
            assert await response.aread() == b"hello"
            # The request is complete, and so is its response: the connection is used again.
            async with asking(client, server.url) as other:
                await peer.respond(SHORT)
                assert await (await other).aread() == b"hello"

    run(main)


@pytest.mark.slow
def test_body_that_fails_after_an_early_success_is_an_error(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await go.wait()
            raise ZeroDivisionError

        async with (
            upstream() as server,
            new_client(timeout=None) as client,
            asking(client, server.url, "POST", content=body()) as pending,
        ):
            peer = await server.accept()
            await peer.receive(b"one\r\n")
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\none")
            chunks = (await pending).aiter_raw()
            assert await anext(chunks) == b"one"
            go.set()
            with pytest.raises(ZeroDivisionError):
                await anext(chunks)

    run(main)


def test_server_may_stop_reading_after_an_early_success(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        body = Uploaded("bytes")
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, write=60)) as client,
            asking(client, server.url, "POST", content=body.content) as pending,
        ):
            peer = await server.accept()
            await peer.receive()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\none")
            chunks = (await pending).aiter_raw()
            assert await anext(chunks) == b"one"
            for _ in range(10):
                clock.advance(60)
                await asyncio.sleep(0)
            await peer.send(b"two")
            assert await anext(chunks) == b"two"

    run(main)


def test_abort_during_the_sending_closes_the_body(run: Run) -> None:
    async def main() -> None:
        body = Uploaded("blocked iterator")
        async with upstream() as server, new_client(timeout=None) as client:
            async with asking(client, server.url, "POST", content=body.content, headers=body.headers):
                peer = await server.accept()
                await peer.receive()
            # The end of the block cancels the request.
            assert body.closed.is_set()
            assert await peer.client_has_left()

    run(main)


@own_transport
@pytest.mark.parametrize("makes_parts", [False, True])
def test_early_refusal_of_an_upload_is_a_response(ask: Requester, makes_parts: bool) -> None:
    released = threading.Event()

    def parts_of_it() -> Iterator[bytes]:
        yield bytes(1000)
        released.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> bytes:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nhello")
                received = b"x"
                with contextlib.suppress(ConnectionResetError):
                    while received:
                        answered.wait(30)
                        received = connection.recv(65_536)
            return received

        answered = threading.Event()
        serving = in_thread(serve)
        content: Any = parts_of_it() if makes_parts else bytes(20_000_000)
        with ask(f"http://127.0.0.1:{listener.getsockname()[1]}/", content=content, timeout=60) as response:
            assert (response.status, response.items()) == (413, ["hello"])
        answered.set()
        serving.result(30)
        released.set()


async def failing() -> AsyncIterator[bytes]:
    yield b"x" * 100_000
    raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "headers", "error", "message"),
    [
        *(
            (partial(parts, *body), {"Content-Length": length}, httpx.LocalProtocolError, "as long as")
            for body in ([b"hello"], [b"he", b"llo"])
            for length in ("4", "6")
        ),
        (partial(parts, b"x"), {"Transfer-Encoding": "gzip"}, httpx.LocalProtocolError, None),
        (partial(parts, b"x"), {"Content-Length": "x"}, httpx.LocalProtocolError, None),
        (failing, {}, ZeroDivisionError, None),
    ],
    ids=[
        *("bytes, too long", "bytes, too short", "parts, too long", "parts, too short"),
        *("coding other than chunked", "length that is no number", "iterator that raises"),
    ],
)
def test_request_that_cannot_be_written_closes_its_connection(
    run: Run,
    body: Callable[[], AsyncIterator[bytes]],
    headers: dict[str, str],
    error: type[Exception],
    message: str | None,
) -> None:
    async def main() -> None:
        async with posting(content=body(), headers=headers) as (peer, pending):
            with pytest.raises(error, match=message):
                await pending
            assert await peer.client_has_left()

    run(main)


@pytest.mark.slow
def test_body_that_the_server_does_not_read_times_out(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        async with posting(content=bytes(50_000_000), timeout=httpx.Timeout(None, write=60)) as (peer, pending):
            with pytest.raises(httpx.WriteTimeout):
                await clock.aadvance_until_done(pending, step=10)
            assert await peer.client_has_left()

    run(main)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [60, None])
def test_body_that_the_server_reads_slowly_does_not_time_out(clock: FakeClock, run: Run, limit: float | None) -> None:
    async def main() -> None:
        body = bytes(12_000_000)
        async with posting(content=body, timeout=httpx.Timeout(None, write=limit)) as (peer, pending):
            received, began = 0, clock.monotonic()
            while received < len(body):
                received += len(await asyncio.get_running_loop().sock_recv(peer.socket, 100_000))
                # The client uses the room in the socket's buffer before the next read.
                await until_read(peer)
                clock.advance(1)
            # Longer than the limit, which restarts whenever the server reads.
            assert clock.monotonic() - began > 100
            await peer.send(SHORT)
            assert await (await pending).aread() == b"hello"

    run(main)


@pytest.mark.slow
def test_received_bytes_do_not_extend_the_write_timeout(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        async with posting(content=bytes(50_000_000), timeout=httpx.Timeout(None, write=60)) as (peer, pending):
            await peer.send(b"HTTP/1.1 200 OK\r\nX: ")
            while not pending.done():
                with contextlib.suppress(ConnectionError):
                    await peer.send(b"x")
                clock.advance(1)
                await asyncio.sleep(0)
            with pytest.raises(httpx.WriteTimeout):
                await pending

    run(main)


def test_large_body_is_sent_over_tls(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    body = os.urandom(3_000_000)
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        assert ask_fresh(server.url, content=body).items() == [1]
        assert server.requests[0].body == body


@own_transport
def test_tls_that_cannot_send_is_a_typed_error(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """As if a server of TLS 1.2 renegotiated."""

    def encrypt(session: TlsSession, data: bytes) -> bytes:
        raise ssl.SSLWantReadError(2, "The operation did not complete (read)")

    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    monkeypatch.setattr(TlsSession, "encrypt", encrypt)
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        with pytest.raises(TransportError, match="did not complete"):
            ask_fresh(server.url)
        assert server.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "leave"), [(5, "close"), (5, "reset"), (100_000, "reset"), (100_000, "close and read on")]
)
@pytest.mark.parametrize("content", ["bytes", "iterator", "chunked"])
def test_response_during_the_body_is_read(run: Run, size: int, leave: str, content: str) -> None:
    async def main() -> None:
        pieces = [bytes(100_000)] * 100
        headers = {} if content == "chunked" else {"Content-Length": str(100_000 * 100)}
        body: Any = b"".join(pieces) if content == "bytes" else parts(*pieces)
        async with posting(content=body, headers=headers) as (peer, pending):
            await peer.receive_some()
            await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
            if leave == "reset":
                # A close with unread bytes is a reset.
                peer.socket.close()
            else:
                peer.socket.shutdown(socket.SHUT_WR)
            if leave == "close and read on":
                # Like servers that make sure that their response is read.
                leaving = asyncio.create_task(peer.client_has_left())
            response = await pending
            assert response.status_code == 413
            assert await response.aread() == bytes(size)
            if leave == "close and read on":
                assert await leaving

    run(main)


@pytest.mark.slow
@own_transport
def test_part_after_the_end_of_the_connection_is_the_last(run: Run) -> None:
    """The iterator of a body is not read on for a server that has left."""

    async def main() -> None:
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        produced: list[int] = []

        async def body() -> AsyncIterator[bytes]:
            for n in range(100):
                produced.append(n)
                yield b"x"
                response = await opened
                while response.extensions["network_stream"].input is InputState.OPEN:
                    await asyncio.sleep(0.001)

        async with posting(content=body()) as (peer, pending):
            await peer.receive(b"x\r\n")
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            peer.socket.close()
            response = await pending
            opened.set_result(response)
            while len(produced) == 1:
                await asyncio.sleep(0.001)
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
            assert produced == [0, 1]

    run(main)


@pytest.mark.slow
def test_response_can_be_closed_after_its_connection_is_lost(run: Run) -> None:
    async def main() -> None:
        async with posting(content=bytes(10_000_000)) as (peer, pending):
            await peer.receive_some()
            await peer.send(SHORT)
            peer.socket.shutdown(socket.SHUT_WR)
            response = await pending
            # The loop sends its buffer, and then closes the connection.
            assert await peer.client_has_left()
            await response.aclose()

    run(main)


@pytest.mark.parametrize("size", [5, 100_000])
def test_response_before_a_write_that_fails_is_read(run: Run, size: int) -> None:
    """asyncio closes a connection as soon as a write fails, and reads no more."""

    async def main() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield bytes(100_000)
            peer = await accepted
            # Without a moment in which the loop could read. A close with unread bytes is a reset.
            peer.socket.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
            peer.socket.close()
            for _ in range(100):
                yield bytes(100_000)
            await asyncio.Event().wait()

        accepted: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
        async with posting(content=body()) as (peer, pending):
            accepted.set_result(peer)
            response = await pending
            assert (response.status_code, await response.aread()) == (413, bytes(size))

    run(main)


def test_nothing_is_written_to_a_connection_that_is_being_closed(run: Run) -> None:
    """asyncio logs a warning for each write after the fifth."""

    async def main() -> None:
        async with posting(content=parts()) as (peer, pending):
            await peer.respond(SHORT)
            connection = (await pending).extensions["network_stream"]
            connection.transport.abort()
            data = bytes(1_000_000)
            assert len(connection.write_at_once(data)) == len(data)
            assert not await connection.write(data, None)

    run(main)


@pytest.mark.slow
def test_response_during_the_head_is_read(run: Run) -> None:
    async def main() -> None:
        # More than the kernel buffers.
        headers = {"X-Large": "x" * 20_000_000}
        async with posting(content=parts(b"body"), headers=headers) as (peer, pending):
            await peer.receive_some()
            await peer.send(b"HTTP/1.1 431 Too Large\r\nContent-Length: 5\r\n\r\nhello")
            peer.socket.close()
            response = await pending
            assert (response.status_code, await response.aread()) == (431, b"hello")

    run(main)


@pytest.mark.slow
def test_reset_during_the_body_is_a_read_error(run: Run) -> None:
    async def main() -> None:
        async with posting(content=bytes(50_000_000)) as (peer, pending):
            await peer.receive_some()
            peer.reset()
            with pytest.raises(httpx.ReadError) as caught:
                await pending
            assert isinstance(caught.value.__cause__, OSError)

    run(main)


def test_response_before_the_body_is_read(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            await go.wait()
            yield b"y" * 100_000
            yield b"z"

        async with posting(content=body()) as (peer, pending):
            await peer.receive()
            await peer.send(SHORT)
            peer.socket.close()
            await until_read(peer)
            go.set()
            assert await (await pending).aread() == b"hello"

    run(main)
