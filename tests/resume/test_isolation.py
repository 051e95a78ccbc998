"""Streams of one process share what brings their entries; a fault of one stream ends that stream's readers alone."""

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
from sseqbridge.resume._parts import parts_of
from sseqbridge.resume._store import Terms, Token, Watch
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.redis_support import RedisServer, needs_redis, redis_server
from tests.support import until

from .support import LEASE, Face, LogReading, Logs

# The machine may be busy.
pytestmark = pytest.mark.timeout(90)

T = TypeVar("T")

DONE = send("[DONE]")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    kind = request.param
    with Logs(kind, request.getfixturevalue("server") if kind == "redis" else None) as made:
        yield made.new(lease=LEASE)


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    made = Face(is_async=request.param == "async")
    yield made
    made.close()


def in_loop(log: Log, coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, log._hub().loop).result(30)


class Writer:
    """A producer that writes entries of the test's choice."""

    def __init__(self, log: Log, key: str) -> None:
        self._log = log
        self._store = log._hub().store
        claim = in_loop(log, self._store.claim(key, "writer", may_begin=True, takeover=False))
        self.token = Token(key, claim.fence, "writer")
        self._number = 0

    def write(self, *entries: dict[str, str]) -> None:
        in_loop(self._log, self._store.append(self.token, self._number, entries))
        self._number += len(entries)


def until_tailed(log: Log, *keys: str) -> None:
    """Wait until readers of these streams wait for what comes."""

    def is_tailed(key: str) -> bool:
        topic = log._hub()._topics.get(key)
        return topic is not None and any(follower.is_reader for follower in topic._joined)

    until(lambda: all(is_tailed(key) for key in keys), 30)


# Entries that cannot be read.


def failed(**fields: Any) -> dict[str, str]:
    return {"error": json.dumps({"message": "words", **fields})}


def refused(**fields: Any) -> dict[str, str]:
    return {"refused": json.dumps({"status": 500, "headers": {}, "body": "", **fields})}


ENCODED = base64.b64encode(b"body").decode()

UNREADABLE: dict[str, dict[str, str]] = {
    "of an unknown kind": {"checkpoint": "1", "of": "a newer version"},
    "retry of words": {"data": "x", "retry": "soon"},
    "retry of nothing": {"data": "x", "retry": ""},
    "retry nan": {"data": "x", "retry": "nan"},
    "retry inf": {"data": "x", "retry": "inf"},
    "retry huge": {"data": "x", "retry": "1e400"},
    "retry below zero": {"data": "x", "retry": "-1"},
    "end of another kind": {"end": "paused"},
    "error that is no JSON": {"error": "words"},
    "error cut off": {"error": '{"type": "SSEError", "mess'},
    "error that is a list": {"error": "[]"},
    "error that is a number": {"error": "7"},
    "error that is a text": {"error": '"words"'},
    "error that is null": {"error": "null"},
    "error without fields": {"error": "{}"},
    "error nested deeply": {"error": "[" * 100_000},
    "error with a number too long": {"error": "9" * 5000},
    "error whose type is a number": failed(type=7),
    "error whose type is a list": failed(type=["SSEError"]),
    "error without a message": {"error": '{"type": "SSEError"}'},
    "error whose message is a list": failed(type="SSEError", message=[]),
    "error with a lone surrogate": {"error": '{"type": "SSEError", "message": "\\ud800"}'},
    "timeout without fields": failed(type="StreamTimeoutError"),
    "timeout of another kind": failed(type="StreamTimeoutError", which="later", seconds=1),
    "timeout of words": failed(type="StreamTimeoutError", which="idle", seconds="1"),
    "timeout huge": failed(type="StreamTimeoutError", which="idle", seconds=10**400),
    "timeout of truth": failed(type="StreamTimeoutError", which="idle", seconds=True),
    "limit of half": failed(type="BufferLimitError", limit=1.5),
    "limit below zero": failed(type="BufferLimitError", limit=-1),
    "attempts of words": failed(type="ReconnectionError", attempts="3"),
    "status without the rest": failed(type="StatusError", status=500),
    "status with headers of a list": failed(type="StatusError", status=500, headers=[], body=""),
    "status with headers of numbers": failed(type="StatusError", status=500, headers={"a": 1}, body=""),
    "status with a body of text": failed(type="StatusError", status=500, headers={}, body="ü"),
    "status with a body that is no base64": failed(type="StatusError", status=500, headers={}, body="*"),
    "event of a number": failed(type="DecodeError", event=7),
    "event of three": failed(type="DecodeError", event=["message", "x", ""]),
    "event of numbers": failed(type="UpstreamError", event=[1, 2, 3, 4], payload={}),
    "event without a payload": failed(type="UpstreamError", event=["message", "x", "", None]),
    "refusal that is no JSON": {"refused": "words"},
    "refusal that is a list": {"refused": "[]"},
    "refusal without fields": {"refused": "{}"},
    "refusal with an error of words": {"refused": '{"error": "words"}'},
    "refusal with 200": refused(status=200),
    "refusal with a status below all": refused(status=7),
    "refusal with a status huge": refused(status=10**30),
    "refusal with a status of truth": refused(status=True),
    "refusal with a status of words": refused(status="500"),
    "refusal with headers of null": refused(headers=None),
    "refusal with a body of null": refused(body=None),
    "refusal with an error besides": refused(body=ENCODED, error={"type": "StreamTimeoutError", "message": ""}),
}


def cannot_be_read(reading: LogReading, items: list[Any]) -> str:
    """Check that a reading gives these items, then ends with an error of the log; return its message."""
    seen, error = reading.fail()
    assert (seen, type(error), reading.outcome) == (items, LogError, "error")
    assert "cannot be read" in str(error)
    return str(error)


def test_an_entry_that_cannot_be_read_ends_readers_of_its_stream_alone(log: Log, face: Face) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        good = face.open(log, "good", face.start(upstream.url))
        assert good.next() == 1
        writers = {name: Writer(log, name) for name in UNREADABLE}
        readings = {}
        for name, writer in writers.items():
            writer.write({"begin": "200"}, {"data": "1"})
            readings[name] = face.open(log, name)
            assert readings[name].next() == 1
        until_tailed(log, "good", *UNREADABLE)
        for name, fields in UNREADABLE.items():
            writers[name].write({"data": "2"}, fields, {"data": "3"})
            text = cannot_be_read(readings[name], [2])
            assert f"entry {writers[name].token.fence}-3 " in text, name
            # A reader that comes later reads by itself.
            cannot_be_read(face.open(log, name), [1, 2])
        go.set()
        assert (good.items(), good.outcome) == ([2], "done")


def test_an_unknown_kind_of_entry_is_named(log: Log) -> None:
    writer = Writer(log, "k")
    writer.write({"begin": "200"}, {"checkpoint": "1"})
    with pytest.raises(LogError, match=r"kind is unknown.*'checkpoint'.*newer version"):
        next(log.open("k"))


@pytest.mark.parametrize("kind", ["ended", "lost"])
def test_a_reader_that_resumes_at_an_entry_that_cannot_be_read(log: Log, face: Face, kind: str) -> None:
    fields = {"ended": {"end": "paused"}, "lost": {"checkpoint": "1"}}[kind]
    writer = Writer(log, "k")
    writer.write({"begin": "200"}, {"data": "1"}, fields)
    in_loop(log, log._hub().store.release(writer.token))
    for number, items in ((0, [1]), (1, [])):
        cannot_be_read(face.open(log, "k", last_event_id=f"{writer.token.fence}-{number}"), items)
    if kind == "ended":
        with pytest.raises(LogError, match="cannot be read"):
            face.open(log, "k", last_event_id=f"{writer.token.fence}-2").next()


def test_an_error_of_a_type_that_is_unknown_is_named(log: Log, face: Face) -> None:
    writer = Writer(log, "k")
    writer.write({"begin": "200"}, failed(type="QuotaError", besides=7))
    error = face.open(log, "k").fail()[1]
    assert (type(error), str(error)) == (SSEError, "the producer failed with QuotaError: words")


def test_each_reader_gets_an_error_of_its_own(log: Log) -> None:
    writer = Writer(log, "k")
    writer.write({"begin": "200"})
    readers = [log.open("k") for _ in range(3)]
    until(lambda: len(log._hub()._topics["k"]._joined) == 3, 30)
    writer.write({"checkpoint": "1"})
    errors = []
    for reader in readers:
        with pytest.raises(LogError) as caught:
            next(reader)
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3


# Functions of a caller's.


def test_a_cancel_flag_that_raises_ends_its_reader_alone(log: Log, face: Face) -> None:
    class Flag:
        error: BaseException | None = None

        def is_set(self) -> bool:
            # (The consumer looks, too: what is raised there is its own.)
            if self.error is not None and threading.current_thread() is not threading.main_thread():
                raise self.error
            return False

    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        good = face.open(log, "k", face.start(upstream.url))
        assert good.next() == 1
        for raised in (ZeroDivisionError(), SystemExit(), KeyboardInterrupt()):
            flag = Flag()
            reading = face.open(log, "k", cancel=flag)
            assert reading.next() == 1
            flag.error = raised
            items, error = reading.fail()
            assert (items, type(error)) == ([], CallbackError)
            assert type(raised).__name__ in str(error)
        go.set()
        assert (good.items(), good.outcome) == ([2], "done")


def test_a_follower_that_raises_is_failed_alone() -> None:
    class Follower:
        is_reader = False
        position = START

        def __init__(self, error: Exception | None = None) -> None:
            self._error = error
            self.given: list[Any] = []
            self.failed = asyncio.Event()
            self.was_given = asyncio.Event()

        def deliver(self, parts: Any) -> bool:
            if self._error is not None:
                raise self._error
            self.given += parts
            self.was_given.set()
            return True

        def lost(self) -> None:
            raise AssertionError

        def fail(self, error: SSEError) -> None:
            assert isinstance(error, LogError)
            self.failed.set()

    async def main() -> None:
        terms = Terms(LEASE, LEASE, None, None, 1)
        store = MemoryStore(terms)
        hub = Hub(LoopState(asyncio.get_running_loop(), ClientPool()), store, terms)
        broken, good = Follower(ZeroDivisionError()), Follower()
        for follower in (broken, good):
            hub.topic("k").enter(follower)
            assert hub.topic("k").join(follower)
        claim = await store.claim("k", "me", may_begin=True, takeover=False)
        await store.append(Token("k", claim.fence, "me"), 0, [{"data": "x"}])
        await asyncio.wait_for(broken.failed.wait(), 30)
        await asyncio.wait_for(good.was_given.wait(), 30)
        assert not good.failed.is_set()
        # A lease that is missing right after an outage may be renewed still: nobody is told.
        hub.disturbed_at = hub.loop.time()
        hub.topic("k").seen(Watch(False, None))
        await hub.aclose()

    asyncio.run(main())


def test_parts_end_at_an_entry_that_the_store_could_not_decode() -> None:
    entries = [Entry(Position(1, 0), {"data": "a"}), Entry(Position(1, 1), {}, "why"), Entry(Position(1, 2), {})]
    good, bad = parts_of(entries, START)
    assert ([item.data for item in good.items], good.error) == (["a"], None)
    assert (bad.kind, bad.position) == ("unreadable", Position(1, 1))
    assert str(bad.error) == "entry 1-1 of the log's stream cannot be read: why"


# Keys in Redis.


@pytest.fixture(params=["plain", "decoding", "RESP2", "RESP3"])
def redis_log(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[RedisLog]:
    """A log whose client is configured in one of the ways that programs do."""
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
def test_bytes_that_are_not_utf8_end_readers_of_their_stream_alone(redis_log: RedisLog, server: RedisServer) -> None:
    go = threading.Event()
    face = Face(is_async=False)
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream, server.client() as client:
        good = face.open(redis_log, "good", face.start(upstream.url))
        assert good.next() == 1
        entries: list[dict[Any, Any]] = [{"data": b"\xff"}, {b"\xff": "x"}, {"data": "1", "event": b"\xc3"}]
        for number, fields in enumerate(entries):
            writer = Writer(redis_log, f"k{number}")
            writer.write({"begin": "200"})
            reading = face.open(redis_log, f"k{number}")
            until_tailed(redis_log, "good", f"k{number}")
            client.xadd(f"sseqbridge:{{k{number}}}:events", fields, id=f"{writer.token.fence}-1")
            assert "not UTF-8" in cannot_be_read(reading, [])
            assert "not UTF-8" in cannot_be_read(face.open(redis_log, f"k{number}"), [])
        go.set()
        assert good.items() == [2]


@needs_redis
@pytest.mark.parametrize("entry_id", ["1000000000000000-0", "18446744073709551615-18446744073709551615"])
def test_ids_that_no_log_writes_end_readers_of_their_stream_alone(
    redis_log: RedisLog, server: RedisServer, entry_id: str
) -> None:
    go = threading.Event()
    face = Face(is_async=False)
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream, server.client() as client:
        good = face.open(redis_log, "good", face.start(upstream.url))
        assert good.next() == 1
        Writer(redis_log, "k").write({"begin": "200"}, {"data": "1"})
        reading = face.open(redis_log, "k")
        assert reading.next() == 1
        until_tailed(redis_log, "good", "k")
        client.xadd("sseqbridge:{k}:events", {"data": "2"}, id=entry_id)
        assert "no log has written it" in cannot_be_read(reading, [])
        assert "no log has written it" in cannot_be_read(face.open(redis_log, "k"), [1])
        go.set()
        assert good.items() == [2]


@needs_redis
@pytest.mark.parametrize("what", ["events", "readers"])
def test_a_key_of_a_wrong_type_ends_readers_of_its_stream_alone(server: RedisServer, what: str) -> None:
    """While an XREAD, or the script that looks at leases, takes the keys of all streams at a time."""
    go = threading.Event()
    face = Face(is_async=False)
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        SSEServer([send(1), silence()]) as broken,
        RedisLog.from_url(server.url, prefix=f"wrong-{what}", lease=LEASE) as log,
        server.client() as client,
    ):
        good = [face.open(log, f"good{n}", face.start(upstream.url)) for n in range(3)]
        bad = [face.open(log, f"bad{n}", face.start(broken.url)) for n in range(2)]
        for reading in (*good, *bad):
            assert reading.next() == 1
        until_tailed(log, "good0", "good1", "good2", "bad0", "bad1")
        for n in range(2):
            # In one step, as the type of a key can be changed by RENAME and others.
            client.set("other", "x")
            client.rename("other", f"wrong-{what}:{{bad{n}}}:{what}")
            if what == "readers":
                hub = log._hub()
                in_loop(log, hub._look_at(list(hub._topics.values())))
            items, error = bad[n].fail()
            assert (items, type(error)) == ([], LogError)
            assert "WRONGTYPE" in str(error)
        with pytest.raises(LogError, match="WRONGTYPE"):
            log.open("bad0").next()
        go.set()
        for reading in good:
            assert (reading.items(), reading.outcome) == ([2], "done")


@needs_redis
def test_an_error_of_all_streams_ends_all(server: RedisServer) -> None:
    """No key alone is at fault, or every one."""
    face = Face(is_async=False)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", ">p", "~*", "+@all")
    url = f"redis://poor:p@127.0.0.1:{server.port}"
    with (
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(url, prefix="refused", lease=LEASE) as log,
        server.client() as client,
    ):
        readings = [face.open(log, f"k{n}", face.start(upstream.url)) for n in range(3)]
        for reading in readings:
            assert reading.next() == 1
        until_tailed(log, "k0", "k1", "k2")
        client.execute_command("ACL", "SETUSER", "poor", "-xread")
        # Ends the XREAD that waits.
        client.xadd("refused:{k0}:events", {"data": "2"}, id=f"{readings[0].last_event_id.split('-')[0]}-2")
        assert readings[0].next() == 2
        for reading in readings:
            assert "NoPermissionError" in str(reading.fail()[1])


@needs_redis
def test_an_error_of_no_stream_alone_ends_all(server: RedisServer) -> None:
    """As of the key by which a process wakes its own XREAD."""
    face = Face(is_async=False)
    with (
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(server.url, prefix="woken", lease=LEASE) as log,
        server.client() as client,
    ):
        readings = [face.open(log, f"k{n}", face.start(upstream.url)) for n in range(3)]
        for reading in readings:
            assert reading.next() == 1
        until_tailed(log, "k0", "k1", "k2")
        tail: Any = log._hub()._groups[""].tail
        client.set(tail._wake_key, "x")
        for reading in readings:
            assert "WRONGTYPE" in str(reading.fail()[1])
