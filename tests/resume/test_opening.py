"""Opening a stream: arguments, the first position, and waiting for a producer."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sseqbridge import (
    EventsLostError,
    StreamNotFoundError,
    UsageError,
    arequest_sse,
    request_sse,
    resume,
)
from sseqbridge.resume import Log, MemoryLog, _start
from sseqbridge.resume.redis import RedisLog
from sseqbridge.testing import SSEServer, hold, send, silence, wait
from tests.support import in_thread, until

from .support import (
    DONE,
    LogCaller,
    Logs,
    hub_of,
)


def test_one_of_many_concurrent_openers_begins(log: Log) -> None:
    barrier = threading.Barrier(16)

    def read() -> list[Any]:
        barrier.wait()
        return log.open("k", lambda: request_sse(upstream.url)).collect()

    with SSEServer([wait(0.05), *map(send, range(50)), DONE]) as upstream:
        results = [in_thread(read) for _ in range(16)]
        assert [result.result(30) for result in results] == [list(range(50))] * 16
        assert len(upstream.requests) == 1


def test_replay_selects_the_first_event(log: Log, caller: LogCaller) -> None:
    go = threading.Event()
    with SSEServer([send(1), send(2), hold(go), send(3), DONE]) as upstream:
        first = caller.open(log, "k", caller.start(upstream.url))
        assert [first.next(), first.next()] == [1, 2]
        new, kept = caller.open(log, "k", replay="none"), caller.open(log, "k", replay="kept")
        go.set()
        assert (new.items(), kept.items(), first.items()) == ([3], [1, 2, 3], [3])
    assert caller.open(log, "k", replay="none").items() == []


def test_trimmed_events_raise_events_lost_error(logs: Logs, caller: LogCaller) -> None:
    log = logs.new(max_events=5)
    with SSEServer([*map(send, range(10)), DONE]) as upstream:
        assert caller.produce(log, "k", caller.start(upstream.url)) == "done"
    kept = caller.open(log, "k", replay="kept", decode="event").items()
    assert [event.data for event in kept] == ["6", "7", "8", "9"]
    with pytest.raises(EventsLostError, match="max_events"):
        caller.open(log, "k", last_event_id="1-1")
    fence = kept[0].id.split("-")[0]
    assert caller.open(log, "k", last_event_id=f"{fence}-6").items() == [6, 7, 8, 9]
    with pytest.raises(EventsLostError, match="max_events"):
        caller.open(log, "k", last_event_id=f"{fence}-5")
    with pytest.raises(EventsLostError, match='replay="kept"'):
        caller.open(log, "k")


@pytest.mark.parametrize("event_id", ["", "7", "x", "1-", "99999999999999-3", "1-1\n", "-1-1", "1-1-1"])
def test_foreign_last_event_ids_never_begin_a_stream(log: Log, caller: LogCaller, event_id: str) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        if event_id:
            for _ in range(2):
                with pytest.raises(EventsLostError, match="last event ID"):
                    caller.open(log, "k", caller.start(upstream.url), last_event_id=event_id)
                caller.open(log, "k", caller.start(upstream.url)).items()
        else:
            assert caller.open(log, "k", caller.start(upstream.url), last_event_id=event_id).items() == [1]
        assert len(upstream.requests) == 1


def test_resuming_an_expired_stream_raises_events_lost_error(logs: Logs, caller: LogCaller) -> None:
    log = logs.new()
    with SSEServer([send(1), DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.items() == [1]
        logs.expire_stream(log, "k")
        with pytest.raises(StreamNotFoundError):
            caller.open(log, "k", wait=0)
        assert caller.open(log, "other", caller.start(upstream.url)).items() == [1]
        with pytest.raises(EventsLostError, match="expired"):
            caller.open(log, "k", caller.start(upstream.url), last_event_id=reading.last_event_id)
        assert caller.open(log, "k", caller.start(upstream.url)).items() == [1]
        assert len(upstream.requests) == 3
        with pytest.raises(EventsLostError):
            caller.open(log, "k", last_event_id=reading.last_event_id)


def test_reader_without_start_waits_for_a_producer(log: Log, caller: LogCaller) -> None:
    with pytest.raises(StreamNotFoundError, match="start="):
        caller.open(log, "k", wait=0)
    with pytest.raises(StreamNotFoundError, match="wait="):
        caller.open(log, "k", wait=0.1)
    with SSEServer([send(1), DONE]) as upstream:
        waiting = in_thread(lambda: log.open("k", wait=30).collect())
        until(lambda: hub_of(log).topics)
        assert caller.open(log, "k", caller.start(upstream.url)).items() == [1]
        assert waiting.result(30) == [1]


def test_failed_start_lets_another_opener_begin(log: Log, caller: LogCaller) -> None:
    def fail() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        caller.open(log, "k", fail)
    with pytest.raises(UsageError, match="must return a response of request_sse"):
        caller.open(log, "k", lambda: 12)
    with SSEServer([send(1), DONE]) as upstream:
        assert caller.open(log, "k", caller.start(upstream.url)).items() == [1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StopIteration])
def test_interrupt_in_start_ends_no_other_stream(log: Log, kind: type[BaseException]) -> None:
    go = threading.Event()

    def fail() -> Any:
        raise kind

    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        other = request_sse(upstream.url).events
        assert next(other) == 1
        with pytest.raises(kind):
            log.open("k", fail)
        with pytest.raises(kind):
            log.produce("other", fail)
        go.set()
        assert other.collect() == [2]
        assert log.open("k", lambda: request_sse(upstream.url)).collect() == [1, 2]


@pytest.mark.parametrize(("method", "is_loop_closed"), [("aopen", True), ("aproduce", False), ("aproduce", True)])
def test_late_result_of_start_is_discarded(log: Log, method: str, is_loop_closed: bool) -> None:
    async def cancel_opening(key: str, result: Any, go: threading.Event, is_discarded: Callable[[], bool]) -> None:
        called = threading.Event()

        def start() -> Any:
            called.set()
            assert go.wait(30)
            return result

        opening = asyncio.create_task(getattr(log, method)(key, start))
        assert await asyncio.to_thread(called.wait, 30)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        if not is_loop_closed:
            go.set()
            await asyncio.to_thread(until, is_discarded)

    def open_and_cancel(key: str, result: Any, is_discarded: Callable[[], bool]) -> None:
        go = threading.Event()
        asyncio.run(cancel_opening(key, result, go, is_discarded))
        go.set()
        until(is_discarded)
        # The lease was released, or is released in a moment.
        assert log.open(key, lambda: ["0"], decode="text").collect() == ["0"]

    with SSEServer([send(0), silence()]) as upstream:
        coroutine: Any = arequest_sse(upstream.url)
        open_and_cancel("a", coroutine, lambda: inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED)
        # With a response that has arrived before.
        answered = request_sse(upstream.url)
        open_and_cancel("b", answered, upstream.requests[0].aborted.is_set)
        events = request_sse(upstream.url).events
        open_and_cancel("c", events, upstream.requests[1].aborted.is_set)
        open_and_cancel("d", 7, lambda: True)


@pytest.mark.leaves("task")
def test_loop_that_is_closed_during_start_releases_the_lease(log: Log) -> None:
    """Without a cancellation, which asyncio.run() would send: nobody is left who could receive the result."""
    called, go = threading.Event(), threading.Event()

    def start() -> list[str]:
        called.set()
        assert go.wait(30)
        return ["0"]

    async def main() -> asyncio.Task[Any]:
        opening = asyncio.create_task(log.aopen("k", start))
        while not called.is_set():
            await asyncio.sleep(0)
        return opening

    loop = asyncio.new_event_loop()
    opening = loop.run_until_complete(main())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    assert log.open("k", lambda: ["1"], decode="text").collect() == ["1"]
    assert not opening.done()
    go.set()
    task: Any
    for task in tasks:
        # Else asyncio prints that it was destroyed while it was pending.
        task._log_destroy_pending = False


@pytest.mark.parametrize("part", ["response", "events"])
def test_interrupt_after_start_has_returned_aborts_its_request(
    log: Log, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_start, "_upstream_of", interrupted)
    with SSEServer([send(0), silence()]) as upstream:

        def start() -> Any:
            response = request_sse(upstream.url)
            return response if part == "response" else response.events

        with pytest.raises(KeyboardInterrupt):
            log.open("k", start)
        upstream.requests[0].wait_aborted(30)


def test_late_election_is_released(logs: Logs) -> None:
    log, store = logs.killable()
    store.kill_at = ("claim", 0, False)

    async def main() -> None:
        producing = asyncio.create_task(log.aproduce("k", lambda: request_sse("http://127.0.0.1:1/")))
        assert await asyncio.to_thread(store.killed.wait, 30)
        producing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await producing

    asyncio.run(main())
    store.revive()
    with SSEServer([send(0), DONE]) as upstream:
        until(lambda: store.claims >= 1)
        assert log.open("k", lambda: request_sse(upstream.url)).collect() == [0]


def test_package_exports_its_names_lazily() -> None:
    assert {"Log", "MemoryLog", "RedisLog"} <= set(dir(resume))
    assert resume.RedisLog.__name__ == "RedisLog"
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = resume.other


@pytest.mark.parametrize("key", ["", "a" * 513, "ü" * 300, "a{b", "a}b", "a\nb", "a\0b", "a\x7f", "\ud800", 7, None])
def test_invalid_keys_are_rejected(log: Log, caller: LogCaller, key: Any) -> None:
    for call in (caller.open, caller.cancel, caller.delete):
        with pytest.raises(UsageError, match="key"):
            call(log, key)
    with pytest.raises(UsageError, match="key"):
        caller.produce(log, key, lambda: None)


def test_unusual_keys_are_accepted(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        for key in ("a b", "ü" * 256, "a:events", "*", "../x", "[a]", "a" * 512):
            assert caller.open(log, key, caller.start(upstream.url)).items() == [1]
        assert len(upstream.requests) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 7}, "`start` must be a function, got int"),
        ({"takeover": True}, "`takeover=True` must come with `start`"),
        ({"replay": "some"}, "`replay` must be .* got 'some'"),
        ({"last_event_id": b"1-1"}, "`last_event_id` must be a str or None, got bytes"),
        ({"wait": -1}, "`wait` must be"),
        ({"wait": "1"}, "`wait` must be"),
        ({"decode": "xml"}, "`decode` must be"),
        ({"cancel": 7}, "cancel"),
        ({"max_buffered_bytes": 0}, "max_buffered_bytes"),
    ],
    ids=str,
)
def test_invalid_arguments_of_open_are_rejected(
    log: Log, caller: LogCaller, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        caller.open(log, "k", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lease": 0}, "`lease` must be"),
        ({"ttl": -1}, "`ttl` must be"),
        ({"outage": True}, "`outage` must be"),
        ({"abandon_after": -1}, "`abandon_after` must be"),
        ({"max_events": 0}, "max_events"),
        ({"bridge": 7}, "`bridge` must be a sseqbridge.Bridge, got int"),
    ],
    ids=str,
)
def test_invalid_arguments_of_a_log_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MemoryLog(**options)


@pytest.mark.blocks_its_loop
@pytest.mark.parametrize("method", ["open", "produce", "cancel", "delete"])
def test_blocking_methods_warn_in_a_coroutine_at_the_call(log: Log, method: str) -> None:
    arguments: dict[str, dict[str, Any]] = {"open": {"wait": 0}, "produce": {"start": lambda: None}}

    async def main() -> None:
        warns = pytest.warns(RuntimeWarning, match=f"Log.{method} blocks .* await a{method}")
        with warns as caught, contextlib.suppress(StreamNotFoundError, UsageError):
            getattr(log, method)("k", **arguments.get(method, {}))
        assert [warning.filename for warning in caught] == [__file__]

    asyncio.run(main())


@pytest.mark.parametrize("name", ["open", "aopen"])
def test_signature_of_open_shows_every_option(name: str) -> None:
    parameters = inspect.signature(getattr(MemoryLog(), name)).parameters
    assert list(parameters)[:2] == ["key", "start"]
    # The order of keyword arguments has no meaning.
    assert set(list(parameters)[2:]) == {
        "last_event_id",
        "replay",
        "takeover",
        "wait",
        "decode",
        "dialect",
        "error_events",
        "cancel",
        "max_buffered_bytes",
    }
    assert str(parameters["start"].annotation) == "Start | None"
    assert parameters["wait"].default == 10.0


@pytest.mark.parametrize("make", [MemoryLog, RedisLog, RedisLog.from_url])
def test_signature_of_a_log_shows_every_option(make: Callable[..., Any]) -> None:
    parameters = inspect.signature(make).parameters
    assert {"lease", "ttl", "max_events", "abandon_after", "outage", "bridge"} <= set(parameters)
    assert "options" not in parameters
    assert parameters["lease"].default == 10.0
    assert str(parameters["max_events"].annotation) == "int | None"
