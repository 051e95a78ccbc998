"""Errors before the stream become responses of their own, and nothing is logged for a client that left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import flask
import httpx
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path as route
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from sseqbridge import (
    BridgeClosedError,
    CallbackError,
    ConnectError,
    EventsLostError,
    LogError,
    LogFullError,
    LogUnavailableError,
    RequestAbortedError,
    SSEError,
    StatusError,
    StreamNotFoundError,
    StreamTimeoutError,
    relay,
)
from tests.relay import serving

ERRORS: list[tuple[Exception, int, dict[str, Any]]] = [
    (ConnectError("host-1 refused"), 502, {"message": "the upstream could not be read"}),
    (SSEError("host-1"), 502, {"message": "the upstream could not be read"}),
    (StreamTimeoutError("connect", 10), 504, {"message": "the upstream took too long"}),
    (
        StatusError("host-1", 401, httpx.Headers(), b"secret"),
        502,
        {"status": 401, "message": "the upstream refused the request: 401 Unauthorized"},
    ),
    (
        StatusError("host-1", 503, httpx.Headers({"retry-after": "7"}), b""),
        503,
        {"status": 503, "message": "the upstream refused the request: 503 Service Unavailable"},
    ),
    (RequestAbortedError("the client left"), 502, {"message": "the upstream could not be read"}),
    (StreamNotFoundError("key-1"), 404, {"type": "StreamNotFoundError", "message": "there is no such stream"}),
    (EventsLostError("key-1"), 410, {"type": "EventsLostError", "message": "earlier events are no longer kept"}),
    (LogError("key-1"), 500, {"type": "LogError", "message": "the log of streams failed"}),
    (LogFullError("host-1"), 503, {"type": "LogFullError", "message": "the log of streams is full"}),
    (
        LogUnavailableError("host-1"),
        503,
        {"type": "LogUnavailableError", "message": "the log of streams cannot be reached"},
    ),
    (BridgeClosedError("exit"), 503, {"type": "BridgeClosedError", "message": "the server is shutting down"}),
]

raised: list[Exception] = []


def fails() -> Any:
    raise raised[0]


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)
    relay.flask.register_error_handlers(app)
    app.add_url_rule("/direct", "direct", lambda: relay.flask.stream_response(fails()))
    app.add_url_rule("/function", "function", lambda: relay.flask.stream_response(fails))
    return app


def direct(request: Any) -> Any:
    return relay.django.stream_response(request, fails())


async def adirect(request: Any) -> Any:
    return relay.django.stream_response(request, fails())


def function(request: Any) -> Any:
    return relay.django.stream_response(request, fails)


urlpatterns = [
    route("direct", direct),
    route("adirect", adirect),
    route("function", function),
    route("plain", lambda request: HttpResponse("plain")),
]


def starlette_app() -> Starlette:
    def direct(request: Any) -> Any:
        return relay.starlette.stream_response(fails())

    def function(request: Any) -> Any:
        return relay.starlette.stream_response(fails)

    app = Starlette(routes=[Route("/direct", direct), Route("/function", function)])
    relay.starlette.register_error_handlers(app)
    return app


class Answer:
    def __init__(self, status: int, headers: Any, body: Any) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body


def is_json(response: Any) -> bool:
    return str(response.headers["content-type"]) == "application/json"


def by_flask(path: str) -> Answer:
    response = flask_app().test_client().get(path)
    return Answer(response.status_code, response.headers, response.get_json)


def by_django(path: str) -> Answer:
    response = Client(raise_request_exception=False).get(path)
    return Answer(response.status_code, response.headers, response.json if is_json(response) else None)


def by_django_asgi(path: str) -> Answer:
    async def get(path: str) -> Any:
        return await AsyncClient(raise_request_exception=False).get(path)

    response = asyncio.run(get(path))
    return Answer(response.status_code, response.headers, response.json if is_json(response) else None)


def by_starlette(path: str) -> Answer:
    with TestClient(starlette_app(), raise_server_exceptions=False) as client:
        response = client.get(path)
    return Answer(response.status_code, response.headers, response.json)


ASK: dict[str, Callable[[str], Answer]] = {
    "flask": by_flask,
    "django": by_django,
    "django asgi": by_django_asgi,
    "starlette": by_starlette,
}
PLACES = [(name, view) for name in ASK for view in ("/direct", "/function")] + [("django asgi", "/adirect")]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    middleware = ["sseqbridge.relay.django.ErrorMiddleware"]
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware):
        yield


@pytest.mark.slow
@pytest.mark.leaves("thread")  # asgiref's
@pytest.mark.parametrize(("framework", "view"), PLACES, ids=" ".join)
@pytest.mark.parametrize(("error", "status", "content"), ERRORS, ids=lambda value: getattr(value, "args", [""])[0])
def test_error_before_the_stream_has_a_response(
    framework: str,
    view: str,
    error: Exception,
    status: int,
    content: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised[:] = [error]
    answer = ASK[framework](view)
    assert (answer.status, answer.body()) == (status, {"error": {"type": "upstream_error", **content}})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers.get("retry-after") == ("7" if isinstance(error, StatusError) and status == 503 else None)
    logged = [record for record in caplog.records if record.name == "sseqbridge"]
    if isinstance(error, RequestAbortedError):
        assert logged == []
    else:
        [record] = logged
        assert record.levelno == logging.WARNING
        assert type(error).__name__ in record.getMessage()
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.leaves("thread")  # asgiref's
@pytest.mark.parametrize(("framework", "view"), PLACES, ids=" ".join)
@pytest.mark.parametrize("error", [CallbackError("map failed"), LookupError("no")], ids=["map", "other"])
def test_error_of_the_applications_own_code_is_500(framework: str, view: str, error: Exception) -> None:
    raised[:] = [error]
    assert ASK[framework](view).status == 500


@pytest.mark.slow
def test_views_without_errors_pass_the_middleware() -> None:
    assert Client().get("/plain").content == b"plain"
    with serving.under_wsgiref(WSGIHandler()) as url:
        assert httpx.get(f"{url}/plain").text == "plain"
