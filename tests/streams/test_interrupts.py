"""An interrupt at any bytecode of a reading call either ends the stream or loses no item.

Real signals arrive at random places. So a tracer raises an exception before the first bytecode of the package, then
before the second, and so on. It does not raise before a `return` of the function that the application has called, since
CPython handles no signal there.
"""

from __future__ import annotations

import asyncio
import dis
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import httpx
import pytest

import sseqbridge
from sseqbridge import (
    AsyncEventStream,
    EventStream,
    ServerSentEvent,
    UsageError,
    merge,
    request_sse,
    tee,
)
from sseqbridge._engine.batches import Batch
from sseqbridge._engine.channel import End, ThreadChannel
from sseqbridge._engine.responses import Body, Head
from sseqbridge._engine.scope import Ownership
from sseqbridge._engine.stats import StreamStats
from sseqbridge._streams.claims import Claims
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.decoding import Decoder
from sseqbridge._streams.reader import ItemReader
from sseqbridge.testing import SSEServer, send, silence
from tests.support import in_thread

# greenlet has no type hints.
greenlet: Any = import_module("greenlet")

PACKAGE = str(Path(sseqbridge.__file__).parent)
# Functions that the application calls, and whose results it owns.
DELIVERING = {"next", "poll", "_claimed", "_nested", "collect", "_aread"}
RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap}
COUNT = 4

T = TypeVar("T")


class Alarm(BaseException):
    """Raised by a signal handler."""


class Loop:
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        callback(*args)


class InMemory:
    """A subscription whose entries have all arrived."""

    target = "http://upstream/"
    initial_event_id = ""
    done_event = None
    is_inherited = False
    finished = True
    is_running = False
    # The loop runs in the thread of the test.
    loop: Any = Loop()

    def __init__(self, batches: list[list[str]], end: End | None = None, status: int = 200) -> None:
        self.channel: ThreadChannel[Any] = ThreadChannel(1 << 20)
        self.ownership = Ownership(self)
        self.status = status
        if status != 200:
            self.channel.send_nowait(Body(b"no"))
        for items in batches:
            self.channel.send_nowait(Batch([ServerSentEvent(data=item) for item in items], len(items), 1, "", None))
        if end is not None:
            self.channel.end(end)

    def ignore(self, *_: Any) -> None: ...

    check_process = drain = reconnect = watch = notify_finished = ignore
    call_at_loop_end = cancel_call_at_loop_end = wait_finished = ignore

    def abort(self) -> None:
        self.channel.close()

    def stats(self) -> StreamStats:
        return StreamStats(0, 0, self.channel.buffered, 0, None)

    def in_loop_thread(self) -> bool:
        return False

    async def await_finished(self, timeout: float) -> None: ...

    def stream(self, kind: Any = EventStream) -> Any:
        head = Head(self.status, httpx.Headers(), "HTTP/1.1")
        return kind(ItemReader(Cursor(self, head, Decoder("text", None, "raise"), None, None)))


def numbers(kind: Any = EventStream, *, end: End | None = None) -> Any:
    """A stream of "0", "1" and so on, in batches."""
    texts = [str(number) for number in range(COUNT)]
    return InMemory([texts[:2], texts[2:3], texts[3:]], end).stream(kind)


class Interrupt:
    """Raises Alarm before the nth bytecode of the package."""

    def __init__(self, number: int) -> None:
        self.remaining = number
        self.frames: list[str] = []

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.step

    def step(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if event != "opcode" or (code.co_name in DELIVERING and code.co_code[frame.f_lasti] in RETURNS):
            return self.step
        self.remaining -= 1
        if not self.remaining:
            sys.settrace(None)
            raise Alarm
        return self.step


def read_by_next(stream: EventStream[str], got: list[str]) -> None:
    got.append(stream.next())


def read_by_next_in_time(stream: EventStream[str], got: list[str]) -> None:
    """With a wait that elapses."""
    got += stream.poll()
    with pytest.raises(TimeoutError):
        stream.next(timeout=0)


def read_by_poll(stream: EventStream[str], got: list[str]) -> None:
    got += stream.poll()


def read_in_a_loop(stream: EventStream[str], got: list[str]) -> None:
    for item in stream:
        got.append(item)
        if len(got) == COUNT:
            break


def read_and_keep_open(stream: EventStream[str], got: list[str]) -> None:
    for item in stream.keep_open():
        got.append(item)
        if len(got) == 4:
            break


def read_in_the_body_of_a_loop(stream: EventStream[str], got: list[str]) -> None:
    loop = stream.keep_open()
    got.append(next(loop))
    got.append(stream.next())
    got += stream.poll()
    del loop


def collect(stream: EventStream[str], got: list[str]) -> None:
    got += stream.collect()


READERS: list[Callable[[EventStream[str], list[str]], None]] = [
    read_by_next,
    read_by_next_in_time,
    read_by_poll,
    read_in_a_loop,
    read_and_keep_open,
    collect,
    read_in_the_body_of_a_loop,
]


def interruptions(make: Callable[[], T], read: Callable[[T], object]) -> Iterator[tuple[T, BaseException]]:
    """Interrupt `read` at each bytecode in turn, each time with a new object; yield the object and the exception."""
    number = 0
    while True:
        number += 1
        made = make()
        try:
            with Interrupt(number):
                read(made)
        except Alarm as alarm:
            yield made, alarm
        else:
            break
    assert number > 50


def check(stream: EventStream[str], got: list[str]) -> None:
    """Check that a stream has ended, or continues with the next undelivered item."""
    if stream.outcome is None:
        try:
            item = stream.next(timeout=0)
        except TimeoutError:
            assert len(got) == COUNT
        except StopIteration:
            assert stream.outcome == "closed"
        else:
            assert item == str(len(got))
            rest = stream.poll()
            assert [*got, item, *rest] == [str(number) for number in range(COUNT)]
    else:
        assert stream.outcome in ("closed", "eof")
        assert stream.poll() == [] or stream.outcome == "eof"


@pytest.fixture
def collector_off() -> Iterator[None]:
    """Turn the garbage collector off, so that no finalizer of the package runs at random."""
    gc.disable()
    yield
    gc.enable()


pytestmark = [
    # The tests set their own tracer, which is slow and cannot be combined with coverage's.
    pytest.mark.heavy,
    pytest.mark.usefixtures("collector_off"),
    # Streams that are open after an interrupt have no connection.
    pytest.mark.filterwarnings("ignore:.*was dropped while it was open:ResourceWarning"),
    # An exception in a finalizer does not propagate.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


ALL = [str(number) for number in range(COUNT)]


@pytest.mark.parametrize(
    ("read", "elsewhere"),
    # The last reader leaves a running loop, which belongs to its thread.
    [*((read, False) for read in READERS), *((read, True) for read in READERS[:-1])],
)
def test_interrupt_at_any_bytecode_leaves_no_stream_locked(
    read: Callable[[EventStream[str], list[str]], None], elsewhere: bool
) -> None:
    end = End("eof") if read is collect else None

    def make() -> tuple[EventStream[str], list[str]]:
        return numbers(end=end), []

    for (stream, got), alarm in interruptions(make, lambda made: read(*made)):
        # The traceback keeps the frames of the interrupted call alive.
        assert alarm.__traceback__ is not None
        if elsewhere:
            in_thread(partial(check, stream, got)).result(10)
        else:
            check(stream, got)


def test_interrupt_at_any_bytecode_of_an_asynchronous_stream() -> None:
    def make() -> tuple[AsyncEventStream[str], list[str]]:
        return numbers(AsyncEventStream), []

    def read(made: tuple[AsyncEventStream[str], list[str]]) -> None:
        stream, got = made
        for _ in range(3):
            got.append(loop.run_until_complete(stream.next()))

    async def go_on(stream: AsyncEventStream[str], got: list[str]) -> None:
        try:
            assert await stream.next(timeout=0) == str(len(got))
        except StopAsyncIteration:
            assert stream.outcome == "closed"

    loop = asyncio.new_event_loop()
    for made, _ in interruptions(make, read):
        loop.run_until_complete(go_on(*made))
    loop.close()


def test_interrupt_at_any_bytecode_of_merged_streams() -> None:
    for merged, _ in interruptions(lambda: merge({"a": numbers(end=End("eof"))}), list):
        try:
            got = [item for _, item in merged]
        except UsageError as error:
            assert "left" in str(error)
        else:
            assert got in ([], ALL)


def test_interrupt_at_any_bytecode_of_tee() -> None:
    def read(stream: EventStream[str]) -> None:
        tee(stream).close()

    for stream, _ in interruptions(lambda: numbers(end=End("eof")), read):
        if stream.outcome is None:
            assert stream.collect() == ALL


def test_interrupt_while_the_body_of_a_refusal_is_awaited() -> None:
    def read(stream: EventStream[str]) -> None:
        with pytest.raises(sseqbridge.StatusError):
            stream.raise_for_status()

    for stream, _ in interruptions(lambda: InMemory([], status=500).stream(), read):
        read(stream)


# Claims of running and of ended calls.


def test_running_call_is_not_taken_over() -> None:
    with SSEServer([send("1"), silence()]) as server:
        stream = request_sse(server.url, decode="text").events
        assert stream.next() == "1"
        reading = in_thread(lambda: list(stream))
        while not stream._reader.is_claimed:
            pass
        with pytest.raises(UsageError, match="one consumer"):
            stream.poll()
        stream.close()
        assert reading.result(10) == []


def test_call_in_a_suspended_greenlet_is_not_taken_over() -> None:
    """For example if its decode function switches to another greenlet."""
    main = greenlet.getcurrent()

    def decode(event: Any) -> str:
        main.switch()
        return str(event.data)

    with SSEServer([send("1"), silence()]) as server, request_sse(server.url, decode=decode) as (_, _, items):
        reading = greenlet.greenlet(items.next)
        reading.switch()
        with pytest.raises(UsageError, match="one consumer"):
            items.next()
        assert reading.switch() == "1"
        assert items.poll() == []


def test_abandoned_claims_are_taken_over_by_one_thread() -> None:
    """Many threads find the same claims of ended calls: one of them reads."""

    def ended_call() -> FrameType:
        return sys._getframe()

    def read(claims: Claims, barrier: threading.Barrier) -> bool:
        claim = sys._getframe()
        barrier.wait()
        claims.append(claim)
        mine = claims.contend(claim, lambda: None)
        # All threads have tried before the first one continues.
        barrier.wait()
        return mine

    for _ in range(50):
        claims, barrier = Claims([ended_call(), ended_call(), ended_call()]), threading.Barrier(8)
        reading = [in_thread(partial(read, claims, barrier)) for _ in range(8)]
        assert sum(future.result(10) for future in reading) == 1
        assert not claims.is_held()


def test_exception_of_a_signal_handler_is_raised_by_poll() -> None:
    """An exception during poll() is raised at once, even if some events were polled before."""
    calls = 0

    def decode(event: Any) -> str:
        nonlocal calls
        calls += 1
        return str(event)

    stream = numbers()

    class Interrupted(Cursor[Any]):
        __slots__ = ()

        def leave_batch(self) -> bool:
            if calls:
                raise LookupError("a signal handler's")
            return super().leave_batch()

    stream._cursor.__class__ = Interrupted
    stream._cursor.decoder.item = decode
    with pytest.raises(LookupError):
        stream.poll()
    assert stream.outcome == "closed"


@pytest.mark.parametrize("read", [EventStream.next, EventStream.poll, EventStream.collect])
def test_stream_is_finalized_without_the_garbage_collector(read: Callable[[Any], object]) -> None:
    stream = numbers(end=End("eof"))
    read(stream)
    finalized = weakref.ref(stream)
    del stream
    assert finalized() is None
