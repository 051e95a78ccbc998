"""`sseqbridge serve FILE`: serves a recorded stream.

The main thread waits for Ctrl-C. The scripts run on the server's thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import threads

from .output import print_message
from .request import new_parser

if TYPE_CHECKING:
    from sseqbridge.testing import ReceivedRequest, Script, Step

__all__ = ["serve_recording", "wait_for_interrupt"]

_USAGE = "sseqbridge serve FILE [options]"
_DESCRIPTION = """\
Play a stored stream, with its timing, to every client that connects: to develop and test a user interface
without the upstream. All paths and methods get the same stream. A request with a Last-Event-ID gets the
events after it. Ctrl-C ends the server.

  sseqbridge serve events.jsonl --port 8000 --cors
"""

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "*",
    "Access-Control-Allow-Headers": "*, Authorization",
}


def serve_recording(given: list[str]) -> None:
    """Run the command with its arguments, until Ctrl-C."""
    parser = new_parser("serve", _USAGE, _DESCRIPTION)
    parser.add_argument("file", metavar="FILE", type=Path, help="a file that `sseqbridge record` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=8000, help="the port to listen on, 0 for a free one (default: %(default)s)"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="2 plays twice as fast, inf without waits")
    parser.add_argument("--cors", action="store_true", help="let web pages of other origins read the stream")
    arguments = parser.parse_args(given)
    # Imported late: the other commands need no HTTP server.
    from sseqbridge.testing import SSEServer, recording

    try:
        script = recording(arguments.file, speed=arguments.speed)
    except OSError as exc:
        raise UsageError(str(exc)) from exc
    if arguments.cors:
        script = _with_cors(script)
    with SSEServer(_with_log(script), host=arguments.host, port=arguments.port) as server:
        print_message(f"{server.url} plays {arguments.file}; Ctrl-C ends it")
        wait_for_interrupt()


def wait_for_interrupt() -> None:
    """Wait until Ctrl-C raises KeyboardInterrupt."""
    # Not threading.Event: an interrupt at the start of its wait() raises RuntimeError.
    threads.ThreadWaiter().wait(None)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, got {text!r}")
    return int(text)


def _with_log(script: Script) -> Script:
    """Return the script with a message for each request."""

    def logged(request: ReceivedRequest) -> Iterator[Step]:
        print_message(f"{request.method} {request.path.partition('?')[0]}")
        yield from script(request)

    return logged


def _with_cors(script: Script) -> Script:
    """Return the script with CORS headers, and with responses to preflight requests."""
    from sseqbridge.testing import respond

    def shared(request: ReceivedRequest) -> Iterator[Step]:
        if request.method == "OPTIONS":
            yield respond(204, _CORS, content_type=None)
            return
        steps = iter(script(request))
        next(steps)  # The recording's own respond().
        yield respond(headers=_CORS)
        yield from steps

    return shared
