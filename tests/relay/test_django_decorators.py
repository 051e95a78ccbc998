"""Relays of functions under Django's decorators of views, which wait until the response is rendered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from django.http import HttpRequest
from django.middleware.csrf import get_token
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect, ensure_csrf_cookie

from sseqbridge import arequest_sse, request_sse
from sseqbridge.relay.django import stream_response
from sseqbridge.testing import SSEServer, respond, send
from tests.relay import serving  # It configures Django.

assert serving
ENDS: list[Any] = []


def view(request: HttpRequest) -> Any:
    get_token(request)
    url = request.headers["x-upstream"]
    return stream_response(request, partial(request_sse, url), on_end=ENDS.append)


async def aview(request: HttpRequest) -> Any:
    get_token(request)
    url = request.headers["x-upstream"]
    return stream_response(request, lambda: arequest_sse(url), on_end=ENDS.append)


DECORATORS: dict[str, Callable[[Any], Any]] = {
    "csrf_protect": csrf_protect,
    "ensure_csrf_cookie": ensure_csrf_cookie,
    "never_cache": never_cache,
}
urlpatterns = [
    *(path(f"{name}/sync", decorate(view)) for name, decorate in DECORATORS.items()),
    *(path(f"{name}/async", decorate(aview)) for name, decorate in DECORATORS.items()),
]


@pytest.fixture(autouse=True)
def urls() -> Iterator[None]:
    ENDS.clear()
    with override_settings(ROOT_URLCONF=__name__):
        yield


def get(kind: str, name: str, upstream: SSEServer) -> tuple[Any, bytes]:
    """Return the response and its body."""
    headers = {"x-upstream": upstream.url}
    if kind == "sync":
        response: Any = Client().get(f"/{name}/sync", headers=headers)
        return response, response.getvalue()

    async def main() -> tuple[Any, bytes]:
        response: Any = await AsyncClient().get(f"/{name}/async", headers=headers)
        if not response.streaming:
            return response, response.content
        return response, b"".join([piece async for piece in response.streaming_content])

    return asyncio.run(main())


@pytest.mark.leaves("thread")  # asgiref's
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", DECORATORS)
def test_decorated_view_relays(kind: str, name: str) -> None:
    with SSEServer([send(1), send("[DONE]")]) as upstream:
        response, body = get(kind, name, upstream)
        assert response.status_code == 200
        assert b"data: 1\n\n" in body
        assert ("csrftoken" in response.cookies) == ("csrf" in name)
        assert ("Cache-Control" in response) or name != "never_cache"
    assert [end.outcome for end in ENDS] == ["done"]


@pytest.mark.leaves("thread")  # asgiref's
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_refusal_of_a_decorated_view(kind: str) -> None:
    with SSEServer([respond(401, json={"error": "no key"})]) as upstream:
        response, _ = get(kind, "csrf_protect", upstream)
        assert response.status_code == 502
        assert "csrftoken" in response.cookies
        response.close()
    assert [end.outcome for end in ENDS] == ["error"]
