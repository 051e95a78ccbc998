"""What holds for every test: nothing leaves loopback, and on demand nothing is skipped."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import coverage
import pytest
import trustme
from blockbuster import blockbuster_ctx
from hypothesis import settings

from sseqbridge import Bridge, _bridge

from .clock import FakeClock, fake_clock
from .doors import Door
from .support import HAS_OWN_TRANSPORT

# The same examples on every run and machine, and none remembered.
settings.register_profile("sseqbridge", max_examples=300, derandomize=True, database=None, deadline=None)
settings.load_profile("sseqbridge")

# Whether coverage is.
IS_MEASURED = coverage.Coverage.current() is not None

_left_loopback: list[str] = []


def _stay_on_loopback(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook, since it sees every socket, also those of event loops and raw threads."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if args[0] not in (None, "", "localhost", b"localhost") and _address(args[0]) is None:
            raise socket.gaierror(socket.EAI_NONAME, "the tests look up no name but localhost")
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        address = _address(args[1][0])
        if address and not (address.is_loopback or address.is_unspecified):
            _left_loopback.append(f"{event} {address}")
            raise OSError("the tests connect to nothing but loopback")


def _address(host: str | bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    text = host.decode() if isinstance(host, bytes) else host
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


sys.addaudithook(_stay_on_loopback)


def watched_loops() -> AbstractContextManager[object]:
    """Have what blocks a loop's thread in the package raise BlockingError."""
    # SSEServer's scripts are the tests' own.
    return blockbuster_ctx("sseqbridge", excluded_modules=["sseqbridge.testing"])


@pytest.fixture(autouse=True)
def nothing_blocks_a_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail what blocks the thread of a running loop in the package: a BlockingError is raised there.

    But for tests of what happens where a program does that, which are marked with `blocks_its_loop`,
    and where coverage is measured, which takes a lock of its own between any two lines.
    """
    if IS_MEASURED or request.node.get_closest_marker("blocks_its_loop") is not None:
        yield
        return
    with watched_loops():
        yield


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that tries to leave loopback, and let no proxy of the machine stand between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    _left_loopback.clear()
    yield
    assert _left_loopback == []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not HAS_OWN_TRANSPORT:
        others = [item for item in items if item.get_closest_marker("own_transport")]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def pytest_collection_finish() -> None:
    """Let the tests that collect garbage look only at what tests have made, a tenth of all there is."""
    gc.collect()
    gc.freeze()


def _skips_that_fail(config: pytest.Config) -> int:
    if not os.environ.get("SSEQBRIDGE_NO_SKIPS"):
        return 0
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) if reporter else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skips_that_fail(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := _skips_that_fail(config):
        terminalreporter.write_line(f"SSEQBRIDGE_NO_SKIPS is set, and {count} skipped: the run fails", red=True)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority of the tests' own."""
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """The TLS context of a server on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """The TLS context of a client that trusts such a server."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    """A clock that the test moves; ask for it before `ask`."""
    yield fake_clock(monkeypatch)
    if _bridge._default is not None:
        _bridge._default.close()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Iterator[Door]:
    """request_sse, and in a second run of the test arequest_sse."""
    door = Door(is_async=request.param == "async")
    yield door
    door.close()


@pytest.fixture(params=["sync", "async"])
def ask_anew(request: pytest.FixtureRequest) -> Iterator[Door]:
    """As `ask`, but with an HTTP client that is made during the test."""
    if request.param == "async":
        door = Door(is_async=True)
        yield door
        door.close()
    else:
        with Bridge() as bridge:
            yield Door(is_async=False, bridge=bridge)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on 127.0.0.1 where nothing listens, and nothing else comes to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
