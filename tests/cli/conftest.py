"""Tests of the command line: a few processes, which choose no loop: once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import tiers

from .support import PseudoTerminal, pseudo_terminal


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default")


@pytest.fixture
def terminal() -> Iterator[PseudoTerminal]:
    """A terminal: the descriptor to write to, and a function that returns the text written so far."""
    with pseudo_terminal() as made:
        yield made
