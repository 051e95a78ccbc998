"""The sessions of `bash tests/run.sh`; `nox -f tests/noxfile.py -l` lists them.

All sessions share nox's own environment: seven environments of a hundred packages each would take longer to create than
the tests to run. Arguments after `--` go to pytest, as in `-- -k parser`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nox

ROOT = Path(__file__).parents[1]
CORES = os.cpu_count() or 1
# Tests wait, above all for programs; but each worker collects all tests, which takes seconds.
WORKERS = 2 * CORES

PROGRAMS = "redis or browser or nginx or server or gevent"
NOT_IN_DEFAULT_RUN = "sdk or cluster"

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"


def run(session: nox.Session, *command: str, success_codes: tuple[int, ...] = (0,), **env: str) -> None:
    """Run a command in the root directory. Thread-safe."""
    # nox runs sessions in the directory of this file.
    os.chdir(ROOT)
    # Tests start hundreds of interpreters: let them share compiled modules.
    variables = {"PYTHONDONTWRITEBYTECODE": None, **env}
    session.run(*command, external=True, success_codes=success_codes, env=variables)


def python(session: nox.Session, *args: str, success_codes: tuple[int, ...] = (0,), **env: str) -> None:
    """Run a module with the shared environment's interpreter."""
    run(session, sys.executable, "-m", *args, success_codes=success_codes, **env)


def pytest(session: nox.Session, expression: str, *, cases: str = "", **env: str) -> None:
    """Run the tests that `expression` selects by their markers, in several processes.

    `cases` is the option --cases of tests/conftest.py. Its default: of a test with several parameters a few cases run,
    in which each argument occurs, but all if the arguments of the session select tests.
    """
    options = ["--quiet", "-m", expression, "-n", str(WORKERS), "--dist", "worksteal"]
    if cases:
        options += ["--cases", cases]
    # 5: the arguments select no test of this session.
    success_codes = (0, 5) if session.posargs else (0,)
    python(session, "pytest", *options, *session.posargs, success_codes=success_codes, **env)


def compile_tests() -> None:
    """Import all test modules, so that they are compiled once, on all cores, and not by each worker at the same time.

    pytest reports an import that fails when it runs the tests.
    """
    if any(ROOT.glob(f"tests/__pycache__/test_*.{sys.implementation.cache_tag}-*.pyc")):
        # In a checkout that this Python has tested before, few modules are new.
        return
    files = sorted(str(path) for path in ROOT.glob("tests/**/test_*.py") if path.parent.name != "sdk")
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-n", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    parts = [files[number::CORES] for number in range(CORES)]
    collecting = [
        subprocess.Popen([*command, *part], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for part in parts
    ]
    for process in collecting:
        process.wait()


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, and import-linter for the layers in setup.cfg."""
    python(session, "ruff", "check", "--quiet", ".")
    run(session, str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict: everything for this Python, and the package for the oldest and the newest supported version."""
    current = "{}.{}".format(*sys.version_info)
    others = [version for version in ("3.10", "3.14") if version != current]
    mypy = partial(python, session, "mypy", "--strict", "--no-error-summary")
    # mypy has a separate cache for each version.
    with ThreadPoolExecutor(CORES) as pool:
        checks = [pool.submit(mypy)]
        checks += [pool.submit(mypy, "--python-version", version, "sseqbridge") for version in others]
    for check in checks:
        check.result()


@nox.session
def tests(session: nox.Session) -> None:
    """The tests in the default configuration."""
    if not session.posargs:
        compile_tests()
    pytest(session, f"not ({NOT_IN_DEFAULT_RUN})")


@nox.session(default=False)
def programs(session: nox.Session) -> None:
    """The part of `tests` that needs Redis, a browser, nginx, web servers or gevent."""
    expression = f"({PROGRAMS}) and not (heavy or {NOT_IN_DEFAULT_RUN})"
    pytest(session, expression)


@nox.session
def plain(session: nox.Session) -> None:
    """The default tests without uvloop and msgspec."""
    pytest(session, f"not (heavy or {NOT_IN_DEFAULT_RUN})", SSEQBRIDGE_WITHOUT="uvloop,msgspec")


@nox.session
def httpx_transport(session: nox.Session) -> None:
    """The default tests with httpx's transport instead of the library's own."""
    pytest(session, f"not (heavy or {NOT_IN_DEFAULT_RUN})", SSEQBRIDGE_WITHOUT="transport")


@nox.session(default=False)
def all_cases(session: nox.Session) -> None:
    """The tests of all configurations: all combinations of arguments, more random examples, interrupts everywhere."""
    for without in ("", "uvloop,msgspec", "transport"):
        expression = f"not ({NOT_IN_DEFAULT_RUN})"
        pytest(session, expression, cases="all", SSEQBRIDGE_WITHOUT=without)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """The tests cover all lines and branches of the package; missing ones are listed.

    It fails below 99.9 %, and not at one line that only a race reaches. Give such a line a test of its own.
    """
    python(session, "coverage", "erase")
    # Some lines are reached by certain combinations of quick tests alone. Coverage starts with the workers, before
    # pytest imports the package as a plugin.
    expression, configuration = f"not (heavy or {NOT_IN_DEFAULT_RUN})", str(ROOT / "setup.cfg")
    pytest(session, expression, cases="fewer-costly", COVERAGE_PROCESS_START=configuration)
    python(session, "coverage", "combine", "--quiet")
    python(session, "coverage", "report", "--precision=2", "--fail-under=99.9")


@nox.session
def cut_answers(session: nox.Session) -> None:
    """SDKs of providers raise an error for a relayed answer that was cut off; the guides to SDKs and MCP work."""
    # In one process: each one would import all SDKs, which takes as long as the tests.
    files = ["tests/sdk/test_truncated_relays.py", "tests/sdk/test_relays.py", "tests/examples/test_task_guides.py"]
    names = "cut_answer_is_an_error or an_answer_is_relayed or test_task_guides"
    python(session, "pytest", "--quiet", "-m", "sdk", *files, "-k", names)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the parser for 20 s of CPU time, on all cores; `long` does so for long."""
    options = ["--target", "parser", "--jobs", str(CORES), "--seconds", str(max(1, 20 // CORES))]
    python(session, "tests.fuzz", "1000000000", *options)


@nox.session
def bench_quick(session: nox.Session) -> None:
    """Short benchmarks: they run, and every client receives all events."""
    python(session, "tests.bench", "--quick", "--json", str(Path(sys.prefix) / "bench.json"))
    python(session, "tests.bench.resume", "--quick")


@nox.session(default=False)
def sdk(session: nox.Session) -> None:
    """All tests that need SDKs of providers, and a LangGraph server."""
    # In an environment of its own: its dependencies change how the servers of other tests work.
    langgraph = Path(sys.prefix) / "langgraph"
    if not (langgraph / "bin" / "langgraph").exists():
        python(session, "venv", str(langgraph))
        run(session, str(langgraph / "bin" / "pip"), "install", "--quiet", "--no-compile", "langgraph-cli[inmem]")
    pytest(session, "sdk")


@nox.session(default=False)
def cluster(session: nox.Session) -> None:
    """Tests that need a Redis Cluster with a replica; `tests` has one of a small Cluster."""
    pytest(session, "cluster")


@nox.session(default=False)
def long(session: nox.Session) -> None:
    """Long runs of tests that other sessions run briefly: chaos, soak, nchan, forks, kills, fuzzing."""
    python(session, "tests.engine.test_chaos", "10000")
    python(session, "tests.streams.test_iterate_chaos", "10000")
    python(session, "tests.transport.test_chaos", "10000")
    python(session, "tests.engine.soak", "10")
    python(session, "tests.engine.test_nchan", "1000")
    python(session, "tests.runtime.test_fork", "1000")
    python(session, "tests.resume.kills", "1000")
    python(session, "tests.fuzz", "10000000")
