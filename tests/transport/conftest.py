"""Clients of both packages on a BridgeTransport."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import BridgeTransport


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def package(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two packages."""
    module: ModuleType = request.param
    return module


@pytest.fixture
def client(package: Any) -> Iterator[Any]:
    """A client on a BridgeTransport, without time limits."""
    with package.Client(transport=BridgeTransport(), timeout=None) as made:
        yield made


@pytest.fixture
def new_client(package: Any) -> Iterator[Callable[..., Any]]:
    """A function of BridgeTransport's arguments that returns a client without time limits, closed after the test."""
    with ExitStack() as stack:

        def make(*, timeout: Any = None, **options: Any) -> Any:
            return stack.enter_context(package.Client(transport=BridgeTransport(**options), timeout=timeout))

        yield make
