"""Decoder: converts an event to the item that the caller's `decode` selects, and recognizes the last event.

Runs in the consumer's thread, so that a slow `decode` or `done` function delays no other stream. A Decoder is
immutable, and nothing here has state that threads share.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from sseqbridge import _accelerators
from sseqbridge._exceptions import DecodeError, UsageError
from sseqbridge._runtime.callbacks import CallersFunction
from sseqbridge._sse.dialects import Done, event_rules, is_response
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.provider_errors import is_error, quoted, upstream_error

if TYPE_CHECKING:
    from sseqbridge._exceptions import UpstreamError
    from sseqbridge._sse.dialects import EventRules

__all__ = ["UNDECODED", "Decode", "Decoder", "ErrorEvents"]

Decode = Literal["json", "text", "event"] | Callable[[ServerSentEvent], Any]
ErrorEvents = Literal["raise", "yield"]

# The item of an event that is not decoded yet.
UNDECODED: Any = object()


class Decoder:
    """Decodes the events of one stream: `item(event)`, `is_last(event)`, `body(bytes)`.

    `rules`: which events are end markers, heartbeats and errors.
    `gives_body`: whether the body of an error response is an item too, as in JSON mode.
    `has_done_function`: whether `is_last` can return True.
    `is_function`: whether `decode` is a function of the caller's.
    `keeps_heartbeats`: whether heartbeats are items.
    `may_get_comments`: whether the events may be mixed with comments.
    `loads`: in JSON mode, a function that decodes most texts, for loops that inline most of `item`; see there.
    """

    __slots__ = (
        "_is_last",
        "_raises",
        "gives_body",
        "has_done_function",
        "is_function",
        "item",
        "keeps_heartbeats",
        "loads",
        "may_get_comments",
        "rules",
    )

    def __init__(
        self, decode: Decode, done: Done, error_events: ErrorEvents, rules: EventRules | None = None
    ) -> None:
        """Raise UsageError for an argument of a wrong type. The default of `rules` is that of request_sse."""
        if not callable(decode) and decode not in ("json", "text", "event"):
            raise UsageError(f'`decode` must be "json", "text", "event" or a function of the event, got {decode!r}')
        if error_events not in ("raise", "yield"):
            raise UsageError(f'`error_events` must be "raise" or "yield", got {error_events!r}')
        self.rules = rules or event_rules("openai", done, is_json=decode == "json")
        self._is_last = done if callable(done) else None
        self.has_done_function = self.rules.asks_consumer
        self.gives_body = decode == "json"
        self.is_function = callable(decode)
        self._raises = error_events == "raise"
        self.may_get_comments = decode == "event"
        self.keeps_heartbeats = not self.rules.is_json
        self.loads = _accelerators.json_decode() if decode == "json" else None
        self.item: Callable[[Any], Any]
        if callable(decode):
            self.item = _called(decode)
        elif decode == "json":
            self.item = _json(self.rules, raises=error_events == "raise")
        else:
            self.item = _text if decode == "text" else _whole

    def undecoded(self) -> Decoder:
        """Return a decoder by the same rules whose items are all events, heartbeats too."""
        whole = copy.copy(self)
        whole.item, whole.loads = _whole, None
        whole.keeps_heartbeats = True
        return whole

    def reported_error(self, event: ServerSentEvent) -> UpstreamError | None:
        """Return the error that an event reports in whatever mode; None for others, and with error_events="yield"."""
        is_typed = event.event in self.rules.error_types
        if not self._raises or not (is_typed or '"error"' in event.data):
            return None
        value = _loaded(event.data)
        if is_typed or is_error(value):
            return upstream_error(event.data if value is UNDECODED else value, event)
        return None

    def is_last(self, item: ServerSentEvent | Comment, decoded: Any = UNDECODED) -> bool:
        """Whether the caller's `done` function accepts the event, or the event is the response that ends the stream.

        `decoded` is what `item` made of the event. Raises CallbackError if the function fails.
        """
        if isinstance(item, Comment):
            return False
        if self.rules.ends_at_response:
            is_decoded = self.rules.is_json and decoded is not UNDECODED and decoded is not item
            return is_response(decoded if is_decoded else _loaded(item.data))
        if self._is_last is None:
            return False
        with CallersFunction("the done function", passes=()):
            return bool(self._is_last(item))

    def body(self, body: bytes) -> Any:
        """Return an error response's body: decoded JSON, or text if it is not JSON."""
        text = body.decode("utf-8", "replace")
        value = _loaded(text)
        return text if value is UNDECODED else value


def _loaded(text: str) -> Any:
    """Return decoded JSON, `UNDECODED` if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return UNDECODED


def _json(rules: EventRules, *, raises: bool) -> Callable[[ServerSentEvent], Any]:
    fast_decode = _accelerators.json_decode()
    error_types = rules.error_types

    def item(event: ServerSentEvent) -> Any:
        # The for loops of ItemReader have this inlined too.
        text = event.data
        try:
            value = fast_decode(text)
        except Exception:
            pass  # Decoded again below, outside of this block: the exception must not become a __context__.
        else:
            may_be_error = (type(value) is dict and "error" in value) or event.event in error_types
            if may_be_error and raises:
                _check(event, value, rules)
            return value
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as exc:
            return _not_json(event, exc, rules, raises=raises)
        if raises:
            _check(event, value, rules)
        return value

    return item


def _check(event: ServerSentEvent, value: Any, rules: EventRules) -> None:
    if event.event in rules.error_types or is_error(value):
        raise upstream_error(value, event)


def _not_json(event: ServerSentEvent, exc: ValueError | RecursionError, rules: EventRules, *, raises: bool) -> str:
    if event.event not in rules.error_types:
        name = "a line" if rules.is_lines else f'the data of a "{quoted(event.event)}" event'
        raise DecodeError(
            f"{name} is not JSON ({_where(exc)}). "
            'Pass decode="text" for undecoded data.',
            event,
        ) from exc
    if raises:
        raise upstream_error(event.data, event) from None
    return event.data


def _text(event: ServerSentEvent) -> str:
    return event.data


def _whole(event: ServerSentEvent | Comment) -> ServerSentEvent | Comment:
    return event


def _called(decode: Callable[[ServerSentEvent], Any]) -> Callable[[ServerSentEvent], Any]:
    def item(event: ServerSentEvent) -> Any:
        with CallersFunction("the decode function", passes=Exception):
            try:
                return decode(event)
            except Exception as exc:
                raise DecodeError(
                    f'the decode function raised {type(exc).__name__} for a "{quoted(event.event)}" event. '
                    "Its argument is a ServerSentEvent, whose text is event.data.",
                    event,
                ) from exc

    return item


def _where(exc: ValueError | RecursionError) -> str:
    # The position in the document, never the document itself: it may hold secrets.
    if not isinstance(exc, json.JSONDecodeError):
        return type(exc).__name__
    # Some messages of json end with "at", for the position.
    return f"{exc.msg.removesuffix(' at')} at character {exc.pos}"
