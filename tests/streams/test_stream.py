"""Objects with requests, connections or threads cannot be copied or pickled."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, BridgeTransport, amerge, arequest_sse, enter, iterate, merge, request_sse, tee
from sseqbridge.relay import aframes, frames
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, send

pytestmark = pytest.mark.configurations("default", "plain")

MAKERS = pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])


@MAKERS
def test_streams_cannot_be_copied(make: Callable[[Any], Any]) -> None:
    async def main(url: str) -> None:
        async with await arequest_sse(url) as response:
            for original in (response, response.events, amerge([response])):
                with pytest.raises(TypeError, match="cannot be copied"):
                    make(original)

    with SSEServer([send(1), send("[DONE]")]) as server:
        with request_sse(server.url) as response:
            readers = tee(request_sse(server.url))
            with merge([request_sse(server.url)]) as merged:
                for original in (response, response.events, readers, readers[0], merged):
                    with pytest.raises(TypeError, match="cannot be copied"):
                        make(original)
                assert [item for _, item in merged] == [1]
            gc.collect()
            assert response.events.collect() == [1]
            assert [reader.collect() for reader in readers] == [[1], [1]]
        asyncio.run(main(server.url))


@MAKERS
def test_iterators_of_a_stream_cannot_be_copied(make: Callable[[Any], Any]) -> None:
    with SSEServer([send(1), send(2), send("[DONE]")]) as server, request_sse(server.url) as (_, _, events):
        iterator = events.keep_open()
        assert next(iterator) == 1
        with pytest.raises(TypeError):
            make(iterator)
        gc.collect()
        assert list(iterator) == [2]


@MAKERS
def test_owners_of_threads_and_connections_cannot_be_copied(make: Callable[[Any], Any]) -> None:
    with SSEServer([send(1), send("[DONE]")]) as server, Bridge() as bridge, MemoryLog(bridge=bridge) as log:
        piece = frames(iter(["a"]), heartbeat=None)
        for original in (server, bridge, log, piece, aframes(iter(["a"]), heartbeat=None)):
            with pytest.raises(TypeError, match=f"{type(original).__name__} cannot be copied or pickled"):
                make(original)
        gc.collect()
        assert log.open("key", lambda: request_sse(server.url)).collect() == [1]
        assert request_sse(server.url, bridge=bridge).events.collect() == [1]
        # On a busy machine the first heartbeat comes before the item.
        assert b"".join(piece).removeprefix(b":\n").startswith(b"data: a")


@MAKERS
def test_sessions_of_asynchronous_code_cannot_be_copied(make: Callable[[Any], Any]) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1

    @asynccontextmanager
    async def session() -> AsyncIterator[list[str]]:
        log = ["entered"]
        yield log
        log.append("exited")

    entered, stream = enter(session), iterate(items)
    with entered as log:
        for original in (entered, stream):
            with pytest.raises(TypeError, match="cannot be copied"):
                make(original)
        gc.collect()
        assert (log, stream.collect()) == (["entered"], [1])


@MAKERS
def test_transports_cannot_be_copied(make: Callable[[Any], Any]) -> None:
    with SSEServer([send(1), send("[DONE]")]) as server:
        transport = BridgeTransport(verify=ssl.create_default_context())
        with httpx.Client(transport=transport) as client:
            response = client.send(client.build_request("GET", server.url), stream=True)
            # httpx wraps the stream of the transport.
            for original in (transport, transport.handle_request(client.build_request("GET", server.url)).stream):
                with pytest.raises(TypeError, match="cannot be copied"):
                    make(original)
            gc.collect()
            assert response.read() == b"data: 1\n\ndata: [DONE]\n\n"
