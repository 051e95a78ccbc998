"""An event stream parser that is plainly right, to hold the real one against.

It is the text of the WHATWG standard, section by section, on a stream that is all there: slow.
What the standard does not have is the limit, which counts bytes, as they came.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sseqbridge._models import Comment, ServerSentEvent

__all__ = ["Parsed", "parse"]

# 9.2.5: a line ends with CRLF, LF or CR. What follows the last line end is no line.
_LINE = re.compile("([^\r\n]*)(?:\r\n|\n|\r)")
_BYTES_LINE = re.compile(b"([^\r\n]*)(?:\r\n|\n|\r)")


@dataclass
class Parsed:
    """All that a stream says: its items, what is left at its end, and whether it is refused."""

    items: list[ServerSentEvent | Comment] = field(default_factory=list)
    last_event_id: str = ""
    retry: float | None = None
    refused: bool = False


def parse(stream: bytes, limit: float = float("inf")) -> Parsed:
    """Return what the whole of `stream` means, comments included, up to where it is refused.

    That is at the first line of more than `limit` bytes, also where it does not end, or at the
    first line by which an event has more than `limit` bytes of data.
    """
    # 9.2.6: "UTF-8 decode", which drops one byte order mark.
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    parsed = Parsed()
    data = event_type = id_buffer = ""
    retry = None
    data_bytes = 0
    for line, raw in zip(_LINE.findall(text), _BYTES_LINE.findall(stream), strict=True):
        if len(raw) > limit:
            parsed.refused = True
            return parsed
        if line == "":
            parsed.last_event_id = id_buffer
            if data != "":
                event = ServerSentEvent(event_type or "message", data.removesuffix("\n"), id_buffer, retry)
                parsed.items.append(event)
            data = event_type = ""
            retry = None
            data_bytes = 0
            continue
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if colon and name == "":
            parsed.items.append(Comment(value))
        elif name == "event":
            event_type = value
        elif name == "data":
            data += value + "\n"
            data_bytes += len(raw.partition(b":")[2].removeprefix(b" ")) + 1
            if data_bytes - 1 > limit:
                parsed.refused = True
                return parsed
        elif name == "id":
            if "\0" not in value:
                id_buffer = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            parsed.retry = retry = float(value) / 1000
    parsed.refused = len(_BYTES_LINE.sub(b"", stream)) > limit
    return parsed
