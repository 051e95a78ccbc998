"""Relays of asynchronous iterables, which run in a task."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sseqbridge import (
    relay,
)
from sseqbridge.relay._writer import HEARTBEAT
from tests.clock import FakeClock
from tests.relay.support import collect, error_of


class FailsAtItsEnd:
    """An asynchronous iterator whose aclose() fails."""

    def __init__(self, *items: Any) -> None:
        self._items = list(items)

    def __aiter__(self) -> FailsAtItsEnd:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            raise StopAsyncIteration
        if isinstance(item := self._items.pop(0), Exception):
            raise item
        return item

    async def aclose(self) -> None:
        raise LookupError("in the end")


@pytest.mark.parametrize("error", [TimeoutError, StopIteration, asyncio.CancelledError])
def test_control_flow_exceptions_of_an_asynchronous_iterable_are_its_errors(error: type[BaseException]) -> None:
    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> str:
            raise error

    async def main() -> None:
        assert error_of(b"".join(await collect(relay.aframes(Items()))))["type"] == "ServerError"

    asyncio.run(main())


def test_failure_of_aclose_at_the_end_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def read(*items: Any) -> bytes:
        return b"".join([piece async for piece in relay.aframes(FailsAtItsEnd(*items), heartbeat=None)])

    read_well = asyncio.run(read("a"))
    assert b"data: a\n\n" in read_well
    assert error_of(read_well)["type"] == "ServerError"
    assert "LookupError: in the end" in caplog.text
    caplog.clear()
    # The client gets the first failure, the log both.
    assert error_of(asyncio.run(read(ValueError("first"))))["type"] == "ServerError"
    assert "ValueError: first" in caplog.text
    assert "LookupError: in the end" in caplog.text


def test_asynchronous_iterable_runs_in_the_views_context() -> None:
    user = contextvars.ContextVar[str]("user")

    async def items() -> AsyncIterator[str]:
        yield user.get()

    def view() -> relay.AsyncFrames:
        user.set("ann")
        return relay.aframes(items(), heartbeat=None)

    async def main() -> bytes:
        # A server calls a synchronous view in another context than the one in which it sends the response.
        return b"".join([piece async for piece in contextvars.copy_context().run(view)])

    assert asyncio.run(main()).endswith(b"data: ann\n\n")


def test_items_of_an_asynchronous_iterable_are_sent(clock: FakeClock) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def items() -> AsyncIterator[Any]:
            yield "a"
            await go.wait()
            yield {"b": 1}

        frames = relay.aframes(items(), heartbeat=60, done="over")
        pieces = []
        while b"data: a\n\n" not in pieces:
            pieces.append(await anext(frames))
        assert await clock.aadvance_until_done(anext(frames), step=10) == HEARTBEAT
        go.set()
        pieces += [piece async for piece in frames]
        read = b"".join(piece for piece in pieces if piece != HEARTBEAT)
        assert read == b'data: a\n\ndata: {"b":1}\n\ndata: over\n\n'

    asyncio.run(main())


def test_iterable_that_never_waits_or_ignores_cancellation_is_closed(clock: FakeClock) -> None:
    closed = asyncio.Event()
    made: list[relay.AsyncFrames] = []

    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> None:
            await asyncio.sleep(0)

    class Greedy(Items):
        async def aclose(self) -> None:
            closed.set()

        async def __anext__(self) -> None:
            if "ended" in repr(made[-1]):
                # Ignores the cancellation.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def main() -> None:
        for items in (Items(), Greedy()):
            frames = relay.aframes(items, heartbeat=60)
            made.append(frames)
            assert await anext(frames) == HEARTBEAT
            assert await clock.aadvance_until_done(anext(frames), step=10) == HEARTBEAT
            await frames.aclose()
        await asyncio.wait_for(closed.wait(), 30)

    asyncio.run(main())


@pytest.mark.parametrize("suspended", ["at an await", "at a yield"])
def test_aclose_ends_an_asynchronous_iterable(suspended: str) -> None:
    reached, ended = [], []

    async def items() -> AsyncIterator[Any]:
        try:
            yield "a"
            reached.append(suspended)
            while suspended == "at a yield":
                yield "x" * 1000
            await asyncio.sleep(60)
        except BaseException as exc:
            ended.append(type(exc))
            raise

    async def main() -> None:
        frames = relay.aframes(items())
        while await anext(frames) == HEARTBEAT:
            pass
        while not reached:
            await asyncio.sleep(0)
        await frames.aclose()
        while not ended:
            await asyncio.sleep(0.001)
        assert ended == [asyncio.CancelledError if suspended == "at an await" else GeneratorExit]
        assert await collect(frames) == []

    asyncio.run(main())


def test_failure_of_an_asynchronous_iterable_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def items() -> AsyncIterator[Any]:
        yield "a"
        raise LookupError("secret")

    async def main() -> None:
        read = b"".join(await collect(relay.aframes(items())))
        assert read.startswith(b"data: a\n\n")
        assert error_of(read)["type"] == "ServerError"

    asyncio.run(main())
    assert "LookupError: secret" in caplog.text


def test_failure_while_an_asynchronous_iterable_is_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def items() -> AsyncIterator[Any]:
        try:
            yield "a"
            await asyncio.sleep(60)
        finally:
            raise LookupError("in the end")

    async def main() -> None:
        frames = relay.aframes(items())
        while await anext(frames) == HEARTBEAT:
            pass
        frames.close()
        while "in the end" not in caplog.text:
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_asynchronous_iterable_that_was_not_started_can_be_closed() -> None:
    class Items:
        def __aiter__(self) -> AsyncIterator[str]:
            raise AssertionError("the relay was never read")

    relay.aframes(Items()).close()


def test_asynchronous_iterable_need_not_be_a_generator() -> None:
    class Items:
        def __init__(self) -> None:
            self.left = 2

        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> str:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return "a"

    async def main() -> None:
        assert b"".join(await collect(relay.aframes(Items()))) == b"data: a\n\n" * 2

    asyncio.run(main())


@pytest.mark.parametrize("place", ["__anext__", "aclose"])
def test_ctrl_c_in_an_asynchronous_iterable_ends_the_loop(place: str) -> None:
    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> str:
            if place == "__anext__":
                signal.raise_signal(signal.SIGINT)
            raise StopAsyncIteration

        async def aclose(self) -> None:
            if place == "aclose":
                signal.raise_signal(signal.SIGINT)

    loop = asyncio.new_event_loop()
    try:
        reading = loop.create_task(collect(relay.aframes(Items())))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(reading)
        # Not an error of the application's: the client gets no error event.
        assert loop.run_until_complete(reading) == []
    finally:
        loop.close()


def test_closed_coroutine_ends_the_relay_without_a_wait() -> None:
    """An event loop that is dropped closes its coroutines."""

    async def items() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    async def main() -> None:
        ended = asyncio.Event()
        frames = relay.aframes(items(), heartbeat=None, on_end=lambda end: loop.call_soon_threadsafe(ended.set))
        loop = asyncio.get_running_loop()
        while await anext(frames) == HEARTBEAT:
            pass
        step = frames.__anext__()
        step.send(None)
        step.close()
        await ended.wait()
        assert await collect(frames) == []

    asyncio.run(main())
