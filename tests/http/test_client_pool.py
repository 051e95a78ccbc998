"""The pool that leases HTTP clients to requests, and closes them."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Iterator

import httpx
import pytest

from sseqbridge import BridgeClosedError
from sseqbridge._http import client as http_client
from sseqbridge._http.client import Client, ClientPool
from tests.support import in_thread

pytestmark = pytest.mark.configurations("default")

_A, _B = "https://a.test:443", "https://b.test:443"


class Made:
    """A pool whose factory records its clients; the fixture closes them."""

    def __init__(self) -> None:
        self.clients: list[httpx.AsyncClient] = []
        self.pool = ClientPool(self._make)

    def _make(self) -> httpx.AsyncClient:
        self.clients.append(httpx.AsyncClient(verify=_CONTEXT))
        return self.clients[-1]


_CONTEXT = ssl.create_default_context()


@pytest.fixture
def made() -> Iterator[Made]:
    made = Made()
    yield made
    for client in made.clients:
        asyncio.run(client.aclose())


def test_pool_without_a_factory_has_one_client() -> None:
    pool = ClientPool()
    clients = {id(pool.lease(origin)) for origin in (_A, _B, _A)}
    assert len(clients) == 1
    client = pool.lease(_A)
    pool.record_http_version(_A, "HTTP/1.1")
    pool.release(client)
    assert pool.lease(_B) is client
    asyncio.run(pool.aclose())
    assert client.http.is_closed


def test_unknown_origin_gets_an_exclusive_client(made: Made) -> None:
    first, second = made.pool.lease(_A), made.pool.lease(_A)
    assert first.http is not second.http
    made.pool.release(first)
    assert made.pool.lease(_B) is first
    assert len(made.clients) == 2


def test_http1_origin_shares_a_client(made: Made) -> None:
    leased = made.pool.lease(_A)
    made.pool.record_http_version(_A, "HTTP/1.1")
    shared = made.pool.lease(_A)
    assert made.pool.lease(_A) is shared
    assert shared.http is not leased.http
    assert made.pool.lease(_B) is not shared
    made.pool.release(shared)
    assert made.pool.lease(_A) is shared


def test_idle_client_becomes_the_shared_client(made: Made) -> None:
    """It has an open connection that the next request can reuse."""
    leased = made.pool.lease(_A)
    made.pool.record_http_version(_A, "HTTP/1.0")
    made.pool.release(leased)
    assert made.pool.lease(_A).http is leased.http
    assert len(made.clients) == 1


def test_http2_origin_never_shares_a_client(made: Made) -> None:
    made.pool.record_http_version(_A, "HTTP/2")
    assert made.pool.lease(_A) is not made.pool.lease(_A)


def test_discarded_client_is_closed_and_removed(made: Made) -> None:
    async def main() -> None:
        leased = made.pool.lease(_A)
        await made.pool.discard(leased)
        assert leased.http.is_closed
        assert made.pool.lease(_A) is not leased
        made.pool.record_http_version(_A, "HTTP/1.1")
        shared = made.pool.lease(_A)
        await made.pool.discard(shared)
        assert not shared.http.is_closed

    asyncio.run(main())


def test_closing_the_pool_closes_all_clients(made: Made) -> None:
    async def main() -> None:
        in_use, idle = made.pool.lease(_A), made.pool.lease(_A)
        made.pool.record_http_version(_B, "HTTP/1.1")
        shared = made.pool.lease(_B)
        made.pool.release(idle)
        await made.pool.aclose()
        assert [client.http.is_closed for client in (in_use, idle, shared)] == [True, True, True]
        # Their streams release them later.
        await made.pool.release_or_close(in_use, _A)
        await made.pool.discard(idle)
        assert made.pool.connections == 0

    asyncio.run(main())
    with pytest.raises(BridgeClosedError):
        made.pool.lease(_A)
    # A client that is made for a request after the end is closed too.
    assert len(made.clients) == 4
    assert all(client.is_closed for client in made.clients)
    made.pool.release(Client(made.clients[0]))
    with pytest.raises(BridgeClosedError):
        made.pool.lease(_A)


def test_client_that_hangs_in_aclose_keeps_no_other_open(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(httpx.AsyncClient):
        async def aclose(self) -> None:
            await asyncio.get_running_loop().create_future()

    class Failing(httpx.AsyncClient):
        async def aclose(self) -> None:
            raise OSError("cannot be closed")

    async def main() -> None:
        kinds = iter([Hanging, Failing, httpx.AsyncClient])
        pool = ClientPool(lambda: next(kinds)(verify=_CONTEXT))
        *_, last = [pool.lease(_A) for _ in range(3)]
        closing = asyncio.create_task(pool.aclose())
        while not last.http.is_closed:
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})

    asyncio.run(main())


def test_late_client_that_cannot_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(httpx.AsyncClient):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("cannot be closed")

    pool = ClientPool(lambda: Failing(verify=_CONTEXT))
    asyncio.run(pool.aclose())
    with caplog.at_level(logging.DEBUG, "sseqbridge"), pytest.raises(BridgeClosedError):
        pool.lease(_A)
    assert "closing an HTTP client failed" in caplog.text


def test_threads_that_need_tls_at_once_build_one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[ssl.SSLContext] = []
    go = threading.Event()

    def build() -> ssl.SSLContext:
        go.wait(30)
        built.append(_CONTEXT)
        return _CONTEXT

    monkeypatch.setattr(http_client, "_tls_context", None)
    monkeypatch.setattr(http_client, "_context_of_environment", build)
    futures = [in_thread(http_client._built_tls_context) for _ in range(2)]
    go.set()
    assert {future.result(30) for future in futures} == {_CONTEXT}
    assert built == [_CONTEXT]


def test_pool_of_a_callers_client_keeps_its_cookies() -> None:
    async def main() -> None:
        async with httpx.AsyncClient() as http:
            pool = ClientPool.of(http)
            assert pool.lease(_A).http is pool.lease(_B).http is http
            request = httpx.Request("GET", "http://a.test/")
            http.cookies.extract_cookies(httpx.Response(200, headers={"Set-Cookie": "a=1"}, request=request))
            assert dict(http.cookies) == {"a": "1"}

    asyncio.run(main())


def test_client_of_a_slower_thread_is_closed_after_its_request() -> None:
    inner: list[Client] = []

    def factory() -> httpx.AsyncClient:
        if not inner:
            # Meanwhile another thread's response has shown that clients may be shared, and a third thread makes one.
            pool.record_http_version("origin", "HTTP/1.1")
            inner.append(None)  # type: ignore[arg-type]
            inner[0] = pool.lease("origin")
        return httpx.AsyncClient(verify=False)

    async def main() -> None:
        await pool.release_or_close(surplus, "origin")
        assert surplus.http.is_closed
        assert pool.lease("origin") is inner[0]
        await pool.aclose()

    pool = ClientPool(factory)
    surplus = pool.lease("origin")
    assert surplus is not inner[0]
    asyncio.run(main())
    assert inner[0].http.is_closed
