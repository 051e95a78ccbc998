r"""Output on a terminal: escaped control characters, and the column at which a status line must not overwrite text.

Runs on the main thread. A terminal obeys escape sequences, which a server could put into an event to change the
terminal's title, colors or clipboard. In a pipe or file they are data.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from typing import Protocol, TextIO

__all__ = ["Output", "TerminalOutput", "escaped", "is_terminal", "output_for", "standard_error"]

# C0 except tab and line feed, DEL and C1.
_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"]
_ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS}
_TAB = 8


def escaped(text: str, *, as_json: bool = False) -> str:
    r"""Return text with its control characters as \x1b, or as \u001b; tabs and line feeds stay."""
    return text.translate(_JSON_ESCAPES if as_json else _ESCAPES)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is open, and a terminal."""
    return stream is not None and stream.isatty()


def standard_error() -> TextIO | None:
    """Return standard error; None if it is closed."""
    # The type stubs leave out None.
    stream: TextIO | None = sys.stderr
    return stream


class Output(Protocol):
    """The part of TextIO that printers use."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class TerminalOutput:
    """Writes to a terminal, with control characters escaped. `column` is the width of the last, unfinished line."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self.column = 0
        self._stream = stream
        self._as_json = as_json

    def write(self, text: str) -> None:
        text = escaped(text, as_json=self._as_json)
        self._stream.write(text)
        _, line_feed, last = text.rpartition("\n")
        self.column = _column_after(last, 0 if line_feed else self.column)

    def flush(self) -> None:
        self._stream.flush()

    @property
    def is_line_full(self) -> bool:
        """Whether the last line fills the terminal's width, so that the next character begins another."""
        return self.column > 0 and self.column % shutil.get_terminal_size().columns == 0

    def break_line(self) -> None:
        """End the last line if it is unfinished."""
        if self.column:
            self.write("\n")
            self.flush()


def output_for(stream: TextIO, *, as_json: bool) -> Output:
    """Return the output for items: the stream itself, unless it is a terminal."""
    return TerminalOutput(stream, as_json=as_json) if is_terminal(stream) else stream


def _column_after(text: str, column: int) -> int:
    if text.isascii() and "\t" not in text:
        return column + len(text)
    for character in text:
        column += _TAB - column % _TAB if character == "\t" else _width_of(character)
    return column


def _width_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
