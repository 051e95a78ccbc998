"""Calls that a test stops at a line, so that it decides how two threads interleave."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

from tests.support import in_thread

__all__ = ["Stepped"]


class Stepped:
    """A call in a thread of its own, which stops before one line of a module: the first that it runs there is 1."""

    def __init__(self, call: Callable[[], Any], lines: int, module: ModuleType) -> None:
        self._module = module
        self._lines = lines
        self._stopped = threading.Event()
        self._go_on = threading.Event()
        self.reached_its_stop = False

        def run() -> Any:
            sys.settrace(self._trace)
            try:
                return call()
            finally:
                sys.settrace(None)
                self._stopped.set()

        self.result = in_thread(run)
        assert self._stopped.wait(30)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != self._module.__file__:
            return None
        if event == "line":
            self._lines -= 1
            if self._lines == 0:
                self.reached_its_stop = True
                self._stopped.set()
                assert self._go_on.wait(30)
        return self._trace

    def finish(self) -> Any:
        """Let the call go on to its end, and return its result."""
        self._go_on.set()
        return self.result.result(30)
