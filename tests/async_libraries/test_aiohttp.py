"""aiohttp: a session that is open over a block, and a body that is read as it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sseqbridge import enter, iterate, run
from sseqbridge.testing import SSEServer, send, silence

aiohttp = pytest.importorskip("aiohttp", reason="needs the extra sdk")

pytestmark = pytest.mark.sdk


async def lines(session: Any, url: str) -> AsyncIterator[bytes]:
    async with session.get(url) as response:
        async for line in response.content:
            yield line.strip()


def test_lines_of_a_body_come_by_a_plain_loop() -> None:
    with SSEServer([send(1), send(2)]) as server, enter(aiohttp.ClientSession) as session:
        assert [line for line in iterate(lines(session, server.url)) if line] == [b"data: 1", b"data: 2"]


def test_leaving_the_loop_aborts_the_request() -> None:
    with SSEServer([send(1), silence()]) as server, enter(aiohttp.ClientSession) as session:
        for line in iterate(lines(session, server.url)):
            assert line == b"data: 1"
            break
        server.requests[0].wait_aborted()
        # The session is still good.
        server.play([send(2)])
        assert b"data: 2" in list(iterate(lines(session, server.url)))


def test_error_is_that_of_the_library(closed_port: int) -> None:
    async def get(session: Any) -> None:
        async with session.get(f"http://127.0.0.1:{closed_port}"):
            pass

    with enter(aiohttp.ClientSession) as session, pytest.raises(aiohttp.ClientConnectorError):
        run(get(session))
