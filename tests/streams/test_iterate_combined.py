"""Streams of iterate in merge, gather, tee, relays and logs."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from flask import Flask

from sseqbridge import (
    Bridge,
    CallbackError,
    Comment,
    EventsLostError,
    ServerSentEvent,
    SSEError,
    UsageError,
    gather,
    iterate,
    merge,
    relay,
    request_sse,
    tee,
)
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.relay.flask import stream_response
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, send
from tests.support import in_thread

pytestmark = pytest.mark.configurations("default", "plain")


async def numbers(count: int) -> AsyncIterator[int]:
    for n in range(count):
        await asyncio.sleep(0)
        yield n


class Endless:
    """Generators that never end, and record that they were closed."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.closed = threading.Event()

    async def items(self) -> AsyncIterator[int]:
        self.started.set()
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            self.closed.set()


class OwnError(Exception):
    """Cannot be copied: copy.copy() calls the class with `args`."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("of its own")


async def failing() -> AsyncIterator[int]:
    yield 1
    raise OwnError(1, 2)


# --- merge and gather ---


def test_merge_takes_them_beside_event_streams() -> None:
    with SSEServer([send(1), send(2), send("[DONE]")]) as server:
        streams = {"http": request_sse(server.url), "async": iterate(numbers(3)), "lazy": partial(iterate, numbers(1))}
        items = sorted(merge(streams))
    assert items == [("async", 0), ("async", 1), ("async", 2), ("http", 1), ("http", 2), ("lazy", 0)]


def test_leaving_a_merge_closes_all() -> None:
    one, other = Endless(), Endless()
    merged = merge([iterate(one.items()), partial(iterate, other.items)])
    assert one.started.wait(30)
    assert other.started.wait(30)
    for _ in merged:
        break
    assert one.closed.wait(30)
    assert other.closed.wait(30)


def test_dropped_merge_closes_what_it_opened() -> None:
    source = Endless()
    merged = merge([partial(iterate, source.items)])
    assert source.started.wait(30)
    with pytest.warns(ResourceWarning, match="requests under way"):
        del merged
    gc.collect()
    assert source.closed.wait(30)


def test_merge_yields_errors_as_items() -> None:
    merged = dict(merge({"a": iterate(failing()), "b": iterate(numbers(1))}, errors="yield"))
    assert isinstance(merged["a"], OwnError)
    assert merged["b"] == 0
    with pytest.raises(OwnError) as caught:
        list(merge({"a": iterate(failing())}))
    assert caught.value.stream_name == "a"  # type: ignore[attr-defined]


def test_gather_opens_a_few_at_a_time() -> None:
    running = most = 0

    async def counted(number: int) -> AsyncIterator[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        yield number

    calls = [partial(iterate, partial(counted, n)) for n in range(20)]
    assert list(gather(calls, limit=3)) == [(n, [n]) for n in range(20)]
    assert most <= 3


def test_gather_takes_partials_of_a_bridge() -> None:
    with Bridge() as bridge:
        assert list(gather({"a": partial(bridge.iterate, numbers(2))})) == [("a", [0, 1])]


def test_partial_of_a_function_that_returns_no_stream_is_refused() -> None:
    with pytest.raises(UsageError, match="what request_sse or iterate returns"):
        list(merge([partial(len, "x")]))


# --- tee ---


def test_tee_delivers_all_items_to_each_reader() -> None:
    readers = tee(iterate(numbers(100)), 3)
    late = readers.add(replay=True)
    reading = [in_thread(reader.collect) for reader in (*readers, late)]
    assert [each.result(30) for each in reading] == [list(range(100))] * 4
    assert repr(readers) == "<PlainTee of <Stream iterate(numbers) eof> readers=4>"


def test_tee_raises_the_error_in_each_reader() -> None:
    readers = tee(iterate(failing()))
    for reader in readers:
        assert next(reader) == 1
        with pytest.raises(OwnError, match="of its own"):
            next(reader)


def test_tee_bounds_text_by_its_length() -> None:
    async def texts() -> AsyncIterator[str]:
        for _ in range(100):
            yield "x" * 1000

    fast, slow = tee(iterate(texts()), slow="end", max_buffered_bytes=10_000)
    assert len(fast.collect()) == 100
    items: list[str] = []
    with pytest.raises(EventsLostError):
        items.extend(slow)
    assert len(items) < 10


def test_source_is_closed_when_the_last_reader_leaves() -> None:
    source = Endless()
    one, other = tee(iterate(source.items()))
    assert (next(one), next(other)) == (0, 0)
    one.close()
    assert not source.closed.is_set()
    other.close()
    assert source.closed.wait(30)


# --- Relays ---


def frames_of(source: Any, **options: Any) -> str:
    # Without the heartbeat with which each relay may begin.
    return b"".join(relay.frames(iterate(source), heartbeat=None, probe=None, **options)).decode().removeprefix(":\n")


async def mixed() -> AsyncIterator[Any]:
    yield "text"
    yield {"a": 1}
    yield None
    yield Comment("note")
    yield ServerSentEvent("kind", "data", "7")


def test_relay_sends_items_like_those_of_an_iterable() -> None:
    expected = 'data: text\n\ndata: {"a":1}\n\n: note\n\nevent: kind\nid: 7\ndata: data\n\n'
    assert frames_of(mixed()) == expected
    assert frames_of(mixed(), done="[DONE]") == expected + "data: [DONE]\n\n"
    mapped = frames_of(numbers(2), map=lambda item: {"n": item})
    assert mapped == 'data: {"n":0}\n\ndata: {"n":1}\n\n'


@pytest.mark.parametrize("error", [OwnError(1, 2), TimeoutError(), SystemExit(1)])
def test_relay_reports_an_error_of_the_source(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "1"
        raise error

    text = frames_of(fails())
    assert text.startswith("data: 1\n\n")
    assert '{"type":"ServerError","message":"the server failed while it made the stream"}' in text
    assert "the application's code failed in a relay" in caplog.text


def test_relay_refuses_other_items(caplog: pytest.LogCaptureFixture) -> None:
    assert "ServerError" in frames_of(numbers(1))
    assert "must be a str, a dict or list" in caplog.text


def test_leaving_client_closes_the_source() -> None:
    source = Endless()

    async def texts() -> AsyncIterator[str]:
        async for item in source.items():
            yield str(item)

    app = Flask("test")
    with app.test_request_context():
        response = stream_response(iterate(texts()), heartbeat=None)
        pieces = iter(response.response)
        # A heartbeat comes first, unless the first item was faster.
        assert b"data: 0\n\n" in next(piece for piece in pieces if piece != HEARTBEAT)
        response.close()
    assert source.closed.wait(30)


def test_asynchronous_server_relays_them() -> None:
    async def read() -> bytes:
        return b"".join([piece async for piece in relay.aframes(stream, heartbeat=None)])

    async def fail() -> bytes:
        return b"".join([piece async for piece in relay.aframes(failed, heartbeat=None, map=str)])

    stream, failed = iterate(mixed()), iterate(failing())
    assert b'data: text\n\ndata: {"a":1}\n\n' in asyncio.run(read())
    assert b"ServerError" in asyncio.run(fail())


# --- Logs ---


def test_log_writes_and_replays_items() -> None:
    with MemoryLog() as log:
        assert log.produce("key", lambda: iterate(mixed())) == "eof"
        events = log.open("key", decode="event").collect()
        assert [(event.event, event.data) for event in events] == [
            ("message", "text"),
            ("message", '{"a":1}'),
            ("kind", "data"),
        ]
        assert json.loads(log.open("key", decode="text").collect()[1]) == {"a": 1}


def test_log_readers_get_an_error_of_the_source(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "1"
        raise OwnError(1, 2)

    with MemoryLog() as log:
        reader = log.open("key", lambda: iterate(fails()), decode="text")
        assert next(reader) == "1"
        with pytest.raises(CallbackError, match="raised OwnError"):
            next(reader)
        late = log.open("key", decode="text")
        assert next(late) == "1"
        with pytest.raises(SSEError, match="raised OwnError"):
            next(late)


@pytest.mark.parametrize("item", [7, {"a": {1}}, {"a": float("nan")}])
def test_log_refuses_items_that_are_no_events(item: Any) -> None:
    async def others() -> AsyncIterator[Any]:
        yield "1"
        yield item

    with MemoryLog() as log:
        reader = log.open("key", lambda: iterate(others()), decode="text")
        with pytest.raises(CallbackError, match="an item cannot be written to a log"):
            reader.collect()


def test_cancelled_log_closes_the_source() -> None:
    source = Endless()

    async def texts() -> AsyncIterator[str]:
        async for item in source.items():
            yield str(item)

    with MemoryLog() as log:
        reader = log.open("key", lambda: iterate(texts()), decode="text")
        assert next(reader) == "0"
        log.cancel("key")
        assert source.closed.wait(30)
        assert list(reader) == []


def test_exit_of_the_source_ends_no_loop(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "1"
        raise SystemExit(1)

    with MemoryLog() as log, caplog.at_level(logging.WARNING):
        reader = log.open("key", lambda: iterate(fails()), decode="text")
        with pytest.raises(CallbackError, match="raised SystemExit"):
            reader.collect()
        assert log.open("other", lambda: iterate(mixed()), decode="text").collect()
