"""How a greenlet waits, and a thread starts, in a process that gevent has patched.

Rule: imported by _runtime/threads.py alone, and there alone that gevent has patched the process. Whatever
the loop's thread calls of this touches no hub but through its `_Mailbox`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import get_hub, getcurrent, spawn
from gevent.event import Event
from gevent.monkey import get_original

from .clock import clock

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


class _Mailbox:
    """What other threads have a hub do.

    A watcher of its loop's: `run_callback_threadsafe` is not what it says. It adds to the number of
    what the loop waits for, as the loop itself does in its own thread without the interpreter's lock.
    Where one of the two is lost, the loop has nothing to wait for some day, and ends.
    """

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        # Not waited for itself, so that gevent.wait() comes to its end.
        self._watcher = hub.loop.async_(ref=False)
        self._watcher.start(self._call)

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have the hub call `function`. From any thread. A hub that has ended calls nothing."""
        self._calls.append((function, args))
        if self.hub.loop is not None:
            self._watcher.send()

    def _call(self) -> None:
        while self._calls:
            function, args = self._calls.popleft()
            function(*args)


# Each thread's own hub's.
_here = get_original("_thread", "_local")()
# What to log in, by thread. Each thread writes its own.
_mailboxes: dict[int, _Mailbox] = {}


def _mailbox() -> _Mailbox:
    hub = get_hub()
    mailbox: _Mailbox | None = getattr(_here, "mailbox", None)
    if mailbox is None or mailbox.hub is not hub:
        mailbox = _here.mailbox = _Mailbox(hub)
    return mailbox


class GreenletWaiter:
    """One greenlet's wait for one wake-up, from any thread; the others of its own go on."""

    __slots__ = ("_event", "_mailbox")

    def __init__(self) -> None:
        self._mailbox = _mailbox()
        self._event = Event()

    def wait(self, timeout: float | None) -> bool:
        """Return True when woken, False when `timeout` seconds passed first (None: never)."""
        deadline = None if timeout is None else clock.monotonic() + timeout
        while not self._event.is_set():
            left = _WAIT_SECONDS if deadline is None else deadline - clock.monotonic()
            if left <= 0:
                return False
            self._event.wait(min(left, _WAIT_SECONDS))
        return True

    def wake(self) -> None:
        """End the wait."""
        # Not set() itself: this is mostly called in another thread.
        self._mailbox.post(self._event.set)


def in_hub() -> bool:
    """Whether this is gevent's hub, which must not wait; finalizers and callbacks run in it."""
    return getcurrent() is get_hub()


def start_thread(run: Callable[[], object]) -> None:
    """Start a thread of the operating system; one of `threading` is a greenlet.

    What is logged in it goes on to the handlers in a greenlet of the caller's: their locks are
    gevent's, and a greenlet that waits for one that a thread gives back may never be woken.
    """
    mailbox = _mailbox()
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _ToGreenlets) for one in logger.filters):
            logger.addFilter(_ToGreenlets(logger))

    def run_here() -> None:
        _mailboxes[_get_ident()] = mailbox
        try:
            run()
        finally:
            del _mailboxes[_get_ident()]

    get_original("_thread", "start_new_thread")(run_here, ())


class _ToGreenlets(logging.Filter):
    """Sends what a thread of the library's logs to a greenlet, which logs it."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        mailbox = _mailboxes.get(_get_ident())
        if mailbox is None:
            return True
        mailbox.post(spawn, self._logger.callHandlers, record)
        return False


def original(module: str, name: str) -> Any:
    """Return what the standard library had in the place of what gevent has put there."""
    return get_original(module, name)
