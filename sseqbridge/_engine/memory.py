"""The bytes that streams hold for their consumers: each stream's limit, and the sum.

A stream without a limit of the caller's may hold its share: 64 MiB divided by the open streams, at least 64 KiB and at
most 1 MiB. The share changes as streams open and end, also for streams that are open already: one that holds more than
its share gets nothing more until it holds less. Streams that were opened before many others could still hold more than
64 MiB together with them, so no stream gets more than 64 KiB while all hold 56 MiB. A stream counts from its start
until its consumer has received the end, or has left.

Thread-safe, and safe in finalizers and signal handlers: no lock, no wait. The dict of open channels changes in atomic
steps. Each thread that has changed it writes the share, and writes it again if the number has changed since it was
read; so the last write is that of the last number. The sum is counted again after 10 ms at the latest; until then it is
an estimate, in which threads may lose each other's additions.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol
from weakref import ReferenceType, ref

from sseqbridge._runtime import fork
from sseqbridge._runtime.clock import clock

__all__ = ["DEFAULT_MAX_BUFFERED_BYTES", "ByteLimit", "limit_of", "memory"]

_TOTAL_BYTES = 64 * 1024 * 1024
_MIN_SHARE = 64 * 1024
_MAX_SHARE = 1024 * 1024
# An eighth is left to streams that open later.
_MOST_BYTES = _TOTAL_BYTES * 7 // 8
# How long an estimate of the sum is used.
_ESTIMATE_SECONDS = 0.01

# By how much the share grows until producers that wait for room are notified.
_GROWTH = 1.25


class _Default(int):
    """The default of `max_buffered_bytes`. It is recognized by its identity, so that 1 MiB of a caller's is a limit."""


DEFAULT_MAX_BUFFERED_BYTES = _Default(_MAX_SHARE)


class ByteLimit:
    """The number of bytes that one stream may hold, and the least that this number can become."""

    __slots__ = ("bytes", "least_bytes")

    def __init__(self, limit: int, least: int) -> None:
        self.bytes = limit
        self.least_bytes = least

    def allows(self, held: int, charge: int) -> bool:
        """Whether a stream that holds `held` bytes may hold `charge` more."""
        return held + charge <= self.bytes


class Holder(Protocol):
    """A channel, as its memory is counted."""

    closed: bool

    @property
    def buffered(self) -> int: ...
    def limit_has_grown(self) -> None: ...


class _Memory(ByteLimit):
    """The open channels of this process, with the loops of their producers. As a ByteLimit, it is the share."""

    __slots__ = ("__weakref__", "_counted_at", "_held", "_notified", "_open", "_process")

    def __init__(self) -> None:
        super().__init__(_MAX_SHARE, _MIN_SHARE)
        self._open: dict[ReferenceType[Holder], asyncio.AbstractEventLoop] = {}
        self._process = fork.process_token()
        # The share when producers were notified last, or a smaller one since then.
        self._notified = _MAX_SHARE
        # An estimate of the sum, and when it was counted.
        self._held = 0
        self._counted_at = -math.inf
        fork.detach_in_children(self)

    def allows(self, held: int, charge: int) -> bool:
        wanted = held + charge
        if wanted <= _MIN_SHARE:
            return True
        if wanted > self.bytes:
            # The producer is about to wait for room. A thread that raises the share writes `bytes` first, and reads
            # `_notified` after it. So either it finds the value written here and notifies the producer, or the second
            # check finds the larger share.
            self._notified = min(self._notified, self.bytes)
            if wanted > self.bytes:
                return False
        now = clock.monotonic()
        if not 0 <= now - self._counted_at < _ESTIMATE_SECONDS:
            self._counted_at = now
            self._held = sum(channel.buffered for channel in map(_referent, self._open.copy()) if channel is not None)
        if self._held + charge > _MOST_BYTES:
            return False
        self._held += charge
        return True

    def enter(self, channel: Holder, loop: asyncio.AbstractEventLoop) -> None:
        """Count a channel until leave(), or until it is dropped."""
        if self._process != fork.process_token():
            # A fork without Python's hooks.
            self.detach_after_fork()
        self._open[ref(channel, self._forget)] = loop
        self._update()
        if channel.closed:
            self.leave(channel)

    def leave(self, channel: Holder) -> None:
        """Count a channel no longer. Idempotent."""
        # A reference is equal to another one of the same object.
        self._forget(ref(channel))

    def _forget(self, reference: ReferenceType[Holder]) -> None:
        if self._open.pop(reference, None) is not None:
            self._update()

    def _update(self) -> None:
        while True:
            count = len(self._open)
            share = max(_MIN_SHARE, min(_MAX_SHARE, _TOTAL_BYTES // max(count, 1)))
            if share == self.bytes == self._notified:
                # The usual case. A thread that writes an outdated share later sees that the number has changed.
                return
            self.bytes = share
            if len(self._open) == count:
                break
        if share < self._notified:
            self._notified = share
        elif share >= self._notified * _GROWTH or self._notified < share == _MAX_SHARE:
            self._notified = share
            self._counted_at = -math.inf
            for channel in map(_referent, self._open.copy()):
                if channel is not None:
                    channel.limit_has_grown()

    def buffered(self, loop: asyncio.AbstractEventLoop) -> int:
        """Return the bytes that are held in channels whose producers run on `loop`."""
        channels = [_referent(reference) for reference, its_loop in self._open.copy().items() if its_loop is loop]
        return sum(channel.buffered for channel in channels if channel is not None)

    def detach_after_fork(self) -> None:
        """In a forked child, forget the parent's streams."""
        self._process = fork.process_token()
        self._open.clear()
        self._update()


def _referent(reference: ReferenceType[Holder]) -> Holder | None:
    return reference()


memory = _Memory()


def limit_of(max_bytes: int) -> ByteLimit:
    """Return the limit of a stream with this `max_buffered_bytes`: the share, or a limit of the caller's."""
    return memory if max_bytes is DEFAULT_MAX_BUFFERED_BYTES else ByteLimit(max_bytes, max_bytes)
