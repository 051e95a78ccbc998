"""The streams of synchronous code: Stream, EventStream (of request_sse), and the response tuple.

A Stream has no `__aiter__`, and AsyncEventStream no `__iter__`, not even one that raises an error with a hint:
frameworks and httpx choose by these methods how to read a body, and some look for `__iter__` first (httpx, Litestar's
ServerSentEvent, Quart), others for `__aiter__` (Starlette).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from sseqbridge._exceptions import SSEError, UsageError
from sseqbridge._signatures import show_members_of

from .hints import no_attribute, refuse_loop
from .stream import BaseEventStream, BaseResponse, BaseStream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EventStream", "SSEResponse", "Stream"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Stream(BaseStream[T]):
    """Items that arrive one after another, read by one thread at a time: `for item in stream`.

        for item in iterate(numbers()):
            print(item)

    `iterate` returns it; request_sse returns the subclass EventStream.

    Leaving the for loop, by break, return or an exception, ends the source at once: it aborts a request, and closes
    an asynchronous generator. So does close(), from any thread, even while another thread waits for the next item.
    To take a few items and go on later, use `next(stream)`, `stream.next(timeout=...)` or `stream.keep_open()`.
    A stream is its own context manager: `with` closes it.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._cursor.subscription.target} {self.outcome or 'open'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # A forked child that leaves its parent's block has nothing to close.
        if not self._cursor.subscription.is_inherited:
            self.close()

    def __iter__(self) -> Iterator[T]:
        """Return a new iterator whose end, however it comes, ends the source.

        Raises UsageError after an earlier loop was left.
        """
        self._reader.check_usable()
        return self._reader.iterate(abort_when_left=True)

    def keep_open(self) -> Iterator[T]:
        """Return an iterator that can be left: the stream stays open, and can be read on.

        Raises UsageError after an earlier loop was left.
        """
        self._reader.check_usable()
        return self._reader.iterate(abort_when_left=False)

    def next(self, timeout: float | None = None) -> T:
        """Return the next item, waiting for it.

        `timeout` is in seconds, None waits indefinitely. Raises TimeoutError when it elapses (the
        stream stays open), StopIteration at the end, and the stream's error if it ended with one.

        An exception that interrupts the call (Ctrl-C, a signal handler that raises, gevent.Timeout) ends the
        stream as "closed", or leaves it to continue with the very next event. `last_event_id` is then that of the
        last item that was returned.
        """
        # The form of a call that reads: see reader.py.
        reader = self._reader
        reader.check_usable()
        release = reader.enter(sys._getframe())
        try:
            item = reader.take(timeout)
            release()
            return item
        except BaseException:
            reader.fail(sys._getframe())
            raise

    # No function between the item and the caller, where an interrupt would lose it.
    __next__ = next  # noqa: A003 (the method, not the builtin)

    def collect(self) -> list[T]:
        """Read to the end, and return all items that are left. Raises the stream's error if it ends with one."""
        cursor = self._cursor
        position = cursor.position
        try:
            return list(self)
        except (SSEError, UsageError):
            raise
        except BaseException:
            # An interrupt: not even a stream that was read to its end has delivered its items.
            cursor.lose(position)
            raise

    def close(self) -> None:
        """End the source and the stream; a consumer's loop ends quietly.

        Waits until the upstream's socket is shut down, or the asynchronous generator closed, at most a second.
        Does nothing after the stream's natural end. Thread-safe; may be called more than once. Raises UsageError in
        a forked child.
        """
        self._reader.close()


show_members_of(Stream, BaseStream)


class EventStream(BaseEventStream[T], Stream[T]):
    """The events of a response, read by one thread at a time: `for item in stream`.

        status, response_headers, it = request_sse(url, headers, data)
        for item in it:
            print(item)

    `request_sse` returns it. It is a Stream whose source is a request: leaving the loop, or close(), aborts the
    request.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            no_attribute(type(self), name, "stream", EventStream)

    def raise_for_status(self) -> Self:
        """Return the stream. Raises StatusError, with the body, unless the status is 200 or 204."""
        if self._cursor.is_refused:
            error = self._reader.refusal()
            assert error is not None
            raise error
        return self


show_members_of(EventStream, BaseEventStream)


class SSEResponse(BaseResponse[EventStream[T_co]], Generic[T_co]):
    """`status, headers, events`: the tuple that request_sse returns, and a context manager that closes the stream.

        with request_sse(url, headers, data) as response:
            for item in response.raise_for_status().events:
                print(item)

    `request_sse` returns it.
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __iter__(self) -> Iterator[Any]:
            refuse_loop(type(self), "for item in response.events")
            return super().__iter__()

        def __next__(self) -> NoReturn:
            name = type(self).__name__
            raise TypeError(f"{name!r} is the tuple (status, headers, events). Call next(response.events).")

        def __getattr__(self, name: str) -> NoReturn:
            no_attribute(type(self), name, "response.events", EventStream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.events.__exit__(*exc_info)

    def raise_for_status(self) -> Self:
        """Return the response. Raises StatusError, with the body, for a status but 200 and 204."""
        self.events.raise_for_status()
        return self


show_members_of(SSEResponse, BaseResponse)
