"""Requests on a reused connection run in callbacks: each response, error and end is as on a new connection."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, BridgeTransport, cancel_on
from sseqbridge._http.client import ClientPool
from sseqbridge._http.forwarded import ForwardedRequest
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, raw, respond, send, silence
from tests.clock import FakeClock
from tests.engine.byte_server import ByteServer, Pieces
from tests.support import HAS_OWN_TRANSPORT, in_thread, is_waiting, until
from tests.transport.exchanges import exchange_of

pytestmark = pytest.mark.configurations("default", "plain")

NewClient = Callable[..., Any]

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
PACKED = gzip.compress(b"abc" * 1_000)
LONG = b"x" * 400_000


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


RESPONSES: dict[str, Pieces] = {
    "one write": [SHORT],
    "each byte alone": [SHORT[at : at + 1] for at in range(len(SHORT))],
    "head alone": [SHORT[:-3], SHORT[-3:]],
    "chunks": [CHUNKED + chunk(b"ab") + chunk(b"c") + LAST],
    "chunk by chunk": [CHUNKED, chunk(b"ab"), chunk(b"c"), LAST],
    "long": [b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n" + LONG],
    "long in chunks": [CHUNKED + chunk(LONG[:200_000]), chunk(LONG[200_000:]) + LAST],
    "until the end": [b"HTTP/1.1 200 OK\r\n\r\nabc", None],
    "close": [SHORT.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), None],
    "HTTP/1.0": [SHORT.replace(b"HTTP/1.1", b"HTTP/1.0")],
    "no content": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "redirect": [b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"],
    "refused": [b"HTTP/1.1 429 Slow Down\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"],
    "unauthorized": [b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n"],
    "gzip": [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(PACKED), PACKED)],
    "interim responses": [INTERIM * 100 + SHORT],
    "too many interim responses": [INTERIM * 101 + SHORT],
    "switch of protocols": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"],
    "head too long": [b"HTTP/1.1 200 OK\r\nA: " + b"a" * 110_000],
    "no status line": [b"hello\r\n\r\n"],
    "bad chunk": [CHUNKED + chunk(b"ab") + b"zz\r\n"],
    "cut off": [CHUNKED + chunk(b"ab") + b"5\r\nab", None],
    "cut off in the head": [CHUNKED[:30], None],
}
if HAS_OWN_TRANSPORT:
    # httpx's transport reads them as the next response.
    RESPONSES["bytes after the body"] = [SHORT + b"HTTP/1.1 200 OK\r\n\r\n"]


def outcome_of(client: Any, url: str) -> Any:
    """Return everything that a caller can notice of a request."""
    try:
        with client.stream("GET", url) as response:
            facts = response.status_code, response.reason_phrase, response.http_version, response.headers.raw
            parts: list[bytes] = []
            try:
                parts.extend(response.iter_raw())
            except Exception as exc:
                return facts, type(exc), str(exc)
            return facts, b"".join(parts)
    except Exception as exc:
        return type(exc), str(exc)


@pytest.mark.parametrize("name", RESPONSES)
def test_responses_are_read_as_on_a_new_connection(new_client: NewClient, name: str) -> None:
    response = RESPONSES[name]
    with ByteServer(response) as server:
        expected = outcome_of(new_client(), server.url)
    client = new_client()
    with ByteServer([SHORT], response, [SHORT]) as server:
        assert client.get(server.url).content == b"abc"
        assert outcome_of(client, server.url) == expected
        # Nothing of the response may be read as the next one.
        assert client.get(server.url).content == b"abc"


@pytest.mark.own_transport
@pytest.mark.parametrize("body", [b"", b"abc"], ids=["GET", "POST"])
def test_only_the_first_request_needs_a_task(client: Any, body: bytes) -> None:
    with SSEServer([respond(framing="length"), raw(b"abc")]) as server:
        for number in range(4):
            with client.stream("POST" if body else "GET", server.url, content=body or None) as response:
                assert response.read() == b"abc"
                exchange = exchange_of(response)
                assert (exchange.task is None) == (number > 0)
            assert exchange.finished
            assert server.requests[number].body == body
            assert server.requests[number].connection == server.requests[0].connection


LARGE = b"a" * 65_000


@pytest.mark.own_transport
@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "NTLM abc"}},
        {"headers": {"Connection": "close"}},
        {"headers": {"Transfer-Encoding": "chunked"}, "content": b"abc"},
        {"content": iter([b"abc"])},
        {"content": LARGE},
        {"extensions": {"target": b"/other"}},
    ],
    ids=["NTLM", "close", "chunked", "iterator", "large body", "target"],
)
def test_other_requests_need_a_task(client: Any, options: dict[str, Any]) -> None:
    with SSEServer([respond(framing="length"), raw(b"abc")]) as server:
        client.get(server.url)
        with client.stream("POST", server.url, **options) as response:
            assert response.read() == b"abc"
            assert exchange_of(response).task is not None


@pytest.mark.own_transport
def test_a_handler_of_log_records_runs_in_a_task(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sseqbridge")
    with SSEServer([respond(framing="length"), raw(b"abc")]) as server:
        for _ in range(2):
            with client.stream("GET", server.url) as response:
                assert exchange_of(response).task is not None
        assert len([record for record in caplog.records if "200" in record.getMessage()]) == 2


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "1"}, {"X-A": "a\nb"}], ids=["wrong length", "header that cannot be sent"]
)
def test_an_invalid_request_is_refused_on_a_reused_connection(
    package: Any, client: Any, headers: dict[str, str]
) -> None:
    with SSEServer([respond(framing="length"), raw(b"abc")]) as server:
        client.get(server.url)
        with pytest.raises(package.LocalProtocolError):
            client.post(server.url, headers=headers, content=b"abc")
        assert client.get(server.url).content == b"abc"
        assert len(server.requests) == 2


@pytest.mark.parametrize("timeout", [None, {"read": "1"}], ids=["None", "str"])
def test_invalid_timeouts_are_an_error_on_a_reused_connection(package: Any, timeout: Any) -> None:
    with SSEServer([respond(framing="length"), raw(b"abc")]) as server, Bridge() as bridge:
        transport = BridgeTransport(bridge=bridge)
        transport.handle_request(package.Request("GET", server.url)).read()
        with pytest.raises((AttributeError, TypeError)):
            transport.handle_request(package.Request("GET", server.url, extensions={"timeout": timeout}))
        transport.handle_request(package.Request("GET", server.url)).read()
        # None is left open besides the one that is idle.
        assert bridge.stats().connections == 1


@pytest.mark.own_transport
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_safe_requests_are_resent_after_their_connection_was_closed(
    package: Any, client: Any, method: str
) -> None:
    with ByteServer([SHORT], [None], [SHORT]) as server:
        assert client.request(method, server.url).content == b"abc"
        if method == "GET":
            assert client.request(method, server.url).content == b"abc"
            assert len(server.requests) == 3
        else:
            with pytest.raises(package.RemoteProtocolError, match="closed"):
                client.request(method, server.url)
            assert len(server.requests) == 2


@pytest.mark.own_transport
def test_a_safe_request_is_sent_again_once(client: Any) -> None:
    both_open = threading.Event()
    late: Pieces = [SHORT[:-3], both_open, SHORT[-3:]]
    with ByteServer(late, late, [None], [SHORT]) as server:
        readings = [in_thread(lambda: client.get(server.url).content) for _ in range(2)]
        until(lambda: len(server.requests) == 2)
        both_open.set()
        assert [reading.result(30) for reading in readings] == [b"abc", b"abc"]
        # One of two idle connections fails; the other one would, too.
        assert client.get(server.url).content == b"abc"
        assert (server.connections, len(server.requests)) == (3, 4)


def test_the_read_limit_ends_the_wait_for_a_head(clock: FakeClock, package: Any, new_client: NewClient) -> None:
    client = new_client(timeout=package.Timeout(None, read=30))
    with ByteServer([SHORT], [SHORT[:20]]) as server:
        client.get(server.url)
        with pytest.raises(package.ReadTimeout):
            clock.advance_until_done(partial(client.get, server.url))


@pytest.mark.parametrize("limit", ["read", "idle"])
def test_limits_within_the_body(clock: FakeClock, package: Any, new_client: NewClient, limit: str) -> None:
    timeout = package.Timeout(None, read=30) if limit == "read" else None
    client = new_client(timeout=timeout, idle=30 if limit == "idle" else None)
    with ByteServer([SHORT], [SHORT[:-1]]) as server:
        client.get(server.url)
        with client.stream("GET", server.url) as response:
            parts = response.iter_raw()
            assert next(parts) == b"ab"
            with pytest.raises(package.ReadTimeout):
                clock.advance_until_done(lambda: next(parts))


def silent_after_one(request: ReceivedRequest) -> list[Step]:
    if request.path == "/silent":
        return [send("1"), silence()]
    return [silence()] if request.path == "/nothing" else [respond(framing="length"), raw(b"abc")]


@pytest.mark.parametrize("path", ["/silent", "/nothing"])
@pytest.mark.parametrize("way", ["client", "bridge", "scope"])
def test_an_abort_frees_a_blocked_reader(package: Any, new_client: NewClient, path: str, way: str) -> None:
    flag = threading.Event()

    def read() -> bool:
        with cancel_on(flag) as scope:
            client.get(f"{server.url}{path}")
        return scope.cancelled

    with SSEServer(silent_after_one) as server, Bridge() as bridge:
        client = new_client(bridge=bridge)
        client.get(server.url)
        reading = in_thread(read)
        until(lambda: len(server.requests) == 2 and is_waiting(reading))
        if way == "scope":
            flag.set()
            assert reading.result(30)
        else:
            (client if way == "client" else bridge).close()
            assert type(reading.exception(30)) is package.ReadError
        server.requests[1].wait_aborted()
        assert server.requests[1].connection == server.requests[0].connection or not HAS_OWN_TRANSPORT


@pytest.mark.own_transport
def test_closing_a_response_frees_a_blocked_reader(package: Any, client: Any) -> None:
    with SSEServer(silent_after_one) as server:
        client.get(server.url)
        with client.stream("GET", f"{server.url}/silent") as response:
            reading = in_thread(lambda: list(response.iter_lines()))
            until(lambda: is_waiting(reading))
            response.close()
            assert type(reading.exception(30)) is package.ReadError
            # Not later than close() returned.
            assert exchange_of(response).finished
            assert exchange_of(response).task is None
        server.requests[1].wait_aborted()


@pytest.mark.slow
@pytest.mark.own_transport
def test_a_slow_consumer_holds_the_upstream_back(client: Any) -> None:
    with SSEServer(lambda request: [respond(framing="length"), *[raw(b"x" * 64_000)] * 375]) as server:
        client.get(server.url)
        with client.stream("GET", server.url) as response:
            parts = response.iter_raw()
            read = len(next(parts))
            exchange = exchange_of(response)
            until(lambda: exchange.channel.is_producer_waiting)
            assert exchange.channel.buffered <= 1024 * 1024
            # The task, which waits for room, takes over from the callbacks.
            assert exchange.task is not None
            assert read + sum(map(len, parts)) == 375 * 64_000


@pytest.mark.own_transport
def test_body_may_end_while_the_channel_is_full(client: Any) -> None:
    go = threading.Event()
    # As much as a channel holds.
    size = 1024 * 1024
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size + 3)
    with ByteServer([SHORT], [head + b"x" * size, go, b"abc"], [SHORT]) as server:
        client.get(server.url)
        with client.stream("GET", server.url) as response:
            exchange = exchange_of(response)
            until(lambda: exchange.channel.buffered == size)
            assert exchange.task is None
            go.set()
            # The last bytes and the end come in one read; the task waits for room.
            until(lambda: exchange.channel.is_producer_waiting)
            body = response.read()
            assert (len(body), body[-4:]) == (size + 3, b"xabc")
        assert client.get(server.url).content == b"abc"
        assert server.connections == 1


@pytest.mark.own_transport
@pytest.mark.parametrize(
    ("events", "rest", "connections"),
    [(b"data: 1\n\ndata: [DONE]\n\n", [], 1), (b"data: [DONE]\n\n", [chunk(b"x" * 20_000)] * 200, 2)],
    ids=["short", "too long"],
)
def test_rest_after_the_last_event_is_drained_within_bounds(
    client: Any, events: bytes, rest: Pieces, connections: int
) -> None:
    is_closed = threading.Event()
    stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    late: Pieces = [stream + chunk(events), is_closed, *rest, LAST]
    with ByteServer([SHORT], late, [SHORT]) as server:
        client.get(server.url)
        with client.stream("GET", server.url) as response:
            next(response.iter_raw())
        is_closed.set()
        until(lambda: Bridge.default().stats().open_streams == 0)
        assert client.get(server.url).content == b"abc"
        assert server.connections == connections


def test_bytes_of_a_request_with_an_unusable_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending it raises the error."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    request = ForwardedRequest(httpx.Request("GET", "http://a.example"), httpx)
    monkeypatch.setenv("HTTP_PROXY", "ftp://127.0.0.1:1")
    assert ClientPool().lease("").forwarded_bytes(request) is None
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ClientPool().lease("").forwarded_bytes(request) is None
    monkeypatch.delenv("HTTP_PROXY")
    direct = ClientPool().lease("").forwarded_bytes(request)
    assert direct is not None
    assert direct.data.startswith(b"GET / HTTP/1.1\r\nHost: a.example\r\n")
