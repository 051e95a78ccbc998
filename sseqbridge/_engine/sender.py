"""Sends one request and its redirects with a leased client.

A RequestSender is made in the caller's thread, and belongs to the loop thread from then on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from sseqbridge._exceptions import CallbackError, ConnectError, ProtocolError, RedirectError, SSEError, UsageError
from sseqbridge._http import http2
from sseqbridge._http.cookies import CallCookies
from sseqbridge._http.errors import (
    CLIENT_CODE,
    FailedRequest,
    ReusedConnectionClosed,
    is_unsendable,
    translate,
)
from sseqbridge._http.redirects import (
    MAX_REDIRECTS,
    PERMANENT_STATUSES,
    REDIRECT_STATUSES,
    Place,
    Redirect,
    redirect,
    redirect_url,
    request_for_place,
)
from sseqbridge._http.request import build_request
from sseqbridge._http.transport import SAFE_METHODS
from sseqbridge._http.urls import describe, origin_key
from sseqbridge._runtime import loops
from sseqbridge._runtime.callbacks import CallersCode, original

from .client_lease import ClientLease

if TYPE_CHECKING:
    import httpx

    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.connection import HTTP11Connection
    from sseqbridge._http.direct_request import DirectRequest
    from sseqbridge._http.request import RequestOptions

__all__ = ["BEGINNING", "RequestSender", "Resumption", "SentRequest"]

logger = logging.getLogger("sseqbridge")

# Permanent redirects, as (status, URL).
Redirects = tuple[tuple[int, Any], ...]


class Resumption(NamedTuple):
    """A stream's position, for the connection after this one.

    `last_event_id` is "" if there is none, `retry` the reconnection time that the server asked for, in seconds.
    `redirects` are the permanent redirects so far, `cookies` the cookies that the responses so far have set. `place`
    says where the next request goes, before redirects; None: to the URL of the call.
    """

    last_event_id: str = ""
    retry: float | None = None
    redirects: Redirects = ()
    cookies: CallCookies | None = None
    place: Place | None = None


# For a stream without an earlier response.
BEGINNING = Resumption()


class SentRequest(NamedTuple):
    """A request that was sent, after redirects. `is_trusted`: it had the headers and auth of the caller.

    `headers` are without those that an auth or the transport has added.
    """

    method: str
    url: Any
    headers: list[tuple[bytes, bytes]]
    is_trusted: bool


class RequestSender(ClientLease):
    """Sends a request with a leased client, and owns the connection of its response.

    `redirects` are the permanent redirects so far, `cookies` those that the responses of the call have set.
    `is_unsendable` says that the HTTP client refused the request itself, `was_processed` that the server has answered
    a request with a body by a redirect to its result. `sent` is the latest request of a call that reconnects.
    """

    def __init__(self, clients: ClientPool, options: RequestOptions, resumption: Resumption) -> None:
        """Lease a client and build the request. Raises UsageError if `options` make no valid request."""
        # The origin of the URL as the caller wrote it, which may be relative to a client's base_url. Only a factory
        # makes different clients for different origins.
        super().__init__(clients, origin_key(options.url) if clients.has_factory else "")
        self.redirects = resumption.redirects
        # Of the responses of this call.
        self.cookies = resumption.cookies or CallCookies()
        self.is_unsendable = False
        self.was_processed = False
        self.sent: SentRequest | None = None
        self.place = resumption.place
        self._last_event_id = resumption.last_event_id
        # The response, or error, of the request that was sent on reused_connection().
        self._direct_result: Any = None
        try:
            self._begin(options, resumption)
        except BaseException:
            self.abandon()
            raise

    def _begin(self, options: RequestOptions, resumption: Resumption) -> None:
        """Begin with the request for the URL of the call."""
        self._options = options
        self._send_options = options.send
        self._is_trusted = True
        self._built: Any = None
        self._direct: DirectRequest | None = None
        if resumption is BEGINNING:
            self._direct = self._client.direct_request(options)
        if self._direct is None:
            self._client.check(self._request)

    @property
    def _request(self) -> Any:
        """The current request as an object of the client's package, built on demand."""
        if self._built is None:
            self._built = build_request(self._client, self._options, self._last_event_id)
            self.cookies.add_to(self._built)
        return self._built

    # Sending in the loop's callbacks.

    def reused_connection(self) -> tuple[HTTP11Connection, DirectRequest] | None:
        """Return an idle connection, and the request to send on it; None if send() has to send the request."""
        direct = self._direct
        connection = None if direct is None else self._client.reused_connection(direct)
        self.network_stream = connection
        return None if direct is None or connection is None else (connection, direct)

    def continue_with(self, result: httpx.Response | Exception, *, is_open: bool) -> None:
        """Take the response, or error, of the request that was sent on reused_connection().

        Before the stream is open, send() returns or raises it. A safe request whose reused connection was closed is
        sent again by it.
        """
        self.network_stream = None
        if not isinstance(result, Exception):
            result.request = self._request
            # At once: an abort may come before send() runs.
            self._received(result)
        if not is_open:
            self._direct_result = result

    async def _send_request(self) -> Any:
        result, self._direct_result = self._direct_result, None
        if result is None:
            return await self._client.send(self._request, **self._send_options)
        if isinstance(result, ReusedConnectionClosed) and self._request.method in SAFE_METHODS:
            return await self._client.resend(self._request)
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def is_direct(self) -> bool:
        """Whether the request goes through the library's own transport alone, and runs no code of the caller's."""
        return "auth" not in self._send_options and self._client.is_direct(self._request)

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        request = self._built or self._direct
        assert request is not None
        return describe(request.url)

    async def send(self) -> Any:
        """Send the request, follow redirects, and return the response once its head is in.

        Raises RedirectError, and the errors of _http/errors.py.
        """
        if self.place is not None:
            await self._change_request(request_for_place(self._request, self.place, self._client.package))
        for status, url in self.redirects:
            await self._follow(status, url)
        is_permanent = True
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send_once()
            status = response.status_code
            if status == 101 and "upgrade" not in response.request.headers:
                raise ProtocolError(f"{self.target}: the server switched protocols, and the request did not ask for it")
            if self._options.is_repeated or status in REDIRECT_STATUSES:
                # The responses of an auth flow come first.
                for each in (*response.history, response):
                    self.cookies.store(each)
            if status not in REDIRECT_STATUSES or self._options.follow_redirects is False:
                return response
            url = redirect_url(self._request, status, response.headers.get("location"))
            await self._follow(status, url)
            is_permanent = is_permanent and status in PERMANENT_STATUSES
            if is_permanent:
                self.redirects += ((status, url),)
        raise RedirectError(f"{self.target}: more than {MAX_REDIRECTS} redirects", status)

    async def _send_once(self) -> Any:
        request = self._request
        if self._options.reconnect is not None:
            # Before an auth adds to the headers.
            self.sent = SentRequest(request.method, request.url, list(request.headers.raw), self._is_trusted)
        try:
            with CallersCode(CLIENT_CODE, passes=Exception):
                response = await self._send_request()
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
                await http2.abort_before_response(exc, self._request)
            raise
        except Exception as exc:
            error = original(exc)
            self.is_unsendable = is_unsendable(error, self._client.package)
            raise self.translate(error, has_head=False) from error
        self._received(response)
        if logger.isEnabledFor(logging.DEBUG):
            line = self._request.method, self.target, response.status_code, response.http_version
            logger.debug("%s %s: %d, %s", *line)
        return response

    async def _follow(self, status: int, url: Any) -> None:
        """Replace the request by the one that follows a redirect, and close the redirect's own response."""
        change = redirect(self._request, status, url, self._options, self._client.package)
        if self._options.has_body and change.request.method != self._request.method:
            self.was_processed = True
        await self._change_request(change)

    async def _change_request(self, change: Redirect) -> None:
        request, is_trusted = change
        if not is_trusted:
            # For good: a redirect back to the first origin does not restore the auth.
            self._send_options = {"auth": None}
            self._is_trusted = False
        await self.close_response()
        self.cookies.add_to(request)
        origin = origin_key(request.url)
        is_cross_origin = origin != origin_key(self._request.url)
        self._built, self._response = request, None
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
                "sseqbridge-client", self._clients.lease, origin, discard=self._clients.release
            )
        self._clients.release(self._client)
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

    async def release(self, *, is_read_to_end: bool) -> None:
        """Close the request's body and return the client to its pool, after the response was closed."""
        content = self._options.build.get("content")
        if content is not None:
            await self.close_quietly(content, "the request's body")
        await super().release(is_read_to_end=is_read_to_end)
