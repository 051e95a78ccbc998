"""The status and headers of a relay's response, and the response for an upstream's refusal.

Called once for each response, in the view's thread or in the coroutine that sends the response.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sseqbridge._exceptions import (
    BridgeClosedError,
    CallbackError,
    EventsLostError,
    LogError,
    LogFullError,
    LogUnavailableError,
    RequestAbortedError,
    SSEError,
    StatusError,
    StreamNotFoundError,
    StreamTimeoutError,
    UsageError,
)
from sseqbridge._http.bounded_bodies import MAX_BODY_BYTES
from sseqbridge._http.header_syntax import TOKEN, VALUE
from sseqbridge._runtime.callbacks import contained
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge._sse.parser import EventStreamParser

from ._disconnect import ClientDisconnected
from ._writer import client_message

if TYPE_CHECKING:
    from sseqbridge._streams.reader import ItemReader

    from ._options import RefusalOption

__all__ = [
    "EVENT_STREAM_HEADERS",
    "Refusal",
    "aread_refusal",
    "error_response",
    "event_stream_headers",
    "read_refusal",
    "refusal_head",
]

logger = logging.getLogger("sseqbridge")

# The headers of a relay's response, in each framework.
EVENT_STREAM_HEADERS: Mapping[str, str] = MappingProxyType({
    "Content-Type": "text/event-stream; charset=utf-8",
    # no-transform: a proxy that compresses would buffer events.
    "Cache-Control": "no-cache, no-transform",
    # Turns off nginx's buffering of the response.
    "X-Accel-Buffering": "no",
    # Middlewares that compress (Django's GZipMiddleware, Flask-Compress) would collect the whole stream first.
    # They skip a response that is encoded already.
    "Content-Encoding": "identity",
})

# Of a response in place of the stream, with or without a body.
_REFUSAL_HEADERS: Mapping[str, str] = MappingProxyType({
    # The same URL has a stream later: caches may keep a 204, 404 or 410 by themselves (RFC 9111, 4.2.2).
    "Cache-Control": "no-store",
    # A browser must not run the upstream's text as a page of this origin.
    "X-Content-Type-Options": "nosniff",
})

# Hop-by-hop headers, which WSGI forbids to applications (PEP 3333), and the length, which a stream does not have.
_SERVER_HEADERS = {
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
}

# Headers that describe the body.
_BODY_HEADERS = ("content-type", "content-encoding")

# The statuses of a refusal that the client can act on, and that reveal nothing about the application's own key.
_FORWARDED_STATUSES = (429, 503)

# The statuses of errors that no upstream has caused; an error of the first class that matches.
_OWN_STATUSES: Mapping[type[SSEError], int] = MappingProxyType({
    StreamNotFoundError: 404,
    EventsLostError: 410,
    LogUnavailableError: 503,
    LogFullError: 503,
    LogError: 500,
    BridgeClosedError: 503,
})

# The types of a body that no browser runs.
_PASSIVE_TYPES = frozenset({"application/json", "application/problem+json", "text/plain"})

_CHARSET = re.compile(r"(?:^|;)\s*charset\s*=\s*\"?([\w.:+-]+)", re.ASCII | re.IGNORECASE)

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Refusal(NamedTuple):
    """The response to the client if the upstream's status is not 200."""

    status: int
    headers: dict[str, str]
    body: bytes


def event_stream_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of an event stream, and the caller's.

    Raises UsageError for a header that cannot be set.
    """
    return _merged(EVENT_STREAM_HEADERS, headers)


def _merged(own: Mapping[str, str], headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return `own` and the caller's headers, which replace headers of the same name."""
    if headers is not None and not isinstance(headers, Mapping):
        raise UsageError(f"`headers` must be a mapping of names to values, got {type(headers).__name__}")
    merged = dict(own)
    names = {name.lower(): name for name in merged}
    for name, value in (headers or {}).items():
        if not isinstance(name, str):
            raise UsageError(f"`headers`: a name must be a str, got {type(name).__name__}")
        if not TOKEN.fullmatch(name):
            got = "one with another character" if name else "an empty one"
            raise UsageError(f"`headers`: a name must be letters, digits and !#$%&'*+-.^_`|~, got {got}")
        if name.lower() in _SERVER_HEADERS:
            raise UsageError(f"`headers` must not contain {name!r}, which the web server sets. Leave it out.")
        if not isinstance(value, str):
            raise UsageError(f"`headers`: the value of {name!r} must be a str, got {type(value).__name__}")
        if not VALUE.fullmatch(value):
            raise UsageError(
                f"`headers`: the value of {name!r} must be one line of latin-1 text without control characters, "
                "got other text"
            )
        merged.pop(names.get(name.lower(), ""), None)
        names[name.lower()] = name
        merged[name] = value
    return merged


def read_refusal(
    reader: ItemReader[Any],
    option: RefusalOption,
    headers: Mapping[str, str] | None,
    disconnected: ClientDisconnected,
) -> Refusal:
    """Return the response for an upstream's refusal; see RelayOptions. Not in a coroutine.

    Reads the upstream's body if the response needs it; the wait ends if the client disconnects.
    """
    try:
        error: StatusError | None = None
        if reads_body(reader, option):
            while error is None and not disconnected.is_set():
                error = reader.refusal(disconnected.probe)
        return refusal_of(error or reader.cursor.status_error(), option, headers)
    finally:
        reader.close()


async def aread_refusal(
    reader: ItemReader[Any], option: RefusalOption, headers: Mapping[str, str] | None
) -> Refusal:
    """Do the same in a coroutine."""
    try:
        error = await reader.arefusal() if reads_body(reader, option) else reader.cursor.status_error()
        return refusal_of(error, option, headers)
    finally:
        reader.abort()


def reads_body(reader: ItemReader[Any], option: RefusalOption) -> bool:
    """Whether the response for a refusal needs the upstream's body."""
    return option != "error" and reader.cursor.is_refused


def refusal_of(error: StatusError, option: RefusalOption, headers: Mapping[str, str] | None) -> Refusal:
    """Return the response for an upstream's refusal, with the caller's headers."""
    if error.status == 204:
        return Refusal(204, _refusal_headers(error, None, headers), b"")
    if option == "error":
        return _own_refusal(error, headers)
    if error.__cause__ is not None or len(error.body) >= MAX_BODY_BYTES:
        logger.warning("the body of an upstream's refusal was not received completely: %s", error)
    if option == "pass":
        content_type, body = _passive_body(error)
        return Refusal(_status(error.status), _refusal_headers(error, content_type, headers), body)
    # An exit of the function would end the server.
    with contained("the function `refusal`", passes=Exception):
        status, content = option(error)
    content_type, body = _encoded(content)
    return Refusal(_status(status), _refusal_headers(error, content_type, headers), body)


def refusal_head(
    reader: ItemReader[Any], option: Literal["error", "pass"], headers: Mapping[str, str] | None
) -> tuple[int, dict[str, str]]:
    """Return the status and headers of the response for a refusal before its body is read."""
    refusal = refusal_of(reader.cursor.status_error(), option, headers)
    return refusal.status, refusal.headers


def error_response(error: SSEError) -> Refusal | None:
    """Return the response to an error before the stream, and log it; None if the application's own code caused it."""
    if isinstance(error, CallbackError):
        return None
    if not isinstance(error, RequestAbortedError):
        logger.warning("a stream could not be opened: %s: %s", type(error).__name__, error)
    if isinstance(error, StatusError):
        return _own_refusal(error, None)
    headers = {**_REFUSAL_HEADERS, "Content-Type": "application/json"}
    status = next((status for kind, status in _OWN_STATUSES.items() if isinstance(error, kind)), None)
    if status is not None:
        # The upstream has no part in it.
        kind = type(error).__name__
        return Refusal(status, headers, _encoded({"error": {"type": kind, "message": client_message(error)}})[1])
    is_late = isinstance(error, StreamTimeoutError)
    message = "the upstream took too long" if is_late else "the upstream could not be read"
    _, body = _encoded({"error": {"type": "upstream_error", "message": message}})
    return Refusal(504 if is_late else 502, headers, body)


def _own_refusal(error: StatusError, headers: Mapping[str, str] | None) -> Refusal:
    status = error.status if error.status in _FORWARDED_STATUSES else 502
    phrase = _PHRASES.get(error.status, "")
    message = f"the upstream refused the request: {error.status} {phrase}".rstrip()
    content = {"error": {"type": "upstream_error", "status": error.status, "message": message}}
    content_type, body = _encoded(content)
    return Refusal(status, _refusal_headers(error, content_type, headers), body)


def _status(status: object) -> int:
    """Return a status that a relay can send with a body: 502 for all others."""
    is_valid = isinstance(status, int) and 200 <= status <= 599 and status not in (204, 205, 304)
    return int(status) if is_valid else 502  # type: ignore[call-overload]


def _passive_body(error: StatusError) -> tuple[str, bytes]:
    """Return the type and body of a response, as a type that no browser runs."""
    content_type, _, parameters = error.headers.get("content-type", "").partition(";")
    content_type = content_type.strip().lower()
    if content_type == "text/event-stream":
        return "application/json", _event_data(error.body)
    found = _CHARSET.search(parameters)
    charset = found[1] if found else ""
    if content_type not in _PASSIVE_TYPES:
        content_type, charset = "text/plain", charset or "utf-8"
    elif content_type != "text/plain" and charset.lower() == "utf-8":
        # JSON's own.
        charset = ""
    return f"{content_type}; charset={charset}" if charset else content_type, error.body


def _event_data(body: bytes) -> bytes:
    """Return the data of the first event of a refusal that is framed as an event stream, as JSON."""
    events = EventStreamParser().feed(body + b"\n\n")
    text = next((event.data for event in events if isinstance(event, ServerSentEvent)), "")
    try:
        json.loads(text)
    except ValueError:
        text = json.dumps({"error": {"message": text}})
    return text.encode("utf-8", "replace")


def _encoded(content: object) -> tuple[str, bytes]:
    if isinstance(content, (dict, list)):
        return "application/json", json.dumps(content, separators=(",", ":")).encode()
    if isinstance(content, str):
        return "text/plain; charset=utf-8", content.encode("utf-8", "replace")
    raise UsageError(
        f"`refusal` must return a status, and a body that is a dict, list or str, got {type(content).__name__}"
    )


def _refusal_headers(
    error: StatusError, content_type: str | None, headers: Mapping[str, str] | None
) -> dict[str, str]:
    own = dict(_REFUSAL_HEADERS)
    if content_type is not None:
        own["Content-Type"] = content_type
    retry_after = error.headers.get("retry-after", "")
    # Some servers cannot send a value that is not ASCII.
    if retry_after and retry_after.isascii() and retry_after.isprintable():
        own["Retry-After"] = retry_after
    # The caller's description of the body is that of an event stream.
    added = {name: value for name, value in (headers or {}).items() if name.lower() not in _BODY_HEADERS}
    return _merged(own, added)
