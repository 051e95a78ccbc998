"""httpx's transport for the requests that the library's own does not send, on the library's own connections.

httpcore, the implementation of httpx's transport, reads a response once the request is sent, or once a write fails
with WriteError, since a server may refuse a request before it has read all of it. The connections here receive while
the body of a request is sent, and fail with that error when the server has refused the request: so httpcore reads the
refusal at once. HTTP/1.1 only.

Runs on the event loop's thread. Imported on first use, since httpcore is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import anyio
import httpcore
import httpx
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from sseqbridge._runtime import sockets
from sseqbridge._runtime.callbacks import CallersCode

from .dial import connecting, dial
from .errors import ConnectionFailedError
from .h1_heads import FinalHeadReader, HeadError
from .network_stream import READ_BYTES, Bytes, InputState, NetworkStream

__all__ = ["PlainTransport"]

_Streams = tuple[MemoryObjectSendStream[bytes], MemoryObjectReceiveStream[bytes]]

# The longest body in memory that is sent without reading: it leaves in one write.
_MAX_UNWATCHED_BYTES = 63 * 1024

# The most that is read ahead of httpcore.
_MAX_UNREAD_BYTES = 64 * 1024


class PlainTransport(httpx.AsyncHTTPTransport):
    """A transport for requests through one proxy, or without."""

    def __init__(self, tls_context: ssl.SSLContext, limits: httpx.Limits, proxy: httpx.Proxy | None) -> None:
        super().__init__(verify=tls_context, limits=limits, proxy=proxy)
        # In the place of httpx's own pool, which cannot be given a network backend.
        self._pool = _pool(tls_context, limits, proxy)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its response as soon as the head has been received."""
        body = request.stream
        if isinstance(body, httpx.ByteStream) and len(b"".join(body)) <= _MAX_UNWATCHED_BYTES:
            return await super().handle_async_request(request)
        assert isinstance(body, httpx.AsyncByteStream)
        upload = _Upload(body)
        token = _upload.set(upload)
        request.stream = upload
        try:
            return await super().handle_async_request(request)
        finally:
            request.stream = body
            _upload.reset(token)
            await upload.stop()


def _pool(
    tls_context: ssl.SSLContext, limits: httpx.Limits, proxy: httpx.Proxy | None
) -> httpcore.AsyncConnectionPool:
    options: dict[str, Any] = {
        "ssl_context": tls_context,
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
        "network_backend": _Backend(),
    }
    if proxy is None:
        return httpcore.AsyncConnectionPool(**options)
    options["proxy_auth"] = proxy.raw_auth
    options["proxy_url"] = httpcore.URL(
        scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=proxy.url.raw_path
    )
    if proxy.url.scheme.startswith("socks"):
        return httpcore.AsyncSOCKSProxy(**options)
    return httpcore.AsyncHTTPProxy(proxy_headers=proxy.headers.raw, proxy_ssl_context=proxy.ssl_context, **options)


class _Backend(httpcore.AsyncNetworkBackend):
    """Opens connections over TCP."""

    def __init__(self) -> None:
        # The buffer that all connections read into.
        self._buffer = memoryview(bytearray(READ_BYTES))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        connection = _Connection(asyncio.get_running_loop(), self._buffer)
        with connecting(timeout, httpcore, connection.abort_transport):
            await dial(connection, host, port)
        return _HTTPCoreStream(connection)


class _Sending(NamedTuple):
    """The sending of a request's body, until the response begins."""

    # Reads the head of the response.
    head_reader: FinalHeadReader
    # Reads the body.
    body_reader: asyncio.Task[None]


class _Connection(NetworkStream):
    """A connection whose bytes wait to be read, also while a request is being written."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        super().__init__(loop, buffer)
        self._unread = bytearray()
        # None while no body is sent.
        self._sending: _Sending | None = None
        # Whether the response has begun while the body was sent, and whether the server needs no more of the body.
        self.has_responded = False
        self.has_refused = False

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        if self._unread:
            # They are not encrypted, and must not count as bytes of the session.
            raise ConnectionFailedError(errno.EPROTO, "the proxy sent bytes before the TLS handshake")
        await super().start_tls(context, host)

    # Receiving.

    def bytes_received(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > _MAX_UNREAD_BYTES:
            self.pause_reading()
        if self._sending is not None:
            self._look_at_response(self._sending, data)
        self.wake()

    def input_ended(self) -> None:
        if self._sending is not None:
            self._response_begins(self._sending, is_refusal=True)

    def _look_at_response(self, sending: _Sending, data: bytes) -> None:
        try:
            head = sending.head_reader.feed(data)
        except HeadError:
            # httpcore reports it.
            self._response_begins(sending, is_refusal=True)
        else:
            if head is not None:
                # The server may need the rest of the request for a 2xx.
                self._response_begins(sending, is_refusal=head.status >= 300)

    def _response_begins(self, sending: _Sending, *, is_refusal: bool) -> None:
        self._sending = None
        self.has_responded = True
        if is_refusal:
            self.has_refused = True
            if self._writer is not None and not self._writer.done():
                self._writer.set_exception(_refused())
            sending.body_reader.cancel()

    @property
    def is_readable(self) -> bool:
        """Whether read() would return at once."""
        if self._unread or self.is_down():
            return True
        return bool(sockets.read_check(self.transport.get_extra_info("socket").fileno())())

    async def read(self, max_bytes: int, timeout: float | None) -> bytes:
        """Return the next bytes, b"" at the end of the connection. Raises httpx.ReadTimeout, ReadError and others."""
        self._sending, self.has_responded, self.has_refused = None, False, False
        while not self._unread:
            if self.error is not None:
                raise self.error
            if self.ended_abruptly:
                raise httpx.RemoteProtocolError("the connection ended without the close-notify of TLS")
            if self.input is not InputState.OPEN:
                return b""
            await self.wait(timeout)
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        if len(self._unread) <= _MAX_UNREAD_BYTES:
            self.resume_reading()
        return data

    # While a body is sent.

    def watch(self, body_reader: asyncio.Task[None]) -> None:
        """Look at bytes that arrive from now until the next call of read(). A refusal cancels `body_reader`."""
        self._sending = sending = _Sending(FinalHeadReader(), body_reader)
        if self._unread:
            self._look_at_response(sending, bytes(self._unread))
        if self.input is not InputState.OPEN:
            self.input_ended()

    async def write(self, data: Bytes, timeout: float | None) -> bool:
        if self.has_refused:
            raise _refused()
        return await super().write(data, timeout)


def _refused() -> httpcore.WriteError:
    return httpcore.WriteError("the server has refused the request")


class _HTTPCoreStream(httpcore.AsyncNetworkStream):
    """A connection as httpcore uses it: with errors of httpcore."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_of_httpcore():
            return await self._connection.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        connection, upload = self._connection, _upload.get()
        if upload is not None:
            # This may be the head of the request, which the body follows.
            upload.connection = connection
        try:
            with _errors_of_httpcore():
                is_written = await connection.write(buffer, timeout)
        except httpcore.WriteTimeout as exc:
            if connection.has_responded:
                raise httpcore.WriteError("the server has responded, and reads no more of the request") from exc
            raise
        if not is_written:
            # The server may have responded before: httpcore goes on to read.
            raise httpcore.WriteError("the server reads no more of the request")

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        with connecting(timeout, httpcore, self._connection.abort_transport):
            await self._connection.start_tls(ssl_context, server_hostname or "")
        return self

    async def aclose(self) -> None:
        self._connection.abort_transport()

    def get_extra_info(self, info: str) -> Any:
        return self._connection.is_readable if info == "is_readable" else self._connection.get_extra_info(info)


@contextlib.contextmanager
def _errors_of_httpcore() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        kind: type[Exception] = getattr(httpcore, type(exc).__name__)
        raise kind(str(exc)) from exc.__cause__


class _Upload(httpx.AsyncByteStream):
    """The body of a request, whose sending ends when the server has refused the request.

    A task of its own reads the body, which may hold scopes and task groups open between two parts.
    """

    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self._body = body
        # Set when the head of the request is written. None in a test that replaces httpcore.
        self.connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self.connection
        if connection is None:
            async for part in self._body:
                yield part
            return
        # Without a type argument, which anyio 3 does not take.
        streams: _Streams = anyio.create_memory_object_stream(0)
        sender, receiver = streams
        with receiver:
            self._task = asyncio.get_running_loop().create_task(self._read(sender), name="sseqbridge-body")
            # Not in the task, which never begins if it is cancelled before its first step.
            self._task.add_done_callback(lambda _: sender.close())
            connection.watch(self._task)
            async for part in receiver:
                yield part
        if self._error is not None:
            raise self._error
        if connection.has_refused:
            raise _refused()

    async def _read(self, sender: MemoryObjectSendStream[bytes]) -> None:
        try:
            # Also for a GeneratorExit of an iterator in a thread, as in outgoing.py.
            with CallersCode("the request's body, an iterator,", passes=Exception):
                async for part in self._body:
                    await sender.send(part)
        except Exception as exc:
            # Nothing reads a BrokenResourceError: it says that the sending has ended.
            self._error = exc

    async def stop(self) -> None:
        """Stop the reading, and wait until the body is not used any more."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({self._task})


# The body of the request that the current task sends.
_upload: ContextVar[_Upload | None] = ContextVar("sseqbridge_upload", default=None)
