"""Threads, locks and waiting. Nothing else in the package starts a thread, makes a lock or waits.

Where gevent has patched the process the loop still runs in a thread of the operating system, and the
library's locks are locks between such threads: none is held across a call that lets another greenlet
run. Only the greenlet that waits for an item waits. Whether the process is patched is checked at each
call, since the library may be imported before it is.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .patching import is_gevent, original

__all__ = [
    "DaemonThread",
    "Signal",
    "ThreadWaiter",
    "Waiter",
    "at_exit",
    "may_wait",
    "new_lock",
    "new_waiter",
    "start_worker",
    "thread_id",
]

# The originals, also if the library is imported after the process was patched.
_allocate_lock = original("_thread", "allocate_lock")
_get_ident = original("_thread", "get_ident")


def new_lock() -> Any:
    """Return a lock between threads of the operating system."""
    return _allocate_lock()


def thread_id() -> int:
    """Return which thread of the operating system this is."""
    return _get_ident()  # type: ignore[no-any-return]


class ThreadWaiter:
    """One thread's wait for one wake-up, from any thread, also from a signal handler.

    A raw lock: unlike an Event or a Condition it has no inner lock that whoever interrupts the
    waiting thread could find taken. `wake` may be called once, before or during the wait.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _allocate_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Return True when woken, False when `timeout` seconds passed first (None: never)."""
        return self._lock.acquire(  # type: ignore[no-any-return]
            timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        )

    def wake(self) -> None:
        self._lock.release()


class Waiter(Protocol):
    """What a thread or a greenlet waits with; as `ThreadWaiter`."""

    def wait(self, timeout: float | None) -> bool: ...

    def wake(self) -> None: ...


def new_waiter() -> Waiter:
    """Return what the caller, a thread or a greenlet, waits with."""
    if is_gevent():
        from . import gevent

        return gevent.GreenletWaiter()
    return ThreadWaiter()


def may_wait() -> bool:
    """Whether the caller may wait: not in gevent's hub."""
    if is_gevent():
        from . import gevent

        return not gevent.in_hub()
    return True


class Signal:
    """Something that happens once, which any number of threads and greenlets can wait for."""

    __slots__ = ("_waiters", "is_set")

    def __init__(self) -> None:
        # Set, to True, before the waiters are woken; those publish theirs and look again.
        self.is_set = False
        self._waiters: deque[Callable[[], object]] = deque()

    def set(self) -> None:
        """Wake all who wait."""
        self.is_set = True
        while True:
            try:
                wake = self._waiters.popleft()
            except IndexError:
                return
            wake()

    def notify(self, wake: Callable[[], object]) -> None:
        """Have `wake` called once, by whoever sets it, or now where it is set."""
        self._waiters.append(wake)
        if self.is_set:
            self.set()

    def wait(self, timeout: float | None) -> bool:
        """Return True once it is set, False when `timeout` seconds passed first (None: never)."""
        waiter = new_waiter()
        self.notify(waiter.wake)
        return self.is_set or waiter.wait(timeout)


class DaemonThread:
    """A thread of the operating system that never keeps the process alive."""

    def __init__(self, target: Callable[..., object], name: str, *args: object) -> None:
        self.ident: int | None = None
        self._ended = Signal()
        self._call = target, args
        self._join: Callable[[float], object] = self._ended.wait
        if is_gevent():
            from . import gevent

            gevent.start_thread(self._run)
        else:
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._join = thread.join
            thread.start()

    def _run(self) -> None:
        self.ident = thread_id()
        target, args = self._call
        del self._call
        try:
            target(*args)
        finally:
            self._ended.set()

    @property
    def has_ended(self) -> bool:
        """Whether its function has returned."""
        return self._ended.is_set

    def join(self, timeout: float) -> None:
        """Wait until it has ended, `timeout` seconds at most."""
        self._join(timeout)


def start_worker(target: Callable[..., object], *args: object) -> None:
    """Start a thread for code of the application's: a greenlet, where gevent has made threads that."""
    threading.Thread(target=target, args=args, name="sseqbridge-worker", daemon=True).start()


def at_exit(callback: Callable[[], object]) -> None:
    """Have `callback` called when the interpreter exits, after the last non-daemon thread."""
    atexit.register(callback)


