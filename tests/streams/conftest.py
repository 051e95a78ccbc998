"""Fixtures that run coroutines on a new event loop, and send requests with a client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loops import coroutine_runner, states_of_callers_loops
from tests.streams.async_support import Run
from tests.streams.client_support import WAYS, ClientRequester
from tests.support import IS_DEFAULT, LOOPS


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """A function that runs a coroutine function on a new loop. Fails if the loop leaves anything behind."""
    with coroutine_runner(request, caplog) as run_on_new_loop:
        yield run_on_new_loop
    assert states_of_callers_loops() == {}


@pytest.fixture(params=WAYS if IS_DEFAULT else WAYS[:1])
def send_with(request: pytest.FixtureRequest) -> Iterator[ClientRequester]:
    """Sends requests with an SSEClient: by request, arequest, a call, and a call in a coroutine."""
    requester = ClientRequester(request.param)
    yield requester
    requester.close()
