"""An iterable over a stream that this application has ended is cancelled for the client, as the stream itself is."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from sseqbridge import amerge, arequest_sse, cancel_on, iterate, merge, relay, request_sse, tee
from sseqbridge.relay import RelayEnd
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send, silence
from tests.relay.support import Relay

CANCELLED = b'event: cancelled\ndata: {"type":"error","message":"the answer was cancelled"'


def looped(events: Any) -> Iterator[Any]:
    yield from events


def opened_inside(events: Any) -> Iterator[Any]:
    with events:
        for item in events:  # noqa: UP028
            yield item


def by_next(events: Any) -> Iterator[Any]:
    while True:
        try:
            yield next(events)
        except StopIteration:
            return


def by_poll(events: Any) -> Iterator[Any]:
    while events.outcome is None:
        yield from events.poll()
    events.poll()


def over_a_tee(events: Any) -> Iterator[Any]:
    with tee(events, 1) as (reader,):
        yield from reader


def in_a_copied_context(events: Any) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as pool:
        while (item := pool.submit(contextvars.copy_context().run, lambda: next(events, None)).result()) is not None:
            yield item


SHAPES: dict[str, Callable[[Any], Any]] = {
    "generator": looped,
    "with": opened_inside,
    "next": by_next,
    "poll": by_poll,
    "generator in a generator": lambda events: looped(looped(events)),
    "generator expression": lambda events: (item for item in events),
    "map": lambda events: map(dict, events),
    "iter": iter,
    "keep_open": lambda events: events.keep_open(),
    "chain": lambda events: itertools.chain([{"n": 0}], events),
    "islice": lambda events: itertools.islice(events, 100),
    "merge": lambda events: (item for _, item in merge({"a": events})),
    "tee": over_a_tee,
    "a pool of threads in the context": in_a_copied_context,
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return SHAPES[request.param]


def assert_cancelled(reading: Any, ends: list[RelayEnd]) -> None:
    assert CANCELLED in reading.rest()
    assert ends == [RelayEnd("cancelled", None, "")]


@pytest.mark.parametrize("how", ["flag", "close"])
def test_iterable_over_a_stream_that_is_ended_here_is_cancelled(
    relayed: Relay, shape: Callable[[Any], Any], how: str
) -> None:
    ends: list[RelayEnd] = []
    flag = threading.Event()
    with SSEServer([send({"n": 1}), silence()]) as server:
        events = request_sse(server.url, cancel=flag).events
        reading = relayed(shape(events), on_end=ends.append)
        while b'{"n":1}' not in reading.next_event():
            pass
        # The tee owns the stream.
        flag.set() if how == "flag" or shape is over_a_tee else events.close()
        assert_cancelled(reading, ends)


def test_iterable_over_a_cancelled_log_is_cancelled(relayed: Relay) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), silence()]) as server, MemoryLog() as log:
        stream = log.open("a", lambda: request_sse(server.url))
        reading = relayed((item for item in stream), on_end=ends.append)
        while b'{"n":1}' not in reading.next_event():
            pass
        log.cancel("a")
        assert CANCELLED in reading.rest()
    assert [end.outcome for end in ends] == ["cancelled"]


def test_log_of_an_iterable_whose_stream_is_ended_is_cancelled(relayed: Relay) -> None:
    flag = threading.Event()
    with SSEServer([send({"n": 1}), silence()]) as server, MemoryLog() as log:
        stream = log.open("a", lambda: looped(request_sse(server.url, cancel=flag).events))
        reading = relayed(stream)
        while b'{"n":1}' not in reading.next_event():
            pass
        flag.set()
        assert CANCELLED in reading.rest()


def test_iterable_whose_own_scope_is_cancelled_is_cancelled(relayed: Relay) -> None:
    ends: list[RelayEnd] = []
    stop = threading.Event()

    def items() -> Iterator[Any]:
        with cancel_on(stop):
            yield from request_sse(server.url).events

    with SSEServer([send({"n": 1}), silence()]) as server:
        reading = relayed(items(), on_end=ends.append)
        while b'{"n":1}' not in reading.next_event():
            pass
        stop.set()
        assert_cancelled(reading, ends)


def test_merged_streams_that_are_closed_are_cancelled(relayed: Relay) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), silence()]) as server:
        merged = merge([request_sse(server.url), request_sse(server.url)])
        reading = relayed((item for _, item in merged), on_end=ends.append)
        while b'{"n":1}' not in reading.next_event():
            pass
        merged.close()
        assert_cancelled(reading, ends)


# The iterable decides by itself.


def test_iterable_that_leaves_its_loop_has_ended(relayed: Relay) -> None:
    def items() -> Iterator[Any]:
        with request_sse(server.url).events as events:
            for item in events:
                yield item
                break

    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), silence()]) as server:
        assert relayed(items(), on_end=ends.append).rest() == b'data: {"n":1}\n\n'
        assert relayed(itertools.islice(request_sse(server.url).events, 1), on_end=ends.append).rest()
    assert [end.outcome for end in ends] == ["eof", "eof"]


def test_iterable_that_goes_on_with_another_stream_has_ended(relayed: Relay) -> None:
    """The slower of two streams is closed; the other one is read to its end."""

    def items() -> Iterator[Any]:
        first, second = request_sse(server.url).events, request_sse(server.url).events
        yield next(first)
        first.close()
        assert list(first) == []
        yield from second

    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
        assert b"cancelled" not in relayed(items(), on_end=ends.append).rest()
    assert [end.outcome for end in ends] == ["eof"]


@pytest.mark.parametrize("ends_by", ["exit", "close and break"])
def test_iterable_that_takes_the_first_of_merged_streams_is_complete(relayed: Relay, ends_by: str) -> None:
    ends: list[RelayEnd] = []
    taken: list[Any] = []

    def first() -> Iterator[Any]:
        calls = {name: partial(request_sse, server.url) for name in "ab"}
        with merge(calls) as merged:
            for _, item in merged:
                taken.append(item)
                if ends_by != "exit":
                    merged.close()
                break
        yield from taken

    with SSEServer([send({"n": 1}), silence()]) as server:
        assert b"cancelled" not in relayed(first(), on_end=ends.append).rest()
    assert [end.outcome for end in ends] == ["eof"]


# Asynchronous iterables.


async def alooped(events: Any) -> AsyncIterator[Any]:
    async for item in events:
        yield item


async def amerged(events: Any) -> AsyncIterator[Any]:
    async for _, item in amerge({"a": events}):
        yield item


async def anexts(events: Any) -> AsyncIterator[Any]:
    while (item := await anext(events, None)) is not None:
        yield item


@pytest.mark.parametrize("how", ["flag", "close"])
@pytest.mark.parametrize(
    "shape",
    [alooped, amerged, anexts, lambda events: alooped(alooped(events)), lambda events: (item async for item in events)],
)
def test_asynchronous_iterable_over_a_stream_that_is_ended_is_cancelled(shape: Any, how: str) -> None:
    ends: list[RelayEnd] = []

    async def main() -> None:
        flag = threading.Event()
        events = (await arequest_sse(server.url, cancel=flag)).events
        frames = relay.aframes(shape(events), on_end=ends.append)
        while b'{"n":1}' not in await anext(frames):
            pass
        flag.set() if how == "flag" else await events.aclose()
        assert CANCELLED in b"".join([frame async for frame in frames])

    with SSEServer([send({"n": 1}), silence()]) as server:
        asyncio.run(main())
    assert ends == [RelayEnd("cancelled", None, "")]


def test_iterate_over_a_stream_that_is_ended_is_cancelled(relayed: Relay) -> None:
    flag = threading.Event()
    ends: list[RelayEnd] = []

    async def items() -> AsyncIterator[Any]:
        async for item in (await arequest_sse(server.url, cancel=flag)).events:
            yield item

    with SSEServer([send({"n": 1}), silence()]) as server:
        stream = iterate(items)
        reading = relayed(stream, on_end=ends.append)
        while b'{"n":1}' not in reading.next_event():
            pass
        flag.set()
        assert_cancelled(reading, ends)
        assert stream.outcome == "closed"


def test_iterate_that_goes_on_with_another_stream_is_complete() -> None:
    """Also without a scope around it."""
    flag = threading.Event()

    async def items() -> AsyncIterator[Any]:
        async for item in (await arequest_sse(f"{server.url}/first", cancel=flag)).events:
            yield item
            flag.set()
        async for item in (await arequest_sse(f"{server.url}/second")).events:
            yield item

    def script(request: ReceivedRequest) -> list[Step]:
        return [send({"n": 1}), silence()] if request.path == "/first" else [send({"n": 2}), send("[DONE]")]

    with SSEServer(script) as server:
        stream = iterate(items)
        assert stream.collect() == [{"n": 1}, {"n": 2}]
        assert stream.outcome == "eof"
