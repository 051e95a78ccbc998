"""A reader that leaves while `start` waits for the upstream: the stream goes on, for others and for its return."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from sseqbridge import RequestAbortedError, arequest_sse, cancel_on, relay, request_sse
from sseqbridge.resume import Log, MemoryLog
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, respond, send, silence
from tests.support import in_thread, until

from .support import DONE, Logs, expire_lease_when_killed, hub_of

pytestmark = pytest.mark.slow


@pytest.fixture
def go() -> threading.Event:
    """Lets the upstream answer."""
    return threading.Event()


def waiting(upstream: SSEServer) -> None:
    """Wait until the upstream has received the request."""
    upstream.wait_for_request(timeout=30)


def is_read_whole(log: Log, go: threading.Event) -> None:
    """Check that a second reader, which does not begin the stream, gets all of it."""
    second = in_thread(lambda: log.open("k", wait=30).collect())
    go.set()
    assert second.result(30) == [{"n": 1}]


def test_relay_whose_client_leaves_keeps_the_stream(log: Log, go: threading.Event) -> None:
    with SSEServer([hold(go), send({"n": 1}), DONE]) as upstream:
        frames = relay.frames(partial(log.open, "k", partial(request_sse, upstream.url)))
        opening = in_thread(frames.open)
        waiting(upstream)
        frames.close()
        is_read_whole(log, go)
        opening.exception(30)
        assert not upstream.requests[0].aborted.is_set()


def test_cancelled_scope_keeps_the_stream(log: Log, go: threading.Event) -> None:
    flag = threading.Event()

    def read() -> bool:
        with cancel_on(flag) as scope, log.open("k", partial(request_sse, upstream.url)) as events:
            events.collect()
        return scope.cancelled

    with SSEServer([hold(go), send({"n": 1}), DONE]) as upstream:
        reading = in_thread(read)
        waiting(upstream)
        flag.set()
        until(lambda: not hub_of(log).readers)
        is_read_whole(log, go)
        assert reading.result(30)


def test_coroutine_that_is_cancelled_after_its_election_releases_the_lease(logs: Logs) -> None:
    """Before it has called `start`."""
    log, store = logs.killable()
    claim, renew = store.claim, store.renew
    renewed, go = threading.Event(), asyncio.Event()

    async def main() -> None:
        loop, is_claimed = asyncio.get_running_loop(), asyncio.Event()

        async def claim_late(*args: Any, **options: Any) -> Any:
            reply = await claim(*args, **options)
            loop.call_soon_threadsafe(is_claimed.set)
            await go.wait()
            return reply

        async def renew_and_note(token: Any) -> Any:
            renewed.set()
            return await renew(token)

        store.claim, store.renew = claim_late, renew_and_note  # type: ignore[method-assign]
        opening = asyncio.create_task(log.aopen("k", partial(arequest_sse, upstream.url)))
        await is_claimed.wait()
        store.claim = claim  # type: ignore[method-assign]
        hub_of(log).loop.call_soon_threadsafe(go.set)
        # Blocks this loop, so that the task cannot receive the producer, which renews its lease after the election.
        assert renewed.wait(30)
        opening.cancel()
        await asyncio.wait({opening})
        assert opening.cancelled()

    with SSEServer([send({"n": 1}), DONE]) as upstream:
        asyncio.run(main())
        until(lambda: log.produce("k", partial(request_sse, upstream.url)) == "done")
        assert len(upstream.requests) == 1


def test_cancelled_scope_whose_stream_is_abandoned_ends_quietly() -> None:
    flag = threading.Event()

    def read() -> bool:
        with cancel_on(flag) as scope:
            log.open("k", partial(request_sse, upstream.url))
        return scope.cancelled

    with SSEServer([silence()]) as upstream, MemoryLog(abandon_after=0.01) as log:
        reading = in_thread(read)
        waiting(upstream)
        flag.set()
        assert reading.result(30)
        upstream.requests[0].wait_aborted(30)


@pytest.mark.parametrize("is_async", [False, True], ids=["request_sse", "arequest_sse"])
def test_cancelled_aopen_keeps_the_stream(log: Log, go: threading.Event, is_async: bool) -> None:
    async def main() -> None:
        opening = asyncio.create_task(log.aopen("k", start))
        await asyncio.to_thread(waiting, upstream)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.to_thread(is_read_whole, log, go)

    with SSEServer([hold(go), respond(framing="close"), send({"n": 1}), DONE]) as upstream:
        start: Any = partial(arequest_sse if is_async else request_sse, upstream.url)
        asyncio.run(main())


def test_cancelled_aopen_reports_nothing_of_a_start_that_fails(log: Log, go: threading.Event) -> None:
    reports: list[dict[str, Any]] = []

    def start() -> Any:
        called.set()
        assert go.wait(30)
        raise ZeroDivisionError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        opening = asyncio.create_task(log.aopen("k", start))
        await asyncio.to_thread(called.wait, 30)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        go.set()
        # The stream begins again after its lease was released.
        events = await log.aopen("k", partial(request_sse, upstream.url), takeover=True)
        assert await events.collect() == [{"n": 1}]

    called = threading.Event()
    with SSEServer([send({"n": 1}), DONE]) as upstream:
        asyncio.run(main())
    assert reports == []


def test_cancel_flag_of_open_aborts_a_start_that_waits(log: Log, go: threading.Event) -> None:
    flag = threading.Event()
    with SSEServer([hold(go), send({"n": 1}), DONE]) as upstream:
        opening = in_thread(lambda: log.open("k", partial(request_sse, upstream.url), cancel=flag))
        waiting(upstream)
        flag.set()
        with pytest.raises(RequestAbortedError):
            opening.result(30)
        upstream.requests[0].wait_aborted(30)
        go.set()


def test_reader_that_leaves_during_a_takeover_keeps_the_stream(logs: Logs, go: threading.Event) -> None:
    log, store = logs.killable()
    store.kill_at = ("append", 2, False)
    first = threading.Event()

    def script(_: ReceivedRequest) -> list[Step]:
        return [hold(go), send(2), DONE] if first.is_set() else [send(0), hold(first), send(1), silence()]

    with SSEServer(script) as upstream:
        reader = log.open("k", partial(request_sse, upstream.url), takeover=True)
        assert next(reader) == 0
        reading = in_thread(lambda: next(reader))
        first.set()
        expire_lease_when_killed(logs, store)
        upstream.wait_for_request(2, timeout=30)
        reader.close()
        assert isinstance(reading.exception(30), StopIteration)
        go.set()
        assert log.open("k").collect()[-1] == 2
        assert not upstream.requests[1].aborted.is_set()
