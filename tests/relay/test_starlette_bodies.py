"""Starlette: the code that runs during a relay's response can read the request's body; a disconnect is noticed too."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sseqbridge import arequest_sse, relay
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, send, silence
from tests.relay.serving import sending, under_uvicorn
from tests.support import until

pytestmark = pytest.mark.slow


class Case:
    url = ""
    ends: list[RelayEnd]


case = Case()


async def opened(request: Request) -> Any:
    data = await request.json()
    return await arequest_sse(case.url, json=data)


def respond(stream: Any) -> Response:
    return relay.starlette.stream_response(stream, on_end=case.ends.append)


async def closure(request: Request) -> Response:
    async def opens() -> Any:
        return await opened(request)

    return respond(opens)


async def of_partial(request: Request) -> Response:
    return respond(functools.partial(opened, request))


async def of_lambda(request: Request) -> Response:
    return respond(lambda: opened(request))


async def of_default(request: Request) -> Response:
    async def opens(of: Request = request) -> Any:
        return await opened(of)

    return respond(opens)


class Chat(HTTPEndpoint):
    async def post(self, request: Request) -> Response:
        self.request = request
        return respond(self.opens)

    async def opens(self) -> Any:
        return await opened(self.request)


class ReadBefore(HTTPEndpoint):
    """Reads the body in the view, and refers to the request's messages, but not to the request."""

    async def post(self, request: Request) -> Response:
        self.data = await request.json()
        return respond(self.opens)

    async def opens(self) -> Any:
        return await arequest_sse(case.url, json=self.data)


async def generator(request: Request) -> Response:
    async def items() -> AsyncIterator[Any]:
        async for item in (await opened(request)).events:
            yield item

    return respond(items())


class Turn:
    """Refers to the request by several objects, one of which has no __dict__, and to a request of another client."""

    __slots__ = ("context", "other")

    def __init__(self, request: Request) -> None:
        self.context = [{"turn": functools.partial(lambda by_name: by_name["request"], {"request": request})}]
        self.other = Request({"type": "http"})

    async def opens(self) -> Any:
        return await opened(self.context[0]["turn"]())


class Service:
    def __init__(self, turn: Turn) -> None:
        self.turns = {"now": [turn]}

    async def __call__(self) -> Any:
        return await self.turns["now"][0].opens()


async def deep(request: Request) -> Response:
    service = Service(Turn(request))
    return respond(service)


async def pipeline(request: Request) -> Response:
    async def texts(request: Request) -> AsyncIterator[str]:
        async for chunk in request.stream():
            yield chunk.decode()

    return respond(text async for text in texts(request) if text)


async def read_before(request: Request) -> Response:
    data = [chunk async for chunk in request.stream()]

    async def opens() -> Any:
        assert request.headers["content-type"] == "application/json"
        return await arequest_sse(case.url, content=b"".join(data))

    return respond(opens)


VIEWS: list[Any] = [closure, of_partial, of_lambda, of_default, Chat, ReadBefore, generator, deep, read_before]


class OwnRequest:
    """Middleware whose `receive` refers to a request of its own, as the servers' can refer to those of Starlette."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_by_request() -> Message:
            return await request.receive()

        if scope["type"] == "http":
            request = Request(scope, receive)
            receive = receive_by_request
        await self.app(scope, receive, send)


@pytest.fixture
def url() -> Any:
    case.ends = []
    routes = [Route(f"/{view.__name__}", view, methods=["GET", "POST"]) for view in [*VIEWS, pipeline]]
    with under_uvicorn(Starlette(routes=routes, middleware=[Middleware(OwnRequest)])) as url:
        yield url


@pytest.mark.parametrize("view", VIEWS)
def test_body_is_read_during_the_response(url: str, view: Any) -> None:
    with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
        case.url = server.url
        response = httpx.post(f"{url}/{view.__name__}", json={"text": "x" * 100_000}, timeout=30)
        assert "data: {" in response.text
        assert len(server.requests[0].body) > 100_000
    until(lambda: case.ends)


def test_body_is_relayed_by_a_generator_that_reads_it(url: str) -> None:
    assert httpx.post(f"{url}/pipeline", content=b"hello", timeout=30).text.endswith("data: hello\n\n")


@pytest.mark.parametrize("view", VIEWS)
def test_disconnect_after_the_body_aborts_the_upstream(url: str, view: Any) -> None:
    with SSEServer([silence()]) as server:
        case.url = server.url
        head = f"POST /{view.__name__} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2"
        with sending(url, f"{head}\r\n\r\n{{}}"):
            request = server.wait_for_request()
        request.wait_aborted()
        until(lambda: case.ends)
    assert [end.outcome for end in case.ends] == ["disconnected"]


def test_disconnect_within_the_body_ends_the_relay(url: str) -> None:
    with sending(url, "POST /closure HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
        pass
    until(lambda: case.ends)
    assert [end.outcome for end in case.ends] == ["disconnected"]
