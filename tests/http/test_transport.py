"""The connection pool of the transport: which connections are reused, kept, expired and closed."""

from __future__ import annotations

import asyncio
import ssl
import threading

import httpx
import pytest

from sseqbridge._http.connection import BODY_EXTENSION
from sseqbridge.testing import SSEServer, hold, send, wire
from tests.clock import FakeClock

from .upstream import SHORT, Run, asking, new_client, new_transport, until_read, upstream

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_sequential_requests_use_one_connection(
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


def test_concurrent_requests_have_a_connection_each(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                responses = asyncio.gather(*(client.get(server.url) for _ in range(30)))
                # All requests arrive before the first is answered.
                while len(server.requests) % 30 or not server.requests:
                    await asyncio.sleep(0.001)
                go.set()
                assert {response.content for response in await responses} == {b"data: 1\n\n"}

    go = threading.Event()
    with SSEServer([hold(go), send(1)]) as server:
        run(main)
        assert server.connections == 30


@pytest.mark.parametrize(
    ("method", "sent", "is_kept"),
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
        # Bytes after the body.
        ("GET", b"200 OK\r\nContent-Length: 5\r\n\r\nhello there", False),
        ("GET", b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nthere", False),
        ("GET", b"204 No Content\r\n\r\nthere", False),
        ("HEAD", b"200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_connection_is_reused_if_the_response_allows_it(
    run: Run,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    method: str,
    sent: bytes,
    is_kept: bool,
    secure: bool,
) -> None:
    async def main() -> None:
        async with new_client(client_tls) as client:
            for _ in range(2):
                response = await client.request(method, server.url)
                assert response.content == (b"hello" if b"hello" in sent and method != "HEAD" else b"")
                assert response.http_version == "HTTP/1.1"

    with SSEServer([wire(b"HTTP/1.1 " + sent)], ssl_context=server_tls if secure else None) as server:
        run(main)
        assert server.connections == (1 if is_kept else 2)


def test_http_1_0_connection_is_not_reused(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                response = await client.get(server.url)
                assert (response.content, response.http_version) == (b"hello", "HTTP/1.0")

    sent = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"
    with SSEServer([wire(sent)]) as server:
        run(main)
        assert server.connections == 2


def test_request_with_connection_close_is_the_last(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            for _ in range(2):
                assert (await client.get(server.url, headers={"Connection": "close"})).content == b"data: 1\n\n"

    with SSEServer([send(1)]) as server:
        run(main)
        assert server.connections == 2
        assert server.requests[0].headers["connection"] == "close"


@pytest.mark.parametrize("way", ["close", "reset", "bytes"])
@pytest.mark.parametrize("is_noticed", [False, True])
def test_idle_connection_that_the_peer_ended_is_not_reused(run: Run, way: str, is_noticed: bool) -> None:
    """With `is_noticed`, the loop has read the end before the next request; without it, only the socket has it."""

    async def main() -> None:
        async with upstream() as server, new_client() as client:
            async with asking(client, server.url) as pending:
                peer = await server.accept()
                await peer.respond(SHORT)
                assert await (await pending).aread() == b"hello"
            if way == "bytes":
                peer.socket.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            elif way == "close":
                peer.socket.close()
            else:
                peer.reset()
            if is_noticed:
                await until_read(peer)
            async with asking(client, server.url) as pending:
                other = await server.accept()
                await other.respond(SHORT)
                assert await (await pending).aread() == b"hello"
            if way == "bytes":
                assert await peer.client_has_left()

    run(main)


def test_idle_connections_are_closed_after_the_keepalive_expiry(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        transport = new_transport(keepalive_expiry=400)
        async with upstream() as server, httpx.AsyncClient(transport=transport, timeout=None) as client:
            peers = []
            # To different origins, at different times, so that they expire one after another.
            for host in ("127.0.0.1", "localhost"):
                url = f"http://{host}:{server.port}"
                async with asking(client, url) as pending:
                    peers.append(await server.accept())
                    await peers[-1].respond(SHORT)
                    await (await pending).aread()
                clock.advance(210)
            assert await peers[0].client_has_left()
            assert transport.connection_count == 1
            clock.advance(300)
            assert await peers[1].client_has_left()

    run(main)


def test_expired_connection_is_not_reused_before_it_is_closed(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client(keepalive_expiry=400, timeout=None) as client:
            for _ in range(2):
                async with asking(client, server.url) as pending:
                    peer = await server.accept()
                    await peer.respond(SHORT)
                    assert await (await pending).aread() == b"hello"
                clock.advance(401)
            assert server.connections == 2

    run(main)


def test_closing_the_client_closes_idle_and_later_busy_connections(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server:
            client = new_client()
            in_use = asyncio.create_task(client.send(client.build_request("GET", server.url), stream=True))
            first = await server.accept()
            await first.respond(SHORT)
            response = await in_use
            async with asking(client, server.url) as pending:
                second = await server.accept()
                await second.respond(SHORT)
                await (await pending).aread()
            await client.aclose()
            assert await second.client_has_left()
            assert await response.aread() == b"hello"
            assert await first.client_has_left()

    run(main)


def test_unused_client_can_be_closed(run: Run) -> None:
    async def main() -> None:
        await new_client().aclose()

    run(main)


def test_unread_complete_response_releases_its_connection(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            async with asking(client, server.url) as pending:
                peer = await server.accept()
                await peer.respond(SHORT)
                assert (await pending).status_code == 200
            async with asking(client, server.url) as pending:
                await peer.respond(SHORT)
                assert await (await pending).aread() == b"hello"
            assert server.connections == 1

    run(main)


@pytest.mark.parametrize("size", [10, 100_000])
def test_large_unread_complete_response_releases_its_connection(run: Run, size: int) -> None:
    """The larger body is more than is read ahead, so that reading is paused."""

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


def test_response_closed_before_its_end_closes_its_connection(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.respond(SHORT[:-1])
            await (await pending).aclose()
            assert await peer.client_has_left()

    run(main)
