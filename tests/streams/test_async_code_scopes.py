"""iterate, run and enter in a scope of cancel_on, and in the iterable of a relay."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sseqbridge import Cancelled, RequestAbortedError, cancel_on, enter, iterate, merge, relay, run
from tests.support import in_thread, until

pytestmark = pytest.mark.configurations("default", "plain")


class Waiting:
    """Asynchronous code that waits forever, and records that it was cleaned up."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.cleaned_up = threading.Event()

    async def forever(self) -> None:
        try:
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            self.cleaned_up.set()

    async def items(self) -> AsyncIterator[int]:
        yield 1
        await self.forever()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[int]:
        await self.forever()
        yield 1


@pytest.mark.parametrize("way", ["iterate", "run", "enter", "merge"])
def test_cancelled_scope_ends_every_wait(way: str) -> None:
    waiting, flag = Waiting(), threading.Event()

    def block() -> str:
        with cancel_on(flag) as scope:
            if way == "iterate":
                list(iterate(waiting.items()))
            elif way == "merge":
                list(merge([iterate(waiting.items())]))
            elif way == "run":
                run(waiting.forever())
            else:
                with enter(waiting.session()):
                    pass
            return "not reached"
        return f"cancelled {scope.cancelled}"

    reading = in_thread(block)
    assert waiting.waiting.wait(30)
    flag.set()
    assert reading.result(30) == "cancelled True"
    if way in ("run", "enter"):
        assert waiting.cleaned_up.is_set()
    assert waiting.cleaned_up.wait(30)


def test_cancelled_scope_starts_nothing() -> None:
    started: list[str] = []

    async def starts() -> Any:
        started.append("started")

    flag = threading.Event()
    flag.set()
    # Coroutines that are not started are closed: a warning would fail the test.
    with cancel_on(flag) as iterating:
        iterate(starts())
        raise AssertionError("not reached")
    with cancel_on(flag) as running:
        run(starts())
        raise AssertionError("not reached")
    with cancel_on(flag) as entering, enter(starts()):
        raise AssertionError("not reached")
    assert iterating.cancelled
    assert running.cancelled
    assert entering.cancelled
    assert started == []


def test_session_exits_with_the_cancellation_of_its_block() -> None:
    log: list[str] = []
    flag = threading.Event()

    @asynccontextmanager
    async def session() -> AsyncIterator[int]:
        try:
            yield 1
        except BaseException as exc:
            log.append(type(exc).__name__)
            raise

    waiting = Waiting()

    def block() -> None:
        with cancel_on(flag), enter(session()):
            run(waiting.forever())

    reading = in_thread(block)
    waiting.waiting.wait(30)
    flag.set()
    reading.result(30)
    assert log == ["Cancelled"]


def test_scope_ends_asynchronous_code_that_it_surrounds_quietly(caplog: pytest.LogCaptureFixture) -> None:
    waiting, flag = Waiting(), threading.Event()

    async def reads_in_its_cleanup() -> None:
        try:
            await waiting.forever()
        finally:
            # The scope of the caller surrounds this coroutine, too.
            raise Cancelled

    def block() -> None:
        with cancel_on(flag):
            run(reads_in_its_cleanup())

    reading = in_thread(block)
    waiting.waiting.wait(30)
    flag.set()
    reading.result(30)
    assert caplog.records == []


def test_disconnect_ends_asynchronous_code_in_a_relays_iterable() -> None:
    waiting = Waiting()

    def view() -> Iterator[str]:
        yield "first"
        run(waiting.forever())

    frames = relay.frames(view())
    piece = next(frames)
    until(lambda: b"first" in piece or b"first" in next(frames))
    assert waiting.waiting.wait(30)
    frames.close()
    assert waiting.cleaned_up.wait(30)


def test_code_cancelled_by_a_failing_flag_is_an_error() -> None:
    """The loop cancels the code of a scope whose flag it cannot check. By then the flag may be usable again."""
    consumer = threading.get_ident()

    class Flag:
        def is_set(self) -> bool:
            if threading.get_ident() != consumer:
                raise ZeroDivisionError
            return False

    waiting = Waiting()
    with cancel_on(Flag()), pytest.raises(RequestAbortedError, match="was cancelled"):
        run(waiting.forever())
    assert waiting.cleaned_up.is_set()
