"""The HTTP transport of the library's own client: a connection pool for HTTP/1.1, with httpx's transport as fallback.

httpx's own pool looks at every connection for every request, and its connections pass each chunk through four
layers of coroutines; the connections here hand bytes over in the loop's callback. Requests that need more (a
proxy, HTTP/2, `extensions`) go to httpx's own transport, and so do all requests while it has been replaced, by
tests that mock it or by tracing.

Runs on one event loop's thread, except that any thread may copy `Transport.connections`. Errors are those of
httpx's own transport, or subclasses of them.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import ssl
import sys
import types
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from sseqbridge._runtime import patching

from .connection import HTTP11Connection
from .connection_auth import authenticates_connection, connection_owner
from .dial import Dial, connecting, dial
from .errors import ReusedConnectionClosed
from .h1_heads import Headers
from .network_stream import READ_BYTES
from .origin import Origin, origin_of
from .threaded import ThreadedTransport

__all__ = ["SAFE_METHODS", "Transport", "count_connections", "is_client_replaced"]

# Safe methods: a request that is sent twice has the effect of one (RFC 9110, sections 9.2.1 and 9.2.2).
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Transport(httpx.AsyncBaseTransport):
    """Sends each request on a connection of its own, and keeps the connection for later requests.

    The number of connections is not limited. A connection is closed after `keepalive_expiry` idle seconds.
    `tls_context` returns the context for https. `plain` makes the transport for the requests that this one cannot
    send, of one scheme, through one proxy or None; `proxy_for` returns the proxy for a URL. Without `sends_itself` this
    transport sends none. `dial` opens connections.
    """

    def __init__(
        self,
        *,
        keepalive_expiry: float,
        tls_context: Callable[[], Awaitable[ssl.SSLContext]],
        plain: Callable[[str, str | None], Awaitable[httpx.AsyncBaseTransport]],
        proxy_for: Callable[[httpx.URL], str | None] = lambda url: None,
        sends_itself: bool = True,
        dial: Dial = dial,
    ) -> None:
        self._keepalive_expiry = keepalive_expiry
        self._tls_context = tls_context
        self._dial = dial
        self._make_plain = plain
        self._proxy_for = proxy_for
        self._sends_itself = sends_itself
        # By scheme and proxy.
        self._plain: dict[tuple[str, str | None], httpx.AsyncBaseTransport] = {}
        # Last in, first out, so that surplus connections expire. The first of each deque is the oldest.
        self._idle: dict[Origin, collections.deque[HTTP11Connection]] = {}
        # Connections in the middle of an authentication, by the result of connection_owner(): reserved for that owner.
        self._reserved: dict[tuple[object, Origin], HTTP11Connection] = {}
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._closed = False
        # The open connections: written on the loop's thread, copied by any thread.
        self.connections: set[HTTP11Connection] = set()
        # The buffer that all connections read into.
        self.buffer = memoryview(bytearray(READ_BYTES))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its response as soon as the head has been received."""
        if not self.is_direct(request):
            return await self._send_plainly(request)
        origin, timeouts = origin_of(request.url), request.extensions.get("timeout", {})
        connection = self._idle_connection(origin, request.headers.raw)
        if connection is not None:
            try:
                return await connection.exchange(request, timeouts)
            except ReusedConnectionClosed:
                # A server may close an idle connection just as a request arrives. Whether it has handled the
                # request is unknown, so only a safe one is sent again.
                if not _is_repeatable(request):
                    raise
        return await self.send_on_new_connection(request)

    async def send_on_new_connection(self, request: httpx.Request) -> httpx.Response:
        """Do the same for a request that is_direct(), but not on an idle connection."""
        origin, timeouts = origin_of(request.url), request.extensions.get("timeout", {})
        connection = await self._connect(origin, timeouts.get("connect"))
        return await connection.exchange(request, timeouts)

    def is_direct(self, request: httpx.Request) -> bool:
        """Whether the transport here sends a request itself, and does not leave it to httpx's own."""
        is_simple = request.extensions.keys() <= {"timeout"}
        return is_simple and self._may_send() and self._proxy_for(request.url) is None

    def _may_send(self) -> bool:
        return self._sends_itself and not _is_replaced() and not patching.is_socket_replaced()

    def reused_connection(self, origin: Origin) -> HTTP11Connection | None:
        """Return an idle connection, now the caller's, for a request that needs no more; None if there is none."""
        if not self._may_send():
            return None
        connection = self._unreserved_connection(origin)
        if connection is not None and not connection.can_write:
            self.release(connection)
            return None
        return connection

    async def _send_plainly(self, request: httpx.Request) -> httpx.Response:
        proxy = self._proxy_for(request.url)
        if patching.is_socket_replaced() and not _is_replaced():
            return await ThreadedTransport().handle_async_request(request)
        key = request.url.scheme, proxy
        if key not in self._plain:
            made = await self._make_plain(*key)
            # A concurrent request may have made one in the meantime. An unused transport has nothing to close.
            self._plain.setdefault(key, made)
        return await self._plain[key].handle_async_request(request)

    async def aclose(self) -> None:
        """Close the idle connections; those in use are closed when they are released."""
        self._closed = True
        for connection in [*itertools.chain.from_iterable(self._idle.values()), *self._reserved.values()]:
            connection.abort()
        self._idle.clear()
        self._reserved.clear()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        for plain in tuple(self._plain.values()):
            await plain.aclose()

    @property
    def connection_count(self) -> int:
        """The number of open connections, in use or idle. Thread-safe."""
        return len(self.connections) + sum(map(count_connections, tuple(self._plain.values())))

    # The pool.

    def _idle_connection(self, origin: Origin, headers: Headers) -> HTTP11Connection | None:
        # Only for the next request of the handshake: another one could get the identity of the connection.
        if self._reserved and authenticates_connection(headers):
            reserved = self._reserved.pop((connection_owner(), origin), None)
            if reserved is not None:
                if reserved.is_fresh(self._keepalive_expiry):
                    return reserved
                reserved.abort()
        return self._unreserved_connection(origin)

    def _unreserved_connection(self, origin: Origin) -> HTTP11Connection | None:
        connections = self._idle.get(origin)
        while connections:
            connection = connections.pop()
            if connection.is_fresh(self._keepalive_expiry):
                return connection
            connection.abort()
        return None

    def release(self, connection: HTTP11Connection) -> None:
        """Keep an idle connection for the next request to its origin; close it if the transport is closed."""
        if self._closed:
            connection.abort()
            return
        self._idle.setdefault(connection.origin, collections.deque()).append(connection)
        if self._expiry_timer is None:
            loop = connection.loop
            self._expiry_timer = loop.call_later(self._keepalive_expiry, self._close_expired, loop)

    def reserve(self, connection: HTTP11Connection) -> None:
        """Keep an idle connection for the next request of its handshake, or close it when it has expired."""
        if self._closed:
            connection.abort()
            return
        key = connection_owner(), connection.origin
        self._drop_reserved(key, self._reserved.get(key))
        self._reserved[key] = connection
        connection.loop.call_later(self._keepalive_expiry, self._drop_reserved, key, connection)

    def _drop_reserved(self, key: Any, connection: HTTP11Connection | None) -> None:
        if connection is not None and self._reserved.get(key) is connection:
            del self._reserved[key]
            connection.abort()

    def _close_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        self._expiry_timer = None
        for origin, connections in tuple(self._idle.items()):
            while connections and not connections[0].is_fresh(self._keepalive_expiry):
                connections.popleft().abort()
            if not connections:
                del self._idle[origin]
        if self._idle:
            self._expiry_timer = loop.call_later(self._keepalive_expiry / 4, self._close_expired, loop)

    async def _connect(self, origin: Origin, timeout: float | None) -> HTTP11Connection:
        connection = HTTP11Connection(asyncio.get_running_loop(), origin, self)
        with connecting(timeout, httpx, connection.abort):
            context = await self._tls_context() if origin.scheme == "https" else None
            await self._dial(connection, origin.host, origin.port)
            if context is not None:
                await connection.start_tls(context, origin.host)
        return connection


def count_connections(transport: object) -> int:
    """Return the number of open connections of a transport, in use or idle; 0 if it does not expose them."""
    if isinstance(transport, Transport):
        return transport.connection_count
    # The transports of httpx and httpx2 keep them in a pool of httpcore's.
    return len(getattr(getattr(transport, "_pool", None), "connections", ()))


def _is_repeatable(request: httpx.Request) -> bool:
    """Whether a request may be sent twice, and its body can be read twice."""
    return request.method in SAFE_METHODS and isinstance(request.stream, httpx.ByteStream)


def is_client_replaced() -> bool:
    """Whether the methods of httpx's client have been replaced, as by Sentry, VCR.py and pook."""
    send = httpx.AsyncClient.send
    single = getattr(httpx.AsyncClient, "_send_single_request", send)
    choose = getattr(httpx.AsyncClient, "_transport_for_url", send)
    if send is _found.send and single is _found.single and choose is _found.choose:
        return False
    if not (_is_original(send, "httpx") and _is_original(single, "httpx") and _is_original(choose, "httpx")):
        return True
    _found.send, _found.single, _found.choose = send, single, choose
    return False


def _is_replaced() -> bool:
    """Whether the methods of httpx's transport have been replaced, as by pytest-httpx, RESPX and OpenTelemetry."""
    # getattr: another thread may be importing httpcore right now.
    core: Any = getattr(sys.modules.get("httpcore"), "AsyncConnectionPool", None)
    handle, pool = httpx.AsyncHTTPTransport.handle_async_request, None if core is None else core.handle_async_request
    if handle is _found.handle and pool is _found.pool:
        return False
    if not (_is_original(handle, "httpx") and (pool is None or _is_original(pool, "httpcore"))):
        return True
    _found.handle, _found.pool = handle, pool
    return False


class _Found:
    """The methods that were found to be the original ones. They seldom change, and are checked for every request.

    Any thread writes them. Methods of two checks are never mixed up: each is an original.
    """

    send: Any = None
    single: Any = None
    choose: Any = None
    handle: Any = None
    pool: Any = None


_found = _Found()


def _is_original(method: object, package: str) -> bool:
    # Not isinstance(): wrappers such as wrapt's imitate the class of the function that they wrap.
    return type(method) is types.FunctionType and _is_defined_in(method, package)


@functools.lru_cache(maxsize=8)
def _is_defined_in(function: types.FunctionType, package: str) -> bool:
    return bool(function.__globals__["__name__"].partition(".")[0] == package)
