"""Exits that the functions `error` and `refusal` raise break the response off, and end neither thread nor server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from sseqbridge import CallbackError, arequest_sse, relay, request_sse
from sseqbridge.testing import SSEServer, cut, respond, send

EXITS = [SystemExit(1), GeneratorExit(), asyncio.CancelledError()]


def raising(error: BaseException) -> Any:
    def raises(_: Any) -> Any:
        raise error

    return raises


@pytest.mark.parametrize("error", EXITS, ids=repr)
def test_exit_of_error_is_a_callback_error(error: BaseException) -> None:
    async def main() -> None:
        async for _ in relay.aframes(await arequest_sse(server.url), heartbeat=None, error=raising(error)):
            pass

    with SSEServer([send(1), cut()]) as server:
        with pytest.raises(CallbackError, match=rf"the function `error` raised {type(error).__name__}"):
            list(relay.frames(request_sse(server.url), heartbeat=None, error=raising(error)))
        with pytest.raises(CallbackError, match="the function `error` raised"):
            asyncio.run(main())


@pytest.mark.parametrize("error", EXITS, ids=repr)
def test_exit_of_refusal_is_a_callback_error(error: BaseException) -> None:
    async def endpoint(request: Any) -> Any:
        return relay.starlette.stream_response(await arequest_sse(server.url), refusal=raising(error))

    with SSEServer([respond(401, json={})]) as server:
        app = Flask(__name__)
        app.testing = True
        app.add_url_rule(
            "/", view_func=lambda: relay.flask.stream_response(request_sse(server.url), refusal=raising(error))
        )
        with pytest.raises(CallbackError, match="the function `refusal` raised"):
            app.test_client().get("/")
        client = TestClient(Starlette(routes=[Route("/", endpoint)]))
        with pytest.raises(CallbackError, match="the function `refusal` raised"):
            client.get("/")
