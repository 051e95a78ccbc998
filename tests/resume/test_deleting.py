"""Deleting streams: readers end as closed, wherever they are, and nothing of the next stream reaches them."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from sseqbridge import EventsLostError, RequestAbortedError, StreamNotFoundError, request_sse
from sseqbridge.resume import Log
from sseqbridge.resume._arguments import Replay
from sseqbridge.resume._entries import START
from sseqbridge.resume._store import OutageError, StaleTokenError
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, send, silence
from tests.support import in_thread, until

from .support import DONE, LogCaller, Logs, claim_token, hub_of, new_store

TEXT = "x" * 300


def subscribers_of(log: Log) -> int:
    """Return how many readers and producers wait for entries of the stream "k"."""
    topic = hub_of(log).topics.get("k")
    return 0 if topic is None else len(topic.subscribers)


def test_delete_ends_all_readers_and_the_upstream(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        readings = [caller.open(log, "k", caller.start(upstream.url)) for _ in range(3)]
        assert [reading.next() for reading in readings] == [1, 1, 1]
        assert caller.delete(log, "k") is True
        for reading in readings:
            assert (reading.items(), reading.outcome) == ([], "closed")
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
        assert caller.delete(log, "k") is False
        assert caller.cancel(log, "k") is False
    until(lambda: hub_of(log).topics == {})


@pytest.mark.slow
@pytest.mark.parametrize("begins_again", [False, True])
@pytest.mark.parametrize("ends_first", [False, True])
def test_delete_ends_readers_that_are_behind(log: Log, caller: LogCaller, begins_again: bool, ends_first: bool) -> None:
    """They get the events that they have read from the store before, and nothing of the next stream."""
    go = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/next":
            return [send("next"), DONE]
        return [*(send(f"{n} {TEXT}") for n in range(2000)), *([DONE] if ends_first else [hold(go), DONE])]

    with SSEServer(script) as upstream:
        start = caller.start(f"{upstream.url}/first", decode="text")
        behind = caller.open(log, "k", start, decode="text", max_buffered_bytes=2000)
        reading = caller.open(log, "k", decode="text")
        assert len([reading.next() for _ in range(2000)]) == 2000
        if ends_first:
            assert reading.items() == []
        assert behind.next().startswith("0 ")
        assert caller.delete(log, "k") is True
        if begins_again:
            again = caller.open(log, "k", caller.start(f"{upstream.url}/next", decode="text"), decode="text")
            assert again.items() == ["next"]
        items = behind.items()
        assert behind.outcome == "closed"
        assert [item.split()[0] for item in items] == [str(n) for n in range(1, len(items) + 1)]
        assert len(items) < 1500
        if not ends_first:
            assert reading.items() == []
        assert reading.outcome == ("done" if ends_first else "closed")
        go.set()


def test_delete_ends_readers_without_an_event(log: Log, caller: LogCaller) -> None:
    asked = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        asked.set()
        return [silence()]

    with SSEServer(script) as upstream:
        opened = in_thread(lambda: log.open("k", lambda: request_sse(upstream.url, timeout=30)))
        assert asked.wait(30)
        waiting = in_thread(lambda: log.open("k", wait=30))
        until(lambda: subscribers_of(log) == 3)
        assert caller.delete(log, "k") is True
        with pytest.raises(RequestAbortedError, match="cancelled before it had begun"):
            opened.result(30)
        stream = waiting.result(30)
        assert (stream.collect(), stream.outcome) == ([], "closed")
        upstream.requests[0].wait_aborted(30)


def test_deleted_stream_is_none_for_later_readers(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        first = caller.open(log, "k", caller.start(upstream.url))
        assert first.items() == [1, 2]
        event_id = first.last_event_id
        assert caller.delete(log, "k") is True
        with pytest.raises(StreamNotFoundError):
            caller.open(log, "k", wait=0)
        with pytest.raises(EventsLostError):
            caller.open(log, "k", last_event_id=event_id)
        replays: list[Replay] = ["all", "kept"]
        waiting = [in_thread(partial(log.open, "k", replay=replay, wait=30)) for replay in replays]
        until(lambda: subscribers_of(log) == 2)
        again = caller.open(log, "k", caller.start(upstream.url), decode="event")
        events = again.items()
        assert [event.data for event in events] == ["1", "2"]
        assert [future.result(30).collect() for future in waiting] == [[1, 2], [1, 2]]
        with pytest.raises(EventsLostError):
            caller.open(log, "k", last_event_id=event_id)
        assert caller.open(log, "k", last_event_id=events[0].id).items() == [2]


def test_readers_of_the_next_stream_start_at_its_beginning(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        for _ in range(3):
            reading = caller.open(log, "k", caller.start(upstream.url), replay="none")
            assert (reading.items(), reading.outcome) == ([1], "done")
            assert caller.delete(log, "k") is True


def test_delete_with_a_lost_answer_returns_true(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    delete = store.delete
    answers: list[bool] = []

    async def lose_the_first(*args: Any) -> bool:
        answers.append(await delete(*args))
        if len(answers) == 1:
            raise OutageError("its answer is lost")
        return answers[-1]

    store.delete = lose_the_first  # type: ignore[attr-defined]
    with SSEServer([send(1), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 1
        assert caller.delete(log, "k") is True
        assert (reading.items(), reading.outcome, answers) == ([], "closed", [True, True])
        assert caller.delete(log, "k") is False


def test_store_keeps_one_entry_of_a_deleted_stream(logs: Logs) -> None:
    async def main() -> None:
        store = new_store(log)
        assert not await store.delete("k", "deleter")
        token = await claim_token(store, "k")
        await store.append(token, 0, [{"begin": "200"}, {"data": "a"}])
        assert await store.delete("k", "deleter")
        assert await store.delete("k", "deleter")
        assert not await store.delete("k", "another")
        assert not await store.cancel("k", "canceller")
        [entry] = await store.read("k", START, 10)
        assert (entry.kind, entry.is_deletion, entry.position.number) == ("cancel", True, 0)
        for call in (store.append(token, 2, [{"data": "b"}]), store.end(token, 2, {"end": "eof"}), store.renew(token)):
            with pytest.raises(StaleTokenError):
                await call
        await store.release(token)
        found = await store.claim("k", "you", may_begin=False, takeover=True)
        assert (found.state, found.last, found.deleted) == ("none", None, entry.position)
        # Neither of the repeated calls finds the entry.
        for _ in range(2):
            begun = await store.claim("k", "you", may_begin=True, takeover=False)
            assert (begun.state, begun.begins, begun.last) == ("elected", True, None)
        assert await store.read("k", START, 10) == []
        assert begun.fence > entry.position.fence
        assert await store.delete("k", "before the first entry")
        await store.aclose()

    log = logs.new()
    asyncio.run(main())


def test_entry_of_a_deleted_stream_expires(logs: Logs) -> None:
    async def main() -> None:
        store = new_store(log)
        token = await claim_token(store, "k")
        await store.append(token, 0, [{"data": "a"}])
        assert await store.delete("k", "deleter")
        while await store.read("k", START, 1):
            await asyncio.sleep(0.01)
        await store.aclose()

    log = logs.new(ttl=0.1)
    asyncio.run(main())
