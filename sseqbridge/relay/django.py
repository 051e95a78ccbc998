"""Relays as Django responses, under WSGI and under ASGI. Needs the extra `django`.

Runs in the view's thread; the body of a refusal under ASGI is read on the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from sseqbridge._exceptions import UsageError
from sseqbridge._sse.events import ServerSentEvent

from ._disconnect import disconnect_flag
from ._frames import arelay, relay
from ._options import RelayOptions
from ._response import aread_refusal, event_stream_headers, read_refusal, refusal_head
from ._source import Upstream

if TYPE_CHECKING:
    from sseqbridge._streams.reader import ItemReader

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
    """Return a response to `request` that streams to the client; a disconnect aborts the upstream.

    For synchronous and asynchronous views, under WSGI and under ASGI. `stream` and the options are those of
    `relay.frames`; under ASGI, `stream` may also be what `relay.aframes` accepts. `headers` are added to those
    of an event stream.

    If the upstream's status is not 200, the response has its status and body instead.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        # The worker thread of an iterable has database connections of its own.
        options = RelayOptions(heartbeat, probe, map, done, after_work=connections.close_all)
        merged = event_stream_headers(headers)
        # A request of Django REST framework wraps Django's.
        request = getattr(request, "_request", request)
        if not isinstance(request, HttpRequest):
            raise UsageError(
                f"`request` must be an HttpRequest, got {type(request).__name__}. Pass the view's first argument."
            )
        is_asgi = isinstance(request, ASGIRequest)
        environ = getattr(request, "environ", None)
        if not is_asgi:
            upstream.check_synchronous()
        if (refused := upstream.refused) is not None:
            if is_asgi:
                return _asgi_refusal(refused, headers)
            refusal = read_refusal(refused, headers, disconnect_flag(environ, probe))
            return HttpResponse(refusal.body, status=refusal.status, headers=refusal.headers)
        body: Any = arelay(upstream, options) if is_asgi else relay(upstream, options, environ)
        if request.method == "HEAD":
            # Servers read the body of a response to HEAD to its end, and discard it.
            body.close()
        return StreamingHttpResponse(body, headers=merged)


def _asgi_refusal(reader: ItemReader[Any], headers: Mapping[str, str] | None) -> StreamingHttpResponse:
    # The view may run on the event loop, which must not wait for the body.
    async def body() -> AsyncIterator[bytes]:
        yield (await aread_refusal(reader, headers)).body

    status, merged = refusal_head(reader, headers)
    return StreamingHttpResponse(body(), status=status, headers=merged)
