"""Pauses that requests share."""

from __future__ import annotations

import asyncio

import pytest

from sseqbridge._http.pauses import Pauses
from tests.clock import FakeClock

pytestmark = pytest.mark.configurations("default")


def test_longest_pause_of_an_origin_counts(clock: FakeClock) -> None:
    async def main() -> None:
        pauses = Pauses().of_call()
        began = clock.monotonic()
        pauses.begin("http://a:80", 100)
        pauses.begin("http://a:80", 30)
        await pauses.wait("http://b:80")
        assert clock.monotonic() - began < 30
        await clock.aadvance_until_done(pauses.wait("http://a:80"), step=10)
        assert clock.monotonic() - began >= 100

    asyncio.run(main())


def test_pause_may_become_longer_during_the_wait(clock: FakeClock) -> None:
    async def main() -> None:
        pauses = Pauses()
        call, other = pauses.of_call(), pauses.of_call()
        call.begin("http://a:80", 30)
        waiting = asyncio.ensure_future(call.wait("http://a:80"))
        await asyncio.sleep(0)
        began = clock.monotonic()
        other.begin("http://a:80", 100)
        await clock.aadvance_until_done(waiting, step=10)
        assert clock.monotonic() - began >= 100
        assert (call.seconds > 30, other.seconds) == (True, 0)

    asyncio.run(main())
