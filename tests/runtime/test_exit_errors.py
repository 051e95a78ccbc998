"""Streams that are open at the interpreter's exit end with an error in the threads that read them, and never whole."""

from __future__ import annotations

import pytest

from sseqbridge.testing import SSEServer, send, silence
from tests.support import python

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.slow]

# The last exit function, registered first, waits until the daemon thread has ended: the interpreter stops it otherwise.
PROGRAM = """
import asyncio, atexit, os, sys, threading
threads = []
atexit.register(lambda: [thread.join(20) for thread in threads])
import httpx
from sseqbridge import BridgeTransport, gather, iterate, merge, request_sse, run, tee
from sseqbridge.resume import MemoryLog
from tests.support import until_blocked

def say(text):
    # In one piece: print() writes the end of the line for itself, and other threads write too.
    os.write(1, f"{text}\\n".encode())

url = sys.argv[1]
began = threading.Event()

def items_of(make):
    for item in make():
        began.set()

def one(**options):
    return request_sse(url, require_done=True, **options).events

async def numbers():
    yield 1
    await asyncio.Event().wait()

async def forever():
    began.set()
    await asyncio.Event().wait()

def poll():
    stream = one()
    next(stream)
    began.set()
    while stream.poll() is not None or stream.outcome is None:
        pass

def read_response():
    with httpx.Client(transport=BridgeTransport()) as client, client.stream("GET", url) as response:
        for _ in response.iter_bytes():
            began.set()

def next_with_timeout():
    stream = one()
    next(stream)
    began.set()
    stream.next(timeout=60)

def collect():
    stream = one()
    next(stream)
    began.set()
    return stream.collect()

both_open = threading.Barrier(2, action=began.set)

def opened():
    response = request_sse(url)
    # A request that begins after the interpreter's exit has closed the bridges runs on a new one.
    both_open.wait()
    return response

READERS = {
    "for": lambda: items_of(one),
    "next": next_with_timeout,
    "collect": collect,
    "poll": poll,
    "merge": lambda: items_of(lambda: merge({"a": one(), "b": one()})),
    "gather": lambda: list(gather([opened] * 2)),
    "tee": lambda: items_of(lambda: tee(one(), 2)[0]),
    "iterate": lambda: items_of(lambda: iterate(numbers)),
    "run": lambda: run(forever),
    "log": lambda: items_of(lambda: MemoryLog().open("k", one)),
    "transport": read_response,
}

def work(read):
    try:
        read()
    except BaseException as error:
        say(type(error).__name__)
        raise
    say("no error")

def start(read, **options):
    thread = threading.Thread(target=work, args=(read,), **options)
    threads.append(thread)
    thread.start()
    return thread
"""


def run(program: str) -> tuple[int, str, str]:
    with SSEServer([send({"n": 1}), silence()]) as server:
        result = python(PROGRAM + program, server.url)
        for request in server.requests:
            request.wait_aborted()
    return result


@pytest.mark.parametrize(
    "reader", ["for", "next", "collect", "poll", "merge", "gather", "tee", "iterate", "run", "log", "transport"]
)
def test_daemon_thread_gets_an_error_and_prints_nothing(reader: str) -> None:
    program = f"""
thread = start(READERS[{reader!r}], daemon=True)
began.wait()
if {reader!r} != "poll":
    until_blocked(thread.ident)
"""
    error = "ReadError" if reader == "transport" else "BridgeClosedError"
    assert run(program) == (0, f"{error}\n", "")


def test_error_says_that_the_interpreter_is_exiting() -> None:
    program = """
def read():
    try:
        items_of(one)
    except Exception as error:
        say(error)
        raise
thread = start(read, daemon=True)
began.wait()
"""
    message = "the interpreter is exiting, and has ended this stream early"
    assert run(program) == (0, f"{message}\nBridgeClosedError\n", "")


@pytest.mark.parametrize("how", ["close", "cancel flag", "break"])
def test_stream_ended_right_before_the_exit_ends_quietly(how: str) -> None:
    program = f"""
flag = threading.Event()
stream = one(cancel=flag)
def read():
    for _ in stream:
        began.set()
        if {how!r} == "break":
            break
    say(stream.outcome)
thread = start(read, daemon=True)
began.wait()
if {how!r} == "close":
    until_blocked(thread.ident)
    stream.close()
if {how!r} == "cancel flag":
    until_blocked(thread.ident)
    flag.set()
    thread.join()
"""
    assert run(program) == (0, "closed\nno error\n", "")


@pytest.mark.parametrize("error", ["ValueError", "SyntaxError"])
def test_error_of_another_kind_is_still_reported(error: str) -> None:
    """Also one that is raised in a handler of the error."""
    program = f"""
def fails():
    try:
        items_of(one)
    except Exception:
        raise {error}("of the application")
thread = start(fails, daemon=True)
began.wait()
until_blocked(thread.ident)
"""
    status, _, err = run(program)
    assert status == 0
    assert err.splitlines()[-1] == f"{error}: of the application"


def test_hook_of_the_application_gets_other_errors_alone() -> None:
    program = """
threading.excepthook = lambda args: say(f"hook: {args.exc_value}")
def fails():
    try:
        items_of(one)
    except Exception:
        raise LookupError("of the application") from None
for read in (READERS["for"], fails):
    began.clear()
    thread = start(read, daemon=True)
    began.wait()
    until_blocked(thread.ident)
"""
    status, out, err = run(program)
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()) == ["BridgeClosedError", "LookupError", "hook: of the application"]
