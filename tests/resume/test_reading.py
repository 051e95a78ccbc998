"""Reading a stream: every reader gets each event once, in order, from any point."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sseqbridge import (
    DecodeError,
    ServerSentEvent,
    StreamNotFoundError,
    UsageError,
    merge,
    request_sse,
    tee,
)
from sseqbridge._streams.stream import reader_of
from sseqbridge.resume import Log
from sseqbridge.testing import SSEServer, Step, hold, respond, send, silence, wait
from tests.support import in_thread, until

from .support import (
    DONE,
    LogCaller,
    Logs,
    hub_of,
)


def test_all_readers_share_one_upstream(log: Log, caller: LogCaller) -> None:
    go = threading.Event()
    with SSEServer([send(1), send(2), hold(go), send(3), DONE]) as upstream:
        start = caller.start(upstream.url)
        first = caller.open(log, "k", start)
        assert (first.events.status, first.events.headers["content-type"]) == (200, "text/event-stream")
        assert [first.next(), first.next()] == [1, 2]
        second = caller.open(log, "k", start)
        third = caller.open(log, "k")
        late = caller.open(log, "k", last_event_id=first.last_event_id)
        assert [second.next(), third.next()] == [1, 1]
        go.set()
        assert [first.items(), second.items(), third.items(), late.items()] == [[3], [2, 3], [2, 3], [3]]
        assert {reading.outcome for reading in (first, second, third, late)} == {"done"}
        assert caller.open(log, "k", start).items() == [1, 2, 3]
        assert len(upstream.requests) == 1


def test_event_ids_are_positions_of_entries(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1, id="its-own"), send(2), DONE]) as upstream:
        events = caller.open(log, "k", caller.start(upstream.url), decode="event").items()
        fences, numbers = zip(*(event.id.split("-") for event in events), strict=True)
        assert len(set(fences)) == 1
        assert numbers == ("1", "2")


def test_resuming_after_each_id_yields_exactly_the_rest(log: Log, caller: LogCaller) -> None:
    go, done = threading.Event(), threading.Event()
    with SSEServer([*map(send, range(20)), hold(go), *map(send, range(20, 30)), hold(done), DONE]) as upstream:
        first = caller.open(log, "k", caller.start(upstream.url), decode="event")
        seen = [first.next() for _ in range(20)]
        live = [caller.open(log, "k", last_event_id=event.id) for event in seen]
        go.set()
        seen += [first.next() for _ in range(10)]
        done.set()
        for count, reading in enumerate(live, 1):
            assert reading.items() == list(range(count, 30))
        for count, event in enumerate(seen, 1):
            after = caller.open(log, "k", last_event_id=event.id)
            assert (after.items(), after.outcome) == (list(range(count, 30)), "done")


def test_resuming_after_the_done_event_answers_204(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        caller.open(log, "k", caller.start(upstream.url)).items()
    ended = caller.open(log, "k", decode="event")
    assert [event.data for event in ended.items()] == ["1"]
    relayed = reader_of(ended.events).cursor.done_event
    assert relayed is not None
    assert relayed.data == "[DONE]"
    again = caller.open(log, "k", last_event_id=relayed.id)
    # An EventSource does not reconnect after a 204.
    assert (again.events.status, again.items(), again.outcome) == (204, [], "done")


def test_resuming_after_the_done_event_ends_once_the_lease_ends(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    with SSEServer([send(1), DONE]) as upstream:
        first = caller.open(log, "k", caller.start(upstream.url))
        assert first.items() == [1]
    done = reader_of(first.events).cursor.done_event
    assert done is not None
    logs.hold_lease(store, "k")
    again = caller.open(log, "k", last_event_id=done.id)
    assert (again.events.status, again.outcome) == (200, None)
    logs.expire_lease(store, "k")
    assert (again.items(), again.outcome) == ([], "done")


@pytest.mark.parametrize(("steps", "outcome"), [([], "eof"), ([silence()], "closed")], ids=["eof", "closed"])
def test_resuming_after_the_last_event_answers_204(
    log: Log, caller: LogCaller, steps: list[Step], outcome: str
) -> None:
    with SSEServer([send(1), send(2), *steps]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url), decode="event")
        ids = [reading.next().id, reading.next().id]
        if outcome == "closed":
            assert caller.cancel(log, "k")
        assert reading.items() == []
        again = caller.open(log, "k", last_event_id=ids[1])
        assert (again.events.status, again.items(), again.outcome) == (204, [], outcome)
        rest = caller.open(log, "k", last_event_id=ids[0])
        assert (rest.events.status, rest.items(), rest.outcome) == (200, [2], outcome)


def test_done_event_keeps_its_type(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), b"event: last\ndata: [DONE]\n\n"]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert (reading.items(), reading.outcome) == ([1], "done")
        done = reader_of(reading.events).cursor.done_event
        assert done is not None
        assert done.event == "last"


def test_events_keep_type_data_and_retry(log: Log, caller: LogCaller) -> None:
    frames = [
        b"event: note\nid: 7\nretry: 1500\ndata: a\ndata: b\n\n",
        b": a comment\n\n",
        "data: ü→🎉\n\n".encode(),
        b"data:\n\n",
        b'data: {"a": 1}\n\n',
    ]
    with SSEServer(frames) as upstream:
        start = caller.start(upstream.url, decode="event", comments=True)
        events = caller.open(log, "k", start, decode="event").items()
    assert [(event.event, event.data, event.retry) for event in events] == [
        ("note", "a\nb", 1.5),
        ("message", "ü→🎉", None),
        ("message", "", None),
        ("message", '{"a": 1}', None),
    ]
    reading = caller.open(log, "k", decode="text")
    assert reading.items() == ["a\nb", "ü→🎉", "", '{"a": 1}']
    assert (reading.events.retry, reading.outcome) == (1.5, "eof")
    assert caller.open(log, "k", decode=lambda event: len(event.data)).items() == [3, 3, 0, 8]
    assert isinstance(caller.open(log, "k").fail()[1], DecodeError)
    assert caller.open(log, "k", last_event_id=events[1].id).items() == [{"a": 1}]


def test_items_read_by_start_are_not_in_the_log(log: Log, caller: LogCaller) -> None:
    """`start` may read the first event before it returns the stream."""
    with SSEServer([b"data: 1\n\ndata: 2\n\n", send(3), DONE]) as upstream:

        def start() -> Any:
            response = request_sse(upstream.url)
            assert next(response.events) == 1
            return response

        assert caller.open(log, "k", start).items() == [2, 3]


def test_slow_reader_delays_no_other_and_loses_nothing(log: Log, caller: LogCaller) -> None:
    text = "x" * 1000
    with SSEServer([*(send(f"{n} {text}") for n in range(400)), DONE]) as upstream:
        start = caller.start(upstream.url, decode="text")
        slow = caller.open(log, "k", start, decode="text", max_buffered_bytes=4096)
        first = slow.next()
        assert len(caller.open(log, "k", decode="text").items()) == 400
        assert slow.events.stats.buffered <= 4096
        assert [item.split()[0] for item in (first, *slow.items())] == [str(n) for n in range(400)]


def test_reader_that_falls_behind_catches_up(log: Log) -> None:
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


def test_slow_reader_of_a_deleted_stream_blocks_no_new_stream(log: Log, caller: LogCaller) -> None:
    with SSEServer([*(send("x" * 500) for _ in range(50)), DONE]) as upstream:
        start = caller.start(upstream.url, decode="text")
        slow = caller.open(log, "k", start, decode="text", max_buffered_bytes=2048)
        assert len(caller.open(log, "k", decode="text").items()) == 50
        assert caller.delete(log, "k")
        with pytest.raises(StreamNotFoundError):
            caller.open(log, "k", wait=0.1)
        assert len(caller.open(log, "k", start, decode="text").items()) == 50
        assert len(upstream.requests) == 2
        slow.close()


def test_leaving_a_for_loop_keeps_the_upstream(log: Log) -> None:
    with SSEServer([*map(send, range(10)), DONE]) as upstream:
        for item in log.open("k", lambda: request_sse(upstream.url)):
            if item == 3:
                break
        assert log.open("k").collect() == list(range(10))


def test_closing_a_reader_keeps_the_upstream(log: Log, caller: LogCaller) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 1
        reading.close()
        assert (reading.outcome, reading.items()) == ("closed", [])
        go.set()
        assert caller.open(log, "k").items() == [1, 2]
        assert not upstream.requests[0].aborted.is_set()


def test_stream_without_readers_continues(log: Log, caller: LogCaller) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        caller.open(log, "k", caller.start(upstream.url)).close()
        until(lambda: not hub_of(log).readers)
        go.set()
        assert caller.open(log, "k").items() == [1, 2]
        assert not upstream.requests[0].aborted.is_set()


@pytest.mark.slow
def test_false_lease_alarm_loses_and_repeats_nothing(log: Log, caller: LogCaller) -> None:
    """A reader that wrongly assumes a lost lease continues at its position."""
    steps: list[Step] = []
    for n in range(100):
        steps += [send(n), wait(0.002)]
    over = threading.Event()

    def alarm() -> None:
        hub = hub_of(log)
        while not over.wait(0.001):
            for reader in tuple(hub.readers):
                hub.loop.call_soon_threadsafe(reader.on_lease_lost)

    with SSEServer([*steps, DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        alarming = in_thread(alarm)
        try:
            assert reading.items() == list(range(100))
        finally:
            over.set()
            alarming.result(30)


def test_streams_of_a_log_can_be_merged_and_teed(log: Log) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        streams = {name: log.open(name, lambda: request_sse(upstream.url)) for name in "ab"}
        assert sorted(merge(streams)) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
        one, other = tee(log.open("a"))
        assert (one.collect(), other.collect()) == ([1, 2], [1, 2])


def test_reconnect_raises_and_stats_are_available(log: Log) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        stream = log.open("k", lambda: request_sse(upstream.url))
        with pytest.raises(UsageError, match="no connection"):
            stream.reconnect()
        assert next(stream) == 1
        assert stream.stats.events >= 1
        assert stream.stats.time_to_first_event is not None
        assert stream.stats.reconnections == 0
        assert stream.collect() == [2]


def test_items_are_typed_by_decode(log: Log) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        event: ServerSentEvent
        for event in log.open("k", lambda: request_sse(upstream.url), decode="event"):
            assert event.json() == 1
        text: str
        for text in log.open("k", decode="text"):
            assert text == "1"
