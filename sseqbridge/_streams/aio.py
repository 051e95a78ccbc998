"""The stream and the response tuple of arequest_sse."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from sseqbridge._exceptions import SSEError, UsageError
from sseqbridge._signatures import show_members_of

from .hints import no_attribute, refuse_loop
from .stream import BaseEventStream, BaseResponse, BaseStream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncEventStream", "AsyncSSEResponse"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class AsyncEventStream(BaseEventStream[T]):
    """An event stream on the caller's own asyncio loop: `async for item in stream`.

        async with (await arequest_sse(url, headers, data)).events as events:
            async for item in events:
                print(item)

    `arequest_sse` returns it. Use `async with`, or contextlib.aclosing, if the loop may be left early: Python does not
    notify an asynchronous iterator that its loop was left. A wait that is cancelled loses no item.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            no_attribute(type(self), name, "stream", AsyncEventStream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if not self._cursor.subscription.is_inherited:
            await self.aclose()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self.next()

    async def next(self, timeout: float | None = None) -> T:
        """Return the next item, waiting for it.

        `timeout` is in seconds, None waits indefinitely. Raises TimeoutError when it elapses (the
        stream stays open), StopAsyncIteration at the end, and the stream's error if it ended with one.
        """
        return await self._reader.anext(timeout)

    async def collect(self) -> list[T]:
        """Read to the end, and return all items that are left. Raises the stream's error if it ends with one.

        A cancellation, or an interrupt, ends the stream: the items that were read are lost.
        """
        cursor = self._cursor
        position = cursor.position
        try:
            return [item async for item in self]
        except (SSEError, UsageError):
            raise
        except BaseException:
            cursor.lose(position)
            raise

    async def raise_for_status(self) -> Self:
        """Return the stream. Raises StatusError, with the body, unless the status is 200 or 204."""
        if self._cursor.is_refused:
            raise await self._reader.arefusal()
        return self

    async def aclose(self) -> None:
        """Abort the request and end the stream; a consumer's loop ends quietly.

        Waits until the upstream's socket is shut down, at most a second. Raises UsageError in a forked child.
        """
        await self._reader.aclose()


show_members_of(AsyncEventStream, BaseEventStream, BaseStream)


class AsyncSSEResponse(BaseResponse[AsyncEventStream[T_co]], Generic[T_co]):
    """`status, headers, events`: the tuple that arequest_sse returns; `async with` closes the stream.

        async with await arequest_sse(url, headers, data) as response:
            async for item in response.events:
                print(item)

    `arequest_sse` returns it.
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __iter__(self) -> Iterator[Any]:
            refuse_loop(type(self), "async for item in response.events")
            return super().__iter__()

        def __getattr__(self, name: str) -> NoReturn:
            no_attribute(type(self), name, "response.events", AsyncEventStream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.events.__aexit__(*exc_info)

    async def raise_for_status(self) -> Self:
        """Return the response. Raises StatusError, with the body, for a status but 200 and 204."""
        await self.events.raise_for_status()
        return self


show_members_of(AsyncSSEResponse, BaseResponse)
