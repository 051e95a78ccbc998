"""Streams, tees and merges are open requests, which cannot be copied or pickled."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from sseqbridge import amerge, arequest_sse, merge, request_sse, tee
from sseqbridge.testing import SSEServer, send


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
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
