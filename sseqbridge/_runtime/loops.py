"""Event loops: the library's own loop, whose name lookups delay neither the loop nor the process's exit.

Functions that take a running loop must be called on its thread; the rest is thread-safe.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sseqbridge import _accelerators
from sseqbridge._exceptions import UsageError

from . import threads
from .clock import clock
from .lookups import look_up
from .sockets import literal_address, standard_descriptors
from .threads import DaemonThread

if sys.platform == "win32":
    from asyncio import ProactorEventLoop as StandardEventLoop
else:
    from asyncio import SelectorEventLoop as StandardEventLoop

__all__ = [
    "ClockedEventLoop",
    "check_may_wait",
    "in_coroutine",
    "in_notebook",
    "in_own_loop",
    "may_wait",
    "new_event_loop",
    "resolve",
    "run_in_daemon_thread",
]

T = TypeVar("T")

# The descriptors of a loop, and some that other threads may open at the same time. (uvloop needs 7.)
_DESCRIPTORS = 4
_UVLOOP_DESCRIPTORS = 12


def in_coroutine() -> bool:
    """Return whether an asyncio loop runs in this thread."""
    return asyncio._get_running_loop() is not None


def in_notebook() -> bool:
    """Return whether this is a Jupyter kernel, which runs every cell inside a loop."""
    return "ipykernel" in sys.modules


def in_own_loop() -> bool:
    """Return whether the loop of a bridge runs in this thread. Its streams stand still while it waits."""
    return isinstance(asyncio._get_running_loop(), _DaemonLookups)


def may_wait() -> bool:
    """Return whether the caller may wait: False on a bridge's own thread, and in gevent's hub."""
    return not in_own_loop() and threads.may_wait()


def check_may_wait() -> None:
    """Raise UsageError on a bridge's own thread."""
    # As in_own_loop(), inlined: this runs for every wait.
    if isinstance(asyncio._get_running_loop(), _DaemonLookups):
        raise UsageError("this call waits, and was made in a bridge's own thread, which must not wait")


async def run_in_daemon_thread(
    name: str, function: Callable[..., T], *args: object, discard: Callable[[T], object] | None = None
) -> T:
    """Run a blocking function in a new daemon thread, in the caller's context, and return its result.

    If the caller was cancelled in the meantime, `discard` is called with the result: on the loop, or in the
    thread if the loop is closed.
    asyncio's default executor does not fit: its threads are joined when the interpreter exits, and it
    starts none after the main thread has ended.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            if error is None and discard is not None:
                discard(cast("T", result))
        elif error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(_as_future_error(error))

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(function, *args)
        except BaseException as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            # The loop is closed, so that nothing awaits the result.
            if error is None and discard is not None:
                discard(cast("T", result))

    DaemonThread(run, name)
    return await future


def _as_future_error(error: BaseException) -> BaseException:
    if not isinstance(error, (StopIteration, GeneratorExit)):
        return error
    # Replaced as PEP 479 does for generators: futures refuse a StopIteration, and a GeneratorExit that is thrown into
    # the task would close the coroutines that wait for the function.
    replaced = RuntimeError(f"a function raised {type(error).__name__}")
    replaced.__cause__ = error
    return replaced


class _DaemonLookups(asyncio.AbstractEventLoop):
    """Mixin of a loop that looks names up in daemon threads; see lookups.py."""

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        # uvloop also looks up hosts that are addresses.
        found = literal_address(host, port) if isinstance(host, str) and isinstance(port, int) else []
        return found or await look_up(host, port, family=family, type=type, proto=proto, flags=flags)

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        with standard_descriptors:
            return await super().create_connection(*args, **options)


async def resolve(host: str, port: int) -> Any:
    """Return the addresses of a name for stream sockets, as getaddrinfo() does. Raises OSError.

    The threads of an asyncio or uvloop loop are few, shared with the application, and may hang; those of lookups.py
    are used instead. A loop with a resolver of its own keeps it. (httpx's transport always uses that of its loop.)
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, _DaemonLookups) and _has_own_resolver(type(loop)):
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await look_up(host, port, type=socket.SOCK_STREAM)


def _has_own_resolver(kind: type[asyncio.AbstractEventLoop]) -> bool:
    defined_in = next(base for base in kind.__mro__ if "getaddrinfo" in vars(base)).__module__
    return defined_in.partition(".")[0] not in ("asyncio", "uvloop")


def _check_descriptors(count: int) -> None:
    """Raise OSError unless `count` descriptors are free."""
    free: list[int] = []
    try:
        for _ in range(count):
            free.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 (close the ones before a failure)
    finally:
        for fd in free:
            os.close(fd)


class ClockedEventLoop(_DaemonLookups, StandardEventLoop):
    """asyncio's event loop on the library's clock. (uvloop always uses libuv's clock.)"""

    def time(self) -> float:
        return clock.monotonic()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop, uvloop's if uvloop is in use. Raises OSError if too few descriptors are free."""
    uvloop = _accelerators.imported("uvloop")
    with standard_descriptors:
        if uvloop is None:
            _check_descriptors(_DESCRIPTORS)
            return ClockedEventLoop()
        # uvloop aborts the process if it cannot open its descriptors.
        _check_descriptors(_UVLOOP_DESCRIPTORS)
        kind = type("UvloopWithDaemonLookups", (_DaemonLookups, uvloop.Loop), {})
        return kind()  # type: ignore[no-any-return]
