"""Logs of each kind, through each of their faces; and stores whose producers can be killed.

Leases here last long, so that no machine is too slow for them: a test has one run out with `Logs.lose`. Producers renew
them, and readers look at them, all the more often.

Rule: the asynchronous face's loop runs only while something is waited for, in the thread of the test.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any

from sseqbridge import Bridge, arequest_sse, request_sse
from sseqbridge.resume import Log, MemoryLog, RedisLog
from sseqbridge.resume._store import OutageError, Terms
from sseqbridge.testing import Step, hold, respond, send
from tests.doors import Caller, Reading
from tests.redis_support import RedisServer
from tests.support import until

__all__ = ["LEASE", "Face", "LogReading", "Logs", "Mortal", "look_often"]

# In seconds: far longer than any test takes.
LEASE = 60.0

_names = itertools.count()


@dataclass(frozen=True)
class OftenTerms(Terms):
    """Terms with looks and renewals that do not come less often because leases are long."""

    renewed_every = 0.05
    looked_every = 0.05
    present_for = LEASE


def look_often(log: Log) -> Log:
    """Have a log that nothing was asked of yet look at leases, and renew them, often."""
    log._terms = OftenTerms(*astuple(log._terms))
    return log


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
        # How many calls have got through, and wait for the store's answer.
        self._under_way: collections.Counter[str] = collections.Counter()
        # How many calls have come back, by name.
        self.answers: collections.Counter[str] = collections.Counter()
        self._gates: list[threading.Event] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def revive(self) -> None:
        """Let the dead go on where they stood."""
        self.dead.clear()
        assert self._loop is not None
        for held in self._held:
            self._loop.call_soon_threadsafe(held.set)

    @property
    def is_quiet(self) -> bool:
        """Whether the store does nothing for anybody at this moment."""
        return not any(self._under_way.values())

    async def _ask(self, name: str, owner: str, *args: Any, **options: Any) -> Any:
        self._under_way[owner] += 1
        try:
            return await getattr(self._store, name)(*args, **options)
        finally:
            self._under_way[owner] -= 1
            self.answers[name] += 1
            if name == "append" and self._gates:
                self._gates.pop(0).set()

    def one_by_one(self, *texts: object) -> list[Step]:
        """Return an upstream that sends each text once something was appended, so that each is appended alone."""
        self._gates = [threading.Event() for _ in texts]
        steps = [respond()]
        for gate, text in zip(self._gates, texts, strict=True):
            steps += [hold(gate), send(text)]
        return steps

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
                    await self._ask(name, owner, *args, **options)
                self.dead.add(owner)
                self.killed.set()
                await self._wait_if_dead(owner)
        return await self._ask(name, owner, *args, **options)

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
        options.setdefault("lease", LEASE)
        if self.kind == "memory":
            assert prefix is None
            return look_often(self._stack.enter_context(MemoryLog(**options)))
        assert self._server is not None
        prefix = prefix or f"test-{next(_names)}"
        return look_often(self._stack.enter_context(RedisLog.from_url(self._server.url, prefix=prefix, **options)))

    def mortal(self, **options: Any) -> tuple[Log, Mortal]:
        """Return a log, and its store, whose producers can be killed."""
        log = self.new(bridge=self._stack.enter_context(Bridge()), **options)
        store = Mortal(log._new_store())
        log._new_store = lambda: store  # type: ignore[method-assign]
        return log, store

    def lose(self, store: Mortal, key: str) -> None:
        """Have the lease run out of a producer that is dead, or that the store is out for."""
        # What got through before must not renew it after.
        until(lambda: store.is_quiet)
        if self._server is None:
            store._streams[key].held_until = 0.0
            return
        with self._server.client() as client:
            assert client.delete(store._key(key, "lease"))

    def expire(self, log: Log, key: str) -> None:
        """Have a stream that has ended expire."""
        store: Any = log._hub().store
        if self._server is None:
            store._streams[key].expires_at = 0.0
            return
        with self._server.client() as client:
            assert client.delete(store._key(key, "events"), store._key(key, "fence"))


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

    def next(self, timeout: float | None = 30.0) -> Any:
        return super().next(timeout)

    @property
    def outcome(self) -> Any:
        return self.events.outcome

    @property
    def last_event_id(self) -> str:
        return str(self.events.last_event_id)
