"""The transfer of a RawExchange in the callbacks of a reused connection, from the request to the end, without a task.

The callback of the first read puts all that it finds into the channel (the head, bytes of the body, the end), and wakes
the consumer once, at its end. Where something has to be awaited (a full channel), and for every error, the exchange's
task is started, and continues from there.

Runs on the loop thread.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

from sseqbridge._http.callback_exchange import CallbackExchange

if TYPE_CHECKING:
    import httpx

    from sseqbridge._http.connection import BodyStream, HTTP11Connection
    from sseqbridge._http.h1_heads import ResponseHead

    from .raw_exchange import RawExchange

__all__ = ["RawTransfer"]


class RawTransfer(CallbackExchange):
    """Moves a response from a connection into the channel of its exchange."""

    def __init__(
        self, exchange: RawExchange, connection: HTTP11Connection, method: str, timeout: float | None
    ) -> None:
        super().__init__(connection, method, timeout)
        self._exchange = exchange
        # The caller's, in which the exchange's task runs.
        self._context = contextvars.copy_context()

    def head_received(self, response: ResponseHead, body: BodyStream) -> bool:
        self._exchange.open_in_callback(response, body)
        return True

    def data_received(self, data: bytes) -> bool:
        return self._exchange.take(data)

    def body_completed(self) -> None:
        if self._exchange.writer.has_pending:
            self.continue_with_rest()
            return
        # The connection first, so that the consumer's next request finds it idle.
        self.close()
        self._exchange.end_in_callback()

    def read_completed(self) -> None:
        if self._exchange.writer.has_pending:
            self.continue_with_rest()
            return
        self._exchange.writer.wakes_consumer = True
        self._exchange.channel.wake_consumer()

    def continue_with(self, result: httpx.Response | Exception) -> None:
        self._exchange.writer.wakes_consumer = True
        self._exchange.channel.wake_consumer()
        self._context.run(self._exchange.continue_with, result)
