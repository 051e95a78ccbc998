"""Fixtures and checks of all tests: nothing leaves loopback, nothing leaks, and on demand nothing is skipped."""

from __future__ import annotations

import codecs
import functools
import gc
import ipaddress
import multiprocessing.util
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coverage
import httpx
import pytest
import trustme
from blockbuster import BlockBuster
from hypothesis import given, settings, strategies

from sseqbridge import Bridge
from sseqbridge._engine import stream_task
from sseqbridge._runtime import loop_watch
from sseqbridge._streams import bridge as _bridge
from sseqbridge.testing import ReceivedRequest, SSEServer
from tests import interrupts, leaks, selection, tiers
from tests.clock import FakeClock, fake_clock
from tests.requesters import Requester
from tests.support import INTERFACES, reserved_port

# A user's test waits for a request for 5 s by default. This suite also passes on a machine that is ten times slower.
SSEServer.wait_for_request.__defaults__ = (1, 30.0)
ReceivedRequest.wait_aborted.__defaults__ = (30.0,)

# Handle Ctrl-C as in a foreground process: a shell lets background processes, and their children, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Whether coverage is measured.
IS_MEASURED = coverage.Coverage.current() is not None

# The file in which tests/run.sh collects the failures of all its sessions. Not for a pytest that a test starts.
_FAILURES = os.environ.pop("SSEQBRIDGE_FAILURES", None)
_LINES_OF_A_FAILURE = 8

_left_loopback: list[str] = []


def _stay_on_loopback() -> None:
    """Refuse connections and name lookups beyond loopback from now on, in all threads.

    Not by an audit hook: while it runs in sys.settrace(), which coverage calls in each new thread, no other thread may
    call that.
    """
    for name in ("getaddrinfo", "gethostbyname"):
        setattr(socket, name, _checking_name(getattr(socket, name)))
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _checking_address(getattr(socket.socket, name)))


def _checking_name(look_up: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(look_up)
    def checked(host: Any, *others: Any, **options: Any) -> Any:
        if host not in (None, "", "localhost", b"localhost") and _address(host) is None:
            if isinstance(host, str):
                # Raises UnicodeError for a name that is none, as the lookup does.
                host.encode("idna")
            raise socket.gaierror(socket.EAI_NONAME, "tests must not look up names other than localhost")
        return look_up(host, *others, **options)

    return checked


def _checking_address(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: socket.socket, *arguments: Any) -> Any:
        # The last argument: sendto() has data, and perhaps flags, before it.
        target = arguments[-1]
        address = _address(target[0]) if isinstance(target, tuple) else None
        if address and not (address.is_loopback or address.is_unspecified):
            _left_loopback.append(f"{method.__name__} {address}")
            raise OSError("tests must not connect to addresses beyond loopback")
        return method(self, *arguments)

    return checked


def _address(host: str | bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    text = host.decode() if isinstance(host, bytes) else host
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _load_no_certificates() -> None:
    """Let httpx.get() and its like trust no authority: loading certificates takes 30 ms of CPU time for each request.

    httpx.Client is unchanged.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("get", "head", "post", "request", "stream"):
        setattr(httpx, name, functools.partial(getattr(httpx, name), verify=context))


_stay_on_loopback()
_load_no_certificates()
leaks.install()
tiers.watch()

# Raises BlockingError in code of the package that blocks the thread of a running loop. Scripts of an SSEServer are code
# of the tests.
_loop_guard = BlockBuster("sseqbridge", excluded_modules=["sseqbridge.testing"])

_has_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_has_failed] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Let the resources of a fixture of wider scope outlive the test that uses it first."""
    if fixturedef.scope == "function":
        return (yield)
    with leaks.shared(fixturedef.scope):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_by_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start the default bridge, put temporary files into a new directory, and unset proxies and colors for programs."""
    # pytest creates its temporary directory in tempfile's, so first.
    tmp_path_factory.getbasetemp()
    # multiprocessing does the same, and removes its directory when the interpreter exits.
    multiprocessing.util.get_temp_dir()
    directory = tempfile.mkdtemp(prefix="sseqbridge-tests-")
    # nginx runs as another user, and has its directory in this one.
    os.chmod(directory, 0o711)
    with pytest.MonkeyPatch.context() as patch:
        # Coverage measures this process, and programs with support.measured_environment().
        patch.delenv("COVERAGE_PROCESS_START", raising=False)
        patch.setattr(tempfile, "tempdir", directory)
        patch.setenv("TMPDIR", directory)
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        # Tests read the output of programs.
        for name in ("FORCE_COLOR", "PY_COLORS"):
            patch.delenv(name, raising=False)
        # A busy machine delays loops: that is no warning, but for tests which set a limit of their own.
        patch.setattr(loop_watch, "_BLOCKED_SECONDS", float("inf"))
        leaks.start_shared()
        _freeze()
        yield
    shutil.rmtree(directory)


@pytest.fixture
def bare_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tqdm start no thread, and no process: since Python 3.14 its lock between processes starts one."""
    tqdm = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    tqdm.set_lock(threading.RLock())


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_by_the_module(nothing_is_left_by_the_session: None) -> Iterator[None]:
    """Fail the last test of a module whose fixtures leave resources behind."""
    before = leaks.inventory()
    yield
    if left := leaks.left_behind(before, "module"):
        pytest.fail("the module left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_is_left(
    request: pytest.FixtureRequest, nothing_is_left_by_the_module: None, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Fail a test that leaves a resource behind, by name. See leaks.py."""
    leaks.start_shared()
    before = leaks.inventory()
    yield
    if request.node.stash.get(_has_failed, False):
        # pytest keeps the traceback, and so its frames and their variables, until the next failure.
        leaks.close_streams(before)
        return
    # Logged exceptions reference the frames of their tracebacks.
    for record in caplog.get_records("setup") + caplog.get_records("call"):
        record.exc_info = None
    may_stay = [kind for marker in request.node.iter_markers("leaves") for kind in marker.args]
    if left := leaks.left_behind(before, but=may_stay):
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_leaves_loopback(nothing_is_left: None) -> Iterator[None]:
    """Fail a test that connects beyond loopback."""
    _left_loopback.clear()
    yield
    assert _left_loopback == []


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run all tests with fewer cases and in several processes; a run of some tests has all cases and one process."""
    options = config.option
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if options.cases is None:
        options.cases = "fewer" if is_whole and not options.keyword else "all"
    if "PYTEST_XDIST_WORKER" in os.environ:
        # This is a worker, or a pytest that a test in a worker has started.
        return
    may_divide = not (IS_MEASURED or options.collectonly or options.usepdb) and config.pluginmanager.hasplugin("xdist")
    if is_whole and may_divide:
        # One more than cores, since tests also wait; but each worker collects all tests, which takes seconds.
        workers = (os.cpu_count() or 1) + 1
        if options.numprocesses is None and options.dist == "no":
            options.numprocesses, options.dist = workers, "worksteal"
        # Without compiled modules each worker would compile all modules, and rewrite their assertions: half of the time
        # until its first test. Each program that a test starts would compile, too.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sseqbridge")
    group.addoption(
        "--cases",
        choices=["fewer", "fewer-costly", "all"],
        help="of a test with several parameters: a few, so that each argument occurs; the same, but all of a test that "
        "is quick and needs no program; or all, also with more random examples and interrupts. Default: fewer, but all "
        "if -k or a path selects tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    has_all = config.option.cases == "all"
    interrupts.step = 1 if has_all else 10
    # The same examples in every run, without a database.
    examples = 300 if has_all else 100
    settings.register_profile("sseqbridge", max_examples=examples, derandomize=True, database=None, deadline=None)
    settings.load_profile("sseqbridge")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file whose tests are all deselected: importing all takes ten seconds in each process."""
    return selection.is_left_out(collection_path, config) or None


# After -m has deselected tests.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected = [item for item in items if tiers.runs_here(item)]
    if config.option.cases != "all":
        selected = selection.chosen_cases(selected, keep_quick=config.option.cases == "fewer-costly")
    if others := set(items).difference(selected):
        items[:] = selected
        config.hook.pytest_deselected(items=list(others))


def pytest_runtest_setup(item: pytest.Item) -> None:
    tiers.skip_without_program(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _guard_loops(item)
    with tiers.running(item):
        result = yield
    if item.get_closest_marker("heavy") is not None:
        # A test of interrupts ends with gc.unfreeze(), which returns all objects to the collections.
        _freeze()
    return result


def _freeze() -> None:
    """Collect garbage, and exclude all other objects from later collections, which are then ten times as fast."""
    gc.collect()
    gc.freeze()


def _guard_loops(item: pytest.Item) -> None:
    """Raise BlockingError in a test in which code of the package blocks the thread of a running loop.

    Not in tests with the marker `blocks_its_loop`, which test just that, and not under coverage, which acquires a lock
    at every line. The guard stays active between tests, since it replaces 58 functions.
    """
    if IS_MEASURED or item.get_closest_marker("blocks_its_loop") is not None:
        _loop_guard.deactivate()
    else:
        _loop_guard.activate()


@contextmanager
def guarded_loops() -> Iterator[None]:
    """Activate the guard in a test with the marker `blocks_its_loop`."""
    _loop_guard.activate()
    try:
        yield
    finally:
        _loop_guard.deactivate()


def pytest_collection() -> None:
    """Turn automatic garbage collection off until the tests begin: it would find nothing, and take a second.

    In xdist's main process, which collects no tests, it stays off.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    """Let the tests begin."""
    # Hypothesis's first test looks for the referrers of its random numbers, and finds no frozen ones.
    given(strategies.none())(lambda _: None)()
    _freeze()
    gc.enable()


def _skips_that_fail(config: pytest.Config) -> int:
    if not os.environ.get("SSEQBRIDGE_NO_SKIPS"):
        return 0
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) if reporter else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skips_that_fail(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    # pytest-randomly's own header is not printed with --quiet.
    if failed := terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", []):
        seed = config.getoption("randomly_seed", None)
        terminalreporter.write_line(f"in random order: --randomly-seed={seed}, or -p no:randomly for none")
        if _FAILURES is not None:
            _collect_failures(_FAILURES, failed, seed)
    if count := _skips_that_fail(config):
        message = f"the run fails: SSEQBRIDGE_NO_SKIPS is set, and {count} tests were skipped"
        terminalreporter.write_line(message, red=True)


def _collect_failures(path: str, reports: list[Any], seed: object) -> None:
    """Append the tests' names to a file, each with the last lines of its failure."""
    with open(path, "a", encoding="utf-8") as file:
        for report in reports:
            print(f"{report.nodeid} ({tiers.CONFIGURATION}, --randomly-seed={seed})", file=file)
            for line in report.longreprtext.splitlines()[-_LINES_OF_A_FAILURE:]:
                print(f"  {line[:200]}", file=file)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The certificate authority of the tests."""
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
    # The library does so too before it creates its own context.
    codecs.lookup("idna")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """Run the finalizers of what the test leaves in reference cycles, while its filters of warnings are in force."""
    yield
    gc.collect()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    """A clock that the test advances. Name it before `ask` in the parameters."""
    yield fake_clock(monkeypatch)
    for each in (_bridge._default, _bridge._async):
        if each is not None:
            each.close()


@pytest.fixture(params=INTERFACES)
def ask(request: pytest.FixtureRequest) -> Iterator[Requester]:
    """Sends requests with request_sse, and in a second run of the test with arequest_sse. See INTERFACES."""
    requester = Requester(is_async=request.param == "async")
    yield requester
    requester.close()


@pytest.fixture(params=INTERFACES)
def ask_fresh(request: pytest.FixtureRequest) -> Iterator[Requester]:
    """Like `ask`, but with a new HTTP client."""
    if request.param == "async":
        requester = Requester(is_async=True)
        yield requester
        requester.close()
    else:
        with Bridge() as bridge:
            yield Requester(is_async=False, bridge=bridge)


@pytest.fixture
def patient_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the end of each stream wait for the rest of its body, however busy the machine is: its connection is idle.

    Other tests cover bodies that do not end.
    """
    assert stream_task.END_SECONDS == 0.02
    monkeypatch.setattr(stream_task, "END_SECONDS", 10.0)
    monkeypatch.setattr(stream_task, "DRAIN_SECONDS", 10.0)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on 127.0.0.1 on which nothing listens, and that no other process can get. A server of the test can."""
    with reserved_port() as port:
        yield port
