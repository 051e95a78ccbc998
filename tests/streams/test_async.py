"""arequest_sse has the meaning of request_sse, on the caller's own event loop.

Each test of test_async*.py runs on asyncio's own loop and on uvloop, in debug mode; the fixture `run` checks at the
end what the loop logged and left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

import sseqbridge
from sseqbridge import (
    AsyncEventStream,
    AsyncSSEResponse,
    Comment,
    ServerSentEvent,
    TruncatedStreamError,
    UsageError,
    arequest_sse,
    request_sse,
)
from sseqbridge.testing import (
    SSEServer,
    comment,
    cut,
    hold,
    raw,
    send,
    silence,
)
from tests.streams.async_support import Run, numbers, until

pytestmark = pytest.mark.slow


def test_both_functions_take_the_same_arguments() -> None:
    *of_sync, (last_of_sync, _) = inspect.signature(request_sse).parameters.items()
    *of_async, (last_of_async, _) = inspect.signature(arequest_sse).parameters.items()
    assert of_sync == of_async
    assert (last_of_sync, last_of_async) == ("bridge", "client")


def test_no_object_is_both_iterable_and_async_iterable() -> None:
    """Frameworks choose by these methods, some by the one and some by the other: see test_bodies.py."""
    for kind in (sseqbridge.EventStream, AsyncEventStream, sseqbridge.SSEResponse, AsyncSSEResponse):
        assert not (hasattr(kind, "__iter__") and hasattr(kind, "__aiter__")), kind
    assert hasattr(AsyncEventStream, "__aiter__")
    assert hasattr(AsyncSSEResponse, "__iter__"), "a tuple, so that it can be unpacked"


def test_the_call_returns_status_headers_and_items(run: Run) -> None:
    async def main() -> None:
        with SSEServer([*numbers(3), send("[DONE]")]) as server:
            response = await arequest_sse(server.url, {"X-Mine": "yes"}, {"stream": True})
            status, headers, items = response
            assert (status, response.status, items.status) == (200, 200, 200)
            assert headers["content-type"] == response.headers["Content-Type"] == "text/event-stream"
            assert response.events is items
            assert isinstance(response, tuple)
            assert [item async for item in items] == [{"n": 0}, {"n": 1}, {"n": 2}]
            assert (items.outcome, items.http_version, items.stats.events) == ("done", "HTTP/1.1", 3)
            request = server.requests[0]
            assert (request.method, request.json(), request.headers["x-mine"]) == ("POST", {"stream": True}, "yes")
            assert [item async for item in items] == []
            assert repr(response) == "<AsyncSSEResponse <AsyncEventStream [200] done>>"

    run(main)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [{"a": 1}, 2]),
        ({"decode": "text"}, ['{"a": 1}', "2"]),
        ({"decode": "event"}, [ServerSentEvent("m", '{"a": 1}', "7"), ServerSentEvent("message", "2", "7")]),
        (
            {"decode": "event", "comments": True},
            [ServerSentEvent("m", '{"a": 1}', "7"), Comment("ping"), ServerSentEvent("message", "2", "7")],
        ),
        ({"decode": lambda event: event.event}, ["m", "message"]),
        ({"done": lambda event: event.event == "m"}, [{"a": 1}]),
        ({"done": None, "decode": "text"}, ['{"a": 1}', "2", "[DONE]"]),
    ],
)
def test_items_are_decoded_as_requested(run: Run, options: dict[str, Any], expected: list[Any]) -> None:
    async def main() -> None:
        with SSEServer([send({"a": 1}, event="m", id="7"), comment("ping"), send("2"), send("[DONE]")]) as server:
            async with await arequest_sse(server.url, **options) as (_, _, items):
                assert [item async for item in items] == expected
                assert items.last_event_id == "7"
                assert items.last_event is not None

    run(main)


def test_fifty_streams_run_side_by_side(run: Run) -> None:
    all_are_open = threading.Event()

    async def read(url: str) -> list[Any]:
        _, _, items = await arequest_sse(url)
        return [item async for item in items]

    async def main() -> None:
        with SSEServer([send(1), hold(all_are_open), send(2), send("[DONE]")]) as server:
            readers = [asyncio.create_task(read(server.url)) for _ in range(50)]
            await until(lambda: server.open_requests == 50)
            all_are_open.set()
            assert await asyncio.gather(*readers) == [[1, 2]] * 50

    run(main)


def test_blocked_loop_at_the_end_loses_no_item(run: Run) -> None:
    """uvloop runs due timers before callbacks that were posted earlier, asyncio after them."""

    async def body() -> AsyncIterator[bytes]:
        yield b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
        time.sleep(0.05)  # Other code of the program blocks the loop.
        await asyncio.sleep(60)

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=body())

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            _, _, items = await arequest_sse("http://127.0.0.1/", client=client)
            assert [item async for item in items] == [1, 2]

    run(main)


@pytest.mark.usefixtures("patient_end")
def test_a_hundred_requests_open_one_connection(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            for _ in range(100):
                _, _, items = await arequest_sse(server.url, None, {})
                assert [item async for item in items] == [1]
            assert server.connections == 1

    run(main)


def test_callbacks_run_in_the_callers_context(run: Run) -> None:
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace")
    seen: list[str] = []

    async def note(request: httpx.Request) -> None:
        seen.append(trace.get())

    async def main() -> None:
        trace.set("caller")
        with SSEServer([send(1)]) as server:
            async with httpx.AsyncClient(event_hooks={"request": [note]}) as client:
                _, _, items = await arequest_sse(server.url, client=client, decode=lambda event: trace.set("decode"))
                assert await items.next(timeout=30) is not None
                assert trace.get() == "decode", "callbacks run in the consumer's own context"
                await items.aclose()

    run(main)
    assert seen == ["caller"]


def test_next_times_out_and_the_stream_stays_open(run: Run) -> None:
    async def main() -> None:
        go_on = threading.Event()
        with SSEServer([send(1), hold(go_on), send(2), send("[DONE]")]) as server:
            _, _, items = await arequest_sse(server.url)
            assert await items.next(timeout=30) == 1
            for _ in range(3):
                with pytest.raises(TimeoutError, match="still open"):
                    await items.next(timeout=0.01)
            with pytest.raises(TimeoutError):
                await items.next(timeout=0)
            assert items.outcome is None
            go_on.set()
            assert await items.next(timeout=30) == 2
            with pytest.raises(StopAsyncIteration):
                await items.next(timeout=30)
            assert items.outcome == "done"

    run(main)


def test_next_takes_arrived_items_without_waiting(run: Run) -> None:
    async def main() -> None:
        with SSEServer([raw(b"data: 1\n\ndata: 2\n\ndata: 3\n\n"), silence()]) as server:
            async with await arequest_sse(server.url) as (_, _, items):
                assert await items.next() == 1
                assert await items.next(timeout=0) == 2
                assert await items.next(timeout=0) == 3

    run(main)


@pytest.mark.heavy
@pytest.mark.parametrize("take", [lambda items: items.next(), lambda items: items.next(timeout=5), anext])
def test_a_cancelled_wait_loses_no_item(run: Run, take: Callable[[AsyncEventStream[Any]], Awaitable[Any]]) -> None:
    """The cancellation may come at any step between the item's arrival and the waiter's return."""
    count = 400

    async def main() -> None:
        seen: list[int] = []
        with SSEServer([*numbers(count), send("[DONE]")]) as server:
            _, _, items = await arequest_sse(server.url)
            steps = 0
            while True:
                taking = asyncio.ensure_future(take(items))
                for _ in range(steps % 12):
                    await asyncio.sleep(0)
                steps += 1
                taking.cancel()
                try:
                    seen.append((await taking)["n"])
                except asyncio.CancelledError:
                    continue
                except StopAsyncIteration:
                    break
        assert seen == list(range(count))

    run(main)


@pytest.mark.parametrize("limit", [lambda waiting: asyncio.wait_for(waiting, 0.001), lambda waiting: waiting])
def test_repeated_timeouts_lose_no_item(run: Run, limit: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
    async def main() -> None:
        seen: list[int] = []
        with SSEServer([*numbers(200), send("[DONE]")]) as server:
            _, _, items = await arequest_sse(server.url)
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                        seen.append((await limit(items.next(timeout=0.0005)))["n"])
        assert seen == list(range(200))

    run(main)


def test_collect_raises_the_error_of_the_stream(run: Run) -> None:
    async def main() -> None:
        with SSEServer([*numbers(2), cut()]) as server:
            _, _, items = await arequest_sse(server.url)
            with pytest.raises(TruncatedStreamError):
                await items.collect()
            assert items.outcome == "error"

    run(main)


def test_cancelled_collect_ends_the_stream_before_its_items(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(0, id="a"), send(1, id="b"), send(2, id="c"), silence()]) as server:
            _, _, items = await arequest_sse(server.url)
            assert await items.next() == 0
            collecting = asyncio.create_task(items.collect())
            while items.stats.events < 3 or items.stats.buffered:
                await asyncio.sleep(0.001)
            collecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await collecting
            assert (items.outcome, items.last_event_id) == ("closed", "a")
            assert await items.collect() == []
            await asyncio.to_thread(server.requests[0].wait_aborted)

    run(main)


def test_two_coroutines_cannot_read_one_stream(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            async with await arequest_sse(server.url) as (_, _, items):
                assert await items.next() == 1
                first = asyncio.create_task(anext(items, None))
                await asyncio.sleep(0)
                for use in (items.next(timeout=1), anext(items), anext(items, None)):
                    with pytest.raises(UsageError, match="one consumer"):
                        await use
                await items.aclose()
                assert await first is None

    run(main)
