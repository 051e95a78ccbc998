"""A `start` that waits for its upstream, while the log is closed, its store fails, or the stream is cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    EventStream,
    LogError,
    ProducerLostError,
    RequestAbortedError,
    UsageError,
    request_sse,
)
from sseqbridge._exceptions import LogFullError
from sseqbridge.resume import Log, MemoryLog, RedisLog
from sseqbridge.resume import _hub as hub_module
from sseqbridge.resume._store import OutageError
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, send, silence
from tests.redis_support import needs_redis, redis_server
from tests.support import in_thread, until

from .support import DONE, LEASE, KillableStore, LogCaller, Logs, check_often, hub_of, new_store, use_store

pytestmark = pytest.mark.slow

HANG = {"timeout": None}


def until_nothing_is_left(log: Log) -> None:
    hub = hub_of(log)

    def left() -> list[object]:
        return [*hub.topics.values(), *hub.groups, *hub.readers]

    try:
        until(lambda: not left())
    except TimeoutError:
        assert left() == [], [vars(topic) for topic in hub.topics.values()]


def fill(client: redis.Redis) -> None:
    """Let a Redis have no memory left, also after it has released some."""
    client.config_set("maxmemory", "1kb")
    with pytest.raises(redis.OutOfMemoryError):
        client.set("fill", "x")


class Upstream:
    """An upstream that does not answer until it is let go on."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.server = SSEServer(self._script)

    def _script(self, request: ReceivedRequest) -> list[Step]:
        self.asked.set()
        return [hold(self.go_on), silence()]

    def __enter__(self) -> Upstream:
        self.server.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.go_on.set()
        self.server.__exit__(*exc_info)


@pytest.mark.parametrize("method", ["open", "produce"])
def test_close_ends_a_start_that_waits(logs: Logs, caller: LogCaller, method: str) -> None:
    log = logs.new()
    with Upstream() as upstream:

        def close() -> None:
            assert upstream.asked.wait(30)
            log.close()

        closing = in_thread(close)
        with pytest.raises(BridgeClosedError, match="closed before the stream had begun"):
            getattr(caller, method)(log, "k", caller.start(upstream.server.url, **HANG))
        closing.result(30)
        caller.run_blocking(upstream.server.requests[0].wait_aborted, 30)


def test_close_ends_a_takeover_that_waits(logs: Logs) -> None:
    log, store = logs.killable()
    store.kill_at = ("append", 2, False)
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), silence()]) as first, Upstream() as upstream:
        urls = [first.url, upstream.server.url]
        reader = log.open("k", lambda: request_sse(urls.pop(0), timeout=None), takeover=True)
        assert next(reader) == 0
        go.set()
        assert store.killed.wait(30)
        logs.expire_lease(store, "k")
        assert upstream.asked.wait(30)
        # Else close() waits until the store has released the lease of the killed producer.
        store.revive()
        log.close()
        upstream.server.requests[0].wait_aborted(30)
        assert (reader.collect(), reader.outcome) == ([], "closed")


def test_close_of_the_bridge_ends_a_start_on_another_bridge(logs: Logs) -> None:
    with Upstream() as upstream, Bridge() as other:
        bridge = Bridge()
        log = logs.new(bridge=bridge)
        start = lambda: request_sse(upstream.server.url, timeout=None, bridge=other)  # noqa: E731
        opened = in_thread(lambda: log.open("k", start))
        assert upstream.asked.wait(30)
        bridge.close()
        with pytest.raises(BridgeClosedError):
            opened.result(30)
        upstream.server.requests[0].wait_aborted(30)
        log.close()


def test_start_that_ignores_the_end_is_discarded(logs: Logs) -> None:
    """Such as a function that first waits for something else."""
    log = logs.new()
    called, go_on = threading.Event(), threading.Event()
    with SSEServer([send(1), silence()]) as upstream:

        def start() -> Any:
            called.set()
            assert go_on.wait(30)
            return request_sse(upstream.url)

        opened = in_thread(lambda: log.open("k", start))
        assert called.wait(30)
        log.close()
        go_on.set()
        with pytest.raises((BridgeClosedError, RequestAbortedError)):
            opened.result(30)
        assert upstream.open_requests == 0 or upstream.requests[0].wait_aborted(30) is None


@pytest.mark.parametrize("method", ["open", "produce"])
def test_full_store_during_start_raises_log_full_error(logs: Logs, caller: LogCaller, method: str) -> None:
    log, store = logs.killable()
    with Upstream() as upstream:

        def fill() -> None:
            assert upstream.asked.wait(30)
            store.failures["renew"] = LogFullError("Redis has no memory left")

        filling = in_thread(fill)
        with pytest.raises(LogFullError, match="no memory left"):
            getattr(caller, method)(log, "k", caller.start(upstream.server.url, **HANG))
        filling.result(30)
        caller.run_blocking(upstream.server.requests[0].wait_aborted, 30)
        store.failures.clear()
        until_nothing_is_left(log)


@needs_redis
def test_full_redis_during_start_raises_log_full_error() -> None:
    with (
        redis_server() as server,
        Upstream() as upstream,
        check_often(RedisLog.from_url(server.url, lease=LEASE)) as log,
        server.client() as client,
    ):
        opened = in_thread(lambda: log.open("k", lambda: request_sse(upstream.server.url, timeout=None)))
        assert upstream.asked.wait(30)
        fill(client)
        with pytest.raises(LogFullError, match="maxmemory"):
            opened.result(30)
        upstream.server.requests[0].wait_aborted(30)
        until_nothing_is_left(log)


@needs_redis
@pytest.mark.parametrize("method", ["cancel", "delete"])
def test_full_redis_cancels_and_deletes_streams(method: str) -> None:
    with (
        redis_server() as server,
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(server.url, lease=LEASE) as log,
        server.client() as client,
    ):
        reader = log.open("k", lambda: request_sse(upstream.url))
        assert next(reader) == 1
        fill(client)
        assert getattr(log, method)("k")
        assert (reader.collect(), reader.outcome) == ([], "closed")
        upstream.requests[0].wait_aborted(30)


def test_cancel_during_start_names_the_cancel(log: Log, caller: LogCaller) -> None:
    with Upstream() as upstream:
        cancelling = in_thread(lambda: upstream.asked.wait(30) and log.cancel("k"))
        with pytest.raises(RequestAbortedError, match="the stream was cancelled before it had begun"):
            caller.open(log, "k", caller.start(upstream.server.url, **HANG))
        assert cancelling.result(30)


def test_own_error_of_start_stays(log: Log, caller: LogCaller) -> None:
    def start() -> Any:
        raise UsageError("own")

    with pytest.raises(UsageError, match="own"):
        caller.open(log, "k", start)
    until_nothing_is_left(log)


# Nothing stays behind.


@pytest.mark.parametrize("name", ["claim", "read", "append", "end", "renew", "heartbeat"])
@pytest.mark.parametrize("error", [LogFullError("full"), ZeroDivisionError("bug")], ids=["full", "bug"])
def test_no_topic_stays_after_an_error(logs: Logs, caller: LogCaller, name: str, error: Exception) -> None:
    log, store = logs.killable()
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        readings = [caller.open(log, "k", caller.start(upstream.url)), caller.open(log, "k")]
        assert [reading.next() for reading in readings] == [1, 1]
        store.failures[name] = error
        go.set()
        if name == "claim":
            with pytest.raises(Exception, match=r"full|failed with ZeroDivisionError"):
                caller.open(log, "other", caller.start(upstream.url))
        for reading in readings:
            # A heartbeat or renewal may fail before or after the end of the stream.
            with suppress(LogError, ProducerLostError):
                reading.items()
        store.failures.clear()
        until_nothing_is_left(log)
        assert caller.open(log, "new", caller.start(upstream.url)).items() == [1, 2]
    until_nothing_is_left(log)


def test_topic_that_fails_during_a_read_leaves_no_reader(caller: LogCaller) -> None:
    with SSEServer([send(1), silence()]) as upstream, Bridge() as bridge, MemoryLog(lease=LEASE, bridge=bridge) as log:
        store = KillableStore(new_store(log))
        use_store(log, store)
        produced = in_thread(lambda: log.produce("k", lambda: request_sse(upstream.url, bridge=bridge)))
        until(lambda: store.answers["append"] == 2)
        read = store.inner.read

        async def read_and_fail(*args: Any) -> Any:
            entries = await read(*args)
            if not entries:
                hub = hub_of(log)
                topic = hub.topics["k"]
                topic.fail(LogError("the topic failed"))
                hub.remove_topic(topic)
            return entries

        store.inner.read = read_and_fail
        items, error = caller.open(log, "k").fail()
        assert (items, str(error)) == ([1], "the topic failed")
        with pytest.raises(LogError, match="the topic failed"):
            produced.result(30)
        until_nothing_is_left(log)


# A tail that sleeps.


@contextmanager
def log_whose_tail_sleeps(
    monkeypatch: pytest.MonkeyPatch, upstream: SSEServer
) -> Iterator[tuple[Log, EventStream[Any]]]:
    """Yield a log, and a reader of its stream "k", after an outage of the tail alone, as of one connection.

    The outage is over, and the tail's next attempt is due in minutes.
    """
    monkeypatch.setattr(hub_module, "_FIRST_DELAY", 300.0)
    monkeypatch.setattr(hub_module, "_MAX_DELAY", 300.0)
    with Bridge() as bridge, MemoryLog(lease=LEASE, outage=600, bridge=bridge) as log:
        store = KillableStore(new_store(log))
        use_store(log, store)
        is_out, failed = threading.Event(), threading.Event()
        new_tail = store.inner.new_tail

        def failing_tail() -> Any:
            tail = new_tail()
            read = tail.read

            async def read_or_fail(positions: Any) -> Any:
                if is_out.is_set():
                    failed.set()
                    raise OutageError("the connection was lost")
                return await read(positions)

            tail.read = read_or_fail
            return tail

        store.inner.new_tail = failing_tail
        reader = log.open("k", lambda: request_sse(upstream.url, bridge=bridge))
        assert next(reader) == 1
        is_out.set()
        with SSEServer([send(1), DONE]) as another:
            # Ends the wait of the tail, whose next one fails.
            assert log.produce("waking", lambda: request_sse(another.url, bridge=bridge)) == "done"
        assert failed.wait(30)
        is_out.clear()
        yield log, reader


def test_new_reader_does_not_wait_for_a_tail_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        log_whose_tail_sleeps(monkeypatch, upstream) as (log, reader),
    ):
        began = time.monotonic()
        other = log.open("other", lambda: request_sse(upstream.url))
        assert other.next(30) == 1
        go.set()
        assert (other.next(30), reader.next(30)) == (2, 2)
        assert time.monotonic() - began < 60
        assert (reader.collect(), other.collect()) == ([], [])


def test_tail_that_sleeps_ends_with_the_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), DONE]) as upstream,
        log_whose_tail_sleeps(monkeypatch, upstream) as (log, reader),
    ):
        assert hub_of(log).groups
        reader.close()
        # Ends the producer, which follows its own stream.
        go.set()
        until_nothing_is_left(log)
