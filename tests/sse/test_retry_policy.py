"""The reconnection policy, without a network: drops go in, decisions come out."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge import (
    BufferLimitError,
    CallbackError,
    ConnectError,
    ContentTypeError,
    ProtocolError,
    ReadError,
    ReconnectionPolicy,
    RedirectError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    TruncatedStreamError,
    UsageError,
)
from sseqbridge._sse.header_dates import http_date, retry_after
from sseqbridge._sse.retry_policy import Drop, GiveUp, Retry, Stop

BROKEN = ReadError("broken")


def never_random() -> float:
    return 1.0


def status_error(status: int) -> StatusError:
    return StatusError("refused", status, httpx.Headers(), b"")


def delays(policy: ReconnectionPolicy, drops: list[Drop], chance: Callable[[], float] = never_random) -> list[float]:
    """Return the delay after each of the drops."""
    waited = []
    for drop in drops:
        decision = policy.after(drop, chance)
        assert isinstance(decision, Retry)
        waited.append(decision.delay)
        policy = decision.policy
    return waited


def test_delay_grows_up_to_max_delay() -> None:
    policy = ReconnectionPolicy(delay=1, factor=3, max_delay=20)
    assert delays(policy, [Drop(BROKEN)] * 5) == [1, 3, 9, 20, 20]


def test_1000_attempts_do_not_overflow() -> None:
    waited = delays(ReconnectionPolicy(factor=1e300), [Drop(BROKEN)] * 1000)
    assert waited[0] == 3
    assert set(waited[1:]) == {60}
    assert set(delays(ReconnectionPolicy(delay=0, factor=10), [Drop(BROKEN)] * 2000)[3:]) == {60}
    assert set(delays(ReconnectionPolicy(delay=5, factor=1), [Drop(BROKEN)] * 1000)) == {5}


def test_servers_reconnection_time_replaces_the_first_delay() -> None:
    policy = ReconnectionPolicy(delay=3, factor=2, max_delay=10)
    assert delays(policy, [Drop(BROKEN, retry=0.5)] * 6) == [0.5, 1, 2, 4, 8, 10]
    assert delays(ReconnectionPolicy(), [Drop(BROKEN, retry=0.5)]) == [0.5]


def test_max_delay_limits_the_servers_delay() -> None:
    policy = ReconnectionPolicy(delay=3, max_delay=10)
    assert delays(policy, [Drop(BROKEN, retry=90)] * 2) == [10, 10]
    assert delays(policy, [Drop(BROKEN, retry=1e12)]) == [10]
    assert delays(policy, [Drop(status_error(503), retry_after=90)] * 2) == [10, 10]
    assert delays(ReconnectionPolicy(delay=100), [Drop(BROKEN)] * 2) == [60, 60]


@pytest.mark.parametrize("events", [0, 1], ids=["no event", "events"])
@pytest.mark.parametrize("jitter", [0, 0.5, 1])
@pytest.mark.parametrize(
    ("policy", "retry"),
    [({}, 0.0), ({}, 0.001), ({"delay": 0}, None), ({"delay": 0, "max_delay": 0}, None), ({"max_delay": 0}, 5.0)],
    ids=str,
)
def test_every_attempt_has_a_minimum_delay(
    policy: dict[str, Any], retry: float | None, jitter: float, events: int
) -> None:
    waited = delays(ReconnectionPolicy(**policy, jitter=jitter), [Drop(None, retry=retry, events=events)] * 20, zero)
    assert min(waited) >= 0.1
    assert waited[0] == 0.1


def test_retry_after_zero_has_a_minimum_delay() -> None:
    policy = ReconnectionPolicy(delay=0, jitter=1)
    assert min(delays(policy, [Drop(status_error(503), retry_after=0)] * 20, zero)) == 0.1


def test_short_delay_of_the_caller_is_used() -> None:
    policy = ReconnectionPolicy(delay=0.01, factor=2, jitter=1)
    assert delays(policy, [Drop(BROKEN)] * 3, zero) == [0.01, 0.01, 0.01]
    assert delays(policy, [Drop(BROKEN)] * 3) == [0.01, 0.02, 0.04]
    # The server's `retry:` overrides it.
    assert delays(policy, [Drop(BROKEN, retry=0)], zero) == [0.1]
    assert delays(ReconnectionPolicy(max_delay=0.02), [Drop(BROKEN, retry=0)], zero) == [0.02]


def zero() -> float:
    return 0.0


@pytest.mark.slow
@given(
    chance=st.floats(0, 1),
    jitter=st.floats(0, 1),
    delay=st.floats(0, 100),
    max_delay=st.floats(0.1, 100),
    retry=st.none() | st.floats(0, 1000),
    retry_after=st.none() | st.floats(0, 1000),
    events=st.integers(0, 1),
    tried=st.integers(0, 20),
)
def test_delay_stays_within_bounds(
    chance: float,
    jitter: float,
    delay: float,
    max_delay: float,
    retry: float | None,
    retry_after: float | None,
    events: int,
    tried: int,
) -> None:
    policy = ReconnectionPolicy(delay=delay, max_delay=max_delay, jitter=jitter)
    drops = [Drop(BROKEN, retry=retry, retry_after=retry_after, events=events)] * (tried + 1)
    wait = delays(policy, drops, lambda: chance)[-1]
    least = min(delay, 0.1) if delay and retry is None else 0.1
    assert least <= wait <= max_delay
    if retry_after is not None and retry_after <= max_delay:
        assert wait >= retry_after


@pytest.mark.slow
@given(chance=st.floats(0, 1), jitter=st.floats(0, 1), tried=st.integers(0, 20))
def test_jitter_is_the_random_part_of_a_delay(chance: float, jitter: float, tried: int) -> None:
    full = min(3 * 2.0**tried, 60)
    wait = delays(ReconnectionPolicy(jitter=jitter), [Drop(BROKEN)] * (tried + 1), lambda: chance)[-1]
    assert wait == pytest.approx(max(full * (1 - jitter) + full * jitter * chance, 0.1), abs=0.1)


def peak(policy: ReconnectionPolicy, *, retry_after: float | None = None, seed: int) -> int:
    """Return the most requests within 100 ms, of the third attempts of 1,000 clients that were cut off together."""
    random = Random(seed).random
    arrivals: dict[int, int] = {}
    for _ in range(1000):
        third = sum(delays(policy, [Drop(status_error(503), retry_after=retry_after)] * 3, random))
        arrivals[int(third * 10)] = arrivals.get(int(third * 10), 0) + 1
    return max(arrivals.values())


@pytest.mark.heavy
@pytest.mark.parametrize("retry_after", [None, 30.0, 3600.0])
def test_1000_clients_do_not_reconnect_together(retry_after: float | None) -> None:
    """The third attempts, at most 21 s after the cut, are spread over more than ten seconds."""
    assert peak(ReconnectionPolicy(jitter=0), retry_after=retry_after, seed=1) == 1000
    for seed in range(10):
        # 1,000 requests in 105 slots; the middle slots hold twice the mean.
        assert peak(ReconnectionPolicy(), retry_after=retry_after, seed=seed) < 50


def test_consecutive_attempts_are_counted() -> None:
    policy = ReconnectionPolicy(attempts=2)
    for attempt in (1, 2):
        decision = policy.after(Drop(BROKEN))
        assert isinstance(decision, Retry)
        assert decision.attempt == attempt
        policy = decision.policy
    exhausted = policy.after(Drop(BROKEN))
    assert isinstance(exhausted, GiveUp)
    assert exhausted.attempts == 2
    assert "attempts=2" in exhausted.reason


@pytest.mark.parametrize("drop", [Drop(BROKEN, events=1), Drop(BROKEN, open_for=60), Drop(None, open_for=61)])
def test_healthy_connection_resets_the_count(drop: Drop) -> None:
    policy = ReconnectionPolicy(attempts=1, delay=1, jitter=0)
    first = policy.after(Drop(BROKEN))
    assert isinstance(first, Retry)
    again = first.policy.after(drop)
    assert isinstance(again, Retry)
    assert (again.attempt, again.delay) == (1, 1)


def test_short_connection_without_events_counts() -> None:
    first = ReconnectionPolicy(attempts=1, reset_after=10).after(Drop(BROKEN))
    assert isinstance(first, Retry)
    assert isinstance(first.policy.after(Drop(None, open_for=9.9)), GiveUp)


@pytest.mark.parametrize(
    "cause",
    [
        ConnectError("x"),
        ReadError("x"),
        ProtocolError("x"),
        TruncatedStreamError("x"),
        *(StreamTimeoutError(which, 1) for which in ("connect", "read", "write", "idle")),
        *(status_error(status) for status in (408, 425, 429, 500, 502, 503, 504, 599)),
    ],
    ids=repr,
)
def test_transient_failures_are_retried(cause: SSEError) -> None:
    assert isinstance(ReconnectionPolicy().after(Drop(cause)), Retry)


@pytest.mark.parametrize(
    "cause",
    [
        StreamTimeoutError("total", 1),
        BufferLimitError(1),
        CallbackError("x"),
        RedirectError("x", 302),
        ContentTypeError("x", 200, httpx.Headers(), b""),
        *(status_error(status) for status in (201, 206, 301, 400, 401, 403, 404, 409, 410, 422)),
    ],
    ids=repr,
)
def test_permanent_failures_are_not_retried(cause: SSEError) -> None:
    assert isinstance(ReconnectionPolicy().after(Drop(cause)), Stop)


def test_statuses_decide_which_responses_are_retried() -> None:
    policy = ReconnectionPolicy(statuses=[404])
    assert isinstance(policy.after(Drop(status_error(404))), Retry)
    assert isinstance(policy.after(Drop(status_error(503))), Stop)


@pytest.mark.parametrize(
    ("on_eof", "method", "has_body", "decision"),
    [
        (None, "GET", False, Retry),
        (None, "GET", True, Stop),
        (None, "POST", True, Stop),
        (None, "POST", False, Stop),
        (True, "POST", True, GiveUp),
        (True, "GET", False, Retry),
        (False, "GET", False, Stop),
    ],
)
def test_clean_end_follows_on_eof(on_eof: bool | None, method: str, has_body: bool, decision: type) -> None:
    policy = ReconnectionPolicy(on_eof=on_eof)
    assert isinstance(policy.after(Drop(None, method=method, has_body=has_body)), decision)


@pytest.mark.parametrize(
    ("options", "changes", "decision"),
    [
        ({"resume": "get"}, {}, Retry),
        ({"resume": lambda attempt: None}, {}, Retry),
        ({"resume": lambda attempt: None}, {"has_id": False}, Retry),
        ({"resume": "get"}, {"has_id": False}, Stop),
        ({"resume": "get"}, {"has_id": False, "has_place": True}, Retry),
        ({"resume": "get"}, {"lacks_response": False}, Stop),
        ({"resume": "get", "on_eof": False}, {}, Stop),
        ({"resume": "repeat"}, {}, Stop),
        ({}, {}, Stop),
    ],
    ids=range(9),
)
def test_clean_end_before_the_response_is_resumed(
    options: dict[str, Any], changes: dict[str, Any], decision: type
) -> None:
    drop = Drop(None, is_clean=True, method="POST", has_body=True, has_id=True, lacks_response=True)
    assert isinstance(ReconnectionPolicy(**options).after(drop._replace(**changes)), decision)


STREAMED_POST = Drop(BROKEN, method="POST", has_body=True)


def test_request_with_a_body_is_not_sent_again() -> None:
    for drop in (STREAMED_POST, STREAMED_POST._replace(has_id=True, has_place=True)):
        refused = ReconnectionPolicy().after(drop)
        assert isinstance(refused, GiveUp)
        assert 'resume="get"' in refused.reason
        assert 'resume="repeat"' in refused.reason
        assert isinstance(ReconnectionPolicy().at_once(drop), GiveUp)
    clean = STREAMED_POST._replace(cause=None)
    assert isinstance(ReconnectionPolicy(on_eof=True).after(clean), GiveUp)
    assert isinstance(ReconnectionPolicy().after(STREAMED_POST._replace(has_body=False)), Retry)


def test_repeat_allows_sending_a_body_again() -> None:
    """Also without an ID, as `resend=True` did."""
    for policy in (ReconnectionPolicy(resume="repeat"), ReconnectionPolicy(resend=True)):
        assert isinstance(policy.after(STREAMED_POST), Retry)
        assert isinstance(policy.at_once(STREAMED_POST), Retry)
        # A request that may be processed, and has had no response.
        assert isinstance(policy.after(STREAMED_POST._replace(has_streamed=False)), Stop)
    assert ReconnectionPolicy(resend=True).resume == "repeat"
    assert dataclasses.replace(ReconnectionPolicy(resend=True), delay=1).resume == "repeat"


@pytest.mark.parametrize("named", [{"has_id": True}, {"has_place": True}], ids=str)
def test_get_needs_an_id_or_a_place(named: dict[str, Any]) -> None:
    policy = ReconnectionPolicy(resume="get")
    refused = policy.after(STREAMED_POST)
    assert isinstance(refused, GiveUp)
    assert "Location" in refused.reason
    assert isinstance(policy.at_once(STREAMED_POST), GiveUp)
    assert isinstance(policy.after(STREAMED_POST._replace(**named)), Retry)
    # A request without a body can be repeated.
    assert isinstance(policy.after(Drop(BROKEN)), Retry)


def test_function_decides_for_itself() -> None:
    policy = ReconnectionPolicy(resume=lambda attempt: None)
    assert isinstance(policy.after(STREAMED_POST), Retry)
    assert policy.obstacle(STREAMED_POST) is None


def test_coroutine_function_is_refused() -> None:
    with pytest.raises(UsageError, match="coroutine function"):
        ReconnectionPolicy(resume=asyncio.sleep)  # type: ignore[arg-type]


def test_two_ways_to_resume_are_refused() -> None:
    with pytest.raises(UsageError, match="resend"):
        ReconnectionPolicy(resend=True, resume="get")


def test_request_with_a_body_and_no_response_is_not_retried() -> None:
    sent = Drop(BROKEN, method="POST", has_body=True, has_streamed=False)
    for cause in (BROKEN, ProtocolError("x"), StreamTimeoutError("read", 1), StreamTimeoutError("write", 1)):
        assert isinstance(ReconnectionPolicy().after(sent._replace(cause=cause)), Stop)
        assert isinstance(ReconnectionPolicy().after(sent._replace(cause=cause, has_body=False)), Retry)
    for safe in (ConnectError("x"), StreamTimeoutError("connect", 1), status_error(503)):
        assert isinstance(ReconnectionPolicy().after(sent._replace(cause=safe)), Retry)


@pytest.mark.parametrize(
    ("on_eof", "method", "decision"),
    [(None, "GET", Retry), (None, "POST", Stop), (True, "POST", GiveUp), (False, "GET", Stop)],
)
def test_clean_end_without_its_last_event_is_clean(on_eof: bool | None, method: str, decision: type) -> None:
    drop = Drop(TruncatedStreamError("x"), is_clean=True, method=method, has_body=method == "POST")
    assert isinstance(ReconnectionPolicy(on_eof=on_eof).after(drop), decision)


def test_requested_reconnection_is_not_a_failure() -> None:
    policy = ReconnectionPolicy(attempts=2)
    for _ in range(2):
        retry = policy.after(Drop(BROKEN))
        assert isinstance(retry, Retry)
        policy = retry.policy
    # The connection delivered an event, so that the count restarts.
    healthy = policy.at_once(Drop(None, events=1))
    assert isinstance(healthy, Retry)
    assert (healthy.delay, healthy.attempt) == (0, 1)
    assert isinstance(healthy.policy.after(Drop(BROKEN)), Retry)
    # The connection delivered nothing.
    assert isinstance(policy.at_once(Drop(None)), Retry)
    assert isinstance(policy.after(Drop(BROKEN)), GiveUp)
    assert isinstance(policy.at_once(Drop(None, has_body=True)), GiveUp)


def test_policy_is_immutable() -> None:
    policy = ReconnectionPolicy()
    policy.after(Drop(BROKEN))
    assert policy == ReconnectionPolicy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.delay = 1.0  # type: ignore[misc]
    assert len(repr(policy)) < 200


@pytest.mark.parametrize(
    "values",
    [
        *(
            {name: value}
            for name in ("delay", "max_delay", "reset_after")
            for value in (-1, 10**400, math.inf, math.nan, "3", True, None)
        ),
        *({"factor": value} for value in (0.9, -1, 0, math.inf, math.nan, "2", None)),
        *({"jitter": value} for value in (-0.1, 1.1, math.nan, "0", None, True)),
        *({"attempts": value} for value in (0, -1, 1.0, True, "3")),
        *({"on_eof": value} for value in ("no", 2, 1, 0)),
        *({"resend": value} for value in (None, 1)),
        *({"resume": value} for value in ("post", True, 1)),
        *({"statuses": value} for value in (None, 503, [200], ["503"], [600], [True])),
    ],
    ids=str,
)
def test_bad_values_are_refused_by_the_constructor(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        ReconnectionPolicy(**values)


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60),
        ("Friday, 02-Jan-26 03:05:05 GMT", 60),
        ("Fri Jan  2 03:05:05 2026", 60),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        ("-5", None),
        ("1.5", 1.5),
        ("2.", 2),
        (".25", 0.25),
        ("1e3", None),
        ("+5", None),
        ("inf", None),
        ("1_0", None),
        ("1.5.5", None),
        ("9" * 400, 1e9),
        ("Fri, 02 Jan 2026 03:04:05 +99999999999999999999", None),
        ("Fri, 02 Jan 99999999999999999999 03:04:05 GMT", None),
        ("Fri, 02 Jan 9999 03:04:05 GMT", 1e9),
        ("soon", None),
        ("\u0661", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("milliseconds", "value", "seconds"),
    [("250", "7", 0.25), ("0", "7", 0), ("1500.5", None, 1.5005), ("soon", "7", 7), ("", None, None)],
)
def test_retry_after_in_milliseconds_has_priority(milliseconds: str, value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW, milliseconds) == seconds


@pytest.mark.slow
@given(st.text())
def test_any_text_is_accepted_as_a_date(value: str) -> None:
    http_date(value)
    retry_after(value, NOW)
