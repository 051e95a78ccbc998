"""tee(): several readers of one upstream."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    Comment,
    DecodeError,
    EventsLostError,
    EventStream,
    ReconnectionPolicy,
    ServerSentEvent,
    StatusError,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    merge,
    request_sse,
    tee,
)
from sseqbridge._runtime import fork
from sseqbridge._streams.broadcaster import Broadcaster
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import SSEServer, Step, comment, cut, hold, raw, respond, send, silence, wait
from tests.support import in_thread, is_waiting, together, until, until_no_stream_is_open

pytestmark = pytest.mark.configurations("default", "plain")

DONE = send("[DONE]")


def read(stream: EventStream[Any]) -> list[Any]:
    return list(stream)


def in_threads(*streams: EventStream[Any]) -> list[list[Any]]:
    """Read each stream in its own thread, and return the items."""
    return together([partial(read, stream) for stream in streams])


def waits_for(reader: EventStream[Any]) -> bool:
    """Whether the upstream waits for this reader (backpressure)."""
    return reader_of(reader).cursor.channel.is_producer_waiting


def test_each_reader_gets_everything() -> None:
    with SSEServer([*(send(n) for n in range(500)), DONE]) as server:
        readers = tee(request_sse(server.url), 3)
        assert in_threads(*readers) == [list(range(500))] * 3
        assert [reader.outcome for reader in readers] == ["done"] * 3
        assert len(server.requests) == 1


def test_each_reader_decodes_its_own_items() -> None:
    with SSEServer([send({"n": 1}), DONE]) as server:
        one, other = tee(request_sse(server.url))
        next(one)["n"] = 2
        assert next(other) == {"n": 1}
        with one, other:
            pass


@pytest.mark.parametrize("decode", ["event", "json", lambda event: event])
def test_reader_that_changes_its_events_changes_no_other(decode: Any) -> None:
    steps = [send("1", id="1"), comment("c"), send("2", id="2"), DONE]
    with SSEServer(steps) as server:
        comments = decode == "event"
        first, other = readers = tee(request_sse(server.url, decode=decode, comments=comments).events)
        for item in first:
            changed = [first.last_event, item] if isinstance(item, (ServerSentEvent, Comment)) else [first.last_event]
            for each in changed:
                if isinstance(each, Comment):
                    each.text = "changed"
                elif each is not None:
                    each.data, each.id, each.event, each.retry = "changed", "changed", "changed", 7.0
        for reader in (other, readers.add(replay=True)):
            seen = [(item, reader.last_event) for item in reader]
            assert "changed" not in repr(seen)
            assert [event.id for _, event in seen if event is not None][-1] == "2"


def test_readers_have_their_own_positions() -> None:
    steps = [send("a", id="1"), send("b", id="2", retry=0.5), send("c", id="3"), DONE]
    with SSEServer(steps) as server:
        one, other = tee(request_sse(server.url, decode="text").events)
        assert (next(one), next(one)) == ("a", "b")
        assert next(other) == "a"
        assert (one.last_event_id, other.last_event_id) == ("2", "1")
        assert one.last_event == ServerSentEvent(data="b", id="2", retry=0.5)
        assert list(one) == ["c"]
        assert list(other) == ["b", "c"]
        assert one.stats.events == other.stats.events == 3
        assert one.stats.time_to_first_event is not None


def test_reader_waits_for_the_next_event() -> None:
    go = threading.Event()
    with SSEServer([respond(), comment(), hold(go), send(1), DONE]) as server:
        one, other = tee(request_sse(server.url))
        waiting = [in_thread(partial(next, reader)) for reader in (one, other)]
        until(lambda: all(map(is_waiting, waiting)))
        go.set()
        assert [each.result(30) for each in waiting] == [1, 1]
        with pytest.raises(StopIteration):
            next(one)
        assert list(other) == []


def test_items_read_before_tee_are_not_repeated() -> None:
    with SSEServer([b"data: 1\n\ndata: 2\n\ndata: 3\n\n", DONE]) as server:
        events = request_sse(server.url).events
        assert next(events) == 1
        one, other = tee(events)
        assert in_threads(one, other) == [[2, 3], [2, 3]]


def test_teed_stream_cannot_be_read_itself() -> None:
    with SSEServer([send(1), silence()]) as server:
        events = request_sse(server.url).events
        readers = tee(events)
        with pytest.raises(UsageError, match="being read already"):
            next(events)
        with pytest.raises(UsageError, match="being read already"):
            tee(events)
        del events
        gc.collect()
        assert [next(reader) for reader in readers] == [1, 1]
        readers.close()
    assert [reader.outcome for reader in readers] == ["closed", "closed"]


@pytest.mark.parametrize("leave", ["close", "break", "drop"])
def test_upstream_is_aborted_when_the_last_reader_leaves(leave: str) -> None:
    def leaves(reader: EventStream[Any]) -> None:
        if leave == "close":
            reader.close()
        elif leave == "break":
            for _ in reader:
                break

    with SSEServer([send(1), silence()]) as server:
        readers = list(tee(request_sse(server.url), 3))
        while readers:
            assert not server.requests[0].aborted.is_set()
            assert readers[-1].next(30) == 1 if leave != "break" else True
            if leave == "drop":
                with pytest.warns(ResourceWarning, match="dropped while it was open"):
                    readers.pop()
            else:
                leaves(readers.pop())
        server.requests[0].wait_aborted()


def test_closing_one_reader_ends_no_other() -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as server:
        one, other = tee(request_sse(server.url))
        assert next(one) == 1
        one.close()
        assert list(one) == []
        assert one.outcome == "closed"
        go.set()
        assert list(other) == [1, 2]


def test_close_wakes_all_readers() -> None:
    with SSEServer([respond(), comment(), silence()]) as server:
        with tee(request_sse(server.url), 2) as readers:
            waiting = [in_thread(partial(read, reader)) for reader in readers]
            until(lambda: all(map(is_waiting, waiting)))
        assert [each.result(30) for each in waiting] == [[], []]
        server.requests[0].wait_aborted()


def test_the_callers_cancel_ends_all_readers() -> None:
    stop = threading.Event()
    with SSEServer([send(1), silence()]) as server:
        readers = tee(request_sse(server.url, cancel=stop))
        assert [next(reader) for reader in readers] == [1, 1]
        waiting = [in_thread(partial(read, reader)) for reader in readers]
        until(lambda: all(map(is_waiting, waiting)))
        stop.set()
        assert [each.result(30) for each in waiting] == [[], []]


BIG = "x" * 10_000


@pytest.mark.slow
def test_slowest_reader_causes_backpressure_within_its_bound() -> None:
    limit = 200_000
    with SSEServer([*(send(BIG) for _ in range(2_000)), DONE]) as server:
        events = request_sse(server.url, decode="text", max_buffered_bytes=limit).events
        fast, slow = tee(events, max_buffered_bytes=limit)
        reading = in_thread(partial(read, fast))
        until(lambda: is_waiting(reading) and waits_for(slow))
        assert limit // 2 < slow.stats.buffered <= limit
        held = slow.stats.events
        assert held < 2_000
        # The fast reader waits until the slow one has read half of its buffer.
        assert not reading.done()
        assert len(list(slow)) == 2_000
        assert len(reading.result(30)) == 2_000


@pytest.mark.slow
def test_reader_goes_on_when_a_slower_one_is_closed() -> None:
    with SSEServer([*(send(BIG) for _ in range(1_000)), DONE]) as server:
        fast, slow = tee(request_sse(server.url, decode="text"), max_buffered_bytes=100_000)
        reading = in_thread(partial(read, fast))
        until(lambda: is_waiting(reading) and waits_for(slow))
        slow.close()
        assert len(reading.result(30)) == 1_000


@pytest.mark.slow
def test_slow_end_ends_a_slow_reader_with_events_lost_error() -> None:
    with SSEServer([*(send(BIG) for _ in range(1_000)), DONE]) as server:
        fast, slow, slower = tee(request_sse(server.url, decode="text"), 3, slow="end", max_buffered_bytes=100_000)
        assert next(slow) == BIG
        assert len(list(fast)) == 1_000
        for reader in (slow, slower):
            got = 0
            with pytest.raises(EventsLostError, match="max_buffered_bytes=100000"):
                for _ in reader:
                    got += 1
            assert 1 <= got <= 12
            assert reader.outcome == "error"


@pytest.mark.slow
def test_slow_end_waits_for_the_fastest_reader() -> None:
    with SSEServer([*(send(BIG) for _ in range(1_000)), DONE]) as server:
        fast, slow = tee(request_sse(server.url, decode="text"), slow="end", max_buffered_bytes=100_000)
        until(lambda: waits_for(fast))
        assert fast.stats.events < 1_000
        slow.close()
        for _ in range(500):
            next(fast)
        assert len(list(fast)) == 500


def test_added_reader_gets_the_events_from_then_on() -> None:
    go = threading.Event()
    with SSEServer([send("a", id="1"), send("b", id="2"), hold(go), send("c", id="3"), DONE]) as server:
        readers = tee(request_sse(server.url, decode="text"), 1)
        assert (next(readers[0]), next(readers[0])) == ("a", "b")
        late = readers.add()
        assert late.last_event_id == "2"
        go.set()
        assert list(late) == ["c"]
        assert list(readers[0]) == ["c"]
        # The stream has ended.
        assert list(readers.add()) == []


def test_added_reader_with_replay_gets_earlier_events() -> None:
    go = threading.Event()
    with SSEServer([*(send(n) for n in range(100)), hold(go), send(100), DONE]) as server:
        readers = tee(request_sse(server.url), 1)
        for n in range(100):
            assert next(readers[0]) == n
        late = readers.add(replay=True)
        assert late.last_event_id == ""
        go.set()
        assert in_threads(readers[0], late) == [[100], list(range(101))]
        # Also after the end of the stream.
        assert list(readers.add(replay=True)) == list(range(101))


@pytest.mark.slow
def test_readers_can_be_added_while_events_arrive() -> None:
    """Whenever a reader is added, it misses and repeats no event."""
    with SSEServer([*(step for n in range(300) for step in (send(n), wait(0.0005))), DONE]) as server:
        readers = tee(request_sse(server.url), 1)
        late = []
        for _ in range(20):
            next(readers[0])
            late.append(in_thread(partial(read, readers.add(replay=True))))
        assert list(readers[0]) == list(range(20, 300))
        assert [each.result(30) for each in late] == [list(range(300))] * 20


def test_add_after_all_readers_left_raises_usage_error() -> None:
    with SSEServer([send(1), silence()]) as server:
        readers = tee(request_sse(server.url))
        for reader in readers:
            reader.close()
        with pytest.raises(UsageError, match="all readers of this tee have left"):
            readers.add()


def test_history_is_bounded() -> None:
    with SSEServer([*(send(BIG) for _ in range(100)), DONE]) as server:
        readers = tee(request_sse(server.url, decode="text"), 1, max_history_bytes=100_000)
        assert len(list(readers[0])) == 100
        with pytest.raises(EventsLostError, match="max_history_bytes=100000"):
            readers.add(replay=True)
        assert list(readers.add()) == []
        none_kept = tee(request_sse(server.url, decode="text"), 1, max_history_bytes=0)
        with pytest.raises(EventsLostError, match="max_history_bytes=0"):
            until(lambda: none_kept.add(replay=True).close())
        none_kept.close()


def test_each_reader_gets_the_error_after_earlier_events() -> None:
    with SSEServer([send(1), cut()]) as server:
        readers = tee(request_sse(server.url))
        errors = []
        for reader in readers:
            assert next(reader) == 1
            with pytest.raises(TruncatedStreamError) as caught:
                next(reader)
            assert reader.outcome == "error"
            errors.append(caught.value)
        # Each reader has its own exception object.
        assert errors[0] is not errors[1]
        assert str(errors[0]) == str(errors[1])
        assert type(errors[0].__cause__) is type(errors[1].__cause__)
        with pytest.raises(TruncatedStreamError):
            list(readers.add(replay=True))


def test_decode_error_of_one_reader_ends_no_other() -> None:
    with SSEServer([b"data: {\n\n", send(1), DONE]) as server:
        one, other = tee(request_sse(server.url, decode=lambda event: seen(event.data)))
        first = threading.get_ident()

        def seen(data: str) -> str:
            if threading.get_ident() == first:
                raise ValueError
            return data

        with pytest.raises(DecodeError):
            next(one)
        assert in_threads(other) == [["{", "1"]]


def test_each_reader_gets_the_error_event() -> None:
    with SSEServer([send({"error": {"message": "busy"}}), silence()]) as server:
        for reader in tee(request_sse(server.url)):
            with pytest.raises(UpstreamError, match="busy"):
                next(reader)
        server.requests[0].wait_aborted()


def test_each_reader_gets_the_refusal() -> None:
    refusal: list[Step] = [respond(503, content_type="application/json", framing="length"), b'{"error": "busy"}']
    with SSEServer(refusal) as server:
        for reader in tee(request_sse(server.url)):
            assert list(reader) == [{"error": "busy"}]
        for reader in tee(request_sse(server.url)):
            with pytest.raises(StatusError) as caught:
                reader.raise_for_status()
            assert caught.value.body == b'{"error": "busy"}'
        with pytest.raises(StatusError):
            next(tee(request_sse(server.url, decode="text"), 1)[0])
        seen = request_sse(server.url).events
        with pytest.raises(StatusError):
            seen.raise_for_status()
        assert [list(reader) for reader in tee(seen)] == [[{"error": "busy"}]] * 2


def test_readers_of_an_ended_stream_get_its_end() -> None:
    with SSEServer([send(1), DONE]) as server:
        events = request_sse(server.url).events
        assert list(events) == [1]
        assert [list(reader) for reader in tee(events)] == [[], []]


def test_readers_get_the_rest_after_the_bridge_has_ended() -> None:
    with SSEServer([*(send(BIG) for _ in range(30)), DONE]) as server:
        bridge = Bridge()
        events = request_sse(server.url, decode="text", bridge=bridge).events
        until_no_stream_is_open(bridge)
        bridge.close()
        until(reader_of(events).cursor.subscription.loop.is_closed)
        one, other = tee(events, max_buffered_bytes=1_000)
        assert len(list(one)) == len(list(other)) == 30


def test_readers_get_the_rest_after_the_upstream_has_ended() -> None:
    with SSEServer([*(send(BIG) for _ in range(30)), DONE]) as server:
        events = request_sse(server.url, decode="text").events
        until_no_stream_is_open()
        one, other = tee(events, max_buffered_bytes=100_000)
        # Also now each reader buffers no more than its limit, or a single larger batch.
        until(lambda: waits_for(one) or waits_for(other))
        assert one.stats.buffered < 30 * len(BIG)
        assert [len(items) for items in in_threads(one, other)] == [30, 30]


def test_comments_and_whole_events_are_delivered() -> None:
    with SSEServer([comment("hi"), send("a", event="x"), DONE]) as server:
        for reader in tee(request_sse(server.url, decode="event", comments=True)):
            assert list(reader) == [Comment("hi"), ServerSentEvent("x", "a")]


@pytest.mark.slow
def test_done_function_ends_each_reader() -> None:
    with SSEServer([send("a"), send("end"), silence()]) as server:
        readers = tee(request_sse(server.url, decode="text", done=lambda event: event.data == "end"))
        assert list(readers[0]) == ["a", "end"]
        assert list(readers[1]) == ["a", "end"]
        assert [reader.outcome for reader in readers] == ["done", "done"]
        assert list(readers.add(replay=True)) == ["a", "end"]
        server.requests[0].wait_aborted()


def test_reader_can_be_relayed_by_an_asynchronous_server() -> None:
    async def main(reader: EventStream[str]) -> list[str]:
        items = [await reader_of(reader).anext(30), await reader_of(reader).anext(30)]
        with pytest.raises(StopAsyncIteration):
            await reader_of(reader).anext(30)
        return items

    with SSEServer([send("a"), send("end"), silence()]) as server:
        for reader in tee(request_sse(server.url, decode="text", done=lambda event: event.data == "end")):
            assert asyncio.run(main(reader)) == ["a", "end"]


def test_readers_in_a_forked_child_raise_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([send(1), silence()]) as server:
        readers = tee(request_sse(server.url))
        with monkeypatch.context() as patch:
            patch.setattr(fork, "_forks", -1)
            with pytest.raises(UsageError, match="before a fork"):
                next(readers[0])
            with pytest.raises(UsageError, match="before a fork"):
                readers.add()
            with pytest.raises(UsageError, match="before a fork"):
                readers.close()
            with readers:
                pass
        assert next(readers[0]) == 1
        readers.close()


def test_on_reconnect_is_called_once() -> None:
    attempts: list[int] = []
    scripts = iter([[send(1, id="1"), cut()], [send(2), DONE]])
    with SSEServer(lambda request: next(scripts)) as server:
        policy = ReconnectionPolicy(delay=0.01)
        events = request_sse(server.url, reconnect=policy, on_reconnect=lambda n, *_: attempts.append(n)).events
        readers = tee(events)
        assert in_threads(*readers) == [[1, 2], [1, 2]]
        assert attempts == [1]
        assert readers[0].stats.reconnections == 1


def test_each_reader_can_reconnect() -> None:
    scripts = iter([[send(1, id="1"), silence()], [send(2), DONE]])
    with SSEServer(lambda request: next(scripts)) as server:
        one, other = tee(request_sse(server.url, reconnect=ReconnectionPolicy(delay=0.01)))
        assert next(one) == 1
        other.reconnect()
        assert list(one) == [2]
        assert list(other) == [1, 2]


def test_bridge_that_is_closed_ends_all_readers() -> None:
    with SSEServer([*(send(BIG) for _ in range(100)), silence()]) as server:
        bridge = Bridge()
        fast, slow = tee(request_sse(server.url, decode="text", bridge=bridge), max_buffered_bytes=50_000)
        reading = in_thread(partial(read, fast))
        until(lambda: is_waiting(reading) and waits_for(slow))
        bridge.close()
        with pytest.raises(BridgeClosedError):
            reading.result(30)
        # Also the slow reader, for which no further callback would run.
        with pytest.raises(BridgeClosedError):
            list(slow)


@pytest.mark.slow
def test_stuck_task_does_not_block_the_readers() -> None:
    with SSEServer([*(send(BIG) for _ in range(100)), silence()]) as server:
        bridge = Bridge()
        fast, slow = tee(request_sse(server.url, decode="text", bridge=bridge), max_buffered_bytes=50_000)
        reading = in_thread(partial(read, fast))
        until(lambda: is_waiting(reading) and waits_for(slow))
        state = bridge.started()
        state.loop.call_soon_threadsafe(state.release_consumers)
        with pytest.raises(BridgeClosedError, match="did not end in time"):
            reading.result(30)
        slow.close()
        bridge.close()


def test_tee_of_a_tee() -> None:
    with SSEServer([*(send(n) for n in range(2_000)), DONE]) as server:
        one, other = tee(request_sse(server.url), max_buffered_bytes=5_000)
        inner = tee(other, max_buffered_bytes=5_000)
        assert in_threads(one, *inner) == [list(range(2_000))] * 3
    with SSEServer([send(1), silence()]) as server:
        one, other = tee(request_sse(server.url))
        inner = tee(other, 1)
        one.close()
        inner[0].close()
        server.requests[0].wait_aborted()


def test_reentrant_call_while_entries_move_runs_afterwards() -> None:
    with SSEServer([send(1), silence()]) as server:
        readers = tee(request_sse(server.url))
        broadcaster = readers._broadcaster
        until(lambda: readers[0].stats.buffered)
        broadcaster._is_moving = True
        broadcaster._move()
        assert broadcaster._must_move
        broadcaster._is_moving = False
        readers.close()


def test_readers_can_be_merged() -> None:
    with SSEServer([*(send(n) for n in range(100)), DONE]) as server:
        one, other = tee(request_sse(server.url))
        found = list(merge({"one": one, "other": other}))
        assert [n for name, n in found if name == "one"] == list(range(100))
        assert [n for name, n in found if name == "other"] == list(range(100))


def test_repr_shows_the_number_of_readers() -> None:
    with SSEServer([send(1), silence()]) as server:
        readers = tee(request_sse(server.url))
        assert repr(readers) == "<Tee of <EventStream [200] open> readers=2>"
        readers[0].close()
        assert repr(readers) == "<Tee of <EventStream [200] open> readers=1>"
        readers.close()
        assert repr(readers) == "<Tee of <EventStream [200] closed> readers=0>"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n": 0}, "`n` must be an integer of at least 1, got 0"),
        ({"n": True}, "got True"),
        ({"slow": "drop"}, "`slow` must be .*, got 'drop'"),
        ({"max_buffered_bytes": 0}, "`max_buffered_bytes` must be"),
        ({"max_history_bytes": -1}, "`max_history_bytes` must be"),
    ],
)
def test_wrong_arguments_raise_usage_error(arguments: Any, match: str) -> None:
    with SSEServer([send(1), DONE]) as server:
        events = request_sse(server.url).events
        with pytest.raises(UsageError, match=match):
            tee(events, **arguments)
        assert list(events) == [1]


def test_interrupt_during_tee_aborts_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(broadcaster: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Broadcaster, "start", interrupted)
    with SSEServer([send(1), silence()]) as server:
        events = request_sse(server.url).events
        with pytest.raises(KeyboardInterrupt):
            tee(events)
        assert events.outcome == "closed"
        server.requests[0].wait_aborted()


def test_type_of_the_stream_is_checked() -> None:
    wrong: Callable[..., Any] = tee
    with pytest.raises(UsageError, match=r"`stream` must be what request_sse .*, got list"):
        wrong([1])


@pytest.mark.heavy
def test_remaining_readers_get_every_event_while_others_leave() -> None:
    """Readers are added, read, stall and leave at random: the remaining readers get every event."""
    with SSEServer([*(send(n) for n in range(3_000)), DONE]) as server:
        for _ in range(5):
            readers = tee(request_sse(server.url), 4, max_buffered_bytes=20_000)

            def leaves_early(reader: EventStream[Any], after: int) -> int:
                for item in reader:
                    if item == after:
                        break
                return after

            staying = [in_thread(partial(read, reader)) for reader in readers[:2]]
            leaving = [
                in_thread(partial(leaves_early, reader, 500 * n)) for n, reader in enumerate(readers[2:], start=1)
            ]
            assert [each.result(30) for each in leaving] == [500, 1_000]
            assert [each.result(30) for each in staying] == [list(range(3_000))] * 2


def test_readers_retry_is_up_to_date_with_its_item() -> None:
    body = raw(b"data: 1\n\nretry: 1000\ndata: 2\n\nretry: 2000\n\ndata: 3\n\n")
    with SSEServer([body, DONE]) as server, tee(request_sse(server.url)) as readers:
        for reader in readers:
            assert [(next(reader), reader.retry) for _ in range(3)] == [(1, None), (2, 1.0), (3, 2.0)]
