"""The output of the command line: items, messages, a status line during waits, figures at the end.

Runs on the main thread; nothing here reads a stream or waits. `print_message` is thread-safe.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sseqbridge._runtime.clock import clock
from sseqbridge._sse.encoder import StreamEncoder

from .terminal import Output, TerminalOutput, escaped, is_terminal, standard_error

if TYPE_CHECKING:
    from sseqbridge import StreamStats

__all__ = [
    "PathPrinter",
    "Printer",
    "StatusLine",
    "drop_output",
    "format_stats",
    "item_printer",
    "print_error",
    "print_message",
    "value_at",
]

_CLEAR_LINE = "\r\x1b[K"
# For the line below unfinished text: the first sequence scrolls if there is no line below. The cursor ends where it
# was; its position is saved after the scrolling.
_MAKE_LINE_BELOW = "\x1bD\x1b[A"
_SAVE, _RESTORE, _DOWN = "\x1b7", "\x1b8", "\x1b[B"
# Shorter waits show no status line.
_SHOWN_AFTER_SECONDS = 0.5
_MISSING: Any = object()
_MOST_KEYS = 10
_INDEX = re.compile("-?[0-9]{1,9}")


def print_message(text: str) -> None:
    """Print a message to standard error."""
    print_error(f"sseqbridge: {text}\n")


def print_error(text: str) -> None:
    """Print text to standard error, with control characters escaped if it is a terminal."""
    stream = standard_error()
    if stream is None:
        return
    try:
        stream.write(escaped(text) if is_terminal(stream) else text)
        stream.flush()
    except OSError:
        pass  # Closed, full or hung up: there is no other place for messages.


def drop_output(stream: TextIO) -> None:
    """Write a standard stream's buffer, and its later output, to /dev/null."""
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), stream.fileno())


class Printer(Protocol):
    """Prints items: `add` for each item, `flush` after a batch, `end` after the last."""

    def add(self, item: Any) -> None: ...

    def flush(self) -> None: ...

    def end(self) -> None: ...


def item_printer(output: Output, decode: str, path: list[str] | None) -> Printer:
    """Return the printer for the items of a stream that is read with `decode`."""
    if path is not None:
        return PathPrinter(output, path)
    return _LinePrinter(output, decode)


class _LinePrinter:
    """Prints each item on lines of its own."""

    def __init__(self, output: Output, decode: str) -> None:
        self._output = output
        self._encoder = StreamEncoder()
        self._format = {"event": self._as_event, "json": _as_json}.get(decode, _as_line)

    def add(self, item: Any) -> None:
        self._output.write(self._format(item))

    def flush(self) -> None:
        self._output.flush()

    def end(self) -> None:
        self.flush()

    def _as_event(self, item: Any) -> str:
        return self._encoder.encode(item).decode()


def _as_json(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def _as_line(item: str) -> str:
    return item + "\n"


class PathPrinter:
    """Prints one value of each item, without separators, and a line break at the end."""

    def __init__(self, output: Output, path: list[str]) -> None:
        self._output = output
        self._path = path
        self._last_character = "\n"
        self._has_matched = False
        # The first item that has no such value.
        self._unmatched: Any = _MISSING

    def add(self, item: Any) -> None:
        value = value_at(item, self._path, _MISSING)
        if value is _MISSING:
            if self._unmatched is _MISSING:
                self._unmatched = item
            return
        self._has_matched = True
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self._output.write(text)
            self._last_character = text[-1:] or self._last_character

    def flush(self) -> None:
        self._output.flush()

    def end(self) -> None:
        if self._last_character != "\n":
            self._output.write("\n")
            self._last_character = "\n"
        self.flush()

    def mismatch(self) -> str | None:
        """Return a message if there were items and none has the value; else None."""
        if self._has_matched or self._unmatched is _MISSING:
            return None
        return f"no event has a value at --path {'.'.join(self._path)}: {_where_it_ends(self._unmatched, self._path)}"


def value_at(item: Any, path: list[str], default: Any = None) -> Any:
    """Return the value at a path of keys (of objects) and indices (of lists), `default` if there is none."""
    for step in path:
        if isinstance(item, dict) and step in item:
            item = item[step]
        elif isinstance(item, list) and _INDEX.fullmatch(step) and -len(item) <= int(step) < len(item):
            item = item[int(step)]
        else:
            return default
    return item


def _where_it_ends(item: Any, path: list[str]) -> str:
    """Return a description of the last value on a path that does not lead to one."""
    length = max(length for length in range(len(path)) if value_at(item, path[:length], _MISSING) is not _MISSING)
    value = value_at(item, path[:length])
    name = f"{'.'.join(path[:length])} of the first event" if length else "the first event"
    if isinstance(value, dict):
        keys = [key[:40] for key in value]
        more = ", ..." if len(keys) > _MOST_KEYS else ""
        return f"{name} has the keys {', '.join(keys[:_MOST_KEYS])}{more}" if keys else f"{name} has no keys"
    if isinstance(value, list):
        return f"{name} is a list of {len(value)}"
    return f"{name} is no object and no list"


class StatusLine:
    """A line on a terminal that shows the duration of a wait. Does nothing if `terminal` is closed or no terminal.

    `output` is given if the items go to the same terminal: the status line never overwrites an unfinished line of
    them, but is drawn below it.
    """

    def __init__(self, terminal: TextIO | None, output: Output | None = None) -> None:
        self.is_shown = is_terminal(terminal) and os.environ.get("TERM") != "dumb"
        self.events = 0
        self._terminal = terminal
        self._output = output if isinstance(output, TerminalOutput) else None
        self._began_at = self._last_at = clock.monotonic()
        # Erases the line; "" if there is none.
        self._eraser = ""

    @property
    def seconds(self) -> float:
        """Seconds since the status line was created."""
        return clock.monotonic() - self._began_at

    def show(self, activity: str) -> None:
        """Draw the line, with the duration of the current wait."""
        waited = clock.monotonic() - self._last_at
        if waited < _SHOWN_AFTER_SECONDS:
            return
        count = f", {self.events} events so far" if self.events else ""
        # Text that is longer than the line would scroll it away, or leave a part of itself behind.
        text = f"{activity}, {waited:.0f} s{count}"[: shutil.get_terminal_size().columns - 1]
        if self._output is not None and self._output.is_line_full:
            # The next character begins another line in any case.
            self._output.break_line()
        if self._output is not None and self._output.column:
            self._write(f"{_MAKE_LINE_BELOW}{_SAVE}{_DOWN}{_CLEAR_LINE}{text}{_RESTORE}")
            self._eraser = f"{_SAVE}{_DOWN}{_CLEAR_LINE}{_RESTORE}"
        else:
            self._write(f"{_CLEAR_LINE}{text}")
            self._eraser = _CLEAR_LINE

    def add(self, events: int) -> None:
        """Count events that are about to be printed, and clear the line."""
        self.clear()
        self.events += events

    def clear(self) -> None:
        """Erase the line and restart the duration."""
        self._last_at = clock.monotonic()
        if self._eraser:
            self._write(self._eraser)
            self._eraser = ""

    def print_message(self, text: str) -> None:
        """Print a message on a line of its own."""
        self.clear()
        if self._output is not None:
            self._output.break_line()
        print_message(text)

    def _write(self, text: str) -> None:
        assert self._terminal is not None
        try:
            self._terminal.write(text)
            self._terminal.flush()
        except OSError:
            # The terminal was closed.
            self.is_shown = False


def format_stats(stats: StreamStats, events: int, seconds: float) -> str:
    """Return one line about a stream of which `events` events were printed in `seconds`."""
    first = stats.time_to_first_event
    parts = [
        "no event" if first is None else f"first event after {first:.3f} s",
        f"{events} events in {seconds:.3f} s ({events / seconds:,.1f} a second)",
        f"{stats.bytes:,} bytes",
    ]
    if stats.reconnections:
        parts.append(f"{stats.reconnections} reconnections")
    return ", ".join(parts)
