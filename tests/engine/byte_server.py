"""A server that answers requests with given bytes, on as few connections as its client needs."""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
from collections.abc import Sequence
from types import TracebackType

from typing_extensions import Self

__all__ = ["ByteServer", "Pieces"]

# The pieces of a response; each is sent on its own. An Event is waited for. None at the end closes the connection.
Pieces = Sequence[bytes | threading.Event | None]


class ByteServer:
    """Sends the next of `responses` for each request without a body, and keeps the requests' heads."""

    def __init__(self, *responses: Pieces) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._responses = collections.deque(responses)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                self._sockets.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while head := self._read_head(connection):
                self.requests.append(head)
                for piece in self._responses.popleft():
                    if piece is None:
                        return
                    if isinstance(piece, threading.Event):
                        piece.wait(30)
                    else:
                        connection.sendall(piece)

    def _read_head(self, connection: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = connection.recv(65_536)
            if not data:
                return b""
            head += data
        return head
