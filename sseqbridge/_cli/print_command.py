"""`sseqbridge URL`: prints a stream as it arrives. Runs on the main thread, except ClosedReader.is_set."""

from __future__ import annotations

import argparse
import sys
from typing import Any, TextIO

from sseqbridge._exceptions import RequestAbortedError, UsageError
from sseqbridge._runtime import sockets
from sseqbridge._streams.sync import EventStream

from .output import Printer, StatusLine, format_stats, item_printer, print_message
from .request import add_request_arguments, batches, new_parser, read_body, send_request

__all__ = ["print_stream"]

_DESCRIPTION = """\
Print an event stream as it arrives.

  sseqbridge https://example.com/events
  sseqbridge https://api.openai.com/v1/chat/completions -H "Authorization: Bearer $KEY" \\
      -d '{"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}' \\
      --path choices.0.delta.content
  sseqbridge record URL FILE      store a stream with its timing
  sseqbridge serve FILE           serve a stored stream
"""


class ClosedReader:
    """A cancel flag that is set when the reader of a pipe or terminal closes it. Thread-safe."""

    def __init__(self, output: TextIO) -> None:
        try:
            self._fd = output.fileno()
        except (OSError, ValueError):
            self._fd = -1  # Not a file: the output of a test or a notebook.

    def is_set(self) -> bool:
        return self._fd >= 0 and sockets.reader_has_left(self._fd)


def print_stream(given: list[str]) -> None:
    """Run the command with its arguments."""
    arguments = _parse(given)
    decode = "event" if arguments.events else "json" if arguments.json or arguments.path else "text"
    if sys.stdout is None:
        raise UsageError("standard output must be open, got a closed one. Redirect it to a file or pipe.")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    body = read_body(arguments.data)
    printer = item_printer(sys.stdout, decode, arguments.path)
    closed_reader = ClosedReader(sys.stdout)
    status = StatusLine(sys.stderr, until_first=bool(arguments.path) and sys.stdout.isatty())
    options = {"decode": decode, "comments": arguments.events, "cancel": closed_reader}
    events: EventStream[Any] | None = None
    try:
        with send_request(arguments, body, status, **options) as response:
            events = response.raise_for_status().events
            _print_items(events, printer, status, arguments.max_events)
    except RequestAbortedError:
        pass  # `closed_reader` was set: the output has no reader.
    finally:
        status.clear()
        printer.end()
        if arguments.stats and events is not None:
            print_message(format_stats(events.stats, status.events, status.seconds))


def _parse(given: list[str]) -> argparse.Namespace:
    parser = new_parser("", _DESCRIPTION)
    add_request_arguments(parser)
    formats = parser.add_argument_group("the output").add_mutually_exclusive_group()
    formats.add_argument("--text", action="store_true", help="the data of each event (default)")
    formats.add_argument("--json", action="store_true", help="the data of each event as JSON, on one line")
    formats.add_argument("--events", action="store_true", help="whole events and comments in the event stream format")
    parser.add_argument("--path", metavar="KEY.INDEX...", type=_path, help="only this value of each JSON, joined")
    parser.add_argument("--stats", action="store_true", help="print the number of events and their rate at the end")
    parser.add_argument("--version", action="version", version=_version())
    arguments = parser.parse_args(given)
    if arguments.path and (arguments.text or arguments.events):
        parser.error("--path selects from JSON: use it with --json")
    return arguments


def _path(text: str) -> list[str]:
    path = text.split(".")
    if not all(path):
        raise argparse.ArgumentTypeError(f"must be keys and indices with dots between them, got {text!r}")
    return path


def _version() -> str:
    from importlib.metadata import version

    return f"sseqbridge {version('sseqbridge')}"


def _print_items(events: EventStream[Any], printer: Printer, status: StatusLine, limit: int | None) -> None:
    for items in batches(events, status, limit):
        for item in items:
            printer.add(item)
        printer.flush()
