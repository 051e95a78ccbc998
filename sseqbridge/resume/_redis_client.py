"""A Redis client for a log's store: batches commands, and raises the log's errors.

Runs on the loop thread, except the constructor. Commands that are sent during one round trip go out in one
pipeline with the next, so that a process needs one connection for them; a second one, which is held, serves the
blocking XREAD. On a Cluster the client sends each command by itself, for it knows the nodes.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import anyio
import redis
import redis.asyncio
from redis import exceptions
from redis.client import NEVER_DECODE

from sseqbridge._checks import name_of_type
from sseqbridge._exceptions import LogError, SSEError, UsageError
from sseqbridge._runtime.callbacks import CallersCode, CallersFunction

from ._redis_errors import DemotedError, UnknownScriptError, code_of, error_of
from ._store import OutageError

__all__ = [
    "CLUSTER_ADVICE",
    "SENTINEL_ADVICE",
    "SYNCHRONOUS",
    "Client",
    "ClientFactory",
    "HeldConnection",
    "RedisClient",
    "Script",
    "check_max_connections",
    "text_of",
]

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster
ClientFactory = Callable[[], Client]
SYNCHRONOUS = (redis.Redis, redis.RedisCluster)

SENTINEL_ADVICE = (
    "Pass a function: RedisLog(lambda: redis.asyncio.sentinel.Sentinel([(host, 26379), ...], socket_timeout=10)"
    '.master_for("mymaster"))'
)
CLUSTER_ADVICE = "Pass the URL of any node with cluster=True: RedisLog.from_url(url, cluster=True)"

# Replies arrive as bytes, however the caller's client is configured: one entry that is not UTF-8 must not make
# a whole reply unreadable.
_AS_BYTES = {NEVER_DECODE: True}

# The errors by which redis-py reports failures of the server and of the network.
_FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)

# The limit of one command to a Cluster, with its redirections and new connections: far above that of a reply.
_CLUSTER_SECONDS = 60.0

# From how many unsent bytes on asyncio and uvloop let a writer wait.
_WRITE_BUFFER_BYTES = 64 * 1024


class Script:
    """A Lua script, and the hash that Redis knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Sends commands. `demotions` counts how often a master turned out to have become a replica."""

    def __init__(self, factory: ClientFactory) -> None:
        """Make the client. Raises UsageError if a log cannot use it, CallbackError if `factory` raises."""
        # Made in a caller's thread: redis-py reads its own version from disk.
        with CallersFunction("the function that makes the log's Redis client"):
            client = factory()
        self.client: Any = _checked(client)
        self.is_cluster = isinstance(self.client, redis.asyncio.RedisCluster)
        self.demotions = 0
        self._is_closed = False
        # Commands for the next pipeline.
        self._queue: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def run(self, script: Script, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        """Run a script. Raises like execute()."""
        rest = (len(keys), *keys, *arguments)
        try:
            try:
                return await self.execute("EVALSHA", script.sha, *rest)
            except UnknownScriptError:
                return await self.execute("EVAL", script.text, *rest)
        except LogError as error:
            if type(error) is LogError and not code_of(error.__cause__):
                await self._check_role(error)
            raise

    async def _check_role(self, error: LogError) -> None:
        """Raise a LogError that says so if the server is a Sentinel, which knows no scripts."""
        if self.is_cluster:
            return
        try:
            role = await self.execute("ROLE")
        except (OutageError, LogError):
            return
        if role and role[0] in (b"sentinel", "sentinel"):
            raise LogError(f"the server is a Sentinel. {SENTINEL_ADVICE}") from error

    async def execute(self, *command: Any) -> Any:
        """Send a command in the next pipeline. Raises OutageError, or a LogError for a lasting failure."""
        if self._is_closed:
            raise LogError("the log was closed")
        if self.is_cluster:
            return await _cluster_reply(self.client.execute_command(*command, **_AS_BYTES))
        future = asyncio.get_running_loop().create_future()
        self._queue.append((command, future))
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())
        return await future

    def hold(self) -> HeldConnection:
        """Return a connection for commands that block, which is opened when it is used. Not on a Cluster."""
        return HeldConnection(self.client)

    async def execute_alone(self, *command: Any, key: bytes) -> Any:
        """Send a command that blocks to the node of a Cluster that has the key."""
        # After a failover, so that the node is none that the client forgets before it sends the command.
        await _cluster_reply(self.client.initialize())
        # Else the client would ask the server for the places of the keys among the arguments.
        options = {**_AS_BYTES, "target_nodes": self.client.get_node_from_key(key)}
        return await _cluster_reply(self.client.execute_command(*command, **options))

    async def _send(self) -> None:
        sent: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        try:
            while self._queue:
                sent, self._queue = self._queue, []
                try:
                    results = [self._result(reply) for reply in await _reply(self._pipeline(sent))]
                    if any(isinstance(result, DemotedError) for result in results):
                        await self.drop_connections()
                except Exception as exc:
                    results = [exc] * len(sent)
                for (_, future), result in zip(sent, results, strict=True):
                    _settle(future, result)
        finally:
            self._sending = None
            unsent = sent
            if self._is_closed:
                unsent = sent + self._queue
                self._queue = []
            for _, future in unsent:
                future.cancel()
            if self._queue:
                # This task was cancelled, but others release their leases before they end.
                self._sending = asyncio.get_running_loop().create_task(self._send())

    def _result(self, reply: Any) -> Any:
        """Return a pipeline's reply, an error reply as the log's error."""
        if not isinstance(reply, exceptions.RedisError):
            return reply
        if code_of(reply) == "MOVED":
            # Not an outage: only the client of a Cluster goes to the other node.
            error: Exception = LogError(f"the server is a node of a Redis Cluster. {CLUSTER_ADVICE}")
        else:
            error = error_of(reply)
        error.__cause__ = reply
        return error

    async def _pipeline(self, sent: Sequence[tuple[tuple[Any, ...], Any]]) -> list[Any]:
        async with self.client.pipeline(transaction=False) as pipeline:
            for command, _ in sent:
                pipeline.execute_command(*command, **_AS_BYTES)
            return await pipeline.execute(raise_on_error=False)  # type: ignore[no-any-return]

    async def drop_connections(self) -> None:
        """Close idle connections after a failover: a new one finds the master through the name, proxy or Sentinel."""
        self.demotions += 1
        await self.close_idle()

    async def close_idle(self) -> None:
        """Close the connections that are not in use. A Cluster's client finds the master by itself."""
        if not self.is_cluster:
            await _reply(self.client.connection_pool.disconnect(inuse_connections=False))

    async def aclose(self) -> None:
        """Cancel the waiting commands, and close all connections."""
        self._is_closed = True
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        await self.client.aclose()
        # A client of a Sentinel's master does not close its connections to the Sentinels.
        manager = None if self.is_cluster else getattr(self.client.connection_pool, "sentinel_manager", None)
        for sentinel in () if manager is None else manager.sentinels:
            await sentinel.aclose()


class HeldConnection:
    """One connection of a client's pool, kept from command to command. After an error the next command gets another."""

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    async def execute(self, packed: bytes) -> Any:
        """Send a packed command, and return the reply, in bytes. Raises like RedisClient.execute()."""
        return await _reply(self._exchange(packed))

    async def _exchange(self, packed: bytes) -> Any:
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        try:
            await _send(self._connection, packed)
            return await self._connection.read_response(disable_decoding=True)
        except BaseException:
            # Unless it is an error reply, redis-py has closed the connection; the pool opens it again.
            await self.release()
            raise

    async def release(self) -> None:
        """Give the connection back to the pool. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _reply(self._pool.release(connection))


async def _send(connection: Any, packed: bytes) -> None:
    """Send a packed command on a connection whose last command was answered. Raises redis-py's errors.

    redis-py bounds a send by asyncio.wait_for, which before Python 3.12 runs it in a task of its own: the command would
    leave two iterations of the event loop later. A command for which the empty write buffer has room does not wait, and
    needs no bound.
    """
    if len(packed) >= _WRITE_BUFFER_BYTES:
        await connection.send_packed_command(packed)
        return
    # Before the time limit is lifted, which these need.
    if not connection.is_connected:
        await connection.connect()
    await connection.check_health()
    seconds, connection.socket_timeout = connection.socket_timeout, None
    try:
        await connection.send_packed_command(packed, check_health=False)
    finally:
        connection.socket_timeout = seconds


async def _cluster_reply(reply: Awaitable[Any]) -> Any:
    """Await a reply of a Cluster's client, for a limited time.

    After a lost connection redis-py closes all connections to the Cluster, also those that other tasks are using,
    which then fail with an AttributeError or the like.
    """
    try:
        with anyio.fail_after(_CLUSTER_SECONDS):
            return await _reply(reply, (Exception,))
    except (OutageError, SSEError, UnknownScriptError):
        raise
    except Exception as exc:
        raise OutageError(f"{type(exc).__name__}: {exc}") from exc


async def _reply(reply: Awaitable[Any], passes: tuple[type[Exception], ...] = _FAILURES) -> Any:
    """Await a client's reply. Raises the log's error for one of the client's, CallbackError for any other.

    Errors of the types in `passes` are no CallbackErrors.
    """
    try:
        # Retries, credential providers and connection classes are the caller's code.
        with CallersCode("the log's Redis client", passes=passes):
            return await reply
    except _FAILURES as exc:
        raise error_of(exc) from exc


def _checked(client: Any) -> Any:
    """Return a client. Raises UsageError if it is of another kind, or may have only one connection."""
    if not isinstance(client, (redis.asyncio.Redis, redis.asyncio.RedisCluster)):
        if inspect.iscoroutine(client):
            client.close()
        advice = "Return one of redis.asyncio" + (", not of redis." if isinstance(client, SYNCHRONOUS) else ".")
        raise UsageError(
            f"`client` must return a redis.asyncio.Redis or RedisCluster, got {name_of_type(type(client))}. {advice}"
        )
    if isinstance(client, redis.asyncio.RedisCluster):
        check_max_connections(client.connection_kwargs.get("max_connections"))
    else:
        check_max_connections(client.connection_pool.max_connections)
    return client


def check_max_connections(value: int | None) -> None:
    """Raise UsageError if a client may have only one connection."""
    if value is not None and value < 2:
        raise UsageError(
            f"`max_connections` of the client must be at least 2, got {value}. "
            "One connection waits for new entries, another one carries all other commands."
        )


def text_of(value: Any) -> str:
    """Return a text of a reply, which is bytes unless the caller's client decodes it."""
    return value if isinstance(value, str) else str(value, "utf-8")


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
