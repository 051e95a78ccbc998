"""Races: each pair of operations that can meet, in both orders, then all of them at random.

    python -m tests.engine.test_races 10000 1      rounds of the stress test, and their seed

The transport calls back at each of its steps, on the loop thread, where a test runs the other operation first: no
order depends on a sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, BridgeClosedError, EventStream, RequestAbortedError, SSEError, UsageError, request_sse
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import SSEServer, send, silence
from tests.support import in_thread, is_waiting, python, together, until

pytestmark = [pytest.mark.blocks_its_loop, pytest.mark.slow]

Hook = Callable[[], object]


class Meeting:
    """A point at which the loop thread waits until the test has acted."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.go_on.wait(30)

    def during(self, function: Hook) -> None:
        """Act while the loop thread waits."""
        assert self.reached.wait(30)
        try:
            function()
        finally:
            self.go_on.set()


class Body(httpx.AsyncByteStream):
    def __init__(self, transport: Steps) -> None:
        self.transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, chunk in enumerate(self.transport.chunks):
            self.transport.meet(f"read {number}")
            yield chunk
            # Yields to the loop, as a network does.
            await asyncio.sleep(0)
        self.transport.meet("end")
        if self.transport.stays_open:
            await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        self.transport.closed += 1


class Steps(httpx.AsyncBaseTransport):
    """An upstream in memory, with a hook at each step: "connect", "read 0", "read 1", ..., "end"."""

    def __init__(self, chunks: list[bytes], hooks: dict[str, Hook] | None = None, *, stays_open: bool = False) -> None:
        self.chunks = chunks
        self.hooks = hooks or {}
        self.stays_open = stays_open
        self.closed = 0

    def meet(self, step: str) -> None:
        self.hooks.get(step, lambda: None)()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.meet("connect")
        await asyncio.sleep(0)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(self))


CHUNKS = [b"data: %d\n\n" % n for n in range(3)]


@pytest.fixture
def ask() -> Iterator[Callable[..., EventStream[Any]]]:
    """A function that opens a stream on a transport, with a bridge of its own."""
    bridges: list[Bridge] = []

    def open_stream(transport: Steps, **options: Any) -> EventStream[Any]:
        make = partial(httpx.AsyncClient, transport=transport)
        bridges.append(Bridge(client=make))
        return request_sse("http://upstream/", bridge=bridges[-1], **options).events

    yield open_stream
    for bridge in bridges:
        bridge.close()


Ask = Callable[..., EventStream[Any]]


@pytest.mark.parametrize("step", ["read 1", "end"])
@pytest.mark.parametrize("reads", [False, True], ids=["no consumer", "a consumer waits"])
def test_close_against_arrival(ask: Ask, step: str, reads: bool) -> None:
    """Close just before an arrival: the consumer ends quietly with its items, and the upstream is closed."""
    meeting = Meeting()
    transport = Steps(CHUNKS, {step: meeting}, stays_open=True)
    stream = ask(transport)
    reading: Future[list[Any]] | None = in_thread(partial(list, stream)) if reads else None
    assert meeting.reached.wait(30)
    # In another thread, since it waits for the loop thread.
    closing = in_thread(stream.close)
    until(lambda: reader_of(stream).cursor.channel.closed)
    meeting.go_on.set()
    closing.result(30)
    got = list(stream) if reading is None else reading.result(30)
    assert got == list(range(len(got)))
    assert stream.outcome == "closed"
    until(lambda: transport.closed == 1)


def test_arrival_against_close(ask: Ask) -> None:
    """An arrival just before close: the consumer gets no more items."""
    meeting = Meeting()
    stream = ask(Steps(CHUNKS, {"end": meeting}, stays_open=True))
    assert next(stream) == 0
    assert meeting.reached.wait(30)
    until(lambda: stream.stats.events == 3)
    closing = in_thread(stream.close)
    until(lambda: reader_of(stream).cursor.channel.closed)
    assert list(stream) == []
    meeting.go_on.set()
    closing.result(30)


def test_close_against_close(ask: Ask) -> None:
    transport = Steps(CHUNKS, stays_open=True)
    stream = ask(transport)
    together([stream.close] * 20)
    assert stream.outcome == "closed"
    assert transport.closed == 1


@pytest.mark.parametrize("reads", [False, True], ids=["no consumer", "a consumer waits"])
def test_close_against_the_end(ask: Ask, reads: bool) -> None:
    meeting = Meeting()
    transport = Steps(CHUNKS, {"end": meeting})
    stream = ask(transport)
    reading: Future[list[Any]] | None = in_thread(partial(list, stream)) if reads else None
    if reading is not None:
        until(lambda: is_waiting(reading))
    assert meeting.reached.wait(30)
    closing = in_thread(stream.close)
    until(lambda: reader_of(stream).cursor.channel.closed)
    meeting.go_on.set()
    closing.result(30)
    got = list(stream) if reading is None else reading.result(30)
    assert got == list(range(len(got)))
    assert stream.outcome == "closed"
    until(lambda: transport.closed == 1)


def test_the_end_against_close(ask: Ask) -> None:
    """Close after an end that was not read: quiet, without an abort."""
    transport = Steps(CHUNKS)
    stream = ask(transport)
    until(lambda: reader_of(stream).cursor.subscription.finished)
    together([stream.close] * 10)
    assert list(stream) == []
    assert transport.closed == 1


@pytest.mark.parametrize("cancel_by", ["flag", "bridge"])
def test_cancel_against_connect(cancel_by: str) -> None:
    """Cancel while connecting: the call ends, and the connection is closed."""
    meeting = Meeting()
    flag = threading.Event()
    transport = Steps(CHUNKS, {"connect": meeting}, stays_open=True)
    make = partial(httpx.AsyncClient, transport=transport)
    with Bridge(client=make) as bridge:
        asking = in_thread(lambda: request_sse("http://upstream/", bridge=bridge, cancel=flag))
        meeting.during(flag.set if cancel_by == "flag" else lambda: in_thread(bridge.close))
        try:
            stream = asking.result(30).events
        except SSEError as error:
            assert isinstance(error, RequestAbortedError) == (cancel_by == "flag")
        else:
            # The response came before the flag was checked.
            got: list[Any] = []
            try:
                got.extend(stream)
            except BridgeClosedError:
                assert cancel_by == "bridge"
            else:
                assert stream.outcome == "closed"
            assert got == list(range(len(got)))


@pytest.mark.parametrize("first", ["abort", "room"])
def test_backpressure_against_abort(ask: Ask, first: str) -> None:
    """Close at the moment when a paused producer has room again."""
    big = b'data: "%s"\n\n' % (b"x" * 1000)
    transport = Steps([big] * 50, stays_open=True)
    stream = ask(transport, max_buffered_bytes=3000)
    channel = reader_of(stream).cursor.channel
    until(lambda: channel.buffered > 1500 and channel.is_producer_waiting)
    loop_stands = Meeting()
    reader_of(stream).cursor.subscription.loop.call_soon_threadsafe(loop_stands)
    assert loop_stands.reached.wait(30)
    if first == "abort":
        closing = in_thread(stream.close)
        until(lambda: reader_of(stream).cursor.channel.closed)
        assert list(stream) == []
    else:
        # Read until the producer was woken, but has not run yet.
        for _ in range(2):
            next(stream)
        closing = in_thread(stream.close)
        until(lambda: reader_of(stream).cursor.channel.closed)
    loop_stands.go_on.set()
    closing.result(30)
    until(lambda: transport.closed == 1)
    assert stream.stats.buffered <= 6000


FORK_OR_EXIT = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from sseqbridge import request_sse
from sseqbridge._runtime import loops
url, what = sys.argv[1:]
reached, go_on = threading.Event(), threading.Event()
make = loops.new_event_loop
def slowly():
    reached.set()
    # An exit waits for the start of a loop.
    go_on.wait(0.5 if what == "exit" else 10)
    return make()
loops.new_event_loop = slowly
def ask():
    try:
        print(next(request_sse(url).events), flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
thread = threading.Thread(target=ask, daemon=True)
thread.start()
reached.wait(30)
# A bridge is starting now: its lock is held, its thread is starting.
if what == "fork":
    child = os.fork()
    if not child:
        loops.new_event_loop = make
        it = request_sse(url).events
        print(next(it), flush=True)
        it.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    thread.join()
else:
    threading.Timer(0.2, go_on.set).start() if what == "exit, then start" else None
    print("exit", flush=True)
"""


@pytest.mark.parametrize(
    ("what", "printed"),
    [
        ("fork", {"1\n1\n"}),
        # The thread that asks may learn of the exit before the interpreter stops it.
        ("exit", {"exit\n", "exit\nBridgeClosedError\n"}),
        ("exit, then start", {"exit\n", "exit\n1\n", "exit\nUsageError\n", "exit\nBridgeClosedError\n"}),
    ],
)
def test_fork_and_exit_against_start(what: str, printed: set[str]) -> None:
    with SSEServer([send(1), silence()]) as server:
        status, out, err = python(FORK_OR_EXIT, server.url, what)
        assert (status, err) == (0, "")
        # At exit the line of the thread that asks may be cut off.
        assert out in printed or (what != "fork" and any(line.startswith(out) for line in printed))
        assert out.startswith("1\n" if what == "fork" else "exit\n")
        for request in server.requests:
            request.wait_aborted()


# At random.


class Round:
    """One stream with one reader, while other threads disturb it."""

    def __init__(self, chance: random.Random, bridge: Bridge) -> None:
        self.flag = threading.Event()
        self.bridge = bridge
        self.chance = chance
        self.stream: EventStream[Any] | None = None
        self.taken: list[int] = []

    def run(self, transport: Steps) -> None:
        chance = self.chance
        options: dict[str, Any] = {"max_buffered_bytes": chance.choice([300, 2000, 1 << 20]), "cancel": self.flag}
        acts: dict[str, Hook] = {
            "close": self.close,
            "cancel": self.flag.set,
            "close the bridge": self.bridge.close,
            "look": self.look,
            "read too": self.read_too,
        }
        chosen = [acts[name] for name in chance.choices(sorted(acts), k=chance.randint(1, 3))]
        opened = threading.Event()

        def read() -> tuple[list[int], str | None]:
            try:
                self.stream = request_sse("http://upstream/", bridge=self.bridge, **options).events
            except (RequestAbortedError, BridgeClosedError):
                return [], "closed"
            except UsageError:
                assert repr(self.bridge) == "<Bridge closed>"
                return [], "closed"
            finally:
                opened.set()
            items: list[int] = []
            while True:
                try:
                    items.extend(self.stream)
                except BridgeClosedError:
                    return items, "closed"
                except UsageError as error:
                    # The other reader was first: it takes the buffered items, and ends.
                    assert "one consumer at a time" in str(error)
                else:
                    return items, self.stream.outcome

        def act(one: Hook, waits: bool) -> None:
            if waits:
                opened.wait(10)
            one()

        results = together([read, *(partial(act, one, chance.random() < 0.7) for one in chosen)])
        items, outcome = results[0]
        expected = list(range(len(transport.chunks)))
        # Items that a second reader took before the first one began come first.
        items = self.taken + items
        assert items == expected[: len(items)]
        assert outcome in ("eof", "closed")
        assert outcome == "closed" or items == expected

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()

    def look(self) -> None:
        assert self.bridge.stats().open_streams in (0, 1)
        if self.stream is not None:
            assert "EventStream" in repr(self.stream)
            assert self.stream.stats.buffered >= 0

    def read_too(self) -> None:
        """A second reader gets a UsageError, unless the first one has not begun or has ended."""
        if self.stream is not None:
            with contextlib.suppress(UsageError, BridgeClosedError):
                self.taken += self.stream.poll()


def stress(rounds: int, seed: int) -> None:
    """Run rounds in threads that switch after almost every bytecode."""
    chance = random.Random(seed)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(rounds):
            chunks = [b"data: %d\n\n" % n for n in range(chance.randint(0, 30))]
            transport = Steps(chunks, stays_open=False)
            make = partial(httpx.AsyncClient, transport=transport)
            try:
                with Bridge(client=make) as bridge:
                    Round(chance, bridge).run(transport)
            except BaseException:
                print(f"round {number} of seed {seed}")
                raise
    finally:
        sys.setswitchinterval(before)


def test_stress() -> None:
    stress(300, 1)


if __name__ == "__main__":
    stress(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print(f"{sys.argv[1]} rounds: every stream was delivered in order, and none hangs")
