"""Sources that call a function, which opens the upstream, when the response starts.

`open` calls the function, and waits for it, before the response's headers are sent. With `early` the first read calls
it in a worker thread (or a task), so that heartbeats are sent in the meantime. The call runs in a scope that is
cancelled once the client has disconnected or the relay is closed, so that it does not outlive them.

The function's result is passed through a deque: the side that takes it, the consumer or `abandon`, owns it. The
consumer writes all other fields. `close` and `abandon` may be called by any thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from sseqbridge._engine.channel import End, post
from sseqbridge._engine.scope import CancelScope, current_scope, is_cancelled
from sseqbridge._exceptions import Cancelled, SSEError
from sseqbridge._runtime.callbacks import CallersCode, contained
from sseqbridge._runtime.loops import run_in_daemon_thread
from sseqbridge._streams.worker import IterableWorker

from ._source import ApplicationError

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag
    from sseqbridge._streams.reader import ItemReader

    from ._ending import Outcome
    from ._source import AsyncSource, BaseSource, Source
    from ._writer import Writer

__all__ = ["AsyncFunctionSource", "Caller", "FunctionSource"]

# Awaits the call of a plain function in a thread.
Caller = Callable[[Callable[[], object]], Awaitable[None]]

# The function, in messages.
_NAME = "the function that opens the relay's stream"


class Opened(Protocol):
    """The result of a function: an Upstream."""

    @property
    def refused(self) -> ItemReader[Any] | None: ...
    def source(self, writer: Writer, after_work: Callable[[], object] | None) -> Source: ...
    def async_source(self, writer: Writer, after_work: Callable[[], object] | None) -> AsyncSource: ...
    def discard(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc_info: Any) -> None: ...


class _Closing:
    """A cancel flag that is set once the relay is closed, or `also` is set."""

    def __init__(self, also: CancelFlag | None) -> None:
        self.is_closed = False
        self._also = also

    def is_set(self) -> bool:
        return self.is_closed or is_cancelled(self._also)


class _BaseFunctionSource:
    """The function, its result, and the source that the result becomes."""

    def __init__(
        self,
        function: Callable[[], Any],
        wrap: Callable[[Any], Opened],
        writer: Writer,
        after_work: Callable[[], object] | None,
        *,
        early: bool,
        cancel: CancelFlag | None = None,
        caller: Caller | None = None,
    ) -> None:
        self._function = function
        self._wrap = wrap
        self._writer = writer
        self._after_work = after_work
        self._is_early = early
        self._caller = caller
        self._closing = _Closing(cancel)
        # Results that the consumer has not taken: one at most.
        self._results: deque[Any] = deque()

    @property
    def opened(self) -> BaseSource | None:
        """The source that the function's result became; None before the call, and if the call was cancelled."""
        raise NotImplementedError

    @property
    def error(self) -> BaseException | None:
        return None if self.opened is None else self.opened.error

    @property
    def outcome(self) -> Outcome | None:
        return None if self.opened is None else self.opened.outcome

    @property
    def last_event_id(self) -> str:
        return "" if self.opened is None else self.opened.last_event_id

    @property
    def refused(self) -> ItemReader[Any] | None:
        return None if self.opened is None else self.opened.refused

    def end(self) -> bytes:
        """Return the frame that follows the last one."""
        return b"" if self.opened is None else self.opened.end()

    def _discard(self) -> None:
        """End the result, unless the consumer has taken it."""
        _discard(self._results, self._wrap)

    def abandon(self) -> None:
        """Cancel the call, or end the source that it returned, without waiting. Thread-safe and idempotent."""
        self._cancel_call()
        if self.opened is not None:
            self.opened.abandon()
        self._discard()

    def interrupt(self) -> None:
        """Cancel the call, or interrupt the source that it returned. Safe in a signal handler."""
        self._cancel_call()
        if self.opened is not None:
            self.opened.interrupt()

    def drop(self) -> None:
        """Do the same in a finalizer."""
        self._cancel_call()
        if self.opened is not None:
            self.opened.drop()
        self._discard()

    def _cancel_call(self) -> None:
        self._closing.is_closed = True

    def __del__(self) -> None:
        # The last attribute of __init__, which an interrupt may have ended.
        if hasattr(self, "_results"):
            self.drop()


def _discard(results: deque[Any], wrap: Callable[[Any], Opened]) -> None:
    try:
        result = results.popleft()
    except IndexError:
        return
    wrap(result).discard()


class FunctionSource(_BaseFunctionSource):
    """Calls the function in the consumer's thread, or with `early` in a worker thread."""

    _source: Source | None = None
    _worker: IterableWorker[bool] | None = None

    @property
    def opened(self) -> Source | None:
        return self._source

    def open(self) -> None:
        """Call the function in this thread, unless it was called. Returns early if the call is cancelled."""
        if self._source is not None or self._closing.is_closed:
            return
        self._writer.context.copy().run(self._call)
        self._adopt()

    def _call(self) -> None:
        with CancelScope(self._closing) as scope, contained(_NAME, passes=Exception):
            self._results.append(self._function())
        if scope.cancelled:
            self._discard()

    def _adopt(self) -> None:
        """Take the result, and make it the source. Raises UsageError if it cannot be relayed."""
        try:
            result = self._results.popleft()
        except IndexError:
            return
        with self._wrap(result) as upstream:
            self._source = upstream.source(self._writer, self._after_work)
        if self._closing.is_closed:
            # Closed in the meantime, when there was no source to close.
            self._source.abandon()

    def next(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopIteration, and the error of the function."""
        if self._source is None:
            self._open_within(timeout)
        if self._source is not None:
            return self._source.next(timeout)
        if self._closing.is_set():
            raise StopIteration
        return None

    def _open_within(self, timeout: float) -> None:
        if self._is_early:
            entry = self._early_worker().receive(timeout)
            if isinstance(entry, End):
                if entry.error is not None:
                    raise ApplicationError(entry.error)
            elif entry is not None:
                self._adopt()
            return
        try:
            self.open()
        except SSEError:
            raise
        except Exception as exc:
            raise ApplicationError(exc) from None

    def _early_worker(self) -> IterableWorker[bool]:
        if self._worker is None:
            self._worker = IterableWorker(
                _calls(self._function, self._results, self._wrap),
                lambda item: (item, 0),
                max_buffered=1,
                context=self._writer.context,
                on_end=self._after_work,
            )
            if self._closing.is_closed:
                self._worker.close()
        return self._worker

    def _cancel_call(self) -> None:
        super()._cancel_call()
        if self._worker is not None:
            self._worker.interrupt()

    def close(self) -> None:
        """Do the same, and wait shortly until the upstream's request is aborted."""
        self.abandon()
        if self._source is not None:
            self._source.close()

    def wait_ended(self, timeout: float) -> None:
        """Wait until no thread of the source runs, at most `timeout` seconds, after close()."""
        if self._worker is not None:
            self._worker.wait_ended(timeout)
        if self._source is not None:
            self._source.wait_ended(timeout)


def _calls(
    function: Callable[[], Any], results: deque[Any], wrap: Callable[[Any], Opened]
) -> Iterator[bool]:
    """Call the function in a worker's scope, and yield True once its result is in `results`."""
    with contained(_NAME, passes=Exception):
        results.append(function())
    scope = current_scope()
    if scope is not None and scope.cancelled:
        # The consumer has closed the relay, perhaps before the result was there.
        _discard(results, wrap)
    else:
        yield True


class AsyncFunctionSource(_BaseFunctionSource):
    """Calls the function in a task: a plain function in a thread, which leaves the event loop free.

    `caller` awaits the call of a plain function; None: in a thread of its own.
    """

    _source: AsyncSource | None = None
    _task: asyncio.Task[BaseException | None] | None = None

    @property
    def opened(self) -> AsyncSource | None:
        return self._source

    async def open(self) -> None:
        """Call the function, unless it was called, and wait for it. Returns early if the call is cancelled."""
        if self._source is None:
            await self._open_within(None)

    async def _open_within(self, timeout: float | None) -> None:
        if self._closing.is_closed:
            return
        if self._task is None:
            loop = asyncio.get_running_loop()
            caller = self._caller or _call_in_own_thread
            call = _acall(self._function, self._closing, self._results, self._wrap, caller)
            self._task = self._writer.context.copy().run(loop.create_task, call)
        await asyncio.wait({self._task}, timeout=timeout)
        if not self._task.done() or self._task.cancelled():
            return
        error = self._task.result()
        if isinstance(error, Cancelled) and self._closing.is_closed:
            return
        if error is not None:
            raise error if isinstance(error, SSEError) else ApplicationError(error)
        try:
            result = self._results.popleft()
        except IndexError:
            return
        with self._wrap(result) as upstream:
            self._source = upstream.async_source(self._writer, self._after_work)
        if self._closing.is_closed:
            self._source.abandon()

    async def anext(self, timeout: float) -> bytes | None:
        """Return the next frame, None if `timeout` elapses. Raises StopAsyncIteration, and the function's error."""
        if self._source is None:
            await self._open_within(timeout if self._is_early else None)
        if self._source is not None:
            return await self._source.anext(timeout)
        if self._closing.is_closed or (self._task is not None and self._task.cancelled()):
            raise StopAsyncIteration
        return None

    def _cancel_call(self) -> None:
        super()._cancel_call()
        task = self._task
        if task is not None and not task.done():
            post(task.get_loop(), task.cancel)


async def _call_in_own_thread(function: Callable[[], object]) -> None:
    await run_in_daemon_thread("sseqbridge-opening", function)


def _call_into(
    function: Callable[[], Any], closing: _Closing, results: deque[Any], wrap: Callable[[Any], Opened]
) -> None:
    """Append the function's result to `results`, or end it if the relay is closed. In a thread.

    A task that was cancelled no longer waits for the thread, which therefore must not return the result to it.
    """
    results.append(function())
    if closing.is_closed:
        _discard(results, wrap)


async def _acall(
    function: Callable[[], Any],
    closing: _Closing,
    results: deque[Any],
    wrap: Callable[[Any], Opened],
    caller: Caller,
) -> BaseException | None:
    """Append the function's result to `results`. Returns the function's error."""
    try:
        with CancelScope(closing), CallersCode(_NAME, passes=(Exception, Cancelled)):
            if inspect.iscoroutinefunction(function):
                results.append(await function())
            else:
                await caller(partial(_call_into, function, closing, results, wrap))
                try:
                    result = results.popleft()
                except IndexError:
                    # The relay is closed.
                    return None
                # The result of a lambda that calls a coroutine function is awaitable.
                results.append(await result if inspect.isawaitable(result) else result)
            if closing.is_closed:
                _discard(results, wrap)
            return None
        return Cancelled()
    except (Exception, Cancelled) as exc:
        return exc
