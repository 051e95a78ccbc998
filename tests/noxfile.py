"""The sessions of `bash tests/run.sh`; `nox -f tests/noxfile.py -l` lists them.

All sessions share the environment that nox itself is installed in: seven environments of a hundred packages each would
take longer to make than the tests to run. Arguments after `--` go to pytest, as in `-- -k parser`.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nox

ROOT = Path(__file__).parents[1]
CORES = os.cpu_count() or 1
# One more than there are cores, since tests wait too; each takes some seconds to collect the tests.
WORKERS = CORES + 1
# Tests with programs wait more than they compute.
WORKERS_WITH_PROGRAMS = 2 * CORES

PROGRAMS = "redis or browser or nginx or server or gevent"
ELSEWHERE = "sdk or cluster"

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"


def run(session: nox.Session, *command: str, with_status: tuple[int, ...] = (0,), **env: str) -> None:
    """Run a command from the top of the checkout. Threads may call it."""
    # nox itself starts in the folder of this file.
    os.chdir(ROOT)
    # Tests start hundreds of interpreters, which would compile the same modules again and again.
    variables = {"PYTHONDONTWRITEBYTECODE": None, **env}
    session.run(*command, external=True, success_codes=with_status, env=variables)


def python(session: nox.Session, *args: str, with_status: tuple[int, ...] = (0,), **env: str) -> None:
    """Run a module with the shared environment's interpreter."""
    run(session, sys.executable, "-m", *args, with_status=with_status, **env)


def pytest(
    session: nox.Session, expression: str, *, measured: bool = False, workers: int = WORKERS, **env: str
) -> None:
    """Run the tests that `expression` selects by their markers, in several processes."""
    if measured:
        # The workers are measured from their start, before pytest imports the package as a plugin.
        env["COVERAGE_PROCESS_START"] = str(ROOT / "setup.cfg")
    options = ["--quiet", "-m", expression, "-n", str(workers), "--dist", "worksteal"]
    # 5: none of the tests that were asked for is in this session.
    with_status = (0, 5) if session.posargs else (0,)
    python(session, "pytest", *options, *session.posargs, with_status=with_status, **env)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, and the layers that setup.cfg names."""
    python(session, "ruff", "check", "--quiet", ".")
    run(session, str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict: everything for this Python, the package for each version that it supports."""
    own = "{}.{}".format(*sys.version_info)
    others = [version for version in ("3.10", "3.11", "3.12", "3.13", "3.14") if version != own]
    mypy = partial(python, session, "mypy", "--strict", "--no-error-summary")
    # Each version has a cache of its own.
    with ThreadPoolExecutor(CORES) as pool:
        checks = [pool.submit(mypy)]
        checks += [pool.submit(mypy, "--python-version", version, "sseqbridge") for version in others]
    for check in checks:
        check.result()


@nox.session
def tests(session: nox.Session) -> None:
    """The default tier with coverage; then heavy tests without."""
    if not session.posargs:
        python(session, "coverage", "erase")
    pytest(session, f"not (heavy or {PROGRAMS} or {ELSEWHERE})", measured=not session.posargs)
    pytest(session, f"heavy and not ({ELSEWHERE})")


@nox.session
def programs(session: nox.Session) -> None:
    """Tests with Redis, a browser, nginx, web servers and gevent, with coverage."""
    expression = f"({PROGRAMS}) and not (heavy or {ELSEWHERE})"
    pytest(session, expression, measured=not session.posargs, workers=WORKERS_WITH_PROGRAMS)


@nox.session
def plain(session: nox.Session) -> None:
    """The install without uvloop and msgspec."""
    pytest(session, f"not (heavy or {ELSEWHERE})", SSEQBRIDGE_WITHOUT="uvloop,msgspec")


@nox.session
def httpx_transport(session: nox.Session) -> None:
    """httpx's transport instead of the library's own."""
    pytest(session, f"not (heavy or {ELSEWHERE})", SSEQBRIDGE_WITHOUT="transport")


@nox.session
def fuzz(session: nox.Session) -> None:
    """A minute of CPU time of the fuzzer on the parser, on all cores."""
    options = ["--target", "parser", "--jobs", str(CORES), "--seconds", str(60 // CORES)]
    python(session, "tests.fuzz", "1000000000", *options)


@nox.session
def bench_quick(session: nox.Session) -> None:
    """The benchmarks in short: they run, and every client gets the events that were sent."""
    python(session, "tests.bench", "--quick", "--json", str(Path(sys.prefix) / "bench.json"))
    python(session, "tests.bench.resume", "--quick")


@nox.session
def coverage(session: nox.Session) -> None:
    """The package is covered by `tests` and `programs`, at least 99 %. They must have run before."""
    python(session, "coverage", "combine", "--quiet")
    python(session, "coverage", "report", "--fail-under=99")


@nox.session(default=False)
def sdk(session: nox.Session) -> None:
    """Tests with providers' SDKs beyond those of the default tier."""
    pytest(session, "sdk")


@nox.session(default=False)
def cluster(session: nox.Session) -> None:
    """Tests with a Redis Cluster."""
    pytest(session, "cluster")


@nox.session(default=False)
def long(session: nox.Session) -> None:
    """Long runs, of which other sessions have short forms: chaos, a soak, nchan, forks, kills, fuzzing."""
    python(session, "tests.engine.test_chaos", "10000")
    python(session, "tests.streams.test_iterate_chaos", "10000")
    python(session, "tests.transport.test_chaos", "10000")
    python(session, "tests.engine.soak", "10")
    python(session, "tests.engine.test_nchan", "1000")
    python(session, "tests.runtime.test_fork", "1000")
    python(session, "tests.resume.kills", "1000")
    python(session, "tests.fuzz", "10000000")
