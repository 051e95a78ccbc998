"""Shared types, waits and steps of the tests of arequest_sse."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sseqbridge.testing import (
    ReceivedRequest,
    Step,
    send,
)

T = TypeVar("T")


Main = Callable[[], Awaitable[Any]]


Run = Callable[[Main], Any]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread makes a condition true. The time limit of the test ends the wait."""
    while not condition():
        await asyncio.sleep(0.001)


async def aborted(request: ReceivedRequest) -> bool:
    await until(request.aborted.is_set)
    return True


def numbers(count: int) -> list[Step]:
    return [send({"n": n}) for n in range(count)]
