"""Clients and URLs of RedisLog: what cannot work is refused at once, with the way to do it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from sseqbridge import LogError, UsageError, request_sse
from sseqbridge._exceptions import LogAccessError
from sseqbridge.resume import RedisLog, _redis_client
from sseqbridge.resume._redis_client import RedisClient, Script
from sseqbridge.resume._redis_errors import code_of, error_of
from sseqbridge.resume._store import OutageError
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.redis_support import RedisServer, needs_redis, sentinel_of

from .faulty_redis import FaultyRedis
from .support import DONE

# Without the annotations that it lacks.
Sentinel: Any = redis.asyncio.Sentinel

PASSWORD = "secret-7"


class Own(redis.asyncio.Redis):
    """A client of a subclass of the caller's."""


def client_of(factory: Callable[[], Any]) -> RedisClient:
    return RedisClient(factory)


# Clients.


@pytest.mark.parametrize("client", [redis.Redis(), redis.Redis, redis.RedisCluster, redis.StrictRedis()])
def test_synchronous_client_is_refused(client: Any) -> None:
    with pytest.raises(UsageError, match=r"must be a function that returns a new redis\.asyncio\.Redis, got .*redis\."):
        RedisLog(client)


async def coroutine() -> redis.asyncio.Redis:
    return redis.asyncio.Redis()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: redis.Redis(db=1), r"got redis\.client\.Redis\. Return one of redis\.asyncio, not of redis"),
        (coroutine, r"got coroutine\. Return one"),
        (lambda: None, r"got NoneType\. Return one"),
        (lambda: redis.asyncio.Redis, r"got .*\. Return one of redis\.asyncio\."),
        (redis.asyncio.ConnectionPool, "got redis.asyncio.connection.ConnectionPool"),
    ],
)
def test_function_that_returns_another_client_is_refused(factory: Any, message: str) -> None:
    with RedisLog(factory) as log:
        for _ in range(2):
            with pytest.raises(UsageError, match=message):
                log.open("k", lambda: request_sse("http://127.0.0.1:1"))


@pytest.mark.parametrize(
    "factory",
    [
        lambda: redis.asyncio.Redis(max_connections=1),
        lambda: redis.asyncio.Redis.from_url("redis://127.0.0.1:1?max_connections=1"),
        lambda: redis.asyncio.Redis(connection_pool=redis.asyncio.BlockingConnectionPool(max_connections=1)),
        lambda: redis.asyncio.RedisCluster(host="127.0.0.1", port=1, max_connections=1),
    ],
)
def test_client_with_one_connection_is_refused(factory: Any) -> None:
    with pytest.raises(UsageError, match="`max_connections` of the client must be at least 2, got 1"):
        client_of(factory)
    with RedisLog(factory) as log, pytest.raises(UsageError, match="max_connections"):
        log.open("k")


@pytest.mark.parametrize("cluster", [False, True])
def test_url_with_one_connection_is_refused(cluster: bool) -> None:
    for url, options in (
        ("redis://127.0.0.1:1?max_connections=1", {}),
        ("redis://127.0.0.1:1?max_connections=1", {"max_connections": 9}),
        ("redis://127.0.0.1:1", {"max_connections": 1}),
    ):
        with pytest.raises(UsageError, match="max_connections"):
            RedisLog.from_url(url, cluster=cluster, client_options=options)


@pytest.mark.parametrize(
    "factory",
    [
        redis.asyncio.Redis,
        Own,
        lambda: redis.asyncio.Redis(max_connections=2),
        lambda: redis.asyncio.RedisCluster(host="127.0.0.1", port=1),
        lambda: Sentinel([("127.0.0.1", 1)]).master_for("mymaster"),
    ],
)
def test_usable_clients_are_accepted(factory: Any) -> None:
    assert client_of(factory).is_cluster == ("Cluster" in type(factory()).__name__)


def test_failure_inside_a_clusters_client_is_an_outage() -> None:
    """After a lost connection redis-py closes connections that other commands are using."""

    async def fail(*command: Any, **options: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'writelines'")

    # Outside the loop: redis-py reads its own version from disk.
    client = client_of(lambda: redis.asyncio.RedisCluster(host="127.0.0.1", port=1))

    async def main() -> None:
        client.client.execute_command = client.client.initialize = fail
        for call in (client.execute("PING"), client.execute_alone("XREAD", key=b"k")):
            with pytest.raises(OutageError, match="AttributeError"):
                await call
        await client.aclose()

    asyncio.run(main())


def test_cluster_command_without_an_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*command: Any, **options: Any) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(_redis_client, "_CLUSTER_SECONDS", 0.01)
    client = client_of(lambda: redis.asyncio.RedisCluster(host="127.0.0.1", port=1))

    async def main() -> None:
        client.client.execute_command = hang
        with pytest.raises(OutageError, match="TimeoutError"):
            await client.execute("PING")
        await client.aclose()

    asyncio.run(main())


def test_scripts_and_waits_are_sent_to_a_clusters_nodes() -> None:
    sent: list[Any] = []
    client = client_of(lambda: redis.asyncio.RedisCluster(host="127.0.0.1", port=1))

    async def initialize() -> None: ...

    async def execute(*command: Any, target_nodes: Any = None, **options: Any) -> bytes:
        sent.append((command[0], target_nodes))
        if command[0] == "EVALSHA":
            raise redis.exceptions.NoScriptError
        if command[0] == "EVAL":
            raise redis.exceptions.ResponseError("unknown")
        return b"reply"

    async def main() -> None:
        client.client.initialize, client.client.execute_command = initialize, execute
        client.client.get_node_from_key = lambda key: ("the node of", key)
        assert await client.execute_alone("XREAD", key=b"k") == b"reply"
        with pytest.raises(LogError, match="unknown"):
            await client.run(Script("return 1"), ["k"], [])
        await client.aclose()

    asyncio.run(main())
    assert sent == [("XREAD", ("the node of", b"k")), ("EVALSHA", None), ("EVAL", None)]


class RecordedConnection:
    """A connection of redis-py, which records the time limit of each step."""

    socket_timeout: float | None = 7.0

    def __init__(self, *, is_connected: bool = True, error: Exception | None = None) -> None:
        self.is_connected = is_connected
        self.error = error
        self.steps: list[tuple[str, float | None]] = []

    def record(self, step: str) -> None:
        self.steps.append((step, self.socket_timeout))

    async def connect(self) -> None:
        self.record("connect")

    async def check_health(self) -> None:
        self.record("health")

    async def send_packed_command(self, packed: bytes, check_health: bool = True) -> None:
        self.record("send")
        if self.error is not None:
            raise self.error

    async def read_response(self, *, disable_decoding: bool) -> bytes:
        self.record("read")
        return b"reply"


async def execute_on(connection: RecordedConnection, packed: bytes) -> object:
    """Execute a command on a held connection, the only one of its pool."""

    class Pool:
        async def get_connection(self) -> RecordedConnection:
            return connection

        async def release(self, connection: RecordedConnection) -> None:
            connection.record("release")

    class RedisWithPool:
        connection_pool = Pool()

    return await _redis_client.HeldConnection(RedisWithPool()).execute(packed)


def test_send_that_cannot_wait_is_not_limited() -> None:
    """redis-py would send it in a task of its own."""
    connection = RecordedConnection(is_connected=False)
    assert asyncio.run(execute_on(connection, b"short")) == b"reply"
    assert connection.steps == [("connect", 7.0), ("health", 7.0), ("send", None), ("read", 7.0)]


def test_send_that_may_wait_is_limited() -> None:
    connection = RecordedConnection()
    asyncio.run(execute_on(connection, bytes(64 * 1024)))
    assert connection.steps == [("send", 7.0), ("read", 7.0)]


def test_failed_send_leaves_the_time_limit_as_it_was() -> None:
    connection = RecordedConnection(error=redis.ConnectionError("lost"))
    with pytest.raises(OutageError, match="lost"):
        asyncio.run(execute_on(connection, b"short"))
    assert connection.steps[-1] == ("release", 7.0)


@needs_redis
def test_two_connections_are_enough(server: RedisServer) -> None:
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        RedisLog(lambda: redis.asyncio.Redis(port=server.port, max_connections=2), prefix="two") as log,
    ):
        readers = [log.open(f"k{n % 5}", lambda: request_sse(upstream.url)) for n in range(20)]
        assert [next(reader) for reader in readers] == [1] * 20
        go.set()
        assert [reader.collect() for reader in readers] == [[2]] * 20


# URLs.


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        (f"redis+sentinel://:{PASSWORD}@127.0.0.1:26379/mymaster/0", "master_for"),
        (f"redis-sentinel://:{PASSWORD}@127.0.0.1:26379/mymaster", "master_for"),
        (f"rediss+sentinel://:{PASSWORD}@127.0.0.1:26379/mymaster", "master_for"),
        (f"sentinel://:{PASSWORD}@127.0.0.1:26379", "master_for"),
        (f"redis+cluster://:{PASSWORD}@127.0.0.1:6379", "cluster=True"),
        (f"REDIS-CLUSTER://:{PASSWORD}@127.0.0.1:6379", "cluster=True"),
        (f"redis://:{PASSWORD}@127.0.0.1:6379,127.0.0.1:6380/0", "cluster=True.*master_for"),
    ],
)
def test_urls_of_sentinels_and_clusters_are_refused_with_advice(url: str, advice: str) -> None:
    with pytest.raises(UsageError, match=advice) as caught:
        RedisLog.from_url(url)
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_comma_in_a_password_is_no_list_of_hosts() -> None:
    RedisLog.from_url("redis://user:a,b@127.0.0.1:1/0").close()


@needs_redis
def test_sentinel_in_place_of_a_redis_is_named(server: RedisServer) -> None:
    with sentinel_of(server) as sentinel, RedisLog.from_url(sentinel.url) as log:
        for _ in range(2):
            with pytest.raises(LogError, match=r"is a Sentinel.*master_for"):
                log.open("k", wait=0)
            with pytest.raises(LogError, match=r"is a Sentinel.*master_for"):
                log.cancel("k")


@needs_redis
@pytest.mark.parametrize("role", ["ERR unknown command 'ROLE'", "LOADING Redis is loading", None])
def test_error_stays_if_the_server_is_no_sentinel(server: RedisServer, role: str | None) -> None:
    """Such as a proxy of Redis that knows few commands."""

    def fault(name: str, count: int) -> str | None:
        if name == "ROLE":
            return role
        return None if name in ("HELLO", "CLIENT") else f"ERR unknown command '{name}', with args beginning with:"

    with (
        FaultyRedis(server.port, fault) as proxy,
        RedisLog.from_url(f"redis://127.0.0.1:{proxy.port}") as log,
        pytest.raises(LogError, match=r"Redis failed a command of the log \(ResponseError: unknown command"),
    ):
        log.cancel("k")


@needs_redis
def test_node_of_a_cluster_is_named(server: RedisServer) -> None:
    with (
        FaultyRedis(server.port, lambda name, _: "MOVED 1 127.0.0.1:7001" if len(name) == 40 else None) as proxy,
        RedisLog.from_url(f"redis://127.0.0.1:{proxy.port}") as log,
        pytest.raises(LogError, match=r"is a node of a Redis Cluster.*cluster=True"),
    ):
        log.cancel("k")


# Permissions.

SCRIPT_ERRORS = [
    # Redis 7.0, 6.2, 7.2 and Valkey.
    "The user executing the script can't run this command or subcommand script: 0123abc, on @user_script:3.",
    "The user executing the script can't access at least one of the keys mentioned in the command arguments",
    (
        "Error running script (call to f_0123abc): @user_script:1: @user_script: 1: "
        "The user executing the script can't run this command or subcommand"
    ),
    "ACL failure in script: User poor has no permissions to run the 'xadd' command script: 0123abc, on @user_script:1.",
    "ERR ACL failure in script: User poor has no permissions to access one of the keys",
]


@pytest.mark.parametrize("text", SCRIPT_ERRORS)
def test_permission_that_a_script_lacks_is_an_access_error(text: str) -> None:
    assert code_of(redis.ResponseError(text)) == "NOPERM"
    assert type(error_of(redis.ResponseError(text))) is LogAccessError


@needs_redis
@pytest.mark.parametrize("command", ["xadd", "set", "xrevrange", "get"])
def test_command_refused_inside_a_script_is_an_access_error(server: RedisServer, command: str) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", f"no-{command}", "on", ">p", "~*", "+@all", f"-{command}")
    with (
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(f"redis://no-{command}:p@127.0.0.1:{server.port}", prefix=f"no-{command}") as log,
        pytest.raises(LogAccessError, match="permissions"),
    ):
        log.open("k", lambda: request_sse(upstream.url)).collect()


@needs_redis
def test_key_refused_inside_a_script_is_an_access_error(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "few", "on", ">p", "~few:{k}:events", "+@all")
    with (
        RedisLog.from_url(f"redis://few:p@127.0.0.1:{server.port}", prefix="few") as log,
        pytest.raises(LogAccessError, match="permissions"),
    ):
        log.open("k", lambda: request_sse("http://127.0.0.1:1"))
