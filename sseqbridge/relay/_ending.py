"""RelayEnd, how a relay ended, and Ending, which calls the caller's function `on_end` with it, once.

The side that takes the function from the deque calls it, so that it is called once whichever threads close a relay.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import anyio
import anyio.to_thread

from sseqbridge._engine.channel import post
from sseqbridge._exceptions import CallbackError
from sseqbridge._runtime import fork, threads
from sseqbridge._runtime.callbacks import CallersCode, contained

__all__ = [
    "END_SECONDS",
    "Closable",
    "Ending",
    "OnEnd",
    "Outcome",
    "RelayEnd",
    "RequestEnd",
    "await_shielded",
    "start_task",
]

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

    `last_event_id`: the client's last event ID, that is the ID of the last event with an ID that the web server was
    given; "" if there is none. An event that `map` leaves out, or that fails, does not count.
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
        # Whether a RequestEnd will call the function for a relay that was dropped.
        self.is_of_request = False
        # How a relay ended that was dropped, and the loop that has read it.
        self._dropped: tuple[RelayEnd, asyncio.AbstractEventLoop | None] | None = None
        self._process = fork.process_token()

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
            with contained("the function `on_end`"):
                return function(*arguments)
        except CallbackError:
            logger.exception("`on_end` failed with %r", arguments[-1])

    def drop(self, end: RelayEnd, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have the function called for a relay that was dropped without close(). Safe in finalizers.

        At the end of the request, if there is a RequestEnd; else in a task of `loop`, which has read the relay, or in
        a thread of its own.
        """
        if self._process != fork.process_token():
            # The relay is the parent process's.
            self.discard()
        # Written before `is_of_request` is read, as the methods below do it in the other order: one of both calls.
        self._dropped = end, loop
        if not self.is_of_request:
            self._call_for_dropped()

    def end_request(self) -> None:
        """Call the function in this thread, the request's, if the relay was dropped."""
        self.is_of_request = False
        if self._dropped is not None:
            self.call(self._dropped[0])

    def drop_request(self) -> None:
        """Do without the end of the request: the request itself was dropped. Safe in finalizers."""
        self.is_of_request = False
        self._call_for_dropped()

    def _call_for_dropped(self) -> None:
        if self._dropped is None:
            return
        end, loop = self._dropped
        if loop is not None and not loop.is_closed():
            self.call_later(end, loop)
        else:
            self.call_in_own_thread(end)

    def call_in_own_thread(self, end: RelayEnd) -> None:
        """Call the function in a thread of its own. Safe in finalizers."""
        if not self._pending:
            return
        try:
            threads.start_worker_in_finalizer(self._call_alone, end)
        except RuntimeError:
            logger.exception("`on_end` was not called with %r: the interpreter is shutting down", end)

    def _call_alone(self, end: RelayEnd) -> None:
        try:
            self.call(end)
        finally:
            self.release_thread()

    async def acall(self, end: RelayEnd) -> None:
        """Call the function, or await it for at most 5 s, also in a task that is being cancelled."""
        on_end = self._take()
        if on_end is not None:
            await self._acall(on_end, end)

    async def _acall(self, on_end: OnEnd, end: RelayEnd) -> None:
        limit = END_SECONDS if inspect.iscoroutinefunction(on_end) else None
        await await_shielded(self._logged(on_end, end), limit, self.context.copy())

    def call_later(self, end: RelayEnd, loop: asyncio.AbstractEventLoop) -> None:
        """Call the function in a task of `loop`. Thread-safe; safe in finalizers."""
        if self._pending:
            post(loop, _LaterCall(self, end))

    def start_call(self, end: RelayEnd) -> None:
        """Call the function in a task of the running loop."""
        on_end = self._take()
        if on_end is not None:
            start_task(self._acall(on_end, end))

    def call_in_thread(self, end: RelayEnd, loop: asyncio.AbstractEventLoop | None) -> None:
        """Call the function from a thread without an event loop, for a relay that `loop` reads, if any does."""
        if loop is not None and not loop.is_closed():
            self.call_later(end, loop)
        else:
            self.call(end)

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
        asyncio.run(await_shielded(awaitable, END_SECONDS))

    def release_thread(self) -> None:
        """Release what the function has used in a thread of its own, which ends now."""

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a plain function in a thread."""
        return await anyio.to_thread.run_sync(function, *arguments)


class _LaterCall:
    """A call of `on_end` that a loop was asked for. If the loop ends before, the function has a thread of its own."""

    def __init__(self, ending: Ending, end: RelayEnd) -> None:
        self._ending = ending
        self._end = end

    def __call__(self) -> None:
        self._ending.start_call(self._end)

    def __del__(self) -> None:
        # The last attribute of __init__, which an interrupt may have ended.
        if hasattr(self, "_end"):
            self._ending.call_in_own_thread(self._end)


class Closable(Protocol):
    """A relay, as a RequestEnd uses it."""

    @property
    def ending(self) -> Ending: ...
    def close(self) -> None: ...


class RequestEnd:
    """The end of the request that a relay answers, in case the web framework sends another response in its place.

    A framework drops the relay's response if a function that runs after the view raises, or replaces it. `on_end` then
    runs in the thread of the request.
    """

    def __init__(self, frames: Closable) -> None:
        self._ending = frames.ending
        # Weak: a relay that is dropped is finalized at once, which aborts its upstream.
        self._frames = weakref.ref(frames)
        self._ending.is_of_request = True

    def __del__(self) -> None:
        # Usually after end(). The attribute is missing if an interrupt has ended __init__.
        if hasattr(self, "_ending"):
            self._ending.drop_request()

    def end(self, *, closes: bool) -> None:
        """Call `on_end` if the relay was dropped. `closes`: also if it was not, since its response is not sent."""
        frames = self._frames() if closes else None
        if frames is not None:
            frames.close()
        self._ending.end_request()


# Tasks that nothing awaits: an event loop refers to its tasks weakly.
_tasks: set[asyncio.Task[None]] = set()


def start_task(coroutine: Coroutine[Any, Any, None], context: contextvars.Context | None = None) -> asyncio.Task[None]:
    create_task = asyncio.get_running_loop().create_task
    task = create_task(coroutine) if context is None else context.run(create_task, coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


async def await_shielded(
    awaitable: Awaitable[None], seconds: float | None, context: contextvars.Context | None = None
) -> None:
    """Await `awaitable` in a task of its own, which no cancellation of the caller's reaches, for at most `seconds`.

    Raises CancelledError after that if the caller was cancelled in the meantime.
    """

    async def run() -> None:
        await awaitable

    task = start_task(run(), context)
    loop = asyncio.get_running_loop()
    is_late = loop.create_future()
    # A timer, not a timeout of the wait, which ends early if the caller's coroutine is closed.
    timer = None if seconds is None else loop.call_later(seconds, _cancel_late, task, is_late, seconds)
    cancellation: asyncio.CancelledError | None = None
    # anyio cancels a task again and again, unless the wait is in a shielded scope; asyncio, each time it is asked to.
    with anyio.CancelScope(shield=True):
        while not (task.done() or is_late.done()):
            try:
                await asyncio.wait({task, is_late}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as exc:
                cancellation = exc
    if timer is not None:
        timer.cancel()
    if task.done() and not task.cancelled():
        task.result()
    elif not is_late.done():
        logger.warning("`on_end` was cancelled, since its event loop was ending")
    if cancellation is not None:
        raise cancellation


def _cancel_late(task: asyncio.Task[None], is_late: asyncio.Future[None], seconds: float) -> None:
    if not task.done():
        logger.warning("`on_end` was cancelled, since it had not ended after %g s", seconds)
        task.cancel()
    is_late.set_result(None)
