"""Every callback with every kind of exception: its own stream ends, and nothing else is affected.

Each test has a second, healthy stream on the same bridge (or the same loop of the caller's). Afterwards it must
deliver its next event, the bridge must have the same loop thread, and the timer that checks cancel flags must run.

In a thread of the caller's, an exit or interrupt (an exception that is not an Exception) is the thread's own and
passes through; on an event loop it is a CallbackError.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import httpx
import pytest
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Route

from sseqbridge import (
    Bridge,
    CallbackError,
    DecodeError,
    ReconnectionPolicy,
    SSEClient,
    SSEError,
    amerge,
    arequest_sse,
    gather,
    merge,
    relay,
    request_sse,
    tee,
)
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, cut, hold, raw, respond, send, silence
from tests.requesters import Caller
from tests.support import INTERFACES, thread_of

from .callers_code import ENDS, FAILING, KINDS, KINDS_HERE, Fault, Interrupted

pytestmark = pytest.mark.slow

# Exceptions that do not interrupt the thread of a web server.
REPORTED = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)

# A relay's error event.
ERROR = b"event: error"


# One TLS context for all: it takes 20 ms to build.
new_client = partial(httpx.AsyncClient, verify=ssl.create_default_context())


class Loops(Caller):
    """A bridge, or a loop of the caller's, with one healthy stream."""

    def __init__(self, kind: type[BaseException], *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self.kind = kind
        self.fault = Fault(kind)
        self.is_exit = not issubclass(kind, Exception)
        self.go_on = threading.Event()
        self.healthy = SSEServer([send("1"), hold(self.go_on), send("2"), silence()]).__enter__()
        # The server of the stream with the callback.
        self.server = SSEServer([send("1"), silence()]).__enter__()
        self.begin(Bridge())

    def begin(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.bridge.started()
        self.other = self.ask(self.healthy.url)
        assert self.next(self.other) == "1"
        self.thread = thread_of(self.bridge)

    def begin_with(self, *clients: Callable[[], Any]) -> None:
        """Have the bridge call these functions for its next clients, after that of the healthy stream."""
        self.end(self.other)
        self.bridge.close()
        functions: Iterator[Callable[[], Any]] = itertools.chain([new_client, *clients], itertools.repeat(new_client))
        self.begin(Bridge(client=lambda: next(functions)()))  # noqa: PLW0108 (another function each time)

    def ask(self, url: str, **options: Any) -> Any:
        options = {"decode": "text", **options}
        if self.is_async:
            return self.run(arequest_sse(url, **options)).events
        return request_sse(url, bridge=self.bridge, **options).events

    def next(self, stream: Any) -> Any:
        return self.run(stream.next(30))

    def fails(self, of_an_exception: type[BaseException] | None = None) -> AbstractContextManager[Any]:
        """Expect the error for the fault: for an exit, itself in a thread and a CallbackError on a loop."""
        if not self.is_exit:
            return pytest.raises(of_an_exception or self.kind)
        return pytest.raises(CallbackError if self.is_async else self.kind)

    def check(self) -> None:
        """Check that nothing but the stream with the callback was affected."""
        assert self.other.poll() == []
        self.fault.is_armed = False
        flag = threading.Event()
        watched = self.ask(self.healthy.url, cancel=flag)
        assert self.next(watched) == "1"
        flag.set()
        with pytest.raises((StopIteration, StopAsyncIteration)):
            self.next(watched)
        assert watched.outcome == "closed"
        self.go_on.set()
        assert self.next(self.other) == "2"
        assert thread_of(self.bridge) is self.thread
        assert not self.thread.has_ended
        self.end(self.other)

    def end(self, stream: Any) -> None:
        self.run(stream.aclose() if self.is_async else stream.close())

    def close(self) -> None:
        self.fault.is_armed = False
        self.go_on.set()
        self.bridge.close()
        super().close()
        self.server.__exit__(None, None, None)
        self.healthy.__exit__(None, None, None)


@pytest.fixture(params=KINDS_HERE, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=INTERFACES)
def loops(request: pytest.FixtureRequest, kind: type[BaseException]) -> Iterator[Loops]:
    made = Loops(kind, is_async=request.param == "async")
    yield made
    made.close()


@pytest.fixture
def bridge_loops(kind: type[BaseException]) -> Iterator[Loops]:
    made = Loops(kind, is_async=False)
    yield made
    made.close()


@pytest.fixture
def callers_loops(kind: type[BaseException]) -> Iterator[Loops]:
    made = Loops(kind, is_async=True)
    yield made
    made.close()


# Code that an event loop runs.


@pytest.mark.parametrize("name", FAILING)
def test_code_on_a_loop(loops: Loops, name: str) -> None:
    request = FAILING[name](loops.fault)
    options = dict(request.options)
    if request.client is not None:
        client = partial(new_client, **request.client)
        if loops.is_async:
            options["client"] = client()
        else:
            loops.begin_with(client)
    if (name, loops.kind) in ENDS:
        loops.end(loops.ask(loops.server.url, **options))
        loops.check()
        return
    stream = None
    with pytest.raises(CallbackError) as caught:
        stream = loops.ask(loops.server.url, **options)
        assert request.is_late
        while True:
            loops.next(stream)
    assert type(caught.value.__cause__) is loops.kind
    assert loops.kind.__name__ in str(caught.value)
    assert stream is None or stream.outcome == "error"
    loops.check()


# Functions that the consumer runs.


def test_decode(loops: Loops) -> None:
    stream = loops.ask(loops.server.url, decode=loops.fault)
    with loops.fails(DecodeError):
        loops.next(stream)
    assert stream.outcome == ("closed" if loops.is_exit and not loops.is_async else "error")
    loops.check()


def test_decode_in_a_cancelled_task(callers_loops: Loops) -> None:
    """Which has caught its cancellation: a CancelledError is not taken for another one."""
    loops = callers_loops

    async def read(stream: Any) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            with pytest.raises((CallbackError, DecodeError)):
                await stream.next()

    async def main(stream: Any) -> None:
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        reading.cancel()
        await reading

    stream = loops.ask(loops.server.url, decode=loops.fault)
    loops.run(main(stream))
    assert stream.outcome == "error"
    loops.check()


@pytest.mark.parametrize("way", ["poll", "loop", "keep_open", "collect"])
def test_decode_in_other_ways_of_reading(bridge_loops: Loops, way: str) -> None:
    loops = bridge_loops

    def decode(event: Any) -> Any:
        return event.data if event.data == "1" else loops.fault()

    with SSEServer([raw(b"data: 1\n\ndata: 2\n\ndata: 3\n\n"), silence()]) as server:
        stream = loops.ask(server.url, decode=decode)
        got: list[Any] = []
        with loops.fails(DecodeError):
            if way == "poll":
                while True:
                    got += stream.poll()
            elif way == "collect":
                stream.collect()
            else:
                got.extend(stream if way == "loop" else stream.keep_open())
        # Not even a GeneratorExit leaves the stream open behind a lost event.
        assert stream.outcome == ("closed" if loops.is_exit else "error")
        assert got in ([], ["1"])
    loops.check()


def test_done(loops: Loops) -> None:
    stream = loops.ask(loops.server.url, done=loops.fault)
    with loops.fails(CallbackError):
        loops.next(stream)
    assert stream.outcome == ("closed" if loops.is_exit and not loops.is_async else "error")
    # Its event was not delivered.
    assert stream.last_event is None
    loops.check()


def test_cancel_flag_in_the_consumers_thread(bridge_loops: Loops) -> None:
    loops = bridge_loops

    class Flag:
        def is_set(self) -> bool:
            if asyncio._get_running_loop() is None and is_open:
                loops.fault()
            return False

    is_open = False
    stream = loops.ask(loops.server.url, cancel=Flag())
    is_open = True
    with loops.fails(CallbackError):
        loops.next(stream)
    assert stream.outcome == ("closed" if loops.is_exit else "error")
    loops.check()


def test_cancel_flag_before_the_request(loops: Loops) -> None:
    class Flag:
        def is_set(self) -> bool:
            return bool(loops.fault())

    with loops.fails(CallbackError):
        loops.ask(loops.server.url, cancel=Flag())
    assert not loops.server.requests
    loops.check()


@pytest.mark.parametrize("is_open", [False, True])
def test_on_reconnect(loops: Loops, is_open: bool) -> None:
    script = [raw(b"retry: 1\nid: 1\ndata: 1\n\n"), cut()] if is_open else [cut()]
    expected = CallbackError if loops.kind in (StopIteration, StopAsyncIteration) else None
    with SSEServer(script) as server, loops.fails(expected):
        stream = loops.ask(server.url, reconnect=True, on_reconnect=loops.fault)
        assert is_open
        assert loops.next(stream) == "1"
        loops.next(stream)
    loops.check()


def test_headers_function(loops: Loops) -> None:
    """For a coroutine it runs in a thread of its own."""
    client = SSEClient(loops.server.url, headers=loops.fault, bridge=None if loops.is_async else loops.bridge)
    with loops.fails(CallbackError):
        loops.run((client.arequest if loops.is_async else client.request)("/"))
    assert not loops.server.requests
    loops.check()


def test_headers_function_of_a_reconnection(loops: Loops) -> None:
    """The function runs in a thread of its own, so that every exception ends its stream alone."""
    client = SSEClient(headers=loops.fault, reconnect=True, bridge=None if loops.is_async else loops.bridge)
    loops.fault.is_armed = False
    with SSEServer([raw(b"retry: 1\nid: 1\ndata: 1\n\n"), cut()]) as server:
        stream = loops.run((client.arequest if loops.is_async else client.request)(server.url)).events
        loops.fault.is_armed = True
        assert loops.next(stream) == 1
        with pytest.raises(CallbackError) as caught:
            loops.next(stream)
    assert type(caught.value.__cause__) is loops.kind
    loops.check()


def test_resume(loops: Loops) -> None:
    """The function runs in a thread of its own, so that an exit does not reach the consumer's thread."""
    policy = ReconnectionPolicy(delay=0.01, resume=loops.fault)
    with SSEServer([raw(b"id: 1\ndata: 1\n\n"), cut()]) as server:
        stream = loops.ask(server.url, data={}, reconnect=policy)
        assert loops.next(stream) == "1"
        with pytest.raises(CallbackError) as caught:
            loops.next(stream)
        assert type(caught.value.__cause__) is loops.kind
        assert stream.outcome == "error"
        assert len(server.requests) == 1
    loops.check()


def test_iterable_body_that_cannot_be_iterated_over(loops: Loops) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            loops.fault()
            raise AssertionError("the fault must be armed")

    with loops.fails(CallbackError):
        loops.ask(loops.server.url, content=Body())
    loops.check()


def test_client_function(bridge_loops: Loops) -> None:
    loops = bridge_loops
    loops.begin_with(loops.fault)
    with loops.fails(CallbackError):
        loops.ask(loops.server.url)
    loops.check()


# Many streams.


class Streams:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __iter__(self) -> Streams:
        return self

    def __next__(self) -> Any:
        self.fault()


@pytest.mark.parametrize("function", [merge, gather])
def test_iterable_of_streams(bridge_loops: Loops, function: Any) -> None:
    loops = bridge_loops
    if loops.kind is StopIteration:
        assert list(function(Streams(loops.fault))) == []
    else:
        with loops.fails():
            list(function(Streams(loops.fault)))
    loops.check()


def test_iterable_of_asynchronous_streams(callers_loops: Loops) -> None:
    loops = callers_loops

    async def collect() -> list[Any]:
        return [named async for named in amerge(Streams(loops.fault))]

    if loops.kind is StopIteration:
        assert loops.run(collect()) == []
    else:
        with loops.fails(CallbackError if loops.kind is StopAsyncIteration else None):
            loops.run(collect())
    loops.check()


def test_decode_of_a_merged_stream(loops: Loops) -> None:
    """With errors="yield", an Exception ends its own stream; an exit in a thread ends the loop."""
    bad = loops.ask(loops.server.url, decode=loops.fault)
    good = loops.ask(loops.server.url)

    async def acollect() -> list[Any]:
        named: list[Any] = []
        async with amerge({"bad": bad, "good": good}, errors="yield") as merged:
            while len(named) < 2:
                named.append(await anext(merged))
        return named

    def collect() -> list[Any]:
        with merge({"bad": bad, "good": good}, errors="yield") as merged:
            named = iter(merged)
            return [next(named), next(named)]

    if loops.is_exit and not loops.is_async:
        with pytest.raises(loops.kind):
            collect()
        assert (bad.outcome, good.outcome) == ("closed", "closed")
    else:
        results = dict(loops.run(acollect()) if loops.is_async else collect())
        assert results["good"] == "1"
        assert isinstance(results["bad"], CallbackError if loops.is_exit else DecodeError)
    loops.check()


@pytest.mark.parametrize("way", ["function", "coroutine function", "gather"])
def test_function_that_opens_a_stream(loops: Loops, way: str) -> None:
    """The function runs in a thread or task of its own, and the consumer receives every exception."""
    good = loops.ask(loops.server.url)

    async def open_stream() -> Any:
        loops.fault()

    async def acollect() -> Any:
        function = loops.fault if way == "function" else open_stream
        async with amerge({"bad": function, "good": good}, errors="yield") as merged:
            return dict([await anext(merged), await anext(merged)])

    def collect() -> Any:
        with merge({"bad": loops.fault, "good": good}, errors="yield") as merged:
            named = iter(merged)
            return dict([next(named), next(named)])

    if way == "gather" and not loops.is_async:
        results = {**dict(gather({"bad": loops.fault}, errors="yield")), "good": loops.next(good)}
        good.close()
    else:
        results = loops.run(acollect()) if loops.is_async else collect()
    assert results["good"] == "1"
    assert type(results["bad"]) is CallbackError
    assert type(results["bad"].__cause__) is loops.kind
    loops.check()


def test_decode_of_one_reader_of_a_tee(bridge_loops: Loops) -> None:
    loops = bridge_loops
    calls = threading.local()

    def decode(event: Any) -> Any:
        return loops.fault() if getattr(calls, "fail", True) else event.data

    first, second = tee(loops.ask(loops.server.url, decode=decode))
    with loops.fails(DecodeError):
        next(first)
    calls.fail = False
    assert next(second) == "1"
    assert second.outcome is None
    second.close()
    loops.check()


# Relays.


def rest(frames: Any) -> bytes:
    return b"".join(frames)


async def arest(frames: Any) -> bytes:
    return b"".join([piece async for piece in frames])


@pytest.mark.parametrize("name", ["map", "decode", "done", "on_reconnect"])
def test_function_of_a_relayed_stream(loops: Loops, name: str) -> None:
    """The thread belongs to a web server: an exit is reported to the client, an interrupt ends the relay."""
    options: dict[str, Any] = {} if name == "map" else {name: loops.fault}
    if name == "on_reconnect":
        options["reconnect"] = True
    with SSEServer([raw(b"retry: 1\nid: 1\ndata: 1\n\n"), cut()]) as server:
        stream = loops.ask(server.url, **options)
        chosen: dict[str, Any] = {"map": loops.fault} if name == "map" else {}
        frames: Any = (relay.aframes if loops.is_async else relay.frames)(stream, **chosen)
        if loops.is_async:
            assert ERROR in loops.run(arest(frames))
        elif issubclass(loops.kind, REPORTED):
            assert ERROR in rest(frames)
        else:
            with pytest.raises(loops.kind):
                rest(frames)
            assert rest(frames) == b""
        assert stream.outcome is not None
    loops.check()


def test_error_function_of_a_relay(loops: Loops) -> None:
    """It breaks the connection to the client off: without an error event the relay would look complete."""
    ends_iterations = loops.kind in (StopIteration, StopAsyncIteration)
    is_replaced = ends_iterations or (loops.is_exit and (loops.is_async or issubclass(loops.kind, REPORTED)))
    with SSEServer([raw(b"data: 1\n\n"), cut()]) as server:
        frames: Any = (relay.aframes if loops.is_async else relay.frames)(loops.ask(server.url), error=loops.fault)
        with pytest.raises(CallbackError if is_replaced else loops.kind):
            loops.run(arest(frames)) if loops.is_async else rest(frames)
        frames.close() if not loops.is_async else loops.run(frames.aclose())
    loops.check()


def test_refusal_function_of_a_relay(loops: Loops) -> None:
    """It is called before the response. An Exception is the view's own, an exit would end the server."""
    with SSEServer([respond(401, json={})]) as server:

        async def endpoint(request: Any) -> Any:
            response = await arequest_sse(server.url)
            return relay.starlette.stream_response(response, refusal=loops.fault)

        def view() -> Any:
            return relay.flask.stream_response(request_sse(server.url, bridge=loops.bridge), refusal=loops.fault)

        async def aget() -> None:
            transport = httpx.ASGITransport(Starlette(routes=[Route("/", endpoint)]))
            async with httpx.AsyncClient(transport=transport) as client:
                await client.get("http://application/")

        def get() -> None:
            application = Flask(__name__)
            application.testing = True
            application.add_url_rule("/", view_func=view)
            application.test_client().get("/")

        is_replaced = loops.is_exit and (loops.is_async or issubclass(loops.kind, REPORTED))
        # Python replaces the StopIteration of a coroutine.
        passed = RuntimeError if loops.is_async and loops.kind is StopIteration else loops.kind
        with pytest.raises(CallbackError if is_replaced else passed):
            loops.run(aget()) if loops.is_async else get()
    loops.check()


@pytest.mark.parametrize("where", ["item", "closing", "map", "iter"])
def test_relayed_iterable(loops: Loops, where: str) -> None:
    def items() -> Iterator[str]:
        try:
            yield "one"
            if where == "item":
                loops.fault()
        finally:
            if where == "closing":
                loops.fault()

    async def aitems() -> AsyncIterator[str]:
        for item in items():
            yield item

    class NotIterable:
        def __iter__(self) -> Iterator[str]:
            loops.fault()
            raise AssertionError("the fault must be armed")

    class NotAsynchronouslyIterable:
        def __aiter__(self) -> AsyncIterator[str]:
            loops.fault()
            raise AssertionError("the fault must be armed")

    options: dict[str, Any] = {"map": loops.fault} if where == "map" else {}
    if loops.is_async:
        # An asynchronous server runs an iterable in a thread.
        for source in (NotIterable(), NotAsynchronouslyIterable()) if where == "iter" else (items(), aitems()):
            assert ERROR in loops.run(arest(relay.aframes(source, **options)))
    else:
        assert ERROR in rest(relay.frames(NotIterable() if where == "iter" else items(), **options))
    loops.check()


@pytest.mark.parametrize("of_an_iterable", [False, True])
def test_on_item_of_a_relay(loops: Loops, of_an_iterable: bool) -> None:
    ends: list[Any] = []
    source: Any = iter(["one"]) if of_an_iterable else loops.ask(loops.server.url)
    frames: Any = (relay.aframes if loops.is_async else relay.frames)(
        source, on_item=loops.fault, on_end=ends.append
    )
    if loops.is_async or of_an_iterable or issubclass(loops.kind, REPORTED):
        assert ERROR in (loops.run(arest(frames)) if loops.is_async else rest(frames))
        [end] = ends
        assert end.outcome == "error"
        if issubclass(loops.kind, REPORTED):
            assert type(end.error) is CallbackError
            assert type(end.error.__cause__) is loops.kind
    else:
        with pytest.raises(loops.kind):
            rest(frames)
        frames.close()
        assert [type(end.error) for end in ends] == [loops.kind]
    if not of_an_iterable:
        assert source.outcome is not None
    loops.check()


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_on_end_of_a_relay(
    loops: Loops, caplog: pytest.LogCaptureFixture, is_coroutine: bool
) -> None:
    """The exception is logged; in the thread of a web server an interrupt passes through."""
    with SSEServer([send("1"), send("[DONE]")]) as server:
        stream = loops.ask(server.url)
        if loops.is_async:
            on_end: Any = loops.fault.aio if is_coroutine else loops.fault
            assert loops.run(arest(relay.aframes(stream, on_end=on_end))).endswith(b"data: [DONE]\n\n")
        elif issubclass(loops.kind, REPORTED):
            assert rest(relay.frames(stream, on_end=loops.fault)).endswith(b"data: [DONE]\n\n")
        else:
            frames = relay.frames(stream, on_end=loops.fault)
            with pytest.raises(loops.kind):
                rest(frames)
            frames.close()
            loops.check()
            return
    assert "`on_end` failed" in caplog.text
    loops.check()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("is_coroutine", [False, True])
def test_function_that_opens_a_relays_stream(loops: Loops, early: bool, is_coroutine: bool) -> None:
    ends: list[Any] = []
    if loops.is_async:
        function: Any = loops.fault.aio if is_coroutine else loops.fault
        frames: Any = relay.aframes(function, early=early, on_end=ends.append)
        assert ERROR in loops.run(arest(frames))
        [end] = ends
        is_plain = issubclass(loops.kind, Exception) and loops.kind not in (StopIteration, StopAsyncIteration)
        assert isinstance(end.error, loops.kind if is_plain else (CallbackError, RuntimeError))
        with pytest.raises(loops.kind if is_plain else (CallbackError, RuntimeError)):
            loops.run(relay.aframes(function).open())
        loops.check()
        return
    # An exit of the function is reported; Ctrl-C is its thread's.
    is_exit = issubclass(loops.kind, (SystemExit, GeneratorExit, asyncio.CancelledError))
    raised = CallbackError if is_exit else loops.kind
    frames = relay.frames(loops.fault, early=early, on_end=ends.append)
    if early or issubclass(raised, REPORTED):
        assert ERROR in rest(frames)
    else:
        with pytest.raises(raised):
            rest(frames)
        frames.close()
    # Python replaces the StopIteration of a generator, in which the worker calls the function.
    ended = RuntimeError if early and loops.kind is StopIteration else raised
    assert [type(end.error) for end in ends] == [ended]
    with pytest.raises(raised):
        relay.frames(loops.fault).open()
    loops.check()


# Logs.


@pytest.fixture
def log(loops: Loops) -> Iterator[MemoryLog]:
    with MemoryLog(bridge=loops.bridge) as log:
        yield log


@pytest.mark.parametrize("way", ["open", "produce"])
@pytest.mark.parametrize("is_coroutine", [False, True])
def test_start_of_a_log(loops: Loops, log: MemoryLog, way: str, is_coroutine: bool) -> None:
    async def start() -> Any:
        loops.fault()

    function: Any = start if is_coroutine and loops.is_async else loops.fault
    ends_iterations = loops.kind in (StopIteration, StopAsyncIteration)
    with loops.fails(CallbackError if loops.is_async and ends_iterations else None):
        if loops.is_async:
            loops.run(getattr(log, f"a{way}")("key", function))
        else:
            getattr(log, way)("key", function)
    # The stream can be begun again.
    with pytest.raises(SSEError):
        log.open("key", last_event_id="1-1")
    loops.check()


@pytest.mark.parametrize("way", ["open", "produce"])
@pytest.mark.parametrize("where", ["item", "closing", "iter"])
@pytest.mark.parametrize("is_async_iterable", [False, True])
def test_iterable_of_a_log(loops: Loops, log: MemoryLog, way: str, where: str, is_async_iterable: bool) -> None:
    def items() -> Iterator[str]:
        try:
            yield "1"
            if where == "item":
                loops.fault()
        finally:
            if where == "closing":
                loops.fault()

    async def aitems() -> AsyncIterator[str]:
        for item in items():
            yield item

    class NotIterable:
        def __iter__(self) -> Iterator[str]:
            loops.fault()
            raise AssertionError("the fault must be armed")

    class NotAsynchronouslyIterable:
        def __aiter__(self) -> AsyncIterator[str]:
            loops.fault()
            raise AssertionError("the fault must be armed")

    if where == "iter":
        start: Any = NotAsynchronouslyIterable if is_async_iterable else NotIterable
    else:
        start = aitems if is_async_iterable else items

    def call() -> Any:
        result = loops.run(getattr(log, f"a{way}" if loops.is_async else way)("key", start))
        while way == "open":
            loops.next(result)

    with pytest.raises(CallbackError):
        call()
    with pytest.raises(CallbackError):
        log.open("key", decode="text").collect()
    loops.check()


@pytest.mark.parametrize("name", ["done", "on_reconnect"])
def test_function_of_a_logs_upstream(loops: Loops, log: MemoryLog, name: str) -> None:
    """The producer calls it in a thread, and all readers get its error."""
    options: dict[str, Any] = {name: loops.fault, "reconnect": name == "on_reconnect"}
    with SSEServer([raw(b"retry: 1\nid: 1\ndata: 1\n\n"), cut()]) as server:

        def start() -> Any:
            return request_sse(server.url, bridge=loops.bridge, **options)

        stream = loops.run(log.aopen("key", start)) if loops.is_async else log.open("key", start)
        with pytest.raises(CallbackError):
            while True:
                loops.next(stream)
        with pytest.raises(CallbackError):
            log.open("key").collect()
    loops.check()


@pytest.mark.parametrize("name", ["decode", "cancel"])
def test_function_of_a_logs_reader(loops: Loops, log: MemoryLog, name: str) -> None:
    class Flag:
        def is_set(self) -> bool:
            return bool(is_open and loops.fault())

    is_open = False
    options: dict[str, Any] = {"decode": loops.fault} if name == "decode" else {"cancel": Flag()}

    def start() -> Any:
        return request_sse(loops.server.url, bridge=loops.bridge, decode="text")

    good = log.open("key", start, decode="text")
    stream = loops.run(log.aopen("key", **options)) if loops.is_async else log.open("key", **options)
    is_open = True
    with pytest.raises((CallbackError, DecodeError, loops.kind)) as caught:
        loops.next(stream)
    assert isinstance(caught.value, SSEError) or (loops.is_exit and not loops.is_async)
    assert good.next(30) == "1"
    good.close()
    loops.check()


def test_every_kind_is_tested() -> None:
    assert {Interrupted, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError} <= set(KINDS)
    assert {StopIteration, MemoryError, RecursionError} <= set(KINDS)
