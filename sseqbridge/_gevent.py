"""How a greenlet waits, and a thread starts, in a process that gevent has patched.

Rule: imported by _runtime.py alone, and there alone that gevent has patched the process. Whatever
the loop's thread calls of this touches no hub but through `run_callback_threadsafe`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from gevent import get_hub, getcurrent, spawn
from gevent.event import Event
from gevent.monkey import get_original

__all__ = ["GreenletWaiter", "in_hub", "original", "start_thread"]

# gevent ends a wait for which nothing in its own loop can come; a timer can.
_WAIT_SECONDS = 1.0

# Those that are written to in the library's threads.
_LOGGERS = (
    "asyncio",
    "hpack.hpack",
    "hpack.table",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "httpcore2.connection",
    "httpcore2.http11",
    "httpcore2.http2",
    "httpcore2.proxy",
    "httpcore2.socks",
    "httpx",
    "httpx2",
    # What a stream that is dropped warns of, where warnings are logged.
    "py.warnings",
    "sseqbridge",
    "sseqbridge.loop",
)
_get_ident = get_original("_thread", "get_ident")
# The hub to log in, by thread. Each thread writes its own.
_hubs: dict[int, Any] = {}


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
    """Start a thread of the operating system; one of `threading` is a greenlet.

    What is logged in it goes on to the handlers in a greenlet of the caller's: their locks are
    gevent's, and a greenlet that waits for one that a thread gives back may never be woken.
    """
    hub = get_hub()
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _ToGreenlets) for one in logger.filters):
            logger.addFilter(_ToGreenlets(logger))

    def run_here() -> None:
        _hubs[_get_ident()] = hub
        try:
            run()
        finally:
            del _hubs[_get_ident()]

    get_original("_thread", "start_new_thread")(run_here, ())


class _ToGreenlets(logging.Filter):
    """Sends what a thread of the library's logs to a greenlet, which logs it."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        hub = _hubs.get(_get_ident())
        if hub is None:
            return True
        if hub.loop is not None:
            hub.loop.run_callback_threadsafe(spawn, self._logger.callHandlers, record)
        return False


def original(module: str, name: str) -> Any:
    """Return what the standard library had in the place of what gevent has put there."""
    return get_original(module, name)
