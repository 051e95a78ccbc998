"""iterate: the items, errors and ends of an asynchronous iterable, read like any stream."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    CallbackError,
    RequestAbortedError,
    Stream,
    UsageError,
    iterate,
    run,
)
from sseqbridge._streams.bridge import async_bridge, default_bridge
from sseqbridge._streams.stream import reader_of
from tests.support import in_thread, is_waiting, until

pytestmark = pytest.mark.configurations("default", "plain")


async def numbers(count: int) -> AsyncIterator[int]:
    for n in range(count):
        await asyncio.sleep(0)
        yield n


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def endless() -> AsyncIterator[int]:
    n = 0
    while True:
        yield n
        n += 1


class Countdown:
    """An iterator that is no generator, and has no aclose()."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


# --- Items ---


def test_items_come_in_order_and_the_stream_ends() -> None:
    stream = iterate(numbers(1000))
    assert isinstance(stream, Stream)
    assert list(stream) == list(range(1000))
    assert stream.outcome == "eof"
    assert list(stream) == []
    assert repr(stream) == "<Stream iterate(numbers) eof>"


SOURCES: dict[str, Callable[[], Any]] = {
    "iterable": lambda: numbers(3),
    "function": lambda: partial(numbers, 3),
    "coroutine function": lambda: lambda: later(numbers(3)),
    "awaitable": lambda: later(numbers(3)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_source_is_an_iterable_or_leads_to_one(kind: str) -> None:
    assert list(iterate(SOURCES[kind]())) == [0, 1, 2]


def test_iterator_needs_no_aclose() -> None:
    assert list(iterate(Countdown(3))) == [2, 1, 0]


def test_items_are_any_objects() -> None:
    async def objects() -> AsyncIterator[Any]:
        yield None
        yield b""
        yield {}
        yield ValueError()
        yield object

    items = list(iterate(objects()))
    assert items[:3] == [None, b"", {}]
    assert isinstance(items[3], ValueError)
    assert items[4] is object


def test_function_is_called_on_the_loop_in_the_callers_context() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    threads: list[str] = []

    def made() -> AsyncIterator[str]:
        asyncio.get_running_loop()
        threads.append(threading.current_thread().name)
        return names()

    async def names() -> AsyncIterator[str]:
        yield name.get()
        name.set("changed")
        yield name.get()

    name.set("caller")
    assert list(iterate(made)) == ["caller", "changed"]
    assert name.get() == "caller"
    assert threads == ["sseqbridge-async"]


def test_asynchronous_code_has_a_loop_of_its_own() -> None:
    async def loop() -> AsyncIterator[Any]:
        yield asyncio.get_running_loop()

    (used,) = iterate(loop())
    assert used is async_bridge().started().loop
    assert used is not default_bridge().started().loop
    with Bridge() as bridge:
        assert list(bridge.iterate(loop())) == [bridge.started().loop]


# --- Ways of reading ---


def test_next_has_a_timeout_after_which_the_stream_goes_on() -> None:
    go = threading.Event()

    async def held() -> AsyncIterator[int]:
        yield 1
        while not go.is_set():
            await asyncio.sleep(0.001)
        yield 2

    stream = iterate(held())
    assert stream.next(timeout=30) == 1
    with pytest.raises(TimeoutError):
        stream.next(timeout=0)
    go.set()
    assert stream.next(timeout=30) == 2
    with pytest.raises(StopIteration):
        next(stream)


def test_poll_collect_and_keep_open_share_one_position() -> None:
    stream = iterate(numbers(10))
    for item in stream.keep_open():
        if item == 2:
            break
    polled: list[int] = []

    def has_polled() -> bool:
        polled.extend(stream.poll())
        return bool(polled)

    until(has_polled)
    assert [0, 1, 2, *polled, *stream.collect()] == list(range(10))


def test_a_second_reader_gets_a_usage_error() -> None:
    with iterate(endless()) as stream:
        items = iter(stream)
        next(items)
        with pytest.raises(UsageError, match="one consumer at a time"):
            in_thread(stream.next).result(30)


def test_source_waits_while_max_buffered_items_are_held() -> None:
    yielded: list[int] = []

    async def counted() -> AsyncIterator[int]:
        for n in range(1000):
            yielded.append(n)
            yield n

    stream = iterate(counted(), max_buffered=5)
    until(lambda: len(yielded) == 6)
    run(asyncio.sleep(0.01))
    assert (len(yielded), stream.stats.buffered) == (6, 5)
    assert list(stream) == list(range(1000))
    stats = stream.stats
    assert (stats.events, stats.bytes, stats.buffered, stats.reconnections) == (1000, 0, 0, 0)
    assert stats.time_to_first_event is not None


@pytest.mark.slow
def test_a_source_that_never_waits_leaves_the_loop_to_others() -> None:
    with Bridge() as bridge:
        stream = bridge.iterate(endless(), max_buffered=10**9)
        assert next(stream) == 0
        assert bridge.run(later("ran")) == "ran"
        # The flag is checked by the same loop.
        flag = threading.Event()
        other = bridge.iterate(endless(), max_buffered=10**9, cancel=flag)
        flag.set()
        until(lambda: reader_of(other).cursor.subscription.finished)
        stream.close()


# --- Errors ---


class OwnError(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__("of its own")


@pytest.mark.parametrize(
    "error",
    [OwnError(1, 2), TimeoutError("no"), OSError(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()],
)
def test_error_of_the_source_is_raised_after_its_items(error: BaseException) -> None:
    async def fails() -> AsyncIterator[int]:
        yield 1
        raise error

    stream = iterate(fails())
    items: list[int] = []
    with pytest.raises(type(error)) as caught:
        items.extend(stream)
    assert caught.value is error
    assert "in fails" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert stream.outcome == "error"
    with pytest.raises(type(error)):
        next(stream)
    # The loop goes on.
    assert run(later(1)) == 1


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_error_that_ends_iterations_is_not_the_end(error: type[Exception]) -> None:
    async def fails() -> AsyncIterator[int]:
        yield 1
        raise error

    items: list[int] = []
    with pytest.raises(RuntimeError):
        items.extend(iterate(fails()))
    assert items == [1]


def test_stop_async_iteration_of_the_function_is_not_the_end() -> None:
    async def opens() -> AsyncIterator[int]:
        raise StopAsyncIteration

    with pytest.raises(StopAsyncIteration):
        iterate(opens).collect()


def test_error_of_the_function_is_raised() -> None:
    def fails() -> AsyncIterator[int]:
        raise OwnError(1, 2)

    with pytest.raises(OwnError):
        next(iterate(fails))


def test_error_of_closing_is_raised_at_the_end() -> None:
    class Fails(Countdown):
        async def aclose(self) -> None:
            raise OwnError(1, 2)

    items: list[int] = []
    with pytest.raises(OwnError):
        items.extend(iterate(Fails(2)))
    assert items == [1, 0]


def test_error_of_the_source_comes_before_one_of_its_closing(caplog: pytest.LogCaptureFixture) -> None:
    class Fails:
        def __aiter__(self) -> Fails:
            return self

        async def __anext__(self) -> int:
            raise OwnError(1, 2)

        def close(self) -> None:
            raise ValueError

    with pytest.raises(OwnError):
        next(iterate(Fails()))
    assert "Fails) failed" in caplog.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("source", [[1], iter([1]), 1, None, "text"])
def test_source_of_another_type_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match="`source` must be an asynchronous iterable, or a function that returns one"):
        iterate(source)


@asynccontextmanager
async def session() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("returned", "advice"), [([1], "asynchronous generator function"), (session(), "enters it with `async with`")]
)
def test_function_that_returns_another_type_is_refused(returned: Any, advice: str) -> None:
    with pytest.raises(UsageError, match=f"must return an asynchronous iterable, got .*{advice}"):
        next(iterate(lambda: returned))


def test_arguments_are_checked() -> None:
    wrong: Any = iterate
    for options in ({"max_buffered": 0}, {"max_buffered": 1.5}, {"cancel": 3}, {"max_buffered": True}):
        with pytest.raises(UsageError, match=f"`{next(iter(options))}` must"):
            wrong(numbers(1), **options)


def test_flag_that_is_set_already_refuses_the_call() -> None:
    flag = threading.Event()
    flag.set()
    # The coroutine is closed: a warning would fail the test.
    with pytest.raises(RequestAbortedError, match="before the iteration began"):
        iterate(later(numbers(1)), cancel=flag)


def test_flag_that_raises_ends_the_stream() -> None:
    class Broken:
        armed = False

        def is_set(self) -> bool:
            if self.armed:
                raise OwnError(1, 2)
            return False

    flag = Broken()
    stream = iterate(endless(), cancel=flag)
    next(stream)
    flag.armed = True
    with pytest.raises(CallbackError, match="is_set"):
        stream.collect()


# --- Loops ---


def test_calling_it_on_the_loop_is_a_usage_error() -> None:
    async def nested(coroutine: Any) -> None:
        iterate(coroutine)

    # The coroutine is closed: a warning would fail the test.
    with pytest.raises(UsageError, match="the bridge's own thread"):
        run(nested(later(numbers(1))))


@pytest.mark.blocks_its_loop
def test_calling_it_in_a_coroutine_warns() -> None:
    async def nested() -> None:
        with pytest.warns(RuntimeWarning, match="iterate blocks the event loop .*the items with `async for`") as caught:
            assert list(iterate(numbers(2))) == [0, 1]
        assert caught[0].filename == __file__

    asyncio.run(nested())


def test_closing_the_bridge_ends_the_stream_with_its_error() -> None:
    closed = threading.Event()

    async def silent() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    bridge = Bridge()
    stream = bridge.iterate(silent())
    assert next(stream) == 1
    reading = in_thread(stream.next)
    until(lambda: is_waiting(reading))
    bridge.close()
    with pytest.raises(BridgeClosedError):
        reading.result(30)
    assert closed.is_set()
    with pytest.raises(UsageError, match="this Bridge is closed"):
        bridge.iterate(later(numbers(1)))


def test_bridge_counts_iterations() -> None:
    with Bridge() as bridge:
        stream = bridge.iterate(endless(), max_buffered=5)
        next(stream)
        until(lambda: stream.stats.buffered == 5)
        assert bridge.stats().open_streams == 1
        stream.close()
        stats = bridge.stats()
        assert (stats.open_streams, stats.bytes, stats.buffered) == (0, 0, 0)
        assert stats.events >= 6


def test_stream_can_be_read_in_a_coroutine_through_a_thread() -> None:
    async def read() -> list[int]:
        return await asyncio.to_thread(lambda: iterate(numbers(3)).collect())

    assert asyncio.run(read()) == [0, 1, 2]


def test_generators_inside_are_closed_by_their_own_blocks() -> None:
    closed: list[str] = []

    async def inner() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append("inner")

    async def outer() -> AsyncIterator[int]:
        async with aclosing(inner()) as items:  # type: ignore[type-var]
            async for item in items:
                yield item

    for _ in iterate(outer()):
        break
    until(lambda: closed == ["inner"])
