"""Observability: counters of a bridge, repr of objects, warnings about a blocked loop, traces."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import sseqbridge
from sseqbridge import (
    Attempt,
    Bridge,
    BridgeStats,
    Comment,
    Dialect,
    EventStreamParser,
    ReconnectionPolicy,
    Resume,
    ServerSentEvent,
    StatusError,
    Timeout,
    amerge,
    arequest_sse,
    cancel_on,
    gather,
    merge,
    relay,
    request_sse,
    tee,
)
from sseqbridge._runtime import fork, loop_watch
from sseqbridge.testing import SSEServer, send, silence
from tests.clock import FakeClock
from tests.support import in_thread, until

DONE = send("[DONE]")


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with Bridge() as bridge:
        yield bridge


# Counters.


def test_stats_of_an_unused_bridge_are_zero(bridge: Bridge) -> None:
    assert bridge.stats() == BridgeStats(0, 0, 0, 0, 0, 0.0)


def test_stats_count_open_and_ended_streams(bridge: Bridge) -> None:
    with SSEServer(lambda request: [send("ab"), *([silence()] if request.path == "/open" else [DONE])]) as server:
        for _ in range(3):
            assert len(request_sse(server.url, decode="text", bridge=bridge).events.collect()) == 1
            # On a busy machine a stream ends before its connection is idle.
            until(lambda: bridge.stats().open_streams == 0)
        streams = [request_sse(f"{server.url}/open", decode="text", bridge=bridge).events for _ in range(2)]
        until(lambda: all(stream.stats.buffered for stream in streams))
        stats = bridge.stats()
        # `[DONE]` is not counted as an event.
        assert (stats.open_streams, stats.events, stats.bytes) == (2, 5, 3 * len("data: ab\n\ndata: [DONE]\n\n") + 20)
        # One reused connection of the earlier streams, and a new one.
        assert stats.connections == 2
        assert stats.buffered == sum(stream.stats.buffered for stream in streams)
        for stream in streams:
            stream.close()
        # The connection of a stream is closed before the stream ends.
        until(lambda: bridge.stats().connections == bridge.stats().open_streams == 0)
        assert bridge.stats().events == 5
        bridge.close()
        until(lambda: bridge._counted[1] is None)
        assert bridge.stats() == BridgeStats(0, 0, 5, stats.bytes, 0, bridge.stats().longest_wait)


def test_stats_continue_after_the_thread_is_restarted(bridge: Bridge) -> None:
    with SSEServer([send(1), DONE]) as server:
        assert request_sse(server.url, bridge=bridge).events.collect() == [1]
        until(lambda: bridge.stats().open_streams == 0)
        state = bridge.started()

        state.loop.call_soon_threadsafe(state.loop.stop)
        until(lambda: repr(bridge) == "<Bridge not started>")
        assert request_sse(server.url, bridge=bridge).events.collect() == [1]
        assert bridge.stats().events == 2
        until(state.loop.is_closed)
        assert bridge.stats().events == 2


@pytest.mark.slow
def test_stats_are_consistent_at_any_time(bridge: Bridge) -> None:
    """While streams end, no event is counted twice or not at all."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with SSEServer([send(1), DONE]) as server:
            done = threading.Event()

            def watch() -> list[int]:
                counts = []
                while not done.is_set():
                    counts.append(bridge.stats().events)
                return counts

            watching = in_thread(watch)
            for _ in range(100):
                request_sse(server.url, bridge=bridge).events.collect()
            done.set()
            counts = watching.result(30)
            assert counts == sorted(counts)
            assert bridge.stats().events == 100
    finally:
        sys.setswitchinterval(interval)


def test_stats_wait_for_a_write_in_progress(bridge: Bridge) -> None:
    with SSEServer([send(1), DONE]) as server:
        request_sse(server.url, bridge=bridge).events.collect()
        state = bridge.started()
        until(lambda: not state.stream_tasks)
        copies = []

        class Copied(set[Any]):
            def copy(self) -> set[Any]:
                copies.append(1)
                return set(self)

        state.stream_tasks = Copied(state.stream_tasks)
        state._version += 1
        asking = in_thread(bridge.stats)
        until(lambda: len(copies) > 3)
        assert not asking.done()
        state._version += 1
        assert asking.result(30).events == 1


def test_default_bridge_has_stats() -> None:
    assert Bridge.default() is Bridge.default()
    before = Bridge.default().stats().events
    with SSEServer([send(1), DONE]) as server:
        request_sse(server.url).events.collect()
    assert Bridge.default().stats().events == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("http2", [False, True])
def test_connections_of_a_callers_client(http2: bool) -> None:
    with SSEServer([send(1), silence()]) as server, Bridge(client=lambda: httpx.AsyncClient(http2=http2)) as bridge:
        streams = [request_sse(server.url, bridge=bridge).events for _ in range(3)]
        assert bridge.stats().connections == 3
        for stream in streams:
            stream.close()
        until(lambda: bridge.stats().connections == 0)


def test_connections_of_an_opaque_client_count_as_zero() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"data: 1\n\n")

    make = partial(httpx.AsyncClient, transport=Silent())
    with Bridge(client=make) as bridge, request_sse("http://nowhere", bridge=bridge) as response:
        assert response.events.collect() == [1]
        assert bridge.stats().connections == 0


def test_stats_of_a_parents_bridge(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([send(1), DONE]) as server:
        request_sse(server.url, bridge=bridge).events.collect()
        assert bridge.stats().events == 1
        with monkeypatch.context() as patch:
            patch.setattr(fork, "_forks", -1)
            assert bridge.stats() == BridgeStats(0, 0, 0, 0, 0, 0.0)
        assert bridge.stats().events == 1


# A loop that is blocked.


@pytest.fixture
def warnings(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[str]]:
    clock.report_blocked_loops(monkeypatch)
    caplog.set_level(logging.WARNING, "sseqbridge")
    return lambda: [record.getMessage() for record in caplog.records if "blocked" in record.getMessage()]


class SlowFlag:
    """A cancel flag whose first check is slow."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.asked = 0

    def is_set(self) -> bool:
        self.asked += 1
        if self.asked == 3:
            self._clock.advance(650)
        return False


class SlowAuth(httpx.Auth):
    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    async def async_auth_flow(self, request: httpx.Request) -> Any:
        self._clock.advance(650)
        yield request


@pytest.mark.blocks_its_loop
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cancel": SlowFlag}, "is_set() of the cancel flag, a tests.streams.test_observability.SlowFlag, of"),
        ({"auth": SlowAuth}, "what the HTTP client, its transport, hooks or auth did for"),
    ],
)
def test_warning_names_the_code_that_blocks_the_loop(
    clock: FakeClock, warnings: Callable[[], list[str]], bridge: Bridge, options: dict[str, Any], text: str
) -> None:
    made = {name: make(clock) for name, make in options.items()}
    with SSEServer([send(1), silence()]) as server:
        other = request_sse(server.url, bridge=bridge, timeout=None).events
        response: Any = request_sse(f"{server.url}/?key=secret", bridge=bridge, timeout=None, **made)
        with response:
            until(lambda: len(warnings()) == 1)
        assert warnings()[0].startswith("the loop was blocked for 6")
        assert f"every stream stood still: {text}" in warnings()[0]
        assert f"{server.url}/ took 6" in warnings()[0]
        assert "secret" not in warnings()[0]
        assert 649 <= bridge.stats().longest_wait < 700
        other.close()


@pytest.mark.parametrize(
    ("numbers", "part", "text"),
    [
        (0, 0.5, "the loop thread waited for an unknown cause"),
        # Some milliseconds, of 600 s.
        (1_000_000, 1e-6, "the loop thread computed for"),
    ],
    ids=["waits", "computes"],
)
def test_warning_without_the_blocking_code_is_logged(
    clock: FakeClock,
    warnings: Callable[[], list[str]],
    bridge: Bridge,
    monkeypatch: pytest.MonkeyPatch,
    numbers: int,
    part: float,
    text: str,
) -> None:
    monkeypatch.setattr(loop_watch, "_MIN_SHARE", part)

    def block() -> None:
        sum(range(numbers))
        clock.advance(600)

    with SSEServer([send(1), silence()]) as server, request_sse(server.url, bridge=bridge, timeout=None):
        state = bridge.started()
        state.loop.call_soon_threadsafe(block)
        until(warnings)
        assert text in warnings()[0]


def test_loop_without_a_stream_is_not_watched(bridge: Bridge) -> None:
    with SSEServer([send(1), DONE]) as server:
        request_sse(server.url, bridge=bridge).events.collect()
        state = bridge.started()
        watch = state.loop_watch
        assert watch is not None
        until(lambda: watch._timer is None)


def test_warning_is_not_repeated(
    clock: FakeClock, warnings: Callable[[], list[str]], bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_watch, "_QUIET_SECONDS", 100_000)
    with SSEServer([send(1), silence()]) as server, request_sse(server.url, bridge=bridge, timeout=None):
        state = bridge.started()
        for seconds in (600, 1200, 1800):
            state.loop.call_soon_threadsafe(clock.advance, seconds)
            until(lambda: bridge.stats().longest_wait >= seconds - 1)  # noqa: B023
        assert len(warnings()) == 1


def test_coroutine_wrapper_forwards_every_step() -> None:
    """throw() and close() reach the coroutine."""
    seen: list[object] = []

    class Pause:
        def __await__(self) -> Generator[str, object, object]:
            return (yield "pause")

    async def coroutine() -> None:
        try:
            await Pause()
        except ValueError as exc:
            seen.append(type(exc))
        try:
            await Pause()
        finally:
            seen.append("closed")

    loop = asyncio.new_event_loop()
    watch = loop_watch.LoopWatch(loop)
    steps: Any = watch.steps_of(coroutine(), lambda: "x").__await__()
    assert next(steps) == "pause"
    assert steps.throw(ValueError()) == "pause"
    steps.close()
    assert seen == [ValueError, "closed"]
    loop.close()


# The repr of objects.


def test_repr_of_every_public_object_shows_its_state() -> None:
    steps = {True: [send(1), silence()], False: [send(1), DONE]}
    with SSEServer(lambda request: steps["/open" in request.path]) as server:
        with Bridge() as bridge:
            response = request_sse(f"{server.url}/open?key=secret", {"X-Key": "secret"}, bridge=bridge)
            stream = response.events
            parser = EventStreamParser()
            parser.feed(b"id: 7\n\ndata: secret")
            headers = httpx.Headers({"X": "secret"})
            text = {
                "SSEResponse": (response, "<SSEResponse <EventStream [200] open>>"),
                "EventStream": (stream, "<EventStream [200] open>"),
                "Bridge": (bridge, "<Bridge open streams=1>"),
                "MergedStreams": (merge([]), "<MergedStreams [open] streams=0>"),
                "AsyncMergedStreams": (amerge([]), "<AsyncMergedStreams [open] streams=0>"),
                "SSEServer": (server, f"<SSEServer open {server.url} requests=1>"),
                "EventStreamParser": (parser, "<EventStreamParser held=12 last_event_id='7' retry=None>"),
                "ReconnectionPolicy": (ReconnectionPolicy(), None),
                "Attempt": (
                    Attempt(2, "GET", "http://h/secret", headers, "secret", headers),
                    "Attempt(number=2, method='GET')",
                ),
                "Resume": (Resume("GET", "http://h/secret", {"X": "secret"}), "Resume(method='GET')"),
                "Dialect": (Dialect(end_events=["bye"]), None),
                "SSEClient": (client := sseqbridge.SSEClient("http://h", headers={"X": "secret"}), None),
                "Call": (client.call("/x?key=secret"), "<Call GET http://h/x>"),
                "BridgeTransport": (sseqbridge.BridgeTransport(), None),
                "CancelScope": (cancel_on(threading.Event()), "<CancelScope new>"),
                "Timeout": (Timeout(), "Timeout(connect=10.0, read=600.0, idle=None, total=None)"),
                "StreamStats": (stream.stats, None),
                "BridgeStats": (bridge.stats(), None),
                "ServerSentEvent": (ServerSentEvent(data="x"), None),
                "Comment": (Comment("x"), "Comment(text='x')"),
                "StatusError": (StatusError("shown", 500, httpx.Headers({"x": "secret"}), b"secret"), None),
            }
            for name, (it, whole) in text.items():
                assert name in repr(it)
                assert whole is None or repr(it) == whole
                assert " object at 0x" not in repr(it)
                assert "secret" not in repr(it)
            stream.close()
            assert repr(stream) == "<EventStream [200] closed>"
            # Other tests show the last two.
            shown_classes = {type(it) for it, _ in text.values()} | {sseqbridge.Tee, sseqbridge.Stream}
        assert repr(bridge) == "<Bridge closed>"
        readers = tee(request_sse(f"{server.url}/open"))
        assert repr(readers) == "<Tee of <EventStream [200] open> readers=2>"
        readers.close()
        frames = relay.frames(request_sse(server.url))
        assert repr(frames) == "<Frames not begun>"
        next(frames)
        assert repr(frames) == "<Frames open>"
        frames.close()
        assert repr(frames) == "<Frames ended>"
    async_ones = {sseqbridge.AsyncEventStream, sseqbridge.AsyncSSEResponse}
    errors = {value for value in public() if issubclass(value, BaseException)}
    assert public() - errors - async_ones <= shown_classes


def public() -> set[type]:
    values = {getattr(sseqbridge, name) for name in sseqbridge.__all__}
    return {value for value in values if isinstance(value, type)}


def test_repr_of_asynchronous_objects_shows_their_state() -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            async with await arequest_sse(server.url) as response:
                assert repr(response) == "<AsyncSSEResponse <AsyncEventStream [200] open>>"
            assert repr(response.events) == "<AsyncEventStream [200] closed>"

    asyncio.run(main())


# Traces.


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    exporter.tracer = provider.get_tracer("the application")  # type: ignore[attr-defined]
    yield exporter
    instrumentor.uninstrument()
    provider.shutdown()


def test_spans_are_children_of_the_callers_span(spans: Any) -> None:
    with SSEServer([send(1), DONE]) as server, Bridge() as bridge:
        with spans.tracer.start_as_current_span("a view") as parent:
            assert request_sse(f"{server.url}/chat", bridge=bridge).events.collect() == [1]
        [request] = server.requests
        # Later requests of the application, also from another thread.
        with spans.tracer.start_as_current_span("another view"):
            gathered = gather([partial(request_sse, server.url, bridge=bridge)] * 2)
            assert [items for _, items in gathered] == [[1], [1]]
    by_name: dict[str, list[Any]] = {}
    for span in spans.get_finished_spans():
        by_name.setdefault(span.name, []).append(span)
    assert {name: len(found) for name, found in by_name.items()} == {"a view": 1, "another view": 1, "GET": 3}
    span = by_name["GET"][0]
    assert span.parent.span_id == parent.get_span_context().span_id
    assert span.kind is trace.SpanKind.CLIENT
    assert span.attributes["http.url" if "http.url" in span.attributes else "url.full"].startswith(server.url)
    # The spans of the upstream must be children of this span.
    trace_id = f"{parent.get_span_context().trace_id:032x}"
    assert request.headers["traceparent"].startswith(f"00-{trace_id}-{span.context.span_id:016x}")
    other = by_name["another view"][0].context.span_id
    assert {span.parent.span_id for span in by_name["GET"][1:]} == {other}


def test_spans_of_arequest_sse_are_children_of_the_callers(spans: Any) -> None:
    async def main(url: str) -> None:
        with spans.tracer.start_as_current_span("a view"):
            assert await (await arequest_sse(url)).events.collect() == [1]

    with SSEServer([send(1), DONE]) as server:
        asyncio.run(main(server.url))
    request, view = spans.get_finished_spans()
    assert request.parent.span_id == view.context.span_id
