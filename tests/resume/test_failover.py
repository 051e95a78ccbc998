"""A Redis that fails over or refuses work for a while: readers and producers wait, then continue."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import redis
import redis.asyncio
from redis import exceptions

from sseqbridge import EventStream, LogError, LogUnavailableError, request_sse
from sseqbridge._exceptions import LogAccessError, LogFullError
from sseqbridge.resume import RedisLog
from sseqbridge.resume._redis_errors import DemotedError, UnknownScriptError, code_of, error_of
from sseqbridge.resume._store import OutageError
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.redis_support import PROGRAMS, Proxy, RedisServer, needs_redis, redis_server
from tests.support import in_thread, until

from .failovers import PATIENT, command, fail_over, is_in_step, role_of, stages, was_disturbed
from .support import DONE, hub_of, new_store

pytestmark = needs_redis

# A port on which no process listens.
NO_SERVER = 1


@pytest.fixture(params=PROGRAMS)
def master(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    # By default the master waits 5 s for more replicas.
    with redis_server("--repl-diskless-sync-delay", "0", program=request.param) as running:
        yield running


@pytest.fixture
def replica(master: RedisServer) -> Iterator[RedisServer]:
    with redis_server("--replicaof", "127.0.0.1", str(master.port), program=master.program) as running:
        until(lambda: role_of(running) == "slave" and is_in_step(master), 30)
        yield running


def test_failover_loses_and_repeats_nothing(master: RedisServer, replica: RedisServer) -> None:
    """The log's URL leads to the new master, as with a name, a proxy or a Sentinel."""
    steps, gates = stages(4, 50)
    with (
        SSEServer(steps) as upstream,
        Proxy(master.port) as proxy,
        RedisLog.from_url(f"redis://127.0.0.1:{proxy.port}", **PATIENT) as log,
        RedisLog.from_url(f"redis://127.0.0.1:{proxy.port}", **PATIENT) as elsewhere,
    ):
        readers = [log.open("k", lambda: request_sse(upstream.url)), elsewhere.open("k"), elsewhere.open("k")]
        read = [in_thread(lambda reader=reader: list(reader)) for reader in readers]  # type: ignore[misc]
        gates[0].set()
        with elsewhere.open("k") as leaving:
            first = [leaving.next(30) for _ in range(20)]
            last_event_id = leaving.last_event_id
        fail_over(master, replica)
        gates[1].set()
        until(was_disturbed(log), 30)
        proxy.target = replica.port
        gates[2].set()
        resumed = elsewhere.open("k", last_event_id=last_event_id)
        rest = [resumed.next(30) for _ in range(130)]
        # No connection leads to the old master.
        master.kill()
        gates[3].set()
        gates[4].set()
        expected = list(range(200))
        assert [*first, *rest, *resumed] == expected
        assert [each.result(30) for each in read] == [expected] * 3
        assert log.open("k").collect() == expected
        assert len(upstream.requests) == 1


def test_failover_and_back_loses_and_repeats_nothing(master: RedisServer, replica: RedisServer) -> None:
    """The log's URL leads to one server, which is a replica for a while."""
    steps, gates = stages(3, 10)
    with SSEServer(steps) as upstream, RedisLog.from_url(master.url, **PATIENT) as log:
        reader = log.open("k", lambda: request_sse(upstream.url))
        gates[0].set()
        assert [reader.next(30) for _ in range(10)] == list(range(10))
        for gate in gates[1:3]:
            since = hub_of(log).disturbed_at
            fail_over(master, replica)
            gate.set()
            until(was_disturbed(log, since), 30)
            fail_over(replica, master)
        gates[3].set()
        assert list(reader) == list(range(10, 30))
        assert log.open("k").collect() == list(range(30))


@pytest.mark.parametrize("what", ["reader", "producer"])
def test_demoted_master_unblocks_readers_and_refuses_writes(master: RedisServer, what: str) -> None:
    """A process that only reads notices by the end of its XREAD, a process that writes by READONLY."""
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        RedisLog.from_url(master.url, **PATIENT) as producing,
        RedisLog.from_url(master.url, **PATIENT) as log,
    ):
        produced = in_thread(lambda: producing.produce("k", lambda: request_sse(upstream.url)))
        reader = log.open("k", wait=30)
        assert next(reader) == 1
        if what == "producer":
            reader.close()
        else:
            until(lambda: "cmd=xread" in str(command(master, "CLIENT", "LIST")), 30)
        command(master, "REPLICAOF", "127.0.0.1", NO_SERVER)
        until(was_disturbed(log if what == "reader" else producing), 30)
        go.set()
        until(was_disturbed(producing), 30)
        command(master, "REPLICAOF", "NO", "ONE")
        assert produced.result(30) == "done"
        assert log.open("k").collect() == [1, 2]
        if what == "reader":
            assert list(reader) == [2]


def test_long_failover_raises_log_unavailable_error(master: RedisServer) -> None:
    with SSEServer([send(1), silence()]) as upstream, RedisLog.from_url(master.url, lease=5, outage=0.1) as log:
        reader = log.open("k", lambda: request_sse(upstream.url))
        assert next(reader) == 1
        command(master, "REPLICAOF", "127.0.0.1", NO_SERVER)
        with pytest.raises(LogUnavailableError, match=r"READONLY|read only replica|UNBLOCKED"):
            reader.next(30)
        upstream.requests[0].wait_aborted(30)


# A Redis that refuses for a while.


@contextlib.contextmanager
def without_replicas(server: RedisServer) -> Iterator[None]:
    command(server, "CONFIG", "SET", "min-replicas-to-write", 1)
    yield
    command(server, "CONFIG", "SET", "min-replicas-to-write", 0)


@contextlib.contextmanager
def without_master(server: RedisServer) -> Iterator[None]:
    command(server, "CONFIG", "SET", "replica-serve-stale-data", "no")
    command(server, "REPLICAOF", "127.0.0.1", NO_SERVER)
    yield
    command(server, "REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    command(server, "CONFIG", "SET", "lua-time-limit", 1)
    running = in_thread(lambda: command(server, "EVAL", "while true do end", 0))

    def is_busy() -> bool:
        try:
            return command(server, "PING") is None
        except redis.ResponseError as error:
            return code_of(error) == "BUSY"

    until(is_busy, 30)
    yield
    command(server, "SCRIPT", "KILL")
    with pytest.raises(redis.ResponseError):
        running.result(30)


REFUSALS = [without_replicas, without_master, busy]


@pytest.mark.parametrize("refusing", REFUSALS, ids=lambda refusing: refusing.__name__)
def test_log_waits_for_a_redis_that_refuses_work(
    master: RedisServer, refusing: Callable[[RedisServer], AbstractContextManager[None]]
) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream, RedisLog.from_url(master.url, **PATIENT) as log:
        reader = log.open("k", lambda: request_sse(upstream.url))
        assert next(reader) == 1
        with refusing(master):
            go.set()
            until(was_disturbed(log), 30)
        assert list(reader) == [2]


class Refusing(redis.asyncio.Redis):
    """A client whose scripts fail while `error` is set; the server runs them if `runs_them` is True."""

    error: Exception | None = None
    runs_them = False
    failures = 0

    def pipeline(self, *args: Any, **options: Any) -> Any:
        pipeline = super().pipeline(*args, **options)
        execute = pipeline.execute

        async def execute_or_fail(raise_on_error: bool = True) -> list[Any]:
            count = len(pipeline.command_stack)
            error = Refusing.error
            results = await execute(raise_on_error) if Refusing.runs_them or error is None else []
            if error is None:
                return results
            Refusing.failures += 1
            if isinstance(error, redis.ResponseError):
                return [error] * count
            raise error

        pipeline.execute = execute_or_fail  # type: ignore[method-assign]
        return pipeline


# The forms of Redis 6.2 and of other versions.
AT = "Error running script (call to f_0123456789abcdef0123456789abcdef01234567): "
READONLY = "READONLY You can't write against a read only replica."
WRAPPED = [
    f"{AT}@user_script:38: -{READONLY}",
    f"{AT}@user_script: 38: -{READONLY}",
    f"{AT}@user_script:38: @user_script: 38: -{READONLY}",
    f"ERR {AT}@user_script:38: {READONLY}",
    f"@user_script: 38: -{READONLY}",
    f"user_script:38: {READONLY}",
    f"-{READONLY}",
    READONLY,
]


@pytest.fixture
def refusing() -> Iterator[type[Refusing]]:
    Refusing.error, Refusing.failures = None, 0
    yield Refusing
    Refusing.error = None


@pytest.mark.parametrize("runs_them", [False, True])
@pytest.mark.parametrize(
    "error",
    [redis.ResponseError(WRAPPED[0]), redis.ConnectionError("Connection lost"), ConnectionResetError(104, "reset")],
    ids=["READONLY in a script", "lost", "reset"],
)
def test_script_is_run_again_after_a_connection_error(
    master: RedisServer, refusing: type[Refusing], error: Exception, runs_them: bool
) -> None:
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), *map(send, range(2, 30)), DONE]) as upstream,
        RedisLog(lambda: Refusing(port=master.port), **PATIENT) as log,
    ):
        reader: EventStream[Any] = log.open("k", lambda: request_sse(upstream.url))
        assert next(reader) == 1
        refusing.runs_them = runs_them
        refusing.error = error
        go.set()
        until(lambda: refusing.failures >= 3, 30)
        refusing.error = None
        assert list(reader) == list(range(2, 30))
        assert log.open("k").collect() == list(range(1, 30))


@pytest.mark.parametrize("text", WRAPPED)
def test_error_code_is_found_in_every_form(text: str) -> None:
    assert code_of(redis.ResponseError(text)) == "READONLY"
    assert isinstance(error_of(redis.ResponseError(text)), DemotedError)
    assert code_of(redis.ResponseError(text.replace("READONLY", "MISCONF"))) == "MISCONF"


@pytest.mark.parametrize(
    "text",
    [
        "unknown command 'EVALSHA'",
        f"{AT}@user_script:3: Script attempted to access nonexistent global variable 'READONLY'",
        "value is not an integer: READONLY",
        "BUSYKEY Target key name already exists.",
        "something else",
        "",
    ],
)
def test_error_with_another_code_or_none_is_no_outage(text: str) -> None:
    assert type(error_of(redis.ResponseError(text))) is LogError


UNBLOCKED = "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"

KINDS: list[tuple[Exception, type[Exception]]] = [
    (redis.ResponseError(UNBLOCKED), DemotedError),
    (redis.ReadOnlyError("You can't write against a read only replica."), DemotedError),
    (exceptions.MasterDownError("Link with MASTER is down"), DemotedError),
    (redis.BusyLoadingError("Redis is loading the dataset in memory"), OutageError),
    (exceptions.ClusterDownError("The cluster is down"), OutageError),
    (exceptions.TryAgainError("Multiple keys request during rehashing of slot"), OutageError),
    (exceptions.MovedError("1 127.0.0.1:1"), OutageError),
    (exceptions.SlotNotCoveredError("no node"), OutageError),
    (exceptions.RedisClusterException("Redis Cluster cannot be connected"), OutageError),
    (exceptions.ClusterError("TTL exhausted."), OutageError),
    (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), OutageError),
    (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), OutageError),
    (redis.ResponseError("BUSY Redis is busy running a script."), OutageError),
    (redis.TimeoutError("Timeout reading"), OutageError),
    (redis.ConnectionError("max number of clients reached"), OutageError),
    (ConnectionResetError(), OutageError),
    (redis.AuthenticationError("invalid username-password pair"), LogAccessError),
    (redis.ResponseError(f"{AT}@user_script:3: -NOPERM this user has no permissions"), LogAccessError),
    (exceptions.NoPermissionError("this user has no permissions"), LogAccessError),
    (redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), LogFullError),
    (redis.ResponseError(f"{AT}@user_script:3: -OOM command not allowed"), LogFullError),
    (exceptions.NoScriptError("No matching script."), UnknownScriptError),
    (redis.ResponseError("WRONGTYPE Operation against a key"), LogError),
    (redis.DataError("Invalid input"), LogError),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", str(value)[:30]))
def test_redis_errors_map_to_log_errors(error: Exception, kind: type[Exception]) -> None:
    assert type(error_of(error)) is kind


def test_failure_to_drop_connections_is_an_outage(master: RedisServer) -> None:
    """The waiting command still gets a reply."""

    async def main() -> None:
        store: Any = new_store(RedisLog.from_url(master.url))

        async def fail(**_: object) -> None:
            raise ConnectionResetError

        command(master, "REPLICAOF", "127.0.0.1", NO_SERVER)
        store.client.client.connection_pool.disconnect = fail
        with pytest.raises(OutageError):
            await asyncio.wait_for(store.remove_reader("k", "reader"), 30)
        del store.client.client.connection_pool.disconnect
        await store.aclose()

    asyncio.run(main())


def test_cluster_client_keeps_its_connections_on_failover(master: RedisServer) -> None:
    async def main() -> None:
        store: Any = new_store(RedisLog.from_url(master.url, cluster=True))
        # It has no pool whose connections could be closed.
        assert not hasattr(store.client.client, "connection_pool")
        await store.client.drop_connections()
        await store.aclose()

    asyncio.run(main())
