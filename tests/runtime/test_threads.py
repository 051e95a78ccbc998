"""Starting threads that are interrupted, and OneShotEvent, where a thread sets it while another begins to wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import pytest

from sseqbridge._runtime import threads
from sseqbridge._runtime.threads import DaemonThread, OneShotEvent, start_worker, start_worker_in_finalizer
from tests.support import in_thread

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


@pytest.mark.parametrize("has_gevent", [False, True])
def test_worker_of_a_finalizer_is_a_thread_of_the_system(monkeypatch: pytest.MonkeyPatch, has_gevent: bool) -> None:
    started, ran_in = list[int](), list[threading.Thread]()
    done = threading.Event()

    def start(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        """Start a thread that coverage can trace."""

        def run() -> None:
            started.append(threading.get_ident())
            function(*arguments)

        in_thread(run).result(30)

    def work() -> None:
        ran_in.append(threading.current_thread())
        done.set()

    monkeypatch.setattr(threads, "_start_new_thread", start)
    monkeypatch.setattr(threads, "is_gevent", lambda: has_gevent)
    start_worker_in_finalizer(work)
    assert done.wait(30)
    # Under gevent a Thread would be a greenlet of the thread that ends here.
    assert (ran_in[0].ident in started) is has_gevent
    assert ran_in[0].daemon


@pytest.mark.parametrize(
    ("error", "is_daemon", "is_reported"),
    [
        (ZeroDivisionError(), True, False),
        (ZeroDivisionError(), False, True),
        (KeyError(), True, True),
    ],
    ids=["of the kind", "of another thread", "of another kind"],
)
def test_errors_of_one_kind_end_daemon_threads_quietly(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_daemon: bool, is_reported: bool
) -> None:
    reported: list[object] = []

    def fail() -> None:
        raise error

    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    threads.end_daemons_quietly(ZeroDivisionError)
    thread = threading.Thread(target=fail, daemon=is_daemon)
    thread.start()
    thread.join(30)
    assert reported == [error] * is_reported
