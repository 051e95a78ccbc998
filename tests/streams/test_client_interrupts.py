"""An interrupt at any bytecode of a call of an SSEClient, and of merged functions, leaves no request running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import Bridge, SSEClient, merge
from sseqbridge.testing import SSEServer, send, silence
from tests.interrupts import ALL, MARKS, interruptions
from tests.support import until

pytestmark = MARKS


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with Bridge() as bridge:
        bridge.started()
        yield bridge


@pytest.fixture
def client(bridge: Bridge) -> Iterator[SSEClient[str]]:
    """A client of a server whose streams stay open."""
    with SSEServer([*map(send, ALL), silence()]) as server:
        yield SSEClient(server.url, decode="text", headers=lambda: {"X-A": "1"}, bridge=bridge)


@pytest.mark.parametrize("way", ["request", "call"])
def test_interrupt_of_a_request_leaves_no_request_running(client: SSEClient[str], bridge: Bridge, way: str) -> None:
    call = client.call("/")
    opened: list[Any] = []

    def ask(_: object) -> None:
        opened.append(client.request("/") if way == "request" else call())

    def close(_: object) -> None:
        opened.pop().events.close()

    for _ in interruptions(lambda: None, ask, close=close, is_prepared=True, least=100):
        assert not opened
        until(lambda: not bridge.stats().open_streams)


def test_interrupt_of_merged_functions_leaves_no_request_running(client: SSEClient[str], bridge: Bridge) -> None:
    ended = threading.Semaphore(0)
    begun: list[int] = []

    def function() -> Any:
        begun.append(1)
        try:
            return client.request("/")
        finally:
            ended.release()

    def read(made: list[Any]) -> None:
        made.append(merge({"a": function}))
        loop = iter(made[0])
        assert next(loop) == ("a", "0")
        # Not by the finalizer, which would swallow the interrupt.
        loop.close()

    for made, _ in interruptions(list, read, is_prepared=True):
        for merged in made:
            # The loop may not have begun.
            merged.close()
        while begun:
            begun.pop()
            assert ended.acquire(timeout=30)
        until(lambda: not bridge.stats().open_streams)
