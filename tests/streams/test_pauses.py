"""The pause that the calls of a gather share, the time limits of those that wait for it, and their requests."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from sseqbridge import SSEClient, StatusError, StreamTimeoutError, Timeout, gather
from sseqbridge._engine import retrying
from sseqbridge._engine.attempt_options import options_of_attempt
from sseqbridge._http.pauses import CallPauses
from sseqbridge._http.request import RequestOptions
from sseqbridge._http.urls import origin_key
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, in_turn, raw, respond, send, silence
from tests.clock import FakeClock
from tests.support import in_thread

GOOD = [send(1), send("[DONE]")]


def limited(status: int = 429, seconds: int = 60) -> list[Any]:
    headers = {"Retry-After": str(seconds)}
    return [respond(status, headers, content_type="text/plain", framing="length"), raw(b"no")]


class Waits:
    """Waits for pauses: `began` is set when a pause begins, `ended` at the end of the first wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()
        begin, wait = CallPauses.begin, CallPauses.wait

        def begun(pauses: CallPauses, origin: str, seconds: float) -> None:
            begin(pauses, origin, seconds)
            self.began.set()

        async def noted(pauses: CallPauses, origin: str) -> bool:
            has_waited = await wait(pauses, origin)
            if has_waited:
                self.ended.set()
            return has_waited

        monkeypatch.setattr(CallPauses, "begin", begun)
        monkeypatch.setattr(CallPauses, "wait", noted)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "retries": {"retries": 1}, "reconnect": {"reconnect": True}}


def client_of(server: SSEServer, total: float | None, **options: Any) -> SSEClient[Any]:
    return SSEClient(server.url, timeout=Timeout(connect=None, read=None, total=total), **options)


@pytest.mark.parametrize("kind", OPTIONS)
def test_pause_does_not_count_for_total(clock: FakeClock, waits: Waits, kind: str) -> None:
    with SSEServer(in_turn(limited(), GOOD)) as server:
        calls = [client_of(server, None).call("/"), client_of(server, 30, **OPTIONS[kind]).call("/")]
        gathering = gather(calls, limit=1, errors="yield")
        assert isinstance(next(gathering)[1], StatusError)
        reading = in_thread(lambda: next(gathering))
        clock.advance_until(lambda: waits.ended.is_set() or reading.done())
        assert reading.result(30) == (1, [1])


def test_pause_does_not_count_for_the_first_answers_sixty_seconds(clock: FakeClock, waits: Waits) -> None:
    with SSEServer(in_turn(limited(seconds=100), GOOD)) as server:
        calls = [client_of(server, None).call("/"), client_of(server, None, reconnect=True).call("/")]
        gathering = gather(calls, limit=1, errors="yield")
        assert isinstance(next(gathering)[1], StatusError)
        reading = in_thread(lambda: next(gathering))
        clock.advance_until(lambda: waits.ended.is_set() or reading.done())
        assert reading.result(30) == (1, [1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_total_holds_after_a_pause(clock: FakeClock, waits: Waits, kind: str) -> None:
    with SSEServer(in_turn(limited(), [send(1), silence()])) as server:
        calls = [client_of(server, None).call("/"), client_of(server, 30, **OPTIONS[kind]).call("/")]
        gathering = gather(calls, limit=1, errors="yield")
        next(gathering)
        reading = in_thread(lambda: next(gathering))
        clock.advance_until(lambda: waits.ended.is_set() or reading.done())
        server.wait_for_request(2)
        clock.advance_until(reading.done)
        _, error = reading.result()
        assert isinstance(error, StreamTimeoutError)
        assert (error.which, error.seconds) == ("total", 30)


@pytest.mark.slow
def test_retry_that_waits_for_another_calls_pause_is_sent(clock: FakeClock, waits: Waits) -> None:
    """Although the pause is longer than its `total`."""
    failing = in_turn([hold(waits.began), *limited(503, 0)], GOOD)
    with SSEServer(lambda request: limited() if request.path == "/first" else failing(request)) as server:
        calls = [client_of(server, None).call("/first"), client_of(server, 30, retries=2).call("/second")]
        reading = in_thread(lambda: dict(gather(calls, limit=2, errors="yield")))
        assert waits.began.wait(30)
        clock.advance_until(lambda: waits.ended.is_set() or reading.done(), step=0.5)
        assert reading.result(30)[1] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("has_function", [False, True])
def test_request_is_built_once_for_each_attempt(
    clock: FakeClock, waits: Waits, monkeypatch: pytest.MonkeyPatch, has_function: bool
) -> None:
    renewed: list[RequestOptions] = []

    async def noted(options: RequestOptions) -> RequestOptions:
        renewed.append(options)
        return await options_of_attempt(options)

    monkeypatch.setattr(retrying, "options_of_attempt", noted)
    headers: Any = (lambda: {"X-Key": "1"}) if has_function else {"X-Key": "1"}
    with SSEServer(in_turn(limited(), GOOD)) as server:
        client = client_of(server, None, headers=headers)
        results = clock.advance_until_done(lambda: dict(gather([client.call("/")] * 2, limit=1, errors="yield")))
        assert results[1] == [1]
        assert [request.headers["x-key"] for request in server.requests] == ["1", "1"]
    # With a function, the second request is built again after the pause: its headers may have expired.
    assert len(renewed) == has_function


def test_pause_that_begins_while_headers_are_made_holds(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed, sent = 0, []

    async def renew(options: RequestOptions) -> RequestOptions:
        nonlocal renewed
        renewed += 1
        if renewed == 1:
            # As after the refusal of another call.
            assert options.pauses is not None
            options.pauses.begin(origin_key(options.url), 60)
        return await options_of_attempt(options)

    script = in_turn(limited(), GOOD)

    def noted(request: ReceivedRequest) -> Iterable[Step]:
        sent.append(clock.monotonic())
        return script(request)

    monkeypatch.setattr(retrying, "options_of_attempt", renew)
    with SSEServer(noted) as server:
        calls = [client_of(server, None, headers=dict).call("/")] * 2
        results = clock.advance_until_done(lambda: dict(gather(calls, limit=1, errors="yield")))
    assert results[1] == [1]
    assert sent[1] - sent[0] >= 120
    assert renewed == 2
