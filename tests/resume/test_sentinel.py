"""A Redis that Sentinels watch: the log follows the master that they name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio
from redis.driver_info import DriverInfo

from sseqbridge import request_sse
from sseqbridge.resume import RedisLog
from sseqbridge.testing import SSEServer
from tests.redis_support import RedisSentinel, RedisServer, needs_redis, redis_server, sentinel_of
from tests.support import in_thread, until

from .failovers import PATIENT, is_in_step, replicate, role_of, stages, was_disturbed

pytestmark = needs_redis

# Without the annotations that it lacks.
Sentinel: Any = redis.asyncio.Sentinel


@pytest.fixture
def master() -> Iterator[RedisServer]:
    with redis_server("--repl-diskless-sync-delay", "0") as running:
        yield running


@pytest.fixture
def replica(master: RedisServer) -> Iterator[RedisServer]:
    with redis_server("--replicaof", "127.0.0.1", str(master.port)) as running:
        until(lambda: role_of(running) == "slave" and is_in_step(master), 30)
        yield running


@pytest.fixture
def sentinel(master: RedisServer, replica: RedisServer) -> Iterator[RedisSentinel]:
    with sentinel_of(master) as running:
        with running.client() as client:
            # It learns the replica from the master.
            until(lambda: replica_count(client) == 1, 60)
        yield running


def replica_count(client: Any) -> int:
    [found] = client.execute_command("SENTINEL", "MASTERS")
    pairs = dict(zip(found[::2], found[1::2], strict=True)) if isinstance(found, list) else found
    return int(pairs.get("num-slaves", 0))


def log_of(sentinel: RedisSentinel) -> RedisLog:
    # Made here: redis-py would read its own version from disk for each connection, on the loop thread.
    driver = {"driver_info": DriverInfo()}
    options = {"socket_timeout": 10, "sentinel_kwargs": {"socket_timeout": 5, **driver}, **driver}
    return RedisLog(lambda: Sentinel([("127.0.0.1", sentinel.port)], **options).master_for("mymaster"), **PATIENT)


def has_begun_failover(client: Any) -> bool:
    """Order a failover. Returns False if the Sentinel does not know yet that the replica can be promoted."""
    try:
        client.execute_command("SENTINEL", "FAILOVER", "mymaster")
    except redis.exceptions.ResponseError as error:
        if "NOGOODSLAVE" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("way", ["ordered", "master killed"])
def test_sentinels_failover_loses_and_repeats_nothing(
    master: RedisServer, replica: RedisServer, sentinel: RedisSentinel, way: str
) -> None:
    steps, gates = stages(3, 20)
    with SSEServer(steps) as upstream, log_of(sentinel) as log, log_of(sentinel) as elsewhere:
        readers = [log.open("k", lambda: request_sse(upstream.url)), elsewhere.open("k"), elsewhere.open("k")]
        read = [in_thread(lambda reader=reader: list(reader)) for reader in readers]  # type: ignore[misc]
        gates[0].set()
        with elsewhere.open("k") as first:
            assert [first.next(30) for _ in range(20)] == list(range(20))
            # All that was written is on the replica, before the master dies.
            replicate(master, "replicated")
        if way == "ordered":
            with sentinel.client() as client:
                until(lambda: has_begun_failover(client), 60)
        else:
            master.kill()
        gates[1].set()
        until(was_disturbed(log), 60)
        until(lambda: role_of(replica) == "master", 60)
        gates[2].set()
        gates[3].set()
        assert [each.result(90) for each in read] == [list(range(60))] * 3
        assert log.open("k").collect() == list(range(60))
        assert len(upstream.requests) == 1


def test_lost_sentinel_is_an_outage(sentinel: RedisSentinel) -> None:
    go = threading.Event()
    with log_of(sentinel) as log:
        sentinel.kill()
        cancelled = in_thread(lambda: log.cancel("k"))
        until(was_disturbed(log), 30)
        sentinel.start()
        go.set()
        assert cancelled.result(60) is False
