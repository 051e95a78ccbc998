"""Relays as Django responses, under WSGI and under ASGI. Needs the extra `django`.

Runs in the view's thread; the body of a refusal under ASGI is read on the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import loops

from ._disconnect import disconnect_flag
from ._frames import arelay, relay
from ._options import RelayOptions, describe, relay_options
from ._response import aread_refusal, event_stream_headers, read_refusal, refusal_head
from ._source import Upstream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sseqbridge._streams.reader import ItemReader

    from ._options import RelayKeywords

__all__ = ["stream_response"]


def stream_response(
    request: HttpRequest,
    stream: Any,
    *,
    headers: Mapping[str, str] | None = None,
    **options: Unpack[RelayKeywords],
) -> HttpResponseBase:
    """Return a response to `request` that streams to the client; a disconnect aborts the upstream.

    For synchronous and asynchronous views, under WSGI and under ASGI. `stream` and the options are those of
    `relay.frames`; under ASGI, `stream` may also be what `relay.aframes` accepts. `headers` are added to those
    of an event stream. If the upstream's status is not 200, the response is that of the option `refusal`.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("stream_response", options)
        merged = event_stream_headers(headers)
        # A request of Django REST framework wraps Django's.
        request = getattr(request, "_request", request)
        if not isinstance(request, HttpRequest):
            raise UsageError(
                f"`request` must be an HttpRequest, got {type(request).__name__}. Pass the view's first argument."
            )
        is_asgi = isinstance(request, ASGIRequest)
        if is_asgi and callable(checked.refusal) and loops.in_coroutine():
            raise UsageError(
                '`refusal` must be "error" or "pass" in an asynchronous view, where the response is returned before '
                "the upstream's body is in. Await raise_for_status() before the call instead."
            )
        environ = getattr(request, "environ", None)
        if not is_asgi:
            upstream.check_synchronous()
        if (refused := upstream.refused) is not None:
            if is_asgi and loops.in_coroutine():
                return _asgi_refusal(refused, checked, headers)
            refusal = read_refusal(refused, checked.refusal, headers, disconnect_flag(environ, checked.probe))
            return HttpResponse(refusal.body, status=refusal.status, headers=refusal.headers)
        # The worker thread of an iterable has database connections of its own.
        close_connections = connections.close_all
        body: Any = (
            arelay(upstream, checked, close_connections)
            if is_asgi
            else relay(upstream, checked, environ, close_connections)
        )
        if request.method == "HEAD":
            # Servers read the body of a response to HEAD to its end, and discard it.
            body.close()
        return StreamingHttpResponse(body, headers=merged)


describe(stream_response)


def _asgi_refusal(
    reader: ItemReader[Any], options: RelayOptions, headers: Mapping[str, str] | None
) -> StreamingHttpResponse:
    # The view runs on the event loop, which must not wait for the body.
    option = options.refusal
    assert not callable(option)

    async def body() -> AsyncIterator[bytes]:
        yield (await aread_refusal(reader, option, headers)).body

    status, merged = refusal_head(reader, option, headers)
    return StreamingHttpResponse(body(), status=status, headers=merged)
