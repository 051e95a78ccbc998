"""Relays as Starlette responses, and therefore FastAPI's. Needs the extra `starlette`.

The responses run on the event loop. However a response ends, its upstream is aborted.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterable, Mapping
from types import AsyncGeneratorType, CodeType, FunctionType, GeneratorType, ModuleType
from typing import TYPE_CHECKING, Any

import anyio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sseqbridge._exceptions import SSEError
from sseqbridge._streams.aio import AsyncSSEResponse
from sseqbridge._streams.stream import BaseStream
from sseqbridge._streams.sync import SSEResponse

from ._async_frames import AsyncFrames
from ._frames import arelay
from ._options import AsyncRelayOptions, RelayOptions, describe, relay_options
from ._response import Refusal, aread_refusal, error_response, event_stream_headers
from ._upstream import Upstream

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["register_error_handlers", "stream_response"]


def stream_response(
    stream: Any,
    *,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
    **options: Unpack[AsyncRelayOptions],
) -> Response:
    """Return a response that streams to the client; a disconnect aborts the upstream.

        async def chat(request):
            return stream_response(partial(arequest_sse, url, headers, data))

    `stream` and the options are those of `relay.aframes`. A coroutine must not call request_sse: only a view
    that is a plain function passes its result. `headers` are added to those of an event stream. `background`
    runs after the response. If the upstream's status is not 200, the response is that of the option `refusal`.

    A function in place of the stream is called when the response starts, and not at all for HEAD. The application's
    exception handlers are called with its exceptions. If it, or an iterable, refers to the Request, the request's body
    is read into memory before, since the response then receives the messages that report a disconnect.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("stream_response", AsyncRelayOptions, options)
        merged = event_stream_headers(headers)
        opens = not (upstream.is_function and checked["early"])
        response = _RelayResponse(
            arelay(upstream, checked), checked, headers, opens, headers=merged, background=background
        )
        response.stream = stream
        return response


describe(stream_response, AsyncRelayOptions)


def register_error_handlers(app: Starlette) -> None:
    """Answer an error of the library in a view with a response for the client, instead of 500.

        register_error_handlers(app)

    `app` is the Starlette or FastAPI application.

    504 for a time limit, 502 for each other error of an upstream, with the JSON object of a refusal; 404 for a log's
    StreamNotFoundError, 410 for EventsLostError, 503 or 500 for other errors of a log. A warning is logged. The
    upstream's StatusError is answered like a refusal. An error that the client's disconnect causes
    (RequestAbortedError) is not logged. CallbackError, which the application's own code causes, is raised on.

    Raises nothing itself.
    """
    app.add_exception_handler(SSEError, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    refusal = error_response(error) if isinstance(error, SSEError) else None
    if refusal is None:
        raise error
    return Response(refusal.body, refusal.status, refusal.headers)


# How many objects a function or iterable may refer to that are searched for requests, and each container.
_MOST_OBJECTS = 1000
_WITHOUT_REQUESTS = (type, ModuleType, CodeType, str, bytes, int, float, type(None))
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset, deque})


def _requests_in(stream: Any, known: Iterable[object]) -> list[Request]:
    """Return the requests that a function or iterable refers to: in its arguments and variables, or by its objects.

    The objects in `known` are not searched.
    """
    found: list[Request] = []
    if isinstance(stream, (BaseStream, SSEResponse, AsyncSSEResponse)):
        # It reads no request, and its task refers to many objects.
        return found
    queue = deque([stream])
    # Kept alive during the search, so that no ID is used twice.
    seen = {id(value): value for value in known}
    most = len(seen) + _MOST_OBJECTS
    while queue and len(seen) < most:
        value = queue.popleft()
        # Not isinstance(), nor any attribute: code of the application's may answer.
        kind = type(value)
        if id(value) in seen or issubclass(kind, _WITHOUT_REQUESTS):
            continue
        seen[id(value)] = value
        if issubclass(kind, Request):
            found.append(value)
        elif kind not in _CONTAINERS or len(value) <= _MOST_OBJECTS:
            queue += _parts(value)
    return found


def _parts(value: Any) -> list[Any]:
    """Return the objects that an object refers to, without the global variables of functions."""
    kind = type(value)
    if kind is FunctionType:
        return [value.__closure__, value.__defaults__, value.__kwdefaults__]
    frame = value.ag_frame if kind is AsyncGeneratorType else value.gi_frame if kind is GeneratorType else None
    return gc.get_referents(value) if frame is None else list(frame.f_locals.values())


class _RelayResponse(StreamingResponse):
    """Closes the frames however the response ends, and as soon as the client disconnects.

    Starlette's own response watches for a disconnect only on servers that do not raise in `send`. A server
    that raises there notices the disconnect only when there is something to send.
    """

    def __init__(
        self, frames: AsyncFrames, relay: RelayOptions, added: Mapping[str, str] | None, opens: bool, **options: Any
    ) -> None:
        super().__init__(frames, **options)
        self._frames = frames
        self._relay = relay
        self._added = added
        # Whether the upstream's headers are waited for.
        self._opens = opens
        # The function or iterable that runs during the response, and may read the bodies of requests.
        self.stream: Any = None
        # Of an event stream; the others were set by the view.
        self._own_headers = list(self.raw_headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            # Servers read the body of a response to HEAD to its end, and discard it.
            self._frames.discard()
        error: Exception | None = None
        is_gone = False

        async def send_or_leave(message: Message) -> None:
            nonlocal is_gone
            try:
                await send(message)
            except OSError:
                # The client has disconnected: ASGI 2.4 has servers raise OSError then.
                is_gone = True
                raise

        try:
            await self._read_bodies(scope, receive, send)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._close_on_disconnect, receive)
                try:
                    await self._respond(scope, receive, send_or_leave)
                except Exception as exc:
                    # Raised below: a task group would wrap it. Not an OSError of `send`, but one of the application's.
                    error = None if is_gone and isinstance(exc, OSError) else exc
                tasks.cancel_scope.cancel()
        finally:
            await self._frames.aclose()
        if error is not None:
            raise error
        if self.background is not None:
            await self.background()

    def requests(self, *asgi: Any) -> list[Request]:
        """Return the requests that the stream refers to by itself, not by the objects of the ASGI call.

        A class-based view refers to the three, and the server's `receive` to all that runs. Starlette and middleware
        have requests of their own there: such a request waits forever for a body that was read by another one.
        """
        stream, self.stream = self.stream, None
        return _requests_in(stream, asgi)

    async def _read_bodies(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body of the request, which keeps it, before this response receives messages itself."""
        for request in self.requests(scope, receive, send):
            if request.scope is not scope and request.receive is not receive:
                # The request of another client.
                continue
            try:
                await request.body()
            except ClientDisconnect:
                # Reported by the next message, too.
                return
            except RuntimeError:
                pass  # The application has read it as a stream.

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = await self._frames.open_upstream() if self._opens else None
        if refused is None:
            await self.stream_response(send)
        else:
            refusal = await aread_refusal(refused, self._relay["refusal"], self._added)
            await self._response(refusal)(scope, receive, send)

    def _response(self, refusal: Refusal) -> Response:
        response = Response(refusal.body, refusal.status, refusal.headers)
        response.raw_headers += [header for header in self.raw_headers if header not in self._own_headers]
        return response

    async def _close_on_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._frames.close()
