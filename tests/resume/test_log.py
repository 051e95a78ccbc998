"""Streams that are written once and read from any point: the same of each kind of log, through each face.

What is Redis's alone is in tests/resume/test_redis.py.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import sseqbridge._engine.bridge as _bridge
from sseqbridge import (
    Bridge,
    BridgeClosedError,
    BufferLimitError,
    CallbackError,
    ConnectError,
    ContentTypeError,
    DecodeError,
    EventsLostError,
    LogError,
    LogUnavailableError,
    ProducerLostError,
    ReconnectionError,
    ReconnectionPolicy,
    RedirectError,
    RequestAbortedError,
    ServerSentEvent,
    SSEError,
    StatusError,
    StreamNotFoundError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    arequest_sse,
    merge,
    relay,
    request_sse,
    resume,
    tee,
)
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._http.client import ClientPool
from sseqbridge.resume import Log, MemoryLog
from sseqbridge.resume._entries import START, Entry, Position, error_fields
from sseqbridge.resume._hub import Hub
from sseqbridge.resume._memory import MemoryStore
from sseqbridge.resume._producer import Producer
from sseqbridge.resume._store import OutageError, StaleError, Store, Terms, Token, Watch
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, raw, respond, send, silence, wait
from tests.clock import FakeClock
from tests.redis_support import RedisServer, needs_redis, redis_server
from tests.support import in_thread, until

from .support import Face, LogReading, Logs, Mortal

# Most tests have two processes, or threads, wait for one another: all of that may take its time.
pytestmark = pytest.mark.timeout(90)

DONE = send("[DONE]")
SOON = ReconnectionPolicy(delay=0.02)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def logs(request: pytest.FixtureRequest) -> Iterator[Logs]:
    kind = request.param
    with Logs(kind, request.getfixturevalue("server") if kind == "redis" else None) as made:
        yield made


@pytest.fixture
def log(logs: Logs) -> Log:
    return logs.new()


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    made = Face(is_async=request.param == "async")
    yield made
    made.close()


# What everyone reads.


def test_everyone_reads_what_one_upstream_gives(log: Log, face: Face) -> None:
    go = threading.Event()
    with SSEServer([send(1), send(2), hold(go), send(3), DONE]) as upstream:
        start = face.start(upstream.url)
        first = face.open(log, "k", start)
        assert (first.events.status, first.events.headers["content-type"]) == (200, "text/event-stream")
        assert [first.next(), first.next()] == [1, 2]
        second = face.open(log, "k", start)
        third = face.open(log, "k")
        late = face.open(log, "k", last_event_id=first.last_event_id)
        assert [second.next(), third.next()] == [1, 1]
        go.set()
        assert [first.items(), second.items(), third.items(), late.items()] == [[3], [2, 3], [2, 3], [3]]
        assert {reading.outcome for reading in (first, second, third, late)} == {"done"}
        assert face.open(log, "k", start).items() == [1, 2, 3]
        assert len(upstream.requests) == 1


def test_ids_are_where_entries_stand(log: Log, face: Face) -> None:
    with SSEServer([send(1, id="its-own"), send(2), DONE]) as upstream:
        events = face.open(log, "k", face.start(upstream.url), decode="event").items()
        fences, numbers = zip(*(event.id.split("-") for event in events), strict=True)
        assert len(set(fences)) == 1
        assert numbers == ("1", "2")


def test_every_id_leads_to_exactly_the_rest(log: Log, face: Face) -> None:
    go, done = threading.Event(), threading.Event()
    with SSEServer([*map(send, range(20)), hold(go), *map(send, range(20, 30)), hold(done), DONE]) as upstream:
        first = face.open(log, "k", face.start(upstream.url), decode="event")
        seen = [first.next() for _ in range(20)]
        live = [face.open(log, "k", last_event_id=event.id) for event in seen]
        go.set()
        seen += [first.next() for _ in range(10)]
        done.set()
        for count, reading in enumerate(live, 1):
            assert reading.items() == list(range(count, 30))
        for count, event in enumerate(seen, 1):
            after = face.open(log, "k", last_event_id=event.id)
            assert (after.items(), after.outcome) == (list(range(count, 30)), "done")


def test_the_last_id_of_all_gives_the_end(log: Log, face: Face) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        face.open(log, "k", face.start(upstream.url)).items()
    ended = face.open(log, "k", decode="event")
    assert [event.data for event in ended.items()] == ["1"]
    relayed = ended.events._cursor.done_event
    assert relayed.data == "[DONE]"
    again = face.open(log, "k", last_event_id=relayed.id)
    # By which an EventSource knows that it need not come again.
    assert (again.events.status, again.items(), again.outcome) == (204, [], "done")


@pytest.mark.parametrize(("steps", "outcome"), [([], "eof"), ([silence()], "closed")], ids=["eof", "closed"])
def test_who_has_had_all_is_told_so(log: Log, face: Face, steps: list[Step], outcome: str) -> None:
    with SSEServer([send(1), send(2), *steps]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url), decode="event")
        ids = [reading.next().id, reading.next().id]
        if outcome == "closed":
            assert face.cancel(log, "k")
        assert reading.items() == []
        again = face.open(log, "k", last_event_id=ids[1])
        assert (again.events.status, again.items(), again.outcome) == (204, [], outcome)
        rest = face.open(log, "k", last_event_id=ids[0])
        assert (rest.events.status, rest.items(), rest.outcome) == (200, [2], outcome)


def test_the_event_that_ends_it_is_kept_with_its_type(log: Log, face: Face) -> None:
    with SSEServer([send(1), b"event: last\ndata: [DONE]\n\n"]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert (reading.items(), reading.outcome) == ([1], "done")
        assert reading.events._cursor.done_event.event == "last"


def test_events_come_as_they_are(log: Log, face: Face) -> None:
    frames = [
        b"event: note\nid: 7\nretry: 1500\ndata: a\ndata: b\n\n",
        b": a comment\n\n",
        "data: ü→🎉\n\n".encode(),
        b"data:\n\n",
        b'data: {"a": 1}\n\n',
    ]
    with SSEServer(frames) as upstream:
        start = face.start(upstream.url, decode="event", comments=True)
        events = face.open(log, "k", start, decode="event").items()
    assert [(event.event, event.data, event.retry) for event in events] == [
        ("note", "a\nb", 1.5),
        ("message", "ü→🎉", None),
        ("message", "", None),
        ("message", '{"a": 1}', None),
    ]
    reading = face.open(log, "k", decode="text")
    assert reading.items() == ["a\nb", "ü→🎉", "", '{"a": 1}']
    assert (reading.events.retry, reading.outcome) == (1.5, "eof")
    assert face.open(log, "k", decode=lambda event: len(event.data)).items() == [3, 3, 0, 8]
    assert isinstance(face.open(log, "k").fail()[1], DecodeError)
    assert face.open(log, "k", last_event_id=events[1].id).items() == [{"a": 1}]


def test_one_of_many_begins(log: Log) -> None:
    barrier = threading.Barrier(16)

    def read() -> list[Any]:
        barrier.wait()
        return log.open("k", lambda: request_sse(upstream.url)).collect()

    with SSEServer([wait(0.05), *map(send, range(50)), DONE]) as upstream:
        results = [in_thread(read) for _ in range(16)]
        assert [result.result(30) for result in results] == [list(range(50))] * 16
        assert len(upstream.requests) == 1


def test_what_somebody_has_read_is_not_in_the_log(log: Log, face: Face) -> None:
    """`start` may look at the first event before it gives the stream away."""
    with SSEServer([b"data: 1\n\ndata: 2\n\n", send(3), DONE]) as upstream:

        def start() -> Any:
            response = request_sse(upstream.url)
            assert next(response.events) == 1
            return response

        assert face.open(log, "k", start).items() == [2, 3]


def test_a_done_function_ends_it_for_all(log: Log, face: Face) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), b"data: 2\n\ndata: 3\n\n", silence()]) as upstream:
        start = face.start(upstream.url, done=lambda event: event.data == "2")
        reading = face.open(log, "k", start)
        assert reading.next() == 1
        go.set()
        assert (reading.items(), reading.outcome) == ([2], "done")


@pytest.mark.parametrize("failure", [ZeroDivisionError, SystemExit])
def test_a_function_of_the_upstreams_request_that_raises_ends_it_for_all(
    log: Log, face: Face, failure: type[BaseException]
) -> None:
    def fail(*_: object) -> bool:
        raise failure

    with SSEServer([send(1, id="1"), cut()]) as upstream:
        for key, options in (("a", {"done": fail}), ("b", {"reconnect": True, "on_reconnect": fail})):
            start = face.start(upstream.url, **options)
            for reading in (face.open(log, key, start), face.open(log, key)):
                assert isinstance(reading.fail()[1], CallbackError)


def test_a_done_function_that_raises_aborts_the_upstream(log: Log) -> None:
    def fail(event: object) -> bool:
        raise ZeroDivisionError

    with SSEServer([send(1), silence()]) as upstream:
        with pytest.raises(CallbackError), log.open("k", lambda: request_sse(upstream.url, done=fail)) as events:
            events.collect()
        upstream.wait_for_request().wait_aborted()


def test_a_reconnecting_upstream_is_one_stream(log: Log, face: Face) -> None:
    told: list[Any] = []

    def script(request: ReceivedRequest) -> list[Step]:
        if "last-event-id" in request.headers:
            return [send(2, id="2"), DONE]
        return [send(1, id="1"), cut()]

    with SSEServer(script) as upstream:
        start = face.start(upstream.url, reconnect=SOON, on_reconnect=lambda *args: told.append(args[0]))
        assert face.open(log, "k", start).items() == [1, 2]
        assert face.open(log, "untold", face.start(upstream.url, reconnect=SOON)).items() == [1, 2]
    assert told == [1]


def test_store_that_turns_a_cancellation_into_an_outage_holds_up_no_close() -> None:
    watched = threading.Event()

    async def watch(*_: object) -> None:
        watched.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OutageError("the connection was closed") from None

    with SSEServer([send(1), silence()]) as upstream, MemoryLog() as log:
        store = log._new_store()
        store.watch = watch  # type: ignore[method-assign, assignment]
        log._new_store = lambda: store  # type: ignore[method-assign]
        events = log.open("k", lambda: request_sse(upstream.url))
        assert next(events) == 1
        assert watched.wait(30)
    # No task of the log is left: every test is checked for that.
    assert events.outcome == "closed"


def test_leaving_leaves_the_upstream(log: Log, face: Face) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 1
        reading.close()
        assert (reading.outcome, reading.items()) == ("closed", [])
        go.set()
        assert face.open(log, "k").items() == [1, 2]
        assert not upstream.requests[0].aborted.is_set()


def test_a_left_loop_leaves_the_upstream(log: Log) -> None:
    with SSEServer([*map(send, range(10)), DONE]) as upstream:
        for item in log.open("k", lambda: request_sse(upstream.url)):
            if item == 3:
                break
        assert log.open("k").collect() == list(range(10))


def test_a_slow_reader_holds_up_nobody_and_loses_nothing(log: Log, face: Face) -> None:
    text = "x" * 1000
    with SSEServer([*(send(f"{n} {text}") for n in range(400)), DONE]) as upstream:
        start = face.start(upstream.url, decode="text")
        slow = face.open(log, "k", start, decode="text", max_buffered_bytes=4096)
        first = slow.next()
        assert len(face.open(log, "k", decode="text").items()) == 400
        assert slow.events.stats.buffered <= 4096
        assert [item.split()[0] for item in (first, *slow.items())] == [str(n) for n in range(400)]


def test_a_reader_that_falls_behind_catches_up(log: Log) -> None:
    go = [threading.Event() for _ in range(5)]
    steps: list[Step] = []
    for index, event in enumerate(go):
        steps += [
            respond() if index == 0 else wait(0),
            hold(event),
            *(send(f"{index}-{n} " + "x" * 500) for n in range(40)),
        ]
    with SSEServer([*steps, DONE]) as upstream:
        fast = log.open("k", lambda: request_sse(upstream.url, decode="text"), decode="text")
        slow = log.open("k", decode="text", max_buffered_bytes=2048)
        seen = []
        for event in go:
            event.set()
            for _ in range(40):
                next(fast)
            seen += [next(slow) for _ in range(3)]
        assert len(seen + slow.collect()) == 200
        assert fast.collect() == []


# Where to begin.


def test_replay_says_where_to_begin(log: Log, face: Face) -> None:
    go = threading.Event()
    with SSEServer([send(1), send(2), hold(go), send(3), DONE]) as upstream:
        first = face.open(log, "k", face.start(upstream.url))
        assert [first.next(), first.next()] == [1, 2]
        new, kept = face.open(log, "k", replay="none"), face.open(log, "k", replay="kept")
        go.set()
        assert (new.items(), kept.items(), first.items()) == ([3], [1, 2, 3], [3])
    assert face.open(log, "k", replay="none").items() == []


def test_what_was_trimmed_away_is_never_a_silent_gap(logs: Logs, face: Face) -> None:
    log = logs.new(max_events=5)
    with SSEServer([*map(send, range(10)), DONE]) as upstream:
        assert face.produce(log, "k", face.start(upstream.url)) == "done"
    kept = face.open(log, "k", replay="kept", decode="event").items()
    assert [event.data for event in kept] == ["6", "7", "8", "9"]
    with pytest.raises(EventsLostError, match="max_events"):
        face.open(log, "k", last_event_id="1-1")
    fence = kept[0].id.split("-")[0]
    assert face.open(log, "k", last_event_id=f"{fence}-6").items() == [6, 7, 8, 9]
    with pytest.raises(EventsLostError, match="max_events"):
        face.open(log, "k", last_event_id=f"{fence}-5")
    with pytest.raises(EventsLostError, match='replay="kept"'):
        face.open(log, "k")


@pytest.mark.parametrize("event_id", ["", "7", "x", "1-", "99999999999999-3", "1-1\n", "-1-1", "1-1-1"])
def test_ids_of_elsewhere_begin_nothing(log: Log, face: Face, event_id: str) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        if event_id:
            for _ in range(2):
                with pytest.raises(EventsLostError, match="last event ID"):
                    face.open(log, "k", face.start(upstream.url), last_event_id=event_id)
                face.open(log, "k", face.start(upstream.url)).items()
        else:
            assert face.open(log, "k", face.start(upstream.url), last_event_id=event_id).items() == [1]
        assert len(upstream.requests) == 1


def test_an_expired_stream_is_lost_to_who_has_read_of_it(logs: Logs, face: Face) -> None:
    log = logs.new()
    with SSEServer([send(1), DONE]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.items() == [1]
        logs.expire(log, "k")
        with pytest.raises(StreamNotFoundError):
            face.open(log, "k", wait=0)
        assert face.open(log, "other", face.start(upstream.url)).items() == [1]
        with pytest.raises(EventsLostError, match="expired"):
            face.open(log, "k", face.start(upstream.url), last_event_id=reading.last_event_id)
        assert face.open(log, "k", face.start(upstream.url)).items() == [1]
        assert len(upstream.requests) == 3
        with pytest.raises(EventsLostError):
            face.open(log, "k", last_event_id=reading.last_event_id)


def test_who_cannot_begin_waits_for_somebody(log: Log, face: Face) -> None:
    with pytest.raises(StreamNotFoundError, match="start="):
        face.open(log, "k", wait=0)
    with pytest.raises(StreamNotFoundError, match="wait="):
        face.open(log, "k", wait=0.1)
    with SSEServer([send(1), DONE]) as upstream:
        waiting = in_thread(lambda: log.open("k", wait=30).collect())
        until(lambda: log._hub()._topics)
        assert face.open(log, "k", face.start(upstream.url)).items() == [1]
        assert waiting.result(30) == [1]


# How it ends.


ENDINGS: dict[str, tuple[list[Step], dict[str, Any], type[SSEError]]] = {
    "cut": ([send(1), cut()], {}, TruncatedStreamError),
    "no done": ([send(1)], {"require_done": True}, TruncatedStreamError),
    "idle": ([send(1), silence()], {"timeout": Timeout(idle=1)}, StreamTimeoutError),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_an_error_is_everyones(log: Log, face: Face, ending: tuple[list[Step], dict[str, Any], type[SSEError]]) -> None:
    steps, options, kind = ending
    with SSEServer(steps) as upstream:
        first = face.open(log, "k", face.start(upstream.url, **options))
        second = face.open(log, "k")
        for reading in (first, second, face.open(log, "k")):
            items, error = reading.fail()
            assert (items, type(error), reading.outcome) == ([1], kind, "error")
            with pytest.raises(kind):
                reading.next()


def test_an_upstreams_error_event_is_an_event(log: Log, face: Face) -> None:
    with SSEServer([send(1), b'event: error\ndata: {"message": "no"}\n\n']) as upstream:
        items, error = face.open(log, "k", face.start(upstream.url)).fail()
        assert items == [1]
        assert isinstance(error, UpstreamError)
        assert error.payload == {"message": "no"}
        reading = face.open(log, "k", error_events="yield")
        assert reading.items() == [1, {"message": "no"}]


def test_a_refusal_is_everyones_and_leaves_nothing(log: Log, face: Face) -> None:
    asked, go = threading.Event(), threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        asked.set()
        if len(upstream.requests) > 1:
            return [send(1), DONE]
        return [hold(go), respond(429, {"Content-Type": "text/plain", "Retry-After": "3"}), raw(b"slow down")]

    with SSEServer(script) as upstream:
        begun = in_thread(lambda: log.open("k", lambda: request_sse(upstream.url)))
        assert asked.wait(30)
        waiting = in_thread(lambda: log.open("k", wait=30))
        until(lambda: len(log._hub().readers) == 2)
        go.set()
        for events in (begun.result(30), waiting.result(30)):
            assert (events.status, events.headers["retry-after"]) == (429, "3")
            with pytest.raises(StatusError) as caught:
                next(events)
            assert (caught.value.status, caught.value.body) == (429, b"slow down")
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.items() == [1]


def test_no_answer_at_all_is_everyones(log: Log, face: Face) -> None:
    reached, go = threading.Event(), threading.Event()

    def start() -> Any:
        reached.set()
        assert go.wait(30)
        return request_sse("http://127.0.0.1:1/")

    begun = in_thread(lambda: log.open("k", start))
    assert reached.wait(30)
    waiting = in_thread(lambda: log.open("k", wait=30))
    until(lambda: len(log._hub().readers) == 2)
    go.set()
    for result in (begun, waiting):
        with pytest.raises(ConnectError):
            result.result(30)
    with SSEServer([send(1), DONE]) as upstream:
        assert face.open(log, "k", face.start(upstream.url)).items() == [1]
    with SSEServer([respond(200, {"Content-Type": "text/html"}), raw(b"<p>")]) as upstream:
        with pytest.raises(ContentTypeError):
            face.open(log, "other", face.start(upstream.url))
        with pytest.raises(ContentTypeError):
            face.open(log, "other").next()


def test_start_that_fails_lets_another_begin(log: Log, face: Face) -> None:
    def fail() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        face.open(log, "k", fail)
    with pytest.raises(UsageError, match="what request_sse does"):
        face.open(log, "k", lambda: [1, 2])
    with SSEServer([send(1), DONE]) as upstream:
        assert face.open(log, "k", face.start(upstream.url)).items() == [1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StopIteration])
def test_an_interrupt_in_start_ends_no_other_stream(log: Log, kind: type[BaseException]) -> None:
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


def leave_while_it_claims(log: Log, store: Mortal, url: str) -> None:
    """Open a stream, and leave while the answer to who may write it is on its way."""
    claim, made, go_on = store.claim, threading.Event(), asyncio.Event()
    flag = threading.Event()

    async def answer_late(*args: Any, **options: Any) -> Any:
        answer = await claim(*args, **options)
        made.set()
        await go_on.wait()
        return answer

    store.claim = answer_late  # type: ignore[method-assign]
    opened = in_thread(lambda: log.open("k", lambda: request_sse(url), cancel=flag))
    assert made.wait(30)
    flag.set()
    with pytest.raises(RequestAbortedError):
        opened.result(30)
    store.claim = claim  # type: ignore[method-assign]
    log._hub().loop.call_soon_threadsafe(go_on.set)


def test_who_leaves_while_it_is_elected_gives_the_lease_back(logs: Logs) -> None:
    log, store = logs.mortal()
    with SSEServer([send(1), DONE]) as upstream:
        leave_while_it_claims(log, store, upstream.url)
        until(lambda: log.produce("k", lambda: request_sse(upstream.url)) == "done")
        assert len(upstream.requests) == 1


def test_who_leaves_while_somebody_else_is_elected_gives_nothing_back(logs: Logs) -> None:
    log, store = logs.mortal()
    end = threading.Event()
    with SSEServer([send(1), hold(end), DONE]) as upstream:
        reading = log.open("k", lambda: request_sse(upstream.url))
        assert next(reading) == 1
        leave_while_it_claims(log, store, upstream.url)
        # The loop is done with that before it answers this.
        assert log.produce("k", lambda: request_sse(upstream.url)) is None
        end.set()
        assert (list(reading), reading.outcome) == ([], "done")
        assert len(upstream.requests) == 1


# Cancelling.


def test_cancel_ends_all_and_the_upstream(log: Log, face: Face) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        readings = [face.open(log, "k", face.start(upstream.url)) for _ in range(3)]
        assert [reading.next() for reading in readings] == [1, 1, 1]
        assert face.cancel(log, "k") is True
        face.meanwhile(upstream.requests[0].wait_aborted, 30)
        for reading in readings:
            assert (reading.items(), reading.outcome) == ([], "closed")
        assert face.cancel(log, "k") is False
        after = face.open(log, "k", face.start(upstream.url))
        assert (after.items(), after.outcome) == ([1], "closed")
        assert face.cancel(log, "other") is False


def test_cancel_without_a_reader_reaches_the_upstream(log: Log, face: Face) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        reading.close()
        assert face.cancel(log, "k") is True
        face.meanwhile(upstream.requests[0].wait_aborted, 30)


def test_cancel_before_it_has_begun(log: Log, face: Face) -> None:
    asked = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        asked.set()
        return [silence()]

    with SSEServer(script) as upstream:
        opened = in_thread(lambda: log.open("k", lambda: request_sse(upstream.url, timeout=30)))
        assert asked.wait(30)
        assert face.cancel(log, "k") is True
        with pytest.raises(RequestAbortedError):
            opened.result(30)
        upstream.requests[0].wait_aborted(30)
        reading = face.open(log, "k")
        assert (reading.items(), reading.outcome) == ([], "closed")


@pytest.mark.parametrize("ends", ["cancel", "flag"])
def test_what_is_begun_after_its_end_is_aborted(log: Log, face: Face, ends: str) -> None:
    """`start` may take its time, and look at no flag."""
    called, go, flag = threading.Event(), threading.Event(), threading.Event()
    with SSEServer([send(1), silence()]) as upstream:

        def start() -> Any:
            response = request_sse(upstream.url)
            called.set()
            assert go.wait(30)
            return response

        opened = in_thread(lambda: log.open("k", start, cancel=flag))
        assert called.wait(30)
        if ends == "cancel":
            assert face.cancel(log, "k")
        else:
            flag.set()
        face.meanwhile(upstream.requests[0].wait_aborted, 30)
        go.set()
        if ends == "cancel":
            assert opened.result(30).collect() == []
        else:
            with pytest.raises(RequestAbortedError):
                opened.result(30)


def test_a_refusal_whose_body_was_read_is_told_whole(log: Log, face: Face) -> None:
    def start() -> Any:
        response = request_sse(upstream.url)
        with pytest.raises(StatusError):
            response.raise_for_status()
        return response

    with SSEServer([respond(404), raw(b"none")]) as upstream:
        error = face.open(log, "k", start).fail()[1]
        assert isinstance(error, StatusError)
        assert error.body == b"none"


def test_a_cancel_whose_answer_is_lost_has_cancelled(logs: Logs, face: Face) -> None:
    log, store = logs.mortal()
    cancel = store.cancel
    answers: list[bool] = []

    async def lose_the_first(*args: Any) -> bool:
        answers.append(await cancel(*args))
        if len(answers) == 1:
            raise OutageError("its answer is lost")
        return answers[-1]

    store.cancel = lose_the_first  # type: ignore[attr-defined]
    with SSEServer([send(1), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 1
        assert face.cancel(log, "k") is True
        assert (reading.items(), reading.outcome, answers) == ([], "closed", [True, True])
        assert face.cancel(log, "k") is False


def test_delete_forgets(log: Log, face: Face) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        assert face.open(log, "k", face.start(upstream.url)).items() == [1]
        assert face.delete(log, "k") is True
        assert face.delete(log, "k") is False
        assert face.open(log, "k", face.start(upstream.url)).items() == [1]
        assert len(upstream.requests) == 2
    with SSEServer([send(1), silence()]) as upstream:
        reading = face.open(log, "other", face.start(upstream.url))
        assert reading.next() == 1
        assert face.delete(log, "other") is True
        face.meanwhile(upstream.requests[0].wait_aborted, 30)


def test_a_slow_reader_of_what_was_deleted_holds_up_nobody(log: Log, face: Face) -> None:
    with SSEServer([*(send("x" * 500) for _ in range(50)), DONE]) as upstream:
        start = face.start(upstream.url, decode="text")
        slow = face.open(log, "k", start, decode="text", max_buffered_bytes=2048)
        assert len(face.open(log, "k", decode="text").items()) == 50
        assert face.delete(log, "k")
        with pytest.raises(StreamNotFoundError):
            face.open(log, "k", wait=0.1)
        assert len(face.open(log, "k", start, decode="text").items()) == 50
        assert len(upstream.requests) == 2
        slow.close()


def test_without_readers_it_goes_on(log: Log, face: Face) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        face.open(log, "k", face.start(upstream.url)).close()
        until(lambda: not log._hub().readers)
        go.set()
        assert face.open(log, "k").items() == [1, 2]
        assert not upstream.requests[0].aborted.is_set()


def test_abandoned_it_is_aborted(logs: Logs, face: Face) -> None:
    log = logs.new(abandon_after=0.2)
    with SSEServer([send(1), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 1
        # As long as somebody reads, it goes on.
        with pytest.raises(TimeoutError):
            reading.next(0.6)
        assert not upstream.requests[0].aborted.is_set()
        reading.close()
        face.meanwhile(upstream.requests[0].wait_aborted, 30)
        after = face.open(log, "k")
        assert (after.items(), after.outcome) == ([1], "closed")


# Cancel flags, closing, and the loop's end.


def test_a_cancel_flag_ends_the_reader_alone(log: Log, face: Face) -> None:
    flag, go = threading.Event(), threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url), cancel=flag)
        assert reading.next() == 1
        timer = threading.Timer(0.1, flag.set)
        timer.start()
        # It waits, and looks at nothing.
        assert (reading.items(), reading.outcome) == ([], "closed")
        timer.join()
        with pytest.raises(RequestAbortedError):
            face.open(log, "k", cancel=flag)
        go.set()
        assert face.open(log, "k").items() == [1, 2]


def test_a_cancel_flag_ends_the_wait_for_a_beginning(log: Log, face: Face) -> None:
    class Flag:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 3

    class Broken:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 3 and 1 / 0 > 0

    with pytest.raises(RequestAbortedError, match="cancel was set"):
        face.open(log, "k", wait=30, cancel=Flag())
    with pytest.raises(CallbackError):
        face.open(log, "k", wait=30, cancel=Broken())


def test_close_ends_this_ones_readers_and_gives_the_lease_back(logs: Logs, face: Face) -> None:
    log = logs.new()
    with SSEServer([send(1), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 1
        log.close()
        assert (reading.items(), reading.outcome) == ([], "closed")
        face.meanwhile(upstream.requests[0].wait_aborted, 30)
    with pytest.raises(UsageError, match="closed"):
        face.open(log, "k")
    log.close()
    assert repr(log) == f"<{type(log).__name__} closed>"


@pytest.mark.parametrize("ends", ["closed", "interrupted and closed"])
def test_close_waits_until_leases_are_given_back(clock: FakeClock, ends: str) -> None:
    """The store may take its time, as on a machine that is busy."""
    with SSEServer([send(1), silence()]) as upstream, Bridge() as bridge:
        log = MemoryLog(bridge=bridge)
        hub = log._hub()
        release = hub.store.release
        asked, go_on = threading.Event(), asyncio.Event()
        released = []

        async def release_late(token: Token) -> None:
            asked.set()
            await go_on.wait()
            await release(token)
            released.append(token.key)

        hub.store.release = release_late  # type: ignore[method-assign]
        reading = log.open("k", lambda: request_sse(upstream.url, bridge=bridge))
        assert next(reading) == 1
        if ends == "interrupted and closed":
            (producer,) = (follower for follower in hub.topic("k")._followers if isinstance(follower, Producer))
            producer.abort()
            assert asked.wait(30)
        closing = in_thread(log.close)
        assert asked.wait(30)
        with pytest.raises(StopIteration):
            next(reading)
        until(lambda: hub.is_closing)
        clock.advance(1)
        hub.loop.call_soon_threadsafe(go_on.set)
        closing.result(30)
        assert released == ["k"]


def test_who_comes_while_it_is_closed_is_told(logs: Logs, face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logs.new()
    hub = log._hub()
    log.close()
    # As where it was closed right after they had found it open.
    monkeypatch.setattr(log, "_hub", lambda: hub)
    with pytest.raises(BridgeClosedError, match="log"):
        face.open(log, "k", wait=0)
    with pytest.raises(BridgeClosedError, match="log"):
        face.cancel(log, "k")


def test_who_comes_while_its_loop_starts_leaves_nothing_open(
    logs: Logs, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bridge() as bridge:
        log = logs.new(bridge=bridge)
        started = bridge.started

        def close_meanwhile() -> LoopState:
            log.close()
            return started()

        monkeypatch.setattr(bridge, "started", close_meanwhile)
        with pytest.raises(UsageError, match="closed"):
            face.open(log, "k", wait=0)
        assert log._hubs == {}


def test_the_bridges_end_is_told(logs: Logs, face: Face) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        with Bridge() as bridge:
            log = logs.new(bridge=bridge)
            reading = face.open(log, "k", face.start(upstream.url))
            assert reading.next() == 1
        assert isinstance(reading.fail()[1], BridgeClosedError)
        log.close()
        with pytest.raises(UsageError):
            face.open(log, "other")


# Producers that die.

STEPS = [
    ("claim", 0, True),
    ("append", 0, False),
    ("append", 0, True),
    ("append", 1, False),
    ("append", 1, True),
    ("append", 2, False),
    ("end", 0, False),
]


def lost(reading: LogReading, count: int) -> None:
    """Check that it gives the first events, and then tells that the producer is lost."""
    items, error = reading.fail()
    assert items == list(range(len(items)))
    assert len(items) <= count
    assert isinstance(error, ProducerLostError)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_producer_killed_at_each_step_is_noticed(logs: Logs, step: tuple[str, int, bool]) -> None:
    log, store = logs.mortal()
    store.kill_at = step
    with SSEServer([*store.one_by_one(0, 1, 2), DONE]) as upstream:
        opened = in_thread(lambda: log.open("k", lambda: request_sse(upstream.url)))
        assert store.killed.wait(30)
        if step == ("append", 0, False):
            # Nothing was begun: whoever waits begins, as if it were the first.
            logs.lose(store, "k")
            assert opened.result(30).collect() == log.open("k").collect() == [0, 1, 2]
            return
        if step[0] == "claim":
            waiting = in_thread(lambda: log.open("k", wait=0))
            until(lambda: "k" in log._hub()._topics and log._hub()._topics["k"]._joined)
            logs.lose(store, "k")
            assert isinstance(waiting.exception(30), StreamNotFoundError)
            assert log.open("k", lambda: request_sse(upstream.url)).collect() == [0, 1, 2]
            return
        face = Face(is_async=False)
        reading = LogReading(face, log.open("k"))
        logs.lose(store, "k")
        lost(reading, 3)
        lost(LogReading(face, opened.result(30)), 3)
        # Whoever comes later is told the same, at once.
        lost(LogReading(face, log.open("k", lambda: request_sse(upstream.url))), 3)


def test_a_dead_producer_is_noticed_within_the_lease(clock: FakeClock) -> None:
    with SSEServer([send(0), silence()]) as upstream, Bridge() as bridge, MemoryLog(lease=30, bridge=bridge) as log:
        store = Mortal(log._new_store())
        log._new_store = lambda: store  # type: ignore[method-assign]
        reading = log.open("k", lambda: request_sse(upstream.url, timeout={"read": None}, bridge=bridge))
        assert next(reading) == 0
        # As long as it lives, it is never without.
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


def test_a_look_after_the_lease_has_run_out_is_within_the_lease() -> None:
    terms = Terms(10, 3600, None, None, 30)
    assert terms.held_for + terms.looked_every <= terms.lease
    # A renewal may come late, or fail, and others come after it before that.
    assert 3 * terms.renewed_every <= terms.held_for


@pytest.mark.parametrize("step", STEPS[2:], ids=str)
def test_a_dead_producer_that_wakes_up_writes_nothing(logs: Logs, face: Face, step: tuple[str, int, bool]) -> None:
    log, store = logs.mortal()
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
        start = face.start(f"{upstream.url}/new", decode="text")

        logs.lose(store, "k")
        reading = face.open(log, "k", start, takeover=True, decode="event")
        while reading.next().data != "new 0":
            pass
        store.revive()
        go.set()
        assert [event.data for event in reading.items()] == ["new 1"]
        whole = [event.data for event in face.open(log, "k", decode="event").items()]
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


def lose_when_killed(logs: Logs, store: Mortal) -> None:
    assert store.killed.wait(30)
    logs.lose(store, "k")


def test_a_reader_under_way_takes_over(logs: Logs, face: Face) -> None:
    log, store = logs.mortal()
    store.kill_at = ("append", 2, False)
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), send(2), DONE]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url), takeover=True, decode="event")
        other = log.open("k", lambda: request_sse(upstream.url), takeover=True)
        before = [reading.next()]
        go.set()
        face.meanwhile(lambda: lose_when_killed(logs, store))
        for event in iter(reading.next, None):
            before.append(event)
            if event.event == "restart":
                break
        assert [event.data for event in before] == ["0", '{"restart":true}']
        # No application has to know of it in what it makes of items.
        frames: list[bytes] = []
        face.meanwhile(lambda: frames.extend(relay.frames(log.open("k"), map=lambda item: str(item + 1))))
        relayed = b"".join(frames).decode()
        assert re.findall("event: (.*)", relayed) == ["restart"]
        assert re.findall("data: (.*)", relayed) == ["1", '{"restart":true}', "1", "2", "3", "[DONE]"]
        assert [event.data for event in reading.items()] == ["0", "1", "2"]
        assert reading.outcome == "done"
        assert other.collect() == [0, {"restart": True}, 0, 1, 2]
        # Whoever comes back with an id of before is told too.
        assert face.open(log, "k", last_event_id=before[0].id).items() == [{"restart": True}, 0, 1, 2]
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("failure", [ZeroDivisionError(), SystemExit(), ConnectError("no")], ids=repr)
def test_a_takeover_that_fails_ends_all(logs: Logs, failure: BaseException) -> None:
    log, store = logs.mortal()
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
        lose_when_killed(logs, store)
        with pytest.raises(ConnectError if isinstance(failure, ConnectError) else CallbackError):
            next(reading)
        assert next(other) == 0
        with pytest.raises((CallbackError, ConnectError, ProducerLostError)):
            next(other)
        assert len(calls) == 2


def test_a_refusal_to_whoever_takes_over_is_everyones(logs: Logs, face: Face) -> None:
    log, store = logs.mortal()
    store.kill_at = ("append", 2, False)

    go = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        number = len(upstream.requests)
        if number == 1:
            return [send(0), hold(go), send(1), silence()]
        return [respond(503)] if number == 2 else [send(7), DONE]

    with SSEServer(script) as upstream:
        start = face.start(upstream.url)
        reading = face.open(log, "k", start, takeover=True)
        assert reading.next() == 0
        go.set()
        face.meanwhile(lambda: lose_when_killed(logs, store))
        items, error = reading.fail()
        assert (items, type(error)) == ([], StatusError)
        # A later one may try once more.
        again = face.open(log, "k", start, takeover=True)
        assert again.events.status == 200
        assert again.items() == [0, {"restart": True}, 7]


# For a worker.


def test_produce_writes_to_the_end(log: Log, face: Face) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        assert face.produce(log, "k", face.start(upstream.url)) == "done"
        assert face.produce(log, "k", face.start(upstream.url)) is None
        assert face.open(log, "k").items() == [1, 2]
        assert len(upstream.requests) == 1


def test_produce_tells_what_went_wrong(log: Log, face: Face) -> None:
    with SSEServer([send(1)]) as upstream:
        with pytest.raises(TruncatedStreamError):
            face.produce(log, "k", face.start(upstream.url, require_done=True))
        assert isinstance(face.open(log, "k").fail()[1], TruncatedStreamError)
    with SSEServer([respond(404)]) as upstream, pytest.raises(StatusError):
        face.produce(log, "other", face.start(upstream.url))
    with pytest.raises(ConnectError):
        face.produce(log, "third", face.start("http://127.0.0.1:1/"))
    with pytest.raises(UsageError):
        face.produce(log, "fourth", lambda: None)


def test_a_cancelled_producer_returns(log: Log) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        produced = in_thread(lambda: log.produce("k", lambda: request_sse(upstream.url)))
        reading = log.open("k", wait=30)
        assert next(reading) == 1
        assert log.cancel("k")
        assert produced.result(30) == "closed"
        assert reading.collect() == []
        upstream.requests[0].wait_aborted(30)


# The store out for a while.


def test_readers_and_producer_ride_an_outage_out(logs: Logs, face: Face) -> None:
    log, store = logs.mortal()
    go, later = threading.Event(), threading.Event()
    with SSEServer([send(0), hold(go), *map(send, range(1, 50)), hold(later), send(50), DONE]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 0
        store.is_out = True
        go.set()
        # It is out for longer than the lease.
        logs.lose(store, "k")
        until(lambda: log._hub().disturbed_at is not None)
        store.is_out = False
        later.set()
        assert reading.items() == list(range(1, 51))


def test_an_outage_that_is_too_long_is_told(logs: Logs, face: Face) -> None:
    log, store = logs.mortal(outage=0.3)
    with SSEServer([send(0), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 0
        store.is_out = True
        with pytest.raises(LogUnavailableError, match="outage="):
            reading.next()
        face.meanwhile(upstream.requests[0].wait_aborted, 30)
        with pytest.raises(LogUnavailableError):
            face.open(log, "other", face.start(upstream.url))
        with pytest.raises(LogUnavailableError):
            face.produce(log, "other", face.start(upstream.url))
        logs.lose(store, "k")
        store.is_out = False
        assert isinstance(face.open(log, "k").fail()[1], ProducerLostError)


def test_a_false_alarm_loses_and_repeats_nothing(log: Log, face: Face) -> None:
    """A reader that takes its producer for lost, and finds it alive, reads on where it was."""
    steps: list[Step] = []
    for n in range(100):
        steps += [send(n), wait(0.002)]
    over = threading.Event()

    def alarm() -> None:
        hub = log._hub()
        while not over.wait(0.001):
            for reader in tuple(hub.readers):
                hub.loop.call_soon_threadsafe(reader.lost)

    with SSEServer([*steps, DONE]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        alarming = in_thread(alarm)
        try:
            assert reading.items() == list(range(100))
        finally:
            over.set()
            alarming.result(30)


def test_what_was_read_for_one_reader_is_not_given_to_another() -> None:
    """A reader that comes as the last one has left, and is further on than what is on the way to that."""

    class Store(MemoryStore):
        def new_tail(self) -> Any:
            return tail

    class Tail:
        def __init__(self) -> None:
            self.go_on = asyncio.Event()
            self.is_read = asyncio.Event()

        async def read(self, positions: Any) -> Any:
            self.is_read.set()
            await self.go_on.wait()
            self.go_on.clear()
            return [("k", [Entry(Position(1, 3), {"data": "3"})])]

        def wake(self) -> None:
            pass

    class Follower:
        is_reader = False

        def __init__(self, number: int) -> None:
            self.position = Position(1, number)
            self.given: list[Any] = []

        def deliver(self, parts: Any) -> bool:
            self.given += parts
            return True

        def lost(self) -> None:
            raise AssertionError

        def fail(self, error: SSEError) -> None:
            raise error

    async def main() -> None:
        terms = Terms(1, 1, None, None, 1)
        hub = Hub(LoopState(asyncio.get_running_loop(), ClientPool()), Store(terms), terms)
        first, second = Follower(2), Follower(7)
        for follower in (first, second):
            topic = hub.topic("k")
            topic.enter(follower)
            assert topic.join(follower)
            await tail.is_read.wait()
            if follower is first:
                topic.leave(follower)
        tail.is_read.clear()
        tail.go_on.set()
        await tail.is_read.wait()
        assert (first.given, second.given, topic.position) == ([], [], Position(1, 7))
        await hub.aclose()

    tail = Tail()
    asyncio.run(main())


# The stores, whose answers may be lost on the way.


def test_a_store_does_nothing_twice(logs: Logs) -> None:
    async def main() -> None:
        store = kept._new_store()
        token = await claimed(store, "k")
        assert (await store.claim("k", "me", may_begin=True, takeover=False)).fence == token.fence
        assert (await store.claim("k", "you", may_begin=True, takeover=True)).state == "live"
        for _ in range(2):
            await store.append(token, 0, [{"begin": "200"}, {"data": "a"}])
        # The first answer was lost, and more has come since.
        await store.append(token, 0, [{"begin": "200"}, {"data": "a"}, {"data": "b"}])
        entries = await store.read("k", START, 10)
        assert [(entry.position.number, entry.fields) for entry in entries] == [
            (0, {"begin": "200"}),
            (1, {"data": "a"}),
            (2, {"data": "b"}),
        ]
        assert await store.renew(token) == 0
        assert await store.watch(["k", "other"], "reader") == [Watch(True, entries[-1].position), Watch(False, None)]
        assert await store.renew(token) == 1
        await store.leave("k", "reader")
        assert await store.renew(token) == 0
        await store.end(token, 3, {"end": "eof"})
        await store.end(token, 3, {"end": "eof"})
        assert len(await store.read("k", START, 10)) == 4
        assert (await store.claim("k", "you", may_begin=True, takeover=True)).state == "ended"
        await store.aclose()

    async def stale() -> None:
        store = kept._new_store()
        token = await claimed(store, "old")
        assert await store.cancel("old", "canceller")
        for call in (store.append(token, 0, [{"data": "a"}]), store.end(token, 0, {"end": "eof"}), store.renew(token)):
            with pytest.raises(StaleError):
                await call
        await store.release(token)
        assert [entry.kind for entry in await store.read("old", START, 10)] == ["cancel"]
        # Claimed, and given back before anything was written.
        token = await claimed(store, "released")
        await store.release(token)
        assert not await store.cancel("released", "canceller")
        assert (await store.claim("released", "you", may_begin=False, takeover=False)).state == "none"
        await store.aclose()

    kept = logs.new(max_events=None)
    asyncio.run(main())
    asyncio.run(stale())


def test_a_store_forgets_what_has_expired(logs: Logs) -> None:
    async def main() -> None:
        store = kept._new_store()
        token = await claimed(store, "k")
        await store.append(token, 0, [{"data": "a"}])
        while await store.read("k", START, 1):
            await asyncio.sleep(0.01)
        assert not await store.delete("k")
        await store.aclose()

    kept = logs.new(ttl=0.1, lease=0.1)
    asyncio.run(main())


def test_a_memory_store_forgets_what_nobody_asks_for(clock: FakeClock) -> None:
    async def main() -> None:
        store = MemoryStore(Terms(10, 20, None, None, 30))
        await claimed(store, "unasked")
        clock.advance(19)
        await claimed(store, "later")
        assert set(store._streams) == {"unasked", "later"}
        clock.advance(2)
        await claimed(store, "another")
        assert set(store._streams) == {"later", "another"}

    asyncio.run(main())


async def claimed(store: Store, key: str) -> Token:
    claim = await store.claim(key, "me", may_begin=True, takeover=False)
    assert claim.state == "elected"
    return Token(key, claim.fence, "me")


def test_a_memory_logs_streams_outlive_the_bridges_loop() -> None:
    with SSEServer([send(1), DONE]) as upstream, MemoryLog() as log:
        with Bridge() as bridge:
            log._bridge = bridge
            assert log.open("k", lambda: request_sse(upstream.url)).collect() == [1]
        log._bridge = None
        assert log.open("k").collect() == [1]


# What goes wrong in the midst of things.


def test_an_append_that_comes_too_late_ends_the_producer(logs: Logs, face: Face) -> None:
    """Where it has not seen yet, as a follower, that it is one of before."""
    log, store = logs.mortal()
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 0
        store.failures["append"] = StaleError()
        go.set()
        face.meanwhile(upstream.requests[0].wait_aborted, 30)


def test_a_renewal_that_comes_too_late_ends_the_producer(logs: Logs, face: Face) -> None:
    log, store = logs.mortal()
    with SSEServer([send(0), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 0
        store.failures["renew"] = StaleError()
        face.meanwhile(upstream.requests[0].wait_aborted, 30)


def test_an_outage_that_is_too_long_for_an_append_is_told(logs: Logs, face: Face) -> None:
    log, store = logs.mortal(outage=0.2)
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 0
        store.failures["append"] = OutageError("it is out")
        go.set()
        with pytest.raises(LogUnavailableError):
            reading.next()
        face.meanwhile(upstream.requests[0].wait_aborted, 30)


def test_abandoned_and_taken_over_at_once(logs: Logs, face: Face) -> None:
    log, store = logs.mortal(abandon_after=0.1)
    with SSEServer([send(0), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 0
        store.failures["end"] = StaleError()
        reading.close()
        face.meanwhile(upstream.requests[0].wait_aborted, 30)


@pytest.mark.parametrize("name", ["read", "watch", "claim"])
def test_a_fault_of_the_stores_leaves_nobody_waiting(logs: Logs, face: Face, name: str) -> None:
    log, store = logs.mortal()
    with SSEServer([send(0), silence()]) as upstream:
        reading = face.open(log, "k", face.start(upstream.url))
        assert reading.next() == 0
        store.failures[name] = ZeroDivisionError()
        if name == "watch":
            with pytest.raises(LogError, match="ZeroDivisionError"):
                reading.next()
        with pytest.raises(LogError, match="ZeroDivisionError"):
            face.open(log, "k").next()


def test_the_end_of_the_upstreams_bridge_is_the_producers(logs: Logs) -> None:
    log, _ = logs.mortal()
    with SSEServer([send(0), silence()]) as upstream:
        with Bridge() as other:
            stream = log.open("k", lambda: request_sse(upstream.url, bridge=other))
            assert next(stream) == 0
        with pytest.raises(ProducerLostError):
            next(stream)


def test_what_start_returns_too_late_is_discarded(log: Log) -> None:
    called, go = threading.Event(), threading.Event()
    with SSEServer([send(0), silence()]) as upstream:

        async def main(start: Any) -> None:
            called.clear()
            go.clear()
            opening = asyncio.create_task(log.aopen("k", start))
            assert await asyncio.to_thread(called.wait, 30)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            go.set()

        def later(made: Any) -> Any:
            called.set()
            assert go.wait(30)
            return made()

        asyncio.run(main(lambda: later(lambda: arequest_sse(upstream.url))))
        # With the upstream's answer in hand already.
        answered = request_sse(upstream.url)
        asyncio.run(main(lambda: later(lambda: answered)))
        asyncio.run(main(lambda: later(lambda: 7)))
        upstream.requests[0].wait_aborted(30)
    with SSEServer([send(0), DONE]) as upstream:
        assert log.open("k", lambda: request_sse(upstream.url)).collect() == [0]


def test_an_election_that_comes_too_late_elects_nobody(logs: Logs) -> None:
    log, store = logs.mortal()
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


def test_closing_ends_what_is_waited_for(logs: Logs) -> None:
    log, store = logs.mortal()
    log.cancel("k")
    store.is_out = True
    asked = in_thread(lambda: log.produce("k", lambda: request_sse("http://127.0.0.1:1/")))
    until(lambda: log._hub().disturbed_at is not None)
    log.close()
    with pytest.raises(BridgeClosedError):
        asked.result(30)


def test_a_log_of_which_nothing_was_asked_is_closed(logs: Logs) -> None:
    log = logs.new()
    log._hub()
    log.close()


def test_the_end_of_the_process_is_quiet(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([send(0), silence()]) as upstream, Bridge() as bridge:
        log._bridge = bridge
        stream = log.open("k", lambda: request_sse(upstream.url, bridge=bridge))
        assert next(stream) == 0
        monkeypatch.setattr(_bridge, "_exiting", True)
        bridge.close()
        assert (stream.collect(), stream.outcome) == ([], "closed")


ERRORS: list[SSEError] = [
    StreamTimeoutError("idle", 2.5),
    BufferLimitError(7),
    ReconnectionError("it was lost", 3),
    RedirectError("it goes on elsewhere", 302),
    StatusError("no", 429, httpx.Headers({"Retry-After": "3", "Secret": "x"}), b"\xff\x00"),
    ContentTypeError("no", 200, httpx.Headers({"Content-Type": "text/html"}), b""),
    DecodeError("no JSON", ServerSentEvent("a", "b", "c", 1.5)),
    UpstreamError("no", ServerSentEvent(data="{}"), {"error": {"message": "ü"}}),
    *(kind("words") for kind in (TruncatedStreamError, ConnectError, CallbackError, EventsLostError, LogError)),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_are_told_as_what_they_are(error: SSEError) -> None:
    told = Entry(Position(1, 1), error_fields(error)).sent_error()
    assert (type(told), str(told)) == (type(error), str(error))
    for name in ("which", "seconds", "limit", "attempts", "status", "body", "event", "payload"):
        assert getattr(told, name, None) == getattr(error, name, None)
    if isinstance(error, StatusError):
        assert isinstance(told, StatusError)
        assert dict(told.headers) == {"retry-after": "3"}


def test_errors_of_others_are_told_by_name() -> None:
    told = Entry(Position(1, 1), error_fields(ZeroDivisionError("by zero"))).sent_error()
    assert (type(told), str(told)) == (SSEError, "the producer failed with ZeroDivisionError: by zero")
    assert Entry(Position(1, 1), {"of": "later"}).kind == "unknown"


def test_a_refusal_that_is_not_whole_says_so(log: Log, face: Face) -> None:
    with SSEServer([respond(500), raw(b"half"), cut()]) as upstream:
        for reading in (face.open(log, "k", face.start(upstream.url)), face.open(log, "k")):
            error = reading.fail()[1]
            assert isinstance(error, StatusError)
            assert (error.status, error.body) == (500, b"half")
            assert isinstance(error.__cause__, TruncatedStreamError)


def test_names_of_the_package() -> None:
    assert {"Log", "MemoryLog", "RedisLog"} <= set(dir(resume))
    assert resume.RedisLog.__name__ == "RedisLog"
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = resume.other


# Together with the rest of the library.


def test_streams_of_a_log_are_merged_and_teed(log: Log) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        streams = {name: log.open(name, lambda: request_sse(upstream.url)) for name in "ab"}
        assert sorted(merge(streams)) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
        one, other = tee(log.open("a"))
        assert (one.collect(), other.collect()) == ([1, 2], [1, 2])


def test_what_a_log_stream_has_not_is_a_usage_error(log: Log) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        stream = log.open("k", lambda: request_sse(upstream.url))
        with pytest.raises(UsageError, match="no connection"):
            stream.reconnect()
        assert next(stream) == 1
        assert stream.stats.events >= 1
        assert stream.stats.time_to_first_event is not None
        assert stream.stats.reconnections == 0
        assert stream.collect() == [2]


@pytest.mark.parametrize("key", ["", "a" * 513, "ü" * 300, "a{b", "a}b", "a\nb", "a\0b", "a\x7f", "\ud800", 7, None])
def test_keys_that_cannot_be(log: Log, face: Face, key: Any) -> None:
    for call in (face.open, face.cancel, face.delete):
        with pytest.raises(UsageError, match="key"):
            call(log, key)
    with pytest.raises(UsageError, match="key"):
        face.produce(log, key, lambda: None)


def test_keys_of_all_other_kinds(log: Log, face: Face) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        for key in ("a b", "ü" * 256, "a:events", "*", "../x", "[a]", "a" * 512):
            assert face.open(log, key, face.start(upstream.url)).items() == [1]
        assert len(upstream.requests) == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 7}, "start is a int"),
        ({"takeover": True}, "takeover=True calls start"),
        ({"replay": "some"}, "replay="),
        ({"last_event_id": b"1-1"}, "last_event_id is a bytes"),
        ({"wait": -1}, "`wait` must be"),
        ({"wait": "1"}, "`wait` must be"),
        ({"decode": "xml"}, "`decode` must be"),
        ({"cancel": 7}, "cancel is a int"),
        ({"max_buffered_bytes": 0}, "max_buffered_bytes"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work(log: Log, face: Face, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        face.open(log, "k", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lease": 0}, "`lease` must be"),
        ({"ttl": -1}, "`ttl` must be"),
        ({"outage": True}, "`outage` must be"),
        ({"abandon_after": -1}, "`abandon_after` must be"),
        ({"max_events": 0}, "max_events"),
        ({"bridge": 7}, "bridge is a int"),
    ],
    ids=str,
)
def test_logs_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MemoryLog(**options)


def test_events_are_typed(log: Log) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        event: ServerSentEvent
        for event in log.open("k", lambda: request_sse(upstream.url), decode="event"):
            assert event.json() == 1
        text: str
        for text in log.open("k", decode="text"):
            assert text == "1"
