"""When a request is sent again after its first answer: the pure decision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import ConnectError, ProtocolError, ReadError, RedirectError, SSEError, StreamTimeoutError
from sseqbridge._sse.retries import Failure, retry_delay


def delay(failure: Failure, tried: int = 0, chance: float = 0.0) -> float | None:
    return retry_delay(failure, tried, 10**6, lambda: chance)


def refused(proxy_status: int) -> ConnectError:
    error = ConnectError("refused")
    error.proxy_status = proxy_status
    return error


def errors() -> Iterator[tuple[SSEError, bool]]:
    yield ConnectError("refused"), True
    yield StreamTimeoutError("connect", 1), True
    # The request was sent: the server may be processing it.
    yield StreamTimeoutError("read", 1), False
    yield StreamTimeoutError("total", 1), False
    yield ReadError("reset"), False
    yield ProtocolError("no HTTP"), False
    yield RedirectError("to another origin", 302), False
    yield refused(503), True
    yield refused(407), False


@pytest.mark.parametrize(("error", "is_retried"), list(errors()), ids=str)
def test_errors(error: SSEError, is_retried: bool) -> None:
    assert (delay(Failure(error=error)) is not None) is is_retried


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529, 599])
def test_statuses_that_are_retried(status: int) -> None:
    assert delay(Failure(status=status)) == 0.5


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 403, 404, 410, 413, 422, 425, 600])
def test_statuses_that_are_not_retried(status: int) -> None:
    assert delay(Failure(status=status)) is None


def test_request_that_cannot_be_sent_is_not_retried() -> None:
    assert delay(Failure()) is None


def test_delay_doubles_up_to_a_limit() -> None:
    failure = Failure(status=503)
    assert [delay(failure, tried) for tried in range(6)] == [0.5, 1, 2, 4, 8, 8]
    assert delay(failure, 10**5) == 8
    assert [delay(failure, tried, chance=1.0) for tried in range(6)] == [0.375, 0.75, 1.5, 3, 6, 6]


@pytest.mark.parametrize(
    ("retry_after", "expected", "latest"),
    [(None, 0.5, 0.375), (0.0, 0.5, 0.375), (1.0, 1.0, 1.125), (120.0, 120.0, 120.125), (121.0, None, None)],
)
def test_retry_after_replaces_the_delay(retry_after: float, expected: float, latest: float) -> None:
    failure = Failure(status=429, retry_after=retry_after)
    assert (delay(failure), delay(failure, chance=1.0)) == (expected, latest)


@pytest.mark.parametrize(
    ("status", "header", "is_retried"),
    [(400, "true", True), (503, "false", False), (503, "maybe", True), (404, "maybe", False), (200, "true", False)],
)
def test_server_may_decide(status: int, header: str, is_retried: bool) -> None:
    assert (delay(Failure(status=status, should_retry=header)) is not None) is is_retried


@pytest.mark.parametrize(("tried", "retries", "is_retried"), [(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)])
def test_number_of_retries_is_limited(tried: int, retries: int, is_retried: Any) -> None:
    assert (retry_delay(Failure(status=503), tried, retries) is not None) is is_retried


def test_random_numbers_are_used_by_default() -> None:
    delays = {retry_delay(Failure(status=503), 0, 1) for _ in range(50)}
    assert len(delays) > 1
    assert all(each is not None and 0.375 <= each <= 0.5 for each in delays)
