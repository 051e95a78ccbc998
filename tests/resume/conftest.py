"""Fixtures of all tests of logs: each kind of log, through each interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sseqbridge.resume import Log
from tests.redis_support import RedisServer, needs_redis, redis_server

from .support import LogCaller, Logs


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def logs(request: pytest.FixtureRequest) -> Iterator[Logs]:
    kind = request.param
    with Logs(kind, request.getfixturevalue("server") if kind == "redis" else None) as made:
        yield made


@pytest.fixture
def log(logs: Logs) -> Log:
    return logs.new()


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Iterator[LogCaller]:
    made = LogCaller(is_async=request.param == "async")
    yield made
    made.close()
