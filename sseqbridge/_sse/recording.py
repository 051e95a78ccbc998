"""Recorded streams: JSON lines, one event per line with its time.

    {"time": 0.412, "data": "{\"n\": 1}", "id": "1"}
    {"time": 0.530, "comment": "keep-alive"}
    {"time": 1.001, "data": "[DONE]"}
    {"time": 1.002, "end": "eof"}

`time` is in seconds since the request was sent. `event`, `id` (which persists until another `id`, or "") and
`retry` (in seconds) are present where the event has them. `end` is "eof", or "cut" if the connection broke;
without an `end` the recording ends like "eof". Blocks without data dispatch no event and are not recorded.
A recording holds nothing of the request and no response headers, so that it contains no secrets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sseqbridge._checks import is_number
from sseqbridge._exceptions import UsageError

from .encoder import encode
from .events import Comment, ServerSentEvent

__all__ = ["CUT", "EOF", "Recorded", "format_line", "read_recording"]

EOF = "eof"
CUT = "cut"


class Recorded(NamedTuple):
    """One line of a recording: an event, a comment, or the end (EOF or CUT), with its time in seconds."""

    time: float
    item: ServerSentEvent | Comment | str


def format_line(entry: Recorded, last_id: str = "") -> str:
    """Return an entry as a line of a recording, with its line feed. `last_id` is the ID of the event before."""
    item = entry.item
    members: dict[str, Any] = {"time": round(entry.time, 6)}
    if isinstance(item, str):
        members["end"] = item
    elif isinstance(item, Comment):
        members["comment"] = item.text
    else:
        if item.event != "message":
            members["event"] = item.event
        members["data"] = item.data
        if item.id != last_id:
            members["id"] = item.id
        if item.retry is not None:
            members["retry"] = item.retry
    return json.dumps(members, ensure_ascii=False) + "\n"


def read_recording(path: Path) -> list[Recorded]:
    """Return the entries of a recording. Raises OSError, or UsageError if the file is not a recording."""
    try:
        with path.open(encoding="utf-8") as lines:
            return _parse_lines(path, lines)
    except UnicodeDecodeError:
        raise UsageError(f"{path} must be a recording in UTF-8, got other bytes") from None


def _parse_lines(path: Path, lines: Iterable[str]) -> list[Recorded]:
    entries: list[Recorded] = []
    last_id = ""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _parse_entry(json.loads(line), last_id)
            if isinstance(entry.item, (ServerSentEvent, Comment)):
                encode(entry.item)
            if isinstance(entry.item, ServerSentEvent):
                last_id = entry.item.id
        except (ValueError, TypeError, KeyError, UsageError, RecursionError) as exc:
            raise UsageError(f"{path}, line {number}, is not part of a recording: {type(exc).__name__}: {exc}") from exc
        if entries and entry.time < entries[-1].time:
            raise UsageError(f"{path}, line {number}: `time` must not be before that of the previous line")
        entries.append(entry)
    return entries


def _parse_entry(members: Any, last_id: str) -> Recorded:
    if not isinstance(members, dict):
        raise TypeError(f"a line must be a JSON object, got {type(members).__name__}")
    time = members.pop("time")
    if not is_number(time) or not 0 <= time < float("inf"):
        raise ValueError(f"`time` must be a number of seconds, at least 0, got {time!r}")
    item = _pop_item(members, last_id)
    if members:
        raise ValueError(f"the members must be those of a recording, got {', '.join(sorted(members))}")
    return Recorded(float(time), item)


def _pop_item(members: dict[str, Any], last_id: str) -> ServerSentEvent | Comment | str:
    if "end" in members:
        end = members.pop("end")
        if end not in (EOF, CUT):
            raise ValueError(f'`end` must be "eof" or "cut", got {end!r}')
        return str(end)
    if "comment" in members:
        return Comment(_as_text(members.pop("comment")))
    retry = members.pop("retry", None)
    if retry is not None and not is_number(retry):
        raise TypeError(f"`retry` must be a number of seconds, got {retry!r}")
    event = _as_text(members.pop("event", "message"))
    data = _as_text(members.pop("data"))
    return ServerSentEvent(event, data, _as_text(members.pop("id", last_id)), retry)


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`event`, `data`, `id` and `comment` must be text, got {type(value).__name__}")
    return value
