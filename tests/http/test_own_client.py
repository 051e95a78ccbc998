"""Streams, credentials and cookies over the library's own client."""

from __future__ import annotations

import base64
import gc
import socket
import ssl
import threading
import time
import weakref

import httpx
import pytest

from sseqbridge import Bridge, StreamTimeoutError, TruncatedStreamError, request_sse
from sseqbridge._http import client as http_client
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, comment, hold, in_turn, respond, send, silence
from tests.requesters import Requester
from tests.support import in_thread, subscription_of, until

from .upstream import DONE, Run, new_client


def test_finished_stream_leaves_no_reference_cycle(ask_fresh: Requester) -> None:
    with SSEServer([send(1), DONE]) as server:
        assert ask_fresh(server.url).items() == [1]
        gc.collect()
        gc.disable()
        try:
            response = ask_fresh(server.url)
            assert response.items() == [1]
            connection = weakref.ref(subscription_of(response.events).exchange)
            del response
            until(lambda: connection() is None)
        finally:
            gc.enable()


def credentials(request: ReceivedRequest) -> str:
    scheme, _, token = request.headers["authorization"].partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(token).decode()


@pytest.mark.parametrize("how", ["url", "auth"])
def test_credentials_are_sent(ask: Requester, how: str) -> None:
    with SSEServer([send(1), DONE]) as server:
        url = server.url.replace("://", "://user:pa%2Fss@") if how == "url" else server.url
        auth = None if how == "url" else ("user", "pa/ss")
        assert ask(url, auth=auth).items() == [1]
        assert credentials(server.requests[0]) == "user:pa/ss"
        assert ask(server.url).items() == [1]
        assert "authorization" not in server.requests[1].headers


def test_digest_auth_reuses_the_connection(run: Run) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if "authorization" in request.headers:
            return [send(1), DONE]
        challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
        return [respond(401, {"WWW-Authenticate": challenge}, content_type=None), b"who are you?"]

    async def main() -> None:
        async with new_client() as client:
            response = await client.post(server.url, content=b"body", auth=httpx.DigestAuth("user", "pass"))
            assert response.status_code == 200

    with SSEServer(script) as server:
        run(main)
        assert [request.body for request in server.requests] == [b"body", b"body"]
        assert server.connections == 1


def test_cookies_of_responses_are_not_kept(ask: Requester) -> None:
    with SSEServer([respond(headers={"Set-Cookie": "a=1; Path=/"}), send(1), DONE]) as server:
        for auth in (None, ("user", "pass"), None):
            assert ask(server.url, auth=auth).items() == [1]
        assert ["cookie" in request.headers for request in server.requests] == [False] * 3


@pytest.mark.slow
def test_total_timeout_ignores_earlier_idle_time_of_the_loop(ask_fresh: Requester) -> None:
    """uvloop's clock does not advance while the loop waits."""
    with SSEServer(in_turn([send(1), DONE], [silence()])) as server:
        assert ask_fresh(server.url).items() == [1]
        time.sleep(0.3)
        for _ in range(2):
            # If the idle time counted, the limit would be exceeded at once.
            began = time.monotonic()
            with pytest.raises(StreamTimeoutError):
                ask_fresh(server.url, timeout={"total": 0.2})
            assert time.monotonic() - began >= 0.1


def test_response_of_another_status_releases_its_connection(ask_fresh: Requester) -> None:
    with SSEServer([respond(503, content_type="text/plain"), b"busy"]) as server:
        for _ in range(5):
            response = ask_fresh(server.url)
            assert (response.status, response.items()) == (503, ["busy"])
        assert server.connections == 1


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_stream_under_backpressure_delivers_every_event(
    ask_fresh: Requester,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    secure: bool,
) -> None:
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    text = "x" * 1000
    with (
        SSEServer([*[send(text)] * 2000, DONE], ssl_context=server_tls if secure else None) as server,
        ask_fresh(server.url, decode="text", max_buffered_bytes=10_000) as response,
    ):
        assert response.next() == text
        assert response.items() == [text] * 1999


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("framing", ["chunked", "sized", "unbounded"])
def test_no_event_is_lost_if_the_server_closes_early(
    ask_fresh: Requester,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    framing: str,
    secure: bool,
) -> None:
    """The connection ends, without close-notify, while bytes before its end wait for backpressure."""
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    body = b"".join(b"data: %d %b\n\n" % (n, b"x" * 500) for n in range(1000))
    heads = {"chunked": b"Transfer-Encoding: chunked", "sized": b"Content-Length: %d" % len(body), "unbounded": b"A: b"}
    if framing == "chunked":
        pieces = [body[at : at + 4000] for at in range(0, len(body), 4000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % heads[framing]

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if secure:
            connection = server_tls.wrap_socket(connection, server_side=True)
        with connection:
            connection.settimeout(30)
            connection.recv(65_536)
            connection.sendall(head + body)
        left.set()

    left = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: serve(listener))
        url = f"http{'s' * secure}://127.0.0.1:{listener.getsockname()[1]}/"
        with ask_fresh(url, decode="text", max_buffered_bytes=20_000) as response:
            got = [response.next() for _ in range(100)]
            while not left.is_set():
                got.append(response.next())
                time.sleep(0.001)
            if secure and framing == "unbounded":
                # Without its close-notify, TLS cannot tell this end from a cut.
                rest, error = response.fail()
                assert type(error) is TruncatedStreamError
                got += rest
            else:
                got += response.items()
        serving.result(30)
    assert [int(item.partition(" ")[0]) for item in got] == list(range(1000))


@pytest.mark.parametrize("is_own", [True, False])
def test_bytes_after_the_end_event_are_drained(is_own: bool) -> None:
    seen, over = threading.Event(), threading.Event()
    script = [send(1), DONE, hold(seen), *[comment("after the end")] * 20, hold(over)]
    with SSEServer(script) as server, Bridge(client=None if is_own else httpx.AsyncClient) as bridge:
        for _ in range(2):
            seen.clear()
            over.clear()
            assert list(request_sse(server.url, bridge=bridge).events) == [1]
            seen.set()
            # Some bytes arrive before the end of the body.
            until(lambda: server.requests[-1].sent_bytes > 20 * len(": after the end\n"))
            over.set()
            until(lambda: repr(bridge) == "<Bridge open streams=0>")
        assert server.connections == 1


def test_events_between_close_and_abort_are_dropped(ask_fresh: Requester) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), send(3), silence()]) as server, ask_fresh(server.url) as response:
        assert response.next() == 1
        reader_of(response.events).cursor.channel.close()
        go.set()
        ask_fresh.run_blocking(until, lambda: response.events.stats.events == 3)
        assert response.items() == []
        assert response.events.stats.buffered <= 1000
