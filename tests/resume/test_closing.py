"""Closing logs and bridges, event loops, and the end of the process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    LogFullError,
    RequestAbortedError,
    UsageError,
    request_sse,
    run,
)
from sseqbridge._engine.loop_state import LoopState
from sseqbridge.resume import Log, MemoryLog
from sseqbridge.resume._producer import Producer
from sseqbridge.resume._store import FencingToken, OutageError
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.clock import FakeClock
from tests.support import in_thread, is_waiting, until

from .support import (
    DONE,
    KillableStore,
    LogCaller,
    Logs,
    core_of,
    hub_of,
    new_store,
    use_store,
)


def test_close_ends_readers_and_releases_the_lease(logs: Logs, caller: LogCaller) -> None:
    log = logs.new()
    with SSEServer([send(1), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 1
        log.close()
        assert (reading.items(), reading.outcome) == ([], "closed")
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
    with pytest.raises(UsageError, match="closed"):
        caller.open(log, "k")
    log.close()
    assert repr(log) == f"<{type(log).__name__} closed>"


def test_close_ends_an_open_that_waits_for_a_producer(log: Log) -> None:
    opening = in_thread(lambda: log.open("k", wait=60))
    until(lambda: hub_of(log).readers and is_waiting(opening))
    log.close()
    with pytest.raises(RequestAbortedError, match="closed before it had begun"):
        opening.result(30)


def test_read_that_loses_its_cancellation_delays_no_close() -> None:
    """asyncio.wait_for loses one, before Python 3.12."""
    reads, cancelled = threading.Event(), []
    with SSEServer([send(1), silence()]) as upstream, Bridge() as bridge, MemoryLog(bridge=bridge) as log:
        store = new_store(log)
        new_tail = store.new_tail

        def losing_tail() -> Any:
            tail = new_tail()
            read = tail.read

            async def read_on(positions: Any) -> Any:
                reads.set()
                while True:
                    try:
                        return await read(positions)
                    except asyncio.CancelledError:
                        cancelled.append(True)
                        if len(cancelled) == 2:
                            raise

            tail.read = read_on
            return tail

        store.new_tail = losing_tail
        use_store(log, store)
        reading = log.open("k", lambda: request_sse(upstream.url, bridge=bridge))
        assert next(reading) == 1
        assert reads.wait(30)
        log.close()
        assert len(cancelled) == 2


@pytest.mark.parametrize("ends", ["closed", "interrupted and closed", "closed twice"])
def test_close_waits_until_leases_are_released(clock: FakeClock, ends: str) -> None:
    """The store may be slow, as on a busy machine."""
    with SSEServer([send(1), silence()]) as upstream, Bridge() as bridge:
        log = MemoryLog(bridge=bridge)
        hub = hub_of(log)
        release = hub.store.release
        is_called, go_on = threading.Event(), asyncio.Event()
        released = []

        async def release_late(token: FencingToken) -> None:
            is_called.set()
            await go_on.wait()
            await release(token)
            released.append(token.key)

        hub.store.release = release_late  # type: ignore[method-assign]
        reading = log.open("k", lambda: request_sse(upstream.url, bridge=bridge))
        assert next(reading) == 1
        if ends == "interrupted and closed":
            (producer,) = (subscriber for subscriber in hub.topic("k").registered if isinstance(subscriber, Producer))
            producer.abort()
            assert is_called.wait(30)
        closing = in_thread(log.close)
        assert is_called.wait(30)
        again = in_thread(log.close) if ends == "closed twice" else closing
        until(lambda: is_waiting(again))
        with pytest.raises(StopIteration):
            next(reading)
        until(lambda: hub.is_closing)
        clock.advance(1)
        for _ in range(10):
            bridge.run(asyncio.sleep(0))
        assert not closing.done()
        assert not again.done()
        hub.loop.call_soon_threadsafe(go_on.set)
        closing.result(30)
        again.result(30)
        assert released == ["k"]


def test_close_on_a_bridges_loop_does_not_wait(logs: Logs) -> None:
    """For example in a coroutine that run() awaits there."""

    async def close() -> None:
        log.close()

    log = logs.new()
    with SSEServer([send(1), silence()]) as upstream:
        reading = log.open("k", lambda: request_sse(upstream.url))
        assert next(reading) == 1
        run(close())
        assert (reading.collect(), reading.outcome) == ([], "closed")
        upstream.requests[0].wait_aborted()


def test_close_ends_tasks_whose_cancellation_becomes_an_outage() -> None:
    watched = threading.Event()

    async def heartbeat(*_: object) -> None:
        watched.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OutageError("the connection was closed") from None

    with SSEServer([send(1), silence()]) as upstream, MemoryLog() as log:
        store = new_store(log)
        store.heartbeat = heartbeat
        use_store(log, store)
        events = log.open("k", lambda: request_sse(upstream.url))
        assert next(events) == 1
        assert watched.wait(30)
    # A fixture checks after every test that no task is left.
    assert events.outcome == "closed"


def test_calls_during_close_raise_bridge_closed_error(
    logs: Logs, caller: LogCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs.new()
    hub = hub_of(log)
    log.close()
    # As if the log was closed right after the check that it is open.
    monkeypatch.setattr(core_of(log), "hub", lambda: hub)
    with pytest.raises(BridgeClosedError, match="log"):
        caller.open(log, "k", wait=0)
    with pytest.raises(BridgeClosedError, match="log"):
        caller.cancel(log, "k")


def test_open_during_close_makes_no_store(logs: Logs, caller: LogCaller, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bridge() as bridge:
        log = logs.new(bridge=bridge)
        started = bridge.started

        def close_during_start() -> LoopState:
            log.close()
            return started()

        monkeypatch.setattr(bridge, "started", close_during_start)
        stores: list[object] = []
        core_of(log).new_store = stores.append  # type: ignore[assignment]
        with pytest.raises(UsageError, match="closed"):
            caller.open(log, "k", wait=0)
        assert stores == []


def test_closing_the_bridge_ends_its_readers(logs: Logs, caller: LogCaller) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        with Bridge() as bridge:
            log = logs.new(bridge=bridge)
            reading = caller.open(log, "k", caller.start(upstream.url))
            assert reading.next() == 1
        assert isinstance(reading.fail()[1], BridgeClosedError)
        log.close()
        with pytest.raises(UsageError):
            caller.open(log, "other")


def test_close_ends_a_waiting_call(logs: Logs) -> None:
    log, store = logs.killable()
    log.cancel("k")
    store.is_out = True
    producing = in_thread(lambda: log.produce("k", lambda: request_sse("http://127.0.0.1:1/")))
    until(lambda: hub_of(log).disturbed_at is not None)
    log.close()
    with pytest.raises(BridgeClosedError):
        producing.result(30)


def test_unused_log_can_be_closed(logs: Logs) -> None:
    log = logs.new()
    hub_of(log)
    log.close()


def test_readers_get_an_error_at_the_exit_of_the_process(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([send(0), silence()]) as upstream, Bridge() as bridge:
        core_of(log).bridge = bridge
        stream = log.open("k", lambda: request_sse(upstream.url, bridge=bridge))
        assert next(stream) == 0
        monkeypatch.setattr("sseqbridge._engine.bridge._exiting", True)
        bridge.close()
        with pytest.raises(BridgeClosedError):
            stream.collect()


def test_memory_log_outlives_the_bridges_loop() -> None:
    with SSEServer([send(1), DONE]) as upstream, MemoryLog() as log:
        with Bridge() as bridge:
            core_of(log).bridge = bridge
            assert log.open("k", lambda: request_sse(upstream.url)).collect() == [1]
        core_of(log).bridge = None
        assert log.open("k").collect() == [1]


def test_lease_is_not_renewed_after_its_release(clock: FakeClock) -> None:
    """A producer whose log fails releases its lease, so that readers elsewhere notice at once."""
    go, released, go_on = threading.Event(), threading.Event(), asyncio.Event()
    with SSEServer([send(1), hold(go), send(2), silence()]) as upstream, Bridge() as bridge:
        log = MemoryLog(lease=30, bridge=bridge)
        store = KillableStore(new_store(log))
        use_store(log, store)

        async def release_and_wait(token: FencingToken) -> None:
            await store.inner.release(token)
            released.set()
            await go_on.wait()

        store.release = release_and_wait  # type: ignore[method-assign]
        reading = log.open("k", lambda: request_sse(upstream.url, timeout={"read": None}, bridge=bridge))
        assert next(reading) == 1
        store.failures["append"] = LogFullError("Redis has no memory left")
        go.set()
        with pytest.raises(LogFullError):
            next(reading)
        assert released.wait(30)
        renewals = store.answers["renew"]
        loop = hub_of(log).loop
        for _ in range(5):
            clock.advance(7)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)
        assert store.answers["renew"] == renewals
        assert not store.streams["k"].is_held
        loop.call_soon_threadsafe(go_on.set)
        log.close()
