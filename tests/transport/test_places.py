"""Proxies, HTTP/2, forks and gevent."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from sseqbridge import Bridge
from sseqbridge._http import client as http_client
from sseqbridge._runtime import fork
from sseqbridge.testing import SSEServer, raw, respond, send, silence, wire
from tests.support import in_thread, is_waiting, python, until
from tests.transport.exchanges import exchange_of

NewClient = Callable[..., Any]
JSON = [respond(framing="length", content_type="application/json"), raw(b"[1]")]


def test_a_proxy_of_the_environment_is_used(
    package: Any, monkeypatch: pytest.MonkeyPatch, new_client: NewClient
) -> None:
    with SSEServer(JSON) as proxy, SSEServer(JSON) as exempt:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", exempt.url.removeprefix("http://"))
        with Bridge() as bridge:
            client = new_client(bridge=bridge)
            assert client.get("http://upstream.test/path").json() == [1]
            assert proxy.requests[0].path == "http://upstream.test/path"
            assert client.get(exempt.url).json() == [1]
            assert len(proxy.requests) == len(exempt.requests) == 1


def test_closing_a_response_of_a_proxy_frees_its_reader(
    package: Any, monkeypatch: pytest.MonkeyPatch, new_client: NewClient
) -> None:
    with SSEServer([send("1"), silence()]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Bridge() as bridge, new_client(bridge=bridge).stream("GET", "http://upstream.test") as response:
            reading = in_thread(response.read)
            until(lambda: is_waiting(reading))
            response.close()
            assert type(reading.exception(30)) is package.ReadError
            proxy.requests[0].wait_aborted()


@pytest.mark.parametrize(
    ("name", "value", "url"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9", "http://upstream.test"),
        ("HTTPS_PROXY", "nonsense://", "https://upstream.test"),
        ("SSL_CERT_FILE", "/does/not/exist", "https://127.0.0.1:9"),
    ],
)
def test_unusable_environment_setting_raises_the_packages_error(
    package: Any, monkeypatch: pytest.MonkeyPatch, new_client: NewClient, name: str, value: str, url: str
) -> None:
    monkeypatch.setattr(http_client, "_tls_context", None)
    monkeypatch.setenv(name, value)
    with Bridge() as bridge:
        with pytest.raises(package.ConnectError, match=f"`{name}` must") as caught:
            new_client(bridge=bridge).get(url)
        assert type(caught.value) is package.ConnectError
        assert caught.value.request.url == url
        assert repr(bridge) == "<Bridge open streams=0>"


def test_a_refusal_of_a_proxy_is_quoted_without_control_characters(
    package: Any, monkeypatch: pytest.MonkeyPatch, new_client: NewClient
) -> None:
    refusal = b"HTTP/1.1 407 \x1b[31mProxy\x07 Auth\r\nContent-Length: 0\r\n\r\n"
    with SSEServer([wire(refusal)]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with Bridge() as bridge, pytest.raises(package.ProxyError) as caught:
            new_client(bridge=bridge).get("https://upstream.test")
        assert str(caught.value) == "407  [31mProxy  Auth"


@pytest.mark.slow
def test_a_child_of_a_fork_leaves_a_response_alone() -> None:
    status, out, err = python(
        """if True:
        import os, threading, warnings
        import httpx
        from sseqbridge import BridgeTransport, UsageError
        from sseqbridge.testing import SSEServer, hold, send
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads

        go_on = threading.Event()
        parent = [send("1"), hold(go_on), send("2")]
        with SSEServer(lambda request: parent if request.path == "/" else [send("3")]) as server:
            transport = BridgeTransport()
            client = httpx.Client(transport=transport, timeout=30)
            response = client.send(client.build_request("GET", server.url), stream=True)
            lines = response.iter_lines()
            print(next(lines), flush=True)
            pid = os.fork()
            if not pid:
                try:
                    list(lines)
                except UsageError:
                    print("refused", flush=True)
                response.close()
                print(client.get(server.url + "/child").text.strip(), flush=True)
                client.close()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            go_on.set()
            print([line for line in lines if line], flush=True)
        """
    )
    assert (status, err) == (0, "")
    assert out.splitlines() == ["data: 1", "refused", "data: 3", "['data: 2']"]


def test_closing_in_a_forked_child_neither_waits_nor_aborts(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A different process token stands for the child."""
    with SSEServer([send("1"), silence()]) as server, client.stream("GET", server.url) as response:
        exchange = exchange_of(response)
        with monkeypatch.context() as patch:
            patch.setattr(fork, "process_token", lambda: ("child", 1))
            response.stream.close()
        assert not exchange.channel.closed
        assert not server.requests[0].aborted.is_set()
        assert next(response.iter_lines()) == "data: 1"


@pytest.mark.gevent
def test_greenlets_wait_side_by_side() -> None:
    with SSEServer(lambda request: JSON if request.path == "/json" else [send("1"), silence()]) as server:
        status, out, err = python(
            """if True:
            from gevent import monkey
            monkey.patch_all()
            import gevent, sys, httpx
            from sseqbridge import BridgeTransport

            client = httpx.Client(transport=BridgeTransport(), timeout=None)
            url = sys.argv[1]
            response = client.send(client.build_request("GET", url), stream=True)

            def read():
                try:
                    response.read()
                except httpx.ReadError:
                    return "aborted"

            reading = [gevent.spawn(read)]
            asking = [gevent.spawn(client.post, url + "/json", content=iter([b"a", b"b"])) for _ in range(20)]
            gevent.joinall(asking, raise_error=True)
            print({each.value.text for each in asking})
            response.close()
            gevent.joinall(reading, timeout=90)
            print(reading[0].value)
            """,
            server.url,
        )
        assert (status, err) == (0, "")
        assert out.splitlines() == ["{'[1]'}", "aborted"]
        assert sum(request.body == b"ab" for request in server.requests) == 20


@pytest.mark.own_transport
def test_an_early_answer_ends_the_sending(client: Any) -> None:
    sent = 0

    def parts() -> Any:
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b"x" * 10_000

    with EarlyServer() as url:
        response = client.post(url, content=parts())
    assert (response.status_code, response.text) == (413, "too large")
    assert sent < 10_000


class EarlyServer:
    """A server that answers as soon as it has received the head of a request, and reads no body."""

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._future = in_thread(self._serve)
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        self._connection = connection
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")

    def __exit__(self, *exc_info: object) -> None:
        self._future.result(30)
        self._connection.close()
        self._listener.close()
