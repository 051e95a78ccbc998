"""The exchanges of one reconnecting stream: the current one, the next attempt, and waits that a drop interrupts.

Belongs to the loop thread, once made; other threads read the counters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import anyio

from sseqbridge._exceptions import CallbackError, ReconnectionError, SSEError, UsageError
from sseqbridge._runtime import loops
from sseqbridge._runtime.callbacks import CallersCode

from .attempt_options import options_of_attempt
from .exchange import Exchange
from .resuming import Resuming

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.request import RequestOptions

    from .batches import Batch
    from .responses import Head
    from .sender import Resumption

__all__ = ["Attempts", "DropRequest", "DroppedError"]

T = TypeVar("T")


class DropRequest(NamedTuple):
    """Why a connection is to be dropped; `was_asked_for` says that the caller has called reconnect()."""

    cause: SSEError | None
    was_asked_for: bool


class DroppedError(Exception):
    """A wait was interrupted, since the connection is to be dropped."""


class Attempts:
    """Holds one exchange at a time, and replaces it by the next.

    `opened_at` is when the current connection got its response, on the loop's clock; None between connections.
    `drop_request` is set from drop() until the reader takes it.
    """

    def __init__(self, clients: ClientPool, options: RequestOptions) -> None:
        """Build the first request. Raises UsageError if `options` make no valid request."""
        self._clients = clients
        self.exchange = Exchange(clients, options)
        self.resuming = Resuming(options)
        self.opened_at: float | None = None
        self.drop_request: DropRequest | None = None
        self._is_exchange_open = True
        self._put: Callable[[Batch], bool] | None = None
        # Around the current wait.
        self._scope: anyio.CancelScope | None = None
        # Counters of the earlier exchanges.
        self._past_received = 0
        self._past_events = 0

    @property
    def received(self) -> int:
        """The bytes of all bodies so far."""
        return self._past_received + self.exchange.received

    @property
    def events(self) -> int:
        """The number of events so far."""
        return self._past_events + self.exchange.events

    def set_sink(self, put: Callable[[Batch], bool] | None) -> None:
        """Pass batches of this exchange and the following ones to `put`: see Exchange.set_sink()."""
        self._put = put
        if put is not None:
            self.exchange.set_sink(put)

    def mark_open(self, head: Head) -> None:
        """The current connection has got its response."""
        self.opened_at = anyio.current_time()
        if head.is_stream:
            self.resuming.note(self.exchange)

    async def close(self) -> None:
        """Close the current exchange, unless it is closed."""
        if self._is_exchange_open:
            self._is_exchange_open = False
            self.opened_at = None
            await self.exchange.aclose()

    async def send_again(self, attempt: int) -> Head | None:
        """Build the request of this attempt, send it, and return the head of its response.

        Returns None if the caller's `resume` function gives up; the exchange is the one before then. Raises
        CallbackError if that function or the one for the headers fails, and ReconnectionError if the request cannot be
        built or sent, for a reason on this side: it would fail in the same way again. Raises SSEError if the network
        or the server fails, and DroppedError.
        """
        try:
            request = await self.resuming.next(attempt, self.exchange.resumption)
            if request is None:
                return None
            options, resumption = request
            options = await options_of_attempt(options)
        except UsageError as exc:
            raise self._not_sent(attempt, exc) from exc
        # A request of the caller's to connect now, which happens.
        self.take_drop_request()
        try:
            await self._renew(options, resumption)
        except Exception as exc:
            raise self._not_sent(attempt, exc) from exc
        try:
            return await self.interruptible(self.exchange.open)
        except (CallbackError, UsageError) as exc:
            # From the client function for another origin, behind a redirect, or from the client's auth.
            raise self._not_sent(attempt, exc) from exc
        except SSEError as exc:
            if not self.exchange.is_unsendable:
                raise
            raise self._not_sent(attempt, exc) from exc

    async def _renew(self, options: RequestOptions, resumption: Resumption) -> None:
        old = self.exchange
        make = partial(Exchange, self._clients, options, resumption)
        if self._clients.has_factory:
            # A factory of the caller's may block, so not on the loop.
            with CallersCode("the bridge's client function", passes=Exception):
                self.exchange = await loops.run_in_daemon_thread("sseqbridge-client", make, discard=Exchange.abandon)
        else:
            self.exchange = make()
        self._is_exchange_open = True
        self._past_received += old.received
        self._past_events += old.events
        if self._put is not None:
            self.exchange.set_sink(self._put)

    def _not_sent(self, attempt: int, cause: Exception) -> ReconnectionError:
        # Only the error's type: its message may hold secrets.
        return ReconnectionError(
            f"{self.exchange.target}: the stream cannot be resumed, since its request cannot be sent again: "
            f"{type(cause).__name__}. See the exception's cause.",
            attempt,
        )

    async def interruptible(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call()`. Raises DroppedError if the connection is to be dropped, before or during the wait."""
        if self.drop_request is not None:
            raise DroppedError
        with anyio.CancelScope() as scope:
            self._scope = scope
            try:
                return await call()
            finally:
                self._scope = None
        raise DroppedError

    def drop(self, request: DropRequest) -> None:
        """Shut the connection down, and interrupt the current wait."""
        self.drop_request = request
        self.exchange.shut_down()
        if self._scope is not None:
            self._scope.cancel()

    def take_drop_request(self) -> DropRequest | None:
        """Return the pending request to drop the connection, and clear it."""
        request, self.drop_request = self.drop_request, None
        return request
