"""Decoder: converts an event to the item that the caller's `decode` selects, and recognizes the last event.

Runs in the consumer's thread, so that a slow `decode` or `done` function delays no other stream. A Decoder is
immutable, and nothing here has state that threads share.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from sseqbridge import _accelerators
from sseqbridge._exceptions import DecodeError, UpstreamError, UsageError
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._sse.events import Comment, ServerSentEvent

__all__ = ["Decode", "Decoder", "Done", "ErrorEvents"]

Decode = Literal["json", "text", "event"] | Callable[[ServerSentEvent], Any]
Done = str | Callable[[ServerSentEvent], bool] | None
ErrorEvents = Literal["raise", "yield"]

# How many characters of an upstream's error message are quoted in ours: it must not flood a log.
_MAX_QUOTED = 200


class Decoder:
    """Decodes the events of one stream: `item(event)`, `is_last(event)`, `body(bytes)`.

    `gives_body`: whether the body of an error answer is an item too, as in JSON mode.
    `has_done_function`: whether `is_last` can return True.
    `is_function`: whether `decode` is a function of the caller's.
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
        """Whether the caller's `done` function accepts the event. Raises CallbackError if the function fails."""
        if self._is_last is None or isinstance(item, Comment):
            return False
        with CallersCode("the done function", passes=()):
            return bool(self._is_last(item))

    def body(self, body: bytes) -> Any:
        """Return an error answer's body: decoded JSON, or text if it is not JSON."""
        text = body.decode("utf-8", "replace")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def _json(raises: bool) -> Callable[[ServerSentEvent], Any]:
    fast_decode = _accelerators.json_decode()

    def item(event: ServerSentEvent) -> Any:
        # Inlined: this runs for every event.
        text = event.data
        try:
            value = fast_decode(text)
        except Exception:
            pass  # Decoded again below, outside of this block: the exception must not become a __context__.
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
            f'the data of a "{event.event}" event is not JSON ({_where(exc)}). Pass decode="text" for undecoded data.',
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
                    f'the decode function raised {type(exc).__name__} for a "{event.event}" event. '
                    "Its argument is a ServerSentEvent, whose text is event.data.",
                    event,
                ) from exc

    return item


def _where(exc: ValueError | RecursionError) -> str:
    # The position in the document, never the document itself: it may hold secrets.
    return f"{exc.msg} at character {exc.pos}" if isinstance(exc, json.JSONDecodeError) else type(exc).__name__


def _is_error(value: Any) -> bool:
    # In JSON-RPC, "error" is a member of an ordinary response.
    return isinstance(value, dict) and isinstance(value.get("error"), (str, dict)) and "jsonrpc" not in value


def _upstream_error(event: ServerSentEvent, payload: Any) -> UpstreamError:
    detail: Any = payload
    if isinstance(detail, dict) and isinstance(detail.get("error"), (str, dict)):
        detail = detail["error"]
    if isinstance(detail, dict):
        detail = detail.get("message")
    message = "the upstream sent an error; it is in .payload"
    if isinstance(detail, str) and detail:
        quoted = "".join(character if character.isprintable() else " " for character in detail[:_MAX_QUOTED])
        message = f"the upstream sent an error: {quoted}"
    return UpstreamError(message, event, payload)
