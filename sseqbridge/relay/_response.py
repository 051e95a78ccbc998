"""What the response of a relay says besides its events: status, headers, an upstream's refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sseqbridge._exceptions import StatusError, UsageError
from sseqbridge._streams import AsyncEventStream, EventStream

from ._reader import ReaderLeft
from ._sources import stream_of

__all__ = ["Refusal", "arefusal_of", "event_stream_headers", "is_refused", "refusal_headers", "refusal_of"]

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
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
}

_FIELD_VALUE = re.compile("[\t\x20-\x7e\x80-\xff]*")

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
    merged = dict(_HEADERS)
    names = {name.lower(): name for name in merged}
    for name, value in (headers or {}).items():
        if name.lower() in _REFUSED:
            raise UsageError(f"the header {name} is the web server's to set, not an application's")
        if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
            raise UsageError(f"the header {name} has a value that cannot be sent: it is one line of latin-1 text")
        merged.pop(names.get(name.lower(), ""), None)
        merged[name] = value
    return merged


def is_refused(stream: Any) -> bool:
    """Whether the upstream answered with another status than 200."""
    events = stream_of(stream)
    return events is not None and events.status != 200


def refusal_of(stream: Any, reader_left: ReaderLeft) -> Refusal:
    """Return an upstream's refusal, waiting for its body while the reader stays. Not in a coroutine."""
    events = stream_of(stream)
    if not isinstance(events, EventStream):
        raise UsageError("a synchronous server takes what request_sse returns, or an iterable")
    body = b""
    try:
        while not reader_left.is_set():
            if events._wait_for_body(reader_left.probe):
                events.raise_for_status()
                break
    except StatusError as error:
        body = error.body
    finally:
        events.close()
    return Refusal(events.status, _passed_on(events), body)


def refusal_headers(stream: Any) -> tuple[int, dict[str, str]]:
    """Return what is known of an upstream's refusal before its body is: status and headers."""
    events = stream_of(stream)
    assert events is not None
    return events.status, _passed_on(events)


async def arefusal_of(stream: Any) -> Refusal:
    """Return an upstream's refusal, waiting for its body, in a coroutine: of either kind of stream."""
    events = stream_of(stream)
    assert events is not None
    body = b""
    try:
        await events._araise_for_status()
    except StatusError as error:
        body = error.body
    finally:
        events._abort()
    return Refusal(events.status, _passed_on(events), body)


def _passed_on(events: EventStream[Any] | AsyncEventStream[Any]) -> dict[str, str]:
    # What is not ASCII some servers could not send.
    found = {name.title(): events.headers[name] for name in _PASSED_ON if name in events.headers}
    return {name: value for name, value in found.items() if value.isascii() and value.isprintable()}
