"""How a greenlet waits, and a thread starts, in a process that gevent has patched.

Rule: imported by _runtime.py alone, and there alone that gevent has patched the process. Whatever
the loop's thread calls of this touches no hub but through `run_callback_threadsafe`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gevent import get_hub, getcurrent
from gevent.event import Event
from gevent.monkey import get_original

__all__ = ["GreenletWaiter", "in_hub", "original", "start_thread"]

# gevent ends a wait for which nothing in its own loop can come; a timer can.
_WAIT_SECONDS = 1.0


class GreenletWaiter:
    """One greenlet's wait for one wake-up, from any thread; the others of its own go on."""

    __slots__ = ("_event", "_hub")

    def __init__(self) -> None:
        self._hub = get_hub()
        self._event = Event()

    def wait(self, timeout: float | None) -> bool:
        """Return True when woken, False when `timeout` seconds passed first (None: never)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._event.is_set():
            left = _WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return False
            self._event.wait(min(left, _WAIT_SECONDS))
        return True

    def wake(self) -> None:
        """End the wait."""
        # Not set() itself: this is mostly called in another thread. A hub that has ended has no loop.
        loop = self._hub.loop
        if loop is not None:
            loop.run_callback_threadsafe(self._event.set)


def in_hub() -> bool:
    """Whether this is gevent's hub, which must not wait; finalizers and callbacks run in it."""
    return getcurrent() is get_hub()


def start_thread(run: Callable[[], object]) -> None:
    """Start a thread of the operating system; one of `threading` is a greenlet."""
    get_original("_thread", "start_new_thread")(run, ())


def original(module: str, name: str) -> Any:
    """Return what the standard library had in the place of what gevent has put there."""
    return get_original(module, name)
