"""Asynchronous code of random behaviour, read and left in random ways by many threads: nothing is lost, left or hung.

Each generator waits, yields, computes, starts child tasks, fails or ignores a cancellation, as its own random numbers
say. The reader knows from the same seed which items must come, and how the stream may end.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import anyio

from sseqbridge import Bridge, RequestAbortedError, Stream, UsageError, cancel_on, merge, tee

__all__ = ["Chaos", "run"]


class SourceError(Exception):
    """The failure of a generator."""


@dataclass
class Chaos:
    """One run: its bridge, and what it has counted."""

    bridge: Bridge
    seed: int
    # Generators that were entered, and have not ended.
    alive: set[int] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    items: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def random(self, number: int) -> random.Random:
        """Return the random numbers of one stream."""
        return random.Random(f"{self.seed}-{number}")

    async def source(self, number: int, length: int, ending: str) -> AsyncIterator[int]:
        """Yield numbers in a random rhythm, and end in the given way."""
        choose = self.random(number)
        self.alive.add(number)
        try:
            async with anyio.create_task_group() as group:
                for n in range(length):
                    step = choose.randrange(6)
                    if step == 0:
                        await anyio.sleep(choose.random() / 1000)
                    elif step == 1:
                        group.start_soon(anyio.sleep, choose.random() / 1000)
                    elif step == 2:
                        await asyncio.sleep(0)
                    yield n
                if ending == "silence":
                    await anyio.sleep_forever()
                group.cancel_scope.cancel()
            if ending == "failure":
                raise SourceError(number)
        finally:
            try:
                if choose.random() < 0.5:
                    # A cancellation may come now.
                    await anyio.sleep(choose.random() / 1000)
            finally:
                self.alive.discard(number)


# Ways of reading: each yields the items that it reads.
Way = Callable[[Chaos, Any, random.Random], Iterator[int]]


def by_loop(chaos: Chaos, stream: Stream[int], choose: random.Random) -> Iterator[int]:
    yield from stream


def by_next(chaos: Chaos, stream: Stream[int], choose: random.Random) -> Iterator[int]:
    while True:
        try:
            yield stream.next(timeout=choose.choice((0, 0.001, None)))
        except TimeoutError:
            pass
        except StopIteration:
            return


def by_poll(chaos: Chaos, stream: Stream[int], choose: random.Random) -> Iterator[int]:
    while True:
        polled = stream.poll()
        yield from polled
        if not polled:
            if stream.outcome is not None:
                return
            time.sleep(0.0005)


def by_merge(chaos: Chaos, stream: Stream[int], choose: random.Random) -> Iterator[int]:
    for _, item in merge([stream]):
        yield item


def by_tee(chaos: Chaos, stream: Stream[int], choose: random.Random) -> Iterator[int]:
    try:
        readers = tee(stream, 2)
    except UsageError:
        # It was closed in the meantime.
        assert stream.outcome is not None
        return
    with readers as (one, other):
        other.close()
        yield from one


WAYS: tuple[Way, ...] = (by_loop, by_next, by_poll, by_merge, by_tee)
LEAVINGS = ("to the end", "break", "close", "flag", "scope", "drop")


def read(chaos: Chaos, number: int) -> None:
    """Read one stream in a random way, and check its items and its end."""
    choose = chaos.random(-number - 1)
    length, ending = choose.randrange(1, 60), choose.choice(("end", "end", "failure", "silence"))
    leaving = choose.choice(LEAVINGS if ending == "silence" else LEAVINGS + LEAVINGS[:1] * 3)
    if ending == "silence" and leaving == "to the end":
        leaving = "close"
    leave_at = choose.randrange(length)
    way, flag = choose.choice(WAYS), threading.Event()
    stream = chaos.bridge.iterate(
        lambda: chaos.source(number, length, ending),
        max_buffered=choose.choice((1, 3, 64)),
        cancel=flag if leaving == "flag" else None,
    )
    items: list[int] = []
    end = "left"
    try:
        with cancel_on(flag if leaving == "scope" else threading.Event()) as scope:
            if leaving in ("break", "drop"):
                items += take(way(chaos, stream, choose), leave_at)
            else:
                if leaving != "to the end":
                    timer = threading.Timer(choose.random() / 100, stream.close if leaving == "close" else flag.set)
                    timer.start()
                items.extend(way(chaos, stream, choose))
                end = "end"
        end = "cancelled" if scope.cancelled else end
    except SourceError as failure:
        assert failure.args == (number,)
        end = "failure"
    except RequestAbortedError:
        end = "aborted"
    del stream
    # In every case no item is missing or repeated.
    assert items == list(range(len(items))), (number, items)
    if leaving == "to the end":
        assert (len(items), end) == (length, ending), (number, items, end)
    with chaos.lock:
        chaos.ends[f"{leaving} -> {end}"] += 1
        chaos.items += len(items)


def take(items: Iterator[int], count: int) -> list[int]:
    """Return the first items, and leave the loop."""
    taken: list[int] = []
    for item in items:
        taken.append(item)
        if len(taken) > count:
            break
    return taken


def run(streams: int, seed: int, *, threads: int = 8) -> Chaos:
    """Read many streams, and check that nothing is left of them."""
    with Bridge() as bridge:
        chaos = Chaos(bridge, seed)
        with ThreadPoolExecutor(threads) as pool:
            for reading in [pool.submit(read, chaos, number) for number in range(streams)]:
                reading.result()

        async def tasks() -> int:
            return len(asyncio.all_tasks())

        deadline = time.monotonic() + 30
        while chaos.alive or bridge.stats().open_streams or bridge.run(tasks) > 1:
            assert time.monotonic() < deadline, (chaos.alive, bridge.stats())
            time.sleep(0.01)
    return chaos
