"""iterate, run and enter across forks, under gevent, with signals, and at the interpreter's exit."""

from __future__ import annotations

import os

import pytest

from tests.support import python

from .programs import exits

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.slow]

PRELUDE = """
import asyncio, gc, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
from contextlib import asynccontextmanager
from sseqbridge import Bridge, UsageError, cancel_on, enter, iterate, run

async def numbers(count):
    for n in range(count):
        await asyncio.sleep(0)
        yield n

async def silent():
    try:
        yield 1
        await asyncio.Event().wait()
    finally:
        print("closed", flush=True)

async def later(value):
    await asyncio.sleep(0.001)
    return value

@asynccontextmanager
async def session():
    try:
        yield "session"
    finally:
        print("exited", flush=True)
"""


def output(program: str) -> str:
    status, out, err = python(PRELUDE + program)
    assert (status, err) == (0, "")
    return out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_child_has_its_own_loop_and_leaves_the_parents() -> None:
    program = """
stream = iterate(silent())
assert next(stream) == 1
with enter(session()) as value:
    child = os.fork()
    if not child:
        for use in (stream.close, stream.collect, lambda: next(stream)):
            try:
                use()
            except UsageError as error:
                assert "before a fork" in str(error)
            else:
                os._exit(2)
        assert run(later(5)) == 5
        assert list(iterate(numbers(3))) == [0, 1, 2]
    else:
        assert os.waitpid(child, 0)[1] == 0
        print("child ended", flush=True)
if not child:
    # Leaving the parent's block exited nothing.
    del stream
    gc.collect()
    os._exit(0)
assert run(later(6)) == 6
stream.close()
"""
    assert output(program).split("\n") == ["child ended", "exited", "closed", ""]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork_during_a_call_ends_neither() -> None:
    program = """
begun, child_ended = threading.Event(), threading.Event()
async def call():
    begun.set()
    while not child_ended.is_set():
        await asyncio.sleep(0.001)
    return "parent"
calling = threading.Thread(target=lambda: print(run(call()), flush=True))
calling.start()
begun.wait()
child = os.fork()
if not child:
    os._exit(run(later(7)))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
child_ended.set()
calling.join()
"""
    assert output(program) == "parent\n"


def test_exit_with_an_open_iteration_closes_it() -> None:
    program = """
stream = iterate(silent())
print(next(stream), flush=True)
"""
    assert exits(PRELUDE + program, "") == (0, "1closed\n", "")


def test_exit_ends_a_call_in_a_daemon_thread() -> None:
    program = """
started = threading.Event()
async def forever():
    try:
        started.set()
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)
threading.Thread(target=lambda: run(forever()), daemon=True).start()
started.wait()
print("exiting", flush=True)
"""
    status, out, _ = exits(PRELUDE + program, "")
    assert (status, out) == (0, "exitingcleaned up\n")


def test_exit_inside_a_block_exits_the_session() -> None:
    program = """
with enter(session()):
    print("in", flush=True)
    sys.exit(3)
"""
    assert exits(PRELUDE + program, "") == (3, "inexited\n", "")


def test_ctrl_c_ends_a_loop_and_closes_the_generator() -> None:
    program = """
from tests.support import until_blocked
signal.signal(signal.SIGINT, signal.default_int_handler)
main = threading.get_ident()

def interrupt():
    until_blocked(main)
    os.kill(os.getpid(), signal.SIGINT)

try:
    for item in iterate(silent()):
        threading.Thread(target=interrupt).start()
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert run(later(1)) == 1
"""
    status, out, err = python(PRELUDE + program)
    assert (status, err) == (0, "")
    # Two threads print.
    assert sorted(out.replace("\n", "")) == sorted("interruptedclosed")


def test_a_second_ctrl_c_ends_the_wait_for_the_cleanup() -> None:
    program = """
from tests.support import until_blocked
signal.signal(signal.SIGINT, signal.default_int_handler)
main = threading.get_ident()
go, started, cleaning_up = threading.Event(), threading.Event(), threading.Event()

async def slow_cleanup():
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        cleaning_up.set()
        while not go.is_set():
            await asyncio.sleep(0.01)

def interrupt():
    started.wait()
    until_blocked(main)
    os.kill(os.getpid(), signal.SIGINT)
    cleaning_up.wait()
    until_blocked(main)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    run(slow_cleanup())
except KeyboardInterrupt:
    print("interrupted", flush=True)
go.set()
"""
    assert python(PRELUDE + program) == (0, "interrupted\n", "")


GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent
"""


@pytest.mark.gevent
@pytest.mark.configurations("default", "plain")
def test_greenlets_run_asynchronous_code_side_by_side() -> None:
    program = """
async def forever():
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)

# Each waits for the next one.
async def meet():
    global count
    count += 1
    while count < 50:
        await asyncio.sleep(0.001)
    return count

count = 0
calls = [gevent.spawn(run, meet()) for _ in range(50)]
gevent.joinall(calls)
assert [call.value for call in calls] == [50] * 50

reads = [gevent.spawn(lambda: list(iterate(numbers(20)))) for _ in range(20)]
gevent.joinall(reads)
assert [read.value for read in reads] == [list(range(20))] * 20

with enter(session()) as value:
    assert run(later(value)) == "session"

try:
    run(forever(), timeout=0.5)
except TimeoutError:
    print("timeout", flush=True)

stream = iterate(silent())
reading = gevent.spawn(stream.collect)
while not stream.stats.events:
    gevent.sleep(0.001)
stream.close()
assert reading.get() == [1] or reading.get() == []
"""
    lines = output(GEVENT + program).split("\n")
    assert lines == ["exited", "cleaned up", "timeout", "closed", ""]


def test_thread_starts_with_the_first_call() -> None:
    program = """
before = {thread.name for thread in threading.enumerate()}
assert before == {"MainThread"}, before
assert run(later(1)) == 1
after = {thread.name for thread in threading.enumerate()} - before
assert after == {"sseqbridge-async"}, after
"""
    assert output(program) == ""
