"""Streams kept in Redis: one Redis stream each, for any number of processes and machines.

On a plain Redis a process has two connections, however many streams it reads and writes: on one
XREAD waits for all of them, on the other goes everything else, what is asked for at the same time
together. On a Cluster, where one XREAD cannot span slots, each stream has a waiting one of its own.

Rule: all of it runs in the loop's thread, but for what makes a log, and its store.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import LogError, UsageError
from sseqbridge._runtime.callbacks import CallersCode

from . import _lua
from ._entries import START, Entry, Position, position_of
from ._log import Log
from ._store import Claim, OutageError, StaleError, Store, Terms, Token, Watch

try:
    import redis.asyncio
    from redis import exceptions
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.client import NEVER_DECODE

    from ._redis_errors import DemotedError, UnknownScriptError, error_of
except ImportError as exc:
    raise ImportError("RedisLog needs redis-py: pip install 'sseqbridge[redis]'") from exc

try:
    from redis.driver_info import DriverInfo
except ImportError:
    # Before redis-py 7.
    _DRIVER = {}
else:
    # Found here, once: for each connection redis-py would look its own version up on disk, in the loop.
    _DRIVER = {"driver_info": DriverInfo()}

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._log import LogOptions

    Client = redis.asyncio.Redis | redis.asyncio.RedisCluster
    ClientFactory = Callable[[], Client]

__all__ = ["RedisLog"]

logger = logging.getLogger("sseqbridge")

# How long one XREAD waits: below the time after which a client gives a silent connection up.
_BLOCK_MILLISECONDS = 2000
_SOCKET_SECONDS = 10.0
# How many entries of a stream one answer brings at most, and how many bytes it should be about.
_READ_AT_A_TIME = 1000
_READ_BYTES = 256 * 1024
# How many streams one script looks at: it holds up everyone else's commands.
_WATCHED_AT_A_TIME = 100
# For how long the stream is kept that wakes a process's XREAD.
_WAKE_MILLISECONDS = 60_000

# What redis-py is told with each command: an answer comes as bytes, whatever the client was configured to. One
# entry that is not UTF-8 must not make the whole answer unreadable.
_AS_BYTES = {NEVER_DECODE: True}


class RedisLog(Log):
    """A log in Redis 6.2 or later (or what speaks its protocol), for any number of processes and machines.

        log = RedisLog.from_url("redis://localhost")

    `client` is a function that returns a new redis.asyncio.Redis or RedisCluster; it is called in
    the threads that open streams. Its `socket_timeout` has to be above 2 seconds, and it should not
    retry: the log does.
    `prefix` begins all keys: `{prefix}:{key}:...`, with the key in braces, as its hash tag.
    See Log for the other arguments.
    """

    def __init__(
        self,
        client: ClientFactory,
        *,
        prefix: str = "sseqbridge",
        **options: Unpack[LogOptions],
    ) -> None:
        super().__init__(**options)
        if not callable(client):
            raise UsageError(
                f"client is a {type(client).__name__}; it is a function that returns a new redis.asyncio.Redis, "
                'for example RedisLog(lambda: redis.asyncio.Redis(host="..."))'
            )
        if not isinstance(prefix, str) or not prefix.isprintable() or not prefix or "{" in prefix or "}" in prefix:
            raise UsageError("prefix is a str without braces and control characters that is not empty")
        self._client = client
        self._prefix = prefix

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        cluster: bool = False,
        client_options: Mapping[str, Any] | None = None,
        prefix: str = "sseqbridge",
        **options: Unpack[LogOptions],
    ) -> Self:
        """Return a log in the Redis that a URL names, as redis-py takes it: `redis://`, `rediss://`, `unix://`.

        `cluster=True` is for a Redis Cluster, any node of it. `client_options` go to redis-py's client.
        Raises UsageError for what is no such URL. Nothing is connected yet.
        """
        try:
            parse_url(url)
        except (ValueError, TypeError, AttributeError):
            raise UsageError("url is no URL of a Redis, such as redis://user:password@host:6379/0") from None
        own = {"socket_timeout": _SOCKET_SECONDS, "socket_connect_timeout": 5.0, **_DRIVER}
        of_client = {**own, **(client_options or {})}

        def client() -> Client:
            if cluster:
                return redis.asyncio.RedisCluster.from_url(url, **of_client)
            # The log tries again by itself, and knows for how long.
            return redis.asyncio.Redis.from_url(url, **{"retry": Retry(NoBackoff(), 0), **of_client})

        return cls(client, prefix=prefix, **options)

    def _new_store(self) -> Store:
        return _RedisStore(self._client, self._prefix, self._terms)


class _Script:
    """One of the scripts, by the name that Redis gives it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_CLAIM, _WRITE, _RENEW = _Script(_lua.CLAIM), _Script(_lua.WRITE), _Script(_lua.RENEW)
_RELEASE, _CANCEL, _DELETE, _WATCH = map(_Script, (_lua.RELEASE, _lua.CANCEL, _lua.DELETE, _lua.WATCH))


class _RedisStore:
    """A log's streams, in Redis."""

    def __init__(self, factory: ClientFactory, prefix: str, terms: Terms) -> None:
        # Made here, in a caller's thread: redis-py looks its own version up on disk.
        self.client: Any = factory()
        self.is_cluster = isinstance(self.client, redis.asyncio.RedisCluster)
        self._prefix = prefix
        self._terms = terms
        self._is_closed = False
        # What an entry has taken of late, in bytes: an answer's size can be chosen by number only.
        # At first few are asked for: nobody knows how large they are.
        self._usual_bytes = 32_768.0
        # What is to be sent with the next round.
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None
        # How often a master was found to be a replica.
        self.demotions = 0

    def events_key(self, key: str) -> str:
        """Return where a stream's entries are."""
        return self._key(key, "events")

    def _key(self, key: str, what: str) -> str:
        return f"{self._prefix}:{{{key}}}:{what}"

    async def claim(self, key: str, owner: str, *, may_begin: bool, takeover: bool) -> Claim:
        state, fence, last = await self._run(
            _CLAIM,
            (self._key(key, "events"), self._key(key, "lease"), self._key(key, "fence")),
            (owner, *self._held_and_kept(), int(may_begin), int(takeover)),
        )
        return Claim(_text(state), int(fence), _position(last))

    async def append(self, token: Token, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        await self._write(token, number, entries, _milliseconds(self._terms.held_for))

    async def end(self, token: Token, number: int, fields: Mapping[str, str]) -> None:
        await self._write(token, number, [fields], 0)

    async def _write(self, token: Token, number: int, entries: Sequence[Mapping[str, str]], held: int) -> None:
        arguments: list[Any] = []
        for fields in entries:
            arguments.append(2 * len(fields))
            for pair in fields.items():
                arguments.extend(pair)
        kept, kept_alone = self._held_and_kept()[1], _milliseconds(self._terms.lease)
        is_written = await self._run(
            _WRITE,
            (self._key(token.key, "events"), self._key(token.key, "lease"), self._key(token.key, "fence")),
            (str(token), held, kept, kept_alone, self._terms.max_events or 0, number, *arguments),
        )
        if not is_written:
            raise StaleError

    async def renew(self, token: Token) -> int:
        keys = [self._key(token.key, what) for what in ("events", "lease", "fence", "readers")]
        readers: int = await self._run(_RENEW, keys, (str(token), *self._held_and_kept()))
        if readers < 0:
            raise StaleError
        return readers

    async def release(self, token: Token) -> None:
        await self._run(_RELEASE, [self._key(token.key, "lease")], [str(token)])

    async def cancel(self, key: str, owner: str) -> bool:
        keys = [self._key(key, what) for what in ("events", "lease", "fence")]
        return bool(await self._run(_CANCEL, keys, (owner, _milliseconds(self._terms.ttl))))

    async def delete(self, key: str) -> bool:
        return bool(await self._run(_DELETE, [self._key(key, what) for what in ("events", "lease", "readers")], ()))

    async def read(self, key: str, after: Position, count: int) -> list[Entry]:
        begin = "-" if after == START else f"({after}"
        command = ("XRANGE", self.events_key(key), begin, "+", "COUNT", min(count, self.count()))
        return self.entries(await self.execute(*command))

    def count(self) -> int:
        """Return how many entries to ask for at a time."""
        return max(1, min(_READ_AT_A_TIME, int(_READ_BYTES / self._usual_bytes)))

    def entries(self, reply: Iterable[tuple[Any, Any]] | None) -> list[Entry]:
        """Return the entries of an answer."""
        entries = [_entry(entry_id, fields) for entry_id, fields in reply or ()]
        if entries:
            size = sum(len(value) for entry in entries for value in entry.fields.values())
            self._usual_bytes = max(1.0, size / len(entries), 0.8 * self._usual_bytes)
        return entries

    async def watch(self, keys: Sequence[str], reader: str) -> list[Watch]:
        arguments = (reader, _milliseconds(self._terms.present_for))
        names = [self._key(key, what) for key in keys for what in ("events", "lease", "readers")]
        # On a Cluster a script may use the keys of one slot alone.
        size = 3 if self.is_cluster else 3 * _WATCHED_AT_A_TIME
        found = await asyncio.gather(*(self._look_at(part, arguments) for part in _parts(names, size)))
        return [watch for each in found for watch in each]

    async def _look_at(self, names: Sequence[str], arguments: Iterable[Any]) -> list[Watch]:
        """Run the script that looks at streams, which have three keys each."""
        try:
            found = await self._run(_WATCH, names, arguments)
        except LogError as error:
            if len(names) == 3:
                return [Watch(False, None, error)]
            # One stream's key may be at fault, of which the script has no say. Each alone tells which.
            alone = await asyncio.gather(*(self._look_at(part, arguments) for part in _parts(names, 3)))
            return [watch for each in alone for watch in each]
        return [Watch(bool(is_held), _position(last)) for is_held, last in found]

    async def leave(self, key: str, reader: str) -> None:
        await self.execute("ZREM", self._key(key, "readers"), reader)

    def group_of(self, key: str) -> str:
        return key if self.is_cluster else ""

    def new_tail(self) -> _RedisTail:
        return _RedisTail(self)

    async def aclose(self) -> None:
        self._is_closed = True
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        await self.client.aclose()

    def _held_and_kept(self) -> tuple[int, int]:
        terms = self._terms
        return _milliseconds(terms.held_for), _milliseconds(max(terms.ttl, terms.lease))

    def key_of_wake(self, name: str) -> str:
        """Return the key of the stream that wakes a tail."""
        return f"{self._prefix}:wake:{name}"

    async def _run(self, script: _Script, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        rest = (len(keys), *keys, *arguments)
        try:
            return await self.execute("EVALSHA", script.sha, *rest)
        except UnknownScriptError:
            return await self.execute("EVAL", script.text, *rest)

    async def execute(self, *command: Any) -> Any:
        """Send a command, with whatever else there is to send. Raises OutageError, or a LogError for what stays so."""
        if self._is_closed:
            raise LogError("the log was closed")
        if self.is_cluster:
            return await _answer(self.client.execute_command(*command, **_AS_BYTES))
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())
        return await future

    async def _send(self) -> None:
        sent: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        try:
            while self._waiting:
                sent, self._waiting = self._waiting, []
                try:
                    results = [_result(each) for each in await _answer(self._pipeline(sent))]
                    if any(isinstance(result, DemotedError) for result in results):
                        await self.drop_connections()
                except Exception as exc:
                    results = [exc] * len(sent)
                for (_, future), result in zip(sent, results, strict=True):
                    _settle(future, result)
        finally:
            self._sending = None
            left = sent
            if self._is_closed:
                left = sent + self._waiting
                self._waiting = []
            for _, future in left:
                future.cancel()
            if self._waiting:
                # This was cancelled, and others have something to say before they end.
                self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _pipeline(self, sent: Sequence[tuple[tuple[Any, ...], Any]]) -> list[Any]:
        async with self.client.pipeline(transaction=False) as pipeline:
            for command, _ in sent:
                pipeline.execute_command(*command, **_AS_BYTES)
            return await pipeline.execute(raise_on_error=False)  # type: ignore[no-any-return]

    async def drop_connections(self) -> None:
        """Close idle connections, for they lead to a server that has become a replica.

        A new one finds the master, wherever a name, a proxy or a Sentinel says that it is.
        """
        self.demotions += 1
        await self.close_idle()

    async def close_idle(self) -> None:
        """Close the connections that are not in use. (A Cluster's client finds the master by itself.)"""
        if not self.is_cluster:
            await _answer(self.client.connection_pool.disconnect(inuse_connections=False))


class _RedisTail:
    """Waits for what comes, with one XREAD."""

    def __init__(self, store: _RedisStore) -> None:
        self._store = store
        self._wake_key = store.key_of_wake(uuid.uuid4().hex).encode()
        self._wakes = self._seen = 0
        # How many demotions of the store its connection has come after.
        self._demotions = 0
        self._is_reading = False
        self._waking: set[asyncio.Task[None]] = set()
        # What the streams of the last XREAD are called in Redis, and back.
        self._names: dict[str, bytes] = {}
        self._keys: dict[str, str] = {}

    async def read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry] | LogError]]:
        try:
            return await self._read(positions)
        except DemotedError:
            await self._store.drop_connections()
            raise
        except LogError as error:
            # One key may be at fault. (If every one is, or none, the error is everybody's.)
            errors = await self._errors(positions) if len(positions) > 1 else [(key, error) for key in positions]
            if not errors:
                raise
            return errors

    async def _errors(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, LogError]]:
        """Return the errors of the streams that cannot be read alone either."""
        results = await asyncio.gather(*(self._error(key, position) for key, position in positions.items()))
        return [(key, error) for key, error in zip(positions, results, strict=True) if error is not None]

    async def _error(self, key: str, position: Position) -> LogError | None:
        try:
            await self._store.execute("XREAD", "COUNT", 1, "STREAMS", self._store.events_key(key), str(position))
        except LogError as error:
            return error
        return None

    async def _read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry]]]:
        keys = self._named(positions)
        # As bytes, for redis-py encodes each of them else, of every stream for every event.
        names = [self._names[key] for key in positions]
        ids = [b"%d-%d" % position for position in positions.values()]
        if not self._store.is_cluster:
            names.append(self._wake_key)
            ids.append(b"%d-0" % self._seen)
        # From here on a wake-up ends the XREAD, also one that comes before it is sent.
        self._is_reading = True
        try:
            if self._demotions != self._store.demotions:
                # Else it would go on reading from the replica, which may never get what comes.
                self._demotions = self._store.demotions
                await self._store.close_idle()
            command = ("XREAD", "COUNT", self._store.count(), "BLOCK", _BLOCK_MILLISECONDS, "STREAMS", *names, *ids)
            reply = await _answer(self._xread(command, names[0]))
        finally:
            self._is_reading = False
        found = []
        for name, entries in reply.items() if isinstance(reply, dict) else reply or ():
            key = keys.get(_text(name))
            if key is None:
                self._seen = self._wakes
            else:
                # (Some forms of redis-py's have one more list around them.)
                nested = entries and isinstance(entries[0][0], (list, tuple))
                found.append((key, self._store.entries(entries[0] if nested else entries)))
        return found

    def _named(self, positions: Mapping[str, Position]) -> dict[str, str]:
        """Return which stream is meant by what it is called in Redis."""
        if positions.keys() != self._names.keys():
            self._keys = {self._store.events_key(key): key for key in positions}
            self._names = {key: name.encode() for name, key in self._keys.items()}
        return self._keys

    def _xread(self, command: Sequence[Any], name: bytes) -> Any:
        client = self._store.client
        if self._store.is_cluster:
            # Told, since it could not see where among the arguments the keys are without asking.
            return client.execute_command(*command, target_nodes=client.get_node_from_key(name), **_AS_BYTES)
        return client.execute_command(*command, **_AS_BYTES)

    def wake(self) -> None:
        if self._is_reading and not self._store.is_cluster:
            self._wakes += 1
            task = asyncio.get_running_loop().create_task(self._send_wake(f"{self._wakes}-0"))
            self._waking.add(task)
            task.add_done_callback(self._waking.discard)

    async def _send_wake(self, entry_id: str) -> None:
        try:
            await asyncio.gather(
                self._store.execute("XADD", self._wake_key, "MAXLEN", 1, entry_id, "wake", "1"),
                self._store.execute("PEXPIRE", self._wake_key, _WAKE_MILLISECONDS),
            )
        except (OutageError, LogError) as exc:
            logger.debug("XREAD was not woken, and goes on by itself: %s", exc)


async def _answer(answer: Awaitable[Any]) -> Any:
    """Await what a client answers. Raises one of the log's errors, or OutageError, for one of the client's."""
    try:
        # Retries, credential providers and connection classes are the caller's.
        with CallersCode("the log's Redis client", passes=Exception):
            return await answer
    except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as exc:
        raise error_of(exc) from exc


def _result(reply: Any) -> Any:
    """Return a reply of several, with one of the log's errors in the place of an error reply."""
    if not isinstance(reply, exceptions.RedisError):
        return reply
    error = error_of(reply)
    error.__cause__ = reply
    return error


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _parts(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[at : at + size] for at in range(0, len(names), size)]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value, "utf-8")


def _position(value: Any) -> Position | None:
    return position_of(_text(value)) if value else None


def _entry(entry_id: Any, fields: Any) -> Entry:
    text = _text(entry_id)
    position = position_of(text)
    if position is None:
        fence, _, number = text.partition("-")
        return Entry(Position(int(fence), int(number)), {}, "no log has written it (its ID is too large)")
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    try:
        return Entry(position, {_text(name): _text(value) for name, value in pairs})
    except UnicodeDecodeError:
        return Entry(position, {}, "it holds bytes that are not UTF-8")
