"""relay.aframes in frameworks that the library has no function for: aiohttp and Litestar."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from aiohttp import web
from litestar import Litestar, get
from litestar.response import Stream

from sseqbridge import StatusError, arequest_sse, relay
from sseqbridge.relay import EVENT_STREAM_HEADERS, RelayEnd
from sseqbridge.testing import SSEServer, respond, send, silence
from tests.relay.serving import under_uvicorn
from tests.support import in_thread, until

pytestmark = pytest.mark.slow

upstream: list[str] = []
ends: list[RelayEnd] = []
options: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    ends.clear()
    options.clear()


def frames() -> relay.AsyncFrames:
    return relay.aframes(lambda: arequest_sse(upstream[0]), heartbeat=0.05, on_end=ends.append, **options)


# aiohttp. Its handlers are not cancelled when the client leaves: write() raises.


def aiohttp_app() -> Any:
    async def chat(request: Any) -> Any:
        async with contextlib.aclosing(frames()) as pieces:
            try:
                await pieces.open()
            except StatusError as error:
                return web.json_response({"status": error.status}, status=502)
            response = web.StreamResponse(headers=EVENT_STREAM_HEADERS)
            await response.prepare(request)
            async for piece in pieces:
                await response.write(piece)
        return response

    app = web.Application()
    app.router.add_get("/", chat)
    return app


@contextlib.contextmanager
def under_aiohttp(app: Any) -> Iterator[str]:
    started: list[int] = []
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        stopping = asyncio.Event()
        stop.append(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stopping.set))
        started.append(runner.addresses[0][1])
        await stopping.wait()
        await runner.cleanup()

    serving = in_thread(lambda: asyncio.run(serve()))
    try:
        until(lambda: started)
        yield f"http://127.0.0.1:{started[0]}"
    finally:
        stop[0]()
        serving.result(30)


# Litestar.


@get("/")
async def litestar_chat() -> Stream:
    pieces = frames()
    try:
        await pieces.open()
    except StatusError as error:
        return Stream(iter([b'{"status": %d}' % error.status]), status_code=502, media_type="application/json")
    return Stream(pieces, headers=dict(EVENT_STREAM_HEADERS), media_type="text/event-stream")


SERVERS: dict[str, Callable[[], Any]] = {
    "aiohttp": lambda: under_aiohttp(aiohttp_app()),
    "litestar": lambda: under_uvicorn(Litestar([litestar_chat], openapi_config=None, logging_config=None)),
}


@pytest.fixture(params=SERVERS)
def origin(request: pytest.FixtureRequest) -> Iterator[str]:
    with SERVERS[request.param]() as url:
        yield url


@contextlib.contextmanager
def script(*steps: Any) -> Iterator[SSEServer]:
    with SSEServer(steps) as server:
        upstream[:] = [server.url]
        yield server


def test_events_are_forwarded(origin: str) -> None:
    with script(send(1, id="5"), send("[DONE]")):
        response = httpx.get(origin)
    assert response.text.replace(":\n", "") == "id: 5\ndata: 1\n\ndata: [DONE]\n\n"
    assert {name: response.headers[name] for name in EVENT_STREAM_HEADERS} == dict(EVENT_STREAM_HEADERS)
    assert [end.outcome for end in ends] == ["done"]


def test_disconnect_aborts_the_upstream(origin: str) -> None:
    with script(send(1), silence()) as server:
        with httpx.stream("GET", origin) as response:
            for text in response.iter_text():
                if "data: 1" in text:
                    break
        server.wait_for_request().wait_aborted(30)
        until(lambda: ends)
    assert [end.outcome for end in ends] == ["disconnected"]


def test_refusal_has_a_status(origin: str) -> None:
    with script(respond(401), b"no"):
        response = httpx.get(origin)
    assert (response.status_code, response.json()) == (502, {"status": 401})
    assert [end.outcome for end in ends] == ["error"]


def test_end_all_ends_the_relays(origin: str) -> None:
    with script(send(1), silence()), httpx.stream("GET", origin) as response:
        read = ""
        for text in response.iter_text():
            if "data: 1" in text:
                relay.end_all()
            read += text
    assert "event: shutdown\nretry: 5000\n" in read
