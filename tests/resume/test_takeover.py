"""Producers that die: readers notice, and with takeover=True one of them starts the stream again."""

from __future__ import annotations

import asyncio
import re
import threading
from functools import partial
from typing import Any

import pytest

from sseqbridge import (
    Bridge,
    CallbackError,
    ConnectError,
    ProducerLostError,
    StatusError,
    StreamNotFoundError,
    relay,
    request_sse,
)
from sseqbridge.resume import MemoryLog
from sseqbridge.resume._store import LogSettings
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, respond, send, silence
from tests.clock import FakeClock
from tests.support import in_thread, until

from .support import (
    DONE,
    KillableStore,
    LogCaller,
    LogReading,
    Logs,
    assert_lost,
    expire_lease_when_killed,
    hub_of,
    new_store,
    use_store,
)

pytestmark = pytest.mark.slow

STEPS = [
    ("claim", 0, True),
    ("append", 0, False),
    ("append", 0, True),
    ("append", 1, False),
    ("append", 1, True),
    ("append", 2, False),
    ("end", 0, False),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_readers_notice_a_producer_killed_at_each_step(logs: Logs, step: tuple[str, int, bool]) -> None:
    log, store = logs.killable()
    store.kill_at = step
    with SSEServer([*store.one_by_one(0, 1, 2), DONE]) as upstream:
        opened = in_thread(lambda: log.open("k", lambda: request_sse(upstream.url)))
        assert store.killed.wait(30)
        if step == ("append", 0, False):
            # Nothing was written, so the waiting reader begins the stream.
            logs.expire_lease(store, "k")
            assert opened.result(30).collect() == log.open("k").collect() == [0, 1, 2]
            return
        if step[0] == "claim":
            waiting = in_thread(lambda: log.open("k", wait=0))
            until(lambda: "k" in hub_of(log).topics and hub_of(log).topics["k"].subscribers)
            logs.expire_lease(store, "k")
            assert isinstance(waiting.exception(30), StreamNotFoundError)
            assert log.open("k", lambda: request_sse(upstream.url)).collect() == [0, 1, 2]
            store.revive()
            if opened.exception(30) is None:
                opened.result().close()
            return
        caller = LogCaller(is_async=False)
        reading = LogReading(caller, log.open("k"))
        logs.expire_lease(store, "k")
        assert_lost(reading, 3)
        assert_lost(LogReading(caller, opened.result(30)), 3)
        # A later reader gets the same error, without waiting.
        assert_lost(LogReading(caller, log.open("k", lambda: request_sse(upstream.url))), 3)


def test_stream_deleted_during_the_search_for_its_producer_has_ended(clock: FakeClock) -> None:
    with SSEServer([send(0), silence()]) as upstream, Bridge() as bridge, MemoryLog(lease=30, bridge=bridge) as log:
        store = KillableStore(new_store(log))
        use_store(log, store)
        reading = log.open("k", lambda: request_sse(upstream.url, timeout={"read": None}, bridge=bridge))
        assert next(reading) == 0
        claim = store.claim

        async def deleted_first(key: str, owner: str, **options: Any) -> Any:
            # After the reader has read, and found no further entry.
            await store.inner.delete(key)
            return await claim(key, owner, **options)

        store.claim = deleted_first  # type: ignore[method-assign]
        store.kill_at = ("renew", 0, False)
        clock.advance(15)
        assert store.killed.wait(30)
        clock.advance_until(lambda: store.claims == 2)
        assert (reading.collect(), reading.outcome) == ([], "closed")
        store.revive()


def test_dead_producer_is_noticed_within_the_lease(clock: FakeClock) -> None:
    with SSEServer([send(0), silence()]) as upstream, Bridge() as bridge, MemoryLog(lease=30, bridge=bridge) as log:
        store = KillableStore(new_store(log))
        use_store(log, store)
        reading = log.open("k", lambda: request_sse(upstream.url, timeout={"read": None}, bridge=bridge))
        assert next(reading) == 0
        # A live producer keeps its lease.
        for _ in range(20):
            renewed = store.answers["renew"]
            clock.advance(7)
            until(lambda: store.answers["renew"] > renewed)  # noqa: B023
        with pytest.raises(TimeoutError):
            reading.next(0)
        store.kill_at = ("renew", 0, False)
        clock.advance(7)
        assert store.killed.wait(30)
        clock.advance(30)
        with pytest.raises(ProducerLostError):
            next(reading)
        store.revive()


def test_lease_ttl_check_interval_and_grace_fit_into_the_lease() -> None:
    settings = LogSettings(10, 3600, None, None, 30)
    assert settings.lease_ttl + settings.liveness_interval + settings.grace <= settings.lease
    # There is time for two more renewals if one is late or fails.
    assert 3 * settings.renewal_interval <= settings.lease_ttl


@pytest.mark.parametrize("step", STEPS[2:], ids=str)
def test_producer_with_a_stale_token_writes_nothing(logs: Logs, caller: LogCaller, step: tuple[str, int, bool]) -> None:
    log, store = logs.killable()
    store.kill_at = step
    go = threading.Event()
    old = [*store.one_by_one("old 0", "old 1"), DONE]

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/old":
            return old
        return [send("new 0"), hold(go), send("new 1"), DONE]

    with SSEServer(script) as upstream:
        opened = in_thread(lambda: log.open("k", lambda: request_sse(f"{upstream.url}/old", decode="text")))
        assert store.killed.wait(30)
        start = caller.start(f"{upstream.url}/new", decode="text")

        logs.expire_lease(store, "k")
        reading = caller.open(log, "k", start, takeover=True, decode="event")
        while reading.next().data != "new 0":
            pass
        store.revive()
        go.set()
        assert [event.data for event in reading.items()] == ["new 1"]
        whole = [event.data for event in caller.open(log, "k", decode="event").items()]
        begun = whole.index("new 0")
        assert whole[begun:] == ["new 0", "new 1"]
        assert whole[:begun] in (
            [],
            ["old 0", '{"restart":true}'],
            ["old 0", "old 1", '{"restart":true}'],
            ['{"restart":true}'],
        )
        if opened.exception(30) is None:
            opened.result().close()


def test_iterating_reader_takes_over(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    store.kill_at = ("append", 2, False)
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), send(2), DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url), takeover=True, decode="event")
        other = log.open("k", lambda: request_sse(upstream.url), takeover=True)
        before = [reading.next()]
        go.set()
        caller.run_blocking(lambda: expire_lease_when_killed(logs, store))
        for event in iter(reading.next, None):
            before.append(event)
            if event.event == "restart":
                break
        assert [event.data for event in before] == ["0", '{"restart":true}']
        # A relay forwards the restart past `map`, so that applications need not handle it.
        frames: list[bytes] = []
        caller.run_blocking(lambda: frames.extend(relay.frames(log.open("k"), map=lambda item: str(item + 1))))
        relayed = b"".join(frames).decode()
        assert re.findall("event: (.*)", relayed) == ["restart"]
        assert re.findall("data: (.*)", relayed) == ["1", '{"restart":true}', "1", "2", "3", "[DONE]"]
        assert [event.data for event in reading.items()] == ["0", "1", "2"]
        assert reading.outcome == "done"
        assert other.collect() == [0, {"restart": True}, 0, 1, 2]
        # A reader that resumes before the restart gets it too.
        assert caller.open(log, "k", last_event_id=before[0].id).items() == [{"restart": True}, 0, 1, 2]
        assert len(upstream.requests) == 2


def test_asynchronous_reader_takes_over_with_a_plain_function(logs: Logs) -> None:
    log, store = logs.killable()
    store.kill_at = ("append", 2, False)
    go = threading.Event()

    async def main() -> None:
        reading = await log.aopen("k", partial(request_sse, upstream.url), takeover=True)
        assert await reading.next() == 0
        go.set()
        await asyncio.to_thread(expire_lease_when_killed, logs, store)
        assert await reading.collect() == [{"restart": True}, 0, 1, 2]

    with SSEServer([send(0), hold(go), send(1), send(2), DONE]) as upstream:
        asyncio.run(main())
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("failure", [ZeroDivisionError(), SystemExit(), ConnectError("no")], ids=repr)
def test_failed_takeover_ends_all_readers(logs: Logs, failure: BaseException) -> None:
    log, store = logs.killable()
    store.kill_at = ("append", 2, False)
    calls = []
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), silence()]) as upstream:

        def start() -> Any:
            calls.append(1)
            if len(calls) > 1:
                raise failure
            return request_sse(upstream.url)

        reading = log.open("k", start, takeover=True)
        other = log.open("k")
        assert next(reading) == 0
        go.set()
        expire_lease_when_killed(logs, store)
        with pytest.raises(ConnectError if isinstance(failure, ConnectError) else CallbackError):
            next(reading)
        assert next(other) == 0
        with pytest.raises((CallbackError, ConnectError, ProducerLostError)):
            next(other)
        assert len(calls) == 2


def test_refused_takeover_ends_all_readers_and_can_be_retried(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    store.kill_at = ("append", 2, False)

    go = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        number = len(upstream.requests)
        if number == 1:
            return [send(0), hold(go), send(1), silence()]
        return [respond(503)] if number == 2 else [send(7), DONE]

    with SSEServer(script) as upstream:
        start = caller.start(upstream.url)
        reading = caller.open(log, "k", start, takeover=True)
        assert reading.next() == 0
        go.set()
        caller.run_blocking(lambda: expire_lease_when_killed(logs, store))
        items, error = reading.fail()
        assert (items, type(error)) == ([], StatusError)
        # A later reader may take over again.
        again = caller.open(log, "k", start, takeover=True)
        assert again.events.status == 200
        assert again.items() == [0, {"restart": True}, 7]
