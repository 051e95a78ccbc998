"""The entries of a log's stream: their positions, their kinds, and the fields that each kind has.

Plain values: nothing here knows a store, a loop or a thread.

The format has a version, which is the field `v` of an entry; an entry without it has version 1, and so has an event.
Version 2 marks the beginning of a stream and its deletion. A reader refuses entries of later versions.

A position is `(fence, number)`: the fencing token of the writer, and the number of entries that this
writer wrote before. Positions rise without a gap, so a reader that misses a number knows that entries
are lost. As text, `fence-number`, a position is an event's id, in Redis and in a browser.

Every process with access to the store may have written an entry, a newer version of this library too.
So every function that reads one checks all values, and raises a LogError that names the entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from sseqbridge._engine.channel import Outcome
from sseqbridge._engine.responses import Body, Head
from sseqbridge._exceptions import LogError, RequestAbortedError, SSEError
from sseqbridge._sse.events import ServerSentEvent

from . import _payloads

__all__ = [
    "BEGIN",
    "CANCEL",
    "END",
    "ERROR",
    "FORMAT",
    "REFUSED",
    "START",
    "UNKNOWN",
    "UNREADABLE",
    "Entry",
    "Position",
    "begin_fields",
    "cancel_fields",
    "deleted_fields",
    "end_fields",
    "error_fields",
    "event_fields",
    "failure_fields",
    "is_next",
    "parse_position",
    "position_before",
    "refusal_fields",
]

# The kinds of entries besides events. Each is the name of a field.
BEGIN, END, ERROR, CANCEL, REFUSED = "begin", "end", "error", "cancel", "refused"
# The version of the format, and its field.
FORMAT, _VERSION = 2, "v"
_SUPPORTED = frozenset(map(str, range(1, FORMAT + 1)))
# The field of a BEGIN entry that begins a stream, and does not take it over.
_NEW = "new"
# The value of the CANCEL entry that is left of a deleted stream.
_DELETED = "deleted"
# The kind of an entry that the store could not decode, and of an event that cannot be read.
UNREADABLE = "unreadable"
# The kind of an entry that has none of the fields above.
UNKNOWN = "unknown"
# The kinds of a last entry.
_ENDS = frozenset({END, ERROR, CANCEL, REFUSED})
# In the order in which they are looked for: the entry of a deleted stream has two of these fields.
_KINDS = (BEGIN, END, ERROR, CANCEL, REFUSED)

_ID = re.compile("([0-9]{1,15})-([0-9]{1,15})")
# Above every number that a producer writes.
_MAX_NUMBER = 10**15 - 1

T = TypeVar("T")


class Position(NamedTuple):
    """The place of an entry in its stream."""

    fence: int
    number: int

    def __str__(self) -> str:
        return f"{self.fence}-{self.number}"


# Before all entries.
START = Position(0, 0)


def parse_position(text: str) -> Position | None:
    """Return the position that an event's id stands for; None for any other id."""
    match = _ID.fullmatch(text)
    return None if match is None else Position(int(match[1]), int(match[2]))


def position_before(position: Position) -> Position:
    """Return the greatest position below this one."""
    fence, number = position
    return Position(fence, number - 1) if number else Position(fence - 1, _MAX_NUMBER)


def is_next(position: Position, last: Position) -> bool:
    """Whether no entry can be missing between `last` and `position`."""
    return position.number == (last.number + 1 if position.fence == last.fence else 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: an event if it has the field `data`, else of another `kind`.

    `fault` is the reason why the store could not decode the entry; "" if it could.
    """

    position: Position
    fields: dict[str, str] = field(default_factory=dict)
    fault: str = ""

    @property
    def kind(self) -> str:
        """ "event", or one of the constants of this module."""
        fields = self.fields
        if self.fault or (_VERSION in fields and not self._is_supported):
            return UNREADABLE
        if "data" in fields:
            return "event"
        return next((kind for kind in _KINDS if kind in fields), UNKNOWN)

    @property
    def _is_supported(self) -> bool:
        """Whether this version of the library can read the entry's format."""
        return self.fields.get(_VERSION, "1") in _SUPPORTED

    @property
    def is_end(self) -> bool:
        """Whether the entry is the last of its stream."""
        return self.kind in _ENDS

    @property
    def begins_stream(self) -> bool:
        """Whether the entry is the first of a new stream, for the kind BEGIN."""
        return _NEW in self.fields

    @property
    def is_deletion(self) -> bool:
        """Whether the entry marks a deleted stream, for the kind CANCEL."""
        return self.fields.get(CANCEL) == _DELETED

    def event(self) -> ServerSentEvent:
        """Return the event, whose id is the entry's position. Raises LogError if it cannot be read."""
        fields = self.fields
        retry = fields.get("retry")
        return ServerSentEvent(
            fields.get("event", "message"),
            fields["data"],
            str(self.position),
            None if retry is None else self._checked(lambda: _payloads.seconds(float(retry))),
        )

    def done_event(self) -> ServerSentEvent | None:
        """Return the event whose data ended the upstream's stream; None if none did."""
        done = self.fields.get("done")
        return None if done is None else ServerSentEvent(self.fields.get("event", "message"), done, str(self.position))

    def error(self, reason: str = "") -> LogError:
        """Return the error for a reader that cannot read this entry."""
        if not reason and self.kind == UNKNOWN:
            names = ", ".join(map(repr, sorted(self.fields)))[:100]
            reason = f"its kind is unknown (fields: {names}); a newer version of sseqbridge may have written it"
        elif not reason and not self.fault:
            version = self.fields[_VERSION][:20]
            reason = f"its format is {version!r}, and this version of sseqbridge reads up to {FORMAT}. Upgrade it."
        return LogError(f"entry {self.position} of the log's stream cannot be read: {reason or self.fault}")

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            return read()
        # RecursionError: JSON may be nested without limit.
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise self.error(f"a value is missing, or of a wrong type or size ({self.kind})") from exc

    def outcome(self) -> Outcome:
        """Return the stream's outcome, for the kind END."""
        outcomes: tuple[Outcome, ...] = ("done", "eof")
        return self._checked(lambda: _payloads.one_of(self.fields[END], outcomes))

    def sent_error(self) -> SSEError:
        """Return the error that ended the stream, for the kind ERROR."""
        return self._checked(lambda: _payloads.load_error(json.loads(self.fields[ERROR])))

    def refusal(self) -> tuple[Head, Body] | SSEError:
        """Return the upstream's error response, or the error in place of a response, for the kind REFUSED."""
        return self._checked(lambda: _payloads.load_refusal(json.loads(self.fields[REFUSED])))


def event_fields(event: ServerSentEvent) -> dict[str, str]:
    """Return the fields of an event's entry."""
    fields = {"data": event.data}
    if event.event != "message":
        fields["event"] = event.event
    if event.retry is not None:
        fields["retry"] = repr(event.retry)
    return fields


def begin_fields(*, begins_stream: bool) -> dict[str, str]:
    """Return the fields of a producer's first entry."""
    return _versioned({BEGIN: "200", _NEW: "1"} if begins_stream else {BEGIN: "200"})


def cancel_fields() -> dict[str, str]:
    """Return the fields of the last entry of a stream that was cancelled."""
    return _versioned({CANCEL: "cancelled"})


def deleted_fields() -> dict[str, str]:
    """Return the fields of the entry that is left of a deleted stream.

    The second field is for processes with version 1: there a stream that was only refused may begin again.
    """
    refused = failure_fields(RequestAbortedError("the stream was deleted"))
    return {CANCEL: _DELETED, **refused}


def _versioned(fields: dict[str, str]) -> dict[str, str]:
    return {_VERSION: str(FORMAT), **fields}


def end_fields(outcome: str, done: ServerSentEvent | None) -> dict[str, str]:
    """Return the fields of the last entry of a stream that ends without an error."""
    if outcome not in ("done", "eof"):
        return _versioned({CANCEL: outcome})
    fields = _versioned({END: outcome})
    if done is not None:
        fields["done"] = done.data
        if done.event != "message":
            fields["event"] = done.event
    return fields


def error_fields(error: BaseException) -> dict[str, str]:
    """Return the fields of the last entry of a stream that ends with an error."""
    return _versioned({ERROR: json.dumps(_payloads.dump_error(error))})


def refusal_fields(head: Head, body: Body) -> dict[str, str]:
    """Return the fields of the entry for an upstream's response with a status other than 200."""
    return _versioned({REFUSED: json.dumps(_payloads.dump_refusal(head, body))})


def failure_fields(error: SSEError) -> dict[str, str]:
    """Return the fields of the entry for a request without a response."""
    return _versioned({REFUSED: json.dumps({"error": _payloads.dump_error(error)})})
