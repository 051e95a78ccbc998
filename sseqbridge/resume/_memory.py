"""Streams in the memory of this process.

A store is used by one event loop at a time. Nothing in it awaits, except a Tail, so each coroutine is atomic.

| field of MemoryStores | written by       | guarded by          |
|-----------------------|------------------|---------------------|
| `_process`, `_store`  | callers' threads | the log core's lock |
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence

from sseqbridge._runtime import fork
from sseqbridge._runtime.clock import clock

from ._entries import CANCEL, REFUSED, Entry, Position, cancel_fields, deleted_fields
from ._store import ANY_TTL, Claim, ClaimState, FencingToken, Liveness, LogSettings, StaleTokenError

__all__ = ["MemoryStore", "MemoryStores"]


class MemoryStores:
    """Returns one store for all event loops of a process, which a forked child does not inherit."""

    def __init__(self) -> None:
        self._process: tuple[int, int] | None = None
        self._store: MemoryStore | None = None

    def __call__(self, settings: LogSettings) -> MemoryStore:
        """Return this process's store. Must be called under the log core's lock."""
        process = fork.process_token()
        if self._store is None or self._process != process:
            self._process, self._store = process, MemoryStore(settings)
        return self._store


class _Stream:
    """One stream. `readers` maps each reading process to the end of its heartbeat's TTL."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.token: FencingToken | None = None
        self.lease_expires_at = 0.0
        self.expires_at = 0.0
        self.readers: dict[str, float] = {}

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None

    @property
    def is_deleted(self) -> bool:
        return self.last is not None and self.last.kind == CANCEL and self.last.is_deletion

    @property
    def is_held(self) -> bool:
        return self.lease_expires_at > clock.monotonic()

    def entries_after(self, position: Position) -> list[Entry]:
        found: list[Entry] = []
        for entry in reversed(self.entries):
            if entry.position <= position:
                break
            found.append(entry)
        return found[::-1]


class MemoryStore:
    """The streams of one log; see Store."""

    def __init__(self, settings: LogSettings) -> None:
        self.streams: dict[str, _Stream] = {}
        self.tails: set[_MemoryTail] = set()
        self._settings = settings
        self._fence = 0

    async def claim(
        self, key: str, owner: str, *, may_begin: bool, takeover: bool, longest_ttl: int | None = ANY_TTL
    ) -> Claim:
        # Nothing evicts a lease from memory: without one the producer is lost.
        self._remove_expired()
        stream = self.streams.get(key)
        if stream is None:
            if not may_begin:
                return Claim(ClaimState.NONE, 0, None)
            stream = self.streams[key] = _Stream()
        last = stream.last
        position = None if last is None else last.position
        if stream.is_held:
            assert stream.token is not None
            if stream.token.owner == owner:
                return Claim(ClaimState.ELECTED, stream.token.fence, position, begins=last is None)
            return Claim(ClaimState.LIVE, 0, position)
        is_refused = last is not None and last.kind == REFUSED and len(stream.entries) == 1
        begins = last is None or is_refused or stream.is_deleted
        if begins:
            if not may_begin:
                if stream.is_deleted:
                    return Claim(ClaimState.NONE, 0, None, deleted=position)
                return Claim(ClaimState.NONE if last is None else ClaimState.ENDED, 0, position)
            stream.entries.clear()
            position = None
        elif last is not None and last.is_end:
            if not (takeover and last.kind == REFUSED):
                return Claim(ClaimState.ENDED, 0, position)
            stream.entries.pop()
        elif not takeover:
            return Claim(ClaimState.LOST, 0, position, is_certain=True)
        self._fence = max(self._fence + 1, time.time_ns() // 1_000_000)
        stream.token = FencingToken(key, self._fence, owner)
        self._renew(stream)
        return Claim(ClaimState.ELECTED, self._fence, position, begins=begins)

    async def append(self, token: FencingToken, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        stream = self._written_by(token)
        self._renew(stream)
        self._add(stream, token, number, entries)

    async def end(self, token: FencingToken, number: int, fields: Mapping[str, str]) -> None:
        stream = self._written_by(token)
        self._add(stream, token, number, [fields])
        stream.lease_expires_at = 0.0
        is_alone = REFUSED in fields and len(stream.entries) == 1
        stream.expires_at = clock.monotonic() + (self._settings.lease if is_alone else self._settings.ttl)

    async def renew(self, token: FencingToken) -> int:
        stream = self._written_by(token)
        self._renew(stream)
        now = clock.monotonic()
        return sum(until > now for until in stream.readers.values())

    async def release(self, token: FencingToken) -> None:
        stream = self.streams.get(token.key)
        if stream is not None and stream.token == token:
            stream.lease_expires_at = 0.0

    async def cancel(self, key: str, owner: str) -> bool:
        stream = self._unexpired(key)
        if stream is None:
            return False
        if stream.last is not None and stream.last.is_end:
            return stream.last.kind == CANCEL and stream.token is not None and stream.token.owner == owner
        if stream.last is None and not stream.is_held:
            return False
        self._end(stream, FencingToken(key, self._fence + 1, owner), cancel_fields())
        return True

    async def delete(self, key: str, owner: str = "") -> bool:
        stream = self._unexpired(key)
        if stream is None or (stream.last is None and not stream.is_held):
            return False
        if stream.is_deleted:
            return stream.token is not None and stream.token.owner == owner
        self._end(stream, FencingToken(key, self._fence + 1, owner), deleted_fields())
        stream.entries = deque([stream.entries[-1]])
        stream.readers.clear()
        return True

    def _end(self, stream: _Stream, token: FencingToken, fields: Mapping[str, str]) -> None:
        self._fence = token.fence
        stream.token = token
        self._add(stream, token, 0, [fields])
        stream.lease_expires_at = 0.0
        stream.expires_at = clock.monotonic() + self._settings.ttl

    async def read(self, key: str, after: Position, count: int) -> list[Entry]:
        stream = self._unexpired(key)
        return [] if stream is None else stream.entries_after(after)[:count]

    async def heartbeat(self, keys: Sequence[str], reader: str) -> list[Liveness]:
        return [self._heartbeat(key, reader) for key in keys]

    def _heartbeat(self, key: str, reader: str) -> Liveness:
        stream = self._unexpired(key)
        if stream is None:
            return Liveness(False, None)
        stream.readers[reader] = clock.monotonic() + self._settings.reader_ttl
        last = None if stream.last is None else stream.last.position
        return Liveness(stream.is_held, last, is_certain=not stream.is_held)

    async def remove_reader(self, key: str, reader: str) -> None:
        stream = self.streams.get(key)
        if stream is not None:
            stream.readers.pop(reader, None)

    def group_of(self, key: str) -> str:
        return ""

    def new_tail(self) -> _MemoryTail:
        return _MemoryTail(self)

    async def aclose(self) -> None:
        pass

    def _written_by(self, token: FencingToken) -> _Stream:
        stream = self.streams.get(token.key)
        if stream is None or stream.token != token:
            raise StaleTokenError
        return stream

    def _renew(self, stream: _Stream) -> None:
        now = clock.monotonic()
        stream.lease_expires_at = now + self._settings.lease_ttl
        stream.expires_at = now + self._settings.retention

    def _add(self, stream: _Stream, token: FencingToken, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        for at, fields in enumerate(entries, number):
            position = Position(token.fence, at)
            if stream.last is None or stream.last.position < position:
                stream.entries.append(Entry(position, dict(fields)))
        while self._settings.max_events is not None and len(stream.entries) > self._settings.max_events:
            stream.entries.popleft()
        for tail in self.tails:
            tail.wake()

    def _unexpired(self, key: str) -> _Stream | None:
        stream = self.streams.get(key)
        if stream is not None and stream.expires_at <= clock.monotonic():
            del self.streams[key]
            return None
        return stream

    def _remove_expired(self) -> None:
        now = clock.monotonic()
        for key in [key for key, stream in self.streams.items() if stream.expires_at <= now]:
            del self.streams[key]


class _MemoryTail:
    """Waits for new entries; see Tail."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._woken = asyncio.Event()

    async def read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry]]]:
        self._store.tails.add(self)
        try:
            while not (found := self._found(positions)) and not self._woken.is_set():
                await self._woken.wait()
            self._woken.clear()
            return found
        finally:
            self._store.tails.discard(self)

    def _found(self, positions: Mapping[str, Position]) -> list[tuple[str, list[Entry]]]:
        streams = self._store.streams
        read = ((key, streams[key].entries_after(after)) for key, after in positions.items() if key in streams)
        return [(key, entries) for key, entries in read if entries]

    def wake(self) -> None:
        self._woken.set()

    async def aclose(self) -> None:
        pass  # A tail holds no resource.
