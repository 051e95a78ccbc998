"""Waiting, daemon threads, and sockets."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import pytest
from blockbuster import BlockingError

from sseqbridge._runtime import loops, sockets, threads
from tests.conftest import guarded_loops
from tests.support import in_thread, until

pytestmark = pytest.mark.configurations("default", "plain")


def test_wake_before_the_wait_is_not_lost() -> None:
    waiter = threads.ThreadWaiter()
    waiter.wake()
    assert waiter.wait(None)


@pytest.mark.blocks_its_loop
def test_blocking_a_loop_fails_the_test() -> None:
    """The guard is in tests/conftest.py, and covers the whole package."""

    async def main() -> None:
        threads.ThreadWaiter().wait(0.01)

    with guarded_loops(), pytest.raises(BlockingError):
        asyncio.run(main())


def test_wait_that_times_out_returns_false() -> None:
    waiter = threads.ThreadWaiter()
    at = time.monotonic()
    assert not waiter.wait(0.02)
    assert time.monotonic() - at < 30
    assert not waiter.wait(0)


def test_wait_accepts_a_timeout_of_centuries() -> None:
    waiter = threads.ThreadWaiter()
    waiting = in_thread(lambda: waiter.wait(100 * 365 * 24 * 3600.0 * 1000))
    waiter.wake()
    assert waiting.result(30)


@pytest.mark.skipif(sys.platform == "win32", reason="needs Unix signals")
def test_signal_handler_can_wake_the_wait_it_interrupted() -> None:
    waiter = threads.ThreadWaiter()
    woken: list[bool] = []

    def wake(*_: object) -> None:
        if not woken:
            woken.append(True)
            waiter.wake()

    before = signal.signal(signal.SIGALRM, wake)
    try:
        # Repeatedly, since a signal just before the lock's wait does not interrupt it.
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert waiter.wait(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_thread_is_a_daemon_with_a_name() -> None:
    found: list[threading.Thread] = []
    thread = threads.DaemonThread(lambda: found.append(threading.current_thread()), "some-name")
    thread.join(30)
    assert [(found.daemon, found.name, found.ident) for found in found] == [(True, "some-name", thread.ident)]


def test_in_coroutine_detects_a_running_loop() -> None:
    async def main() -> bool:
        return loops.in_coroutine()

    assert not loops.in_coroutine()
    assert asyncio.run(main())


def test_notebook_is_detected_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert not loops.in_notebook()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert loops.in_notebook()


def test_shut_down_ends_the_peer_and_keeps_the_descriptor() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sockets.shut_down_socket(ours.fileno())
        theirs.settimeout(5)
        assert theirs.recv(1) == b""
        assert ours.fileno() >= 0
        sockets.shut_down_socket(ours.fileno())


def test_shut_down_ignores_closed_and_unconnected_sockets() -> None:
    sockets.shut_down_socket(-1)
    with socket.socket() as unconnected:
        sockets.shut_down_socket(unconnected.fileno())


# Blocking functions in daemon threads.

mark = contextvars.ContextVar("mark", default="")


class Transport:
    """A transport with a socket, or without one."""

    def __init__(self, connection: socket.socket | None) -> None:
        self.connection = connection

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.connection


def test_detached_connection_reads_nothing_of_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    other = socket.socket(fileno=os.dup(ours.fileno()))
    with ours, theirs, other:
        sockets.detach_connection_after_fork(Transport(ours))
        theirs.sendall(b"x")
        # The child's connection has ended. The parent's, which was the same, receives the data.
        assert ours.recv(1) == b""
        assert other.recv(1) == b"x"

        def none_left() -> None:
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr("_socket.socketpair", none_left)
        sockets.detach_connection_after_fork(Transport(other))
        theirs.sendall(b"y")
        assert other.recv(1) == b"y"
    sockets.detach_connection_after_fork(Transport(None))
    sockets.detach_connection_after_fork(Transport(other))


def test_function_runs_in_a_daemon_thread_with_the_callers_context() -> None:
    def look(*args: int) -> tuple[Any, ...]:
        thread = threading.current_thread()
        return thread.name, thread.daemon, mark.get(), args

    async def main() -> Any:
        mark.set("here")
        return await loops.run_in_daemon_thread("worker", look, 1, 2)

    assert asyncio.run(main()) == ("worker", True, "here", (1, 2))


def test_exception_of_a_threaded_function_is_raised() -> None:
    def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        asyncio.run(loops.run_in_daemon_thread("worker", fail))


def test_result_after_a_cancellation_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    go, over = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        over.set()

    async def main() -> None:
        waiting = asyncio.create_task(loops.run_in_daemon_thread("worker", work))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        go.set()
        while any(thread.name == "worker" for thread in threading.enumerate()):
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert over.is_set()
    assert caplog.records == []


def test_result_after_the_loops_end_is_dropped() -> None:
    go = threading.Event()

    async def main() -> None:
        asyncio.create_task(loops.run_in_daemon_thread("worker", go.wait))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(main())
    go.set()
    until(lambda: not any(thread.name == "worker" for thread in threading.enumerate()))
