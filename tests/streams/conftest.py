"""The fixture that runs coroutines on a new event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from sseqbridge._engine import caller_loops
from tests.streams.async_support import Main, Run
from tests.support import LOOPS


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """A function that runs a coroutine function on a new loop. Nothing may be left of the loop."""
    options: dict[str, Any] = {"debug": True, "use_uvloop": request.param == "uvloop"}
    if "clock" in request.fixturenames:
        options["loop_factory"] = partial(request.getfixturevalue("clock").new_loop, request.param)

    def run_on_new_loop(main: Main) -> Any:
        async def patient() -> Any:
            # A busy machine is no finding.
            asyncio.get_running_loop().slow_callback_duration = 60.0
            return await main()

        return anyio.run(patient, backend_options=options)

    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield run_on_new_loop
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    assert caller_loops._states == {}
