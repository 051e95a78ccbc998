"""Recorded streams: JSON lines, one event a line with its time.

    {"time": 0.412, "data": "{\"n\": 1}", "id": "1"}
    {"time": 0.530, "comment": "keep-alive"}
    {"time": 1.001, "data": "[DONE]"}
    {"time": 1.002, "end": "eof"}

`time` is in seconds since the request was sent. `event`, `id` (the stream's, as ever: it stays until there is
another one, or "") and `retry` (in seconds) stand where the event has them; `end` is "eof", or "cut" where the
connection broke, and is as good as "eof" where it is missing. A block without data is no event, and is not
recorded. Nothing is of the request, and nothing of the answer's headers: no secret can be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sseqbridge._exceptions import UsageError

from .encoder import encode
from .events import Comment, ServerSentEvent

__all__ = ["CUT", "EOF", "Recorded", "line_of", "read_recording"]

EOF = "eof"
CUT = "cut"


class Recorded(NamedTuple):
    """What came, an event, a comment or the end, and when."""

    time: float
    what: ServerSentEvent | Comment | str


def line_of(entry: Recorded, last_id: str = "") -> str:
    """Return an entry as a line of a recording, its end included; `last_id` is that of the event before."""
    what = entry.what
    told: dict[str, Any] = {"time": round(entry.time, 6)}
    if isinstance(what, str):
        told["end"] = what
    elif isinstance(what, Comment):
        told["comment"] = what.text
    else:
        if what.event != "message":
            told["event"] = what.event
        told["data"] = what.data
        if what.id != last_id:
            told["id"] = what.id
        if what.retry is not None:
            told["retry"] = what.retry
    return json.dumps(told, ensure_ascii=False) + "\n"


def read_recording(path: Path) -> list[Recorded]:
    """Return what a file holds. Raises OSError, and UsageError for what is no recording."""
    try:
        with path.open(encoding="utf-8") as lines:
            return _entries(path, lines)
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no recording: it is not UTF-8") from None


def _entries(path: Path, lines: Iterable[str]) -> list[Recorded]:
    entries: list[Recorded] = []
    last_id = ""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _entry(json.loads(line), last_id)
            if isinstance(entry.what, (ServerSentEvent, Comment)):
                encode(entry.what)
            if isinstance(entry.what, ServerSentEvent):
                last_id = entry.what.id
        except (ValueError, TypeError, KeyError, UsageError, RecursionError) as exc:
            raise UsageError(f"{path}, line {number}, is none of a recording: {type(exc).__name__}: {exc}") from exc
        if entries and entry.time < entries[-1].time:
            raise UsageError(f"{path}, line {number}: its time is before that of the line above")
        entries.append(entry)
    return entries


def _entry(told: Any, last_id: str) -> Recorded:
    if not isinstance(told, dict):
        raise TypeError("an object is wanted")
    time = told.pop("time")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time < float("inf"):
        raise ValueError('"time" is a number of seconds, 0 or more')
    what = _what(told, last_id)
    if told:
        raise ValueError(f"unknown: {', '.join(sorted(told))}")
    return Recorded(float(time), what)


def _what(told: dict[str, Any], last_id: str) -> ServerSentEvent | Comment | str:
    """Take an entry's own members."""
    if "end" in told:
        end = told.pop("end")
        if end not in (EOF, CUT):
            raise ValueError('"end" is "eof" or "cut"')
        return str(end)
    if "comment" in told:
        return Comment(_text(told.pop("comment")))
    retry = told.pop("retry", None)
    if retry is not None and (isinstance(retry, bool) or not isinstance(retry, (int, float))):
        raise TypeError('"retry" is a number of seconds')
    return ServerSentEvent(
        _text(told.pop("event", "message")), _text(told.pop("data")), _text(told.pop("id", last_id)), retry
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text is wanted")
    return value
