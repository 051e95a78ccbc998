"""An interrupt at any bytecode of a call that reads: the stream has ended then, or continues with the very next event.

The tests of relays and logs are in tests/relay/test_interrupts.py and tests/resume/test_interrupts.py.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any

import pytest

import sseqbridge
from sseqbridge import (
    AsyncEventStream,
    Bridge,
    EventStream,
    UsageError,
    gather,
    merge,
    request_sse,
    tee,
)
from sseqbridge._engine.channel import End
from sseqbridge._runtime import threads
from sseqbridge._streams.claims import Claims
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import SSEServer, send, silence
from tests.interrupts import ALL, COUNT, MARKS, Alarm, InMemory, interruptions, numbers
from tests.support import in_thread, until

# greenlet has no type hints.
greenlet: Any = import_module("greenlet")

pytestmark = MARKS

Reading = Callable[[EventStream[str], list[str]], None]


def read_by_next(stream: EventStream[str], got: list[str]) -> None:
    got.append(stream.next())


def read_by_builtin_next(stream: EventStream[str], got: list[str]) -> None:
    for item in iter(partial(next, stream), None):
        got.append(item)
        if len(got) == COUNT:
            break


def read_by_next_in_time(stream: EventStream[str], got: list[str]) -> None:
    """With a wait that elapses, or with an end."""
    got += stream.poll()
    with pytest.raises((TimeoutError, StopIteration)):
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
        if len(got) == 2:
            break
    for item in stream.keep_open():
        got.append(item)
        if len(got) == COUNT:
            break


def read_in_the_body_of_a_loop(stream: EventStream[str], got: list[str]) -> None:
    loop = stream.keep_open()
    got.append(next(loop))
    got.append(stream.next())
    got += stream.poll()
    del loop


def collect(stream: EventStream[str], got: list[str]) -> None:
    got += stream.collect()


READERS: list[Reading] = [
    read_by_next,
    read_by_builtin_next,
    read_by_next_in_time,
    read_by_poll,
    read_in_a_loop,
    read_and_keep_open,
    collect,
    read_in_the_body_of_a_loop,
]

FUNCTIONS: dict[str, dict[str, Any]] = {
    "no function": {},
    "decode": {"decode": lambda event: str(event.data)},
    "done": {"done": lambda event: event.data == ALL[-1]},
    "cancel": {"cancel": threading.Event()},
}


def check(stream: EventStream[str], got: list[str]) -> None:
    """Check that a stream has ended, or continues with the next undelivered item."""
    if stream.outcome is not None:
        # An end that is not "closed" says that all events before it were delivered.
        assert stream.outcome == "closed" or got == ALL
        assert stream.poll() == []
    else:
        try:
            item = stream.next(timeout=0)
        except TimeoutError:
            assert got == ALL
        except StopIteration:
            assert stream.outcome == "closed" or got == ALL
        else:
            assert [*got, item, *stream.poll()] == ALL
            return
    # A stream that is resumed after this ID misses no event. An interrupt of a loop that comes just after it was
    # resumed takes the position behind the item that was delivered before.
    assert stream.last_event_id in ("".join(got[-1:]), "".join(got[-2:-1]))


def open_requests(bridge: Bridge) -> int:
    return bridge.stats().open_streams


@pytest.mark.parametrize(
    ("read", "functions", "elsewhere"),
    [
        *((read, functions, False) for read in READERS for functions in FUNCTIONS),
        # The last has a loop that is not over, which is its thread's.
        *((read, "no function", True) for read in READERS[:-1]),
    ],
)
def test_interrupt_at_any_bytecode_leaves_no_gap_and_no_lock(read: Reading, functions: str, elsewhere: bool) -> None:
    end = End("eof") if read is collect else None

    def make() -> tuple[EventStream[str], list[str]]:
        return numbers(end=end, **FUNCTIONS[functions]), []

    for (stream, got), _ in interruptions(make, lambda made: read(*made)):
        if elsewhere:
            in_thread(partial(check, stream, got)).result(30)
        else:
            check(stream, got)


@pytest.mark.parametrize("kind", [AssertionError, SystemExit, KeyboardInterrupt, GeneratorExit, TimeoutError])
@pytest.mark.parametrize("read", READERS)
def test_exception_during_decode_leaves_no_gap(read: Reading, kind: type[BaseException]) -> None:
    """As of a signal handler that raises there, or of gevent.Timeout."""
    for number in range(COUNT):

        def decode(event: Any, number: int = number) -> str:
            if event.data == str(number):
                raise kind
            return str(event.data)

        stream, got = numbers(end=End("eof"), decode=decode), list[str]()
        with pytest.raises((kind, sseqbridge.DecodeError, pytest.fail.Exception)):
            for _ in range(COUNT):
                read(stream, got)
        if isinstance(kind(), Exception):
            assert stream.outcome == "error"
        else:
            check(stream, got)
            assert stream.outcome == "closed"


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


def test_cancelled_asynchronous_collect_ends_the_stream() -> None:
    async def main() -> str | None:
        stream = numbers(AsyncEventStream)
        collecting = asyncio.create_task(stream.collect())
        await asyncio.sleep(0)
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        outcome: str | None = stream.outcome
        return outcome

    assert asyncio.run(main()) == "closed"


# Many streams.


def test_interrupt_at_any_bytecode_of_merged_streams() -> None:
    def make() -> tuple[Any, dict[str, Any], list[str]]:
        streams = {"a": numbers(end=End("eof")), "b": numbers(end=End("eof"))}
        return merge(streams), streams, []

    def read(made: tuple[Any, dict[str, Any], list[str]]) -> None:
        merged, _, got = made
        for name, item in merged:
            got.append(name + item)

    for (merged, streams, got), _ in interruptions(make, read):
        for name, stream in streams.items():
            mine = [item[1:] for item in got if item.startswith(name)]
            assert mine == ALL[: len(mine)]
            assert stream.outcome == "closed" or mine == ALL or not got
        try:
            later = [name + item for name, item in merged]
        except UsageError as error:
            assert "left" in str(error)
        else:
            # Either the loop had not begun, or the streams were closed.
            assert not later or (not got and len(later) == 2 * COUNT)


def test_interrupt_at_any_bytecode_of_adding_to_merged_streams() -> None:
    """The stream is merged, or can be read by its owner; the streams beside it continue."""

    def make() -> tuple[Any, Any]:
        return merge({"a": numbers(end=End("eof"))}), numbers(end=End("eof"))

    def add(made: tuple[Any, Any]) -> None:
        merged, stream = made
        merged.add("b", stream)

    for (merged, stream), _ in interruptions(make, add, least=20):
        got = list(merged)
        assert [item for name, item in got if name == "a"] == ALL
        mine = [item for name, item in got if name == "b"]
        assert mine == ALL or [*mine, *stream] == ALL


@pytest.fixture
def numbered() -> Iterator[tuple[SSEServer, Bridge]]:
    """A server whose streams stay open."""
    with SSEServer([*map(send, ALL), silence()]) as server, Bridge() as bridge:
        # Interrupts of the start have their own test.
        bridge.started()
        yield server, bridge


def call_of(numbered: tuple[SSEServer, Bridge]) -> partial[Any]:
    server, bridge = numbered
    return partial(request_sse, server.url, decode="text", bridge=bridge)


def test_interrupt_at_any_bytecode_of_merge_leaves_no_request_running(numbered: tuple[SSEServer, Bridge]) -> None:
    call = call_of(numbered)

    def read(made: list[Any]) -> None:
        made.append(merge({"a": call}))
        loop = iter(made[0])
        assert next(loop) == ("a", "0")
        # Not by the finalizer, which would swallow the interrupt.
        loop.close()

    for made, _ in interruptions(list, read, is_prepared=True):
        for merged in made:
            # The loop may not have begun.
            merged.close()
        until(lambda: not open_requests(numbered[1]))


def test_interrupt_at_any_bytecode_of_gather_leaves_no_request_running() -> None:
    with SSEServer([send("0"), send("[DONE]")]) as server, Bridge() as bridge:
        call = call_of((server, bridge))

        def read(results: list[Any]) -> None:
            results.extend(gather({"a": call}))

        for results, _ in interruptions(list, read, is_prepared=True):
            assert results in ([], [("a", ["0"])])
            until(lambda: not open_requests(bridge))


@pytest.mark.parametrize("way", ["next", "poll", "loop"])
def test_interrupt_of_one_tee_reader_leaves_the_other_alone(
    numbered: tuple[SSEServer, Bridge], way: str
) -> None:
    """Also if the reader is the one that the others wait for."""
    call = call_of(numbered)

    def make() -> tuple[Any, list[str]]:
        # There is room for one event.
        return tee(call().events, max_buffered_bytes=1), []

    def read(made: tuple[Any, list[str]]) -> None:
        (first, _), got = made
        while len(got) < COUNT:
            if way == "poll":
                got += first.poll()
            elif way == "next":
                got.append(first.next(10))
            else:
                for item in first:
                    got.append(item)
                    if len(got) == COUNT:
                        break

    def read_other(stream: EventStream[str]) -> list[str]:
        return [stream.next(30) for _ in range(COUNT)]

    others = []

    def make_and_read_other() -> tuple[Any, list[str]]:
        made = make()
        others.append(in_thread(partial(read_other, made[0][1])))
        return made

    for (readers, got), _ in interruptions(make_and_read_other, read):
        while len(got) < COUNT and (item := next(readers[0], None)) is not None:
            got.append(item)
        assert got == (ALL if readers[0].outcome is None else ALL[: len(got)])
        assert others.pop().result(60) == ALL
        readers.close()
    others.pop().result(60)


def test_interrupt_at_any_bytecode_of_tee() -> None:
    def read(stream: EventStream[str]) -> None:
        tee(stream).close()

    for stream, _ in interruptions(lambda: numbers(end=End("eof")), read):
        if stream.outcome is None:
            assert stream.collect() == ALL


def test_interrupt_at_any_bytecode_of_adding_to_a_tee(numbered: tuple[SSEServer, Bridge]) -> None:
    """A reader that nobody holds would hold the others back."""
    call = call_of(numbered)

    def make() -> Any:
        return tee(call().events, 1, max_buffered_bytes=1)

    for readers, _ in interruptions(make, lambda readers: readers.add(replay=True), least=20):
        assert [readers[0].next(30) for _ in range(COUNT)] == ALL
        readers.close()


def test_interrupt_while_the_body_of_a_refusal_is_awaited() -> None:
    def read(stream: EventStream[str]) -> None:
        with pytest.raises(sseqbridge.StatusError):
            stream.raise_for_status()

    for stream, _ in interruptions(lambda: InMemory([], status=500).stream(), read):
        read(stream)


# Requests.


def test_interrupt_at_any_bytecode_of_request_sse_leaves_no_request(
    numbered: tuple[SSEServer, Bridge],
) -> None:
    call = call_of(numbered)
    opened: list[Any] = []

    def ask(_: object) -> None:
        opened.append(call())

    def close(_: object) -> None:
        opened.pop().events.close()

    interrupted = interruptions(lambda: None, ask, close=close, is_prepared=True, least=200)
    for number, _ in enumerate(interrupted):
        assert not opened
        until(lambda: not open_requests(numbered[1]))
        if number % 100 == 0:
            # The bridge still works, from every thread.
            with in_thread(call).result(30) as (_, _, items):
                assert next(items) == "0"
            until(lambda: not open_requests(numbered[1]))


def test_interrupt_within_request_sse_leaves_no_request_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of the standard library's, with asyncio's own event loop."""
    monkeypatch.setattr("sseqbridge._accelerators.imported", lambda name: None)
    with SSEServer([*map(send, ALL), silence()]) as server, Bridge() as bridge:
        call = call_of((server, bridge))
        bridge.started()
        opened: list[Any] = []

        def ask(_: object) -> None:
            opened.append(call())

        def close(_: object) -> None:
            opened.pop().events.close()

        for _ in interruptions(lambda: None, ask, close=close, is_deep=True, is_prepared=True, least=400):
            assert not opened
            until(lambda: not open_requests(bridge))


def test_interrupt_at_any_bytecode_of_first_request_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())

    def started() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name == "sseqbridge-loop"} - before

    class Waiter(threads.ThreadWaiter):
        """After an interrupt, the bridge waits in case the thread was started, which only the test knows."""

        def wait(self, timeout: float | None) -> bool:
            is_interrupted = isinstance(sys.exc_info()[1], Alarm)
            return super().wait(timeout) if started() or not is_interrupted else False

    monkeypatch.setattr(threads, "ThreadWaiter", Waiter)
    with SSEServer([send("0"), silence()]) as server:
        bridges: list[Bridge] = []

        def make() -> Bridge:
            bridges.append(Bridge())
            return bridges[-1]

        for made, _ in interruptions(make, lambda bridge: bridge.started(), close=Bridge.close):
            made.close()
            until(lambda: not started())
        with Bridge() as bridge:
            assert next(request_sse(server.url, bridge=bridge).events) == 0


@pytest.mark.parametrize("way", ["close", "with", "raise_for_status", "reconnect", "stats"])
def test_interrupt_of_other_calls_leaves_the_stream_ended_or_usable(
    numbered: tuple[SSEServer, Bridge], way: str
) -> None:
    call = call_of(numbered)

    def use(stream: Any) -> None:
        if way == "with":
            with stream:
                pass
        elif way == "stats":
            assert stream.stats
        else:
            getattr(stream, way)()

    def make() -> Any:
        return call(reconnect=True).events

    for stream, _ in interruptions(make, use, least=5):
        if stream.outcome is None and way != "reconnect":
            assert stream.next(30) == "0"
        stream.close()
        until(lambda: not open_requests(numbered[1]))


def test_interrupt_of_close_wakes_a_reader_in_another_thread(numbered: tuple[SSEServer, Bridge]) -> None:
    call = call_of(numbered)
    readers = []

    def make() -> Any:
        stream = call().events
        readers.append(in_thread(lambda: list(stream)))
        return stream

    for stream, _ in interruptions(make, lambda stream: stream.close(), least=5):
        if stream.outcome is None:
            stream.close()
        assert readers.pop().result(30) is not None
    readers.pop().result(30)


def test_interrupt_of_a_bridges_close_can_be_repeated(numbered: tuple[SSEServer, Bridge]) -> None:
    server, _ = numbered

    def make() -> tuple[Bridge, Any]:
        bridge = Bridge()
        return bridge, request_sse(server.url, bridge=bridge).events

    for (bridge, stream), _ in interruptions(make, lambda made: made[0].close(), least=5):
        bridge.close()
        with pytest.raises(sseqbridge.BridgeClosedError):
            stream.collect()


# Claims of calls that run, and of calls that have ended.


def test_running_call_is_not_taken_over() -> None:
    with SSEServer([send("1"), silence()]) as server:
        stream = request_sse(server.url, decode="text").events
        assert stream.next() == "1"
        reading = in_thread(lambda: list(stream))
        while not reader_of(stream).is_claimed:
            pass
        with pytest.raises(UsageError, match="one consumer"):
            stream.poll()
        stream.close()
        assert reading.result(30) == []


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
        mine = claims.admit(claim, lambda: None)
        # All threads have tried before the first one continues.
        barrier.wait()
        return mine

    for _ in range(50):
        claims, barrier = Claims([ended_call(), ended_call(), ended_call()]), threading.Barrier(8)
        reading = [in_thread(partial(read, claims, barrier)) for _ in range(8)]
        assert sum(future.result(30) for future in reading) == 1
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

    reader_of(stream).cursor.__class__ = Interrupted
    reader_of(stream).cursor.decoder.item = decode
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
