"""Sends one request and its redirects: the client lease, the answer under way, and its connection.

A RequestSender is made in the caller's thread, and belongs to the loop thread from then on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sseqbridge._exceptions import CallbackError, ConnectError, ProtocolError, RedirectError, SSEError, UsageError
from sseqbridge._http import http2
from sseqbridge._http.connection import BODY_EXTENSION
from sseqbridge._http.connection_auth import authenticates_connection
from sseqbridge._http.cookies import CallCookies
from sseqbridge._http.errors import CLIENT_CODE, FailedRequest, is_unsendable, translate
from sseqbridge._http.redirects import MAX_REDIRECTS, PERMANENT_STATUSES, REDIRECT_STATUSES, redirect, redirect_url
from sseqbridge._http.request import build_request
from sseqbridge._http.urls import describe, origin_key
from sseqbridge._runtime import fork, loops, sockets
from sseqbridge._runtime.callbacks import CallersCode, original

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.request import RequestOptions

__all__ = ["RequestSender", "Resumption"]

logger = logging.getLogger("sseqbridge")

# Permanent redirects, as (status, URL).
Redirects = tuple[tuple[int, Any], ...]


class Resumption(NamedTuple):
    """A stream's position, for the connection after this one.

    `last_event_id` is "" if there is none, `retry` the reconnection time that the server asked for, in seconds.
    `redirects` are the permanent ones so far, `cookies` those that the answers so far have set.
    """

    last_event_id: str = ""
    retry: float | None = None
    redirects: Redirects = ()
    cookies: CallCookies | None = None


class RequestSender:
    """Sends a request with a leased client, and owns the connection of its answer.

    `redirects` are the permanent redirects so far, `cookies` those that the answers of the call have set.
    `network_stream` is the connection of the answer, until the answer is closed. `is_unsendable` says that the HTTP
    client refused the request itself.
    """

    def __init__(self, clients: ClientPool, options: RequestOptions, resumption: Resumption) -> None:
        """Lease a client and build the request. Raises UsageError if `options` make no valid request."""
        self.redirects = resumption.redirects
        # Of the answers of this call.
        self.cookies = resumption.cookies or CallCookies()
        self.network_stream: Any = None
        self.is_unsendable = False
        self._clients = clients
        self._options = options
        # Of the URL as the caller wrote it, which may be relative to a client's base_url.
        self._origin = origin_key(options.url)
        self._client = clients.lease(self._origin)
        try:
            self._request = build_request(self._client, options, resumption.last_event_id)
        except UsageError:
            clients.put_back(self._client)
            raise
        self.cookies.add_to(self._request)
        try:
            self._client.check(self._request)
        except UsageError:
            clients.put_back(self._client)
            raise
        self._send_options = options.send
        self._response: Any = None
        # Whether this object is registered for the detaching of its connection in forked children.
        self._is_detachable = False

    @property
    def is_direct(self) -> bool:
        """Whether the request goes through the library's own transport alone, and runs no code of the caller's."""
        return "auth" not in self._send_options and self._client.is_direct(self._request)

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        return describe(self._request.url)

    async def send(self) -> Any:
        """Send the request, follow redirects, and return the response once its head is in.

        Raises RedirectError, and the errors of _http/errors.py.
        """
        for status, url in self.redirects:
            await self._follow(status, url)
        is_permanent = True
        for _ in range(MAX_REDIRECTS + 1):
            response = self._response = await self._send_once()
            status = response.status_code
            if status == 101 and "upgrade" not in response.request.headers:
                raise ProtocolError(f"{self.target}: the server switched protocols, and the request did not ask for it")
            if self._options.reconnect is not None or status in REDIRECT_STATUSES:
                # Those of an auth flow first.
                for answer in (*response.history, response):
                    self.cookies.store(answer)
            if status not in REDIRECT_STATUSES or self._options.follow_redirects is False:
                return response
            url = redirect_url(self._request, status, response.headers.get("location"))
            await self._follow(status, url)
            is_permanent = is_permanent and status in PERMANENT_STATUSES
            if is_permanent:
                self.redirects += ((status, url),)
        raise RedirectError(f"{self.target}: more than {MAX_REDIRECTS} redirects", status)

    async def _send_once(self) -> Any:
        try:
            with CallersCode(CLIENT_CODE, passes=Exception):
                response = await self._client.send(self._request, **self._send_options)
        except CallbackError as exc:
            # httpcore raises an error of the request's body once more, "from None".
            exc.__cause__ = exc.__cause__ or original(exc.__context__ or exc)
            raise
        except (SSEError, UsageError) as exc:
            # The transport itself raises ConnectError only for settings of the environment.
            self.is_unsendable = isinstance(exc, ConnectError)
            raise
        except asyncio.CancelledError as exc:
            if self._client.shared:
                await http2.abort_unanswered(exc, self._request)
            raise
        except Exception as exc:
            error = original(exc)
            self.is_unsendable = is_unsendable(error, self._client.package)
            raise self.translate(error, has_head=False) from error
        self._clients.learn(self._origin, response.http_version)
        self.network_stream = response.extensions.get("network_stream")
        # Connections of the library's own transport register themselves.
        self._is_detachable = self.network_stream is not None and BODY_EXTENSION not in response.extensions
        if self._is_detachable:
            fork.detach_in_children(self)
            self._call_stream(sockets.keep_connection_alive)
        if logger.isEnabledFor(logging.DEBUG):
            line = self._request.method, self.target, response.status_code, response.http_version
            logger.debug("%s %s: %d, %s", *line)
        return response

    async def _follow(self, status: int, url: Any) -> None:
        """Replace the request by the one that follows a redirect, and close the redirect's own answer."""
        request, is_trusted = redirect(self._request, status, url, self._options, self._client.package)
        if not is_trusted:
            # For good: a redirect back to the first origin does not restore the auth.
            self._send_options = {"auth": None}
        await self.close_response()
        self.cookies.add_to(request)
        origin = origin_key(request.url)
        is_cross_origin = origin != origin_key(self._request.url)
        self._request, self._response = request, None
        if is_cross_origin and self._clients.has_factory:
            await self._change_client(origin)
        try:
            self._client.check(request)
        except UsageError as exc:
            self.is_unsendable = True
            raise ConnectError(f"no connection to {self.target}: {exc}") from exc

    async def _change_client(self, origin: str) -> None:
        # The new origin may speak another version of HTTP. A factory of the caller's may block, so not on the loop.
        # The lease comes first: if it fails, there is still exactly one client to return.
        with CallersCode("the bridge's client function", passes=Exception):
            client = await loops.run_in_daemon_thread(
                "sseqbridge-client", self._clients.lease, origin, discard=self._clients.put_back
            )
        self._clients.put_back(self._client)
        self._client, self._origin = client, origin

    def translate(self, exc: BaseException, *, has_head: bool) -> SSEError:
        """Return the error of this package for an error of the transport, or of code of the caller's."""
        options = self._options
        runs_callers_code = (
            self._clients.has_callers_code
            or "auth" in self._send_options
            or options.build["files"] is not None
            or bool(options.build["extensions"])
        )
        failed = FailedRequest(
            package=self._client.package,
            target=self.target,
            method=self._request.method,
            timeout=options.timeout,
            has_head=has_head,
            runs_callers_code=runs_callers_code,
        )
        return translate(exc, failed)

    def shut_down(self) -> None:
        """Shut the connection down at once, whatever its reader waits for.

        Does nothing before the answer's head: httpx closes a connection that it is setting up. Nor does it shut down
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
        """Return the connection to its pool if the answer was read to its end, else close it."""
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
        content = self._options.build.get("content")
        if content is not None:
            await self.close_quietly(content, "the request's body")
        if is_read_to_end or (self._response is not None and not self._is_http2()):
            await self._clients.give_back(self._client, self._origin)
        else:
            # Closing the response leaves an HTTP/2 connection open, and so does a request without an answer.
            await self._clients.discard(self._client)

    def abandon(self) -> None:
        """Return the client, if the request was never sent."""
        self._clients.put_back(self._client)

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
