"""Helpers for tests with threads and processes: threads, waits, and programs in other interpreters."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sseqbridge import _accelerators

if TYPE_CHECKING:
    from sseqbridge import Bridge, EventStream
    from sseqbridge._engine.bridge import BaseBridge
    from sseqbridge._runtime.threads import DaemonThread

__all__ = [
    "EXITS",
    "HAS_OWN_TRANSPORT",
    "INTERFACES",
    "IS_DEFAULT",
    "LOOPS",
    "in_thread",
    "is_idle",
    "is_waiting",
    "measured_environment",
    "peak_rss",
    "polled",
    "python",
    "reserved_port",
    "started",
    "subscription_of",
    "thread_of",
    "together",
    "until",
    "until_asleep",
    "until_blocked",
    "until_no_stream_is_open",
]

T = TypeVar("T")

ROOT = Path(__file__).parent.parent

# Whether the tests run on the library's own transport rather than httpx's.
HAS_OWN_TRANSPORT = _accelerators.is_wanted("transport")

# Whether all fast parts are in use. The default configuration runs each test through both interfaces, and on both kinds
# of loops. One of them suffices elsewhere: an asynchronous caller has asyncio's loop in every configuration, while the
# loop of a bridge depends on it; and neither JSON nor httpx's transport depends on the interface.
IS_DEFAULT = all(_accelerators.is_wanted(part) for part in _accelerators.PARTS)
INTERFACES = ["sync", "async"] if IS_DEFAULT else ["sync"]

# The loops for tests with a loop of the caller's.
LOOPS = ["asyncio", "uvloop"] if IS_DEFAULT else ["asyncio"]

# Set while coverage measures the tests. conftest.py removes the variable, since tests start hundreds of programs.
_COVERAGE_CONFIGURATION = os.environ.get("COVERAGE_PROCESS_START")

# The most seconds for an interpreter's exit: 0.3 s of its own, and room for a busy machine. A call that must not delay
# it takes 60 s.
EXITS = 30.0


def until(condition: Callable[[], object], timeout: float = 100.0) -> None:
    """Wait until `condition` holds. Raises TimeoutError after `timeout` seconds."""
    started_at = time.monotonic()
    while not condition():
        waited = time.monotonic() - started_at
        if waited > timeout:
            raise TimeoutError(f"the condition did not hold within {timeout:g} s")
        # Back off, since a condition that asks a browser costs CPU time. The whole wait gets a tenth longer at most.
        time.sleep(min(max(waited / 10, 0.001), 0.02))


def until_no_stream_is_open(bridge: Bridge | None = None) -> None:
    """Wait until the streams of a bridge, by default the process's, have no open connection any more."""
    # Not at the top: programs import this module before they import the library.
    from sseqbridge import Bridge

    awaited = bridge or Bridge.default()
    until(lambda: awaited.stats().open_streams == 0)


def polled(stream: EventStream[Any], count: int) -> list[Any]:
    """Poll until at least `count` items have arrived. (An event is counted shortly before it can be read.)"""
    items: list[Any] = []

    def have_arrived() -> bool:
        items.extend(stream.poll())
        return len(items) >= count

    until(have_arrived)
    return items


def subscription_of(stream: Any) -> Any:
    """Return what a stream reads: the StreamTask of a request, or a subscription of another class."""
    from sseqbridge._streams.stream import reader_of

    return reader_of(stream).cursor.subscription


def thread_of(bridge: BaseBridge) -> DaemonThread:
    """Return the loop thread of a bridge that has started."""
    thread = bridge._thread
    assert thread is not None
    return thread


def in_thread(function: Callable[[], T], name: str | None = None) -> Future[T]:
    """Start `function` in a new thread and return its future result."""
    future: Future[T] = Future()
    running = threading.Event()

    def run() -> None:
        running.set()
        try:
            future.set_result(function())
        except BaseException as exc:
            future.set_exception(exc)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    # Wait, since coverage cannot install its tracer in two threads at the same time
    # ("Cannot install a trace function while another ... is being installed").
    running.wait()
    assert thread.ident is not None
    _idents[future] = thread.ident
    return future


# Weak, since a result that is an error refers to its frames and their variables.
_idents: weakref.WeakKeyDictionary[Future[Any], int] = weakref.WeakKeyDictionary()


def is_waiting(future: Future[Any]) -> bool:
    """Return whether the thread of `future` waits for an entry."""
    return thread_waits(_idents[future])


def is_idle(future: Future[Any]) -> bool:
    """Return whether the thread of `future` waits for an entry, or its event loop for I/O."""
    frame = sys._current_frames().get(_idents[future])
    is_selecting = frame is not None and Path(frame.f_code.co_filename).name == "selectors.py"
    return is_selecting or is_waiting(future)


def thread_waits(ident: int) -> bool:
    """Return whether a thread waits for an entry."""
    frame = sys._current_frames().get(ident)
    if frame is not None and Path(frame.f_code.co_filename).name == "blockbuster.py":
        # blockbuster wraps every call that may block.
        frame = frame.f_back
    if frame is None or frame.f_code.co_name != "wait":
        return False
    return Path(frame.f_code.co_filename).name in ("threads.py", "clock.py")


def until_blocked(ident: int) -> None:
    """Wait until a thread sleeps in its wait for an entry, so that a signal interrupts it.

    Python handles signals before it acquires a lock, and then not until it has it: a signal in between is
    handled late. A signal during the system call interrupts the wait.
    """
    until(lambda: thread_waits(ident))
    [thread] = [thread for thread in threading.enumerate() if thread.ident == ident]
    assert thread.native_id is not None
    until_asleep(thread.native_id)


def until_asleep(native_id: int) -> None:
    """Wait until a thread, by its native ID, sleeps in a system call for 30 ms.

    A thread that waits for the GIL wakes up every 5 ms. A thread that waits for a processor is not asleep.
    """
    status = Path(f"/proc/self/task/{native_id}/status")
    if not status.exists():
        time.sleep(0.5)
        return

    def state() -> list[str]:
        return [line for line in status.read_text("ascii").splitlines() if line.startswith(("State", "voluntary"))]

    before = state()
    time.sleep(0.03)
    while "sleeping" not in before[0] or state() != before:
        before = state()
        time.sleep(0.03)


def together(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the functions at the same time, each in its own thread, and return their results."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait()
        return function()

    futures = [in_thread(partial(run, function)) for function in functions]
    return [future.result(60) for future in futures]


def measured_environment(configuration: str = "setup.cfg") -> dict[str, str]:
    """Return the environment of a program that coverage measures if it measures the tests.

    For programs with code that the tests' own process cannot run. `configuration` is a file below the root.
    """
    if _COVERAGE_CONFIGURATION is None:
        return dict(os.environ)
    return {**os.environ, "COVERAGE_PROCESS_START": str(ROOT / configuration)}


@contextmanager
def started(program: str, *args: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a program in an interpreter of its own, which is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *args],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port on 127.0.0.1 on which nothing listens until the test or one of its programs does.

    No other process can get it, neither before that nor between two such programs.
    """
    with socket.socket() as bound:
        # With this option two sockets may share an address, as long as only one of them listens.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def peak_rss() -> int:
    """Return the peak memory of this process so far, in bytes."""
    if sys.platform == "linux":
        # Not getrusage(), which in a new program includes the peak of its parent before exec.
        status = Path("/proc/self/status").read_text("ascii")
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def python(
    program: str, *args: str, timeout: float = 100.0, env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a program to its end. Returns its exit status, output and errors."""
    with started(program, *args, env=env) as process:
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err
