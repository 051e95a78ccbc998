"""Logs of each kind, through each of their faces; and stores whose producers can be killed.

Rule: the asynchronous face's loop runs only while something is waited for, in the thread of the test.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from sseqbridge import Bridge, arequest_sse, request_sse
from sseqbridge.resume import Log, MemoryLog, RedisLog
from sseqbridge.resume._store import OutageError

from .doors import Caller, Reading
from .redis_support import RedisServer

__all__ = ["Face", "LogReading", "Logs", "Mortal"]

_names = itertools.count()


class Mortal:
    """A store whose producers can be killed: from a chosen call on, nothing of them gets through.

    `kill_at` is the name of a store's method, which call of it, and whether it is still done. `is_out`
    has all calls fail, as where the store cannot be reached.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self.kill_at: tuple[str, int, bool] | None = None
        self.killed = threading.Event()
        # How many have come through.
        self.claims = 0
        self.is_out = False
        # What its next calls raise, by name.
        self.failures: dict[str, Exception] = {}
        self.dead: set[str] = set()
        # The calls that the dead have made since.
        self._held: list[asyncio.Event] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def revive(self) -> None:
        """Let the dead go on where they stood."""
        self.dead.clear()
        assert self._loop is not None
        for held in self._held:
            self._loop.call_soon_threadsafe(held.set)

    async def _call(self, name: str, owner: str, *args: Any, **options: Any) -> Any:
        if self.is_out:
            raise OutageError("it is out")
        if name in self.failures:
            raise self.failures[name]
        await self._wait_if_dead(owner)
        if self.kill_at is not None and self.kill_at[0] == name:
            self.kill_at = name, self.kill_at[1] - 1, self.kill_at[2]
            if self.kill_at[1] < 0:
                is_done, self.kill_at = self.kill_at[2], None
                if is_done:
                    await getattr(self._store, name)(*args, **options)
                self.dead.add(owner)
                self.killed.set()
                await self._wait_if_dead(owner)
        return await getattr(self._store, name)(*args, **options)

    async def _wait_if_dead(self, owner: str) -> None:
        if owner in self.dead:
            self._loop = asyncio.get_running_loop()
            held = asyncio.Event()
            self._held.append(held)
            await held.wait()

    async def claim(self, key: str, owner: str, **options: Any) -> Any:
        claim = await self._call("claim", owner, key, owner, **options)
        self.claims += 1
        return claim

    async def append(self, token: Any, *args: Any) -> Any:
        return await self._call("append", token.owner, token, *args)

    async def end(self, token: Any, *args: Any) -> Any:
        return await self._call("end", token.owner, token, *args)

    async def renew(self, token: Any) -> Any:
        return await self._call("renew", token.owner, token)

    async def release(self, token: Any) -> Any:
        return await self._call("release", token.owner, token)

    async def read(self, *args: Any) -> Any:
        return await self._call("read", "", *args)

    async def watch(self, *args: Any) -> Any:
        return await self._call("watch", "", *args)


class Logs:
    """Makes logs of one kind, each with streams of its own, and closes them. `with`."""

    def __init__(self, kind: str, server: RedisServer | None) -> None:
        self.kind = kind
        self._server = server
        self._stack = ExitStack()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def new(self, *, prefix: str | None = None, **options: Any) -> Log:
        """Return a log; two of the same prefix are two processes' of the same."""
        options.setdefault("lease", 2.0)
        if self.kind == "memory":
            assert prefix is None
            return self._stack.enter_context(MemoryLog(**options))
        assert self._server is not None
        prefix = prefix or f"test-{next(_names)}"
        return self._stack.enter_context(RedisLog.from_url(self._server.url, prefix=prefix, **options))

    def mortal(self, **options: Any) -> tuple[Log, Mortal]:
        """Return a log, and its store, whose producers can be killed."""
        log = self.new(bridge=self._stack.enter_context(Bridge()), **options)
        store = Mortal(log._new_store())
        log._new_store = lambda: store  # type: ignore[method-assign]
        return log, store


class Face(Caller):
    """A log's methods, synchronous or not, as one."""

    def __init__(self, *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self._readings: list[LogReading] = []

    def start(self, url: str, **options: Any) -> Callable[[], Any]:
        """Return what begins a stream."""
        function: Any = arequest_sse if self.is_async else request_sse
        return lambda: function(url, **options)

    def open(self, log: Log, *args: Any, **options: Any) -> LogReading:
        reading = LogReading(self, self.run((log.aopen if self.is_async else log.open)(*args, **options)))
        self._readings.append(reading)
        return reading

    def produce(self, log: Log, *args: Any, **options: Any) -> Any:
        return self.run((log.aproduce if self.is_async else log.produce)(*args, **options))

    def cancel(self, log: Log, key: str) -> Any:
        return self.run((log.acancel if self.is_async else log.cancel)(key))

    def delete(self, log: Log, key: str) -> Any:
        return self.run((log.adelete if self.is_async else log.delete)(key))

    def close(self) -> None:
        """Close what is open still."""
        for reading in self._readings:
            reading.close()
        super().close()


class LogReading(Reading):
    """What a log's `open` returned."""

    def next(self, timeout: float | None = 10.0) -> Any:
        return super().next(timeout)

    @property
    def outcome(self) -> Any:
        return self.events.outcome

    @property
    def last_event_id(self) -> str:
        return str(self.events.last_event_id)
