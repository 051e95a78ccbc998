"""Cancellation scopes: `cancel_on`, and which streams belong to which scope."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from sseqbridge import (
    CallbackError,
    Cancelled,
    EventStream,
    SSEError,
    UsageError,
    amerge,
    arequest_sse,
    cancel_on,
    gather,
    merge,
    request_sse,
    tee,
)
from sseqbridge._engine import scope as scopes
from sseqbridge._engine.scope import is_cancelled
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, send, silence

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


@pytest.fixture
def silent() -> Iterator[SSEServer]:
    """An upstream that sends one event, and then nothing."""
    with SSEServer([send({"n": 1}), silence()]) as server:
        yield server


@pytest.fixture
def speechless() -> Iterator[SSEServer]:
    """An upstream that sends nothing, not even headers."""
    with SSEServer([silence()]) as server:
        yield server


def opened(server: SSEServer) -> EventStream[Any]:
    return request_sse(server.url).events


def read_until_set(flag: threading.Event, items: Iterator[Any]) -> None:
    """Read; the flag is set by another thread, in most runs while this one waits for the second item."""
    setter = threading.Timer(0.1, flag.set)
    setter.start()
    try:
        for _ in items:
            pass
    finally:
        setter.join()


READERS: dict[str, Callable[[EventStream[Any]], Iterator[Any]]] = {
    "for": iter,
    "keep_open": lambda events: events.keep_open(),
    "next": lambda events: iter(events.next, None),
    "generator": lambda events: (item for item in events),
    "merge": lambda events: iter(merge({"a": events})),
    "gather": lambda events: gather({"a": events}),
    "tee": lambda events: iter(tee(events, 1)[0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_flag_ends_a_wait_in_its_scope(silent: SSEServer, reader: str) -> None:
    flag = threading.Event()
    with cancel_on(flag) as scope:
        read_until_set(flag, READERS[reader](opened(silent)))
        pytest.fail("the block went on")
    assert scope.cancelled
    silent.wait_for_request().wait_aborted()


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_stream_belongs_to_the_scope_that_reads_it(silent: SSEServer, reader: str) -> None:
    events = opened(silent)
    flag = threading.Event()
    with cancel_on(flag) as scope:
        read_until_set(flag, READERS[reader](events))
        pytest.fail("the block went on")
    assert scope.cancelled
    silent.wait_for_request().wait_aborted()


def test_a_flag_ends_the_wait_for_headers(speechless: SSEServer) -> None:
    flag = threading.Event()
    with cancel_on(flag) as scope:
        read_until_set(flag, (request_sse(speechless.url) for _ in range(1)))
        pytest.fail("the block went on")
    assert scope.cancelled
    speechless.wait_for_request().wait_aborted()


def test_code_that_retries_after_errors_does_not_retry(silent: SSEServer) -> None:
    flag = threading.Event()
    attempts = 0
    with cancel_on(flag):
        while True:
            try:
                attempts += 1
                read_until_set(flag, iter(opened(silent)))
            except SSEError:
                continue
    assert attempts == 1


def test_nothing_is_sent_in_a_cancelled_scope(silent: SSEServer) -> None:
    flag = threading.Event()
    flag.set()
    with cancel_on(flag) as scope:
        opened(silent)
        pytest.fail("the block went on")
    assert scope.cancelled
    assert not silent.requests


def test_a_block_that_ends_by_itself_is_not_cancelled() -> None:
    flag = threading.Event()
    with SSEServer([send(1), send(2)]) as server, cancel_on(flag) as scope:
        assert opened(server).collect() == [1, 2]
        assert not scope.cancelled
    flag.set()
    # The flag's later life is no news of the block.
    assert not scope.cancelled


def test_cleared_flag_does_not_make_the_stream_look_complete(silent: SSEServer) -> None:
    flag = threading.Event()
    events = opened(silent)
    with cancel_on(flag) as scope:
        assert events.next() == {"n": 1}
        flag.set()
        silent.wait_for_request().wait_aborted()
        flag.clear()
        events.next()
        pytest.fail("the block went on")
    assert scope.cancelled
    assert events.outcome == "closed"


def test_a_stream_leaves_a_scope_when_it_is_read_outside(silent: SSEServer) -> None:
    flag = threading.Event()
    with SSEServer([send(1), send(2), silence()]) as server:
        with cancel_on(flag):
            events = opened(server)
            assert events.next() == 1
        with events:
            assert events.next() == 2
            with pytest.raises(TimeoutError):
                events.next(timeout=0)
            flag.set()
            # Opened and read in a scope that this flag cancels, too: the watch has looked at both.
            with cancel_on(flag), opened(silent) as other:
                other.next()
            assert events.outcome is None


def test_an_inner_scope_leaves_the_outer_one_alone(silent: SSEServer) -> None:
    inner_flag, outer_flag = threading.Event(), threading.Event()
    with cancel_on(outer_flag) as outer:
        with cancel_on(inner_flag) as inner:
            read_until_set(inner_flag, iter(opened(silent)))
        assert inner.cancelled
        assert not outer.cancelled
        with opened(silent) as events:
            assert events.next() == {"n": 1}


def test_an_outer_scope_cancels_an_inner_one(silent: SSEServer) -> None:
    flag = threading.Event()
    with cancel_on(flag) as outer:
        with cancel_on(threading.Event()) as inner:
            read_until_set(flag, iter(opened(silent)))
        pytest.fail("the outer block went on")
    assert inner.cancelled
    assert outer.cancelled


def test_other_exceptions_pass(silent: SSEServer) -> None:
    flag = threading.Event()
    with pytest.raises(ZeroDivisionError), cancel_on(flag) as scope:
        flag.set()
        raise ZeroDivisionError
    assert scope.cancelled


def test_groups_of_cancelled_end_a_cancelled_scope() -> None:
    """asyncio.TaskGroup raises them for tasks that read streams."""
    flag = threading.Event()
    flag.set()
    with cancel_on(flag) as scope:
        raise BaseExceptionGroup("", [Cancelled(), BaseExceptionGroup("", [Cancelled()])])
    assert scope.cancelled
    with pytest.raises(BaseExceptionGroup), cancel_on(flag):
        raise BaseExceptionGroup("", [Cancelled(), ValueError()])
    with pytest.raises(BaseExceptionGroup), cancel_on(threading.Event()):
        raise BaseExceptionGroup("", [Cancelled()])


def test_cancelled_of_nobody_passes() -> None:
    with pytest.raises(Cancelled), cancel_on(threading.Event()):
        raise Cancelled


def test_threads_belong_to_a_scope_only_in_its_context(silent: SSEServer) -> None:
    flag = threading.Event()
    flag.set()
    results: list[Any] = []

    def read() -> None:
        try:
            with opened(silent) as events:
                results.append(events.next())
        except Cancelled:
            results.append("cancelled")

    with cancel_on(flag):
        for run in (contextvars.Context().run, contextvars.copy_context().run):
            thread = threading.Thread(target=run, args=(read,))
            thread.start()
            thread.join()
    assert results == [{"n": 1}, "cancelled"]


@pytest.mark.parametrize("flag", [None, True, threading.Lock()])
def test_a_flag_must_have_is_set(flag: Any) -> None:
    with pytest.raises(UsageError, match=r"`flag` must have an is_set\(\) method, got"):
        cancel_on(flag)


def test_no_flag_is_never_set() -> None:
    assert not is_cancelled(None)


def test_interrupt_at_a_blocks_beginning_leaves_no_scope_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    current = scopes._current

    class Interrupted:
        """The context variable, and a signal right after it was set for the first time."""

        def __init__(self) -> None:
            self.is_armed = True

        def get(self) -> Any:
            return current.get()

        def set(self, scope: Any) -> None:
            current.set(scope)
            if self.is_armed:
                self.is_armed = False
                raise KeyboardInterrupt

    monkeypatch.setattr(scopes, "_current", Interrupted())
    flag = threading.Event()
    with pytest.raises(KeyboardInterrupt), cancel_on(flag):
        raise AssertionError("the block must not run")
    flag.set()
    assert scopes.current_scope() is None
    scopes.check_scope()


def test_a_scope_is_entered_once() -> None:
    scope = cancel_on(threading.Event())
    with scope:
        pass
    with pytest.raises(UsageError, match="must be entered once"):
        scope.__enter__()


class BrokenFlag:
    def __init__(self) -> None:
        self.is_broken = False

    def is_set(self) -> bool:
        if self.is_broken:
            raise ZeroDivisionError
        return False


def test_a_flag_that_raises_ends_its_own_streams_alone(silent: SSEServer) -> None:
    flag = BrokenFlag()
    with opened(silent) as other:
        with pytest.raises(CallbackError, match="is_set"), cancel_on(flag):
            events = opened(silent)
            assert events.next() == {"n": 1}
            flag.is_broken = True
            events.next()
        assert other.next() == {"n": 1}
        silent.requests[1].wait_aborted()
        assert not silent.requests[0].aborted.is_set()


def test_a_generator_that_is_closed_elsewhere_leaves_no_scope_behind(silent: SSEServer) -> None:
    flag = threading.Event()

    def items() -> Iterator[Any]:
        with cancel_on(flag):
            yield from opened(silent)

    iterator = contextvars.copy_context().run(items)
    assert contextvars.copy_context().run(next, iterator) == {"n": 1}
    iterator.close()  # type: ignore[attr-defined]
    flag.set()
    with opened(silent) as events:
        assert events.next() == {"n": 1}


def test_a_flag_ends_the_reading_of_a_log(silent: SSEServer) -> None:
    flag = threading.Event()
    with MemoryLog() as log:
        with cancel_on(flag) as scope:
            read_until_set(flag, iter(log.open("a", start=lambda: request_sse(silent.url))))
            pytest.fail("the block went on")
        assert scope.cancelled
        # The stream goes on for other readers.
        with log.open("a") as events:
            assert events.next() == {"n": 1}
        assert log.cancel("a")
    silent.wait_for_request().wait_aborted()


# In coroutines.


def test_a_flag_ends_a_wait_in_a_coroutine(silent: SSEServer) -> None:
    async def main() -> None:
        flag = threading.Event()
        with cancel_on(flag) as scope:
            _, _, events = await arequest_sse(silent.url)
            async for _ in events:
                flag.set()
            pytest.fail("the block went on")
        assert scope.cancelled
        await asyncio.to_thread(silent.wait_for_request().wait_aborted)

    anyio.run(main)


def test_a_flag_ends_the_wait_for_headers_in_a_coroutine(speechless: SSEServer) -> None:
    async def main() -> None:
        flag = threading.Event()
        with cancel_on(flag) as scope:
            asyncio.get_running_loop().call_later(0.05, flag.set)
            await arequest_sse(speechless.url)
            pytest.fail("the block went on")
        assert scope.cancelled

    anyio.run(main)


def test_a_flag_ends_amerge(silent: SSEServer) -> None:
    async def main() -> None:
        flag = threading.Event()
        with cancel_on(flag) as scope:
            async for _ in amerge({"a": await arequest_sse(silent.url)}):
                flag.set()
            pytest.fail("the block went on")
        assert scope.cancelled

    anyio.run(main)


def test_other_tasks_belong_to_no_scope_of_this_one(silent: SSEServer) -> None:
    async def main() -> None:
        flag = threading.Event()
        is_cancelled = asyncio.Event()

        async def reader() -> Any:
            async with await arequest_sse(silent.url) as response:
                await is_cancelled.wait()
                return await response.events.next()

        task = asyncio.create_task(reader())
        with cancel_on(flag) as scope:
            flag.set()
            await arequest_sse(silent.url)
        assert scope.cancelled
        is_cancelled.set()
        assert await task == {"n": 1}

    anyio.run(main)
