"""One exchange on a reused connection, in the loop's callbacks: no task, no future.

Most short streams are one write and one or two reads. Where something has to be awaited, or anything is unusual, the
subclass starts a task, which continues from there: with the response, with the error, or within the body. All bounds
are those of HTTP11Connection.exchange() and BodyStream.read().

Runs on the event loop's thread.
"""

from __future__ import annotations

import abc

import httpx

from .connection import BodyStream, HTTP11Connection, check_no_switch, response_of
from .errors import InvalidResponseError
from .h1_bodies import BodyReader
from .h1_heads import FinalHeadReader, HeadError, ResponseHead

__all__ = ["CallbackExchange"]


class CallbackExchange(abc.ABC):
    """An exchange of which the subclass gets the head and the body. No method of a subclass may raise.

    The subclass ends it by continue_with_rest() or close(). Nothing is called after one of these, or after
    continue_with().
    """

    def __init__(self, connection: HTTP11Connection, method: str, timeout: float | None) -> None:
        """Prepare an exchange on an idle connection, which is nobody else's from here on."""
        self._connection = connection
        self._method = method
        self._timeout = timeout
        # Of an incomplete head.
        self._head_reader: FinalHeadReader | None = None
        self._head: ResponseHead | None = None
        self._body: BodyStream | None = None
        self._is_over = False

    @abc.abstractmethod
    def head_received(self, head: ResponseHead, body: BodyStream) -> bool:
        """Return whether the body is to be received in callbacks; else continue_with() follows."""

    @abc.abstractmethod
    def data_received(self, data: bytes) -> bool:
        """Take bytes of the body. Return False if read_completed() is wanted after them."""

    @abc.abstractmethod
    def body_completed(self) -> None:
        """Record the body's end. The connection can be released."""

    @abc.abstractmethod
    def read_completed(self) -> None:
        """All bytes that have arrived were passed on, and the body is not complete.

        Called after the read with the head, and after data_received() has returned False.
        """

    @abc.abstractmethod
    def continue_with(self, result: httpx.Response | Exception) -> None:
        """Continue in a task: with the response, whose body may be read in part, or with an error before the head."""

    def start(self, data: bytes) -> None:
        """Send the bytes of the request."""
        try:
            self._connection.begin_in_callbacks(self, data, self._timeout)
        except httpx.WriteError as exc:
            self._fail(exc)
        except BaseException:
            self.close()
            raise

    def continue_with_rest(self, rest: bytes = b"") -> None:
        """Let continue_with() read the rest of the body, with `rest` first."""
        assert self._head is not None
        assert self._body is not None
        self._leave(rest)
        self.continue_with(response_of(self._connection, self._head, self._body))

    def close(self) -> None:
        """Release the connection to the pool if the response is complete, else close it."""
        self._leave()
        self._connection.finish()

    def _leave(self, rest: bytes = b"") -> None:
        self._is_over = True
        self._connection.end_callbacks(rest)

    def _fail(self, error: Exception) -> None:
        self._leave()
        self._connection.abort()
        self.continue_with(error)

    # The connection's receiver.

    def bytes_received(self, data: bytes) -> None:
        """Take bytes of the response."""
        body = self._connection.body
        if body is None:
            self._head_bytes_received(data)
            return
        data = body.feed(data)
        is_settled = not data or self.data_received(data)
        if not is_settled or body.complete or body.error is not None:
            self._continue(body)

    def _head_bytes_received(self, data: bytes) -> None:
        connection = self._connection
        try:
            head_and_rest = self._read_head(data)
            if head_and_rest is None:
                return
            head, data = head_and_rest
            check_no_switch(head)
        except (HeadError, InvalidResponseError) as exc:
            self._fail(_protocol_error(exc))
            return
        body = connection.begin_body(self._method, head)
        self._head, self._body = head, BodyStream(connection, self._timeout)
        if not self.head_received(head, self._body):
            self.continue_with_rest(data)
            return
        if data and (data := body.feed(data)):
            self.data_received(data)
        self._continue(body)

    def _read_head(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        reader = self._head_reader
        if reader is None:
            self._connection.response_begins()
            reader = self._head_reader = FinalHeadReader()
        head = reader.feed(data)
        return None if head is None else (head, reader.rest)

    def _continue(self, body: BodyReader) -> None:
        if self._is_over:
            return
        if body.complete:
            self.body_completed()
        elif body.error is not None:
            self.continue_with_rest()
        else:
            self.read_completed()

    def input_ended(self) -> None:
        """Record the end of the connection."""
        body = self._connection.body
        if body is None:
            self._fail(self._connection.closed_before_response())
        elif body.complete:
            self.body_completed()
        else:
            self.continue_with_rest()

    def silence_elapsed(self, error: httpx.ReadTimeout) -> None:
        """The limit has elapsed."""
        if self._connection.body is None:
            self._fail(error)
        else:
            # Raised by the coroutine that reads.
            self._connection.error = error
            self.continue_with_rest()


def _protocol_error(exc: Exception) -> InvalidResponseError:
    if isinstance(exc, InvalidResponseError):
        return exc
    error = InvalidResponseError(str(exc))
    error.__cause__ = exc
    return error
