"""Event loops: the library's own, whose name lookups delay neither the loop nor the process's exit.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sseqbridge import _accelerators as _fast

from .clock import clock
from .patching import original
from .sockets import literal_address, standard_descriptors
from .threads import DaemonThread

if sys.platform == "win32":
    from asyncio import ProactorEventLoop as StandardEventLoop
else:
    from asyncio import SelectorEventLoop as StandardEventLoop

__all__ = [
    "in_coroutine",
    "in_notebook",
    "new_event_loop",
    "run_in_daemon_thread",
]

T = TypeVar("T")

def in_coroutine() -> bool:
    """Whether an asyncio loop runs in this thread."""
    return asyncio._get_running_loop() is not None


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, where a loop runs under every cell."""
    return "ipykernel" in sys.modules


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
            look_up = original("socket", "getaddrinfo")
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
