"""The library's clock: freezegun does not freeze it, and tests can advance it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from sseqbridge import Bridge, BridgeClosedError, StreamTimeoutError, Timeout, request_sse
from sseqbridge._runtime import loops
from sseqbridge._runtime.clock import Clock
from sseqbridge._runtime.clock import clock as real_clock
from sseqbridge.testing import SSEServer, send, silence
from tests import clock as clock_module
from tests.clock import FakeClock
from tests.requesters import Requester
from tests.support import LOOPS, in_thread, is_waiting, measured_environment, python, until

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.slow]

SILENT = (send("a"), silence())


@pytest.fixture
def silent() -> Iterator[SSEServer]:
    with SSEServer(SILENT) as server:
        yield server


@pytest.mark.parametrize(
    ("limit", "seconds"), [({"read": 30}, 30), ({"idle": 400}, 400), ({"total": 5000, "read": None}, 5000)]
)
def test_time_limit_elapses_by_the_fake_clock(
    clock: FakeClock, ask: Requester, silent: SSEServer, limit: dict[str, float], seconds: float
) -> None:
    response = ask(silent.url, decode="text", timeout=limit)
    assert response.next() == "a"
    before = clock.monotonic()
    with pytest.raises(StreamTimeoutError):
        clock.advance_until_done(response.next, step=seconds / 10)
    assert clock.monotonic() - before >= seconds * 0.9


def test_waiting_thread_times_out_when_the_clock_advances(clock: FakeClock, silent: SSEServer) -> None:
    with request_sse(silent.url, decode="text").events as stream:
        assert next(stream) == "a"
        waiting = in_thread(lambda: stream.next(timeout=60))
        until(lambda: is_waiting(waiting))
        assert not waiting.done()
        clock.advance(61)
        assert isinstance(waiting.exception(30), TimeoutError)
        assert stream.outcome is None


FROZEN = """
import sys
from freezegun import freeze_time

[url] = sys.argv[1:]
with freeze_time("2020-01-01"):
    from sseqbridge import StreamTimeoutError, request_sse

    stream = request_sse(url, decode="text").events
    assert next(stream) == "a"
    try:
        stream.next(timeout=0.05)
    except TimeoutError:
        print("next", stream.outcome)
    stream.close()
    for limit in ("read", "idle", "total"):
        stream = request_sse(url, decode="text", timeout={limit: 0.2}).events
        try:
            list(stream)
        except StreamTimeoutError as error:
            print(error.which)
"""


@pytest.mark.parametrize("imported_first", [True, False], ids=["imported-before", "imported-while-frozen"])
def test_freezegun_does_not_freeze_time_limits(silent: SSEServer, imported_first: bool) -> None:
    program = FROZEN
    if imported_first:
        program = "from sseqbridge import StreamTimeoutError, request_sse\n" + program
    status, out, err = python(program, silent.url, env=measured_environment())
    assert (status, out.split("\n")) == (0, ["next None", "read", "idle", "total", ""]), err


def test_asyncios_loop_reads_the_librarys_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(loops.ClockedEventLoop()) as loop:
        monkeypatch.setattr(real_clock, "monotonic", lambda: 12345.0)
        assert loop.time() == 12345.0


def test_clock_advances_by_itself() -> None:
    before = real_clock.monotonic()
    until(lambda: real_clock.monotonic() > before)
    assert Clock().monotonic() > before


def test_bridge_on_the_fake_clock_can_be_closed(clock: FakeClock, silent: SSEServer) -> None:
    with Bridge() as bridge:
        stream = request_sse(silent.url, decode="text", bridge=bridge, timeout=Timeout(idle=1000)).events
        assert next(stream) == "a"
        clock.advance(500)
    with pytest.raises(BridgeClosedError):
        next(stream)


@pytest.mark.parametrize("kind", LOOPS)
def test_timers_of_a_loop_run_when_the_clock_advances(clock: FakeClock, kind: str) -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        ran: list[str] = []
        loop.call_later(60, ran.append, "second")
        loop.call_later(30, ran.append, "first")
        loop.call_later(45, ran.append, "cancelled").cancel()
        before = loop.time()
        await clock.aadvance_until_done(asyncio.sleep(90), step=10)
        assert loop.time() - before >= 90
        return ran

    with contextlib.closing(clock.new_loop(kind)) as loop:
        assert loop.run_until_complete(main()) == ["first", "second"]


def test_older_loop_keeps_its_own_time(request: pytest.FixtureRequest) -> None:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        clock = request.getfixturevalue("clock")
        before = loop.time()
        clock.advance(1000)
        assert loop.time() - before < 1000


def test_advance_that_ends_no_wait_is_reported(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "_HANGS", 0.01)
    never = asyncio.Event()
    with pytest.raises(TimeoutError, match="did not end the wait"):
        clock.advance_until(never.is_set)
    with pytest.raises(TimeoutError, match="did not end the wait"):
        asyncio.run(clock.aadvance_until_done(never.wait()))
