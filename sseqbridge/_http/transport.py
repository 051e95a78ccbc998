"""The HTTP transport of the library's own client: HTTP/1.1 on asyncio's transports, for httpx.

httpx's own goes through a pool that looks at every connection for every request, and takes an
event through four layers of coroutines. Here a connection is one object between the loop and
whoever reads the body, which may be handed over in the very callback in which it arrived
(`BodyStream.read`). What the bytes mean is in _http/heads.py and _http/h1.py.

What this does not know (a proxy, HTTP/2, `extensions` of a request) is left to httpx's own
transport, and so is everything where that has been replaced: by tests that mock it, by tracing.

All of it runs in one loop's thread. It raises what httpx's own transport raises.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import functools
import socket
import ssl
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import anyio
import httpx

from sseqbridge._runtime import sockets

from .h1 import Framing, framing_for
from .heads import AnswerHead, HeadError, HeadReader, framing_of, write_head
from .tls import TlsSession

__all__ = [
    "BODY_EXTENSION",
    "WORDS_OF_A_LATE_CLOSE",
    "BodyStream",
    "Dial",
    "Sink",
    "Transport",
    "dial",
    "is_client_replaced",
    "is_direct",
]

# Where a response has its BodyStream: httpx wraps the stream of every response in one of its own.
BODY_EXTENSION = "sseqbridge_body"

# By which an error says that the peer closed a connection that had served an earlier request.
WORDS_OF_A_LATE_CLOSE = "disconnected a connection that was kept"

# They ask for no change, so that two do no more than one (RFC 9110, sections 9.2.1 and 9.2.2).
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

# What one read takes at most.
_READ_BYTES = 64 * 1024 if sys.platform == "win32" else 256 * 1024

# What is read ahead of a reader who does not come for it.
_MAX_UNREAD_BYTES = 64 * 1024

# After how long the next address of a name is tried as well (RFC 8305, section 5).
_ATTEMPT_DELAY = 0.25

# Of a body no longer than this, head and body leave in one write.
_MAX_JOINED_BYTES = 64 * 1024

# What is handed to the loop in one write.
_WRITE_BYTES = 64 * 1024

# What may wait to be sent while a server asks TLS for answers: far more than a request leaves.
_MAX_UNTAKEN_BYTES = 1024 * 1024

# Answers that come before the answer (1xx): a server sends one or two.
_MAX_INTERIM_ANSWERS = 100

Sink = Callable[[bytes], bool]

# Connects a protocol to a host and port: calls its `connection_made`, and the rest of its methods
# later, on the running loop. Raises OSError if there is no connection.
Dial = Callable[[asyncio.BufferedProtocol, str, int], Awaitable[None]]


async def dial(protocol: asyncio.BufferedProtocol, host: str, port: int) -> None:
    """Connect `protocol` to one of the addresses of `host` (RFC 8305)."""
    loop = asyncio.get_running_loop()
    connection = await _connected_socket(loop, host, port)
    # From here on the loop owns the socket, and closes it if this call fails.
    with sockets.standard_descriptors:
        await loop.create_connection(lambda: protocol, sock=connection)


class Origin(NamedTuple):
    """What a connection can be used for again."""

    scheme: str
    host: str
    port: int


class Transport(httpx.AsyncBaseTransport):
    """Sends each request on a connection of its own, which is kept for the next one.

    The number of connections is not limited. A connection that was idle for `keepalive_expiry`
    seconds is closed. `tls_context` returns the context for https, `plain` makes the transport for
    the requests that this one cannot send; both may take their time. `dial` opens connections.
    """

    def __init__(
        self,
        *,
        keepalive_expiry: float,
        tls_context: Callable[[], Awaitable[ssl.SSLContext]],
        plain: Callable[[], Awaitable[httpx.AsyncBaseTransport]],
        dial: Dial = dial,
    ) -> None:
        self._keepalive_expiry = keepalive_expiry
        self._tls_context = tls_context
        self._dial = dial
        self._make_plain = plain
        self._plain: httpx.AsyncBaseTransport | None = None
        # The last one in is the first one out, so that those which are not needed grow old.
        self._idle: dict[Origin, collections.deque[HTTP11Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        # Those that are open: written in the loop's thread, and copied by any.
        self.wires: set[HTTP11Connection] = set()
        # What all connections read into.
        self.buffer = memoryview(bytearray(_READ_BYTES))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its answer as soon as the head is in."""
        if not is_direct(request):
            return await self._send_plainly(request)
        origin, timeouts = _origin_of(request.url), request.extensions.get("timeout", {})
        wire = self._reused(origin)
        if wire is not None:
            response = await self._exchanged_again(wire, request, timeouts)
            if response is not None:
                return response
        wire = await self._connected(origin, timeouts.get("connect"))
        return await _exchanged(wire, request, timeouts)

    async def _exchanged_again(
        self, wire: HTTP11Connection, request: httpx.Request, timeouts: Mapping[str, float | None]
    ) -> httpx.Response | None:
        """Return the answer on a connection that is used again; None where that takes a new one.

        The peer may close what has been idle just as a request comes in, and whether it has seen
        that request nobody can tell: it is sent once more, if it may be.
        """
        try:
            return await _exchanged(wire, request, timeouts)
        except (httpx.ReadError, httpx.RemoteProtocolError) as exc:
            if not wire.is_unanswered:
                raise
            if not _is_repeatable(request):
                raise httpx.RemoteProtocolError(f"Server {WORDS_OF_A_LATE_CLOSE}") from exc
        return None

    async def _send_plainly(self, request: httpx.Request) -> httpx.Response:
        if self._plain is None:
            made = await self._make_plain()
            # Another request may have made one meanwhile; what is not used has nothing to close.
            if self._plain is None:
                self._plain = made
        return await self._plain.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections that are idle; those in use are closed when they are given back."""
        self._closed = True
        for wires in self._idle.values():
            for wire in wires:
                wire.abort()
        self._idle.clear()
        if self._sweep is not None:
            self._sweep.cancel()
        if self._plain is not None:
            await self._plain.aclose()

    @property
    def connections(self) -> int:
        """How many connections are open, in use or idle."""
        return len(self.wires) + connections_of(self._plain)

    def detach_after_fork(self) -> None:
        """In a forked child, leave the connections to the parent."""
        for wire in tuple(self.wires):
            sockets.detach_connection_after_fork(wire)

    # Which connection.

    def _reused(self, origin: Origin) -> HTTP11Connection | None:
        wires = self._idle.get(origin)
        while wires:
            wire = wires.pop()
            if wire.is_fresh(self._keepalive_expiry):
                return wire
            wire.abort()
        return None

    def give_back(self, wire: HTTP11Connection) -> None:
        """Keep a connection for the next request to its origin."""
        if self._closed:
            wire.abort()
            return
        self._idle.setdefault(wire.origin, collections.deque()).append(wire)
        if self._sweep is None:
            self._sweep = wire.loop.call_later(self._keepalive_expiry, self._close_expired, wire.loop)

    def _close_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        for origin, wires in tuple(self._idle.items()):
            # The oldest is the first.
            while wires and not wires[0].is_fresh(self._keepalive_expiry):
                wires.popleft().abort()
            if not wires:
                del self._idle[origin]
        if self._idle:
            self._sweep = loop.call_later(self._keepalive_expiry / 4, self._close_expired, loop)

    async def _connected(self, origin: Origin, timeout: float | None) -> HTTP11Connection:
        wire = HTTP11Connection(asyncio.get_running_loop(), origin, self)
        try:
            with anyio.fail_after(timeout):
                context = await self._tls_context() if origin.scheme == "https" else None
                await self._dial(wire, origin.host, origin.port)
                if context is not None:
                    await wire.start_tls(context)
        except BaseException as exc:
            # In the turn in which it is connected the loop would only close it, politely.
            wire.abort()
            # (The operating system's own time-out has waited for longer than anyone asked to.)
            if isinstance(exc, TimeoutError) and not (isinstance(exc, OSError) and exc.errno is not None):
                raise httpx.ConnectTimeout("no connection in time") from exc
            if isinstance(exc, (OSError, OverflowError, ValueError)):
                raise httpx.ConnectError(str(exc)) from exc
            raise
        return wire


def connections_of(transport: object) -> int:
    """Return how many connections a transport has open, in use or idle; 0 where it does not tell."""
    if isinstance(transport, Transport):
        return transport.connections
    # httpx's, and httpx2's, keep them in a pool of httpcore's.
    return len(getattr(getattr(transport, "_pool", None), "connections", ()))


async def _exchanged(
    wire: HTTP11Connection, request: httpx.Request, timeouts: Mapping[str, float | None]
) -> httpx.Response:
    try:
        return await wire.exchange(request, timeouts)
    except BaseException:
        wire.abort()
        raise


def _is_repeatable(request: httpx.Request) -> bool:
    """Whether a request may be sent twice, and can be: a body that was read once cannot."""
    return request.method in _SAFE_METHODS and isinstance(request.stream, httpx.ByteStream)


def is_direct(request: httpx.Request) -> bool:
    """Whether the transport here sends a request itself, and does not leave it to httpx's own."""
    return request.extensions.keys() <= {"timeout"} and not _is_replaced()


def _origin_of(url: httpx.URL) -> Origin:
    # The host as it is looked up and as certificates have it: in ASCII.
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80))


def is_client_replaced() -> bool:
    """Whether someone stands in for httpx's client: Sentry, VCR.py."""
    send = httpx.AsyncClient.send
    inner = getattr(httpx.AsyncClient, "_send_single_request", send)
    return not (_is_own(send, "httpx") and _is_own(inner, "httpx"))


def _is_replaced() -> bool:
    """Whether someone stands in for httpx's transport: pytest-httpx, RESPX, OpenTelemetry."""
    # None also of a package that another thread is only just importing.
    pool = getattr(sys.modules.get("httpcore"), "AsyncConnectionPool", None)
    return not (
        _is_own(httpx.AsyncHTTPTransport.handle_async_request, "httpx")
        and (pool is None or _is_own(pool.handle_async_request, "httpcore"))
    )


def _is_own(method: object, package: str) -> bool:
    # What wraps a function may say that it is equal to that, as wrapt's do.
    return type(method) is types.FunctionType and _is_of(method, package)


# Which methods those are seldom changes, and they are asked for with every request.
@functools.lru_cache(maxsize=8)
def _is_of(function: types.FunctionType, package: str) -> bool:
    return bool(function.__globals__["__name__"].partition(".")[0] == package)


async def _connected_socket(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """Return a socket that is connected to one of a name's addresses (RFC 8305)."""
    found = sockets.literal_address(host, port) or await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = _interleaved(found)
    if len(addresses) == 1:
        return await _attempt(loop, addresses[0])
    attempts: set[asyncio.Task[socket.socket]] = set()
    failures: list[BaseException] = []
    try:
        while addresses or attempts:
            if addresses:
                attempts.add(loop.create_task(_attempt(loop, addresses.popleft())))
            done, attempts = await asyncio.wait(
                attempts, timeout=_ATTEMPT_DELAY if addresses else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                if attempt.exception() is None:
                    # What else was connected in the same moment is closed below.
                    attempts |= done - {attempt}
                    return attempt.result()
                failures.append(attempt.exception())  # type: ignore[arg-type]
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_discard)
            attempt.cancel()
    # What the first address answered: it is the one that the resolver prefers.
    raise failures[0]


def _interleaved(found: list[Any]) -> collections.deque[Any]:
    """Return the addresses with the families taking turns, each in the order of the resolver."""
    if not found:
        raise OSError(errno.EADDRNOTAVAIL, "the name has no address")
    families: dict[Any, list[Any]] = {}
    for address in found:
        families.setdefault(address[0], []).append(address)
    longest = max(len(addresses) for addresses in families.values())
    return collections.deque(
        addresses[index] for index in range(longest) for addresses in families.values() if index < len(addresses)
    )


async def _attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
    family, kind, protocol, _, where = address
    connection = sockets.above_standard_descriptors(socket.socket(family, kind, protocol))
    try:
        connection.setblocking(False)
        await loop.sock_connect(connection, where)
    except BaseException:
        connection.close()
        raise
    return connection


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


class HTTP11Connection(asyncio.BufferedProtocol):
    """One connection: one exchange of a request and an answer at a time, read by one coroutine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin, owner: Transport) -> None:
        self.loop = loop
        self.origin = origin
        self._owner = owner
        # A read is over before the next one of the loop begins, but for Windows, where all are
        # under way at the same time. (One that asyncio allocates itself costs several system calls.)
        self._buffer = memoryview(bytearray(_READ_BYTES)) if sys.platform == "win32" else owner.buffer
        self._transport: Any = None
        self._tls: TlsSession | None = None
        # Of the answer under way: None while its head is awaited, and while nothing is.
        self._framing: Framing | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._is_paused = False
        self._ended = False
        self._is_lost = False
        self._error: httpx.TransportError | None = None
        self._sink: Sink | None = None
        self._sink_is_done = False
        # The coroutine that waits, for bytes or for room to write, and until when at most.
        self._waiter: asyncio.Future[None] | None = None
        self._last_read_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._may_write = True
        self._in_use = True
        self._reusable = False
        self._is_answered = False
        self._idle_since = 0.0

    # The connection's calls.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._owner.wires.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        if self._tls is None:
            self._receive(data)
        else:
            self._receive_encrypted(self._tls, data)
        if nbytes == _READ_BYTES:
            self._let_others_on()

    def _let_others_on(self) -> None:
        """Have the loop look at what else there is before it reads on from a peer that sends without end.

        uvloop reads up to 32 times in a row, which can take a second. A pause ends that.
        """
        if not self._is_paused and not self._transport.is_closing():
            self._transport.pause_reading()
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _receive_encrypted(self, tls: TlsSession, data: bytes) -> None:
        was_established = tls.is_established
        data = tls.receive(data)
        # The handshake's next part, an alert, an answer to a change of keys.
        if (answer := tls.to_send()) and not self._transport.is_closing():
            self._transport.write(answer)
        # Before anything that ends the connection: these bytes came first.
        if data:
            self._receive(data)
        if tls.ended or tls.error is not None:
            self._end(tls.error)
        elif answer and self._transport.get_write_buffer_size() > _MAX_UNTAKEN_BYTES:
            words = "the server takes no answers to what it asks of TLS"
            self._end(ConnectionAbortedError(errno.ECONNABORTED, words))
            self.abort()
        elif not was_established:
            self._wake()

    def _receive(self, data: bytes) -> None:
        # Not sooner: what TLS says to itself is no byte of an answer.
        self._last_read_at = self.loop.time()
        self._is_answered = True
        if self._framing is not None:
            if self._framing.complete:
                # Nobody has asked for anything more. It waits, at the peer's, for the connection's end.
                self._reusable = False
                self._pause()
                return
            data = self._framing.feed(data)
            if data and self._sink is not None:
                if not self._sink(data):
                    # It has taken this, and wants its coroutine before the next.
                    self._sink, self._sink_is_done = None, True
                    self._wake()
                data = b""
            if not data:
                if self._framing.complete or self._framing.error is not None:
                    self._wake()
                return
        elif not self._in_use:
            # Nobody has asked for anything.
            self.abort()
            return
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_UNREAD_BYTES:
            self._pause()
        self._wake()

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        # What is written already still goes out; asyncio closes the connection then.
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.wires.discard(self)
        self._may_write = True
        self._is_lost = True
        self._end(exc)

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._wake()

    def _end(self, exc: Exception | None) -> None:
        if not self._ended:
            self._ended = True
            if exc is not None:
                self._error = httpx.ReadError(str(exc))
                self._error.__cause__ = exc
            elif self._framing is not None:
                self._framing.end()
            if not self._in_use:
                self.abort()
        self._wake()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Make the connection one of TLS.

        Raises ssl.SSLError, and OSError where the peer goes before that is done; ValueError for a
        host that TLS knows no name of.
        """
        self._tls = tls = TlsSession(context, self.origin.host)
        self._transport.write(tls.to_send())
        while not tls.is_established:
            if tls.error is not None:
                raise tls.error
            if self._ended:
                words = "the server closed the connection in the TLS handshake"
                raise ConnectionResetError(errno.ECONNRESET, words) from self._error
            await self._wait()

    # Waiting.

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, timeout: float | None = None) -> None:
        """Wait until something is there to look at, `timeout` seconds without bytes at most."""
        self._waiter = self.loop.create_future()
        if timeout is not None:
            self._last_read_at = self.loop.time()
            self._watch(timeout, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _watch(self, timeout: float, waiter: asyncio.Future[None]) -> None:
        # One timer a wait, set anew when it fires: bytes that a sink takes cost a look at the clock.
        left = self._last_read_at + timeout - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._watch, timeout, waiter)
        elif not waiter.done():
            waiter.set_exception(httpx.ReadTimeout("no bytes in time"))

    # One exchange.

    async def exchange(self, request: httpx.Request, timeouts: Mapping[str, float | None]) -> httpx.Response:
        """Send a request and return its answer, whose body is still to be read."""
        self._in_use, self._reusable, self._sink_is_done, self._is_answered = True, False, False, False
        is_sent = await self._send(request, timeouts.get("write"))
        head, rest = await self._head(timeouts.get("read"))
        if head.status == 101 and "upgrade" not in request.headers:
            raise httpx.RemoteProtocolError("the server switched protocols, which the request did not ask for")
        self._framing = framing_for(
            request.method, head.status, length=head.framing.length, is_chunked=head.framing.is_chunked
        )
        self._reusable = is_sent and head.framing.keeps_alive and head.status != 101
        if rest:
            self._receive(rest)
        if self._ended and self._error is None:
            self._framing.end()
        body = BodyStream(self, timeouts.get("read"))
        return httpx.Response(
            head.status,
            headers=head.headers,
            stream=body,
            extensions={
                "http_version": b"HTTP/" + head.http_version,
                "reason_phrase": head.reason,
                "network_stream": self,
                BODY_EXTENSION: body,
            },
        )

    async def _send(self, request: httpx.Request, timeout: float | None) -> bool:
        """Write the request, or what the peer takes of it before it goes: it may have answered.

        Return whether the connection can be used again, for all that the request says.
        """
        headers = request.headers.raw
        assert isinstance(request.stream, httpx.AsyncByteStream)
        try:
            framing = framing_of(headers)
            data = write_head(request.method.encode("ascii", "replace"), request.url.raw_path, headers)
        except HeadError as exc:
            raise httpx.LocalProtocolError(str(exc)) from exc
        left = 0 if framing.length is None else framing.length
        if not isinstance(request.stream, httpx.ByteStream):
            # Each part goes out as it comes, and the head before the first of them.
            if not await self._write(data, timeout):
                return False
            data = b""
        async for part in request.stream:
            if framing.is_chunked:
                # One of no size would end the body.
                chunk = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
            else:
                chunk = part
                left -= len(part)
                if left < 0:
                    break
            # What is known whole goes out with its head, if it is no longer than a write should be.
            if data and len(data) + len(chunk) <= _MAX_JOINED_BYTES:
                data += chunk
                continue
            for piece in (data, chunk):
                if piece and not await self._write(piece, timeout):
                    return False
            data = b""
        if left:
            raise httpx.LocalProtocolError("the body is not as long as the request's headers say")
        if framing.is_chunked:
            data += b"0\r\n\r\n"
        return (not data or await self._write(data, timeout)) and framing.keeps_alive

    async def _write(self, data: bytes, timeout: float | None) -> bool:
        """Write, waiting while too much is under way; False where the peer has gone."""
        for start in range(0, len(data), _WRITE_BYTES):
            if self._ended:
                return False
            part = data[start : start + _WRITE_BYTES]
            try:
                self._transport.write(part if self._tls is None else self._tls.encrypt(part))
            except ssl.SSLError as exc:
                # As where the server of TLS 1.2 wants the handshake again in the middle of the request.
                raise httpx.WriteError(f"TLS cannot send: {exc}") from exc
            if not self._may_write:
                await self._written(timeout)
        return not self._ended

    async def _written(self, timeout: float | None) -> None:
        """Wait until there is room again, `timeout` seconds at most in which the peer takes nothing."""
        unsent, taken_at = self._transport.get_write_buffer_size(), self.loop.time()
        while not self._may_write and not self._ended:
            # What comes in wakes this as well; only what goes out counts.
            timer = None if timeout is None else self.loop.call_later(timeout / 4, self._wake)
            try:
                await self._wait()
            finally:
                if timer is not None:
                    timer.cancel()
            left = self._transport.get_write_buffer_size()
            if left < unsent:
                unsent, taken_at = left, self.loop.time()
            elif timeout is not None and self.loop.time() - taken_at >= timeout:
                raise httpx.WriteTimeout("the server took no bytes in time")

    async def _head(self, timeout: float | None) -> tuple[AnswerHead, bytes]:
        """Return the answer's head, and what has come after it. Interim answers are passed over."""
        reader = HeadReader()
        data, interim = b"", 0
        try:
            while interim <= _MAX_INTERIM_ANSWERS:
                head = reader.feed(data)
                if head is None:
                    data = await self._next(timeout)
                elif head.status >= 200 or head.status == 101:
                    return head, reader.rest
                else:
                    data, interim = b"", interim + 1
        except HeadError as exc:
            raise httpx.RemoteProtocolError(str(exc)) from exc
        raise httpx.RemoteProtocolError("too many interim answers")

    async def _next(self, timeout: float | None) -> bytes:
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
            await self._wait(timeout)
        return self._taken()

    def _taken(self) -> bytes:
        unread = self._unread
        data = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        self._unread_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    async def read(self, timeout: float | None, sink: Sink | None) -> bytes | None:
        """Return the body's next bytes, b"" at its end; see BodyStream.read."""
        assert self._framing is not None
        while True:
            # Before what came in since: the sink has not done with what came before that.
            if self._sink_is_done:
                self._sink_is_done = False
                return None
            if self._unread:
                return self._taken()
            if self._framing.complete:
                return b""
            if self._framing.error is not None:
                raise httpx.RemoteProtocolError(self._framing.error)
            if self._error is not None:
                raise self._error
            self._sink = sink
            try:
                await self._wait(timeout)
            finally:
                self._sink = None

    @property
    def is_unanswered(self) -> bool:
        """Whether the connection has ended before any byte of the answer."""
        return self._ended and not self._is_answered

    def is_read(self) -> bool:
        """Whether the answer's end is in, and nothing of it is left to be read."""
        return self._framing is not None and self._framing.complete and not self._unread

    def finish(self) -> None:
        """End the exchange: keep the connection where the answer was read to its end, else close it."""
        framing = self._framing
        if not (self._reusable and framing and framing.complete and not framing.rest) or self._is_down():
            self.abort()
            return
        self._in_use, self._framing, self._idle_since = False, None, self.loop.time()
        self._taken()
        self._owner.give_back(self)

    def _is_down(self) -> bool:
        return self._ended or self._transport.is_closing()

    def is_fresh(self, expiry: float) -> bool:
        """Whether an idle connection can be used again."""
        connection = self._transport.get_extra_info("socket")
        if self._is_down() or self.loop.time() - self._idle_since > expiry:
            return False
        # The peer has nothing to say but goodbye: bytes that the loop has not read yet are that. (A
        # connection without a socket has no such bytes.)
        return connection is None or not sockets.is_readable(connection.fileno())

    def abort(self) -> None:
        """Close the connection at once."""
        # A loop that is told so before it has said that there is a connection may never say that it is lost.
        self._owner.wires.discard(self)
        self._in_use = False
        # asyncio's transport cannot be aborted any more once it has called connection_lost.
        if self._transport is not None and not self._is_lost:
            # At once: asyncio closes it a turn of the loop later, which under uWSGI without
            # --enable-threads comes with the next request.
            sockets.shut_down_connection(self._transport)
            self._transport.abort()

    # What httpx calls a network stream.

    def get_extra_info(self, info: str) -> Any:
        """Return what is known of the connection: "socket", "ssl_object", "server_addr", "client_addr"."""
        if info == "ssl_object" and self._tls is not None:
            return self._tls.ssl_object
        names = {"server_addr": "peername", "client_addr": "sockname"}
        return self._transport.get_extra_info(names.get(info, info))


class BodyStream(httpx.AsyncByteStream):
    """The body of one answer, read by one coroutine, from its head to its end or `aclose()`."""

    def __init__(self, wire: HTTP11Connection, timeout: float | None) -> None:
        self._wire: HTTP11Connection | None = wire
        self._timeout = timeout

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    async def read(self, sink: Sink | None = None) -> bytes | None:
        """Return the next bytes, waiting for them; b"" at the end.

        While this waits, whatever arrives is given to `sink`, in the callback that it arrived in,
        and nobody is woken, until `sink` returns False: it has taken that as well, and this
        returns None. It must not raise.
        """
        if self._wire is None:
            raise httpx.StreamClosed
        return await self._wire.read(self._timeout, sink)

    @property
    def complete(self) -> bool:
        """Whether all of it is in, and read."""
        return self._wire is not None and self._wire.is_read()

    async def aclose(self) -> None:
        """Give the connection back where this was read to its end, else close it."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.finish()
