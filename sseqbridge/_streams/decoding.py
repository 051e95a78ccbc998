"""From an event to the item that the caller asked for, and which event is the last.

Rule: all of it runs in the consumer's thread, so that a slow decode, or a callback of the
caller's, holds up no other stream. Nothing here reads or writes shared state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from sseqbridge import _accelerators as _fast
from sseqbridge._exceptions import DecodeError, UpstreamError, UsageError
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._sse.events import Comment, ServerSentEvent

__all__ = ["Decode", "Decoder", "Done", "ErrorEvents"]

Decode = Literal["json", "text", "event"] | Callable[[ServerSentEvent], Any]
Done = str | Callable[[ServerSentEvent], bool] | None
ErrorEvents = Literal["raise", "yield"]

# An upstream's own words in our message: enough to be understood, not enough to flood a log.
_MAX_QUOTED = 200


class Decoder:
    """Decodes the events of one stream: `item(event)`, `is_last(event)`, `body(bytes)`.

    `gives_body` is True where an error answer's body is an item too, as in JSON mode.
    `has_done_function` is False where no event can be the last by `is_last`, `is_function` True
    where the items are what a function of the caller's makes.
    """

    __slots__ = ("_is_last", "gives_body", "has_done_function", "is_function", "item")

    def __init__(self, decode: Decode, done: Done, error_events: ErrorEvents) -> None:
        if not callable(decode) and decode not in ("json", "text", "event"):
            raise UsageError(f'`decode` must be "json", "text", "event" or a function of the event, got {decode!r}')
        if not (done is None or isinstance(done, str) or callable(done)):
            raise UsageError(f"`done` must be a str, a function of the event, or None, got {done!r}")
        if error_events not in ("raise", "yield"):
            raise UsageError(f'`error_events` must be "raise" or "yield", got {error_events!r}')
        self._is_last = done if callable(done) else None
        self.has_done_function = self._is_last is not None
        self.gives_body = decode == "json"
        self.is_function = callable(decode)
        self.item: Callable[[Any], Any]
        if callable(decode):
            self.item = _called(decode)
        elif decode == "json":
            self.item = _json(error_events == "raise")
        else:
            self.item = _text if decode == "text" else _whole

    def is_last(self, item: ServerSentEvent | Comment) -> bool:
        """Whether the caller's `done` function accepts this event. Raises CallbackError."""
        if self._is_last is None or isinstance(item, Comment):
            return False
        with CallersCode("the done function", passes=()):
            return bool(self._is_last(item))

    def body(self, body: bytes) -> Any:
        """Return an error answer's body: decoded JSON, or text where it is no JSON."""
        text = body.decode("utf-8", "replace")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def _json(raises: bool) -> Callable[[ServerSentEvent], Any]:
    quick = _fast.json_decode()

    def item(event: ServerSentEvent) -> Any:
        # Inlined: this runs for every event.
        text = event.data
        try:
            value = quick(text)
        except Exception:
            pass  # Out of here, so that it is not the context of the next one.
        else:
            may_be_error = (type(value) is dict and "error" in value) or event.event == "error"
            if may_be_error and raises:
                _check(event, value)
            return value
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as exc:
            return _not_json(event, exc, raises)
        if raises:
            _check(event, value)
        return value

    return item


def _check(event: ServerSentEvent, value: Any) -> None:
    if event.event == "error" or _is_error(value):
        raise _upstream_error(event, value)


def _not_json(event: ServerSentEvent, exc: ValueError | RecursionError, raises: bool) -> str:
    if event.event != "error":
        raise DecodeError(
            f'the data of a "{event.event}" event is not JSON ({_where(exc)}); decode="text" gives it as it is',
            event,
        ) from exc
    if raises:
        raise _upstream_error(event, event.data) from None
    return event.data


def _text(event: ServerSentEvent) -> str:
    return event.data


def _whole(event: ServerSentEvent | Comment) -> ServerSentEvent | Comment:
    return event


def _called(decode: Callable[[ServerSentEvent], Any]) -> Callable[[ServerSentEvent], Any]:
    def item(event: ServerSentEvent) -> Any:
        with CallersCode("the decode function", passes=Exception):
            try:
                return decode(event)
            except Exception as exc:
                raise DecodeError(
                    f'the decode function raised {type(exc).__name__} for a "{event.event}" event; '
                    "it is called with a ServerSentEvent, whose text is event.data",
                    event,
                ) from exc

    return item


def _where(exc: ValueError | RecursionError) -> str:
    # Of a JSONDecodeError the position, never the document.
    return f"{exc.msg} at character {exc.pos}" if isinstance(exc, json.JSONDecodeError) else type(exc).__name__


def _is_error(value: Any) -> bool:
    # A JSON-RPC response has an "error" member of its own, which is an answer like any other.
    return isinstance(value, dict) and isinstance(value.get("error"), (str, dict)) and "jsonrpc" not in value


def _upstream_error(event: ServerSentEvent, payload: Any) -> UpstreamError:
    told: Any = payload
    if isinstance(told, dict) and isinstance(told.get("error"), (str, dict)):
        told = told["error"]
    if isinstance(told, dict):
        told = told.get("message")
    message = "the upstream sent an error; it is in .payload"
    if isinstance(told, str) and told:
        quoted = "".join(character if character.isprintable() else " " for character in told[:_MAX_QUOTED])
        message = f"the upstream sent an error: {quoted}"
    return UpstreamError(message, event, payload)
