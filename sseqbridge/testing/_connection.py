"""Connection: the server side of one TCP connection, HTTP/1.1 by h11.

Every method runs on the server's loop thread. Invariant: one request at a time; bytes that a client
pipelines stay in the parser until `receive` is called again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

import h11

from ._steps import ReceivedRequest

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection"]

_READ_BYTES = 65_536


class _Protocol(asyncio.StreamReaderProtocol):
    """Drops the error that ends a connection before it is accepted.

    No code awaits the end of such a connection. asyncio would log its error as "never retrieved".
    """

    is_accepted = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc if self.is_accepted else None)


class Connection:
    """Receives the requests of one client, sends it bytes, and detects that it left."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self._reader = reader
        self._writer = writer
        self._number = number
        self._parser = h11.Connection(h11.SERVER)

    @classmethod
    async def accept(cls, client: socket.socket, number: int, ssl_context: ssl.SSLContext | None) -> Connection:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = _Protocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=ssl_context)
        protocol.is_accepted = True
        # drain() must return only when the kernel has all bytes, so that bytes before a reset() are sent. asyncio's TLS
        # transports pause at the limit, not above it, so that they would never resume from a limit of 0.
        transport.set_write_buffer_limits(high=0 if ssl_context is None else 1)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop), number)

    @property
    def keeps_alive(self) -> bool:
        """Whether the client keeps the connection open for another request."""
        return self._parser.their_state is h11.DONE

    async def receive(self) -> ReceivedRequest | None:
        """Return the next request, None if there are no more. Answers bytes that are not HTTP with 400."""
        pipelined, _ = self._parser.trailing_data
        self._parser = h11.Connection(h11.SERVER)
        if pipelined:
            self._parser.receive_data(pipelined)
        try:
            return await self._receive()
        except h11.RemoteProtocolError:
            self._writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return None

    async def _receive(self) -> ReceivedRequest | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                await self._feed()
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return None if head is None else self._received(head, bytes(body))

    async def _feed(self) -> None:
        if self._parser.they_are_waiting_for_100_continue:
            self._writer.write(self._parser.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        self._parser.receive_data(await self._reader.read(_READ_BYTES))

    def _received(self, head: h11.Request, body: bytes) -> ReceivedRequest:
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()]
        return ReceivedRequest(head.method.decode(), head.target.decode(), pairs, body, self._number)

    async def wait_until_client_leaves(self) -> None:
        """Return when the client has closed or reset its connection, or half-closed it."""
        with contextlib.suppress(OSError):
            while data := await self._reader.read(_READ_BYTES):
                self._parser.receive_data(data)

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting for the client to read. Never returns if the client has left."""
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError:
            # wait_until_client_leaves() returns too, after which the server cancels this task.
            await asyncio.sleep(float("inf"))

    async def close(self) -> None:
        """Close the connection after all bytes were sent."""
        self._writer.close()
        await self._writer.wait_closed()

    def reset(self) -> None:
        """Close the connection with an RST."""
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        with contextlib.suppress(OSError):  # the client has left
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.abort()

    def abort(self) -> None:
        """Close the connection at once. Idempotent."""
        self._writer.transport.abort()

    async def wait_aborted(self) -> None:
        """Wait for the end of a connection that was aborted, and take its error."""
        with contextlib.suppress(OSError):  # the client may have left first, by an RST
            await self._writer.wait_closed()
