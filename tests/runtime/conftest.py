"""Fixtures of the tests of the process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sseqbridge.testing import SSEServer, send, silence


@pytest.fixture
def silent() -> Iterator[SSEServer]:
    """A server that sends one event, and then nothing until the client leaves."""
    with SSEServer([send({"n": 1}), silence()]) as server:
        yield server
