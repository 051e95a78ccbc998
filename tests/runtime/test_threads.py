"""Starting threads that are interrupted, and OneShotEvent, where a thread sets it while another begins to wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import pytest

from sseqbridge._runtime.threads import DaemonThread, OneShotEvent, start_worker

pytestmark = pytest.mark.configurations("default", "plain")


@pytest.mark.parametrize("is_set_in_between", [False, True])
def test_event_that_is_set_around_notify_wakes_once(is_set_in_between: bool) -> None:
    event, woken = OneShotEvent(), []

    class Racing(deque[Callable[[], object]]):
        """Another thread sets the event after a waiter was appended."""

        def append(self, wake: Callable[[], object], /) -> None:
            super().append(wake)
            if is_set_in_between:
                event.set()

    event._waiters = Racing()
    if not is_set_in_between:
        event.set()
    event.notify(lambda: woken.append(True))
    assert woken == [True]
    assert event.wait(0)


STARTS: list[Callable[[], object]] = [lambda: start_worker(int), lambda: DaemonThread(int, "name")]


@pytest.mark.parametrize("start", STARTS, ids=["worker", "daemon"])
def test_interrupt_while_a_thread_starts_stays_the_interrupt(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[], object]
) -> None:
    """In the wait of Thread.start() a Condition lets go of a lock that the interrupted code has released."""

    def interrupted(self: threading.Thread) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start()


@pytest.mark.parametrize("start", STARTS, ids=["worker", "daemon"])
def test_thread_that_cannot_be_started_is_no_earlier_interrupt(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[], object]
) -> None:
    def full(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match="new thread"):
            start()
