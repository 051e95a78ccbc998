"""A server that a test drives itself: a listening socket whose connections it reads and writes on its own event loop.

Used where the peer has to stay silent, or to write at a certain moment; other tests use SSEServer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import socket
import ssl
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest

from sseqbridge._http.transport import Transport
from sseqbridge.testing import send

from .response_cases import no_plain

Main = Callable[[], Awaitable[Any]]

Run = Callable[[Main], Any]

DONE = send("[DONE]")

own_transport = pytest.mark.own_transport


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
    """The server's side of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._loop = asyncio.get_running_loop()

    async def receive(self, ending: bytes = b"\r\n\r\n") -> bytes:
        """Return received bytes up to `ending`, and the bytes received together with it."""
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

    async def respond(self, data: bytes) -> None:
        await self.receive()
        await self.send(data)

    async def client_has_left(self) -> bool:
        """Wait until the client closes or resets the connection."""
        with contextlib.suppress(ConnectionResetError):
            while await self._loop.sock_recv(self.socket, 65_536):
                pass
        return True

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Upstream:
    """A listening socket, and the connections accepted from it."""

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
    """A pending request, as a task. The block's end cancels it, or closes its response."""
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


async def until_read(peer: Peer) -> None:
    """Wait until the client's loop has read all sent bytes; on Linux, first until its kernel has received them."""
    while sys.platform == "linux" and peer.socket.fileno() >= 0 and _unacknowledged(peer.socket):
        await asyncio.sleep(0)
    # A few more iterations than any loop was seen to need.
    for _ in range(10):
        await asyncio.sleep(0)


def _unacknowledged(connection: socket.socket) -> int:
    """Return the number of sent bytes that the client's kernel has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


async def parts(*data: bytes) -> AsyncIterator[bytes]:
    for part in data:
        yield part


@contextmanager
def full_listener() -> Iterator[int]:
    """A port whose backlog is full: connecting to it neither succeeds nor fails."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        yield listener.getsockname()[1]


Resolve = Callable[..., None]
