"""Regression tests of edge cases."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    BridgeClosedError,
    DecodeError,
    EventStream,
    ReadError,
    ServerSentEvent,
    StatusError,
    UsageError,
    arequest_sse,
    request_sse,
)
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, raw, respond, send, silence, wire
from tests.requesters import Requester
from tests.support import in_thread, together, until, until_blocked

THREE = raw(b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\nid: 3\ndata: 3\n\n")


@pytest.mark.parametrize("value", ["caf\xe9".encode("latin-1"), "caf\xe9".encode()])
def test_header_of_a_response_need_not_be_ascii(ask: Requester, value: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Name: " + value + b"\r\nConnection: close\r\n\r\n"
    with SSEServer([wire(head + b"data: 1\n\n"), cut()]) as server, ask(server.url) as response:
        assert response.items() == [1]
        assert response.headers["x-name"].startswith("caf")


# The position of a stream is that of its consumer.


@pytest.fixture
def three() -> Iterator[EventStream[int]]:
    with SSEServer([THREE, silence()]) as server, request_sse(server.url).events as events:
        yield events


def test_last_event_id_after_close_is_the_last_items(three: EventStream[int]) -> None:
    assert next(three) == 1
    three.close()
    assert list(three) == []
    assert three.last_event_id == "1"


def test_last_event_id_after_close_in_the_loop_is_unchanged(three: EventStream[int]) -> None:
    for _ in three:
        three.close()
    assert three.last_event_id == "1"


def test_last_event_id_after_the_accepted_event_is_its_own() -> None:
    with SSEServer([THREE, silence()]) as server:
        events = request_sse(server.url, done=lambda event: event.data == "2").events
        assert list(events) == [1, 2]
        assert events.last_event_id == "2"


def test_last_event_id_after_an_error_is_the_last_items(three: EventStream[int]) -> None:
    with SSEServer([raw(b"id: 1\ndata: 1\n\nid: 2\ndata: no JSON\n\nid: 3\ndata: 3\n\n")]) as server:
        events = request_sse(server.url).events
        assert next(events) == 1
        for _ in range(2):
            with pytest.raises(DecodeError):
                next(events)
        assert events.last_event_id == "1"


def test_last_event_id_read_by_another_thread_is_a_str() -> None:
    with SSEServer([THREE, silence()]) as server, request_sse(server.url).events as events:

        is_consumer = False

        class Passing(Cursor[Any]):
            """As seen by another thread that reads each field between two of the consumer's steps."""

            __slots__ = ()

            def __getattribute__(self, name: str) -> Any:
                nonlocal is_consumer
                value = super().__getattribute__(name)
                if name == "committed_id" and value is not None and not is_consumer:
                    is_consumer = True
                    next(events)
                    is_consumer = False
                return value

        reader_of(events).cursor.__class__ = Passing
        assert events.last_event_id == ""
        assert events.last_event_id == "1"


def test_last_event_id_after_done_excludes_later_events() -> None:
    with SSEServer([raw(b"id: 1\ndata: 1\n\ndata: [DONE]\n\nid: 9\ndata: 9\n\n")]) as server:
        events = request_sse(server.url).events
        assert list(events) == [1]
        assert events.last_event_id == "1"


# Items and errors.


def test_event_without_data_is_skipped_in_json_mode(ask: Requester) -> None:
    with SSEServer([raw(b"event: ping\ndata:\n\n"), send(1), send("[DONE]")]) as server, ask(server.url) as response:
        assert response.items() == [1]


def test_event_without_data_is_delivered_in_event_mode(ask: Requester) -> None:
    script = [raw(b"event: ping\ndata:\n\n"), send("[DONE]")]
    with SSEServer(script) as server, ask(server.url, decode="event") as response:
        assert response.items() == [ServerSentEvent("ping")]


def test_raise_for_status_in_a_loop_over_the_error_body() -> None:
    with SSEServer([respond(500, content_type="application/json"), raw(b'{"no": 1}')]) as server:
        events = request_sse(server.url).events
        with pytest.raises(StatusError) as caught:
            for body in events:
                assert body == {"no": 1}
                events.raise_for_status()
        assert caught.value.body == b'{"no": 1}'


def test_error_raised_again_does_not_grow() -> None:
    with SSEServer([raw(b"data: no JSON\n\n")]) as server:
        events = request_sse(server.url).events
        depths = []
        for _ in range(5):
            with pytest.raises(DecodeError) as caught:
                next(events)
            depths.append(len(caught.traceback))
        assert depths[1] == depths[-1]


def test_text_of_the_server_cannot_forge_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        if request.path == "/":
            yield respond(307, {"Location": "/x%0aERROR%20root%20forged%1b[31m"})
        else:
            yield respond(500)

    caplog.set_level(logging.DEBUG, "sseqbridge")
    with SSEServer(script) as server, pytest.raises(StatusError) as caught:
        request_sse(server.url).raise_for_status()
    assert "/x%0aERROR" in str(caught.value)
    assert all(record.getMessage().isprintable() for record in caplog.records)


# The caller's HTTP clients.


def test_burst_of_first_requests_leaves_one_client_open() -> None:
    made: list[httpx.AsyncClient] = []

    def client() -> httpx.AsyncClient:
        made.append(httpx.AsyncClient(verify=False))
        return made[-1]

    with SSEServer([send(1), send("[DONE]")]) as server, Bridge(client=client) as bridge:
        together([lambda: list(request_sse(server.url, bridge=bridge).events)] * 20)
        for _ in range(2):
            assert list(request_sse(server.url, bridge=bridge).events) == [1]
        until(lambda: sum(not http.is_closed for http in made) <= 9)
    assert all(http.is_closed for http in made)


def test_slow_client_function_delays_no_other_stream() -> None:
    is_made = threading.Event()
    is_called = threading.Event()

    def client() -> httpx.AsyncClient:
        if is_called.is_set():
            is_made.wait(30)
        is_called.set()
        return httpx.AsyncClient(verify=False)

    go = threading.Event()
    with SSEServer([send(1), hold(go), send("[DONE]")]) as server, Bridge(client=client) as bridge:
        events = request_sse(server.url, bridge=bridge).events
        assert next(events) == 1
        slow = in_thread(lambda: list(request_sse(server.url, bridge=bridge).events))
        go.set()
        assert list(events) == []
        is_made.set()
        assert slow.result(30) == [1]


# Interrupts.


def test_signal_handler_during_a_wait_cannot_read() -> None:
    go = threading.Event()
    messages: list[str] = []

    def read(signum: int, frame: object) -> None:
        try:
            next(events)
        except UsageError as exc:
            messages.append(str(exc))
        go.set()

    main = threading.get_ident()

    def interrupt() -> None:
        until_blocked(main)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, read)
    try:
        with SSEServer([send(1), hold(go), send(2), send(3), send("[DONE]")]) as server:
            events = request_sse(server.url).events
            got = []
            for item in events:
                got.append(item)
                if item == 1:
                    in_thread(interrupt)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == [1, 2, 3]
    assert len(messages) == 1


def test_stream_dropped_within_an_abort_is_aborted() -> None:
    with SSEServer([send(1), silence()]) as server:
        events = request_sse(server.url).events
        assert next(events) == 1
        reader_of(events).cursor.channel.close()
        del events
        server.requests[0].wait_aborted()


def test_interrupt_while_a_request_is_posted_aborts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([send(1), silence()]) as server, Bridge() as bridge:
        request_sse(server.url, bridge=bridge).events.close()
        loop = bridge.started().loop
        post = loop.call_soon_threadsafe

        def interrupted(*args: Any, **options: Any) -> None:
            post(*args, **options)
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            request_sse(server.url, bridge=bridge)
        state = bridge.started()
        until(lambda: not state.stream_tasks)


# The caller's transports, and loops.


class _Endless(httpx.AsyncByteStream):
    """A body that is endless until it is cancelled, and that cannot be closed."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.sleep(60)

    async def aclose(self) -> None:
        raise ValueError("not to be closed")


class _NoSocket:
    """A network stream without a socket."""

    def get_extra_info(self, info: str) -> None:
        return None


def test_transport_without_a_socket_whose_response_cannot_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        headers = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, headers=headers, stream=_Endless(), extensions={"network_stream": _NoSocket()})

    caplog.set_level(logging.DEBUG, "sseqbridge")
    with Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(handler))) as bridge:
        events = request_sse("http://upstream.invalid/", bridge=bridge).events
        assert next(events) == 1
        events.close()
        assert events.outcome == "closed"
        until(lambda: any("closing the response failed: ValueError" in r.getMessage() for r in caplog.records))


def test_sse_error_raised_by_a_transport_is_not_wrapped() -> None:
    error = ReadError("the cable was cut")

    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(fail))) as bridge:
        with pytest.raises(ReadError) as caught:
            request_sse("http://upstream.invalid/", bridge=bridge)
        assert caught.value is error


def test_ending_loop_ends_an_open_stream_with_an_error() -> None:
    loop = asyncio.new_event_loop()
    with SSEServer([send(1), silence()]) as server:
        events = loop.run_until_complete(arequest_sse(server.url)).events
        assert loop.run_until_complete(events.next()) == 1
        loop.run_until_complete(loop.shutdown_asyncgens())
        with pytest.raises(BridgeClosedError, match="ending"):
            loop.run_until_complete(events.next())
        server.requests[0].wait_aborted()
        loop.close()
