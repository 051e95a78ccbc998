"""Where a relay's bytes come from: a stream, or whatever else can be iterated over.

What the application itself makes runs in a worker: a thread for an iterable, a task for an
asynchronous one. So heartbeats go out while it computes, and a bounded channel holds it back
where the reader is slow. It is ended where it stands: at its next `yield`.

Which thread writes what: the worker its channel's producing side, the reader's thread or
coroutine all else. Nothing that a worker refers to refers to the relay, so that one that is
dropped ends it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sseqbridge._engine.channel import CLOSED, Channel, End, ThreadChannel, post
from sseqbridge._engine.scope import surrounding_cancel
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import fork, loops, threads
from sseqbridge._runtime.callbacks import is_from_outside
from sseqbridge._sse.events import Comment, RestartEvent
from sseqbridge._streams.aio import AsyncEventStream, AsyncSSEResponse
from sseqbridge._streams.stream import BaseStream, reader_of
from sseqbridge._streams.sync import EventStream, SSEResponse

from ._writer import Writer

__all__ = [
    "AsyncSource",
    "FailedError",
    "Source",
    "StreamSource",
    "TaskSource",
    "WorkerSource",
    "abort_on_error",
    "async_source_of",
    "source_of",
    "stream_of",
]

logger = logging.getLogger("sseqbridge")

# What the worker may be ahead of the reader, in bytes as they are sent.
_MAX_AHEAD = 64 * 1024
# What an event is charged besides.
_OVERHEAD = 256


class FailedError(Exception):
    """The application's own error: a TimeoutError or StopIteration of its is neither of a source's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class StreamSource:
    """The frames of an event stream that request_sse or arequest_sse opened."""

    def __init__(self, stream: BaseStream[Any], writer: Writer) -> None:
        reader = reader_of(stream)
        if stream.outcome is not None:
            raise UsageError(f"this stream has ended already ({stream.outcome}): relay one that was not read yet")
        if reader.is_claimed:
            raise UsageError("this stream is being read already: relay one that nobody else reads")
        self._reader = reader
        self._cursor = reader.cursor
        self._writer = writer
        self._is_read = False

    def next(self, timeout: float) -> bytes:
        """Return the next frame. Raises TimeoutError, StopIteration, and the stream's error."""
        self._begin()
        self._reader.check_usable()
        return self._frame(self._reader.next(timeout))

    async def anext(self, timeout: float) -> bytes:
        """Return the next frame. Raises TimeoutError, StopAsyncIteration, and the stream's error."""
        self._begin()
        if self._cursor.is_refused:
            # Before the body is decoded as an item.
            raise await self._reader.arefusal()
        return self._frame(await self._reader.anext(timeout))

    def _begin(self) -> None:
        """Raise UsageError where somebody else has read the stream to its end, before the first of this."""
        if not self._is_read and self._cursor.outcome in ("done", "eof"):
            raise UsageError("this stream was read by somebody else meanwhile: relay one that nobody else reads")
        self._is_read = True

    def _frame(self, item: Any) -> bytes:
        try:
            return self._written(item)
        except (Exception, SystemExit) as exc:
            # SystemExit too: it would be the reader's end without a word, and a worker's.
            raise FailedError(exc) from None
        except BaseException as exc:
            # `map` is called by the loop of an asynchronous server, which must not end by it.
            if not loops.in_coroutine() or is_from_outside(exc, asyncio.current_task()):
                raise
            raise FailedError(exc) from None

    def _written(self, item: Any) -> bytes:
        cursor, writer = self._cursor, self._writer
        if type(item) is Comment:
            return writer.item(item)
        last = cursor.last_event
        # A log's own events are not passed to `map`.
        if type(last) is RestartEvent or (writer.is_verbatim and not cursor.decoder.is_function):
            assert last is not None
            return writer.event(last)
        return writer.item(item, last)

    def end(self) -> bytes:
        """Return what is sent when all frames are."""
        cursor = self._cursor
        return self._writer.end(cursor.outcome, cursor.last_event, cursor.done_event)

    def close(self) -> None:
        """Abort the request, unless it has ended, and wait until it is."""
        if not self._cursor.subscription.is_inherited:
            self._reader.close()

    def abandon(self) -> None:
        """The same without waiting: in a loop."""
        if self._cursor.outcome is None:
            self._reader.abort()


class _MadeSource:
    """What both kinds of worker share: how its channel's entries are given on."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._end: End | None = None
        self._process = fork.process_token()

    def _check_process(self) -> None:
        if self._process != fork.process_token():
            # Its worker is not here.
            raise UsageError("this relay was made before a fork, and is the parent's to read: make one in the child")

    def _given(self, entry: bytes | End, stop: type[Exception]) -> bytes:
        if isinstance(entry, bytes):
            return entry
        self._end = entry
        raise stop if entry.error is None else FailedError(entry.error)

    def end(self) -> bytes:
        """Return what is sent when all frames are."""
        return self._writer.end(self._end.outcome if self._end else None, None, None)


class WorkerSource(_MadeSource):
    """Gives the frames of an iterable, which a thread of its own runs from the first `next` on."""

    def __init__(self, items: Iterable[Any], writer: Writer) -> None:
        if inspect.isgenerator(items) and inspect.getgeneratorstate(items) == inspect.GEN_CLOSED:
            raise UsageError("this generator has ended already: relay one that was not read yet")
        super().__init__(writer)
        self._items: Iterable[Any] | None = items
        self._channel: ThreadChannel[bytes] = ThreadChannel(_MAX_AHEAD)

    def __del__(self) -> None:
        # Not there where __init__ was not reached to its end.
        if hasattr(self, "_channel"):
            self._channel.close()

    def next(self, timeout: float) -> bytes:
        """Return the next frame. Raises TimeoutError, StopIteration, and what the iterable raised."""
        self._check_process()
        self._start()
        return self._given(self._end or self._channel.receive(timeout), StopIteration)

    async def anext(self, timeout: float) -> bytes:
        """Return the next frame. Raises TimeoutError, StopAsyncIteration, and what the iterable raised."""
        self._check_process()
        self._start()
        return self._given(self._end or await self._channel.areceive(timeout), StopAsyncIteration)

    def _start(self) -> None:
        items, self._items = self._items, None
        if items is not None:
            context = self._writer.context.copy()
            # Streams that it reads end with the reader, though it waits for them.
            context.run(surrounding_cancel.set, _Closed(self._channel))
            threads.start_worker(context.run, _work, items, self._writer, self._channel)

    def close(self) -> None:
        """Have the iterable closed at its next `yield`, at once where it waits there. Waits for nothing."""
        self._channel.close()
        items, self._items = self._items, None
        if items is not None:
            _close(items)

    abandon = close


class _Closed:
    """A flag that is set once a channel is closed."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel

    def is_set(self) -> bool:
        """Whether it is."""
        return self._channel.closed


def _work(items: Iterable[Any], writer: Writer, channel: ThreadChannel[bytes]) -> None:
    end = End("eof")
    iterator: Any = items
    try:
        iterator = iter(items)
        for item in iterator:
            frame = writer.item(item)
            if not (channel.send_blocking(frame, len(frame) + _OVERHEAD) if frame else not channel.closed):
                break
    except BaseException as exc:
        # SystemExit too: here it would end nothing but this thread, in silence.
        end = End("error", exc)
        if channel.closed:
            logger.exception("an iterable failed as it was closed, since the reader had left")
    finally:
        try:
            _close(iterator)
            if iterator is not items:
                _close(items)
        except BaseException as exc:
            if end.error is None and not channel.closed:
                end = End("error", exc)
            else:
                logger.exception("an iterable failed as it was closed")
        del iterator, items
        _tidy_up(writer)
        channel.end(end)


def _tidy_up(writer: Writer) -> None:
    if writer.after_work is not None:
        try:
            writer.after_work()
        except Exception:
            logger.exception("%r failed after an iterable's end", writer.after_work)


def _close(iterator: Any) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


class TaskSource(_MadeSource):
    """Gives the frames of an asynchronous iterable, which a task of its own runs from the first `anext` on."""

    def __init__(self, items: AsyncIterable[Any], writer: Writer) -> None:
        if inspect.isasyncgen(items) and items.ag_frame is None:
            raise UsageError("this generator has ended already: relay one that was not read yet")
        super().__init__(writer)
        self._items = items
        self._channel: Channel[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    def __del__(self) -> None:
        if hasattr(self, "_task"):
            self.abandon()

    async def anext(self, timeout: float) -> bytes:
        """Return the next frame. Raises TimeoutError, StopAsyncIteration, and what the iterable raised."""
        if self._channel is None:
            loop = asyncio.get_running_loop()
            self._channel = Channel(loop, _MAX_AHEAD)
            # In the view's context: this one may be that of the server's task.
            task = self._writer.context.copy().run(loop.create_task, _atask(self._items, self._writer, self._channel))
            self._task = task
        return self._given(self._end or await self._channel.areceive(timeout), StopAsyncIteration)

    def abandon(self) -> None:
        """Cancel the task, once: the iterable is closed where it stands, and what it does then runs to its end.

        From anywhere: Django closes a response in a thread.
        """
        task, self._task = self._task, None
        if task is not None:
            post(task.get_loop(), _cancel, task, self._channel)


def _cancel(task: asyncio.Task[None], channel: Channel[bytes]) -> None:
    # In one step of the loop: a task that finds the channel closed ends by itself, and must not be
    # cancelled while it does.
    channel.close()
    task.cancel()


async def _atask(items: AsyncIterable[Any], writer: Writer, channel: Channel[bytes]) -> None:
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
                # One that does not wait for anything could not be cancelled.
                break
        else:
            end = End("eof")
    except asyncio.CancelledError as exc:
        if not channel.closed:
            # By something of its own, and not by the reader's leaving.
            end = End("error", exc)
        raise
    except BaseException as exc:
        if not isinstance(exc, Exception) and is_from_outside(exc, task):
            raise
        # Exits too: they would end the server's loop.
        end = End("error", exc)
        if channel.closed:
            logger.exception("an asynchronous iterable failed as it was closed, since the reader had left")
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
                logger.exception("an asynchronous iterable failed as it was closed")
        finally:
            channel.end(end)


Source = StreamSource | WorkerSource
AsyncSource = StreamSource | WorkerSource | TaskSource


def stream_of(stream: Any) -> EventStream[Any] | AsyncEventStream[Any] | None:
    """Return the event stream of what was passed in, None where it is something else."""
    if isinstance(stream, (SSEResponse, AsyncSSEResponse)):
        return stream.events
    return stream if isinstance(stream, (EventStream, AsyncEventStream)) else None


@contextmanager
def abort_on_error(stream: Any) -> Iterator[None]:
    """Abort the stream where what is done with it fails: the caller has given it away."""
    try:
        yield
    except BaseException:
        events = stream_of(stream)
        if events is not None and events.outcome is None:
            reader = reader_of(events)
            if not reader.is_claimed:
                reader.abort()
        raise


def source_of(stream: Any, writer: Writer) -> Source:
    """Return where the frames come from, for a synchronous server."""
    if isinstance(stream, SSEResponse):
        stream = stream.events
    if isinstance(stream, EventStream):
        return StreamSource(stream, writer)
    if isinstance(stream, (AsyncSSEResponse, AsyncEventStream, AsyncIterable)):
        raise UsageError(
            f"a {type(stream).__name__} goes on through an asynchronous server; a synchronous one takes what "
            "request_sse returns, or an iterable"
        )
    if isinstance(stream, (str, bytes, dict)) or not isinstance(stream, Iterable):
        raise UsageError(
            f"a {type(stream).__name__} is no stream; pass on what request_sse returns, or an iterable of items"
        )
    return WorkerSource(stream, writer)


def async_source_of(stream: Any, writer: Writer) -> AsyncSource:
    """Return where the frames come from, for an asynchronous server."""
    if isinstance(stream, AsyncSSEResponse):
        stream = stream.events
    if isinstance(stream, AsyncEventStream):
        return StreamSource(stream, writer)
    if isinstance(stream, AsyncIterable):
        return TaskSource(stream, writer)
    return source_of(stream, writer)
