"""AsyncCall and AsyncContext: a coroutine's result, and an asynchronous context manager, for a thread that waits.

The caller's code runs in one task of a bridge's loop each. The consumer's thread receives the outcome from the
channel, after the cleanup of the caller's code.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import RequestAbortedError, UsageError

from .async_work import AsyncWork, name_of
from .channel import post, settle

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag

    from .loop_state import LoopState

__all__ = ["PATIENCE_SECONDS", "AsyncCall", "AsyncContext", "is_async_context_manager"]

# How long the cleanup of a coroutine may take after it was cancelled.
PATIENCE_SECONDS = 10.0


class AsyncCall(AsyncWork):
    """Awaits an awaitable, or what a function returns. `result` is set before the channel ends with "eof"."""

    def __init__(self, state: LoopState, source: Any, cancel: CancelFlag | None) -> None:
        super().__init__(state, name_of("run", source), source, cancel, max_entries=1, patience=PATIENCE_SECONDS)
        self.result: Any = None

    # The wait of the consumer, which has nothing else to receive, ends after the coroutine's cleanup.
    abort = AsyncWork.cancel

    async def _work(self) -> None:
        source = self.take_source()
        value = source if inspect.isawaitable(source) else source()
        self.result = await value if inspect.isawaitable(value) else value

    def _on_cancel(self) -> None:
        self.abort_on_loop(RequestAbortedError(f"cancel was set before {self.target} returned"))


class AsyncContext(AsyncWork):
    """Enters an asynchronous context manager, and exits it once `leave` is called or the task is cancelled.

    The channel gets a tuple with the value that was entered, and its end when the manager was exited.
    """

    def __init__(self, state: LoopState, source: Any) -> None:
        super().__init__(state, name_of("enter", source), source, None, max_entries=1, patience=PATIENCE_SECONDS)
        self._left: asyncio.Future[None] = state.loop.create_future()
        # The exception of the consumer's block.
        self._block_error: BaseException | None = None
        # Whether the manager has swallowed the exception of the block.
        self.is_suppressed = False

    abort = AsyncWork.cancel

    def leave(self, error: BaseException | None) -> None:
        """Exit the manager, with the exception of the block. Thread-safe."""
        self._block_error = error
        post(self.loop, settle, self._left)

    async def _work(self) -> None:
        manager = await _manager_of(self.take_source())
        kind = type(manager)
        value = await kind.__aenter__(manager)
        self.opened = True
        self.channel.send_nowait((value,))
        value = None
        error: BaseException | None = None
        was_cancelled = False
        try:
            try:
                await self._left
                error, self._block_error = self._block_error, None
            except BaseException as exc:
                # By a task group of the manager, one of whose tasks has failed, or by abort().
                error, was_cancelled = exc, True
            traceback = None if error is None else error.__traceback__
            is_swallowed = await kind.__aexit__(manager, None if error is None else type(error), error, traceback)
            if was_cancelled and not is_swallowed:
                assert error is not None
                raise error
            self.is_suppressed = bool(is_swallowed)
        finally:
            error = traceback = None  # The traceback references this frame.


async def _manager_of(source: Any) -> Any:
    """Return the asynchronous context manager that `source` is or returns. Raises UsageError if there is none."""
    value = source() if callable(source) and not is_async_context_manager(source) else source
    if not is_async_context_manager(value) and inspect.isawaitable(value):
        value = await value
    if not is_async_context_manager(value):
        raise UsageError(
            f"the function must return an asynchronous context manager, got {type(value).__name__}. "
            "Pass one that `async with` accepts."
        )
    return value


def is_async_context_manager(value: object) -> bool:
    """Return whether `async with` accepts `value`."""
    return hasattr(type(value), "__aenter__") and hasattr(type(value), "__aexit__")
