"""When to connect again, and when to stop: a policy that is never changed, without a clock or a wait.

What happened goes in as a `Drop`, the delay and the policy for the next one come out. Rule: a
request that costs its sender something is not sent twice unless he has said that it may be.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model
"""

from __future__ import annotations

import email.utils
import math
import random
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple

from sseqbridge._exceptions import ConnectError, SSEError, StatusError, StreamTimeoutError, TransportError, UsageError

__all__ = ["PAYS_TWICE", "Drop", "GiveUp", "ReconnectionPolicy", "Retry", "Stop", "http_date", "retry_after"]

# The shortest wait that protects a server from being asked in a tight loop.
_LEAST_SECONDS = 0.1
# More than anyone waits, and what every clock can hold.
_MOST_SECONDS = 1e9

PAYS_TWICE = (
    "the request has a body and its answer gave events, but no id to go on from; "
    "ReconnectionPolicy(resend=True) sends it again all the same"
)

_RETRIED_STATUSES = frozenset({408, 425, 429, *range(500, 600)})


@dataclass(frozen=True, slots=True)
class Drop:
    """How a connection came to its end, and what was known by then.

    `cause` is the error, None where there is none; `is_clean` says that the stream came to a clean
    end, with or without the last event that it must have. `open_for` is how long, in seconds, it was
    open and `events` how many events it gave; `retry` the reconnection time and `retry_after` the
    delay that the server has asked for, in seconds. Of the request and the whole stream so far:
    its `method`, whether it `has_body`, whether any answer was an event stream, whether any events
    were `delivered`, and whether the server gave an id to go on from.
    """

    cause: SSEError | None
    is_clean: bool = False
    open_for: float = 0.0
    events: int = 0
    retry: float | None = None
    retry_after: float | None = None
    method: str = "GET"
    has_body: bool = False
    answered: bool = True
    delivered: bool = False
    has_id: bool = False


class Retry(NamedTuple):
    """Connect again, as the `attempt`th time in a row, after `delay` seconds; `policy` is for what comes then."""

    delay: float
    attempt: int
    policy: ReconnectionPolicy


class Stop(NamedTuple):
    """The stream has ended as it is: with the drop's own error, or as a clean end."""


class GiveUp(NamedTuple):
    """The stream is lost after so many `attempts` in a row, for this `reason`."""

    attempts: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReconnectionPolicy:
    """When a stream that was cut off is asked for again, as EventSource does.

    The first delay is `delay` seconds, or the `retry:` of the server; each further delay in a row is
    `factor` times as long. A Retry-After of the server is the least. `max_delay` bounds all of them,
    also what the server asks for. `jitter`, 0 to 1, is the part of the delay that is left to chance, so
    that clients that were cut off together do not come back together. After `attempts` in a row (None:
    no limit) the stream ends with ReconnectionError; the count restarts after a connection that gave an
    event or was open for `reset_after` seconds.

    No attempt comes without a wait: a delay is at least 0.1 s, also after a `retry: 0`, with `jitter=1`
    and after a connection that gave events. A `delay` or `max_delay` between 0 and 0.1 is the caller's
    decision and lowers that bound to itself (`delay` where the server sends no `retry:`); 0 stands for
    0.1. The stream's `total` limit holds during the wait.

    `statuses` are those of an answer that are worth another attempt. `on_eof` says what becomes of
    a clean end without the stream's last event: None reconnects a request that is a GET without a
    body, True any, False none. A request with a body that has given events is sent again only
    where the server gave an id to go on from, or with `resend=True`.

    Raises UsageError for values that cannot be.
    """

    delay: float = 3.0
    max_delay: float = 60.0
    factor: float = 2.0
    jitter: float = 0.5
    attempts: int | None = None
    reset_after: float = 60.0
    on_eof: bool | None = None
    resend: bool = False
    statuses: Collection[int] = field(default=_RETRIED_STATUSES, repr=False)
    # How often in a row it has been tried already.
    _tried: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        _check_number("delay", self.delay, 0, math.inf, "seconds, 0 or more")
        _check_number("max_delay", self.max_delay, 0, math.inf, "seconds, 0 or more")
        _check_number("reset_after", self.reset_after, 0, math.inf, "seconds, 0 or more")
        _check_number("factor", self.factor, 1, math.inf, "1 or more")
        _check_number("jitter", self.jitter, 0, 1, "from 0 to 1")
        if self.attempts is not None and (type(self.attempts) is not int or self.attempts < 1):
            raise UsageError(f"attempts={self.attempts!r}; it is a number of attempts, 1 or more, or None for no limit")
        if self.on_eof is not None and not isinstance(self.on_eof, bool):
            raise UsageError(f"on_eof={self.on_eof!r}; it is True, False, or None for GET alone")
        if not isinstance(self.resend, bool):
            raise UsageError(f"resend={self.resend!r}; it is True or False")
        object.__setattr__(self, "statuses", _as_statuses(self.statuses))

    def after(self, drop: Drop, chance: Callable[[], float] = random.random) -> Retry | Stop | GiveUp:
        """Return what is to be done now. `chance` gives numbers from 0 to 1."""
        if not self._is_worth_it(drop):
            return Stop()
        if self.would_pay_twice(drop):
            return GiveUp(self._tried, PAYS_TWICE)
        tried = self._tried_before(drop)
        if self.attempts is not None and tried >= self.attempts:
            return GiveUp(tried, f"the policy allows attempts={self.attempts} in a row")
        return Retry(self._delay(tried, drop, chance), tried + 1, replace(self, _tried=tried + 1))

    def at_once(self, drop: Drop) -> Retry | GiveUp:
        """Return what is to be done where the caller himself wants another connection: it is no failure."""
        if self.would_pay_twice(drop):
            return GiveUp(self._tried, PAYS_TWICE)
        tried = self._tried_before(drop)
        return Retry(0.0, tried + 1, replace(self, _tried=tried))

    def would_pay_twice(self, drop: Drop) -> bool:
        """Whether the request must not be sent again, for what it costs."""
        return drop.has_body and drop.delivered and not drop.has_id and not self.resend

    def _tried_before(self, drop: Drop) -> int:
        return 0 if drop.events or drop.open_for >= self.reset_after else self._tried

    def _is_worth_it(self, drop: Drop) -> bool:
        cause = drop.cause
        if cause is None or drop.is_clean:
            is_plain_get = drop.method == "GET" and not drop.has_body
            return is_plain_get if self.on_eof is None else self.on_eof
        if isinstance(cause, StatusError):
            return cause.status in self.statuses
        if drop.has_body and not drop.answered:
            # It may have been taken, and be at work.
            return isinstance(cause, ConnectError) or getattr(cause, "which", "") == "connect"
        if isinstance(cause, StreamTimeoutError):
            return cause.which != "total"
        return isinstance(cause, TransportError)

    def _delay(self, tried: int, drop: Drop, chance: Callable[[], float]) -> float:
        longest = self.max_delay or _LEAST_SECONDS
        base = self.delay if drop.retry is None else drop.retry
        # Without a wait a server whose connections end at once would get a thousand requests a second.
        least = min(base if drop.retry is None and base else _LEAST_SECONDS, _LEAST_SECONDS, longest)
        try:
            delay = min(max(base, least) * self.factor**tried, longest)
        except OverflowError:
            delay = longest
        shortest = max(delay - self.jitter * delay, least)
        left_to_chance = delay - shortest
        if drop.retry_after is not None:
            # Not sooner than the server has asked for. Where it asks for more than `longest`, clients that were
            # cut off together must still not come back together.
            asked = drop.retry_after if drop.retry_after <= longest else longest - left_to_chance
            shortest = max(shortest, asked)
        return min(shortest + left_to_chance * chance(), longest)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number of them, or a date. None for anything else.

    Source: RFC 9110, section 10.2.3
    """
    if value is not None and value.isascii() and value.isdigit():
        return min(float(value), _MOST_SECONDS)
    date = http_date(value)
    return None if date is None else min(max(0.0, (date - now).total_seconds()), _MOST_SECONDS)


def http_date(value: str | None) -> datetime | None:
    """Return the time that a header's date says, None where it is none."""
    try:
        date = email.utils.parsedate_to_datetime(value or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=timezone.utc)


def _check_number(name: str, value: object, least: float, most: float, told: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The most is what a float can hold: no int is too long for this.
    if not is_number or not least <= value <= min(most, sys.float_info.max):  # type: ignore[operator]
        raise UsageError(f"{name}={value!r}; it is a number, {told}")


def _as_statuses(statuses: object) -> frozenset[int]:
    known: list[Any] = list(statuses) if isinstance(statuses, Iterable) else [None]
    if not all(type(status) is int and 400 <= status <= 599 for status in known):
        raise UsageError(f"statuses={statuses!r}; it is a collection of HTTP statuses from 400 to 599")
    return frozenset(known)
