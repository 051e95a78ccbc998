"""IterableWorker: an iterable that runs in a worker thread, behind a bounded channel.

The worker thread alone iterates, converts the items and sends to the channel. One consumer at a time, a thread
or a coroutine, receives from it. `close` may be called by any thread: it closes the channel, and the worker
thread closes the iterable at its next `yield`.

Invariant: no object that the worker thread refers to refers to the IterableWorker. So an IterableWorker that is
dropped is finalized while its thread runs, and its finalizer ends the thread.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sseqbridge._engine.channel import Channel, End, ThreadChannel
from sseqbridge._engine.last_read import LastRead, record_reads
from sseqbridge._engine.scope import CancelScope
from sseqbridge._exceptions import UsageError, bridge_error_of, is_cancellation
from sseqbridge._runtime import fork, threads

__all__ = ["ChannelClosed", "IterableWorker", "check_unread"]

T = TypeVar("T")

logger = logging.getLogger("sseqbridge")


def check_unread(name: str, items: object) -> None:
    """Raise UsageError if `items`, the argument or result that `name` describes, is a generator that has ended."""
    has_ended = (
        inspect.getgeneratorstate(items) == inspect.GEN_CLOSED
        if inspect.isgenerator(items)
        else inspect.isasyncgen(items) and items.ag_frame is None
    )
    if has_ended:
        raise UsageError(f"{name} must be unread, got a generator that has ended already. Pass a new one.")


class IterableWorker(Generic[T]):
    """Runs `items` in a thread of its own, which `start`, or the first call of `receive` or `areceive`, starts.

    `convert` is called in the worker thread with each item. It returns the channel's entry and the entry's
    charge, or None to leave the item out. The channel holds at most `max_buffered` of charge (backpressure).

    The iterable runs in a copy of `context`, and in a scope that is cancelled once the worker is closed: the
    streams that it read last are aborted, and a wait in it raises Cancelled.

    `on_end`, if there is one, is called in the worker thread after the iterable was closed. `start_thread` starts the
    worker thread.
    """

    def __init__(
        self,
        items: Iterable[Any],
        convert: Callable[[Any], tuple[T, int] | None],
        *,
        max_buffered: int,
        context: contextvars.Context,
        on_end: Callable[[], object] | None = None,
        start_thread: Callable[..., object] = threads.start_worker,
    ) -> None:
        self._channel: ThreadChannel[T] = ThreadChannel(max_buffered)
        job = _Job(items, convert, self._channel, on_end)
        # The side that takes the job, start() or close(), owns it.
        self._jobs = deque((job,))
        self._has_ended = job.has_ended
        self._context = context
        self._start_thread = start_thread
        self._process = fork.process_token()
        # The entry that ended the channel, once the consumer has received it. Its outcome is "closed" also if a stream
        # was cut short that the iterable read last (see last_read.py).
        self.end: End | None = None

    def __del__(self) -> None:
        # The attribute is missing if an interrupt has ended __init__.
        if hasattr(self, "_channel"):
            self._channel.close()

    def receive(self, timeout: float | None) -> T | End | None:
        """Return the next entry, None if `timeout` seconds elapse first; at the end, and after it, return the End.

        Raises UsageError in a forked child, and in the iterable itself.
        """
        self.start()
        return self.end or self._received(self._channel.take_within(timeout))

    async def areceive(self, timeout: float | None) -> T | End | None:
        """Do the same as receive(), in a coroutine of any loop."""
        self.start()
        return self.end or self._received(await self._channel.atake_within(timeout))

    def poll(self) -> T | End | None:
        """Return the next entry if it has arrived, else None; at the end, and after it, return the End."""
        return self.end or self._received(self._channel.poll())

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._channel.closed

    def _received(self, entry: T | End | None) -> T | End | None:
        if isinstance(entry, End):
            self.end = entry
        return entry

    def start(self) -> None:
        """Start the worker thread, unless it was started or close() was called. Raises UsageError as receive() does."""
        if self._process != fork.process_token():
            # Fork does not copy the worker thread.
            raise UsageError("an iterable's worker was made before a fork. Make a new one in the child process.")
        if _running.get() is self._channel:
            raise UsageError("an iterable must not read the relay that runs it: the relay would wait for itself")
        job = self._take_job()
        if job is not None:
            context = self._context.copy()
            self._start_thread(context.run, _work, job)

    def interrupt(self) -> None:
        """End the iteration at its next `yield`, if the worker thread was started. Safe in signal handlers."""
        self._channel.close()

    def close(self) -> None:
        """End the iteration at its next `yield`, without waiting for it. Thread-safe and idempotent.

        If the worker thread was not started, the iterable is closed in the calling thread.
        """
        self._channel.close()
        job = self._take_job()
        if job is not None:
            job.has_ended.set()
            _close(job.items)

    def _take_job(self) -> _Job[T] | None:
        """Return the job, None if it was started or closed. An atomic step."""
        try:
            return self._jobs.popleft()
        except IndexError:
            return None

    def wait_ended(self, timeout: float) -> None:
        """Wait until the worker thread has ended, at most `timeout` seconds, after close()."""
        self._has_ended.wait(timeout)


@dataclass
class _Job(Generic[T]):
    """The worker thread's share of an IterableWorker."""

    items: Iterable[Any]
    convert: Callable[[Any], tuple[T, int] | None]
    channel: ThreadChannel[T]
    on_end: Callable[[], object] | None
    # Set by the worker thread's last step.
    has_ended: threads.OneShotEvent = field(default_factory=threads.OneShotEvent)


class ChannelClosed:
    """A cancel flag that is set once a channel is closed."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel

    def is_set(self) -> bool:
        """Whether the channel is closed."""
        return self._channel.closed


# The channel of the iterable that runs in this context.
_running: contextvars.ContextVar[Channel[Any] | None] = contextvars.ContextVar("sseqbridge-worker", default=None)


def _work(job: _Job[Any]) -> None:
    _running.set(job.channel)
    with CancelScope(ChannelClosed(job.channel)):
        _iterate(job, record_reads())


def _iterate(job: _Job[Any], last_read: LastRead) -> None:
    channel, convert = job.channel, job.convert
    end = End("eof")
    iterator: Any = job.items
    try:
        iterator = iter(job.items)
        for item in iterator:
            if channel.closed:
                # Before the conversion, which calls the consumer's functions.
                break
            converted = convert(item)
            if converted is not None and not channel.send_blocking(*converted):
                break
        else:
            if last_read.found_cancelled:
                end = End("closed")
    except BaseException as exc:
        # SystemExit too: it would end this thread alone, and leave the consumer waiting.
        end = End("error", exc)
        if channel.closed and not is_cancellation(exc) and bridge_error_of(exc) is None:
            logger.exception("an iterable failed after its consumer had closed it")
    finally:
        end = _closed(iterator, job, end)
        # Drop the iterable before `on_end` runs and the consumer sees the end.
        del iterator
        job.items = ()
        _call_on_end(job.on_end)
        channel.end(end)
        job.has_ended.set()


def _closed(iterator: Any, job: _Job[Any], end: End) -> End:
    """Close the iterator and its iterable. Return the end of the channel."""
    try:
        _close(iterator)
        if iterator is not job.items:
            _close(job.items)
    except BaseException as exc:
        if end.error is None and not job.channel.closed:
            return End("error", exc)
        logger.exception("an iterable failed while it was being closed")
    return end


def _call_on_end(on_end: Callable[[], object] | None) -> None:
    if on_end is not None:
        try:
            on_end()
        except Exception:
            logger.exception("%r failed after the end of an iterable", on_end)


def _close(iterator: Any) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
