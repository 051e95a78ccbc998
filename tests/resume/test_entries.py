"""Entries and topics by themselves: encoded errors, and broadcasts to subscribers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from sseqbridge import (
    BufferLimitError,
    CallbackError,
    ConnectError,
    ContentTypeError,
    DecodeError,
    EventsLostError,
    LogError,
    ReconnectionError,
    RedirectError,
    ServerSentEvent,
    SSEError,
    StatusError,
    StreamTimeoutError,
    TruncatedStreamError,
    UpstreamError,
)
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._http.client import ClientPool
from sseqbridge.resume._entries import Entry, Position, error_fields
from sseqbridge.resume._hub import Hub
from sseqbridge.resume._memory import MemoryStore
from sseqbridge.resume._store import LogSettings

ERRORS: list[SSEError] = [
    StreamTimeoutError("idle", 2.5),
    StreamTimeoutError("idle", 2.5, unit="document"),
    BufferLimitError(7),
    ReconnectionError("it was lost", 3),
    RedirectError("it goes on elsewhere", 302),
    StatusError("no", 429, httpx.Headers({"Retry-After": "3", "Secret": "x"}), b"\xff\x00"),
    ContentTypeError("no", 200, httpx.Headers({"Content-Type": "text/html"}), b""),
    DecodeError("no JSON", ServerSentEvent("a", "b", "c", 1.5)),
    UpstreamError("no", ServerSentEvent(data="{}"), {"error": {"message": "ü"}}),
    UpstreamError("no", None, {"error": "in place of events"}),
    *(kind("reason") for kind in (TruncatedStreamError, ConnectError, CallbackError, EventsLostError, LogError)),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_keep_type_and_attributes_in_entries(error: SSEError) -> None:
    restored = Entry(Position(1, 1), error_fields(error)).sent_error()
    assert (type(restored), str(restored)) == (type(error), str(error))
    for name in ("which", "seconds", "limit", "attempts", "status", "body", "event", "payload"):
        assert getattr(restored, name, None) == getattr(error, name, None)
    if isinstance(error, StatusError):
        assert isinstance(restored, StatusError)
        assert dict(restored.headers) == {"retry-after": "3"}


def test_foreign_errors_are_named_in_entries() -> None:
    restored = Entry(Position(1, 1), error_fields(ZeroDivisionError("by zero"))).sent_error()
    assert (type(restored), str(restored)) == (SSEError, "the producer failed with ZeroDivisionError: by zero")
    assert Entry(Position(1, 1), {"of": "later"}).kind == "unknown"


def test_entries_read_for_a_removed_topic_are_dropped() -> None:
    """A new reader with a later position replaces the last one during a read."""

    class Store(MemoryStore):
        def new_tail(self) -> Any:
            return tail

    class Tail:
        def __init__(self) -> None:
            self.go_on = asyncio.Event()
            self.is_read = asyncio.Event()

        async def read(self, positions: Any) -> Any:
            self.is_read.set()
            await self.go_on.wait()
            self.go_on.clear()
            return [("k", [Entry(Position(1, 3), {"data": "3"})])]

        def wake(self) -> None:
            pass

        async def aclose(self) -> None:
            pass

    class FakeSubscriber:
        is_reader = False

        def __init__(self, number: int) -> None:
            self.position = Position(1, number)
            self.received: list[Any] = []

        def deliver(self, parts: Any) -> bool:
            self.received += parts
            return True

        def on_lease_lost(self) -> None:
            raise AssertionError

        def fail(self, error: SSEError) -> None:
            raise error

    async def main() -> None:
        settings = LogSettings(1, 1, None, None, 1)
        hub = Hub(LoopState(asyncio.get_running_loop(), ClientPool()), Store(settings), settings)
        first, second = FakeSubscriber(2), FakeSubscriber(7)
        for subscriber in (first, second):
            topic = hub.topic("k")
            topic.register(subscriber)
            assert topic.try_subscribe(subscriber)
            await tail.is_read.wait()
            if subscriber is first:
                topic.unregister(subscriber)
        tail.is_read.clear()
        tail.go_on.set()
        await tail.is_read.wait()
        assert (first.received, second.received, topic.position) == ([], [], Position(1, 7))
        await hub.aclose()

    tail = Tail()
    asyncio.run(main())
