"""The pool of connections: the abort of a stream must not leave other sockets open."""

from __future__ import annotations

import asyncio
import gc
import warnings

import httpx
import pytest

from sseqbridge import arequest_sse
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import SSEServer, respond, send, silence

IDLE = 30


async def leave_idle_connections(client: httpx.AsyncClient | None) -> None:
    """Fill the pool with connections that their server has closed."""
    with SSEServer([send(1), send("[DONE]")]) as server:
        for response in await asyncio.gather(*(arequest_sse(server.url, client=client) for _ in range(IDLE))):
            assert [item async for item in response.events] == [1]
            await reader_of(response.events).cursor.subscription.await_finished(30)


async def abort_after(steps: int, client: httpx.AsyncClient | None) -> None:
    with SSEServer([respond(), silence()]) as server:
        asking = asyncio.create_task(arequest_sse(server.url, client=client))
        for _ in range(steps):
            await asyncio.sleep(0)
        if asking.cancel():
            with pytest.raises(asyncio.CancelledError):
                await asking
        else:
            await asking.result().events.aclose()
        # The next request is not affected.
        async with await arequest_sse(server.url, client=client) as (status, _, _):
            assert status == 200
    # If the loop ended now, it would cancel the tasks that still close connections, despite their shields.
    while any(task.get_name() == "sseqbridge-stream" for task in asyncio.all_tasks()):
        await asyncio.sleep(0.001)


@pytest.mark.heavy
@pytest.mark.parametrize("steps", range(16))
@pytest.mark.parametrize("transport", ["own", "httpx"])
def test_abort_while_its_task_closes_dead_connections_leaves_none_open(transport: str, steps: int) -> None:
    """httpcore closes dead connections of the pool in the task of a request; an abort must not interrupt that."""

    async def main() -> None:
        no_limits = httpx.Limits(max_keepalive_connections=None)
        client = httpx.AsyncClient(limits=no_limits) if transport == "httpx" else None
        await leave_idle_connections(client)
        await abort_after(steps, client)
        if client is not None:
            await client.aclose()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [str(warning.message) for warning in caught if "unclosed" in str(warning.message)] == []
