"""The entry point of the command line: dispatches to a command, and turns errors into an exit status.

    sseqbridge URL                print a stream
    sseqbridge record URL FILE    store a stream with its timing
    sseqbridge serve FILE         serve a stored stream

Invariant: standard output receives items of the stream only (and its head, with --include); messages go to standard
error. The exit status is 0, 1 if the stream or the response failed, 2 for wrong arguments, 130 after Ctrl-C, 143
after SIGTERM, 129 after SIGHUP. If the reader of a pipe closes it, the command ends silently with 0. Everything runs
on the main thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from sseqbridge._exceptions import ResponseError, SSEError, UsageError

from .errors import CommandError, body_text, describe
from .output import drop_output, print_error, print_message
from .print_command import print_stream
from .record_command import record_stream
from .serve_command import serve_recording
from .signals import ending_signals_raised, exit_status

__all__ = ["main"]

_OK, _FAILED, _WRONG_ARGUMENTS = 0, 1, 2

_COMMANDS: dict[str, Callable[[list[str]], None]] = {"record": record_stream, "serve": serve_recording}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default with sys.argv, and return its exit status.

    Raises SystemExit for --help, --version and arguments that argparse refuses.
    """
    _occupy_standard_descriptors()
    try:
        with ending_signals_raised():
            status = _status_of(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as interrupt:
        status = exit_status(interrupt)
    finally:
        # Also after argparse's SystemExit.
        _drop_unwritable_output(sys.stdout)
        _drop_unwritable_output(sys.stderr)
    return status


def _status_of(arguments: list[str]) -> int:
    try:
        _run(arguments)
    except BrokenPipeError:
        return _OK
    except UsageError as exc:
        print_message(str(exc))
        return _WRONG_ARGUMENTS
    except (SSEError, OSError, CommandError) as exc:
        if isinstance(exc, ResponseError) and (text := body_text(exc)):
            print_error(text if text.endswith("\n") else f"{text}\n")
        print_message(describe(exc))
        return _FAILED
    return _OK


def _run(arguments: list[str]) -> None:
    command = _COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        print_stream(arguments)
    else:
        command(arguments[1:])


def _occupy_standard_descriptors() -> None:
    """Open /dev/null in place of closed standard streams, so that no file or connection gets their descriptors."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free descriptor, which is `fd`.
            os.open(os.devnull, os.O_RDWR)


def _drop_unwritable_output(stream: TextIO | None) -> None:
    """Flush a standard stream; if that fails, drop the output, which the interpreter would flush again at exit."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        assert stream is not None
        drop_output(stream)
