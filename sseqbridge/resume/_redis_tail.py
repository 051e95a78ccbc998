"""One blocking XREAD for all streams that a process follows in Redis.

Runs on the loop thread. An XREAD names every stream, and is sent again after every entry, so its names are packed once,
and a position again only if it has changed; it keeps its connection. On a Cluster the client packs each XREAD, which
then has one stream.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import operator
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import LogError

from ._redis_client import text_of
from ._redis_errors import DemotedError
from ._store import OutageError

if TYPE_CHECKING:
    from ._entries import Entry, Position
    from ._redis_client import HeldConnection
    from ._redis_store import RedisStore

__all__ = ["RedisTail"]

logger = logging.getLogger("sseqbridge")

# How long one XREAD blocks: less than the time after which a client abandons a silent connection.
_BLOCK_MILLISECONDS = 2000
# The TTL of the stream that wakes a process's XREAD.
_WAKE_MILLISECONDS = 60_000


class RedisTail:
    """Waits for new entries with one XREAD; see Tail."""

    def __init__(self, store: RedisStore) -> None:
        self.wake_key = store.wake_key(uuid.uuid4().hex).encode()
        self.is_reading = False
        self.wake_tasks: set[asyncio.Task[None]] = set()
        self._store = store
        self._client = store.client
        self._connection: HeldConnection | None = None if store.client.is_cluster else store.client.hold()
        self._wakes = self._seen_wakes = 0
        # The client's count when the connection of the XREAD was made.
        self._demotions = 0
        # The streams of the last XREAD, in its order and by their names in Redis, and the XREAD.
        self._order: list[str] = []
        self._keys: dict[str, str] = {}
        self._command = _PackedXRead(())

    async def read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry] | LogError]]:
        try:
            return await self._read(positions)
        except DemotedError:
            await self._client.drop_connections()
            raise
        except LogError as error:
            # One stream's key may have failed the whole XREAD.
            errors = await self._errors(positions) if len(positions) > 1 else [(key, error) for key in positions]
            if not errors:
                raise
            return errors

    async def _errors(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, LogError]]:
        """Return the errors of the streams that cannot be read alone either."""
        results = await asyncio.gather(*(self._error(key, position) for key, position in positions.items()))
        return [(key, error) for key, error in zip(positions, results, strict=True) if error is not None]

    async def _error(self, key: str, position: Position) -> LogError | None:
        name = self._store.key_of(key, "events")
        try:
            await self._client.execute("XREAD", "COUNT", 1, "STREAMS", name, str(position))
        except LogError as error:
            return error
        return None

    async def _read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry]]]:
        self._name(positions)
        # From here on wake() ends the XREAD, even one that is not sent yet.
        self.is_reading = True
        try:
            if self._demotions != self._client.demotions:
                # Else the XREAD would continue on the replica, which may never get new entries.
                self._demotions = self._client.demotions
                await self.aclose()
                await self._client.close_idle()
            reply = await self._reply(positions)
        finally:
            self.is_reading = False
        found = []
        for name, entries in reply.items() if isinstance(reply, dict) else reply or ():
            key = self._keys.get(text_of(name))
            if key is None:
                self._seen_wakes = self._wakes
            else:
                # With RESP3 some versions of redis-py put one more list around the entries.
                nested = entries and isinstance(entries[0][0], (list, tuple))
                found.append((key, self._store.entries(entries[0] if nested else entries)))
        return found

    async def _reply(self, positions: Mapping[str, Position]) -> Any:
        count = self._store.count()
        if self._connection is not None:
            ids = [*positions.values(), (self._seen_wakes, 0)]
            return await self._connection.execute(self._command.pack(count, ids))
        [(name, key)] = self._keys.items()
        command = ("XREAD", "COUNT", count, "BLOCK", _BLOCK_MILLISECONDS, "STREAMS", name, str(positions[key]))
        return await self._client.execute_alone(*command, key=name.encode())

    def _name(self, positions: Mapping[str, Position]) -> None:
        """Look the names of the streams up in Redis, if they are not those of the last XREAD."""
        order = list(positions)
        if order != self._order:
            self._order = order
            self._keys = {self._store.key_of(key, "events"): key for key in positions}
            self._command = _PackedXRead([*(name.encode() for name in self._keys), self.wake_key])

    def wake(self) -> None:
        if self.is_reading and self._connection is not None:
            self._wakes += 1
            task = asyncio.get_running_loop().create_task(self._send_wake(f"{self._wakes}-0"))
            self.wake_tasks.add(task)
            task.add_done_callback(self.wake_tasks.discard)

    async def _send_wake(self, entry_id: str) -> None:
        try:
            await asyncio.gather(
                self._client.execute("XADD", self.wake_key, "MAXLEN", 1, entry_id, "wake", "1"),
                self._client.execute("PEXPIRE", self.wake_key, _WAKE_MILLISECONDS),
            )
        except (OutageError, LogError) as exc:
            logger.debug("an XREAD was not woken, and ends by itself: %s", exc)

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.release()


class _PackedXRead:
    """A blocking XREAD of some streams, as bytes for the connection. It packs again only what has changed."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self._arguments = 6 + 2 * len(names)
        self._names = b"".join(map(_bulk, names))
        # The positions of the last command, and their packed forms.
        self._positions: list[tuple[int, int]] = [(-1, -1)] * len(names)
        self._ids = [b""] * len(names)

    def pack(self, count: int, positions: Sequence[tuple[int, int]]) -> bytes:
        """Return the command for the streams' positions, in the order of the names."""
        known, ids = self._positions, self._ids
        # Few positions change between two XREADs of hundreds of streams, so no bytecode runs for the others.
        for index in itertools.compress(itertools.count(), map(operator.ne, positions, known)):
            known[index], ids[index] = positions[index], _bulk(b"%d-%d" % positions[index])
        return b"".join(
            (
                b"*%d\r\n$5\r\nXREAD\r\n$5\r\nCOUNT\r\n" % self._arguments,
                _bulk(b"%d" % count),
                b"$5\r\nBLOCK\r\n",
                _bulk(b"%d" % _BLOCK_MILLISECONDS),
                b"$7\r\nSTREAMS\r\n",
                self._names,
                *ids,
            )
        )


def _bulk(data: bytes) -> bytes:
    """Return a bulk string of Redis's protocol."""
    return b"$%d\r\n%b\r\n" % (len(data), data)
