"""Sans-IO encoder: events and comments to the bytes of an event stream.

Invariant: the encoded bytes parse back to an equal event, or the event is refused. The format has one
kind of line break in data, so CR and CRLF parse back as LF.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from sseqbridge._exceptions import UsageError

from .events import Comment, ServerSentEvent

__all__ = ["StreamEncoder", "encode", "item_event", "item_text"]

_LINE_END = re.compile("\r\n|\r|\n")
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(item: ServerSentEvent | Comment) -> bytes:
    """Return `item` as bytes on the wire, including the blank line.

    `retry`, in seconds, is rounded to whole milliseconds. Raises UsageError for a type or ID with a line
    break or NUL, a negative `retry`, and text that UTF-8 cannot represent.
    """
    lines = [f": {line}" for line in _LINE_END.split(item.text)] if isinstance(item, Comment) else _fields(item)
    try:
        return ("\n".join(lines) + "\n\n").encode()
    except UnicodeEncodeError:
        raise UsageError("the text of an event must be encodable as UTF-8, got a lone surrogate") from None


def _without_surrogates(text: str) -> str:
    """Return text that UTF-8 can encode: a lone surrogate, such as one half of an emoji, becomes U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def item_text(item: Any, name: str) -> str:
    """Return the data of the event that an item is sent as: a str as it is, a dict or list as JSON.

    Raises UsageError for another item, which `name` describes.
    """
    if isinstance(item, str):
        return _without_surrogates(item)
    if not isinstance(item, (dict, list)):
        raise UsageError(
            f"{name} must be a str, a dict or list (sent as JSON), a ServerSentEvent, a Comment, or None to send "
            f"nothing, got {type(item).__name__}"
        )
    # NaN is not JSON: JSON.parse in a browser refuses it.
    text = json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # A lone surrogate; an upstream may send the other half of the pair in its next event.
        text = json.dumps(item, allow_nan=False, separators=(",", ":"))
    return text


def item_event(item: Any, name: str) -> ServerSentEvent | Comment | None:
    """Return the event or comment that an item of the application's is sent as; None if nothing is sent for it.

    Raises UsageError for an item of another type, which `name` describes, and the errors of json.dumps.
    """
    if item is None:
        return None
    if isinstance(item, Comment):
        return Comment(_without_surrogates(item.text))
    if isinstance(item, ServerSentEvent):
        return replace(item, data=_without_surrogates(item.data))
    return ServerSentEvent(data=item_text(item, name))


class StreamEncoder:
    """Encodes consecutive items of one stream: writes an ID only when it changes or is reset."""

    def __init__(self) -> None:
        self._last_id = ""

    def encode(self, item: ServerSentEvent | Comment) -> bytes:
        """Return the next item as bytes on the wire, like the function `encode`."""
        if isinstance(item, Comment) or item.id == self._last_id:
            return encode(item if isinstance(item, Comment) else replace(item, id=""))
        self._last_id = item.id
        return encode(item) if item.id else b"id\n" + encode(item)


def _fields(event: ServerSentEvent) -> list[str]:
    lines = []
    if event.event != "message":
        if not event.event or not _is_one_line(event.event):
            raise UsageError(f"`event` must be one non-empty line without NUL, got {event.event!r}")
        lines.append(f"event: {event.event}")
    if event.id:
        if not _is_one_line(event.id):
            raise UsageError(f"`id` must be one line without NUL, got {event.id!r}")
        lines.append(f"id: {event.id}")
    if event.retry is not None:
        if not 0 <= event.retry * 1000 < float("inf"):
            raise UsageError(f"`retry` must be a finite number of seconds, at least 0, got {event.retry!r}")
        lines.append(f"retry: {round(event.retry * 1000)}")
    lines.extend(f"data: {line}" for line in _LINE_END.split(event.data))
    return lines


def _is_one_line(text: str) -> bool:
    return "\0" not in text and _LINE_END.search(text) is None
