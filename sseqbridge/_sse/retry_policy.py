"""The reconnection policy: an immutable value that decides when to connect again, and when to stop.

The input is a `Drop`, which describes how a connection ended; the output is a delay and the policy
for the next drop. Pure and thread-safe: nothing here waits or reads a clock. Invariant: a request with
a body, which may cost money or run a tool, is not sent again once an event stream has answered it,
unless the caller allows it with `resume="repeat"`.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sseqbridge._checks import check_bool, check_integer, check_number, check_plain_function
from sseqbridge._exceptions import ConnectError, SSEError, StatusError, StreamTimeoutError, TransportError, UsageError
from sseqbridge._signatures import with_hints

from .resumption import ResumeRule

__all__ = ["Drop", "GiveUp", "ReconnectionPolicy", "Retry", "Stop"]

# The minimum delay, which protects a server from a tight loop of requests.
_MIN_SECONDS = 0.1

_NOT_SENT_AGAIN = (
    "the request has a body, and is not sent again once it was answered. "
    'ReconnectionPolicy(resume="get") asks for the rest by GET, resume="repeat" sends the request again'
)
_NOTHING_TO_RESUME = (
    "the response delivered no event ID, and no Location or Content-Location, from which a GET could continue it"
)

_PLACE_EXCLUDED = (
    "the response's Location or Content-Location is at another origin, to which follow_redirects=False does not go. "
    "Leave follow_redirects out, or choose the request with a `resume` function"
)


class _RetriedStatuses(frozenset[int]):
    """The statuses of failures that may pass. The repr is short, because help() shows it as a default."""

    def __repr__(self) -> str:
        return "{408, 425, 429, 5xx}"


_RETRIED_STATUSES = _RetriedStatuses({408, 425, 429, *range(500, 600)})


class Drop(NamedTuple):
    """How a connection ended.

    The connection: `cause` is the error, None if there is none. `is_clean`: the response ended as HTTP
    requires, with or without the last event that the stream must have. `open_for`: seconds since it
    opened. `events`: how many events it delivered. `retry`: the stream's reconnection time, and
    `retry_after`: the delay of a Retry-After header, in seconds.

    The request and the whole stream so far: its `method`; `has_body`; `has_streamed`: any response was an
    event stream; `has_id`: the server has sent an ID to resume from; `has_place`: a response has named
    the URL to resume at; `is_place_excluded`: that is at another origin, and no redirects are followed;
    `lacks_response`: the stream must end with a JSON-RPC response, which it has not done.
    """

    cause: SSEError | None
    is_clean: bool = False
    open_for: float = 0.0
    events: int = 0
    retry: float | None = None
    retry_after: float | None = None
    method: str = "GET"
    has_body: bool = False
    has_streamed: bool = True
    has_id: bool = False
    has_place: bool = False
    is_place_excluded: bool = False
    lacks_response: bool = False


class Retry(NamedTuple):
    """Connect again after `delay` seconds, as consecutive attempt number `attempt`. `policy` decides the next drop."""

    delay: float
    attempt: int
    policy: ReconnectionPolicy


class Stop(NamedTuple):
    """Do not reconnect: the stream ends with the drop's own error, or cleanly if it has none."""


class GiveUp(NamedTuple):
    """The stream is lost after `attempts` consecutive attempts; `reason` is for the error message."""

    attempts: int
    reason: str


@with_hints(
    {
        **dict.fromkeys(("max_attempts", "max_retries", "retries", "tries"), "Pass `attempts`."),
        **dict.fromkeys(("base_delay", "initial_delay", "min_delay", "wait"), "Pass `delay`."),
        **dict.fromkeys(("backoff", "backoff_factor", "multiplier"), "Pass `factor`."),
    },
    by_name="Name them, such as ReconnectionPolicy(delay=1, attempts=5).",
)
@dataclass(frozen=True, kw_only=True)
class ReconnectionPolicy:
    """When a stream that was cut off is requested again: EventSource's rules, with backoff and jitter.

        request_sse(url, reconnect=ReconnectionPolicy(delay=1, attempts=5))

    Times are in seconds.

    The first delay is `delay` seconds, or the server's `retry:`. Each consecutive attempt multiplies it by
    `factor`. A Retry-After header sets a minimum. `max_delay` limits every delay, including the server's.
    `jitter`, from 0 to 1, is the fraction of a delay that is random, so that clients that lost their
    connections together do not reconnect together. After `attempts` consecutive attempts (None: no limit)
    the stream ends with ReconnectionError. The count restarts after a connection that delivered an event or
    was open for `reset_after` seconds.

    Every delay is at least 0.1 s, even after `retry: 0`, with `jitter=1` or after a connection that delivered
    events. Only a `max_delay` between 0 and 0.1, or such a `delay` if the server sends no `retry:`, makes shorter
    delays; 0 means 0.1. The stream's `total` limit includes the delays.

    `statuses` are the response statuses that are worth another attempt. `on_eof` decides about a clean end
    without the stream's last event: True reconnects every request, False none, None GET requests without a body, and
    those of `dialect="mcp"` whose result is missing, if `resume` is "get" or a function.

    `resume` is the request that continues a stream whose response was lost:
    None repeats a request without a body, and never one with a body, which then ends with ReconnectionError.
    "repeat" sends the request again, body included. If the server sends no IDs, events may come twice.
    "get" sends a GET without the body to the response's Location or Content-Location, else to the same URL. After a
    request with a body there must be such a header, or an ID. Another origin is treated as in a redirect: it gets no
    header of the caller but Accept and Last-Event-ID, and with `follow_redirects=False` no request at all.
    A function of an Attempt returns a Resume, or None to give up. It runs in a thread of its own.
    All of them send the last event ID. Before the first response the request itself is sent again, if it cannot have
    been processed: there was no connection, or its status is one of `statuses`.
    `resend=True` is an older name of `resume="repeat"`.

    Raises UsageError for a value out of range.
    """

    delay: float = 3.0
    max_delay: float = 60.0
    factor: float = 2.0
    jitter: float = 0.5
    attempts: int | None = None
    reset_after: float = 60.0
    on_eof: bool | None = None
    resend: bool = False
    # Not in the repr: that of a partial shows its arguments.
    resume: ResumeRule = field(default=None, repr=False)
    statuses: Collection[int] = field(default=_RETRIED_STATUSES, repr=False)
    # The number of consecutive attempts so far. Not a field: callers do not set it.
    _tried = 0

    def __post_init__(self) -> None:
        check_number("delay", self.delay, 0)
        check_number("max_delay", self.max_delay, 0)
        check_number("reset_after", self.reset_after, 0)
        check_number("factor", self.factor, 1)
        check_number("jitter", self.jitter, 0, 1)
        if self.attempts is not None:
            check_integer("attempts", self.attempts, 1, ". Pass None for no limit.")
        if self.on_eof is not None:
            check_bool("on_eof", self.on_eof, ". Pass None to reconnect GET requests only.")
        check_bool("resend", self.resend)
        _check_resume(self.resume)
        if self.resend:
            if self.resume not in (None, "repeat"):
                raise UsageError('`resend=True` is a name of resume="repeat", got another `resume` too. Pass `resume`.')
            object.__setattr__(self, "resume", "repeat")
        object.__setattr__(self, "statuses", _as_statuses(self.statuses))

    def after(self, drop: Drop, chance: Callable[[], float] | None = None) -> Retry | Stop | GiveUp:
        """Return the decision about the `drop` of a connection: connect again, stop, or give up.

        For use within the package. `chance` returns random numbers from 0 to 1, by default random.random. Raises
        nothing.
        """
        if not self._is_retryable(drop):
            return Stop()
        if reason := self.obstacle(drop):
            return GiveUp(self._tried, reason)
        tried = self._tried_before(drop)
        if self.attempts is not None and tried >= self.attempts:
            return GiveUp(tried, f"the policy allows attempts={self.attempts} in a row")
        return Retry(self._delay(tried, drop, chance or random.random), tried + 1, self._after_attempts(tried + 1))

    def at_once(self, drop: Drop) -> Retry | GiveUp:
        """Return the decision about a `drop` that the caller requested: no delay, and not a failed attempt.

        For use within the package. Raises nothing.
        """
        if reason := self.obstacle(drop):
            return GiveUp(self._tried, reason)
        tried = self._tried_before(drop)
        return Retry(0.0, tried + 1, self._after_attempts(tried))

    def obstacle(self, drop: Drop) -> str | None:
        """Return why no request may follow a `drop`, for an error message; None if one may.

        For use within the package. Raises nothing.
        """
        if not drop.has_streamed:
            return None
        if self.resume is None:
            return _NOT_SENT_AGAIN if drop.has_body else None
        is_plain_get = drop.method == "GET" and not drop.has_body
        if self.resume == "get" and drop.is_place_excluded:
            return _PLACE_EXCLUDED
        if self.resume == "get" and not (is_plain_get or drop.has_id or drop.has_place):
            return _NOTHING_TO_RESUME
        return None

    def _after_attempts(self, tried: int) -> ReconnectionPolicy:
        policy = copy.copy(self)
        object.__setattr__(policy, "_tried", tried)
        return policy

    def _tried_before(self, drop: Drop) -> int:
        return 0 if drop.events or drop.open_for >= self.reset_after else self._tried

    def _is_retryable(self, drop: Drop) -> bool:
        cause = drop.cause
        if cause is None or drop.is_clean:
            return self._continues_by_default(drop) if self.on_eof is None else self.on_eof
        if isinstance(cause, StatusError):
            return cause.status in self.statuses
        if drop.has_body and not drop.has_streamed:
            # The server may be processing the request. Only a failed connect proves that it never received it.
            return isinstance(cause, ConnectError) or getattr(cause, "which", "") == "connect"
        if isinstance(cause, StreamTimeoutError):
            return cause.which != "total"
        return isinstance(cause, TransportError)

    def _continues_by_default(self, drop: Drop) -> bool:
        """Whether a clean end is not the end of the stream, unless `on_eof` decides."""
        if drop.method == "GET" and not drop.has_body:
            return True
        # An MCP server may end its response on purpose before the result, and expects a GET.
        return drop.lacks_response and self.resume not in (None, "repeat") and self.obstacle(drop) is None

    def _delay(self, tried: int, drop: Drop, chance: Callable[[], float]) -> float:
        maximum = self.max_delay or _MIN_SECONDS
        base = self.delay if drop.retry is None else drop.retry
        # Without a minimum, a server that closes each connection at once would get a thousand requests a second.
        minimum = min(base if drop.retry is None and base else _MIN_SECONDS, _MIN_SECONDS, maximum)
        try:
            delay = min(max(base, minimum) * self.factor**tried, maximum)
        except OverflowError:
            delay = maximum
        start = max(delay - self.jitter * delay, minimum)
        spread = delay - start
        if drop.retry_after is not None:
            # Not before the server's Retry-After. If that is beyond the maximum, the jitter must stay within the
            # maximum, so that clients that lost their connections together still do not reconnect together.
            start = max(start, drop.retry_after if drop.retry_after <= maximum else maximum - spread)
        return min(start + spread * chance(), maximum)


def _check_resume(resume: object) -> None:
    if resume is None or resume in ("repeat", "get"):
        return
    if not callable(resume):
        raise UsageError(f'`resume` must be "repeat", "get", a function of an Attempt, or None, got {resume!r}')
    check_plain_function("resume", resume)


def _as_statuses(statuses: object) -> frozenset[int]:
    if isinstance(statuses, _RetriedStatuses):
        return statuses
    known: list[Any] = list(statuses) if isinstance(statuses, Iterable) else [None]
    if not all(type(status) is int and 400 <= status <= 599 for status in known):
        raise UsageError(f"`statuses` must be a collection of HTTP statuses from 400 to 599, got {statuses!r}")
    return frozenset(known)
