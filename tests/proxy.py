"""A TCP proxy on loopback that cuts connections, for tests of clients that must survive that."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from types import TracebackType

__all__ = ["CuttingProxy"]

_READ_BYTES = 65_536


class CuttingProxy:
    """Forwards connections to a server, and cuts each after a random number of bytes of the response.

    `most` is the maximum of that number; with None no connection is cut but by `cut_all`. Half of the cuts are resets.
    The same `seed` makes the same cuts. `cuts` counts them.
    """

    def __init__(self, port: int, *, most: int | None, seed: int) -> None:
        self.most = most
        self.cuts = 0
        self._upstream = port
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._ended = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="CuttingProxy", daemon=True)

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._ended.set_result, None)
        self._thread.join(30)

    def cut_all(self) -> None:
        """Cut the connections that are open. Thread-safe."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _cut_all(self) -> None:
        for client in self._clients:
            self.cuts += 1
            # The task that forwards the connection then finds it closed.
            client.transport.abort()

    def _run(self) -> None:
        with self._listener, contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._handle, sock=self._listener)
        await self._ended
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        remaining = None if self.most is None else self._random.randint(1, self.most)
        is_reset = self._random.random() < 0.5
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
        forwarding = asyncio.create_task(_forward(reader, upstream))
        self._clients.add(writer)
        try:
            while data := await upstream_reader.read(_READ_BYTES):
                writer.write(data if remaining is None else data[:remaining])
                await writer.drain()
                if remaining is not None:
                    remaining -= len(data)
                    if remaining <= 0:
                        self.cuts += 1
                        break
        except (ConnectionError, asyncio.CancelledError):
            pass  # A side has closed its connection, or the proxy ends.
        finally:
            self._clients.discard(writer)
            forwarding.cancel()
            if is_reset and remaining is not None and remaining <= 0:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.close()
            upstream.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
        writer.close()
