"""Where a relay's frames come from: an upstream's stream, an iterable, or an asynchronous iterable.

`Upstream` examines a relay's argument once, and makes the source for it. Frames of a stream are written in the
consumer's thread or coroutine. An iterable runs in a worker thread, an asynchronous one in a task: heartbeats
are sent while it computes, and its bounded channel holds it back while the client is slow (backpressure).

The worker thread or the task is the only producer of its channel; the consumer writes all other fields.
`close` and `abandon` may be called by any thread.

Invariant: no object that a worker or task refers to refers to the relay, so that a relay that is dropped is
finalized, which ends them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from sseqbridge._engine.channel import CLOSED, Channel, End, post
from sseqbridge._engine.scope import CancelScope
from sseqbridge._exceptions import Cancelled, SSEError, UsageError
from sseqbridge._runtime.callbacks import is_exit_of_callers_function, is_from_outside, is_reportable
from sseqbridge._sse.events import Comment, RestartEvent
from sseqbridge._streams.aio import AsyncEventStream, AsyncSSEResponse
from sseqbridge._streams.stream import BaseStream, reader_of
from sseqbridge._streams.sync import SSEResponse
from sseqbridge._streams.worker import ChannelClosed, IterableWorker

from ._writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from sseqbridge._streams.reader import ItemReader

__all__ = ["ApplicationError", "AsyncSource", "Source", "StreamSource", "TaskSource", "Upstream", "WorkerSource"]

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


class Upstream:
    """The argument `stream` of a relay. A context manager that aborts the stream if its block fails.

    The relay owns the stream that it was passed: the caller keeps no other way to end it.
    """

    def __init__(self, stream: Any) -> None:
        if isinstance(stream, (SSEResponse, AsyncSSEResponse)):
            stream = stream.events
        self._stream = stream
        # The reader of an event stream; None for iterables, and for objects that cannot be relayed.
        self._reader: ItemReader[Any] | None = reader_of(stream) if isinstance(stream, BaseStream) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        reader = self._reader
        if kind is not None and reader is not None and reader.cursor.outcome is None and not reader.is_claimed:
            reader.abort()

    @property
    def refused(self) -> ItemReader[Any] | None:
        """The reader of an upstream's answer that is no event stream; None for all others."""
        reader = self._reader
        return reader if reader is not None and not reader.cursor.head.is_stream else None

    def check_synchronous(self) -> None:
        """Raise UsageError if only an asynchronous server can relay the stream."""
        if isinstance(self._stream, (AsyncEventStream, AsyncIterable)):
            raise UsageError(
                f"`stream` must be what request_sse returns, or an iterable, got {type(self._stream).__name__}. "
                "Relay it through an asynchronous server."
            )

    def source(self, writer: Writer, after_work: Callable[[], object] | None) -> Source:
        """Return the source for a synchronous server. Raises UsageError if the stream cannot be relayed."""
        self.check_synchronous()
        if self._reader is not None:
            return StreamSource(self._reader, writer)
        items = self._stream
        if isinstance(items, (str, bytes, dict)) or not isinstance(items, Iterable):
            raise UsageError(
                f"`stream` must be what request_sse returns, or an iterable of items, got {type(items).__name__}"
            )
        if inspect.isgenerator(items) and inspect.getgeneratorstate(items) == inspect.GEN_CLOSED:
            raise UsageError("`stream` must be unread, got a generator that has ended already. Pass a new one.")
        return WorkerSource(items, writer, after_work)

    def async_source(self, writer: Writer, after_work: Callable[[], object] | None) -> AsyncSource:
        """Return the source for an asynchronous server. Raises UsageError if the stream cannot be relayed."""
        if self._reader is not None:
            return StreamSource(self._reader, writer)
        items = self._stream
        if not isinstance(items, AsyncIterable):
            return self.source(writer, after_work)
        if inspect.isasyncgen(items) and items.ag_frame is None:
            raise UsageError("`stream` must be unread, got a generator that has ended already. Pass a new one.")
        return TaskSource(items, writer)


class StreamSource:
    """The frames of an event stream that request_sse or arequest_sse opened."""

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

    def next(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopIteration, and the stream's error."""
        self._begin()
        self._reader.check_usable()
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
        if self._cursor.is_refused:
            # The reader would deliver the body as an item.
            raise await self._reader.arefusal()
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
        self._is_read = True

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
        # A RestartEvent is a log's own: `map` is not called with it.
        if type(last) is RestartEvent or (writer.is_verbatim and not cursor.decoder.is_function):
            return writer.event(last)
        return writer.item(item, last)

    def end(self) -> bytes:
        """Return the frame that follows the last one."""
        cursor = self._cursor
        return self._writer.end(cursor.outcome, cursor.last_event, cursor.done_event)

    def close(self) -> None:
        """Abort the request, unless it has ended, and wait until it is aborted."""
        if not self._cursor.subscription.is_inherited:
            self._reader.close()

    def abandon(self) -> None:
        """Abort the request, unless it has ended, without waiting."""
        if self._cursor.outcome is None:
            self._reader.abort()


def _charged_frame(writer: Writer, item: Any) -> tuple[bytes, int] | None:
    """Return the frame of an iterable's item and its charge; None if nothing is sent for the item."""
    frame = writer.item(item)
    return (frame, len(frame) + _OVERHEAD) if frame else None


def _frame_of(entry: bytes | End | None, stop: type[Exception]) -> bytes | None:
    """Return a channel's entry if it is a frame, or None. Raises `stop` or ApplicationError for the end."""
    if entry is None or isinstance(entry, bytes):
        return entry
    raise stop if entry.error is None else ApplicationError(entry.error)


class WorkerSource:
    """The frames of an iterable, which runs in a worker thread from the first read on."""

    def __init__(self, items: Iterable[Any], writer: Writer, after_work: Callable[[], object] | None) -> None:
        self._writer = writer
        self._worker: IterableWorker[bytes] = IterableWorker(
            items,
            partial(_charged_frame, writer),
            max_buffered=_MAX_AHEAD,
            context=writer.context,
            on_end=after_work,
        )

    def next(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopIteration, and ApplicationError."""
        return _frame_of(self._worker.receive(timeout), StopIteration)

    async def anext(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopAsyncIteration, and ApplicationError."""
        return _frame_of(await self._worker.areceive(timeout), StopAsyncIteration)

    def end(self) -> bytes:
        """Return the frame that follows the last one."""
        end = self._worker.end
        return self._writer.end(None if end is None else end.outcome, None, None)

    def close(self) -> None:
        """End the iteration at its next `yield`, without waiting for it."""
        self._worker.close()

    abandon = close


class TaskSource:
    """The frames of an asynchronous iterable, which runs in a task from the first read on."""

    def __init__(self, items: AsyncIterable[Any], writer: Writer) -> None:
        self._items = items
        self._writer = writer
        self._channel: Channel[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._end: End | None = None

    def __del__(self) -> None:
        self.abandon()

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
        return _frame_of(entry, StopAsyncIteration)

    def end(self) -> bytes:
        """Return the frame that follows the last one."""
        return self._writer.end(None if self._end is None else self._end.outcome, None, None)

    def abandon(self) -> None:
        """Cancel the task, without waiting; the iterable's own cleanup runs to its end.

        Thread-safe and idempotent: Django closes a response in a thread.
        """
        task, self._task = self._task, None
        if task is not None:
            post(task.get_loop(), _cancel, task, self._channel)


def _cancel(task: asyncio.Task[None], channel: Channel[bytes]) -> None:
    # Both in one iteration of the event loop: a task that finds the channel closed ends by itself, and a
    # cancellation would interrupt its cleanup.
    channel.close()
    task.cancel()


async def _atask(items: AsyncIterable[Any], writer: Writer, channel: Channel[bytes]) -> None:
    with CancelScope(ChannelClosed(channel)):
        await _aiterate(items, writer, channel)


async def _aiterate(items: AsyncIterable[Any], writer: Writer, channel: Channel[bytes]) -> None:
    end = CLOSED
    iterator: Any = items
    task = asyncio.current_task()
    try:
        iterator = aiter(items)
        async for item in iterator:
            frame = writer.item(item)
            if frame:
                await channel.send(frame, len(frame) + _OVERHEAD)
            if channel.closed:
                # An iterable that never waits cannot be cancelled.
                break
        else:
            end = End("eof")
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


Source = StreamSource | WorkerSource
AsyncSource = StreamSource | WorkerSource | TaskSource
