"""The bounded channel: no loss, no repetition, order, bounded memory, no lost wakeup."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge import EventStream, request_sse
from sseqbridge._engine.channel import CLOSED, Channel, End, ThreadChannel
from sseqbridge._runtime import threads
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, respond, send, silence
from tests.clock import FakeClock
from tests.support import in_thread, is_waiting, python, together, until

pytestmark = pytest.mark.configurations("default")

EOF = End("eof")


@contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    running = in_thread(loop.run_forever)
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    running.result(30)
    loop.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with loop_in_a_thread() as running:
        yield running


@pytest.fixture
def fast_switching() -> Iterator[None]:
    """Switch threads after almost every bytecode."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop)


def take_all(channel: Channel[int]) -> list[int | End]:
    taken: list[int | End] = []
    while not taken or not isinstance(taken[-1], End):
        taken.append(channel.receive())
    return taken


# Each operation, with one thread and one loop.


def test_entries_come_in_order_and_the_end_is_the_last(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 100)

    async def produce() -> None:
        await channel.send(1, 10)
        channel.send_nowait(2, 10)
        channel.end(EOF)
        channel.end(End("error"))
        await channel.send(3, 10)

    in_loop(loop, produce()).result(30)
    assert take_all(channel) == [1, 2, EOF]
    assert channel.buffered == 0


def test_entry_is_charged_until_the_next_receive(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 100)
    in_loop(loop, channel.send(1, 30)).result(30)
    in_loop(loop, channel.send(2, 40)).result(30)
    assert channel.buffered == 70
    assert channel.receive() == 1
    assert channel.buffered == 70
    assert channel.receive() == 2
    assert channel.buffered == 40
    with pytest.raises(TimeoutError):
        channel.receive(0)
    assert channel.buffered == 0


def test_the_producer_waits_for_room_until_half_is_free(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 100)
    for entry in range(10):
        in_loop(loop, channel.send(entry, 10)).result(30)
    waiting = in_loop(loop, channel.send(10, 10))
    for entry in range(5):
        assert channel.receive() == entry
        assert not waiting.done()
    assert channel.receive() == 5
    waiting.result(30)
    assert channel.buffered == 60


def test_oversized_entry_enters_an_empty_channel(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 100)
    in_loop(loop, channel.send(1, 5000)).result(30)
    waiting = in_loop(loop, channel.send(2, 5000))
    assert channel.receive() == 1
    assert not waiting.done()
    assert channel.receive() == 2
    waiting.result(30)


def test_cancelled_send_adds_nothing(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 10)
    in_loop(loop, channel.send(1, 10)).result(30)

    async def cancel_the_second() -> None:
        waiting = asyncio.create_task(channel.send(2, 10))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        channel.end(EOF)

    in_loop(loop, cancel_the_second()).result(30)
    assert take_all(channel) == [1, EOF]


def test_receive_waits_at_most_its_timeout(clock: FakeClock, loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 10)
    at = clock.monotonic()
    with pytest.raises(TimeoutError, match="still open"):
        clock.advance_until_done(lambda: channel.receive(300), step=10)
    assert clock.monotonic() - at >= 300
    in_loop(loop, channel.send(1)).result(30)
    assert channel.receive(0) == 1


def test_close_wakes_the_consumer_and_lets_the_producer_go_on(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 10)
    taking = in_thread(channel.receive)
    until(lambda: is_waiting(taking))
    channel.close()
    assert taking.result(30) is CLOSED

    full: Channel[int] = Channel(loop, 10)
    in_loop(loop, full.send(1, 10)).result(30)
    waiting = in_loop(loop, full.send(2, 10))
    full.close()
    waiting.result(30)
    assert full.receive() is CLOSED
    in_loop(loop, full.send(3, 1000)).result(30)
    assert full.receive() is CLOSED


def test_deferred_send_wakes_after_the_rest_of_the_step(
    loop: asyncio.AbstractEventLoop,
) -> None:
    channel: Channel[int] = Channel(loop, 100)
    woken: list[int] = []

    async def produce() -> None:
        channel.notify(lambda: woken.append(channel.pending))
        channel.send_deferred(1, 10)
        assert woken == []
        channel.send_silently(2, 10)
        await asyncio.sleep(0)
        assert woken == [2]

    in_loop(loop, produce()).result(30)


def test_deferred_send_wakes_a_waiting_consumer(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 100)
    taking = in_thread(channel.receive)
    until(lambda: is_waiting(taking))
    loop.call_soon_threadsafe(channel.send_deferred, 1, 10)
    assert taking.result(30) == 1


@pytest.mark.parametrize("way", ["send_deferred", "try_send"])
def test_nothing_is_added_after_the_end_or_a_close(loop: asyncio.AbstractEventLoop, way: str) -> None:
    for finish in (Channel.close, lambda channel: channel.end(EOF)):
        channel: Channel[int] = Channel(loop, 100)
        finish(channel)

        async def add(channel: Channel[int] = channel) -> None:
            assert not getattr(channel, way)(1, 10)

        in_loop(loop, add()).result(30)
        assert channel.receive() in (CLOSED, EOF)
        assert channel.buffered == 0


def test_try_send_refuses_entries_that_do_not_fit(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 100)

    async def produce() -> None:
        # The first entry of any size, then as many as fit.
        assert channel.try_send(1, 500)
        assert not channel.try_send(2, 0)
        assert [channel.poll(), channel.poll()] == [1, None]
        assert channel.try_send(3, 60)
        assert not channel.try_send(4, 41)
        assert channel.try_send(5, 40)

    in_loop(loop, produce()).result(30)
    assert [channel.receive(), channel.receive()] == [3, 5]


def test_try_send_wakes_a_waiting_consumer(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 100)
    taking = in_thread(channel.receive)
    until(lambda: is_waiting(taking))
    loop.call_soon_threadsafe(channel.try_send, 1, 10)
    assert taking.result(30) == 1


def test_close_works_after_the_loop_was_closed() -> None:
    with loop_in_a_thread() as loop:
        channel: Channel[int] = Channel(loop, 10)
        in_loop(loop, channel.send(1)).result(30)
    channel.close()
    assert channel.receive() is CLOSED


def test_consumer_may_be_a_coroutine() -> None:
    async def main() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), 10)
        taking = asyncio.create_task(channel.areceive())
        await asyncio.sleep(0)
        await channel.send(1, 10)
        assert await taking == 1
        with pytest.raises(TimeoutError):
            await channel.areceive(0.01)
        await channel.send(2, 10)
        second = asyncio.create_task(channel.send(3, 10))
        assert [await channel.areceive(), await channel.areceive()] == [2, 3]
        await second
        taking = asyncio.create_task(channel.areceive())
        await asyncio.sleep(0)
        channel.close()
        assert await taking is CLOSED

    asyncio.run(main())


class Interrupted(deque[Any]):
    """Waiters that run `act` right after a waiter was added."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        self._act()


@pytest.mark.parametrize("wake", [True, False], ids=["waking", "not waking"])
def test_entry_added_before_the_wait_is_no_lost_wakeup(loop: asyncio.AbstractEventLoop, wake: bool) -> None:
    def close() -> None:
        if wake:
            channel.close()
        else:
            channel.closed = True

    channel: Channel[int] = Channel(loop, 10)
    waiters = channel._waiters = Interrupted(close)
    assert channel.receive() is CLOSED
    assert not waiters

    channel = Channel(loop, 10)
    waiters = channel._waiters = Interrupted(close)
    assert in_loop(loop, channel.areceive()).result(30) is CLOSED
    assert not waiters


def test_entry_taken_before_the_producers_wait_is_no_lost_wakeup(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel: Channel[int] = Channel(loop, 10)
    in_loop(loop, channel.send(1, 10)).result(30)
    create_future = loop.create_future

    def take_first() -> asyncio.Future[Any]:
        # The consumer finds no waiting producer yet, and waits on an empty channel.
        assert channel.receive() == 1
        with pytest.raises(TimeoutError):
            channel.receive(0)
        return create_future()

    monkeypatch.setattr(loop, "create_future", take_first)
    in_loop(loop, channel.send(2, 10)).result(30)
    assert channel.receive() == 2


def test_closed_is_set_before_waiters_are_woken(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 10)
    seen = []
    channel.notify(lambda: seen.append(channel.closed))
    channel.close()
    assert seen == [True]


# Many threads, at any speed.


@pytest.mark.slow
@given(
    limit=st.integers(1, 50),
    charges=st.lists(st.integers(0, 60), max_size=40),
    slow=st.sampled_from(["neither", "producer", "consumer"]),
)
def test_any_charges_pass_in_order_and_within_the_limit(limit: int, charges: list[int], slow: str) -> None:
    with loop_in_a_thread() as loop:
        channel: Channel[int] = Channel(loop, limit)
        most = 0

        async def produce() -> None:
            nonlocal most
            for n, charge in enumerate(charges):
                await channel.send(n, charge)
                most = max(most, channel.buffered)
                await asyncio.sleep(0 if slow != "producer" else 0.0001)
            channel.end(EOF)

        producing = in_loop(loop, produce())
        taken: list[int | End] = []
        while EOF not in taken:
            taken.append(channel.receive(30))
            if slow == "consumer":
                time.sleep(0.0001)
        producing.result(30)
    assert taken == [*range(len(charges)), EOF]
    assert most <= max(limit, *charges, 0)


@pytest.mark.heavy
@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.usefixtures("fast_switching")
def test_long_run_loses_and_repeats_nothing(loop: asyncio.AbstractEventLoop, limit: int) -> None:
    channel: Channel[int] = Channel(loop, limit)
    choose = random.Random(limit)

    async def produce() -> None:
        for n in range(20_000):
            await channel.send(n, choose.choice((0, 1, 2, 5, 9)))
            if n % 7 == 0:
                await asyncio.sleep(0)
        channel.end(EOF)

    producing = in_loop(loop, produce())
    assert take_all(channel) == [*range(20_000), EOF]
    producing.result(30)


@pytest.mark.usefixtures("fast_switching")
def test_timeouts_all_the_time_lose_nothing(loop: asyncio.AbstractEventLoop) -> None:
    channel: Channel[int] = Channel(loop, 3)

    async def produce() -> None:
        for n in range(3000):
            await channel.send(n, 1)
            await asyncio.sleep(0)
        channel.end(EOF)

    producing = in_loop(loop, produce())
    taken: list[int | End] = []
    while EOF not in taken[-1:]:
        try:
            taken.append(channel.receive(0.00001))
        except TimeoutError:
            pass
    assert taken == [*range(3000), EOF]
    producing.result(30)


@pytest.mark.usefixtures("fast_switching")
def test_blocking_send_sees_room_made_before_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    channel: ThreadChannel[int] = ThreadChannel(10)
    make = threads.new_waiter

    def make_room() -> threads.Waiter:
        assert channel.receive() == 0
        with pytest.raises(TimeoutError):
            channel.receive(0)
        return make()

    assert channel.send_blocking(0, 10)
    monkeypatch.setattr(threads, "new_waiter", make_room)
    assert channel.send_blocking(1, 10)
    assert channel.buffered == 10
    channel.close()
    assert not channel.send_blocking(2, 10)


def test_entry_taken_before_publishing_the_wakeup_is_no_lost_wakeup() -> None:
    class Racing(ThreadChannel[str]):
        """The consumer releases the only entry just after the producer has found that no other one fits."""

        def fits(self, charge: int) -> bool:
            fits = super().fits(charge)
            if not fits:
                assert self.poll() is None
            return fits

    channel = Racing(1)
    channel.send_nowait("first", 1)
    assert channel.poll() == "first"
    woken: list[bool] = []
    assert not channel.notify_when_drained(lambda: woken.append(True), 1)
    assert not channel.is_producer_waiting
    assert woken == []


@pytest.mark.slow
def test_close_races_with_send_and_receive(loop: asyncio.AbstractEventLoop) -> None:
    for n in range(300):
        channel: Channel[int] = Channel(loop, 2)

        async def produce(channel: Channel[int] = channel) -> None:
            for entry in range(1000):
                await channel.send(entry, 1)

        producing = in_loop(loop, produce())

        def close(channel: Channel[int] = channel, producing: Any = producing, least: int = n % 3) -> None:
            # The consumer may have taken all entries before this thread checks.
            until(lambda: channel.buffered >= least or producing.done())
            channel.close()

        taken, _ = together([partial(take_all, channel), close])
        assert taken == [*range(len(taken) - 1), CLOSED]
        producing.result(30)


@pytest.mark.slow
@pytest.mark.usefixtures("fast_switching")
def test_many_closers_wake_the_consumer(loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(30):
        channel: Channel[int] = Channel(loop, 2)
        assert together([channel.receive, *[channel.close] * 20]) == [CLOSED, *[None] * 20]


# Through the public interface: backpressure on a real connection.


def numbered(count: int, padding: int) -> Callable[[ReceivedRequest], Iterator[Step]]:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        text = "x" * padding
        for n in range(count):
            yield send([n, text])
        yield send("[DONE]")

    return script


def watch_buffer(it: EventStream[Any], items: Iterator[Any]) -> tuple[int, list[int]]:
    """Read to the end; return the largest buffered size, and the numbers."""
    most, numbers = 0, []
    for number, _ in items:
        most = max(most, it.stats.buffered)
        numbers.append(number)
    return most, numbers


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 4096, 100_000, 1024 * 1024])
def test_slow_consumer_loses_nothing_within_its_limit(limit: int) -> None:
    with SSEServer(numbered(2000, 1000)) as server:
        it = request_sse(server.url, max_buffered_bytes=limit).events
        until(lambda: it.stats.buffered)
        most, numbers = watch_buffer(it, iter(it))
        assert numbers == list(range(2000))
        # One event that exceeds the limit may enter an empty channel.
        assert most <= max(limit, 2000)
        assert it.stats.events == 2000


def test_tiny_events_are_charged_for_what_they_cost() -> None:
    burst = b"data: 1\n\n" * 20_000
    with SSEServer([burst, send("[DONE]")]) as server:
        it = request_sse(server.url, max_buffered_bytes=50_000).events
        until(lambda: it.stats.buffered)
        held = [it.stats.buffered for _ in it]
        assert len(held) == 20_000
        assert max(held) <= 50_000


@pytest.mark.slow
def test_decompressed_data_is_bounded() -> None:
    bomb = gzip.compress(b"data: 1\n\n" * 2_000_000)
    with SSEServer([respond(headers={"Content-Encoding": "gzip"}), bomb, silence()]) as server:
        it = request_sse(server.url).events
        assert [item for item, _ in zip(it.keep_open(), range(100_000), strict=False)] == [1] * 100_000
        assert it.stats.buffered <= 1024 * 1024
        assert it.stats.events < 200_000
        it.close()
        server.requests[0].wait_aborted()


@pytest.mark.slow
def test_an_event_larger_than_the_buffer_passes() -> None:
    big = "x" * 3_000_000
    with SSEServer([send([0, ""]), send([1, big]), send([2, big]), send([3, ""]), send("[DONE]")]) as server:
        it = request_sse(server.url, max_buffered_bytes=1000).events
        assert [(n, len(text)) for n, text in it] == [(0, 0), (1, 3_000_000), (2, 3_000_000), (3, 0)]


@pytest.mark.heavy
def test_backpressure_reaches_the_upstream() -> None:
    # In a process of its own, whose memory is what the library holds.
    def gigabyte(request: ReceivedRequest) -> Iterator[Step]:
        text = "x" * 100_000
        for n in range(10_000):
            yield send([n, text])
        yield send("[DONE]")

    program = """
import json, sys, time
from sseqbridge import request_sse
from tests.support import peak_rss

it = request_sse(sys.argv[1]).events
first, _ = next(it)
before, received = peak_rss(), -1
while received != it.stats.bytes:
    received = it.stats.bytes
    time.sleep(0.2)
held_back = it.stats
numbers = [first]
for n, text in it:
    numbers.append(n)
    if n == 1500:
        break
print(json.dumps([held_back.buffered, held_back.bytes, peak_rss() - before, numbers == list(range(1501))]))
"""
    with SSEServer(gigabyte) as server:
        status, out, err = python(program, server.url)
        assert (status, err) == (0, "")
        buffered, received, grown, in_order = json.loads(out)
        assert buffered <= 1024 * 1024
        assert received < 2 * 1024 * 1024
        assert grown < 16 * 1024 * 1024
        assert in_order
        (request,) = server.requests
        request.wait_aborted()
        assert request.sent_bytes < 200_000_000


def test_backpressure_on_one_stream_delays_no_other() -> None:
    with SSEServer(numbered(100_000, 1000)) as server:
        held_back = request_sse(server.url, max_buffered_bytes=10_000).events
        until(lambda: held_back.stats.buffered)
        for _ in range(20):
            with request_sse(server.url).events as it:
                assert next(it)[0] == 0
        held_back.close()


def test_buffered_items_outlive_their_upstream() -> None:
    with SSEServer(numbered(2, 0)) as server:
        it = request_sse(server.url).events
        assert server.requests[0].finished.wait(30)
    assert [n for n, _ in it] == [0, 1]


def test_the_stats_of_a_silent_stream() -> None:
    with SSEServer([send("a"), silence()]) as server, request_sse(server.url, decode="text").events as it:
        assert next(it) == "a"
        stats = it.stats
        assert (stats.bytes, stats.events, stats.reconnections) == (len(b"data: a\n\n"), 1, 0)
        assert stats.buffered == len(b"data: a\n\n") + 256
        assert stats.time_to_first_event is not None
        assert 0 < stats.time_to_first_event < 30
