"""Processes with too few file descriptors, or with closed standard ones: typed errors, and no abort."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sseqbridge._runtime import sockets
from sseqbridge.testing import SSEServer, send, silence
from tests.support import LOOPS, ROOT, python

pytestmark = [
    pytest.mark.configurations("default", "plain"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs Unix descriptors"), pytest.mark.slow,
]

PROGRAM = """
import asyncio, os, resource, sys
import httpx
from sseqbridge import Bridge, BridgeClosedError, SSEError, request_sse
from sseqbridge.testing import SSEServer
url, client = sys.argv[1:]
make = httpx.AsyncClient if client == "plain" else None

def read(bridge):
    it = request_sse(url, bridge=bridge, decode="text").events
    item = next(it)
    it.close()
    return item

def occupy(but):
    fds = []
    try:
        while True:
            fds.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for _ in range(but):
        os.close(fds.pop())
    return fds

def outcome(bridge, but):
    fds = occupy(but)
    try:
        return read(bridge)
    except BridgeClosedError as error:
        assert "ulimit" in str(error) and "Too many open files" in str(error), error
        return "BridgeClosedError"
    except SSEError as error:
        assert "Too many open files" in str(error), error
        return type(error).__name__
    finally:
        for fd in fds:
            os.close(fd)

with Bridge(client=make) as bridge:
    read(bridge)  # Imports everything that is imported late.
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for free in range(21):
    with Bridge(client=make) as bridge:
        print("start", free, outcome(bridge, free), read(bridge))
with Bridge(client=make) as bridge:
    read(bridge)
    loop = bridge.started().loop
    for free in range(6):
        # asyncio closes an aborted connection one iteration of the loop after its socket is shut down.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)
        # Needs a new connection, since the previous one was aborted.
        print("later", free, outcome(bridge, free), read(bridge))
"""


@pytest.mark.parametrize("client", ["own", "plain"])
@pytest.mark.parametrize("loop", LOOPS)
def test_too_few_descriptors_raise_a_typed_error(loop: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loop == "asyncio":
        monkeypatch.setenv("SSEQBRIDGE_WITHOUT", f"uvloop,{os.environ.get('SSEQBRIDGE_WITHOUT', '')}")
    with SSEServer([send("1"), silence()]) as server:
        status, out, err = python(PROGRAM, server.url, client, timeout=60)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines] == [
        *(["start", str(free)] for free in range(21)),
        *(["later", str(free)] for free in range(6)),
    ]
    # With free descriptors, the same bridge works again.
    assert {line[3] for line in lines} == {"1"}
    outcomes = [line[2] for line in lines]
    assert outcomes[0] == "BridgeClosedError"
    assert outcomes[20] == "1"
    assert set(outcomes[:21]) <= {"BridgeClosedError", "ConnectError", "1"}
    assert "ConnectError" in outcomes[21:]


CLOSED = """
import os, sys
import httpx
from sseqbridge import Bridge, request_sse
url, place = sys.argv[1:]

def are_open():
    found = []
    for fd in range(3):
        try:
            os.fstat(fd)
            found.append(fd)
        except OSError:
            pass
    return found

# httpx imports trio, and that ctypes, if they are installed. Some builds of libffi then keep their own file open, which
# must not get the number of a closed descriptor.
placeholders = [os.open(os.devnull, os.O_RDWR) for _ in range(4)]
httpx.AsyncClient()
for fd in placeholders:
    os.close(fd)

lines = []
before = are_open()
for make in (None, httpx.AsyncClient):
    with Bridge(client=make) as bridge:
        streams = [request_sse(url, bridge=bridge, decode="text").events for _ in range(2)]
        lines.append([next(it) for it in streams])
        lines.append(are_open() == before)
        # The application opens a descriptor of its own while there are connections.
        own = os.open(os.devnull, os.O_RDWR)
        os.dup2(own, 0)
        for it in streams:
            it.close()
        lines.append([os.fstat(fd).st_rdev for fd in (own, 0)] == [os.stat(os.devnull).st_rdev] * 2)
        os.close(own)
        os.close(0) if own and 0 not in before else None
    before = are_open()
with open(place, "w") as file:
    file.write(repr(lines))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("loop", LOOPS)
def test_process_runs_with_closed_standard_descriptors(
    loop: str, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop == "asyncio":
        monkeypatch.setenv("SSEQBRIDGE_WITHOUT", f"uvloop,{os.environ.get('SSEQBRIDGE_WITHOUT', '')}")
    place = tmp_path / "result"
    with SSEServer([send("1"), silence()]) as server:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", CLOSED, server.url, str(place)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=250, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert place.read_text() == repr([["1", "1"], True, True] * 2)


def test_socket_above_the_standard_descriptors_is_not_moved() -> None:
    with socket.socket() as connection:
        assert sockets.above_standard_descriptors(connection) is connection


STANDARD = """
import fcntl, os, socket, sys
from sseqbridge._runtime import sockets
os.close(0)
before = socket.socket()
assert before.fileno() == 0
after = sockets.above_standard_descriptors(before)
assert after.fileno() > 2 and before.fileno() < 0 and fcntl.fcntl(after.fileno(), fcntl.F_GETFD) == fcntl.FD_CLOEXEC

# Nested, and with a file of the application in the place of the placeholder.
with sockets.standard_descriptors:
    with sockets.standard_descriptors:
        assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
    os.fstat(0)
try:
    os.fstat(0)
except OSError:
    pass
else:
    raise AssertionError("descriptor 0 must be closed again")
with sockets.standard_descriptors:
    os.dup2(1, 0)
assert os.path.samestat(os.fstat(0), os.fstat(1))

# With no free descriptors above 2.
import resource
os.close(0)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    with sockets.standard_descriptors:
        raise AssertionError("no descriptor must be free")
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    os.fstat(0)
except OSError:
    print("closed")
"""


def test_standard_descriptors_are_filled_temporarily() -> None:
    assert python(STANDARD) == (0, "closed\n", "")


def test_standard_descriptors_are_filled_and_released_in_process() -> None:
    """In the process of the tests, for coverage."""
    kept = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(0)
    try:
        with sockets.standard_descriptors:
            assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(0)
        connection = socket.socket()
        assert connection.fileno() == 0
        with sockets.above_standard_descriptors(connection) as moved:
            assert moved.fileno() > 2
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_placeholders_are_closed_if_opening_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(0)
    open_file = os.open
    opened: list[int] = []

    def open_one(*args: int) -> int:
        if opened:
            raise OSError(24, "Too many open files")
        opened.append(open_file(os.devnull, os.O_RDWR))
        return opened[0]

    monkeypatch.setattr(os, "open", open_one)
    try:
        with pytest.raises(OSError, match="Too many"):
            sockets._take_standard_descriptors()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert opened == [0]
