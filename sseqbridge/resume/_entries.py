"""What a log holds: entries, each at a position, and how errors are told in one.

An entry's position is `(fence, number)`: the fencing token of who wrote it, and how many it has
written before. So positions rise, none is left out, and a reader who finds a number left out knows
that something is lost. As text, `fence-number`, it is the id of the event, in Redis and in a browser.

Rule: plain values. Nothing here knows a store, a loop or a thread.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple

from sseqbridge import _exceptions
from sseqbridge._connection import Body, Head, made_head
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
from sseqbridge._models import ServerSentEvent

__all__ = [
    "BEGIN",
    "CANCEL",
    "END",
    "ERROR",
    "REFUSED",
    "START",
    "Entry",
    "Position",
    "before",
    "end_fields",
    "error_fields",
    "error_in",
    "event_fields",
    "failure_fields",
    "is_next",
    "position_of",
    "refusal_fields",
    "refusal_in",
]

# What entries are besides events, each a field of its own.
BEGIN, END, ERROR, CANCEL, REFUSED = "begin", "end", "error", "cancel", "refused"
# After which nothing comes.
ENDS = frozenset({END, ERROR, CANCEL, REFUSED})

_ID = re.compile("([0-9]{1,15})-([0-9]{1,15})")
# More than a producer ever writes.
_MOST = 10**15 - 1
# What of a refusal's headers is kept: what a relay gives on.
_KEPT_HEADERS = ("content-type", "retry-after")


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
    """One entry: an event where it has `data`, else what `kind` says."""

    position: Position
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "event", or one of the others."""
        if "data" in self.fields:
            return "event"
        return next((kind for kind in (BEGIN, *ENDS) if kind in self.fields), "unknown")

    @property
    def is_end(self) -> bool:
        """Whether nothing comes after it."""
        return self.kind in ENDS

    def event(self) -> ServerSentEvent:
        """Return the event, whose id is the entry's position."""
        fields = self.fields
        retry = fields.get("retry")
        return ServerSentEvent(
            fields.get("event", "message"), fields["data"], str(self.position), None if retry is None else float(retry)
        )

    def done_event(self) -> ServerSentEvent | None:
        """Return the event that ended the upstream's stream by its data, None where none did."""
        done = self.fields.get("done")
        return None if done is None else ServerSentEvent(self.fields.get("event", "message"), done, str(self.position))


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


def error_in(entry: Entry) -> SSEError:
    """Return the error that an entry tells of."""
    return _error_of(json.loads(entry.fields[ERROR]))


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


def refusal_in(entry: Entry) -> tuple[Head, Body] | SSEError:
    """Return what a refusal's entry tells: the answer, or why there was none."""
    told = json.loads(entry.fields[REFUSED])
    error = _error_of(told["error"]) if "error" in told else None
    if error is not None and "status" not in told:
        return error
    return made_head(told["status"], told["headers"]), Body(base64.b64decode(told["body"]), error)


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


def _error_of(told: dict[str, Any]) -> SSEError:
    """Return the error that an entry tells of: of the same type, where that is one of this library's."""
    kind = getattr(_exceptions, told["type"], None)
    if not (isinstance(kind, type) and issubclass(kind, SSEError)):
        return SSEError(f"the producer failed with {told['type']}: {told['message']}")
    return kind(*(_MADE.get(name, _same)(told[name]) for name in _arguments_of(kind)))


def _arguments_of(kind: type) -> tuple[str, ...]:
    """Return what an error is made of, by the names of its attributes."""
    return next((names for base, names in _ARGUMENTS.items() if issubclass(kind, base)), ("message",))


def _kept(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in _KEPT_HEADERS if name in headers}


def _headers(kept: dict[str, str]) -> Any:
    return made_head(0, kept).headers


def _same(value: Any) -> Any:
    return value


def _event(fields: list[Any]) -> ServerSentEvent:
    return ServerSentEvent(*fields)


_MADE: dict[str, Callable[[Any], Any]] = {"headers": _headers, "body": base64.b64decode, "event": _event}
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
