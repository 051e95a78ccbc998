"""The status and headers of a relay's response, and the upstream's refusal as a response.

Called once for each response, in the view's thread or in the coroutine that sends the response.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sseqbridge._exceptions import StatusError, UsageError
from sseqbridge._http.bounded_bodies import MAX_BODY_BYTES
from sseqbridge._http.header_syntax import TOKEN, VALUE

from ._disconnect import ClientDisconnected

if TYPE_CHECKING:
    from sseqbridge._streams.reader import ItemReader

__all__ = ["Refusal", "aread_refusal", "event_stream_headers", "read_refusal", "refusal_head"]

logger = logging.getLogger("sseqbridge")

_EVENT_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # no-transform: a proxy that compresses would buffer events.
    "Cache-Control": "no-cache, no-transform",
    # Turns off nginx's buffering of the response.
    "X-Accel-Buffering": "no",
    # Middlewares that compress (Django's GZipMiddleware, Flask-Compress) would collect the whole stream first.
    # They skip a response that is encoded already.
    "Content-Encoding": "identity",
}

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

# The headers of an upstream's refusal that are forwarded.
_FORWARDED = ("content-type", "retry-after")


class Refusal(NamedTuple):
    """An upstream's answer whose status is not 200, as the client gets it."""

    status: int
    headers: dict[str, str]
    body: bytes


def event_stream_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of an event stream, and the caller's.

    Raises UsageError for a header that cannot be set.
    """
    return _merged(_EVENT_STREAM_HEADERS, headers)


def _merged(own: Mapping[str, str], headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return `own` and the caller's headers, which replace headers of the same name."""
    if headers is not None and not isinstance(headers, Mapping):
        raise UsageError(f"`headers` must be a mapping of names to values, got {type(headers).__name__}")
    merged = dict(own)
    names = {name.lower(): name for name in merged}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            raise UsageError(
                "`headers` must have valid names (letters, digits and !#$%&'*+-.^_`|~), got another character, "
                "no character, or a name that is not a str"
            )
        if name.lower() in _SERVER_HEADERS:
            raise UsageError(f"`headers` must not contain {name!r}, which the web server sets. Leave it out.")
        if not isinstance(value, str) or not VALUE.fullmatch(value):
            raise UsageError(
                f"`headers`: the value of {name!r} must be one line of latin-1 text without control characters"
            )
        merged.pop(names.get(name.lower(), ""), None)
        names[name.lower()] = name
        merged[name] = value
    return merged


def read_refusal(
    reader: ItemReader[Any], headers: Mapping[str, str] | None, disconnected: ClientDisconnected
) -> Refusal:
    """Return an upstream's refusal; the wait for its body ends if the client disconnects. Not in a coroutine."""
    body = b""
    try:
        while not disconnected.is_set():
            error = reader.refusal(disconnected.probe)
            if error is not None:
                body = _body_of(error) if reader.cursor.is_refused else b""
                break
    finally:
        reader.close()
    return Refusal(*refusal_head(reader, headers), body)


async def aread_refusal(reader: ItemReader[Any], headers: Mapping[str, str] | None) -> Refusal:
    """Return an upstream's refusal, in a coroutine."""
    try:
        body = _body_of(await reader.arefusal()) if reader.cursor.is_refused else b""
    finally:
        reader.abort()
    return Refusal(*refusal_head(reader, headers), body)


def _body_of(error: StatusError) -> bytes:
    if error.__cause__ is not None or len(error.body) >= MAX_BODY_BYTES:
        logger.warning("the body of an upstream's refusal was forwarded incompletely: %s", error)
    return error.body


def refusal_head(reader: ItemReader[Any], headers: Mapping[str, str] | None) -> tuple[int, dict[str, str]]:
    """Return the status of an upstream's refusal, and its headers with the caller's."""
    head = reader.cursor.head
    # Without a type, frameworks would call the body HTML. A 204 has no body.
    own = {} if head.status == 204 else {"Content-Type": "application/octet-stream"}
    for name in _FORWARDED:
        value = head.headers.get(name, "")
        # Some servers cannot send a value that is not ASCII.
        if value and value.isascii() and value.isprintable():
            own[name.title()] = value
    # The caller's description of the body is that of an event stream.
    added = {name: value for name, value in (headers or {}).items() if name.lower() not in _BODY_HEADERS}
    # Some servers cannot send a status that HTTP does not define.
    return head.status if head.status < 600 else 502, _merged(own, added)
