"""poll() and collect(): one stream without waiting, or as a whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import (
    DecodeError,
    TruncatedStreamError,
    arequest_sse,
    request_sse,
)
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, send, silence
from tests.support import polled, until, until_no_stream_is_open

pytestmark = pytest.mark.configurations("default", "plain")

DONE = send("[DONE]")


# The fixed charge of an event, in addition to its text.
CHARGE = 256


def test_poll_returns_arrived_items() -> None:
    go = threading.Event()
    with SSEServer([send(1), send(2), hold(go), send(3), DONE]) as server:
        stream = request_sse(server.url).events
        assert polled(stream, 2) == [1, 2]
        assert stream.poll() == []
        assert stream.outcome is None
        go.set()
        items: list[Any] = []

        def is_over() -> bool:
            items.extend(stream.poll())
            return stream.outcome == "done"

        until(is_over)
        assert items == [3]
        assert stream.poll() == []


def test_poll_returns_the_items_before_an_error_first() -> None:
    with SSEServer([send(1), b"data: {\n\n", silence()]) as server:
        stream = request_sse(server.url).events
        until(lambda: stream.stats.buffered > 2 * CHARGE)
        assert polled(stream, 1) == [1]
        for _ in range(2):
            with pytest.raises(DecodeError, match="not JSON"):
                until(stream.poll)
    with SSEServer([send(1), cut()]) as server:
        stream = request_sse(server.url).events
        until_no_stream_is_open()
        assert stream.poll() == [1]
        for _ in range(2):
            with pytest.raises(TruncatedStreamError):
                stream.poll()


def test_poll_of_a_stream_that_never_pauses_returns() -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        while True:
            yield send("x" * 100)

    with SSEServer(script) as server, request_sse(server.url, decode="text", max_buffered_bytes=100_000) as (_, _, it):
        until(lambda: it.stats.buffered > 50_000)
        assert 0 < len(it.poll()) < 100_000


def test_poll_after_close_is_empty() -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url).events
        until(lambda: stream.stats.events == 1)
        stream.close()
        assert stream.poll() == []
        assert stream.outcome == "closed"


def test_collect_reads_to_the_end() -> None:
    async def main() -> list[Any]:
        response = await arequest_sse(server.url)
        items: list[Any] = []
        while len(items) < 2:
            await asyncio.sleep(0.001)
            items += response.events.poll()
        assert items == [1, 2]
        go.set()
        return await response.events.collect()

    go = threading.Event()
    with SSEServer([send(1), send(2), hold(go), send(3), DONE]) as server:
        stream = request_sse(server.url).events
        assert next(stream) == 1
        go.set()
        assert stream.collect() == [2, 3]
        go.clear()
        assert asyncio.run(main()) == [3]
