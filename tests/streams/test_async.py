"""arequest_sse through the public door: the same meaning as request_sse, on the caller's own loop.

Every test runs on asyncio's own loop and on uvloop, in debug mode, and ends with a look at what
the loop logged and left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import anyio
import httpx
import httpx2
import pytest

import sseqbridge
from sseqbridge import (
    AsyncEventStream,
    AsyncSSEResponse,
    BridgeClosedError,
    CallbackError,
    Comment,
    ConnectError,
    ContentTypeError,
    DecodeError,
    ProtocolError,
    ReadError,
    RedirectError,
    RequestAbortedError,
    ServerSentEvent,
    SSEError,
    StatusError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    arequest_sse,
    request_sse,
)
from sseqbridge._engine import caller_loops
from sseqbridge._http import client as _client
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    comment,
    cut,
    hold,
    raw,
    reset,
    respond,
    send,
    silence,
    wire,
)
from tests.clock import FakeClock
from tests.support import HAS_OWN_TRANSPORT, LOOPS

T = TypeVar("T")
Main = Callable[[], Awaitable[Any]]
Run = Callable[[Main], Any]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """A function that runs a coroutine function on a new loop. Nothing may be left of the loop."""
    options: dict[str, Any] = {"debug": True, "use_uvloop": request.param == "uvloop"}
    if "clock" in request.fixturenames:
        options["loop_factory"] = partial(request.getfixturevalue("clock").new_loop, request.param)

    def run_on_new_loop(main: Main) -> Any:
        async def patient() -> Any:
            # A busy machine is no finding.
            asyncio.get_running_loop().slow_callback_duration = 60.0
            return await main()

        return anyio.run(patient, backend_options=options)

    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield run_on_new_loop
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    assert caller_loops._states == {}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; the test's own time limit is the limit."""
    while not condition():
        await asyncio.sleep(0.001)


async def aborted(request: ReceivedRequest) -> bool:
    await until(request.aborted.is_set)
    return True


def numbers(count: int) -> list[Step]:
    return [send({"n": n}) for n in range(count)]


# What it is.


def test_both_functions_take_the_same_arguments() -> None:
    *of_sync, (last_of_sync, _) = inspect.signature(request_sse).parameters.items()
    *of_async, (last_of_async, _) = inspect.signature(arequest_sse).parameters.items()
    assert of_sync == of_async
    assert (last_of_sync, last_of_async) == ("bridge", "client")


def test_no_object_is_both_iterable_and_async_iterable() -> None:
    """Django tries iter() first, and would drain an asynchronous stream synchronously."""
    for kind in (sseqbridge.EventStream, AsyncEventStream, sseqbridge.SSEResponse, AsyncSSEResponse):
        assert not (hasattr(kind, "__iter__") and hasattr(kind, "__aiter__")), kind
    assert hasattr(AsyncEventStream, "__aiter__")
    assert hasattr(AsyncSSEResponse, "__iter__"), "a tuple, so that it can be unpacked"


def test_the_call_gives_status_headers_and_items(run: Run) -> None:
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
def test_items_are_decoded_as_asked(run: Run, options: dict[str, Any], expected: list[Any]) -> None:
    async def main() -> None:
        with SSEServer([send({"a": 1}, event="m", id="7"), comment("ping"), send("2"), send("[DONE]")]) as server:
            async with await arequest_sse(server.url, **options) as (_, _, items):
                assert [item async for item in items] == expected
                assert items.last_event_id == "7"
                assert items.last_event is not None

    run(main)


def test_fifty_streams_run_side_by_side(run: Run) -> None:
    everyone_is_in = threading.Event()

    async def read(url: str) -> list[Any]:
        _, _, items = await arequest_sse(url)
        return [item async for item in items]

    async def main() -> None:
        with SSEServer([send(1), hold(everyone_is_in), send(2), send("[DONE]")]) as server:
            readers = [asyncio.create_task(read(server.url)) for _ in range(50)]
            await until(lambda: server.open_requests == 50)
            everyone_is_in.set()
            assert await asyncio.gather(*readers) == [[1, 2]] * 50

    run(main)


def test_a_loop_that_is_held_up_at_the_end_loses_no_item(run: Run) -> None:
    """uvloop runs timers that are due before the callbacks that were posted first, asyncio after them."""

    async def body() -> AsyncIterator[bytes]:
        yield b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
        time.sleep(0.05)  # Held up by whatever else the loop's program does.
        await asyncio.sleep(60)

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=body())

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            _, _, items = await arequest_sse("http://127.0.0.1/", client=client)
            assert [item async for item in items] == [1, 2]

    run(main)


def test_a_hundred_asks_open_one_connection(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            for _ in range(100):
                _, _, items = await arequest_sse(server.url, None, {})
                assert [item async for item in items] == [1]
            assert server.connections == 1

    run(main)


def test_context_variables_are_the_callers(run: Run) -> None:
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


# Threads.


class _Starts:
    """Counts the threads that are started while it is entered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        start = threading.Thread.start

        def noted(thread: threading.Thread) -> None:
            self.names.append(thread.name)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", noted)


def test_no_thread_is_started_once_the_tls_context_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(url: str) -> None:
        async with await arequest_sse(url, None, {}) as (_, _, items):
            assert [item async for item in items] == [1]

    with SSEServer([send(1), send("[DONE]")]) as server:
        run(lambda: ask(server.url))
        started = _Starts(monkeypatch)
        run(lambda: ask(server.url))
        assert started.names == []


def test_the_tls_context_is_built_off_the_loop(
    run: Run, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    built_in: list[threading.Thread] = []

    def noted() -> ssl.SSLContext:
        built_in.append(threading.current_thread())
        return client_tls

    monkeypatch.setattr(_client, "_tls_context", None)
    monkeypatch.setattr(httpx, "create_ssl_context", noted)

    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            await ask_five_times(server.url)
            assert not built_in or not HAS_OWN_TRANSPORT, "what no request needs"
        with SSEServer([send(1), send("[DONE]")], ssl_context=server_tls) as server:
            await ask_five_times(server.url)

    async def ask_five_times(url: str) -> None:
        for _, _, items in await asyncio.gather(*(arequest_sse(url) for _ in range(5))):
            assert [item async for item in items] == [1]

    run(main)
    assert len(built_in) == 1
    assert built_in[0] is not threading.main_thread()


# Leaving.


def test_leaving_the_with_block_aborts(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            async with await arequest_sse(server.url) as (_, _, items):
                async for item in items:
                    assert item == 1
                    break
                assert items.outcome is None, "nothing tells an asynchronous iterator that it was left"
            assert items.outcome == "closed"
            assert await aborted(server.requests[0])

    run(main)


def test_an_exception_in_the_with_block_aborts(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url)
            with contextlib.suppress(ZeroDivisionError):
                async with items:
                    async for _ in items:
                        raise ZeroDivisionError
            assert items.outcome == "closed"
            assert await aborted(server.requests[0])

    run(main)


def test_aclose_ends_the_stream_for_good_and_can_be_repeated(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send(2), silence()]) as server:
            _, _, items = await arequest_sse(server.url)
            async with contextlib.aclosing(items):
                assert await items.next() == 1
            assert server.requests[0].aborted.wait(30), "aclose() waits until the socket is down"
            await asyncio.gather(items.aclose(), items.aclose())
            assert [item async for item in items] == []
            with pytest.raises(StopAsyncIteration):
                await items.next(timeout=30)
            assert items.outcome == "closed"

    run(main)


def test_aclose_after_the_end_changes_nothing(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            _, _, items = await arequest_sse(server.url)
            assert [item async for item in items] == [1]
            await items.aclose()
            assert items.outcome == "done"
            assert not server.requests[0].aborted.is_set()

    run(main)


def test_closing_twice_at_once_leaves_nothing_open(run: Run) -> None:
    """A second cancellation must not cut short the closing that the first one started."""

    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            for _ in range(20):
                _, _, items = await arequest_sse(server.url)
                await asyncio.gather(*(items.aclose() for _ in range(5)))
            for request in server.requests:
                assert await aborted(request)

    run(main)


def test_close_from_another_task_ends_the_reader_quietly(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url)
            seen: list[Any] = []

            async def read() -> str:
                seen.append(await items.next())
                seen.extend([item async for item in items])
                return "quietly"

            reader = asyncio.create_task(read())
            await until(lambda: seen == [1])
            await items.aclose()
            assert await asyncio.wait_for(reader, 30) == "quietly"
            assert await aborted(server.requests[0])

    run(main)


def test_a_stream_dropped_while_it_is_open_is_aborted_with_a_warning(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            held = [await arequest_sse(server.url)]
            with pytest.warns(ResourceWarning, match="dropped while it was open"):
                held.clear()
            assert await aborted(server.requests[0])

    run(main)


def test_a_request_cancelled_before_the_headers_is_aborted(run: Run) -> None:
    async def main() -> None:
        with SSEServer(lambda request: [silence()]) as server:
            asking = asyncio.create_task(arequest_sse(server.url))
            await until(lambda: len(server.requests) == 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await aborted(server.requests[0])

    run(main)


def test_a_request_cancelled_at_any_step_leaves_nothing_open(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            for steps in range(40):
                asking = asyncio.create_task(arequest_sse(server.url))
                for _ in range(steps):
                    await asyncio.sleep(0)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await (await asking).events.aclose()
            await until(lambda: server.open_requests == 0)

    run(main)


@pytest.mark.parametrize("read_first", [True, False])
def test_a_set_cancel_flag_aborts(run: Run, read_first: bool) -> None:
    async def main() -> None:
        cancel = threading.Event()
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url, cancel=cancel)
            if read_first:
                assert await items.next() == 1
                waiting = asyncio.create_task(anext(items, "ended quietly"))
                await asyncio.sleep(0)
                cancel.set()
                assert await waiting == "ended quietly"
            else:
                cancel.set()
            assert await aborted(server.requests[0])
            assert [item async for item in items] == []
            assert items.outcome == "closed"

    run(main)


def test_a_set_cancel_flag_aborts_before_the_headers(run: Run) -> None:
    async def main() -> None:
        cancel = asyncio.Event()
        with SSEServer(lambda request: [silence()]) as server:
            asking = asyncio.create_task(arequest_sse(server.url, cancel=cancel))
            await until(lambda: len(server.requests) == 1)
            cancel.set()
            with pytest.raises(RequestAbortedError):
                await asking
            assert await aborted(server.requests[0])
            with pytest.raises(RequestAbortedError):
                await arequest_sse(server.url, cancel=cancel)
            assert len(server.requests) == 1

    run(main)


# Waiting.


def test_next_times_out_and_the_stream_lives_on(run: Run) -> None:
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


def test_next_takes_what_is_there_without_waiting(run: Run) -> None:
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
def test_waits_that_time_out_all_the_time_lose_no_item(
    run: Run, limit: Callable[[Awaitable[Any]], Awaitable[Any]]
) -> None:
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


# What goes wrong.


@pytest.mark.parametrize(
    ("timeout", "which"),
    [
        (Timeout(read=60), "read"),
        (60, "read"),
        ({"idle": 60, "read": None}, "idle"),
        (Timeout(total=60, read=None), "total"),
    ],
)
def test_time_limits_hold(clock: FakeClock, run: Run, timeout: Any, which: str) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url, timeout=timeout)
            assert await items.next() == 1
            for _ in range(2):
                with pytest.raises(StreamTimeoutError) as caught:
                    await clock.aadvance_until_done(items.next(), step=10)
                assert caught.value.which == which
            assert items.outcome == "error"
            assert await aborted(server.requests[0])
            await items.aclose()

    run(main)


def test_time_limits_hold_before_the_headers(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        with SSEServer(lambda request: [silence()]) as server:
            for limits, which in (({"total": 60, "read": None}, "total"), ({"read": 60}, "read")):
                with pytest.raises(StreamTimeoutError) as caught:
                    asking = arequest_sse(server.url, timeout={"connect": None, **limits})
                    await clock.aadvance_until_done(asking, step=10)
                assert caught.value.which == which

    run(main)


def _nobody_listens() -> str:
    with SSEServer() as server:
        return server.url


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([wire(b"SMTP ready\r\n\r\n"), silence()], ProtocolError),
        ([cut()], ReadError),
        ([reset()], ReadError),
        ([respond(content_type="text/html"), raw(b"<p>")], ContentTypeError),
        ([respond(302, {"Location": "/other"})], RedirectError),
        ([respond(307, {"Location": "http://127.0.0.2:1/"})], RedirectError),
    ],
)
def test_errors_before_the_stream_come_from_the_call(run: Run, steps: list[Step], kind: type[SSEError]) -> None:
    async def main() -> None:
        with SSEServer(steps) as server:
            with pytest.raises(SSEError) as caught:
                await arequest_sse(server.url, None, {"a": 1})
            assert type(caught.value) is kind

    run(main)


def test_a_refused_connection_is_a_connect_error(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError) as caught:
            await arequest_sse(f"{_nobody_listens()}/path?key=secret")
        assert isinstance(caught.value.__cause__, httpx.ConnectError)
        assert "secret" not in str(caught.value)

    run(main)


@pytest.mark.parametrize(
    ("steps", "options", "kind"),
    [
        ([cut()], {}, TruncatedStreamError),
        ([reset()], {}, ReadError),
        ([wire(b"no chunk\r\n"), silence()], {}, ProtocolError),
        ([], {"require_done": True}, TruncatedStreamError),
        ([send("not JSON")], {}, DecodeError),
        ([send({"error": {"message": "busy"}})], {}, UpstreamError),
        ([send(2), silence()], {"done": lambda event: {}[event.data]}, CallbackError),
        ([send(2), silence()], {"decode": lambda event: 1 // (2 - int(event.data))}, DecodeError),
    ],
)
def test_errors_in_the_stream_come_after_what_came_before(
    run: Run, steps: list[Step], options: dict[str, Any], kind: type[SSEError]
) -> None:
    async def main() -> None:
        seen_one = threading.Event()
        first = [] if "done" in options else [send(1), hold(seen_one)]
        with SSEServer([*first, *steps]) as server:
            _, _, items = await arequest_sse(server.url, **options)
            if first:
                assert await items.next() == 1
                seen_one.set()
            for _ in range(2):
                with pytest.raises(SSEError) as caught:
                    await items.next(timeout=30)
                assert type(caught.value) is kind
            assert items.outcome == "error"
            await items.aclose()
            await until(server.requests[0].finished.is_set)

    run(main)


def test_wrong_use_is_an_error_of_the_call(run: Run) -> None:
    async def main() -> None:
        with SSEServer() as server:
            url: Any
            for url, options in (
                ("ftp://127.0.0.1/", {}),
                (7, {}),
                (server.url, {"data": "text"}),
                (server.url, {"data": {}, "content": b""}),
                (server.url, {"timeout": -1}),
                (server.url, {"decode": "xml"}),
                (server.url, {"client": object()}),
                (server.url, {"client": httpx.Client}),
            ):
                with pytest.raises(UsageError):
                    await arequest_sse(url, **options)
            assert server.requests == []

    run(main)


def test_another_status_gives_the_body_once(run: Run) -> None:
    async def main() -> None:
        for body, expected in ((b'{"code": 7}', [{"code": 7}]), (b"<p>no", ["<p>no"]), (b"", [])):
            with SSEServer([respond(502, content_type=None), raw(body)]) as server:
                status, _, items = await arequest_sse(server.url)
                assert status == 502
                assert [item async for item in items] == expected
                assert items.outcome == "eof"

    run(main)


@pytest.mark.parametrize("decode", ["json", "text"])
@pytest.mark.parametrize("on_stream", [True, False])
def test_raise_for_status_is_awaited(run: Run, decode: Any, on_stream: bool) -> None:
    async def main() -> None:
        with SSEServer([respond(429, {"Retry-After": "3"}, content_type="text/plain"), raw(b"slowly")]) as server:
            response = await arequest_sse(server.url, decode=decode)
            for _ in range(2):
                with pytest.raises(StatusError) as caught:
                    await (response.events if on_stream else response).raise_for_status()
                assert (caught.value.status, caught.value.body) == (429, b"slowly")
                assert caught.value.headers["retry-after"] == "3"

    run(main)


def test_raise_for_status_returns_what_it_was_called_on(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            response = await (await arequest_sse(server.url)).raise_for_status()
            assert await response.events.raise_for_status() is response.events
            assert [item async for item in response.events] == [1]
        with SSEServer([respond(204)]) as server:
            response = await (await arequest_sse(server.url)).raise_for_status()
            assert response.status == 204
            assert [item async for item in response.events] == []

    run(main)


def test_without_json_another_status_is_an_error_at_the_first_item(run: Run) -> None:
    async def main() -> None:
        with SSEServer([respond(404, content_type="text/plain"), raw(b"gone")]) as server:
            status, _, items = await arequest_sse(server.url, decode="text")
            assert status == 404
            for _ in range(2):
                with pytest.raises(StatusError, match="404 Not Found") as caught:
                    await items.next()
                assert caught.value.text == "gone"

    run(main)


# The caller's own client.


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def package(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_client_of_the_callers_stays_the_callers(run: Run, package: Any) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        cookie = request.headers.get("cookie", "none")
        return [respond(headers={"Set-Cookie": "s=1"}), send(cookie, id="x"), send("[DONE]")]

    async def main() -> None:
        with SSEServer(script) as server:
            async with package.AsyncClient(headers={"X-Client": "mine"}) as client:
                answers = []
                for _ in range(2):
                    async with await arequest_sse(server.url, client=client, decode="text") as (_, _, items):
                        answers += [item async for item in items]
                assert answers == ["none", "s=1"]
                assert dict(client.cookies) == {"s": "1"}
                assert not client.is_closed
                assert server.requests[0].headers["x-client"] == "mine"
                assert server.connections == 1

    run(main)


def test_a_client_of_the_callers_outlives_an_abort(run: Run, package: Any) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            async with package.AsyncClient() as client:
                for n in range(3):
                    async with await arequest_sse(server.url, client=client) as (_, _, items):
                        assert await items.next() == 1
                    assert await aborted(server.requests[n])
                assert not client.is_closed

    run(main)


def test_errors_of_either_package_become_ours(clock: FakeClock, run: Run, package: Any) -> None:
    async def main() -> None:
        async with package.AsyncClient() as client:
            with pytest.raises(ConnectError) as refused:
                await arequest_sse(_nobody_listens(), client=client)
            assert isinstance(refused.value.__cause__, package.ConnectError)
            with SSEServer([send(1), cut()]) as server:
                _, _, items = await arequest_sse(server.url, client=client)
                assert await items.next() == 1
                with pytest.raises(TruncatedStreamError) as cut_off:
                    await items.next()
            assert isinstance(cut_off.value.__cause__, package.RemoteProtocolError)
            with SSEServer([send(1), silence()]) as server:
                _, _, items = await arequest_sse(server.url, client=client, timeout=60)
                assert await items.next() == 1
                with pytest.raises(StreamTimeoutError) as timed_out:
                    await clock.aadvance_until_done(items.next(), step=10)
            assert isinstance(timed_out.value.__cause__, package.ReadTimeout)

    run(main)


# Loops.


def test_loops_one_after_another_share_nothing(run: Run) -> None:
    async def ask(url: str) -> None:
        async with await arequest_sse(url) as (_, _, items):
            assert [item async for item in items] == [1]

    with SSEServer([send(1), send("[DONE]")]) as server:
        for _ in range(3):
            run(lambda: ask(server.url))
            assert caller_loops._states == {}
        assert server.connections == 3


def test_loops_in_different_threads_share_nothing(run: Run) -> None:
    both = threading.Barrier(4)
    answers: list[list[Any]] = []

    async def ask(url: str) -> list[Any]:
        async with await arequest_sse(url) as (_, _, items):
            both.wait(30)
            return [item async for item in items]

    with SSEServer([send(1), send("[DONE]")]) as server:
        threads = [threading.Thread(target=lambda: answers.append(run(lambda: ask(server.url)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [[1]] * 4


def test_a_loop_that_ends_aborts_its_streams(run: Run) -> None:
    left: list[AsyncEventStream[Any]] = []

    async def leave(url: str) -> None:
        _, _, items = await arequest_sse(url)
        assert await items.next() == 1
        left.append(items)

    async def look() -> None:
        with pytest.raises(BridgeClosedError, match="loop"):
            await left[0].next(timeout=30)
        assert left[0].outcome == "error"
        await left[0].aclose()

    with SSEServer([send(1), silence()]) as server:
        run(lambda: leave(server.url))
        assert server.requests[0].wait_aborted()
        run(look)


def test_a_loop_closed_without_ceremony_is_forgotten_with_the_next_request(run: Run) -> None:
    """Whoever runs a loop by hand may leave out shutdown_asyncgens()."""

    async def ask(url: str) -> None:
        response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"data: 1\n\n")
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: response)) as client:
            await caller_loops.running_loop_state()
            async with await arequest_sse(url, client=client) as (_, _, items):
                assert [item async for item in items] == [1]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(ask("http://127.0.0.1/"))
    loop.close()
    assert list(caller_loops._states) == [loop]
    with SSEServer([send(1), send("[DONE]")]) as server:

        async def main() -> None:
            async with await arequest_sse(server.url) as (_, _, items):
                assert [item async for item in items] == [1]
            assert loop not in caller_loops._states

        run(main)


# Memory and abort.


@pytest.fixture(params=["http", "https"])
def upstream(
    request: pytest.FixtureRequest, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., SSEServer]:  # fmt: skip
    """A function that makes an SSEServer, over TCP or over TLS with a certificate that is trusted."""
    monkeypatch.setattr(_client, "_tls_context", client_tls)

    def make(steps: Any) -> SSEServer:
        return SSEServer(steps, ssl_context=server_tls if request.param == "https" else None)

    return make


_EVENT = raw(b"data: " + b"x" * 16_000 + b"\n\n")
_EVENTS = 2_000
_LIMIT = 256 * 1024


async def held_back(items: AsyncEventStream[Any], request: ReceivedRequest) -> None:
    """Wait until the upstream can send no more."""
    await until(lambda: items.stats.buffered > _LIMIT // 2)
    sent, since = -1, 0.0
    while time.monotonic() - since < 0.1:
        if request.sent_bytes != sent:
            sent, since = request.sent_bytes, time.monotonic()
        await asyncio.sleep(0.005)


@pytest.mark.heavy
def test_a_consumer_that_does_not_read_holds_the_upstream_back(run: Run, upstream: Callable[..., SSEServer]) -> None:
    async def main() -> None:
        with upstream([_EVENT] * _EVENTS) as server:
            async with await arequest_sse(server.url, decode="text", max_buffered_bytes=_LIMIT) as (_, _, items):
                request = server.requests[0]
                await held_back(items, request)
                assert items.stats.buffered <= _LIMIT
                assert request.sent_bytes < 16 * 1024 * 1024, "the rest is where it belongs, in the sockets"
                assert not request.finished.is_set()
                count = 0
                async for item in items:
                    assert len(item) == 16_000
                    count += 1
                assert count == _EVENTS
                assert items.outcome == "eof"

    run(main)


def test_abort_while_the_stream_is_held_back(run: Run, upstream: Callable[..., SSEServer]) -> None:
    async def main() -> None:
        with upstream([_EVENT] * _EVENTS) as server:
            async with await arequest_sse(server.url, decode="text", max_buffered_bytes=_LIMIT) as (_, _, items):
                await held_back(items, server.requests[0])
            assert await aborted(server.requests[0])
            assert server.requests[0].sent_bytes < 32 * 1024 * 1024

    run(main)


def test_abort_in_silence(run: Run, upstream: Callable[..., SSEServer]) -> None:
    async def main() -> None:
        with upstream([send(1), silence()]) as server:
            async with await arequest_sse(server.url) as (_, _, items):
                assert await items.next() == 1
                waiting = asyncio.create_task(anext(items, None))
                await asyncio.sleep(0)
            assert await waiting is None
            assert await aborted(server.requests[0])

    run(main)
