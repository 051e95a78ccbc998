"""Tests of the command line: a few processes, which choose no loop: once."""

from __future__ import annotations

import pytest

from tests import tiers


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default")
