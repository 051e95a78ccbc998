"""Fixtures of all tests of logs: each kind of log, through each interface.

Logs do not depend on the transport of their upstreams: without the library's own, only the tests of upstreams run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sseqbridge.resume import Log
from tests import tiers
from tests.redis_support import RedisServer, needs_redis, redis_server
from tests.support import INTERFACES, IS_DEFAULT

from .support import LogCaller, Logs


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default", "plain")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)] if IS_DEFAULT else ["memory"])
def logs(request: pytest.FixtureRequest) -> Iterator[Logs]:
    kind = request.param
    with Logs(kind, request.getfixturevalue("server") if kind == "redis" else None) as made:
        yield made


@pytest.fixture
def log(logs: Logs) -> Log:
    return logs.new()


@pytest.fixture(params=INTERFACES)
def caller(request: pytest.FixtureRequest) -> Iterator[LogCaller]:
    made = LogCaller(is_async=request.param == "async")
    yield made
    made.close()
