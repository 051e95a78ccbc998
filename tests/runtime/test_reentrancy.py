"""Every callback with every call of the library inside it: the call works, or is refused with a UsageError.

A call that would wait for the very thread that makes it must not wait. Each test has a second stream on the same
bridge, which must go on, unless the callback has closed the bridge.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    SSEError,
    UsageError,
    arequest_sse,
    gather,
    merge,
    relay,
    request_sse,
    tee,
)
from sseqbridge._streams.stream import reader_of
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, cut, hold, in_turn, raw, send, silence
from tests.support import in_thread, thread_of

# A stream that has ended in the meantime says so; a bridge that was closed, too.
ALLOWED = (UsageError, SSEError, StopIteration, TimeoutError)

pytestmark = [
    pytest.mark.configurations("default", "plain"),
    pytest.mark.filterwarnings("ignore:.*blocks the event loop that runs in this thread:RuntimeWarning"),
]


class World:
    """A bridge with a healthy stream, and a callback that makes one call."""

    def __init__(self, server: SSEServer, bridge: Bridge, name: str) -> None:
        self.server = server
        self.bridge = bridge
        self.other_bridge = Bridge()
        self.log = MemoryLog(bridge=bridge)
        self.other = request_sse(server.url, decode="text", bridge=bridge).events
        assert self.other.next(30) == "1"
        self.call = CALLS[name]
        # The stream whose callback it is, once there is one.
        self.own: Any = None
        self.frames: Any = None
        self.is_armed = True
        self.called = threading.Event()
        self.error: BaseException | None = None

    def __call__(self, *_: Any) -> Any:
        """Make the call, once."""
        if self.is_armed:
            self.is_armed = False
            try:
                self.call(self)
            except BaseException as error:
                self.error = error
            self.called.set()

    def ask(self, **options: Any) -> Any:
        return request_sse(self.server.url, bridge=self.bridge, **{"decode": "text", **options}).events

    def read(self, stream: Any) -> None:
        """Read until the callback was called, or the stream has ended."""
        self.own = stream
        while not self.called.is_set():
            try:
                stream.next(0.01)
            except TimeoutError:
                continue
            except ALLOWED:
                return


def fresh(world: World, bridge: Bridge) -> None:
    with request_sse(world.server.url, decode="text", bridge=bridge) as (_, _, items):
        assert items.next(30) == "1"


def read_on(stream: Any) -> None:
    if stream is not None:
        stream.next(0.01)


def loop_over(stream: Any) -> None:
    # A loop over a stream that nobody reads waits for its next event.
    if stream is not None and reader_of(stream).is_claimed:
        for _ in stream.keep_open():
            break


CALLS: dict[str, Callable[[World], object]] = {
    "close": lambda world: world.own is None or world.own.close(),
    "next": lambda world: read_on(world.own),
    "loop": lambda world: loop_over(world.own),
    "poll": lambda world: world.own is None or world.own.poll(),
    "close of the other": lambda world: world.other.close(),
    "next of the other": lambda world: read_on(world.other),
    "merge of the other": lambda world: merge([world.other]).close(),
    "tee of the other": lambda world: tee(world.other).close(),
    "request_sse": lambda world: fresh(world, world.bridge),
    "request_sse on another bridge": lambda world: fresh(world, world.other_bridge),
    "gather": lambda world: list(gather([], limit=1)),
    "Bridge.close": lambda world: world.bridge.close(),
    "close of another bridge": lambda world: world.other_bridge.close(),
    "Bridge.stats": lambda world: world.bridge.stats(),
    "Log.open": lambda world: world.log.open("other", lambda: world.ask(decode="text")).close(),
    "Log.cancel": lambda world: world.log.cancel("other"),
    "Log.close": lambda world: world.log.close(),
    "next of the relay": lambda world: world.frames is None or next(world.frames),
    "close of the relay": lambda world: world.frames is None or world.frames.close(),
}
# These end the healthy stream.
ENDING = ("close of the other", "Bridge.close", "merge of the other", "tee of the other")


class Auth(httpx.Auth):
    def __init__(self, world: World) -> None:
        self.world = world

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        self.world()
        yield request


class Flag:
    def __init__(self, world: World, *, on_loop: bool) -> None:
        self.world = world
        self.on_loop = on_loop

    def is_set(self) -> bool:
        if self.world.own is not None and (asyncio._get_running_loop() is not None) is self.on_loop:
            self.world()
        return False


def body(world: World) -> Iterator[bytes]:
    yield b"part"
    world()


async def abody(world: World) -> AsyncIterator[bytes]:
    yield b"part"
    world()


async def hook(world: World) -> None:
    world()


def decoded(world: World) -> Callable[[Any], str]:
    def decode(event: Any) -> str:
        if world.own is not None:
            world()
        return str(event.data)

    return decode


def with_option(**options: Callable[[World], Any]) -> Callable[[World], None]:
    def run(world: World) -> None:
        try:
            stream = world.ask(**{name: make(world) for name, make in options.items()})
        except ALLOWED:
            return
        world.read(stream)
        stream.close()

    return run


def reconnecting(world: World) -> None:
    script = in_turn([raw(b"retry: 1\nid: 1\ndata: 1\n\n"), cut()], [send("2"), silence()])
    with SSEServer(script) as server:
        stream = request_sse(
            server.url, bridge=world.bridge, decode="text", reconnect=True, on_reconnect=world
        ).events
        world.read(stream)
        stream.close()


def with_hook(world: World) -> None:
    async def on_request(request: Any) -> None:
        if world.own is not None:
            world()

    # Both streams are on this bridge.
    with Bridge(client=lambda: httpx.AsyncClient(event_hooks={"request": [on_request]})) as bridge:
        first = request_sse(world.server.url, decode="text", bridge=bridge).events
        world.bridge, world.own = bridge, first
        try:
            request_sse(world.server.url, bridge=bridge).events.close()
        except ALLOWED:
            pass
        first.close()


def with_client_function(world: World) -> None:
    def make() -> Any:
        world()
        return httpx.AsyncClient()

    with Bridge(client=make) as bridge:
        world.bridge = bridge
        try:
            request_sse(world.server.url, bridge=bridge).events.close()
        except ALLOWED:
            pass


def relayed(function: str) -> Callable[[World], None]:
    def run(world: World) -> None:
        stream = world.own = world.ask(**({} if function == "map" else {"decode": decoded(world)}))
        options: dict[str, Any] = {"map": lambda item: world() or "mapped"} if function == "map" else {}
        world.frames = relay.frames(stream, heartbeat=0.01, **options)
        try:
            while not world.called.is_set():
                next(world.frames)
        except StopIteration:
            pass
        world.frames.close()

    return run


def relayed_iterable(world: World) -> None:
    def items() -> Iterator[str]:
        world()
        yield "one"

    world.frames = relay.frames(items(), heartbeat=0.01)
    for _ in world.frames:
        pass


def started(world: World) -> None:
    def start() -> Any:
        world()
        return world.ask()

    try:
        world.log.open("key", start).close()
    except ALLOWED:
        pass


def produced(world: World) -> None:
    """`done` is called in a thread of the producer's."""
    try:
        stream = world.log.open("key", lambda: world.ask(done=lambda event: world()))
    except ALLOWED:
        return
    world.read(stream)
    stream.close()


def read_from_a_log(world: World) -> None:
    with world.log.open("key", world.ask, decode=decoded(world)) as stream:
        world.read(stream)


CALLBACKS: dict[str, Callable[[World], None]] = {
    "decode": with_option(decode=decoded),
    "done": with_option(done=lambda world: lambda event: world()),
    "cancel, on the loop": with_option(cancel=lambda world: Flag(world, on_loop=True)),
    "cancel, in the thread": with_option(cancel=lambda world: Flag(world, on_loop=False)),
    "on_reconnect": reconnecting,
    "body": with_option(content=body),
    "asynchronous body": with_option(content=abody),
    "auth": with_option(auth=Auth),
    "trace": with_option(extensions=lambda world: {"trace": lambda *_: hook(world)}),
    "event hook": with_hook,
    "client function": with_client_function,
    "map": relayed("map"),
    "decode in a relay": relayed("decode"),
    "relayed iterable": relayed_iterable,
    "start": started,
    "done in a producer": produced,
    "decode of a log's reader": read_from_a_log,
}


@pytest.fixture
def go_on() -> threading.Event:
    return threading.Event()


@pytest.fixture
def server(go_on: threading.Event) -> Iterator[SSEServer]:
    with SSEServer([send("1"), hold(go_on), send("2"), silence()]) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_call_in_a_callback(server: SSEServer, go_on: threading.Event, callback: str, call: str) -> None:
    with Bridge() as bridge:
        world = World(server, bridge, call)
        in_thread(lambda: CALLBACKS[callback](world)).result(60)
        assert world.called.wait(30), "the callback was not called"
        assert world.error is None or isinstance(world.error, ALLOWED), repr(world.error)
        go_on.set()
        if repr(bridge) == "<Bridge closed>":
            assert call == "Bridge.close"
            with pytest.raises(BridgeClosedError):
                world.other.collect()
        elif world.other.outcome is None:
            # Its events are delivered, and the flags are checked.
            assert world.other.next(30) == "2"
            flag = threading.Event()
            watched = request_sse(server.url, decode="text", cancel=flag, bridge=bridge).events
            assert watched.next(30) == "1"
            flag.set()
            assert list(watched) in ([], ["2"])
            world.other.close()
        else:
            assert call in ENDING
            assert not thread_of(bridge).has_ended
        world.log.close()
        world.other_bridge.close()


@pytest.mark.parametrize("on_bridge", [False, True])
@pytest.mark.parametrize("callback", ["body", "auth", "hook"])
def test_coroutine_in_a_callback(server: SSEServer, callback: str, on_bridge: bool) -> None:
    """Asynchronous code of the caller's may use arequest_sse on the loop that runs it."""
    got = []

    async def call() -> None:
        response = await arequest_sse(server.url, decode="text")
        async with response as (_, _, items):
            got.append(await items.next())

    async def content() -> AsyncIterator[bytes]:
        await call()
        yield b"part"

    class AsyncAuth(httpx.Auth):
        async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
            await call()
            yield request

    async def on_request(*_: Any) -> None:
        if not got:
            await call()

    all_options: dict[str, dict[str, Any]] = {
        "body": {"content": content()},
        "auth": {"auth": AsyncAuth()},
        "hook": {"extensions": {"trace": on_request}},
    }
    options = all_options[callback]

    async def main() -> None:
        response = await arequest_sse(server.url, **options)
        await response.events.aclose()

    if on_bridge:
        with Bridge() as bridge:
            request_sse(server.url, bridge=bridge, **options).events.close()
    else:
        asyncio.run(main())
    assert got == ["1"]
