"""HTTP clients: TLS context, cookies, and the choice of the client that sends a request.

Clients of httpx2, the maintained continuation of httpx, work as well: names are looked up in the package that
defines the client's class. `ClientPool` is thread-safe: callers' threads and the event loop use it, and its fields
and `Client.shared` are written under its lock. Clients run on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import codecs
import copy
import functools
import logging
import os
import ssl
import sys
from collections.abc import Callable
from http.cookiejar import Cookie, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import httpx

from sseqbridge import _accelerators
from sseqbridge._exceptions import BridgeClosedError, ConnectError, UsageError
from sseqbridge._runtime import fork, loops, threads
from sseqbridge._runtime.callbacks import CallersCode, CallersFunction

from .bounded_bodies import bounded_auth, bounded_hooks, errors_of_hooks_pass
from .direct_request import DirectRequest, direct_request, forwarded_bytes
from .proxies import ProxySettings
from .transport import Transport, count_connections, is_client_replaced
from .urls import parsed_url

if TYPE_CHECKING:
    from urllib.request import Request

    from .connection import HTTP11Connection
    from .forwarded import ForwardedRequest
    from .request import RequestOptions

__all__ = ["Client", "ClientFactory", "ClientPool"]

logger = logging.getLogger("sseqbridge")

# Any: an httpx2.AsyncClient is no httpx.AsyncClient, and httpx2 need not be installed.
ClientFactory = Callable[[], Any]
RawHeaders = list[tuple[bytes, bytes]]

# Shorter than the 5 s after which uvicorn, Node and others close an idle connection: a POST fails if the server
# closes the connection just as the request is written to it.
_KEEPALIVE_EXPIRY = 4.0

# How long a request waits until a client is closed that was made for it after the pool was closed.
_CLOSE_SECONDS = 1.0

# The most idle clients that are kept for later HTTP/2 requests.
_MAX_IDLE = 8

_tls_lock = fork.ForkSafeLock()
_tls_context: ssl.SSLContext | None = None


def _built_tls_context() -> ssl.SSLContext:
    global _tls_context
    with _tls_lock.native:
        if _tls_context is None:
            # ssl encodes host names with this codec. Its first use imports it, which would block the loop.
            codecs.lookup("idna")
            context = _context_of_environment()
            context.set_alpn_protocols(["http/1.1"])
            _tls_context = context
        return _tls_context


def _context_of_environment() -> ssl.SSLContext:
    """Return a new context. Raises ConnectError, which names the variable, if its certificates cannot be read."""
    # The names that httpx reads, in this order.
    file, directory = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        context = httpx.create_ssl_context()
    except OSError as exc:
        if not file:
            raise
        reason = "one without certificates" if isinstance(exc, ssl.SSLError) else f"{file!r}: {exc.strerror}"
        raise ConnectError(
            f"the environment variable `SSL_CERT_FILE` must name a file of CA certificates, got {reason}. "
            "Correct it or unset it."
        ) from exc
    if directory and not file and not os.path.isdir(directory):
        raise ConnectError(
            "the environment variable `SSL_CERT_DIR` must name a directory of CA certificates, "
            f"got {directory!r}, which is not a directory. Correct it or unset it."
        )
    return context


async def _tls(own: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """Return `own`, or the process's TLS context. That is built on first use, in a thread: that takes 20 ms."""
    if own is not None:
        # Each time: httpx sets the protocols of a context that it shares before each connection, too.
        own.set_alpn_protocols(["http/1.1"])
        return own
    if _tls_context is not None:
        return _tls_context
    return await loops.run_in_daemon_thread("sseqbridge-tls", _built_tls_context)


class _StoreNoCookies(DefaultCookiePolicy):
    """A cookie policy that stores no cookie of any response; cookies set by the caller are sent."""

    def set_ok(self, cookie: Cookie, request: Request) -> bool:
        return False


class Client:
    """One AsyncClient, its package, and whether streams may share it."""

    __slots__ = ("http", "package", "shared")

    def __init__(self, http: Any) -> None:
        self.http = http
        self.package = _package_of(http)
        self.shared = False

    @property
    def connections(self) -> int:
        """The number of open connections, in use or idle, of the transports that expose them."""
        transports = [getattr(self.http, "_transport", None), *getattr(self.http, "_mounts", {}).values()]
        return sum(map(count_connections, transports))

    def build(self, method: str, url: str, headers: RawHeaders, **options: Any) -> Any:
        """Return a request, with the client's defaults added."""
        return self.http.build_request(method, url, headers=headers, **options)

    def is_direct(self, request: Any) -> bool:
        """Whether the library's own transport sends the request, and no code of httpx or the caller is involved."""
        return False

    def check(self, request: Any) -> None:
        """Raise UsageError if the environment names a proxy for the request that cannot be used."""

    async def resend(self, request: Any) -> Any:
        """Do what send() does, without an idle connection, after the request failed on reused_connection()."""
        return await self.send(request)

    def direct_request(self, options: RequestOptions) -> DirectRequest | None:
        """Return a request that can be sent on reused_connection(); None if `options` need a request of the package."""
        return None

    def forwarded_bytes(self, request: ForwardedRequest) -> DirectRequest | None:
        """Return a request that can be sent on reused_connection(); None if forward() is to send `request`."""
        return None

    def reused_connection(self, request: DirectRequest) -> HTTP11Connection | None:
        """Return an idle connection for the request, now the caller's; None if send() is to send the request."""
        return None

    async def aclose(self) -> None:
        """Close the client. Raises CallbackError if it cannot be closed."""
        with CallersCode("closing the HTTP client"):
            await self.http.aclose()

    async def send(self, request: Any, **options: Any) -> Any:
        """Return the response to a request as soon as its head has been received.

        The bodies that an auth flow reads, and the requests that it sends, are bounded; see bounded_bodies.py.
        """
        auth = options.get("auth", self.http.auth)
        if callable(auth) or hasattr(auth, "async_auth_flow"):
            options["auth"] = bounded_auth(self.package, auth)
        return await self._with_bounded_hooks().send(request, stream=True, follow_redirects=False, **options)

    def _with_bounded_hooks(self) -> Any:
        """Return the client, or, if it has event hooks, a copy whose hooks are guarded and get bounded bodies.

        A new copy for each request, since the caller may change the hooks. It shares the transports and cookies.
        """
        hooks = self.http.event_hooks
        if not (hooks["request"] or hooks["response"]):
            return self.http
        bounded = copy.copy(self.http)
        bounded.event_hooks = bounded_hooks(self.package, hooks)
        return bounded

    async def forward(self, request: ForwardedRequest, *, is_again: bool = False) -> Any:
        """Send a request that another client built, and return the response as soon as its head has been received.

        This client's transports and event hooks are used, none of its other settings. `is_again` after the request
        failed on reused_connection(): it is not sent on an idle connection.
        """
        with errors_of_hooks_pass():
            rebuilt = request.rebuilt(self.package)
            return await self._with_bounded_hooks().send(rebuilt, stream=True, follow_redirects=False, auth=None)


class _OwnClient(Client):
    """The library's own client, with the library's own transport.

    It has no base URL, parameters, cookies or hooks, so it skips the steps of AsyncClient that apply them: their cost
    is measurable where streams are short.
    """

    __slots__ = ("_default_lines", "_defaults", "_proxies", "_transport")

    def __init__(self, tls_context: ssl.SSLContext | None) -> None:
        self._proxies = ProxySettings.of_environment()
        self._transport = Transport(
            keepalive_expiry=_KEEPALIVE_EXPIRY,
            tls_context=functools.partial(_tls, tls_context),
            plain=functools.partial(_plain_transport, tls_context),
            proxy_for=self._proxies.proxy_for,
            sends_itself=_accelerators.is_wanted("transport"),
        )
        super().__init__(httpx.AsyncClient(transport=self._transport))
        self._defaults = [(name.lower(), name, value) for name, value in self.http.headers.raw]
        self._default_lines = [(key.decode(), b"%b: %b\r\n" % (name, value)) for key, name, value in self._defaults]

    def build(self, method: str, url: str, headers: RawHeaders, **options: Any) -> Any:
        own = {name.lower() for name, _ in headers}
        merged = [(name, value) for key, name, value in self._defaults if key not in own] + headers
        timeout = httpx.Timeout(options.pop("timeout")).as_dict()
        extensions = {"timeout": timeout, **options.pop("extensions")}
        return httpx.Request(method, parsed_url(url), headers=merged, extensions=extensions, **options)

    def is_direct(self, request: httpx.Request) -> bool:
        return self._transport.is_direct(request) and not is_client_replaced()

    def check(self, request: httpx.Request) -> None:
        self._proxies.proxy_for(request.url)

    def direct_request(self, options: RequestOptions) -> DirectRequest | None:
        request = direct_request(options, self._default_lines)
        return None if request is None or self._proxies.proxy_for(request.url) is not None else request

    def reused_connection(self, request: DirectRequest) -> HTTP11Connection | None:
        return None if is_client_replaced() else self._transport.reused_connection(request.origin)

    async def resend(self, request: Any) -> Any:
        if not self.is_direct(request):
            return await self.send(request)
        response = await self._transport.send_on_new_connection(request)
        response.request = request
        return response

    async def send(self, request: Any, **options: Any) -> Any:
        if options.get("auth") is not None or request.url.userinfo or is_client_replaced():
            return await super().send(request, **options)
        response = await self._transport.handle_async_request(request)
        response.request = request
        return response

    def forwarded_bytes(self, request: ForwardedRequest) -> DirectRequest | None:
        try:
            is_proxied = self._proxies.proxy_for(request.url) is not None
        except UsageError:
            # forward() raises it.
            return None
        return None if is_proxied else forwarded_bytes(request)

    async def forward(self, request: ForwardedRequest, *, is_again: bool = False) -> Any:
        sent: Any = request
        transport = self._transport
        send = transport.send_on_new_connection if is_again and self.is_direct(sent) else transport.handle_async_request
        response = await send(sent)
        response.request = sent
        return response


def _package_of(http: Any) -> Any:
    for kind in type(http).__mro__:
        package = sys.modules.get(kind.__module__.partition(".")[0])
        if kind.__name__ == "AsyncClient" and hasattr(package, "HTTPError"):
            return package
    raise UsageError(
        f"`client` must be, or return, an httpx.AsyncClient or httpx2.AsyncClient, got {type(http).__name__}. "
        "Bridge(client=...) takes a function that returns a new one."
    )


def _called(factory: ClientFactory) -> Any:
    with CallersFunction("the bridge's client function", passes=()):
        return factory()


# No limits: the 101st stream must not wait for the 100 before it. (httpcore also closes idle connections as soon as
# more connections are open, in use or idle, than max_keepalive_connections.)
_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE_EXPIRY)


async def _plain_transport(
    tls_context: ssl.SSLContext | None, scheme: str, proxy: str | None
) -> httpx.AsyncHTTPTransport:
    """Return a transport of httpx for requests of one scheme through one proxy, or without."""
    # Imports httpcore.
    from .plain_transport import PlainTransport

    needs_tls = scheme == "https" or (proxy is not None and proxy.startswith("https:"))
    # For http alone a context that trusts nobody, so that the certificates need not be readable.
    context = await _tls(tls_context) if needs_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    given = None if proxy is None else httpx.Proxy(proxy, ssl_context=context if proxy.startswith("https:") else None)
    return PlainTransport(context, _NO_LIMITS, given)


class ClientPool:
    """Leases clients to requests. Thread-safe.

    All streams share the library's own client. A caller's client may speak HTTP/2, where streams share a connection,
    and an abort of one stream would close it for the others: so a client from `factory` is leased to one stream at a
    time until the origin has answered in HTTP/1.1, and `factory` is called again if more clients are needed.
    """

    def __init__(self, factory: ClientFactory | None = None, *, tls_context: ssl.SSLContext | None = None) -> None:
        """`tls_context` is for the library's own client; None means the process's."""
        self._factory = factory
        # Whether different origins may get different clients.
        self.has_factory = factory is not None
        self._tls_context = tls_context
        # Whether the clients may run transports and event hooks of the caller.
        self.has_callers_code = factory is not None
        # Not fork-safe, like the event loop that the pool belongs to.
        self._lock = threads.new_lock()
        self._shared: Client | None = None
        self._idle: list[Client] = []
        # The clients that are not closed, leased ones included. copy(), add() and discard() are atomic.
        self._made_clients: set[Client] = set()
        self._is_closed = False
        self._http11_origins: set[str] = set()

    @classmethod
    def of(cls, http: Any) -> ClientPool:
        """Return a pool of one client that the caller owns: it keeps its cookies, and is never closed here."""
        pool = cls()
        pool._shared = Client(http)
        pool._shared.shared = True
        pool.has_callers_code = True
        return pool

    @property
    def connections(self) -> int:
        """The number of open connections, in use or idle. Thread-safe."""
        return sum(client.connections for client in self._made_clients.copy())

    def lease(self, origin: str) -> Client:
        """Return a client for a request to `origin`. May block: do not call it on the loop's thread.

        Raises UsageError if the factory returns no client, CallbackError if it raises, BridgeClosedError if the pool
        is closed.
        """
        shared = self._shared
        if shared is not None and self._factory is None:
            # Without the lock: once there is a client for all, only aclose() changes that.
            return shared
        client = self._existing(origin)
        if client is not None:
            return client
        # Not under the lock, which the loop takes too: a factory may be slow.
        client = _OwnClient(self._tls_context) if self._factory is None else Client(_called(self._factory))
        # Streams of different users share a client: no cookie of a response may reach another request.
        client.http.cookies.jar.set_policy(_StoreNoCookies())
        self._admit(client)
        if not self._may_share(origin):
            return client
        return self._share(client)

    def _share(self, client: Client) -> Client:
        """Share a new client, unless another thread was faster. Return the client for its request.

        A surplus client of the factory serves this request alone, and release_or_close() closes it. All streams share
        one client of the library's own.
        """
        with self._lock:
            if self._shared is None and not self._is_closed:
                self._shared = client
                client.shared = True
            return client if self._shared is None or self._factory is not None else self._shared

    def _may_share(self, origin: str) -> bool:
        return self._factory is None or origin in self._http11_origins

    def _admit(self, client: Client) -> None:
        """Add a new client, which aclose() will close. Raises BridgeClosedError if that was called already."""
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                self._made_clients.add(client)
        if is_closed:
            if self._factory is not None:
                # The pool's own loop has ended, or is about to.
                threads.DaemonThread(_close_on_a_new_loop, "sseqbridge-close", client).join(_CLOSE_SECONDS)
            raise BridgeClosedError("the bridge was closed while the request was made")

    def _existing(self, origin: str) -> Client | None:
        """Return a client that has been made before and may be leased now, None if there is none."""
        with self._lock:
            if not self._may_share(origin):
                return self._idle.pop() if self._idle else None
            if self._shared is None and self._idle:
                self._shared = self._idle.pop()
                self._shared.shared = True
            return self._shared

    def record_http_version(self, origin: str, http_version: str) -> None:
        """Record the HTTP version of a response of `origin`, such as "HTTP/1.1" or "HTTP/2"."""
        if self._factory is not None and http_version.startswith("HTTP/1"):
            with self._lock:
                self._http11_origins.add(origin)

    def release(self, client: Client) -> None:
        """Return a leased client to the pool, for the next request. Does nothing if the pool is closed."""
        with self._lock:
            if not client.shared and not self._is_closed:
                self._idle.append(client)

    async def release_or_close(self, client: Client, origin: str) -> None:
        """Return a leased client to the pool, or close it if the pool has enough clients."""
        with self._lock:
            spare = self._shared if origin in self._http11_origins else None
            is_needed = spare is None and len(self._idle) < _MAX_IDLE
        if is_needed:
            self.release(client)
        else:
            await self.discard(client)

    async def discard(self, client: Client) -> None:
        """Close a leased client and its connections, unless it is shared."""
        if not client.shared:
            self._made_clients.discard(client)
            await client.aclose()

    async def aclose(self) -> None:
        """Close every client, leased ones included: no stream outlives the pool's loop."""
        with self._lock:
            self._is_closed = True
            clients = tuple(self._made_clients)
            self._made_clients.clear()
            self._idle.clear()
            self._shared = None
        # At the same time: one that hangs must not keep the others open.
        for error in await asyncio.gather(*(client.aclose() for client in clients), return_exceptions=True):
            if error is not None:
                logger.debug("closing an HTTP client failed", exc_info=error)


def _close_on_a_new_loop(client: Client) -> None:
    loop = loops.new_event_loop()
    try:
        loop.run_until_complete(client.aclose())
    except Exception as exc:
        logger.debug("closing an HTTP client failed", exc_info=exc)
    finally:
        loop.close()
