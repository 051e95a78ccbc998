"""Readers, producers, delete, cancel and close race on one stream of a log of each kind."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sseqbridge import SSEError, UsageError
from sseqbridge.resume import Log
from tests.support import in_thread, until

from .support import Logs, hub_of

pytestmark = pytest.mark.slow

ITEMS = 30
READERS = 6
# How a reader ends that has no error.
ENDS = ("eof", "closed")
# Of a stream that was cancelled before it had begun, or did not exist; of a log that was closed.
ERRORS = ("RequestAbortedError", "StreamNotFoundError", "BridgeClosedError", "UsageError")


class Race:
    """One stream, which several threads read, begin and end at random."""

    def __init__(self, log: Log, key: str, chance: random.Random) -> None:
        self._log = log
        self._key = key
        self._chance = chance
        self._generations = itertools.count()
        self._barrier = threading.Barrier(READERS + 1)

    def run(self) -> None:
        calls: list[Callable[[], None]] = [self._end, *[self._read] * READERS]
        self._chance.shuffle(calls)
        for running in [in_thread(call) for call in calls]:
            running.result(60)

    def _items(self) -> Iterator[list[int]]:
        generation = next(self._generations)
        for number in range(ITEMS):
            yield [generation, number]

    async def _aitems(self) -> AsyncIterator[list[int]]:
        for item in self._items():
            yield item

    def _read(self) -> None:
        start: Any = self._chance.choice([self._items, self._aitems, None])
        self._barrier.wait(30)
        items: list[list[int]] = []
        try:
            with self._log.open(self._key, start, wait=self._chance.choice([0, 1])) as stream:
                items.extend(stream)
            end = str(stream.outcome)
        except (SSEError, UsageError) as error:
            end = type(error).__name__
        assert len({generation for generation, _ in items}) <= 1, items
        assert [number for _, number in items] == list(range(len(items)))
        assert end in (ENDS + ERRORS)
        assert end != "eof" or len(items) == ITEMS

    def _end(self) -> None:
        ways = [self._log.delete, self._log.delete, self._log.cancel]
        self._barrier.wait(30)
        for _ in range(self._chance.randrange(1, 20)):
            try:
                self._chance.choice(ways)(self._key)
            except UsageError as error:
                assert "closed" in str(error)
            if self._chance.random() < 0.02:
                self._log.close()


@pytest.mark.parametrize("seed", range(5))
def test_racing_calls_mix_no_streams_and_lose_nothing(logs: Logs, seed: int) -> None:
    log = logs.new()
    for number in range(20):
        chance = random.Random(f"{seed} {number}")
        Race(log, f"k{number}", chance).run()
        try:
            hub = hub_of(log)
        except UsageError:
            log = logs.new()
        else:
            until(lambda: not hub.topics)  # noqa: B023
