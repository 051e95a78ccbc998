"""Streams share connections and tasks, but no faults: a fault of one stream ends its own readers alone."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import redis.asyncio

from sseqbridge import CallbackError, LogError, SSEError
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._http.client import ClientPool
from sseqbridge.resume import Log, RedisLog
from sseqbridge.resume._entries import START, Entry, Position
from sseqbridge.resume._hub import Hub
from sseqbridge.resume._memory import MemoryStore
from sseqbridge.resume._segments import segments_of
from sseqbridge.resume._store import FencingToken, Liveness, LogSettings
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.redis_support import RedisServer, needs_redis
from tests.support import until

from .support import DONE, LEASE, LogCaller, LogReading, hub_of

T = TypeVar("T")


def in_loop(log: Log, coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, hub_of(log).loop).result(30)


class Writer:
    """Writes chosen entries under the token of a producer."""

    def __init__(self, log: Log, key: str) -> None:
        self._log = log
        self._store = hub_of(log).store
        claim = in_loop(log, self._store.claim(key, "writer", may_begin=True, takeover=False))
        self.token = FencingToken(key, claim.fence, "writer")
        self._number = 0

    def write(self, *entries: dict[str, str]) -> None:
        in_loop(self._log, self._store.append(self.token, self._number, entries))
        self._number += len(entries)


def until_tailed(log: Log, *keys: str) -> None:
    """Wait until readers of these streams are subscribed to new entries."""

    def is_tailed(key: str) -> bool:
        topic = hub_of(log).topics.get(key)
        return topic is not None and any(subscriber.is_reader for subscriber in topic.subscribers)

    until(lambda: all(is_tailed(key) for key in keys))


# Entries that cannot be read.


def failed(**fields: Any) -> dict[str, str]:
    return {"error": json.dumps({"message": "reason", **fields})}


def refused(**fields: Any) -> dict[str, str]:
    return {"refused": json.dumps({"status": 500, "headers": {}, "body": "", **fields})}


ENCODED = base64.b64encode(b"body").decode()

UNREADABLE: dict[str, dict[str, str]] = {
    "of an unknown kind": {"checkpoint": "1", "of": "a newer version"},
    "retry that is text": {"data": "x", "retry": "soon"},
    "retry that is empty": {"data": "x", "retry": ""},
    "retry nan": {"data": "x", "retry": "nan"},
    "retry inf": {"data": "x", "retry": "inf"},
    "retry huge": {"data": "x", "retry": "1e400"},
    "retry below zero": {"data": "x", "retry": "-1"},
    "end of another kind": {"end": "paused"},
    "error that is no JSON": {"error": "text"},
    "error cut off": {"error": '{"type": "SSEError", "mess'},
    "error that is a list": {"error": "[]"},
    "error that is a number": {"error": "7"},
    "error that is a string": {"error": '"text"'},
    "error that is null": {"error": "null"},
    "error without fields": {"error": "{}"},
    "error nested deeply": {"error": "[" * 100_000},
    "error with a number too long": {"error": "9" * 5000},
    "error whose type is a number": failed(type=7),
    "error whose type is a list": failed(type=["SSEError"]),
    "error without a message": {"error": '{"type": "SSEError"}'},
    "error whose message is a list": failed(type="SSEError", message=[]),
    "error without its event": {"error": '{"type": "DecodeError", "message": "", "event": null}'},
    "error with a lone surrogate": {"error": '{"type": "SSEError", "message": "\\ud800"}'},
    "timeout without fields": failed(type="StreamTimeoutError"),
    "timeout with an unknown kind": failed(type="StreamTimeoutError", which="later", seconds=1),
    "timeout with text for seconds": failed(type="StreamTimeoutError", which="idle", seconds="1"),
    "timeout huge": failed(type="StreamTimeoutError", which="idle", seconds=10**400),
    "timeout with a bool for seconds": failed(type="StreamTimeoutError", which="idle", seconds=True),
    "limit with a fraction": failed(type="BufferLimitError", limit=1.5),
    "limit below zero": failed(type="BufferLimitError", limit=-1),
    "attempts that are text": failed(type="ReconnectionError", attempts="3"),
    "status without the rest": failed(type="StatusError", status=500),
    "status with a list for headers": failed(type="StatusError", status=500, headers=[], body=""),
    "status with numbers as headers": failed(type="StatusError", status=500, headers={"a": 1}, body=""),
    "status with a line break in a header": failed(type="StatusError", status=500, headers={"a": "1\n2"}, body=""),
    "status with a header without a name": failed(type="StatusError", status=500, headers={"": "1"}, body=""),
    "status with a body that is not ASCII": failed(type="StatusError", status=500, headers={}, body="ü"),
    "status with a body that is no base64": failed(type="StatusError", status=500, headers={}, body="*"),
    "event that is a number": failed(type="DecodeError", event=7),
    "event with three fields": failed(type="DecodeError", event=["message", "x", ""]),
    "event with numbers for fields": failed(type="UpstreamError", event=[1, 2, 3, 4], payload={}),
    "event without a payload": failed(type="UpstreamError", event=["message", "x", "", None]),
    "refusal that is no JSON": {"refused": "text"},
    "refusal that is a list": {"refused": "[]"},
    "refusal without fields": {"refused": "{}"},
    "refusal with text for an error": {"refused": '{"error": "text"}'},
    "refusal with 200": refused(status=200),
    "refusal with a status below 100": refused(status=7),
    "refusal with a status huge": refused(status=10**30),
    "refusal with a bool for a status": refused(status=True),
    "refusal with text for a status": refused(status="500"),
    "refusal with null for headers": refused(headers=None),
    "refusal with null for a body": refused(body=None),
    "refusal with a body and a wrong error": refused(body=ENCODED, error={"type": "StreamTimeoutError", "message": ""}),
}


def cannot_be_read(reading: LogReading, items: list[Any]) -> str:
    """Check that a reading returns these items, then raises a LogError; return its message."""
    seen, error = reading.fail()
    assert (seen, type(error), reading.outcome) == (items, LogError, "error")
    assert "cannot be read" in str(error)
    return str(error)


def test_unreadable_entry_ends_readers_of_its_stream_alone(log: Log, caller: LogCaller) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        good = caller.open(log, "good", caller.start(upstream.url))
        assert good.next() == 1
        writers = {name: Writer(log, name) for name in UNREADABLE}
        readings = {}
        for name, writer in writers.items():
            writer.write({"begin": "200"}, {"data": "1"})
            readings[name] = caller.open(log, name)
            assert readings[name].next() == 1
        until_tailed(log, "good", *UNREADABLE)
        for name, fields in UNREADABLE.items():
            writers[name].write({"data": "2"}, fields, {"data": "3"})
            text = cannot_be_read(readings[name], [2])
            assert f"entry {writers[name].token.fence}-3 " in text, name
            # A later reader catches up by itself.
            cannot_be_read(caller.open(log, name), [1, 2])
        go.set()
        assert (good.items(), good.outcome) == ([2], "done")


def test_unknown_kind_of_entry_is_named(log: Log) -> None:
    writer = Writer(log, "k")
    writer.write({"begin": "200"}, {"checkpoint": "1"})
    with pytest.raises(LogError, match=r"kind is unknown.*'checkpoint'.*newer version"):
        next(log.open("k"))


@pytest.mark.parametrize("kind", ["ended", "lost"])
def test_resuming_at_an_unreadable_entry_raises_log_error(log: Log, caller: LogCaller, kind: str) -> None:
    fields = {"ended": {"end": "paused"}, "lost": {"checkpoint": "1"}}[kind]
    writer = Writer(log, "k")
    writer.write({"begin": "200"}, {"data": "1"}, fields)
    in_loop(log, hub_of(log).store.release(writer.token))
    for number, items in ((0, [1]), (1, [])):
        cannot_be_read(caller.open(log, "k", last_event_id=f"{writer.token.fence}-{number}"), items)
    if kind == "ended":
        with pytest.raises(LogError, match="cannot be read"):
            caller.open(log, "k", last_event_id=f"{writer.token.fence}-2").next()


def test_error_of_an_unknown_type_is_named(log: Log, caller: LogCaller) -> None:
    writer = Writer(log, "k")
    writer.write({"begin": "200"}, failed(type="QuotaError", besides=7))
    error = caller.open(log, "k").fail()[1]
    assert (type(error), str(error)) == (SSEError, "the producer failed with QuotaError: reason")


def test_each_reader_gets_its_own_copy_of_an_error(log: Log) -> None:
    writer = Writer(log, "k")
    writer.write({"begin": "200"})
    readers = [log.open("k") for _ in range(3)]
    until(lambda: len(hub_of(log).topics["k"].subscribers) == 3, 30)
    writer.write({"checkpoint": "1"})
    errors = []
    for reader in readers:
        with pytest.raises(LogError) as caught:
            next(reader)
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3


# Functions of callers.


def test_raising_cancel_flag_ends_its_reader_alone(log: Log, caller: LogCaller) -> None:
    class Flag:
        error: BaseException | None = None

        def is_set(self) -> bool:
            # The consumer in the main thread checks the flag too.
            if self.error is not None and threading.current_thread() is not threading.main_thread():
                raise self.error
            return False

    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        good = caller.open(log, "k", caller.start(upstream.url))
        assert good.next() == 1
        for raised in (ZeroDivisionError(), SystemExit(), KeyboardInterrupt()):
            flag = Flag()
            reading = caller.open(log, "k", cancel=flag)
            assert reading.next() == 1
            flag.error = raised
            items, error = reading.fail()
            assert (items, type(error)) == ([], CallbackError)
            assert type(raised).__name__ in str(error)
        go.set()
        assert (good.items(), good.outcome) == ([2], "done")


def test_raising_subscriber_fails_alone() -> None:
    class FakeSubscriber:
        is_reader = False
        position = START

        def __init__(self, error: Exception | None = None) -> None:
            self._error = error
            self.received: list[Any] = []
            self.failed = asyncio.Event()
            self.has_received = asyncio.Event()

        def deliver(self, parts: Any) -> bool:
            if self._error is not None:
                raise self._error
            self.received += parts
            self.has_received.set()
            return True

        def on_lease_lost(self) -> None:
            raise AssertionError

        def fail(self, error: SSEError) -> None:
            assert isinstance(error, LogError)
            self.failed.set()

    async def main() -> None:
        settings = LogSettings(LEASE, LEASE, None, None, 1)
        store = MemoryStore(settings)
        hub = Hub(LoopState(asyncio.get_running_loop(), ClientPool()), store, settings)
        broken, good = FakeSubscriber(ZeroDivisionError()), FakeSubscriber()
        for subscriber in (broken, good):
            hub.topic("k").register(subscriber)
            assert hub.topic("k").try_subscribe(subscriber)
        claim = await store.claim("k", "me", may_begin=True, takeover=False)
        await store.append(FencingToken("k", claim.fence, "me"), 0, [{"data": "x"}])
        await asyncio.wait_for(broken.failed.wait(), 30)
        await asyncio.wait_for(good.has_received.wait(), 30)
        assert not good.failed.is_set()
        # A lease that is missing right after an outage may still be renewed.
        hub.disturbed_at = hub.loop.time()
        hub.topic("k").update_liveness(Liveness(False, None))
        await hub.aclose()

    asyncio.run(main())


def test_segments_end_at_an_undecodable_entry() -> None:
    entries = [Entry(Position(1, 0), {"data": "a"}), Entry(Position(1, 1), {}, "why"), Entry(Position(1, 2), {})]
    good, bad = segments_of(entries, START)
    assert ([item.data for item in good.items], good.error) == (["a"], None)
    assert (bad.kind, bad.position) == ("unreadable", Position(1, 1))
    assert str(bad.error) == "entry 1-1 of the log's stream cannot be read: why"


# Keys in Redis.


@pytest.fixture(params=["plain", "decoding", "RESP2", "RESP3"])
def redis_log(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[RedisLog]:
    """A log whose client has one of the usual configurations."""
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "decoding": {"decode_responses": True},
        "RESP2": {"protocol": 2, "decode_responses": True},
        "RESP3": {"protocol": 3, "legacy_responses": False},
    }
    options = ways[request.param]
    with server.client() as client:
        client.flushall()
    with RedisLog(lambda: redis.asyncio.Redis(port=server.port, **options), lease=LEASE) as log:
        yield log


@needs_redis
def test_invalid_utf8_ends_readers_of_its_stream_alone(redis_log: RedisLog, server: RedisServer) -> None:
    go = threading.Event()
    caller = LogCaller(is_async=False)
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream, server.client() as client:
        good = caller.open(redis_log, "good", caller.start(upstream.url))
        assert good.next() == 1
        entries: list[dict[Any, Any]] = [{"data": b"\xff"}, {b"\xff": "x"}, {"data": "1", "event": b"\xc3"}]
        for number, fields in enumerate(entries):
            writer = Writer(redis_log, f"k{number}")
            writer.write({"begin": "200"})
            reading = caller.open(redis_log, f"k{number}")
            until_tailed(redis_log, "good", f"k{number}")
            client.xadd(f"sseqbridge:{{k{number}}}:events", fields, id=f"{writer.token.fence}-1")
            assert "not UTF-8" in cannot_be_read(reading, [])
            assert "not UTF-8" in cannot_be_read(caller.open(redis_log, f"k{number}"), [])
        go.set()
        assert good.items() == [2]


@needs_redis
@pytest.mark.parametrize("entry_id", ["1000000000000000-0", "18446744073709551615-18446744073709551615"])
def test_foreign_entry_ids_end_readers_of_their_stream_alone(
    redis_log: RedisLog, server: RedisServer, entry_id: str
) -> None:
    go = threading.Event()
    caller = LogCaller(is_async=False)
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream, server.client() as client:
        good = caller.open(redis_log, "good", caller.start(upstream.url))
        assert good.next() == 1
        Writer(redis_log, "k").write({"begin": "200"}, {"data": "1"})
        reading = caller.open(redis_log, "k")
        assert reading.next() == 1
        until_tailed(redis_log, "good", "k")
        client.xadd("sseqbridge:{k}:events", {"data": "2"}, id=entry_id)
        assert "no log has written it" in cannot_be_read(reading, [])
        assert "no log has written it" in cannot_be_read(caller.open(redis_log, "k"), [1])
        go.set()
        assert good.items() == [2]


@needs_redis
@pytest.mark.parametrize("what", ["events", "readers"])
def test_wrong_key_type_ends_readers_of_its_stream_alone(server: RedisServer, what: str) -> None:
    """Although one XREAD, and one heartbeat script, use the keys of all streams."""
    go = threading.Event()
    caller = LogCaller(is_async=False)
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        SSEServer([send(1), silence()]) as broken,
        RedisLog.from_url(server.url, prefix=f"wrong-{what}", lease=LEASE) as log,
        server.client() as client,
    ):
        good = [caller.open(log, f"good{n}", caller.start(upstream.url)) for n in range(3)]
        bad = [caller.open(log, f"bad{n}", caller.start(broken.url)) for n in range(2)]
        for reading in (*good, *bad):
            assert reading.next() == 1
        until_tailed(log, "good0", "good1", "good2", "bad0", "bad1")
        for n in range(2):
            # Changes the type of the key in one step.
            client.set("other", "x")
            client.rename("other", f"wrong-{what}:{{bad{n}}}:{what}")
            if what == "readers":
                hub = hub_of(log)
                in_loop(log, hub.lease_watch.check(list(hub.topics.values())))
            items, error = bad[n].fail()
            assert (items, type(error)) == ([], LogError)
            assert "WRONGTYPE" in str(error)
        with pytest.raises(LogError, match="WRONGTYPE"):
            log.open("bad0").next()
        go.set()
        for reading in good:
            assert (reading.items(), reading.outcome) == ([2], "done")


@needs_redis
def test_foreign_lease_is_a_log_error(server: RedisServer) -> None:
    """A reader would wait forever for a producer that does not exist."""
    caller = LogCaller(is_async=False)
    with RedisLog.from_url(server.url, prefix="foreign", lease=LEASE) as log, server.client() as client:
        client.set("foreign:{k}:lease", "of no log")
        for start in (None, lambda: ["1"]):
            with pytest.raises(LogError, match="holds no lease of a log"):
                caller.open(log, "k", start)
        assert caller.open(log, "other", lambda: ["1"]).items() == [1]


@needs_redis
def test_permission_error_ends_readers_of_all_streams(server: RedisServer) -> None:
    """The fault is in the permissions, not in the key of one stream."""
    caller = LogCaller(is_async=False)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", ">p", "~*", "+@all")
    url = f"redis://poor:p@127.0.0.1:{server.port}"
    with (
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(url, prefix="refused", lease=LEASE) as log,
        server.client() as client,
    ):
        readings = [caller.open(log, f"k{n}", caller.start(upstream.url)) for n in range(3)]
        for reading in readings:
            assert reading.next() == 1
        until_tailed(log, "k0", "k1", "k2")
        client.execute_command("ACL", "SETUSER", "poor", "-xread")
        # Ends the current XREAD: up to Redis 7.0 with this entry; later versions, and Valkey, check permissions again.
        client.xadd("refused:{k0}:events", {"data": "2"}, id=f"{readings[0].last_event_id.split('-')[0]}-2")
        ended = [reading.fail() for reading in readings]
        assert [items for items, _ in ended] in ([[2], [], []], [[], [], []])
        for _, error in ended:
            assert "NoPermissionError" in str(error)


@needs_redis
def test_broken_wake_key_ends_readers_of_all_streams(server: RedisServer) -> None:
    """The fault is in the key that wakes the XREAD of the process."""
    caller = LogCaller(is_async=False)
    with (
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(server.url, prefix="woken", lease=LEASE) as log,
        server.client() as client,
    ):
        readings = [caller.open(log, f"k{n}", caller.start(upstream.url)) for n in range(3)]
        for reading in readings:
            assert reading.next() == 1
        until_tailed(log, "k0", "k1", "k2")
        tail: Any = hub_of(log).groups[""].tail
        client.set(tail.wake_key, "x")
        for reading in readings:
            assert "WRONGTYPE" in str(reading.fail()[1])


def test_reader_that_changes_its_events_changes_no_other(log: Log, caller: LogCaller) -> None:
    go = threading.Event()
    with SSEServer([send("a"), hold(go), send("b"), DONE]) as server:
        readers = [caller.open(log, "k", caller.start(server.url), decode="event") for _ in range(2)]
        until(lambda: "k" in hub_of(log).topics and len(hub_of(log).topics["k"].subscribers) == 3)
        go.set()
        for event in readers[0].items():
            event.data = event.id = "changed"
        assert [event.data for event in readers[1].items()] == ["a", "b"]
