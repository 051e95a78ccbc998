"""The caller's code on an event loop: any exception ends its own stream and no other."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from sseqbridge import Bridge, CallbackError, ReconnectionError, SSEError, amerge, arequest_sse, relay, request_sse, tee
from sseqbridge._runtime.callbacks import CallersCode, is_from_outside
from sseqbridge.testing import SSEServer, send, silence
from tests.requesters import Caller
from tests.support import in_thread, python

EVENT_STREAM = {"content-type": "text/event-stream"}

KINDS: list[type[BaseException]] = [
    ZeroDivisionError,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
    StopIteration,
    StopAsyncIteration,
    MemoryError,
    RecursionError,
]


GENERATOR_EXIT_OF_A_BODY = ("generator as body", GeneratorExit)


class Fault:
    """Raises its exception while it is armed."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.is_armed = True

    def __call__(self, *_: Any) -> Any:
        if self.is_armed:
            # A new instance each time.
            raise self.kind

    async def aio(self, *_: Any) -> None:
        self()


class Request(NamedTuple):
    """The arguments of request_sse or arequest_sse."""

    options: dict[str, Any]
    # Arguments of an httpx.AsyncClient; None for the library's own client.
    client: dict[str, Any] | None = None
    # Whether the failure happens after the headers.
    is_late: bool = False


class Flag:
    """Raises on a loop, but not on a consumer's thread, and not at the first check, inside the call."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.looks = 0

    def is_set(self) -> bool:
        self.looks += 1
        if self.looks > 1 and asyncio._get_running_loop() is not None:
            self.fault()
        return False


class Auth(httpx.Auth):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        self.fault()
        yield request


class Transport(httpx.AsyncBaseTransport):
    """Raises when a request is sent, when the response is read, or when either is closed."""

    def __init__(self, fault: Fault, where: str) -> None:
        self.fault = fault
        self.where = where

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.where == "request":
            self.fault()
        return httpx.Response(200, headers=EVENT_STREAM, stream=Response(self), extensions=self.extensions())

    def extensions(self) -> dict[str, Any]:
        return {"network_stream": self} if self.where == "network stream" else {}

    def get_extra_info(self, name: str) -> None:
        self.fault()

    async def aclose(self) -> None:
        if self.where == "closing the client":
            self.fault()


class Response(httpx.AsyncByteStream):
    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            if self.transport.where == "read":
                self.transport.fault()
            if self.transport.where == "read, after a wait":
                await asyncio.sleep(0)
                self.transport.fault()
            await asyncio.get_running_loop().create_future()
        finally:
            if self.transport.where == "closing the generator":
                self.transport.fault()

    async def aclose(self) -> None:
        if self.transport.where == "closing the response":
            self.transport.fault()


def sync_body(fault: Fault) -> Iterator[bytes]:
    yield b"part"
    fault()


async def async_body(fault: Fault) -> AsyncIterator[bytes]:
    yield b"part"
    fault()


class IteratorBody:
    """Not a generator, in which Python would replace a StopIteration."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __aiter__(self) -> IteratorBody:
        return self

    async def __anext__(self) -> bytes:
        self.fault()
        raise AssertionError("the fault must be armed")


class NotIterableBody:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.fault()
        raise AssertionError("the fault must be armed")


class AsyncFile:
    """Like the files of anyio and aiofiles."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError("read by aread()")

    async def aread(self, size: int) -> bytes:
        self.fault()
        return b""


FAILING: dict[str, Callable[[Fault], Request]] = {
    "cancel flag": lambda fault: Request({"cancel": Flag(fault)}, is_late=True),
    "generator as body": lambda fault: Request({"content": sync_body(fault)}),
    "asynchronous generator as body": lambda fault: Request({"content": async_body(fault)}),
    "asynchronous iterator as body": lambda fault: Request({"content": IteratorBody(fault)}),
    "body that cannot be iterated over": lambda fault: Request({"content": NotIterableBody(fault)}),
    "asynchronous file as body": lambda fault: Request({"content": AsyncFile(fault)}),
    "auth": lambda fault: Request({"auth": Auth(fault)}),
    "function as auth": lambda fault: Request({"auth": fault}),
    "trace": lambda fault: Request({"extensions": {"trace": fault.aio}}),
    "request hook": lambda fault: Request({}, {"event_hooks": {"request": [fault.aio]}}),
    "response hook": lambda fault: Request({}, {"event_hooks": {"response": [fault.aio]}}),
    "transport": lambda fault: Request({}, {"transport": Transport(fault, "request")}),
    "response": lambda fault: Request({}, {"transport": Transport(fault, "read")}, is_late=True),
    "response, after a wait": lambda fault: Request({}, {"transport": Transport(fault, "read, after a wait")}, True),
}
# Combinations that equal the normal end of an asynchronous iterator.
ENDS = {("asynchronous iterator as body", StopAsyncIteration)}


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


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with SSEServer([send("1"), silence()]) as server:
        made = World(server, is_async=request.param)
        yield made
        for bridge in made.bridges:
            bridge.close()
        made.close()


def is_open(stream: Any) -> bool:
    """Return whether a stream without a consumer is open."""
    return bool(stream.poll() == [] and stream.outcome is None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        # A coroutine of httpcore's yields after it: Python raises RuntimeError in place of any exception.
        pytest.param(name, kind, marks=[pytest.mark.own_transport] if (name, kind) == GENERATOR_EXIT_OF_A_BODY else [])
        for name in FAILING
        for kind in KINDS
    ],
)
def test_exception_of_a_callback_ends_its_own_stream_alone(world: World, name: str, kind: type[BaseException]) -> None:
    request = FAILING[name](Fault(kind))
    other = world.ask(Request({}))
    assert world.next(other) == "1"
    # Another stream with a client of its own.
    beside = world.ask(Request({}, {})) if world.is_async else None
    stream = None
    if (name, kind) in ENDS:
        world.end(world.ask(request))
    else:
        with pytest.raises(CallbackError) as caught:
            stream = world.ask(request)
            assert request.is_late
            while True:
                world.next(stream, 10)
        assert type(caught.value.__cause__) is kind
        assert kind.__name__ in str(caught.value)
        if stream is not None:
            assert stream.outcome == "error"
    if world.bridges:
        # Its loop serves other requests.
        assert is_open(other)
        with pytest.raises(CallbackError):
            request_sse(world.server.url, bridge=world.bridges[0], cancel=Flag(Fault(SystemExit))).events.collect()
    assert is_open(other)
    world.check_flags()
    assert is_open(other)
    world.end(other)
    if beside is not None:
        world.end(beside)


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
    with pytest.raises(SSEError):
        world.ask(Request({"content": Body() if is_class else body(), "timeout": {"total": 0.3}}))
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
    async def work() -> None:
        with CallersCode("work"):
            await asyncio.sleep(60)

    async def main() -> None:
        coroutine = work()
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0))
        # The coroutine was never started, so that close() runs none of it.
        await task
        coroutine.close()

    asyncio.run(main())
    suspended = work()
    asyncio._set_running_loop(None)
    suspended.close()


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

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main())
    finally:
        loop.close()
        signal.signal(signal.SIGINT, before)


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
        state = bridge._state
        assert state is not None
        loop, thread = state.loop, bridge._thread
        for kind in (SystemExit, KeyboardInterrupt):
            ran = threading.Event()
            loop.call_soon_threadsafe(Fault(kind))
            loop.call_soon_threadsafe(loop.call_later, 0.001, Fault(kind))
            asyncio.run_coroutine_threadsafe(task(kind), loop)
            loop.call_soon_threadsafe(loop.call_later, 0.02, ran.set)
            assert ran.wait(10)
        assert all(map(is_open, streams))
        assert bridge._state is state
        assert bridge._thread is thread
        logged = " ".join(record.getMessage() for record in caplog.records)
        assert "raised SystemExit; the loop goes on" in logged
        assert "raised KeyboardInterrupt; the loop goes on" in logged
        for stream in streams:
            stream.close()


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
