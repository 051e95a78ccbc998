"""All that is known of the process: threads, locks, waiting, sockets, fork, gevent and the interpreter's exit.

Rule: nothing else in the package starts a thread, makes a lock, waits, or looks at how the
interpreter was set up. What is here takes no lock of the library's own.

Where gevent has patched the process, the loop runs in a thread of the operating system all the
same, with the library's own locks around what it shares: none is held across anything that lets
another greenlet run. Only the greenlet that waits for an item waits. Whether it has is asked each
time, for the library may be imported before it does.

A forked child has its parent's objects, and none of its threads: locks that nobody gives back, a
loop that nobody runs, sockets that are the parent's still. It starts anew on first use, with locks
of its own, and keeps what was the parent's from ever being finalized. `process_token()` tells the two
apart, also where fork hooks do not run.
"""

from __future__ import annotations

import _socket
import asyncio
import atexit
import contextvars
import os
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from sseqbridge import _accelerators as _fast

from .clock import clock

if sys.platform != "win32":
    import fcntl

if sys.platform == "win32":
    from asyncio import ProactorEventLoop as StandardEventLoop
else:
    from asyncio import SelectorEventLoop as StandardEventLoop

__all__ = [
    "DaemonThread",
    "ForkSafeLock",
    "Signal",
    "ThreadWaiter",
    "Waiter",
    "above_standard_descriptors",
    "after_fork",
    "at_exit",
    "detach_connection_after_fork",
    "in_coroutine",
    "in_notebook",
    "is_eventlet",
    "is_readable",
    "literal_address",
    "may_wait",
    "new_event_loop",
    "new_lock",
    "new_waiter",
    "peer_has_left",
    "pin",
    "process_token",
    "reader_has_left",
    "run_in_daemon_thread",
    "shut_down_connection",
    "shut_down_socket",
    "standard_descriptors",
    "start_worker",
    "thread_id",
]

T = TypeVar("T")


def _is_gevent() -> bool:
    """Whether gevent has patched the process: asked each time, for it may come later than this."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def is_eventlet() -> bool:
    """Whether eventlet has patched the process."""
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))


def _original(module: str, name: str) -> Any:
    """Return a function of the standard library's, and not what gevent has put in its place."""
    if _is_gevent():
        from . import gevent as _gevent

        return _gevent.original(module, name)
    return getattr(sys.modules[module], name)


# Those of before the patch, also where this is imported after it.
_allocate_lock = _original("_thread", "allocate_lock")
_allocate_rlock = _original("_thread", "RLock")
_get_ident = _original("_thread", "get_ident")


def new_lock() -> Any:
    """Return a lock between threads of the operating system."""
    return _allocate_lock()


def thread_id() -> int:
    """Return which thread of the operating system this is."""
    return _get_ident()  # type: ignore[no-any-return]


# How many forks have led here, as far as hooks tell of them; written by them alone.
_forks = 0
_after_fork: list[Callable[[], object]] = []
# What is the parent's.
_kept: list[object] = []


def process_token() -> tuple[int, int]:
    """Return what no other process has: a forked child has another one than its parent.

    By its number, too: uWSGI forks without a word to Python.
    """
    return _forks, os.getpid()


def after_fork(callback: Callable[[], object]) -> None:
    """Have `callback` called in each forked child, where hooks are, before anything else runs there."""
    _after_fork.append(callback)


def pin(*objects: object) -> None:
    """Keep what is a parent's from being finalized in its child, where that would reach the parent's sockets."""
    _kept.extend(objects)


def _forked() -> None:
    global _forks
    _forks += 1
    for callback in _after_fork:
        callback()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forked)


class ForkSafeLock:
    """A lock between threads of the operating system, which each process has for itself: `with lock.native`.

    One that another thread held at a fork would be held for ever in the child. What is entered is a
    lock of the interpreter's, since an interrupt may come between any two steps of a function here,
    and one that its holder may enter again: a signal handler, which interrupted that, would wait for ever.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        # By process; setdefault is one step.
        self._locks: dict[tuple[int, int], Any] = {}

    @property
    def native(self) -> Any:
        """This process's."""
        this = process_token()
        lock = self._locks.get(this)
        return self._locks.setdefault(this, _allocate_rlock()) if lock is None else lock


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
    if _is_gevent():
        from . import gevent as _gevent

        return _gevent.GreenletWaiter()
    return ThreadWaiter()


def may_wait() -> bool:
    """Whether the caller may wait: not in gevent's hub."""
    if _is_gevent():
        from . import gevent as _gevent

        return not _gevent.in_hub()
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
        if _is_gevent():
            from . import gevent as _gevent

            _gevent.start_thread(self._run)
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


def in_coroutine() -> bool:
    """Whether an asyncio loop runs in this thread."""
    return asyncio._get_running_loop() is not None


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, where a loop runs under every cell."""
    return "ipykernel" in sys.modules


def shut_down_socket(fd: int) -> None:
    """Shut a connection down both ways, so that its peer sees the end at once.

    Unlike a close this holds although a forked child has inherited the descriptor, and although
    unread or unsent data stands in the way. A connection that is down already is left alone.
    """
    # Through a duplicate, so that the loop keeps its own descriptor to close; of the C class,
    # which no monkey patch replaces.
    try:
        duplicate = _socket.socket(fileno=_socket.dup(fd))
    except OSError:
        return
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # Not connected any more: there is nothing left to tell the peer.
    finally:
        duplicate.close()


def shut_down_connection(transport: Any) -> None:
    """Do that to what has a socket to tell of: a transport, one of httpx's network streams."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        shut_down_socket(connection.fileno())


def detach_connection_after_fork(transport: Any) -> None:
    """In a forked child, have what was its parent's connection lead nowhere.

    A loop that the child goes on with would read, from the same socket, what the parent is to be given. The
    descriptor stays open, on another socket whose peer has gone: the parent's own stays as it is.
    """
    connection = transport.get_extra_info("socket")
    if sys.platform == "win32" or connection is None or connection.fileno() < 0:
        return
    try:
        ours, theirs = _socket.socketpair()
        os.dup2(ours.fileno(), connection.fileno(), inheritable=False)
    except OSError:
        return  # No descriptor is left for that.
    ours.close()
    theirs.close()


def is_readable(fd: int) -> bool:
    """Whether a socket has something to read, its end included."""
    if sys.platform == "win32":
        return bool(select.select([fd], (), (), 0)[0])
    poll = _original("select", "poll")()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def peer_has_left(fd: int, *, may_peek: bool) -> bool:
    """Whether the peer of a socket, which is someone else's, has closed its end. Never waits.

    `may_peek` says that what can be read is not TLS, where it may be anything.
    """
    if sys.platform == "win32":
        return False
    poll = _original("select", "poll")()
    ended = getattr(select, "POLLRDHUP", 0)
    poll.register(fd, select.POLLIN | ended)
    events = dict(poll.poll(0)).get(fd, 0)
    if events & (ended | select.POLLHUP | select.POLLERR | select.POLLNVAL):
        return True
    if ended or not may_peek or not events:
        # What can be read is the next request's, sent ahead.
        return False
    duplicate = _socket.socket(fileno=_socket.dup(fd))
    try:
        return not duplicate.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    finally:
        duplicate.close()


def reader_has_left(fd: int) -> bool:
    """Whether nobody reads any more what is written there: a pipe's reader, a terminal. Never waits."""
    if sys.platform == "win32":
        return False
    poll = _original("select", "poll")()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def literal_address(host: str, port: int) -> list[Any]:
    """Return what getaddrinfo does, for a host that is no name and needs no look-up; else nothing."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    return []


async def run_in_daemon_thread(
    name: str, function: Callable[..., T], *args: object, discard: Callable[[T], object] | None = None
) -> T:
    """Run a blocking function in a daemon thread of its own, in the context of the caller.

    `discard` is given what it returned, in the loop, where nobody waits for that any more.
    asyncio's default executor will not do: its threads are joined when the interpreter exits,
    and it starts none once the main thread has ended.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            if error is None and discard is not None:
                discard(cast("T", result))
            return
        if isinstance(error, StopIteration):
            # A future takes none: as when one leaves a generator.
            stopped = RuntimeError("a function raised StopIteration")
            stopped.__cause__ = error
            future.set_exception(stopped)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(function, *args)
        except BaseException as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # The loop was closed meanwhile: nobody waits for this any more.

    DaemonThread(run, name)
    return await future


# What a loop needs, and room for what other threads open in the meantime. (uvloop needs 7.)
_DESCRIPTORS = 4
_UVLOOP_DESCRIPTORS = 12


class _DaemonLookups(asyncio.AbstractEventLoop):
    """What a loop is mixed with so that it looks names up in daemon threads.

    Look-ups of one name that are under way at the same time share a thread, so that there are as
    many threads as different names. (uvloop's own threads are no better than an executor's: the
    exit of the process waits for them.)
    """

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[Any, asyncio.Task[Any]] = {}

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        # uvloop asks also for what is an address already.
        found = literal_address(host, port) if isinstance(host, str) and isinstance(port, int) else []
        if found:
            return found
        key = (host, port, family, type, proto, flags)
        lookup = self._lookups.get(key)
        if lookup is None:
            look_up = _original("socket", "getaddrinfo")
            lookup = self.create_task(run_in_daemon_thread("sseqbridge-resolver", look_up, *key))
            self._lookups[key] = lookup
            lookup.add_done_callback(lambda task: self._looked_up(key, task))
        # Not awaited itself: a request that is aborted must not end the look-up for the others.
        # (Nor shielded, since 3.14's shield() reports a failure nobody waits for any more.)
        await asyncio.wait({lookup})
        return lookup.result()

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        with standard_descriptors:
            return await super().create_connection(*args, **options)

    def _looked_up(self, key: Any, task: asyncio.Task[Any]) -> None:
        del self._lookups[key]
        if not task.cancelled():
            task.exception()  # Seen, so that a failure nobody waits for any more is no noise.


class _StandardDescriptors:
    """Context manager that keeps descriptors 0 to 2 from being given to what is opened in the meantime.

    A process may run with its standard input, output or error closed. libuv aborts the process when it closes a
    descriptor of its own that is one of these, and a connection would get what is printed. So /dev/null takes the
    place of those that are closed, until they are closed again: the application finds them as it has left them.
    (uvloop opens descriptors when a loop is made, and with a loop's connections.)
    """

    def __init__(self) -> None:
        # All of it under the lock.
        self._lock = ForkSafeLock()
        self._users = 0
        self._placeholders: list[int] = []

    def __enter__(self) -> None:
        with self._lock.native:
            if not self._users and not all(map(_is_open, range(3))):
                self._placeholders = _take_standard_descriptors()
            self._users += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock.native:
            self._users -= 1
            if not self._users:
                placeholders, self._placeholders = self._placeholders, []
                for fd in filter(_is_placeholder, placeholders):
                    os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True


def _is_placeholder(fd: int) -> bool:
    # The application may have put something of its own in the place: dup2() makes that inheritable.
    return _is_open(fd) and not os.get_inheritable(fd)


def _take_standard_descriptors() -> list[int]:
    taken: list[int] = []
    try:
        # The lowest that is free is taken first.
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            taken.append(fd)
        os.close(fd)
    except OSError:
        for fd in taken:
            os.close(fd)
        raise
    return taken


standard_descriptors = _StandardDescriptors()


def above_standard_descriptors(connection: socket.socket) -> socket.socket:
    """Return a new socket, moved if its descriptor is one of 0 to 2; see _StandardDescriptors. Raises OSError."""
    if connection.fileno() > 2:
        return connection
    with connection:
        fd = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        return socket.socket(connection.family, connection.type, connection.proto, fileno=fd)


def _check_descriptors(count: int) -> None:
    """Raise OSError unless so many descriptors are free."""
    free: list[int] = []
    try:
        for _ in range(count):
            free.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 (what was opened before a failure is closed)
    finally:
        for fd in free:
            os.close(fd)


class _OwnEventLoop(_DaemonLookups, StandardEventLoop):
    """asyncio's event loop, on the clock of the library. (uvloop's clock is libuv's, in C.)"""

    def time(self) -> float:
        return clock.monotonic()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop, uvloop's where that is in use.

    Its name look-ups hold up neither the loop nor the exit. Raises OSError if too few descriptors are free.
    """
    uvloop = _fast.imported("uvloop")
    with standard_descriptors:
        if uvloop is None:
            _check_descriptors(_DESCRIPTORS)
            return _OwnEventLoop()
        # It aborts the process if it gets none.
        _check_descriptors(_UVLOOP_DESCRIPTORS)
        kind = type("UvloopWithDaemonLookups", (_DaemonLookups, uvloop.Loop), {})
        return kind()  # type: ignore[no-any-return]
