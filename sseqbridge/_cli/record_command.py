"""`sseqbridge record URL FILE`: stores a stream with its timing. Runs on the main thread.

Invariant: an existing file is replaced only if at least one line was recorded.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sseqbridge._exceptions import TransportError, UsageError
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.recording import CUT, EOF, Recorded, format_line
from sseqbridge._streams.sync import EventStream

from .output import StatusLine, print_message
from .request import add_request_arguments, batches, new_parser, read_body, send_request

__all__ = ["record_stream"]

_DESCRIPTION = """\
Write an event stream with its timing to FILE, for `sseqbridge serve` and sseqbridge.testing.recording:
JSON lines, one event per line. FILE contains nothing of the request and no response headers.
"""


def record_stream(given: list[str]) -> None:
    """Run the command with its arguments."""
    parser = new_parser("record", _DESCRIPTION)
    add_request_arguments(parser)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    arguments = parser.parse_args(given)
    body = read_body(arguments.data)
    file: Path = arguments.file
    if file.exists() and not arguments.overwrite:
        raise UsageError(f"{file} must not exist yet. Pass --overwrite to replace it.")
    status = StatusLine(sys.stderr)
    options = {"decode": "event", "comments": True, "done": _is_done}
    with _replacing(file) as output, send_request(arguments, body, status, **options) as response:
        _write_items(response.raise_for_status().events, output, status, arguments.max_events)
    print_message(f"{status.events} events in {file}")


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[TextIO]:
    """Open a temporary file beside `file` that replaces it at the end, unless nothing was written.

    A pipe or device is written directly.
    """
    part = file.with_name(f".{file.name}.part") if file.is_file() or not file.exists() else file
    try:
        output = part.open("w", encoding="utf-8")
    except OSError as exc:
        raise UsageError(str(exc)) from exc
    try:
        with output:
            yield output
    finally:
        if part != file and part.stat().st_size:
            part.replace(file)
        elif part != file:
            part.unlink()


def _is_done(event: ServerSentEvent) -> bool:
    return event.data == "[DONE]"


def _write_items(events: EventStream[Any], file: TextIO, status: StatusLine, limit: int | None) -> None:
    last_id = ""
    try:
        for items in batches(events, status, limit):
            for item in items:
                file.write(format_line(Recorded(status.seconds, item), last_id))
                last_id = last_id if isinstance(item, Comment) else item.id
            file.flush()
    except TransportError:
        file.write(format_line(Recorded(status.seconds, CUT)))
        raise
    finally:
        status.clear()
    if events.outcome in ("done", "eof"):
        file.write(format_line(Recorded(status.seconds, EOF)))
