"""arequest_sse: leaving, closing, cancelling, and backpressure."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sseqbridge import (
    AsyncEventStream,
    RequestAbortedError,
    arequest_sse,
)
from sseqbridge._http import client
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    raw,
    send,
    silence,
)
from tests.streams.async_support import Run, aborted, until

pytestmark = pytest.mark.slow


def test_leaving_the_with_block_aborts(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            async with await arequest_sse(server.url) as (_, _, items):
                async for item in items:
                    assert item == 1
                    break
                assert items.outcome is None, "Python does not notify an asynchronous iterator that its loop was left"
            assert items.outcome == "closed"
            assert await aborted(server.requests[0])

    run(main)


def test_an_exception_in_the_with_block_aborts(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url)
            with contextlib.suppress(ZeroDivisionError):
                async with items:
                    async for _ in items:
                        raise ZeroDivisionError
            assert items.outcome == "closed"
            assert await aborted(server.requests[0])

    run(main)


def test_aclose_ends_the_stream_and_is_idempotent(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send(2), silence()]) as server:
            _, _, items = await arequest_sse(server.url)
            async with contextlib.aclosing(items):
                assert await items.next() == 1
            assert server.requests[0].aborted.wait(30), "aclose() must wait until the socket is closed"
            await asyncio.gather(items.aclose(), items.aclose())
            assert [item async for item in items] == []
            with pytest.raises(StopAsyncIteration):
                await items.next(timeout=30)
            assert items.outcome == "closed"

    run(main)


def test_aclose_after_the_end_changes_nothing(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            _, _, items = await arequest_sse(server.url)
            assert [item async for item in items] == [1]
            await items.aclose()
            assert items.outcome == "done"
            assert not server.requests[0].aborted.is_set()

    run(main)


def test_concurrent_aclose_calls_leave_nothing_open(run: Run) -> None:
    """A second cancellation must not cut short the closing that the first one started."""

    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            for _ in range(20):
                _, _, items = await arequest_sse(server.url)
                await asyncio.gather(*(items.aclose() for _ in range(5)))
            for request in server.requests:
                assert await aborted(request)

    run(main)


def test_aclose_in_another_task_ends_the_consumer_quietly(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url)
            seen: list[Any] = []

            async def read() -> str:
                seen.append(await items.next())
                seen.extend([item async for item in items])
                return "quietly"

            reader = asyncio.create_task(read())
            await until(lambda: seen == [1])
            await items.aclose()
            assert await asyncio.wait_for(reader, 30) == "quietly"
            assert await aborted(server.requests[0])

    run(main)


def test_dropped_open_stream_is_aborted_with_a_warning(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            held = [await arequest_sse(server.url)]
            with pytest.warns(ResourceWarning, match="dropped while it was open"):
                held.clear()
            assert await aborted(server.requests[0])

    run(main)


def test_a_request_cancelled_before_the_headers_is_aborted(run: Run) -> None:
    async def main() -> None:
        with SSEServer(lambda request: [silence()]) as server:
            asking = asyncio.create_task(arequest_sse(server.url))
            await until(lambda: len(server.requests) == 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await aborted(server.requests[0])

    run(main)


def test_a_request_cancelled_at_any_step_leaves_nothing_open(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            for steps in range(40):
                asking = asyncio.create_task(arequest_sse(server.url))
                for _ in range(steps):
                    await asyncio.sleep(0)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await (await asking).events.aclose()
            await until(lambda: server.open_requests == 0)

    run(main)


@pytest.mark.parametrize("read_first", [True, False])
def test_a_set_cancel_flag_aborts_the_stream(run: Run, read_first: bool) -> None:
    async def main() -> None:
        cancel = threading.Event()
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url, cancel=cancel)
            if read_first:
                assert await items.next() == 1
                waiting = asyncio.create_task(anext(items, "ended quietly"))
                await asyncio.sleep(0)
                cancel.set()
                assert await waiting == "ended quietly"
            else:
                cancel.set()
            assert await aborted(server.requests[0])
            assert [item async for item in items] == []
            assert items.outcome == "closed"

    run(main)


def test_a_set_cancel_flag_aborts_before_the_headers(run: Run) -> None:
    async def main() -> None:
        cancel = asyncio.Event()
        with SSEServer(lambda request: [silence()]) as server:
            asking = asyncio.create_task(arequest_sse(server.url, cancel=cancel))
            await until(lambda: len(server.requests) == 1)
            cancel.set()
            with pytest.raises(RequestAbortedError):
                await asking
            assert await aborted(server.requests[0])
            with pytest.raises(RequestAbortedError):
                await arequest_sse(server.url, cancel=cancel)
            assert len(server.requests) == 1

    run(main)


@pytest.fixture(params=["http", "https"])
def upstream(
    request: pytest.FixtureRequest, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., SSEServer]:  # fmt: skip
    """A function that makes an SSEServer, over TCP or over TLS with a trusted certificate."""
    monkeypatch.setattr(client, "_tls_context", client_tls)

    def make(steps: Any) -> SSEServer:
        return SSEServer(steps, ssl_context=server_tls if request.param == "https" else None)

    return make


_EVENT = raw(b"data: " + b"x" * 16_000 + b"\n\n")


_EVENTS = 2_000


_LIMIT = 256 * 1024


async def wait_for_backpressure(items: AsyncEventStream[Any], request: ReceivedRequest) -> None:
    """Wait until the upstream cannot send any more."""
    await until(lambda: items.stats.buffered > _LIMIT // 2)
    sent, since = -1, 0.0
    while time.monotonic() - since < 0.1:
        if request.sent_bytes != sent:
            sent, since = request.sent_bytes, time.monotonic()
        await asyncio.sleep(0.005)


@pytest.mark.heavy
def test_a_consumer_that_does_not_read_causes_backpressure(run: Run, upstream: Callable[..., SSEServer]) -> None:
    async def main() -> None:
        with upstream([_EVENT] * _EVENTS) as server:
            async with await arequest_sse(server.url, decode="text", max_buffered_bytes=_LIMIT) as (_, _, items):
                request = server.requests[0]
                await wait_for_backpressure(items, request)
                assert items.stats.buffered <= _LIMIT
                assert request.sent_bytes < 16 * 1024 * 1024, "unread data must stay in the sockets"
                assert not request.finished.is_set()
                count = 0
                async for item in items:
                    assert len(item) == 16_000
                    count += 1
                assert count == _EVENTS
                assert items.outcome == "eof"

    run(main)


def test_abort_during_backpressure(run: Run, upstream: Callable[..., SSEServer]) -> None:
    async def main() -> None:
        with upstream([_EVENT] * _EVENTS) as server:
            async with await arequest_sse(server.url, decode="text", max_buffered_bytes=_LIMIT) as (_, _, items):
                await wait_for_backpressure(items, server.requests[0])
            assert await aborted(server.requests[0])
            assert server.requests[0].sent_bytes < 32 * 1024 * 1024

    run(main)


def test_abort_in_silence(run: Run, upstream: Callable[..., SSEServer]) -> None:
    async def main() -> None:
        with upstream([send(1), silence()]) as server:
            async with await arequest_sse(server.url) as (_, _, items):
                assert await items.next() == 1
                waiting = asyncio.create_task(anext(items, None))
                await asyncio.sleep(0)
            assert await waiting is None
            assert await aborted(server.requests[0])

    run(main)
