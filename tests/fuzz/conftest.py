"""Tests of the sans-IO parsers that the fuzzer knows: once."""

from __future__ import annotations

import pytest

from tests import tiers


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default")
