"""Waiting greenlets, and OS threads, in a process that gevent has patched.

Only its siblings threads.py and patching.py import this module, after they detected gevent.
Invariant: other threads reach a hub only through its `_Mailbox`.
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

__all__ = ["GreenletWaiter", "end_greenlets_quietly", "in_hub", "original", "start_thread"]

# gevent raises LoopExit from a wait that no event in its loop can end. With a timeout, a timer can.
_WAIT_SECONDS = 1.0

# The loggers that code in the library's threads writes to.
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
    # ResourceWarnings of dropped streams, if logging.captureWarnings is on.
    "py.warnings",
    "sseqbridge",
    "sseqbridge.loop",
)
_get_ident = get_original("_thread", "get_ident")


class _Mailbox:
    """Runs functions in a hub on behalf of other threads.

    It uses an async watcher, since gevent's `run_callback_threadsafe` is not thread-safe: it increments the
    loop's reference count while the loop thread changes it without the GIL. After a lost update the loop
    has nothing to wait for and ends.
    """

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        # ref=False, so that gevent.wait() does not wait for the watcher.
        self._watcher = hub.loop.async_(ref=False)
        self._watcher.start(self._call)

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function` in the hub. Thread-safe. Does nothing if the hub has ended."""
        self._calls.append((function, args))
        if self.hub.loop is not None:
            self._watcher.send()

    def _call(self) -> None:
        while self._calls:
            function, args = self._calls.popleft()
            function(*args)


# The mailbox of each thread's own hub.
_thread_local = get_original("_thread", "_local")()
# The hub that logs for a thread, by thread ID. Each thread writes its own entry.
_logging_mailboxes: dict[int, _Mailbox] = {}


def _mailbox() -> _Mailbox:
    hub = get_hub()
    mailbox: _Mailbox | None = getattr(_thread_local, "mailbox", None)
    if mailbox is None or mailbox.hub is not hub:
        mailbox = _thread_local.mailbox = _Mailbox(hub)
    return mailbox


class GreenletWaiter:
    """One greenlet waiting for one wake-up, from any thread. Other greenlets keep running."""

    __slots__ = ("_event", "_mailbox")

    def __init__(self) -> None:
        self._mailbox = _mailbox()
        self._event = Event()

    def wait(self, timeout: float | None) -> bool:
        """Return True when woken, False after `timeout` seconds. None waits indefinitely."""
        deadline = None if timeout is None else clock.monotonic() + timeout
        while not self._event.is_set():
            left = _WAIT_SECONDS if deadline is None else deadline - clock.monotonic()
            if left <= 0:
                return False
            self._event.wait(min(left, _WAIT_SECONDS))
        return True

    def wake(self) -> None:
        """End the wait. Thread-safe."""
        self._mailbox.post(self._event.set)


def in_hub() -> bool:
    """Return whether this is gevent's hub, which must not wait. Finalizers and callbacks may run in it."""
    return getcurrent() is get_hub()


def start_thread(run: Callable[[], object]) -> None:
    """Start an OS thread. (A threading.Thread is a greenlet.)

    Log records of the thread are handled in a greenlet of the caller's hub: the locks of handlers are
    gevent's, and a greenlet that waits for a lock that an OS thread releases may never wake up.
    """
    mailbox = _mailbox()
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(entry, _LogInGreenlet) for entry in logger.filters):
            logger.addFilter(_LogInGreenlet(logger))

    def run_and_log() -> None:
        _logging_mailboxes[_get_ident()] = mailbox
        try:
            run()
        finally:
            del _logging_mailboxes[_get_ident()]

    get_original("_thread", "start_new_thread")(run_and_log, ())


class _LogInGreenlet(logging.Filter):
    """Forwards log records from the library's threads to a greenlet, which handles them."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        mailbox = _logging_mailboxes.get(_get_ident())
        if mailbox is None:
            return True
        mailbox.post(spawn, self._logger.callHandlers, record)
        return False


def original(module: str, name: str) -> Any:
    """Return the function of the standard library that gevent has replaced."""
    return get_original(module, name)


def end_greenlets_quietly(kind: type[BaseException]) -> None:
    """Print no traceback of a greenlet of this thread that ends with an error of this kind."""
    hub = get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, kind)
