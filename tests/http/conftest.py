"""Fixtures of the tests of HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from tests.support import LOOPS

from .upstream import Main, Run


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """A function that runs a coroutine function on a new loop; the loop must log no warning."""
    options: dict[str, Any] = {"debug": True, "use_uvloop": request.param == "uvloop"}
    if "clock" in request.fixturenames:
        options["loop_factory"] = partial(request.getfixturevalue("clock").new_loop, request.param)

    def run_on_new_loop(main: Main) -> Any:
        async def patient() -> Any:
            # In debug mode, asyncio warns of slow callbacks, which a busy machine has.
            asyncio.get_running_loop().slow_callback_duration = 60.0
            return await main()

        return anyio.run(patient, backend_options=options)

    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield run_on_new_loop
    # An unclosed socket or transport warns when it is collected, and warnings are errors.
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes every name resolve to the given ports on loopback."""

    def set_up(*ports: int) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)

    return set_up
