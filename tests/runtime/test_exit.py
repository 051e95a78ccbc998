"""The exit of an interpreter with open streams, and threads that outlive its main thread."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send
from tests.support import (
    ROOT,
    until,
)

from .programs import exits

pytestmark = pytest.mark.slow

RESPONSE = (send({"n": 1}), send("[DONE]"))


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
    """As a reloader does that discards modules: each copy has its own thread, and both end."""
    program = """
_, _, it = request_sse(url)
next(it)
for name in [name for name in sys.modules if name.partition(".")[0] == "sseqbridge"]:
    del sys.modules[name]
from sseqbridge import request_sse as second
assert second is not request_sse
_, _, other = second(url)
next(other)
print("both", flush=True)
"""
    assert exits(program, silent.url) == (0, "both", "")
    for request in silent.requests:
        request.wait_aborted()
    assert len(silent.requests) == 2


@pytest.mark.server
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
        # Repeatedly, since the reloader may have just started to watch.
        app.touch()
        return silent.requests[0].aborted.wait(0.3)

    command = [sys.executable, str(app)]
    # A process group, since the reloader starts processes of its own.
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            silent.wait_for_request(timeout=60)
            until(is_reloaded, 60)
            silent.wait_for_request(2, timeout=60)
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
    # The loop thread is a daemon: a callback that blocks it does not delay the exit.
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
_, _, it = request_sse(url)   # Registers the exit hooks, which run before the one below.
it.close()
atexit._run_exitfuncs()
late()
"""
    assert exits(program, silent.url) == (0, "UsageError", "")


def test_import_starts_no_thread() -> None:
    program = """
print(threading.active_count(), flush=True)
"""
    assert exits(program, "unused") == (0, "1", "")


# Threads that outlive the main thread, and name lookups, which each program replaces.

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
    with SSEServer(RESPONSE) as server:
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
    assert exits(program, silent.url, "60") == (0, "looks up", "")


def test_concurrent_requests_share_a_lookup() -> None:
    program = f"""{NAMES}
all_wait = threading.Event()
slow = socket.getaddrinfo
def wait_for_all(*args, **options):
    all_wait.wait(30)
    return slow(*args, **options)
socket.getaddrinfo = wait_for_all
threads = [threading.Thread(target=lambda: list(request_sse(named).events)) for _ in range(40)]
for thread in threads:
    thread.start()
while not all(waits(thread.ident) for thread in threads):
    time.sleep(0.001)
all_wait.set()
for thread in threads:
    thread.join()
print(len(lookups), set(lookups), flush=True)
"""
    with SSEServer(RESPONSE) as server:
        # The lookup takes 1 s after the last request; on a slow machine the loop may take longer to begin all of them.
        status, out, err = exits(program, server.url, "1.0")
        assert (status, err) == (0, "")
        assert out.endswith(" {'sseqbridge-resolver'}")
        assert int(out.split()[0]) <= 3


def test_failed_lookup_after_an_abort_is_not_logged(silent: SSEServer) -> None:
    program = """
import gc, logging
logging.basicConfig()
logging.getLogger("sseqbridge.loop").disabled = True  # A busy machine may log here.
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
