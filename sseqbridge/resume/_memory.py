"""Streams kept in this process's memory.

Rule: used by one loop at a time, and nothing here waits but a Tail; so each coroutine is one step.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence

from sseqbridge._runtime.clock import clock

from ._entries import CANCEL, REFUSED, Entry, Position
from ._store import Claim, StaleError, Terms, Token, Watch

__all__ = ["MemoryStore"]


class _Stream:
    """One stream."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.token: Token | None = None
        self.held_until = 0.0
        self.expires_at = 0.0
        # When each process that reads it counts no more.
        self.readers: dict[str, float] = {}

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None


class MemoryStore:
    """The streams of one log."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._streams: dict[str, _Stream] = {}
        self._fence = 0
        self._tails: set[_MemoryTail] = set()

    async def claim(self, key: str, owner: str, *, may_begin: bool, takeover: bool) -> Claim:
        self._forget_expired()
        stream = self._streams.get(key)
        if stream is None:
            if not may_begin:
                return Claim("none", 0, None)
            stream = self._streams[key] = _Stream()
        last = stream.last
        where = None if last is None else last.position
        if self._is_held(stream):
            assert stream.token is not None
            is_own = stream.token.owner == owner
            return Claim("elected", stream.token.fence, where) if is_own else Claim("live", 0, where)
        is_refused = last is not None and last.kind == REFUSED and len(stream.entries) == 1
        if last is None or is_refused:
            if not may_begin:
                return Claim("none" if last is None else "ended", 0, where)
            stream.entries.clear()
        elif not (takeover and (not last.is_end or last.kind == REFUSED)):
            return Claim("ended" if last.is_end else "lost", 0, where)
        elif last.is_end:
            stream.entries.pop()
        self._fence = max(self._fence + 1, time.time_ns() // 1_000_000)
        stream.token = Token(key, self._fence, owner)
        self._renew(stream)
        return Claim("elected", self._fence, where)

    async def append(self, token: Token, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        stream = self._written_by(token)
        self._renew(stream)
        self._add(stream, token, number, entries)

    async def end(self, token: Token, number: int, fields: Mapping[str, str]) -> None:
        stream = self._written_by(token)
        self._add(stream, token, number, [fields])
        stream.held_until = 0.0
        is_alone = REFUSED in fields and len(stream.entries) == 1
        stream.expires_at = clock.monotonic() + (self._terms.lease if is_alone else self._terms.ttl)

    async def renew(self, token: Token) -> int:
        stream = self._written_by(token)
        self._renew(stream)
        now = clock.monotonic()
        return sum(until > now for until in stream.readers.values())

    async def release(self, token: Token) -> None:
        stream = self._streams.get(token.key)
        if stream is not None and stream.token == token:
            stream.held_until = 0.0

    async def cancel(self, key: str, owner: str) -> bool:
        stream = self._stream(key)
        if stream is None:
            return False
        if stream.last is not None and stream.last.is_end:
            return stream.last.kind == CANCEL and stream.token is not None and stream.token.owner == owner
        if stream.last is None and not self._is_held(stream):
            return False
        self._fence += 1
        stream.token = Token(key, self._fence, owner)
        self._add(stream, stream.token, 0, [{CANCEL: "cancelled"}])
        stream.held_until = 0.0
        stream.expires_at = clock.monotonic() + self._terms.ttl
        return True

    async def delete(self, key: str) -> bool:
        return self._stream(key) is not None and bool(self._streams.pop(key))

    async def read(self, key: str, after: Position, count: int) -> list[Entry]:
        stream = self._stream(key)
        return [] if stream is None else _after(stream, after)[:count]

    async def watch(self, keys: Sequence[str], reader: str) -> list[Watch]:
        return [self._watched(key, reader) for key in keys]

    def _watched(self, key: str, reader: str) -> Watch:
        stream = self._stream(key)
        if stream is None:
            return Watch(False, None)
        stream.readers[reader] = clock.monotonic() + self._terms.present_for
        return Watch(self._is_held(stream), stream.last.position if stream.last else None)

    async def leave(self, key: str, reader: str) -> None:
        stream = self._streams.get(key)
        if stream is not None:
            stream.readers.pop(reader, None)

    def group_of(self, key: str) -> str:
        return ""

    def new_tail(self) -> _MemoryTail:
        return _MemoryTail(self)

    async def aclose(self) -> None:
        pass

    def _is_held(self, stream: _Stream) -> bool:
        return stream.held_until > clock.monotonic()

    def _written_by(self, token: Token) -> _Stream:
        stream = self._streams.get(token.key)
        if stream is None or stream.token != token:
            raise StaleError
        return stream

    def _renew(self, stream: _Stream) -> None:
        now = clock.monotonic()
        stream.held_until = now + self._terms.held_for
        stream.expires_at = now + max(self._terms.ttl, self._terms.lease)

    def _add(self, stream: _Stream, token: Token, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        for at, fields in enumerate(entries, number):
            position = Position(token.fence, at)
            if stream.last is None or stream.last.position < position:
                stream.entries.append(Entry(position, dict(fields)))
        while self._terms.max_events is not None and len(stream.entries) > self._terms.max_events:
            stream.entries.popleft()
        for tail in self._tails:
            tail.wake()

    def _stream(self, key: str) -> _Stream | None:
        stream = self._streams.get(key)
        if stream is not None and stream.expires_at <= clock.monotonic():
            del self._streams[key]
            return None
        return stream

    def _forget_expired(self) -> None:
        now = clock.monotonic()
        for key in [key for key, stream in self._streams.items() if stream.expires_at <= now]:
            del self._streams[key]


def _after(stream: _Stream, after: Position) -> list[Entry]:
    found: list[Entry] = []
    for entry in reversed(stream.entries):
        if entry.position <= after:
            break
        found.append(entry)
    return found[::-1]


class _MemoryTail:
    """Waits for what comes."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._woken = asyncio.Event()

    async def read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry]]]:
        self._store._tails.add(self)
        try:
            while not (found := self._found(positions)) and not self._woken.is_set():
                await self._woken.wait()
            self._woken.clear()
            return found
        finally:
            self._store._tails.discard(self)

    def _found(self, positions: Mapping[str, Position]) -> list[tuple[str, list[Entry]]]:
        streams = self._store._streams
        read = ((key, _after(streams[key], position)) for key, position in positions.items() if key in streams)
        return [(key, entries) for key, entries in read if entries]

    def wake(self) -> None:
        self._woken.set()
