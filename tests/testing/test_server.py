"""SSEServer: start, close, address, TLS, and the errors of scripts."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator

import httpx
import pytest

from sseqbridge._exceptions import UsageError
from sseqbridge.testing import (
    ReceivedRequest,
    Script,
    SSEServer,
    Step,
    _server,
    cut,
    raw,
    reset,
    respond,
    send,
    silence,
)
from tests.support import in_thread, until

from .clients import GET, WAITS, connect, read_to_end, read_until


def test_wait_for_request_times_out() -> None:
    with SSEServer([]) as server:
        httpx.get(server.url)
        assert server.wait_for_request(1) is server.requests[0]
        with pytest.raises(TimeoutError, match=r"1 of 2 requests arrived within 0\.01 s"):
            server.wait_for_request(2, timeout=0.01)


def test_wait_for_request_waits_for_the_body() -> None:
    with SSEServer([]) as server, connect(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n") as client:
        until(lambda: server.connections == 1)
        waiting = in_thread(server.wait_for_request)
        assert server.requests == []
        client.sendall(b"ok")
        assert waiting.result(30).body == b"ok"


def test_server_starts_once_and_has_no_address_before() -> None:
    server = SSEServer([])
    with pytest.raises(UsageError, match="before start"):
        _ = server.url
    server.close()
    with server:
        url = server.url
        with pytest.raises(UsageError, match="only once"):
            server.start()
    assert server.url == url
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_address_can_be_chosen_or_in_use() -> None:
    with SSEServer([send("a")]) as server:
        port = httpx.URL(server.url).port
        assert port is not None
        httpx.get(server.url)
        with pytest.raises(OSError, match="in use"):
            SSEServer([], port=port).start()
    with SSEServer([send("b")], host="localhost", port=port) as server:
        assert httpx.get(f"http://127.0.0.1:{port}").text == "data: b\n\n"


def test_close_waits_for_no_client(server_context: ssl.SSLContext) -> None:
    scripts = [steps() for steps in WAITS.values()]
    turns = iter(scripts)
    servers = [
        SSEServer(lambda request: next(turns, [silence()])).start(),
        SSEServer([respond(framing="close"), b"x" * 10_000_000]).start(),
        SSEServer([], ssl_context=server_context).start(),
    ]
    with contextlib.ExitStack() as clients:
        for n in range(len(scripts)):
            clients.enter_context(connect(servers[0]))
            servers[0].wait_for_request(n + 1)
        for server in servers:
            for sent in (b"", b"GET / HT", GET):
                clients.enter_context(connect(server, sent))
        for server in servers:
            server.close()
    assert all(request.finished.is_set() for server in servers for request in server.requests)
    assert "SSEServer" not in [thread.name for thread in threading.enumerate()]


def test_close_aborts_connections_without_marking_requests_aborted() -> None:
    server = SSEServer([send("x"), silence()]).start()
    with connect(server) as client:
        read_until(client, b"\n\n\r\n")
        server.close()
        assert client.recv(1) == b""
    assert server.requests[0].finished.is_set()
    assert not server.requests[0].aborted.is_set()


def test_script_that_blocks_the_thread_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = threading.Event()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        flag.wait()
        yield cut()

    server = SSEServer(script).start()
    with connect(server):
        server.wait_for_request()
        monkeypatch.setattr(_server, "_JOIN_SECONDS", 0.01)
        with pytest.raises(TimeoutError, match="a script blocks the server's thread"):
            server.close()
    flag.set()
    monkeypatch.undo()
    server.close()


def test_tls_connections_are_served(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    with SSEServer([send("x")], ssl_context=server_context) as server, httpx.Client(verify=client_context) as client:
        assert server.url.startswith("https://127.0.0.1:")
        for _ in range(2):
            assert client.get(server.url).text == "data: x\n\n"
        assert server.connections == 1


@pytest.mark.parametrize("last", [cut(), reset()])
def test_cut_and_reset_work_under_tls(
    last: Step, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    with SSEServer([raw(b"x"), last], ssl_context=server_context) as server:
        client = client_context.wrap_socket(
            connect(server, b""), server_hostname="127.0.0.1", suppress_ragged_eofs=False
        )
        with client:
            client.sendall(GET)
            read_until(client, b"x\r\n")
            if last == cut():
                assert client.recv(1) == b""
            else:
                # Python before 3.12.3 takes an RST under TLS for an EOF without a close_notify.
                with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                    client.recv(1)


def test_failed_handshake_does_no_harm(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    with SSEServer([send("x")], ssl_context=server_context) as server:
        with connect(server) as client:
            read_to_end(client)
        assert httpx.get(server.url, verify=client_context).text == "data: x\n\n"
        assert server.connections == 2


# Scripts that raise.


class BrokenError(Exception):
    pass


def broken_at_once(request: ReceivedRequest) -> Iterator[Step]:
    raise BrokenError


def broken_midway(request: ReceivedRequest) -> Iterator[Step]:
    yield respond()
    raise BrokenError


def exits(request: ReceivedRequest) -> Iterator[Step]:
    yield respond()
    raise SystemExit


def yields_no_step(request: ReceivedRequest) -> Iterator[Step]:
    yield "data: x\n\n"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (broken_at_once, BrokenError),
        (broken_midway, BrokenError),
        (exits, SystemExit),
        (yields_no_step, UsageError),
        ([respond(), respond()], UsageError),
        ([send("x"), respond()], UsageError),
        ([respond(headers={"x": "\u2603"})], UnicodeEncodeError),
    ],
)
def test_error_of_a_script_is_raised_by_close(script: Script | list[Step], error: type[BaseException]) -> None:
    server = SSEServer(script).start()
    with connect(server) as client, pytest.raises(ConnectionResetError):
        read_to_end(client)
    assert server.requests[0].finished.wait(30)
    assert not server.requests[0].aborted.is_set()
    with pytest.raises(error):
        server.close()
    server.close()


def test_scripts_error_is_the_context_of_the_tests() -> None:
    with pytest.raises(BrokenError) as raised, SSEServer(broken_midway) as server:
        httpx.get(server.url)
    assert isinstance(raised.value.__context__, httpx.TransportError)


def test_error_of_an_aborted_script_is_raised_by_close() -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        try:
            yield silence()
        finally:
            raise BrokenError

    server = SSEServer(script).start()
    connect(server).close()
    assert server.wait_for_request().wait_aborted()
    with pytest.raises(BrokenError):
        server.close()
