"""The store in Redis: a Redis stream for each stream of the log, changed by the scripts of _lua.py.

Runs on the loop thread, except the constructor, which runs in a caller's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sseqbridge._exceptions import LogError

from . import _lua
from ._entries import START, Entry, Position, cancel_fields, deleted_fields, parse_position
from ._redis_client import ClientFactory, RedisClient, Script, text_of
from ._redis_tail import RedisTail
from ._store import ANY_TTL, Claim, ClaimState, FencingToken, Liveness, LogSettings, StaleTokenError

__all__ = ["RedisStore"]

# The limits of one reply: entries of each stream, and bytes of one stream, as far as these can be estimated.
_READ_COUNT = 1000
_READ_BYTES = 256 * 1024
# How many streams one heartbeat script checks: a script blocks the server.
_HEARTBEAT_STREAMS = 100
_HEARTBEAT_KEYS = ("events", "lease", "readers", "fence")

_CLAIM, _WRITE, _RENEW = Script(_lua.CLAIM), Script(_lua.WRITE), Script(_lua.RENEW)
_RELEASE, _CANCEL, _DELETE, _HEARTBEAT = map(Script, (_lua.RELEASE, _lua.CANCEL, _lua.DELETE, _lua.HEARTBEAT))


class RedisStore:
    """The streams of one log in Redis; see Store."""

    def __init__(self, factory: ClientFactory, prefix: str, settings: LogSettings) -> None:
        self.client = RedisClient(factory)
        self._prefix = prefix
        self._settings = settings
        # The estimated size of an entry: a reply can be limited by its number of entries only. High at first.
        self._entry_bytes = 32_768.0

    def key_of(self, key: str, part: str) -> str:
        """Return the Redis key of a part of a stream: "events", "lease", "fence" or "readers"."""
        return f"{self._prefix}:{{{key}}}:{part}"

    def wake_key(self, name: str) -> str:
        """Return the Redis key of the stream that wakes a tail."""
        return f"{self._prefix}:wake:{name}"

    async def claim(
        self, key: str, owner: str, *, may_begin: bool, takeover: bool, longest_ttl: int | None = ANY_TTL
    ) -> Claim:
        ttl = "" if longest_ttl is None else longest_ttl
        state, fence, last, remark, fence_ttl = await self.client.run(
            _CLAIM,
            self._keys(key, "events", "lease", "fence"),
            (owner, self._lease_ms, self._retention_ms, int(may_begin), int(takeover), ttl),
        )
        remark = text_of(remark)
        return Claim(
            ClaimState(text_of(state)),
            int(fence),
            _position(last),
            begins=remark == "begins",
            is_certain=remark == "certain",
            fence_ttl=int(fence_ttl),
            deleted=_position(remark),
        )

    async def append(self, token: FencingToken, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        await self._write(token, number, entries, self._lease_ms)

    async def end(self, token: FencingToken, number: int, fields: Mapping[str, str]) -> None:
        await self._write(token, number, [fields], 0)

    async def _write(
        self, token: FencingToken, number: int, entries: Sequence[Mapping[str, str]], lease_ms: int
    ) -> None:
        arguments: list[Any] = []
        for fields in entries:
            arguments.append(2 * len(fields))
            arguments.extend(_pairs(fields))
        retention, refusal_retention = self._retention_ms, _milliseconds(self._settings.lease)
        is_written = await self.client.run(
            _WRITE,
            self._keys(token.key, "events", "lease", "fence"),
            (str(token), lease_ms, retention, refusal_retention, self._settings.max_events or 0, number, *arguments),
        )
        if not is_written:
            raise StaleTokenError

    async def renew(self, token: FencingToken) -> int:
        keys = self._keys(token.key, "events", "lease", "fence", "readers")
        readers: int = await self.client.run(_RENEW, keys, (str(token), self._lease_ms, self._retention_ms))
        if readers < 0:
            raise StaleTokenError
        return readers

    async def release(self, token: FencingToken) -> None:
        await self.client.run(_RELEASE, self._keys(token.key, "lease", "fence"), [str(token)])

    async def cancel(self, key: str, owner: str) -> bool:
        keys = self._keys(key, "events", "lease", "fence")
        arguments = (owner, _milliseconds(self._settings.ttl), *_pairs(cancel_fields()))
        return bool(await self.client.run(_CANCEL, keys, arguments))

    async def delete(self, key: str, owner: str = "") -> bool:
        keys = self._keys(key, "events", "lease", "fence", "readers")
        arguments = (owner, _milliseconds(self._settings.ttl), *_pairs(deleted_fields()))
        return bool(await self.client.run(_DELETE, keys, arguments))

    async def read(self, key: str, after: Position, count: int) -> list[Entry]:
        begin = "-" if after == START else f"({after}"
        command = ("XRANGE", self.key_of(key, "events"), begin, "+", "COUNT", min(count, self.count()))
        return self.entries(await self.client.execute(*command))

    def count(self) -> int:
        """Return how many entries to request at a time."""
        return max(1, min(_READ_COUNT, int(_READ_BYTES / self._entry_bytes)))

    def entries(self, reply: Iterable[tuple[Any, Any]] | None) -> list[Entry]:
        """Return the entries of a reply."""
        entries = [_entry(entry_id, fields) for entry_id, fields in reply or ()]
        if entries:
            size = sum(len(value) for entry in entries for value in entry.fields.values())
            self._entry_bytes = max(1.0, size / len(entries), 0.8 * self._entry_bytes)
        return entries

    async def heartbeat(self, keys: Sequence[str], reader: str) -> list[Liveness]:
        arguments = (reader, _milliseconds(self._settings.reader_ttl))
        names = [name for key in keys for name in self._keys(key, *_HEARTBEAT_KEYS)]
        # On a Cluster a script may use the keys of one slot only.
        size = len(_HEARTBEAT_KEYS) * (1 if self.client.is_cluster else _HEARTBEAT_STREAMS)
        found = await asyncio.gather(*(self._heartbeat(part, arguments) for part in _split(names, size)))
        return [liveness for part in found for liveness in part]

    async def _heartbeat(self, names: Sequence[str], arguments: Iterable[Any]) -> list[Liveness]:
        """Run the script for streams with the same number of Redis keys each."""
        try:
            found = await self.client.run(_HEARTBEAT, names, arguments)
        except LogError as error:
            if len(names) == len(_HEARTBEAT_KEYS):
                return [Liveness(False, None, error)]
            # One stream's key may have failed the whole script: run it for each stream alone.
            parts = _split(names, len(_HEARTBEAT_KEYS))
            alone = await asyncio.gather(*(self._heartbeat(part, arguments) for part in parts))
            return [liveness for part in alone for liveness in part]
        return [
            Liveness(True, _position(last))
            if is_held
            else Liveness(False, _position(last), is_certain=bool(is_released), fence_ttl=int(fence_ttl))
            for is_held, last, is_released, fence_ttl in found
        ]

    async def remove_reader(self, key: str, reader: str) -> None:
        await self.client.execute("ZREM", self.key_of(key, "readers"), reader)

    def group_of(self, key: str) -> str:
        return key if self.client.is_cluster else ""

    def new_tail(self) -> RedisTail:
        return RedisTail(self)

    async def aclose(self) -> None:
        await self.client.aclose()

    def _keys(self, key: str, *parts: str) -> list[str]:
        return [self.key_of(key, part) for part in parts]

    @property
    def _lease_ms(self) -> int:
        return _milliseconds(self._settings.lease_ttl)

    @property
    def _retention_ms(self) -> int:
        return _milliseconds(self._settings.retention)


def _split(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[at : at + size] for at in range(0, len(names), size)]


def _pairs(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _position(value: Any) -> Position | None:
    return parse_position(text_of(value)) if value else None


def _entry(entry_id: Any, fields: Any) -> Entry:
    text = text_of(entry_id)
    position = parse_position(text)
    if position is None:
        fence, _, number = text.partition("-")
        return Entry(Position(int(fence), int(number)), {}, "its ID is too large, no log has written it")
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    try:
        return Entry(position, {text_of(name): text_of(value) for name, value in pairs})
    except UnicodeDecodeError:
        return Entry(position, {}, "it holds bytes that are not UTF-8")
