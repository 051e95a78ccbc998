"""Forks after the bridge has started: the child starts its own, and the parent's streams continue.

The programs fork in processes of their own, never in that of the tests. `python -m tests.runtime.test_fork 1000`
forks 1000 times under load.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import itertools
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet

import httpx
import pytest

from sseqbridge import Bridge, UsageError, arequest_sse, cancel_on, relay, request_sse
from sseqbridge._engine import caller_loops
from sseqbridge._engine.stream_task import StreamTask
from sseqbridge._runtime import fork
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send, wait
from tests.servers import UWSGI, Servers
from tests.support import in_thread, python, started, thread_of

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"), pytest.mark.slow]


def ticking(request: ReceivedRequest) -> Iterator[Step]:
    for n in itertools.count():
        yield send(n)
        yield wait(0.005)


@pytest.fixture
def upstream() -> Iterator[SSEServer]:
    with SSEServer(ticking) as server:
        yield server


# The start of every program. `in_child` forks and runs a function in the child; `succeeded` checks its status.
BEGIN = """
import gc, os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
warnings.simplefilter("error", ResourceWarning)
from sseqbridge import Bridge, UsageError, request_sse

URL = sys.argv[1]

def in_child(function, *, by_exit=False):
    child = os.fork()
    if not child:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        if by_exit:
            sys.exit(status)
        sys.stderr.flush()
        os._exit(status)
    return child

def succeeded(child):
    assert os.waitpid(child, 0)[1] == 0, "the child failed"

def first_three(**options):
    with request_sse(URL, **options) as (_, _, it):
        return [next(it) for _ in range(3)]

def refused(call):
    try:
        call()
    except UsageError as error:
        assert "before a fork" in str(error), error
    else:
        raise AssertionError("no UsageError")
"""


def run(program: str, server: SSEServer, *, timeout: float = 60.0) -> None:
    """Run a program after BEGIN, and check that it succeeds silently."""
    status, _, errors = python(BEGIN + program, server.url, timeout=timeout)
    assert (status, errors) == (0, "")


@pytest.mark.parametrize("by_exit", [False, True], ids=["os._exit", "sys.exit"])
def test_child_has_its_own_bridge_and_parents_streams_continue(upstream: SSEServer, by_exit: bool) -> None:
    run(
        f"""
it = request_sse(URL).events
assert next(it) == 0
succeeded(in_child(lambda: first_three() == [0, 1, 2] or 1 / 0, by_exit={by_exit}))
assert [next(it) for _ in range(20)] == list(range(1, 21))
assert first_three() == [0, 1, 2]
it.close()
""",
        upstream,
    )
    assert [request.connection for request in upstream.requests] == [0, 1, 2]


def test_grandchild_has_its_own_bridge(upstream: SSEServer) -> None:
    run(
        """
def generation():
    assert first_three() == [0, 1, 2]
    succeeded(in_child(first_three))
    assert first_three() == [0, 1, 2]
first_three()
succeeded(in_child(generation))
""",
        upstream,
    )


def test_explicit_bridge_restarts_in_the_child(upstream: SSEServer) -> None:
    run(
        """
with Bridge() as bridge, request_sse(URL, bridge=bridge) as (_, _, it):
    assert next(it) == 0
    def child():
        assert repr(bridge) == "<Bridge not started>" or first_three(bridge=bridge) == [0, 1, 2]
        assert first_three(bridge=bridge) == [0, 1, 2]
        bridge.close()
        bridge.close()
    succeeded(in_child(child))
    assert [next(it) for _ in range(20)] == list(range(1, 21))
""",
        upstream,
    )


def test_inherited_stream_is_refused_and_aborts_nothing(upstream: SSEServer) -> None:
    run(
        """
response = request_sse(URL)
it = response.events
assert next(it) == 0
def child():
    global it, response
    for call in (lambda: next(it), lambda: it.next(1), lambda: list(it), lambda: list(it.keep_open()), it.close):
        refused(call)
    with response, it:
        pass
    del it, response
    gc.collect()
    time.sleep(0.1)
succeeded(in_child(child))
assert [next(it) for _ in range(20)] == list(range(1, 21))
it.close()
""",
        upstream,
    )
    upstream.requests[0].wait_aborted(30)


def test_loop_ends_in_the_child_and_continues_in_the_parent(upstream: SSEServer) -> None:
    run(
        """
child = None
items = []
it = request_sse(URL).events
while it.stats.events < 5:
    time.sleep(0.001)
def loop():
    global child
    for item in it:
        items.append(item)
        if item == 3:
            child = os.fork()
        if item == 30:
            break
try:
    loop()
except UsageError as error:
    assert not child and items == [0, 1, 2, 3] and "before a fork" in str(error), (child, items, error)
    os._exit(0)
assert child and items == list(range(31))
succeeded(child)
""",
        upstream,
    )


def test_async_stream_is_refused_in_the_child(upstream: SSEServer) -> None:
    run(
        """
import asyncio
from sseqbridge import arequest_sse
async def three():
    async with await arequest_sse(URL) as (_, _, it):
        return [await it.next() for _ in range(3)]
async def main():
    async with await arequest_sse(URL) as (_, _, it):
        assert await it.next() == 0
        child = os.fork()
        if not child:
            try:
                await it.next()
            except UsageError:
                os._exit(0)
            os._exit(1)
        succeeded(child)
        assert [await it.next() for _ in range(20)] == list(range(1, 21))
asyncio.run(main())
succeeded(in_child(lambda: asyncio.run(three()) == [0, 1, 2] or 1 / 0))
""",
        upstream,
    )


# Programs whose child runs the loop on which the parent reads `it`.
ON_THE_PARENTS_LOOP = {
    "stopped at the fork": """
loop = asyncio.new_event_loop()
run = loop.run_until_complete
it = run(arequest_sse(URL)).events
assert run(it.next()) == 0
def child():
    time.sleep(0.2)  # By now there is data to read.
    run(asyncio.sleep(0.1))
succeeded(in_child(child))
assert [run(it.next()) for _ in range(20)] == list(range(1, 21))
run(it.aclose())
run(loop.shutdown_asyncgens())
loop.close()
""",
    "running at the fork": """
async def main():
    async with await arequest_sse(URL) as (_, _, it):
        assert await it.next() == 0
        child = os.fork()
        if not child:
            time.sleep(0.2)  # By now there is data to read when the loop shuts down.
            raise SystemExit(0)
        succeeded(child)
        assert [await it.next() for _ in range(20)] == list(range(1, 21))
asyncio.run(main())
""",
}
if sys.version_info >= (3, 14):
    # There, a loop that runs at the fork does not run on in the child: asyncio takes the SystemExit for an error in a
    # callback, reports it, and waits forever. It also cancels no inherited task.
    del ON_THE_PARENTS_LOOP["running at the fork"]


@pytest.mark.parametrize("without", ["", "transport"])
@pytest.mark.parametrize("program", ON_THE_PARENTS_LOOP.values(), ids=ON_THE_PARENTS_LOOP)
def test_child_on_the_parents_loop_reads_none_of_its_data(
    upstream: SSEServer, program: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSEQBRIDGE_WITHOUT", without)
    begin = """
import asyncio
from sseqbridge import arequest_sse
warnings.simplefilter("ignore", ResourceWarning)  # asyncio's, about the parent's transports
"""
    run(begin + program, upstream)


def test_parents_loop_works_in_the_child(upstream: SSEServer) -> None:
    run(
        """
import asyncio
from sseqbridge import arequest_sse
warnings.simplefilter("ignore", ResourceWarning)
async def three():
    async with await arequest_sse(URL) as (_, _, it):
        return [await it.next() for _ in range(3)]
loop = asyncio.new_event_loop()
assert loop.run_until_complete(three()) == [0, 1, 2]
succeeded(in_child(lambda: loop.run_until_complete(three()) == [0, 1, 2] or 1 / 0))
""",
        upstream,
    )


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_streams_work_in_multiprocessing(upstream: SSEServer, method: str, tmp_path: object) -> None:
    status, out, errors = python(
        """
import multiprocessing, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from tests.runtime.fork_work import first_items
if __name__ == "__main__":
    it = iter(first_items(sys.argv[1], 3))
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(2) as pool:
        print(pool.starmap(first_items, [(sys.argv[1], n) for n in range(1, 5)]))
""",
        upstream.url,
        method,
    )
    assert (status, out.strip(), errors) == (0, "[[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]", "")


def test_parents_close_reaches_the_upstream_while_a_child_lives(upstream: SSEServer) -> None:
    program = """
it = request_sse(URL).events
assert next(it) == 0
read, write = os.pipe()
child = os.fork()
if not child:
    os.close(write)
    os.read(read, 1)  # until the parent is done
    os._exit(0)
it.close()
sys.stdin.read()
os.close(write)
succeeded(child)
"""
    with started(BEGIN + program, upstream.url) as process:
        upstream.wait_for_request(timeout=60).wait_aborted(timeout=30)
        # The child is alive and waits: its end is not the reason.
        assert process.poll() is None
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


def test_locks_held_at_the_fork_are_free_in_the_child(upstream: SSEServer) -> None:
    run(
        """
from sseqbridge._http import client
from sseqbridge._streams import bridge
first_three()
held, go = threading.Barrier(2), threading.Event()
def hold():
    with bridge.default_bridge()._lock.native, bridge._default_lock.native, client._tls_lock.native:
        held.wait()
        go.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = in_child(first_three)
succeeded(child)
go.set()
thread.join()
assert first_three() == [0, 1, 2]
""",
        upstream,
    )


UNDER_LOAD = """
import faulthandler
FORKS = int(sys.argv[2])
stop = threading.Event()
counted = []
def load():
    while not stop.is_set():
        assert list(request_sse(URL + "/short").events) == [0, 1]
        counted.append(1)
# Imports everything: Python deadlocks in a child that was forked while another thread imports.
assert list(request_sse(URL + "/short").events) == [0, 1]
threads = [threading.Thread(target=load) for _ in range(4)]
for thread in threads:
    thread.start()
def child():
    faulthandler.dump_traceback_later(30, exit=True)
    assert list(request_sse(URL + "/short").events) == [0, 1]
try:
    for number in range(FORKS):
        succeeded(in_child(child))
finally:
    stop.set()
    for thread in threads:
        thread.join()
print(len(counted))
"""


def fork_under_load(forks: int, timeout: float) -> int:
    """Fork `forks` times while four threads read streams. Returns how many streams they read."""

    def script(request: ReceivedRequest) -> list[Step]:
        return [send(0), send(1), send("[DONE]")]

    with SSEServer(script) as server:
        status, out, errors = python(BEGIN + UNDER_LOAD, server.url, str(forks), timeout=timeout)
    assert (status, errors) == (0, ""), errors
    return int(out)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_forks_during_reads_succeed() -> None:
    # The session `long` forks 1,000 times.
    assert fork_under_load(100, 500) > 0


# The same in one process with another process token, as in a child without fork hooks.


@pytest.fixture
def other_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A function that turns this process into another one, by its token."""
    kept = len(fork.pinned)
    real = fork.process_token
    parents: set[int | None] = set()

    def process() -> tuple[int, int]:
        return real() if threading.get_ident() in parents else (1, 1)

    def become() -> None:
        # For this thread and the threads that it starts. The others remain in the parent.
        parents.update(thread.ident for thread in threading.enumerate() if thread is not threading.current_thread())
        monkeypatch.setattr(fork, "process_token", process)

    yield become
    del fork.pinned[kept:]


def test_lock_differs_between_processes(other_process: Callable[[], None]) -> None:
    lock = fork.ForkSafeLock()
    # Another thread holds it at the fork, and never releases it.
    in_thread(lock.native.acquire).result(30)
    assert not lock.native.acquire(blocking=False)
    other_process()
    for _ in range(2):
        assert lock.native.acquire(blocking=False)
        lock.native.release()


def test_streams_of_another_process_are_refused(upstream: SSEServer, other_process: Callable[[], None]) -> None:
    bridge = Bridge()
    response = request_sse(upstream.url, bridge=bridge)
    stream = response.events
    loop: Any = iter(stream)
    assert next(loop) == 0
    parents_thread, parents_stop = thread_of(bridge), bridge._stop
    assert parents_stop is not None
    try:
        other_process()
        # Closing the loop aborts nothing.
        loop.close()
        with response, stream:
            for call in (stream.close, partial(next, stream), partial(list[Any], stream)):
                with pytest.raises(UsageError, match="before a fork"):
                    call()
        with request_sse(upstream.url, bridge=bridge) as (_, _, own):
            assert next(own) == 0
        bridge.close()
        assert thread_of(bridge) is not parents_thread
        assert not parents_thread.has_ended
        assert not upstream.requests[0].aborted.is_set()
        # Dropping the stream aborts nothing and warns of nothing.
        del stream, response, call, loop
        gc.collect()
    finally:
        parents_stop.get_loop().call_soon_threadsafe(parents_stop.set_result, None)
        parents_thread.join(30)
    upstream.requests[0].wait_aborted(30)


def test_scope_that_is_cancelled_in_another_process_aborts_nothing(
    upstream: SSEServer, other_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flag:
        """Set in the thread that is the child, once it is."""

        is_armed = False

        def is_set(self) -> bool:
            return self.is_armed and threading.current_thread() is threading.main_thread()

    flag = Flag()
    with request_sse(upstream.url) as response:
        with cancel_on(flag) as scope:
            for _ in response.events:
                if not flag.is_armed:
                    other_process()
                    flag.is_armed = True
        assert scope.cancelled
        monkeypatch.undo()
        # The parent reads on.
        assert isinstance(next(response.events), int)
        assert not upstream.requests[0].aborted.is_set()


# A task that is cancelled closes its connection on httpx's transport, which has no support for forks.
@pytest.mark.own_transport
def test_async_stream_of_another_process_is_refused(
    upstream: SSEServer, other_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with await arequest_sse(upstream.url) as response:
            assert await response.events.next() == 0
            other_process()
            with pytest.raises(UsageError, match="before a fork"):
                await response.events.next()
            with pytest.raises(UsageError, match="before a fork"):
                await response.events.aclose()
            with pytest.raises(UsageError, match="before a fork"):
                response.events.reconnect()
            async with response.events:
                pass
            # The child does not end the stream of the inherited loop either,
            inherited = reader_of(response.events).cursor.subscription
            assert isinstance(inherited, StreamTask)
            inherited.abort_on_loop(None)
            async with await arequest_sse(upstream.url) as another:
                assert await another.events.next() == 0
            # not even if the stream's task is cancelled.
            assert inherited.task is not None
            inherited.task.cancel()
            await asyncio.wait({inherited.task})
            assert not upstream.requests[0].aborted.is_set()
            monkeypatch.undo()
            await inherited.exchange.aclose()

    asyncio.run(main())
    upstream.requests[0].wait_aborted(30)


def test_child_ending_the_parents_loop_keeps_its_streams() -> None:
    class State:
        process = (-1, -1)

    async def main() -> None:
        at_end = caller_loops._close_with_loop(State())  # type: ignore[arg-type]
        await at_end.__anext__()
        await at_end.aclose()

    asyncio.run(main())


def test_relays_of_another_process_end_with_an_error_event(
    upstream: SSEServer, other_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    response = request_sse(upstream.url)
    made, of_stream = relay.frames(iter(["a"])), relay.frames(response)
    other_process()
    for frames in (made, of_stream):
        assert b"event: error" in b"".join(frames)
        frames.close()
    assert not upstream.requests[0].aborted.is_set()
    monkeypatch.undo()
    response.events.close()


def test_lock_is_the_interpreters_own_rlock() -> None:
    """No interrupt can leave it locked, since no Python function enters it."""
    assert type(fork.ForkSafeLock().native) is type(threading.RLock())


WITHOUT_HOOKS = """
import ctypes, os, sys
from sseqbridge._runtime import fork
if sys.argv[1] == "by number":
    fork._id_is_known = fork.NEVER
before = fork.process_token()
for generation in range(2):
    # As uWSGI forks: without Python's hooks.
    child = ctypes.CDLL(None).fork()
    after = fork.process_token()
    assert (after == before) == (child != 0)
    assert after == fork.process_token() and after[1] == os.getpid()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    before = after
print("grandchild", flush=True)
os._exit(0)
"""


ON_A_REUSED_CONNECTION = """
import itertools
from sseqbridge.testing import SSEServer, send, wait

def script(request):
    if request.path == "/ticking":
        return (step for n in itertools.count() for step in (send(n), wait(0.005)))
    return [send("[DONE]")]

def child():
    refused(lambda: next(events))
    assert list(request_sse(server.url).events) == list(request_sse(server.url).events) == []

with SSEServer(script) as server:
    assert list(request_sse(server.url).events) == []
    events = request_sse(f"{server.url}/ticking").events
    assert next(events) == 0
    succeeded(in_child(child))
    assert [next(events) for _ in range(100)] == list(range(1, 101))
    events.close()
    server.requests[1].wait_aborted(30)
"""


def test_parents_stream_on_a_reused_connection_continues() -> None:
    status, _, errors = python(BEGIN + ON_A_REUSED_CONNECTION, "")
    assert (status, errors) == (0, "")


@pytest.mark.parametrize("way", ["by page", "by number"])
def test_token_differs_in_children_that_are_forked_without_hooks(way: str) -> None:
    assert python(WITHOUT_HOOKS, way) == (0, "grandchild\n", "")


def test_system_without_pages_that_a_fork_wipes(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldPage(mmap.mmap):
        def madvise(self, *args: int) -> None:
            raise OSError(errno.EINVAL, "unknown advice")

    assert fork.wiped_on_fork() is not fork.NEVER or sys.platform != "linux"
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", OldPage)
        assert fork.wiped_on_fork() is fork.NEVER
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fork.wiped_on_fork() is fork.NEVER
    monkeypatch.setattr(fork, "_id_is_known", fork.NEVER)
    monkeypatch.setattr(fork, "_process_id", 0)
    assert fork.process_token()[1] == os.getpid()


@pytest.mark.parametrize("reconnect", [False, True])
def test_fork_hooks_close_the_parents_streams(
    upstream: SSEServer, monkeypatch: pytest.MonkeyPatch, reconnect: bool
) -> None:
    kept = len(fork.pinned)
    monkeypatch.setattr(fork, "_forks", 0)
    others = set(fork._detachables)
    before = fork.process_token()
    with Bridge() as bridge:
        stream = request_sse(upstream.url, bridge=bridge, reconnect=reconnect).events
        assert next(stream) == 0
        monkeypatch.setattr(fork, "_detachables", WeakSet(set(fork._detachables) - others))
        fork._detach_all()
        assert fork.process_token() != before
        with pytest.raises(UsageError, match="before a fork"):
            next(stream)
        assert stream.outcome == "closed"
        monkeypatch.setattr(fork, "_forks", 0)
    del fork.pinned[kept:]


# Web servers that load the application before they fork.

PRELOADING = ["gunicorn sync, preload", "gunicorn gthread, preload", "gunicorn gevent, preload", "uwsgi, preload"]


@pytest.mark.server
@pytest.mark.configurations("default", "plain")
@pytest.mark.parametrize("name", PRELOADING)
def test_preloaded_application_reads_after_the_fork(name: str) -> None:
    if name.startswith("uwsgi") and UWSGI is None:
        pytest.skip("uWSGI does not support this Python")
    with SSEServer([send(0), send(1), send("[DONE]")]) as upstream, Servers() as servers:
        os.environ["SSEQBRIDGE_TESTS_UPSTREAM"] = upstream.url
        try:
            server = servers[name]
        finally:
            del os.environ["SSEQBRIDGE_TESTS_UPSTREAM"]
        assert len(upstream.requests) == 1
        for _ in range(20):
            response = httpx.get(f"{server.url}/read", timeout=30).json()
            assert response["items"] == [0, 1]
            assert response["at_import"] == [0, 1]
            assert response["is_child"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.runtime.test_fork", description=__doc__)
    parser.add_argument("forks", type=int, nargs="?", default=1000)
    forks = parser.parse_args().forks
    print(f"{forks} forks, each with a stream of its own, while {fork_under_load(forks, 3600)} others were read")


if __name__ == "__main__":
    main()
