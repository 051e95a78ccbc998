"""Stores: idempotent calls, expiry, outages, and faults of a store."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sseqbridge import (
    LogError,
    LogUnavailableError,
    ProducerLostError,
)
from sseqbridge.resume._entries import START
from sseqbridge.resume._memory import MemoryStore
from sseqbridge.resume._store import Liveness, LogSettings, OutageError, StaleTokenError
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.clock import FakeClock
from tests.support import until

from .support import (
    DONE,
    LogCaller,
    Logs,
    claim_token,
    hub_of,
    new_store,
)

pytestmark = pytest.mark.slow


def test_store_calls_are_idempotent(logs: Logs) -> None:
    async def main() -> None:
        store = new_store(kept)
        token = await claim_token(store, "k")
        assert (await store.claim("k", "me", may_begin=True, takeover=False)).fence == token.fence
        assert (await store.claim("k", "you", may_begin=True, takeover=True)).state == "live"
        for _ in range(2):
            await store.append(token, 0, [{"begin": "200"}, {"data": "a"}])
        # The reply to the first call was lost, and the producer has more entries now.
        await store.append(token, 0, [{"begin": "200"}, {"data": "a"}, {"data": "b"}])
        entries = await store.read("k", START, 10)
        assert [(entry.position.number, entry.fields) for entry in entries] == [
            (0, {"begin": "200"}),
            (1, {"data": "a"}),
            (2, {"data": "b"}),
        ]
        assert await store.renew(token) == 0
        assert await store.heartbeat(["k", "other"], "reader") == [
            Liveness(True, entries[-1].position),
            Liveness(False, None),
        ]
        assert await store.renew(token) == 1
        await store.remove_reader("k", "reader")
        assert await store.renew(token) == 0
        await store.end(token, 3, {"end": "eof"})
        await store.end(token, 3, {"end": "eof"})
        assert len(await store.read("k", START, 10)) == 4
        assert (await store.claim("k", "you", may_begin=True, takeover=True)).state == "ended"
        await store.aclose()

    async def stale() -> None:
        store = new_store(kept)
        token = await claim_token(store, "old")
        assert await store.cancel("old", "canceller")
        for call in (store.append(token, 0, [{"data": "a"}]), store.end(token, 0, {"end": "eof"}), store.renew(token)):
            with pytest.raises(StaleTokenError):
                await call
        await store.release(token)
        assert [entry.kind for entry in await store.read("old", START, 10)] == ["cancel"]
        # Claimed, and released before any entry was written.
        token = await claim_token(store, "released")
        await store.release(token)
        assert not await store.cancel("released", "canceller")
        assert (await store.claim("released", "you", may_begin=False, takeover=False)).state == "none"
        await store.aclose()

    kept = logs.new(max_events=None)
    asyncio.run(main())
    asyncio.run(stale())


def test_store_deletes_expired_streams(logs: Logs) -> None:
    async def main() -> None:
        store = new_store(kept)
        token = await claim_token(store, "k")
        await store.append(token, 0, [{"data": "a"}])
        # Begins the TTL of a stream that has ended; until then the lease, which is long, keeps it.
        assert await store.cancel("k", "canceller")
        while await store.read("k", START, 1):
            await asyncio.sleep(0.01)
        assert not await store.delete("k")
        await store.aclose()

    kept = logs.new(ttl=0.1)
    asyncio.run(main())


def test_memory_store_deletes_expired_streams_without_access(clock: FakeClock) -> None:
    async def main() -> None:
        store = MemoryStore(LogSettings(10, 20, None, None, 30))
        await claim_token(store, "unasked")
        clock.advance(19)
        await claim_token(store, "later")
        assert set(store.streams) == {"unasked", "later"}
        clock.advance(2)
        await claim_token(store, "another")
        assert set(store.streams) == {"later", "another"}

    asyncio.run(main())


def test_readers_and_producer_survive_an_outage(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    go, later = threading.Event(), threading.Event()
    with SSEServer([send(0), hold(go), *map(send, range(1, 50)), hold(later), send(50), DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        store.is_out = True
        go.set()
        # The outage is longer than the lease.
        logs.expire_lease(store, "k")
        until(lambda: hub_of(log).disturbed_at is not None)
        store.is_out = False
        later.set()
        assert reading.items() == list(range(1, 51))


def test_long_outage_raises_log_unavailable_error(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable(outage=0.3)
    with SSEServer([send(0), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        store.is_out = True
        with pytest.raises(LogUnavailableError, match="outage="):
            reading.next()
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
        with pytest.raises(LogUnavailableError):
            caller.open(log, "other", caller.start(upstream.url))
        with pytest.raises(LogUnavailableError):
            caller.produce(log, "other", caller.start(upstream.url))
        logs.expire_lease(store, "k")
        store.is_out = False
        assert isinstance(caller.open(log, "k").fail()[1], ProducerLostError)


def test_long_outage_of_appends_ends_readers_and_producer(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable(outage=0.2)
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        store.failures["append"] = OutageError("it is out")
        go.set()
        with pytest.raises(LogUnavailableError):
            reading.next()
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)


@pytest.mark.parametrize("name", ["read", "heartbeat", "claim"])
def test_store_exception_leaves_no_reader_waiting(logs: Logs, caller: LogCaller, name: str) -> None:
    log, store = logs.killable()
    with SSEServer([send(0), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        store.failures[name] = ZeroDivisionError()
        if name == "heartbeat":
            with pytest.raises(LogError, match="ZeroDivisionError"):
                reading.next()
        with pytest.raises(LogError, match="ZeroDivisionError"):
            caller.open(log, "k").next()
