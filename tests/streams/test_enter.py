"""enter: an asynchronous context manager around a block of synchronous code."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from sseqbridge import Bridge, BridgeClosedError, UsageError, enter, run
from tests.support import in_thread, until, until_blocked

pytestmark = pytest.mark.configurations("default", "plain")


class Session:
    """An asynchronous context manager with a task group, as sessions have; it records what happens to it."""

    def __init__(self, swallows: type[BaseException] | None = None) -> None:
        self.log: list[str] = []
        self.die = threading.Event()
        self._swallows = swallows
        self._group: Any = None
        self._task: Any = None

    async def __aenter__(self) -> Session:
        self._task = asyncio.current_task()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._watch)
        self.log.append("entered")
        return self

    async def _watch(self) -> None:
        while not self.die.is_set():
            await anyio.sleep(0.001)
        raise OSError("the connection was lost")

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        assert asyncio.current_task() is self._task
        self.log.append("exited" if kind is None else kind.__name__)
        if kind is asyncio.CancelledError and self.die.is_set():
            await self._group.__aexit__(kind, error, traceback)
        else:
            # A group would raise the block's error in a group.
            self._group.cancel_scope.cancel()
            await self._group.__aexit__(None, None, None)
        return self._swallows is not None and isinstance(error, self._swallows)

    async def ask(self) -> str:
        await anyio.sleep(0)
        return "answer"


def test_block_runs_between_entering_and_exiting() -> None:
    made = Session()
    with enter(made) as session:
        assert session is made
        assert run(session.ask()) == "answer"
        assert run(session.ask) == "answer"
        assert made.log == ["entered"]
    assert made.log == ["entered", "exited"]


def test_function_is_called_on_the_loop() -> None:
    async def coroutine() -> Session:
        asyncio.get_running_loop()
        return Session()

    def function() -> Session:
        asyncio.get_running_loop()
        return Session()

    for source in (function, coroutine, Session):
        with enter(source) as session:
            assert run(session.ask()) == "answer"
        assert session.log == ["entered", "exited"]


def test_bridge_enters_on_its_own_loop() -> None:
    with Bridge() as bridge, bridge.enter(Session) as session:
        assert bridge.run(session.ask()) == "answer"
        assert session._task.get_loop() is bridge.started().loop


# --- Exceptions of the block ---


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_exception_of_the_block_is_raised_inside(error: type[BaseException]) -> None:
    session = Session()
    raised = error("of the block")
    with pytest.raises(error) as caught, enter(session):
        raise raised
    assert caught.value is raised
    assert session.log == ["entered", error.__name__]


def test_exception_of_the_block_can_be_swallowed() -> None:
    session = Session(swallows=ValueError)
    with enter(session):
        raise ValueError
    assert session.log == ["entered", "ValueError"]


def test_exception_of_the_block_can_be_replaced() -> None:
    @asynccontextmanager
    async def replacing() -> AsyncIterator[int]:
        try:
            yield 1
        except ValueError as exc:
            raise OSError("instead") from exc

    with pytest.raises(OSError, match="instead") as caught, enter(replacing()) as value:
        assert value == 1
        raise ValueError
    assert isinstance(caught.value.__cause__, ValueError)


def test_error_of_entering_is_raised() -> None:
    @asynccontextmanager
    async def fails() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        raise OSError("refused")
        yield

    with pytest.raises(OSError, match="refused"), enter(fails()):
        raise AssertionError("the block must not run")


def test_error_of_exiting_is_raised() -> None:
    @asynccontextmanager
    async def fails() -> AsyncIterator[int]:
        yield 1
        raise OSError("at the end")

    with pytest.raises(OSError, match="at the end"), enter(fails()):
        pass


# --- Sessions that end early ---


def test_dead_session_reports_its_error_at_the_blocks_end() -> None:
    session = Session()
    reached_the_end = False
    with pytest.raises(Exception, match="unhandled errors in a TaskGroup") as caught, enter(session):
        session.die.set()
        until(lambda: len(session.log) == 2)
        reached_the_end = True
    group: Any = caught.value
    assert [repr(error) for error in group.exceptions] == ["OSError('the connection was lost')"]
    assert reached_the_end
    assert session.log == ["entered", "CancelledError"]


def test_error_of_a_dead_session_precedes_that_of_the_block() -> None:
    session = Session()
    with pytest.raises(Exception, match="unhandled errors in a TaskGroup") as caught, enter(session):
        session.die.set()
        until(lambda: len(session.log) == 2)
        raise ValueError("a consequence")
    assert repr(caught.value.__context__) == "ValueError('a consequence')"


def test_closing_the_bridge_exits_the_session() -> None:
    session, bridge = Session(), Bridge()
    with pytest.raises(BridgeClosedError), bridge.enter(session):
        bridge.close()
        assert session.log == ["entered", "CancelledError"]


@pytest.mark.slow
@pytest.mark.parametrize("swallowed", [1, 2])
def test_slow_cleanup_is_no_error_of_a_closing_bridge(swallowed: int, caplog: pytest.LogCaptureFixture) -> None:
    """The loop closes no generator that a task still runs, such as a session that waits for its subprocess."""
    ended = threading.Event()

    @asynccontextmanager
    async def session() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            for _ in range(swallowed):
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            ended.set()

    with Bridge() as bridge:
        entered = bridge.enter(session)
        entered.__enter__()
        bridge.close()
        assert ended.wait(30)
        with pytest.raises(BridgeClosedError):
            entered.__exit__(None, None, None)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_ctrl_c_while_entering_cancels_it() -> None:
    waiting, cleaned_up = threading.Event(), threading.Event()
    main = threading.get_ident()

    @asynccontextmanager
    async def silent() -> AsyncIterator[int]:
        try:
            waiting.set()
            await asyncio.Event().wait()
            yield 1
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    def interrupt() -> None:
        waiting.wait(30)
        until_blocked(main)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt), enter(silent()):
        raise AssertionError("the block must not run")
    interrupting.result(30)
    assert cleaned_up.is_set()


def test_dropping_an_entered_session_warns_and_exits_it() -> None:
    session = Session()
    entered = enter(session)
    entered.__enter__()
    assert repr(entered) == "<Entered open>"
    with pytest.warns(ResourceWarning, match=r"enter\(Session\) was dropped while it was open: use `with`"):
        del entered
    gc.collect()
    until(lambda: session.log == ["entered", "CancelledError"])


# --- Wrong use ---


@pytest.mark.parametrize("source", [1, None, "text"])
def test_source_of_another_type_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match="`source` must be an asynchronous context manager, or a function"):
        enter(source)


def test_function_that_returns_another_type_is_refused() -> None:
    async def wrong() -> Any:
        return [1]

    with pytest.raises(UsageError, match="must return an asynchronous context manager, got list"), enter(wrong):
        raise AssertionError("the block must not run")


def test_it_is_entered_once() -> None:
    entered = enter(Session())
    assert repr(entered) == "<Entered not entered>"
    with entered:
        pass
    assert repr(entered) == "<Entered closed>"
    with pytest.raises(UsageError, match="entered once"), entered:
        pass


def test_it_is_left_once_and_only_if_it_was_entered() -> None:
    entered = enter(Session())
    with pytest.raises(UsageError, match="entered, and not left yet"):
        entered.__exit__(None, None, None)
    with entered:
        pass
    with pytest.raises(UsageError, match="entered, and not left yet"):
        entered.__exit__(None, None, None)


def test_calling_it_on_the_loop_is_a_usage_error() -> None:
    async def nested() -> None:
        with enter(Session()):
            pass

    with pytest.raises(UsageError, match="the bridge's own thread"):
        run(nested())


@pytest.mark.blocks_its_loop
def test_calling_it_in_a_coroutine_warns() -> None:
    async def nested() -> None:
        with pytest.warns(RuntimeWarning, match="enter blocks the event loop") as caught, enter(Session()):
            pass
        assert caught[0].filename == __file__

    asyncio.run(nested())
