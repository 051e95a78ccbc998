"""Threads, locks and waiting: other modules start threads, make locks and wait with these functions and classes.

In a process that gevent has patched, the event loop still runs in an OS thread, and the library's locks
exclude OS threads: none is held across a call that switches greenlets. Only the greenlet that waits for an
item blocks. Whether the process is patched is checked at each call, since it may be patched after import.
Everything here is thread-safe.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from sseqbridge._exceptions import causes_of

from .clock import clock
from .patching import is_gevent, original

__all__ = [
    "DaemonThread",
    "OneShotEvent",
    "ThreadWaiter",
    "Waiter",
    "at_exit",
    "end_daemons_quietly",
    "may_wait",
    "new_lock",
    "new_waiter",
    "start_os_worker",
    "start_worker",
    "start_worker_in_finalizer",
    "thread_id",
]

# How long a thread waits without running a bytecode. PyThreadState_SetAsyncExc, with which dramatiq and Streamlit stop
# threads, raises its exception between two bytecodes of the thread, and does not wake it. A thousand silent threads
# that wake once a second use 3.5 % of a core on a busy machine. A wait that ends within a second costs no more.
_WAIT_SECONDS = 1.0
_WORKER_NAME = "sseqbridge-worker"

# The unpatched functions, even if the library is imported after the process was patched.
_allocate_lock = original("_thread", "allocate_lock")
_get_ident = original("_thread", "get_ident")
_start_new_thread = original("_thread", "start_new_thread")


def new_lock() -> Any:
    """Return a new lock between OS threads."""
    return _allocate_lock()


def thread_id() -> int:
    """Return the identifier of the current OS thread."""
    return _get_ident()  # type: ignore[no-any-return]


class ThreadWaiter:
    """One thread waiting for one wake-up, which may come from any thread or from a signal handler.

    A raw lock: threading.Event and Condition have an inner lock, on which a signal handler that interrupts
    the waiting thread would deadlock. `wake` is idempotent, and may also come before or after the wait.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _allocate_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Return True when woken, False after `timeout` seconds. None waits indefinitely."""
        acquire = self._lock.acquire
        if timeout is None:
            while not acquire(timeout=_WAIT_SECONDS):
                pass
            return True
        if timeout <= _WAIT_SECONDS:
            return acquire(timeout=max(timeout, 0.0))  # type: ignore[no-any-return]
        deadline = clock.monotonic() + timeout
        while not acquire(timeout=min(max(deadline - clock.monotonic(), 0.0), _WAIT_SECONDS)):
            if clock.monotonic() >= deadline:
                return False
        return True

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # Woken already.


class Waiter(Protocol):
    """The interface of ThreadWaiter, which GreenletWaiter also implements."""

    def wait(self, timeout: float | None) -> bool: ...

    def wake(self) -> None: ...


def new_waiter() -> Waiter:
    """Return a waiter for the caller, a thread or a greenlet."""
    # The first condition costs no call: this runs for every wait.
    if "gevent.monkey" in sys.modules and is_gevent():
        from . import gevent

        return gevent.GreenletWaiter()
    return ThreadWaiter()


def may_wait() -> bool:
    """Return whether the caller may wait: False in gevent's hub."""
    if is_gevent():
        from . import gevent

        return not gevent.in_hub()
    return True


class OneShotEvent:
    """An event that is set once. Any number of threads and greenlets can wait for it.

    No lost wakeup: `set` writes `is_set` before it takes waiters from the queue, and a waiter enters the
    queue before it reads `is_set`. Safe in finalizers and signal handlers.
    """

    __slots__ = ("_waiters", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiters: deque[Callable[[], object]] = deque()

    def set(self) -> None:
        """Wake all waiters. Idempotent."""
        self.is_set = True
        while True:
            try:
                wake = self._waiters.popleft()
            except IndexError:
                return
            wake()

    def notify(self, wake: Callable[[], object]) -> None:
        """Call `wake` once: in the thread that calls `set`, or here if the event is set already."""
        self._waiters.append(wake)
        if self.is_set:
            # Not set(), which calls the waiters of other threads too: an interrupt here must not lose those.
            try:
                self._waiters.remove(wake)
            except ValueError:
                return
            wake()

    def wait(self, timeout: float | None) -> bool:
        """Return True when the event is set, False after `timeout` seconds. None waits indefinitely."""
        waiter = new_waiter()
        self.notify(waiter.wake)
        return self.is_set or waiter.wait(timeout)


class DaemonThread:
    """An OS thread, even under gevent, that does not keep the process alive."""

    def __init__(self, target: Callable[..., object], name: str, *args: object) -> None:
        self.ident: int | None = None
        self._ended = OneShotEvent()
        self._call = target, args
        self._join: Callable[[float], object] = self._ended.wait
        if is_gevent():
            from . import gevent

            gevent.start_thread(self._run)
        else:
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._join = thread.join
            _start(thread)

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
        """Whether the target has returned."""
        return self._ended.is_set

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, at most `timeout` seconds."""
        self._join(timeout)


def start_worker(target: Callable[..., object], *args: object) -> None:
    """Start a daemon thread for code of the application; under gevent, a greenlet."""
    _start(threading.Thread(target=target, args=args, name=_WORKER_NAME, daemon=True))


def _start(thread: threading.Thread) -> None:
    """Start a thread. An interrupt (Ctrl-C) during the call is raised as it is.

    Thread.start() waits in a Condition, which can replace it by the RuntimeError "release unlocked lock".
    """
    outer = sys.exc_info()[1]
    try:
        thread.start()
    except RuntimeError as exc:
        interrupt = exc.__context__
        if interrupt is None or interrupt is outer or isinstance(interrupt, Exception):
            raise
        raise interrupt from None


def start_os_worker(target: Callable[..., object], *args: object) -> None:
    """Do the same in a thread that gevent's hub does not run in: start an OS thread, even under gevent."""
    DaemonThread(target, _WORKER_NAME, *args)


def start_worker_in_finalizer(target: Callable[..., object], *args: object) -> None:
    """Start a daemon thread for code of the application, an OS thread even under gevent. Safe in finalizers.

    A finalizer may run between any two bytecodes, so it must take no lock, as Thread.start() does. Raises RuntimeError
    if the interpreter is shutting down.
    """
    _start_new_thread(_start_in_thread, (target, args))


def _start_in_thread(target: Callable[..., object], args: tuple[object, ...]) -> None:
    if is_gevent():
        # A Thread would be a greenlet of this thread, which ends.
        target(*args)
    else:
        start_worker(target, *args)


def at_exit(callback: Callable[[], object]) -> None:
    """Call `callback` when the interpreter exits, after the last non-daemon thread."""
    atexit.register(callback)


def end_daemons_quietly(kind: type[BaseException]) -> None:
    """Print no traceback of a daemon thread or a greenlet that ends with an error of this kind.

    For the exit of the interpreter. Other errors, and those of other threads, are reported as before. An error of a
    daemon thread that such an error has caused counts too.
    """
    report = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs, /) -> None:
        causes = () if args.exc_value is None else causes_of(args.exc_value)
        is_daemon = args.thread is not None and args.thread.daemon
        if not (is_daemon and any(isinstance(cause, kind) for cause in causes)):
            report(args)

    threading.excepthook = excepthook
    if is_gevent():
        from . import gevent

        gevent.end_greenlets_quietly(kind)
