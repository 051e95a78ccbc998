"""Callers' HTTP clients, Bridge(client=factory), and the choice of the client that sends a request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import httpx2
import pytest
import trustme

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    CallbackError,
    ConnectError,
    ProtocolError,
    ReadError,
    SSEError,
    StreamTimeoutError,
    Timeout,
    TransportError,
    TruncatedStreamError,
    UsageError,
    request_sse,
)
from sseqbridge._http.client import Client
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, raw, reset, respond, send, silence, wire
from tests.clock import FakeClock
from tests.support import in_thread, until

from .http2_server import Http2Server

_EVENT_STREAM = {"Content-Type": "text/event-stream"}


def mocked(response: Callable[[httpx.Request], Any]) -> Bridge:
    """Return a bridge whose requests are answered by a function."""
    return Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(response)))


def is_idle(bridge: Bridge) -> bool:
    return repr(bridge) == "<Bridge open streams=0>"


# Mock transports.


def test_mock_transport_responds_with_content() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=_EVENT_STREAM, content=b"data: %b\n\ndata: [DONE]\n\n" % request.content)

    with mocked(handler) as bridge:
        status, headers, items = request_sse("http://mock.test/", data={"a": 1}, bridge=bridge)
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert list(items) == [{"a": 1}]
        assert (items.outcome, items.http_version) == ("done", "HTTP/1.1")


def test_mock_transport_responds_with_an_error_status() -> None:
    with mocked(lambda request: httpx.Response(503, json={"error": "busy"})) as bridge:
        status, _, items = request_sse("http://mock.test/", bridge=bridge)
        assert (status, list(items)) == (503, [{"error": "busy"}])


@pytest.mark.parametrize("is_async", [True, False])
def test_mock_transport_responds_with_a_stream(is_async: bool) -> None:
    async def body() -> AsyncIterator[bytes]:
        for n in range(3):
            yield b"data: %d\n\n" % n

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=_EVENT_STREAM, content=body())

    async def handle_later(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        return handler(request)

    with mocked(handle_later if is_async else handler) as bridge:
        _, _, items = request_sse("http://mock.test/", bridge=bridge)
        assert list(items) == [0, 1, 2]
        assert items.outcome == "eof"


def test_abort_closes_the_stream_of_a_mock_transport() -> None:
    closed = threading.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            await asyncio.sleep(3600)
        finally:
            closed.set()

    with mocked(lambda request: httpx.Response(200, headers=_EVENT_STREAM, content=body())) as bridge:
        _, _, items = request_sse("http://mock.test/", bridge=bridge)
        for item in items:
            assert item == 1
            break
        assert closed.wait(30)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx.ConnectError("no route"), ConnectError),
        (httpx.ProxyError("407"), ConnectError),
        (httpx.PoolTimeout("full"), StreamTimeoutError),
        (httpx.WriteTimeout("stuck"), StreamTimeoutError),
        (httpx.WriteError("broken"), ReadError),
        (ConnectionResetError("reset"), ReadError),
        (httpx.LocalProtocolError("headers"), TransportError),
        (ZeroDivisionError("a bug"), CallbackError),
    ],
)
def test_errors_of_a_transport_become_typed_errors(raised: Exception, kind: type[SSEError]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    with mocked(handler) as bridge:
        with pytest.raises(SSEError) as caught:
            request_sse("http://mock.test/?key=secret", bridge=bridge)
        assert type(caught.value) is kind
        assert caught.value.__cause__ is raised
        assert "secret" not in str(caught.value)


def test_switch_of_protocols_without_a_request_is_an_error() -> None:
    with mocked(lambda request: httpx.Response(101, headers={"Upgrade": "x"})) as bridge:
        with pytest.raises(ProtocolError, match="the request did not ask for it"):
            request_sse("http://mock.test/", bridge=bridge)
        assert request_sse("http://mock.test/", {"Upgrade": "x"}, bridge=bridge).status == 101


def test_errors_of_a_body_become_typed_errors() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise ZeroDivisionError

    with mocked(lambda request: httpx.Response(200, headers=_EVENT_STREAM, content=body())) as bridge:
        _, _, items = request_sse("http://mock.test/", bridge=bridge)
        assert next(items) == 1
        with pytest.raises(CallbackError) as caught:
            next(items)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


# Clients with settings.


def with_hook(name: str, hook: Callable[..., Any]) -> Bridge:
    """Return a bridge whose clients have an event hook for "request" or "response"."""
    return Bridge(client=lambda: httpx.AsyncClient(event_hooks={name: [hook]}))


def test_proxy_of_the_client_is_used() -> None:
    def proxy(request: ReceivedRequest) -> list[Step]:
        return [send({"asked for": request.path}), send("[DONE]")]

    with SSEServer(proxy) as server, Bridge(client=lambda: httpx.AsyncClient(proxy=server.url)) as bridge:
        _, _, items = request_sse("http://upstream.test/stream?a=1", bridge=bridge)
        assert list(items) == [{"asked for": "http://upstream.test/stream?a=1"}]


def test_proxy_that_refuses_is_a_connect_error() -> None:
    with SSEServer([respond(403, content_type=None)]) as server:
        with Bridge(client=lambda: httpx.AsyncClient(proxy=server.url)) as bridge, pytest.raises(ConnectError):
            request_sse("https://upstream.test/", bridge=bridge)
        assert (server.requests[0].method, server.requests[0].path) == ("CONNECT", "upstream.test:443")


def test_tls_context_of_the_client_is_used(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with SSEServer([send(1), send("[DONE]")], ssl_context=server_tls) as server:
        with Bridge(client=lambda: httpx.AsyncClient(verify=client_tls)) as bridge:
            for _ in range(10):
                assert list(request_sse(server.url, bridge=bridge).events) == [1]
                until(lambda: is_idle(bridge))
            assert server.connections == 1
        with pytest.raises(ConnectError) as caught:
            request_sse(server.url)
        assert isinstance(caught.value.__cause__, httpx.ConnectError)


def test_relative_url_goes_to_the_base_url_of_the_client() -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [send({"path": request.path, "auth": request.headers.get("authorization")}), send("[DONE]")]

    with SSEServer(script) as server:
        clients: list[httpx.AsyncClient] = []

        def factory() -> httpx.AsyncClient:
            clients.append(httpx.AsyncClient(base_url=f"{server.url}/v1/"))
            return clients[-1]

        with Bridge(client=factory) as bridge:
            for url in ("chat", "/chat"):
                for _ in range(3):
                    _, _, items = request_sse(url, auth=("user", "pass"), bridge=bridge)
                    credentials = base64.b64encode(b"user:pass").decode()
                    assert list(items) == [{"path": "/v1/chat", "auth": f"Basic {credentials}"}]
                    until(lambda: is_idle(bridge))
        assert server.connections == 1
        assert len(clients) == 1
        with pytest.raises(UsageError, match="must be an http"):
            request_sse("/chat")


def test_auth_headers_and_cookies_of_the_client_are_sent() -> None:
    with SSEServer([send(1), send("[DONE]")]) as server:
        client = {"auth": ("a", "b"), "headers": {"X-Client": "mine", "X-Both": "client"}, "cookies": {"c": "1"}}
        with Bridge(client=lambda: httpx.AsyncClient(**client)) as bridge:  # type: ignore[arg-type]
            assert list(request_sse(server.url, {"X-Both": "call"}, bridge=bridge).events) == [1]
        sent = server.requests[0].headers
        assert sent["authorization"].startswith("Basic ")
        assert (sent["x-client"], sent["x-both"], sent["cookie"]) == ("mine", "call", "c=1")
        assert sent["accept"] == "text/event-stream"


def test_event_hooks_run() -> None:
    seen: list[object] = []

    async def on_request(request: httpx.Request) -> None:
        seen.append(request.method)

    async def on_response(response: httpx.Response) -> None:
        seen.append(response.status_code)

    with SSEServer([send(1), send("[DONE]")]) as server:
        for name, hook in (("request", on_request), ("response", on_response)):
            with with_hook(name, hook) as bridge:
                assert list(request_sse(server.url, bridge=bridge).events) == [1]
    assert seen == ["GET", 200]


def test_event_hook_that_raises_causes_a_typed_error() -> None:
    async def on_response(response: httpx.Response) -> None:
        response.raise_for_status()

    with (
        SSEServer([respond(500, content_type=None), raw(b"no")]) as server,
        with_hook("response", on_response) as bridge,
    ):
        with pytest.raises(CallbackError) as caught:
            request_sse(f"{server.url}/?key=secret", bridge=bridge)
        assert isinstance(caught.value.__cause__, httpx.HTTPStatusError)
        assert "secret" not in str(caught.value)


def test_event_hook_may_read_the_response() -> None:
    bodies: list[bytes] = []

    async def on_response(response: httpx.Response) -> None:
        bodies.append(await response.aread())

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/error":
            headers = {"Content-Encoding": "gzip"}
            return [respond(500, headers, content_type="application/json"), raw(gzip.compress(b'{"a": 1}'))]
        return [send(1), send("[DONE]")]

    with SSEServer(script) as server, with_hook("response", on_response) as bridge:
        status, _, items = request_sse(f"{server.url}/error", bridge=bridge)
        assert (status, list(items)) == (500, [{"a": 1}])
        assert list(request_sse(server.url, bridge=bridge).events) == [1]
    assert bodies == [b'{"a": 1}', b"data: 1\n\ndata: [DONE]\n\n"]


def test_client_with_a_full_pool_times_out() -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [send(1), send("[DONE]") if request.path == "/first" else silence()]

    def factory() -> httpx.AsyncClient:
        return httpx.AsyncClient(limits=httpx.Limits(max_connections=1))

    with SSEServer(script) as server, Bridge(client=factory) as bridge:
        assert list(request_sse(f"{server.url}/first", bridge=bridge).events) == [1]
        until(lambda: is_idle(bridge))
        with request_sse(server.url, bridge=bridge):
            with pytest.raises(StreamTimeoutError) as caught:
                request_sse(server.url, bridge=bridge, timeout=Timeout(connect=0.05))
            assert caught.value.which == "connect"


def test_only_cookies_set_by_the_caller_are_sent() -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        cookies = sorted(request.headers.get("cookie", "").split("; "))
        return [respond(headers={"Set-Cookie": "session=1; Path=/"}), send(cookies), send("[DONE]")]

    with SSEServer(script) as server:
        assert [list(request_sse(server.url).events) for _ in range(2)] == [[[""]], [[""]]]
        with Bridge(client=lambda: httpx.AsyncClient(cookies={"mine": "2"})) as bridge:
            for _ in range(2):
                assert list(request_sse(server.url, bridge=bridge).events) == [["mine=2"]]
            given = request_sse(server.url, bridge=bridge, headers={"Cookie": "by=header"})
            assert list(given.events) == [["by=header"]]


def test_closing_the_bridge_closes_its_clients() -> None:
    clients: list[httpx.AsyncClient] = []

    def factory() -> httpx.AsyncClient:
        clients.append(httpx.AsyncClient())
        return clients[-1]

    with SSEServer([send(1), silence()]) as server, Bridge(client=factory) as bridge:
        _, _, items = request_sse(server.url, bridge=bridge)
        assert next(items) == 1
        bridge.close()
        with pytest.raises(BridgeClosedError):
            next(items)
        assert [client.is_closed for client in clients] == [True]
        assert server.requests[0].wait_aborted()


# Invalid factories.


@pytest.mark.parametrize("made", [None, httpx.Client, object(), "http://127.0.0.1"])
def test_factory_that_returns_no_async_client_is_a_usage_error(made: Any) -> None:
    made = made() if callable(made) else made
    with Bridge(client=lambda: made) as bridge:
        for _ in range(2):
            with pytest.raises(UsageError, match=f"httpx.AsyncClient.*got {type(made).__name__}"):
                request_sse("http://127.0.0.1/", bridge=bridge)
    if isinstance(made, httpx.Client):
        made.close()


def test_client_instead_of_a_factory_is_a_usage_error() -> None:
    client = httpx.AsyncClient()
    with pytest.raises(UsageError, match=r"Bridge\(client=lambda: httpx\.AsyncClient"):
        Bridge(client=client)  # type: ignore[arg-type]
    asyncio.run(client.aclose())


def test_factory_that_raises_is_a_callback_error() -> None:
    def factory() -> httpx.AsyncClient:
        raise FileNotFoundError("client.pem")

    with Bridge(client=factory) as bridge:
        for _ in range(2):
            with pytest.raises(CallbackError) as caught:
                request_sse("http://127.0.0.1/", bridge=bridge)
            assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_body_of_a_client_with_send_needs_no_aclose() -> None:
    class Chunks:
        """An iterator, and no generator."""

        def __init__(self) -> None:
            self.left = [b"data: 1\n\n", b"data: [DONE]\n\n"]

        def __aiter__(self) -> Chunks:
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    class Body(httpx.AsyncByteStream):
        def __aiter__(self) -> Any:
            return Chunks()

    class Sending(httpx.AsyncClient):
        async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            headers = {"Content-Type": "text/event-stream"}
            return httpx.Response(200, headers=headers, stream=Body(), request=request)

    with Bridge(client=Sending) as bridge:
        assert list(request_sse("http://upstream.test/", bridge=bridge).events) == [1]


def test_subclass_of_async_client_is_accepted() -> None:
    class MyClient(httpx.AsyncClient):
        pass

    with SSEServer([send(1), send("[DONE]")]) as server, Bridge(client=MyClient) as bridge:
        assert list(request_sse(server.url, bridge=bridge).events) == [1]


# httpx and httpx2.


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def package(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_clients_of_either_package_read_streams(package: Any) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [respond(headers={"Set-Cookie": "s=1"}), send([request.path, request.headers]), send("[DONE]")]

    with SSEServer(script) as server, Bridge(client=package.AsyncClient) as bridge:
        for _ in range(3):
            response = request_sse(
                f"{server.url}/p", {"X-Mine": "1"}, {"a": 1}, params={"q": "ä"}, cookies={"c": "2"}, bridge=bridge
            )
            assert isinstance(response.headers, httpx.Headers)
            [[path, headers]] = list(response.events)
            assert (path, headers["x-mine"], headers["cookie"]) == ("/p?q=%C3%A4", "1", "c=2")
            until(lambda: is_idle(bridge))
        assert server.requests[-1].json() == {"a": 1}
        assert server.connections == 1


def test_clients_of_either_package_send_the_body_after_a_redirect(package: Any) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/":
            return [respond(307, {"Location": "/there"})]
        return [send(request.json()), send("[DONE]")]

    with SSEServer(script) as server, Bridge(client=package.AsyncClient) as bridge:
        assert list(request_sse(server.url, data={"a": 1}, bridge=bridge).events) == [{"a": 1}]


def test_clients_of_either_package_are_aborted(package: Any) -> None:
    with SSEServer([send(1), silence()]) as server, Bridge(client=package.AsyncClient) as bridge:
        for item in request_sse(server.url, bridge=bridge).events:
            assert item == 1
            break
        assert server.requests[0].wait_aborted()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "kind", "cause"),
    [
        ([cut()], TruncatedStreamError, "RemoteProtocolError"),
        # Within the line of a chunk's size, for which h11 has another error text.
        ([wire(b"1"), cut()], TruncatedStreamError, "RemoteProtocolError"),
        ([reset()], ReadError, "ReadError"),
        ([wire(b"no chunk\r\n"), silence()], ProtocolError, "RemoteProtocolError"),
        ([silence()], StreamTimeoutError, "ReadTimeout"),
    ],
)
def test_errors_of_either_package_become_typed_errors(
    clock: FakeClock, package: Any, steps: list[Step], kind: type[SSEError], cause: str
) -> None:
    seen_one = threading.Event()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield send(1)
        while not seen_one.is_set():
            yield raw(b"")
        yield from steps

    with SSEServer(script) as server, Bridge(client=package.AsyncClient) as bridge:
        _, _, items = request_sse(server.url, bridge=bridge, timeout=Timeout(read=60))
        assert next(items) == 1
        seen_one.set()
        with pytest.raises(SSEError) as caught:
            if kind is StreamTimeoutError:
                clock.advance_until_done(lambda: next(items), step=10)
            next(items)
        assert type(caught.value) is kind
        assert type(caught.value.__cause__) is getattr(package, cause)


@pytest.mark.parametrize(
    ("steps", "kind", "cause"),
    [
        ([wire(b"")], ReadError, "RemoteProtocolError"),
        ([wire(b"SMTP\r\n\r\n"), silence()], ProtocolError, "RemoteProtocolError"),
        ([wire(b"HTTP/1.1"), silence()], StreamTimeoutError, "ReadTimeout"),
        (None, ConnectError, "ConnectError"),
    ],
)
def test_errors_before_the_headers_become_typed_errors(
    clock: FakeClock, package: Any, steps: list[Step] | None, kind: type[SSEError], cause: str
) -> None:
    with SSEServer([*(steps or ()), cut()]) as server, Bridge(client=package.AsyncClient) as bridge:
        if steps is None:
            server.close()
        asking = in_thread(lambda: request_sse(server.url, bridge=bridge, timeout=Timeout(connect=None, read=60)))
        if kind is StreamTimeoutError:
            clock.advance_until(asking.done, step=10)
        with pytest.raises(SSEError) as caught:
            asking.result(30)
        assert type(caught.value) is kind
        assert type(caught.value.__cause__) is getattr(package, cause)


# HTTP/2.


@pytest.fixture
def http2(certificate: Path, client_tls: ssl.SSLContext) -> Iterator[tuple[Http2Server, Bridge]]:
    def factory() -> httpx.AsyncClient:
        return httpx.AsyncClient(http2=True, verify=client_tls)

    with Http2Server(certificate) as server, Bridge(client=factory) as bridge:
        yield server, bridge


def test_sequential_http2_requests_use_one_connection(http2: tuple[Http2Server, Bridge]) -> None:
    server, bridge = http2
    for _ in range(10):
        response = request_sse(server.url, data={}, bridge=bridge)
        assert list(response.events) == [1]
        assert response.events.http_version == "HTTP/2"
        until(lambda: is_idle(bridge))
    assert len(set(server.peers)) == 1


def test_concurrent_http2_streams_have_a_connection_each(http2: tuple[Http2Server, Bridge]) -> None:
    """httpcore sends no RST_STREAM, so a server notices an abort only if the connection is closed."""
    server, bridge = http2
    streams = [request_sse(f"{server.url}/silent", bridge=bridge).events for _ in range(3)]
    assert [next(stream) for stream in streams] == [1, 1, 1]
    assert len(set(server.peers)) == 3
    streams[1].close()
    assert server.left.get(timeout=30) == "/silent"
    assert server.left.empty()
    assert [stream.outcome for stream in streams] == [None, "closed", None]
    for stream in streams:
        stream.close()
    assert [server.left.get(timeout=30) for _ in range(2)] == ["/silent"] * 2


@pytest.mark.parametrize("leave", ["break", "close", "drop", "cancel"])
@pytest.mark.filterwarnings("ignore:.*was dropped while it was open:ResourceWarning")
def test_http2_server_is_notified_of_an_abort(http2: tuple[Http2Server, Bridge], leave: str) -> None:
    server, bridge = http2
    cancel = threading.Event()
    stream = request_sse(f"{server.url}/silent", bridge=bridge, cancel=cancel).events
    assert next(stream) == 1
    if leave == "break":
        reader = in_thread(lambda: list(stream))
        stream.close()
        assert reader.result(30) == []
    elif leave == "close":
        stream.close()
    elif leave == "cancel":
        cancel.set()
    else:
        del stream
    assert server.left.get(timeout=30) == "/silent"


def test_http2_server_is_notified_of_an_early_abort(clock: FakeClock, http2: tuple[Http2Server, Bridge]) -> None:
    server, bridge = http2
    limits = Timeout(connect=None, read=None, total=60)
    asking = in_thread(lambda: request_sse(f"{server.url}/mute", bridge=bridge, timeout=limits))
    until(lambda: server.peers)
    clock.advance_until(asking.done, step=10)
    with pytest.raises(StreamTimeoutError):
        asking.result()
    assert server.left.get(timeout=30) == "/mute"


def test_connection_is_not_reused_after_an_http2_abort(http2: tuple[Http2Server, Bridge]) -> None:
    server, bridge = http2
    for _ in range(2):
        with request_sse(f"{server.url}/silent", bridge=bridge) as (_, _, items):
            assert next(items) == 1
        assert server.left.get(timeout=30) == "/silent"
    assert len(set(server.peers)) == 2


def test_http2_streams_after_a_redirect_share_no_connection(http2: tuple[Http2Server, Bridge]) -> None:
    """The HTTP version of the redirect must not decide about sharing the client of its target."""
    server, bridge = http2
    with SSEServer([respond(307, {"Location": f"{server.url}/silent"})]) as first:
        streams = [request_sse(first.url, bridge=bridge).events for _ in range(3)]
        assert [next(stream) for stream in streams] == [1, 1, 1]
        assert {stream.http_version for stream in streams} == {"HTTP/2"}
        assert len(set(server.peers)) == 3
        for stream in streams:
            stream.close()
            assert server.left.get(timeout=30) == "/silent"


def respond_over_http2(listener: socket.socket, context: ssl.SSLContext, steps: list[str]) -> None:
    """Respond to one request with h2, by these steps."""
    plain, _ = listener.accept()
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    with context.wrap_socket(plain, server_side=True) as client, contextlib.suppress(OSError):
        stream = None
        while stream is None:
            client.sendall(connection.data_to_send())
            for event in connection.receive_data(client.recv(65_536)):
                if isinstance(event, h2.events.StreamEnded):
                    stream = event.stream_id
        for step in steps:
            if step == "response":
                connection.send_headers(stream, [(":status", "200"), ("content-type", "text/event-stream")])
                connection.send_data(stream, b"data: 1\n\n")
            elif step == "RST_STREAM":
                connection.reset_stream(stream, 2)
            elif step == "GOAWAY":
                connection.close_connection(2)
            client.sendall(connection.data_to_send())
        if steps[-1] == "close":
            client.shutdown(socket.SHUT_WR)
        # Closing with unread bytes would reset the connection.
        while client.recv(65_536):
            pass


@pytest.mark.parametrize("way_out", ["RST_STREAM", "GOAWAY", "close"])
@pytest.mark.parametrize("responses", [True, False])
def test_http2_server_that_ends_the_connection_is_an_error(
    authority: trustme.CA, client_tls: ssl.SSLContext, way_out: str, responses: bool
) -> None:
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    server_tls.set_alpn_protocols(["h2"])
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Bridge(client=lambda: httpx.AsyncClient(http2=True, verify=client_tls)) as bridge,
    ):
        steps = ["response", way_out] if responses else [way_out]
        served = in_thread(lambda: respond_over_http2(listener, server_tls, steps), "by hand")
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        if responses:
            _, _, items = request_sse(url, bridge=bridge)
            assert next(items) == 1
            with pytest.raises(TruncatedStreamError, match="mid-stream"):
                next(items)
        else:
            with pytest.raises(ReadError, match="before a response"):
                request_sse(url, bridge=bridge)
        bridge.close()
        served.result(30)


# The package of a client.


def test_package_of_a_client_is_found() -> None:
    class Mine(httpx2.AsyncClient):
        pass

    async def main() -> None:
        for kind, package in ((httpx.AsyncClient, httpx), (httpx2.AsyncClient, httpx2), (Mine, httpx2)):
            async with kind() as http:
                assert Client(http).package is package

    asyncio.run(main())
