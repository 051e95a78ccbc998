"""No call of `on_item` follows `on_end`, although an iterable runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sseqbridge import relay, request_sse
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import SSEServer, send, silence
from tests.clock import FakeClock
from tests.relay.support import Relay
from tests.support import in_thread, until


def held_at_b() -> tuple[list[Any], threading.Event, threading.Event, Callable[[str], None]]:
    """Return a log, two events, and an `on_item` that logs. At "b" it sets the first event, and waits for the other."""
    log: list[Any] = []
    begun, go = threading.Event(), threading.Event()

    def on_item(item: str) -> None:
        if item == "b":
            begun.set()
            assert go.wait(30)
        log.append(item)

    return log, begun, go, on_item


def test_item_after_the_close_is_not_seen(relayed: Relay) -> None:
    """The iterable yields once more after the client has left."""
    log: list[Any] = []
    go, ended = threading.Event(), threading.Event()

    def items() -> Iterator[str]:
        try:
            yield "a"
            go.wait(30)
            yield "b"
        finally:
            ended.set()

    reading = relayed(items(), on_item=log.append, on_end=lambda end: log.append(end.outcome))
    assert reading.next_event() == b"data: a\n\n"
    reading.close()
    go.set()
    assert ended.wait(30)
    assert log == ["a", "disconnected"]


def test_on_end_waits_for_a_call_of_on_item(relayed: Relay) -> None:
    log, begun, go, on_item = held_at_b()

    reading = relayed(iter(["a", "b"]), on_item=on_item, on_end=lambda end: log.append(end.outcome))
    assert reading.next_event().startswith(b"data: a\n\n")
    assert begun.wait(30)
    closing = in_thread(reading.close)
    go.set()
    closing.result(30)
    until(lambda: len(log) == 3)
    assert log == ["a", "b", "disconnected"]


def test_on_end_does_not_wait_for_a_hung_on_item() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def on_item(item: str) -> None:
        begun.set()
        go.wait(30)

    frames = relay.frames(iter(["a", "b"]), on_item=on_item, on_end=lambda end: ended.set())
    assert next(frames) == HEARTBEAT
    assert begun.wait(30)
    frames.close()
    assert ended.is_set()
    go.set()


def test_on_item_may_close_the_relay() -> None:
    """A call that waits for its own end."""
    log: list[Any] = []

    def on_item(item: str) -> None:
        log.append(item)
        frames.close()

    frames = relay.frames(iter(["a", "b"]), on_item=on_item, on_end=lambda end: log.append(end.outcome))
    assert b"".join(piece for piece in frames if piece != HEARTBEAT) == b""
    until(lambda: len(log) == 2)
    assert log == ["a", "disconnected"]


def test_close_in_a_coroutine_ends_the_calls_of_on_item() -> None:
    log: list[Any] = []
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def items() -> Iterator[str]:
        yield "a"
        begun.set()
        go.wait(30)
        try:
            yield "b"
        finally:
            ended.set()

    async def main() -> None:
        frames = relay.aframes(items(), on_item=log.append, on_end=lambda end: log.append(end.outcome))
        while await anext(frames) == HEARTBEAT:
            pass
        await asyncio.to_thread(begun.wait, 30)
        frames.close()
        go.set()
        await asyncio.to_thread(ended.wait, 30)
        while len(log) < 2:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert log == ["a", "disconnected"]


@pytest.mark.parametrize("where", ["coroutine", "thread"])
def test_on_end_after_close_waits_for_on_item(where: str) -> None:
    """The relay is not being read."""
    log, begun, go, on_item = held_at_b()

    async def main() -> None:
        frames = relay.aframes(iter(["a", "b"]), on_item=on_item, on_end=lambda end: log.append(end.outcome))
        while b"data: a" not in await anext(frames):
            pass
        await asyncio.to_thread(begun.wait, 30)
        if where == "coroutine":
            frames.close()
        else:
            closing = asyncio.create_task(asyncio.to_thread(frames.close))
            await asyncio.to_thread(until, lambda: repr(frames) == "<AsyncFrames ended>")
        go.set()
        await asyncio.to_thread(until, lambda: len(log) == 3)
        if where == "thread":
            await closing

    asyncio.run(main())
    assert log == ["a", "b", "disconnected"]


def test_on_end_after_a_send_timeout_waits_for_on_item(clock: FakeClock) -> None:
    calls: list[str] = []
    began, go = threading.Event(), threading.Event()

    def on_item(item: str) -> None:
        if item == "b":
            began.set()
            assert go.wait(30)
            calls.append("on_item")

    def items() -> Iterator[str]:
        yield from request_sse(server.url, decode="text", timeout=None).events

    async def main() -> None:
        frames = relay.aframes(
            items(), on_item=on_item, on_end=lambda end: calls.append(end.outcome), send_timeout=300
        )
        while b"data: a" not in await anext(frames):
            pass
        assert await asyncio.to_thread(began.wait, 30)
        # The client does not read on.
        clock.advance(300)
        await asyncio.to_thread(server.requests[0].wait_aborted, 30)
        go.set()
        await asyncio.to_thread(until, lambda: len(calls) == 2)
        await frames.aclose()

    with SSEServer([send("a"), send("b"), silence()]) as server:
        asyncio.run(main())
    assert calls == ["on_item", "disconnected"]
