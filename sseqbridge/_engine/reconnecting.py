"""A stream's exchanges, one after another, with the interface of one Exchange. Belongs to the loop thread, like it.

Invariants: batches of a connection that was dropped come before those of the next connection, and no request has an
ID of a block that was not complete. The retry policy decides (_sse/retry_policy.py), this module waits.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from sseqbridge._exceptions import (
    CallbackError,
    ReconnectionError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    UsageError,
)
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.retry_policy import (
    Drop,
    GiveUp,
    ReconnectionPolicy,
    Retry,
    Stop,
)

from .attempts import Attempts, DroppedError, DropRequest
from .reconnection_notice import Reconnecting
from .responses import Body, Head, retry_after_of, status_error

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.request import RequestOptions
    from sseqbridge._sse.events import ServerSentEvent

    from .batches import Batch
    from .channel import Outcome

__all__ = ["ReconnectingExchange"]

logger = logging.getLogger("sseqbridge")

# For how long open() waits for the first response if there is no `total` limit.
_OPEN_SECONDS = 60.0


class _Stage(enum.Enum):
    """The connections that can still follow the current one."""

    # Another connection may follow, also if this one is dropped.
    CONTINUES = enum.auto()
    # Its response decides, whatever asks for a drop now.
    DECIDED = enum.auto()
    # Nothing follows.
    LAST = enum.auto()
    # Nothing follows but the refusal that was kept.
    REFUSED = enum.auto()


class ReconnectingExchange:
    """An Exchange that outlives its connections.

    `open()` and iterating also return Reconnecting entries, each before the wait that it announces.
    """

    # The `total` limit bounds open() itself here, and the stream from the first response on.
    bounds_its_opening = True
    # On Python 3.10, cancelling the task is lost if the wait that it interrupts is dropped at the same time.
    is_direct = False

    def __init__(self, clients: ClientPool, options: RequestOptions, policy: ReconnectionPolicy) -> None:
        """Build the first request. Raises UsageError if `options` make no valid request."""
        self._attempts = Attempts(clients, options)
        self._options = options
        self._policy = policy
        self._stage = _Stage.CONTINUES
        # The next attempt; None while a connection is in use.
        self._retry: Retry | None = None
        # Why it is made.
        self._cause: SSEError | None = None
        # The last response before the first good one, in case that no better one comes.
        self._refusal: tuple[Head, Body] | None = None
        self._has_streamed = False
        self._started_at = clock.monotonic()
        self.reconnections = 0

    # The interface of Exchange.

    @property
    def opened_at(self) -> float | None:
        """When the current connection got its response, on the loop's clock; None between connections."""
        return self._attempts.opened_at

    @property
    def is_complete(self) -> bool:
        """Whether the end of the body is known to be received."""
        return self._attempts.exchange.is_complete

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        return self._attempts.exchange.target

    @property
    def outcome(self) -> Outcome | None:
        """How the stream ended, None before."""
        if self._stage is _Stage.REFUSED:
            return "eof"
        outcome = self._attempts.exchange.outcome
        return outcome if outcome == "done" or self._stage is _Stage.LAST else None

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item, if there was one."""
        return self._attempts.exchange.done_event

    @property
    def received(self) -> int:
        """The bytes of all bodies so far."""
        return self._attempts.received

    @property
    def events(self) -> int:
        """The number of events so far."""
        return self._attempts.events

    def check_asked(self) -> None:
        """Raise UsageError if the request must not be sent again, even if the caller asks for it. Thread-safe."""
        if reason := self._policy.obstacle(self._history()):
            raise UsageError(reason)

    def set_sink(self, put: Callable[[Batch], bool]) -> None:
        """See Exchange.set_sink()."""
        self._attempts.set_sink(put)

    def drain(self) -> None:
        """See Exchange.drain()."""
        self._attempts.exchange.drain()

    def shut_down(self) -> None:
        """Shut the connection down at once, whatever the reading waits for."""
        self._attempts.exchange.shut_down()

    async def aclose(self) -> None:
        """Return the connection to its pool if the response was read to its end, else close it."""
        self._attempts.set_sink(None)
        await self._attempts.close()

    def abandon(self) -> None:
        """Return the client, if the request was never sent."""
        self._attempts.exchange.abandon()

    def drop(self, cause: SSEError | None, *, was_asked_for: bool = False) -> bool:
        """Drop the connection for another one. Returns False if no other one follows.

        Batches that were read already are returned first.
        """
        if self._stage is not _Stage.CONTINUES or self._attempts.exchange.outcome == "done":
            return False
        self._attempts.drop(DropRequest(cause, was_asked_for))
        return True

    # The first response.

    async def open(self) -> Head | Reconnecting:
        """Return the first response's head, or a notice of an attempt that failed: call it again then.

        All attempts together take `total` seconds at most, or 60, besides shared pauses. Then the last response is
        returned, whatever its status; without a response ReconnectionError is raised.
        """
        with anyio.move_on_after(max(0.0, self._opening_deadline - clock.monotonic())) as scope:
            if self._options.pauses is not None:
                self._options.pauses.extend(scope)
            return await self._attempt()
        tried = 0 if self._retry is None else self._retry.attempt
        error = StreamTimeoutError("total", self._opening_seconds, self.target)
        return self._refusal_or_error(GiveUp(tried, f"there was no response {_within(self._opening_seconds)}"), error)

    @property
    def _opening_seconds(self) -> float:
        total = self._options.timeout.total
        return _OPEN_SECONDS if total is None else total

    @property
    def _opening_deadline(self) -> float:
        pauses = self._options.pauses
        return self._started_at + self._opening_seconds + (0.0 if pauses is None else pauses.seconds)

    async def _attempt(self) -> Head | Reconnecting:
        exchange = self._attempts.exchange
        try:
            if self._retry is None:
                head = await exchange.open()
            else:
                await anyio.sleep(self._retry.delay)
                again = await self._attempts.send_again(self._retry.attempt)
                # `resume`, which may return None, is not called before the first response.
                assert again is not None
                head = again
        except (CallbackError, ReconnectionError):
            raise
        except SSEError as exc:
            return await self._after_failure(exc)
        if head.is_stream or head.status == 204:
            return self._accept(head)
        # The policy needs the status alone: the body is read only if the request is sent again.
        decision = self._policy.after(self._describe_drop(status_error(self.target, head, Body(b""))))
        if self._attempts.exchange.was_processed or not isinstance(decision, Retry):
            return self._accept(head)
        if clock.monotonic() + decision.delay > self._opening_deadline:
            return self._accept(head)
        self._refusal = head, Body(b"")
        self._refusal = head, await self._attempts.exchange.read_body()
        return await self._plan(decision, status_error(self.target, *self._refusal))

    async def _after_failure(self, cause: SSEError) -> Head | Reconnecting:
        if self._attempts.exchange.is_unsendable or self._attempts.exchange.was_processed:
            raise cause
        decision = self._policy.after(self._describe_drop(cause))
        if isinstance(decision, Stop):
            raise cause
        if isinstance(decision, Retry):
            if clock.monotonic() + decision.delay <= self._opening_deadline:
                return await self._plan(decision, cause)
            reason = f"the next attempt, in {decision.delay:.3g} s, would not be {_within(self._opening_seconds)}"
            decision = GiveUp(decision.attempt - 1, reason)
        return self._refusal_or_error(decision, cause)

    def _refusal_or_error(self, decision: GiveUp, cause: SSEError) -> Head:
        if self._refusal is None:
            raise _lost(self.target, decision, cause)
        self._stage = _Stage.REFUSED
        return self._refusal[0]

    def _accept(self, head: Head) -> Head:
        self._retry = None
        self._has_streamed = True
        self._stage = _Stage.CONTINUES if head.is_stream else _Stage.LAST
        self._attempts.mark_open(head)
        return head

    # Reading.

    def __aiter__(self) -> ReconnectingExchange:
        return self

    async def __anext__(self) -> Batch | Body | Reconnecting:
        """Return the next batch, or a notice that the connection has ended.

        Raises StopAsyncIteration once `outcome` is set, and ReconnectionError.
        """
        if self._stage is _Stage.REFUSED:
            return self._take_refusal()
        while True:
            cause: SSEError | None = None
            try:
                if self._retry is not None:
                    await self._reconnect()
                if self._attempts.drop_request is None:
                    return await self._attempts.interruptible(self._attempts.exchange.__anext__)
                if (batch := self._attempts.exchange.rest()) is not None:
                    return batch
            except DroppedError:
                continue
            except StopAsyncIteration:
                if self._stage is _Stage.LAST or self._attempts.exchange.outcome == "done":
                    raise
            except (CallbackError, ReconnectionError):
                # Not for the policy, which would judge the connection before this attempt.
                raise
            except SSEError as exc:
                cause = exc
            return await self._after_end(cause)

    def _take_refusal(self) -> Body:
        if self._refusal is None:
            raise StopAsyncIteration
        (_, body), self._refusal = self._refusal, None
        return body

    async def _after_end(self, cause: SSEError | None) -> Reconnecting:
        decision: Retry | Stop | GiveUp
        if self._attempts.exchange.outcome == "done" or await self._attempts.exchange.take_response():
            # A failure after the last event does not matter, nor whether the consumer has seen that event.
            decision = Stop()
            cause = None
        elif (request := self._attempts.take_drop_request()) is not None:
            # The reason for the drop, and not the error that the drop has caused.
            cause, was_asked_for = request
            drop = self._describe_drop(cause)
            decision = self._policy.at_once(drop) if was_asked_for else self._policy.after(drop)
        else:
            decision = self._policy.after(self._describe_drop(cause))
        if isinstance(decision, Retry):
            return await self._plan(decision, cause)
        if isinstance(decision, GiveUp):
            raise _lost(self.target, decision, cause)
        self._stage = _Stage.LAST
        raise StopAsyncIteration if cause is None else cause

    async def _reconnect(self) -> None:
        """Wait for the time of the next attempt, and connect. Raises SSEError if that fails."""
        assert self._retry is not None
        try:
            await self._attempts.interruptible(partial(anyio.sleep, self._retry.delay))
        except DroppedError:
            # The caller has asked for it during the wait: connect now.
            self._attempts.take_drop_request()
        attempt, self._retry = self._retry.attempt, None
        head = await self._attempts.send_again(attempt)
        if head is None:
            self._stage = _Stage.LAST
            if self._attempts.exchange.ended_cleanly and self._cause is None:
                raise StopAsyncIteration
            raise _lost(self.target, GiveUp(attempt - 1, "the `resume` function returned None"), self._cause)
        if head.is_stream:
            self.reconnections += 1
            self._attempts.mark_open(head)
            return
        self._stage = _Stage.DECIDED
        self._attempts.take_drop_request()
        if head.status != 204:
            raise status_error(self.target, head, await self._attempts.exchange.read_body(), self._cause)
        self._stage = _Stage.LAST

    # Deciding.

    def _history(self) -> Drop:
        """Return what the policy has to know of the whole stream. Thread-safe."""
        options = self._options
        return Drop(
            None,
            method=options.method,
            has_body=options.has_body,
            has_streamed=self._has_streamed,
            has_id=self._attempts.exchange.resumption.last_event_id not in ("", options.last_event_id),
            has_place=self._attempts.resuming.has_place,
            is_place_excluded=self._attempts.resuming.is_place_excluded,
            lacks_response=options.rules.ends_at_response,
        )

    def _describe_drop(self, cause: SSEError | None) -> Drop:
        exchange, opened_at = self._attempts.exchange, self.opened_at
        return self._history()._replace(
            cause=cause,
            is_clean=exchange.ended_cleanly,
            open_for=0.0 if opened_at is None else anyio.current_time() - opened_at,
            events=exchange.events,
            retry=exchange.resumption.retry,
            retry_after=retry_after_of(cause.headers) if isinstance(cause, StatusError) else None,
        )

    async def _plan(self, retry: Retry, cause: SSEError | None) -> Reconnecting:
        await self._attempts.close()
        self._retry, self._policy, self._stage = retry, retry.policy, _Stage.CONTINUES
        self._cause = cause
        reason = "a clean end, or as the caller asked" if cause is None else type(cause).__name__
        logger.debug("%s: attempt %d to reconnect in %.3g s, after %s", self.target, retry.attempt, retry.delay, reason)
        return Reconnecting(retry.attempt, retry.delay, cause)


def _within(seconds: float) -> str:
    return f"within {seconds:g} s; timeout=Timeout(total=...) sets this limit"


def _lost(target: str, decision: GiveUp, cause: SSEError | None) -> ReconnectionError:
    error = ReconnectionError(
        f"{target}: the stream was lost, attempts to reconnect: {decision.attempts}; {decision.reason}",
        decision.attempts,
    )
    error.__cause__ = cause
    return error
