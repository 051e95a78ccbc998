"""Resources that requests share: the thread, the connections, the TLS context; and the garbage collector."""

from __future__ import annotations

import gc
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, ServerSentEvent, UsageError, request_sse
from sseqbridge._engine import stream_task
from sseqbridge._http import client as http_client
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, send, silence, wait
from tests.clock import FakeClock
from tests.support import (
    HAS_OWN_TRANSPORT,
    in_thread,
    is_waiting,
    together,
    until,
    until_no_stream_is_open,
)

pytestmark = pytest.mark.slow

RESPONSE = (send({"n": 1}), send("[DONE]"))


# One thread for all streams.


def loop_threads() -> list[threading.Thread]:
    """Threads of the library, but that of the process's own loop for asynchronous code."""
    names = ((thread.name, thread) for thread in threading.enumerate())
    return [thread for name, thread in names if name.startswith("sseqbridge") and name != "sseqbridge-async"]


def test_120_streams_share_one_thread() -> None:
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), send("[DONE]")]) as server:
        streams = [request_sse(server.url).events for _ in range(120)]
        assert [next(it) for it in streams] == [0] * 120
        assert server.open_requests == 120
        (thread,) = loop_threads()
        assert thread.daemon
        assert thread.name == "sseqbridge-loop"
        go.set()
        assert [list(it) for it in streams] == [[1]] * 120


def test_100_threads_read_a_stream_each() -> None:
    with SSEServer([send(0), send(1), send("[DONE]")]) as server:
        assert together([lambda: list(request_sse(server.url).events)] * 100) == [[0, 1]] * 100


def test_close_unblocks_100_waiting_consumers(silent: SSEServer) -> None:
    streams = [request_sse(silent.url).events for _ in range(100)]
    assert [next(it)["n"] for it in streams] == [1] * 100
    reading = [in_thread(partial(list[Any], it)) for it in streams]
    until(lambda: all(map(is_waiting, reading)))
    together([it.close for it in streams])
    assert [future.result(30) for future in reading] == [[]] * 100


# Connections are reused.


@pytest.fixture(params=["http", "https", "https, with a client of the caller's"])
def served(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> Iterator[Callable[[Any], tuple[SSEServer, Bridge]]]:
    """A function that starts an upstream with a script, and returns it with a bridge for requests."""
    servers = []
    of_the_caller = request.param.endswith("caller's")
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    with Bridge(client=(lambda: httpx.AsyncClient(verify=client_tls)) if of_the_caller else None) as bridge:

        def start(script: Any) -> tuple[SSEServer, Bridge]:
            servers.append(SSEServer(script, ssl_context=None if request.param == "http" else server_tls).start())
            return servers[-1], bridge

        yield start
    for server in servers:
        server.close()


def late_end(request: ReceivedRequest) -> Iterator[Step]:
    yield send({"n": 1})
    yield send("[DONE]")
    yield wait(0.003)


@pytest.mark.usefixtures("patient_end")
@pytest.mark.parametrize("script", [RESPONSE, late_end])
def test_100_requests_in_a_row_open_one_connection(served: Any, script: Any) -> None:
    server, bridge = served(script)
    for _ in range(100):
        assert list(request_sse(server.url, bridge=bridge).events) == [{"n": 1}]
    assert len(server.requests) == 100
    assert server.connections == 1


def test_done_function_keeps_the_connection(served: Any) -> None:
    server, bridge = served((send({"n": 1}), send({"n": 2}), wait(0.003)))
    for _ in range(20):
        events = request_sse(server.url, bridge=bridge, done=lambda event: '"n": 2' in event.data).events
        assert list(events) == [{"n": 1}, {"n": 2}]
        assert events.outcome == "done"
        # On a busy machine the body is drained in the background.
        until(lambda: not bridge.stats().open_streams)
    assert server.connections == 1


@pytest.fixture
def drained_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a body be read for 300 s after its last event, far longer than a busy machine needs to end the stream."""
    assert stream_task.DRAIN_SECONDS == 1.0
    monkeypatch.setattr(stream_task, "DRAIN_SECONDS", 300.0)


@pytest.mark.parametrize("options", [{}, {"done": lambda event: '"n": 1' in event.data}], ids=["marker", "function"])
def test_upstream_open_after_the_end_is_cut_later(clock: FakeClock, drained_for_minutes: None, options: Any) -> None:
    with SSEServer([*RESPONSE, silence()]) as server:
        it = request_sse(server.url, timeout=None, **options).events
        assert list(it) == [{"n": 1}]
        assert it.outcome == "done"
        assert server.requests[0].aborted_at is None
        clock.advance(300)
        server.requests[0].wait_aborted()


def test_done_function_ends_a_stream_under_backpressure() -> None:
    def numbers(request: ReceivedRequest) -> Iterator[Step]:
        n = 0
        while True:
            yield send([n, "x" * 8000])
            n += 1

    with SSEServer(numbers) as server:
        it = request_sse(server.url, done=lambda event: True, max_buffered_bytes=10_000).events
        until(lambda: it.stats.buffered)
        assert [n for n, _ in it] == [0]
        assert it.outcome == "done"
        server.requests[0].wait_aborted()


def test_done_function_may_accept_after_the_body_ended() -> None:
    with SSEServer([send({"n": 1}), send({"n": 2})]) as server:
        it = request_sse(server.url, done=lambda event: True).events
        until_no_stream_is_open()
        assert list(it) == [{"n": 1}]
        assert it.outcome == "done"


@pytest.mark.parametrize("of_the_caller", [False, True])
def test_upstream_that_sends_after_done_is_cut_after_64_kib(of_the_caller: bool, drained_for_minutes: None) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield send("[DONE]")
        while True:
            yield send("x" * 8000)

    with SSEServer(script) as server, Bridge(client=httpx.AsyncClient if of_the_caller else None) as bridge:
        it = request_sse(server.url, bridge=bridge).events
        assert list(it) == []
        server.requests[0].wait_aborted()
        assert it.stats.events == 0


@pytest.mark.usefixtures("patient_end")
def test_aborted_stream_costs_only_its_own_connection(silent: SSEServer) -> None:
    for _ in range(20):
        request_sse(silent.url).events.close()
    with SSEServer(RESPONSE) as server:
        for _ in range(20):
            assert list(request_sse(server.url).events) == [{"n": 1}]
        assert server.connections == 1


def test_tls_context_is_built_once_and_off_the_loop(
    monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    built_in = []

    def noted() -> ssl.SSLContext:
        built_in.append(threading.current_thread().name)
        return client_tls

    monkeypatch.setattr(httpx, "create_ssl_context", noted)
    monkeypatch.setattr(http_client, "_tls_context", None)
    with SSEServer(RESPONSE) as server:
        assert list(request_sse(server.url).events) == [{"n": 1}]
    assert not built_in or not HAS_OWN_TRANSPORT, "plain HTTP must not build a TLS context"
    built_in.clear()
    monkeypatch.setattr(http_client, "_tls_context", None)
    with SSEServer(RESPONSE, ssl_context=server_tls) as server, Bridge() as first, Bridge() as second:
        streams = together([partial(request_sse, server.url, bridge=bridge) for bridge in (first, second) * 5])
        assert [list(it) for _, _, it in streams] == [[{"n": 1}]] * 10
    (thread,) = built_in
    assert thread != "sseqbridge-loop"


# The garbage collector runs anywhere.


def in_the_loops_thread(silent: SSEServer, act: Callable[[], object]) -> None:
    """Run `act` once on the loop thread, where cancel flags are polled."""
    done = threading.Event()

    class Flag:
        def is_set(self) -> bool:
            if threading.current_thread().name == "sseqbridge-loop" and not done.is_set():
                act()
                done.set()
            return False

    with request_sse(silent.url, cancel=Flag()).events:
        assert done.wait(30)


def test_stream_can_be_collected_on_the_loop_thread(silent: SSEServer) -> None:
    cycle: list[Any] = [request_sse(silent.url).events]
    cycle.append(cycle)
    request = silent.wait_for_request()
    del cycle
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_the_loops_thread(silent, gc.collect)
        request.wait_aborted()
    assert [warning.category for warning in caught] == [ResourceWarning]


def test_stream_with_done_function_can_be_read_on_the_loop(silent: SSEServer) -> None:
    """Without waiting for the rest of the body, which that thread reads."""
    items: list[Any] = []
    go = threading.Event()
    with SSEServer([send(1), send(2), hold(go)]) as server:
        stream = request_sse(server.url, done=lambda event: event.data == "2").events
        # The loop counts an event and puts it into the channel in one callback.
        until(lambda: stream.stats.events == 2)
        in_the_loops_thread(silent, lambda: items.extend(stream))
        assert (items, stream.outcome) == ([1, 2], "done")
        go.set()


def test_streams_collected_during_channel_operations_do_not_block_the_loop(silent: SSEServer) -> None:
    # With these thresholds the collector finds dropped streams inside the loop's send() and the
    # consumers' receive(), while a busy stream passes through both.
    def numbers(request: ReceivedRequest) -> Iterator[Step]:
        for n in range(2000):
            yield send(n)
        yield send("[DONE]")

    with SSEServer(numbers) as busy, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thresholds = gc.get_threshold()
        gc.set_threshold(1, 1000, 1000)
        try:
            reading = in_thread(lambda: list(request_sse(busy.url, max_buffered_bytes=2000).events))
            for _ in range(60):
                cycle: list[Any] = [request_sse(silent.url).events]
                cycle.append(cycle)
                del cycle
            assert reading.result(15) == list(range(2000))
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        for n in range(60):
            silent.wait_for_request(n + 1).wait_aborted()


def test_decode_function_may_drop_another_stream(silent: SSEServer) -> None:
    # The function runs inside next() and drops another stream of the same bridge.
    others = [request_sse(silent.url).events]

    def decode(event: ServerSentEvent) -> str:
        with pytest.warns(ResourceWarning):
            others.clear()
        return event.data

    with request_sse(silent.url, decode=decode).events as it:
        assert next(it) == '{"n": 1}'
    silent.wait_for_request(1).wait_aborted()


def test_loop_keeps_no_stream_alive(silent: SSEServer) -> None:
    def close_when_dropped() -> None:
        it = request_sse(silent.url, decode=lambda event: event.data).events
        assert next(it) == '{"n": 1}'

    gc.disable()
    try:
        with pytest.warns(ResourceWarning):
            close_when_dropped()
    finally:
        gc.enable()
    silent.wait_for_request().wait_aborted()


def test_closed_port_leaves_no_thread_behind(closed_port: int) -> None:
    for _ in range(10):
        with pytest.raises(Exception, match="no connection"):
            request_sse(f"http://127.0.0.1:{closed_port}/")
    assert len(loop_threads()) == 1


def test_bridge_must_be_a_bridge() -> None:
    bridge: Any = "default"
    with pytest.raises(UsageError, match="`bridge` must be"):
        request_sse("http://127.0.0.1:1/", bridge=bridge)
