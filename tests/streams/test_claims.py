"""Claims: one consumer at a time, taken over from calls that have ended without releasing them."""

from __future__ import annotations

import sys
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

from sseqbridge import EventStream, ReadError, UsageError, merge, request_sse
from sseqbridge._engine.channel import End, ThreadChannel
from sseqbridge._streams.claims import Claim, Claims
from sseqbridge._streams.plain_cursor import PlainCursor
from sseqbridge._streams.reader import ItemReader
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import SSEServer, send, silence
from tests.interrupts import ALL, Alarm, InMemory, numbers
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


# Calls that an interrupt has ended.


def test_interrupt_before_a_call_releases_its_claim_ends_the_stream() -> None:
    stream = numbers()

    def interrupted() -> None:
        reader_of(stream).enter(sys._getframe())

    assert stream.next() == "0"
    interrupted()
    assert list(stream) == []
    assert (stream.outcome, stream.last_event_id) == ("closed", "0")


def test_interrupt_after_a_call_has_timed_out_loses_nothing() -> None:
    source = InMemory([])
    stream = source.stream()

    def interrupted() -> None:
        reader_of(stream).enter(sys._getframe())
        with pytest.raises(TimeoutError):
            reader_of(stream).take(0)

    interrupted()
    source.channel.end(End("eof"))
    assert list(stream) == []
    assert stream.outcome == "eof"


def test_interrupt_of_close_leaves_no_stream_open() -> None:
    class Interrupted(InMemory):
        aborts = 0

        def abort(self) -> None:
            self.aborts += 1
            if self.aborts == 1:
                raise Alarm
            super().abort()

    source = Interrupted([ALL])
    stream = source.stream()
    with pytest.raises(Alarm):
        stream.close()
    assert (source.aborts, stream.outcome, list(stream)) == (2, "closed", [])


@pytest.mark.parametrize("is_plain", [False, True], ids=["events", "plain items"])
def test_interrupted_poll_at_the_end_shows_that_items_are_lost(is_plain: bool) -> None:
    class Interrupted(InMemory):
        def check_process(self) -> None:
            if streams and streams[0].outcome == "eof":
                raise Alarm

    streams: list[EventStream[Any]] = []
    source = Interrupted([ALL], End("eof"))
    stream = EventStream(ItemReader(PlainCursor(source, None))) if is_plain else source.stream()
    streams.append(stream)
    with pytest.raises(Alarm):
        stream.poll()
    streams.clear()
    assert (stream.outcome, stream.last_event_id, stream.poll()) == ("closed", "", [])


def test_interrupted_poll_that_read_an_error_keeps_the_error() -> None:
    stream = InMemory([ALL], End("error", ReadError("reset"))).stream()
    cursor = reader_of(stream).cursor
    position = cursor.position
    assert stream.poll() == ALL
    # As after an interrupt at the end of that call.
    cursor.lose(position)
    assert stream.outcome == "error"
    with pytest.raises(ReadError):
        stream.poll()


def test_interrupt_of_add_leaves_the_callers_stream_open() -> None:
    class Interrupted(ThreadChannel[Any]):
        def notify(self, wake: object) -> None:
            raise Alarm

    source = InMemory([])
    source.channel = Interrupted(1 << 20)
    merged = merge()
    with source.stream() as stream:
        with pytest.raises(Alarm):
            merged.add("a", stream)
        assert stream.outcome is None
    assert list(merged) == []
