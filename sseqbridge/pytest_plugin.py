"""The pytest fixture `sse_server`, there wherever sseqbridge is installed.

Rule: every run of pytest loads this, whether or not it is used: nothing is imported before it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import SSEServer

__all__ = ["sse_server"]


@pytest.fixture
def sse_server() -> Iterator[SSEServer]:
    """A sseqbridge.testing.SSEServer on a loopback port; `sse_server.play(...)` says what it answers.

    What a script raises, and an expect() that is not met, is an error of the test's end.
    """
    from .testing import SSEServer

    with SSEServer() as server:
        yield server
