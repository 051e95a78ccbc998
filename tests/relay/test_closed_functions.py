"""Functions in place of streams that are still running, or swallow their cancellation, when the relay is closed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from sseqbridge import arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.relay._ending import Ending
from sseqbridge.testing import SSEServer, send, silence
from tests.support import until


async def close_during(frames: Any, begun: asyncio.Event, *, early: bool = False) -> None:
    """Close the frames while their function runs."""
    reading = asyncio.create_task(anext(frames, None)) if early else asyncio.create_task(frames.open())
    await begun.wait()
    await frames.aclose()
    await reading


@pytest.mark.parametrize("early", [False, True])
def test_stream_opened_by_a_cancelled_function_is_aborted(early: bool) -> None:
    ends: list[RelayEnd] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def opens() -> Any:
            stream = await arequest_sse(server.url)
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return stream

        frames = relay.aframes(opens, early=early, heartbeat=None, on_end=ends.append)
        await close_during(frames, begun, early=early)
        assert [piece async for piece in frames] == []

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())
        server.requests[0].wait_aborted(30)
    until(lambda: ends)
    assert ends == [RelayEnd("disconnected", None, "")]


def test_function_that_asks_in_spite_of_its_cancellation_is_cancelled() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def opens() -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return await arequest_sse(server.url)

        await close_during(relay.aframes(opens), begun)

    with SSEServer([silence()]) as server:
        asyncio.run(main())
        assert not server.requests


def test_stream_that_a_thread_opens_after_the_close_is_aborted() -> None:
    """The task that waited for the thread has ended."""
    go = threading.Event()

    async def main() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def opens() -> Any:
            stream = request_sse(server.url)
            loop.call_soon_threadsafe(begun.set)
            assert go.wait(30)
            return stream

        await close_during(relay.aframes(opens), begun)
        go.set()
        await asyncio.to_thread(server.requests[0].wait_aborted, 30)

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())


def test_coroutine_that_a_thread_returns_after_the_close_is_closed() -> None:
    """Python would warn of a coroutine that is never awaited."""
    go, returned = threading.Event(), threading.Event()

    async def main() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def opens() -> Any:
            loop.call_soon_threadsafe(begun.set)
            assert go.wait(30)
            coroutine = arequest_sse("http://127.0.0.1:9/")
            returned.set()
            return coroutine

        await close_during(relay.aframes(opens), begun)
        go.set()
        await asyncio.to_thread(returned.wait, 30)

    asyncio.run(main())


def test_function_that_closes_its_own_relay_aborts_its_stream() -> None:
    async def main() -> None:
        async def opens() -> Any:
            stream = await arequest_sse(server.url)
            frames.close()
            return stream

        frames = relay.aframes(opens)
        await frames.open()
        assert [piece async for piece in frames] == []

    def opens() -> Any:
        stream = request_sse(server.url)
        frames.close()
        return stream

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())
        frames = relay.frames(opens)
        frames.open()
        assert list(frames) == []
        for request in server.requests:
            request.wait_aborted(30)


def test_function_may_close_its_relay_and_return_an_ended_stream() -> None:
    def opens() -> Any:
        response = request_sse(server.url)
        outcomes.append((response.events.collect(), response.events))
        frames.close()
        return response

    outcomes: list[Any] = []
    with SSEServer([send(1), send("[DONE]")]) as server:
        frames = relay.frames(opens)
        frames.open()
        assert list(frames) == []
        [(items, events)] = outcomes
        assert (items, events.outcome) == ([1], "done")


def test_on_end_cancelled_by_its_loops_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def on_end(end: RelayEnd) -> None:
            begun.set()
            await asyncio.Event().wait()

        frames = relay.aframes(["a"], on_end=on_end)
        await anext(frames)
        frames.close()
        await begun.wait()

    asyncio.run(main())
    assert "`on_end` was cancelled, since its event loop was ending" in caplog.text


def test_frames_closed_by_threads_call_on_end_on_their_loop() -> None:
    """A coroutine function runs on the loop that reads the relay."""
    loops: list[Any] = []

    async def on_end(end: RelayEnd) -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        frames = relay.aframes(["a"], on_end=on_end)
        await anext(frames)
        await asyncio.to_thread(frames.close)
        while not loops:
            await asyncio.sleep(0)
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_frames_closed_after_their_loop_call_on_end_in_threads() -> None:
    ends: list[RelayEnd] = []

    async def main() -> Any:
        frames = relay.aframes(["a"], on_end=ends.append)
        await anext(frames)
        return frames

    frames = asyncio.run(main())
    frames.close()
    assert [end.outcome for end in ends] == ["disconnected"]


def test_on_end_that_two_threads_ask_for_is_called_once() -> None:
    ends: list[RelayEnd] = []
    ending = Ending(ends.append)

    async def main() -> None:
        for _ in range(2):
            ending.call_later(RelayEnd("eof", None, ""), asyncio.get_running_loop())
        while not ends:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert len(ends) == 1


def test_relay_that_a_forked_child_drops_calls_no_on_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[RelayEnd] = []
    ending = Ending(ends.append)
    monkeypatch.setattr("sseqbridge._runtime.fork.process_token", lambda: (1, 1))
    ending.drop(RelayEnd("disconnected", None, ""), None)
    ending.call(RelayEnd("eof", None, ""))
    assert ends == []
