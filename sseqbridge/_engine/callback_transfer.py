"""The transfer of a stream in the callbacks of a reused connection, from the request to the end, without a task.

The callback of the first read puts all entries that it finds into the channel (the head, batches, the end), and wakes
the consumer once, at its end. The callback of a later read mostly finds one batch, which wakes the consumer. Where
something has to be awaited (a full channel), and for every response but a plain event stream, the stream's task is
started, and continues from there.

Runs on the loop thread.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

from sseqbridge._http.callback_exchange import CallbackExchange
from sseqbridge._http.content_encoding import BodyDecoder

from .exchange import Exchange
from .responses import Head, plain_head

if TYPE_CHECKING:
    import httpx

    from sseqbridge._http.connection import BodyStream, HTTP11Connection
    from sseqbridge._http.direct_request import DirectRequest
    from sseqbridge._http.h1_heads import ResponseHead

    from .stream_task import StreamTask

__all__ = ["CallbackTransfer", "DirectExchange", "begun"]


class DirectExchange(Exchange):
    """An exchange that can also be carried out in the callbacks of a reused connection."""

    # Instead of open() and __anext__.

    def reused_connection(self) -> tuple[HTTP11Connection, DirectRequest] | None:
        """Return an idle connection, and the request to send on it; None if open() has to send the request."""
        return self._sender.reused_connection()

    def take_head(self, response: ResponseHead, body: BodyStream) -> Head | None:
        """Return the head of the stream; None if continue_with() and open() have to take the response."""
        head = plain_head(response, check_content_type=self._options.check_content_type)
        if head is not None:
            self._head, self._body = head, body
            self._reader.decoder = BodyDecoder(self._reader.slice_bytes)
        return head

    def put_last_batch(self) -> bool:
        """After take_in() has returned False: pass on the batch of the last event. Returns False if that was not it."""
        assert self._put is not None
        return self._reader.is_done and self._reader.put_pending(self._put)

    @property
    def has_pending_batch(self) -> bool:
        """Whether take_in() has parsed a batch that did not fit, which __anext__ returns first."""
        return self._reader.has_pending

    def take_end(self) -> bool:
        """Take the end of the body. Returns False if __anext__ has to: for an incomplete block, and for errors."""
        if self.outcome is None:
            if self._options.require_done or not self._reader.ends_plainly:
                return False
            self.outcome, self.ended_cleanly = "eof", True
        return True

    def continue_with(self, result: httpx.Response | Exception) -> None:
        """Let open() or __anext__ continue with a response, or its error."""
        self._sender.continue_with(result, is_open=self._head is not None)

    def close_in_callback(self) -> None:
        """Do what aclose() does, after the connection was released or closed."""
        self._put = None
        self._sender.network_stream = None


class CallbackTransfer(CallbackExchange):
    """Moves entries from an exchange into its stream's channel."""

    def __init__(
        self,
        stream: StreamTask,
        exchange: DirectExchange,
        connection: HTTP11Connection,
        request: DirectRequest,
        timeout: float | None,
    ) -> None:
        super().__init__(connection, request.method, timeout)
        self._stream = stream
        self._exchange = exchange
        self._request = request
        # The caller's, in which the stream's task runs.
        self._context = contextvars.copy_context()

    def begin(self) -> None:
        """Send the request."""
        self.start(self._request.data)

    def abort(self) -> None:
        """Close the connection. Idempotent."""
        self.close()
        self._exchange.close_in_callback()

    def head_received(self, response: ResponseHead, body: BodyStream) -> bool:
        head = self._exchange.take_head(response, body)
        if head is None:
            return False
        self._stream.channel.send_silently(head)
        self._stream.begin_streaming()
        self._exchange.set_sink(self._stream.writer.try_add)
        return True

    def data_received(self, data: bytes) -> bool:
        exchange = self._exchange
        if exchange.take_in(data):
            # The usual case: the batch has woken the consumer.
            return True
        if not exchange.put_last_batch():
            if exchange.is_drained:
                self._end()
            else:
                self.continue_with_rest()
        return False

    def body_completed(self) -> None:
        if self._exchange.take_end():
            self._end()
        else:
            self.continue_with_rest()

    def _end(self) -> None:
        # The connection first, so that the consumer's next request finds it idle.
        self.abort()
        self._stream.end_in_callback()

    def read_completed(self) -> None:
        if self._exchange.outcome == "done":
            self._stream.begin_end()
        self._stream.writer.wakes_consumer = True
        self._stream.channel.wake_consumer()

    def continue_with(self, result: httpx.Response | Exception) -> None:
        if self._exchange.outcome == "done" and not self._exchange.has_pending_batch:
            # A failure after the last event does not matter.
            self._stream.begin_end()
        try:
            self._exchange.continue_with(result)
        except Exception as exc:
            # A fault of this package. Nothing else would end the stream.
            self.abort()
            self._stream.end_in_callback(exc)
            return
        self._stream.channel.wake_consumer()
        self._context.run(self._stream.continue_in_task)


def begun(stream: StreamTask, exchange: DirectExchange, timeout: float | None) -> CallbackTransfer | None:
    """Return a transfer on an idle connection, whose begin() sends the request; None if the stream needs its task."""
    reused = exchange.reused_connection()
    return None if reused is None else CallbackTransfer(stream, exchange, *reused, timeout)
