"""A RequestSender that sends its request again while the first response is a failure that may pass.

Belongs to the loop thread, once made. The decision is in _sse/retries.py, this module waits.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from sseqbridge._exceptions import SSEError
from sseqbridge._http.urls import origin_key
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.retries import MAX_RETRY_AFTER, Failure, retry_delay

from .attempt_options import options_of_attempt
from .responses import response_headers, retry_after_of
from .sender import RequestSender, Resumption

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.request import RequestOptions

__all__ = ["new_sender"]

logger = logging.getLogger("sseqbridge")


def new_sender(clients: ClientPool, options: RequestOptions, resumption: Resumption) -> RequestSender:
    """Return a sender for the options. Raises UsageError if they make no valid request."""
    kind = RequestSender if options.retries == 0 and options.pauses is None else _RetryingSender
    return kind(clients, options, resumption)


class _RetryingSender(RequestSender):
    """Sends a request up to `retries` times more, and waits for the pauses of its origin before each time."""

    # An attempt may call the caller's headers function.
    is_direct = False

    def __init__(self, clients: ClientPool, options: RequestOptions, resumption: Resumption) -> None:
        super().__init__(clients, options, resumption)
        self._resumption = resumption
        self._first_origin = origin_key(options.url)
        self._started_at = clock.monotonic()

    async def send(self) -> Any:
        """Do the same as RequestSender.send(). Returns the last response, or raises the last error, of all attempts."""
        tried = 0
        while True:
            await self._wait_for_pauses(is_sent=tried > 0)
            response, error = None, None
            try:
                response = await super().send()
                failure = self._failure_of(response)
            except SSEError as exc:
                error = exc
                failure = Failure(error=None if self.is_unsendable else exc)
            delay = None if self.was_processed else retry_delay(failure, tried, self._options.retries)
            if delay is None or self._exceeds_total(delay):
                if error is not None:
                    raise error
                return response
            tried += 1
            reason = failure.status if error is None else type(error).__name__
            logger.debug("%s: retry %d in %.3g s, after %s", self.target, tried, delay, reason)
            await self.close_response()
            self._response = None
            await anyio.sleep(delay)

    async def _wait_for_pauses(self, *, is_sent: bool) -> None:
        """Wait until no pause is left, and build a request that was sent, or whose headers may have expired."""
        pauses, is_stale = self._options.pauses, is_sent
        while True:
            if pauses is not None and await pauses.wait(self._first_origin):
                is_stale = is_stale or self._options.new_headers is not None
            if not is_stale:
                return
            await self._renew()
            # Another pause may have begun while the caller's function made the headers.
            is_stale = False

    def _failure_of(self, response: Any) -> Failure:
        headers = response_headers(response)
        retry_after = retry_after_of(headers)
        status = response.status_code
        is_pause = status == 429 and retry_after is not None and 0 < retry_after <= MAX_RETRY_AFTER
        if is_pause and self._options.pauses is not None:
            self._options.pauses.begin(self._first_origin, retry_after or 0.0)
        return Failure(status=status, retry_after=retry_after, should_retry=headers.get("x-should-retry"))

    def _exceeds_total(self, delay: float) -> bool:
        total, pauses = self._options.timeout.total, self._options.pauses
        paused = 0.0 if pauses is None else pauses.seconds
        return total is not None and clock.monotonic() + delay >= self._started_at + total + paused

    async def _renew(self) -> None:
        """Build the request of the next attempt, for the URL of the call."""
        options = await options_of_attempt(self._options)
        if self._clients.has_factory and self._origin != self._first_origin:
            # A redirect has led to another origin, which has a client of its own.
            await self._change_client(self._first_origin)
        self._begin(options, self._resumption)
