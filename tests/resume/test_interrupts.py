"""An interrupt at any bytecode of a log's calls: its readers miss no event, and nothing is left running or locked."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from sseqbridge import Bridge, SSEError, UsageError, request_sse
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, send, silence
from tests.interrupts import ALL, COUNT, MARKS, interruptions, read_all
from tests.support import until

from .support import DONE, check_often, hub_of

pytestmark = MARKS


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with Bridge() as bridge:
        yield bridge


@pytest.fixture
def log(bridge: Bridge) -> Iterator[MemoryLog]:
    with MemoryLog(bridge=bridge) as log:
        check_often(log)
        yield log


def start_of(server: SSEServer, bridge: Bridge) -> Any:
    return partial(request_sse, server.url, decode="text", bridge=bridge)


@pytest.mark.parametrize("way", ["next", "poll", "loop", "keep_open", "collect"])
def test_interrupt_at_any_bytecode_of_reading_a_log(log: MemoryLog, bridge: Bridge, way: str) -> None:
    with SSEServer([*map(send, ALL), DONE]) as server:
        assert log.open("key", start_of(server, bridge), decode="text").collect() == ALL

    def make() -> tuple[Any, list[str]]:
        return log.open("key", decode="text"), []

    for (stream, got), _ in interruptions(make, lambda made: read_all(*made, way)):
        if stream.outcome is None:
            got.extend(stream)
        assert got == ALL or (stream.outcome == "closed" and got == ALL[: len(got)])
        stream.close()
    until(lambda: not hub_of(log).readers)


def test_interrupt_at_any_bytecode_of_open_leaves_no_reader(log: MemoryLog, bridge: Bridge) -> None:
    with SSEServer([*map(send, ALL), DONE]) as server:
        log.open("key", start_of(server, bridge), decode="text").collect()
    for _ in interruptions(lambda: None, lambda _: log.open("key").close(), least=200):
        until(lambda: not hub_of(log).readers)


@pytest.mark.parametrize("way", ["open", "produce"])
def test_interrupt_at_any_bytecode_of_beginning_a_stream(log: MemoryLog, bridge: Bridge, way: str) -> None:
    """The stream is written to its end, or can be begun again: no lease is held for nothing."""
    keys = map(str, itertools.count())
    with SSEServer([*map(send, ALL), DONE]) as server:
        start = start_of(server, bridge)

        def begin(key: str) -> None:
            if way == "produce":
                log.produce(key, start)
            else:
                log.open(key, start).close()

        for key, _ in interruptions(lambda: next(keys), begin, is_prepared=True, least=200):
            assert log.open(key, start, takeover=True, decode="text").collect()[-COUNT:] in (ALL, [ALL[-1]])
            until(lambda: not bridge.stats().open_streams)


@pytest.mark.parametrize("way", ["open", "produce"])
@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_interrupt_at_any_bytecode_of_beginning_an_iterable(log: MemoryLog, way: str, is_asynchronous: bool) -> None:
    """No iterable keeps running that no producer reads, and the stream can be begun again."""
    keys = map(str, itertools.count())
    running: list[object] = []

    def items() -> Iterator[str]:
        this = object()
        running.append(this)
        try:
            yield from ALL
        finally:
            running.remove(this)

    async def aitems() -> AsyncIterator[str]:
        for item in items():
            yield item

    def begin(key: str) -> None:
        if way == "produce":
            log.produce(key, start)
        else:
            log.open(key, start).close()

    start = aitems if is_asynchronous else items
    for key, _ in interruptions(lambda: next(keys), begin, is_prepared=True, least=200):
        assert log.open(key, start, takeover=True, decode="text").collect()[-COUNT:] == ALL
        until(lambda: not running)


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_interrupt_of_ending_a_stream_can_be_repeated(log: MemoryLog, bridge: Bridge, way: str) -> None:
    keys = map(str, itertools.count())
    with SSEServer([*map(send, ALL), silence()]) as server:

        def make() -> tuple[str, Any]:
            key = next(keys)
            return key, log.open(key, start_of(server, bridge), decode="text")

        for (key, stream), _ in interruptions(make, lambda made: getattr(log, way)(made[0]), least=20):
            getattr(log, way)(key)
            with pytest.raises((StopIteration, SSEError)):
                while True:
                    stream.next(30)
        until(lambda: not bridge.stats().open_streams)


def test_interrupt_of_closing_a_log_can_be_repeated(bridge: Bridge) -> None:
    with SSEServer([send("0"), silence()]) as server:

        def make() -> tuple[MemoryLog, Any]:
            log = MemoryLog(bridge=bridge)
            return log, log.open("key", start_of(server, bridge), decode="text")

        for (log, stream), _ in interruptions(make, lambda made: made[0].close(), least=20):
            log.close()
            assert list(stream) in ([], ["0"])
            with pytest.raises(UsageError):
                log.open("key")
        until(lambda: not bridge.stats().open_streams)
