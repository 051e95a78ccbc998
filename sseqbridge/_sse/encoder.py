"""Sans-IO encoder: events and comments to the bytes of an event stream.

Rule: what is written parses back to the same event, or is refused. (An event stream knows one
kind of line break inside data: CR and CRLF come back as LF.)
"""

from __future__ import annotations

import re
from dataclasses import replace

from sseqbridge._exceptions import UsageError

from .events import Comment, ServerSentEvent

__all__ = ["StreamEncoder", "encode"]

_LINE_END = re.compile("\r\n|\r|\n")


def encode(item: ServerSentEvent | Comment) -> bytes:
    """Return `item` as it stands on the wire, its blank line included.

    `retry`, in seconds, is written in whole milliseconds. Raises UsageError for an event type or
    id with a line break or NUL, a negative `retry`, and text that UTF-8 cannot hold.
    """
    lines = [f": {line}" for line in _LINE_END.split(item.text)] if isinstance(item, Comment) else _fields(item)
    try:
        return ("\n".join(lines) + "\n\n").encode()
    except UnicodeEncodeError:
        raise UsageError("an event's text holds a lone surrogate, which UTF-8 cannot carry") from None


class StreamEncoder:
    """Encodes one item after another as a stream: an id where it changes, and also where it is taken back."""

    def __init__(self) -> None:
        self._last_id = ""

    def encode(self, item: ServerSentEvent | Comment) -> bytes:
        """Return the next item as it stands on the wire; as `encode` does."""
        if isinstance(item, Comment) or item.id == self._last_id:
            return encode(item if isinstance(item, Comment) else replace(item, id=""))
        self._last_id = item.id
        return encode(item) if item.id else b"id\n" + encode(item)


def _fields(event: ServerSentEvent) -> list[str]:
    lines = []
    if event.event != "message":
        if not event.event or _LINE_END.search(event.event) or "\0" in event.event:
            raise UsageError("an event's type must be one line without NUL that is not empty")
        lines.append(f"event: {event.event}")
    if event.id:
        if _LINE_END.search(event.id) or "\0" in event.id:
            raise UsageError("an event's id must be one line without NUL")
        lines.append(f"id: {event.id}")
    if event.retry is not None:
        if not 0 <= event.retry * 1000 < float("inf"):
            raise UsageError("an event's retry is a number of seconds, 0 or more")
        lines.append(f"retry: {round(event.retry * 1000)}")
    lines.extend(f"data: {line}" for line in _LINE_END.split(event.data))
    return lines
