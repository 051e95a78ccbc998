"""AsyncWork: one task that runs the caller's asynchronous code on a bridge's loop, for a consumer in another thread.

Everything runs on the loop thread, except the methods that are marked thread-safe: they post to the loop, close the
channel, or take the source (an atomic step), and take no lock.

Invariants. The caller's code is entered, cancelled and closed in the task of this object, so that cancel scopes, task
groups and `async with` blocks end in the task that entered them. It is cancelled at most once, and not before the
task's first step: a task that is cancelled earlier never enters its body. No exception leaves the task: a SystemExit
or KeyboardInterrupt would end the loop's thread. Neither the object nor anything that it references may reference
what the consumer holds, so that dropping that aborts the task.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import BridgeClosedError, CallbackError, Cancelled

from .channel import CLOSED, Channel, End, Outcome, post
from .loop_state import LoopState, LoopTask
from .scope import current_scope, watched_flag

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag
    from sseqbridge._runtime.loop_watch import LoopWatch

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # type: ignore[import-not-found,unused-ignore]  # of anyio

__all__ = ["AsyncWork", "forget_cancellations", "is_cancellation", "name_of"]

logger = logging.getLogger("sseqbridge")

# Tasks that did not end in time after a cancellation. The loop itself references waiting tasks weakly.
_left_running: set[asyncio.Task[None]] = set()


class AsyncWork(LoopTask):
    """Runs `_work()` in one task. Made in the caller's thread, started on the loop thread.

    `source` is the caller's object, which `_work` takes. `name` describes the work in messages. The channel holds
    at most `max_entries` of charge. After an abort the task has `patience` seconds to end; then it is left running.
    """

    shares_events = False
    initial_event_id = ""
    done_event = None
    # Bytes of HTTP responses.
    received = 0

    def __init__(
        self, state: LoopState, name: str, source: Any, cancel: CancelFlag | None, *, max_entries: int, patience: float
    ) -> None:
        super().__init__(state)
        self.target = name
        self.channel: Channel[Any] = Channel(state.loop, max_entries)
        self.task: asyncio.Task[None] | None = None
        # Whether the consumer has received a result or an item.
        self.opened = False
        # Items that the caller's code has yielded.
        self.events = 0
        # Taken once: by the task, or by the thread that discards it.
        self._source: deque[Any] = deque((source,))
        self._cancel = cancel
        self._patience = patience
        # Whether the caller's code is suspended at a place where a cancellation may interrupt it.
        self._is_interruptible = False
        self._is_aborted = False
        # Whether this application ended a stream that the caller's code read last (see last_read.py).
        self.was_cut_short = False
        # The error for the consumer of an aborted task.
        self._reason: BaseException | None = None
        self._leaving: asyncio.TimerHandle | None = None

    async def _work(self) -> None:
        """Run the caller's code."""
        raise NotImplementedError

    # Thread-safe, and safe in finalizers and signal handlers: no lock, no wait.

    def abort(self) -> None:
        """Close the channel and cancel the task. Does nothing in a forked child."""
        if not self.is_inherited:
            self.channel.close()
            self.cancel()

    def cancel(self) -> None:
        """Cancel the task; the consumer's wait ends after the cleanup of the caller's code.

        Does nothing in a forked child.
        """
        if not self.is_inherited:
            post(self.loop, self.abort_on_loop, None)

    def take_source(self) -> Any:
        """Return the source, None if it was taken already."""
        try:
            return self._source.popleft()
        except IndexError:
            return None

    def discard_source(self) -> None:
        """Close a coroutine that was not started: Python warns of one that is never awaited."""
        source = self.take_source()
        if inspect.iscoroutine(source):
            source.close()

    # On the loop thread.

    def start(self) -> None:
        """Start the task, in the context of the caller."""
        self.state.add(self)
        self.task = self.loop.create_task(self._run(), name=f"sseqbridge {self.target}")
        if self._cancel is not None:
            self.state.watch(self)
        self.ownership.move(self, current_scope())

    async def _run(self) -> None:
        error = None
        try:
            if self._is_aborted:
                # The abort was posted before the task took its first step.
                self.discard_source()
            else:
                self._is_interruptible = True
                watch = self.state.loop_watch
                await (self._work() if watch is None else watch.steps_of(self._work(), self._describe))
        except BaseException as exc:
            error = exc
        self._is_interruptible = False
        if not self.finished:
            self._finish(error)
        elif error is not None and not is_cancellation(error):
            logger.error("%s failed after it was left running", self.target, exc_info=error)
        error = None  # Its traceback references this frame.

    def _describe(self) -> str:
        return f"a step of {self.target}"

    def abort_on_loop(self, reason: BaseException | None) -> None:
        """Cancel the task. The consumer gets `reason` after the cleanup, if it is not None."""
        if self.finished or self._is_aborted or self.is_inherited:
            return
        self._is_aborted, self._reason = True, reason
        if self.task is None:
            # An interrupt came before start() was posted.
            self.discard_source()
            self._finish(None)
            return
        self._leaving = self.loop.call_later(self._patience, self._leave)
        if self._is_interruptible:
            self.task.cancel()

    def _leave(self) -> None:
        """End the consumer's wait for a task that has swallowed its cancellation, or whose cleanup takes too long."""
        assert self.task is not None
        logger.warning(
            "%s has not ended %g s after it was cancelled, and is left running. "
            "Let CancelledError and GeneratorExit pass in it, and keep its cleanup short.",
            self.target,
            self._patience,
        )
        _left_running.add(self.task)
        self.task.add_done_callback(_left_running.discard)
        self._finish(None)

    def check_cancel(self, watch: LoopWatch | None) -> None:
        """Abort if the caller's cancel flag is set, or raises."""
        try:
            is_set = watched_flag(self._cancel, self, watch)
        except CallbackError as error:
            self.abort_on_loop(error)
            return
        if is_set:
            self._on_cancel()

    def _on_cancel(self) -> None:
        """Abort, since the caller's flag is set."""
        raise NotImplementedError

    def release_consumer(self) -> None:
        """End the channel, although the task has not ended."""
        self.channel.end(End("error", BridgeClosedError(f"{self.target} did not end before its loop")))
        self.mark_finished()

    def _finish(self, error: BaseException | None) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        if error is not None and (self._is_aborted or self.channel.closed):
            if not is_cancellation(error):
                logger.error("%s failed while it was closed", self.target, exc_info=error)
            error = None
        error = self._reason or error
        outcome: Outcome = "closed" if self.was_cut_short else "eof"
        end = End("error", error) if error is not None else CLOSED if self._is_aborted else End(outcome)
        self.state.discard(self)
        self.channel.end(end)
        self.mark_finished()


def name_of(function: str, source: Any) -> str:
    """Return the name of some work in messages: the public function, and the caller's function or type."""
    named = source if hasattr(source, "__qualname__") else type(source)
    return f"{function}({named.__qualname__})"


def is_cancellation(error: BaseException) -> bool:
    """Return whether an error only says that a task or scope was cancelled, or a generator closed.

    A task group makes a group of these, too.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_cancellation, error.exceptions))
    return isinstance(error, (asyncio.CancelledError, Cancelled, GeneratorExit))


def forget_cancellations() -> None:
    """Let the current task wait again after it was cancelled, as asyncio's own timeouts and groups expect it."""
    if sys.version_info >= (3, 11):
        task = asyncio.current_task()
        assert task is not None
        while task.uncancel():
            pass
