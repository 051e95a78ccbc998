"""Where a relay's frames come from: the protocol of sources, and the source of an event stream.

Frames of a stream are written in the consumer's thread or coroutine, which writes all fields. `close` and `abandon`
may be called by any thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from sseqbridge._exceptions import SSEError, UsageError
from sseqbridge._runtime.callbacks import is_exit_of_callers_function, is_reportable
from sseqbridge._sse.events import Comment, RestartEvent, ServerSentEvent

from ._refused import arefusal, is_refusal, refusal, refused_reader
from ._writer import CANCELLED, Writer

if TYPE_CHECKING:

    from sseqbridge._streams.decoding import Decoder
    from sseqbridge._streams.reader import ItemReader

    from ._ending import Outcome

__all__ = ["ApplicationError", "AsyncSource", "BaseSource", "Source", "StreamSource"]

logger = logging.getLogger("sseqbridge")


class ApplicationError(Exception):
    """Wraps an exception of the application's own code.

    Its TimeoutError or StopIteration would otherwise be mistaken for a source's.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class BaseSource(Protocol):
    """Where the frames of a relay come from."""

    @property
    def outcome(self) -> Outcome | None:
        """How the source ended, None if it has not ended by itself."""

    @property
    def error(self) -> BaseException | None:
        """The error that the upstream reported in an event that was forwarded; None if it reported none."""

    @property
    def last_event_id(self) -> str:
        """The client's last event ID after the frames that were taken from the source; "" if there is none."""

    @property
    def refused(self) -> ItemReader[Any] | None:
        """The reader of an upstream's response that is no event stream; None for all others."""

    def end(self) -> bytes:
        """Return the frame that follows the last one."""

    def abandon(self) -> None:
        """End the source, without waiting. Thread-safe and idempotent."""

    def interrupt(self) -> None:
        """Stop the running thread or task, without calling the application's code. Safe in a signal handler.

        `abandon` is called later, when the relay is read.
        """

    def drop(self) -> None:
        """Do the same in a finalizer: call no code of the application's. An idle iterable ends by itself."""


class AsyncSource(BaseSource, Protocol):
    """A source that a coroutine can read."""

    async def anext(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopAsyncIteration, and the source's error."""


class Source(BaseSource, Protocol):
    """A source that a thread can read."""

    def next(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopIteration, and the source's error."""

    def close(self) -> None:
        """End the source, and wait shortly until the upstream's request is aborted."""

    def wait_ended(self, timeout: float) -> None:
        """Wait until no thread of the source runs, at most `timeout` seconds, after close()."""


class StreamSource:
    """The frames of an event stream that request_sse or arequest_sse opened.

    Without `map`, unless `decode` is a function, events are forwarded without being decoded. They are decoded, in
    addition, for `on_item` and to recognize an error that the upstream reports.
    """

    def __init__(self, reader: ItemReader[Any], writer: Writer) -> None:
        outcome = reader.cursor.outcome
        if outcome is not None:
            raise UsageError(f"`stream` must be unread, got a stream that has ended already ({outcome})")
        if reader.is_claimed:
            raise UsageError("`stream` must have no other consumer, got a stream that is being read already")
        self._reader = reader
        self._cursor = reader.cursor
        self._writer = writer
        self._is_read = False
        # The stream's own decoder, once it is read without decoding.
        self._decoder: Decoder | None = None
        self.error: BaseException | None = None

    @property
    def refused(self) -> ItemReader[Any] | None:
        return refused_reader(self._reader)

    @property
    def outcome(self) -> Outcome | None:
        outcome = self._cursor.outcome
        if self.error is not None and outcome is not None:
            return "error"
        return "cancelled" if outcome == "closed" else outcome

    @property
    def last_event_id(self) -> str:
        return self._writer.last_event_id

    def next(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopIteration, and the stream's error."""
        self._begin()
        self._reader.check_usable()
        if is_refusal(self.refused):
            # The reader would deliver the body as an item.
            error = refusal(self._reader, timeout)
            if error is None:
                return None
            raise error
        try:
            item = self._reader.next(timeout)
        except TimeoutError as exc:
            # A signal handler, and an iterable of iterate(), may raise it too.
            if self._reader.took_nothing:
                return None
            if self._is_of_an_iterable(exc):
                raise ApplicationError(exc) from None
            raise
        except BaseException as exc:
            if is_exit_of_callers_function(exc) or self._is_of_an_iterable(exc):
                # Not the exit of the server's worker.
                raise ApplicationError(exc) from None
            raise
        return self._frame(item)

    async def anext(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopAsyncIteration, and the stream's error."""
        self._begin()
        if is_refusal(self.refused):
            # The reader would deliver the body as an item.
            raise await arefusal(self._reader)
        try:
            item = await self._reader.anext(timeout)
        except TimeoutError as exc:
            if self._reader.took_nothing:
                return None
            if self._is_of_an_iterable(exc):
                raise ApplicationError(exc) from None
            raise
        except BaseException as exc:
            if self._is_of_an_iterable(exc):
                raise ApplicationError(exc) from None
            raise
        return self._frame(item)

    def _is_of_an_iterable(self, error: BaseException) -> bool:
        """Whether the asynchronous iterable of iterate() raised the error."""
        end = self._cursor.end
        return end is not None and end.error is error and not isinstance(error, SSEError)

    def _begin(self) -> None:
        """Raise UsageError if another consumer read the stream to its end before the relay began."""
        if not self._is_read and self._cursor.outcome in ("done", "eof"):
            raise UsageError("`stream` was read to its end by another consumer before the relay began")
        if not self._is_read:
            self._is_read = True
            decoder = self._cursor.decoder
            if self._writer.is_verbatim and not decoder.is_function:
                self._decoder, self._cursor.decoder = decoder, decoder.undecoded()

    def _frame(self, item: Any) -> bytes:
        try:
            return self._written(item)
        except BaseException as exc:
            # SystemExit too: it would end the server's worker or event loop, and the client would get no error.
            if is_reportable(exc):
                raise ApplicationError(exc) from None
            raise

    def _written(self, item: Any) -> bytes:
        cursor, writer = self._cursor, self._writer
        if type(item) is Comment:
            return writer.item(item)
        last = cursor.last_event
        if last is None:
            # An item of iterate(), which no event stands behind.
            return writer.item(item)
        # A RestartEvent is a log's own: `map` and `on_item` are not called with it.
        if type(last) is RestartEvent:
            return writer.event(last)
        if self._decoder is None:
            return writer.item(item, last)
        if self._decoder.rules.is_json and self._decoder.rules.is_heartbeat(last):
            return writer.heartbeat(last)
        self._examine(last, self._decoder)
        return writer.event(last)

    def _examine(self, event: ServerSentEvent, decoder: Decoder) -> None:
        """Note an error that the event reports. Show the event's item to `on_item`, if it can be decoded."""
        error = decoder.reported_error(event)
        if error is not None:
            self.error = self.error or error
        elif self._writer.is_observed:
            try:
                item = decoder.item(event)
            except SSEError:
                return
            self._writer.observe(item)

    def end(self) -> bytes:
        """Return the frame that follows the last one."""
        cursor = self._cursor
        if cursor.outcome == "closed":
            return CANCELLED
        is_clean = self.error is None
        return self._writer.end(cursor.outcome, cursor.last_event, cursor.done_event, is_clean=is_clean)

    def close(self) -> None:
        """Abort the request, unless it has ended, and wait until it is aborted."""
        if not self._cursor.subscription.is_inherited:
            self._reader.close()

    def wait_ended(self, timeout: float) -> None:
        """Do nothing: a stream has no thread of its own."""

    def abandon(self) -> None:
        """Abort the request, unless it has ended, without waiting."""
        if self._cursor.outcome is None:
            self._reader.abort()

    interrupt = drop = abandon
