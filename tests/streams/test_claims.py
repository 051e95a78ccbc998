"""Claims: one consumer at a time, taken over from calls that have ended without releasing them."""

from __future__ import annotations

import sys
from collections.abc import Generator
from types import FrameType

import pytest

from sseqbridge import UsageError, request_sse
from sseqbridge._streams.claims import Claim, Claims
from sseqbridge.testing import SSEServer, send, silence
from tests.support import in_thread, is_waiting, until

pytestmark = pytest.mark.configurations("default", "plain")


def ended_call() -> FrameType:
    return sys._getframe()


def test_claim_of_an_ended_call_is_taken_over() -> None:
    ended = ended_call()
    claims, lost = Claims([ended]), []
    assert not claims.is_held()
    mine = Claim()
    claims.append(mine)
    assert claims.admit(mine, lambda: lost.append(True))
    assert list(claims) == [mine]
    assert lost == [True]
    assert claims.is_held()


def test_claim_of_a_running_call_is_not_taken_over() -> None:
    running = sys._getframe()
    claims, mine = Claims([running]), Claim()
    claims.append(mine)
    assert claims.is_held()
    assert not claims.admit(mine, lambda: pytest.fail("the claim is held"))
    assert list(claims) == [running]
    # A claim that is in the queue no more is not an error.
    claims.discard(mine)


def test_claim_of_a_generator_is_held_until_it_ends() -> None:
    def numbers() -> Generator[int, None, None]:
        yield 1

    claim, generator = Claim(), numbers()
    claim.held_by(generator)
    claims = Claims([claim])
    assert (claim.is_gone, claims.is_held()) == (False, True)
    assert list(generator) == [1]
    assert (claim.is_gone, claims.is_held()) == (True, False)


def test_claim_of_a_dropped_coroutine_is_gone() -> None:
    async def read() -> None:
        pass

    claim, coroutine = Claim(), read()
    claim.held_by(coroutine)
    assert not claim.is_gone
    coroutine.close()
    assert claim.is_gone
    del coroutine
    assert claim.is_gone


def test_empty_queue_is_not_held() -> None:
    assert not Claims().is_held()


def test_interrupt_in_a_decode_function_ends_the_stream() -> None:
    def interrupted(event: object) -> None:
        raise KeyboardInterrupt

    with SSEServer([send(1), send(2), silence()]) as server:
        for read in ("next", "poll"):
            stream = request_sse(server.url, decode=interrupted).events
            until(lambda: stream.stats.events == 2)  # noqa: B023
            with pytest.raises(KeyboardInterrupt):
                # poll() finds no item if the events were counted, but have not arrived yet.
                while True:
                    getattr(stream, read)()
            assert stream.outcome == "closed"


def test_poll_is_refused_while_another_thread_waits() -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url).events
        assert stream.next() == 1
        reading = in_thread(lambda: list(stream))
        until(lambda: is_waiting(reading))
        with pytest.raises(UsageError, match="one consumer at a time"):
            stream.poll()
        stream.close()
        assert reading.result(30) == []
