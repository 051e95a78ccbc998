"""SSEServer: a scripted SSE server on loopback sockets.

One daemon thread runs the server's loop and writes every field. `_arrived` guards the list of requests and the
number of connections. The fields of a request need no lock: the loop thread is their only writer, and it writes
them before it sets the event, or extends the list, that publishes them. Any thread may read; the thread of the
test calls start() and close().
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from sseqbridge._checks import NotCopyable
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime.clock import clock

from ._connection import Connection
from ._openai import chat_completions
from ._player import FlagWatcher, ResponsePlayer
from ._steps import ReceivedRequest, Script, Step, as_script, blocked_loop, in_turn

if TYPE_CHECKING:
    import ssl

__all__ = ["SSEServer"]

_JOIN_SECONDS = 5.0
_SEND_BUFFER_BYTES = 65_536


class SSEServer(NotCopyable):
    """An HTTP/1.1 server that plays a script for each request.

        with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
            status, headers, events = request_sse(server.url)

    `script` is a list of steps, played for every request, or a function that takes the ReceivedRequest and returns
    or generates steps. The function runs on the server's thread and must not block: yield wait() or hold() instead.
    Without a script the server answers like chat_completions().

    respond() is implied before the first bytes of the body, or at the end of a script that sent none; earlier steps
    that wait delay the head. After the last step the body ends, and the connection accepts another request. If the
    client closes, half-closes or resets its connection, the current step ends at once, a generator is closed, and
    the request is marked `aborted`. If a script raises, its connection is reset, and close() raises the error.

    It listens on `host` and `port` (0: a free one), with TLS if there is an `ssl_context`.

    Raises UsageError for a script or port of a wrong type, and from start() OSError if the address is not available.
    """

    def __init__(
        self,
        script: Script | Iterable[Step] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if script is None:
            script = chat_completions()
        self._script = as_script(script)
        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise UsageError(f"`port` must be an int from 0 to 65535, got {port!r}")
        self._address = (host, port)
        self._ssl_context = ssl_context
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()
        self._arrived = threading.Condition()
        self._requests: list[ReceivedRequest] = []
        self._connections = 0
        self._handlers: set[asyncio.Task[None]] = set()
        self._flags = FlagWatcher()
        self._errors: list[BaseException] = []

    def __repr__(self) -> str:
        if self._listener is None:
            return "<SSEServer not started>"
        state = "open" if self._thread is not None and self._thread.is_alive() else "closed"
        return f"<SSEServer {state} {self.url} requests={len(self.requests)}>"

    def start(self) -> SSEServer:
        """Start to listen, and return the server.

        Raises OSError if the address is not available, UsageError at a second call.
        """
        if self._listener is not None:
            raise UsageError("an SSEServer must be started only once. Create another one.")
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = self._listener = socket.create_server(self._address, family=family, backlog=1024)
        # Accepted sockets inherit both: Nagle's algorithm delays no step, and backpressure reaches the script early.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.setblocking(False)
        self._address = listener.getsockname()[:2]
        self._loop = asyncio.SelectorEventLoop()  # it has add_reader() on every platform
        self._thread = threading.Thread(target=self._run, args=(self._loop, listener), name="SSEServer", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Abort all connections and end the thread. Idempotent.

        Raises the first error of a script, if any, and TimeoutError if a script blocks the thread.
        """
        if self._thread is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed by an earlier call
                self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                raise TimeoutError("a script blocks the server's thread. Let it yield wait() or hold().")
        errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    def __enter__(self) -> SSEServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The server's origin, without a path; also after close(). Raises UsageError before start()."""
        if self._listener is None:
            raise UsageError("the server has no address before start(). Call start(), or enter it with `with`.")
        host, port = self._address
        name = f"[{host}]" if ":" in host else host
        return f"{'https' if self._ssl_context else 'http'}://{name}:{port}"

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests so far, in the order in which their bodies were complete."""
        with self._arrived:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """The number of TCP connections accepted so far."""
        with self._arrived:
            return self._connections

    @property
    def open_requests(self) -> int:
        """The number of requests whose script is running."""
        return sum(not request.finished.is_set() for request in self.requests)

    @property
    def aborted_requests(self) -> int:
        """The number of requests whose client left before the script ended."""
        return sum(request.aborted.is_set() for request in self.requests)

    def play(self, *scripts: Script | Iterable[Step]) -> None:
        """Replace the script: play the first of `scripts` for the next request, and so on; then repeat the last.

        Raises UsageError without a script.
        """
        self._script = in_turn(*scripts)

    def release(self) -> None:
        """Let every script continue that waits at a hold() without a flag. Later ones do not wait."""
        self._flags.released.set()

    def wait_for_request(self, n: int = 1, timeout: float = 5.0) -> ReceivedRequest:
        """Return the `n`-th request, counted from 1, when its body is complete.

        Raises TimeoutError after `timeout` seconds. It blocks: in a coroutine call it by asyncio.to_thread.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._requests) >= n, timeout):
                arrived = f"{len(self._requests)} of {n} requests arrived within {timeout:g} s"
                raise TimeoutError(f"{arrived}{blocked_loop()}")
            return self._requests[n - 1]

    def assert_aborted(self, timeout: float = 5.0) -> None:
        """Assert that each request so far was aborted by its client, as a view does once its own client has left.

        In a test of a view close the view's response first: a test client leaves only then.

        Waits at most `timeout` seconds for the clients to leave. Raises AssertionError if there was no request, and if
        a request is still open, or its script has ended without an abort. It blocks: in a coroutine call it by
        asyncio.to_thread, or Django's sync_to_async.
        """
        requests = self.requests
        if not requests:
            raise AssertionError("no request was aborted: the server has received none")
        deadline = clock.monotonic() + timeout
        for request in requests:
            if not request.finished.wait(max(0.0, deadline - clock.monotonic())):
                advice = blocked_loop() or ". In a test of a view, close the view's response first"
                reason = f"its client is still connected after {timeout:g} s{advice}"
                raise AssertionError(f"{request!r} was not aborted: {reason}")
            if not request.aborted.is_set():
                raise AssertionError(f"{request!r} was not aborted: its script ended by itself")

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        with listener, contextlib.closing(loop):
            loop.run_until_complete(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, self._accept, listener)
        await self._closing.wait()
        loop.remove_reader(listener)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        # In a callback: a task could be cancelled between accept() and the registration of the socket.
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):  # the client has left already
            client, _ = listener.accept()
            task = asyncio.create_task(self._handle(client, self._connections))
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)
            task.add_done_callback(lambda _: client.close())
            with self._arrived:
                self._connections += 1

    async def _handle(self, client: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):  # the client's fault: a failed handshake, a reset between requests
            connection = await Connection.accept(client, number, self._ssl_context)
            try:
                while await self._exchange(connection):
                    pass
                await connection.close()
            finally:
                connection.abort()
                await connection.wait_aborted()

    async def _exchange(self, connection: Connection) -> bool:
        """Receive one request and answer it. Returns whether the connection accepts another one."""
        request = await connection.receive()
        if request is None:
            return False
        with self._arrived:
            self._requests.append(request)
            self._arrived.notify_all()
        playing = asyncio.create_task(self._play(ResponsePlayer(request, connection, self._flags)))
        playing.add_done_callback(lambda _: request.finished.set())
        leaving = asyncio.create_task(connection.wait_until_client_leaves())
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                return playing.result() and connection.keeps_alive
            connection.abort()
            request.aborted_at = clock.monotonic()
            request.aborted.set()
            return False
        finally:
            playing.cancel()
            leaving.cancel()
            await asyncio.gather(playing, leaving, return_exceptions=True)

    async def _play(self, player: ResponsePlayer) -> bool:
        try:
            steps = iter(self._script(player.request))
            try:
                return await player.play(steps)
            finally:
                if isinstance(steps, Generator):
                    steps.close()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._errors.append(error)
            player.connection.reset()
            return False
