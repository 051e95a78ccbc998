"""run: a coroutine's result in synchronous code, its time limit, and its cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

import pytest

from sseqbridge import Bridge, BridgeClosedError, CallbackError, RequestAbortedError, UsageError, run
from tests.clock import FakeClock
from tests.support import in_thread, is_waiting, until, until_blocked

pytestmark = pytest.mark.configurations("default", "plain")


async def double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


class Own:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Generator[Any, None, int]:
        yield from asyncio.sleep(0).__await__()
        return 42


class Waiting:
    """A coroutine that waits forever, and records how it ended."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.cleaned_up = threading.Event()

    async def forever(self) -> None:
        task = asyncio.current_task()
        try:
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            assert asyncio.current_task() is task
            self.cleaned_up.set()


# --- Results ---


SOURCES: dict[str, tuple[Callable[[], Any], int]] = {
    "coroutine": (lambda: double(21), 42),
    "function of a coroutine": (lambda: partial(double, 21), 42),
    "plain function": (lambda: lambda: 42, 42),
    "awaitable": (Own, 42),
    "function of an awaitable": (lambda: Own, 42),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_result_is_returned(kind: str) -> None:
    source, result = SOURCES[kind]
    assert run(source()) == result


def test_objects_of_the_loop_outlive_a_call() -> None:
    async def made() -> asyncio.Queue[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        tasks.append(asyncio.create_task(queue.put(1)))
        return queue

    tasks: list[asyncio.Task[None]] = []
    queue = run(made)
    assert run(queue.get()) == 1


def test_runs_in_the_callers_context() -> None:
    name = contextvars.ContextVar("name", default="nobody")

    async def named() -> str:
        before = name.get()
        name.set("changed")
        return before

    name.set("caller")
    assert run(named()) == "caller"
    assert name.get() == "caller"


def test_many_threads_run_at_once() -> None:
    barrier = 20
    count = 0

    async def meet() -> int:
        nonlocal count
        count += 1
        while count < barrier:
            await asyncio.sleep(0.001)
        return count

    calls = [in_thread(lambda: run(meet())) for _ in range(barrier)]
    assert [call.result(30) for call in calls] == [barrier] * barrier


# --- Errors ---


class OwnError(Exception):
    pass


class FalseError(Exception):
    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    "error",
    [OwnError(), FalseError(), TimeoutError("own"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()],
)
def test_error_of_the_coroutine_is_raised_with_its_traceback(error: BaseException) -> None:
    async def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run(fails())
    assert caught.value is error
    assert "in fails" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert run(double(1)) == 2


def test_error_leaves_no_reference_cycle() -> None:
    async def fails() -> None:
        raise OwnError

    def caught() -> weakref.ref[OwnError]:
        try:
            run(fails())
        except OwnError as exc:
            return weakref.ref(exc)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        gone = caught()
        until(lambda: gone() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("source", [1, None, "text", [1]])
def test_source_of_another_type_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match="`source` must be an awaitable, or a function that returns one, got"):
        run(source)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, "`timeout` must be a number of seconds above 0"),
        ({"timeout": "1"}, "`timeout` must be"),
        ({"cancel": 1}, "`cancel` must have an is_set"),
    ],
)
def test_wrong_argument_closes_the_coroutine(options: dict[str, Any], error: str) -> None:
    wrong: Any = run
    with pytest.raises(UsageError, match=error):
        wrong(double(1), **options)


# --- Cancellation ---


def test_timeout_is_raised_after_the_cleanup(clock: FakeClock) -> None:
    waiting = Waiting()
    with Bridge() as bridge:
        with pytest.raises(TimeoutError, match=r"run\(Waiting.forever\) did not return within 30 s"):
            clock.advance_until_done(lambda: bridge.run(waiting.forever(), timeout=30))
        assert waiting.cleaned_up.is_set()


def test_flag_is_raised_after_the_cleanup() -> None:
    waiting, flag = Waiting(), threading.Event()
    calling = in_thread(lambda: run(waiting.forever(), cancel=flag))
    waiting.waiting.wait(30)
    flag.set()
    with pytest.raises(RequestAbortedError, match=r"cancel was set before run\(Waiting.forever\) returned"):
        calling.result(30)
    assert waiting.cleaned_up.is_set()


def test_flag_that_is_set_already_starts_nothing() -> None:
    flag = threading.Event()
    flag.set()
    with pytest.raises(RequestAbortedError, match="before the coroutine was started"):
        run(double(1), cancel=flag)


def test_flag_that_raises_cancels() -> None:
    class Broken:
        armed = False

        def is_set(self) -> bool:
            if self.armed:
                raise OwnError
            return False

    waiting, flag = Waiting(), Broken()
    calling = in_thread(lambda: run(waiting.forever(), cancel=flag))
    waiting.waiting.wait(30)
    flag.armed = True
    with pytest.raises(CallbackError, match="is_set"):
        calling.result(30)
    assert waiting.cleaned_up.is_set()


def test_ctrl_c_is_raised_after_the_cleanup() -> None:
    waiting = Waiting()
    main = threading.get_ident()

    def interrupt() -> None:
        waiting.waiting.wait(30)
        until_blocked(main)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(waiting.forever())
    interrupting.result(30)
    assert waiting.cleaned_up.is_set()
    assert run(double(1)) == 2


def test_coroutine_that_does_not_end_is_left(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    ended = threading.Event()

    async def stubborn() -> None:
        while not go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass
        ended.set()

    with Bridge() as bridge:
        with pytest.raises(TimeoutError):
            clock.advance_until_done(lambda: bridge.run(stubborn(), timeout=30))
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "stubborn) has not ended 10 s after it was cancelled" in record.getMessage()
        go.set()
        assert ended.wait(30)


def test_failure_of_the_cleanup_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    waiting, flag = threading.Event(), threading.Event()

    async def fails() -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OwnError

    calling = in_thread(lambda: run(fails(), cancel=flag))
    waiting.wait(30)
    flag.set()
    with pytest.raises(RequestAbortedError):
        calling.result(30)
    assert "fails) failed while it was closed" in caplog.text


# --- Loops ---


def test_calling_it_on_the_loop_is_a_usage_error() -> None:
    async def nested(coroutine: Awaitable[int]) -> int:
        return run(coroutine)

    # The inner coroutine is closed: a warning would fail the test.
    with pytest.raises(UsageError, match="run was called in the bridge's own thread, which must not wait"):
        run(nested(double(1)))


def test_closing_the_bridge_ends_the_call() -> None:
    waiting, bridge = Waiting(), Bridge()
    calling = in_thread(lambda: bridge.run(waiting.forever()))
    waiting.waiting.wait(30)
    until(lambda: is_waiting(calling))
    bridge.close()
    with pytest.raises(BridgeClosedError, match="was closed"):
        calling.result(30)
    assert waiting.cleaned_up.is_set()
    with pytest.raises(UsageError, match="this Bridge is closed"):
        bridge.run(double(1))


@pytest.mark.blocks_its_loop
def test_blocking_code_is_reported_by_name(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def blocks() -> None:
        # The watch has begun, and sees a beat after the block.
        await asyncio.sleep(0.1)
        clock.advance(600)
        await asyncio.sleep(0.1)

    clock.report_blocked_loops(monkeypatch)
    with Bridge() as bridge, caplog.at_level(logging.WARNING, "sseqbridge.loop"):
        bridge.run(blocks())
    assert "a step of run(test_blocking_code_is_reported_by_name.<locals>.blocks) took" in caplog.text
