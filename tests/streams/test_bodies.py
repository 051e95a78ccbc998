"""Streams as bodies of responses and requests: frameworks look for `__iter__` or `__aiter__` to choose how to read.

They look in different orders, so a stream can have only one of the two, also where the other would only raise an error
with a hint. Quart's Response, which no test installs, looks for `__iter__` first, like Litestar's ServerSentEvent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from litestar import Litestar, get
from litestar.response import ServerSentEvent, Stream
from starlette.responses import StreamingResponse

from sseqbridge import arequest_sse, request_sse
from sseqbridge.testing import SSEServer, send

# Slow, as the import of Litestar.
pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]


def litestar_app(handler: Callable[[], Awaitable[Any]]) -> Any:
    return Litestar([get("/")(handler)], openapi_config=None, logging_config=None)


async def body_from(app: Any) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        return (await client.get("http://app/")).raise_for_status().text


async def by_starlette(stream: Any) -> str:
    return await body_from(StreamingResponse(stream))


async def by_litestar(stream: Any) -> str:
    async def handler() -> Stream:
        return Stream(stream)

    return await body_from(litestar_app(handler))


async def by_litestar_as_events(stream: Any) -> str:
    async def handler() -> ServerSentEvent:
        return ServerSentEvent(stream)

    return (await body_from(litestar_app(handler))).replace("data: ", "").replace("\r\n", "")


async def by_httpx(stream: Any) -> str:
    """Send it as the body of a request."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        pieces = [await receive()]
        while pieces[-1]["more_body"]:
            pieces.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"".join(piece["body"] for piece in pieces)})

    async with httpx.AsyncClient(transport=httpx.ASGITransport(echo)) as client:
        return (await client.post("http://app/", content=stream)).text


@pytest.mark.parametrize("read", [by_starlette, by_litestar, by_litestar_as_events, by_httpx])
def test_async_stream_is_read_asynchronously(read: Callable[[Any], Awaitable[str]]) -> None:
    async def main() -> str:
        async with await arequest_sse(upstream.url, decode=lambda event: event.data.encode()) as response:
            return await read(response.events)

    with SSEServer([send("one"), send("two"), send("[DONE]")]) as upstream:
        assert asyncio.run(main()) == "onetwo"


@pytest.mark.parametrize("read", [by_starlette, by_litestar])
def test_stream_is_read_in_a_thread(read: Callable[[Any], Awaitable[str]]) -> None:
    async def main() -> str:
        return await read(stream)

    with SSEServer([send("one"), send("two"), send("[DONE]")]) as upstream:
        stream = request_sse(upstream.url, decode="text").events
        assert asyncio.run(main()) == "onetwo"
