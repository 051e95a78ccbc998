"""Errors of HTTP transports as errors of this package, classified by type and attribute, never by message text.

The transports: the library's own, httpx's and httpx2's (on httpcore, h11 and h2), and any that a caller's client
brings. Pure: it only looks at exceptions.
"""

from __future__ import annotations

import os
import socket
import ssl
import traceback
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NamedTuple

import httpx

from sseqbridge._checks import Timeout
from sseqbridge._exceptions import (
    CallbackError,
    ConnectError,
    ProtocolError,
    ReadError,
    SSEError,
    StreamTimeoutError,
    TransportError,
    TruncatedStreamError,
    members_of,
)

__all__ = [
    "CLIENT_CODE",
    "ConnectionClosed",
    "ConnectionFailedError",
    "FailedRequest",
    "InvalidResponseError",
    "ReusedConnectionClosed",
    "is_closed_by_peer",
    "is_unsendable",
    "translate",
]

# Where the caller's code may run between a request and the end of its response.
CLIENT_CODE = "the HTTP client, its transport, hooks or auth"

_HTTPCORE = frozenset({"httpcore", "httpcore2"})


class ConnectionFailedError(ConnectionError):
    """A connection failed for a reason that the error's own text gives, rather than its number."""


class InvalidResponseError(httpx.RemoteProtocolError):
    """The peer has sent what is not valid HTTP. The text is the library's own, and quotes nothing."""


class ConnectionClosed(httpx.RemoteProtocolError):
    """The peer closed the connection before the end of the response."""


class ReusedConnectionClosed(httpx.RemoteProtocolError):
    """The peer closed a connection that had served an earlier request, and sent no byte of a response.

    The peer may have processed the request nevertheless: no client can know.
    """


class FailedRequest(NamedTuple):
    """The request that an error of a transport belongs to.

    `package` is httpx or httpx2. `has_head` says that the response's head was received, `runs_callers_code` that
    code of the caller's may have raised the error.
    """

    package: Any
    target: str
    method: str
    timeout: Timeout
    has_head: bool
    runs_callers_code: bool


def translate(exc: BaseException, request: FailedRequest) -> SSEError:
    """Return the error of this package for an error of a transport."""
    package, target, timeout = request.package, request.target, request.timeout
    if isinstance(exc, SSEError):
        return exc
    if isinstance(exc, (package.ConnectTimeout, package.PoolTimeout)):
        return StreamTimeoutError("connect", timeout.connect, target)
    if isinstance(exc, package.ReadTimeout):
        return StreamTimeoutError("read", timeout.read, target)
    if isinstance(exc, package.WriteTimeout):
        return StreamTimeoutError("write", timeout.read, target)
    if isinstance(exc, package.ProxyError) and (status := _proxy_status(exc)) is not None:
        error = ConnectError(f"no connection to {target}: the proxy answered {_described(status)}")
        error.proxy_status = status
        return error
    if isinstance(exc, (package.ConnectError, package.ProxyError)):
        return ConnectError(f"no connection to {target}: {_reason(exc)}")
    if isinstance(exc, package.InvalidURL) or _package(exc) == "idna":
        # httpx looks at every Location, and its parser raises errors of idna for some hosts.
        return ProtocolError(f"{target}: a redirect without a usable Location")
    if isinstance(exc, package.RemoteProtocolError):
        return _translated_protocol_error(exc, request)
    if isinstance(exc, (package.NetworkError, OSError)):
        return ReadError(f"{target}: the connection broke: {_reason(exc)}")
    if request.runs_callers_code and not isinstance(exc, package.HTTPError):
        return CallbackError(f"{target}: {CLIENT_CODE} raised {type(exc).__name__}")
    return TransportError(f"{target}: the transport failed: {type(exc).__name__}")


def _described(status: int) -> str:
    """Return a status with its standard phrase, and not with the one that was sent."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _proxy_status(exc: BaseException) -> int | None:
    """Return the status with which a proxy has refused a CONNECT.

    httpcore has it in the text of its error only. The traceback leads to the proxy's response.
    """
    error = exc.__cause__
    if error is None or _package(error) not in _HTTPCORE:
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        status = getattr(frame.f_locals.get("connect_response"), "status", None)
        if isinstance(status, int):
            return status
    return None


def _translated_protocol_error(exc: BaseException, request: FailedRequest) -> SSEError:
    target = request.target
    # httpx parses Location even if it is not to follow it, and raises its own error "from None".
    if isinstance(exc.__context__, request.package.InvalidURL):
        return ProtocolError(f"{target}: a redirect without a usable Location")
    if not is_closed_by_peer(exc):
        # The text of another transport's error may quote the upstream.
        reason = f": {exc}" if isinstance(exc, InvalidResponseError) else ""
        return ProtocolError(f"{target}: the response is not valid HTTP{reason}")
    if request.has_head:
        return TruncatedStreamError(f"{target}: the connection was closed in mid-stream")
    if isinstance(exc, ReusedConnectionClosed):
        return ReadError(
            f"{target}: the connection, kept from an earlier request, was closed before a response came; "
            f"the server may have processed this {request.method}, which is not sent again"
        )
    return ReadError(f"{target}: the connection was closed before a response came")


def is_closed_by_peer(exc: BaseException) -> bool:
    """Whether a RemoteProtocolError means that the peer closed the connection or the HTTP/2 stream.

    Otherwise the peer has sent invalid HTTP. httpcore's RemoteProtocolError has a text as its argument if httpcore
    itself finds the end of the connection, an event of h2 for RST_STREAM and GOAWAY, and the error of h11 or h2 if
    that rejects the bytes.
    """
    if isinstance(exc, (ConnectionClosed, ReusedConnectionClosed)):
        return True
    core_error = exc.__cause__
    if core_error is None or _package(core_error) not in _HTTPCORE:
        return False
    # Its cause is lost in httpcore's pool, which raises errors "from None".
    parser_errors = [argument for argument in core_error.args if isinstance(argument, Exception)]
    return all(map(_saw_end_of_connection, parser_errors))


def _saw_end_of_connection(error: BaseException) -> bool:
    """Whether h11 raised `error` because the connection ended within a body.

    h11 raises one type for that and for invalid bytes, with equal attributes. Its Connection knows the difference:
    `trailing_data` says whether the end of the connection was received. The traceback leads to the Connection.
    """
    if _package(error) != "h11":
        return False
    import h11

    for frame, _ in traceback.walk_tb(error.__traceback__):
        connection = frame.f_locals.get("self")
        if isinstance(connection, h11.Connection):
            return connection.trailing_data[1]
    return False


def is_unsendable(exc: BaseException, package: Any) -> bool:
    """Whether the HTTP client refuses the request itself, or fails for a reason other than the network.

    Sending it again would fail in the same way. An error of h2 does not count: httpx raises the same type if the
    server breaks the rules of HTTP/2.
    """
    if isinstance(exc, package.LocalProtocolError):
        return all(_package(link) != "h2" for link in _chain(exc))
    # A programming error, such as an ImportError, or an unsupported scheme.
    is_fault_of_network = isinstance(exc, (package.HTTPError, package.InvalidURL, OSError))
    return isinstance(exc, package.UnsupportedProtocol) or not is_fault_of_network


def _package(exc: BaseException) -> str:
    return type(exc).__module__.partition(".")[0]


def _reason(exc: BaseException) -> str:
    """Return the operating system's message from a chain of causes, or the error's type."""
    reason = type(exc).__name__
    for link in _chain(exc):
        if isinstance(link, (ConnectionFailedError, socket.gaierror, ssl.SSLError)):
            # Their numbers are not the system's, or say less.
            reason = link.strerror or reason
        elif isinstance(link, OSError) and link.errno is not None:
            # Not its text, which asyncio replaces by the address.
            reason = os.strerror(link.errno)
        elif isinstance(link, UnicodeError):
            reason = "the host is not a valid name"
    return reason


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, outermost first."""
    link: BaseException | None = exc
    while link is not None:
        yield link
        # A name with several addresses makes a group: its first error is shown.
        link = link.__cause__ or link.__context__ or next(iter(members_of(link)), None)
