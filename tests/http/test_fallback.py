"""Requests that the transport leaves to httpx: extensions, proxies, and a replaced httpx."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from types import ModuleType
from typing import Any

import httpcore
import httpx
import pytest

from sseqbridge import ConnectError, arequest_sse
from sseqbridge._http import client as http_client
from sseqbridge._http.plain_transport import PlainTransport
from sseqbridge._http.transport import Transport
from sseqbridge.testing import SSEServer, send
from tests.loops import states_of_callers_loops
from tests.requesters import Requester

from .upstream import DONE, Run, own_transport


def sent_by_httpx(monkeypatch: pytest.MonkeyPatch) -> list[httpx.URL]:
    """Return a list to which the URLs of requests are added that httpx's own transport sends."""
    seen: list[httpx.URL] = []
    handle = PlainTransport.handle_async_request

    async def handle_and_note(transport: PlainTransport, request: httpx.Request) -> httpx.Response:
        seen.append(request.url)
        return await handle(transport, request)

    monkeypatch.setattr(PlainTransport, "handle_async_request", handle_and_note)
    return seen


@own_transport
def test_request_with_extensions_uses_httpxs_transport(ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        events.append(name)

    seen = sent_by_httpx(monkeypatch)
    with SSEServer([send(1), DONE]) as server:
        assert ask_fresh(server.url).items() == [1]
        assert (seen, events) == ([], [])
        for _ in range(2):
            assert ask_fresh(server.url, extensions={"trace": trace}).items() == [1]
        assert len(seen) == 2
        assert events.count("http11.send_request_headers.started") == 2


def test_sni_hostname_extension_sets_the_checked_name(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        with pytest.raises(ConnectError):
            ask_fresh(server.url, extensions={"sni_hostname": "other.test"})
        assert ask_fresh(server.url, extensions={"sni_hostname": "localhost"}).items() == [1]


def replacement(calls: list[str]) -> Callable[..., Awaitable[httpx.Response]]:
    async def handle(transport: object, request: httpx.Request) -> httpx.Response:
        calls.append(str(request.url))
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"data: 2\n\n")

    return handle


def test_replaced_transport_of_httpx_is_used(ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest-httpx and OpenTelemetry do; also if it is replaced and restored while a client is in use."""
    calls: list[str] = []
    with SSEServer([send(1), DONE]) as server:
        assert ask_fresh(server.url).items() == [1]
        with monkeypatch.context() as patch:
            patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", replacement(calls))
            assert ask_fresh("http://upstream.test/a").items() == [2]
        assert calls == ["http://upstream.test/a"]
        assert ask_fresh(server.url).items() == [1]
        assert len(calls) == 1


def test_replaced_pool_of_httpcore_is_used(ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    """As RESPX does."""

    async def handle(pool: object, request: httpcore.Request) -> httpcore.Response:
        assert isinstance(request.stream, AsyncIterable)
        size = sum([len(part) async for part in request.stream])
        headers = [(b"Content-Type", b"text/event-stream")]
        return httpcore.Response(200, headers=headers, content=b"data: [%b, %d]\n\n" % (request.url.target[1:], size))

    with SSEServer([send(1), DONE]) as server:
        assert ask_fresh(server.url).items() == [1]
        with monkeypatch.context() as patch:
            patch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", handle)
            assert ask_fresh("http://upstream.test/23").items() == [[23, 0]]
            # Neither a short body nor a long one needs a connection.
            for content in (bytes(10), bytes(100_000), iter([b"abc"])):
                size = 3 if not isinstance(content, bytes) else len(content)
                assert ask_fresh("http://upstream.test/23", content=content).items() == [[23, size]]
        assert ask_fresh(server.url).items() == [1]


@pytest.mark.own_transport
def test_httpcore_may_be_partially_imported(ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([send(1), DONE]) as server:
        monkeypatch.setitem(sys.modules, "httpcore", ModuleType("httpcore"))
        assert ask_fresh(server.url).items() == [1]


@pytest.mark.parametrize("name", ["send", "_send_single_request"])
def test_replaced_method_of_httpxs_client_is_used(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls: list[str] = []
    own = getattr(httpx.AsyncClient, name)

    async def noting(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        calls.append(request.method)
        response: httpx.Response = await own(client, request, **options)
        return response

    with SSEServer([send(1), DONE]) as server:
        monkeypatch.setattr(httpx.AsyncClient, name, noting)
        assert ask_fresh(server.url).items() == [1]
    assert calls == ["GET"]


@pytest.mark.parametrize(("no_proxy", "is_asked"), [("", True), ("127.0.0.1", False)])
def test_proxy_of_the_environment_is_used(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, no_proxy: str, is_asked: bool
) -> None:
    with SSEServer([send("proxy"), DONE]) as proxy, SSEServer([send("upstream"), DONE]) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        assert ask_fresh(server.url, decode="text").items() == ["proxy" if is_asked else "upstream"]
        assert len(proxy.requests) == is_asked


@pytest.mark.slow
def test_concurrent_requests_share_one_transport_of_httpx(run: Run) -> None:
    async def main() -> None:
        async def plain(scheme: str, proxy: str | None) -> httpx.AsyncBaseTransport:
            waiting.append(1)
            await all_wait.wait()
            made.append(httpx.AsyncHTTPTransport())
            return made[-1]

        async def tls() -> ssl.SSLContext:
            raise AssertionError("nothing here is encrypted")

        waiting: list[int] = []
        made: list[httpx.AsyncHTTPTransport] = []
        all_wait = asyncio.Event()
        transport = Transport(keepalive_expiry=60.0, tls_context=tls, plain=plain)
        async with httpx.AsyncClient(transport=transport) as client:
            asks = [asyncio.create_task(client.get(server.url, extensions={"target": b"/a"})) for _ in range(3)]
            while len(waiting) < 3:
                await asyncio.sleep(0)
            all_wait.set()
            assert [(await ask).content for ask in asks] == [b"data: 1\n\n"] * 3
            assert (await client.get(server.url, extensions={"target": b"/b"})).content == b"data: 1\n\n"
            # The transports that lost the race are never used.
            assert [bool(each._pool.connections) for each in made] == [True, False, False]
        # The winner is closed.
        assert made[0]._pool.connections == []

    with SSEServer([send(1)]) as server:
        run(main)
        assert server.connections == 3


def test_concurrent_requests_of_a_loop_share_one_client(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a proxy in the environment, making the client takes so long that other requests overtake it."""

    async def main() -> None:
        for response in await asyncio.gather(*(arequest_sse(server.url) for _ in range(3))):
            assert [item async for item in response.events] == [1]
        assert len(states_of_callers_loops()) == 1

    monkeypatch.setattr(http_client, "_tls_context", None)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SSEServer([send(1), DONE]) as server:
        run(main)
