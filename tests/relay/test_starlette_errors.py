"""Starlette: an exception of the application reaches its handlers, also one of the kind that a lost client causes."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sseqbridge import relay
from sseqbridge.relay import RelayEnd


@pytest.mark.parametrize("kind", [KeyError, ConnectionRefusedError, TimeoutError, FileNotFoundError])
def test_exception_of_the_function_reaches_the_exception_handler(kind: type[Exception]) -> None:
    ends: list[RelayEnd] = []

    def opens() -> Any:
        raise kind("of the application")

    def view(_: Request) -> Response:
        return relay.starlette.stream_response(opens, on_end=ends.append)

    def handle(_: Request, error: Exception) -> Response:
        return JSONResponse({"handled": type(error).__name__}, 503)

    app = Starlette(routes=[Route("/", view)], exception_handlers={kind: handle})
    response = TestClient(app).get("/")
    assert (response.status_code, response.json()) == (503, {"handled": kind.__name__})
    assert [type(end.error) for end in ends] == [kind]
