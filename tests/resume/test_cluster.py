"""Logs in a Redis Cluster: its nodes share the streams, and a failover of one of them loses nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from sseqbridge import LogError, request_sse
from sseqbridge.resume import RedisLog
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.redis_support import RedisServer, needs_redis, redis_cluster
from tests.support import in_thread, until

from .failovers import command, replicate, role_of, stages
from .support import DONE

pytestmark = needs_redis
# A cluster with a replica, and failovers, take too long for the default run.
needs_failovers = pytest.mark.cluster

# No test here waits for the end of a lease or of `outage`. A failover that is tried again pauses writes for 10 s.
PATIENT: dict[str, Any] = {"lease": 300.0, "outage": 300.0}


@pytest.fixture
def masters() -> Iterator[list[RedisServer]]:
    with redis_cluster() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    """Three masters, and a replica of the first."""
    with redis_cluster(replicas=1) as nodes:
        yield nodes


def keys_on(node: RedisServer, count: int) -> list[str]:
    """Return keys of streams whose slots a node has."""
    found: list[str] = []
    for number in range(10_000):
        slot = command(node, "CLUSTER", "KEYSLOT", f"k{number}")
        if slot < 5461:
            found.append(f"k{number}")
        if len(found) == count:
            break
    return found


@pytest.mark.slow
def test_cluster_distributes_streams_over_its_nodes(masters: list[RedisServer]) -> None:
    go = threading.Event()
    url = masters[0].url
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        RedisLog.from_url(url, cluster=True) as log,
        RedisLog.from_url(url, cluster=True) as other,
        contextlib.ExitStack() as stack,
    ):
        streams = [stack.enter_context(log.open(f"k{n}", lambda: request_sse(upstream.url))) for n in range(12)]
        streams += [stack.enter_context(other.open(f"k{n}")) for n in range(12)]
        assert [next(stream) for stream in streams] == [1] * 24
        where = []
        for node in masters:
            with node.client() as client:
                where.append({str(key) for key in client.scan_iter("sseqbridge:*")})
        for n in range(12):
            holders = [keys for keys in where if any(f"{{k{n}}}" in key for key in keys)]
            assert len(holders) == 1
            assert {key for key in holders[0] if f"{{k{n}}}" in key} == {
                f"sseqbridge:{{k{n}}}:{what}" for what in ("events", "lease", "fence", "readers")
            }
        assert all(where)
        go.set()
        assert [stream.collect() for stream in streams] == [[2]] * 24
        assert other.open("k3").collect() == [1, 2]
    with SSEServer([send(1), silence()]) as upstream, RedisLog.from_url(url, cluster=True) as log:
        stream = log.open("cancelled", lambda: request_sse(upstream.url))
        assert next(stream) == 1
        assert log.cancel("cancelled")
        assert (stream.collect(), stream.outcome) == ([], "closed")
        assert log.delete("cancelled")


def fail_over(cluster: list[RedisServer]) -> None:
    """Make the first master's replica the master, and the other way round, and wait for it."""
    old, new = (cluster[0], cluster[3]) if role_of(cluster[3]) == "slave" else (cluster[3], cluster[0])

    def is_done() -> bool:
        return (role_of(old), role_of(new)) == ("slave", "master")

    for _ in range(10):
        # Refused while the replica has no link; given up after 5 s if it is not in step.
        until(lambda: is_accepted(new), 60)
        with contextlib.suppress(TimeoutError):
            until(is_done, 8)
            return
    raise TimeoutError("the nodes have not exchanged their roles")


def is_accepted(replica: RedisServer) -> bool:
    try:
        return bool(command(replica, "CLUSTER", "FAILOVER"))
    except redis.ResponseError as error:
        assert "link" in str(error) or "master" in str(error)
        return False


@needs_failovers
def test_manual_failover_of_a_node_loses_and_repeats_nothing(cluster: list[RedisServer]) -> None:
    steps, gates = stages(3, 20)
    keys = keys_on(cluster[0], 3)
    options: dict[str, Any] = {**PATIENT, "cluster": True, "prefix": "failover"}
    with (
        SSEServer(steps) as upstream,
        RedisLog.from_url(cluster[1].url, **options) as log,
        RedisLog.from_url(cluster[2].url, **options) as elsewhere,
    ):
        readers = [log.open(key, lambda: request_sse(upstream.url)) for key in keys]
        readers += [elsewhere.open(key) for key in keys * 2]
        read = [in_thread(lambda reader=reader: list(reader)) for reader in readers]  # type: ignore[misc]
        # A master votes for a node's next replica only after a while, so there and back is all.
        for gate in gates[:2]:
            gate.set()
            with elsewhere.open(keys[0]) as waiting:
                waiting.next(60)
            fail_over(cluster)
        gates[2].set()
        gates[3].set()
        assert [each.result(120) for each in read] == [list(range(60))] * 9
        for key in keys:
            assert log.open(key).collect() == list(range(60))
        assert len(upstream.requests) == 3


@needs_failovers
def test_killed_master_of_a_cluster_is_an_outage() -> None:
    """Until its replica has taken over: readers and producers wait."""
    steps, gates = stages(3, 10)
    with redis_cluster(replicas=1) as nodes:
        [key] = keys_on(nodes[0], 1)
        options: dict[str, Any] = {**PATIENT, "cluster": True}
        with SSEServer(steps) as upstream, RedisLog.from_url(nodes[1].url, **options) as log:
            reader = log.open(key, lambda: request_sse(upstream.url))
            gates[0].set()
            assert [reader.next(60) for _ in range(10)] == list(range(10))
            replicate(nodes[0], f"{{{key}}}:replicated")
            nodes[0].kill()
            gates[1].set()
            command(nodes[3], "CLUSTER", "FAILOVER", "TAKEOVER")
            until(lambda: role_of(nodes[3]) == "master", 60)
            gates[2].set()
            gates[3].set()
            assert reader.collect() == list(range(10, 30))
            assert log.open(key).collect() == list(range(30))


@needs_failovers
def test_error_of_a_plain_client_on_a_cluster_has_advice(cluster: list[RedisServer]) -> None:
    [key] = keys_on(cluster[0], 1)
    with RedisLog.from_url(cluster[2].url) as log:
        for call in (lambda: log.open(key, wait=0), lambda: log.cancel(key)):
            with pytest.raises(LogError, match=r"node of a Redis Cluster.*cluster=True"):
                call()


@needs_failovers
def test_many_streams_of_one_node_have_a_connection_each(cluster: list[RedisServer]) -> None:
    """redis-py's own limit is 100 connections to a node."""
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), DONE]) as upstream,
        RedisLog.from_url(cluster[0].url, cluster=True, prefix="many") as log,
        contextlib.ExitStack() as stack,
    ):
        keys = keys_on(cluster[0], 120)
        readers = [stack.enter_context(log.open(key, lambda: request_sse(upstream.url))) for key in keys]
        assert [reader.next(60) for reader in readers] == [1] * 120
        go.set()
        assert [reader.collect() for reader in readers] == [[]] * 120
