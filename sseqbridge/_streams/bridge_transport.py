"""BridgeTransport: the synchronous clients of httpx and httpx2 on a bridge, and with them the SDKs that use these.

The consumer's thread sends the body of a request if it is an iterator, and takes the response's bytes out of the
exchange's channel; the exchange runs on the bridge's loop. `close` of a response or transport may be called by any
thread. A response owns its exchange: when the last reference to it is dropped, the request is aborted.
"""

from __future__ import annotations

import codecs
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from sseqbridge._checks import NotCopyable, check_seconds
from sseqbridge._engine.bridge import has_clients_of_callers
from sseqbridge._engine.channel import End
from sseqbridge._engine.raw_exchange import RawExchange, RawHead
from sseqbridge._engine.scope import check_scope, current_scope
from sseqbridge._exceptions import BridgeClosedError, UsageError
from sseqbridge._http.client import ClientPool
from sseqbridge._http.forwarded import package_of, with_base
from sseqbridge._runtime import threads
from sseqbridge._signatures import with_hints

from .bridge import Bridge, check_bridge, default_bridge

if TYPE_CHECKING:
    import httpx
    import httpx2
    from typing_extensions import Self

    from sseqbridge._engine.loop_state import LoopState

    class _BaseTransport(httpx.BaseTransport, httpx2.BaseTransport):  # type: ignore[misc]
        pass
else:
    # Neither package checks for its class, and some SDKs refuse objects of httpx's classes.
    _BaseTransport = object

__all__ = ["BridgeTransport"]

# How long close() waits until the upstream's socket is shut down.
_CLOSE_SECONDS = 1.0


_OF_HTTPX = ("cert", "http1", "http2", "limits", "local_address", "proxies", "proxy", "socket_options", "trust_env")


@with_hints(
    {
        **dict.fromkeys(_OF_HTTPX, "Pass bridge=Bridge(client=...), whose clients have it."),
        "retries": "Pass it to the SDK, whose client repeats requests (max_retries=...).",
        "timeout": "Pass it to the client. `idle` limits the seconds without an event.",
    },
    by_name="Name them, such as BridgeTransport(idle=60).",
)
class BridgeTransport(NotCopyable, _BaseTransport):
    """A transport for httpx.Client and httpx2.Client that sends requests over a Bridge.

        client = openai.OpenAI(http_client=httpx.Client(transport=BridgeTransport(idle=60)))

    Reads that are blocked can be aborted: `close()` of the response, or of an SDK's stream, raises the package's
    ReadError in the thread that reads, and closes the connection to the upstream. So does the end of a scope, with
    Cancelled. Responses and errors are of the package that the request comes from.

    `idle` limits the seconds from the response's head without a byte, or, in an event stream, without an event:
    comments and heartbeats do not count, nor does the time in which the consumer reads nothing. It raises the
    package's ReadTimeout. The client's own limits hold as well, except `pool`: there is no limit of connections.

    `verify` is an ssl.SSLContext, None means httpx's default. `bridge` is a Bridge, None means the process's own. For
    a proxy, HTTP/2 or client certificates of its own pass Bridge(client=...): that is as fast as httpx. httpx
    ignores `verify`, `cert`, `http2`, `limits`, `proxy` and `trust_env` of a client that gets a transport; HTTP_PROXY,
    HTTPS_PROXY and NO_PROXY apply here nevertheless.

    Thread-safe, and may be shared by several clients. Closing it aborts their requests.

    Raises UsageError for an argument that cannot work.
    """

    def __init__(
        self,
        *,
        idle: float | None = None,
        verify: ssl.SSLContext | None = None,
        bridge: Bridge | None = None,
    ) -> None:
        check_seconds("idle", idle, never=True)
        check_bridge(bridge)
        if verify is not None and not isinstance(verify, ssl.SSLContext):
            raise UsageError(
                f"`verify` must be an ssl.SSLContext, got {type(verify).__name__}. "
                "Pass ssl.create_default_context(cafile=...), for example."
            )
        if verify is not None and bridge is not None and has_clients_of_callers(bridge):
            raise UsageError("`verify` must not be used with a Bridge(client=...). Pass it to that function's clients.")
        if verify is not None:
            # ssl encodes host names with this codec. Its first use imports it, which would block the loop.
            codecs.lookup("idna")
        self._idle = idle
        self._verify = verify
        self._bridge = bridge
        # The key of the clients that have `verify`, and of the connections that requests authenticate.
        self._owner = object()
        # The requests under way: added by callers' threads, removed by the loop, copied by any thread.
        self._exchanges: set[RawExchange] = set()
        # The state of the loop that served the last request.
        self._state: LoopState | None = None

    def __repr__(self) -> str:
        return f"<BridgeTransport idle={self._idle} requests={len(self._exchanges)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Missing if __init__ raised.
        if getattr(self, "_verify", None) is not None and self._state is not None:
            self._state.close_clients_of(self._owner)

    def close(self) -> None:
        """Abort the requests under way, before and after their heads, and close this transport's own connections.

        Thread-safe and idempotent. A closed transport can be used again.
        """
        for exchange in self._exchanges.copy():
            exchange.abort()
        if self._verify is not None and self._state is not None:
            self._state.close_clients_of(self._owner)

    def handle_request(self, request: Any) -> Any:
        """Send a `request` of httpx or httpx2 and return the package's response, whose body is still to be read.

        httpx calls it. Raises the package's errors, Cancelled in a scope that was cancelled, and UsageError on the
        loop's thread.
        """
        package = package_of(request)
        if request.url.scheme not in ("http", "https") or not request.url.host:
            raise package.UnsupportedProtocol("the URL must be one of an http:// or https:// server, got another one")
        if "upgrade" in request.headers:
            raise package.UnsupportedProtocol(
                "a BridgeTransport must get requests without an Upgrade header, such as that of a WebSocket. "
                "Use a client without it."
            )
        bridge = self._bridge or default_bridge()
        try:
            exchange = self._new_exchange(bridge, request)
        except BridgeClosedError as exc:
            raise package.ConnectError(str(exc)) from exc
        try:
            self._exchanges.add(exchange)
            exchange.notify_finished(partial(self._exchanges.discard, exchange))
            start = partial(_start, bridge, exchange, package)
            if exchange.upload is None:
                entry = _checked(exchange, exchange.channel.receive_after(start))
            else:
                start()
                _upload(exchange, request.stream)
                entry = _received(exchange)
            assert isinstance(entry, RawHead)
            stream = with_base(_ResponseStream, package.SyncByteStream)(exchange)
            return package.Response(entry.status, headers=entry.headers, stream=stream, extensions=entry.extensions)
        except BaseException:
            exchange.close()
            # After an interrupt before its start it never finishes.
            self._exchanges.discard(exchange)
            raise

    def _new_exchange(self, bridge: Bridge, request: Any) -> RawExchange:
        """Return a request that was not started yet. Raises BridgeClosedError if the bridge cannot start."""
        check_scope()
        state = self._state = bridge.started()
        bridge.check_may_wait("a request of BridgeTransport", "a request of an asynchronous client", stacklevel=5)
        clients = state.clients
        if self._verify is not None:
            clients = state.clients_of(self._owner, partial(ClientPool, tls_context=self._verify))
        # A thread sends one request of a handshake (NTLM) after another. Under gevent the identifier is a greenlet's.
        owner = self._owner, threading.get_ident()
        return RawExchange(state, clients, request, self._idle, owner)


def _start(bridge: Bridge, exchange: RawExchange, package: Any) -> None:
    try:
        bridge.start(exchange.state, exchange)
    except BridgeClosedError as exc:
        raise package.ConnectError(str(exc)) from exc
    # Also while the body is sent, which may block.
    exchange.ownership.enter(exchange, current_scope())


def _upload(exchange: RawExchange, body: Any) -> None:
    """Send a body that is not in memory, until the response comes."""
    upload = exchange.upload
    assert upload is not None
    for part in body:
        if not upload.send(part):
            return
    upload.end()


def _received(exchange: RawExchange) -> RawHead | bytes | None:
    """Return the next entry of a response, None after its end.

    Raises the response's error, Cancelled in a cancelled scope, and UsageError in a forked child.
    """
    exchange.ownership.enter(exchange, current_scope())
    return _checked(exchange, exchange.channel.receive())


def _checked(exchange: RawExchange, entry: RawHead | bytes | End) -> RawHead | bytes | None:
    """Return an entry of a response, None for its end. Raises the errors of _received()."""
    if not isinstance(entry, End):
        return entry
    if entry.outcome == "eof":
        return None
    exchange.check_process()
    # If the scope was cancelled during the wait, it has aborted the request.
    exchange.ownership.enter(exchange, current_scope())
    raise exchange.closed_error() if entry.error is None else entry.error


class _ResponseStream(NotCopyable):
    """The body of a response. Instances also inherit from the SyncByteStream of httpx or httpx2."""

    def __init__(self, exchange: RawExchange) -> None:
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        try:
            while (data := _received(exchange)) is not None:
                assert isinstance(data, bytes)
                yield data
        except BaseException:
            # The consumer has left, or was interrupted.
            exchange.close()
            raise

    def close(self) -> None:
        """Abort the request, unless it has ended, and wait until the upstream's socket is shut down.

        Waits for a second at most. Thread-safe.
        """
        exchange = self._exchange
        if exchange.close() and not exchange.in_loop_thread() and threads.may_wait():
            exchange.wait_finished(_CLOSE_SECONDS)

    def __del__(self) -> None:
        # The attribute is missing if an interrupt has ended __init__.
        if hasattr(self, "_exchange"):
            self._exchange.close()
