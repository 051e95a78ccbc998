"""The blocking XREAD: its bytes are those that redis-py would send, and it keeps one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge import request_sse
from sseqbridge.resume import RedisLog
from sseqbridge.resume._entries import Position
from sseqbridge.resume._redis_tail import _BLOCK_MILLISECONDS, RedisTail, _PackedXRead
from sseqbridge.testing import SSEServer, send, silence
from tests.redis_support import RedisServer, needs_redis, redis_server
from tests.support import until

NAMES = [b"log:{a}:events", "log:{\N{SNOWMAN}}:events".encode(), b"log:wake:1"]

positions = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 1000), st.lists(positions, min_size=3, max_size=3)), min_size=1, max_size=5))
def test_command_is_what_redis_py_would_send(reads: list[tuple[int, list[tuple[int, int]]]]) -> None:
    """Also when only some positions have changed since the last read."""
    command = _PackedXRead(NAMES)
    plain: Any = redis.connection.Connection
    connection = plain()
    for count, ids in reads:
        texts = [f"{fence}-{number}" for fence, number in ids]
        arguments = ("XREAD", "COUNT", count, "BLOCK", _BLOCK_MILLISECONDS, "STREAMS", *NAMES, *texts)
        assert command.pack(count, ids) == b"".join(connection.pack_command(*arguments))


class ClusterStore:
    """A store in a Cluster, and its client."""

    is_cluster = True
    demotions = 0

    def __init__(self) -> None:
        self.client = self
        self.sent: list[Any] = []

    def wake_key(self, name: str) -> str:
        return "wake"

    def count(self) -> int:
        return 7

    def key_of(self, key: str, kind: str) -> str:
        return f"log:{{{key}}}:{kind}"

    def entries(self, entries: Any) -> Any:
        return entries

    async def execute_alone(self, *command: Any, key: bytes) -> Any:
        self.sent.append((command, key))
        return [(key, [(b"1-2", ())])]


def test_stream_of_a_cluster_is_awaited_alone() -> None:
    store = ClusterStore()
    tail: Any = RedisTail(store)  # type: ignore[arg-type]

    async def main() -> None:
        [(stream, entries)] = await tail.read({"a": Position(1, 1)})
        assert (stream, entries) == ("a", [(b"1-2", ())])
        tail.wake()
        await tail.aclose()

    asyncio.run(main())
    [(command, key)] = store.sent
    assert command == ("XREAD", "COUNT", 7, "BLOCK", _BLOCK_MILLISECONDS, "STREAMS", "log:{a}:events", "1-1")
    assert key == b"log:{a}:events"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def blocking_connections(client: redis.Redis) -> list[str]:
    """Return the ids of the connections whose last command was XREAD."""
    return [each["id"] for each in client.client_list() if each["cmd"] == "xread"]


@needs_redis
def test_connection_is_kept_for_later_streams(server: RedisServer) -> None:
    with SSEServer([send(1), silence()]) as upstream, RedisLog.from_url(server.url) as log, server.client() as client:
        seen = set()
        for key in "abc":
            with log.open(key, lambda: request_sse(upstream.url)) as stream:
                assert next(stream) == 1
                until(lambda: blocking_connections(client), 30)
                seen.update(blocking_connections(client))
                assert log.cancel(key)
                assert stream.collect() == []
        assert len(seen) == 1


@needs_redis
def test_lost_connection_is_replaced(server: RedisServer) -> None:
    with (
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(server.url) as log,
        server.client() as client,
        log.open("lost", lambda: request_sse(upstream.url)) as stream,
    ):
        assert next(stream) == 1
        until(lambda: blocking_connections(client), 30)
        [lost] = blocking_connections(client)
        client.client_kill_filter(_id=lost)
        until(lambda: blocking_connections(client) not in ([], [lost]), 30)
        assert log.cancel("lost")
        assert stream.collect() == []


@needs_redis
@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 3}, {"protocol": 2}], ids=str)
def test_client_may_decode_replies_or_speak_either_protocol(server: RedisServer, options: dict[str, Any]) -> None:
    with (
        SSEServer([send(1), send(2), send("[DONE]")]) as upstream,
        RedisLog(lambda: redis.asyncio.Redis(port=server.port, **options)) as log,
        log.open("-".join(map(str, (*options, *options.values()))), lambda: request_sse(upstream.url)) as stream,
    ):
        assert stream.collect() == [1, 2]
