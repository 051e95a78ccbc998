"""What a log holds: entries, each at a position, and how errors are told in one.

An entry's position is `(fence, number)`: the fencing token of who wrote it, and how many it has
written before. So positions rise, none is left out, and a reader who finds a number left out knows
that something is lost. As text, `fence-number`, it is the id of the event, in Redis and in a browser.

Anybody who may write the store may have written an entry, a newer version of this library too. So
every function that reads one checks all it takes from it, and raises a LogError that names the entry.

Rule: plain values. Nothing here knows a store, a loop or a thread.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple, TypeVar

from sseqbridge import _exceptions
from sseqbridge._engine.responses import Body, Head, made_head
from sseqbridge._exceptions import (
    BufferLimitError,
    EventError,
    LogError,
    ReconnectionError,
    RedirectError,
    ResponseError,
    SSEError,
    StreamTimeoutError,
    UpstreamError,
)
from sseqbridge._sse.events import ServerSentEvent

__all__ = [
    "BEGIN",
    "CANCEL",
    "END",
    "ERROR",
    "REFUSED",
    "START",
    "UNREADABLE",
    "Entry",
    "Position",
    "before",
    "end_fields",
    "error_fields",
    "event_fields",
    "failure_fields",
    "is_next",
    "position_of",
    "refusal_fields",
]

# What entries are besides events, each a field of its own.
BEGIN, END, ERROR, CANCEL, REFUSED = "begin", "end", "error", "cancel", "refused"
# The kind of an entry that the store could not decode, and of an event that cannot be read.
UNREADABLE = "unreadable"
# The kind of an entry that has none of the fields above.
UNKNOWN = "unknown"
# After which nothing comes.
ENDS = frozenset({END, ERROR, CANCEL, REFUSED})

_ID = re.compile("([0-9]{1,15})-([0-9]{1,15})")
# More than a producer ever writes.
_MOST = 10**15 - 1
# What of a refusal's headers is kept: what a relay gives on.
_KEPT_HEADERS = ("content-type", "retry-after")
# Numbers in entries are below this: none that was written by this library comes near it.
_LARGEST = 2**53

T = TypeVar("T")


class Position(NamedTuple):
    """Where an entry stands."""

    fence: int
    number: int

    def __str__(self) -> str:
        return f"{self.fence}-{self.number}"


# Before all entries.
START = Position(0, 0)


def position_of(text: str) -> Position | None:
    """Return the position that an event's id tells, None for what is no such id."""
    match = _ID.fullmatch(text)
    return None if match is None else Position(int(match[1]), int(match[2]))


def before(position: Position) -> Position:
    """Return a position after which the one given is the next that there can be."""
    return Position(position.fence, position.number - 1) if position.number else Position(position.fence - 1, _MOST)


def is_next(position: Position, last: Position) -> bool:
    """Whether an entry at `position` comes right after the one at `last`."""
    return position.number == (last.number + 1 if position.fence == last.fence else 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: an event if it has `data`, else what `kind` says.

    `fault` says why the store could not decode the entry; "" if it could.
    """

    position: Position
    fields: dict[str, str] = field(default_factory=dict)
    fault: str = ""

    @property
    def kind(self) -> str:
        """ "event", or one of the others."""
        if self.fault:
            return UNREADABLE
        if "data" in self.fields:
            return "event"
        return next((kind for kind in (BEGIN, *ENDS) if kind in self.fields), UNKNOWN)

    @property
    def is_end(self) -> bool:
        """Whether nothing comes after it."""
        return self.kind in ENDS

    def event(self) -> ServerSentEvent:
        """Return the event, whose id is the entry's position. Raises LogError if it cannot be read."""
        fields = self.fields
        retry = fields.get("retry")
        return ServerSentEvent(
            fields.get("event", "message"),
            fields["data"],
            str(self.position),
            None if retry is None else self._read(lambda: _seconds(float(retry))),
        )

    def done_event(self) -> ServerSentEvent | None:
        """Return the event that ended the upstream's stream by its data, None where none did."""
        done = self.fields.get("done")
        return None if done is None else ServerSentEvent(self.fields.get("event", "message"), done, str(self.position))

    def error(self, why: str = "") -> LogError:
        """Return the error of a reader that cannot read this entry."""
        if not why and self.kind == UNKNOWN:
            names = ", ".join(map(repr, sorted(self.fields)))[:100]
            why = f"its kind is unknown (fields: {names}); a newer version of sseqbridge may have written it"
        return LogError(f"entry {self.position} of the log's stream cannot be read: {why or self.fault}")

    def _read(self, read: Callable[[], T]) -> T:
        """Return what `read` makes of the fields. Raises LogError for values that it does not take."""
        try:
            return read()
        # (RecursionError: JSON may be nested at will.)
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise self.error(f"a value is missing, or of a wrong type or size ({self.kind})") from exc

    def outcome(self) -> str:
        """Return how the stream ended, for an entry of the kind "end"."""
        return self._read(lambda: _one_of(self.fields[END], ("done", "eof")))

    def sent_error(self) -> SSEError:
        """Return the error that ended the stream, for an entry of the kind "error"."""
        return self._read(lambda: _error_of(json.loads(self.fields[ERROR])))

    def refusal(self) -> tuple[Head, Body] | SSEError:
        """Return the answer of an upstream that refused, or why there was none, for an entry of the kind "refused"."""
        return self._read(lambda: _refusal_of(json.loads(self.fields[REFUSED])))


def event_fields(event: ServerSentEvent) -> dict[str, str]:
    """Return what stands in the entry of an upstream's event."""
    fields = {"data": event.data}
    if event.event != "message":
        fields["event"] = event.event
    if event.retry is not None:
        fields["retry"] = repr(event.retry)
    return fields


def end_fields(outcome: str, done: ServerSentEvent | None) -> dict[str, str]:
    """Return what stands in the entry of an end that is none by an error."""
    if outcome not in ("done", "eof"):
        return {CANCEL: outcome}
    fields = {END: outcome}
    if done is not None:
        fields["done"] = done.data
        if done.event != "message":
            fields["event"] = done.event
    return fields


def error_fields(error: BaseException) -> dict[str, str]:
    """Return what stands in the entry of an end by an error."""
    return {ERROR: json.dumps(_told(error))}


def refusal_fields(head: Head, body: Body) -> dict[str, str]:
    """Return what stands in the entry of an upstream that did not answer 200."""
    told: dict[str, Any] = {
        "status": head.status,
        "headers": _kept(head.headers),
        "body": base64.b64encode(body.content).decode(),
    }
    if body.error is not None:
        told["error"] = _told(body.error)
    return {REFUSED: json.dumps(told)}


def failure_fields(error: SSEError) -> dict[str, str]:
    """Return what stands in the entry of an upstream that gave no answer."""
    return {REFUSED: json.dumps({"error": _told(error)})}


def _refusal_of(told: Any) -> tuple[Head, Body] | SSEError:
    error = _error_of(told["error"]) if "error" in told else None
    if error is not None and "status" not in told:
        return error
    return made_head(_status(told["status"]), _mapping(told["headers"])), Body(_bytes(told["body"]), error)


def _told(error: BaseException) -> dict[str, Any]:
    """Return what can be told of an error in an entry: no traceback, and nothing of its cause."""
    told: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    for name in _arguments_of(type(error)):
        if name == "headers":
            told[name] = _kept(error.headers)  # type: ignore[attr-defined]
        elif name == "body":
            told[name] = base64.b64encode(error.body).decode()  # type: ignore[attr-defined]
        elif name == "event":
            told[name] = astuple(error.event)  # type: ignore[attr-defined]
        elif name != "message":
            told[name] = getattr(error, name)
    return told


def _error_of(told: Any) -> SSEError:
    """Return an error of the type that an entry names, if that type is this library's, else an SSEError."""
    name, message = _text(told["type"]), _text(told["message"])
    kind = getattr(_exceptions, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SSEError)):
        return SSEError(f"the producer failed with {name}: {message}")
    error = kind(*(_MADE[attribute](told[attribute]) for attribute in _arguments_of(kind)))
    # Some make their text from what they hold, when it is first asked for.
    _text(str(error))
    return error


def _arguments_of(kind: type) -> tuple[str, ...]:
    """Return what an error is made of, by the names of its attributes."""
    return next((names for base, names in _ARGUMENTS.items() if issubclass(kind, base)), ("message",))


def _kept(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in _KEPT_HEADERS if name in headers}


# Readers of single values. Each raises TypeError or ValueError for a value that it does not take.


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a str, got {type(value).__name__}")
    # JSON can carry lone surrogates, which nobody can send on.
    value.encode()
    return value


def _one_of(value: str, values: tuple[str, ...]) -> str:
    if value not in values:
        raise ValueError(f"must be one of {values}")
    return value


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"must be a number, got {type(value).__name__}")
    if not 0 <= value < _LARGEST:
        raise ValueError("must be a finite number of seconds")
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"must be an int, got {type(value).__name__}")
    if not 0 <= value < _LARGEST:
        raise ValueError("must not be negative or huge")
    return value


def _status(value: Any) -> int:
    status = _count(value)
    if not 100 <= status <= 999 or status == 200:
        raise ValueError("must be a status of HTTP other than 200")
    return status


def _mapping(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"must be an object, got {type(value).__name__}")
    return {_text(name): _text(text) for name, text in value.items()}


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_text(value), validate=True)


def _headers(value: Any) -> Any:
    return made_head(0, _mapping(value)).headers


def _event(value: Any) -> ServerSentEvent:
    event, data, event_id, retry = value
    return ServerSentEvent(_text(event), _text(data), _text(event_id), _seconds(retry))


def _same(value: Any) -> Any:
    return value


_MADE: dict[str, Callable[[Any], Any]] = {
    "message": _text,
    "which": _text,
    "seconds": _seconds,
    "limit": _count,
    "attempts": _count,
    "status": _count,
    "headers": _headers,
    "body": _bytes,
    "event": _event,
    "payload": _same,
}
# (The more special ones first.)
_ARGUMENTS: dict[type, tuple[str, ...]] = {
    StreamTimeoutError: ("which", "seconds"),
    BufferLimitError: ("limit",),
    ReconnectionError: ("message", "attempts"),
    RedirectError: ("message", "status"),
    ResponseError: ("message", "status", "headers", "body"),
    UpstreamError: ("message", "event", "payload"),
    EventError: ("message", "event"),
}
