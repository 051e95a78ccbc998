"""An event stream parser that is plainly right, to hold the real one against.

It is the text of the WHATWG standard, section by section, on a stream that is all there: slow,
and with no limit. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sseqbridge._models import Comment, ServerSentEvent

__all__ = ["Parsed", "parse"]

# 9.2.5: a line ends with CRLF, LF or CR. What follows the last line end is no line.
_LINE = re.compile("([^\r\n]*)(?:\r\n|\n|\r)")


@dataclass
class Parsed:
    """All that a stream says: its items, and what is left at its end."""

    items: list[ServerSentEvent | Comment] = field(default_factory=list)
    last_event_id: str = ""
    retry: float | None = None


def parse(stream: bytes) -> Parsed:
    """Return what the whole of `stream` means, comments included."""
    # 9.2.6: "UTF-8 decode", which drops one byte order mark.
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    parsed = Parsed()
    data = event_type = id_buffer = ""
    retry = None
    for line in _LINE.findall(text):
        if line == "":
            parsed.last_event_id = id_buffer
            if data != "":
                event = ServerSentEvent(event_type or "message", data.removesuffix("\n"), id_buffer, retry)
                parsed.items.append(event)
            data = event_type = ""
            retry = None
            continue
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if colon and name == "":
            parsed.items.append(Comment(value))
        elif name == "event":
            event_type = value
        elif name == "data":
            data += value + "\n"
        elif name == "id":
            if "\0" not in value:
                id_buffer = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            parsed.retry = retry = float(value) / 1000
    return parsed
