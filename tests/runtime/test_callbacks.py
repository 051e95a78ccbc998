"""The caller's code on an event loop: any exception ends its own stream and no other.

test_callback_matrix.py has every callback with every kind of exception; here are the special cases.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    CallbackError,
    ReconnectionError,
    RequestAbortedError,
    SSEError,
    amerge,
    arequest_sse,
    relay,
    request_sse,
    tee,
)
from sseqbridge._runtime.callbacks import CallersCode, is_from_outside, is_reportable
from sseqbridge.testing import SSEServer, send, silence
from tests.requesters import Caller
from tests.support import INTERFACES, in_thread, python, thread_of

from .callers_code import EVENT_STREAM, KINDS, Auth, Fault, Flag, Request, Transport


class World(Caller):
    """A server, and one of the two functions, on one loop."""

    def __init__(self, server: SSEServer, *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self.server = server
        self.bridges: list[Bridge] = []

    def ask(self, request: Request) -> Any:
        """Send a request and return the stream."""
        options = dict(request.options)
        if self.is_async:
            if request.client is not None:
                options["client"] = httpx.AsyncClient(**request.client)
            return self.run(arequest_sse(self.server.url, decode="text", **options)).events
        if request.client is not None:
            client = request.client
            options["bridge"] = self.bridge(lambda: httpx.AsyncClient(**client))
        return request_sse(self.server.url, decode="text", **options).events

    def bridge(self, make: Callable[[], Any]) -> Bridge:
        self.bridges.append(Bridge(client=make))
        return self.bridges[-1]

    def next(self, stream: Any, timeout: float | None = None) -> Any:
        return self.run(stream.next(timeout))

    def end(self, stream: Any) -> None:
        self.run(stream.aclose() if self.is_async else stream.close())

    def check_flags(self, **options: Any) -> None:
        """Check that the cancel flag of a silent stream is still polled."""
        flag = threading.Event()
        stream = self.ask(Request({"cancel": flag} | options))
        assert self.next(stream) == "1"
        flag.set()
        with pytest.raises((StopIteration, StopAsyncIteration)):
            self.next(stream, 10)
        assert stream.outcome == "closed"


@pytest.fixture(params=INTERFACES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with SSEServer([send("1"), silence()]) as server:
        made = World(server, is_async=request.param == "async")
        yield made
        for bridge in made.bridges:
            bridge.close()
        made.close()


def is_open(stream: Any) -> bool:
    """Return whether a stream without a consumer is open."""
    return bool(stream.poll() == [] and stream.outcome is None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["closing the response", "closing the generator", "closing the client"])
def test_exception_during_close_ends_no_other_stream(world: World, where: str, kind: type[BaseException]) -> None:
    fault = Fault(kind)
    stream = world.ask(Request({}, {"transport": Transport(fault, where)}))
    assert world.next(stream) == "1"
    other = world.ask(Request({}))
    assert world.next(other) == "1"
    world.end(stream)
    assert stream.outcome == "closed"
    assert is_open(other)
    world.check_flags()
    assert is_open(other)
    world.end(other)
    fault.is_armed = where != "closing the client"


@pytest.mark.parametrize("kind", KINDS)
def test_exception_of_a_network_stream_ends_no_other_stream(world: World, kind: type[BaseException]) -> None:
    stream = world.ask(Request({}, {"transport": Transport(Fault(kind), "network stream")}))
    assert world.next(stream) == "1"
    other = world.ask(Request({}))
    assert world.next(other) == "1"
    world.end(stream)
    assert stream.outcome == "closed"
    assert is_open(other)
    world.end(other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("is_class", [False, True], ids=["a generator", "a class"])
def test_exception_in_a_bodys_finally_ends_no_other_stream(
    world: World, kind: type[BaseException], is_class: bool
) -> None:
    """The abort of the request closes the body while it is sent."""
    waits = threading.Event()
    fault = Fault(kind)

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"part"
            waits.set()
            await asyncio.get_running_loop().create_future()
        finally:
            fault()

    class Body:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return body()

    other = world.ask(Request({}))
    assert world.next(other) == "1"
    with pytest.raises(RequestAbortedError):
        world.ask(Request({"content": Body() if is_class else body(), "cancel": waits}))
    assert waits.is_set()
    assert is_open(other)
    world.check_flags()
    assert is_open(other)
    world.end(other)


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
def test_partly_sent_body_is_closed(world: World, kind: type[BaseException]) -> None:
    """The transport fails after the first part of the body."""
    closed = threading.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"part"
            yield b"part"
        finally:
            closed.set()
            raise kind

    class ReadsOnePart(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            async for _ in request.stream:
                raise httpx.ConnectError("enough")
            raise AssertionError("the body must have a part")

    other = world.ask(Request({}))
    with pytest.raises(SSEError, match="no connection"):
        world.ask(Request({"content": body()}, {"transport": ReadsOnePart()}))
    assert closed.is_set()
    world.check_flags()
    assert world.next(other) == "1"
    assert is_open(other)
    world.end(other)


# The code of a single call.


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("option", ["decode", "done"])
def test_exit_in_a_loop_function_is_a_callback_error(option: str, kind: type[BaseException]) -> None:
    async def main() -> None:
        options: dict[str, Any] = {option: Fault(kind)}
        async with await arequest_sse(server.url, **options) as (_, _, items):
            for _ in range(2):
                with pytest.raises(CallbackError) as caught:
                    await items.next()
                assert type(caught.value.__cause__) is kind
            assert items.outcome == "error"

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exit_in_a_function_on_the_consumers_thread_passes_through(kind: type[BaseException]) -> None:
    with SSEServer([send(1), silence()]) as server, request_sse(server.url, decode=Fault(kind)) as (_, _, items):
        with pytest.raises(kind):
            next(items)
        # The item is lost, so that the stream closes.
        assert items.outcome == "closed"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration])
def test_exit_in_amerges_iterable_is_a_callback_error(kind: type[BaseException]) -> None:
    class Calls:
        def __iter__(self) -> Calls:
            return self

        def __next__(self) -> Any:
            raise kind

    async def main() -> None:
        async with amerge(Calls()) as merged:
            if kind is StopIteration:
                assert [named async for named in merged] == []
            else:
                with pytest.raises(CallbackError, match=kind.__name__):
                    await merged.__anext__()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["item", "closing", "map"])
def test_exit_in_a_relayed_iterable_is_an_error_event(where: str, kind: type[BaseException]) -> None:
    async def items() -> AsyncIterator[str]:
        try:
            yield "one"
            if where == "item":
                raise kind
        finally:
            if where == "closing":
                raise kind

    async def main() -> bytes:
        if where != "map":
            return b"".join([piece async for piece in relay.aframes(items())])
        with SSEServer([send(1), silence()]) as server:
            response = await arequest_sse(server.url)
            return b"".join([piece async for piece in relay.aframes(response, map=Fault(kind))])

    assert b"event: error" in asyncio.run(main())


def test_exit_in_an_abandoned_relay_keeps_the_loop_running() -> None:
    async def items() -> AsyncIterator[str]:
        try:
            yield "one"
            await asyncio.get_running_loop().create_future()
        finally:
            raise SystemExit

    async def main() -> None:
        frames = relay.aframes(items())
        while b"one" not in await frames.__anext__():
            pass
        await frames.aclose()
        await asyncio.sleep(0)
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=10)

    asyncio.run(main())


def test_exit_in_a_teed_stream_ends_only_its_readers() -> None:
    with SSEServer([send(1), silence()]) as server:
        fault = Fault(SystemExit)
        # A check while the head is still awaited would end request_sse itself.
        fault.is_armed = False
        flag = Flag(fault)
        other = request_sse(server.url).events
        first, second = tee(request_sse(server.url, cancel=flag))
        fault.is_armed = True
        for reader in (first, second):
            with pytest.raises(CallbackError):
                reader.collect()
        assert next(other) == 1
        assert is_open(other)
        other.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, StopIteration])
@pytest.mark.parametrize("when", ["redirected", "reconnecting"])
def test_client_function_that_raises_in_its_thread_ends_the_stream(when: str, kind: type[BaseException]) -> None:
    """The second client is created in a thread: for another origin, or after its HTTP/2 connection was cut."""

    class Cut(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"id: 1\nretry: 1\ndata: 1\n\n"
            raise httpx.ReadError("cut")

    fault = Fault(kind)
    fault.is_armed = False

    def handler(request: httpx.Request) -> httpx.Response:
        fault.is_armed = True
        if when == "redirected":
            return httpx.Response(307, headers={"location": "http://other.test/"})
        return httpx.Response(200, headers=EVENT_STREAM, stream=Cut(), extensions={"http_version": b"HTTP/2"})

    def make() -> httpx.AsyncClient:
        fault()
        return httpx.AsyncClient(transport=httpx.MockTransport(handler))

    def ask() -> list[Any]:
        return request_sse("http://mock.test/", bridge=bridge, reconnect=when == "reconnecting").events.collect()

    with Bridge(client=make) as bridge:
        error = in_thread(ask).exception(30)
        if when == "reconnecting":
            assert isinstance(error, ReconnectionError)
            error = error.__cause__
        assert isinstance(error, CallbackError)
        assert type(error.__cause__) is kind


# Exceptions from other sources.


def test_cancellation_of_the_callers_task_passes_through() -> None:
    async def main() -> None:
        async def ask() -> None:
            await arequest_sse(server.url, content=never(), auth=Auth(quiet))

        async def never() -> AsyncIterator[bytes]:
            begun.set()
            await asyncio.get_running_loop().create_future()
            yield b""

        begun, quiet = asyncio.Event(), Fault(SystemExit)
        quiet.is_armed = False
        asking = asyncio.create_task(ask())
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert asking.cancelled()

    with SSEServer([silence()]) as server:
        asyncio.run(main())


def test_cancelled_error_passes_through_a_cancelled_task() -> None:
    async def main() -> None:
        async def work() -> None:
            with CallersCode("work"):
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(main())


def test_closed_coroutine_raises_no_callback_error() -> None:
    async def main() -> None:
        async def work() -> None:
            with CallersCode("work"):
                await asyncio.Event().wait()

        coroutine = work()
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0)
        # Outside of the steps of its task, as the end of a loop does it.
        coroutine.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


class TaskOf310:
    """A task without cancelling(), as in Python 3.10."""


@pytest.mark.parametrize("is_raised", [False, True])
def test_python_310_detects_a_cancellation_by_its_traceback(is_raised: bool) -> None:
    async def work() -> None:
        if is_raised:
            raise asyncio.CancelledError
        await asyncio.sleep(60)

    async def main() -> BaseException:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            return error
        raise AssertionError("the task must be cancelled")

    assert is_from_outside(asyncio.run(main()), TaskOf310()) != is_raised  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs raise_signal()")
def test_ctrl_c_in_callers_code_passes_through() -> None:
    """For example while a cancel flag is polled on the main thread's loop."""

    async def main() -> None:
        with CallersCode("a flag"):
            signal.raise_signal(signal.SIGINT)

    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main())
    finally:
        loop.close()


def test_interrupt_that_was_never_raised_is_not_ctrl_c() -> None:
    """For example one that a function of the caller's returns, or stores as the result of a future."""

    async def main() -> bool:
        return is_reportable(KeyboardInterrupt())

    assert asyncio.run(main())


def test_exit_without_a_loop_passes_through() -> None:
    for kind in (SystemExit, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(kind), CallersCode("a function"):
            raise kind
    with pytest.raises(CallbackError), CallersCode("a function"):
        raise StopIteration


def test_exit_in_a_foreign_callback_ends_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    """For example in a task or timer that the caller's transport started."""

    async def task(kind: type[BaseException]) -> None:
        raise kind

    with SSEServer([send(1), silence()]) as server, Bridge() as bridge:
        streams = [request_sse(server.url, bridge=bridge).events for _ in range(2)]
        assert [next(stream) for stream in streams] == [1, 1]
        state = bridge.started()
        loop, thread = state.loop, thread_of(bridge)
        for kind in (SystemExit, KeyboardInterrupt):
            ran = threading.Event()
            loop.call_soon_threadsafe(Fault(kind))
            loop.call_soon_threadsafe(loop.call_later, 0.001, Fault(kind))
            asyncio.run_coroutine_threadsafe(task(kind), loop)
            loop.call_soon_threadsafe(loop.call_later, 0.02, ran.set)
            assert ran.wait(30)
        assert all(map(is_open, streams))
        assert bridge.started() is state
        assert thread_of(bridge) is thread
        logged = " ".join(record.getMessage() for record in caplog.records)
        assert "raised SystemExit; the loop goes on" in logged
        assert "raised KeyboardInterrupt; the loop goes on" in logged
        for stream in streams:
            stream.close()


@pytest.mark.slow
def test_process_survives_an_exit_in_a_body() -> None:
    with SSEServer([send(1), silence()]) as server:
        program = """
import sys
from sseqbridge import CallbackError, request_sse
other = request_sse(sys.argv[1]).events
def body():
    yield b"part"
    sys.exit("a check of the upload failed")
try:
    request_sse(sys.argv[1], content=body())
except CallbackError as error:
    print(next(other), other.poll(), repr(error.__cause__))
other.close()
"""
        assert python(program, server.url) == (0, "1 [] SystemExit('a check of the upload failed')\n", "")
