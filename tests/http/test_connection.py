"""HTTP11Connection: reading responses, time limits, sinks and read backpressure, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from sseqbridge._http.connection import BODY_EXTENSION, ConnectionState, HTTP11Connection
from sseqbridge._http.errors import ConnectionClosed
from sseqbridge._http.network_stream import READ_BYTES
from sseqbridge._http.origin import Origin
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, reset, respond, send, silence, wire
from tests.clock import FakeClock

from .upstream import SHORT, Peer, Run, asking, new_client, new_transport, until_read, upstream

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]


@pytest.mark.parametrize("end", [b"HTTP/1.0 200 OK\r\n\r\nhello", b"HTTP/1.1 200 OK\r\n\r\nhello"])
def test_body_may_end_with_the_connection(run: Run, end: bytes) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                assert (await client.get(server.url)).content == b"hello"

    with SSEServer([wire(end), cut()]) as server:
        run(main)
        assert server.connections == 2


def test_interim_responses_may_arrive_in_pieces(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.receive()
            for part in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early", b" Hints\r\nA: b\r\n\r", b"\n"):
                await peer.send(part)
                # The client reads each part separately.
                await until_read(peer)
                assert not pending.done()
            await peer.send(SHORT)
            assert await (await pending).aread() == b"hello"

    run(main)


def test_response_can_be_closed_twice_but_not_read_afterwards(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(SHORT)
            body = (await pending).extensions[BODY_EXTENSION]
            assert [part async for part in body] == [b"hello"]
            assert body.complete
            for _ in range(2):
                await body.aclose()
                assert not body.complete
                with pytest.raises(httpx.StreamClosed):
                    await body.read()

    run(main)


def test_network_stream_has_extra_info_of_the_connection(
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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"

UNBOUNDED = b"HTTP/1.1 200 OK\r\n\r\nhello"


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("leave", [cut, reset])
@pytest.mark.parametrize("begun", [CHUNKED, SIZED, UNBOUNDED], ids=["chunked", "sized", "unbounded"])
def test_connection_that_ends_within_a_body(
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
                with pytest.raises(ConnectionClosed, match="peer closed connection"):
                    await body.read()

    go = threading.Event()
    with SSEServer([wire(begun), hold(go), leave()], ssl_context=server_tls if secure else None) as server:
        run(main)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"HTTP/1.1 103 \r\n\r\n"])
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_connection_that_ends_within_the_head(run: Run, begun: bytes, leave: str) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(begun)
            await until_read(peer)
            if leave == "close":
                peer.socket.close()
                with pytest.raises(ConnectionClosed, match="disconnected"):
                    await pending
            else:
                peer.reset()
                with pytest.raises(httpx.ReadError):
                    await pending

    run(main)


def test_bytes_before_a_fault_are_read_first(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client, client.stream("GET", server.url) as response:
            body = response.extensions[BODY_EXTENSION]
            assert await body.read() == b"hello"
            for _ in range(2):
                with pytest.raises(httpx.RemoteProtocolError, match="size") as caught:
                    await body.read()
                assert not isinstance(caught.value, ConnectionClosed)

    with SSEServer([wire(CHUNKED + b"no size\r\nmore"), silence()]) as server:
        run(main)
        server.requests[0].wait_aborted()


@pytest.mark.parametrize(
    "response", [b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"x" * 200_000]
)
def test_malformed_head_closes_the_connection(run: Run, response: bytes) -> None:
    async def main() -> None:
        async with new_client() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(server.url)

    with SSEServer([wire(response), silence()]) as server:
        run(main)
        server.requests[0].wait_aborted()


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED])
def test_silence_times_out(clock: FakeClock, run: Run, begun: bytes) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, read=60)) as client,
            asking(client, server.url) as pending,
        ):
            peer = await server.accept()
            await peer.respond(begun)
            with pytest.raises(httpx.ReadTimeout):
                # The head is read before the clock is advanced.
                reading = (await pending).aread() if begun is CHUNKED else pending
                await clock.aadvance_until_done(reading, step=10)
            if begun is CHUNKED:
                await pending.result().aclose()
            assert await peer.client_has_left()

    run(main)


def test_bytes_taken_by_a_sink_restart_the_read_timeout(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        taken: list[bytes] = []

        def sink(data: bytes) -> bool:
            taken.append(data)
            # Each piece takes a third of the time limit, all of them more than six times the limit.
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


def test_end_and_read_timeout_may_coincide(clock: FakeClock, run: Run) -> None:
    """Whether a loop handles sockets or timers first, exactly one of the two errors is raised."""

    async def main() -> None:
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, read=60)) as client,
            asking(client, server.url) as pending,
        ):
            peer = await server.accept()
            await peer.respond(SHORT[:-1])
            body = (await pending).extensions[BODY_EXTENSION]
            assert await body.read() == b"hell"
            reading = asyncio.create_task(body.read())
            await until_read(peer)
            peer.socket.close()
            clock.advance(61)
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadTimeout)):
                await reading

    run(main)


def test_read_without_timeout_waits(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client(timeout=None) as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.receive()
            await until_read(peer)
            await peer.send(SHORT)
            assert await (await pending).aread() == b"hello"

    run(main)


def test_sink_receives_bytes_until_it_returns_false(run: Run) -> None:
    """The bytes for which it returns False end the wait, and later bytes are kept for the next read."""

    async def main() -> None:
        taken: list[bytes] = []

        def sink(data: bytes) -> bool:
            taken.append(data)
            return len(taken) < 2

        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            body = (await pending).extensions[BODY_EXTENSION]
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


def test_cancelled_read_loses_no_bytes(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(SHORT[:-5])
            body = (await pending).extensions[BODY_EXTENSION]
            reading = asyncio.create_task(body.read(lambda data: True))
            await until_read(peer)
            reading.cancel()
            await asyncio.wait({reading})
            await peer.send(b"hello")
            assert await body.read() == b"hello"

    run(main)


async def fill(peer: Peer) -> int:
    """Send until the client takes no more bytes, and return the number of bytes sent."""
    sent = 0
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += peer.socket.send(bytes(65_536))
        await asyncio.sleep(0.001)
    return sent


# More bytes than the kernel buffers for both sides of a connection on loopback.
ENOUGH = 50_000_000


@pytest.mark.parametrize("head", [b"Content-Length: 1000000000", b"Connection: close"])
def test_unread_body_stops_the_peer(run: Run, head: bytes) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
            body = (await pending).extensions[BODY_EXTENSION]
            sent = await fill(peer)
            assert sent < ENOUGH
            received = 0
            while received < sent:
                received += len(await body.read())
            assert received == sent

    run(main)


@pytest.mark.heavy
def test_bytes_after_the_body_stop_the_peer(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(SHORT)
            response = await pending
            sent = 0
            # Until the client takes no more bytes, or has taken too many.
            while sent < 2 * ENOUGH and (more := await fill(peer)):
                sent += more
            assert len(response.extensions["network_stream"].body.rest) < ENOUGH

    run(main)


@pytest.mark.parametrize("is_aborted", [False, True])
def test_endless_peer_yields_to_other_tasks_of_the_loop(run: Run, is_aborted: bool) -> None:
    """By itself, uvloop would read up to 32 times in one iteration."""

    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(b"HTTP/1.1 200 OK\r\n\r\n")
            response = await pending
            body, connection = response.extensions[BODY_EXTENSION], response.extensions["network_stream"]
            sent = await fill(peer)
            peer.socket.shutdown(socket.SHUT_WR)
            iteration = 0
            taken: collections.Counter[int] = collections.Counter()

            async def count_iterations() -> None:
                nonlocal iteration
                while True:
                    iteration += 1
                    await asyncio.sleep(0)

            def sink(data: bytes) -> bool:
                taken[iteration] += len(data)
                if is_aborted and len(data) == READ_BYTES:
                    # Between the pause and the next read.
                    asyncio.get_running_loop().call_soon(connection.abort)
                return True

            counting = asyncio.create_task(count_iterations())
            ahead = 0
            while data := await body.read(sink):
                ahead += len(data)
            counting.cancel()
            assert max(taken.values()) <= READ_BYTES
            assert (ahead + taken.total() == sent) != is_aborted

    run(main)


def test_endless_interim_responses_are_refused(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200)
            with pytest.raises(httpx.RemoteProtocolError, match="interim responses"):
                await pending

    run(main)


def test_reading_is_paused_once_for_several_reads(run: Run) -> None:
    """A transport may still deliver reads that had begun when it was paused."""

    class Calls:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def is_closing(self) -> bool:
            return False

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


def test_connection_passes_through_its_states(run: Run) -> None:
    async def main() -> None:
        transport = new_transport()
        async with upstream() as server, httpx.AsyncClient(transport=transport, timeout=10.0) as client:
            async with asking(client, server.url) as pending:
                peer = await server.accept()
                await peer.receive()
                [connection] = transport.connections
                states = [connection.state]
                for part in (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 5\r\n\r\n"):
                    await peer.send(part)
                    await until_read(peer)
                    states.append(connection.state)
                await peer.send(b"hello")
                assert await (await pending).aread() == b"hello"
                states.append(connection.state)
            assert states == [
                ConnectionState.AWAITING_RESPONSE,
                ConnectionState.READING_HEAD,
                ConnectionState.READING_BODY,
                ConnectionState.IDLE,
            ]
            connection.abort()
            assert connection.state is ConnectionState.CLOSED
            assert await peer.client_has_left()

    run(main)
