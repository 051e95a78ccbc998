"""An interrupt at any bytecode of a relay: it has ended then, or continues with the very next frame."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from sseqbridge import EventStreamParser, ServerSentEvent, relay
from sseqbridge._engine.channel import End
from tests.interrupts import ALL, MARKS, interruptions, numbers
from tests.support import until

pytestmark = MARKS


def data(pieces: list[bytes]) -> list[str]:
    events = EventStreamParser().feed(b"".join(pieces))
    return [event.data for event in events if isinstance(event, ServerSentEvent)]


def read(made: tuple[Any, Any, list[bytes]]) -> None:
    _, frames, pieces = made
    pieces.extend(frames)


def made_of_a_stream(**options: Any) -> tuple[Any, Any, list[bytes]]:
    stream = numbers(end=End("eof"))
    return stream, relay.frames(stream, **options), []


@pytest.mark.parametrize("options", [{}, {"map": str.upper}, {"heartbeat": None}])
def test_interrupt_at_any_bytecode_of_frames(options: dict[str, Any]) -> None:
    for (stream, frames, pieces), _ in interruptions(lambda: made_of_a_stream(**options), read):
        got = data(pieces)
        later = data(list(frames))
        if later:
            assert [*got, *later] == ALL
        else:
            assert got == ALL[: len(got)]
            # The reader of the upstream is never left behind, open and without a consumer.
            assert stream.outcome is not None


def test_interrupt_at_any_bytecode_of_frames_of_an_iterable() -> None:
    """The iterable is closed, and its thread ends."""
    closed: list[bool] = []

    def is_closed(generator: Any) -> bool:
        return bool(closed) or inspect.getgeneratorstate(generator) in (inspect.GEN_CREATED, inspect.GEN_CLOSED)

    def items() -> Iterator[str]:
        try:
            yield from ALL
        finally:
            closed.append(True)

    def make() -> tuple[Any, Any, list[bytes]]:
        closed.clear()
        generator = items()
        return generator, relay.frames(generator), []

    for (generator, frames, pieces), _ in interruptions(make, read):
        got = data(pieces)
        later = data(list(frames))
        assert [*got, *later] == ALL or (not later and got == ALL[: len(got)])
        # A generator that was never started has nothing to clean up.
        until(partial(is_closed, generator))
        generator.close()


@pytest.mark.parametrize("is_opened", [False, True])
def test_interrupt_at_any_bytecode_of_frames_of_a_function(is_opened: bool) -> None:
    def make() -> tuple[Any, Any, list[bytes]]:
        stream = numbers(end=End("eof"))
        return stream, relay.frames(lambda: stream), []

    def run(made: tuple[Any, Any, list[bytes]]) -> None:
        if is_opened:
            made[1].open()
        read(made)

    for (_, frames, pieces), _ in interruptions(make, run):
        got = data(pieces)
        later = data(list(frames))
        assert [*got, *later] == ALL or (not later and got == ALL[: len(got)])
        frames.close()


def test_interrupt_at_any_bytecode_of_making_frames() -> None:
    for stream, _ in interruptions(lambda: numbers(end=End("eof")), relay.frames):
        assert stream.outcome == "closed" or stream.collect() == ALL


def test_interrupt_at_any_bytecode_of_asynchronous_frames() -> None:
    loop = asyncio.new_event_loop()

    async def collect(frames: Any, pieces: list[bytes]) -> None:
        async for piece in frames:
            pieces.append(piece)  # noqa: PERF401 (keeps what came before an interrupt)

    def make() -> tuple[Any, Any, list[bytes]]:
        stream = numbers(end=End("eof"))
        return stream, relay.aframes(stream), []

    def aread(made: tuple[Any, Any, list[bytes]]) -> None:
        loop.run_until_complete(collect(*made[1:]))

    for (_, frames, pieces), _ in interruptions(make, aread):
        got, later = data(pieces), list[bytes]()
        loop.run_until_complete(collect(frames, later))
        assert [*got, *data(later)] == ALL or (not later and got == ALL[: len(got)])
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
