"""Streams that are being opened for merge, amerge and gather: requests, and functions that return a stream.

A plain function runs in a thread of its own (under gevent in a greenlet), since it may block: in the consumer's thread
one slow function would hold up the other streams. A function of amerge is called on the consumer's loop, in a task of
its own, as asynchronous code expects; a plain function that blocks there blocks the loop, like any other code.

Whatever such a function raises ends its own stream: an SSEError or UsageError as it is, anything else as CallbackError.

| field of a function's opening | written by                    | guarded by                                           |
|-------------------------------|-------------------------------|------------------------------------------------------|
| `_reader`, `_error`           | the function's thread or task | written before `_ended` is set, read after it        |
| `_is_closed`                  | any thread, once, to True     | each side writes its own field, then reads the other |
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from sseqbridge._engine.channel import post
from sseqbridge._engine.scope import CancelScope
from sseqbridge._exceptions import CallbackError, RequestAbortedError, SSEError, UsageError
from sseqbridge._http.pauses import Pauses, pauses_of_function
from sseqbridge._runtime import threads
from sseqbridge._runtime.callbacks import CallersCode, CallersFunction

from .aio import AsyncEventStream, AsyncSSEResponse
from .api import apending_of, pending_of
from .call import Call, apending_call, pending_call
from .reader import ItemReader
from .stream import reader_of
from .sync import SSEResponse, Stream

if TYPE_CHECKING:
    from sseqbridge._engine.scope import CancelScope as Scope

    from .pending import PendingResponse

__all__ = [
    "AsyncFunctionOpening",
    "FunctionOpening",
    "Opening",
    "aopening_of",
    "aopening_of_partial",
    "opening_of",
    "opening_of_partial",
]


class Opening(Protocol):
    """A stream that is being opened. Dropping it aborts nothing: its owner calls `abort`."""

    @property
    def wakes_when_cancelled(self) -> bool:
        """Whether `notify` wakes when the scope is cancelled to which the opening was moved."""

    def start(self) -> None: ...

    def notify(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, as soon as poll() has something to return."""

    def poll(self) -> ItemReader[Any] | None:
        """Return the stream's reader, None if it is not open yet. Raises the error of the opening.

        May be called once `notify` has called `wake`.
        """

    def move(self, scope: Scope | None) -> None:
        """Let what is being opened belong to `scope`."""

    def abort(self) -> None:
        """Abort the opening. Safe between any two bytecodes: no lock, no wait."""


class RequestOpening:
    """A request whose response's head has not arrived."""

    wakes_when_cancelled = True

    def __init__(self, response: PendingResponse) -> None:
        self._response = response
        self._subscription = response.subscription

    def start(self) -> None:
        self._response.send()

    def notify(self, wake: Callable[[], None]) -> None:
        self._subscription.channel.notify(wake)

    def poll(self) -> ItemReader[Any] | None:
        entry = self._subscription.channel.poll()
        head = None if entry is None else self._response.head_of(entry)
        return None if head is None else self._response.reader(head)

    def move(self, scope: Scope | None) -> None:
        if self._subscription.ownership.scope is not scope:
            self._subscription.ownership.move(self._subscription, scope)

    def abort(self) -> None:
        self._subscription.abort()


class FailedOpening:
    """A request that could not be sent, for a reason of its own: its headers function has failed, its flag is set."""

    wakes_when_cancelled = True

    def __init__(self, error: SSEError | UsageError) -> None:
        self._error = error

    def start(self) -> None:
        pass

    def notify(self, wake: Callable[[], None]) -> None:
        wake()

    def poll(self) -> ItemReader[Any] | None:
        raise self._error

    def move(self, scope: Scope | None) -> None:
        pass

    def abort(self) -> None:
        pass


def opening_of(call: Call[Any], pauses: Pauses | None) -> Opening:
    """Return a request of a call that was not sent yet. An error is that of its stream.

    A UsageError too, such as one about the headers that a function returned: the call's own arguments were checked
    when it was made.
    """
    try:
        return RequestOpening(pending_call(call, pauses))
    except (SSEError, UsageError) as exc:
        return FailedOpening(exc)


async def aopening_of(call: Call[Any]) -> Opening:
    """Do the same for a request on the running loop."""
    try:
        return RequestOpening(await apending_call(call))
    except (SSEError, UsageError) as exc:
        return FailedOpening(exc)


def opening_of_partial(call: functools.partial[Any], pauses: Pauses | None) -> Opening:
    """Return the request of functools.partial(request_sse, ...), which was not sent yet.

    Raises UsageError and TypeError for wrong arguments. Another error, such as that of a set `cancel`, is that of its
    stream.
    """
    try:
        return RequestOpening(pending_of(call, pauses))
    except SSEError as exc:
        return FailedOpening(exc)


async def aopening_of_partial(call: functools.partial[Any]) -> Opening:
    """Do the same for functools.partial(arequest_sse, ...), on the running loop."""
    try:
        return RequestOpening(await apending_of(call))
    except SSEError as exc:
        return FailedOpening(exc)


class _BaseFunctionOpening:
    """A function of the caller's that returns a stream. `is_set` makes it the flag of the function's scope."""

    wakes_when_cancelled = False

    def __init__(self, name: Any, function: Callable[[], Any]) -> None:
        self._what = f"the function of the stream {name!r}"
        self._function = function
        self._ended = threads.OneShotEvent()
        self._reader: ItemReader[Any] | None = None
        self._error: BaseException | None = None
        self._is_closed = False

    def is_set(self) -> bool:
        """Whether abort() was called."""
        return self._is_closed

    def notify(self, wake: Callable[[], None]) -> None:
        self._ended.notify(wake)

    def poll(self) -> ItemReader[Any] | None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._reader is None:
            raise RequestAbortedError(f"{self._what} was cancelled")
        return self._reader

    def move(self, scope: Scope | None) -> None:
        """Do nothing: the function runs in the scope in which it was added."""

    def abort(self) -> None:
        self._is_closed = True
        if self._reader is not None:
            self._reader.abort()

    def _end(self) -> None:
        """Report the end of the function, after its reader or error was set."""
        self._ended.set()
        if self._is_closed and self._reader is not None:
            self._reader.abort()


class FunctionOpening(_BaseFunctionOpening):
    """A function that runs in a thread of its own, and returns what request_sse or iterate returns.

    The requests that it sends share `pauses`.
    """

    def __init__(self, name: Any, function: Callable[[], Any], pauses: Pauses | None = None) -> None:
        super().__init__(name, function)
        self._pauses = pauses

    def start(self) -> None:
        context = contextvars.copy_context()
        if self._pauses is not None:
            context.run(pauses_of_function.set, self._pauses)
        threads.start_worker(context.run, self._run)

    def _run(self) -> None:
        try:
            with CancelScope(self):
                self._reader = self._reader_of(self._function())
        except (SSEError, UsageError) as exc:
            self._error = exc
        except BaseException as exc:
            # SystemExit too: it would end this thread alone, and leave the consumer waiting.
            self._error = CallbackError(f"{self._what} raised {type(exc).__name__}")
            self._error.__cause__ = exc
        self._end()

    def _reader_of(self, stream: Any) -> ItemReader[Any]:
        if isinstance(stream, SSEResponse):
            stream = stream.events
        if isinstance(stream, Stream):
            return reader_of(stream)
        if inspect.iscoroutine(stream):
            stream.close()
        advice = "Return call()" if isinstance(stream, Call) else "Pass an asynchronous one to amerge"
        raise UsageError(
            f"{self._what} must return what request_sse or iterate returns, got {type(stream).__name__}. {advice}."
        )


class AsyncFunctionOpening(_BaseFunctionOpening):
    """A function that is called in a task, and returns what arequest_sse returns, or an awaitable of it."""

    def __init__(self, name: Any, function: Callable[[], Any]) -> None:
        super().__init__(name, function)
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._run(), name="sseqbridge-open")

    def abort(self) -> None:
        super().abort()
        if self._task is not None:
            post(self._loop, self._task.cancel)

    async def _run(self) -> None:
        try:
            self._reader = self._reader_of(await self._call())
        except (SSEError, UsageError) as exc:
            self._error = exc
        finally:
            self._end()

    async def _call(self) -> Any:
        passes = (SSEError, UsageError)
        with CallersFunction(self._what, passes):
            stream = self._function()
        if inspect.isawaitable(stream):
            with CallersCode(self._what, passes):
                stream = await stream
        return stream

    def _reader_of(self, stream: Any) -> ItemReader[Any]:
        if isinstance(stream, AsyncSSEResponse):
            stream = stream.events
        if isinstance(stream, AsyncEventStream):
            return reader_of(stream)
        advice = "Return call.asend()" if isinstance(stream, Call) else "Pass a synchronous one to merge"
        raise UsageError(
            f"{self._what} must return what arequest_sse returns, or an awaitable of it, got {type(stream).__name__}. "
            f"{advice}."
        )
