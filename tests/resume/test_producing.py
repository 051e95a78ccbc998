"""Producing a stream: the upstream's events, its end, its errors and refusals reach all readers."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from sseqbridge import (
    Bridge,
    CallbackError,
    ConnectError,
    ContentTypeError,
    ProducerLostError,
    ReconnectionPolicy,
    SSEError,
    StatusError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    request_sse,
)
from sseqbridge.resume import Log
from sseqbridge.resume._store import StaleTokenError
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, raw, respond, send, silence
from tests.support import in_thread, until

from .support import (
    DONE,
    LogCaller,
    Logs,
    hub_of,
)

pytestmark = pytest.mark.configurations("default", "plain", "httpx_transport")

SOON = ReconnectionPolicy(delay=0.02)

ENDINGS: dict[str, tuple[list[Step], dict[str, Any], type[SSEError]]] = {
    "cut": ([send(1), cut()], {}, TruncatedStreamError),
    "no done": ([send(1)], {"require_done": True}, TruncatedStreamError),
    "idle": ([send(1), silence()], {"timeout": Timeout(idle=1)}, StreamTimeoutError),
}


def test_produce_writes_a_stream_to_its_end(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        assert caller.produce(log, "k", caller.start(upstream.url)) == "done"
        assert caller.produce(log, "k", caller.start(upstream.url)) is None
        assert caller.open(log, "k").items() == [1, 2]
        assert len(upstream.requests) == 1


def test_produce_raises_the_upstreams_error(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1)]) as upstream:
        with pytest.raises(TruncatedStreamError):
            caller.produce(log, "k", caller.start(upstream.url, require_done=True))
        assert isinstance(caller.open(log, "k").fail()[1], TruncatedStreamError)
    with SSEServer([respond(404)]) as upstream, pytest.raises(StatusError):
        caller.produce(log, "other", caller.start(upstream.url))
    with pytest.raises(ConnectError):
        caller.produce(log, "third", caller.start("http://127.0.0.1:1/"))
    with pytest.raises(UsageError):
        caller.produce(log, "fourth", lambda: None)


def test_cancelled_produce_returns_closed(log: Log) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        produced = in_thread(lambda: log.produce("k", lambda: request_sse(upstream.url)))
        reading = log.open("k", wait=30)
        assert next(reading) == 1
        assert log.cancel("k")
        assert produced.result(30) == "closed"
        assert reading.collect() == []
        upstream.requests[0].wait_aborted(30)


def test_done_function_ends_the_stream_for_all_readers(log: Log, caller: LogCaller) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), b"data: 2\n\ndata: 3\n\n", silence()]) as upstream:
        start = caller.start(upstream.url, done=lambda event: event.data == "2")
        reading = caller.open(log, "k", start)
        assert reading.next() == 1
        go.set()
        assert (reading.items(), reading.outcome) == ([2], "done")


@pytest.mark.parametrize("failure", [ZeroDivisionError, SystemExit])
def test_raising_request_callback_ends_the_stream_for_all_readers(
    log: Log, caller: LogCaller, failure: type[BaseException]
) -> None:
    def fail(*_: object) -> bool:
        raise failure

    with SSEServer([send(1, id="1"), cut()]) as upstream:
        for key, options in (("a", {"done": fail}), ("b", {"reconnect": True, "on_reconnect": fail})):
            start = caller.start(upstream.url, **options)
            for reading in (caller.open(log, key, start), caller.open(log, key)):
                assert isinstance(reading.fail()[1], CallbackError)


def test_raising_done_function_aborts_the_upstream(log: Log) -> None:
    def fail(event: object) -> bool:
        raise ZeroDivisionError

    with SSEServer([send(1), silence()]) as upstream:
        with pytest.raises(CallbackError), log.open("k", lambda: request_sse(upstream.url, done=fail)) as events:
            events.collect()
        upstream.wait_for_request().wait_aborted()


def test_reconnecting_upstream_is_one_stream(log: Log, caller: LogCaller) -> None:
    attempts: list[Any] = []

    def script(request: ReceivedRequest) -> list[Step]:
        if "last-event-id" in request.headers:
            return [send(2, id="2"), DONE]
        return [send(1, id="1"), cut()]

    with SSEServer(script) as upstream:
        start = caller.start(upstream.url, reconnect=SOON, on_reconnect=lambda *args: attempts.append(args[0]))
        assert caller.open(log, "k", start).items() == [1, 2]
        assert caller.open(log, "unobserved", caller.start(upstream.url, reconnect=SOON)).items() == [1, 2]
    assert attempts == [1]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_upstream_error_reaches_all_readers(
    log: Log, caller: LogCaller, ending: tuple[list[Step], dict[str, Any], type[SSEError]]
) -> None:
    steps, options, kind = ending
    with SSEServer(steps) as upstream:
        first = caller.open(log, "k", caller.start(upstream.url, **options))
        second = caller.open(log, "k")
        for reading in (first, second, caller.open(log, "k")):
            items, error = reading.fail()
            assert (items, type(error), reading.outcome) == ([1], kind, "error")
            with pytest.raises(kind):
                reading.next()


def test_error_event_is_an_event_of_the_log(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), b'event: error\ndata: {"message": "no"}\n\n']) as upstream:
        items, error = caller.open(log, "k", caller.start(upstream.url)).fail()
        assert items == [1]
        assert isinstance(error, UpstreamError)
        assert error.payload == {"message": "no"}
        reading = caller.open(log, "k", error_events="yield")
        assert reading.items() == [1, {"message": "no"}]


def test_refusal_reaches_waiting_readers_and_is_not_kept(log: Log, caller: LogCaller) -> None:
    is_called, go = threading.Event(), threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        is_called.set()
        if len(upstream.requests) > 1:
            return [send(1), DONE]
        return [hold(go), respond(429, {"Content-Type": "text/plain", "Retry-After": "3"}), raw(b"slow down")]

    with SSEServer(script) as upstream:
        begun = in_thread(lambda: log.open("k", lambda: request_sse(upstream.url)))
        assert is_called.wait(30)
        waiting = in_thread(lambda: log.open("k", wait=30))
        until(lambda: len(hub_of(log).readers) == 2)
        go.set()
        for events in (begun.result(30), waiting.result(30)):
            assert (events.status, events.headers["retry-after"]) == (429, "3")
            with pytest.raises(StatusError) as caught:
                next(events)
            assert (caught.value.status, caught.value.body) == (429, b"slow down")
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.items() == [1]


def test_failed_request_reaches_waiting_readers(log: Log, caller: LogCaller) -> None:
    reached, go = threading.Event(), threading.Event()

    def start() -> Any:
        reached.set()
        assert go.wait(30)
        return request_sse("http://127.0.0.1:1/")

    begun = in_thread(lambda: log.open("k", start))
    assert reached.wait(30)
    waiting = in_thread(lambda: log.open("k", wait=30))
    until(lambda: len(hub_of(log).readers) == 2)
    go.set()
    for result in (begun, waiting):
        with pytest.raises(ConnectError):
            result.result(30)
    with SSEServer([send(1), DONE]) as upstream:
        assert caller.open(log, "k", caller.start(upstream.url)).items() == [1]
    with SSEServer([respond(200, {"Content-Type": "text/html"}), raw(b"<p>")]) as upstream:
        with pytest.raises(ContentTypeError):
            caller.open(log, "other", caller.start(upstream.url))
        with pytest.raises(ContentTypeError):
            caller.open(log, "other").next()


def test_refusal_includes_a_body_that_start_read(log: Log, caller: LogCaller) -> None:
    def start() -> Any:
        response = request_sse(upstream.url)
        with pytest.raises(StatusError):
            response.raise_for_status()
        return response

    with SSEServer([respond(404), raw(b"none")]) as upstream:
        error = caller.open(log, "k", start).fail()[1]
        assert isinstance(error, StatusError)
        assert error.body == b"none"


def test_refusal_with_a_truncated_body_keeps_the_cause(log: Log, caller: LogCaller) -> None:
    with SSEServer([respond(500), raw(b"half"), cut()]) as upstream:
        for reading in (caller.open(log, "k", caller.start(upstream.url)), caller.open(log, "k")):
            error = reading.fail()[1]
            assert isinstance(error, StatusError)
            assert (error.status, error.body) == (500, b"half")
            assert isinstance(error.__cause__, TruncatedStreamError)


def test_closing_the_upstreams_bridge_ends_the_producer(logs: Logs) -> None:
    log, _ = logs.killable()
    with SSEServer([send(0), silence()]) as upstream:
        with Bridge() as other:
            stream = log.open("k", lambda: request_sse(upstream.url, bridge=other))
            assert next(stream) == 0
        with pytest.raises(ProducerLostError):
            next(stream)


def test_stale_append_ends_the_producer(logs: Logs, caller: LogCaller) -> None:
    """Before the producer, as a subscriber, receives the entry with the newer fence."""
    log, store = logs.killable()
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        store.failures["append"] = StaleTokenError()
        go.set()
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)


def test_stale_renewal_ends_the_producer(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    with SSEServer([send(0), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        store.failures["renew"] = StaleTokenError()
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)


def test_stream_with_another_consumer_is_rejected_and_stays_open(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), send(2), DONE]) as upstream:
        events = request_sse(upstream.url).events
        loop = iter(events)
        assert next(loop) == 1
        with pytest.raises(UsageError, match="one consumer"):
            caller.open(log, "k", lambda: events)
        assert list(loop) == [2]


def test_interrupt_after_start_aborts_the_upstream(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is detached already, so that no other object would abort it."""
    calls = []

    def interrupt_first(loop: asyncio.AbstractEventLoop, callback: Any, *args: Any) -> None:
        calls.append(callback)
        if len(calls) == 1:
            raise KeyboardInterrupt
        loop.call_soon_threadsafe(callback, *args)

    with SSEServer([send(1), silence()]) as upstream:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("sseqbridge.resume._producer.post", interrupt_first)
            log.open("k", lambda: request_sse(upstream.url))
        upstream.wait_for_request().wait_aborted(30)
