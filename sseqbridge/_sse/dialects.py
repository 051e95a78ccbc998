"""Dialects: which events of a stream are end markers, heartbeats and errors, which differs by provider.

`Dialect` is pure data, and part of the public interface. `EventRules` applies one to the events of a stream, for
one mode of decoding. Immutable, so any thread may use both.

Sources:
https://platform.openai.com/docs/api-reference/responses-streaming
https://docs.claude.com/en/docs/build-with-claude/streaming
https://modelcontextprotocol.io/specification/2025-11-25/basic/transports
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from sseqbridge._exceptions import UsageError

from .events import Comment, ServerSentEvent

__all__ = [
    "DEFAULT_DONE",
    "Dialect",
    "DialectName",
    "Done",
    "EventRules",
    "dialect_of",
    "event_rules",
    "is_response",
    "line_rules",
]

DialectName = Literal["openai", "anthropic", "mcp", "events"]

Done = str | Callable[[ServerSentEvent], bool] | None

# The blanks that JSON allows around a value.
_BLANKS = " \t\r\n"
# The first character of the data of most events in JSON mode.
_OBJECT = "{"


class _DefaultDone(str):
    """The default of `done`, which leaves the end to the dialect. A `done` that the caller passes overrides it."""

    __slots__ = ()


DEFAULT_DONE = _DefaultDone("[DONE]")


@dataclass(frozen=True)
class Dialect:
    """Which events of a stream end it, keep it alive, or report an error.

        request_sse(url, dialect=Dialect(end_events=("complete",), heartbeat_events=("tick",)))

    `end_data`: the stream ends at the event with this data, which is no item; None for no such data.

    `end_events`: types of events that end the stream. Such an event is the last item. (With `decode="json"` it is
    no item if its data is `null` or no JSON.) One without a `data` line counts too, as an event with empty data.

    `heartbeat_events`, `heartbeat_data`: types and data of heartbeats. A heartbeat does not reset the `idle` limit,
    and is no item with `decode="json"`.

    `error_events`: types of events that report an error, besides "error".

    Data is compared exactly, with `decode="json"` without the blanks around it. Raises UsageError for a wrong type,
    and for a type of heartbeats that also ends the stream or reports an error.
    """

    end_data: str | None = "[DONE]"
    end_events: Collection[str] = ()
    heartbeat_events: Collection[str] = ()
    heartbeat_data: Collection[str] = ()
    error_events: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.end_data is not None and not isinstance(self.end_data, str):
            raise UsageError(f"`end_data` must be a str or None, got {type(self.end_data).__name__}")
        for name in ("end_events", "heartbeat_events", "heartbeat_data", "error_events"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for text in self.heartbeat_events:
            if text == "error" or text in self.end_events or text in self.error_events:
                raise UsageError(
                    f"`heartbeat_events` must not name a type that ends the stream or reports an error, got {text!r}"
                )


def _texts(name: str, given: object) -> tuple[str, ...]:
    """Return a collection of str as a tuple. Raises UsageError if it is none."""
    texts: list[Any] = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, bytes)) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f'`{name}` must be a collection of str, such as ("ping",), got {given!r}')
    return tuple(texts)


# The types that servers in the field give to heartbeats, whatever API they serve.
_HEARTBEATS = ("ping", "heartbeat", "keepalive", "keep-alive", "keep_alive")
# A comment that a gateway has wrapped in a data field (Vertex AI's partner models).
_WRAPPED_COMMENT = ": keepalive"

_DIALECTS = {
    "openai": Dialect(
        end_events=("response.completed", "response.failed", "response.incomplete"),
        heartbeat_events=_HEARTBEATS,
        heartbeat_data=(_WRAPPED_COMMENT,),
    ),
    "anthropic": Dialect(
        end_events=("message_stop",),
        heartbeat_events=_HEARTBEATS,
        heartbeat_data=(_WRAPPED_COMMENT,),
        error_events=("error",),
    ),
    # An event without data primes the client: its id is where the stream can be resumed. The end is a JSON-RPC
    # response, which only the decoder of items recognizes: see EventRules.ends_at_response.
    "mcp": Dialect(end_data=None, heartbeat_events=_HEARTBEATS, heartbeat_data=("",)),
    "events": Dialect(end_data=None),
}


def dialect_of(value: object) -> Dialect:
    """Return the dialect that an argument is or names. Raises UsageError if it is none."""
    if isinstance(value, Dialect):
        return value
    dialect = _DIALECTS.get(value) if isinstance(value, str) else None
    if dialect is None:
        names = ", ".join(f'"{name}"' for name in get_args(DialectName))
        raise UsageError(f"`dialect` must be {names} or a sseqbridge.Dialect, got {value!r}")
    return dialect


class EventRules:
    """A dialect as one stream applies it.

    `is_json`: with `decode="json"` blanks around data do not count, and heartbeats are no items.
    `end_data`: the data that ends the stream, None if there is none.
    `error_types`: the types of events that report an error.
    `end_types`: the types of events that end the stream.
    `ends_at_response`: a JSON-RPC response ends the stream.
    `asks_consumer`: the consumer decides whether an event is the last.
    `is_lines`: each event is a line of JSON Lines, so that none is a heartbeat.
    """

    __slots__ = (
        "_heartbeat_data",
        "_heartbeat_types",
        "_lowest",
        "_marked_types",
        "_markers",
        "_suspicious",
        "asks_consumer",
        "end_data",
        "end_types",
        "ends_at_response",
        "error_types",
        "is_json",
        "is_lines",
    )

    def __init__(
        self,
        dialect: Dialect,
        *,
        is_json: bool,
        asks_consumer: bool = False,
        ends_at_response: bool = False,
        is_lines: bool = False,
    ) -> None:
        self.is_json = is_json
        self.is_lines = is_lines
        self.asks_consumer = asks_consumer or ends_at_response
        self.ends_at_response = ends_at_response
        self.error_types = frozenset(("error", *dialect.error_events))
        self.end_data = None if dialect.end_data is None else self._data(dialect.end_data)
        self.end_types = frozenset(dialect.end_events)
        self._heartbeat_types = frozenset(dialect.heartbeat_events)
        self._heartbeat_data = frozenset(map(self._data, dialect.heartbeat_data))
        self._marked_types = self.end_types | self._heartbeat_types
        markers = self._heartbeat_data if self.end_data is None else self._heartbeat_data | {self.end_data}
        self._markers = tuple(markers)
        # With what the data of an end marker or heartbeat can begin in JSON mode; "" is that of empty data.
        self._suspicious = frozenset(("", ":", *_BLANKS, *(marker[:1] for marker in markers)))
        # Data that sorts from here on begins with none of these.
        self._lowest = "\U0010ffff" if max(self._suspicious) >= _OBJECT else _OBJECT

    def _data(self, text: str) -> str:
        return text.strip(_BLANKS) if self.is_json else text

    @property
    def has_end(self) -> bool:
        """Whether any event can end the stream."""
        return self.end_data is not None or bool(self.end_types) or self.asks_consumer

    def count_plain(self, events: list[ServerSentEvent], *, have_types: bool) -> int:
        """Return how many events a quick look finds to be neither end markers nor heartbeats: all, or all but the last.

        All but the last if that is an end marker, as at the usual end of a stream; -1 if it takes a closer look. Runs
        for every read of every stream. `have_types`: whether the stream has named the type of any event so far.
        """
        if have_types and not self._marked_types.isdisjoint([event.event for event in events]):
            return -1
        texts = [event.data for event in events]
        # Most data begins with "{", and blanks, ":" and "[" sort before it. min() of a list is as fast as one `in`.
        if not texts or (self.is_json and min(texts) >= self._lowest):
            return len(texts)
        last = texts.pop()
        if self.end_data is not None and self._data(last) == self.end_data:
            return len(texts) if self._are_unmarked(texts) else -1
        texts.append(last)
        return len(texts) if self._are_unmarked(texts) else -1

    def _are_unmarked(self, texts: list[str]) -> bool:
        if self.is_json:
            suspicious = self._suspicious
            return min(texts, default=self._lowest) >= self._lowest or not [
                text for text in texts if text[:1] in suspicious
            ]
        for marker in self._markers:  # noqa: SIM110 (faster than any() for few markers)
            if marker in texts:
                return False
        return True

    def is_end_marker(self, event: ServerSentEvent) -> bool:
        """Whether the event's data ends the stream. The event is no item."""
        return self.end_data is not None and self._data(event.data) == self.end_data

    def is_end(self, event: ServerSentEvent) -> bool:
        """Whether the event's data or type ends the stream."""
        return event.event in self.end_types or self.is_end_marker(event)

    def is_last_item(self, event: ServerSentEvent) -> bool:
        """Whether an event that ends the stream is an item."""
        if self.is_end_marker(event):
            return False
        return not self.is_json or event.event in self.error_types or _has_value(event.data)

    def is_heartbeat(self, event: ServerSentEvent) -> bool:
        """Whether the event, which does not end the stream, is a heartbeat."""
        if event.event in self._heartbeat_types:
            return True
        if event.event in self.error_types:
            return False
        data = self._data(event.data)
        # No JSON is empty or begins with a colon. A gateway that wraps comments in data fields makes the latter.
        if data in self._heartbeat_data:
            return True
        return self.is_json and not self.is_lines and (not data or data[0] == ":")

    def counts(self, item: ServerSentEvent | Comment) -> bool:
        """Whether an item is neither a comment nor a heartbeat."""
        return type(item) is not Comment and not self.is_heartbeat(item)  # type: ignore[arg-type]

    def count(self, events: list[ServerSentEvent]) -> int:
        """Return how many of the events are no heartbeats. End markers are not looked for."""
        if self.count_plain(events, have_types=True) == len(events):
            return len(events)
        return sum(map(self.counts, events))


def _has_value(data: str) -> bool:
    """Whether data is JSON other than null. A long text that begins like JSON counts: decoding shows its faults."""
    text = data.strip(_BLANKS)
    if text[:1] in ("{", "[", '"'):
        return True
    try:
        return json.loads(text) is not None
    except (ValueError, RecursionError):
        return False


def event_rules(dialect: object, done: Done, *, is_json: bool, is_request: bool = False) -> EventRules:
    """Return the rules for `dialect` and `done`, as the caller passed them.

    `is_request`: the response is that of one request, which a JSON-RPC response ends. Raises UsageError for a `dialect`
    or `done` of a wrong type.
    """
    chosen = dialect_of(dialect)
    _check_done(done)
    if done is DEFAULT_DONE:
        return _rules(chosen, is_json, False, None, False, is_request and dialect == "mcp")
    return _rules(chosen, is_json, True, done if isinstance(done, str) else None, callable(done), False)


def line_rules(done: Done, *, is_json: bool) -> EventRules:
    """Return the rules for JSON Lines, which have no end of their own.

    Raises UsageError for a `done` of a wrong type.
    """
    _check_done(done)
    end_data = done if isinstance(done, str) and done is not DEFAULT_DONE else None
    return _line_rules(is_json, end_data, callable(done))


@functools.lru_cache(maxsize=64)
def _line_rules(is_json: bool, end_data: str | None, asks_consumer: bool) -> EventRules:
    return EventRules(Dialect(end_data=end_data), is_json=is_json, asks_consumer=asks_consumer, is_lines=True)


def _check_done(done: object) -> None:
    if not (done is None or isinstance(done, str) or callable(done)):
        raise UsageError(f"`done` must be a str, a function of the event, or None, got {done!r}")


@functools.lru_cache(maxsize=64)
def _rules(
    dialect: Dialect,
    is_json: bool,
    is_overridden: bool,
    end_data: str | None,
    asks_consumer: bool,
    ends_at_response: bool,
) -> EventRules:
    """Return the rules, the same object for equal arguments: most requests of a process need the same ones."""
    if is_overridden:
        dialect = replace(dialect, end_data=end_data, end_events=())
    return EventRules(dialect, is_json=is_json, asks_consumer=asks_consumer, ends_at_response=ends_at_response)


def is_response(value: object) -> bool:
    """Whether a value is a JSON-RPC response, rather than a request or notification of the server's.

    A server may send it in a batch with others, an array: https://modelcontextprotocol.io/specification/2025-03-26/basic
    """
    if isinstance(value, list):
        return any(map(_is_single_response, value))
    return _is_single_response(value)


def _is_single_response(value: object) -> bool:
    return (
        isinstance(value, dict)
        and "jsonrpc" in value
        and "method" not in value
        and ("result" in value or "error" in value)
    )
