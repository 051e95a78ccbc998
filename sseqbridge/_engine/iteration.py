"""Iteration: an asynchronous iterable that runs in a task, and whose items go into a bounded channel.

Everything runs on the loop thread. Invariant: a generator is cancelled only while it waits; at a `yield` it is closed
by aclose(), or gets an exception by athrow(), always in the task that runs it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import BridgeClosedError, UsageError
from sseqbridge._runtime.callbacks import is_from_outside
from sseqbridge._runtime.clock import clock

from .async_work import AsyncWork, forget_cancellations, is_cancellation, name_of
from .batches import EVENT_OVERHEAD, Batch
from .last_read import record_reads
from .stats import StreamStats

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag

    from .loop_state import LoopState

__all__ = ["CallersIteration", "Iteration"]

logger = logging.getLogger("sseqbridge")

# How long a source that never waits may keep the loop.
_SLICE_SECONDS = 0.005
# How long the source may take to end after it was cancelled or closed.
_PATIENCE_SECONDS = 1.0


class Iteration(AsyncWork):
    """The subscription of a stream of an asynchronous iterable's items."""

    def __init__(self, state: LoopState, source: Any, cancel: CancelFlag | None, max_buffered: int) -> None:
        name = name_of("iterate", source)
        super().__init__(state, name, source, cancel, max_entries=max_buffered, patience=_PATIENCE_SECONDS)
        self._started_at = clock.monotonic()
        self._first_item_at: float | None = None

    # Thread-safe.

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters: of items, of which there are no bytes."""
        first_item_at = self._first_item_at
        return StreamStats(
            bytes=0,
            events=self.events,
            buffered=self.channel.buffered,
            reconnections=0,
            time_to_first_event=None if first_item_at is None else first_item_at - self._started_at,
        )

    # There is no connection that could be reused.
    drain = AsyncWork.abort

    def reconnect(self) -> None:
        """Raise UsageError: there is no connection."""
        raise UsageError(f"{self.target} is not a request, so there is nothing to reconnect")

    # On the loop thread.

    def _on_cancel(self) -> None:
        self.channel.close()
        self.abort_on_loop(None)

    async def _work(self) -> None:
        last_read = record_reads()
        error: BaseException | None = None
        opened: list[Any] = []
        try:
            iterable = await _iterable_of(self.take_source())
            opened.append(iterable)
            iterator = aiter(iterable)
            if iterator is not iterable:
                opened.insert(0, iterator)
            await self._transfer(iterator)
            self.was_cut_short = last_read.found_cancelled
        except BaseException as exc:
            error = exc
        # From here on nothing interrupts the cleanup.
        self._is_interruptible = False
        forget_cancellations()
        iterable = iterator = None
        while opened:
            error = await self._closed(opened.pop(0), error)
        if error is not None:
            try:
                raise error
            finally:
                error = None  # Its traceback references this frame.

    async def _transfer(self, iterator: Any) -> None:
        channel, now = self.channel, clock.monotonic
        waited_at = now()
        thrown: BaseException | None = None
        while not (channel.closed or self._is_aborted):
            try:
                item = await (anext(iterator) if thrown is None else iterator.athrow(thrown))
            except StopAsyncIteration:
                return
            self.events += 1
            if self._first_item_at is None:
                self._first_item_at, self.opened = now(), True
            batch, item, thrown = Batch([item], 1, _charge(item), "", None), None, None
            is_sent = channel.try_send(batch, 1)
            try:
                if not is_sent:
                    # Backpressure, or the consumer has left.
                    await channel.send(batch, 1)
                    waited_at = now()
                elif now() - waited_at > _SLICE_SECONDS:
                    await asyncio.sleep(0)
                    waited_at = now()
            except asyncio.CancelledError as exc:
                if self._is_aborted or not hasattr(iterator, "athrow"):
                    raise
                # A cancel scope, timeout or task group of the generator's own has cancelled this task while the
                # generator stood at its `yield`: the cancellation is the generator's to handle.
                if not is_sent:
                    channel.send_nowait(batch, 1)
                thrown = exc

    async def _closed(self, opened: Any, error: BaseException | None) -> BaseException | None:
        """Close an iterator or iterable. Returns the error of the iteration, which comes before one of the closing."""
        close = getattr(opened, "aclose", None) or getattr(opened, "close", None)
        if close is None:
            return error
        try:
            closing = close()
            if inspect.isawaitable(closing):
                await closing
        except BaseException as exc:
            if error is None or is_cancellation(error):
                return exc
            logger.error("closing %s failed", self.target, exc_info=exc)
        return error


class CallersIteration(Iteration):
    """An iteration on the caller's own loop, which may end first: asyncio.run() then cancels all tasks."""

    async def _transfer(self, iterator: Any) -> None:
        try:
            await super()._transfer(iterator)
        except asyncio.CancelledError as exc:
            if self._is_aborted or not is_from_outside(exc, self.task):
                raise
            raise BridgeClosedError("the event loop that the asynchronous iterable ran on is ending") from exc


async def _iterable_of(source: Any) -> Any:
    """Return the asynchronous iterable that `source` is or returns. Raises UsageError if there is none."""
    value = source() if callable(source) and not isinstance(source, AsyncIterable) else source
    if not isinstance(value, AsyncIterable) and inspect.isawaitable(value):
        value = await value
    if not isinstance(value, AsyncIterable):
        advice = (
            "Pass an asynchronous generator function that enters it with `async with`."
            if hasattr(value, "__aenter__")
            else "Pass for example an asynchronous generator function."
        )
        raise UsageError(f"the function must return an asynchronous iterable, got {type(value).__name__}. {advice}")
    return value


def _charge(item: Any) -> int:
    """Return how many bytes an item counts for where bytes are counted, in a tee and a log."""
    return EVENT_OVERHEAD + len(item) if isinstance(item, (str, bytes)) else EVENT_OVERHEAD
