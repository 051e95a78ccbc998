"""end_all() ends relays of functions: those that wait for their upstream, and those that were not called yet."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from sseqbridge import arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, silence
from tests.relay.support import Relay
from tests.support import in_thread


def must_not_be_called() -> Any:
    raise AssertionError("must not be called")


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("opens", [False, True])
def test_function_that_was_not_called_is_never_called(relayed: Relay, early: bool, opens: bool) -> None:
    ends: list[RelayEnd] = []
    reading = relayed(must_not_be_called, early=early, on_end=ends.append)
    relay.end_all(retry=5)
    if opens:
        opening = reading.frames.open()
        if reading.loop is not None:
            reading.loop.run_until_complete(opening)
    assert b"event: shutdown\nretry: 5000\n" in reading.rest()
    assert ends == [RelayEnd("cancelled", None, "")]


def test_function_that_waits_for_its_upstream_is_ended() -> None:
    ends: list[RelayEnd] = []
    with SSEServer([silence()]) as server:
        frames = relay.frames(lambda: request_sse(server.url), on_end=ends.append)
        opening = in_thread(frames.open)
        request = server.wait_for_request(timeout=30)
        relay.end_all()
        opening.result(30)
        request.wait_aborted(30)
        assert b"event: shutdown\n" in b"".join(frames)
    assert ends == [RelayEnd("cancelled", None, "")]


@pytest.mark.parametrize("is_coroutine_function", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_asynchronous_function_that_waits_for_its_upstream_is_ended(is_coroutine_function: bool, early: bool) -> None:
    ends: list[RelayEnd] = []

    async def aopens() -> Any:
        return await arequest_sse(server.url)

    async def main() -> None:
        opens: Any = aopens if is_coroutine_function else lambda: request_sse(server.url)
        frames = relay.aframes(opens, on_end=ends.append, early=early, heartbeat=None)
        reading = asyncio.create_task(anext(frames)) if early else asyncio.create_task(frames.open())
        request = await asyncio.to_thread(server.wait_for_request, 1, 30)
        relay.end_all()
        first = await reading
        await asyncio.to_thread(request.wait_aborted, 30)
        assert b"event: shutdown\n" in (first or b"") + b"".join([piece async for piece in frames])

    with SSEServer([silence()]) as server:
        asyncio.run(main())
    assert ends == [RelayEnd("cancelled", None, "")]


def test_function_that_cannot_be_interrupted_is_ended_after_its_return() -> None:
    begun, go = threading.Event(), threading.Event()

    def opens() -> Any:
        begun.set()
        assert go.wait(30)
        return ["a"]

    frames = relay.frames(opens)
    opening = in_thread(frames.open)
    assert begun.wait(30)
    relay.end_all()
    go.set()
    opening.result(30)
    read = b"".join(frames)
    assert b"event: shutdown\n" in read
    assert b"data: a" not in read
