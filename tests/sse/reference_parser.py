"""A slow event stream parser that is obviously correct, to compare the real one with.

It follows the text of the WHATWG standard, section by section, on a complete stream. Beyond the standard it
has the limit, which counts bytes as received, and a finite reconnection time.
https://html.spec.whatwg.org/multipage/server-sent-events.html
https://encoding.spec.whatwg.org/#utf-8-decoder
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from sseqbridge._sse.events import Comment, ServerSentEvent

__all__ = ["Parsed", "parse"]

# 9.2.5: a line ends with CRLF, LF or CR. Text after the last line end is not a line.
_LINE = re.compile("([^\r\n]*)(?:\r\n|\n|\r)")
_BYTES_LINE = re.compile(b"([^\r\n]*)(?:\r\n|\n|\r)")

_DIGITS = re.compile("[0-9]+")
_MAX_RETRY_SECONDS = 1e12


@dataclass
class Parsed:
    """The result of parsing a stream: its items, the final state, and whether it is refused."""

    items: list[ServerSentEvent | Comment] = field(default_factory=list)
    last_event_id: str = ""
    retry: float | None = None
    refused: bool = False


def _decoded(stream: bytes) -> str:
    text = ""
    at = code_point = needed = 0
    lower, upper = 0x80, 0xBF
    while at < len(stream):
        byte = stream[at]
        if not needed:
            if byte <= 0x7F:
                text += chr(byte)
            elif 0xC2 <= byte <= 0xDF:
                needed, code_point = 1, byte & 0x1F
            elif 0xE0 <= byte <= 0xEF:
                lower, upper = 0xA0 if byte == 0xE0 else 0x80, 0x9F if byte == 0xED else 0xBF
                needed, code_point = 2, byte & 0xF
            elif 0xF0 <= byte <= 0xF4:
                lower, upper = 0x90 if byte == 0xF0 else 0x80, 0x8F if byte == 0xF4 else 0xBF
                needed, code_point = 3, byte & 0x7
            else:
                text += "\ufffd"
            at += 1
        elif lower <= byte <= upper:
            lower, upper = 0x80, 0xBF
            needed, code_point = needed - 1, code_point << 6 | byte & 0x3F
            if not needed:
                text += chr(code_point)
            at += 1
        else:
            # The byte is examined again, as the first of another character.
            lower, upper = 0x80, 0xBF
            needed = 0
            text += "\ufffd"
    return text + "\ufffd" if needed else text


def parse(
    stream: bytes, limit: float = float("inf"), last_event_id: str = "", end_events: Collection[str] = ()
) -> Parsed:
    """Parse all of `stream`, comments included, up to the place where it is refused.

    It is refused at the first line of more than `limit` bytes, even if incomplete, and at the first line that
    makes the data of an event longer than `limit` bytes. `last_event_id` is that of the previous connection.
    Beyond the standard, events of the types `end_events` need no data.
    """
    # 9.2.6: "UTF-8 decode", which drops one byte order mark.
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    text = _decoded(stream)
    parsed = Parsed(last_event_id=last_event_id)
    data = event_type = ""
    id_buffer = last_event_id
    retry = None
    data_bytes = 0
    for line, raw in zip(_LINE.findall(text), _BYTES_LINE.findall(stream), strict=True):
        if len(raw) > limit:
            parsed.refused = True
            return parsed
        if line == "":
            parsed.last_event_id = id_buffer
            if data != "" or (event_type in end_events and event_type not in ("", "message")):
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
        elif name == "retry" and _DIGITS.fullmatch(value):
            parsed.retry = retry = min(float(value) / 1000, _MAX_RETRY_SECONDS)
    parsed.refused = len(_BYTES_LINE.sub(b"", stream)) > limit
    return parsed
