"""Asynchronous code on a bridge's loop, for a thread that waits for it: iterate, run and enter with a bridge.

Everything runs in the caller's thread; the caller's code runs in a task of the loop (_engine/async_work.py). Nothing
here is shared between threads, except an Entered that is dropped: its finalizer may run in any thread.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import warnings
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sseqbridge._checks import NotCopyable, check_limits, check_seconds
from sseqbridge._engine.async_calls import PATIENCE_SECONDS, AsyncCall, AsyncContext, is_async_context_manager
from sseqbridge._engine.caller_loops import running_loop_state
from sseqbridge._engine.channel import End
from sseqbridge._engine.iteration import CallersIteration, Iteration
from sseqbridge._engine.scope import cancel_flag, check_scope
from sseqbridge._exceptions import BridgeClosedError, RequestAbortedError, UsageError

from .plain_cursor import PlainCursor
from .reader import ItemReader
from .sync import Stream

if TYPE_CHECKING:
    from types import TracebackType

    from sseqbridge._checks import CancelFlag
    from sseqbridge._engine.async_work import AsyncWork
    from sseqbridge._engine.bridge import BaseBridge
    from sseqbridge._engine.loop_state import LoopState

__all__ = ["Entered", "aiterate", "iterate", "run"]

logger = logging.getLogger("sseqbridge")

T = TypeVar("T")

# How many items aiterate() holds for a slow consumer, as iterate() does by default.
_MAX_BUFFERED = 64


def iterate(bridge: BaseBridge, source: Any, max_buffered: int, cancel: CancelFlag | None) -> Stream[Any]:
    """Return a stream of an asynchronous iterable's items; see the public function."""
    try:
        if not (isinstance(source, AsyncIterable) or callable(source) or inspect.isawaitable(source)):
            raise UsageError(
                "`source` must be an asynchronous iterable, or a function that returns one, "
                f"got {type(source).__name__}. Pass for example the result of an asynchronous generator function."
            )
        check_limits("max_buffered", max_buffered)
        flag = cancel_flag(cancel, "the iteration began")
        state = bridge.started()
        bridge.check_may_wait("iterate", "the items with `async for`", stacklevel=4)
    except BaseException:
        _close_coroutine(source)
        raise
    iteration = Iteration(state, source, flag, max_buffered)
    try:
        _start(bridge, state, iteration)
        return Stream(ItemReader(PlainCursor(iteration, flag)))
    except BaseException:
        # An interrupt: there is no other reference to the iteration.
        iteration.abort()
        raise


async def aiterate(source: AsyncIterable[Any], context: contextvars.Context) -> Stream[Any]:
    """Return a stream of an asynchronous iterable's items. It runs on the caller's loop, in a copy of `context`."""
    iteration = CallersIteration(await running_loop_state(), source, None, _MAX_BUFFERED)
    stream: Stream[Any] = Stream(ItemReader(PlainCursor(iteration, None)))
    context.copy().run(iteration.start)
    return stream


def run(bridge: BaseBridge, source: Any, timeout: float | None, cancel: CancelFlag | None) -> Any:
    """Return the result of an awaitable; see the public function."""
    try:
        if not (inspect.isawaitable(source) or callable(source)):
            raise UsageError(
                "`source` must be an awaitable, or a function that returns one, "
                f"got {type(source).__name__}. Pass for example the result of a coroutine function."
            )
        check_seconds("timeout", timeout, never=True)
        flag = cancel_flag(cancel, "the coroutine was started")
        state = bridge.started()
        bridge.check_may_wait("run", "the coroutine", stacklevel=4)
    except BaseException:
        _close_coroutine(source)
        raise
    call = AsyncCall(state, source, flag)
    try:
        _start(bridge, state, call)
        end = _received(call, timeout)
    except BaseException:
        _cancel(call)
        raise
    if end.outcome == "eof":
        return call.result
    try:
        raise _error_of(call, end)
    finally:
        del end  # The error's traceback references this frame.


class Entered(NotCopyable, Generic[T]):
    """A context manager that enters and exits an asynchronous one, in one task on a bridge's loop; see `enter`."""

    def __init__(self, bridge: BaseBridge, source: Any) -> None:
        if not (is_async_context_manager(source) or callable(source) or inspect.isawaitable(source)):
            raise UsageError(
                "`source` must be an asynchronous context manager, or a function that returns one, "
                f"got {type(source).__name__}. Pass an object that `async with` accepts."
            )
        self._bridge = bridge
        self._source = source
        self._context: AsyncContext | None = None
        self._is_open = False

    def __repr__(self) -> str:
        state = "not entered" if self._context is None else "open" if self._is_open else "closed"
        return f"<{type(self).__name__} {state}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # The attribute is missing if __init__ raised.
        if getattr(self, "_is_open", False):
            assert self._context is not None
            if not self._context.is_inherited:
                self._context.abort()
                _warn(f"{self._context.target} was dropped while it was open: use `with`", ResourceWarning, source=self)

    def __enter__(self) -> T:
        if self._context is not None:
            raise UsageError("an asynchronous context manager is entered once. Call enter() again with a new one.")
        source, self._source = self._source, None
        try:
            check_scope()
            state = self._bridge.started()
            self._bridge.check_may_wait("enter", "it with `async with`", stacklevel=3)
        except BaseException:
            _close_coroutine(source)
            raise
        context = self._context = AsyncContext(state, source)
        try:
            _start(self._bridge, state, context)
            entry = _received(context, None)
            if not isinstance(entry, End):
                self._is_open = True
                # The block ends, and exits the context manager, when its scope is cancelled: not by itself.
                context.ownership.move(context, None)
                value: T = entry[0]
                return value
        except BaseException:
            # Also an interrupt after it was entered: without the block nothing exits it.
            self._abandon()
            raise
        try:
            raise _error_of(context, entry)
        finally:
            del entry  # The error's traceback references this frame.

    def _abandon(self) -> None:
        """Cancel the context manager after an interrupt, and wait for its cleanup."""
        self._is_open = False
        if self._context is not None:
            _cancel(self._context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        # Not `bool`: type checkers would take every block for one whose exceptions are swallowed.
        try:
            context = self._context
            if context is not None and context.is_inherited:
                # A forked child that leaves its parent's block has nothing to exit.
                return None
            if context is None or not self._is_open:
                raise UsageError("only a block that was entered, and not left yet, can be left. Use `with enter(...)`.")
            context.leave(error)
            end = _received(context, None)
            self._is_open = False
        except BaseException:
            self._abandon()
            raise
        if end.outcome == "eof" or end.error is error is not None:
            return context.is_suppressed
        try:
            raise _error_of(context, end)
        finally:
            del end, error  # The error's traceback references this frame.


def _start(bridge: BaseBridge, state: LoopState, work: AsyncWork) -> None:
    try:
        bridge.start(state, work)
    except BridgeClosedError:
        # The loop has ended: it starts and ends nothing.
        work.discard_source()
        work.mark_finished()
        raise


def _received(work: AsyncWork, timeout: float | None) -> Any:
    """Return the next entry of a call or context. Raises TimeoutError."""
    entry = work.channel.take_within(timeout)
    if entry is None:
        raise TimeoutError(f"{work.target} did not return within {timeout:g} s")
    return entry


def _cancel(work: AsyncWork) -> None:
    """Cancel a call or context after the wait for it has failed, by an interrupt too, and wait for its cleanup."""
    work.cancel()
    # The loop ends this wait after PATIENCE_SECONDS, unless something blocks the loop.
    work.wait_finished(PATIENCE_SECONDS + 1)
    if not work.finished and not work.loop.is_closed():
        logger.warning("%s was cancelled, but something blocks its loop", work.target)


def _error_of(work: AsyncWork, end: End) -> BaseException:
    """Return the error of a call or context that did not end by itself. Raises Cancelled if its scope is cancelled."""
    if end.error is not None:
        return end.error
    check_scope()
    return RequestAbortedError(f"{work.target} was cancelled")


def _close_coroutine(source: Any) -> None:
    # Python warns of a coroutine that is never awaited.
    if inspect.iscoroutine(source):
        source.close()
