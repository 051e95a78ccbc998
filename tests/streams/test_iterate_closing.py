"""How iterate ends its source: cancelled while it waits, closed at a `yield`, in the task that ran it, or left."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from sseqbridge import Bridge, Stream, UsageError, iterate, run
from sseqbridge._streams.stream import reader_of
from tests.clock import FakeClock
from tests.support import in_thread, is_waiting, until

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.filterwarnings("error")]


class Source:
    """Generators that record how they ended."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.ended = threading.Event()
        self.log: list[str] = []

    async def items(self, *items: int) -> AsyncIterator[int]:
        """Yield the items, then wait forever."""
        entered_in = asyncio.current_task()
        try:
            for item in items:
                yield item
            self.waiting.set()
            await asyncio.Event().wait()
        except BaseException as exc:
            self.log.append(type(exc).__name__)
            raise
        finally:
            # Awaits, as cleanup does, in the same task.
            await asyncio.sleep(0)
            assert asyncio.current_task() is entered_in
            self.log.append("closed")
            self.ended.set()


def leave_by_break(stream: Stream[int], source: Source) -> None:
    for item in stream:
        assert item == 1
        source.waiting.wait(30)
        break


def leave_by_error(stream: Stream[int], source: Source) -> None:
    with pytest.raises(ZeroDivisionError):
        for item in stream:
            source.waiting.wait(30)
            assert item / 0


def leave_by_close(stream: Stream[int], source: Source) -> None:
    assert next(stream) == 1
    reading = in_thread(stream.collect)
    until(lambda: source.waiting.is_set() and is_waiting(reading))
    stream.close()
    assert source.ended.is_set(), "close() waits for the cleanup"
    assert reading.result(30) == []


def leave_by_with(stream: Stream[int], source: Source) -> None:
    with stream:
        assert next(stream) == 1
        source.waiting.wait(30)


def leave_by_drop(stream: Stream[int], source: Source) -> None:
    items = iter(stream)
    assert next(items) == 1
    source.waiting.wait(30)


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_error, leave_by_close, leave_by_with, leave_by_drop], ids=lambda f: f.__name__
)
def test_leaving_cancels_a_source_that_waits(leave: Callable[[Stream[int], Source], None]) -> None:
    source = Source()
    leave(iterate(source.items(1)), source)
    assert source.ended.wait(30)
    assert source.log == ["CancelledError", "closed"]


def test_leaving_closes_a_source_at_its_yield() -> None:
    source = Source()
    stream = iterate(source.items(*range(100)), max_buffered=3)
    for item in stream:
        if item == 1:
            break
    assert source.ended.wait(30)
    assert source.log == ["GeneratorExit", "closed"]
    assert stream.outcome == "closed"
    with pytest.raises(UsageError, match="was left"):
        next(stream)


@pytest.mark.blocks_its_loop
def test_closing_before_the_first_step_starts_nothing() -> None:
    entered: list[int] = []

    async def never() -> AsyncIterator[int]:
        entered.append(1)
        yield 1

    async def coroutine() -> AsyncIterator[int]:
        entered.append(2)
        return never()

    go = threading.Event()
    with Bridge() as bridge:
        # The loop is busy, so that the closes arrive before the first steps.
        bridge.started().loop.call_soon_threadsafe(go.wait, 30)
        streams = [bridge.iterate(never()), bridge.iterate(coroutine()), bridge.iterate(coroutine)]
        for stream in streams:
            reader_of(stream).abort()
        go.set()
        until(lambda: all(reader_of(stream).cursor.subscription.finished for stream in streams))
    assert entered == []


def test_dropping_an_open_stream_warns_and_closes_the_source() -> None:
    source = Source()
    stream = iterate(source.items(1))
    source.waiting.wait(30)
    with pytest.warns(ResourceWarning, match=r"a stream of iterate\(Source.items\) was dropped while it was open"):
        del stream
    assert source.ended.wait(30)


def test_source_is_released_at_the_end() -> None:
    source = Source()
    kept = source.items(1)
    gone = weakref.ref(kept)
    stream = iterate(kept)
    del kept
    assert next(stream) == 1
    stream.close()
    until(lambda: gc.collect() is not None and gone() is None)


def test_flag_ends_the_stream_quietly() -> None:
    source, flag = Source(), threading.Event()
    stream = iterate(source.items(1), cancel=flag)
    reading = in_thread(stream.collect)
    source.waiting.wait(30)
    flag.set()
    assert reading.result(30) in ([], [1])
    assert source.ended.wait(30)
    assert stream.outcome == "closed"


def test_object_that_is_no_generator_is_closed_too() -> None:
    closed: list[str] = []

    class Response:
        """As SDKs make them: iterating makes a generator, and close() releases the connection."""

        async def __aiter__(self) -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                closed.append("iterator")

        async def close(self) -> None:
            closed.append("response")

    for _ in iterate(Response):
        break
    until(lambda: closed == ["iterator", "response"])


# --- What a source holds open at its `yield` ---


def test_task_group_around_a_yield_is_left_in_its_task(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()

    async def grouped() -> AsyncIterator[int]:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                yield 1
                await anyio.sleep_forever()
        finally:
            ended.set()

    with iterate(grouped()) as stream:
        assert next(stream) == 1
    assert ended.wait(30)
    for _ in iterate(grouped(), max_buffered=1):
        break
    assert caplog.records == []


def test_failure_of_a_child_task_reaches_the_consumer() -> None:
    go = threading.Event()

    async def fails() -> None:
        while not go.is_set():
            await anyio.sleep(0.001)
        raise ValueError("the child")

    async def grouped() -> AsyncIterator[int]:
        async with anyio.create_task_group() as group:
            group.start_soon(fails)
            for n in range(1000):
                yield n

    # The generator stands at its yield, since the consumer holds it back.
    stream = iterate(grouped(), max_buffered=2)
    assert next(stream) == 0
    until(lambda: stream.stats.buffered == 2)
    go.set()
    items: list[int] = []
    with pytest.raises(Exception, match="unhandled errors in a TaskGroup") as caught:
        items.extend(stream)
    group: Any = caught.value
    assert [repr(error) for error in group.exceptions] == ["ValueError('the child')"]
    # No item is lost.
    assert items == list(range(1, 1 + len(items)))
    assert len(items) >= 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() is new in Python 3.11")
def test_timeout_around_a_yield_belongs_to_the_source() -> None:
    caught: list[str] = []

    async def limited() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(0.01):
                yield 1
                yield 2
                yield 3
                await asyncio.Event().wait()
        except TimeoutError:
            caught.append("timeout")
        yield 4

    stream = iterate(limited(), max_buffered=1)
    until(lambda: caught == ["timeout"])
    assert list(stream)[-1] == 4


def test_cancel_scope_around_a_yield_belongs_to_the_source() -> None:
    left = threading.Event()

    async def limited() -> AsyncIterator[int]:
        with anyio.move_on_after(0.01):
            for n in range(1000):
                yield n
        left.set()
        yield -1

    stream = iterate(limited(), max_buffered=1)
    assert left.wait(30)
    assert list(stream)[-1] == -1


# --- Sources that do not end ---


async def stubborn(go: threading.Event) -> AsyncIterator[int]:
    yield 1
    while not go.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass


def test_source_that_swallows_cancellation_is_left(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    with Bridge() as bridge:
        stream = bridge.iterate(stubborn(go))
        assert next(stream) == 1
        clock.advance_until_done(stream.close, step=0.25)
        iteration: Any = reader_of(stream).cursor.subscription
        clock.advance_until(lambda: caplog.records, step=0.25)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "iterate(stubborn) has not ended 1 s after it was cancelled" in record.getMessage()
        # The warning is logged first.
        until(lambda: iteration.finished)
        assert bridge.stats().open_streams == 0
        gc.collect()
        assert not iteration.task.done()
        go.set()
        until(iteration.task.done)


def test_source_that_swallows_one_cancellation_is_closed_at_its_yield() -> None:
    log: list[str] = []
    waiting = threading.Event()

    async def swallows() -> AsyncIterator[int]:
        yield 1
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("swallowed")
        try:
            yield 2
        finally:
            await asyncio.sleep(0.001)
            log.append("closed")

    with iterate(swallows()) as stream:
        assert next(stream) == 1
        waiting.wait(30)
    assert log == ["swallowed", "closed"]


def test_failure_of_the_cleanup_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            raise ValueError("cleanup")

    with iterate(fails()) as stream:
        assert next(stream) == 1
    until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "iterate(test_failure_of_the_cleanup_is_logged.<locals>.fails) failed while" in record.getMessage()


@pytest.mark.slow
def test_thousand_abandoned_task_groups_leave_nothing_behind() -> None:
    choose = random.Random(1)
    alive: set[int] = set()

    async def child() -> None:
        await anyio.sleep(choose.choice((0, 0.001, 60)))

    async def grouped(number: int) -> AsyncIterator[int]:
        alive.add(number)
        try:
            async with anyio.create_task_group() as group:
                for n in range(10):
                    group.start_soon(child)
                    if n % 3:
                        await anyio.sleep(0)
                    yield n
                await anyio.sleep_forever()
        finally:
            await anyio.sleep(0)
            alive.remove(number)

    began = time.process_time()
    for number in range(1000):
        stop = choose.randrange(10)
        for n in iterate(grouped(number), max_buffered=choose.choice((1, 4, 64))):
            if n == stop:
                break
    until(lambda: not alive)

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    until(lambda: run(tasks()) == 1)
    # CPU time, which a busy machine does not stretch far.
    assert time.process_time() - began < 30
