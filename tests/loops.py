"""Running a test's coroutines on a new event loop of a given kind."""

from __future__ import annotations

import asyncio
import asyncio.constants
import contextlib
import gc
import linecache
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from sseqbridge._engine import caller_loops
from sseqbridge._engine.loop_state import LoopState

# The process's own loops for asynchronous code, on which leaks.start_shared() sends a request.
SHARED_LOOPS: set[asyncio.AbstractEventLoop] = set()


@contextlib.contextmanager
def coroutine_runner(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[[Callable[[], Awaitable[Any]]], Any]]:
    """A function that runs a coroutine function on a new loop of the kind `request.param`.

    The loop uses the fixture `clock`, if the test has it. Fails if a loop logged a warning.
    """
    options: dict[str, Any] = {"debug": True, "use_uvloop": request.param == "uvloop"}
    if "clock" in request.fixturenames:
        options["loop_factory"] = partial(request.getfixturevalue("clock").new_loop, request.param)

    def run_on_new_loop(main: Callable[[], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            # In debug mode asyncio warns about slow callbacks, which occur on a busy machine.
            asyncio.get_running_loop().slow_callback_duration = 60.0
            return await main()

        return anyio.run(run, backend_options=options)

    with caplog.at_level(logging.WARNING, logger="asyncio"), _short_debug_tracebacks():
        yield run_on_new_loop
    # An unclosed socket or transport warns when it is collected, and warnings are errors.
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@contextlib.contextmanager
def _short_debug_tracebacks() -> Iterator[None]:
    """Let asyncio's debug mode record one frame of each future and callback: whole stacks take half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "tracebacklimit", 1, raising=False)
        patch.setattr("asyncio.constants.DEBUG_STACK_DEPTH", 1)
        # For each frame it would check whether the source file has changed.
        patch.setattr(linecache, "checkcache", lambda filename=None: None)
        yield


def states_of_callers_loops() -> dict[asyncio.AbstractEventLoop, LoopState]:
    """The states of the loops on which arequest_sse ran, except the process's own loop for asynchronous code."""
    return {loop: state for loop, state in caller_loops._states.items() if loop not in SHARED_LOOPS}
