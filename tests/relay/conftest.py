"""The fixture that runs a test with relay.frames and with relay.aframes.

A relay has no part in event loops, in decoding or in transports: its tests run once, and those of reading, errors and
disconnects in each configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sseqbridge import relay
from tests import tiers
from tests.relay.support import Reading, Relay
from tests.support import INTERFACES


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default")


@pytest.fixture(params=INTERFACES)
def relayed(request: pytest.FixtureRequest) -> Iterator[Relay]:
    """A factory of relays of synchronous streams: by relay.frames, and in a second run by relay.aframes."""
    if request.param == "sync":
        yield lambda stream, **options: Reading(relay.frames(stream, **options), None)
        return
    loop = asyncio.new_event_loop()
    yield lambda stream, **options: Reading(relay.aframes(stream, **options), loop)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
