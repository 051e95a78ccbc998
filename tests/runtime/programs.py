"""Programs for tests of signals and of the interpreter's exit, which run in another process as the consumer."""

from __future__ import annotations

import os
import subprocess
import time

from tests.support import EXITS, started

__all__ = ["PRELUDE", "exits", "read_line"]

PRELUDE = """
import os, signal, socket, sys, threading, time
from sseqbridge import request_sse
from tests.support import thread_waits as waits, until_blocked

# A shell that runs the tests in the background makes them, and their children, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

def when_waiting(act):
    main = threading.main_thread().ident
    def watch():
        until_blocked(main)
        act()
    threading.Thread(target=watch, daemon=True).start()

def signal_when_waiting(number):
    when_waiting(lambda: os.kill(os.getpid(), number))

url = sys.argv[1]
"""


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of a program's output, reading past the buffer, which communicate() ignores."""
    assert process.stdout is not None
    line = b""
    while (byte := os.read(process.stdout.fileno(), 1)) not in (b"\n", b""):
        line += byte
    return line.decode().strip()


def exits(program: str, *args: str) -> tuple[int, str, str]:
    """Run a program that exits with its stream open, and return its status, output and errors.

    The program prints a line right before it exits; the time is measured from then on.
    """
    with started(PRELUDE + program, *args) as process:
        line = read_line(process)
        at = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - at < EXITS
        return process.returncode, line + out, err
