"""Relays as Starlette responses, and so FastAPI's. Needs the extra `starlette`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sseqbridge._sse.events import ServerSentEvent

from ._frames import AsyncFrames, arelayed
from ._response import Refusal, arefusal_of, event_stream_headers, is_refused
from ._source import abort_on_error
from ._writer import RelayOptions

__all__ = ["stream_response"]


def stream_response(
    stream: Any,
    *,
    heartbeat: float | None = 15.0,
    map: Callable[[Any], Any] | None = None,
    done: bool | str | ServerSentEvent | None = True,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> Response:
    """Return a response that streams to the reader; who leaves stops the upstream.

    `stream` is what arequest_sse returns, or request_sse (in a function that is no coroutine), or
    an iterable, or an asynchronous one; it and `heartbeat`, `map` and `done` are as `relay.frames`
    has them. `headers` are added to those of an event stream. `background` runs when it has ended.

    Where the upstream did not answer 200 the response has its status and body instead.

    Raises UsageError for arguments that cannot be.
    """
    with abort_on_error(stream):
        options = RelayOptions(heartbeat, None, map, done)
        merged = event_stream_headers(headers)
        if is_refused(stream):
            return _RefusalResponse(stream, headers, background)
        return _FramesResponse(arelayed(stream, options), headers=merged, background=background)


class _FramesResponse(StreamingResponse):
    """Ends the stream however the response ends, and as soon as the reader has left.

    Starlette's own watches for that only on servers that do not raise in `send`; while there is
    nothing to send, those do not either.
    """

    def __init__(self, body: AsyncFrames, **options: Any) -> None:
        super().__init__(body, **options)
        self._frames = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            # Servers read the body of such a response to its end, and leave it out.
            self._frames.close()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_with_the_reader, receive)
                try:
                    await self.stream_response(send)
                except OSError:
                    pass  # The reader has left: a server of ASGI 2.4 says so in this way.
                tasks.cancel_scope.cancel()
        finally:
            self._frames.close()
        if self.background is not None:
            await self.background()

    async def _end_with_the_reader(self, receive: Receive) -> None:
        await _reader_leaves(receive)
        self._frames.close()


class _RefusalResponse(Response):
    """An upstream's refusal, read when the response is sent."""

    def __init__(self, stream: Any, headers: Mapping[str, str] | None, background: BackgroundTask | None) -> None:
        super().__init__(background=background)
        self._stream = stream
        self._added = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.ensure_future(arefusal_of(self._stream, self._added))
        leaving = asyncio.ensure_future(_reader_leaves(receive))
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            # Middlewares want an answer though nobody reads it.
            refusal = reading.result() if reading.done() else Refusal(502, {}, b"")
        finally:
            reading.cancel()
            leaving.cancel()
        await Response(refusal.body, refusal.status, refusal.headers, background=self.background)(scope, receive, send)


async def _reader_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
