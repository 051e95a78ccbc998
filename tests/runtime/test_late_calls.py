"""LateCalls: the last wake-up of a callback comes at the callback's end, and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from sseqbridge._http.network_stream import READ_BYTES, NetworkStream
from sseqbridge._runtime.loops import ClockedEventLoop, LateCalls, late_calls_of


@pytest.fixture
def loop() -> Iterator[ClockedEventLoop]:
    with contextlib.closing(ClockedEventLoop()) as loop:
        yield loop


@contextlib.contextmanager
def readable_sockets(loop: asyncio.AbstractEventLoop, callback: Callable[[], object], count: int) -> Iterator[None]:
    """Sockets with a byte to read, whose callbacks stop the reading and call `callback`."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            ours, other = map(stack.enter_context, socket.socketpair())
            other.send(b"x")
            loop.add_reader(ours, run_once, loop, ours, callback)
        yield


def run_once(loop: asyncio.AbstractEventLoop, reader: socket.socket, callback: Callable[[], object]) -> None:
    loop.remove_reader(reader)
    callback()


def run_until_silent(loop: asyncio.AbstractEventLoop) -> None:
    # A timer, so that the loop waits before it: its callbacks would not be alone otherwise.
    loop.call_later(0.05, loop.stop)
    loop.run_forever()


def test_the_call_comes_after_its_callback(loop: ClockedEventLoop) -> None:
    log: list[str] = []

    def callback() -> None:
        loop.late_calls.call(partial(log.append, "late"))
        log.append("callback")
        loop.call_soon(log.append, "next iteration")

    with readable_sockets(loop, callback, 1):
        run_until_silent(loop)
    assert log == ["callback", "late", "next iteration"]


def test_only_the_last_call_of_a_callback_is_late(loop: ClockedEventLoop) -> None:
    log: list[object] = []

    def callback() -> None:
        for number in range(3):
            loop.late_calls.call(partial(log.append, number))
        log.append("callback")

    with readable_sockets(loop, callback, 1):
        run_until_silent(loop)
    assert log == [0, 1, "callback", 2]


def test_no_call_is_late_while_other_callbacks_are_ready(loop: ClockedEventLoop) -> None:
    log: list[str] = []

    def callback() -> None:
        loop.late_calls.call(partial(log.append, "call"))
        log.append("callback")

    with readable_sockets(loop, callback, 2):
        run_until_silent(loop)
    with readable_sockets(loop, callback, 1):
        loop.call_soon(log.append, "posted")
        run_until_silent(loop)
    assert log == ["call", "callback", "call", "callback", "posted", "call", "callback"]


def test_the_call_is_made_although_the_loop_ends(loop: ClockedEventLoop) -> None:
    log: list[str] = []

    def callback() -> None:
        loop.late_calls.call(partial(log.append, "late"))
        raise SystemExit

    with readable_sockets(loop, callback, 1), pytest.raises(SystemExit):
        loop.run_forever()
    assert log == ["late"]
    loop.late_calls.call(partial(log.append, "after the end"))
    assert log == ["late", "after the end"]


def test_a_call_that_fails_ends_no_loop(loop: ClockedEventLoop, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no hub")

    with readable_sockets(loop, partial(loop.late_calls.call, fail), 1), caplog.at_level(logging.ERROR, "sseqbridge"):
        run_until_silent(loop)
    assert [record.getMessage() for record in caplog.records] == ["a consumer could not be woken"]


class LoopWithCallbacks(asyncio.SelectorEventLoop):
    """A loop that makes no late calls, as uvloop's."""

    def __init__(self) -> None:
        super().__init__()
        self.late_calls = LateCalls(by_callbacks=True)


class Recorder(NetworkStream):
    """Calls late in each read, and raises for a read of b"!"."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: list[str]) -> None:
        super().__init__(loop, memoryview(bytearray(READ_BYTES)))
        self._log = log

    def bytes_received(self, data: bytes) -> None:
        late_calls = late_calls_of(self.loop)
        assert late_calls is not None
        late_calls.call(partial(self._log.append, "late"))
        self._log.append("read")
        if data == b"!":
            raise ValueError("a fault")

    def input_ended(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("data", [b"x", b"!"])
def test_a_connection_makes_the_call_at_the_end_of_a_read(data: bytes) -> None:
    log: list[str] = []
    with contextlib.closing(LoopWithCallbacks()) as loop:
        connection = Recorder(loop, log)
        connection.get_buffer(-1)[:1] = data
        with contextlib.suppress(ValueError):
            connection.buffer_updated(1)
        assert log == ["read", "late"]
        loop.late_calls.call(partial(log.append, "after the read"))
    assert log == ["read", "late", "after the read"]


def test_a_foreign_loop_has_no_late_calls() -> None:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        assert late_calls_of(loop) is None
