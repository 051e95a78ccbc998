"""One relay, read by one client, for the tests of all modules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from sseqbridge import (
    EventStreamParser,
    ServerSentEvent,
)
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import (
    send,
)

DONE = send("[DONE]")


class Reading:
    """One relay, read by one client."""

    def __init__(self, frames: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.frames = frames
        self.loop = loop

    def next(self) -> bytes:
        if self.loop is None:
            return next(self.frames)  # type: ignore[no-any-return]
        return self.loop.run_until_complete(anext(self.frames))  # type: ignore[no-any-return]

    def rest(self) -> bytes:
        """Read to the end. Returns the bytes without the heartbeats."""
        read = b""
        while True:
            try:
                piece = self.next()
            except (StopIteration, StopAsyncIteration):
                return read
            read += b"" if piece == HEARTBEAT else piece

    def next_event(self) -> bytes:
        while (piece := self.next()) == HEARTBEAT:
            pass
        return piece

    def close(self) -> None:
        if self.loop is None:
            self.frames.close()
        else:
            self.loop.run_until_complete(self.frames.aclose())


# A relay as a WSGI server reads it, or as an ASGI server does.
Relay = Callable[..., "Reading"]


def error_of(read: bytes) -> dict[str, str]:
    """Return the error that the last event reports."""
    [*_, event] = EventStreamParser().feed(read)
    assert isinstance(event, ServerSentEvent)
    assert event.event == "error"
    report = event.json()
    error = report["error"]
    assert error.keys() == {"type", "message"}
    assert report == {"type": "error", "message": error["message"], "errorText": error["message"], "error": error}
    return error  # type: ignore[no-any-return]


async def collect(frames: AsyncIterator[bytes]) -> list[bytes]:
    return [frame async for frame in frames if frame != HEARTBEAT]
