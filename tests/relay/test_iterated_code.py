"""Asynchronous code that `iterate` runs behind a relay: the streams that it reads are released at once when it ends."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sseqbridge import arequest_sse, iterate
from sseqbridge.testing import SSEServer, send, silence
from tests.relay.support import Relay, error_of


@pytest.mark.filterwarnings("ignore:.*was dropped while it was open")
def test_stream_of_iterated_code_is_aborted_without_a_collection(relayed: Relay) -> None:
    async def items() -> AsyncIterator[Any]:
        async for item in (await arequest_sse(server.url)).events:
            yield item

    gc.disable()
    try:
        with SSEServer([send({"n": 1}), send({"n": 2}), silence()]) as server:
            stream = iterate(items)
            reading = relayed(stream)
            while b'{"n":2}' not in reading.next_event():
                pass
            reading.close()
            server.requests[0].wait_aborted(30)
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [TimeoutError, LookupError])
def test_error_of_iterated_code_is_the_applications(relayed: Relay, error: type[Exception]) -> None:
    """A TimeoutError is not taken for a wait that has elapsed."""

    async def items() -> AsyncIterator[str]:
        yield "a"
        raise error

    assert error_of(relayed(iterate(items)).rest())["type"] == "ServerError"
