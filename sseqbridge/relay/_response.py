"""What the response of a relay says besides its events: status, headers, an upstream's refusal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from sseqbridge._exceptions import StatusError, UsageError
from sseqbridge._http.bounded_bodies import MAX_BODY_BYTES
from sseqbridge._http.header_syntax import TOKEN, VALUE
from sseqbridge._streams.stream import reader_of
from sseqbridge._streams.sync import EventStream

from ._disconnect import ReaderLeft
from ._source import stream_of

__all__ = ["Refusal", "arefusal_of", "event_stream_headers", "is_refused", "refusal_head", "refusal_of"]

logger = logging.getLogger("sseqbridge")

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # no-transform: proxies that compress would hold events back.
    "Cache-Control": "no-cache, no-transform",
    # nginx collects a response before it sends it, but for this.
    "X-Accel-Buffering": "no",
    # Middlewares that compress (Django's GZipMiddleware, Flask-Compress) would collect the whole
    # stream first. They leave alone what says that it is encoded.
    "Content-Encoding": "identity",
}

# Those of one connection, which WSGI forbids to applications, and a length that no stream has.
_REFUSED = {
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

_OF_A_BODY = ("content-type", "content-encoding")

# What of an upstream's refusal goes on besides its body.
_PASSED_ON = ("content-type", "retry-after")


class Refusal(NamedTuple):
    """An upstream's answer with another status than 200, as it goes on to the reader."""

    status: int
    headers: dict[str, str]
    body: bytes


def event_stream_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of an event stream, with the caller's.

    Raises UsageError for one that cannot be set.
    """
    return _merged(_HEADERS, headers)


def _merged(own: Mapping[str, str], headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return headers with the caller's, which go before others of the same name."""
    if headers is not None and not isinstance(headers, Mapping):
        raise UsageError(f"headers is a {type(headers).__name__}; it is a mapping of names and values")
    merged = dict(own)
    names = {name.lower(): name for name in merged}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            raise UsageError("headers: a name is no header's name, which has letters, digits and some signs")
        if name.lower() in _REFUSED:
            raise UsageError(f"the header {name} is the web server's to set, not an application's")
        if not isinstance(value, str) or not VALUE.fullmatch(value):
            raise UsageError(f"the header {name} has a value that cannot be sent: it is one line of latin-1 text")
        merged.pop(names.get(name.lower(), ""), None)
        names[name.lower()] = name
        merged[name] = value
    return merged


def is_refused(stream: Any) -> bool:
    """Whether the upstream answered with another status than 200."""
    events = stream_of(stream)
    return events is not None and events.status != 200


def refusal_of(stream: Any, headers: Mapping[str, str] | None, reader_left: ReaderLeft) -> Refusal:
    """Return an upstream's refusal, with the caller's headers, waiting for its body while the reader stays.

    Not in a coroutine.
    """
    events = stream_of(stream)
    if not isinstance(events, EventStream):
        raise UsageError("a synchronous server takes what request_sse returns, or an iterable")
    reader = reader_of(events)
    body = b""
    try:
        while not reader_left.is_set():
            error = reader.refusal(reader_left.probe)
            if error is not None:
                body = _body_of(error) if reader.cursor.is_refused else b""
                break
    finally:
        reader.close()
    return Refusal(*refusal_head(stream, headers), body)


async def arefusal_of(stream: Any, headers: Mapping[str, str] | None) -> Refusal:
    """Return the same in a coroutine, of either kind of stream."""
    events = stream_of(stream)
    assert events is not None
    reader = reader_of(events)
    try:
        body = _body_of(await reader.arefusal()) if reader.cursor.is_refused else b""
    finally:
        reader.abort()
    return Refusal(*refusal_head(stream, headers), body)


def _body_of(error: StatusError) -> bytes:
    if error.__cause__ is not None or len(error.body) >= MAX_BODY_BYTES:
        logger.warning("what goes on of the body of a refusal is not all of it: %s", error)
    return error.body


def refusal_head(stream: Any, headers: Mapping[str, str] | None) -> tuple[int, dict[str, str]]:
    """Return what is known of an upstream's refusal before its body is: status, and headers with the caller's."""
    events = stream_of(stream)
    assert events is not None
    # What is not ASCII some servers could not send. Without a type frameworks would say that it is HTML.
    own = {} if events.status == 204 else {"Content-Type": "application/octet-stream"}
    for name in _PASSED_ON:
        value = events.headers.get(name, "")
        if value and value.isascii() and value.isprintable():
            own[name.title()] = value
    # Those of the caller's that say what an event stream's body is do not say it of this one.
    added = {name: value for name, value in (headers or {}).items() if name.lower() not in _OF_A_BODY}
    # Statuses that HTTP does not have some servers cannot send.
    return events.status if events.status < 600 else 502, _merged(own, added)
