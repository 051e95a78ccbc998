"""Logs whose `start` returns an iterable: an agent, or events of the application, instead of an upstream's stream."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    CallbackError,
    Cancelled,
    ProducerLostError,
    ServerSentEvent,
    UsageError,
    arequest_sse,
    cancel_on,
    merge,
    relay,
    request_sse,
)
from sseqbridge.resume import Log, MemoryLog
from sseqbridge.testing import SSEServer, comment, respond, send, silence
from tests.runtime.callers_code import KINDS
from tests.support import in_thread, until

from .support import DONE, LogCaller, Logs, expire_lease_when_killed


def words(*texts: str) -> Iterator[str]:
    yield from texts


async def awords(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0)
        yield text


class Reiterable:
    """Neither an iterator nor a sequence."""

    def __iter__(self) -> Iterator[str]:
        return iter(("one", "two"))


def one_two() -> Iterator[str]:
    return words("one", "two")


def aone_two() -> AsyncIterator[str]:
    return awords("one", "two")


STARTS: dict[str, Callable[[], Any]] = {
    "generator": one_two,
    "list": lambda: ["one", "two"],
    "tuple": lambda: ("one", "two"),
    "iterable": Reiterable,
    "map": lambda: map(str.lower, ["ONE", "TWO"]),
    "asynchronous generator": aone_two,
}


@pytest.mark.parametrize("kind", STARTS)
def test_items_are_written_and_read(log: Log, caller: LogCaller, kind: str) -> None:
    first = caller.open(log, "k", STARTS[kind], decode="text")
    second = caller.open(log, "k", STARTS[kind], decode="text")
    assert first.next() == "one"
    after_one = first.last_event_id
    assert (first.items(), second.items()) == (["two"], ["one", "two"])
    assert (first.outcome, second.outcome) == ("eof", "eof")
    assert caller.open(log, "k", decode="text", last_event_id=after_one).items() == ["two"]


@pytest.mark.parametrize("kind", STARTS)
def test_produce_writes_items_to_their_end(log: Log, caller: LogCaller, kind: str) -> None:
    assert caller.produce(log, "k", STARTS[kind]) == "eof"
    assert caller.produce(log, "k", STARTS[kind]) is None
    assert caller.open(log, "k", decode="text").items() == ["one", "two"]


def test_coroutine_returns_an_iterable(log: Log, caller: LogCaller) -> None:
    async def start() -> Any:
        await asyncio.sleep(0)
        return words("one")

    async def astart() -> Any:
        await asyncio.sleep(0)
        return awords("two")

    assert caller.open(log, "k", start, decode="text").items() == ["one"]
    assert caller.open(log, "other", astart, decode="text").items() == ["two"]


def test_items_are_encoded_as_a_relay_encodes_them(log: Log, caller: LogCaller) -> None:
    items = [
        "two\nlines",
        {"text": "\N{SNOWMAN}"},
        [1, None],
        None,
        ServerSentEvent("step", "3", "not stored", 2.5),
        ServerSentEvent(data="\ud83d"),
        "\ud83d",
        "",
    ]
    reading = caller.open(log, "k", lambda: items, decode="event")
    assert [(event.event, event.data, event.retry) for event in reading.items()] == [
        ("message", "two\nlines", None),
        ("message", '{"text":"\N{SNOWMAN}"}', None),
        ("message", "[1,null]", None),
        ("step", "3", 2.5),
        ("message", "\N{REPLACEMENT CHARACTER}", None),
        ("message", "\N{REPLACEMENT CHARACTER}", None),
        ("message", "", None),
    ]
    relayed = b"".join(relay.frames(items))
    from_log = b"".join(relay.frames(log.open("k", decode="event")))
    assert from_log.count(b"data: ") == relayed.count(b"data: ")
    assert b'data: {"text":"\xe2\x98\x83"}\n' in from_log


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("unfit", [12, b"bytes", {"a": {1}}, float("nan"), ServerSentEvent("two\nlines")])
def test_unfit_item_ends_the_stream(log: Log, caller: LogCaller, unfit: Any, asynchronous: bool) -> None:
    items = ["one", unfit, "three"]
    closed = threading.Event()

    def produced() -> Iterator[Any]:
        try:
            yield from items
        finally:
            closed.set()

    async def aproduced() -> AsyncIterator[Any]:
        for item in produced():
            yield item

    reading = caller.open(log, "k", aproduced if asynchronous else produced, decode="text")
    read, error = reading.fail()
    assert read == ["one"]
    assert isinstance(error, CallbackError)
    assert "an item cannot be written to a log" in str(error)
    caller.run_blocking(closed.wait, 30)
    assert closed.is_set()
    assert isinstance(caller.open(log, "k", decode="text").fail()[1], CallbackError)


@pytest.mark.parametrize("result", [None, 12, "text", b"bytes", {"a": 1}, object()], ids=lambda value: repr(value)[:9])
def test_other_results_are_refused(log: Log, caller: LogCaller, result: Any) -> None:
    with pytest.raises(UsageError, match="must return a response of request_sse, a stream, or an iterable"):
        caller.open(log, "k", lambda: result)
    with pytest.raises(UsageError, match=f"got {type(result).__name__}"):
        caller.produce(log, "other", lambda: result)
    assert caller.open(log, "k", one_two, decode="text").items() == ["one", "two"]


def test_generator_that_has_ended_is_refused(log: Log, caller: LogCaller) -> None:
    read = one_two()
    assert list(read) == ["one", "two"]
    aread = aone_two()
    asyncio.run(aread.aclose())  # type: ignore[attr-defined]
    for ended in (read, aread):
        with pytest.raises(UsageError, match="must be unread, got a generator that has ended already"):
            caller.open(log, "k", lambda ended=ended: ended)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_exception_of_an_iterable_ends_the_stream(
    log: Log, caller: LogCaller, kind: type[BaseException], asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> Iterator[str]:
        yield "one"
        raise kind

    async def afailing() -> AsyncIterator[str]:
        yield "one"
        raise kind

    start: Any = afailing if asynchronous else failing
    reading = caller.open(log, "k", start, decode="text")
    items, error = reading.fail()
    assert items == ["one"]
    assert type(error) is CallbackError
    assert str(error).startswith("the stream of `start` raised ")
    # Nobody else gets the traceback.
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "failing" in str(record.exc_text or logging.Formatter().formatException(record.exc_info))
    with pytest.raises(CallbackError) as caught:
        caller.produce(log, "other", start)
    assert isinstance(caught.value.__cause__, (kind, RuntimeError))
    assert isinstance(caller.open(log, "other", decode="text").fail()[1], CallbackError)
    # Nothing else was harmed.
    assert caller.open(log, "healthy", STARTS["generator"], decode="text").items() == ["one", "two"]


class Agent:
    """Reads an upstream that is silent after its first event, and records how it ended."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reads_on = threading.Event()
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def __call__(self) -> Iterator[Any]:
        try:
            yield {"asks": True}
            for item in request_sse(self.url).events:
                yield item
                self.reads_on.set()
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            self.ended.set()

    async def aio(self) -> AsyncIterator[Any]:
        try:
            yield {"asks": True}
            async with await arequest_sse(self.url) as response:
                async for item in response.events:
                    yield item
                    self.reads_on.set()
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            self.ended.set()

    def start(self, asynchronous: bool) -> Any:
        return self.aio if asynchronous else self


both_agents = pytest.mark.parametrize("asynchronous", [False, True])


@both_agents
def test_cancel_ends_an_agent_that_waits(log: Log, caller: LogCaller, asynchronous: bool) -> None:
    with SSEServer([send({"n": 1}), silence()]) as upstream:
        agent = Agent(upstream.url)
        readings = [caller.open(log, "k", agent.start(asynchronous)) for _ in range(2)]
        assert [[reading.next(), reading.next()] for reading in readings] == [[{"asks": True}, {"n": 1}]] * 2
        # Else it would be closed at its yield.
        caller.run_blocking(agent.reads_on.wait, 30)
        assert caller.cancel(log, "k") is True
        for reading in readings:
            assert (reading.items(), reading.outcome) == ([], "closed")
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
        caller.run_blocking(agent.ended.wait, 30)
        expected: Any = (asyncio.CancelledError, GeneratorExit) if asynchronous else Cancelled
        assert isinstance(agent.error, expected)
        assert caller.cancel(log, "k") is False


def test_cancelled_agent_without_waits_is_closed_at_its_next_yield(log: Log, caller: LogCaller) -> None:
    closed, go = threading.Event(), threading.Event()

    def numbers() -> Iterator[str]:
        try:
            yield "one"
            go.wait(30)
            yield "two"
        finally:
            closed.set()

    reading = caller.open(log, "k", numbers, decode="text")
    assert reading.next() == "one"
    assert caller.cancel(log, "k") is True
    assert (reading.items(), reading.outcome) == ([], "closed")
    assert not closed.is_set()
    go.set()
    caller.run_blocking(closed.wait, 30)
    assert closed.is_set()


@both_agents
def test_closing_the_log_ends_an_agent(log: Log, caller: LogCaller, asynchronous: bool) -> None:
    with SSEServer([send({"n": 1}), silence()]) as upstream:
        agent = Agent(upstream.url)
        reading = caller.open(log, "k", agent.start(asynchronous))
        assert [reading.next(), reading.next()] == [{"asks": True}, {"n": 1}]
        caller.run_blocking(log.close)
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
        caller.run_blocking(agent.ended.wait, 30)
        assert agent.ended.is_set()


@pytest.mark.slow
@both_agents
def test_agent_without_readers_is_abandoned(logs: Logs, caller: LogCaller, asynchronous: bool) -> None:
    log = logs.new(abandon_after=0.1)
    with SSEServer([send({"n": 1}), silence()]) as upstream:
        agent = Agent(upstream.url)
        reading = caller.open(log, "k", agent.start(asynchronous))
        assert reading.next() == {"asks": True}
        reading.close()
        caller.run_blocking(agent.ended.wait, 30)
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)


@both_agents
def test_scope_around_open_does_not_end_the_agent(log: Log, caller: LogCaller, asynchronous: bool) -> None:
    flag, go = threading.Event(), threading.Event()

    def numbers() -> Iterator[str]:
        yield "one"
        go.wait(30)
        yield from request_sse(url, decode="text").events

    async def anumbers() -> AsyncIterator[str]:
        yield "one"
        while not go.is_set():
            await asyncio.sleep(0.001)
        async with await arequest_sse(url, decode="text") as response:
            async for item in response.events:
                yield item

    # No connection stays open on the loop of iterate().
    with SSEServer([respond(framing="close"), send("two"), DONE]) as upstream:
        url = upstream.url
        with cancel_on(flag):
            reading = caller.open(log, "k", anumbers if asynchronous else numbers, decode="text")
            assert reading.next() == "one"
        flag.set()
        go.set()
        reading = caller.open(log, "k", decode="text")
        assert reading.items() == ["one", "two"]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@both_agents
def test_iterable_runs_in_the_context_of_start(log: Log, caller: LogCaller, asynchronous: bool) -> None:
    def numbers() -> Iterator[str]:
        yield variable.get()

    async def anumbers() -> AsyncIterator[str]:
        yield variable.get()

    def start() -> Any:
        variable.set(f"{variable.get()}, then by start")
        return anumbers() if asynchronous else numbers()

    token = variable.set("by the caller")
    try:
        reading = caller.open(log, "k", start, decode="text")
    finally:
        variable.reset(token)
    assert reading.items() == ["by the caller, then by start"]
    assert variable.get() == "unset"


@pytest.mark.slow
def test_unavailable_store_holds_an_iterable_back(logs: Logs) -> None:
    log, store = logs.killable()
    count = 0
    closed = threading.Event()

    def endless() -> Iterator[str]:
        nonlocal count
        try:
            while True:
                count += 1
                yield "x" * 1000
        finally:
            closed.set()

    reading = log.open("k", endless, decode="text", max_buffered_bytes=10_000)
    store.is_out = True
    until(lambda: count > 10)

    def rests() -> bool:
        before = count
        # Far longer than the generator takes for one item.
        return not closed.wait(0.2) and count == before

    until(rests)
    store.is_out = False
    rested = count
    for item in reading.keep_open():
        assert item == "x" * 1000
        if count > rested:
            break
    reading.close()
    assert log.cancel("k")
    assert closed.wait(30)


@both_agents
def test_lost_producer_is_taken_over_by_a_new_iterable(logs: Logs, caller: LogCaller, asynchronous: bool) -> None:
    log, store = logs.killable()
    store.kill_at = "append", 1, False
    calls: list[None] = []

    def start() -> Any:
        calls.append(None)
        return awords("one", "two") if asynchronous else words("one", "two")

    opened = in_thread(lambda: log.open("k", start, decode="text"))
    expire_lease_when_killed(logs, store)
    reading = caller.open(log, "k", start, decode="text", takeover=True)
    items = reading.items()
    assert items[-2:] == ["one", "two"]
    assert reading.outcome == "eof"
    assert len(calls) == 2
    opened.result(30).close()
    store.revive()


def test_end_of_the_callers_loop_ends_an_asynchronous_agent(logs: Logs) -> None:
    """Another process may take it over, as after the death of this one."""
    log = logs.new()
    with SSEServer([send({"n": 1}), silence()]) as upstream:
        agent = Agent(upstream.url)

        async def begin() -> Any:
            async with await log.aopen("k", agent.aio) as reading:
                return [await reading.next(), await reading.next()]

        assert asyncio.run(begin()) == [{"asks": True}, {"n": 1}]
        assert agent.ended.wait(30)
        upstream.requests[0].wait_aborted(30)
        with pytest.raises(ProducerLostError):
            log.open("k").collect()


def test_agent_reads_another_stream_of_the_log(log: Log, caller: LogCaller) -> None:
    def outer() -> Iterator[str]:
        yield "begin"
        yield from log.open("inner", one_two, decode="text")
        yield "end"

    assert caller.open(log, "outer", outer, decode="text").items() == ["begin", "one", "two", "end"]
    assert caller.open(log, "inner", decode="text").items() == ["one", "two"]


def test_merged_streams_are_an_iterable(log: Log, caller: LogCaller) -> None:
    with SSEServer([send("one"), comment("heartbeat"), DONE]) as upstream:

        def start() -> Iterator[dict[str, Any]]:
            with merge({name: request_sse(upstream.url, decode="text").events for name in "ab"}) as merged:
                for name, item in merged:
                    yield {name: item}

        items = caller.open(log, "k", start).items()
    assert sorted(map(json.dumps, items)) == ['{"a": "one"}', '{"b": "one"}']


def test_closing_the_bridge_of_a_log_ends_an_agent() -> None:
    with SSEServer([send({"n": 1}), silence()]) as upstream, Bridge() as bridge, MemoryLog(bridge=bridge) as log:
        agent = Agent(upstream.url)
        reading = log.open("k", agent)
        assert [next(reading), next(reading)] == [{"asks": True}, {"n": 1}]
        bridge.close()
        with pytest.raises(BridgeClosedError):
            next(reading)
        upstream.requests[0].wait_aborted(30)
        assert agent.ended.wait(30)
        # The agent reads its upstream, or has not gone on after its last item.
        assert isinstance(agent.error, (Cancelled, GeneratorExit))
