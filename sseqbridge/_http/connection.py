"""One HTTP/1.1 connection for httpx: requests are written to it, responses are read from it, one at a time.

Runs on the event loop's thread. Body bytes can be passed to a callback (`Sink`) in the very iteration of the
loop in which they arrive, so that an event costs no task switch. The bytes themselves are interpreted by
h1_heads.py and h1_bodies.py. Errors are httpx's, or subclasses of them.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import httpx

from sseqbridge._runtime import fork, sockets

from .errors import ConnectionClosed, InvalidResponseError, ReusedConnectionClosed
from .h1_bodies import BodyReader, body_reader
from .h1_heads import FinalHeadReader, HeadError, ResponseHead
from .network_stream import InputState, NetworkStream
from .origin import Origin
from .outgoing import SENT, Outgoing, OutgoingRequest

__all__ = [
    "BODY_EXTENSION",
    "BodyStream",
    "ConnectionPool",
    "ConnectionState",
    "HTTP11Connection",
    "Receiver",
    "Sink",
    "check_no_switch",
    "response_of",
]

# The response extension that holds the BodyStream: httpx wraps the stream of every response.
BODY_EXTENSION = "sseqbridge_body"

# The most that is read ahead of the consumer.
_MAX_UNREAD_BYTES = 64 * 1024

# Takes body bytes; returns False if it wants no more before its coroutine has run. It must not raise.
Sink = Callable[[bytes], bool]


class ConnectionState(enum.Enum):
    """The state of a connection; see HTTP11Connection."""

    NEW = enum.auto()
    AWAITING_RESPONSE = enum.auto()
    READING_HEAD = enum.auto()
    READING_BODY = enum.auto()
    IDLE = enum.auto()
    CLOSED = enum.auto()


class ConnectionPool(Protocol):
    """The owner of connections."""

    # All connections read into it.
    buffer: memoryview
    # The open connections.
    connections: set[HTTP11Connection]

    def release(self, connection: HTTP11Connection) -> None:
        """Take back an idle connection for the next request to its origin."""

    def reserve(self, connection: HTTP11Connection) -> None:
        """Take back an idle connection for the next request of the current task to its origin."""


class Receiver(Protocol):
    """Takes the input of a connection, in the loop's callbacks, during an exchange without a coroutine."""

    def bytes_received(self, data: bytes) -> None: ...
    def input_ended(self) -> None: ...
    def silence_elapsed(self, error: httpx.ReadTimeout) -> None: ...


class HTTP11Connection(NetworkStream):
    """A connection that exchanges one request and one response at a time, read by one coroutine, or in callbacks.

    | state             | meaning                                              | next, and by what                   |
    |-------------------|------------------------------------------------------|-------------------------------------|
    | NEW               | connecting, or TLS handshake                         | AWAITING_RESPONSE: exchange()       |
    | AWAITING_RESPONSE | the request is written, no byte of the response came | READING_HEAD: the first byte        |
    | READING_HEAD      | interim responses, and the head                      | READING_BODY: the end of the head   |
    | READING_BODY      | the BodyStream is not closed                         | IDLE: finish(), if it may be reused |
    | IDLE              | in the pool; every byte and the end close it         | AWAITING_RESPONSE: exchange()       |
    | CLOSED            | abort(), which is allowed in every state             |                                     |

    A response may begin before the request is written completely, so sending is no state of its own. The socket may
    end before the received bytes are read: `NetworkStream.input` is independent of the state, and so is the flow
    control of reading and writing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin, pool: ConnectionPool) -> None:
        super().__init__(loop, pool.buffer)
        self.origin = origin
        self.state = ConnectionState.NEW
        # Reads the body of the current response; None before its head has been read, and between responses.
        self.body: BodyReader | None = None
        self._pool = pool
        # Whether request and head of the current exchange allow another one on the connection.
        self._keeps_alive = False
        # Whether only the current call may use the connection after the exchange.
        self._is_reserved = False
        # The request of the current exchange.
        self._outgoing: Outgoing | None = None
        # Takes the input instead of `body` and `_unread`.
        self._receiver: Receiver | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._sink: Sink | None = None
        # The sink has returned False, and read() has not reported it yet.
        self._is_sink_full = False
        self._idle_since = 0.0
        # Whether the socket has bytes; made once for a connection.
        self._read_check: Callable[[], object] | None = None

    # Receiving.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._pool.connections.add(self)
        fork.detach_in_children(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.connections.discard(self)
        fork.stop_detaching(self)
        super().connection_lost(exc)

    def bytes_received(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.bytes_received(data)
            return
        body = self.body
        if body is None:
            self._head_bytes_received(data)
            return
        if body.complete:
            # Bytes that no request asked for: finish() closes the connection because of them. Until then, further
            # bytes wait at the peer.
            body.rest += data
            self.pause_reading()
            return
        data = body.feed(data)
        if data:
            if self._sink is None:
                self._store(data)
                return
            if not self._sink(data):
                self._sink, self._is_sink_full = None, True
                self.wake()
        if body.complete or body.error is not None:
            self.wake()

    def _head_bytes_received(self, data: bytes) -> None:
        if self.state in (ConnectionState.IDLE, ConnectionState.CLOSED):
            self.abort()
            return
        if self.state is ConnectionState.AWAITING_RESPONSE:
            self.state = ConnectionState.READING_HEAD
        self._store(data)

    def _store(self, data: bytes) -> None:
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_UNREAD_BYTES:
            self.pause_reading()
        self.wake()

    def _take_unread(self) -> bytes:
        unread = self._unread
        data = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        self._unread_bytes = 0
        self.resume_reading()
        return data

    def input_ended(self) -> None:
        if self.error is None and self.body is not None:
            self.body.end(abruptly=self.ended_abruptly)
        if self._receiver is not None:
            self._receiver.input_ended()
        elif self.state is ConnectionState.IDLE:
            self.abort()

    def silence_elapsed(self, error: httpx.ReadTimeout) -> None:
        # Without a receiver there is no limit.
        assert self._receiver is not None
        self._receiver.silence_elapsed(error)

    # One exchange.

    async def exchange(self, request: httpx.Request, timeouts: Mapping[str, float | None]) -> httpx.Response:
        """Send a request and return its response, whose body is still to be read.

        The connection is closed if this raises. Raises ReusedConnectionClosed if the connection has served an earlier
        request, and the peer closes it before any byte of this response.
        """
        is_reused = self.state is ConnectionState.IDLE
        self.state = ConnectionState.AWAITING_RESPONSE
        self._is_sink_full = False
        try:
            outgoing = self._outgoing = OutgoingRequest(self, request, timeouts.get("write"))
            outgoing.start(request.stream)
            head, rest = await self._read_head(timeouts.get("read"), outgoing)
            if "upgrade" not in request.headers:
                check_no_switch(head)
            if head.status >= 300:
                # The server needs no more of the request, and may read no more of it. (It may need it for a 2xx.)
                outgoing.stop()
            # The handshake takes several requests of one call; after it, the connection has the call's identity.
            self._is_reserved = outgoing.authenticates_connection and head.status in (401, 407)
            body = self.begin_body(request.method, head)
            self._keeps_alive &= outgoing.keeps_alive and self._is_reserved == outgoing.authenticates_connection
            if rest:
                self.bytes_received(rest)
            if self.input is not InputState.OPEN and self.error is None:
                body.end(abruptly=self.ended_abruptly)
            return response_of(self, head, BodyStream(self, timeouts.get("read")))
        except BaseException as exc:
            had_no_response = self._has_ended_without_response()
            self.abort()
            await self.stop_sending()
            if is_reused and had_no_response and isinstance(exc, (httpx.ReadError, httpx.RemoteProtocolError)):
                raise _closed_when_reused() from exc
            raise

    async def stop_sending(self) -> None:
        """Stop the sending of the request, and wait until its body is not used any more. Idempotent."""
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            await outgoing.wait_stopped()

    def _has_ended_without_response(self) -> bool:
        return self.state is ConnectionState.AWAITING_RESPONSE and self.input is not InputState.OPEN

    async def _read_head(self, timeout: float | None, outgoing: OutgoingRequest) -> tuple[ResponseHead, bytes]:
        """Return the head of the final response, and the bytes after it. Interim responses are skipped.

        The time limit begins when the request is sent. Raises the error of the sending if there is no response yet.
        """
        reader = FinalHeadReader()
        data = b""
        try:
            while (head := reader.feed(data)) is None:
                data = await self._next_bytes(timeout, outgoing)
        except HeadError as exc:
            raise InvalidResponseError(str(exc)) from exc
        return head, reader.rest

    async def _next_bytes(self, timeout: float | None, outgoing: OutgoingRequest) -> bytes:
        while not self._unread:
            if self.error is not None:
                raise self.error
            if outgoing.error is not None:
                raise outgoing.error
            if self.input is not InputState.OPEN:
                raise _closed_without_response()
            await self.wait(None if outgoing.is_under_way else timeout)
        return self._take_unread()

    def begin_body(self, method: str, head: ResponseHead) -> BodyReader:
        """Record the response's head, and return the reader of its body."""
        self.state = ConnectionState.READING_BODY
        self._keeps_alive = head.framing.keeps_alive and head.status != 101
        length, is_chunked = head.framing.length, head.framing.is_chunked
        self.body = body_reader(method, head.status, length=length, is_chunked=is_chunked)
        return self.body

    async def read(self, timeout: float | None, sink: Sink | None) -> bytes | None:
        """Return the next bytes of the body, b"" at its end; see BodyStream.read."""
        body = self.body
        assert body is not None
        while True:
            # Before bytes that arrived later: the sink's coroutine has to handle the earlier ones first.
            if self._is_sink_full:
                self._is_sink_full = False
                return None
            if self._unread:
                return self._take_unread()
            if body.complete:
                return b""
            if body.error is not None:
                raise ConnectionClosed(body.error) if body.is_cut_off else InvalidResponseError(body.error)
            if self.error is not None:
                raise self.error
            if self._outgoing is not None and (failure := self._outgoing.failure()) is not None:
                raise failure
            self._sink = sink
            try:
                await self.wait(timeout)
            finally:
                self._sink = None

    def is_read(self) -> bool:
        """Whether the body has been received and read to its end."""
        return self.body is not None and self.body.complete and not self._unread

    def finish(self) -> None:
        """End the exchange: release the connection to the pool if the response is complete, else close it."""
        body, is_sent = self.body, self._outgoing is not None and self._outgoing.is_complete
        if not (self._keeps_alive and is_sent and body and body.complete and not body.rest) or self.is_down():
            self.abort()
            return
        self.state, self.body, self._idle_since = ConnectionState.IDLE, None, self.loop.time()
        if self._unread or self.is_reading_paused:
            # Drops the rest of a body that was received and not read.
            self._take_unread()
        if self._is_reserved:
            self._pool.reserve(self)
        else:
            self._pool.release(self)

    # One exchange in callbacks.

    def begin_in_callbacks(self, receiver: Receiver, data: bytes, timeout: float | None) -> None:
        """Send the bytes of a whole request on an idle connection. `receiver` gets the input, see limit_silence().

        The request must allow another one on the connection. Raises httpx.WriteError.
        """
        self.state = ConnectionState.AWAITING_RESPONSE
        self._is_sink_full = False
        self._outgoing = SENT
        self._is_reserved = False
        self._receiver = receiver
        self.limit_silence(timeout)
        self.write_at_once(data)

    def response_begins(self) -> None:
        """Record the first byte of the response."""
        self.state = ConnectionState.READING_HEAD

    def end_callbacks(self, rest: bytes = b"") -> None:
        """Go on without the receiver, with bytes of the body that it has left: a coroutine reads them, or nobody."""
        self._receiver = None
        self.limit_silence(None)
        if rest:
            self.bytes_received(rest)

    def closed_before_response(self) -> Exception:
        """Return the error for an exchange whose connection has ended before the head."""
        error = self.error or _closed_without_response()
        if self._has_ended_without_response():
            closed = _closed_when_reused()
            closed.__cause__ = error
            return closed
        return error

    # Between exchanges.

    def is_fresh(self, expiry: float) -> bool:
        """Whether an idle connection can be reused: it is open, and not idle for more than `expiry` seconds."""
        if self.is_down() or self.loop.time() - self._idle_since > expiry:
            return False
        if self._read_check is None:
            connection = self.transport.get_extra_info("socket")
            # A fake connection has no socket.
            self._read_check = _nothing if connection is None else sockets.read_check(connection.fileno())
        # Bytes in the socket, which the loop has not read yet, are the peer's end or a response to no request.
        return not self._read_check()

    def abort(self) -> None:
        """Close the connection at once. Idempotent."""
        # Here too: if the loop has not called connection_made() yet, it may never call connection_lost().
        self._pool.connections.discard(self)
        fork.stop_detaching(self)
        self.state = ConnectionState.CLOSED
        self.abort_transport()

    def detach_after_fork(self) -> None:
        """In a forked child, leave the connection to the parent."""
        sockets.detach_connection_after_fork(self)


def _nothing() -> None:
    pass


def response_of(connection: HTTP11Connection, head: ResponseHead, body: BodyStream) -> httpx.Response:
    """Return a response whose body is still to be read."""
    return httpx.Response(
        head.status,
        headers=head.headers,
        stream=body,
        extensions={
            "http_version": b"HTTP/" + head.http_version,
            "reason_phrase": head.reason,
            "network_stream": connection,
            BODY_EXTENSION: body,
        },
    )


def check_no_switch(head: ResponseHead) -> None:
    """Raise InvalidResponseError for a 101."""
    if head.status == 101:
        raise InvalidResponseError("the server switched protocols, and the request did not ask for it")


def _closed_without_response() -> ConnectionClosed:
    return ConnectionClosed("Server disconnected without sending a response.")


def _closed_when_reused() -> ReusedConnectionClosed:
    return ReusedConnectionClosed("the server closed a connection kept from an earlier request")


class BodyStream(httpx.AsyncByteStream):
    """The body of one response, read by one coroutine, from its head to its end or `aclose()`."""

    def __init__(self, connection: HTTP11Connection, timeout: float | None) -> None:
        self._connection: HTTP11Connection | None = connection
        self._timeout = timeout

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    async def read(self, sink: Sink | None = None) -> bytes | None:
        """Return the next bytes, waiting for them; b"" at the end.

        While this waits, bytes that arrive are passed to `sink`, in the callback in which they arrive, without
        waking the coroutine. Once `sink` returns False, having taken those bytes too, this returns None.
        Raises ConnectionClosed if the peer closes the connection before the end.
        """
        if self._connection is None:
            raise httpx.StreamClosed
        return await self._connection.read(self._timeout, sink)

    @property
    def complete(self) -> bool:
        """Whether the body has been received and read to its end."""
        return self._connection is not None and self._connection.is_read()

    async def aclose(self) -> None:
        """Release the connection to the pool if the body is complete, else close it. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish()
            # An early response may be closed while the body of the request is still being produced.
            await connection.stop_sending()
