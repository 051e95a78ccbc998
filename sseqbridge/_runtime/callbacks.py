"""Guards around the caller's code on an event loop: its exceptions end its own stream, and nothing else.

In asyncio, a SystemExit or KeyboardInterrupt from a task or callback ends the loop, and a CancelledError counts as a
cancellation of the task. Therefore every call of the caller's code on a loop happens inside `CallersCode`, or inside
`CallersFunction` if it is a plain function. They raise CallbackError instead. In a thread without a running loop,
which is the consumer's own, an exit or interrupt passes through. Thread-safe: no shared state.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import opcode
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import CallbackError, SSEError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "CallersCode",
    "CallersFunction",
    "contained",
    "guarded_body",
    "guarded_coroutine_function",
    "is_exit_of_callers_function",
    "is_from_outside",
    "is_reportable",
    "original",
]

logger = logging.getLogger("sseqbridge")

Kinds = type[BaseException] | tuple[type[BaseException], ...]

_BODY = "the request's body, an iterator,"
_RAISE = opcode.opmap["RAISE_VARARGS"]
_READ_BYTES = 64 * 1024


# The attribute that marks an exit or interrupt of a function of the caller's.
_MARK = "_sseqbridge_is_of_callers_function"


class CallersCode:
    """Context manager around an await of the caller's code, which `what` names in the message.

    On a thread with a running loop, replaces every exception by a CallbackError, with the exception as its cause.
    On other threads, exceptions that are not an Exception (SystemExit) pass through. Everywhere, exceptions of the
    types in `passes`, a cancellation of the task, and an interrupt by Ctrl-C pass through.
    """

    __slots__ = ("_passes", "_task", "_what")

    def __init__(self, what: str, passes: Kinds = SSEError) -> None:
        self._what = what
        self._passes = passes

    def __enter__(self) -> None:
        self._task = _current_task()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        error = original(error)
        if not _ends_iterations(error):
            if isinstance(error, self._passes):
                return
            if not isinstance(error, Exception) and self._passes_through(error):
                return
        raise CallbackError(f"{self._what} raised {type(error).__name__}") from error

    def _passes_through(self, error: BaseException) -> bool:
        return asyncio._get_running_loop() is None or is_from_outside(error, self._task)


class CallersFunction(CallersCode):
    """A CallersCode around a call of a plain function.

    Neither a cancellation nor the closing of a coroutine interrupts a plain function, so that a CancelledError or
    GeneratorExit is its own. An exit or interrupt that passes through is marked for `is_exit_of_callers_function`.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def _passes_through(self, error: BaseException) -> bool:
        if asyncio._get_running_loop() is None:
            with contextlib.suppress(AttributeError):
                setattr(error, _MARK, True)
            return True
        return _is_ctrl_c(error)


def is_reportable(error: BaseException) -> bool:
    """Return whether an exception of a plain function of the caller's may be reported instead of raised.

    Not so an interrupt that may be its thread's: Ctrl-C, or outside of an event loop an exception such as
    gevent.Timeout.
    """
    if isinstance(error, (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)):
        return True
    return asyncio._get_running_loop() is not None and not _is_ctrl_c(error)


@contextlib.contextmanager
def contained(name: str, *, passes: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Raise CallbackError for a reportable exception of a plain function of the caller's, except `passes`."""
    try:
        yield
    except BaseException as exc:
        if isinstance(exc, passes) or not is_reportable(exc):
            raise
        raise CallbackError(f"{name} raised {type(exc).__name__}") from exc


def is_exit_of_callers_function(error: BaseException) -> bool:
    """Return whether a function of the caller's raised the exit or interrupt, outside of an event loop."""
    return hasattr(error, _MARK) and is_reportable(error)


def _current_task() -> asyncio.Task[Any] | None:
    return None if asyncio._get_running_loop() is None else asyncio.current_task()


def _ends_iterations(error: BaseException) -> bool:
    # Raised inside a generator or iterator, it would end the iteration silently.
    return isinstance(error, (StopIteration, StopAsyncIteration))


def original(error: BaseException) -> BaseException:
    """Return the StopIteration that was replaced by a RuntimeError (PEP 479), or the GeneratorExit, else the error."""
    # "raise ... from None" clears the cause, but not the context.
    cause = error.__cause__ or error.__context__
    if type(error) is not RuntimeError or cause is None:
        return error
    # Each generator or coroutine on its way added one RuntimeError.
    found = original(cause)
    return found if _ends_iterations(found) or isinstance(found, GeneratorExit) else error


def is_from_outside(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Return whether an exception that is not an Exception was not raised by the code that runs in `task`.

    The other sources are a cancellation of the task, the closing of its coroutine, and Ctrl-C.
    """
    if isinstance(error, asyncio.CancelledError):
        if task is None:
            return False
        # Python 3.10 does not count cancellations.
        cancelling = getattr(task, "cancelling", None)
        return not _was_raised(error) if cancelling is None else cancelling() > 0
    if isinstance(error, GeneratorExit):
        # The owner closes a coroutine, outside the steps of its own task.
        return task is not _current_task()
    return _is_ctrl_c(error)


def _is_ctrl_c(error: BaseException) -> bool:
    if not isinstance(error, KeyboardInterrupt):
        return False
    return threading.current_thread() is threading.main_thread() and not _was_raised(error)


def _was_raised(error: BaseException) -> bool:
    """Return whether a `raise` statement raised the error, rather than a signal or a coroutine's throw()."""
    traceback = error.__traceback__
    if traceback is None:
        return True
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == _RAISE


def guarded_coroutine_function(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return a coroutine function that calls `function`, named `what`, and raises its errors as CallbackError.

    Errors of the package pass through.
    """

    async def guarded(*arguments: Any) -> Any:
        with CallersCode(what, passes=(SSEError, UsageError)):
            return await function(*arguments)

    return guarded


def guarded_body(content: AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    """Return a request body that raises errors of `content` as CallbackError. Its `aclose()` closes its generators."""
    # httpx refuses to send a generator twice, and detects it by its type.
    is_generator = inspect.isasyncgen(content)
    return _guarded(content) if is_generator else _Reiterable(content)


class _Reiterable:
    """A guarded body that may be sent more than once, as digest authentication does."""

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        self._content = content
        self._iterators: list[AsyncGenerator[bytes, None]] = []

    def __aiter__(self) -> AsyncIterator[bytes]:
        iterator = _guarded(self._content)
        self._iterators.append(iterator)
        return iterator

    async def aclose(self) -> None:
        while self._iterators:
            await self._iterators.pop().aclose()


async def _guarded(content: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    iterator: Any = None
    try:
        with CallersCode(_BODY):
            iterator = aiter(_file_chunks(content) if hasattr(content, "aread") else content)
        while True:
            with CallersCode(_BODY):
                try:
                    chunk = await anext(iterator)
                except StopAsyncIteration:
                    return
            yield chunk
    finally:
        if inspect.isasyncgen(iterator):
            try:
                with CallersCode(_BODY):
                    await iterator.aclose()
            except Exception:
                # The request is over, so that no caller can receive the error.
                logger.exception("closing the iterator of a request's body failed")


async def _file_chunks(file: Any) -> AsyncIterator[bytes]:
    while chunk := await file.aread(_READ_BYTES):
        yield chunk
