"""Time limits: the client's own, and `idle`."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import brotli
import httpx
import pytest
import zstandard

from sseqbridge import Bridge, BridgeTransport, UsageError
from sseqbridge._engine.idle_clock import event_detector
from sseqbridge.testing import SSEServer, comment, hold, raw, respond, send, silence
from tests.clock import FakeClock
from tests.support import in_thread, is_waiting, until
from tests.transport.exchanges import exchange_of

NewClient = Callable[..., Any]


def deflater(bits: int) -> Callable[[bytes], bytes]:
    encoder = zlib.compressobj(wbits=bits)
    return lambda data: encoder.compress(data) + encoder.flush(zlib.Z_SYNC_FLUSH)


def brotli_encoder() -> Callable[[bytes], bytes]:
    encoder: Any = brotli.Compressor()
    return lambda data: encoder.process(data) + encoder.flush()


def zstd_encoder() -> Callable[[bytes], bytes]:
    encoder = zstandard.ZstdCompressor().compressobj()
    return lambda data: encoder.compress(data) + encoder.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


# Functions that return an encoder: a function that compresses a part of a body and flushes it.
ENCODERS: dict[str, Callable[[], Callable[[bytes], bytes]]] = {
    "": lambda: bytes,
    "gzip": partial(deflater, 31),
    "deflate": partial(deflater, 15),
    "br": brotli_encoder,
    "zstd": zstd_encoder,
}


def test_the_read_limit_ends_the_wait_for_a_head(clock: FakeClock, package: Any, new_client: NewClient) -> None:
    client = new_client(timeout=package.Timeout(None, read=30))
    with SSEServer([silence()]) as server:
        with pytest.raises(package.ReadTimeout) as caught:
            clock.advance_until_done(partial(client.get, server.url))
        assert type(caught.value) is package.ReadTimeout
        assert caught.value.request.url == server.url
        server.wait_for_request().wait_aborted()


def test_the_read_limit_ends_the_wait_for_bytes(clock: FakeClock, package: Any, new_client: NewClient) -> None:
    client = new_client(timeout=package.Timeout(None, read=30))
    with SSEServer([send("1"), silence()]) as server, client.stream("GET", server.url) as response:
        lines = response.iter_lines()
        assert next(lines) == "data: 1"
        with pytest.raises(package.ReadTimeout):
            clock.advance_until_done(lambda: list(lines))
        server.requests[0].wait_aborted()


def test_the_connect_limit_ends_the_handshake(
    clock: FakeClock, package: Any, new_client: NewClient, client_tls: ssl.SSLContext
) -> None:
    client = new_client(verify=client_tls, timeout=package.Timeout(None, connect=30))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(package.ConnectTimeout):
            clock.advance_until_done(partial(client.get, url))


def test_the_write_limit_ends_the_sending(clock: FakeClock, package: Any, new_client: NewClient) -> None:
    client = new_client(timeout=package.Timeout(None, write=30))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(package.WriteTimeout):
            clock.advance_until_done(partial(client.post, url, content=(b"x" * 100_000 for _ in range(1000))))


@pytest.mark.slow
def test_a_pool_limit_is_accepted_and_never_elapses(package: Any, new_client: NewClient) -> None:
    client = new_client(timeout=package.Timeout(30, pool=0.001))
    ready = threading.Event()
    with SSEServer([respond(), hold(ready), send("1")]) as server:
        asking = [in_thread(partial(client.get, server.url)) for _ in range(120)]
        server.wait_for_request(120)
        ready.set()
        assert {future.result(30).text for future in asking} == {"data: 1\n\n"}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["", "gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("heartbeat", [comment("keep-alive"), send("{}", "ping"), send(": keepalive")])
def test_heartbeats_do_not_reset_the_idle_limit(
    clock: FakeClock, package: Any, new_client: NewClient, encoding: str, heartbeat: Any
) -> None:
    client = new_client(idle=30)
    more = threading.Event()
    encode = ENCODERS[encoding]()

    def encoded(data: Any) -> Any:
        return raw(encode(data)) if encoding else data

    def steps(request: Any) -> Any:
        yield respond(headers={"Content-Encoding": encoding} if encoding else {})
        yield encoded(send("1"))
        while True:
            yield encoded(heartbeat)
            yield hold(more)
            more.clear()

    with SSEServer(steps) as server, client.stream("GET", server.url) as response:
        lines = response.iter_lines()
        assert next(lines) == "data: 1"
        reading = in_thread(lambda: list(lines))
        until(lambda: is_waiting(reading))

        def comes() -> bool:
            more.set()
            return reading.done()

        clock.advance_until(comes, step=5.0)
        assert type(reading.exception(30)) is package.ReadTimeout
        assert "idle" in str(reading.exception())
        server.requests[0].wait_aborted()


def test_events_reset_the_idle_limit(clock: FakeClock, new_client: NewClient) -> None:
    client = new_client(idle=30)
    flags = [threading.Event() for _ in range(5)]
    steps = [respond()]
    steps += [step for number, flag in enumerate(flags) for step in (hold(flag), send(str(number)))]
    with SSEServer(steps) as server, client.stream("GET", server.url) as response:
        lines = (line for line in response.iter_lines() if line)
        for number, flag in enumerate(flags):
            clock.advance(20)
            flag.set()
            assert next(lines) == f"data: {number}"
        assert list(lines) == []


def test_every_byte_of_another_answer_resets_the_idle_limit(clock: FakeClock, new_client: NewClient) -> None:
    client = new_client(idle=30)
    flags = [threading.Event() for _ in range(5)]
    steps = [respond(content_type="application/x-ndjson")]
    steps += [step for flag in flags for step in (hold(flag), raw(b": not an event\n"))]
    with SSEServer(steps) as server, client.stream("GET", server.url) as response:
        chunks = response.iter_raw()
        for flag in flags:
            clock.advance(20)
            flag.set()
            assert next(chunks) == b": not an event\n"


def test_a_slow_consumer_is_not_idle(clock: FakeClock, package: Any) -> None:
    with SSEServer([send("x" * 100_000)] * 100) as server:
        response = BridgeTransport(idle=30).handle_request(package.Request("GET", server.url))
        chunks = response.iter_raw()
        received = len(next(chunks))
        until(lambda: exchange_of(response).channel.is_producer_waiting)
        clock.advance(300)
        received += sum(map(len, chunks))
        assert received == 100 * (len(b"data: \n\n") + 100_000)


def test_idle_counts_from_the_head(clock: FakeClock, package: Any, new_client: NewClient) -> None:
    client = new_client(idle=30)
    ready = threading.Event()
    with SSEServer([hold(ready), respond(), silence()]) as server:
        asking = in_thread(partial(client.send, client.build_request("GET", server.url), stream=True))
        until(lambda: is_waiting(asking) and server.requests)
        clock.advance(300)
        ready.set()
        response = asking.result(30)
        with pytest.raises(package.ReadTimeout):
            clock.advance_until_done(response.read)


def test_a_detector_finds_events_at_every_split() -> None:
    body = b": a\n\nevent: x\n\ndata: 1\r\n\r\n: b\r\rdata: 2\r\r"
    for data, headers in (
        (body, {"Content-Type": "text/event-stream"}),
        (gzip.compress(body), {"Content-Type": "text/event-stream;charset=utf-8", "Content-Encoding": "gzip"}),
    ):
        for size in range(1, len(data) + 1):
            detector = event_detector(httpx.Headers(headers))
            assert detector is not None
            found = [detector.feed(data[start : start + size]) for start in range(0, len(data), size)]
            assert any(found)
    detector = event_detector(httpx.Headers({"Content-Type": "text/event-stream"}))
    assert detector is not None
    assert not any(detector.feed(bytes([byte])) for byte in b": a\n\nevent: x\n\n: c\n\nid: 7\n\n")


def test_bytes_that_cannot_be_decoded_count() -> None:
    headers = httpx.Headers({"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})
    detector = event_detector(headers)
    assert detector is not None
    assert detector.feed(b"this is not gzip")
    assert detector.feed(b"nor is this")


@pytest.mark.slow
def test_bomb_of_heartbeats_is_not_looked_at() -> None:
    headers = httpx.Headers({"Content-Type": "text/event-stream", "Content-Encoding": "br"})
    detector = event_detector(headers)
    assert detector is not None
    # More than the event loop may spend its time on.
    assert detector.feed(brotli.compress(b": keep-alive\n" * 2_000_000, quality=1))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json"},
        {"Content-Type": "text/event-stream", "Content-Encoding": "compress"},
        {"Content-Type": "text/event-stream", "Content-Encoding": "br, gzip"},
    ],
)
def test_other_answers_have_no_detector(headers: dict[str, str]) -> None:
    assert event_detector(httpx.Headers(headers)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idle": 0}, "`idle` must be a number of seconds above 0, got 0. Pass None for never."),
        ({"idle": "30"}, "`idle` must be a number"),
        ({"verify": False}, "`verify` must be an ssl.SSLContext, got bool."),
        ({"verify": "ca.pem"}, "`verify` must be an ssl.SSLContext, got str."),
        ({"bridge": object()}, "`bridge` must be a sseqbridge.Bridge, got object"),
        ({"verify": ssl.create_default_context(), "bridge": Bridge(client=dict)}, "`verify` must not be used with"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        BridgeTransport(**options)
    assert message in str(caught.value)


def test_an_object_that_is_no_request_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`request` must be an httpx\.Request or httpx2\.Request, got dict$"):
        BridgeTransport().handle_request({})


def test_a_websocket_is_refused(package: Any, client: Any) -> None:
    with SSEServer([]) as server:
        with pytest.raises(package.UnsupportedProtocol, match="WebSocket"):
            client.get(server.url, headers={"Upgrade": "websocket", "Connection": "Upgrade"})
        assert server.connections == 0


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "ws://127.0.0.1/", "file:///x", "http:///x", "//127.0.0.1/", "/x"])
def test_a_url_of_no_http_server_is_refused(package: Any, client: Any, url: str) -> None:
    with pytest.raises(package.UnsupportedProtocol) as caught:
        client.get(url)
    assert caught.value.request.method == "GET"
