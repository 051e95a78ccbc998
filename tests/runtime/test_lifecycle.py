"""Threads, signals, the collector, the interpreter's exit, and what requests share."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, ServerSentEvent, UsageError, request_sse
from sseqbridge._engine import stream_task as _pump
from sseqbridge._http import client as _client
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, send, silence, wait
from tests.support import (
    EXITS,
    HAS_OWN_TRANSPORT,
    ROOT,
    in_thread,
    is_waiting,
    python,
    started,
    together,
    until,
    until_blocked,
)

ONE_THEN_SILENCE = (send({"n": 1}), silence())
ANSWER = (send({"n": 1}), send("[DONE]"))


@pytest.fixture
def silent() -> Iterator[SSEServer]:
    with SSEServer(ONE_THEN_SILENCE) as server:
        yield server


# One thread, however many streams.


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sseqbridge")]


def test_120_streams_share_one_thread() -> None:
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), send("[DONE]")]) as server:
        streams = [request_sse(server.url).events for _ in range(120)]
        assert [next(it) for it in streams] == [0] * 120
        assert server.open_requests == 120
        (thread,) = loop_threads()
        assert thread.daemon
        assert thread.name == "sseqbridge-loop"
        go.set()
        assert [list(it) for it in streams] == [[1]] * 120


def test_100_threads_read_a_stream_each() -> None:
    with SSEServer([send(0), send(1), send("[DONE]")]) as server:
        assert together([lambda: list(request_sse(server.url).events)] * 100) == [[0, 1]] * 100


def test_close_unblocks_100_waiting_consumers(silent: SSEServer) -> None:
    streams = [request_sse(silent.url).events for _ in range(100)]
    assert [next(it)["n"] for it in streams] == [1] * 100
    reading = [in_thread(partial(list[Any], it)) for it in streams]
    until(lambda: all(map(is_waiting, reading)))
    together([it.close for it in streams])
    assert [future.result(5) for future in reading] == [[]] * 100


# Connections are used again.


@pytest.fixture(params=["http", "https", "https, with a client of the caller's"])
def asked(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> Iterator[Callable[[Any], tuple[SSEServer, Bridge]]]:
    """A function that starts an upstream with a script, and returns it with a bridge to ask it through."""
    servers = []
    of_the_caller = request.param.endswith("caller's")
    monkeypatch.setattr(_client, "_tls_context", client_tls)
    with Bridge(client=(lambda: httpx.AsyncClient(verify=client_tls)) if of_the_caller else None) as bridge:

        def start(script: Any) -> tuple[SSEServer, Bridge]:
            servers.append(SSEServer(script, ssl_context=None if request.param == "http" else server_tls).start())
            return servers[-1], bridge

        yield start
    for server in servers:
        server.close()


def late_end(request: ReceivedRequest) -> Iterator[Step]:
    yield send({"n": 1})
    yield send("[DONE]")
    yield wait(0.003)


@pytest.mark.parametrize("script", [ANSWER, late_end])
def test_100_requests_in_a_row_open_one_connection(asked: Any, monkeypatch: pytest.MonkeyPatch, script: Any) -> None:
    # A busy machine takes longer for the 3 ms. (What never ends has tests of its own.)
    assert _pump._END_SECONDS == 0.02
    monkeypatch.setattr(_pump, "_END_SECONDS", 5)
    server, bridge = asked(script)
    for _ in range(100):
        assert list(request_sse(server.url, bridge=bridge).events) == [{"n": 1}]
    assert len(server.requests) == 100
    assert server.connections == 1


def test_done_function_keeps_the_connection(asked: Any) -> None:
    server, bridge = asked((send({"n": 1}), send({"n": 2}), wait(0.003)))
    for _ in range(20):
        events = request_sse(server.url, bridge=bridge, done=lambda event: '"n": 2' in event.data).events
        assert list(events) == [{"n": 1}, {"n": 2}]
        assert events.outcome == "done"
        # On a busy machine the rest of the body is read in the background.
        until(lambda: not bridge.stats().open_streams)
    assert server.connections == 1


def test_upstream_open_after_done_is_cut_after_a_second() -> None:
    with SSEServer([*ANSWER, silence()]) as server:
        it = request_sse(server.url).events
        assert next(it) == {"n": 1}
        at = time.monotonic()
        assert list(it) == []
        assert time.monotonic() - at < 0.5
        assert it.outcome == "done"
        assert 0.5 < server.requests[0].wait_aborted() - at < 2


def test_upstream_open_after_a_done_function_is_cut() -> None:
    def is_last(event: ServerSentEvent) -> bool:
        return True

    with SSEServer([send({"n": 1}), silence()]) as server:
        it = request_sse(server.url, done=is_last).events
        at = time.monotonic()
        assert list(it) == [{"n": 1}]
        assert time.monotonic() - at < 0.5
        assert it.outcome == "done"
        assert 0.5 < server.requests[0].wait_aborted() - at < 2


def test_done_function_ends_a_stream_under_backpressure() -> None:
    def numbers(request: ReceivedRequest) -> Iterator[Step]:
        n = 0
        while True:
            yield send([n, "x" * 8000])
            n += 1

    with SSEServer(numbers) as server:
        it = request_sse(server.url, done=lambda event: True, max_buffered_bytes=10_000).events
        until(lambda: it.stats.buffered)
        assert [n for n, _ in it] == [0]
        assert it.outcome == "done"
        server.requests[0].wait_aborted()


def test_done_function_may_accept_after_the_body_ended() -> None:
    with SSEServer([send({"n": 1}), send({"n": 2})]) as server:
        it = request_sse(server.url, done=lambda event: True).events
        until(lambda: it._cursor.subscription.finished)
        assert list(it) == [{"n": 1}]
        assert it.outcome == "done"


@pytest.mark.parametrize("of_the_caller", [False, True])
def test_upstream_that_sends_after_done_is_cut_after_64_kib(of_the_caller: bool) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield send("[DONE]")
        while True:
            yield send("x" * 8000)

    with SSEServer(script) as server, Bridge(client=httpx.AsyncClient if of_the_caller else None) as bridge:
        it = request_sse(server.url, bridge=bridge).events
        at = time.monotonic()
        assert list(it) == []
        assert server.requests[0].wait_aborted() - at < 0.8
        assert it.stats.events == 0


def test_aborted_stream_costs_only_its_own_connection(silent: SSEServer) -> None:
    for _ in range(20):
        request_sse(silent.url).events.close()
    with SSEServer(ANSWER) as server:
        for _ in range(20):
            assert list(request_sse(server.url).events) == [{"n": 1}]
        assert server.connections == 1


def test_tls_context_is_built_once_and_off_the_loop(
    monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    built_in = []

    def noted() -> ssl.SSLContext:
        built_in.append(threading.current_thread().name)
        return client_tls

    monkeypatch.setattr(httpx, "create_ssl_context", noted)
    monkeypatch.setattr(_client, "_tls_context", None)
    with SSEServer(ANSWER) as server:
        assert list(request_sse(server.url).events) == [{"n": 1}]
    assert not built_in or not HAS_OWN_TRANSPORT, "what no request needs"
    built_in.clear()
    monkeypatch.setattr(_client, "_tls_context", None)
    with SSEServer(ANSWER, ssl_context=server_tls) as server, Bridge() as first, Bridge() as second:
        streams = together([partial(request_sse, server.url, bridge=bridge) for bridge in (first, second) * 5])
        assert [list(it) for _, _, it in streams] == [[{"n": 1}]] * 10
    (thread,) = built_in
    assert thread != "sseqbridge-loop"


# The collector runs where it likes.


def in_the_loops_thread(silent: SSEServer, act: Callable[[], object]) -> None:
    """Run `act` once in the loop's thread: that is where flags are looked at."""
    done = threading.Event()

    class Flag:
        def is_set(self) -> bool:
            if threading.current_thread().name == "sseqbridge-loop" and not done.is_set():
                act()
                done.set()
            return False

    with request_sse(silent.url, cancel=Flag()).events:
        assert done.wait(5)


def test_stream_can_be_collected_on_the_loop_thread(silent: SSEServer) -> None:
    cycle: list[Any] = [request_sse(silent.url).events]
    cycle.append(cycle)
    request = silent.wait_for_request()
    del cycle
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_the_loops_thread(silent, gc.collect)
        request.wait_aborted()
    assert [warning.category for warning in caught] == [ResourceWarning]


def test_streams_collected_during_channel_operations_do_not_block_the_loop(silent: SSEServer) -> None:
    # The collector may run at every allocation, so that it finds dropped streams in the loop's
    # put() and in consumers' take() alike, while a busy stream passes through both.
    def numbers(request: ReceivedRequest) -> Iterator[Step]:
        for n in range(2000):
            yield send(n)
        yield send("[DONE]")

    with SSEServer(numbers) as busy, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thresholds = gc.get_threshold()
        gc.set_threshold(1, 1000, 1000)
        try:
            reading = in_thread(lambda: list(request_sse(busy.url, max_buffered_bytes=2000).events))
            for _ in range(60):
                cycle: list[Any] = [request_sse(silent.url).events]
                cycle.append(cycle)
                del cycle
            assert reading.result(15) == list(range(2000))
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        for n in range(60):
            silent.wait_for_request(n + 1).wait_aborted()


def test_decode_function_may_drop_another_stream(silent: SSEServer) -> None:
    # The callback runs under next(): what it drops is another stream of the same bridge.
    others = [request_sse(silent.url).events]

    def decode(event: ServerSentEvent) -> str:
        with pytest.warns(ResourceWarning):
            others.clear()
        return event.data

    with request_sse(silent.url, decode=decode).events as it:
        assert next(it) == '{"n": 1}'
    silent.wait_for_request(1).wait_aborted()


def test_loop_keeps_no_stream_alive(silent: SSEServer) -> None:
    def close_when_dropped() -> None:
        it = request_sse(silent.url, decode=lambda event: event.data).events
        assert next(it) == '{"n": 1}'

    gc.disable()
    try:
        with pytest.warns(ResourceWarning):
            close_when_dropped()
    finally:
        gc.enable()
    silent.wait_for_request().wait_aborted()


# Signals. In interpreters of their own, whose main thread is the consumer.

PRELUDE = """
import os, signal, socket, sys, threading, time
from sseqbridge import request_sse
from tests.support import thread_waits as waits, until_blocked

# A shell that runs the tests in the background has them, and what they start, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

def when_waiting(act):
    main = threading.main_thread().ident
    def watch():
        until_blocked(main)
        act()
    threading.Thread(target=watch, daemon=True).start()

def signal_when_waiting(number):
    when_waiting(lambda: os.kill(os.getpid(), number))

url = sys.argv[1]
"""

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on Unix")


def answer_of(process: subprocess.Popen[str]) -> str:
    # Past the buffer, where communicate() would not look for what follows.
    assert process.stdout is not None
    line = b""
    while (byte := os.read(process.stdout.fileno(), 1)) not in (b"\n", b""):
        line += byte
    return line.decode().strip()


@unix
@pytest.mark.parametrize("wait_for_it", ["for item in it: pass", "next(it)", "it.next(timeout=60)"])
def test_ctrl_c_during_a_wait_aborts_the_stream(silent: SSEServer, wait_for_it: str) -> None:
    program = f"""{PRELUDE}
it = request_sse(url).events
next(it)
signal_when_waiting(signal.SIGINT)
try:
    {wait_for_it}
except KeyboardInterrupt:
    print("interrupted", it.outcome, flush=True)
    sys.stdin.read()
"""
    with started(program, silent.url) as process:
        assert answer_of(process) == "interrupted closed"
        silent.wait_for_request().wait_aborted()
        assert process.poll() is None
        assert process.communicate(timeout=EXITS) == ("", "")
        assert process.returncode == 0


@unix
@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
def test_exception_of_a_signal_handler_aborts_the_stream(
    silent: SSEServer, error: type[BaseException]
) -> None:
    def interrupt(*_: object) -> None:
        raise error

    def send_signal() -> None:
        until_blocked(main)
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    it = request_sse(silent.url).events
    assert next(it) == {"n": 1}
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sending = in_thread(send_signal)
        with pytest.raises(error):
            next(it)
        sending.result(5)
    finally:
        signal.signal(signal.SIGUSR1, before)
    silent.wait_for_request().wait_aborted()
    assert list(it) == []


@unix
def test_ctrl_c_before_the_headers_aborts_the_request() -> None:
    program = f"""{PRELUDE}
request_sse(sys.argv[2]).events.close()  # So that the next wait is none for the thread to start.
signal_when_waiting(signal.SIGINT)
try:
    request_sse(url)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
"""
    with SSEServer([silence()]) as server, SSEServer(ANSWER) as other, started(program, server.url, other.url) as child:
        assert answer_of(child) == "interrupted"
        for request in server.requests:
            request.wait_aborted()
        assert child.poll() is None
        assert child.communicate(timeout=EXITS) == ("", "")


@unix
@pytest.mark.parametrize("consume", ["for item in it: pass", "next(it, None)"])
def test_close_in_a_signal_handler_ends_the_interrupted_wait(silent: SSEServer, consume: str) -> None:
    program = f"""{PRELUDE}
it = request_sse(url).events
next(it)
signal.signal(signal.SIGUSR1, lambda *_: it.close())
signal_when_waiting(signal.SIGUSR1)
{consume}
print("ended", it.outcome, flush=True)
sys.stdin.read()
"""
    with started(program, silent.url) as process:
        assert answer_of(process) == "ended closed"
        silent.wait_for_request().wait_aborted()
        assert process.communicate(timeout=EXITS) == ("", "")


@unix
def test_close_in_a_signal_handler_is_safe_at_any_moment() -> None:
    # Every 0.2 ms: it hits take(), put()'s wake-ups, decoding, and the handler's own close().
    def numbers(request: ReceivedRequest) -> Iterator[Step]:
        n = 0
        while True:
            yield send(n)
            n += 1

    program = f"""{PRELUDE}
streams = []
signal.signal(signal.SIGALRM, lambda *_: streams and streams[-1].close())
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
for _ in range(10):
    try:
        streams.append(request_sse(url, max_buffered_bytes=4000).events)
        seen = list(streams[-1])
        assert seen == list(range(len(seen))), seen
    finally:
        del streams[:]
signal.setitimer(signal.ITIMER_REAL, 0)
print("ended", flush=True)
"""
    with SSEServer(numbers) as server:
        status, out, err = python(program, server.url, timeout=50)
        assert (status, out, err) == (0, "ended\n", "")
        assert len(server.requests) == 10


# The interpreter's exit.


def exits(program: str, *args: str) -> tuple[int, str, str]:
    """Run a program that exits with its stream open, and return its status, output and errors.

    It prints a line when it comes to its end, from which on the time is taken.
    """
    with started(PRELUDE + program, *args) as process:
        told = answer_of(process)
        at = time.monotonic()
        out, err = process.communicate(timeout=15)
        assert time.monotonic() - at < EXITS
        return process.returncode, told + out, err


def test_exit_with_an_open_stream_aborts_it(silent: SSEServer) -> None:
    program = """
_, _, it = request_sse(url)
print(next(it), flush=True)
"""
    assert exits(program, silent.url) == (0, "{'n': 1}", "")
    silent.wait_for_request().wait_aborted()


def test_sys_exit_inside_the_loop_keeps_its_status(silent: SSEServer) -> None:
    program = """
_, _, it = request_sse(url)
for item in it:
    print(item, flush=True)
    sys.exit(3)
"""
    assert exits(program, silent.url) == (3, "{'n': 1}", "")
    silent.wait_for_request().wait_aborted()


def test_exit_by_a_handled_signal_aborts_the_stream(silent: SSEServer) -> None:
    program = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
_, _, it = request_sse(url)
print(next(it), flush=True)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
for item in it:
    pass
"""
    assert exits("import os\n" + program, silent.url) == (5, "{'n': 1}", "")
    silent.wait_for_request().wait_aborted()


def test_os_exit_closes_the_connection(silent: SSEServer) -> None:
    program = """
_, _, it = request_sse(url)
print(next(it), flush=True)
os._exit(7)
"""
    assert exits("import os\n" + program, silent.url) == (7, "{'n': 1}", "")
    silent.wait_for_request().wait_aborted()


def test_exit_after_a_second_import_ends_both_threads(silent: SSEServer) -> None:
    """As a reloader does that throws modules away: each has a thread of its own, and both end."""
    program = """
_, _, it = request_sse(url)
next(it)
for name in [name for name in sys.modules if name.partition(".")[0] == "sseqbridge"]:
    del sys.modules[name]
from sseqbridge import request_sse as anew
assert anew is not request_sse
_, _, other = anew(url)
next(other)
print("both", flush=True)
"""
    assert exits(program, silent.url) == (0, "both", "")
    for request in silent.requests:
        request.wait_aborted()
    assert len(silent.requests) == 2


@pytest.mark.parametrize("framework", ["flask", "django"])
def test_reloader_of_a_development_server_aborts_open_streams(
    silent: SSEServer, framework: str, tmp_path: Path
) -> None:
    begin = {
        "flask": "from flask import Flask; app = Flask('app'); from werkzeug.serving import run_simple",
        "django": """
from django.conf import settings
settings.configure(ROOT_URLCONF="app", ALLOWED_HOSTS=["*"], DEBUG=True)
import django; django.setup()
from django.utils import autoreload
urlpatterns = []
""",
    }
    run = {
        "flask": "run_simple('127.0.0.1', 0, app, use_reloader=True, reloader_type='stat', reloader_interval=0.1)",
        "django": "autoreload.StatReloader.SLEEP_TIME = 0.1; autoreload.run_with_reloader(serve)",
    }
    app = tmp_path / "app.py"
    app.write_text(
        f"""
import sys, threading
sys.path.insert(0, {str(ROOT)!r})
{begin[framework]}
from sseqbridge import request_sse
def serve():
    it = request_sse({silent.url!r}).events
    next(it)
    next(it)
if __name__ == "__main__":
    import os
    if os.environ.get("WERKZEUG_RUN_MAIN") == "true":
        threading.Thread(target=serve, daemon=True).start()
    {run[framework]}
"""
    )

    def is_reloaded() -> bool:
        # Again and again: the reloader may only just have begun to look.
        app.touch()
        return silent.requests[0].aborted.wait(0.3)

    command = [sys.executable, str(app)]
    # In a group of their own: the reloader is one process, what it starts again and again another.
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            silent.wait_for_request(timeout=15)
            until(is_reloaded)
            silent.wait_for_request(2, timeout=15)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for request in silent.requests:
        request.wait_aborted()


def test_exit_by_an_unhandled_exception_has_one_traceback(silent: SSEServer) -> None:
    program = """
_, _, it = request_sse(url)
for item in it:
    print(item, flush=True)
    raise LookupError("of the caller's own")
"""
    status, out, err = exits(program, silent.url)
    assert (status, out) == (1, "{'n': 1}")
    assert err.count("Traceback") == 1
    assert err.endswith("LookupError: of the caller's own\n")
    silent.wait_for_request().wait_aborted()


def test_exit_is_prompt_with_a_daemon_thread_in_next(silent: SSEServer) -> None:
    program = """
_, _, it = request_sse(url)
next(it)
thread = threading.Thread(target=lambda: list(it), daemon=True)
thread.start()
while not waits(thread.ident):
    time.sleep(0.001)
print("waits", flush=True)
"""
    assert exits(program, silent.url) == (0, "waits", "")
    silent.wait_for_request().wait_aborted()


def test_exit_is_prompt_with_streams_under_backpressure() -> None:
    def flood(request: ReceivedRequest) -> Iterator[Step]:
        while True:
            yield send(["x" * 60_000])

    program = """
streams = [request_sse(url, max_buffered_bytes=100_000).events for _ in range(50)]
for it in streams:
    next(it)
print("open", flush=True)
"""
    with SSEServer(flood) as server:
        assert exits(program, server.url) == (0, "open", "")
        for request in server.requests:
            request.wait_aborted()


def test_exit_is_prompt_with_a_blocked_loop_thread(silent: SSEServer) -> None:
    # The thread is a daemon: what a callback of the caller's does to it does not hold up the exit.
    program = """
armed, blocks = threading.Event(), threading.Event()
class Flag:
    def is_set(self):
        if armed.is_set() and threading.current_thread().daemon:
            blocks.set()
            time.sleep(60)
        return False
_, _, it = request_sse(url, cancel=Flag())
next(it)
armed.set()
blocks.wait()
print("blocks", flush=True)
"""
    assert exits(program, silent.url) == (0, "blocks", "")


def test_request_during_exit_is_a_usage_error(silent: SSEServer) -> None:
    program = """
import atexit
def late():
    try:
        request_sse(url)
    except RuntimeError as exc:
        print(type(exc).__name__, flush=True)
_, _, it = request_sse(url)   # What is imported now has its exit hook run before the one below.
it.close()
atexit._run_exitfuncs()
late()
"""
    assert exits(program, silent.url) == (0, "UsageError", "")


# A thread that outlives main, and slow names. Every look-up is the program's own.

NAMES = """
seconds = float(sys.argv[2])
real = socket.getaddrinfo
lookups = []
def getaddrinfo(host, *args, **options):
    if host in ("upstream.test", b"upstream.test"):
        lookups.append(threading.current_thread().name)
        time.sleep(seconds)
        host = "127.0.0.1"
    if host == "nowhere.test":
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return real(host, *args, **options)
socket.getaddrinfo = getaddrinfo
named = url.replace("127.0.0.1", "upstream.test")
"""


@pytest.mark.parametrize("warm", [True, False], ids=["started before", "started after main's end"])
def test_thread_that_outlives_main_can_stream(warm: bool) -> None:
    program = f"""{NAMES}
def work():
    threading.main_thread().join()
    for _ in range(3):
        print(list(request_sse(named).events), flush=True)
if {warm}:
    list(request_sse(url).events)
threading.Thread(target=work).start()
"""
    with SSEServer(ANSWER) as server:
        status, out, err = exits(program, server.url, "0")
        assert (status, err) == (0, "")
        assert out.replace("\n", "") == "[{'n': 1}]" * 3


def test_slow_lookup_does_not_delay_the_exit(silent: SSEServer) -> None:
    program = f"""{NAMES}
threading.Thread(target=lambda: request_sse(named), daemon=True).start()
while not lookups:
    time.sleep(0.001)
threading.excepthook = lambda args: None
print("looks up", flush=True)
"""
    assert exits(program, silent.url, "8") == (0, "looks up", "")


def test_concurrent_requests_share_a_lookup() -> None:
    program = f"""{NAMES}
threads = [threading.Thread(target=lambda: list(request_sse(named).events)) for _ in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(lookups), set(lookups), flush=True)
"""
    with SSEServer(ANSWER) as server:
        # One look-up for all who ask while it is under way: at most a few, on a slow machine.
        status, out, err = exits(program, server.url, "1.0")
        assert (status, err) == (0, "")
        assert out.endswith(" {'sseqbridge-resolver'}")
        assert int(out.split()[0]) <= 3


def test_failed_lookup_after_an_abort_is_not_logged(silent: SSEServer) -> None:
    program = """
import gc, logging
logging.basicConfig()
logging.getLogger("sseqbridge.loop").disabled = True  # A busy machine is no noise of this.
failed = threading.Event()
go_on = threading.Event()
def getaddrinfo(*args, **options):
    go_on.wait()
    try:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    finally:
        failed.set()
socket.getaddrinfo = getaddrinfo
cancel = threading.Event()
def ask():
    try:
        request_sse("http://nowhere.test/", cancel=cancel)
    except Exception as exc:
        print(type(exc).__name__, flush=True)
thread = threading.Thread(target=ask)
thread.start()
while not any(thread.name == "sseqbridge-resolver" for thread in threading.enumerate()):
    time.sleep(0.001)
cancel.set()
thread.join()
go_on.set()
failed.wait()
it = request_sse(url).events
next(it)
it.close()
gc.collect()
"""
    assert exits(program, silent.url) == (0, "RequestAbortedError", "")


def test_unknown_name_is_a_connect_error(silent: SSEServer) -> None:
    program = f"""{NAMES}
from sseqbridge import ConnectError
try:
    request_sse("http://nowhere.test/")
except ConnectError as exc:
    print(exc, flush=True)
"""
    assert exits(program, silent.url, "0") == (
        0,
        "no connection to http://nowhere.test/: Name or service not known",
        "",
    )


# A second use of the interpreter's own door.


def test_import_starts_no_thread() -> None:
    program = """
print(threading.active_count(), flush=True)
"""
    assert exits(program, "unused") == (0, "1", "")


def test_closed_port_leaves_no_thread_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for _ in range(10):
        with pytest.raises(Exception, match="no connection"):
            request_sse(f"http://127.0.0.1:{port}/")
    assert len(loop_threads()) == 1


def test_bridge_must_be_a_bridge() -> None:
    bridge: Any = "default"
    with pytest.raises(UsageError, match="`bridge` must be"):
        request_sse("http://127.0.0.1:1/", bridge=bridge)
