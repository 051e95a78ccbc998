"""Tests of the wire format: they use neither an event loop nor a transport: once."""

from __future__ import annotations

import pytest

from tests import tiers


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default")
