"""iterate, run and enter: asynchronous code of any library, used from synchronous code."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import async_code
from .bridge import async_bridge

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag

    from .sync import Stream

__all__ = ["enter", "iterate", "run"]

T = TypeVar("T")


@overload
def iterate(
    source: AsyncIterable[T] | Callable[[], AsyncIterable[T]],
    *,
    max_buffered: int = 64,
    cancel: CancelFlag | None = None,
) -> Stream[T]: ...
@overload
def iterate(
    source: Awaitable[AsyncIterable[T]] | Callable[[], Awaitable[AsyncIterable[T]]],
    *,
    max_buffered: int = 64,
    cancel: CancelFlag | None = None,
) -> Stream[T]: ...
def iterate(source: Any, *, max_buffered: int = 64, cancel: CancelFlag | None = None) -> Stream[Any]:
    """Return the items of an asynchronous iterable as a stream, which synchronous code reads with a `for` loop.

        for chunk in iterate(lambda: client.chat.completions.create(model=model, messages=messages, stream=True)):
            ...

    `source` is an asynchronous iterable, an awaitable of one, or a function that returns one of them. The function is
    called on the loop: make objects there that belong to a loop. The loop runs in a thread of the process that serves
    iterate, run and enter alone, so that code which blocks it delays no stream of request_sse. The source runs in a
    copy of the caller's context variables.

    At most `max_buffered` items are held for a slow consumer; then the source waits at its `yield` (backpressure).
    Once `cancel`, an object with `is_set()`, is set, the stream ends within 50 ms.

    Leaving the loop, close() and `cancel` end the source: it is cancelled while it waits, and closed with aclose()
    (or close()) in the task that ran it, so that `async with`, task groups and timeouts inside it work. A source that
    has not ended a second later is left running, with a WARNING in the log. An error of the source is raised as it
    is, after the items before it.

    Raises UsageError for arguments that cannot work, in a coroutine of the loop, and (while the stream is read) if
    the function returns no asynchronous iterable; RequestAbortedError if `cancel` is set already.
    """
    return async_code.iterate(async_bridge(), source, max_buffered, cancel)


@overload
def run(source: Awaitable[T], *, timeout: float | None = None, cancel: CancelFlag | None = None) -> T: ...
@overload
def run(source: Callable[[], Awaitable[T]], *, timeout: float | None = None, cancel: CancelFlag | None = None) -> T: ...
@overload
def run(source: Callable[[], T], *, timeout: float | None = None, cancel: CancelFlag | None = None) -> T: ...
def run(source: Any, *, timeout: float | None = None, cancel: CancelFlag | None = None) -> Any:
    """Await a coroutine on the loop that serves iterate, run and enter, and return its result.

        answer = run(client.complete(prompt), timeout=30)

    `source` is an awaitable, or a function, which is called on the loop, and whose result is awaited if it is
    awaitable. It runs in a copy of the caller's context variables. An exception of the coroutine is raised as it is.

    The coroutine is cancelled after `timeout` seconds, once `cancel` (an object with `is_set()`) is set, and by
    Ctrl-C. The call then waits until the coroutine's cleanup has ended, for 10 s at most; after that the coroutine is
    left running, with a WARNING in the log.

    Raises TimeoutError after `timeout`, RequestAbortedError after `cancel`, BridgeClosedError if the loop ends
    (at the interpreter's exit), and UsageError for arguments that cannot work and in a coroutine of the loop.
    """
    return async_code.run(async_bridge(), source, timeout, cancel)


@overload
def enter(source: AbstractAsyncContextManager[T, Any]) -> async_code.Entered[T]: ...
@overload
def enter(source: Callable[[], AbstractAsyncContextManager[T, Any]]) -> async_code.Entered[T]: ...
@overload
def enter(
    source: Awaitable[AbstractAsyncContextManager[T, Any]]
    | Callable[[], Awaitable[AbstractAsyncContextManager[T, Any]]],
) -> async_code.Entered[T]: ...
def enter(source: Any) -> async_code.Entered[Any]:
    """Return a context manager that enters and exits an asynchronous one, on the loop of iterate and run.

        with enter(lambda: open_session()) as session:
            tools = run(session.list_tools())

    `source` is an asynchronous context manager, or a function that returns one, or an awaitable of one, and is called
    on the loop. It is entered and exited in one task, as sessions with task groups require.

    An exception of the block is raised inside the asynchronous context manager, which may swallow or replace it. A
    session that dies during the block raises its error at the end of the block.

    Raises UsageError for a `source` that is none of these, and in a coroutine of the loop.
    """
    return async_code.Entered(async_bridge(), source)
