"""A stream's connections, one after another, as one: iterated like a `Exchange`, and like it the loop's alone.

Two rules: what a connection gave before it was dropped is given first, and an id that it did not
commit is never sent. The waiting is here, the deciding in _sse/retry_policy.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import anyio

from sseqbridge._exceptions import (
    CallbackError,
    ReconnectionError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    UsageError,
)
from sseqbridge._runtime import loops
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge._sse.retry_policy import (
    PAYS_TWICE,
    Drop,
    GiveUp,
    ReconnectionPolicy,
    Retry,
    Stop,
    http_date,
    retry_after,
)

from .exchange import Batch, Body, Exchange, Head, status_error

if TYPE_CHECKING:
    import httpx

    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.request import RequestOptions

__all__ = ["OnReconnect", "Reconnecting", "ReconnectingExchange", "tell"]

logger = logging.getLogger("sseqbridge")

T = TypeVar("T")

OnReconnect = Callable[[int, float, SSEError | None], object]

# What an entry is charged besides the body of a refusal.
_OVERHEAD = 1024

# How long the call itself waits for the first answer at most, where no `total` says so.
_OPEN_SECONDS = 60.0


class Reconnecting(NamedTuple):
    """That the connection is gone, and when there will be another: what `on_reconnect` is called with."""

    attempt: int
    delay: float
    cause: SSEError | None

    @property
    def charge(self) -> int:
        """What it counts for where what is held for the consumer is bounded."""
        return _OVERHEAD + (len(self.cause.body) if isinstance(self.cause, StatusError) else 0)


class _Dropped(NamedTuple):
    cause: SSEError | None
    was_asked_for: bool


class _DroppedError(Exception):
    """What was waited for was given up, since the connection is to be dropped."""


class ReconnectingExchange:
    """What a `Exchange` is, for a stream that outlives its connections.

    `open()` and iterating give Reconnecting entries, too, each before the wait that it tells of.
    """

    # `total` holds from the first answer on as ever; until then it is a bound of `open`.
    bounds_its_opening = True
    # A task's own cancel() would be lost, on Python 3.10, in a wait that is dropped at the same time.
    is_direct = False

    def __init__(self, clients: ClientPool, options: RequestOptions, policy: ReconnectionPolicy) -> None:
        """Build the first request. Raises UsageError for arguments that no request can be built of."""
        self._clients = clients
        self._options = options
        self._policy = policy
        self._exchange = Exchange(clients, options)
        self._is_held = True
        self._put: Callable[[Batch], bool] | None = None
        # The attempt that comes next, where there is none under way.
        self._retry: Retry | None = None
        # Why the connection is to be dropped, and whether somebody asked for that.
        self._dropped: _Dropped | None = None
        # Around what is waited for.
        self._scope: anyio.CancelScope | None = None
        # An answer that was to be retried, where that has come to nothing.
        self._refusal: tuple[Head, Body] | None = None
        self._gives_refusal = False
        self._started_at = clock.monotonic()
        # Whether there was an answer that was given to the caller.
        self._is_answered = False
        # Whether what becomes of the connection at hand is known already.
        self._is_settled = False
        # Whether nothing comes after the connection at hand.
        self._is_last = False
        # What earlier connections gave.
        self._received = 0
        self._events = 0
        self.reconnections = 0
        # On the loop's clock; None while there is no connection.
        self.opened_at: float | None = None

    # As of a Exchange.

    @property
    def is_complete(self) -> bool:
        """Whether the body's end is known to be in."""
        return self._exchange.is_complete

    @property
    def target(self) -> str:
        """The URL that is asked, as messages may show it."""
        return self._exchange.target

    @property
    def outcome(self) -> str | None:
        """How the stream ended, None before."""
        if self._gives_refusal:
            return "eof"
        outcome = self._exchange.outcome
        return outcome if outcome == "done" or self._is_last else None

    @property
    def done_event(self) -> ServerSentEvent | None:
        """By whose data the stream was ended; None where it was not."""
        return self._exchange.done_event

    @property
    def received(self) -> int:
        """The bytes of all bodies so far."""
        return self._received + self._exchange.received

    @property
    def events(self) -> int:
        """The events of all bodies so far."""
        return self._events + self._exchange.events

    @property
    def last_event_id(self) -> str:
        """What the next request would go on from; "" for nothing."""
        return self._exchange.resumption.last_event_id

    def check_asked(self) -> None:
        """Raise UsageError where the request is not to be sent again even if the caller asks for it."""
        if self._policy.would_pay_twice(self._so_far):
            raise UsageError(PAYS_TWICE)

    def put_through(self, put: Callable[[Batch], bool]) -> None:
        """See Exchange.put_through."""
        self._put = put
        self._exchange.put_through(put)

    def drain(self) -> None:
        """Read on without giving batches, a little, so that the connection can be used again."""
        self._exchange.drain()

    def detach_after_fork(self) -> None:
        """In a forked child, leave the connection to the parent."""
        self._exchange.detach_after_fork()

    def shut_down(self) -> None:
        """Cut the connection off, at once, whatever the reading waits for."""
        self._exchange.shut_down()

    async def aclose(self) -> None:
        """Give the connection back where the answer was read to its end, else close it."""
        self._put = None
        await self._close()

    async def _close(self) -> None:
        if self._is_held:
            self._is_held = False
            self.opened_at = None
            await self._exchange.aclose()

    # The first answer.

    async def open(self) -> Head | Reconnecting:
        """Return the first answer's head; before it, what is known of each attempt that failed.

        All of them take `total` seconds at most, or 60: then the last answer is returned, whatever
        its status, or ReconnectionError raised where there was none.
        """
        total = self._options.timeout.total
        seconds = _OPEN_SECONDS if total is None else total
        deadline = self._started_at + seconds
        with anyio.move_on_after(max(0.0, deadline - clock.monotonic())):
            return await self._attempt(deadline)
        tried = 0 if self._retry is None else self._retry.attempt
        return self._given_up(GiveUp(tried, "the time for it is over"), StreamTimeoutError("total", seconds))

    async def _attempt(self, deadline: float) -> Head | Reconnecting:
        try:
            if self._retry is None:
                head = await self._exchange.open()
            else:
                await anyio.sleep(self._retry.delay)
                head = await self._sent_again(self._retry.attempt)
        except ReconnectionError:
            raise
        except SSEError as exc:
            return await self._failed(exc, deadline)
        if head.status in (200, 204):
            return self._begun(head)
        # What becomes of it can be said before its body is in.
        decision = self._policy.after(self._drop(status_error(self.target, head, Body(b""))))
        if not isinstance(decision, Retry) or clock.monotonic() + decision.delay > deadline:
            return self._begun(head)
        self._refusal = head, Body(b"")
        self._refusal = head, await self._exchange.read_body()
        return await self._planned(decision, status_error(self.target, *self._refusal))

    async def _failed(self, cause: SSEError, deadline: float) -> Head | Reconnecting:
        if self._exchange.is_unsendable:
            raise cause
        decision = self._policy.after(self._drop(cause))
        if isinstance(decision, Stop):
            raise cause
        if isinstance(decision, Retry):
            if clock.monotonic() + decision.delay <= deadline:
                return await self._planned(decision, cause)
            decision = GiveUp(decision.attempt - 1, f"the next attempt, in {decision.delay:.3g} s, would come too late")
        return self._given_up(decision, cause)

    def _given_up(self, decision: GiveUp, cause: SSEError) -> Head:
        if self._refusal is None:
            raise self._lost(decision, cause)
        self._is_last = self._gives_refusal = True
        return self._refusal[0]

    def _begun(self, head: Head) -> Head:
        self._retry = None
        self._is_answered = True
        self._is_last = head.status != 200
        self.opened_at = anyio.current_time()
        return head

    # Reading.

    def __aiter__(self) -> ReconnectingExchange:
        return self

    async def __anext__(self) -> Batch | Body | Reconnecting:
        """Return the next batch, or what becomes of the connection that has ended.

        Raises StopAsyncIteration once `outcome` is set, and ReconnectionError.
        """
        if self._gives_refusal:
            return self._taken_refusal()
        while True:
            cause: SSEError | None = None
            try:
                if self._retry is not None:
                    await self._reconnect()
                if self._dropped is None:
                    return await self._droppable(self._exchange.__anext__)
                if (batch := self._exchange.rest()) is not None:
                    return batch
            except _DroppedError:
                continue
            except StopAsyncIteration:
                if self._is_last or self._exchange.outcome == "done":
                    raise
            except ReconnectionError:
                # Not for the policy: the connection that it would judge is the one before.
                raise
            except SSEError as exc:
                cause = exc
            return await self._next_after(cause)

    def _taken_refusal(self) -> Body:
        if self._refusal is None:
            raise StopAsyncIteration
        (_, body), self._refusal = self._refusal, None
        return body

    async def _next_after(self, cause: SSEError | None) -> Reconnecting:
        decision: Retry | Stop | GiveUp
        if self._exchange.outcome == "done":
            # Whatever became of the connection after the last event.
            decision = Stop()
            cause = None
        elif self._dropped is not None:
            # And not what came of the dropping.
            (cause, was_asked_for), self._dropped = self._dropped, None
            drop = self._drop(cause)
            decision = self._policy.at_once(drop) if was_asked_for else self._policy.after(drop)
        else:
            decision = self._policy.after(self._drop(cause))
        if isinstance(decision, Retry):
            return await self._planned(decision, cause)
        if isinstance(decision, GiveUp):
            raise self._lost(decision, cause)
        self._is_last = True
        raise StopAsyncIteration if cause is None else cause

    async def _reconnect(self) -> None:
        """Wait until the time for the next connection has come, and make it. Raises SSEError where that fails."""
        assert self._retry is not None
        try:
            await self._droppable(partial(anyio.sleep, self._retry.delay))
        except _DroppedError:
            # Somebody asked for it, so now is the time.
            self._dropped = None
        attempt, self._retry = self._retry.attempt, None
        head = await self._sent_again(attempt)
        if head.status == 200:
            self.reconnections += 1
            self.opened_at = anyio.current_time()
            return
        # That is the answer, whoever wants another connection now.
        self._is_settled, self._dropped = True, None
        if head.status != 204:
            raise status_error(self.target, head, await self._exchange.read_body())
        # Nothing more is to come.
        self._is_last = True

    async def _sent_again(self, attempt: int) -> Head:
        """Build the request once more, send it, and return the head of its answer.

        Raises ReconnectionError if the request cannot be built or sent, for a reason of this side: it would
        fail in the same way again. Raises SSEError if the network or the server fails, and _DroppedError.
        """
        try:
            await self._renew()
        except Exception as exc:
            raise self._not_sent(attempt, exc) from exc
        try:
            return await self._droppable(self._exchange.open)
        except (CallbackError, UsageError) as exc:
            # The client for another origin, behind a redirect; the client's auth.
            raise self._not_sent(attempt, exc) from exc
        except SSEError as exc:
            if not self._exchange.is_unsendable:
                raise
            raise self._not_sent(attempt, exc) from exc

    def _not_sent(self, attempt: int, cause: Exception) -> ReconnectionError:
        # Only the type: the error's text may hold what a message must not.
        kind = type(cause).__name__
        message = f"{self.target}: the stream cannot be resumed, since its request cannot be sent again: {kind}"
        return ReconnectionError(f"{message}; the exception's cause says why", attempt)

    async def _renew(self) -> None:
        """Have the request ready for another time, where this one was dropped."""
        old = self._exchange
        make = partial(Exchange, self._clients, self._options, old.resumption)
        if self._clients.has_factory:
            # Which may take its time.
            with CallersCode("the bridge's client function", passes=Exception):
                self._exchange = await loops.run_in_daemon_thread(
                    "sseqbridge-client", make, discard=Exchange.abandon
                )
        else:
            self._exchange = make()
        self._is_held = True
        self._received += old.received
        self._events += old.events
        if self._put is not None:
            self._exchange.put_through(self._put)

    async def _droppable(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what `call` gives. Raises _DroppedError once the connection is to be dropped."""
        if self._dropped is not None:
            raise _DroppedError
        with anyio.CancelScope() as scope:
            self._scope = scope
            try:
                return await call()
            finally:
                self._scope = None
        raise _DroppedError

    def drop(self, cause: SSEError | None, *, was_asked_for: bool = False) -> bool:
        """Give the connection up for another one; False where none comes after it.

        What it gave so far is given first.
        """
        if self._is_last or self._is_settled or self._exchange.outcome == "done":
            return False
        self._dropped = _Dropped(cause, was_asked_for)
        self._exchange.shut_down()
        if self._scope is not None:
            self._scope.cancel()
        return True

    # Deciding.

    @property
    def _so_far(self) -> Drop:
        """What is known of the whole stream. In any thread."""
        options = self._options
        return Drop(
            None,
            method=options.method,
            has_body=options.has_body,
            answered=self._is_answered,
            delivered=self.events > 0,
            has_id=self.last_event_id not in ("", options.last_event_id),
        )

    def _drop(self, cause: SSEError | None) -> Drop:
        connection = self._exchange
        return replace(
            self._so_far,
            cause=cause,
            is_clean=connection.ended_cleanly,
            open_for=0.0 if self.opened_at is None else anyio.current_time() - self.opened_at,
            events=connection.events,
            retry=connection.resumption.retry,
            retry_after=_retry_after(cause.headers) if isinstance(cause, StatusError) else None,
        )

    async def _planned(self, retry: Retry, cause: SSEError | None) -> Reconnecting:
        await self._close()
        self._retry, self._policy, self._is_settled = retry, retry.policy, False
        told = "a clean end, or asked for" if cause is None else type(cause).__name__
        logger.debug("%s: attempt %d to reconnect in %.3g s, after %s", self.target, retry.attempt, retry.delay, told)
        return Reconnecting(retry.attempt, retry.delay, cause)

    def _lost(self, decision: GiveUp, cause: SSEError | None) -> ReconnectionError:
        error = ReconnectionError(
            f"{self.target}: the stream was lost, attempts to reconnect: {decision.attempts}; {decision.reason}",
            decision.attempts,
        )
        error.__cause__ = cause
        return error


def _retry_after(headers: httpx.Headers) -> float | None:
    # By the server's own clock, where it says what that shows.
    now = http_date(headers.get("date")) or datetime.now(timezone.utc)
    return retry_after(headers.get("retry-after"), now)


def tell(on_reconnect: OnReconnect | None, entry: Reconnecting) -> None:
    """Call the caller's function, if there is one. In the consumer's thread or coroutine; raises what it raises."""
    if on_reconnect is not None:
        with CallersCode("on_reconnect", passes=Exception):
            on_reconnect(*entry)
