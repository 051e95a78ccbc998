"""The leak check: it finds and names each kind of resource, and reports nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]

# Tests for another pytest process. `kept` keeps their resources alive until the interpreter exits.
LEAKING = """
import asyncio, os, socket, subprocess, sys, tempfile, threading

import pytest

from sseqbridge import Bridge, merge, request_sse
from sseqbridge._streams.bridge import default_bridge
from sseqbridge.testing import SSEServer, send, silence
from tests import leaks

leaks.WAIT_SECONDS = 0.1
kept = []


@pytest.fixture(scope="module")
def server():
    with SSEServer([send(1), silence()]) as server:
        yield server


def test_stream(server):
    kept.append(request_sse(server.url).events)


def test_answer_that_is_complete_and_not_read():
    with SSEServer([send(1), send("[DONE]")]) as server:
        kept.append(request_sse(server.url).events)


def test_merged_streams(server):
    merged = merge([request_sse(server.url)])
    kept.append(merged)


def test_stream_of_a_failed_test(server):
    events = request_sse(server.url).events
    raise ValueError(events)


def test_stream_in_a_cycle(server):
    cycle = [request_sse(server.url).events]
    cycle.append(cycle)


def test_event_loop():
    kept.append(asyncio.new_event_loop())


def test_bridge(server):
    bridge = Bridge()
    bridge.started()
    kept.append(bridge)


def test_task():
    begun = threading.Event()

    async def never_ends():
        begun.set()
        await asyncio.Event().wait()

    kept.append(asyncio.run_coroutine_threadsafe(never_ends(), default_bridge().started().loop))
    assert begun.wait(30)


def test_thread():
    def waits_in_a_test():
        threading.Event().wait()

    threading.Thread(target=waits_in_a_test, name="left", daemon=True).start()


def test_socket():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept.append(socket.create_connection(listener.getsockname()))
        kept.append(listener.getsockname()[1])


def test_listener():
    kept.append(socket.create_server(("127.0.0.1", 0)))


def test_file(tmp_path):
    kept.append((tmp_path / "left open").open("w"))


def test_pipe():
    kept.append(os.pipe())


def test_child():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()", "a child"], stdin=subprocess.PIPE))


def test_child_without_wait():
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_temporary_file():
    descriptor, name = tempfile.mkstemp(prefix="left-")
    os.close(descriptor)


def test_temporary_file_of_a_child():
    subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkdtemp(prefix='left-')"], check=True)


@pytest.fixture
def leaking_fixture():
    yield
    kept.append(os.pipe())


def test_fixture(leaking_fixture):
    pass


@pytest.mark.leaves("descriptor")
def test_marked():
    kept.append(os.pipe())


def test_idle_connection_of_the_default_bridge():
    leaks.WAIT_SECONDS = 60
    with leaks.shared():
        server = SSEServer([send(1)]).start()
    assert list(request_sse(server.url).events) == [1]


def test_connection_of_another_process_to_a_shared_server(server):
    leaks.WAIT_SECONDS = 60
    with leaks.shared():
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    kept.append(client)
    assert client.stdout.readline() == b"connected\\n"
    server.wait_for_request(len(server.requests))


CLIENT = '''
import sys, urllib.request
response = urllib.request.urlopen(sys.argv[1])
print("connected", flush=True)
input()
'''


def test_thread_that_ends_by_itself():
    leaks.WAIT_SECONDS = 60
    threading.Timer(0.1, str).start()


@pytest.fixture(scope="module")
def late_fixture():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield


def test_fixture_of_the_module(request):
    leaks.WAIT_SECONDS = 60
    request.getfixturevalue("late_fixture")


@pytest.fixture(scope="module")
def leaking_module_fixture():
    kept.append(os.pipe())


def test_last(leaking_module_fixture):
    leaks.WAIT_SECONDS = 0.1
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leaking")


@pytest.fixture(scope="module")
def output(directory: Path) -> str:
    """The output of pytest for these tests."""
    path = directory / "test_leaking.py"
    path.write_text(LEAKING)
    options = ["-c", str(ROOT / "setup.cfg"), f"--rootdir={path.parent}", "-p", "tests.conftest", "-p", "no:randomly"]
    run = subprocess.run(  # noqa: PLW1510 (its tests fail)
        [sys.executable, "-m", "pytest", *options, "-v", "-rA", path],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory), "SSEQBRIDGE_FAILURES": str(directory / "failures")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    return str(run.stdout)


def errors_of(name: str, output: str) -> str:
    """Return the text of the error at a test's teardown, "" without one."""
    found = re.search(rf"^_+ ERROR at teardown of {name} _+\n(.*?)^[_=]{{3}}", output, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize(
    ("name", "description"),
    {
        "test_stream": r"stream <EventStream \[200\] open>, made at test_leaking.py:\d+ in test_stream",
        "test_answer_that_is_complete_and_not_read": r"stream <EventStream \[200\] open>, made at test_leaking.py",
        "test_merged_streams": r"stream <MergedStreams \[open\] streams=1>, made at test_leaking.py:\d+",
        "test_stream_in_a_cycle": r"ResourceWarning: .* was dropped while it was open",
        "test_event_loop": r"event loop <.*running=False closed=False.*>, made at test_leaking.py:\d+",
        "test_bridge": r"thread 'sseqbridge-loop'",
        "test_task": r"task <Task pending .*never_ends",
        "test_thread": r"thread 'left', now at test_leaking.py:\d+ in waits_in_a_test",
        "test_socket": r"descriptor \d+: AF_INET socket at \('127.0.0.1', \d+\)",
        "test_listener": r"descriptor \d+: AF_INET socket at \('127.0.0.1', \d+\), not connected",
        "test_file": r"descriptor \d+: /.*/left open",
        "test_pipe": r"descriptor \d+: pipe:",
        "test_child": r"child process \d+: .*python.* -c input\(\) a child",
        "test_child_without_wait": r"child process \d+: ended, and was not waited for",
        "test_temporary_file": r"temporary file /.*/left-",
        "test_temporary_file_of_a_child": r"temporary file /.*/left-",
        "test_fixture": r"descriptor \d+: pipe:",
        "test_last": r"the module left behind:\n(  .*\n)*  descriptor \d+: pipe:",
    }.items(),
)
def test_leak_fails_its_test_by_name(name: str, description: str, output: str) -> None:
    assert re.search(description, errors_of(name, output)), errors_of(name, output) or output


@pytest.mark.parametrize(
    "name",
    [
        "test_marked",
        "test_idle_connection_of_the_default_bridge",
        "test_connection_of_another_process_to_a_shared_server",
        "test_thread_that_ends_by_itself",
        "test_fixture_of_the_module",
    ],
)
def test_shared_or_ending_resources_are_not_leaks(name: str, output: str) -> None:
    assert re.search(rf"^PASSED \S*test_leaking.py::{name}$", output, re.MULTILINE), output
    assert errors_of(name, output) == ""


def test_failed_test_has_one_report(output: str) -> None:
    name = "test_stream_of_a_failed_test"
    assert re.search(rf"^FAILED \S*test_leaking.py::{name}\b", output, re.MULTILINE), output
    assert errors_of(name, output) == ""


def test_failures_are_collected_for_the_end_of_all_sessions(directory: Path, output: str) -> None:
    failures = (directory / "failures").read_text()
    assert re.search(r"test_leaking.py::test_stream_of_a_failed_test \(\w+, --randomly-seed=", failures)
    assert re.search(r"test_leaking.py::test_thread \(.*\n(  .*\n)*  +thread 'left', now at", failures)
    assert "test_marked" not in failures


def test_temporary_files_are_counted_per_session(tmp_path: Path) -> None:
    assert "sseqbridge-tests-" in tempfile.gettempdir()
    assert not str(tmp_path).startswith(tempfile.gettempdir())
