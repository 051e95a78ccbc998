"""Relays of iterables, which run in a worker thread, and streams that cannot be relayed."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest

from sseqbridge import (
    Comment,
    EventStream,
    RequestAbortedError,
    ServerSentEvent,
    UsageError,
    arequest_sse,
    merge,
    relay,
    request_sse,
    tee,
)
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import (
    SSEServer,
    send,
    silence,
)
from tests.clock import FakeClock
from tests.relay.support import DONE, Reading, Relay, error_of
from tests.support import in_thread, is_waiting, thread_waits, until


def iter_of_nothing() -> Iterator[str]:
    yield from ()


async def agen() -> AsyncIterator[str]:
    return
    yield ""


def exhausted(generator: Any) -> Any:
    async def read() -> None:
        async for _ in generator:
            pass

    if hasattr(generator, "__aiter__"):
        asyncio.run(read())
    else:
        list(generator)
    return generator


def test_items_of_an_iterable_are_sent(relayed: Relay) -> None:
    items = ["a", {"b": 1}, None, ServerSentEvent("tick", "c", "5"), Comment("d"), ["e"]]
    expected = b'data: a\n\ndata: {"b":1}\n\nevent: tick\nid: 5\ndata: c\n\n: d\n\ndata: ["e"]\n\n'
    assert relayed(items).rest() == expected
    assert relayed(iter(items), done="over").rest() == expected + b"data: over\n\n"
    assert relayed([1, 2], map=lambda n: f"<{n}>").rest() == b"data: <1>\n\ndata: <2>\n\n"


def test_heartbeats_are_sent_while_an_iterable_computes(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()

    def work() -> Iterator[Any]:
        go.wait(30)
        yield "made"

    reading = relayed(work(), heartbeat=60)
    assert reading.next() == HEARTBEAT
    assert [clock.advance_until_done(reading.next, step=10) for _ in range(2)] == [HEARTBEAT] * 2
    go.set()
    assert reading.rest() == b"data: made\n\n"


def test_close_ends_an_iterable_in_its_worker_thread(relayed: Relay) -> None:
    closed: list[Any] = []

    def work() -> Iterator[Any]:
        try:
            yield from range(10**9)
        finally:
            closed.append(threading.current_thread())

    reading = relayed(work(), map=str)
    assert reading.next_event().startswith(b"data: 0\n\n")
    reading.close()
    until(lambda: closed)
    assert closed[0] is not threading.current_thread()
    assert reading.rest() == b""


def test_slow_client_holds_an_iterable_back(relayed: Relay) -> None:
    made = []

    workers: list[int] = []

    def work() -> Iterator[str]:
        workers.append(threading.get_ident())
        for n in range(1000):
            made.append(n)
            yield "x" * 1000

    reading = relayed(work())
    assert reading.next_event()
    until(lambda: len(made) > 30)
    until(lambda: thread_waits(workers[0]))
    assert len(made) < 200
    assert reading.rest().count(b"data: ") <= 1000
    assert len(made) == 1000


def test_failure_of_an_iterable_is_reported_after_its_items(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> Iterator[str]:
        yield "one"
        raise LookupError("secret")

    read = relayed(work()).rest()
    assert read.startswith(b"data: one\n\nevent: error\n")
    assert error_of(read) == {"type": "ServerError", "message": "the server failed while it made the stream"}
    assert "LookupError: secret" in caplog.text


def test_failure_of_an_iterable_after_close_is_logged(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    is_closed = threading.Event()

    def work() -> Iterator[str]:
        yield "one"
        is_closed.wait(30)
        raise LookupError("too late")

    reading = relayed(work())
    assert reading.next_event()
    reading.close()
    is_closed.set()
    until(lambda: "LookupError: too late" in caplog.text)


def test_failure_while_an_iterable_is_closed_is_logged(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> Iterator[str]:
        try:
            while True:
                yield "one"
        finally:
            raise LookupError("in the end")

    reading = relayed(work())
    assert reading.next_event()
    reading.close()
    until(lambda: "LookupError: in the end" in caplog.text)


@pytest.mark.parametrize("error", [TimeoutError, StopIteration, StopAsyncIteration, asyncio.CancelledError])
def test_control_flow_exceptions_of_the_application_are_its_errors(relayed: Relay, error: type[BaseException]) -> None:
    def work() -> Iterator[str]:
        yield "one"
        yield from Raising()

    class Raising:
        def __iter__(self) -> Raising:
            return self

        def __next__(self) -> str:
            # Not raised by a generator, which replaces StopIteration by a RuntimeError.
            raise error if error is not StopIteration else TimeoutError

    def fail(item: Any) -> Any:
        raise error

    read = relayed(work()).rest()
    assert read.startswith(b"data: one\n\n")
    assert error_of(read)["type"] == "ServerError"
    with SSEServer([send(1), silence()]) as server:
        if error is not asyncio.CancelledError:
            assert error_of(relayed(request_sse(server.url), map=fail).rest())["type"] == "ServerError"
            server.requests[0].wait_aborted()


def test_iterator_is_closed_after_an_item_cannot_be_sent(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    class Items:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __iter__(self) -> Items:
            return self

        def __next__(self) -> Any:
            return b"cannot be sent"

        def close(self) -> None:
            closed.append(True)
            if self.fails:
                raise LookupError("in close")

    for fails in (False, True):
        assert error_of(relayed(Items(fails)).rest())["type"] == "ServerError"
    assert closed == [True] * 2
    assert "LookupError: in close" in caplog.text


def test_failure_of_close_at_the_end_is_reported(relayed: Relay) -> None:
    class Items:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __iter__(self) -> Items:
            return self

        def __next__(self) -> Any:
            raise StopIteration

        def close(self) -> None:
            raise self.error

    for error in (LookupError(), SystemExit()):
        assert error_of(relayed(Items(error)).rest())["type"] == "ServerError"


def test_system_exit_in_an_iterable_ends_the_relay(relayed: Relay) -> None:
    def work() -> Iterator[str]:
        yield "one"
        raise SystemExit

    assert error_of(relayed(work()).rest())["type"] == "ServerError"


def test_iterable_that_was_not_started_is_closed() -> None:
    closed = []

    class Items:
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the relay was never read")

        def close(self) -> None:
            closed.append(True)

    relay.frames(Items()).close()
    assert closed == [True]


def test_dropped_relay_ends_its_iterable() -> None:
    closed = threading.Event()

    def work() -> Iterator[str]:
        try:
            while True:
                yield "one"
        finally:
            closed.set()

    frames = relay.frames(work())
    while next(frames) == HEARTBEAT:
        pass
    del frames
    gc.collect()
    assert closed.wait(30)


def test_iterable_and_map_run_in_the_views_context(relayed: Relay) -> None:
    user = contextvars.ContextVar[str]("user")

    def view() -> list[Reading]:
        user.set("ann")
        return [
            relayed(user.get() for _ in range(1)),
            relayed(request_sse(server.url), map=lambda item: user.get(), done=False),
        ]

    with SSEServer([send(1), DONE]) as server:
        assert [reading.rest() for reading in contextvars.copy_context().run(view)] == [b"data: ann\n\n"] * 2


def test_close_aborts_the_stream_that_an_iterable_reads(relayed: Relay) -> None:
    ended = threading.Event()

    def items() -> Iterator[Any]:
        # Either closed at its `yield`, or ended by the abort of the stream that it waits for.
        try:
            with request_sse(server.url) as (_, _, events):
                yield from events
        finally:
            ended.set()

    with SSEServer([send({"n": 1}), silence()]) as server:
        reading = relayed(items())
        assert reading.next_event() == b'data: {"n":1}\n\n'
        reading.close()
        server.requests[0].wait_aborted()
        assert ended.wait(30)


def test_stream_of_an_iterable_keeps_its_own_cancel_flag() -> None:
    flag = threading.Event()

    def items() -> Iterator[Any]:
        yield from request_sse(server.url, cancel=flag).events
        yield "over"

    with SSEServer([send({"n": 1}), silence()]) as server:
        frames = relay.frames(items(), heartbeat=None)
        assert next(piece for piece in frames if piece != HEARTBEAT) == b'data: {"n":1}\n\n'
        flag.set()
        assert b"".join(frames).startswith(b"data: over\n\nevent: cancelled\n")
        with pytest.raises(RequestAbortedError):
            list(items())


def test_iterable_is_closed_after_its_iterator(relayed: Relay) -> None:
    closed: list[str] = []

    class Items:
        def __iter__(self) -> Iterator[str]:
            try:
                yield "a"
            finally:
                closed.append("iterator")

        def close(self) -> None:
            closed.append("iterable")

    assert relayed(Items()).rest() == b"data: a\n\n"
    until(lambda: len(closed) == 2)
    assert closed == ["iterator", "iterable"]


@pytest.mark.parametrize("stream", [5, None, "text", b"bytes", {"a": 1}])
def test_object_that_is_not_iterable_raises_usage_error(relayed: Relay, stream: Any) -> None:
    with pytest.raises(UsageError, match=r"`stream` must be .*, got (int|NoneType|str|bytes|dict)"):
        relayed(stream)


def test_asynchronous_stream_needs_an_asynchronous_server() -> None:
    async def items() -> AsyncIterator[str]:
        yield "a"

    async def main() -> None:
        async with await arequest_sse(server.url) as response:
            for stream in (response, response.events, items()):
                with pytest.raises(UsageError, match="asynchronous server"):
                    relay.frames(stream)

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())


def test_stream_that_has_ended_raises_usage_error(relayed: Relay) -> None:
    with SSEServer([send(1), DONE]) as server:
        read = request_sse(server.url)
        assert list(read.events) == [1]
        left = request_sse(server.url)
        for _ in left.events:
            break
        for stream in (read, read.events, left):
            with pytest.raises(UsageError, match="has ended already"):
                relayed(stream)
    for generator in (iter_of_nothing(), agen()):
        with pytest.raises(UsageError, match="has ended already"):
            relay.aframes(exhausted(generator))


def test_stream_with_another_consumer_raises_usage_error(relayed: Relay) -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url)
        reading = in_thread(lambda: list(stream.events))
        until(lambda: stream.events.last_event and is_waiting(reading))
        with pytest.raises(UsageError, match="is being read already"):
            relayed(stream)
        stream.events.close()
        assert reading.result(30) == [1]


def test_stream_is_aborted_if_the_relay_cannot_be_made(relayed: Relay) -> None:
    """The caller passed the ownership of the stream on."""
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url)
        with pytest.raises(UsageError):
            relayed(stream, heartbeat=0)
        server.requests[0].wait_aborted()
        assert stream.events.outcome == "closed"


def opened(server: SSEServer) -> EventStream[Any]:
    return request_sse(server.url).raise_for_status().events


def delegated(events: EventStream[Any]) -> Iterator[Any]:
    with events:
        yield from events


def stepped(events: EventStream[Any]) -> Iterator[Any]:
    while True:
        yield events.next()


SHAPES: dict[str, Callable[[SSEServer], Iterable[Any]]] = {
    "generator": lambda server: (item for item in opened(server)),
    "nested": lambda server: (item for item in (item for item in opened(server))),
    "with": lambda server: delegated(opened(server)),
    "next": lambda server: stepped(opened(server)),
    "map": lambda server: map(dict, opened(server)),
    "iter": lambda server: iter(opened(server)),
    "islice": lambda server: itertools.islice(opened(server), 5),
    "chain": lambda server: itertools.chain([{"n": 0}], opened(server)),
    "keep_open": lambda server: opened(server).keep_open(),
    "merge": lambda server: (item for _, item in merge({"a": opened(server)})),
    "tee": lambda server: (item for item in tee(opened(server), 1)[0]),
    "enumerate": lambda server: ({"n": n} for n, _ in enumerate(opened(server))),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_closing_stops_the_upstream_of_every_shape(shape: str) -> None:
    with SSEServer([send({"n": 1}), silence()]) as server:
        frames = relay.frames(SHAPES[shape](server), heartbeat=None)
        while b"data" not in next(frames):
            pass
        # The iterable waits for its stream's second event.
        frames.close()
        server.wait_for_request().wait_aborted()


def test_iterable_that_retries_after_errors_ends_with_its_reader(caplog: pytest.LogCaptureFixture) -> None:
    opened_streams = 0

    def items() -> Iterator[Any]:
        nonlocal opened_streams
        while True:
            opened_streams += 1
            try:
                yield from request_sse(server.url).events
            except Exception:
                continue

    with SSEServer([send({"n": 1}), silence()]) as server:
        frames = relay.frames(items(), heartbeat=None)
        while b"data" not in next(frames):
            pass
        frames.close()
        server.wait_for_request().wait_aborted()
        until(lambda: not [thread for thread in threading.enumerate() if "worker" in thread.name])
    assert opened_streams == 1
    assert not caplog.records
