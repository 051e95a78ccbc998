"""Requests and responses arrive as httpx's own transport would carry them; so do its errors."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, BridgeTransport, UsageError, request_sse
from sseqbridge._engine.last_event import ends_stream
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, in_turn, raw, reset, respond, send, wire
from tests.support import in_thread, until

NewClient = Callable[..., Any]
JSON = [respond(framing="length", content_type="application/json"), raw(b'{"a": [1, 2]}')]


def test_a_response_has_the_facts_of_the_answer(package: Any, client: Any) -> None:
    with SSEServer([respond(200, [("X-A", "1"), ("x-a", "2")], framing="length"), raw(b"abc")]) as server:
        response = client.get(f"{server.url}/path?query=%20a")
        assert isinstance(response, package.Response)
        assert (response.status_code, response.reason_phrase, response.http_version) == (200, "OK", "HTTP/1.1")
        assert response.headers.get_list("x-a") == ["1", "2"]
        assert response.content == b"abc"
        assert response.request.url == f"{server.url}/path?query=%20a"
        assert response.elapsed.total_seconds() >= 0
        [request] = server.requests
        assert (request.method, request.path) == ("GET", "/path?query=%20a")
        assert request.headers["user-agent"] == f"python-{package.__name__}/{package.__version__}"


def test_the_connection_shows_its_addresses(client: Any) -> None:
    with SSEServer(JSON) as server, client.stream("GET", server.url) as response:
        stream = response.extensions["network_stream"]
        assert stream.get_extra_info("server_addr")[1] == int(server.url.rpartition(":")[2])
        assert stream.get_extra_info("ssl_object") is None
        assert not hasattr(stream, "read")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_is_sent(client: Any, method: str) -> None:
    with SSEServer(JSON) as server:
        response = client.request(method, server.url)
        assert server.requests[0].method == method
        assert response.content == (b"" if method == "HEAD" else b'{"a": [1, 2]}')


@pytest.mark.own_transport  # h11 sends two equal lengths as one.
@pytest.mark.parametrize(
    "headers",
    [
        [("Host", "a"), ("Host", "b")],
        [("Content-Length", "6, 6")],
        [("Content-Length", "6"), ("Content-Length", "6")],
    ],
)
def test_request_with_two_hosts_or_lengths_is_refused(package: Any, client: Any, headers: Any) -> None:
    with SSEServer(JSON) as server:
        # The second on a reused connection, if the first leaves one.
        for _ in range(2):
            with pytest.raises(package.LocalProtocolError, match=r"Host|Content-Length"):
                client.post(server.url, headers=headers, content=b"abcdef")
            assert server.requests == []


def test_reason_phrase_that_errors_quote_has_no_control_characters(
    package: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = b"HTTP/1.1 401 \x1b[31mNo\x7f\x07\t!\r\nContent-Length: 0\r\n\r\n"
    with SSEServer([wire(answer)]) as server:
        # The second on a reused connection.
        for _ in range(2):
            response = client.get(server.url)
            assert response.reason_phrase == " [31mNo  \t!"
            with pytest.raises(package.HTTPStatusError) as raised:
                response.raise_for_status()
            assert "\x1b" not in str(raised.value)
    assert "\x1b" not in caplog.text
    assert "[31mNo" in caplog.text


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_ends(client: Any, status: int) -> None:
    with SSEServer([respond(status)]) as server:
        for _ in range(3):
            response = client.get(server.url)
            assert (response.status_code, response.content) == (status, b"")
        assert server.connections == 1


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_every_framing_is_read(client: Any, framing: Any) -> None:
    with SSEServer([respond(framing=framing), raw(b"ab"), raw(b"c")]) as server:
        assert client.get(server.url).content == b"abc"


def test_a_body_of_bytes_is_sent(client: Any) -> None:
    with SSEServer(JSON) as server:
        client.post(server.url, content=b"x" * 1_000_000)
        [request] = server.requests
        assert request.body == b"x" * 1_000_000
        assert request.headers["content-length"] == "1000000"


def test_an_iterator_is_run_in_the_callers_thread(client: Any) -> None:
    ran_in: set[int] = set()

    def parts() -> Iterator[bytes]:
        for number in range(1000):
            ran_in.add(threading.get_ident())
            yield b"%d," % number
            yield b""

    with SSEServer(JSON) as server:
        assert client.post(server.url, content=parts()).json() == {"a": [1, 2]}
        assert server.requests[0].body == b"".join(b"%d," % number for number in range(1000))
    assert ran_in == {threading.get_ident()}


def test_an_iterator_of_known_length_is_sent_with_its_length(client: Any) -> None:
    with SSEServer(JSON) as server:
        client.post(server.url, content=iter([b"abc", b"def"]), headers={"Content-Length": "6"})
        assert server.requests[0].body == b"abcdef"
        assert "transfer-encoding" not in server.requests[0].headers


@pytest.mark.own_transport
def test_a_body_of_another_length_than_announced_is_refused(package: Any, client: Any) -> None:
    with SSEServer(JSON) as server, pytest.raises(package.LocalProtocolError):
        client.post(server.url, content=iter([b"abc"]), headers={"Content-Length": "6"})


def test_a_multipart_form_is_sent(client: Any) -> None:
    with SSEServer(JSON) as server:
        client.post(server.url, data={"name": "value"}, files={"file": ("a.txt", b"content" * 1000, "text/plain")})
        [request] = server.requests
        assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert b'name="file"; filename="a.txt"' in request.body
        assert b"content" * 1000 in request.body


def test_an_error_of_an_iterator_reaches_the_caller(client: Any) -> None:
    def parts() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    with SSEServer(JSON) as server:
        with pytest.raises(ZeroDivisionError):
            client.post(server.url, content=parts())
        assert client.get(server.url).json() == {"a": [1, 2]}


def test_redirects_cookies_and_auth_are_the_clients(client: Any) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/start":
            return [respond(302, {"Location": "/end", "Set-Cookie": "a=1"})]
        return JSON

    with SSEServer(script) as server:
        response = client.get(f"{server.url}/start", auth=("me", "secret"), follow_redirects=True)
        assert [each.status_code for each in response.history] == [302]
        first, second = server.requests
        assert first.headers["authorization"].startswith("Basic ")
        assert second.headers["cookie"] == "a=1"
        assert client.cookies["a"] == "1"
        # Another client on the bridge has no cookie.
        assert "cookie" not in _last_headers(server, httpx.Client(transport=BridgeTransport()))


def _last_headers(server: SSEServer, client: httpx.Client) -> dict[str, str]:
    with client:
        client.get(server.url)
    return server.requests[-1].headers


def test_the_client_decompresses(client: Any) -> None:
    body = gzip.compress(b"abc" * 1000)
    with SSEServer([respond(headers={"Content-Encoding": "gzip"}), raw(body)]) as server:
        assert client.get(server.url).content == b"abc" * 1000
        with client.stream("GET", server.url) as response:
            assert b"".join(response.iter_raw()) == body


def test_connections_are_reused(client: Any) -> None:
    with SSEServer(JSON) as server:
        for _ in range(5):
            client.post(server.url, json={"n": 1})
        assert server.connections == 1


def test_connections_are_shared_with_request_sse(client: Any) -> None:
    with SSEServer([send("1"), send("[DONE]")]) as server:
        client.get(server.url)
        assert list(request_sse(server.url).events) == [1]
        assert server.connections == 1


def test_an_error_status_is_a_response(package: Any, client: Any) -> None:
    with SSEServer([respond(429, {"Retry-After": "3"}, content_type="application/json"), raw(b"{}")]) as server:
        response = client.get(server.url)
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")
        with pytest.raises(package.HTTPStatusError):
            response.raise_for_status()


def test_a_refused_connection(package: Any, client: Any, closed_port: int) -> None:
    with pytest.raises(package.ConnectError) as caught:
        client.get(f"http://127.0.0.1:{closed_port}")
    assert type(caught.value) is package.ConnectError
    assert caught.value.request.url.port == closed_port


def test_an_untrusted_certificate(
    package: Any, client: Any, new_client: NewClient, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    with SSEServer(JSON, ssl_context=server_tls) as server:
        with pytest.raises(package.ConnectError, match="certificate"):
            client.get(server.url)
        assert new_client(verify=client_tls).get(server.url).json() == {"a": [1, 2]}


def test_a_context_has_connections_of_its_own(
    new_client: NewClient, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    one, other = new_client(verify=client_tls), new_client(verify=client_tls)
    with SSEServer(JSON, ssl_context=server_tls) as server:
        for _ in range(3):
            one.get(server.url)
        assert server.connections == 1
        other.get(server.url)
        assert server.connections == 2
        before = Bridge.default().stats().connections
        other.close()
        until(lambda: Bridge.default().stats().connections < before)
        one.get(server.url)
        assert server.connections == 2


def test_connections_of_a_dropped_transport_are_closed(
    package: Any, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    with SSEServer(JSON, ssl_context=server_tls) as server:
        before = Bridge.default().stats().connections
        transport = BridgeTransport(verify=client_tls)
        transport.handle_request(package.Request("GET", server.url)).read()
        assert Bridge.default().stats().connections == before + 1
        del transport
        until(lambda: Bridge.default().stats().connections == before)


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ([wire(b""), cut()], "RemoteProtocolError"),
        ([wire(b"nonsense\r\n\r\n")], "RemoteProtocolError"),
        ([reset()], "ReadError"),
        ([send("1"), cut()], "RemoteProtocolError"),
        ([respond(length=10), raw(b"abc"), cut()], "RemoteProtocolError"),
        ([respond(framing="none", headers={"Transfer-Encoding": "chunked"}), wire(b"xyz\r\n")], "RemoteProtocolError"),
    ],
)
def test_a_broken_answer(package: Any, client: Any, steps: list[Step], error: str) -> None:
    with SSEServer(steps) as server:
        with pytest.raises(getattr(package, error)) as caught:
            client.get(server.url)
        assert type(caught.value) is getattr(package, error)
        assert caught.value.request.url == server.url


def test_bytes_before_a_cut_arrive(package: Any, client: Any) -> None:
    with SSEServer([send("1"), send("2"), cut()]) as server, client.stream("GET", server.url) as response:
        received = b""
        with pytest.raises(package.RemoteProtocolError):
            for chunk in response.iter_raw():
                received += chunk
        assert received == b"data: 1\n\ndata: 2\n\n"


@pytest.mark.own_transport
def test_get_on_a_connection_closed_by_the_server_is_repeated(client: Any) -> None:
    with SSEServer(in_turn(JSON, [cut()], JSON)) as server:
        for _ in range(2):
            assert client.get(server.url).json() == {"a": [1, 2]}


@pytest.mark.slow
def test_memory_is_bounded(client: Any) -> None:
    with SSEServer([send("x" * 10_000)] * 5_000) as server, client.stream("GET", server.url) as response:
        chunks = response.iter_raw()
        received = 0
        # Reads until much is held: while other streams are open, or have just ended, the share of memory is smaller.
        while Bridge.default().stats().buffered <= 500_000:
            received += len(next(chunks))
            time.sleep(0.001)
        assert Bridge.default().stats().buffered <= 1024 * 1024 + 256 * 1024
        assert server.requests[0].sent_bytes < 40_000_000
        assert received + sum(map(len, chunks)) > 49_000_000


@pytest.mark.slow
def test_a_hundred_threads_share_a_client(new_client: NewClient) -> None:
    client = new_client()
    go_on = threading.Event()
    with SSEServer([send("1"), hold(go_on), send("2")]) as server:
        asking = [in_thread(partial(client.get, f"{server.url}/{number}")) for number in range(100)]
        server.wait_for_request(100)
        assert Bridge.default().stats().open_streams == 100
        go_on.set()
        assert {future.result(30).text for future in asking} == {"data: 1\n\ndata: 2\n\n"}
        assert len({request.path for request in server.requests}) == 100


@pytest.mark.blocks_its_loop
def test_on_the_loops_thread_a_request_is_refused() -> None:
    client = httpx.Client(transport=BridgeTransport())
    errors: list[UsageError] = []
    read = threading.Event()

    class Flag:
        """A cancel flag that blocks: its is_set() runs on the loop."""

        def is_set(self) -> bool:
            if threading.current_thread() is not threading.main_thread():
                try:
                    client.get(server.url)
                except UsageError as error:
                    errors.append(error)
            # Not before the headers and the event were received.
            return bool(errors) and read.is_set()

    with SSEServer([send("1"), hold(threading.Event())]) as server, client:
        _, _, events = request_sse(server.url, cancel=Flag())
        assert next(events) == 1
        read.set()
        assert list(events) == []
    assert "own thread" in str(errors[0])


@pytest.mark.blocks_its_loop
def test_in_a_coroutine_a_request_warns(package: Any, client: Any) -> None:
    with SSEServer(JSON) as server:

        async def main() -> Any:
            return client.get(server.url)

        with pytest.warns(RuntimeWarning, match="blocks the event loop"):
            assert asyncio.run(main()).json() == {"a": [1, 2]}


def test_a_client_of_the_callers_sends_the_request(package: Any, new_client: NewClient) -> None:
    made: list[Any] = []

    def factory() -> Any:
        made.append(package.AsyncClient(headers={"X-Not-Sent": "1"}))
        return made[-1]

    with Bridge(client=factory) as bridge, SSEServer(JSON) as server:
        client = new_client(bridge=bridge)
        for _ in range(3):
            assert client.post(server.url, content=iter([b"a", b"b"])).json() == {"a": [1, 2]}
        assert [request.body for request in server.requests] == [b"ab"] * 3
        assert "x-not-sent" not in server.requests[0].headers
        assert server.connections == 1
        assert len(made) == 1


@pytest.mark.parametrize("inner", ["httpx", "httpx2"])
def test_a_client_of_the_other_package_can_send_the_request(
    package: Any, new_client: NewClient, inner: str
) -> None:
    with (
        Bridge(client=import_module(inner).AsyncClient) as bridge,
        SSEServer(in_turn(JSON, [send("1"), cut()], [respond(), hold(threading.Event())])) as server,
    ):
        client = new_client(bridge=bridge)
        response = client.post(server.url, json={"a": 1}, auth=("me", "secret"))
        assert isinstance(response, package.Response)
        assert server.requests[0].headers["authorization"].startswith("Basic ")
        with pytest.raises(package.RemoteProtocolError):
            client.get(server.url)
        with client.stream("GET", server.url) as response:
            reading = in_thread(response.read)
            server.wait_for_request(3)
            response.close()
            assert type(reading.exception(30)) in (package.ReadError, package.StreamClosed)
        server.requests[2].wait_aborted()


def test_a_trace_of_the_request_is_called(package: Any, client: Any) -> None:
    events: list[str] = []
    with SSEServer(JSON) as server:
        client.get(server.url, extensions={"trace": lambda name, info: events.append(name)})
    assert "http11.send_request_headers.started" in events


@pytest.mark.parametrize(
    ("previous", "newest", "is_end"),
    [
        (b"", b"data: 1\n\ndata: [DONE]\n\n", True),
        (b"", b"data: [DONE]\n\n", True),
        (b"data: [DO", b"NE]\r\n\r\n", True),
        (b"data: [DONE]\n", b"\n", True),
        (b"event: message_stop\ndata: {}", b"\n\n", True),
        (b"", b'data: 1\r\n\r\nevent: response.completed\r\ndata: {"a":\r\ndata: 1}\r\n\r\n', True),
        (b"", b"event: response.failed\rdata: {}\r\r", True),
        (b"", b"", False),
        (b"", b"data: [DONE]\n", False),
        (b"", b"data: x[DONE]\n\n", False),
        (b"", b"xdata: [DONE]\n\n", False),
        (b"", b"event: message_stop\ndata: {}\n", False),
        (b"", b"event: message_stop\ndata: {}\n\ndata: 1\n\n", False),
        (b"", b"event: message_stopped\ndata: {}\n\n", False),
        (b"data: [DONE]\n\n", b"data: 1\n\n", False),
    ],
)
def test_last_events_are_recognized(previous: bytes, newest: bytes, is_end: bool) -> None:
    assert ends_stream(previous, newest) is is_end
