"""Relays as Django responses, under WSGI and under ASGI. Needs the extra `django`.

Runs in the view's thread; under ASGI the response runs on the event loop. A response whose upstream has to be opened,
or has refused, is completed when Django renders it: after the view, before the response passes the middlewares.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from asgiref.sync import (
    AsyncToSync,
    SyncToAsync,
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from sseqbridge._exceptions import SSEError, UsageError
from sseqbridge._runtime import loops

from ._async_frames import AsyncFrames
from ._disconnect import disconnect_flag
from ._ending import END_SECONDS, Ending, OnEnd, RelayEnd, RequestEnd, await_shielded
from ._frames import arelay, relay
from ._options import RelayOptions, check_synchronous, describe, relay_options
from ._response import Refusal, aread_refusal, error_response, event_stream_headers, read_refusal, refusal_head
from ._sync_frames import Frames
from ._upstream import Upstream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sseqbridge._streams.reader import ItemReader

__all__ = ["ErrorMiddleware", "stream_response"]


def stream_response(
    request: HttpRequest,
    stream: Any,
    *,
    headers: Mapping[str, str] | None = None,
    **options: Unpack[RelayOptions],
) -> HttpResponseBase:
    """Return a response to `request` that streams to the client; a disconnect aborts the upstream.

        def chat(request):
            return stream_response(request, partial(request_sse, url, headers, data))

    For synchronous and asynchronous views, under WSGI and under ASGI. `stream` and the options are those of
    `relay.frames`; under ASGI, `stream` and `on_end` may also be what `relay.aframes` accepts. A plain function
    `on_end` runs under ASGI by asgiref's sync_to_async. `headers` are added to those of an event stream. If the
    upstream's status is not 200, the response is that of the option `refusal`.

    A function in place of the stream is called when Django renders the response, after the view, and not at all for
    HEAD. The process_exception functions of middlewares are called with its exceptions.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("stream_response", RelayOptions, options)
        merged = event_stream_headers(headers)
        # A request of Django REST framework wraps Django's.
        request = getattr(request, "_request", request)
        if not isinstance(request, HttpRequest):
            raise UsageError(
                f"`request` must be an HttpRequest, got {type(request).__name__}. Pass the view's first argument."
            )
        make = _asgi_response if isinstance(request, ASGIRequest) else _wsgi_response
        return make(request, upstream, _Head(checked, headers, merged))


describe(stream_response, RelayOptions)


class _CloseRequest:
    """Takes the place of `request.close`, which Django calls when it closes the response, whichever that is.

    A middleware that raises, or replaces the response, makes Django drop the relay's response without closing it.
    """

    def __init__(self, request: HttpRequest, frames: Frames | AsyncFrames) -> None:
        self._request = request
        self._close = request.close
        self._end = RequestEnd(frames)
        request.close = self

    def __call__(self) -> None:
        try:
            self._close()
        finally:
            # The request and this object refer to each other.
            vars(self._request).pop("close", None)
            self._end.end(closes=True)


class _Head(NamedTuple):
    """How a response begins: the options of its relay, and its headers."""

    options: RelayOptions
    # The caller's headers, and those of an event stream with the caller's.
    added: Mapping[str, str] | None
    merged: Mapping[str, str]


def _wsgi_response(request: HttpRequest, upstream: Upstream, head: _Head) -> HttpResponseBase:
    options = head.options
    check_synchronous(options)
    environ = getattr(request, "environ", None)
    # The worker thread of an iterable has database connections of its own.
    frames = relay(upstream, options, environ, connections.close_all, _WSGIEnding)
    _CloseRequest(request, frames)
    if request.method == "HEAD":
        # Servers read the body of a response to HEAD to its end, and discard it.
        frames.discard()
    elif upstream.is_function and not options["early"]:
        return _UnopenedResponse(frames, head, environ)
    if upstream.refused is not None:
        return _refused(frames, upstream.refused, head, environ)
    return StreamingHttpResponse(frames, headers=head.merged)


def _asgi_response(request: HttpRequest, upstream: Upstream, head: _Head) -> HttpResponseBase:
    options, refused = head.options, upstream.refused
    if callable(options["refusal"]) and loops.in_coroutine() and not upstream.is_function:
        raise UsageError(
            '`refusal` must be "error" or "pass" in an asynchronous view, where the response is returned before '
            "the upstream's body is in. Pass a function as `stream`, or await raise_for_status() before the call."
        )
    caller = _Caller()
    frames = arelay(upstream, options, connections.close_all, _ASGIEnding, caller)
    _CloseRequest(request, frames)
    if request.method == "HEAD":
        frames.discard()
    elif upstream.is_function and not options["early"]:
        return _AsyncUnopenedResponse(frames, head, caller)
    if refused is None:
        return _AsyncResponse(frames, head)
    if not loops.in_coroutine():
        return _refused(frames, refused, head, None)
    # The view runs on the event loop, which must not wait for the body.
    response = _AsyncUnopenedResponse(frames, head, caller)
    assert not callable(options["refusal"])
    response.status_code, _ = refusal_head(refused, options["refusal"], head.added)
    return response


def _refused(
    frames: Frames | AsyncFrames, refused: ItemReader[Any], head: _Head, environ: Mapping[str, Any] | None
) -> HttpResponse:
    """Return the response for a refusal, whose body is read in this thread."""
    frames.note_refusal(refused)
    disconnected = disconnect_flag(environ, head.options["probe"])
    refusal = read_refusal(refused, head.options["refusal"], head.added, disconnected)
    if isinstance(frames, Frames):
        return _RefusalResponse(frames, refusal)
    # Now, in the view's thread: Django may close the response in another one.
    frames.close()
    return _response(refusal)


def _response(refusal: Refusal) -> HttpResponse:
    return HttpResponse(refusal.body, status=refusal.status, headers=refusal.headers)


def _with_changes_of(response: HttpResponseBase, head: _Head, replacement: HttpResponse) -> HttpResponse:
    """Give a response the cookies and headers that the view has set on the one that it replaces."""
    replacement.cookies = response.cookies
    for name, value in response.items():
        if name not in head.merged and not replacement.has_header(name):
            replacement[name] = value
    return replacement


class _RefusalResponse(HttpResponse):  # type: ignore[misc]
    """The response for a refusal under WSGI. `on_end` is called when it is closed, in the response's own thread."""

    def __init__(self, frames: Frames, refusal: Refusal) -> None:
        super().__init__(refusal.body, status=refusal.status, headers=refusal.headers)
        self._frames = frames

    def close(self) -> None:
        self._frames.close()
        super().close()


class _AsyncResponse(StreamingHttpResponse):  # type: ignore[misc]
    """A response on the event loop, which awaits `on_end` in the request's task."""

    def __init__(self, frames: AsyncFrames, head: _Head) -> None:
        super().__init__(frames, headers=head.merged)
        self._frames = frames
        self._head = head

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in super().__aiter__():
                yield piece
        finally:
            await self._frames.aclose()


class _Rendered:
    """The methods that Django's middlewares and decorators of views expect of a response with render()."""

    # For middlewares with process_template_response.
    template_name = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.context_data: dict[str, Any] = {}
        self._callbacks: list[Callable[[HttpResponseBase], HttpResponseBase | None]] = []

    def add_post_render_callback(self, callback: Callable[[HttpResponseBase], HttpResponseBase | None]) -> None:
        """Call a function of the response after render(), which may return another one."""
        self._callbacks.append(callback)

    def _after_render(self, response: HttpResponseBase) -> HttpResponseBase:
        for callback in self._callbacks:
            response = callback(response) or response
        return response


class _UnopenedResponse(_Rendered, StreamingHttpResponse):  # type: ignore[misc]
    """A response under WSGI that opens its upstream when Django renders it."""

    def __init__(self, frames: Frames, head: _Head, environ: Mapping[str, Any] | None) -> None:
        super().__init__(frames, headers=head.merged)
        self._frames = frames
        self._head = head
        self._environ = environ

    def render(self) -> HttpResponseBase:
        """Wait for the upstream's headers. Return this response, or the one for a refusal."""
        try:
            refused = self._frames.open_upstream()
            if refused is None:
                return self._after_render(self)
            refusal = _refused(self._frames, refused, self._head, self._environ)
            return self._after_render(_with_changes_of(self, self._head, refusal))
        except BaseException:
            # Django drops this response for that of the error.
            self._frames.close()
            raise


class _AsyncUnopenedResponse(_Rendered, _AsyncResponse):
    """A response under ASGI that opens its upstream, or reads its refusal, when Django renders it."""

    def __init__(self, frames: AsyncFrames, head: _Head, caller: _Caller) -> None:
        super().__init__(frames, head)
        self._caller = caller

    async def render(self) -> HttpResponseBase:
        """Wait for the upstream's headers. Return this response, or the one for a refusal."""
        self._caller.executor = _current_executor()
        try:
            refused = await self._frames.open_upstream()
            if refused is None:
                return self._after_render(self)
            refusal = await aread_refusal(refused, self._head.options["refusal"], self._head.added)
        except BaseException:
            # The client has left, or Django drops this response for that of the error.
            await self._frames.aclose()
            raise
        # Now, in the request's task: Django closes the response in a thread.
        await self._frames.aclose()
        return self._after_render(_with_changes_of(self, self._head, _response(refusal)))


def _current_executor() -> Any:
    """Return the executor of a synchronous middleware, whose thread waits for this coroutine; None without one."""
    return getattr(AsyncToSync.executors, "current", None)


def _use_executor(executor: Any) -> None:
    """Have sync_to_async use this executor in the current context; its own choice if None."""
    if executor is not None:
        AsyncToSync.executors.current = executor
    elif hasattr(AsyncToSync.executors, "current"):
        del AsyncToSync.executors.current


class _Caller:
    """Calls the function that opens the upstream in the request's thread, whose database connections it may use."""

    # The executor of the request's task: the view's context has none, or the one of an async_to_sync that has ended.
    executor: Any = None

    async def __call__(self, function: Callable[[], object]) -> None:
        _use_executor(self.executor)
        # The context of a view that sync_to_async runs says that its thread is in use, which is over by now.
        SyncToAsync.deadlock_context.set(False)
        await sync_to_async(function)()


class _WSGIEnding(Ending):
    """Calls `on_end` in the response's thread; in a thread of its own only if the response was dropped later."""

    def release_thread(self) -> None:
        connections.close_all()


class _ASGIEnding(_WSGIEnding):
    """Calls a plain `on_end` by sync_to_async, in the request's thread; awaits a coroutine function."""

    _executor: Any = None

    def __init__(self, on_end: OnEnd | None) -> None:
        super().__init__(on_end)
        # The context of a view that sync_to_async runs says that its thread is in use, which is over by then.
        self.context.run(SyncToAsync.deadlock_context.set, False)

    def run_awaitable(self, awaitable: Awaitable[None]) -> None:
        async_to_sync(await_shielded)(awaitable, END_SECONDS)

    async def acall(self, end: RelayEnd) -> None:
        self._executor = _current_executor()
        await super().acall(end)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # See _Caller.
        _use_executor(self._executor)
        return await sync_to_async(function)(*arguments)

    def call_in_thread(self, end: RelayEnd, loop: object) -> None:
        # Django closes a response in the thread of sync_to_async, which waits for this call.
        self.call(end)


class ErrorMiddleware:
    """Middleware that answers an error of the library in a view with a response for the client, instead of 500.

    504 for a time limit, 502 for each other error of an upstream, with the JSON object of a refusal; 404 for a log's
    StreamNotFoundError, 410 for EventsLostError, 503 or 500 for other errors of a log. A warning is logged. The
    upstream's StatusError is answered like a refusal. An error that the client's disconnect causes
    (RequestAbortedError) is not logged. CallbackError, which the application's own code causes, is left to Django.

        MIDDLEWARE = [..., "sseqbridge.relay.django.ErrorMiddleware"]

    `sync_capable` and `async_capable` tell Django that it serves views of both kinds.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the response to an `exception` of the view of `request`; None for one that is not the library's.

        Django calls it. Raises nothing.
        """
        refusal = error_response(exception) if isinstance(exception, SSEError) else None
        return None if refusal is None else _response(refusal)
