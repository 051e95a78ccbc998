"""relay.frames and relay.aframes: pieces, heartbeats, and how a relay ends."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import (
    StatusError,
    UsageError,
    arequest_sse,
    relay,
    request_sse,
    tee,
)
from sseqbridge._engine.channel import End
from sseqbridge._streams.reader import ItemReader
from sseqbridge._streams.stream import reader_of
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    cut,
    hold,
    reset,
    respond,
    send,
    silence,
    wait,
)
from tests.clock import FakeClock
from tests.interrupts import COUNT, numbers
from tests.relay.support import DONE, Relay, collect, error_of
from tests.support import in_thread, is_idle, is_waiting, until


def test_frames_that_have_arrived_are_sent_in_one_piece(relayed: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the machine were infinitely fast.
    monkeypatch.setattr("sseqbridge.relay._base_frames._COLLECT_SECONDS", 60.0)
    events = b"".join(b"data: %d\n\n" % n for n in range(100))
    with SSEServer([events, silence()]) as server:
        stream = request_sse(server.url)
        # An event is charged 256 bytes besides its own, once it can be read.
        until(lambda: stream.events.stats.buffered > 100 * 256)
        reading = relayed(stream)
        assert reading.next_event() == events
        reading.close()


def test_reader_of_a_tee_is_relayed_with_its_done_event(relayed: Relay) -> None:
    with SSEServer([send(1), DONE]) as server:
        for reader in tee(request_sse(server.url)):
            assert relayed(reader).rest() == b"data: 1\n\ndata: [DONE]\n\n"


def test_size_of_a_piece_is_bounded(relayed: Relay) -> None:
    with SSEServer([send("x" * 10_000)] * 50) as server:
        reading, sizes = relayed(request_sse(server.url, decode="text")), []
        while True:
            try:
                sizes.append(len(reading.next()))
            except (StopIteration, StopAsyncIteration):
                break
    assert max(sizes) < 64 * 1024 + 10_010
    assert sum(size for size in sizes if size > 3) == 50 * 10_008


def test_heartbeats_are_sent_while_there_is_no_event(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()
    with SSEServer([respond(), hold(go), send(1), DONE]) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=60)
        at = clock.monotonic()
        assert reading.next() == HEARTBEAT
        assert clock.monotonic() - at < 60
        assert [clock.advance_until_done(reading.next, step=10) for _ in range(2)] == [HEARTBEAT] * 2
        assert clock.monotonic() - at >= 120
        go.set()
        assert reading.rest() == b"data: 1\n\ndata: [DONE]\n\n"


def test_no_heartbeat_is_sent_between_frequent_events(clock: FakeClock, relayed: Relay) -> None:
    flags = [threading.Event() for _ in range(5)]
    with SSEServer([respond(), *(step for n, flag in enumerate(flags) for step in (hold(flag), send(n)))]) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=60)
        assert reading.next() == HEARTBEAT
        for n, flag in enumerate(flags):
            # Two thirds of the heartbeat since the previous event.
            clock.advance(40)
            flag.set()
            assert reading.next() == b"data: %d\n\n" % n
        reading.close()


def test_heartbeats_are_sent_while_map_leaves_out_every_event(clock: FakeClock, relayed: Relay) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        while True:
            yield send(1)
            yield wait(0.005)

    with SSEServer(script) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=60, map=lambda item: None)
        assert reading.next() == HEARTBEAT
        assert [clock.advance_until_done(reading.next, step=10) for _ in range(2)] == [HEARTBEAT] * 2
        reading.close()
        server.requests[0].wait_aborted()


def test_heartbeat_none_sends_only_the_first(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()
    with SSEServer([respond(), hold(go), send(1), DONE]) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=None)
        assert reading.next() == HEARTBEAT
        clock.advance(100_000)
        waiting = in_thread(reading.next)
        until(lambda: is_idle(waiting))
        go.set()
        assert waiting.result(30).startswith(b"data: 1\n\n")
        reading.close()


def test_close_aborts_the_upstream(relayed: Relay) -> None:
    with SSEServer([send(1), silence()]) as server:
        reading = relayed(request_sse(server.url))
        assert reading.next_event() == b"data: 1\n\n"
        reading.close()
        server.requests[0].wait_aborted()
        assert reading.rest() == b""
        reading.close()


def test_close_unblocks_a_waiting_thread() -> None:
    with SSEServer([send(1), silence()]) as server:
        frames = relay.frames(request_sse(server.url))
        while next(frames) == HEARTBEAT:
            pass
        reading = in_thread(lambda: list(frames))
        until(lambda: is_waiting(reading))
        frames.close()
        assert reading.result(30) == []
        server.requests[0].wait_aborted()


def test_cancellation_of_the_servers_task_aborts_the_upstream() -> None:
    async def main() -> None:
        frames = relay.aframes(await arequest_sse(server.url))
        while await anext(frames) == HEARTBEAT:
            pass
        task = asyncio.create_task(collect(frames))
        # The task waits for a frame after its first step.
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.requests[0].wait_aborted)

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())


def test_asynchronous_stream_is_forwarded() -> None:
    async def main() -> None:
        assert b"".join(await collect(relay.aframes(await arequest_sse(server.url)))) == b"data: 1\n\ndata: [DONE]\n\n"
        response = await arequest_sse(server.url)
        assert b"".join(await collect(relay.aframes(response.events, done=False))) == b"data: 1\n\n"

    with SSEServer([send(1), DONE]) as server:
        asyncio.run(main())


@pytest.mark.parametrize(
    ("steps", "options", "kind"),
    [
        ([reset()], {}, "ReadError"),
        ([cut()], {}, "TruncatedStreamError"),
        ([], {"require_done": True}, "TruncatedStreamError"),
        ([silence()], {"timeout": {"read": None, "idle": 60}}, "StreamTimeoutError"),
        ([b"data: " + bytes(2000)], {"max_event_bytes": 1000}, "BufferLimitError"),
    ],
)
def test_broken_upstream_ends_with_an_error_event(
    clock: FakeClock,
    relayed: Relay,
    caplog: pytest.LogCaptureFixture,
    steps: list[Any],
    options: dict[str, Any],
    kind: str,
) -> None:
    with SSEServer([send(1), *steps]) as server:
        reading = relayed(request_sse(server.url, **options))
        read = reading.next_event()
        if kind == "StreamTimeoutError":
            read += clock.advance_until_done(reading.rest, step=10)
        read += reading.rest()
        port = server.url.rpartition(":")[2].strip("/")
    assert read.startswith(b"data: 1\n\nevent: error\n")
    error = error_of(read)
    assert error["type"] == kind
    assert port not in error["message"]
    assert f"ended with {kind}" in caplog.text


def test_failure_of_map_is_logged_and_reported_without_details(
    relayed: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send(1), silence()]) as server:
        read = relayed(request_sse(server.url), map=lambda item: item["secret"]).rest()
        server.requests[0].wait_aborted()
    assert error_of(read)["type"] == "ServerError"
    assert "secret" not in read.decode()
    assert 'item["secret"]' in caplog.text


def test_failure_of_a_decode_function_is_logged_with_its_traceback(
    relayed: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send(1), silence()]) as server:
        read = relayed(request_sse(server.url, decode=lambda event: ["wrong"][int(event.data)])).rest()
        server.requests[0].wait_aborted()
    assert error_of(read)["type"] == "DecodeError"
    assert '["wrong"][int(event.data)]' in caplog.text


def test_system_exit_in_map_ends_only_the_relay(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    with SSEServer([send(1), silence()]) as server:
        read = relayed(request_sse(server.url), map=lambda item: sys.exit("enough")).rest()
        server.requests[0].wait_aborted()
    assert error_of(read)["type"] == "ServerError"
    assert "enough" in caplog.text


def test_interrupt_in_map_passes_in_a_thread_without_a_loop() -> None:
    def interrupted(item: Any) -> Any:
        raise KeyboardInterrupt

    with SSEServer([send(1), silence()]) as server:
        frames = relay.frames(request_sse(server.url), map=interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(frames)
        frames.close()
        server.requests[0].wait_aborted()


def test_stream_read_elsewhere_before_the_first_piece_is_an_error(
    relayed: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send(1), DONE]) as server:
        response = request_sse(server.url)
        reading = relayed(response)
        assert list(response.events) == [1]
        assert error_of(reading.rest())["type"] == "ServerError"
    assert "another consumer" in caplog.text


@pytest.mark.parametrize("by", ["close", "flag"])
def test_stream_that_its_owner_ends_is_cancelled_for_the_client(relayed: Relay, by: str) -> None:
    """It gets no done event, and cannot take what it has for the whole answer."""
    flag = threading.Event()
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url, cancel=flag)
        reading = relayed(stream, done="over")
        assert reading.next_event() == b"data: 1\n\n"
        if by == "close":
            stream.events.close()
        else:
            flag.set()
        assert reading.rest().startswith(b"event: cancelled\n")


@pytest.mark.blocks_its_loop
def test_slow_map_delays_no_finished_frame(clock: FakeClock, relayed: Relay) -> None:
    with SSEServer([*[send(n) for n in range(20)], DONE]) as server:
        stream = request_sse(server.url, timeout=None)
        until(lambda: stream.events.stats.events == 20)

        def slowly(item: int) -> str:
            clock.advance(30)
            return str(item)

        reading = relayed(stream, map=slowly)
        first = reading.next_event().count(b"data: ")
        assert first <= 2
        assert first + reading.rest().count(b"data: ") == 21


def test_aframes_of_a_refusal_end_with_a_status_error() -> None:
    async def main() -> None:
        read = b"".join(await collect(relay.aframes(await arequest_sse(server.url))))
        assert error_of(read)["type"] == "StatusError"

    with SSEServer([respond(503), b"busy"]) as server:
        asyncio.run(main())


def test_frames_of_a_refusal_raise_status_error() -> None:
    with SSEServer([respond(503), b"busy"]) as server, pytest.raises(StatusError) as caught:
        relay.frames(request_sse(server.url))
    assert caught.value.body == b"busy"


# The exceptions of signal handlers.


class Interrupted(ItemReader[Any]):
    """A reader in whose call a signal handler raises an exception, after an item was taken."""

    kind: type[Exception]

    def next(self, timeout: float | None = None) -> Any:
        super().next(timeout)
        raise self.kind

    async def anext(self, timeout: float | None = None) -> Any:
        await super().anext(timeout)
        raise self.kind


def interrupted_stream(kind: type[Exception]) -> Any:
    stream = numbers(end=End("eof"))
    reader: Any = reader_of(stream)
    reader.__class__ = Interrupted
    reader.kind = kind
    return stream


@pytest.mark.parametrize("kind", [TimeoutError, LookupError])
def test_exception_of_a_signal_handler_ends_the_relay(kind: type[Exception], relayed: Relay) -> None:
    """A TimeoutError is not taken for a wait that has elapsed."""
    stream = interrupted_stream(kind)
    assert b"event: error" in relayed(stream).rest()
    assert stream.outcome == "closed"


def test_stop_async_iteration_of_a_signal_handler_ends_the_relay() -> None:
    stream = interrupted_stream(StopAsyncIteration)
    assert b"event: error" in b"".join(relay.frames(stream))
    assert stream.outcome == "closed"


def test_frames_are_read_by_one_call_at_a_time() -> None:
    errors: list[UsageError] = []

    def read_again(item: str) -> str:
        with pytest.raises(UsageError, match="one call at a time") as caught:
            next(frames)
        errors.append(caught.value)
        return item

    frames = relay.frames(numbers(end=End("eof")), map=read_again)
    assert b"".join(frames).endswith(b"data: 3\n\n")
    assert len(errors) == COUNT


def test_iterable_must_not_read_its_own_relay() -> None:
    def items() -> Iterator[str]:
        yield "0"
        next(frames)

    frames = relay.frames(items())
    assert b"event: error" in b"".join(frames)
