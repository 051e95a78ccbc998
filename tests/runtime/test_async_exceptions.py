"""PyThreadState_SetAsyncExc, with which dramatiq and Streamlit stop threads, reaches a thread that waits in silence."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from sseqbridge import gather, merge, request_sse, tee
from sseqbridge._runtime import threads
from sseqbridge.relay import frames
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, respond, send, silence
from tests.support import in_thread, until, until_blocked

pytestmark = pytest.mark.slow


class TimeLimitExceeded(BaseException):
    """As dramatiq raises it."""


def raise_in(ident: int) -> None:
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert set_exception(ctypes.c_ulong(ident), ctypes.py_object(TimeLimitExceeded)) == 1


def in_known_thread(function: Callable[[], Any]) -> tuple[Future[Any], int]:
    """Start `function` in a new thread. Return its future result, and the thread's identifier."""
    identified: Future[int] = Future()

    def run() -> Any:
        identified.set_result(threading.get_ident())
        return function()

    return in_thread(run), identified.result(30)


def next_item(url: str) -> None:
    with request_sse(url) as (_, _, events):
        assert next(events) == 1
        next(events)


def next_item_with_timeout(url: str) -> None:
    with request_sse(url) as (_, _, events):
        assert next(events) == 1
        events.next(timeout=3600)


def loop(url: str) -> None:
    for item in request_sse(url).events:
        assert item == 1


def merged(url: str) -> None:
    for named in merge([partial(request_sse, url)]):
        assert named == (0, 1)


def gathered(url: str) -> None:
    list(gather([partial(request_sse, url)]))


def teed(url: str) -> None:
    with tee(request_sse(url), 1) as (reader,):
        reader.collect()


def logged(url: str) -> None:
    with MemoryLog() as log:
        log.open("key", lambda: request_sse(url)).collect()


def produced(url: str) -> None:
    with MemoryLog() as log:
        log.produce("key", lambda: request_sse(url))


def relayed(url: str) -> None:
    pieces = frames(request_sse(url), heartbeat=None, probe=None)
    try:
        # The first piece is a comment if no event has arrived.
        for _ in pieces:
            pass
    finally:
        pieces.close()


@pytest.mark.parametrize(
    "read",
    [next_item, next_item_with_timeout, loop, merged, gathered, teed, logged, produced, relayed],
)
def test_exception_ends_a_silent_wait(read: Callable[[str], None]) -> None:
    with SSEServer([send(1), silence()]) as server:
        reading, ident = in_known_thread(partial(read, server.url))
        until(lambda: server.requests)
        until_blocked(ident)
        raise_in(ident)
        with pytest.raises(TimeLimitExceeded):
            reading.result(30)
        server.requests[0].wait_aborted()


def test_exception_ends_the_wait_for_a_response() -> None:
    with SSEServer([silence(), respond()]) as server:
        reading, ident = in_known_thread(partial(request_sse, server.url))
        until(lambda: server.requests)
        until_blocked(ident)
        raise_in(ident)
        with pytest.raises(TimeLimitExceeded):
            reading.result(30)
        server.requests[0].wait_aborted()


@pytest.mark.parametrize("timeout", [0.0, -1.0, 0.001, 1.0, 1.5])
def test_wait_without_a_wake_up_ends_after_its_timeout(timeout: float) -> None:
    assert threads.ThreadWaiter().wait(timeout) is False


@pytest.mark.parametrize("timeout", [0.0, 1e-3, 3600.0, threading.TIMEOUT_MAX, float("inf"), None])
def test_wake_up_ends_a_wait_of_any_length(timeout: float | None) -> None:
    waiter = threads.ThreadWaiter()
    waiter.wake()
    assert waiter.wait(timeout) is True
