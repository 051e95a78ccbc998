"""A stream's task as a subscription: its thread-safe members, on a bridge of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import Bridge, BridgeClosedError, UsageError, arequest_sse, request_sse
from sseqbridge._engine.async_work import AsyncWork
from sseqbridge._engine.caller_loops import running_loop_state
from sseqbridge._engine.channel import CLOSED, End
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._engine.responses import Head
from sseqbridge._engine.stream_task import StreamTask
from sseqbridge._http.request import RequestOptions
from sseqbridge.testing import SSEServer, send, silence
from tests.engine.reconnecting import AT_ONCE
from tests.engine.test_batches import options

BUILD: dict[str, Any] = {"content": None, "files": None, "extensions": {}}


def submitted(bridge: Bridge, options: RequestOptions) -> StreamTask:
    task = bridge.new_task(options)
    bridge.start(task.state, task)
    return task


@pytest.fixture
def server() -> Iterator[SSEServer]:
    with SSEServer([send(1), silence()]) as server:
        yield server


def test_abort_closes_the_channel_and_the_connection(server: SSEServer) -> None:
    with Bridge() as bridge:
        task = submitted(bridge, options(url=server.url, build=BUILD, last_event_id="7"))
        assert isinstance(task.channel.receive(30), Head)
        assert (task.target, task.initial_event_id, task.done_event) == (f"{server.url}/", "7", None)
        task.abort()
        assert task.channel.receive(30) is CLOSED
        task.wait_finished(30)
        assert task.finished
        server.requests[0].wait_aborted(30)


def test_reconnect_is_refused_unless_asked_for(server: SSEServer) -> None:
    with Bridge() as bridge:
        task = submitted(bridge, options(url=server.url, build=BUILD))
        with pytest.raises(UsageError, match="reconnect=True"):
            task.reconnect()
        task.abort()


def test_reconnect_makes_another_connection(server: SSEServer) -> None:
    with Bridge() as bridge:
        task = submitted(bridge, options(url=server.url, build=BUILD, reconnect=AT_ONCE))
        assert isinstance(task.channel.receive(30), Head)
        task.reconnect()
        server.wait_for_request(2, timeout=30)
        task.abort()


def fails(*args: object, **options: object) -> Any:
    raise MemoryError("no room for a task")


def assert_ended_by_failed_start(task: StreamTask, bridge: Bridge) -> None:
    end = task.channel.receive(30)
    assert isinstance(end, End)
    assert isinstance(end.error, BridgeClosedError)
    assert isinstance(end.error.__cause__, MemoryError)
    task.wait_finished(30)
    assert bridge.stats().open_streams == 0


@pytest.mark.parametrize("reconnect", [None, AT_ONCE])
def test_failed_start_leaves_nothing_registered(
    server: SSEServer, monkeypatch: pytest.MonkeyPatch, reconnect: Any
) -> None:
    with Bridge() as bridge:
        monkeypatch.setattr(StreamTask, "_start_task", fails)
        task = submitted(bridge, options(url=server.url, build=BUILD, reconnect=reconnect))
        assert_ended_by_failed_start(task, bridge)
        monkeypatch.undo()
        with request_sse(server.url, bridge=bridge) as response:
            assert response.status == 200


def test_start_that_fails_behind_the_task_ends_it(server: SSEServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bridge() as bridge:
        flag = threading.Event()
        monkeypatch.setattr(LoopState, "watch", fails)
        task = submitted(bridge, options(url=server.url, build=BUILD, cancel=flag))
        assert_ended_by_failed_start(task, bridge)


def test_failed_start_of_other_work_leaves_nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        pass

    with Bridge() as bridge:
        bridge.run(never)
        monkeypatch.setattr(AsyncWork, "_run", fails)
        with pytest.raises(BridgeClosedError):
            bridge.run(never)
        assert bridge.stats().open_streams == 0


def test_exit_of_a_callers_task_factory_reaches_the_caller(server: SSEServer) -> None:
    def leave(*args: object, **options: object) -> Any:
        raise SystemExit(3)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(leave)
        try:
            with pytest.raises(SystemExit):
                await arequest_sse(server.url)
        finally:
            loop.set_task_factory(None)
        assert not (await running_loop_state()).stream_tasks

    asyncio.run(main())


def test_failing_task_factory_of_a_caller_leaves_nothing_registered(server: SSEServer) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (await arequest_sse(server.url)).events:
            state = await running_loop_state()
            loop.set_task_factory(fails)
            try:
                with pytest.raises(BridgeClosedError) as caught:
                    await arequest_sse(server.url)
                assert isinstance(caught.value.__cause__, MemoryError)
            finally:
                loop.set_task_factory(None)
            assert len(state.stream_tasks) == 1

    asyncio.run(main())
