"""RelayEnd, how a relay ended, and Ending, which calls the caller's function `on_end` with it, once.

The side that takes the function from the deque calls it, so that it is called once whichever threads close a relay.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.to_thread

from sseqbridge._engine.channel import post
from sseqbridge._runtime.callbacks import CallersCode, is_reportable

__all__ = ["END_SECONDS", "Ending", "OnEnd", "Outcome", "RelayEnd", "abounded"]

logger = logging.getLogger("sseqbridge")

# How long a coroutine function `on_end` may take.
END_SECONDS = 5.0

Outcome = Literal["done", "eof", "disconnected", "cancelled", "error"]


@dataclass(frozen=True)
class RelayEnd:
    """How a relay ended: the argument of `on_end`.

        def save(end):
            database.finish(answer_id, complete=end.outcome in ("done", "eof"))

        stream_response(stream, on_end=save)

    `outcome`: "done" if the upstream's last event arrived; "eof" if its body, or the iterable, ended without one;
    "disconnected" if the client left; "cancelled" if the stream, or the last stream that an iterable read, was ended in
    this application (`log.cancel`, its `cancel` flag, close(), end_all); "error" if it failed, was refused, or reported
    an error.

    `error`: the exception for the outcome "error", else None. It is a StatusError for a refusal, and an UpstreamError
    for an error that the upstream reported in an event.

    `last_event_id`: the ID of the last event that was forwarded, "" if there is none.
    """

    outcome: Outcome
    error: BaseException | None
    last_event_id: str


OnEnd = Callable[[RelayEnd], Any]


class Ending:
    """Calls `on_end` once, in the context variables of the view. Its exceptions are logged.

    A web framework's subclass says where a plain function, and a coroutine function, run.
    """

    def __init__(self, on_end: OnEnd | None) -> None:
        self._pending: deque[OnEnd] = deque(() if on_end is None else (on_end,))
        self.context = contextvars.copy_context()

    @property
    def is_pending(self) -> bool:
        """Whether there is a function that was not called yet."""
        return bool(self._pending)

    def discard(self) -> None:
        """Never call the function."""
        self._pending.clear()

    def _take(self) -> OnEnd | None:
        try:
            return self._pending.popleft()
        except IndexError:
            return None

    def call(self, end: RelayEnd) -> None:
        """Call the function in this thread, which runs no event loop."""
        on_end = self._take()
        if on_end is None:
            return
        self.context.copy().run(self.guarded, self.run, on_end, end)

    def guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a thread, and log its exceptions, some of which have another meaning on an event loop."""
        try:
            return function(*arguments)
        except BaseException as exc:
            if not is_reportable(exc):
                raise
            logger.exception("`on_end` failed with %r", arguments[-1])

    async def acall(self, end: RelayEnd) -> None:
        """Call the function, or await it for at most 5 s, also in a task that is being cancelled."""
        on_end = self._take()
        if on_end is not None:
            limit = END_SECONDS if inspect.iscoroutinefunction(on_end) else None
            await abounded(self._logged(on_end, end), limit, self.context.copy())

    def call_later(self, end: RelayEnd, loop: asyncio.AbstractEventLoop) -> None:
        """Call the function in a task of `loop`. Thread-safe; safe in finalizers."""
        if self._pending:
            post(loop, self._start_call, end)

    def call_in_thread(self, end: RelayEnd, loop: asyncio.AbstractEventLoop | None) -> None:
        """Call the function from a thread without an event loop, for a relay that `loop` reads, if any does."""
        if loop is not None and not loop.is_closed():
            self.call_later(end, loop)
        else:
            self.call(end)

    def _start_call(self, end: RelayEnd) -> None:
        _start(self.acall(end))

    async def _logged(self, on_end: OnEnd, end: RelayEnd) -> None:
        try:
            with CallersCode("the function `on_end`", passes=Exception):
                await self._arun(on_end, end)
        except Exception:
            logger.exception("`on_end` failed with %r", end)

    async def _arun(self, on_end: OnEnd, end: RelayEnd) -> None:
        if inspect.iscoroutinefunction(on_end):
            await on_end(end)
            return
        result = await self.in_thread(self.guarded, on_end, end)
        if inspect.isawaitable(result):
            # Of a lambda that calls a coroutine function.
            await asyncio.wait_for(result, END_SECONDS)

    # How a framework runs the function.

    def run(self, on_end: OnEnd, end: RelayEnd) -> None:
        """Call the function in a thread without an event loop."""
        result = on_end(end)
        if inspect.isawaitable(result):
            self.run_awaitable(result)

    def run_awaitable(self, awaitable: Awaitable[None]) -> None:
        """Await `awaitable` for at most 5 s, in a thread without an event loop."""
        asyncio.run(abounded(awaitable, END_SECONDS))

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a plain function in a thread."""
        return await anyio.to_thread.run_sync(function, *arguments)


# Tasks that nothing awaits: an event loop refers to its tasks weakly.
_tasks: set[asyncio.Task[None]] = set()


def _start(coroutine: Coroutine[Any, Any, None], context: contextvars.Context | None = None) -> asyncio.Task[None]:
    create_task = asyncio.get_running_loop().create_task
    task = create_task(coroutine) if context is None else context.run(create_task, coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


async def abounded(
    awaitable: Awaitable[None], seconds: float | None, context: contextvars.Context | None = None
) -> None:
    """Await `awaitable` in a task of its own, which no cancellation of the caller's reaches, for at most `seconds`."""

    async def run() -> None:
        await awaitable

    task = _start(run(), context)
    # anyio cancels a task again and again, unless the wait is in a shielded scope.
    with anyio.CancelScope(shield=True):
        await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        logger.warning("`on_end` was cancelled, since it had not ended after %g s", seconds)
        task.cancel()
    elif not task.cancelled():
        task.result()
