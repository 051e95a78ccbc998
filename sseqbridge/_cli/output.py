"""What the command line prints: items, a status line while it waits, the figures at the end.

Rule: nothing here reads a stream, and nothing waits.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sseqbridge._runtime.clock import clock
from sseqbridge._sse.encoder import StreamEncoder

if TYPE_CHECKING:
    from sseqbridge._engine.stats import StreamStats

__all__ = ["Printer", "StatusLine", "item_printer", "told_stats"]

_CLEAR_LINE = "\r\x1b[K"
# Shorter waits are not worth a line.
_SHOWN_AFTER_SECONDS = 0.5


class Printer(Protocol):
    """What items are given to: `add` for each, `flush` when there are no more for now, `end` when for good."""

    def add(self, item: Any) -> None: ...

    def flush(self) -> None: ...

    def end(self) -> None: ...


def item_printer(output: TextIO, decode: str, path: list[str] | None) -> Printer:
    """Return what prints the items of a stream that is read with `decode`."""
    if path is not None:
        return _PathPrinter(output, path)
    return _LinePrinter(output, decode)


class _LinePrinter:
    def __init__(self, output: TextIO, decode: str) -> None:
        self._output = output
        self._encoder = StreamEncoder()
        self._text = {"event": self._as_in_a_stream, "json": _as_json}.get(decode, _as_line)

    def add(self, item: Any) -> None:
        self._output.write(self._text(item))

    def flush(self) -> None:
        self._output.flush()

    def end(self) -> None:
        self.flush()

    def _as_in_a_stream(self, item: Any) -> str:
        return self._encoder.encode(item).decode()


def _as_json(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def _as_line(item: str) -> str:
    return item + "\n"


class _PathPrinter:
    """Prints one value of each item, one after another; and, at the end, that the line ends."""

    def __init__(self, output: TextIO, path: list[str]) -> None:
        self._output = output
        self._path = path
        self._last = "\n"

    def add(self, item: Any) -> None:
        value = value_at(item, self._path)
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self._output.write(text)
            self._last = text[-1:] or self._last

    def flush(self) -> None:
        self._output.flush()

    def end(self) -> None:
        if self._last != "\n":
            self._output.write("\n")
        self.flush()


def value_at(item: Any, path: list[str]) -> Any:
    """Return what stands there: by key in an object, by index in a list; None where nothing does."""
    for step in path:
        if isinstance(item, dict):
            item = item.get(step)
        elif isinstance(item, list) and step.lstrip("-").isdecimal() and -len(item) <= int(step) < len(item):
            item = item[int(step)]
        else:
            return None
    return item


class StatusLine:
    """One line on a terminal while nothing comes; nothing where standard error is none.

    `until_first` says that what is printed stands in the same line: the first of it is the end of this.
    """

    def __init__(self, terminal: TextIO, *, until_first: bool = False) -> None:
        self.is_shown = terminal.isatty() and os.environ.get("TERM") != "dumb"
        self.events = 0
        self._terminal = terminal
        self._until_first = until_first
        self._began_at = self._last_at = clock.monotonic()
        self._stands = False

    @property
    def seconds(self) -> float:
        """How long it has been."""
        return clock.monotonic() - self._began_at

    def show(self, what: str) -> None:
        """Say what is waited for, and how long."""
        waited = clock.monotonic() - self._last_at
        if waited >= _SHOWN_AFTER_SECONDS:
            count = f", {self.events} events so far" if self.events else ""
            self._terminal.write(f"{_CLEAR_LINE}{what}, {waited:.0f} s{count}")
            self._terminal.flush()
            self._stands = True

    def add(self, events: int) -> None:
        """Something came, and is about to be printed."""
        self.clear()
        self.events += events
        if self._until_first:
            self.is_shown = False

    def clear(self) -> None:
        """Take the line away."""
        self._last_at = clock.monotonic()
        if self._stands:
            self._terminal.write(_CLEAR_LINE)
            self._terminal.flush()
            self._stands = False


def told_stats(stats: StreamStats, events: int, seconds: float) -> str:
    """Return the figures of a stream of which so many events were printed in `seconds`, in one line."""
    first = stats.time_to_first_event
    told = [
        "no event" if first is None else f"first event after {first:.3f} s",
        f"{events} events in {seconds:.3f} s ({events / seconds:,.1f} a second)",
        f"{stats.bytes:,} bytes",
    ]
    if stats.reconnections:
        told.append(f"{stats.reconnections} reconnections")
    return ", ".join(told)
