"""Where a relay's frames come from: an upstream's stream, an iterable, or an asynchronous iterable.

Frames of a stream are written in the consumer's thread or coroutine. An iterable runs in a worker thread, an
asynchronous one in a task: heartbeats are sent while it computes, and its bounded channel holds it back while the
client is slow (backpressure).

The worker thread or the task is the only producer of its channel; the consumer writes all other fields.
`close` and `abandon` may be called by any thread.

Invariant: no object that a worker or task refers to refers to the relay, so that a relay that is dropped is
finalized, which ends them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sseqbridge._engine.channel import CLOSED, Channel, End, post
from sseqbridge._engine.last_read import LastRead, record_reads
from sseqbridge._engine.scope import CancelScope
from sseqbridge._exceptions import Cancelled, SSEError, UsageError
from sseqbridge._runtime.callbacks import is_exit_of_callers_function, is_from_outside, is_reportable
from sseqbridge._sse.events import Comment, RestartEvent, ServerSentEvent
from sseqbridge._streams.worker import ChannelClosed, IterableWorker

from ._refused import arefusal, is_refusal, refusal, refused_reader
from ._writer import CANCELLED, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from sseqbridge._streams.decoding import Decoder
    from sseqbridge._streams.reader import ItemReader

    from ._ending import Outcome

__all__ = ["ApplicationError", "AsyncSource", "BaseSource", "Source", "StreamSource", "TaskSource", "WorkerSource"]

logger = logging.getLogger("sseqbridge")

# How many bytes of frames an iterable may be ahead of the client.
_MAX_AHEAD = 64 * 1024
# A frame's charge in addition to its bytes.
_OVERHEAD = 256


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
        """The reader of an upstream's answer that is no event stream; None for all others."""

    def end(self) -> bytes:
        """Return the frame that follows the last one."""

    def abandon(self) -> None:
        """End the source, without waiting. Thread-safe and idempotent."""

    def drop(self) -> None:
        """Do the same in a finalizer: call no code of the application's. What is not running ends by itself."""


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
        if self._decoder is not None:
            self._look(last, self._decoder)
            return writer.event(last)
        return writer.item(item, last)

    def _look(self, event: ServerSentEvent, decoder: Decoder) -> None:
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

    def abandon(self) -> None:
        """Abort the request, unless it has ended, without waiting."""
        if self._cursor.outcome is None:
            self._reader.abort()

    drop = abandon


class _Frame(NamedTuple):
    """An entry of an iterable's channel: a frame, and the client's last event ID after it."""

    data: bytes
    last_event_id: str


def _charged_frame(writer: Writer, item: Any) -> tuple[_Frame, int] | None:
    """Return the frame of an iterable's item and its charge; None if nothing is sent for the item."""
    frame = writer.item(item)
    return (_Frame(frame, writer.last_event_id), len(frame) + _OVERHEAD) if frame else None


def _frame_of(entry: _Frame | End | None, stop: type[Exception]) -> _Frame | None:
    """Return a channel's entry if it is a frame, or None. Raises `stop` or ApplicationError for the end."""
    if not isinstance(entry, End):
        return entry
    raise stop if entry.error is None else ApplicationError(entry.error)


def _outcome_of(end: End | None) -> Outcome | None:
    """Return the outcome of an iterable with this end, None if it has not ended by itself.

    "closed" is the outcome if the stream that it read last was cancelled; CLOSED itself is the end of a closed channel.
    """
    if end is None or end is CLOSED or end.outcome == "error":
        return None
    return "eof" if end.outcome == "eof" else "cancelled"


def _end_frame(end: End | None, writer: Writer) -> bytes:
    """Return the frame that follows the last one of an iterable."""
    if _outcome_of(end) == "cancelled":
        return CANCELLED
    return writer.end(None if end is None else end.outcome, None, None)


class WorkerSource:
    """The frames of an iterable, which runs in a worker thread from the first read on."""

    error: BaseException | None = None
    refused: ItemReader[Any] | None = None

    def __init__(self, items: Iterable[Any], writer: Writer, after_work: Callable[[], object] | None) -> None:
        self._writer = writer
        self.last_event_id = ""
        self._worker: IterableWorker[_Frame] = IterableWorker(
            items,
            partial(_charged_frame, writer),
            max_buffered=_MAX_AHEAD,
            context=writer.context,
            on_end=after_work,
        )

    @property
    def outcome(self) -> Outcome | None:
        return _outcome_of(self._worker.end)

    def next(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopIteration, and ApplicationError."""
        return self._taken(_frame_of(self._worker.receive(timeout), StopIteration))

    async def anext(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopAsyncIteration, and ApplicationError."""
        return self._taken(_frame_of(await self._worker.areceive(timeout), StopAsyncIteration))

    def _taken(self, frame: _Frame | None) -> bytes | None:
        if frame is None:
            return None
        self.last_event_id = frame.last_event_id
        return frame.data

    def end(self) -> bytes:
        """Return the frame that follows the last one."""
        return _end_frame(self._worker.end, self._writer)

    def close(self) -> None:
        """End the iteration at its next `yield`, without waiting for it."""
        self._worker.close()

    abandon = close

    def drop(self) -> None:
        """Do nothing: the worker's own finalizer ends its thread."""


class TaskSource:
    """The frames of an asynchronous iterable, which runs in a task from the first read on."""

    error: BaseException | None = None
    refused: ItemReader[Any] | None = None

    def __init__(self, items: AsyncIterable[Any], writer: Writer) -> None:
        self._items = items
        self._writer = writer
        self._channel: Channel[_Frame] | None = None
        self.last_event_id = ""
        self._task: asyncio.Task[None] | None = None
        self._end: End | None = None

    def __del__(self) -> None:
        self.abandon()

    @property
    def outcome(self) -> Outcome | None:
        return _outcome_of(self._end)

    async def anext(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopAsyncIteration, and ApplicationError."""
        if self._channel is None:
            loop = asyncio.get_running_loop()
            self._channel = Channel(loop, _MAX_AHEAD)
            # In the view's context: the current one may be that of the server's task.
            task = self._writer.context.copy().run(loop.create_task, _atask(self._items, self._writer, self._channel))
            self._task = task
        entry = self._end or await self._channel.atake_within(timeout)
        if isinstance(entry, End):
            self._end = entry
        frame = _frame_of(entry, StopAsyncIteration)
        if frame is None:
            return None
        self.last_event_id = frame.last_event_id
        return frame.data

    def end(self) -> bytes:
        """Return the frame that follows the last one."""
        return _end_frame(self._end, self._writer)

    def abandon(self) -> None:
        """Cancel the task, without waiting; the iterable's own cleanup runs to its end.

        Thread-safe and idempotent: Django closes a response in a thread.
        """
        task, self._task = self._task, None
        if task is not None:
            post(task.get_loop(), _cancel, task, self._channel)

    drop = abandon


def _cancel(task: asyncio.Task[None], channel: Channel[_Frame]) -> None:
    # Both in one iteration of the event loop: a task that finds the channel closed ends by itself, and a
    # cancellation would interrupt its cleanup.
    channel.close()
    task.cancel()


async def _atask(items: AsyncIterable[Any], writer: Writer, channel: Channel[_Frame]) -> None:
    with CancelScope(ChannelClosed(channel)):
        await _aiterate(items, writer, channel, record_reads())


async def _aiterate(
    items: AsyncIterable[Any], writer: Writer, channel: Channel[_Frame], last_read: LastRead
) -> None:
    end = CLOSED
    iterator: Any = items
    task = asyncio.current_task()
    try:
        iterator = aiter(items)
        async for item in iterator:
            if channel.closed:
                # An iterable that never waits cannot be cancelled.
                break
            frame = writer.item(item)
            if frame:
                await channel.send(_Frame(frame, writer.last_event_id), len(frame) + _OVERHEAD)
        else:
            end = End("closed" if last_read.found_cancelled else "eof")
    except asyncio.CancelledError as exc:
        if not channel.closed:
            # The application raised it: abandon() closes the channel first.
            end = End("error", exc)
        raise
    except BaseException as exc:
        if not isinstance(exc, Exception) and is_from_outside(exc, task):
            raise
        # SystemExit too: it would end the server's event loop.
        end = End("error", exc)
        if channel.closed and not isinstance(exc, Cancelled):
            logger.exception("an asynchronous iterable failed after the client had disconnected")
    finally:
        try:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()
        except BaseException as exc:
            if not isinstance(exc, Exception) and is_from_outside(exc, task):
                raise
            if end.error is None and not channel.closed:
                end = End("error", exc)
            else:
                logger.exception("an asynchronous iterable failed while it was being closed")
        finally:
            channel.end(end)
