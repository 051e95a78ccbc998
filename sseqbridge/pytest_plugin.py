"""The pytest fixture `sse_server`, available wherever sseqbridge is installed.

Every pytest run loads this module, so it imports the library only when a test uses the fixture.
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
    """A running sseqbridge.testing.SSEServer on a loopback port; `sse_server.play(...)` sets its script.

    An error that a script raises, or an expect() that fails, is reported at the teardown of the test.
    """
    from .testing import SSEServer

    with SSEServer() as server:
        yield server
