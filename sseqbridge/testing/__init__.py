"""SSEServer: a scripted upstream on loopback sockets, to test what reads event streams.

Rule: one daemon thread runs the server's loop, and every field is written there: `requests` and `connections`
under `_arrived`, a request's own fields without a lock, for each has this one writer and is whole before the
event or the list that tells of it. Any thread may read; start() and close() belong to the thread of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import h11

from sseqbridge._exceptions import UsageError
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import Comment, ServerSentEvent

from ._steps import (
    BY_HAND,
    IMPLIED,
    Expect,
    Hold,
    Leave,
    ReceivedRequest,
    Respond,
    Script,
    Step,
    Wait,
    Wire,
    as_script,
    chat_completions,
    comment,
    cut,
    expect,
    hold,
    in_turn,
    raw,
    recording,
    reset,
    respond,
    send,
    silence,
    wait,
    wire,
)

if TYPE_CHECKING:
    import ssl

__all__ = [
    "ReceivedRequest",
    "SSEServer",
    "Script",
    "Step",
    "chat_completions",
    "comment",
    "cut",
    "expect",
    "hold",
    "in_turn",
    "raw",
    "recording",
    "reset",
    "respond",
    "send",
    "silence",
    "wait",
    "wire",
]

_POLL_SECONDS = 0.005
_JOIN_SECONDS = 5.0
_READ_BYTES = 65_536
_WRITE_BYTES = 65_536
_SEND_BUFFER_BYTES = 65_536


class SSEServer:
    """An HTTP/1.1 server that answers each request as `script` says.

        with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
            status, headers, events = request_sse(server.url)

    `script` is a list of steps, played for every request, or a function that takes the ReceivedRequest and returns
    or generates them; it runs in the server's thread, where it must not block: it yields wait() or hold(). Without
    a script the server echoes chat completions.

    respond() is implied right before the first bytes of the body, or at the end of a script that sent nothing: steps
    that wait before it hold the head back too. After the last step the body is ended, and the connection awaits the
    next request. A client that closes or resets its connection, or only its sending half, has left: the step under
    way ends at once, a generator is closed, the request is marked `aborted`. A script that raises has its connection
    reset and its error raised by close().
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
        self._address = (host, port)
        self._ssl_context = ssl_context
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()
        self._arrived = threading.Condition()
        self._requests: list[ReceivedRequest] = []
        self._connections = 0
        self._conversations: set[asyncio.Task[None]] = set()
        self._flags = _Flags()
        self._errors: list[BaseException] = []

    def __repr__(self) -> str:
        if self._listener is None:
            return "<SSEServer not started>"
        state = "open" if self._thread is not None and self._thread.is_alive() else "closed"
        return f"<SSEServer {state} {self.url} requests={len(self.requests)}>"

    def start(self) -> SSEServer:
        """Listen from now on. Raises OSError where the address is not to be had, UsageError the second time."""
        if self._listener is not None:
            raise UsageError("an SSEServer starts once; make another one")
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = self._listener = socket.create_server(self._address, family=family, backlog=1024)
        # What it accepts inherits both: no step waits for Nagle, and a client that does not read holds up the script.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.setblocking(False)
        self._address = listener.getsockname()[:2]
        self._loop = asyncio.SelectorEventLoop()  # the one that has add_reader() on every platform
        self._thread = threading.Thread(target=self._run, args=(self._loop, listener), name="SSEServer", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Abort what is open and end the thread, then raise what a script raised, if one did.

        Raises TimeoutError where a script blocks the thread.
        """
        if self._thread is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: this is not the first call
                self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                raise TimeoutError("a script blocks the server's thread; let it yield wait() or hold()")
        errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    def __enter__(self) -> SSEServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The server's origin, without a path, also once it is closed. Raises UsageError before start()."""
        if self._listener is None:
            raise UsageError("the server has no address before start()")
        host, port = self._address
        name = f"[{host}]" if ":" in host else host
        return f"{'https' if self._ssl_context else 'http'}://{name}:{port}"

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests so far, each once its body was in, in this order."""
        with self._arrived:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many TCP connections were accepted so far."""
        with self._arrived:
            return self._connections

    @property
    def open_requests(self) -> int:
        """How many requests are being answered now."""
        return sum(not request.finished.is_set() for request in self.requests)

    @property
    def aborted_requests(self) -> int:
        """How many requests' clients have left before the script was over."""
        return sum(request.aborted.is_set() for request in self.requests)

    def play(self, *scripts: Script | Iterable[Step]) -> None:
        """From now on answer the first request by the first script, and so on, the last one again and again."""
        self._script = in_turn(*scripts)

    def wait_for_request(self, n: int = 1, timeout: float = 5.0) -> ReceivedRequest:
        """Return the `n`-th request, counted from 1, once its body is in.

        Raises TimeoutError where it has not come after `timeout` seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._requests) >= n, timeout):
                raise TimeoutError(f"{len(self._requests)} of {n} requests came within {timeout:g} s")
            return self._requests[n - 1]

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
        # A task may be cancelled with a socket in its hands; a callback cannot.
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):  # the client has left again
            client, _ = listener.accept()
            task = asyncio.create_task(self._converse(client, self._connections))
            self._conversations.add(task)
            task.add_done_callback(self._conversations.discard)
            task.add_done_callback(lambda _: client.close())
            with self._arrived:
                self._connections += 1

    async def _converse(self, client: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):  # the client's affair: a failed handshake, a reset between requests
            connection = await _Connection.over(client, number, self._ssl_context)
            try:
                while await self._exchange(connection):
                    pass
                await connection.close()
            finally:
                connection.abort()

    async def _exchange(self, connection: _Connection) -> bool:
        """Receive one request and answer it; return whether the connection takes another one."""
        request = await connection.receive()
        if request is None:
            return False
        with self._arrived:
            self._requests.append(request)
            self._arrived.notify_all()
        playing = asyncio.create_task(self._play(_Answer(request, connection, self._flags)))
        playing.add_done_callback(lambda _: request.finished.set())
        leaving = asyncio.create_task(connection.until_client_leaves())
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

    async def _play(self, answer: _Answer) -> bool:
        try:
            steps = iter(self._script(answer.request))
            try:
                return await answer.play(steps)
            finally:
                if isinstance(steps, Generator):
                    steps.close()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._errors.append(error)
            answer.connection.reset()
            return False


class _Connection:
    """One TCP connection: requests in, bytes out, and a watch on the client's leaving."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self._reader = reader
        self._writer = writer
        self._number = number
        self._parser = h11.Connection(h11.SERVER)

    @classmethod
    async def over(cls, client: socket.socket, number: int, ssl_context: ssl.SSLContext | None) -> _Connection:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=ssl_context)
        # A write is over when the kernel has all of it: what a script sent before reset() has been sent. asyncio's TLS
        # transports pause at a limit, not beyond it, so that with 0 they would never resume.
        transport.set_write_buffer_limits(high=0 if ssl_context is None else 1)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop), number)

    @property
    def keeps_alive(self) -> bool:
        """Whether the client, by its last request, awaits an answer to another one."""
        return self._parser.their_state is h11.DONE

    async def receive(self) -> ReceivedRequest | None:
        """Return the next request, None where no more come. What is not HTTP is answered with 400."""
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

    async def until_client_leaves(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(_READ_BYTES):
                self._parser.receive_data(data)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError:
            # The client has left; until_client_leaves() sees it too, and cancels this.
            await asyncio.sleep(float("inf"))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    def reset(self) -> None:
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        with contextlib.suppress(OSError):  # the client was first
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.abort()

    def abort(self) -> None:
        self._writer.transport.abort()


class _Flags:
    """Waits for flags that are set by other threads, which tell nobody: each is looked at once for all who wait."""

    def __init__(self) -> None:
        self._watching: dict[threading.Event, asyncio.Task[None]] = {}

    async def wait(self, flag: threading.Event) -> None:
        """Return once the flag is set."""
        if flag.is_set():
            return
        if flag not in self._watching:
            self._watching[flag] = asyncio.create_task(self._watch(flag))
        await asyncio.shield(self._watching[flag])

    async def _watch(self, flag: threading.Event) -> None:
        while not flag.is_set():
            await asyncio.sleep(_POLL_SECONDS)
        del self._watching[flag]


class _Answer:
    """The answer to one request, written step by step."""

    def __init__(self, request: ReceivedRequest, connection: _Connection, flags: _Flags) -> None:
        self.request = request
        self.connection = connection
        self._flags = flags
        self._response: Respond | None = None
        self._held = bytearray()
        self._body_bytes = 0

    async def play(self, steps: Iterator[Step]) -> bool:
        """Take every step; return whether the answer came to an end that the client can see."""
        for step in steps:
            match step:
                case Respond():
                    await self._respond(step)
                case bytes():
                    await self._send(step)
                case ServerSentEvent() | Comment():
                    await self._send(encode(step))
                case Wire():
                    await self._write(step.data)
                case Wait():
                    await asyncio.sleep(step.seconds)
                case Hold():
                    await self._flags.wait(step.flag)
                case Expect():
                    step.check(self.request)
                case Leave():
                    if step.part:
                        await self._send(step.part)
                    if step.reset:
                        self.connection.reset()
                    return False
                case _:
                    raise UsageError(f"a script's steps are made by send(), wait() and so on; this is none: {step!r}")
            # A write that finds room does not wait, and would keep the loop from everyone else.
            await asyncio.sleep(0)
        return await self._end()

    async def _respond(self, response: Respond) -> None:
        if self._response is not None:
            raise UsageError("respond() comes once, before the first bytes of the body")
        self._response = response
        if not response.is_held:
            await self._write(response.head())

    async def _begin(self) -> Respond:
        """Return the response, the implied one where the script named none."""
        if self._response is None and self.request.sent_bytes:
            self._response = BY_HAND
        elif self._response is None:
            await self._respond(IMPLIED)
        return self._response or IMPLIED

    async def _send(self, data: bytes) -> None:
        response = await self._begin()
        self._body_bytes += len(data)
        if response.is_held:
            self._held += data
        elif self.request.method != "HEAD" and data:
            await self._write(b"%x\r\n%b\r\n" % (len(data), data) if response.framing == "chunked" else data)

    async def _end(self) -> bool:
        response = await self._begin()
        has_body = self.request.method != "HEAD"
        if response.is_held:
            head = replace(response, length=self._body_bytes).head()
            await self._write(head + self._held if has_body else head)
        elif response.framing == "chunked" and has_body:
            await self._write(b"0\r\n\r\n")
        elif response.framing == "length" and has_body:
            return self._body_bytes == response.length
        return response.framing != "close"

    async def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _WRITE_BYTES):
            piece = data[start : start + _WRITE_BYTES]
            await self.connection.write(piece)
            self.request.sent_bytes += len(piece)
