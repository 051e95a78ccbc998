"""`sseqbridge record URL FILE`: stores a stream with its timing. Runs on the main thread.

Invariant: every line that was recorded is in a file with a visible name when the command ends, unless it is killed:
after an error, a full disk or a signal too (recording_file.py, signals.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sseqbridge._exceptions import TransportError
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.recording import CUT, EOF, Recorded, format_line
from sseqbridge._streams.sync import EventStream

from .output import StatusLine, print_message
from .recording_file import NewFile, OpenFile, is_replaceable
from .request import add_request_arguments, batches, new_parser, read_body, send_request
from .signals import DeferredSignals
from .terminal import standard_error

__all__ = ["record_stream"]

_USAGE = "sseqbridge record URL FILE [options]"
_DESCRIPTION = """\
Store a stream in FILE, with the time of each event. `sseqbridge serve FILE` plays it back, and so does
sseqbridge.testing.recording in tests. FILE has one JSON object per line, and holds no part of the request
and no response headers.

  sseqbridge record https://example.com/events events.jsonl --max-events 100

If the stream breaks, the disk is full, or the command is ended by Ctrl-C, SIGTERM or SIGHUP, the events that
have arrived are kept.
"""


def record_stream(given: list[str]) -> None:
    """Run the command with its arguments."""
    parser = new_parser("record", _USAGE, _DESCRIPTION)
    add_request_arguments(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="the file to create")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    arguments = parser.parse_args(given)
    body = read_body(arguments.data)
    if arguments.overwrite and not is_replaceable(arguments.file):
        _record(arguments, body, OpenFile(arguments.file))
    else:
        with DeferredSignals() as signals:
            _record(arguments, body, NewFile(arguments.file, overwrite=arguments.overwrite), signals)


def _record(
    arguments: argparse.Namespace,
    body: bytes | None,
    output: NewFile | OpenFile,
    signals: DeferredSignals | None = None,
) -> None:
    """Record into `output` and finish it. With `signals`, they interrupt only the recording."""
    status = StatusLine(standard_error())
    try:
        if signals is None:
            _record_events(arguments, body, output, status)
        else:
            with signals.raised():
                _record_events(arguments, body, output, status)
    finally:
        status.clear()
        kept = output.finish()
        _print_summary(arguments.file, kept, None if output.error else status.events)
    if output.error is not None:
        raise output.error
    if kept is not None and kept != arguments.file:
        raise FileExistsError(f"another process created {arguments.file} in the meantime")


def _print_summary(file: Path, kept: Path | None, count: int | None) -> None:
    """Print a message about the recording in `kept`, if there is one. `count` is None after a write error."""
    if kept is None:
        return
    events = "the events that could be written are" if count is None else f"{count} events"
    print_message(f"{events} in {kept}" if kept == file else f"{file} is unchanged; {events} in {kept}")


def _record_events(
    arguments: argparse.Namespace, body: bytes | None, output: NewFile | OpenFile, status: StatusLine
) -> None:
    options: dict[str, Any] = {"decode": "event", "comments": True, "done": _is_done}
    with send_request(arguments, body, status, **options) as response:
        _write_items(response.raise_for_status().events, output, status, arguments.max_events)


def _is_done(event: ServerSentEvent) -> bool:
    return event.data == "[DONE]"


def _write_items(events: EventStream[Any], output: NewFile | OpenFile, status: StatusLine, limit: int | None) -> None:
    last_id = ""
    try:
        for items in batches(events, status, limit):
            lines = []
            for item in items:
                lines.append(format_line(Recorded(status.seconds, item), last_id))
                last_id = last_id if isinstance(item, Comment) else item.id
            output.write("".join(lines))
    except TransportError:
        output.write(format_line(Recorded(status.seconds, CUT)))
        raise
    if events.outcome in ("done", "eof"):
        output.write(format_line(Recorded(status.seconds, EOF)))
