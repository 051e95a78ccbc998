"""The entry point of the command line: dispatches to a command, and turns errors into an exit status.

    sseqbridge URL                print a stream
    sseqbridge record URL FILE    store a stream with its timing
    sseqbridge serve FILE         serve a stored stream

Invariant: standard output receives items of the stream only; messages go to standard error. The exit status is 0,
1 if the stream or the response failed, 2 for wrong arguments, 130 after Ctrl-C. If the reader of a pipe closes it,
the command ends silently with 0. Everything runs on the main thread.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable, Sequence

from sseqbridge._exceptions import (
    ContentTypeError,
    DecodeError,
    ResponseError,
    SSEError,
    StreamTimeoutError,
    UsageError,
)
from sseqbridge._sse.provider_errors import quoted

from .output import print_message
from .print_command import print_stream
from .record_command import record_stream
from .serve_command import serve_recording

__all__ = ["main"]

_OK, _FAILED, _WRONG_ARGUMENTS, _INTERRUPTED = 0, 1, 2, 130

_COMMANDS: dict[str, Callable[[list[str]], None]] = {"record": record_stream, "serve": serve_recording}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default with sys.argv, and return its exit status."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output at exit, which would fail again.
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
    except UsageError as exc:
        print_message(str(exc))
        return _WRONG_ARGUMENTS
    except (SSEError, OSError) as exc:
        if isinstance(exc, ResponseError):
            _print_body(exc)
        print_message(_describe(exc))
        return _FAILED
    return _OK


def _run(arguments: list[str]) -> None:
    command = _COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        print_stream(arguments)
    else:
        command(arguments[1:])


def _describe(error: Exception) -> str:
    """Return an error as text that names options of the command line instead of arguments of request_sse."""
    if isinstance(error, ContentTypeError):
        content_type = error.headers.get("content-type", "no Content-Type")
        return f"the answer is {quoted(content_type)}, not text/event-stream; --any-content-type reads it anyway"
    if isinstance(error, ResponseError):
        return f"the upstream answered {error.status} {http.client.responses.get(error.status, '')}".rstrip()
    if isinstance(error, StreamTimeoutError):
        return f"{error.description}; --timeout sets this limit"
    if isinstance(error, DecodeError):
        cause = error.__cause__
        where = f" ({cause.msg} at character {cause.pos})" if isinstance(cause, json.JSONDecodeError) else ""
        return f'the data of a "{quoted(error.event.event)}" event is not JSON{where}; --text prints it unchanged'
    return str(error)


def _print_body(error: ResponseError) -> None:
    if error.text:
        print(error.text, end="" if error.text.endswith("\n") else "\n", file=sys.stderr, flush=True)
