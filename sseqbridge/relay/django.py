"""Relays as Django responses, under WSGI and under ASGI. Needs the extra `django`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from sseqbridge._exceptions import UsageError
from sseqbridge._sse.events import ServerSentEvent

from ._disconnect import reader_left_of
from ._frames import arelayed, relayed
from ._response import arefusal_of, event_stream_headers, is_refused, refusal_head, refusal_of
from ._source import abort_on_error
from ._writer import RelayOptions

__all__ = ["stream_response"]


def stream_response(
    request: HttpRequest,
    stream: Any,
    *,
    heartbeat: float | None = 15.0,
    probe: float | None = 1.0,
    map: Callable[[Any], Any] | None = None,
    done: bool | str | ServerSentEvent | None = True,
    headers: Mapping[str, str] | None = None,
) -> HttpResponseBase:
    """Return a response to `request` that streams to the reader; who leaves stops the upstream.

    Right in synchronous and asynchronous views, under WSGI and under ASGI. `stream` is what
    request_sse returns, or an iterable; under ASGI also what arequest_sse returns, or an asynchronous
    iterable. It and `heartbeat`, `probe`, `map` and `done` are as `relay.frames` has them. `headers`
    are added to those of an event stream.

    Where the upstream did not answer 200 the response has its status and body instead.

    Raises UsageError for arguments that cannot be.
    """
    with abort_on_error(stream):
        # An iterable runs in a thread of its own, and so on database connections of its own.
        options = RelayOptions(heartbeat, probe, map, done, after_work=connections.close_all)
        merged = event_stream_headers(headers)
        # A request of Django REST framework's holds Django's.
        request = getattr(request, "_request", request)
        if not isinstance(request, HttpRequest):
            raise UsageError(f"request is a {type(request).__name__}; it is the view's first argument")
        is_asgi = isinstance(request, ASGIRequest)
        environ = getattr(request, "environ", None)
        if is_refused(stream):
            if is_asgi:
                return _asgi_refusal(stream, headers)
            refusal = refusal_of(stream, headers, reader_left_of(environ, probe))
            return HttpResponse(refusal.body, status=refusal.status, headers=refusal.headers)
        body: Any = arelayed(stream, options) if is_asgi else relayed(stream, options, environ)
        if request.method == "HEAD":
            # Servers read the body of such a response to its end, and leave it out.
            body.close()
        return StreamingHttpResponse(body, headers=merged)


def _asgi_refusal(stream: Any, headers: Mapping[str, str] | None) -> StreamingHttpResponse:
    # The body may take its time, and this may be a coroutine's thread.
    async def body() -> AsyncIterator[bytes]:
        yield (await arefusal_of(stream, headers)).body

    status, merged = refusal_head(stream, headers)
    return StreamingHttpResponse(body(), status=status, headers=merged)
