"""The base classes of streams, event streams and responses: thin wrappers of an ItemReader.

A stream has no state of its own besides its reader. The properties may be read in any thread.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sseqbridge._checks import NotCopyable

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Self

    from sseqbridge._engine.channel import Outcome
    from sseqbridge._engine.stats import StreamStats
    from sseqbridge._http.unpacked import UnpackedHeaders
    from sseqbridge._sse.events import ServerSentEvent

    from .cursor import Cursor
    from .reader import ItemReader

__all__ = ["BaseEventStream", "BaseResponse", "BaseStream", "reader_of"]

T = TypeVar("T")
S_co = TypeVar("S_co", bound="BaseEventStream[Any]", covariant=True)


class BaseStream(NotCopyable, Generic[T]):
    """The parts of a stream that do not wait."""

    def __init__(self, reader: ItemReader[T]) -> None:
        self._reader = reader
        self._cursor: Cursor[T] = reader.cursor

    @property
    def outcome(self) -> Outcome | None:
        """None while the stream is open, then "done", "eof", "closed" or "error"."""
        return self._cursor.outcome

    @property
    def stats(self) -> StreamStats:
        """A snapshot of the stream's counters."""
        return self._cursor.subscription.stats()

    def poll(self) -> list[T]:
        """Return the items that have arrived, without waiting; an empty list if there are none.

        At the end of the stream (see `outcome`) the list is empty. If the stream ended with an error,
        the error is raised once all items before it were returned. An exception that interrupts the call
        has the effect that it has on `next`.
        """
        # The form of a call that reads: see reader.py.
        reader = self._reader
        reader.check_usable()
        release = reader.enter(sys._getframe())
        try:
            items = reader.take_available()
            release()
            return items
        except BaseException:
            reader.fail(sys._getframe())
            raise


class BaseEventStream(BaseStream[T]):
    """The parts of an event stream that do not wait."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.status}] {self.outcome or 'open'}>"

    @property
    def status(self) -> int:
        """The response's status, an int."""
        return self._cursor.head.status

    @property
    def headers(self) -> httpx.Headers:
        """The response's headers."""
        return self._cursor.head.headers

    @property
    def http_version(self) -> str:
        """The HTTP version of the response: "HTTP/1.1", "HTTP/2"."""
        return self._cursor.head.http_version

    @property
    def last_event(self) -> ServerSentEvent | None:
        """The event behind the last item, whatever `decode` made of it; None before the first."""
        return self._cursor.last_event

    @property
    def last_event_id(self) -> str:
        """The last event ID that the consumer has reached; "" if the server sent none."""
        return self._cursor.last_event_id

    @property
    def retry(self) -> float | None:
        """The reconnection time that the server asked for, in seconds; None if it did not."""
        return self._cursor.retry

    def reconnect(self) -> None:
        """Drop the connection now and go on with a new one, from any thread; the consumer sees no error.

        During a wait for the next attempt the attempt is made now; after the stream's end nothing happens.
        Raises UsageError for a stream without `reconnect`, and if no request may follow: the one that was sent has a
        body, and the policy's `resume` allows neither to repeat it nor to ask for the rest by GET.
        """
        self._cursor.subscription.check_process()
        self._cursor.subscription.reconnect()


class BaseResponse(NotCopyable, tuple[int, "UnpackedHeaders", S_co], Generic[S_co]):
    """The tuple `status, headers, events`, and its parts that do not wait."""

    __slots__ = ()

    def __new__(cls, events: S_co) -> Self:
        headers: Any = events.headers
        return super().__new__(cls, (events.status, headers, events))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.events!r}>"

    @property
    def status(self) -> int:
        """The response's status, an int."""
        return self[0]

    @property
    def headers(self) -> httpx.Headers:
        """The response's headers."""
        return self[1]

    @property
    def events(self) -> S_co:
        """The stream."""
        return self[2]


def reader_of(stream: BaseStream[T]) -> ItemReader[T]:
    """Return what a stream reads with, for merge, gather, tee, relays and logs."""
    return stream._reader
