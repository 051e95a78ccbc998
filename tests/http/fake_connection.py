"""Connections without a socket: each plays lists of bytes, and records written bytes.

Everything runs on the thread of the event loop. A FakeNetwork's `dial` is passed to the transport
in place of the function that opens sockets.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterable
from typing import Any

__all__ = ["EOF", "FakeConnection", "FakeNetwork"]

# The entry of a response at which the peer closes the connection.
EOF = b""


class FakeConnection(asyncio.Transport):
    """Delivers the next of `responses` after each write: one entry in each iteration of the event loop.

    An entry is bytes, EOF, or the exception with which the connection breaks. `over` is set when all
    entries so far are delivered, or the connection is closed; `paused` when the reader holds it back.
    """

    def __init__(self, *responses: Iterable[bytes | Exception]) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.over = asyncio.Event()
        self.paused = asyncio.Event()
        self._responses = collections.deque(responses)
        self._entries: collections.deque[bytes | Exception] = collections.deque()
        self._protocol: Any = None
        self._delivery: asyncio.Handle | None = None
        self._is_closing = False

    def open(self, protocol: asyncio.BufferedProtocol) -> None:
        """Connect `protocol` to this end."""
        self._protocol = protocol
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))
        if self._responses:
            self._entries += self._responses.popleft()
            self.over.clear()
            self._deliver_soon()

    def _deliver_soon(self) -> None:
        if self._delivery is None and not self.paused.is_set() and not self._is_closing:
            self._delivery = asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivery = None
        if self.paused.is_set() or self._is_closing:
            return
        if not self._entries:
            self.over.set()
            return
        entry = self._entries.popleft()
        if isinstance(entry, Exception):
            self._close(entry)
        elif entry == EOF:
            self._protocol.eof_received()
            self._close(None)
        else:
            self._protocol.get_buffer(len(entry))[: len(entry)] = entry
            self._protocol.buffer_updated(len(entry))
        self._deliver_soon()

    def _close(self, cause: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.over.set()
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, cause)

    def abort(self) -> None:
        self._close(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.paused.set()

    def resume_reading(self) -> None:
        self.paused.clear()
        self._deliver_soon()

    def get_write_buffer_size(self) -> int:
        return 0


class FakeNetwork:
    """Returns `connections` in order, and records hosts and ports in `dialled`. An exception in the list is raised."""

    def __init__(self, *connections: FakeConnection | Exception) -> None:
        self.dialled: list[tuple[str, int]] = []
        self._connections = collections.deque(connections)

    async def dial(self, protocol: asyncio.BufferedProtocol, host: str, port: int) -> None:
        self.dialled.append((host, port))
        connection = self._connections.popleft()
        if isinstance(connection, Exception):
            raise connection
        connection.open(protocol)
