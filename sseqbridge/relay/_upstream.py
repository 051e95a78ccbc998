"""Upstream: the argument `stream` of a relay, which is examined here and nowhere else."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import UsageError
from sseqbridge._streams.aio import AsyncEventStream, AsyncSSEResponse
from sseqbridge._streams.stream import BaseStream, reader_of
from sseqbridge._streams.sync import SSEResponse
from sseqbridge._streams.worker import check_unread

from ._iterables import TaskSource, WorkerSource
from ._opening import AsyncFunctionSource, FunctionSource
from ._refused import refused_reader
from ._source import StreamSource

if TYPE_CHECKING:
    from typing_extensions import Self

    from sseqbridge._checks import CancelFlag
    from sseqbridge._streams.reader import ItemReader

    from ._opening import Caller
    from ._source import AsyncSource, Source
    from ._writer import Writer

__all__ = ["Upstream"]

logger = logging.getLogger("sseqbridge")


class Upstream:
    """The argument `stream` of a relay, or what a function returned that was passed in its place.

    A context manager that aborts the stream if its block fails: the relay owns the stream that it was passed, and the
    caller keeps no other way to end it.
    """

    def __init__(self, stream: Any, *, is_result: bool = False) -> None:
        """Examine a relay's argument, or with `is_result` what a function returned."""
        if isinstance(stream, (SSEResponse, AsyncSSEResponse)):
            stream = stream.events
        self._stream = stream
        # The reader of an event stream; None for all others.
        self._reader: ItemReader[Any] | None = reader_of(stream) if isinstance(stream, BaseStream) else None
        # The function that opens the stream when the response starts; None if it is open.
        is_function = self._reader is None and callable(stream) and not is_result
        self._function: Callable[[], Any] | None = stream if is_function else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is not None:
            reader = self._reader
            if reader is None:
                if asyncio.iscoroutine(self._stream):
                    self._stream.close()
            elif reader.cursor.outcome is None and not reader.is_claimed:
                reader.abort()

    @property
    def is_function(self) -> bool:
        """Whether the stream is opened when the response starts."""
        return self._function is not None

    @property
    def refused(self) -> ItemReader[Any] | None:
        """The reader of an upstream's response that is no event stream; None for all others."""
        return None if self._reader is None else refused_reader(self._reader)

    def check_synchronous(self) -> None:
        """Raise UsageError if only an asynchronous server can relay the stream."""
        stream = self._stream
        if isinstance(stream, (AsyncEventStream, AsyncIterable)) or inspect.isawaitable(stream):
            raise UsageError(
                f"`stream` must be what request_sse returns, or an iterable, got {type(stream).__name__}. "
                "Relay it through an asynchronous server."
            )
        if inspect.iscoroutinefunction(stream):
            raise UsageError(
                "`stream` must be a plain function, such as one that calls request_sse, got a coroutine function. "
                "Relay it through an asynchronous server."
            )

    def source(
        self,
        writer: Writer,
        after_work: Callable[[], object] | None,
        *,
        early: bool = False,
        cancel: CancelFlag | None = None,
    ) -> Source:
        """Return the source for a synchronous server. Raises UsageError if the stream cannot be relayed.

        `after_work` is called in the worker thread of an iterable, or of a function, after its end. `cancel` ends
        the call of a function.
        """
        self.check_synchronous()
        if self._function is not None:
            return FunctionSource(self._function, _result, writer, after_work, early=early, cancel=cancel)
        if self._reader is not None:
            return StreamSource(self._reader, writer)
        return self._worker_source(writer, after_work)

    def _worker_source(self, writer: Writer, after_work: Callable[[], object] | None) -> WorkerSource:
        items = self._stream
        if isinstance(items, (str, bytes, dict)) or not isinstance(items, Iterable):
            raise UsageError(
                "`stream` must be what request_sse returns, an iterable of items, or a function without arguments that "
                f"returns one of them, got {type(items).__name__}"
            )
        check_unread("`stream`", items)
        return WorkerSource(items, writer, after_work)

    def async_source(
        self,
        writer: Writer,
        after_work: Callable[[], object] | None,
        *,
        early: bool = False,
        caller: Caller | None = None,
    ) -> AsyncSource:
        """Return the source for an asynchronous server. Raises UsageError if the stream cannot be relayed.

        `caller` awaits the call of a plain function; None: in a thread of its own.
        """
        if self._function is not None:
            return AsyncFunctionSource(self._function, _result, writer, after_work, early=early, caller=caller)
        if self._reader is not None:
            return StreamSource(self._reader, writer)
        items = self._stream
        if not isinstance(items, AsyncIterable):
            return self._worker_source(writer, after_work)
        check_unread("`stream`", items)
        return TaskSource(items, writer)

    def discard(self) -> None:
        """End a stream that a function returned after its relay had ended. Never waits."""
        if self._reader is not None:
            if self._reader.cursor.outcome is None:
                self._reader.abort()
        elif hasattr(self._stream, "close"):
            try:
                self._stream.close()
            except Exception:
                logger.exception("an iterable failed while it was being closed")


def _result(result: Any) -> Upstream:
    return Upstream(result, is_result=True)
