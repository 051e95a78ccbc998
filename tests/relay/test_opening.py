"""Steps of a source that calls a function, at which its relay may be closed by another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sseqbridge.relay._opening import AsyncFunctionSource, FunctionSource
from sseqbridge.relay._options import SyncRelayOptions, relay_options
from sseqbridge.relay._upstream import Upstream
from sseqbridge.relay._writer import Writer


class Opened:
    """The result of a function. `take` is called when the consumer makes it its source."""

    def __init__(self) -> None:
        self.take: Callable[[], object] = lambda: None
        self.is_abandoned = False
        self.is_discarded = False
        self.outcome = self.error = self.refused = None
        self.last_event_id = ""

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def source(self, *_: object) -> Any:
        self.take()
        return self

    async_source = source

    def abandon(self) -> None:
        self.is_abandoned = True

    drop = abandon

    def discard(self) -> None:
        self.is_discarded = True


def never() -> Any:
    raise AssertionError("must not be called")


def new_source(kind: Any, opened: Opened, function: Callable[[], Any] = lambda: 0, **options: Any) -> Any:
    writer = Writer(relay_options("frames", SyncRelayOptions, {}))
    return kind(function, lambda _: opened, writer, None, **{"early": False, **options})


@pytest.mark.parametrize("is_async", [False, True])
def test_close_while_the_result_becomes_the_source_ends_it(is_async: bool) -> None:
    opened = Opened()
    source = new_source(AsyncFunctionSource if is_async else FunctionSource, opened)
    opened.take = source.abandon
    if is_async:
        asyncio.run(source.open())
    else:
        source.open()
    assert opened.is_abandoned


def test_function_of_a_closed_source_is_not_called() -> None:
    source = new_source(FunctionSource, Opened(), never, early=True)
    source.wait_ended(30)
    source.abandon()
    with pytest.raises(StopIteration):
        while source.next(30) is None:
            pass
    source.wait_ended(30)


def test_function_of_a_closed_asynchronous_source_is_not_called() -> None:
    async def main() -> None:
        source = new_source(AsyncFunctionSource, Opened(), never)
        source.abandon()
        await source.open()
        with pytest.raises(StopAsyncIteration):
            await source.anext(30)

    asyncio.run(main())


def test_result_of_a_thread_that_outlasts_the_source_is_discarded() -> None:
    opened = Opened()

    async def call(function: Callable[[], object]) -> None:
        source.abandon()
        function()

    source = new_source(AsyncFunctionSource, opened, caller=call)
    asyncio.run(source.open())
    assert opened.is_discarded
    assert source.opened is None


def test_late_result_without_close_is_dropped() -> None:
    Upstream([1], is_result=True).discard()
