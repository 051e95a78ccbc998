"""Signals that ask a command to end: SIGINT, SIGTERM and SIGHUP.

Handlers run on the main thread. In any other thread, where Python installs none, the functions here change nothing.
A signal that the process ignores, as SIGHUP under nohup, stays ignored.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

__all__ = ["DeferredSignals", "Interrupted", "ending_signals_raised", "exit_status"]

# Windows has no SIGHUP.
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

Handler = Callable[[int, "FrameType | None"], object]


class Interrupted(KeyboardInterrupt):
    """Raised if SIGTERM or SIGHUP asks the command to end. `number` is the signal's, an int."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status after a signal: 128 plus its number, as of a process that the signal has ended."""
    return 128 + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


@contextlib.contextmanager
def ending_signals_raised() -> Iterator[None]:
    """Raise Interrupted for SIGTERM and SIGHUP during a `with` block. (Python raises KeyboardInterrupt for SIGINT.)"""
    before = _handle([number for number in _ENDING if number != signal.SIGINT], _raise)
    try:
        yield
    finally:
        _restore(before)


class DeferredSignals:
    """Keeps the signals from interrupting a `with` block, except the part of it that is inside `raised()`.

    A signal that came outside that part is raised at its beginning, or at the end of the block. At most one signal
    interrupts the part: the code that handles the interrupt is not interrupted again.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._pending: int | None = None
        self._may_raise = False

    def __enter__(self) -> DeferredSignals:
        self._before = _handle(_ENDING, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        _restore(self._before)
        if kind is None and self._pending is not None:
            _raise(self._pending, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._may_raise:
            self._may_raise = False
            _raise(number, frame)
        if self._pending is None:
            self._pending = number

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Let a signal interrupt a `with` block."""
        self._may_raise = True
        try:
            if self._pending is not None:
                number, self._pending = self._pending, None
                _raise(number, None)
            yield
        finally:
            self._may_raise = False


def _handle(numbers: Sequence[int], handler: Handler) -> dict[int, Any]:
    """Install a handler, and return the handlers before it by signal."""
    before: dict[int, Any] = {}
    for number in numbers:
        # None: a handler that was not installed from Python.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            with contextlib.suppress(ValueError):  # Not the main thread.
                before[number] = signal.signal(number, handler)
    return before


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
