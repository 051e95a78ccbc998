"""The fixture that runs coroutines on a new event loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loops import coroutine_runner, states_of_callers_loops
from tests.streams.async_support import Run
from tests.support import LOOPS


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """A function that runs a coroutine function on a new loop. Fails if the loop leaves anything behind."""
    with coroutine_runner(request, caplog) as run_on_new_loop:
        yield run_on_new_loop
    assert states_of_callers_loops() == {}
