"""The transport over connections without a socket: requests, reuse, backpressure and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest

from sseqbridge._http.connection import BODY_EXTENSION, BodyStream
from sseqbridge._http.errors import ConnectionClosed, ReusedConnectionClosed
from sseqbridge._http.transport import Transport

from .fake_connection import EOF, FakeConnection, FakeNetwork
from .response_cases import no_plain, no_tls

pytestmark = pytest.mark.configurations("default")

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def new_client(network: FakeNetwork) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=Transport(keepalive_expiry=60, tls_context=no_tls, plain=no_plain, dial=network.dial)
    )


def on_a_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that is a coroutine function, on a loop of its own."""
    return lambda: asyncio.run(main())


@on_a_loop
async def test_requests_are_written_and_answered_in_order() -> None:
    connection = FakeConnection([HELLO], [HELLO[:40], HELLO[40:]])
    network = FakeNetwork(connection)
    async with new_client(network) as client:
        for path in ("first", "second"):
            assert (await client.get(f"http://upstream.test:8080/{path}")).content == b"hello"
        assert network.dialled == [("upstream.test", 8080)]
        assert [data.partition(b"\r\n")[0] for data in connection.written] == [
            b"GET /first HTTP/1.1",
            b"GET /second HTTP/1.1",
        ]


@on_a_loop
async def test_unsolicited_bytes_close_an_idle_connection() -> None:
    connection = FakeConnection([HELLO, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"])
    network = FakeNetwork(connection, FakeConnection([HELLO]))
    async with new_client(network) as client:
        assert (await client.get("http://upstream.test")).content == b"hello"
        await connection.over.wait()
        assert connection.is_closing()
        assert (await client.get("http://upstream.test")).content == b"hello"
        assert len(network.dialled) == 2


@on_a_loop
async def test_refused_connection_is_a_connect_error() -> None:
    network = FakeNetwork(ConnectionRefusedError("no listener"))
    async with new_client(network) as client:
        with pytest.raises(httpx.ConnectError, match="no listener"):
            await client.get("http://upstream.test")


@on_a_loop
async def test_broken_connection_is_a_read_error() -> None:
    network = FakeNetwork(FakeConnection([HELLO[:-1], ConnectionResetError("broken")]))
    async with new_client(network) as client:
        with pytest.raises(httpx.ReadError, match="broken"):
            await client.get("http://upstream.test")


@on_a_loop
async def test_safe_request_is_retried_if_a_reused_connection_closes() -> None:
    network = FakeNetwork(FakeConnection([HELLO], [EOF]), FakeConnection([HELLO]))
    async with new_client(network) as client:
        for _ in range(2):
            assert (await client.get("http://upstream.test")).content == b"hello"
        assert len(network.dialled) == 2


@pytest.mark.parametrize("end", [EOF, ConnectionResetError("broken")], ids=["close", "reset"])
def test_unsafe_request_is_not_retried_on_a_new_connection(end: bytes | Exception) -> None:
    async def main() -> None:
        network = FakeNetwork(FakeConnection([HELLO], [end]), FakeConnection([HELLO]))
        async with new_client(network) as client:
            assert (await client.get("http://upstream.test")).content == b"hello"
            with pytest.raises(ReusedConnectionClosed):
                await client.post("http://upstream.test")
            assert len(network.dialled) == 1

    asyncio.run(main())


@pytest.mark.parametrize("exchanges", [1, 2])
def test_close_within_a_response_is_no_reused_connection_closed(exchanges: int) -> None:
    async def main() -> None:
        network = FakeNetwork(FakeConnection(*[[HELLO]] * (exchanges - 1), [HELLO[:20], EOF]))
        async with new_client(network) as client:
            for _ in range(exchanges - 1):
                await client.get("http://upstream.test")
            with pytest.raises(ConnectionClosed):
                await client.get("http://upstream.test")
            assert len(network.dialled) == 1

    asyncio.run(main())


@on_a_loop
async def test_unread_body_pauses_the_connection() -> None:
    part = b"x" * 50_000
    connection = FakeConnection([b"HTTP/1.1 200 OK\r\n\r\n", *[part] * 8, EOF])
    async with new_client(FakeNetwork(connection)) as client, client.stream("GET", "http://upstream.test") as response:
        body: BodyStream = response.extensions[BODY_EXTENSION]
        # Two parts are more than is read ahead.
        await connection.paused.wait()
        read = await body.read()
        assert read is not None
        assert 0 < len(read) <= 2 * len(part)
        rest = b"".join([part async for part in until_end(body)])
        assert len(read + rest) == 8 * len(part)


async def until_end(body: BodyStream) -> AsyncIterator[bytes]:
    while part := await body.read():
        yield part
