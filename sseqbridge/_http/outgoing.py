"""The sending of one request on a connection: its head and body, while the response may already be arriving.

Runs on the event loop's thread. Bytes that the connection takes at once are written without a task switch; a task
writes the rest, so that an early response (413, 401) can be read in the meantime, and ends the sending.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

import httpx

from sseqbridge._runtime.callbacks import CallersCode

from .connection_auth import authenticates_connection
from .h1_heads import HeadError, framing_of, write_head
from .network_stream import Bytes, InputState, NetworkStream

__all__ = ["SENT", "Outgoing", "OutgoingRequest"]

# The longest body in memory that leaves in one write with its head.
_MAX_JOINED_BYTES = 63 * 1024


class Outgoing:
    """A request that was passed to the loop at once, and completely. Immutable."""

    is_complete = True

    async def wait_stopped(self) -> None:
        """Stop the sending, and wait until nothing uses the body any more."""

    def failure(self) -> Exception | None:
        """Return the error for the reader of an early response; None while its body can still be complete."""
        return None


SENT = Outgoing()


class OutgoingRequest(Outgoing):
    """One request on its way to the server.

    `is_complete` says that all of it was passed to the loop, `keeps_alive` that it allows another request on the
    connection, `authenticates_connection` that this must be one of the same call. `error` is the reason if the sending
    failed: an error of the body's iterator, httpx.LocalProtocolError, httpx.WriteTimeout, httpx.WriteError. The stream
    is woken at the end of the sending.
    """

    def __init__(self, stream: NetworkStream, request: httpx.Request, timeout: float | None) -> None:
        """Build the head. Raises httpx.LocalProtocolError if the request would not be valid HTTP."""
        headers = request.headers.raw
        try:
            framing = framing_of(headers)
            self._head = write_head(request.method.encode("ascii", "replace"), request.url.raw_path, headers)
        except HeadError as exc:
            raise httpx.LocalProtocolError(str(exc)) from exc
        self.keeps_alive = framing.keeps_alive
        self.authenticates_connection = authenticates_connection(headers)
        self.is_complete = False
        self.error: Exception | None = None
        self._stream = stream
        self._timeout = timeout
        self._is_chunked = framing.is_chunked
        # How many bytes of the body are missing.
        self._left = 0 if framing.length is None else framing.length
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a task is sending the rest."""
        return self._task is not None and not self._task.done()

    def start(self, body: object) -> None:
        """Write what the connection takes at once, and let a task write the rest.

        `body` is the stream of the request. Raises httpx.LocalProtocolError if a body in memory is not as long as its
        Content-Length, and httpx.WriteError.
        """
        head, self._head = self._head, b""
        parts: AsyncIterable[bytes] | None = None
        if isinstance(body, httpx.ByteStream):
            content = self._framed(b"".join(body)) + self._ending()
            # A small body leaves with its head.
            joined = [head + content] if len(content) <= _MAX_JOINED_BYTES else [head, content]
        else:
            assert isinstance(body, httpx.AsyncByteStream)
            # The parts are written as they are produced, and the head before the first of them.
            parts, joined = body, [head]
        unwritten = [rest for data in joined if (rest := self._stream.write_at_once(data))]
        if unwritten or parts is not None:
            sending = self._send(unwritten, parts)
            self._task = self._stream.loop.create_task(sending, name="sseqbridge-request")
        else:
            self.is_complete = self._stream.input is InputState.OPEN

    def _framed(self, part: bytes) -> bytes:
        """Return a part of the body as it is sent. Raises httpx.LocalProtocolError if the body becomes too long."""
        if self._is_chunked:
            # An empty chunk would end the body.
            return b"%x\r\n%b\r\n" % (len(part), part) if part else b""
        self._left -= len(part)
        if self._left < 0:
            raise httpx.LocalProtocolError("the body must be as long as its Content-Length, got a longer one")
        return part

    def _ending(self) -> bytes:
        """Return what is sent after the body. Raises httpx.LocalProtocolError if the body was too short."""
        if self._left:
            raise httpx.LocalProtocolError("the body must be as long as its Content-Length, got a shorter one")
        return b"0\r\n\r\n" if self._is_chunked else b""

    async def _send(self, unwritten: list[Bytes], parts: AsyncIterable[bytes] | None) -> None:
        try:
            # A GeneratorExit that the iterator raises in a thread arrives here, past the guard of the body itself:
            # Python closes the coroutines that wait for it instead of raising it in them.
            with CallersCode("the request's body, an iterator,", passes=Exception):
                self.is_complete = await self._send_all(unwritten, parts)
        except Exception as exc:
            self.error = exc
        finally:
            self._stream.wake()

    async def _send_all(self, unwritten: list[Bytes], parts: AsyncIterable[bytes] | None) -> bool:
        """Return whether the peer was still connected at the end."""
        write = self._stream.write
        for data in unwritten:
            if not await write(data, self._timeout):
                return False
        if parts is None:
            return True
        async for part in parts:
            chunk = self._framed(part)
            if chunk and not await write(chunk, self._timeout):
                return False
        return await write(self._ending(), self._timeout)

    def stop(self) -> None:
        """Stop the sending, for example since the server has refused the request. Idempotent."""
        if self._task is not None:
            self._task.cancel()

    async def wait_stopped(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    def failure(self) -> Exception | None:
        # A server that has answered need not read the rest of the request.
        return None if isinstance(self.error, (httpx.WriteTimeout, httpx.WriteError)) else self.error
