"""Runs the command line in a process of its own, and terminals that it writes to."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import ROOT, measured_environment

__all__ = ["Capture", "PseudoTerminal", "Terminal", "command"]

Capture = pytest.CaptureFixture[str]

# The descriptor to write to, and a function that returns the text written so far.
PseudoTerminal = tuple[int, Callable[[], str]]


@contextlib.contextmanager
def command(*arguments: str, shell: str = "", **how: Any) -> Iterator[subprocess.Popen[str]]:
    """Run the command line in a process of its own, which is killed at the end of the block.

    `shell` is a line of shell script that runs it as `"$@"`, to redirect or close its standard streams.
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {"env": measured_environment(), **pipes, **how}
    program = [sys.executable, "-m", "sseqbridge", *arguments]
    if shell:
        program = ["sh", "-c", shell, "sh", *program]
    process = subprocess.Popen(program, cwd=ROOT, text=True, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def pseudo_terminal() -> Iterator[PseudoTerminal]:
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    written = bytearray()

    def seen() -> str:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(ours, 65_536):
                written.extend(data)
        return written.decode()

    yield theirs, seen
    os.close(ours)
    os.close(theirs)
