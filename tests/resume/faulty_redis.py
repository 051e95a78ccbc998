"""A proxy that understands Redis's protocol, and answers chosen commands with errors of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import BinaryIO

from tests.redis_support import Proxy

__all__ = ["FaultyRedis"]

# The name of a command, of a script by its hash, and its number among the commands of that name.
Fault = Callable[[str, int], str | None]
# In place of an error: the connection is reset.
RESET = "reset"


class FaultyRedis(Proxy):
    """Forwards commands one by one to the Redis on a port.

    `fault(name, count)` is called for each command, with the number of earlier commands of the same name. It returns
    None to forward the command, an error to reply with, or "reset" to reset the connection after the command was run.
    `name` is that of the command, or the hash of a script that is run by its hash.
    """

    def __init__(self, target: int, fault: Fault) -> None:
        self.counts: dict[str, int] = {}
        self._fault = fault
        self._lock = threading.Lock()
        super().__init__(target)

    def _forward(self, client: socket.socket, remaining: int) -> None:
        # A side that leaves may reset the connection.
        with (
            client,
            contextlib.suppress(ConnectionError, ValueError),
            socket.create_connection(("127.0.0.1", self.target)) as server,
        ):
            self._exchange(client, client.makefile("rb"), server, server.makefile("rb"))

    def _exchange(self, client: socket.socket, requests: BinaryIO, server: socket.socket, replies: BinaryIO) -> None:
        while command := _read(requests):
            name = _name_of(command)
            with self._lock:
                count = self.counts.get(name, 0)
                self.counts[name] = count + 1
            error = self._fault(name, count)
            if error is None or error == RESET:
                server.sendall(command)
                reply = _read(replies)
                if error == RESET:
                    # Unread data makes the close a reset; else the client sees the end of the connection.
                    return
            else:
                reply = b"-%b\r\n" % error.encode()
            client.sendall(reply)


def _name_of(command: bytes) -> str:
    """Return the first word of a command, in capitals; the hash for EVALSHA."""
    words = command.split(b"\r\n")[2::2]
    name = words[0].decode().upper()
    return words[1].decode() if name == "EVALSHA" else name


def _read(stream: BinaryIO) -> bytes:
    """Return one value of Redis's protocol as it was sent; b"" at the end of the connection."""
    line = stream.readline()
    kind, size = line[:1], line[1:-2]
    if kind in b"$=" and line and int(size) >= 0:
        return line + stream.read(int(size) + 2)
    if kind in b"*%~>" and line:
        return line + b"".join(_read(stream) for _ in range(int(size) * (2 if kind == b"%" else 1)))
    return line
