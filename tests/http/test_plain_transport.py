"""PlainTransport, which sends by httpcore: responses at each moment of a request, limits and backpressure.

Tests of the public functions on this transport are in test_early_refusals.py, test_fallback.py and test_proxies.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from sseqbridge._http import plain_transport
from sseqbridge._http.plain_transport import PlainTransport
from tests.clock import FakeClock

from .fake_connection import EOF, FakeConnection, FakeNetwork
from .upstream import SHORT, Peer, Run, Upstream, asking, until_read, upstream

pytestmark = pytest.mark.configurations("default")

REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nhello"


def new_client(timeout: Any = 10.0, proxy: httpx.Proxy | None = None) -> httpx.AsyncClient:
    # It trusts no certificate, so that every handshake fails.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.AsyncClient(transport=PlainTransport(context, httpx.Limits(), proxy), timeout=timeout)


def before(step: str, act: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    """Return extensions of a request that await `act` before a step of httpcore."""

    async def trace(name: str, info: object) -> None:
        if name == f"{step}.started":
            await act()

    return {"trace": trace}


async def respond_and_close(server: Upstream, response: bytes, *, reads: bool) -> None:
    """Serve a connection, and wait until the client's loop has received the response and the end."""
    peer = await server.accept()
    if reads:
        await peer.receive()
    await peer.send(response)
    peer.socket.shutdown(socket.SHUT_WR)
    await until_read(peer)


def test_refusal_that_arrives_in_parts_ends_the_sending(run: Run) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def main() -> None:
        async with (
            upstream() as server,
            new_client() as client,
            asking(client, server.url, "POST", content=body()) as pending,
        ):
            peer = await server.accept()
            await peer.receive(b"one\r\n")
            await peer.send(REFUSAL[:10])
            await until_read(peer)
            assert not pending.done()
            await peer.send(REFUSAL[10:])
            response = await pending
            assert (response.status_code, await response.aread()) == (413, b"hello")

    run(main)


def test_body_that_continues_after_its_cancellation_is_not_sent(run: Run) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        yield b"two"

    async def main() -> None:
        async with upstream() as server, new_client() as client:
            async with asking(client, server.url, "POST", content=body()) as pending:
                peer = await server.accept()
                await peer.receive(b"one\r\n")
                await peer.send(REFUSAL)
                assert await (await pending).aread() == b"hello"
            with pytest.raises((AssertionError, ConnectionResetError)):
                await peer.receive(b"two")

    run(main)


@pytest.mark.parametrize("response", [REFUSAL, b""], ids=["refusal", "none"])
def test_body_is_not_read_after_the_connection_has_ended(run: Run, response: bytes) -> None:
    async def body() -> AsyncIterator[bytes]:
        was_read.append(True)
        yield b"one"

    async def main() -> None:
        async with upstream() as server, new_client() as client:
            # The server responds to the head, and closes the connection.
            end = before("http11.send_request_body", lambda: respond_and_close(server, response, reads=True))
            async with asking(client, server.url, "POST", content=body(), extensions=end) as pending:
                if response:
                    assert await (await pending).aread() == b"hello"
                else:
                    with pytest.raises(httpx.RemoteProtocolError, match="disconnected"):
                        await pending
        assert was_read == []

    was_read: list[bool] = []
    run(main)


def test_response_before_the_request_is_returned(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            end = before("http11.send_request_headers", lambda: respond_and_close(server, REFUSAL, reads=False))
            async with asking(client, server.url, extensions=end) as pending:
                assert await (await pending).aread() == b"hello"

    run(main)


def test_reset_in_place_of_a_response_is_a_read_error(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client, asking(client, server.url) as pending:
            peer = await server.accept()
            await peer.receive()
            peer.reset()
            with pytest.raises(httpx.ReadError):
                await pending

    run(main)


def test_server_that_reads_nothing_is_a_write_timeout(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(timeout=httpx.Timeout(None, write=60)) as client,
            asking(client, server.url, "POST", content=bytes(10_000_000)) as pending,
        ):
            peer = await server.accept()
            await peer.receive()
            with pytest.raises(httpx.WriteTimeout):
                await clock.aadvance_until_done(pending, step=10)

    run(main)


def test_bytes_before_a_tls_handshake_are_an_error(run: Run) -> None:
    """They are not encrypted, and must not count as bytes of the session."""

    async def main() -> None:
        peers: list[Peer] = []

        async def send_more() -> None:
            await peers[0].send(b"HTTP/1.1 200 OK\r\n\r\n")
            await until_read(peers[0])

        async with upstream() as proxy, new_client(proxy=httpx.Proxy(proxy.url)) as client:
            more = before("proxy.start_tls", send_more)
            async with asking(client, "https://upstream.test/", extensions=more) as pending:
                peers.append(await proxy.accept())
                await peers[0].respond(b"HTTP/1.1 200 OK\r\n\r\n")
                with pytest.raises(httpx.ConnectError, match="before the TLS handshake"):
                    await pending
                assert await peers[0].client_has_left()

    run(main)


def test_idle_connection_that_was_closed_is_not_used_again(run: Run) -> None:
    async def main() -> None:
        async with upstream() as server, new_client() as client:
            for _ in range(2):
                async with asking(client, server.url) as pending:
                    peer = await server.accept()
                    await peer.respond(SHORT)
                    assert await (await pending).aread() == b"hello"
                peer.socket.shutdown(socket.SHUT_WR)
                await until_read(peer)
            assert server.connections == 2

    run(main)


def test_unread_body_pauses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with new_client() as client, client.stream("GET", "http://upstream.test") as response:
            chunks = response.aiter_raw()
            received = len(await anext(chunks))
            # One part is more than two reads of httpcore take.
            await connection.paused.wait()
            async for chunk in chunks:
                received += len(chunk)
            assert received == 4 * len(part)

    part = b"x" * 150_000
    connection = FakeConnection([b"HTTP/1.1 200 OK\r\n\r\n", *[part] * 4, EOF])
    monkeypatch.setattr(plain_transport, "dial", FakeNetwork(connection).dial)
    asyncio.run(main())
