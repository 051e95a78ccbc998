"""The frames of an iterable, which runs in a worker thread, and of an asynchronous one, which runs in a task.

Heartbeats are sent while it computes, and its bounded channel holds it back while the client is slow (backpressure).

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
from typing import TYPE_CHECKING, Any, NamedTuple

from sseqbridge._engine.channel import CLOSED, Channel, End, post
from sseqbridge._engine.last_read import LastRead, record_reads
from sseqbridge._engine.scope import CancelScope
from sseqbridge._exceptions import bridge_error_of, is_cancellation
from sseqbridge._runtime.callbacks import is_from_outside
from sseqbridge._streams.worker import ChannelClosed, IterableWorker

from ._source import ApplicationError
from ._writer import CANCELLED, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from sseqbridge._streams.reader import ItemReader

    from ._ending import Outcome

__all__ = ["TaskSource", "WorkerSource"]

logger = logging.getLogger("sseqbridge")

# How many bytes of frames an iterable may be ahead of the client.
_MAX_AHEAD = 64 * 1024
# A frame's charge in addition to its bytes.
_OVERHEAD = 256


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

    def wait_ended(self, timeout: float) -> None:
        """Wait until the worker thread has ended, at most `timeout` seconds, after close()."""
        self._worker.wait_ended(timeout)

    def interrupt(self) -> None:
        """End the iteration, if it has begun, at its next `yield`."""
        self._worker.interrupt()

    def drop(self) -> None:
        """Do nothing: the worker's own finalizer ends its thread."""


class TaskSource:
    """The frames of an asynchronous iterable, which runs in a task from the first read on."""

    error: BaseException | None = None
    refused: ItemReader[Any] | None = None
    # Of the class: __del__ also reads it if an interrupt has ended __init__.
    _task: asyncio.Task[None] | None = None

    def __init__(self, items: AsyncIterable[Any], writer: Writer) -> None:
        self._items = items
        self._writer = writer
        self._channel: Channel[_Frame] | None = None
        self.last_event_id = ""
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

    interrupt = drop = abandon


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
        if channel.closed and not is_cancellation(exc) and bridge_error_of(exc) is None:
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
