"""Cancelling, deleting and abandoning streams, and cancel flags of readers."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sseqbridge import (
    CallbackError,
    RequestAbortedError,
    request_sse,
)
from sseqbridge.resume import Log
from sseqbridge.resume._store import OutageError, StaleTokenError
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, send, silence
from tests.support import in_thread, until

from .support import (
    DONE,
    LogCaller,
    Logs,
    cancel_during_claim,
)

pytestmark = [
    pytest.mark.configurations("default", "plain", "httpx_transport"),
    pytest.mark.slow,
]


def test_cancel_ends_all_readers_and_the_upstream(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        readings = [caller.open(log, "k", caller.start(upstream.url)) for _ in range(3)]
        assert [reading.next() for reading in readings] == [1, 1, 1]
        assert caller.cancel(log, "k") is True
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
        for reading in readings:
            assert (reading.items(), reading.outcome) == ([], "closed")
        assert caller.cancel(log, "k") is False
        after = caller.open(log, "k", caller.start(upstream.url))
        assert (after.items(), after.outcome) == ([1], "closed")
        assert caller.cancel(log, "other") is False


def test_cancel_without_readers_aborts_the_upstream(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        reading.close()
        assert caller.cancel(log, "k") is True
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)


def test_cancel_ends_a_request_without_an_answer(log: Log, caller: LogCaller) -> None:
    asked = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        asked.set()
        return [silence()]

    with SSEServer(script) as upstream:
        opened = in_thread(lambda: log.open("k", lambda: request_sse(upstream.url, timeout=30)))
        assert asked.wait(30)
        assert caller.cancel(log, "k") is True
        with pytest.raises(RequestAbortedError):
            opened.result(30)
        upstream.requests[0].wait_aborted(30)
        reading = caller.open(log, "k")
        assert (reading.items(), reading.outcome) == ([], "closed")


@pytest.mark.parametrize("ends", ["cancel", "flag"])
def test_upstream_started_after_the_end_is_aborted(log: Log, caller: LogCaller, ends: str) -> None:
    """`start` may be slow, and ignore all cancel flags."""
    called, go, flag = threading.Event(), threading.Event(), threading.Event()
    with SSEServer([send(1), silence()]) as upstream:

        def start() -> Any:
            response = request_sse(upstream.url)
            called.set()
            assert go.wait(30)
            return response

        opened = in_thread(lambda: log.open("k", start, cancel=flag))
        assert called.wait(30)
        if ends == "cancel":
            assert caller.cancel(log, "k")
        else:
            flag.set()
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
        go.set()
        if ends == "cancel":
            assert opened.result(30).collect() == []
        else:
            with pytest.raises(RequestAbortedError):
                opened.result(30)


def test_cancel_with_a_lost_reply_returns_true(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    cancel = store.cancel
    answers: list[bool] = []

    async def lose_the_first(*args: Any) -> bool:
        answers.append(await cancel(*args))
        if len(answers) == 1:
            raise OutageError("the reply is lost")
        return answers[-1]

    store.cancel = lose_the_first  # type: ignore[attr-defined]
    with SSEServer([send(1), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 1
        assert caller.cancel(log, "k") is True
        assert (reading.items(), reading.outcome, answers) == ([], "closed", [True, True])
        assert caller.cancel(log, "k") is False


def test_delete_lets_the_next_open_begin_again(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), DONE]) as upstream:
        assert caller.open(log, "k", caller.start(upstream.url)).items() == [1]
        assert caller.delete(log, "k") is True
        assert caller.delete(log, "k") is False
        assert caller.open(log, "k", caller.start(upstream.url)).items() == [1]
        assert len(upstream.requests) == 2
    with SSEServer([send(1), silence()]) as upstream:
        reading = caller.open(log, "other", caller.start(upstream.url))
        assert reading.next() == 1
        assert caller.delete(log, "other") is True
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)


def test_upstream_is_aborted_after_abandon_after_without_readers(logs: Logs, caller: LogCaller) -> None:
    log = logs.new(abandon_after=0.2)
    with SSEServer([send(1), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 1
        # The upstream continues while there is a reader.
        with pytest.raises(TimeoutError):
            reading.next(0.6)
        assert not upstream.requests[0].aborted.is_set()
        reading.close()
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)
        after = caller.open(log, "k")
        assert (after.items(), after.outcome) == ([1], "closed")


def test_abandoned_producer_with_a_stale_token_aborts_its_upstream(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable(abandon_after=0.1)
    with SSEServer([send(0), silence()]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        store.failures["end"] = StaleTokenError()
        reading.close()
        caller.run_blocking(upstream.requests[0].wait_aborted, 30)


def test_cancel_flag_ends_its_reader_alone(log: Log, caller: LogCaller) -> None:
    flag, go = threading.Event(), threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url), cancel=flag)
        assert reading.next() == 1
        timer = threading.Timer(0.1, flag.set)
        timer.start()
        # The reader waits for an event, and does not check the flag itself.
        assert (reading.items(), reading.outcome) == ([], "closed")
        timer.join()
        with pytest.raises(RequestAbortedError):
            caller.open(log, "k", cancel=flag)
        go.set()
        assert caller.open(log, "k").items() == [1, 2]


def test_cancel_flag_ends_the_wait_for_a_producer(log: Log, caller: LogCaller) -> None:
    class Flag:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 3

    class Broken:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 3 and 1 / 0 > 0

    with pytest.raises(RequestAbortedError, match="cancel was set"):
        caller.open(log, "k", wait=30, cancel=Flag())
    with pytest.raises(CallbackError):
        caller.open(log, "k", wait=30, cancel=Broken())


def test_reader_cancelled_during_its_election_releases_the_lease(logs: Logs) -> None:
    log, store = logs.killable()
    with SSEServer([send(1), DONE]) as upstream:
        cancel_during_claim(log, store, upstream.url)
        until(lambda: log.produce("k", lambda: request_sse(upstream.url)) == "done")
        assert len(upstream.requests) == 1


def test_reader_cancelled_during_a_claim_releases_no_other_lease(logs: Logs) -> None:
    log, store = logs.killable()
    end = threading.Event()
    with SSEServer([send(1), hold(end), DONE]) as upstream:
        reading = log.open("k", lambda: request_sse(upstream.url))
        assert next(reading) == 1
        cancel_during_claim(log, store, upstream.url)
        # The loop handles the cancelled claim before this call.
        assert log.produce("k", lambda: request_sse(upstream.url)) is None
        end.set()
        assert (list(reading), reading.outcome) == ([], "done")
        assert len(upstream.requests) == 1
