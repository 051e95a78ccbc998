"""Requests on a bridge with clients of the caller's, whose transports and hooks may do anything."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import httpx
import httpx2
import pytest

from sseqbridge import Bridge, BridgeTransport
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, in_turn, raw, respond, send, silence
from tests.clock import FakeClock
from tests.support import in_thread, is_waiting, until, until_no_stream_is_open
from tests.transport.exchanges import exchange_of

NewClient = Callable[..., Any]
EVENTS = {"Content-Type": "text/event-stream"}


@pytest.fixture
def on_transport() -> Iterator[Callable[[Any], Any]]:
    """A function that returns a client, on a bridge whose own clients have the given asynchronous transport."""
    bridges: list[Bridge] = []

    def make(transport: httpx.AsyncBaseTransport, **options: Any) -> httpx.Client:
        bridges.append(Bridge(client=lambda: httpx.AsyncClient(transport=transport)))
        return httpx.Client(transport=BridgeTransport(bridge=bridges[-1], **options), timeout=None)

    yield make
    for bridge in bridges:
        bridge.close()


class Handler(httpx.AsyncBaseTransport):
    """A transport that answers with a coroutine function."""

    def __init__(self, handle: Callable[[httpx.Request], Any]) -> None:
        self._handle = handle

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await self._handle(request)
        return response


class Stubborn:
    """Code that goes on after a cancellation until `go` is set."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.go = threading.Event()

    async def linger(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            with anyio.CancelScope(shield=True):
                while not self.go.is_set():
                    await asyncio.sleep(0.001)

    async def body(self) -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await self.linger()


def test_abort_before_the_answer_on_a_shared_client(package: Any) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [silence()] if request.path == "/silent" else [respond(), send("1")]

    with SSEServer(script) as server, Bridge(client=package.AsyncClient) as bridge:
        transport = BridgeTransport(bridge=bridge)
        client = package.Client(transport=transport, timeout=None)
        # From the first answer on, all requests to this HTTP/1.1 server share the client.
        assert client.get(server.url).status_code == 200
        asking = in_thread(lambda: client.get(f"{server.url}/silent"))
        server.wait_for_request(2)
        transport.close()
        server.requests[1].wait_aborted()
        assert type(asking.exception(30)) is package.ReadError
        assert client.get(server.url).status_code == 200


@pytest.mark.parametrize("inner", [httpx, httpx2], ids=["inner httpx", "inner httpx2"])
def test_body_that_a_hook_has_read_is_received_decompressed(package: Any, inner: Any) -> None:
    async def read(response: Any) -> None:
        await response.aread()

    def factory() -> Any:
        return inner.AsyncClient(event_hooks={"request": [], "response": [read]})

    answer = [respond(headers={"Content-Encoding": "gzip"}, content_type="text/plain"), raw(gzip.compress(b"hello"))]
    with SSEServer(answer) as server, Bridge(client=factory) as bridge:
        with package.Client(transport=BridgeTransport(bridge=bridge), timeout=None) as client:
            response = client.get(server.url)
        assert response.text == "hello"
        assert "content-encoding" not in response.headers


@pytest.mark.parametrize("kind", ["request", "response"])
def test_error_of_a_hook_is_raised_as_it_is(package: Any, kind: str) -> None:
    error = ConnectionResetError("a hook's")

    async def fails(_: Any) -> None:
        raise error

    hooks = {"request": [], "response": [], kind: [fails]}
    with SSEServer([send("1")]) as server, Bridge(client=lambda: package.AsyncClient(event_hooks=hooks)) as bridge:
        client = package.Client(transport=BridgeTransport(bridge=bridge), timeout=None)
        with pytest.raises(ConnectionResetError) as caught:
            client.get(server.url)
        assert caught.value is error


def test_upstream_that_sends_on_is_cut_after_its_last_event(package: Any) -> None:
    closed = threading.Event()
    steps = [respond(), send("[DONE]"), hold(closed), *[raw(b"x" * 10_000)] * 100, silence()]
    with SSEServer(steps) as server, Bridge(client=package.AsyncClient) as bridge:
        client = package.Client(transport=BridgeTransport(bridge=bridge), timeout=None)
        with client.stream("GET", server.url) as response:
            lines = response.iter_lines()
            assert [next(lines), next(lines)] == ["data: [DONE]", ""]
        closed.set()
        server.requests[0].wait_aborted()
        until_no_stream_is_open(bridge)


def test_rest_after_the_last_event_is_read(package: Any) -> None:
    closed = threading.Event()
    steps = [respond(), send("[DONE]"), hold(closed), *[raw(b": bye\n\n")] * 3]
    with SSEServer(steps) as server, Bridge(client=package.AsyncClient) as bridge:
        client = package.Client(transport=BridgeTransport(bridge=bridge), timeout=None)
        for _ in range(2):
            closed.clear()
            with client.stream("GET", server.url) as response:
                lines = response.iter_lines()
                assert [next(lines), next(lines)] == ["data: [DONE]", ""]
            closed.set()
            until_no_stream_is_open(bridge)
        assert server.connections == 1


def test_transport_that_cancels_its_task_is_an_error(on_transport: Callable[..., Any]) -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        raise AssertionError("the task must be cancelled")

    with pytest.raises(httpx.ReadError, match="is ending"):
        on_transport(Handler(handle)).get("http://upstream.test/")


def test_transport_that_swallows_its_cancellation_holds_no_consumer(clock: FakeClock) -> None:
    stubborn = Stubborn()

    async def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=EVENTS, content=stubborn.body())

    bridge = Bridge(client=lambda: httpx.AsyncClient(transport=Handler(handle)))
    client = httpx.Client(transport=BridgeTransport(bridge=bridge), timeout=None)
    with client.stream("GET", "http://upstream.test/") as response:
        lines = response.iter_lines()
        assert [next(lines), next(lines)] == ["data: 1", ""]
        reading = in_thread(lambda: next(lines))
        until(lambda: is_waiting(reading))
        closing = in_thread(bridge.close)
        stubborn.cancelled.wait(30)
        clock.advance_until(reading.done, step=0.05)
        stubborn.go.set()
        closing.result(30)
        assert type(reading.exception(0)) is httpx.ReadError
        assert "was closed" in str(reading.exception(0))


def test_limit_that_has_elapsed_stays_the_reason(clock: FakeClock, on_transport: Callable[..., Any]) -> None:
    """The request is aborted again while its transport still cleans up."""
    stubborn = Stubborn()

    async def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=EVENTS, content=stubborn.body())

    client = on_transport(Handler(handle), idle=30)
    with client.stream("GET", "http://upstream.test/") as response:
        lines = response.iter_lines()
        assert [next(lines), next(lines)] == ["data: 1", ""]
        reading = in_thread(lambda: next(lines))
        until(lambda: is_waiting(reading))
        clock.advance_until(stubborn.cancelled.is_set)
        exchange_of(response).abort()
        stubborn.go.set()
        assert type(reading.exception(30)) is httpx.ReadTimeout


@pytest.mark.blocks_its_loop
@pytest.mark.parametrize("first", ["1", "[DONE]"])
def test_body_that_never_waits_is_aborted(on_transport: Callable[..., Any], first: str) -> None:
    """The loop is left to others after the consumer has closed the response, however much can be read at once."""
    closed = threading.Event()

    async def body() -> AsyncIterator[bytes]:
        yield f"data: {first}\n\n".encode()
        closed.wait(30)
        while True:
            yield b": more\n"

    async def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=EVENTS, content=body())

    with on_transport(Handler(handle)).stream("GET", "http://upstream.test/") as response:
        assert next(response.iter_lines()) == f"data: {first}"
        exchange = exchange_of(response)
        closing = in_thread(response.close)
        until(lambda: exchange.channel.closed)
        closed.set()
        closing.result(30)
        until(lambda: exchange.finished)


@pytest.mark.blocks_its_loop
def test_transport_that_blocks_the_loop_is_reported_with_the_url(
    clock: FakeClock,
    on_transport: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        # The watch of the loop has begun, and sees a beat after the block.
        await asyncio.sleep(0.1)
        clock.advance(600)
        await asyncio.sleep(0.1)
        return httpx.Response(200)

    clock.report_blocked_loops(monkeypatch)
    with caplog.at_level(logging.WARNING, "sseqbridge.loop"):
        on_transport(Handler(handle)).get("http://user:secret@upstream.test/path?token=secret", timeout=None)
    assert "what the HTTP client, its transport, hooks or auth did for http://upstream.test/path" in caplog.text
    assert "secret" not in caplog.text


def test_answer_is_logged_without_secrets(package: Any, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with SSEServer([respond(404)]) as server, caplog.at_level(logging.DEBUG, "sseqbridge"):
        client.get(f"{server.url}/path?token=secret", headers={"Authorization": "secret"})
        host = server.url.removeprefix("http://")
    messages = [record.getMessage() for record in caplog.records if record.name == "sseqbridge"]
    assert [message for message in messages if "404" in message] == [f"http://{host}/path: 404, HTTP/1.1"]
    assert not any("secret" in message for message in messages)


def test_slow_consumer_without_a_limit_gets_everything(package: Any) -> None:
    with SSEServer(in_turn([respond(), *[send("x" * 100_000)] * 100])) as server:
        response = BridgeTransport().handle_request(package.Request("GET", server.url))
        chunks = response.iter_raw()
        received = len(next(chunks))
        until(lambda: exchange_of(response).channel.is_producer_waiting)
        assert received + sum(map(len, chunks)) == 100 * (len(b"data: \n\n") + 100_000)
