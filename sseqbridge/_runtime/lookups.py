"""Name lookups in daemon threads, of which the process has a bounded number.

getaddrinfo() cannot be cancelled, and may hang: glibc waits 5 s for each attempt, server and search domain, other
sources of names (LDAP) forever. So a request that is aborted, or whose time for connecting is over, abandons its
lookup. Concurrent requests share a lookup, but none joins a lookup that was abandoned or is no longer young: the next
request makes a lookup of its own. A lookup without a free thread waits for one as long as its requests do.

Thread-safe: every field of a Resolver and its lookups is written under the lock, which is never held during a wait.
The lock is re-entrant, since the garbage collector may end an abandoned request's coroutine at any point: each step
under the lock takes a copy of a collection before it iterates over it. A forked child has a resolver of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
from collections import deque
from typing import Any

from . import fork
from .clock import clock
from .patching import original
from .threads import DaemonThread

__all__ = ["look_up"]

# The most threads. The second limit counts the lookups that requests wait for, or waited for until a moment ago: when
# many names hang at the same time, their requests time out at the same time, and leave the other threads to later ones.
MAX_THREADS = 64
MAX_AWAITED = 32
_MOMENT_SECONDS = 1.0
# The most threads with lookups of one host, so that one that always hangs leaves threads to others.
MAX_PER_HOST = 16
# How old a lookup may be that another request joins.
_JOIN_SECONDS = 1.0

# The arguments of getaddrinfo(): host, port, family, type, proto, flags.
_Arguments = tuple[Any, Any, int, int, int, int]


class _Lookup:
    """One call of getaddrinfo(), and the futures that wait for its result."""

    __slots__ = ("abandoned_at", "arguments", "context", "requests", "started_at")

    def __init__(self, arguments: _Arguments) -> None:
        self.arguments = arguments
        self.context = contextvars.copy_context()
        self.requests: dict[asyncio.Future[Any], asyncio.AbstractEventLoop] = {}
        # None while it waits for a thread.
        self.started_at: float | None = None
        # When the last request left.
        self.abandoned_at = 0.0

    @property
    def is_awaited(self) -> bool:
        return bool(self.requests) or clock.monotonic() - self.abandoned_at < _MOMENT_SECONDS

    @property
    def may_be_joined(self) -> bool:
        is_young = self.started_at is None or clock.monotonic() - self.started_at < _JOIN_SECONDS
        return is_young and bool(self.requests)


class _Resolver:
    """The lookups of one process."""

    def __init__(self) -> None:
        self._lock = fork.ForkSafeLock()
        self._waiting: deque[_Lookup] = deque()
        # In threads.
        self._running: list[_Lookup] = []

    async def look_up(self, arguments: _Arguments) -> Any:
        """Return the result of getaddrinfo(). Raises OSError, or another error of getaddrinfo()."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock.native:
            lookup = self._joinable(arguments)
            if lookup is None:
                lookup = _Lookup(arguments)
                self._waiting.append(lookup)
            lookup.requests[future] = loop
        try:
            self._start_waiting()
            while lookup.started_at is None and not future.done():
                # Time alone may make a thread available.
                await asyncio.wait({future}, timeout=_MOMENT_SECONDS)
                self._start_waiting()
            return await future
        finally:
            with self._lock.native:
                lookup.requests.pop(future, None)
                lookup.abandoned_at = clock.monotonic()
                if not lookup.requests and lookup in self._waiting:
                    self._waiting.remove(lookup)
            if future.done() and not future.cancelled():
                future.exception()  # Marks it as retrieved, so that asyncio does not log it.
            self._start_waiting()

    def _joinable(self, arguments: _Arguments) -> _Lookup | None:
        for lookup in (*self._waiting, *self._running):
            if lookup.arguments == arguments and lookup.may_be_joined:
                return lookup
        return None

    def _start_waiting(self) -> None:
        """Start the lookups for which there are threads."""
        while (lookup := self._next()) is not None:
            try:
                DaemonThread(self._run, "sseqbridge-resolver", lookup)
            except RuntimeError as exc:
                error = OSError(errno.EAGAIN, f"no thread for a name lookup could be started: {exc}")
                self._finish(lookup, None, error)

    def _next(self) -> _Lookup | None:
        """Return a lookup that waited and may run now, marked as running."""
        with self._lock.native:
            running = tuple(self._running)
            if len(running) >= MAX_THREADS or sum(lookup.is_awaited for lookup in running) >= MAX_AWAITED:
                return None
            for lookup in tuple(self._waiting):
                host = lookup.arguments[0]
                if sum(other.arguments[0] == host for other in running) < MAX_PER_HOST:
                    self._waiting.remove(lookup)
                    self._running.append(lookup)
                    lookup.started_at = clock.monotonic()
                    return lookup
            return None

    def _run(self, first: _Lookup) -> None:
        lookup: _Lookup | None = first
        while lookup is not None:
            result, error = None, None
            try:
                result = lookup.context.run(original("socket", "getaddrinfo"), *lookup.arguments)
            except BaseException as exc:
                error = exc
            self._finish(lookup, result, error)
            lookup = self._next()

    def _finish(self, lookup: _Lookup, result: Any, error: BaseException | None) -> None:
        with self._lock.native:
            self._running.remove(lookup)
            requests = tuple(lookup.requests.items())
        if isinstance(error, StopIteration):
            # Futures refuse it. Replace it as PEP 479 does for generators.
            replaced = RuntimeError("getaddrinfo() raised StopIteration")
            replaced.__cause__ = error
            error = replaced
        for future, loop in requests:
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                pass  # The loop is closed, so that nothing awaits the result.


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


# By process token. dict.setdefault is atomic.
_resolvers: dict[tuple[int, int], _Resolver] = {}


async def look_up(host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
    """Return the result of getaddrinfo(), from a daemon thread. Raises OSError.

    The exit of the process does not wait for the thread, as it does for those of an executor and of uvloop.
    """
    token = fork.process_token()
    resolver = _resolvers.get(token) or _resolvers.setdefault(token, _Resolver())
    return await resolver.look_up((host, port, family, type, proto, flags))
