"""The output of the command line: items, messages, a status line during waits, figures at the end.

Runs on the main thread; nothing here reads a stream or waits. `print_message` is thread-safe.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sseqbridge._runtime.clock import clock
from sseqbridge._sse.encoder import StreamEncoder

if TYPE_CHECKING:
    from sseqbridge import StreamStats

__all__ = ["Printer", "StatusLine", "format_stats", "item_printer", "print_message", "value_at"]

_CLEAR_LINE = "\r\x1b[K"
# Shorter waits show no status line.
_SHOWN_AFTER_SECONDS = 0.5


def print_message(text: str) -> None:
    """Print a message to standard error."""
    print(f"sseqbridge: {text}", file=sys.stderr, flush=True)


class Printer(Protocol):
    """Prints items: `add` for each item, `flush` after a batch, `end` after the last."""

    def add(self, item: Any) -> None: ...

    def flush(self) -> None: ...

    def end(self) -> None: ...


def item_printer(output: TextIO, decode: str, path: list[str] | None) -> Printer:
    """Return the printer for the items of a stream that is read with `decode`."""
    if path is not None:
        return _PathPrinter(output, path)
    return _LinePrinter(output, decode)


class _LinePrinter:
    """Prints each item on lines of its own."""

    def __init__(self, output: TextIO, decode: str) -> None:
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


class _PathPrinter:
    """Prints one value of each item, without separators, and a line break at the end."""

    def __init__(self, output: TextIO, path: list[str]) -> None:
        self._output = output
        self._path = path
        self._last_character = "\n"

    def add(self, item: Any) -> None:
        value = value_at(item, self._path)
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self._output.write(text)
            self._last_character = text[-1:] or self._last_character

    def flush(self) -> None:
        self._output.flush()

    def end(self) -> None:
        if self._last_character != "\n":
            self._output.write("\n")
        self.flush()


def value_at(item: Any, path: list[str]) -> Any:
    """Return the value at a path of keys (of objects) and indices (of lists), None if there is none."""
    for step in path:
        if isinstance(item, dict):
            item = item.get(step)
        elif isinstance(item, list) and step.lstrip("-").isdecimal() and -len(item) <= int(step) < len(item):
            item = item[int(step)]
        else:
            return None
    return item


class StatusLine:
    """A line on a terminal that shows the duration of a wait. Does nothing if standard error is not a terminal.

    `until_first`: hide it for good after the first event, since the printed text shares its line.
    """

    def __init__(self, terminal: TextIO, *, until_first: bool = False) -> None:
        self.is_shown = terminal.isatty() and os.environ.get("TERM") != "dumb"
        self.events = 0
        self._terminal = terminal
        self._until_first = until_first
        self._began_at = self._last_at = clock.monotonic()
        self._is_drawn = False

    @property
    def seconds(self) -> float:
        """Seconds since the status line was created."""
        return clock.monotonic() - self._began_at

    def show(self, activity: str) -> None:
        """Draw the line, with the duration of the current wait."""
        waited = clock.monotonic() - self._last_at
        if waited >= _SHOWN_AFTER_SECONDS:
            count = f", {self.events} events so far" if self.events else ""
            self._terminal.write(f"{_CLEAR_LINE}{activity}, {waited:.0f} s{count}")
            self._terminal.flush()
            self._is_drawn = True

    def add(self, events: int) -> None:
        """Count events that are about to be printed, and clear the line."""
        self.clear()
        self.events += events
        if self._until_first:
            self.is_shown = False

    def clear(self) -> None:
        """Erase the line and restart the duration."""
        self._last_at = clock.monotonic()
        if self._is_drawn:
            self._terminal.write(_CLEAR_LINE)
            self._terminal.flush()
            self._is_drawn = False


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
