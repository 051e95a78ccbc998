"""relay.end_all, and clients that do not read."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from sseqbridge import EventStreamParser, ServerSentEvent, UsageError, arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import SSEServer, send, silence
from tests.clock import FakeClock
from tests.relay.support import DONE, Relay, error_of
from tests.support import in_thread, is_waiting, until

pytestmark = pytest.mark.configurations("default", "plain", "httpx_transport")


def shutdown_of(read: bytes) -> ServerSentEvent:
    """Return the last event, which must be that of a shutdown."""
    [*_, event] = EventStreamParser().feed(read)
    assert isinstance(event, ServerSentEvent)
    assert event.event == "shutdown"
    assert event.json()["error"]["type"] == "ServerShutdown"
    return event


def test_all_relays_end_with_an_event_and_a_reconnection_time(relayed: Relay) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([send(1, id="7"), silence()]) as server:
        readings = [relayed(request_sse(server.url), on_end=ends.append) for _ in range(3)]
        for reading in readings:
            assert reading.next_event() == b"id: 7\ndata: 1\n\n"
        relay.end_all(retry=2.5)
        for reading in readings:
            assert shutdown_of(reading.rest()).retry == 2.5
        for request in server.requests:
            request.wait_aborted()
    assert ends == [RelayEnd("cancelled", None, "7")] * 3


def test_retry_may_be_left_out(relayed: Relay) -> None:
    reading = relayed(["a"])
    relay.end_all(retry=None)
    assert shutdown_of(reading.rest()).retry is None


def test_first_of_two_shutdowns_counts(relayed: Relay) -> None:
    reading = relayed(["a"])
    relay.end_all(retry=1.0)
    relay.end_all(retry=2.0)
    assert shutdown_of(reading.rest()).retry == 1.0


@pytest.mark.parametrize("retry", [-1, "5", float("inf")])
def test_retry_must_be_a_number_of_seconds(retry: Any) -> None:
    with pytest.raises(UsageError, match="`retry` must be a number of seconds, at least 0"):
        relay.end_all(retry)


@pytest.mark.parametrize("early", [False, True])
def test_waiting_thread_is_woken(early: bool) -> None:
    with SSEServer([send(1), silence()]) as server:
        streams: list[Any] = [request_sse(server.url), functools.partial(request_sse, server.url)]
        for stream in streams:
            frames = relay.frames(stream, heartbeat=None, early=early)
            while b"data" not in next(frames):
                pass
            reading: Future[list[bytes]] = in_thread(functools.partial(list, frames))
            until(functools.partial(is_waiting, reading))
            relay.end_all()
            assert shutdown_of(b"".join(reading.result(30))).retry == 5


@pytest.mark.parametrize("early", [False, True])
def test_upstream_that_has_not_answered_is_aborted(relayed: Relay, early: bool) -> None:
    with SSEServer([silence()]) as server:
        reading = relayed(lambda: request_sse(server.url), early=early)
        waiting = in_thread(reading.rest)
        request = server.wait_for_request()
        relay.end_all()
        request.wait_aborted()
        shutdown_of(waiting.result(30))


def test_iterables_end(relayed: Relay) -> None:
    closed = threading.Event()

    def items() -> Iterator[str]:
        try:
            while True:
                yield "a"
        finally:
            closed.set()

    reading = relayed(items())
    assert reading.next_event()
    relay.end_all()
    shutdown_of(reading.rest())
    assert closed.wait(30)


def test_asynchronous_iterables_end() -> None:
    async def items() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    async def main() -> None:
        frames = relay.aframes(items())
        assert await anext(frames) == HEARTBEAT
        reading = asyncio.create_task(anext(frames))
        await asyncio.sleep(0)
        relay.end_all()
        shutdown_of(await reading)
        assert [piece async for piece in frames] == []

    asyncio.run(main())


def test_later_relays_are_not_affected(relayed: Relay) -> None:
    ended = relayed(["a"])
    assert ended.rest() == b"data: a\n\n"
    relay.end_all()
    assert ended.rest() == b""
    assert relayed(["a"]).rest() == b"data: a\n\n"


def test_close_after_end_all_sends_nothing(relayed: Relay) -> None:
    ends: list[RelayEnd] = []
    reading = relayed(["a"], on_end=ends.append)
    relay.end_all()
    reading.close()
    assert reading.rest() == b""
    assert [end.outcome for end in ends] == ["cancelled"]


def test_signal_handler_may_end_all_relays() -> None:
    """In the thread that waits for the upstream."""

    def handle(number: int, frame: object) -> None:
        relay.end_all()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with SSEServer([send(1), silence()]) as server:
            frames = relay.frames(request_sse(server.url), heartbeat=None)
            while b"data" not in next(frames):
                pass
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            shutdown_of(b"".join(frames))

            async def main() -> None:
                frames = relay.aframes(await arequest_sse(server.url), heartbeat=None)
                while b"data" not in await anext(frames):
                    pass
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                shutdown_of(b"".join([piece async for piece in frames]))

            asyncio.run(main())
    finally:
        signal.signal(signal.SIGUSR1, before)


# Clients that do not read.


def test_client_that_does_not_read_frees_the_upstream(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        ends: asyncio.Queue[RelayEnd] = asyncio.Queue()
        stream = await arequest_sse(server.url, timeout=None)
        frames = relay.aframes(stream, send_timeout=30, on_end=ends.put)
        while b"data" not in await anext(frames):
            pass
        await clock.aadvance_until_done(asyncio.to_thread(server.requests[0].wait_aborted), step=10)
        assert await ends.get() == RelayEnd("disconnected", None, "7")
        read = b"".join([piece async for piece in frames])
        assert error_of(read)["type"] == "SendTimeout"
        assert ends.empty()

    with SSEServer([send(1, id="7"), silence()]) as server:
        asyncio.run(main())
    assert "has not read for 30 s" in caplog.text


def test_client_that_reads_is_not_given_up(clock: FakeClock) -> None:
    async def main() -> None:
        frames = relay.aframes(await arequest_sse(server.url, timeout=None), send_timeout=30, heartbeat=None)
        pieces = []
        async for piece in frames:
            await asyncio.to_thread(clock.advance, 20)
            await asyncio.sleep(0)
            pieces.append(piece)
        assert b"".join(pieces).replace(HEARTBEAT, b"").endswith(b"data: [DONE]\n\n")

    with SSEServer([send(1), DONE]) as server:
        asyncio.run(main())


def test_send_timeout_keeps_no_relay_alive() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def items() -> AsyncIterator[str]:
            try:
                yield "a"
                await asyncio.Event().wait()
            finally:
                closed.set()

        frames = relay.aframes(items(), send_timeout=2500)
        while await anext(frames) == HEARTBEAT:
            pass
        del frames
        await closed.wait()

    asyncio.run(main())


def test_send_timeout_is_for_asynchronous_servers() -> None:
    options: dict[str, Any] = {"send_timeout": 5}
    with pytest.raises(TypeError, match="unexpected keyword argument 'send_timeout'"):
        relay.frames([], **options)
    for seconds in (0, "5"):
        options = {"send_timeout": seconds}
        with pytest.raises(UsageError, match="`send_timeout` must be a number of seconds above 0"):
            relay.aframes([], **options)


def test_end_all_in_a_forked_child_leaves_the_parents_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = relay.frames(["a"], heartbeat=None)
    with monkeypatch.context() as child:
        child.setattr("sseqbridge._runtime.fork.process_token", lambda: (1, 1))
        relay.end_all()
    assert b"".join(frames).endswith(b"data: a\n\n")


def test_error_that_follows_end_all_is_not_sent() -> None:
    def fail(item: str) -> str:
        relay.end_all()
        raise LookupError

    async def main() -> bytes:
        stream = await arequest_sse(server.url)
        return b"".join([piece async for piece in relay.aframes(stream, map=fail)])

    with SSEServer([send(1), silence()]) as server:
        shutdown_of(asyncio.run(main()))


@pytest.mark.parametrize("is_dropped", [False, True])
def test_send_timeout_after_the_last_frame_does_nothing(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, is_dropped: bool
) -> None:
    async def items() -> AsyncIterator[str]:
        raise LookupError
        yield ""

    async def main() -> None:
        frames: Any = relay.aframes(items(), send_timeout=30, heartbeat=None)
        while b"error" not in await anext(frames):
            pass
        if is_dropped:
            frames = None
        passed = asyncio.Event()
        asyncio.get_running_loop().call_later(31, passed.set)
        await clock.aadvance_until_done(passed.wait(), step=10)

    asyncio.run(main())
    assert "has not read" not in caplog.text
