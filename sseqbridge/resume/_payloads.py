"""Errors and error responses as JSON values in entries, and the checks of every value that is read back.

Plain functions of their arguments. The readers of single values raise TypeError, ValueError or KeyError
for a wrong value; `Entry` turns these into a LogError.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any, TypeVar

from sseqbridge import _exceptions
from sseqbridge._checks import is_number
from sseqbridge._engine.responses import Body, Head, made_head
from sseqbridge._exceptions import (
    BufferLimitError,
    EventError,
    ReconnectionError,
    RedirectError,
    ResponseError,
    SSEError,
    StreamTimeoutError,
    UpstreamError,
)
from sseqbridge._http.header_syntax import FORBIDDEN_IN_FETCH_VALUE, TOKEN
from sseqbridge._sse.events import ServerSentEvent

__all__ = ["dump_error", "dump_refusal", "load_error", "load_refusal", "one_of", "seconds"]

S = TypeVar("S", bound=str)

# The headers of an error response that relays forward.
_KEPT_HEADERS = ("content-type", "retry-after")
# Above every number that this library writes.
_NUMBER_LIMIT = 2**53


def dump_error(error: BaseException) -> dict[str, Any]:
    """Return the JSON form of an error: without its traceback and its cause."""
    fields: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    for name in (*_arguments_of(type(error)), *_KEYWORDS.get(type(error), ())):
        if name == "headers":
            fields[name] = _kept(error.headers)  # type: ignore[attr-defined]
        elif name == "body":
            fields[name] = base64.b64encode(error.body).decode()  # type: ignore[attr-defined]
        elif name == "event":
            event = error.event  # type: ignore[attr-defined]
            fields[name] = None if event is None else astuple(event)
        elif name != "message":
            fields[name] = getattr(error, name)
    return fields


def load_error(fields: Any) -> SSEError:
    """Return the error, as an SSEError if its type is none of this library's."""
    name, message = _text(fields["type"]), _text(fields["message"])
    kind = getattr(_exceptions, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SSEError)):
        return SSEError(f"the producer failed with {name}: {message}")
    keywords = {attribute: _text(fields[attribute]) for attribute in _KEYWORDS.get(kind, ()) if attribute in fields}
    error = kind(*(_LOADERS[attribute](fields[attribute]) for attribute in _arguments_of(kind)), **keywords)
    if isinstance(error, EventError) and error.event is None and not isinstance(error, UpstreamError):
        raise TypeError("must have an event")
    # Some errors make their text from their attributes: a wrong attribute must fail here.
    _text(str(error))
    return error


def dump_refusal(head: Head, body: Body) -> dict[str, Any]:
    """Return the JSON form of an error response."""
    fields: dict[str, Any] = {
        "status": head.status,
        "headers": _kept(head.headers),
        "body": base64.b64encode(body.content).decode(),
    }
    if body.error is not None:
        fields["error"] = dump_error(body.error)
    return fields


def load_refusal(fields: Any) -> tuple[Head, Body] | SSEError:
    """Return the error response, or the error in place of a response."""
    error = load_error(fields["error"]) if "error" in fields else None
    if error is not None and "status" not in fields:
        return error
    return made_head(_status(fields["status"]), _mapping(fields["headers"])), Body(_bytes(fields["body"]), error)


def _arguments_of(kind: type) -> tuple[str, ...]:
    """Return the attributes that an error's constructor takes, in order."""
    return next((names for base, names in _ARGUMENTS.items() if issubclass(kind, base)), ("message",))


def _kept(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in _KEPT_HEADERS if name in headers}


# Readers of single values.


def one_of(value: Any, values: tuple[S, ...]) -> S:
    """Return the one of `values` that equals `value`. Raises ValueError if there is none."""
    if value not in values:
        raise ValueError(f"must be one of {values}")
    return values[values.index(value)]


def seconds(value: Any) -> float | None:
    """Return a number of seconds, or None. Raises TypeError or ValueError for any other value."""
    if value is None:
        return None
    if not is_number(value):
        raise TypeError(f"must be a number, got {type(value).__name__}")
    if not 0 <= value < _NUMBER_LIMIT:
        raise ValueError("must be a finite number of seconds")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a str, got {type(value).__name__}")
    # JSON can carry lone surrogates, which UTF-8 cannot.
    value.encode()
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"must be an int, got {type(value).__name__}")
    if not 0 <= value < _NUMBER_LIMIT:
        raise ValueError("must not be negative or huge")
    return value


def _status(value: Any) -> int:
    status = _count(value)
    if not 100 <= status <= 999 or status == 200:
        raise ValueError("must be an HTTP status other than 200")
    return status


def _mapping(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"must be an object, got {type(value).__name__}")
    for name, text in value.items():
        if not TOKEN.fullmatch(name) or FORBIDDEN_IN_FETCH_VALUE.search(_text(text)):
            raise ValueError("must be headers")
    return dict(value)


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_text(value), validate=True)


def _headers(value: Any) -> Any:
    return made_head(0, _mapping(value)).headers


def _event(value: Any) -> ServerSentEvent | None:
    if value is None:
        # An error that came in place of events.
        return None
    event, data, event_id, retry = value
    return ServerSentEvent(_text(event), _text(data), _text(event_id), seconds(retry))


def _any(value: Any) -> Any:
    return value


_LOADERS: dict[str, Callable[[Any], Any]] = {
    "message": _text,
    "which": _text,
    "seconds": seconds,
    "limit": _count,
    "attempts": _count,
    "status": _count,
    "headers": _headers,
    "body": _bytes,
    "event": _event,
    "payload": _any,
}
# Subclasses come before their base classes.
_ARGUMENTS: dict[type, tuple[str, ...]] = {
    StreamTimeoutError: ("which", "seconds"),
    BufferLimitError: ("limit",),
    ReconnectionError: ("message", "attempts"),
    RedirectError: ("message", "status"),
    ResponseError: ("message", "status", "headers", "body"),
    UpstreamError: ("message", "event", "payload"),
    EventError: ("message", "event"),
}
# Further arguments, which are texts. Earlier entries do not have them.
_KEYWORDS: dict[type, tuple[str, ...]] = {StreamTimeoutError: ("unit",)}
