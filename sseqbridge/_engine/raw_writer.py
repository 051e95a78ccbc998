"""RawWriter: moves a response's bytes into its channel, restarts the idle limit, and recognizes the last event.

Used on the loop thread alone. Any thread may read `received` and `ends_stream`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .idle_clock import EventDetector, event_detector
from .last_event import ends_stream

if TYPE_CHECKING:
    import httpx

    from .channel import Channel

__all__ = ["RawWriter"]

# After an event stream's last event: how much of the rest of the body is read in the background.
_DRAIN_BYTES = 64 * 1024


class RawWriter:
    """Writes the bytes of one body."""

    def __init__(self, channel: Channel[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        # The number of bytes so far.
        self.received = 0
        # Whether take() wakes the consumer.
        self.wakes_consumer = True
        # When the last byte or event came, on the loop's clock; None while the consumer holds the response back.
        self.idle_since: float | None = None
        self._has_idle_limit = False
        self._detector: EventDetector | None = None
        # Bytes that the channel had no room for.
        self._pending = b""
        # The last two reads: they show whether an event stream has come to its last event.
        self._newest = self._previous = b""
        # How many bytes may still be read after the consumer has closed an ended stream; None before.
        self._drain_left: int | None = None

    @property
    def ends_stream(self) -> bool:
        """Whether the bytes so far end with the last event of an event stream."""
        return ends_stream(self._previous, self._newest)

    # The limit `idle`.

    def watch_idle(self, headers: httpx.Headers) -> None:
        """Record from now on when the last byte came; of an event stream, the last event."""
        self._has_idle_limit = True
        self._detector = event_detector(headers)
        self.idle_since = self._loop.time()

    @property
    def detects_events(self) -> bool:
        """Whether only events count for `idle_since`."""
        return self._detector is not None

    # Bytes.

    def note(self, data: bytes) -> bool:
        """Record bytes that were received. Return whether write() is to pass them on."""
        self.received += len(data)
        self._previous, self._newest = self._newest, data
        if self._has_idle_limit and (self._detector is None or self._detector.feed(data)):
            self.idle_since = self._loop.time()
        if self._drain_left is None:
            return True
        self._drain_left -= len(data)
        return False

    def take(self, data: bytes) -> bool:
        """Record bytes and pass them on, without waiting. Return False if they are pending: the channel is full.

        Bytes for a closed channel are dropped.
        """
        channel = self._channel
        if not self.note(data) or channel.try_send(data, len(data), wakes=self.wakes_consumer) or channel.closed:
            return True
        self._pending = data
        return False

    @property
    def has_pending(self) -> bool:
        """Whether take() has returned False, and write() is to pass on what pop_pending() returns."""
        return bool(self._pending)

    def pop_pending(self) -> bytes:
        """Return the bytes that take() found no room for."""
        data, self._pending = self._pending, b""
        return data

    async def write(self, data: bytes) -> None:
        """Pass on recorded bytes, waiting until they fit."""
        if self._channel.try_send(data, len(data)):
            return
        if self._channel.closed:
            # The consumer has left. Yield to the loop, so that the abort runs however much can be read at once.
            await asyncio.sleep(0)
            return
        # The idle clock stops while the consumer holds the response back.
        since, held_at = self.idle_since, self._loop.time()
        self.idle_since = None
        await self._channel.send(data, len(data))
        if since is not None:
            self.idle_since = since + self._loop.time() - held_at

    # After the last event.

    def start_draining(self) -> bool:
        """Pass on nothing any more, and read on within bounds. Return False if that was started before."""
        if self._drain_left is not None:
            return False
        self._drain_left = _DRAIN_BYTES
        return True

    @property
    def is_drained(self) -> bool:
        """Whether the bounds are exceeded."""
        return self._drain_left is not None and self._drain_left < 0
