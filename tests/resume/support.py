"""Logs of both kinds through both interfaces, and stores whose producers can be killed.

Leases last far longer than any test, on any machine; a test ends one with `Logs.expire_lease`. Producers renew
their leases, and readers check them, every 50 ms.

The event loop of the asynchronous interface runs only while the test waits for something, in the test's thread.
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

import pytest

from sseqbridge import Bridge, ProducerLostError, RequestAbortedError, arequest_sse, request_sse
from sseqbridge._engine.channel import post
from sseqbridge._runtime.clock import clock
from sseqbridge.resume import Log, MemoryLog, RedisLog
from sseqbridge.resume._hub import Hub
from sseqbridge.resume._log_core import LogCore
from sseqbridge.resume._store import FencingToken, LogSettings, OutageError, Store
from sseqbridge.testing import Step, hold, respond, send
from tests.redis_support import RedisServer
from tests.requesters import Caller, OpenStream
from tests.support import in_thread, until

__all__ = [
    "DONE",
    "LEASE",
    "KillableStore",
    "LogCaller",
    "LogReading",
    "Logs",
    "assert_lost",
    "cancel_during_claim",
    "check_often",
    "claim_token",
    "core_of",
    "expire_lease_when_killed",
    "hub_of",
    "new_store",
    "use_store",
]

# In seconds: far longer than any test takes.
LEASE = 600.0
DONE = send("[DONE]")

_names = itertools.count()


def core_of(log: Log) -> LogCore:
    """Return the state behind a log's public methods."""
    return log._core


def hub_of(log: Log) -> Hub:
    """Return the hub of the log's current loop."""
    return core_of(log).hub()


def new_store(log: Log) -> Any:
    """Return a store of the log, as a new event loop gets it."""
    return core_of(log).new_store(core_of(log).settings)


def use_store(log: Log, store: Any) -> None:
    """Have a log that was not used yet use this store."""
    core_of(log).new_store = lambda _: store


@dataclass(frozen=True)
class FrequentChecks(LogSettings):
    """Settings whose checks and renewals are frequent although leases are long."""

    renewal_interval = 0.05
    liveness_interval = 0.05
    reader_ttl = LEASE


def check_often(log: Log) -> Log:
    """Have a log that was not used yet check and renew leases often."""
    core = core_of(log)
    core.settings = FrequentChecks(*astuple(core.settings))
    return log


class KillableStore:
    """Wraps a store; its producers can be killed: from a chosen call on, all calls of their owner hang.

    `kill_at` is a method's name, the number of the call, and whether the store still executes that call.
    With `is_out` all calls fail, as during an outage. `failures` maps a method's name to the error of its calls.
    """

    def __init__(self, store: Any) -> None:
        self.inner = store
        self.kill_at: tuple[str, int, bool] | None = None
        self.killed = threading.Event()
        # The number of executed claims.
        self.claims = 0
        self.is_out = False
        self.failures: dict[str, Exception] = {}
        self.dead: set[str] = set()
        # One for each call of a killed owner.
        self._held: list[asyncio.Event] = []
        # The number of calls that wait for the store's reply, by owner.
        self._under_way: collections.Counter[str] = collections.Counter()
        # The number of answered calls, by name.
        self.answers: collections.Counter[str] = collections.Counter()
        self._gates: list[threading.Event] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def revive(self) -> None:
        """Let the calls of killed owners continue."""
        self.dead.clear()
        for held in self._held:
            assert self._loop is not None
            post(self._loop, held.set)

    @property
    def is_quiet(self) -> bool:
        """Whether the store executes no call."""
        return not any(self._under_way.values())

    async def _execute(self, name: str, owner: str, *args: Any, **options: Any) -> Any:
        self._under_way[owner] += 1
        try:
            return await getattr(self.inner, name)(*args, **options)
        finally:
            self._under_way[owner] -= 1
            self.answers[name] += 1
            if name == "append" and self._gates:
                self._gates.pop(0).set()

    def one_by_one(self, *texts: object) -> list[Step]:
        """Return an upstream that sends one text after each append, so that each text is appended alone."""
        self._gates = [threading.Event() for _ in texts]
        steps = [respond()]
        for gate, text in zip(self._gates, texts, strict=True):
            steps += [hold(gate), send(text)]
        return steps

    async def _call(self, name: str, owner: str, *args: Any, **options: Any) -> Any:
        if self.is_out:
            raise OutageError("unavailable")
        if name in self.failures:
            raise self.failures[name]
        await self._hang_if_dead(owner)
        if self.kill_at is not None and self.kill_at[0] == name:
            self.kill_at = name, self.kill_at[1] - 1, self.kill_at[2]
            if self.kill_at[1] < 0:
                is_done, self.kill_at = self.kill_at[2], None
                if is_done:
                    await self._execute(name, owner, *args, **options)
                self.dead.add(owner)
                self.killed.set()
                await self._hang_if_dead(owner)
        return await self._execute(name, owner, *args, **options)

    async def _hang_if_dead(self, owner: str) -> None:
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

    async def heartbeat(self, *args: Any) -> Any:
        return await self._call("heartbeat", "", *args)


class Logs:
    """A context manager that makes logs of one kind, each with streams of its own, and closes them."""

    def __init__(self, kind: str, server: RedisServer | None) -> None:
        self.kind = kind
        self._server = server
        self._stack = ExitStack()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def new(self, *, prefix: str | None = None, **options: Any) -> Log:
        """Return a log; two with the same prefix share their streams, like two processes."""
        options.setdefault("lease", LEASE)
        if self.kind == "memory":
            assert prefix is None
            return check_often(self._stack.enter_context(MemoryLog(**options)))
        assert self._server is not None
        prefix = prefix or f"test-{next(_names)}"
        return check_often(self._stack.enter_context(RedisLog.from_url(self._server.url, prefix=prefix, **options)))

    def killable(self, **options: Any) -> tuple[Log, KillableStore]:
        """Return a log and its store, whose producers can be killed."""
        log = self.new(bridge=self._stack.enter_context(Bridge()), **options)
        store = KillableStore(new_store(log))
        use_store(log, store)
        # Before the log is closed, which waits for the store.
        self._stack.callback(store.revive)
        return log, store

    def expire_lease(self, store: KillableStore, key: str) -> None:
        """Let the lease of a producer expire that is dead, or cut off from the store."""
        # A call that is under way could renew the lease again.
        until(lambda: store.is_quiet)
        if self._server is None:
            store.streams[key].lease_expires_at = 0.0
            return
        with self._server.client() as client:
            assert client.delete(store.key_of(key, "lease"))

    def hold_lease(self, store: KillableStore, key: str) -> None:
        """Hold the lease of a stream that has had a producer."""
        if self._server is None:
            store.streams[key].lease_expires_at = clock.monotonic() + LEASE
            return
        with self._server.client() as client:
            client.set(store.key_of(key, "lease"), "1:another", ex=int(LEASE))

    def expire_stream(self, log: Log, key: str) -> None:
        """Let a stream that has ended expire."""
        store: Any = hub_of(log).store
        if self._server is None:
            store.streams[key].expires_at = 0.0
            return
        with self._server.client() as client:
            assert client.delete(store.key_of(key, "events"), store.key_of(key, "fence"))


class LogCaller(Caller):
    """The methods of a log, synchronous or asynchronous, under the same names."""

    def __init__(self, *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self._readings: list[LogReading] = []

    def start(self, url: str, **options: Any) -> Callable[[], Any]:
        """Return a `start` function for this URL."""
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
        """Close the open streams."""
        for reading in self._readings:
            reading.close()
        super().close()


class LogReading(OpenStream):
    """A stream of a log, as either interface returns it."""

    def next(self, timeout: float | None = 30.0) -> Any:
        return super().next(timeout)

    @property
    def outcome(self) -> Any:
        return self.events.outcome

    @property
    def last_event_id(self) -> str:
        return str(self.events.last_event_id)


def assert_lost(reading: LogReading, max_count: int) -> None:
    """Check that a reading returns the first events in order, then raises ProducerLostError."""
    items, error = reading.fail()
    assert items == list(range(len(items)))
    assert len(items) <= max_count
    assert isinstance(error, ProducerLostError)


def expire_lease_when_killed(logs: Logs, store: KillableStore) -> None:
    """Wait until a producer is killed, and let its lease expire."""
    assert store.killed.wait(30)
    logs.expire_lease(store, "k")


def cancel_during_claim(log: Log, store: KillableStore, url: str) -> None:
    """Open a stream, and set its cancel flag before the reply to its claim arrives."""
    claim, made, go_on = store.claim, threading.Event(), asyncio.Event()
    flag = threading.Event()

    async def reply_late(*args: Any, **options: Any) -> Any:
        reply = await claim(*args, **options)
        made.set()
        await go_on.wait()
        return reply

    store.claim = reply_late  # type: ignore[method-assign]
    opened = in_thread(lambda: log.open("k", lambda: request_sse(url), cancel=flag))
    assert made.wait(30)
    flag.set()
    with pytest.raises(RequestAbortedError):
        opened.result(30)
    store.claim = claim  # type: ignore[method-assign]
    hub_of(log).loop.call_soon_threadsafe(go_on.set)


async def claim_token(store: Store, key: str) -> FencingToken:
    """Begin a stream in a store, and return the token of its producer."""
    claim = await store.claim(key, "me", may_begin=True, takeover=False)
    assert claim.state == "elected"
    return FencingToken(key, claim.fence, "me")
