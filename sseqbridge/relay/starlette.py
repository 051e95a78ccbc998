"""Relays as Starlette responses, and therefore FastAPI's. Needs the extra `starlette`.

The responses run on the event loop. However a response ends, its upstream is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ._frames import AsyncFrames, arelay
from ._options import ASYNC_WITHOUT, describe, relay_options
from ._response import Refusal, aread_refusal, event_stream_headers
from ._source import Upstream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sseqbridge._streams.reader import ItemReader

    from ._options import AsyncRelayKeywords, RefusalOption

__all__ = ["stream_response"]


def stream_response(
    stream: Any,
    *,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
    **options: Unpack[AsyncRelayKeywords],
) -> Response:
    """Return a response that streams to the client; a disconnect aborts the upstream.

    `stream` and the options are those of `relay.aframes`. A coroutine must not call request_sse: only a view
    that is a plain function passes its result. `headers` are added to those of an event stream. `background`
    runs after the response. If the upstream's status is not 200, the response is that of the option `refusal`.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("stream_response", options, without=ASYNC_WITHOUT)
        merged = event_stream_headers(headers)
        if (refused := upstream.refused) is not None:
            return _RefusalResponse(refused, checked.refusal, headers, background)
        return _FramesResponse(arelay(upstream, checked), headers=merged, background=background)


describe(stream_response, without=ASYNC_WITHOUT)


class _FramesResponse(StreamingResponse):
    """Closes the frames however the response ends, and as soon as the client disconnects.

    Starlette's own response watches for a disconnect only on servers that do not raise in `send`. A server
    that raises there notices the disconnect only when there is something to send.
    """

    def __init__(self, body: AsyncFrames, **options: Any) -> None:
        super().__init__(body, **options)
        self._frames = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            # Servers read the body of a response to HEAD to its end, and discard it.
            self._frames.close()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._close_on_disconnect, receive)
                try:
                    await self.stream_response(send)
                except OSError:
                    pass  # The client has disconnected: ASGI 2.4 has servers raise OSError then.
                tasks.cancel_scope.cancel()
        finally:
            self._frames.close()
        if self.background is not None:
            await self.background()

    async def _close_on_disconnect(self, receive: Receive) -> None:
        await _wait_disconnected(receive)
        self._frames.close()


class _RefusalResponse(Response):
    """An upstream's refusal, whose body is read when the response is sent."""

    def __init__(
        self,
        reader: ItemReader[Any],
        option: RefusalOption,
        headers: Mapping[str, str] | None,
        background: BackgroundTask | None,
    ) -> None:
        super().__init__(background=background)
        self._reader = reader
        self._option = option
        self._added = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.ensure_future(aread_refusal(self._reader, self._option, self._added))
        disconnecting = asyncio.ensure_future(_wait_disconnected(receive))
        try:
            await asyncio.wait({reading, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
            # Middlewares expect a response even after the client's disconnect.
            refusal = reading.result() if reading.done() else Refusal(502, {}, b"")
        finally:
            reading.cancel()
            disconnecting.cancel()
        await Response(refusal.body, refusal.status, refusal.headers, background=self.background)(scope, receive, send)


async def _wait_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
