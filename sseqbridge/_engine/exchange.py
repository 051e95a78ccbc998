"""One request and its response, as an async iterator of batches: check the head, read, drain, abort, close.

An Exchange is made in the caller's thread, so that a wrong argument is an error of the call. From then on it belongs
to the loop thread; other threads read its counters. It knows no channel and no consumer. sender.py sends the request,
batches.py parses the body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from sseqbridge._exceptions import SSEError, TransportError, TruncatedStreamError, UpstreamError, UsageError
from sseqbridge._http.bounded_bodies import MAX_BODY_BYTES, is_cut
from sseqbridge._http.connection import BodyStream
from sseqbridge._http.errors import CLIENT_CODE
from sseqbridge._runtime.callbacks import CallersCode, original
from sseqbridge._sse.events import ServerSentEvent

from .batches import Batch, BatchReader
from .last_block import holds_response, last_batch
from .responses import (
    Body,
    Head,
    PulledBody,
    content_type_error,
    open_body,
    read_other_type,
    read_within_bounds,
    response_headers,
)
from .retrying import new_sender
from .sender import BEGINNING, Resumption

if TYPE_CHECKING:
    import httpx

    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.connection import Sink
    from sseqbridge._http.request import RequestOptions

    from .channel import Outcome
    from .sender import SentRequest

__all__ = ["Exchange"]

# How much of the body is read after the stream's last event: at its end the connection can be reused.
_DRAIN_BYTES = 64 * 1024


class Exchange:
    """One request, from sending it to the last byte of its response.

    `open()` sends it. Iterating returns Batches, or one Body if the response is no stream. `outcome` is "done" or "eof"
    once the stream has ended; `received` counts the bytes of the body.
    """

    # See ReconnectingExchange, which has values of its own.
    bounds_its_opening = False
    reconnections = 0
    opened_at = 0.0

    def __init__(self, clients: ClientPool, options: RequestOptions, resumption: Resumption | None = None) -> None:
        """Build the request. Raises UsageError if `options` make no valid request."""
        if resumption is None:
            resumption = Resumption(options.last_event_id) if options.last_event_id else BEGINNING
        self._options = options
        self._sender = new_sender(clients, options, resumption)
        self._reader = BatchReader(options, resumption.last_event_id, resumption.retry)
        self._head: Head | None = None
        self._body: BodyStream | PulledBody | None = None
        self._put: Callable[[Batch], bool] | None = None
        # How many bytes may still be read after the last event; None before.
        self._drain_left: int | None = None
        self._is_read_to_end = False
        # The error after the batch that the end of the body has brought.
        self._end_error: SSEError | None = None
        self.outcome: Outcome | None = None
        # Whether the body ended as HTTP says, with or without a last event.
        self.ended_cleanly = False
        self.received = 0

    @property
    def events(self) -> int:
        """The number of events so far."""
        return self._reader.events

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item, if there was one."""
        return self._reader.done_event

    @property
    def is_direct(self) -> bool:
        """Whether the request goes through the library's own transport alone, and runs no code of the caller's."""
        return self._sender.is_direct

    @property
    def is_unsendable(self) -> bool:
        """Whether the HTTP client refused the request itself, so that it would refuse it again."""
        return self._sender.is_unsendable

    @property
    def was_processed(self) -> bool:
        """Whether the server has answered a request with a body by a redirect to its result."""
        return self._sender.was_processed

    @property
    def is_complete(self) -> bool:
        """Whether the end of the body is known to be received."""
        return isinstance(self._body, BodyStream) and self._body.complete

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        return self._sender.target

    @property
    def network_stream(self) -> Any:
        """The connection of the response, None before its head and after its end."""
        return self._sender.network_stream

    @property
    def resumption(self) -> Resumption:
        """The stream's position now."""
        sender = self._sender
        return Resumption(
            self._reader.last_event_id, self._reader.retry, sender.redirects, sender.cookies, sender.place
        )

    @property
    def sent(self) -> SentRequest:
        """The request that was answered. Only of an exchange that reconnects."""
        assert self._sender.sent is not None
        return self._sender.sent

    @property
    def headers(self) -> httpx.Headers:
        """The headers of the response, which must have arrived."""
        assert self._head is not None
        return self._head.headers

    async def open(self) -> Head:
        """Send the request, follow redirects, and return the head of the response.

        Raises ContentTypeError for a 200 of a type that the format does not have, and what RequestSender.send() does.
        """
        response = await self._sender.send()
        headers = response_headers(response)
        head = self._head = Head(response.status_code, headers, response.http_version, self._options.format)
        self._body, self._reader.decoder = open_body(response, head, self._reader.slice_bytes)
        if head.is_stream:
            if self._options.check_content_type and not head.is_accepted_type:
                body = await read_other_type(self._next_chunk, self._reader.decoder, headers)
                raise content_type_error(self.target, head, body)
            if is_cut(response):
                raise SSEError(
                    f"{self.target}: an event hook or auth of the HTTP client must not read the body of an event "
                    f"stream; it has read this one, of which it gets {MAX_BODY_BYTES} bytes at most"
                )
        return head

    # Reading.

    def set_sink(self, put: Callable[[Batch], bool]) -> None:
        """Pass batches to `put` in the transport's callback, while __anext__ waits.

        A batch for which `put` returns False is returned by __anext__, and so is every batch of a transport that
        does not support this. `put` must not raise.
        """
        self._put = put

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> Batch | Body:
        """Return the next batch. Raises StopAsyncIteration once `outcome` is set."""
        if self.outcome is not None and self._drain_left is None:
            raise StopAsyncIteration
        if self._end_error is not None:
            raise self._end_error
        assert self._head is not None
        if not self._head.is_stream:
            return await self._refusal()
        reader = self._reader
        while (batch := reader.next_batch()) is None:
            if reader.is_parsing:
                # A compressed body can expand to gigabytes without an event: yield to the loop.
                await anyio.sleep(0)
                continue
            chunk = await self._next_chunk_or_end()
            if isinstance(chunk, Batch):
                return chunk
            if chunk is None:
                raise StopAsyncIteration
            if chunk:
                reader.feed(chunk)
        if reader.is_done and self._drain_left is None:
            self.drain()
        return batch

    async def _next_chunk_or_end(self) -> bytes | Batch | None:
        """Return the next bytes, or at the end of the body its last batch, None if that has none."""
        try:
            chunk = await self._next_chunk(None if self._put is None else self.take_in)
            return await self._end() if chunk is None else chunk
        except TransportError as exc:
            if self.outcome is not None:
                raise
            # An end marker counts, however the connection ends behind it.
            last = await last_batch(self._reader, self._options, self.target, broken_by=exc)
            if self._reader.is_done:
                self.outcome = "done"
            elif last is None:
                if isinstance(error := self._reader.error_in_body(), UpstreamError):
                    # Otherwise its text would be lost.
                    exc.args = (f"{exc}; before that, {error}", *exc.args[1:])
                raise
            else:
                self._end_error = exc
            return last

    def take_in(self, chunk: bytes) -> bool:
        """Take what the transport has just read. Returns False if __anext__ has to continue."""
        assert self._put is not None
        self.received += len(chunk)
        if self._drain_left is not None:
            self._drain_left -= len(chunk)
            return self._drain_left >= 0
        if self._reader.feed_to(chunk, self._put):
            return True
        if self._reader.is_done:
            self.drain()
        return False

    async def take_response(self) -> bool:
        """End the stream if its last event so far is the JSON-RPC response that ends it; return whether it is."""
        event = self._reader.last_item
        if not isinstance(event, ServerSentEvent) or not await holds_response(event):
            return False
        self.outcome = "done"
        return True

    @property
    def is_drained(self) -> bool:
        """Whether no more of the body is read after the last event."""
        return self._drain_left is not None and self._drain_left < 0

    def drain(self) -> None:
        """End the stream, but read a little further without parsing, so that the connection can be reused."""
        self._drain_left = _DRAIN_BYTES
        self._reader.discard()
        self.outcome = "done"

    async def _next_chunk(self, sink: Sink | None = None) -> bytes | None:
        """Return the next bytes of the body, None at its end, b"" if `sink` has taken bytes that need work."""
        assert self._body is not None
        while True:
            try:
                with CallersCode(CLIENT_CODE, passes=Exception):
                    chunk = await self._body.read(sink)
            except SSEError:
                raise
            except Exception as exc:
                raise self._sender.translate(original(exc), has_head=True) from original(exc)
            if chunk is None:
                return None if self.is_drained else b""
            if not chunk:
                self._is_read_to_end = True
                return None
            self.received += len(chunk)
            if self._drain_left is None:
                return chunk
            self._drain_left -= len(chunk)
            if self.is_drained:
                return None

    def rest(self) -> Batch | None:
        """Return the next batch of the bytes that were read already; None if there is none."""
        return self._reader.rest()

    async def _end(self) -> Batch | None:
        """End the stream with its body. Returns the batch of a last block without its blank line, if there is one."""
        if self.outcome is not None:
            return None
        self._reader.finish()
        last = await last_batch(self._reader, self._options, self.target)
        self.ended_cleanly = True
        if self._reader.is_done:
            self.outcome = "done"
        elif self._options.require_done:
            marker = self._options.rules.end_data
            self._end_error = TruncatedStreamError(
                f"{self.target}: the stream ended without {'its last event' if marker is None else repr(marker)}"
            )
            if last is None:
                raise self._end_error
        else:
            self.outcome = "eof"
        return last

    async def _refusal(self) -> Body:
        assert self._head is not None
        if self._head.status == 204:
            self.outcome = "eof"
            raise StopAsyncIteration
        body = await self.read_body()
        self.outcome = "eof"
        return body

    async def read_body(self) -> Body:
        """Return the body of a response that is no event stream, within bounds of size and time."""
        assert self._reader.decoder is not None
        return await read_within_bounds(self._next_chunk, self._reader.decoder)

    # Ending.

    def shut_down(self) -> None:
        """Shut the connection down at once, whatever the reading waits for."""
        self._sender.shut_down()

    def drop(self, cause: SSEError | None, *, was_asked_for: bool = False) -> bool:
        """Return False: no other connection follows this one."""
        return False

    def check_asked(self) -> None:
        """Raise UsageError: no other connection follows this one."""
        if self._options.format == "jsonl":
            raise UsageError("a stream of JSON Lines does not reconnect: it has no event IDs to resume from")
        raise UsageError("this stream does not reconnect. Open it with reconnect=True.")

    async def aclose(self) -> None:
        """Return the connection to its pool if the response was read to its end, else close it."""
        # A bound method of the stream's task, which would make a reference cycle.
        self._put = None
        await self._sender.close_response(is_read_to_end=self._is_read_to_end)
        if isinstance(self._body, PulledBody):
            await self._sender.close_quietly(self._body, "the response's body")
        await self._sender.release(is_read_to_end=self._is_read_to_end)

    def abandon(self) -> None:
        """Return the client, if the request was never sent."""
        self._sender.abandon()
