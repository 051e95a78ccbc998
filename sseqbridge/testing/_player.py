"""ResponsePlayer: plays the steps of a script as the response to one request.

Everything runs on the server's loop thread, except that any thread may set a `hold()` flag. Invariant: a
response has one head, and it is sent before the first byte of the body.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

from sseqbridge._exceptions import UsageError
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import Comment, ServerSentEvent

from ._connection import Connection
from ._steps import BY_HAND, IMPLIED, Expect, Hold, Leave, ReceivedRequest, Respond, Step, Wait, Wire

__all__ = ["FlagWatcher", "ResponsePlayer"]

_POLL_SECONDS = 0.005
_WRITE_BYTES = 65_536


class FlagWatcher:
    """Waits on the loop for threading.Events. They notify no loop, so each is polled, once for all its waiters.

    `released` is the flag of a hold() without one.
    """

    def __init__(self) -> None:
        self.released = threading.Event()
        self._watching: dict[threading.Event, asyncio.Task[None]] = {}

    async def wait(self, flag: threading.Event) -> None:
        """Return once the flag is set."""
        if flag.is_set():
            return
        if flag not in self._watching:
            self._watching[flag] = asyncio.create_task(self._watch(flag))
        await asyncio.shield(self._watching[flag])

    async def _watch(self, flag: threading.Event) -> None:
        while not flag.is_set():
            await asyncio.sleep(_POLL_SECONDS)
        del self._watching[flag]


class ResponsePlayer:
    """Writes the response to one request, step by step."""

    def __init__(self, request: ReceivedRequest, connection: Connection, flags: FlagWatcher) -> None:
        self.request = request
        self.connection = connection
        self._flags = flags
        self._response: Respond | None = None
        self._buffered = bytearray()
        self._body_bytes = 0

    async def play(self, steps: Iterator[Step]) -> bool:
        """Play all steps. Returns whether the client can see the end of the response without a close."""
        for step in steps:
            match step:
                case Respond():
                    await self._respond(step)
                case bytes():
                    await self._send(step)
                case ServerSentEvent() | Comment():
                    await self._send(encode(step))
                case Wire():
                    await self._write(step.data)
                case Wait():
                    await asyncio.sleep(step.seconds)
                case Hold():
                    await self._flags.wait(self._flags.released if step.flag is None else step.flag)
                case Expect():
                    step.check(self.request)
                case Leave():
                    if step.part:
                        await self._send(step.part)
                    if step.reset:
                        self.connection.reset()
                    return False
                case _:
                    raise UsageError(f"a step must be made by send(), wait() and the like, got {step!r}")
            # A write that does not block does not yield to the loop either: other connections would starve.
            await asyncio.sleep(0)
        return await self._end()

    async def _respond(self, response: Respond) -> None:
        if self._response is not None:
            raise UsageError("respond() must come at most once, before the first bytes of the body")
        self._response = response
        if not response.is_buffered:
            await self._write(response.head())
        if response.body:
            await self._send(response.body)

    async def _begin(self) -> Respond:
        """Return the response, the implied one unless the script contains respond()."""
        if self._response is None and self.request.sent_bytes:
            self._response = BY_HAND
        elif self._response is None:
            await self._respond(IMPLIED)
        return self._response or IMPLIED

    async def _send(self, data: bytes) -> None:
        response = await self._begin()
        self._body_bytes += len(data)
        if response.is_buffered:
            self._buffered += data
        elif self.request.method != "HEAD" and data:
            await self._write(b"%x\r\n%b\r\n" % (len(data), data) if response.framing == "chunked" else data)

    async def _end(self) -> bool:
        response = await self._begin()
        has_body = self.request.method != "HEAD"
        if response.is_buffered:
            head = replace(response, length=self._body_bytes).head()
            await self._write(head + self._buffered if has_body else head)
        elif response.framing == "chunked" and has_body:
            await self._write(b"0\r\n\r\n")
        elif response.framing == "length" and has_body:
            return self._body_bytes == response.length
        return response.framing != "close"

    async def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _WRITE_BYTES):
            piece = data[start : start + _WRITE_BYTES]
            await self.connection.write(piece)
            self.request.sent_bytes += len(piece)
