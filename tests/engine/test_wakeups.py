"""The chain of wake-ups: one consumer at a time is on its way, and none is forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

import pytest

from sseqbridge import Bridge, request_sse
from sseqbridge._engine.channel import Channel, End
from sseqbridge._engine.wakeups import WakeupChain
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.support import in_thread, is_waiting, until


class Consumer:
    """Counts its wake-ups. It never runs, and so does not wake the next one."""

    def __init__(self, chain: WakeupChain) -> None:
        self.woken = 0
        self._chain = chain

    def wake(self) -> None:
        self.woken += 1

    def need(self) -> None:
        """Do what a channel does that has an entry for a consumer that waits."""
        if self._chain.begin():
            self.wake()
        else:
            self._chain.add(self.wake)


def counts(consumers: list[Consumer]) -> list[int]:
    return [consumer.woken for consumer in consumers]


def test_each_consumer_wakes_the_next_one() -> None:
    async def main() -> None:
        chain = WakeupChain(asyncio.get_running_loop())
        consumers = [Consumer(chain) for _ in range(3)]
        for consumer in consumers:
            consumer.need()
        for expected in ([1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]):
            assert counts(consumers) == expected
            chain.pass_on()
        assert chain.begin()

    asyncio.run(main())


@pytest.mark.parametrize("count", [2, 4, 50])
def test_consumers_that_do_not_run_hold_up_no_other(count: int) -> None:
    """As after an interrupt: the first one is woken, and never wakes the next."""

    async def main() -> None:
        chain = WakeupChain(asyncio.get_running_loop())
        consumers = [Consumer(chain) for _ in range(count)]
        for consumer in consumers:
            consumer.need()
        while 0 in counts(consumers):
            await asyncio.sleep(0)
        assert counts(consumers) == [1] * count

    asyncio.run(main())


def test_loop_waits_for_a_long_chain() -> None:
    """The consumers run in the meantime, and the last one ends the wait."""

    async def main() -> None:
        chain = WakeupChain(asyncio.get_running_loop())
        chain._idle = idle = Idle()  # type: ignore[assignment]
        awake = [threading.Event() for _ in range(8)]

        def run(event: threading.Event) -> None:
            event.wait(30)
            chain.pass_on()

        running = [in_thread(partial(run, event)) for event in awake]
        assert chain.begin()
        for event in awake:
            chain.add(event.set)
        # The consumer that was on its way runs while the loop waits.
        idle.when_waiting = chain.pass_on
        await asyncio.sleep(0)
        assert all(event.is_set() for event in awake)
        assert idle.was_woken
        for future in running:
            future.result(30)
        assert chain.begin()

    asyncio.run(main())


class Idle:
    """The loop's wait for its consumers, without a time limit."""

    def __init__(self) -> None:
        self.was_woken = False
        self.when_waiting: Callable[[], object] = bool
        self._woken = threading.Event()

    def wait(self, timeout: float) -> None:
        starting = in_thread(self.when_waiting)
        self.was_woken = self._woken.wait(30)
        starting.result(30)

    def wake(self) -> None:
        self._woken.set()


def test_wakeup_that_an_interrupt_left_is_called_again() -> None:
    class Alarm(BaseException):
        pass

    async def main() -> None:
        chain = WakeupChain(asyncio.get_running_loop())
        first, second, third = (Consumer(chain) for _ in range(3))
        first.need()

        def interrupted() -> None:
            second.wake()
            if second.woken == 1:
                raise Alarm

        chain.add(interrupted)
        third.need()
        with pytest.raises(Alarm):
            chain.pass_on()
        chain.pass_on()
        chain.pass_on()
        assert counts([first, second, third]) == [1, 2, 1]

    asyncio.run(main())


def test_two_threads_may_call_the_same_wakeup() -> None:
    async def main() -> None:
        chain = WakeupChain(asyncio.get_running_loop())
        both, called = threading.Barrier(2), []
        Consumer(chain).need()

        def wake() -> None:
            called.append(threading.get_ident())
            both.wait(30)

        chain.add(wake)
        passing = [in_thread(chain.pass_on) for _ in range(2)]
        for future in passing:
            future.result(30)
        assert len(set(called)) == 2
        await asyncio.sleep(0)
        assert len(called) == 2

    asyncio.run(main())


def test_closed_chain_wakes_all_at_once() -> None:
    async def main() -> None:
        chain = WakeupChain(asyncio.get_running_loop())
        consumers = [Consumer(chain) for _ in range(5)]
        for consumer in consumers[:4]:
            consumer.need()
        chain.close()
        assert counts(consumers) == [1, 1, 1, 1, 0]
        consumers[4].need()
        assert counts(consumers) == [1] * 5

    asyncio.run(main())


# Channels.


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Yield a loop that another thread runs."""
    loop = asyncio.new_event_loop()
    running = in_thread(loop.run_forever)
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.result(30)
        loop.close()


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Run a function on the loop's thread, and wait for it."""
    done: Future[object] = Future()
    loop.call_soon_threadsafe(lambda: done.set_result(function()))
    done.result(30)


def test_all_consumers_of_a_burst_get_their_entries() -> None:
    with running_loop() as loop:
        chain = WakeupChain(loop)
        channels: list[Channel[int]] = [Channel(loop, 1000, chain) for _ in range(100)]

        def receive(channel: Channel[int]) -> list[int | End]:
            return [channel.receive() for _ in range(50)]

        def send_to_all(number: int) -> None:
            for channel in channels:
                channel.send_nowait(number)

        receiving = [in_thread(partial(receive, channel)) for channel in channels]
        until(lambda: all(map(is_waiting, receiving)))
        for number in range(50):
            on_loop(loop, partial(send_to_all, number))
        assert [future.result(30) for future in receiving] == [list(range(50))] * 100


def test_consumer_that_waits_otherwise_now_is_woken_once() -> None:
    """Its wake-up was queued while a thread waited, whose time was up."""
    with running_loop() as loop:
        chain = WakeupChain(loop)
        channel: Channel[int] = Channel(loop, 1000, chain)
        notified: list[bool] = []

        def queue() -> None:
            assert chain.begin()
            waiting = in_thread(lambda: channel.take_within(30))
            until(lambda: is_waiting(waiting))
            channel.send_nowait(1)
            # The chain has its wake-up now.
            assert is_waiting(waiting)
            chain.pass_on()
            assert waiting.result(30) == 1
            # A second wake-up, for the same channel, which nobody has waited for any more.
            channel.notify(lambda: notified.append(True))
            chain.add(channel._wake_later)
            chain.pass_on()
            channel.send_nowait(2)

        on_loop(loop, queue)
        until(lambda: notified)
        assert (channel.poll(), notified) == (2, [True])


def test_close_wakes_a_consumer_whose_wakeup_is_queued() -> None:
    with running_loop() as loop:
        chain = WakeupChain(loop)
        channel: Channel[int] = Channel(loop, 1000, chain)

        def queue() -> None:
            assert chain.begin()
            waiting = in_thread(channel.receive)
            until(lambda: is_waiting(waiting))
            channel.send_nowait(1)
            channel.send_nowait(2)
            channel.close()
            # Without a step of the loop.
            assert waiting.result(30) == End("closed")

        on_loop(loop, queue)


def test_hundred_threads_read_streams_that_send_at_once() -> None:
    go = threading.Event()
    with SSEServer([send(0), hold(go), *map(send, range(1, 20)), send("[DONE]")]) as server, Bridge() as bridge:
        streams = [request_sse(server.url, bridge=bridge).events for _ in range(100)]
        assert [next(stream) for stream in streams] == [0] * 100
        reading = [in_thread(stream.collect) for stream in streams]
        until(lambda: all(map(is_waiting, reading)))
        go.set()
        assert [future.result(60) for future in reading] == [list(range(1, 20))] * 100


def test_end_of_the_bridge_wakes_all_consumers() -> None:
    with SSEServer([send(0), silence()]) as server:
        bridge = Bridge()
        streams = [request_sse(server.url, bridge=bridge).events for _ in range(50)]
        assert [next(stream) for stream in streams] == [0] * 50
        reading = [in_thread(partial(stream.next, 60)) for stream in streams]
        until(lambda: all(map(is_waiting, reading)))
        bridge.close()
        assert {type(future.exception(30)).__name__ for future in reading} == {"BridgeClosedError"}
