"""Aborted streams of an HTTP/2 client of the caller's, whose connection other streams share."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import arequest_sse

from .http2_server import Http2Server
from .upstream import Run

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]

Asked = Callable[[Any, Http2Server], Awaitable[None]]


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def with_client(
    request: pytest.FixtureRequest, run: Run, certificate: Path, client_tls: ssl.SSLContext
) -> Callable[[Asked], None]:
    """A function that runs a coroutine function with an HTTP/2 client, and a server that notices disconnects."""

    def run_with_client(function: Asked) -> None:
        async def main() -> None:
            async with request.param.AsyncClient(http2=True, verify=client_tls, timeout=30) as client:
                await function(client, server)

        with Http2Server(certificate) as server:
            run(main)

    return run_with_client


async def left(server: Http2Server) -> str:
    return await asyncio.to_thread(server.left.get, timeout=30)


@pytest.mark.parametrize("leave", ["aclose", "break", "cancel the task"])
def test_abort_closes_its_stream_alone(with_client: Callable[[Asked], None], leave: str) -> None:
    async def main(client: Any, server: Http2Server) -> None:
        other = await arequest_sse(f"{server.url}/silent", client=client)
        stream = await arequest_sse(f"{server.url}/silent", client=client)
        assert [await anext(other.events), await anext(stream.events)] == [1, 1]
        if leave == "aclose":
            await stream.events.aclose()
        elif leave == "cancel the task":
            waiting = asyncio.create_task(stream.events.next())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            await stream.events.aclose()
        else:
            del stream
        assert await left(server) == "/silent"
        # The connection is in use on, also for new streams.
        assert server.left.empty()
        assert [item async for item in (await arequest_sse(server.url, client=client)).events] == [1]
        await other.events.aclose()
        assert await left(server) == "/silent"
        assert len(set(server.peers)) == 1

    if leave == "break":
        with pytest.warns(ResourceWarning, match="was dropped"):
            with_client(main)
    else:
        with_client(main)


def test_abort_before_the_response_closes_its_stream(with_client: Callable[[Asked], None]) -> None:
    async def main(client: Any, server: Http2Server) -> None:
        other = await arequest_sse(f"{server.url}/silent", client=client)
        assert await anext(other.events) == 1
        asking = asyncio.create_task(arequest_sse(f"{server.url}/mute", client=client))
        while len(server.peers) < 2:
            await asyncio.sleep(0.001)
        asking.cancel()
        assert await left(server) == "/mute"
        await asyncio.wait({asking})
        assert asking.cancelled()
        await other.events.aclose()
        assert await left(server) == "/silent"
        assert len(set(server.peers)) == 1

    with_client(main)


def test_aborted_streams_do_not_count_as_open(with_client: Callable[[Asked], None]) -> None:
    """A server allows about a hundred streams at a time on a connection."""

    async def main(client: Any, server: Http2Server) -> None:
        for _ in range(110):
            stream = await arequest_sse(f"{server.url}/silent", client=client)
            assert await anext(stream.events) == 1
            await stream.events.aclose()
        for _ in range(110):
            assert await left(server) == "/silent"
        assert len(set(server.peers)) == 1

    with_client(main)


def test_finished_stream_is_not_reset(with_client: Callable[[Asked], None], caplog: pytest.LogCaptureFixture) -> None:
    async def main(client: Any, server: Http2Server) -> None:
        for _ in range(3):
            assert [item async for item in (await arequest_sse(server.url, client=client)).events] == [1]
        assert len(set(server.peers)) == 1

    caplog.set_level(logging.WARNING, "sseqbridge")
    with_client(main)
    assert caplog.records == []


def test_transport_that_cannot_close_a_stream_is_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> Any:
        yield b"data: 1\n\n"
        await asyncio.Event().wait()

    def handler(request: httpx.Request) -> httpx.Response:
        head = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, headers=head, content=body(), extensions={"http_version": b"HTTP/2"})

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            stream = await arequest_sse("http://mock.test/", client=client)
            assert await anext(stream.events) == 1
            await stream.events.aclose()

    with caplog.at_level(logging.WARNING, "sseqbridge"):
        run(main)
    assert "no way to close one HTTP/2 stream" in caplog.text


def test_stream_of_a_transport_that_raises_is_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Raising(httpx.AsyncByteStream):
        """The body of a response, whose own stream cannot be looked at."""

        def __init__(self) -> None:
            self._stream = self

        @property
        def _connection(self) -> Any:
            raise ZeroDivisionError

        async def __aiter__(self) -> Any:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()

    class Connection:
        """As httpcore's, but its stream is closed already."""

        def __init__(self) -> None:
            self._h2_state = self

        def reset_stream(self, stream_id: int, error_code: int) -> None:
            raise RuntimeError("closed")

        async def _write_outgoing_data(self, request: Any) -> None:
            raise AssertionError

    class Broken:
        """A connection that cannot be looked at either."""

        @property
        def _h2_state(self) -> Any:
            raise ZeroDivisionError

    def handler(request: httpx.Request) -> httpx.Response:
        head = {"Content-Type": "text/event-stream"}
        body: Any = Raising()
        if request.url.path == "/broken":
            body.__dict__["_stream"] = Broken()
        if request.url.path == "/closed":
            body.__dict__["_stream"] = Connection()
        extensions = {"http_version": b"HTTP/2", "stream_id": 1}
        return httpx.Response(200, headers=head, stream=body, extensions=extensions)

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            for path in ("/", "/closed", "/broken"):
                stream = await arequest_sse(f"http://mock.test{path}", client=client)
                assert await anext(stream.events) == 1
                await stream.events.aclose()

    with caplog.at_level(logging.WARNING, "sseqbridge"):
        run(main)
    # A stream that the server has closed needs no warning.
    assert [record.getMessage() for record in caplog.records] == [
        f"http://mock.test{path}: the client's transport offers no way to close one HTTP/2 stream"
        for path in ("/", "/broken")
    ]
