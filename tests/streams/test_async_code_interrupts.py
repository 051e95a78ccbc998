"""An interrupt at any bytecode of iterate, run and enter: no item is missed, no asynchronous code is left running."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sseqbridge import Bridge
from tests.interrupts import ALL, MARKS, interruptions, read_all
from tests.support import until

pytestmark = MARKS


class Code:
    """Asynchronous code of the caller's on a bridge, and what of it is running."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.running: set[object] = set()
        self.ended = threading.Event()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        this = object()
        self.running.add(this)
        try:
            await asyncio.sleep(0)
            yield
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                self.running.discard(this)
                self.ended.set()

    async def items(self) -> AsyncIterator[str]:
        async with self.session():
            for item in ALL:
                yield item
                await asyncio.sleep(0)

    async def coroutine(self) -> str:
        async with self.session():
            return ALL[0]

    def check(self) -> None:
        """Wait until nothing is running any more."""
        gc.collect()
        until(lambda: not (self.running or self.bridge.stats().open_streams))


@pytest.fixture
def code() -> Iterator[Code]:
    with Bridge() as bridge:
        bridge.started()
        yield Code(bridge)


@pytest.mark.parametrize(
    ("way", "has_ended"),
    [
        *((way, True) for way in ("next", "poll", "loop", "keep_open", "collect")),
        *((way, False) for way in ("next", "loop", "keep_open", "collect")),
    ],
)
def test_interrupt_at_any_bytecode_of_reading_an_iteration(code: Code, way: str, has_ended: bool) -> None:
    """With `has_ended` all items and the end have arrived before the first read."""

    def make() -> tuple[Any, list[str]]:
        code.ended.clear()
        stream = code.bridge.iterate(code.items)
        if has_ended:
            assert code.ended.wait(30)
            code.check()
        return stream, []

    for (stream, got), _ in interruptions(make, lambda made: read_all(*made, way)):
        if stream.outcome is None:
            got.extend(stream)
        assert got == ALL or (stream.outcome == "closed" and got == ALL[: len(got)])
        stream.close()
        code.check()


def iterate(code: Code) -> None:
    code.bridge.iterate(code.items).close()


def run(code: Code) -> None:
    code.bridge.run(code.coroutine())


def enter(code: Code) -> None:
    with code.bridge.enter(code.session):
        pass


@pytest.mark.parametrize("call", [iterate, run, enter])
def test_interrupt_at_any_bytecode_leaves_nothing_running(code: Code, call: Callable[[Code], None]) -> None:
    for _ in interruptions(lambda: code, call, is_prepared=True, least=100):
        code.check()
