"""Requests through httpx's synchronous transport, in threads: for tests that replace `socket.socket` (mocket).

A replaced socket answers from memory, and no event loop can wait for it: uvloop refuses it, and asyncio reads it
without its TLS. Nothing here is fast, and connections are not kept.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from sseqbridge._runtime import loops

__all__ = ["ThreadedTransport"]


class ThreadedTransport(httpx.AsyncBaseTransport):
    """Sends each request with a new httpx.HTTPTransport, in a thread."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its response as soon as the head has been received."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        content = b"".join([part async for part in request.stream])
        sent = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            extensions=request.extensions,
            stream=httpx.ByteStream(content),
        )
        transport, response = await _in_thread(functools.partial(_send, sent), discard=_close)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_ThreadedBody(transport, response),
            extensions={key: value for key, value in response.extensions.items() if key != "network_stream"},
        )


def _send(request: httpx.Request) -> tuple[httpx.HTTPTransport, httpx.Response]:
    # Each time: the TLS context, too, is replaced while the sockets are.
    transport = httpx.HTTPTransport()
    try:
        return transport, transport.handle_request(request)
    except BaseException:
        transport.close()
        raise


def _close(sent: tuple[httpx.HTTPTransport, httpx.Response]) -> None:
    transport, response = sent
    response.close()
    transport.close()


class _ThreadedBody(httpx.AsyncByteStream):
    """The body of a response, whose chunks are read in threads."""

    def __init__(self, transport: httpx.HTTPTransport, response: httpx.Response) -> None:
        self._transport = transport
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, httpx.SyncByteStream)
        chunks: Iterator[bytes] = iter(self._response.stream)
        while (chunk := await _in_thread(functools.partial(next, chunks, None))) is not None:
            yield chunk

    async def aclose(self) -> None:
        await _in_thread(functools.partial(_close, (self._transport, self._response)))


async def _in_thread(function: Any, discard: Any = None) -> Any:
    return await loops.run_in_daemon_thread("sseqbridge-request", function, discard=discard)
