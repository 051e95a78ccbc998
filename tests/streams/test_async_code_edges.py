"""iterate, run and enter where their calls are interrupted, refused or inherited, or their code does not end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sseqbridge import Bridge, BridgeClosedError, UsageError, enter, iterate, run
from sseqbridge._engine.async_calls import AsyncCall, AsyncContext
from sseqbridge._engine.async_work import AsyncWork
from sseqbridge._engine.iteration import Iteration
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._runtime import fork
from sseqbridge._streams import async_code
from sseqbridge._streams.bridge import async_bridge
from sseqbridge._streams.stream import reader_of
from tests.clock import FakeClock
from tests.support import in_thread, until, until_blocked

pytestmark = pytest.mark.configurations("default", "plain")


async def never() -> Any:
    await asyncio.Event().wait()


async def ready() -> None:
    pass


class Silent:
    """A generator, coroutine and context manager that wait, and a record of how they end."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.ended = threading.Event()

    async def generator(self) -> AsyncIterator[int]:
        try:
            yield 1
            await self.coroutine()
        finally:
            self.ended.set()

    async def coroutine(self) -> None:
        try:
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @asynccontextmanager
    async def manager(self) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            self.ended.set()


def entered(bridge: Bridge, source: Any) -> None:
    with bridge.enter(source):
        raise AssertionError("the block must not run")


CALLS: list[Callable[[Bridge, Any], object]] = [Bridge.iterate, Bridge.run, entered]
each_call = pytest.mark.parametrize("call", CALLS, ids=["iterate", "run", "enter"])


# --- Calls that do not begin ---


@each_call
def test_interrupt_before_the_start_closes_the_coroutine(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Bridge, Any], object]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    coroutine = never()
    with Bridge() as bridge:
        bridge.run(ready())
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LoopState, "post_start", interrupted)
            call(bridge, coroutine)
        until(lambda: inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED)
        assert bridge.run(asyncio.sleep(0, "goes on")) == "goes on"


def test_interrupt_after_the_start_of_an_iteration_closes_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Silent()

    def interrupted(*_: object) -> None:
        silent.waiting.wait(30)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(async_code, "Stream", interrupted)
        iterate(silent.generator())
    assert silent.ended.wait(30)


@each_call
def test_bridge_closed_during_the_call_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Bridge, Any], object]
) -> None:
    def close(bridge: Bridge, *_: object, **__: object) -> None:
        bridge.close()

    coroutine = never()
    bridge = Bridge()
    # The last step before the start.
    monkeypatch.setattr(Bridge, "check_may_wait", close)
    with pytest.raises(BridgeClosedError, match="was closed during the call"):
        call(bridge, coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_source_that_was_discarded_is_discarded_once() -> None:
    """A call that was refused, and then interrupted, discards its source twice."""
    coroutine = never()
    call = AsyncCall(async_bridge().started(), coroutine, None)
    call.discard_source()
    call.discard_source()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


# --- Calls in a forked child, which a different process token stands for ---


def test_forked_child_cancels_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Silent(), Silent(), Silent()
    with Bridge() as bridge:
        state = bridge.started()
        works: list[AsyncWork] = [
            Iteration(state, sources[0].generator(), None, 10),
            AsyncCall(state, sources[1].coroutine(), None),
            AsyncContext(state, sources[2].manager()),
        ]
        for work in works:
            bridge.start(state, work)
        until(lambda: sources[0].waiting.is_set() and sources[1].waiting.is_set() and works[2].opened)
        with monkeypatch.context() as patch:
            patch.setattr(fork, "process_token", lambda: ("child", 1))
            for work in works:
                work.abort()
        bridge.run(ready())
        assert not any(work.finished or work.channel.closed for work in works)
        for work in works:
            work.abort()
        until(lambda: all(source.ended.is_set() for source in sources))


def test_forked_child_leaves_the_block_of_its_parent_without_exiting(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Silent()
    context = enter(silent.manager())
    context.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(fork, "process_token", lambda: ("child", 1))
        assert context.__exit__(None, None, None) is None
    run(ready())
    assert not silent.ended.is_set()
    context.__exit__(None, None, None)
    assert silent.ended.is_set()


def test_forked_child_drops_what_its_parent_has_entered_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Silent()
    context = enter(silent.manager())
    context.__enter__()
    work: Any = context._context
    with monkeypatch.context() as patch:
        patch.setattr(fork, "process_token", lambda: ("child", 1))
        # A ResourceWarning would fail the test.
        del context
        gc.collect()
    run(ready())
    assert not silent.ended.is_set()
    work.abort()
    assert silent.ended.wait(30)


# --- Ends of blocks ---


def test_interrupt_while_the_manager_exits_cancels_the_exit() -> None:
    main, exiting, cancelled = threading.get_ident(), threading.Event(), threading.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[int]:
        yield 1
        try:
            exiting.set()
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def interrupt() -> None:
        exiting.wait(30)
        until_blocked(main)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt), enter(slow()) as value:
        assert value == 1
    interrupting.result(30)
    assert cancelled.is_set()


def test_cancelled_block_that_is_not_swallowed_ends_with_its_loop() -> None:
    """A manager without a task group gets the cancellation, and lets it pass."""
    passed: list[type[BaseException] | None] = []

    class Plain:
        async def __aenter__(self) -> str:
            return "entered"

        async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
            passed.append(kind)

    bridge = Bridge()
    with pytest.raises(BridgeClosedError), bridge.enter(Plain()) as value:
        assert value == "entered"
        bridge.close()
    assert passed == [asyncio.CancelledError]


# --- Code that does not end ---


class Stubborn:
    """A coroutine that swallows cancellations until `go` is set, and then raises an error."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.ended = threading.Event()

    async def run(self) -> None:
        while not self.go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass
        self.ended.set()
        raise ValueError("late")


def test_failure_of_code_that_was_left_running_is_logged(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    stubborn = Stubborn()
    with Bridge() as bridge:
        with pytest.raises(TimeoutError):
            clock.advance_until_done(lambda: bridge.run(stubborn.run(), timeout=30))
        stubborn.go.set()
        assert stubborn.ended.wait(30)
        until(lambda: "run(Stubborn.run) failed after it was left running" in caplog.text)
    assert "ValueError: late" in caplog.text


def test_ending_loop_releases_the_consumer_of_endless_code(clock: FakeClock) -> None:
    stubborn, bridge = Stubborn(), Bridge()
    calling = in_thread(lambda: bridge.run(stubborn.run()))
    until(lambda: bridge.stats().open_streams == 1)
    closing = in_thread(bridge.close)
    clock.advance_until(calling.done, step=0.05)
    with pytest.raises(BridgeClosedError, match=r"run\(Stubborn.run\) did not end before its loop"):
        calling.result(0)
    stubborn.go.set()
    closing.result(30)
    assert stubborn.ended.wait(30)


def test_closing_generator_is_cancelled_at_the_end_of_the_loop() -> None:
    """asyncio closes a generator that was dropped in a task of its own, which nobody awaits."""
    closing, errors = threading.Event(), list[type[BaseException]]()

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closing.set()
            try:
                await asyncio.Event().wait()
            except BaseException as error:
                errors.append(type(error))
                raise

    async def drop() -> None:
        async for _ in items():
            break

    bridge = Bridge()
    bridge.run(drop())
    assert closing.wait(30)
    bridge.close()
    assert errors == [asyncio.CancelledError]


def test_error_of_a_generator_closed_by_its_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ZeroDivisionError

    async def begin() -> int:
        return await anext(items)

    items = failing()
    with Bridge() as bridge:
        assert bridge.run(begin()) == 1
    [record] = [record for record in caplog.records if record.name == "asyncio"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.blocks_its_loop
def test_cancelled_code_that_blocks_its_loop_is_logged(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    blocked, go = threading.Event(), threading.Event()

    async def blocks() -> None:
        blocked.set()
        go.wait(30)

    with Bridge() as bridge:
        calling = in_thread(lambda: bridge.run(blocks(), timeout=30))
        blocked.wait(30)
        clock.advance_until(calling.done, step=10)
        with pytest.raises(TimeoutError):
            calling.result(0)
        assert "was cancelled, but something blocks its loop" in caplog.text
        go.set()
        bridge.run(ready())


@pytest.mark.blocks_its_loop
def test_flag_that_blocks_the_loop_is_reported_by_name(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def is_set(self) -> bool:
            if asyncio._get_running_loop() is not None and not caplog.records:
                clock.advance(600)
            return False

    clock.report_blocked_loops(monkeypatch)
    with Bridge() as bridge, caplog.at_level("WARNING", "sseqbridge.loop"):
        stream = bridge.iterate(Silent().generator(), cancel=Slow())
        until(lambda: caplog.records)
        stream.close()
    assert "is_set() of the cancel flag" in caplog.text
    assert "Slow, of iterate(Silent.generator) took" in caplog.text


# --- Iterators ---


def test_close_that_is_no_coroutine_function_is_called() -> None:
    class Closable:
        closed = 0

        def __aiter__(self) -> Closable:
            return self

        async def __anext__(self) -> int:
            return 1

        def close(self) -> None:
            self.closed += 1

    source = Closable()
    with iterate(source) as stream:
        assert next(stream) == 1
    assert source.closed == 1


@pytest.mark.blocks_its_loop
def test_item_is_not_repeated_after_a_cancellation_between_items() -> None:
    """A generator that seldom waits lets the loop run after an item: there its own cancellation reaches it."""
    caught: list[int] = []

    async def cancels_itself() -> AsyncIterator[int]:
        for n in range(3):
            # Longer than a source may keep the loop.
            time.sleep(0.02)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                yield n
            except asyncio.CancelledError:
                caught.append(n)

    # Nobody else uses the loop, which the source blocks.
    with Bridge() as bridge:
        assert list(bridge.iterate(cancels_itself(), max_buffered=10)) == [0, 1, 2]
    assert caught == [0, 1, 2]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Task.cancelling() is new in Python 3.11")
def test_cancellations_swallowed_by_a_source_do_not_reach_its_cleanup() -> None:
    left: list[int] = []

    class Cancelled:
        def __aiter__(self) -> Cancelled:
            return self

        async def __anext__(self) -> int:
            for _ in range(2):
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    pass
            raise StopAsyncIteration

        async def aclose(self) -> None:
            left.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]

    assert list(iterate(Cancelled())) == []
    assert left == [0]


def test_iteration_has_no_connection_to_drop() -> None:
    with iterate(Silent().generator()) as stream:
        with pytest.raises(UsageError, match=r"iterate\(Silent.generator\) is not a request"):
            reader_of(stream).cursor.subscription.reconnect()
        assert next(stream) == 1
