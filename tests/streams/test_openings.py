"""Calls and functions that return a stream, in merge, amerge, gather, tee and logs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import (
    AsyncSSEResponse,
    CallbackError,
    Cancelled,
    ConnectError,
    RequestAbortedError,
    SSEClient,
    SSEResponse,
    StatusError,
    UsageError,
    amerge,
    arequest_sse,
    cancel_on,
    gather,
    iterate,
    merge,
    request_sse,
    tee,
)
from sseqbridge._streams.openings import FunctionOpening
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, respond, send, silence
from tests.streams.async_support import Run
from tests.support import in_thread, is_waiting, until

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.slow]

DONE = send("[DONE]")


def numbered(request: ReceivedRequest) -> list[Step]:
    return [send(request.path), DONE]


@pytest.fixture(name="server")
def numbered_server() -> Iterator[SSEServer]:
    with SSEServer(numbered) as server:
        yield server


async def acollect(streams: Any, **options: Any) -> list[Any]:
    async with amerge(streams, **options) as merged:
        return [named async for named in merged]


# Calls.


def test_calls_are_sent_at_the_same_time(run: Run) -> None:
    go_on = threading.Event()
    with SSEServer([hold(go_on), send("1"), DONE]) as server:
        client = SSEClient(server.url, decode="text")
        calls = {name: client.call(f"/{name}") for name in "ab"}
        for read in (lambda: list(merge(calls)), lambda: list(gather(calls)), lambda: run(lambda: acollect(calls))):
            go_on.clear()
            before = len(server.requests)
            reading = in_thread(read)
            server.wait_for_request(before + 2)
            go_on.set()
            assert sorted(reading.result(30)) in ([("a", "1"), ("b", "1")], [("a", ["1"]), ("b", ["1"])])


def test_one_call_can_be_merged_several_times(server: SSEServer) -> None:
    call = SSEClient(server.url, decode="text").call("/x")
    assert sorted(merge([call, call])) == [(0, "/x"), (1, "/x")]
    assert list(gather([call] * 20, limit=3)) == [(n, ["/x"]) for n in range(20)]


def test_refused_call_is_a_status_error(run: Run) -> None:
    with SSEServer([respond(429, {"Content-Type": "application/json"}), b"{}"]) as server:
        call = SSEClient(server.url).call("/")
        for error in (
            dict(merge({"a": call}, errors="yield"))["a"],
            dict(gather({"a": call}, errors="yield"))["a"],
            dict(run(lambda: acollect({"a": call}, errors="yield")))["a"],
        ):
            assert isinstance(error, StatusError)
            assert error.status == 429
            assert error.stream_name == "a"


def test_functions_that_return_the_same_stream_are_refused() -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url).events
        for streams in ({"a": stream, "b": lambda: stream}, {"a": lambda: stream, "b": lambda: stream}):
            with pytest.raises(UsageError, match="is a stream that is merged already, under another name"):
                for _ in merge(streams):
                    pass


def test_call_can_be_added(run: Run, server: SSEServer) -> None:
    call = SSEClient(server.url, decode="text").call("/x")
    with merge([call]) as merged:
        merged.add("more", call)
        assert dict(merged) == {0: "/x", "more": "/x"}

    async def main() -> None:
        async with amerge([call]) as merged:
            await merged.add("more", call)
            assert {name: item async for name, item in merged} == {0: "/x", "more": "/x"}

    run(main)
    assert len(server.requests) == 4


# Functions.


def test_function_may_need_two_requests(server: SSEServer) -> None:
    """As APIs that start a run, and stream it at another URL."""
    client = SSEClient(server.url, decode="text")

    def start(name: str) -> SSEResponse[str]:
        with httpx.Client() as http:
            http.post(f"{server.url}/runs").raise_for_status()
        return client.request(f"/runs/{name}")

    assert list(gather({name: partial(start, name) for name in "ab"})) == [("a", ["/runs/a"]), ("b", ["/runs/b"])]
    assert sorted(merge({name: partial(start, name) for name in "ab"})) == [("a", "/runs/a"), ("b", "/runs/b")]


def test_function_may_return_any_stream(server: SSEServer) -> None:
    async def items() -> AsyncIterator[str]:
        yield "/x"

    functions: list[Callable[[], Any]] = [
        lambda: request_sse(f"{server.url}/x", decode="text"),
        lambda: request_sse(f"{server.url}/x", decode="text").events,
        lambda: iterate(items()),
        partial(SSEClient(server.url, decode="text").request, "/x"),
    ]
    assert list(gather(functions)) == [(number, ["/x"]) for number in range(4)]


@pytest.mark.parametrize("way", ["merge", "gather"])
def test_slow_function_holds_up_no_other_stream(server: SSEServer, way: str) -> None:
    go_on, calling = threading.Event(), threading.Event()

    def slow() -> SSEResponse[str]:
        calling.set()
        assert go_on.wait(30)
        return request_sse(f"{server.url}/slow", decode="text")

    streams = {"slow": slow, "quick": SSEClient(server.url, decode="text").call("/quick")}
    reading = iter(merge(streams) if way == "merge" else gather(streams, in_order=False))
    name, items = next(reading)
    assert name == "quick"
    assert "/quick" in items
    assert calling.is_set()
    go_on.set()
    assert next(reading)[0] == "slow"
    assert list(reading) == []


def test_slow_coroutine_holds_up_no_other_stream(run: Run, server: SSEServer) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def slow() -> AsyncSSEResponse[str]:
            await go_on.wait()
            return await arequest_sse(f"{server.url}/slow", decode="text")

        async with amerge({"slow": slow, "quick": SSEClient(server.url, decode="text").call("/quick")}) as merged:
            assert await anext(merged) == ("quick", "/quick")
            go_on.set()
            assert await anext(merged) == ("slow", "/slow")
            with pytest.raises(StopAsyncIteration):
                await anext(merged)

    run(main)


def test_functions_of_amerge_may_return_a_stream_or_an_awaitable(run: Run, server: SSEServer) -> None:
    async def main() -> None:
        opened = await arequest_sse(f"{server.url}/0", decode="text")

        async def events() -> Any:
            return (await arequest_sse(f"{server.url}/2", decode="text")).events

        functions = [lambda: opened, lambda: arequest_sse(f"{server.url}/1", decode="text"), events]
        assert sorted(await acollect(functions)) == [(0, "/0"), (1, "/1"), (2, "/2")]

    run(main)


@pytest.mark.parametrize("way", ["merge", "gather"])
def test_function_runs_in_a_thread_in_the_consumers_context(server: SSEServer, way: str) -> None:
    variable = ContextVar("variable", default="unset")
    seen: list[Any] = []

    def function() -> SSEResponse[Any]:
        seen.append((variable.get(), threading.current_thread()))
        return request_sse(server.url, decode="text")

    variable.set("set")
    list(merge([function]) if way == "merge" else gather([function]))
    [(value, thread)] = seen
    assert value == "set"
    assert thread.daemon
    assert thread is not threading.current_thread()


# Errors of functions.


def test_errors_of_the_library_are_raised_as_they_are(run: Run, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    for named in (
        dict(merge({"a": lambda: request_sse(url)}, errors="yield")),
        dict(run(lambda: acollect({"a": lambda: arequest_sse(url)}, errors="yield"))),
    ):
        assert isinstance(named["a"], ConnectError)
        assert named["a"].stream_name == "a"


def test_other_errors_are_callback_errors(run: Run, server: SSEServer) -> None:
    def function() -> Any:
        raise KeyError("secret")

    async def coroutine_function() -> Any:
        raise KeyError("secret")

    good = SSEClient(server.url, decode="text").call("/good")
    for named in (
        dict(merge({"a": function, "good": good}, errors="yield")),
        dict(run(lambda: acollect({"a": function, "good": good}, errors="yield"))),
        dict(run(lambda: acollect({"a": coroutine_function, "good": good}, errors="yield"))),
    ):
        assert named.pop("good") == "/good"
        error = named["a"]
        assert isinstance(error, CallbackError)
        assert str(error) == "the function of the stream 'a' raised KeyError"
        assert type(error.__cause__) is KeyError


def test_coroutine_function_in_merge_is_a_usage_error(server: SSEServer) -> None:
    async def function() -> Any:
        raise AssertionError("it must not be awaited")

    with pytest.raises(UsageError, match=r"'a' must be what request_sse or iterate .*, got function"):
        merge({"a": function})
    with pytest.raises(UsageError, match=r"must return what request_sse .*, got coroutine\. Pass .* to amerge"):
        list(merge({"a": lambda: function()}))  # noqa: PLW0108 (a coroutine function would be refused before)


def test_result_that_is_no_stream_is_a_usage_error(run: Run, server: SSEServer) -> None:
    async def number() -> int:
        return 1

    with pytest.raises(UsageError, match=r"stream 0 must return what request_sse or iterate returns, got int"):
        list(merge([lambda: 1]))
    for function in (lambda: 1, number):
        with pytest.raises(UsageError, match=r"stream 0 must return what arequest_sse returns, .*, got int"):
            run(partial(acollect, [function]))
    with request_sse(server.url) as response, pytest.raises(UsageError, match=r"got SSEResponse\. Pass a synchronous"):
        run(lambda: acollect([lambda: response]))


def test_refused_answer_of_a_function_is_a_status_error() -> None:
    with SSEServer([respond(500, {"Content-Type": "text/plain"}), b"no"]) as server:
        with pytest.raises(StatusError):
            list(merge([lambda: request_sse(server.url)]))
        with pytest.raises(StatusError):
            list(gather([lambda: request_sse(server.url)]))


# The end of merged streams.


@pytest.mark.parametrize("way", ["close", "break", "drop"])
def test_end_cancels_a_function_that_waits_for_a_response(way: str) -> None:
    cancelled: list[BaseException] = []
    ended = threading.Event()

    def function() -> SSEResponse[Any]:
        try:
            return request_sse(server.url)
        except BaseException as exc:
            cancelled.append(exc)
            raise
        finally:
            ended.set()

    with SSEServer([hold(threading.Event())]) as server, SSEServer([send(1), silence()]) as quick:
        merged = merge({"waiting": function, "quick": partial(request_sse, quick.url)})
        server.wait_for_request()
        if way == "break":
            for _ in merged:
                break
        elif way == "close":
            merged.close()
        else:
            with pytest.warns(ResourceWarning, match="was dropped with requests under way"):
                del merged
        server.requests[0].wait_aborted()
        assert ended.wait(30)
    assert [type(error) for error in cancelled] == [Cancelled]


@pytest.mark.parametrize("way", ["close", "add"])
def test_stream_of_a_function_that_returns_late_is_aborted(way: str) -> None:
    go_on, calling = threading.Event(), threading.Event()
    with SSEServer([send(1), silence()]) as server:
        # Opened here: the function must not wait, which would cancel it.
        stream = request_sse(server.url).events

        def function() -> Any:
            calling.set()
            assert go_on.wait(30)
            return stream

        merged = merge([function])
        assert calling.wait(30)
        merged.close()
        if way == "add":
            with pytest.raises(UsageError, match="have ended"):
                merged.add("late", function)
        go_on.set()
        server.requests[0].wait_aborted()
        until(lambda: stream.outcome == "closed")


def test_function_that_is_cancelled_has_no_stream() -> None:
    opening = FunctionOpening("a", lambda: request_sse(server.url))
    ended = threading.Event()
    with SSEServer([hold(threading.Event())]) as server:
        opening.notify(ended.set)
        opening.start()
        server.wait_for_request()
        opening.abort()
        assert ended.wait(30)
    with pytest.raises(RequestAbortedError, match="the function of the stream 'a' was cancelled"):
        opening.poll()


def test_stream_of_a_function_that_nobody_has_read_is_aborted() -> None:
    with SSEServer([send(1), silence()]) as server:
        opening = FunctionOpening("a", lambda: request_sse(server.url))
        ended = threading.Event()
        opening.notify(ended.set)
        opening.start()
        assert ended.wait(30)
        opening.abort()
        server.requests[0].wait_aborted()
        reader = opening.poll()
        assert reader is not None
        assert reader.cursor.outcome == "closed"


def test_coroutine_function_is_not_called_after_the_end(run: Run) -> None:
    async def function() -> Any:
        raise AssertionError("it must not be called")

    async def main() -> None:
        merged = amerge()
        merged.close()
        with pytest.raises(UsageError, match="have ended"):
            await merged.add("late", function)

    run(main)


def test_end_cancels_a_coroutine_function(run: Run) -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def function() -> Any:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

        async with amerge({"waiting": function, "quick": SSEClient(server.url).call("/")}) as merged:
            assert await anext(merged) == ("quick", 1)
        await cancelled.wait()

    with SSEServer([send(1), silence()]) as server:
        run(main)


def test_scope_cancels_the_wait_for_a_function() -> None:
    flag, cancelled = threading.Event(), threading.Event()

    def function() -> Any:
        try:
            return request_sse(server.url)
        finally:
            cancelled.set()

    def read() -> bool:
        merged = merge([function])
        with cancel_on(flag) as scope:
            list(merged)
        return scope.cancelled

    with SSEServer([hold(threading.Event())]) as server:
        reading = in_thread(read)
        server.wait_for_request()
        flag.set()
        assert reading.result(30)
        assert cancelled.wait(30)
        server.requests[0].wait_aborted()


def test_scope_cancels_the_wait_for_a_coroutine_function(run: Run) -> None:
    async def main() -> None:
        flag = threading.Event()
        calling = asyncio.Event()

        async def function() -> Any:
            calling.set()
            await asyncio.get_running_loop().create_future()

        async def read() -> bool:
            with cancel_on(flag) as scope:
                await acollect([function])
            return scope.cancelled

        reading = asyncio.create_task(read())
        await calling.wait()
        flag.set()
        assert await reading

    run(main)


def test_functions_stream_belongs_to_the_scope_of_its_reader() -> None:
    flag = threading.Event()
    with SSEServer([send(1), silence()]) as server:
        merged = merge([lambda: request_sse(server.url)])

        def read() -> bool:
            with cancel_on(flag) as scope:
                for _ in merged:
                    reached.set()
            return scope.cancelled

        reached = threading.Event()
        reading = in_thread(read)
        assert reached.wait(30)
        until(lambda: is_waiting(reading))
        flag.set()
        assert reading.result(30)
        server.requests[0].wait_aborted()


# tee and logs.


def test_tee_sends_a_call(server: SSEServer) -> None:
    call = SSEClient(server.url, decode="text").call("/x")
    for stream in (call, lambda: request_sse(f"{server.url}/x", decode="text"), call):
        readers: Any = tee(stream)
        assert [reader.collect() for reader in readers] == [["/x"], ["/x"]]
    assert len(server.requests) == 3


def test_tee_of_a_function_that_fails(server: SSEServer) -> None:
    def function() -> Any:
        raise KeyError

    with pytest.raises(KeyError):
        tee(function)
    wrong: Any = lambda: 1  # noqa: E731
    with pytest.raises(UsageError, match=r"`stream` must be .*, got int"):
        tee(wrong)
    with pytest.raises(UsageError, match="`n`"):
        tee(SSEClient(server.url).call("/"), 0)
    assert server.requests == []


@pytest.mark.parametrize("way", ["open", "produce", "aopen", "aproduce"])
def test_log_starts_with_a_call(run: Run, server: SSEServer, way: str) -> None:
    call = SSEClient(server.url).call("/x", data={"a": 1})
    with MemoryLog() as log:

        async def main() -> None:
            if way == "aopen":
                stream = await log.aopen("key", call, decode="text")
                assert [item async for item in stream] == ["/x"]
            else:
                assert await log.aproduce("key", call) == "done"

        if way == "open":
            assert log.open("key", start=call, decode="text").collect() == ["/x"]
        elif way == "produce":
            assert log.produce("key", call) == "done"
        else:
            run(main)
        assert log.open("key", decode="text").collect() == ["/x"]
    assert len(server.requests) == 1
