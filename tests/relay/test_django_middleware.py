"""Django under ASGI with a middleware that is not asynchronous: it waits in a thread for the response to start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import path as route

from sseqbridge import arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, send, silence
from tests.relay.serving import under_uvicorn
from tests.support import until

ends: list[RelayEnd] = []


def middleware(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    def respond(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response["X-Middleware"] = "synchronous"
        return response

    return respond


def on_end(end: RelayEnd) -> None:
    ends.append(end)


async def aon_end(end: RelayEnd) -> None:
    ends.append(end)


def view(request: Any, end: str) -> Any:
    function = partial(request_sse, request.GET["url"])
    return relay.django.stream_response(request, function, on_end=aon_end if end == "coroutine" else on_end)


async def aview(request: Any, end: str) -> Any:
    function = partial(arequest_sse, request.GET["url"])
    return relay.django.stream_response(request, function, on_end=aon_end if end == "coroutine" else on_end)


urlpatterns = [route("view/<end>", view), route("aview/<end>", aview)]

pytestmark = pytest.mark.slow
with_middleware = override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.middleware"])
each_view = pytest.mark.parametrize("path", ["view/plain", "view/coroutine", "aview/plain", "aview/coroutine"])


@pytest.fixture(autouse=True)
def fresh() -> None:
    ends.clear()


@each_view
def test_answer_is_relayed_and_ends_once(path: str) -> None:
    with (
        with_middleware,
        SSEServer([send({"n": 1}), send("[DONE]")]) as server,
        under_uvicorn(ASGIHandler()) as url,
    ):
        response = httpx.get(f"{url}/{path}", params={"url": server.url}, timeout=60)
        assert '{"n": 1}' in response.text
        assert response.headers["x-middleware"] == "synchronous"
        until(lambda: ends)
    assert [end.outcome for end in ends] == ["done"]


@each_view
def test_client_that_leaves_aborts_the_upstream(path: str) -> None:
    came = threading.Event()
    with (
        with_middleware,
        SSEServer([send({"n": 1}), silence()]) as server,
        under_uvicorn(ASGIHandler()) as url,
        httpx.stream("GET", f"{url}/{path}", params={"url": server.url}, timeout=60) as response,
    ):
        for piece in response.iter_bytes():
            if b"{" in piece:
                came.set()
                break
        response.close()
        server.wait_for_request(timeout=30).wait_aborted(30)
        until(lambda: ends)
    assert came.is_set()
    assert [end.outcome for end in ends] == ["disconnected"]
