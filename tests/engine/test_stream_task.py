"""A stream's task as a subscription: its thread-safe members, on a bridge of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import Bridge, UsageError
from sseqbridge._engine.channel import CLOSED
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
