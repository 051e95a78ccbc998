"""Reconnecting before the first response, and the total limit."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading

import pytest

from sseqbridge import (
    ConnectError,
    ReconnectionError,
    ReconnectionPolicy,
    RedirectError,
    StreamTimeoutError,
    Timeout,
)
from sseqbridge.testing import (
    SSEServer,
    cut,
    hold,
    in_turn,
    respond,
    send,
    silence,
)
from tests.clock import FakeClock
from tests.engine.reconnecting import AT_ONCE, DONE, LATE, UNLIMITED, Notes
from tests.requesters import Requester
from tests.support import in_thread, until

pytestmark = pytest.mark.slow


# The first response.


def test_first_connection_is_retried(ask: Requester) -> None:
    notes = Notes()
    busy = [respond(503, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn([cut()], busy, [respond(429)], [send(1), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes)
        assert response.status == 200
        assert response.items() == [1]
        assert response.events.stats.reconnections == 0
    assert [attempt for attempt, _, _ in notes.calls] == [1, 2, 3]
    assert notes.threads == {threading.get_ident()}


def test_first_connection_with_a_final_failure_is_not_retried(ask: Requester) -> None:
    with SSEServer([respond(401, content_type="text/plain"), b"no"]) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert (response.status, response.items()) == (401, ["no"])
        assert len(server.requests) == 1
    with SSEServer([respond(302)]) as server:
        with pytest.raises(RedirectError):
            ask(server.url, reconnect=AT_ONCE)
        assert len(server.requests) == 1


def test_attempts_limit_the_wait_for_the_first_response(ask: Requester, closed_port: int) -> None:
    policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=2)
    with pytest.raises(ReconnectionError) as caught:
        ask(f"http://127.0.0.1:{closed_port}", reconnect=policy)
    assert caught.value.attempts == 2
    assert isinstance(caught.value.__cause__, ConnectError)
    with SSEServer([respond(503, content_type="text/plain"), b"busy"]) as server:
        response = ask(server.url, reconnect=policy)
        assert (response.status, response.items(), response.events.outcome) == (503, ["busy"], "eof")
        assert len(server.requests) == 3


def test_total_limits_the_wait_for_the_first_response(clock: FakeClock, ask: Requester, closed_port: int) -> None:
    notes = Notes()
    policy = ReconnectionPolicy(delay=600, max_delay=600, factor=1, jitter=0)
    url, timeout = f"http://127.0.0.1:{closed_port}", Timeout(total=1000)
    began = clock.monotonic()
    # The second attempt is within the limit, a third one would come too late.
    asking = in_thread(lambda: ask(url, reconnect=policy, timeout=timeout, on_reconnect=notes))
    until(lambda: notes.calls)
    with pytest.raises(ReconnectionError) as caught:
        clock.advance_until_done(asking.result, step=50)
    assert clock.monotonic() - began >= 600
    assert (caught.value.attempts, len(notes.calls)) == (1, 1)
    assert isinstance(caught.value.__cause__, (ConnectError, StreamTimeoutError))


def test_no_attempt_is_planned_after_the_deadline(ask: Requester, closed_port: int) -> None:
    notes = Notes()
    with pytest.raises(ReconnectionError, match=r"would not be within 999 s; timeout=Timeout\(total=") as caught:
        ask(f"http://127.0.0.1:{closed_port}", reconnect=LATE, timeout=Timeout(total=999), on_reconnect=notes)
    assert (caught.value.attempts, notes.calls) == (0, [])
    assert isinstance(caught.value.__cause__, ConnectError)


def test_last_response_is_returned_at_the_deadline(ask: Requester) -> None:
    """The next attempt would come too late."""
    busy = [respond(503, {"Retry-After": "100"}, content_type="text/plain"), b"busy"]
    with SSEServer(busy) as server:
        response = ask(server.url, reconnect=LATE)
        assert (response.status, response.items()) == (503, ["busy"])
        assert len(server.requests) == 1


def test_last_response_is_returned_if_the_next_is_late(clock: FakeClock, ask: Requester) -> None:
    busy = [respond(503, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn(busy, [silence()])) as server:
        asking = in_thread(lambda: ask(server.url, reconnect=AT_ONCE, timeout=Timeout(total=1000)))
        server.wait_for_request(2, timeout=30)
        response = clock.advance_until_done(asking.result, step=100)
        assert (response.status, response.events.outcome) == (503, None)
        server.requests[1].wait_aborted(30)


def test_last_response_is_returned_if_attempts_fail(ask: Requester) -> None:
    busy = [respond(503, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn(busy, [cut()])) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1)
        response = ask(server.url, reconnect=policy)
        assert (response.status, response.items(), response.events.outcome) == (503, ["busy"], "eof")


@pytest.mark.parametrize("total", [1000, None], ids=["total", "a minute"])
def test_deadline_ends_an_attempt_under_way(clock: FakeClock, ask: Requester, total: float | None) -> None:
    began = clock.monotonic()
    with SSEServer([silence()]) as server:
        asking = in_thread(lambda: ask(server.url, reconnect=AT_ONCE, timeout=Timeout(total=total, read=None)))
        server.wait_for_request(timeout=30)
        with pytest.raises(ReconnectionError) as caught:
            clock.advance_until_done(asking.result, step=10)
        cause = caught.value.__cause__
        assert isinstance(cause, StreamTimeoutError)
        assert (cause.which, cause.seconds) == ("total", total or 60)
        assert f"there was no response within {total or 60} s; timeout=Timeout(total=...)" in str(caught.value)
        assert clock.monotonic() - began >= (total or 60)
        server.requests[0].wait_aborted(30)


def test_without_total_only_the_first_response_has_a_limit(clock: FakeClock, ask: Requester) -> None:
    flag = threading.Event()
    with SSEServer([send(1), hold(flag), DONE]) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.next() == 1
        clock.advance(100)
        response.settle()
        flag.set()
        assert response.items() == []
        assert len(server.requests) == 1


def test_infinite_total_waits_for_the_first_response(clock: FakeClock, ask: Requester) -> None:
    timeout = dataclasses.replace(UNLIMITED, total=math.inf)
    with SSEServer(in_turn([cut()], [hold(), send(1), DONE])) as server:
        asking = in_thread(lambda: ask(server.url, reconnect=AT_ONCE, timeout=timeout).items())
        server.wait_for_request(2, timeout=30)
        end = clock.monotonic() + 1_000_000
        # Lets the loops run their timers.
        clock.advance_until(lambda: clock.monotonic() > end, step=100_000)
        server.release()
        assert asking.result(30) == [1]


def test_total_holds_across_connections(clock: FakeClock, ask: Requester) -> None:
    policy = ReconnectionPolicy(delay=10, factor=1, jitter=0)
    with SSEServer([send(1), cut()]) as server:
        response = ask(server.url, reconnect=policy, timeout=dataclasses.replace(UNLIMITED, total=1_000_000))
        for _ in range(3):
            assert clock.advance_until_done(response.next) == 1
        _, error = clock.advance_until_done(response.fail, step=100_000)
        assert isinstance(error, StreamTimeoutError)
        assert (error.which, error.seconds) == ("total", 1_000_000)


@pytest.mark.parametrize("delay_from", ["policy", "retry", "Retry-After"])
def test_total_ends_a_longer_wait(
    clock: FakeClock, ask: Requester, delay_from: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = LATE if delay_from == "policy" else ReconnectionPolicy(delay=0.01, max_delay=1e6, jitter=0)
    first = [send(1, retry=1e6 if delay_from == "retry" else None), cut()]
    with (
        caplog.at_level(logging.DEBUG, "sseqbridge"),
        SSEServer(in_turn(first, [respond(503, {"Retry-After": "1000000"})])) as server,
    ):
        began = clock.monotonic()
        response = ask(server.url, reconnect=policy, timeout=dataclasses.replace(UNLIMITED, total=300))
        assert response.next() == 1
        # Before the clock is advanced, so that the request itself is not late.
        ask.run_blocking(until, lambda: "to reconnect in 1e+06 s" in caplog.text)
        items, error = clock.advance_until_done(response.fail)
        assert items == []
        assert isinstance(error, StreamTimeoutError)
        assert error.which == "total"
        # Long before the end of the wait, also on a busy machine.
        assert 300 <= clock.monotonic() - began < 100_000
        assert len(server.requests) == (2 if delay_from == "Retry-After" else 1)
