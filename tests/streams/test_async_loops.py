"""arequest_sse: event loops, threads, and the caller's own client."""

from __future__ import annotations

import asyncio
import ssl
import threading
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import (
    AsyncEventStream,
    BridgeClosedError,
    ConnectError,
    StreamTimeoutError,
    TruncatedStreamError,
    arequest_sse,
)
from sseqbridge._engine import caller_loops
from sseqbridge._http import client
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    cut,
    respond,
    send,
    silence,
)
from tests.clock import FakeClock
from tests.loops import states_of_callers_loops
from tests.streams.async_support import Run, aborted
from tests.support import HAS_OWN_TRANSPORT

pytestmark = pytest.mark.slow


class _ThreadStarts:
    """Records the names of threads that are started from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        start = threading.Thread.start

        def start_and_record(thread: threading.Thread) -> None:
            self.names.append(thread.name)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_and_record)


def test_no_thread_is_started_once_the_tls_context_exists(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(url: str) -> None:
        async with await arequest_sse(url, None, {}) as (_, _, items):
            assert [item async for item in items] == [1]

    with SSEServer([send(1), send("[DONE]")]) as server:
        run(lambda: ask(server.url))
        started = _ThreadStarts(monkeypatch)
        run(lambda: ask(server.url))
        assert started.names == []


def test_the_tls_context_is_built_off_the_loop(
    run: Run, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    built_in: list[threading.Thread] = []

    def create_context() -> ssl.SSLContext:
        built_in.append(threading.current_thread())
        return client_tls

    monkeypatch.setattr(client, "_tls_context", None)
    monkeypatch.setattr(httpx, "create_ssl_context", create_context)

    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            await send_five_requests(server.url)
            assert not built_in or not HAS_OWN_TRANSPORT, "plain HTTP must not build a TLS context"
        with SSEServer([send(1), send("[DONE]")], ssl_context=server_tls) as server:
            await send_five_requests(server.url)

    async def send_five_requests(url: str) -> None:
        for _, _, items in await asyncio.gather(*(arequest_sse(url) for _ in range(5))):
            assert [item async for item in items] == [1]

    run(main)
    assert len(built_in) == 1
    assert built_in[0] is not threading.main_thread()


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def package(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.usefixtures("patient_end")
def test_the_callers_client_keeps_its_cookies_and_stays_open(run: Run, package: Any) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        cookie = request.headers.get("cookie", "none")
        return [respond(headers={"Set-Cookie": "s=1"}), send(cookie, id="x"), send("[DONE]")]

    async def main() -> None:
        with SSEServer(script) as server:
            async with package.AsyncClient(headers={"X-Client": "mine"}) as client:
                results = []
                for _ in range(2):
                    async with await arequest_sse(server.url, client=client, decode="text") as (_, _, items):
                        results += [item async for item in items]
                assert results == ["none", "s=1"]
                assert dict(client.cookies) == {"s": "1"}
                assert not client.is_closed
                assert server.requests[0].headers["x-client"] == "mine"
                assert server.connections == 1

    run(main)


def test_the_callers_client_outlives_an_abort(run: Run, package: Any) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            async with package.AsyncClient() as client:
                for n in range(3):
                    async with await arequest_sse(server.url, client=client) as (_, _, items):
                        assert await items.next() == 1
                    assert await aborted(server.requests[n])
                assert not client.is_closed

    run(main)


def test_errors_of_httpx_and_httpx2_are_mapped(
    clock: FakeClock, run: Run, package: Any, closed_port: int
) -> None:
    async def main() -> None:
        async with package.AsyncClient() as client:
            with pytest.raises(ConnectError) as refused:
                await arequest_sse(f"http://127.0.0.1:{closed_port}", client=client)
            assert isinstance(refused.value.__cause__, package.ConnectError)
            with SSEServer([send(1), cut()]) as server:
                _, _, items = await arequest_sse(server.url, client=client)
                assert await items.next() == 1
                with pytest.raises(TruncatedStreamError) as cut_off:
                    await items.next()
            assert isinstance(cut_off.value.__cause__, package.RemoteProtocolError)
            with SSEServer([send(1), silence()]) as server:
                _, _, items = await arequest_sse(server.url, client=client, timeout=60)
                assert await items.next() == 1
                with pytest.raises(StreamTimeoutError) as timed_out:
                    await clock.aadvance_until_done(items.next(), step=10)
            assert isinstance(timed_out.value.__cause__, package.ReadTimeout)

    run(main)


def test_loops_one_after_another_share_nothing(run: Run) -> None:
    async def ask(url: str) -> None:
        async with await arequest_sse(url) as (_, _, items):
            assert [item async for item in items] == [1]

    with SSEServer([send(1), send("[DONE]")]) as server:
        for _ in range(3):
            run(lambda: ask(server.url))
            assert states_of_callers_loops() == {}
        assert server.connections == 3


def test_loops_in_different_threads_share_nothing(run: Run) -> None:
    all_open = threading.Barrier(4)
    results: list[list[Any]] = []

    async def ask(url: str) -> list[Any]:
        async with await arequest_sse(url) as (_, _, items):
            all_open.wait(30)
            return [item async for item in items]

    with SSEServer([send(1), send("[DONE]")]) as server:
        threads = [threading.Thread(target=lambda: results.append(run(lambda: ask(server.url)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [[1]] * 4


def test_a_loop_that_ends_aborts_its_streams(run: Run) -> None:
    streams: list[AsyncEventStream[Any]] = []

    async def leave(url: str) -> None:
        _, _, items = await arequest_sse(url)
        assert await items.next() == 1
        streams.append(items)

    async def check() -> None:
        with pytest.raises(BridgeClosedError, match="loop"):
            await streams[0].next(timeout=30)
        assert streams[0].outcome == "error"
        await streams[0].aclose()

    with SSEServer([send(1), silence()]) as server:
        run(lambda: leave(server.url))
        assert server.requests[0].wait_aborted()
        run(check)


def test_next_request_drops_the_state_of_a_closed_loop(run: Run) -> None:
    """A loop that is run without asyncio.run() may be closed without shutdown_asyncgens()."""

    async def ask(url: str) -> None:
        response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"data: 1\n\n")
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: response)) as client:
            await caller_loops.running_loop_state()
            async with await arequest_sse(url, client=client) as (_, _, items):
                assert [item async for item in items] == [1]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(ask("http://127.0.0.1/"))
    loop.close()
    assert list(states_of_callers_loops()) == [loop]
    with SSEServer([send(1), send("[DONE]")]) as server:

        async def main() -> None:
            async with await arequest_sse(server.url) as (_, _, items):
                assert [item async for item in items] == [1]
            assert loop not in states_of_callers_loops()

        run(main)
