"""Tests of the examples: once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sseqbridge.testing import SSEServer, send
from tests import tiers
from tests.examples.guides import DONE


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default")


@pytest.fixture
def upstream() -> Iterator[SSEServer]:
    """An upstream that answers with five items, or with the steps that a test passes to `play`."""
    with SSEServer([send({"n": n}, id=str(n)) for n in range(5)] + [DONE]) as server:
        yield server
