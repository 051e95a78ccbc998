"""`sseqbridge URL`: prints a stream as it arrives. Runs on the main thread, except ClosedReader.is_set."""

from __future__ import annotations

import argparse
import http.client
import sys
from functools import partial
from typing import Any, TextIO, get_args

from sseqbridge import __version__
from sseqbridge._engine.responses import Head
from sseqbridge._exceptions import RequestAbortedError, UsageError
from sseqbridge._runtime import sockets
from sseqbridge._sse.dialects import DialectName
from sseqbridge._streams.sync import EventStream

from .errors import CommandError
from .output import PathPrinter, Printer, StatusLine, drop_output, format_stats, item_printer, print_message
from .request import add_request_arguments, batches, new_parser, read_body, send_request
from .terminal import Output, output_for, standard_error

__all__ = ["print_stream"]

_USAGE = """\
sseqbridge URL [options]              print a stream of events
       sseqbridge record URL FILE [options]  store a stream in a file
       sseqbridge serve FILE [options]       play a stored stream to clients"""
_DESCRIPTION = """\
Print the events of an event stream (Server-Sent Events) as they arrive.

  sseqbridge https://example.com/events
  sseqbridge https://api.openai.com/v1/chat/completions -H "Authorization: Bearer $KEY" \\
      -d '{"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}' \\
      --path choices.0.delta.content

`sseqbridge record --help` and `sseqbridge serve --help` describe the other two commands.
"""


class ClosedReader:
    """A cancel flag that is set when the reader of a pipe or terminal closes it. Thread-safe."""

    def __init__(self, output: TextIO) -> None:
        try:
            self._fd = output.fileno()
        except (OSError, ValueError):
            self._fd = -1  # Not a file: the output of a test or a notebook.

    def is_set(self) -> bool:
        return self._fd >= 0 and sockets.is_reading_end_closed(self._fd)


def print_stream(given: list[str]) -> None:
    """Run the command with its arguments."""
    arguments = _parse(given)
    decode = "event" if arguments.events else "json" if arguments.json or arguments.path else "text"
    # None if it was closed, which the type stubs leave out.
    stream: TextIO | None = sys.stdout
    if stream is None:
        raise UsageError("standard output must be open, got a closed one. Redirect it to a file or pipe.")
    stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    body = read_body(arguments.data)
    # A string at --path is printed as it is.
    output = output_for(stream, as_json=arguments.json and not arguments.path)
    printer = item_printer(output, decode, arguments.path)
    closed_reader = ClosedReader(stream)
    status = StatusLine(standard_error(), output)
    is_lines = arguments.jsonl
    options: dict[str, Any] = {"decode": decode, "comments": arguments.events and not is_lines, "cancel": closed_reader}
    if arguments.dialect is not None:
        options["dialect"] = arguments.dialect
    if arguments.include:
        options["on_head"] = partial(_print_head, output)
    events: EventStream[Any] | None = None
    try:
        with send_request(arguments, body, status, format="jsonl" if is_lines else "sse", **options) as response:
            events = response.raise_for_status().events
            _print_items(events, printer, status, arguments.max_events)
    except RequestAbortedError:
        pass  # `closed_reader` was set: the output has no reader.
    except KeyboardInterrupt:
        _drop_blocked_output(stream)
        raise
    finally:
        status.clear()
        printer.end()
        if arguments.stats and events is not None:
            print_message(format_stats(events.stats, status.events, status.seconds))
    if isinstance(printer, PathPrinter) and not closed_reader.is_set() and (mismatch := printer.mismatch()):
        raise CommandError(mismatch)


def _drop_blocked_output(stream: TextIO) -> None:
    """Drop the rest of the output if its reader does not read: the command has to end."""
    try:
        fd = stream.fileno()
    except (OSError, ValueError):
        return  # Not a file: the output of a test or a notebook.
    if not sockets.is_writable(fd):
        drop_output(stream)


def _print_head(output: Output, head: Head) -> None:
    """Print a response's head in HTTP/1.1's format, followed by an empty line."""
    phrase = http.client.responses.get(head.status, "")
    lines = [f"{head.http_version} {head.status} {phrase}".rstrip()]
    encoding = head.headers.encoding
    lines += [f"{name.decode(encoding)}: {value.decode(encoding)}" for name, value in head.headers.raw]
    output.write("\n".join([*lines, "", ""]))
    output.flush()


def _parse(given: list[str]) -> argparse.Namespace:
    parser = new_parser("", _USAGE, _DESCRIPTION)
    add_request_arguments(parser)
    stream = parser.add_argument_group("the stream")
    stream.add_argument("--jsonl", action="store_true", help="the response is JSON Lines: each line is an event")
    stream.add_argument(
        "--dialect",
        choices=get_args(DialectName),
        help="conventions of the server: which event ends the stream, which are heartbeats, which report errors "
        "(default: openai, where [DONE] is the end; events: no conventions, the stream ends when the server closes it)",
    )
    group = parser.add_argument_group("the output")
    formats = group.add_mutually_exclusive_group()
    formats.add_argument("--text", action="store_true", help="print the data of each event (default)")
    formats.add_argument("--json", action="store_true", help="print the data of each event as one line of JSON")
    formats.add_argument("--events", action="store_true", help="print whole events and comments, in SSE format")
    group.add_argument(
        "--path",
        metavar="KEY.INDEX...",
        type=_path,
        help="print only the value at this place in the JSON of each event, such as choices.0.delta.content, "
        "without line breaks between the values",
    )
    group.add_argument("-i", "--include", action="store_true", help="print status and headers of the response first")
    group.add_argument("--stats", action="store_true", help="print counts and times to standard error at the end")
    parser.add_argument("--version", action="version", version=_version())
    arguments = parser.parse_args(given)
    if arguments.path and (arguments.text or arguments.events):
        parser.error("--path selects from JSON: use it with --json")
    if arguments.jsonl and arguments.dialect is not None:
        parser.error("--jsonl: each line of JSON Lines is an item, so that --dialect has no meaning")
    if arguments.jsonl and (arguments.reconnect or arguments.last_event_id is not None):
        parser.error("--jsonl: JSON Lines have no IDs, with which --reconnect and --last-event-id resume a stream")
    return arguments


def _path(text: str) -> list[str]:
    path = text.split(".")
    if not all(path):
        raise argparse.ArgumentTypeError(f"must be keys and indices with dots between them, got {text!r}")
    return path


def _version() -> str:
    return f"sseqbridge {__version__}"


def _print_items(events: EventStream[Any], printer: Printer, status: StatusLine, limit: int | None) -> None:
    for items in batches(events, status, limit):
        for item in items:
            printer.add(item)
        printer.flush()
