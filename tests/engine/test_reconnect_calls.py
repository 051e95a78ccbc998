"""on_reconnect, reconnect(), close() and invalid arguments of reconnecting streams."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import h2.exceptions
import httpx
import pytest

from sseqbridge import (
    Bridge,
    ProtocolError,
    ReadError,
    ReconnectionError,
    ReconnectionPolicy,
    SSEError,
    TransportError,
    TruncatedStreamError,
    UsageError,
    request_sse,
)
from sseqbridge._http import client as _client
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    cut,
    hold,
    in_turn,
    raw,
    respond,
    send,
    silence,
)
from tests.clock import FakeClock
from tests.engine.reconnecting import AT_ONCE, DONE, LATE, UNLIMITED, Notes, ids_sent, is_between_connections
from tests.requesters import Requester
from tests.support import in_thread, is_waiting, subscription_of, until

# Calls of the consumer.


def test_close_during_the_wait_sends_no_request(ask: Requester) -> None:
    waits = threading.Event()
    with SSEServer([send(1), cut()]) as server:
        with ask(server.url, reconnect=LATE, on_reconnect=lambda *arguments: waits.set()) as response:
            assert response.next() == 1
            while not waits.is_set():
                with pytest.raises(TimeoutError):
                    response.next(timeout=0.05)
        assert response.items() == []
        assert response.events.outcome == "closed"
        # A finished task sends no request.
        assert reader_of(response.events).cursor.subscription.finished
        assert len(server.requests) == 1


@pytest.mark.parametrize("stage", ["read", "wait", "open"])
def test_reconnect_races_with_close(ask: Requester, stage: str) -> None:
    first = [send(1), silence()] if stage == "read" else [send(1), cut()]
    responses = in_turn(first, [silence()], [send(2), silence()])

    def count() -> int:
        """Return how many requests were sent: earlier ones have arrived once this one is answered."""
        assert list(request_sse(f"{server.url}/count").events) == [0]
        return sum(request.path == "/" for request in server.requests)

    with SSEServer(lambda request: [send(0), DONE] if request.path == "/count" else responses(request)) as server:
        with ask(server.url, reconnect=LATE if stage == "wait" else AT_ONCE) as response:
            assert response.next() == 1
            if stage == "wait":
                ask.run_blocking(until, lambda: is_between_connections(response))
            elif stage == "open":
                ask.run_blocking(lambda: server.wait_for_request(2, timeout=30))
            response.events.reconnect()
        # A finished task sends no request.
        assert reader_of(response.events).cursor.subscription.finished
        assert count() <= 2 if stage != "open" else count() <= 3


@pytest.mark.slow
def test_notices_are_bounded_without_a_consumer(clock: FakeClock, ask: Requester) -> None:
    busy = [respond(503, content_type="text/plain"), bytes(100_000)]
    with SSEServer(in_turn([send(1), cut()], busy)) as server:
        policy = ReconnectionPolicy(delay=1, factor=1, jitter=0)
        with ask(server.url, reconnect=policy, timeout=UNLIMITED, max_buffered_bytes=250_000) as response:
            assert response.next() == 1
            while len(server.requests) < 3:
                clock.advance(1)
                ask.run_blocking(time.sleep, 0.01)
            # Long enough for all attempts that the limit allows.
            for _ in range(30):
                clock.advance(10)
                ask.run_blocking(time.sleep, 0.01)
            assert 3 <= len(server.requests) <= 5
            assert response.events.stats.buffered <= 250_000


@pytest.mark.slow
@pytest.mark.blocks_its_loop
def test_notices_are_bounded_before_the_first_response(ask: Requester) -> None:
    seen: list[int] = []

    def slowly(attempt: int, delay: float, cause: SSEError | None) -> None:
        if not seen:
            time.sleep(0.5)
        seen.append(len(server.requests))

    busy = [respond(503, content_type="text/plain"), bytes(100_000)]
    with SSEServer(busy) as server:
        policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=20)
        response = ask(server.url, reconnect=policy, max_buffered_bytes=250_000, on_reconnect=slowly)
        assert (response.status, len(seen)) == (503, 20)
        assert seen[0] <= 5


def test_close_while_connecting_again(ask: Requester) -> None:
    with SSEServer(in_turn([send(1), cut()], [silence()])) as server:
        with ask(server.url, reconnect=AT_ONCE) as response:
            assert response.next() == 1
            ask.run_blocking(lambda: server.wait_for_request(2, timeout=30))
        server.requests[1].wait_aborted(30)


def test_callback_that_raises_ends_the_stream(ask: Requester, closed_port: int) -> None:
    class EnoughError(Exception):
        pass

    def stop(attempt: int, delay: float, cause: SSEError | None) -> None:
        raise EnoughError

    with SSEServer([send(1), cut()]) as server:
        response = ask(server.url, reconnect=LATE, on_reconnect=stop)
        assert response.next() == 1
        for _ in range(2):
            with pytest.raises(EnoughError):
                response.next()
        assert response.events.outcome == "error"
    with pytest.raises(EnoughError):
        ask(f"http://127.0.0.1:{closed_port}", reconnect=True, on_reconnect=stop)


def test_callback_comes_between_items_of_two_connections() -> None:
    seen: list[Any] = []
    with SSEServer(in_turn([send(1), send(2), cut()], [send(3), DONE])) as server:
        stream = request_sse(server.url, reconnect=AT_ONCE, on_reconnect=lambda *arguments: seen.append("drop")).events
        server.wait_for_request(2, timeout=30)
        seen.extend(stream)
    assert seen == [1, 2, "drop", 3]


def test_attempts_are_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG, "sseqbridge"),
        SSEServer(in_turn([send(1), cut()], [DONE])) as server,
    ):
        list(request_sse(f"{server.url}/?key=secret", reconnect=AT_ONCE).events)
    assert "attempt 1 to reconnect in 0.01 s, after" in caplog.text
    assert "secret" not in caplog.text


def test_reconnect_drops_the_connection_now(ask: Requester) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        response = ask(server.url, reconnect=ReconnectionPolicy(delay=30), on_reconnect=notes)
        assert response.next() == 1
        response.events.reconnect()
        assert response.items() == [2]
        server.requests[0].wait_aborted(30)
        assert ids_sent(server) == [None, "a"]
        assert response.events.stats.reconnections == 1
        response.events.reconnect()
        # As it runs if the call crosses with the end of the stream.
        subscription_of(response.events).reconnect_on_loop()
        assert len(server.requests) == 2
    assert notes.calls == [(1, 0.0, None)]


def test_reconnect_from_another_thread_while_the_consumer_waits() -> None:
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        stream = request_sse(server.url, reconnect=True).events
        assert next(stream) == 1
        rest = in_thread(lambda: list(stream))
        until(lambda: is_waiting(rest))
        stream.reconnect()
        assert rest.result(30) == [2]


def test_reconnect_call_ends_the_wait(ask: Requester) -> None:
    with SSEServer(in_turn([send(1), cut()], [send(2), DONE])) as server:
        response = ask(server.url, reconnect=LATE)
        assert response.next() == 1
        ask.run_blocking(until, lambda: is_between_connections(response))
        response.events.reconnect()
        assert response.items() == [2]


def test_reconnect_call_while_connecting_again(ask: Requester) -> None:
    with SSEServer(in_turn([send(1), cut()], [silence()], [send(2), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.next() == 1
        ask.run_blocking(lambda: server.wait_for_request(2, timeout=30))
        response.events.reconnect()
        assert response.items() == [2]
        server.requests[1].wait_aborted(30)


def test_reconnect_call_while_a_client_is_leased(monkeypatch: pytest.MonkeyPatch) -> None:
    leased, go = threading.Semaphore(0), threading.Event()
    lease = _client.ClientPool.lease

    def slowly(pool: _client.ClientPool, origin: str) -> Any:
        leased.release()
        go.wait(30)
        return lease(pool, origin)

    is_slow = threading.Event()
    script = in_turn([send(1), hold(is_slow), cut()], [send(2), DONE])
    with SSEServer(script) as server, Bridge(client=httpx.AsyncClient) as bridge:
        stream = request_sse(server.url, reconnect=AT_ONCE, bridge=bridge).events
        monkeypatch.setattr(_client.ClientPool, "lease", slowly)
        is_slow.set()
        assert next(stream) == 1
        assert leased.acquire(timeout=30)
        stream.reconnect()
        # The loop has run it, since it has run a callback that was posted later.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), reader_of(stream).cursor.subscription.loop).result(30)
        go.set()
        assert list(stream) == [2]
        assert len(server.requests) == 2


def test_reconnect_under_backpressure_loses_nothing(ask: Requester) -> None:
    total = 3000

    def script(request: ReceivedRequest) -> Iterator[Step]:
        begin = int(request.headers.get("last-event-id", "-1")) + 1
        for start in range(begin, total, 50):
            yield b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(start, min(start + 50, total)))
            # More than one read in total: events that were received completely are not requested again.
            yield b":" + b"x" * 20_000 + b"\n"
        yield DONE

    with SSEServer(script) as server:
        response = ask(server.url, reconnect=AT_ONCE, max_buffered_bytes=20_000)
        items = [response.next()]
        for _ in range(5):
            response.events.reconnect()
            items += [response.next() for _ in range(200)]
        assert items + response.items() == list(range(total))
        assert len(server.requests) > 1


def test_reconnect_is_refused_if_the_stream_cannot(ask: Requester) -> None:
    with SSEServer([send(1), silence()]) as server:
        with ask(server.url) as response, pytest.raises(UsageError, match="reconnect=True"):
            response.events.reconnect()
        with ask(server.url, data={}, reconnect=True) as response:
            assert response.next() == 1
            with pytest.raises(UsageError, match='resume="repeat"'):
                response.events.reconnect()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reconnect": 3}, "ReconnectionPolicy"),
        ({"reconnect": "yes"}, "ReconnectionPolicy"),
        ({"on_reconnect": print}, "reconnect=True"),
        ({"on_reconnect": 5, "reconnect": True}, "function"),
        ({"on_reconnect": asyncio.sleep, "reconnect": True}, "coroutine function"),
        ({"last_event_id": 5}, "a str"),
        ({"last_event_id": "a\nb"}, "NUL, CR or LF"),
        ({"last_event_id": "\ud800"}, "surrogate"),
        ({"last_event_id": "a", "headers": {"Last-Event-ID": "b"}}, "must be given once"),
        ({"headers": [("Last-Event-ID", "a"), ("last-event-id", "b")]}, "must be given once"),
    ],
)
def test_invalid_arguments_are_refused(ask: Requester, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask("http://127.0.0.1:9", **options)


@pytest.mark.parametrize("off", [None, False])
def test_drop_without_reconnect_is_an_error(ask: Requester, off: bool | None) -> None:
    with SSEServer([send(1), cut()]) as server:
        items, error = ask(server.url, reconnect=off).fail()
    assert items == [1]
    assert isinstance(error, (TruncatedStreamError, ReadError))


def test_invalid_http_is_a_drop(ask: Requester) -> None:
    notes = Notes()
    broken = [
        respond(headers={"Transfer-Encoding": "chunked"}, framing="none"),
        raw(b"9\r\ndata: 1\n\n\r\nzz\r\n"),
        silence(),
    ]
    with SSEServer(in_turn(broken, [send(2), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE, on_reconnect=notes).items() == [1, 2]
    assert notes.causes == [ProtocolError]


# Requests that the HTTP client refuses to send.


def refusing_client(failure: Exception, requests: list[int], *, from_number: int) -> Bridge:
    """A bridge whose client responds with an event, and raises `failure` from this request on."""

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(len(requests))
        if requests[-1] >= from_number:
            raise failure
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"data: 1\n\n")

    return Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(handler)))


def test_request_that_the_client_refuses_is_not_retried() -> None:
    requests: list[int] = []
    failure = httpx.LocalProtocolError("a header")
    with refusing_client(failure, requests, from_number=1) as bridge:
        stream = request_sse("http://mock.test/", bridge=bridge, reconnect=AT_ONCE).events
        assert next(stream) == 1
        with pytest.raises(ReconnectionError) as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, TransportError)
        assert caught.value.__cause__.__cause__ is failure
        assert requests == [0, 1]


def test_first_request_that_the_client_refuses_is_an_error() -> None:
    requests: list[int] = []
    failure = httpx.LocalProtocolError("a header")
    with refusing_client(failure, requests, from_number=0) as bridge:
        with pytest.raises(TransportError) as caught:
            request_sse("http://mock.test/", bridge=bridge, reconnect=AT_ONCE)
        assert caught.value.__cause__ is failure
        assert requests == [0]


def test_http2_violation_is_retried() -> None:
    """httpx raises LocalProtocolError if the server violates HTTP/2."""
    requests: list[int] = []
    failure = httpx.LocalProtocolError("a frame")
    failure.__cause__ = h2.exceptions.ProtocolError()
    policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=3)
    with refusing_client(failure, requests, from_number=1) as bridge:
        stream = request_sse("http://mock.test/", bridge=bridge, reconnect=policy).events
        assert next(stream) == 1
        with pytest.raises(ReconnectionError, match="attempts=3"):
            next(stream)
        assert len(requests) == 4
