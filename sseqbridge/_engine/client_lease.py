"""A leased HTTP client, the response that it has under way, and that response's connection.

Made in the caller's thread, used on the loop thread from then on. Subclasses send requests with the client.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import SSEError
from sseqbridge._http import http2
from sseqbridge._http.connection import BODY_EXTENSION
from sseqbridge._http.connection_auth import authenticates_connection
from sseqbridge._http.errors import CLIENT_CODE
from sseqbridge._runtime import fork, sockets
from sseqbridge._runtime.callbacks import CallersCode

if TYPE_CHECKING:
    from sseqbridge._http.client import Client, ClientPool

__all__ = ["ClientLease"]

logger = logging.getLogger("sseqbridge")


class ClientLease:
    """A client of a pool, and its current response.

    `network_stream` is the connection of the response, until the response is closed.
    """

    def __init__(self, clients: ClientPool, origin: str) -> None:
        """Lease a client for `origin`."""
        self.network_stream: Any = None
        self._clients = clients
        self._origin = origin
        self._client: Client = clients.lease(origin)
        self._response: Any = None
        # Whether this object is registered for the detaching of its connection in forked children.
        self._is_detachable = False

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        raise NotImplementedError

    def _received(self, response: Any) -> None:
        """Take a response whose head has arrived."""
        self._response = response
        self._clients.record_http_version(self._origin, response.http_version)
        self.network_stream = response.extensions.get("network_stream")
        # Connections of the library's own transport register themselves.
        self._is_detachable = self.network_stream is not None and BODY_EXTENSION not in response.extensions
        if self._is_detachable:
            fork.detach_in_children(self)
            self._call_stream(sockets.keep_connection_alive)

    def shut_down(self) -> None:
        """Shut the connection down at once, whatever its reader waits for.

        Does nothing before the response's head: httpx closes a connection that it is setting up. Nor does it shut down
        an HTTP/2 connection that other streams share.
        """
        if self.network_stream is None or (self._is_http2() and self._client.shared):
            return
        self._call_stream(sockets.shut_down_connection)

    def _call_stream(self, function: Callable[[Any], None]) -> None:
        """Call a function of the network stream. A failure is only logged."""
        try:
            # The stream of a caller's transport is code of the caller's.
            with CallersCode(CLIENT_CODE):
                function(self.network_stream)
        except SSEError as exc:
            logger.debug("%s: %s failed", self.target, function.__name__, exc_info=exc)

    def detach_after_fork(self) -> None:
        """In a forked child, leave the connection to the parent."""
        sockets.detach_connection_after_fork(self.network_stream)

    async def close_response(self, *, is_read_to_end: bool = False) -> None:
        """Return the connection to its pool if the response was read to its end, else close it."""
        response = self._response
        if response is not None and self._is_http2():
            if self._client.shared and not is_read_to_end:
                await self._reset_stream(response)
        elif self._is_detachable and response is not None and _ends_connection(response):
            self._call_stream(sockets.shut_down_connection)
        # From here on the connection may serve another request, and must not be shut down.
        self.network_stream = None
        if self._is_detachable:
            self._is_detachable = False
            fork.stop_detaching(self)
        if self._response is not None:
            await self.close_quietly(self._response, "the response")

    async def _reset_stream(self, response: Any) -> None:
        try:
            # The response of a caller's transport is code of the caller's.
            with CallersCode(CLIENT_CODE):
                is_reset = await http2.reset_stream(response)
        except SSEError as exc:
            logger.debug("%s: resetting the HTTP/2 stream failed", self.target, exc_info=exc)
            is_reset = False
        if not is_reset:
            logger.warning("%s: the client's transport offers no way to close one HTTP/2 stream", self.target)

    async def release(self, *, is_read_to_end: bool) -> None:
        """Return the client to its pool, after the response was closed."""
        if is_read_to_end or (self._response is not None and not self._is_http2()):
            await self._clients.release_or_close(self._client, self._origin)
        else:
            # Closing the response leaves an HTTP/2 connection open, and so does a request without a response.
            await self._clients.discard(self._client)

    def abandon(self) -> None:
        """Return the client, if the request was never sent."""
        self._clients.release(self._client)

    async def close_quietly(self, closable: Any, name: str) -> None:
        """Close an object, if it has aclose(). A failure is only logged, since the stream is over."""
        close = getattr(closable, "aclose", None)
        if close is None:
            return
        try:
            with CallersCode(f"closing {name}", passes=Exception):
                await close()
        except Exception as exc:
            logger.debug("%s: closing %s failed: %s", self.target, name, type(exc).__name__)

    def _is_http2(self) -> bool:
        return bool(self._response.http_version == "HTTP/2")


def _ends_connection(response: Any) -> bool:
    """Whether no other request may use the connection of an HTTP/1.1 response, although its pool would keep it.

    The connection has the identity of this call, or an intermediary may have found another end of the body (RFC 9112,
    section 6.3).
    """
    headers = response.headers
    has_both = "content-length" in headers and "transfer-encoding" in headers
    return has_both or authenticates_connection(response.request.headers.raw)
