"""Runs commands of the documents as they are written, but briefly, on free ports, and without network.

Here are the kinds of commands, and servers that no other test starts. The tests of the examples run the other commands.
test_documents.py finds a command that no test runs.
"""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from sseqbridge.testing import SSEServer, chat_completions, send
from tests.bench import __main__ as bench
from tests.browser_support import running
from tests.examples.commands import Command, documented, of_kind
from tests.examples.forked import Program, run_all
from tests.examples.guides import DONE
from tests.redis_support import redis_server
from tests.servers import NCHAN, NGINX
from tests.support import ROOT, reserved_port

pytestmark = pytest.mark.slow

# Only stops a command that hangs.
SECONDS = 250.0


def programs_of(commands: Iterable[Command]) -> list[Program]:
    """Return the programs of commands that start a module of Python."""
    assert all(command.words[:2] == [sys.executable, "-m"] for command in commands)
    return [Program(command.words[2:], command.variables) for command in commands]


def joined(commands: Iterable[Command], is_operand: Callable[[str], bool]) -> dict[tuple[str, ...], list[str]]:
    """Group commands that differ in their operands alone: return the operands for each list of other words."""
    operands: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for command in commands:
        others = tuple(word for word in command.words[2:] if not is_operand(word))
        operands[others] += [word for word in command.words if is_operand(word) and word not in operands[others]]
    return operands


def output_of(command: Command, *more: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **command.variables}
    done = subprocess.run(
        [*command.words, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- Installation ---


def test_requirements_are_those_of_installed_packages(tmp_path: Path) -> None:
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE", "sseqbridge"):
        (tmp_path / name).symlink_to(ROOT / name)
    # pip resolves all requirements, and needs no index for it: the tests' environment has the packages.
    options = ["--dry-run", "--no-index", "--no-build-isolation"]
    commands = joined(of_kind("pip"), lambda word: re.match(r"\w[\w-]+(?:\[[\w,]+\])?$", word) is not None)
    assert all(words[:2] != ("pip", "install") for words in commands)
    programs = [
        Program(["pip", "install", *options, *others, *names[2:]], {"PIP_CONFIG_FILE": os.devnull})
        for others, names in commands.items()
    ]
    output = run_all(programs, tmp_path, "pip._internal.commands.install", timeout=SECONDS)
    assert len(programs) > 3
    of_this_project = [others for others in commands if others]
    assert output.count("Would install sseqbridge-") == len(of_this_project)
    # An extra that does not exist is a warning.
    assert "WARNING" not in output


# --- Tests ---


def few_of(path: str) -> str:
    """Return the ID of one test of a file or folder in tests/. A file in examples/ is returned as it is."""
    if path.startswith("examples/"):
        return path
    files = [ROOT / path] if path.endswith(".py") else list((ROOT / path).glob("test_*parser*.py"))
    smallest = min(files or (ROOT / path).glob("test_*.py"), key=lambda file: file.stat().st_size)
    [first, *_] = re.findall(r"^(?:async )?def (test_\w+)", smallest.read_text("utf-8"), re.M)
    return f"{smallest.relative_to(ROOT)}::{first}"


@pytest.mark.server
def test_tests_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # The environment of a run by hand.
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "SSEQBRIDGE_NO_SKIPS"):
        monkeypatch.delenv(name, raising=False)
    commands = joined(of_kind("pytest"), lambda word: re.match("(?:tests|examples)/", word) is not None)
    programs = [Program([*others, *map(few_of, paths)]) for others, paths in commands.items()]
    # Not pytest's plugins: pytest must import those itself.
    imported = ("pytest", "coverage", "flask", "httpx", "pydantic", "trustme")
    output = run_all(programs, ROOT, *imported, timeout=SECONDS)
    assert len(re.findall(r"^=+ \d+ passed", output, re.M)) == len(programs), output


class RecordingSession:
    """Records the commands of a session, and runs none."""

    def __init__(self) -> None:
        self.posargs = ["-k", "something"]
        self.commands: list[tuple[list[str], dict[str, str | None]]] = []

    def run(self, *command: str, env: dict[str, str | None], **_: Any) -> None:
        self.commands.append((list(command), env))


def test_sessions_run_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = {command.text: command for command in of_kind("session")}
    listing, one = commands.pop("nox -f tests/noxfile.py -l"), commands.pop("nox -f tests/noxfile.py -s tests")
    # The sessions of `bash tests/run.sh`.
    default = re.findall(r"^\* (\w+)", output_of(listing), re.M)
    assert "tests" in default
    assert re.findall(r"^\* (\w+)", output_of(one, "-l"), re.M) == ["tests"]
    sessions = runpy.run_path(str(ROOT / "tests/noxfile.py"))
    session: Any = RecordingSession()
    for name in default:
        sessions[name](session)

    def is_run(command: Command) -> bool:
        return any(
            words[: len(command.words)] == command.words and command.variables.items() <= variables.items()
            for words, variables in session.commands
        )

    assert len(commands) > 3
    assert [text for text, command in commands.items() if not is_run(command)] == []
    # The session bench_quick runs the benchmarks, whose names the next test checks.
    assert any(words[1:4] == ["-m", "tests.bench", "--quick"] for words, _ in session.commands)


def test_commands_select_benchmarks_that_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def recording(name: str) -> Callable[[object], None]:
        return lambda _: ran.append(name)

    for name, workload in bench.WORKLOADS.items():
        monkeypatch.setitem(bench.WORKLOADS, name, dataclasses.replace(workload, run=recording(name)))
    every = set()
    for command in of_kind("benchmarks"):
        names = command.words[3:]
        ran.clear()
        monkeypatch.setattr(sys, "argv", [*command.words[2:3], *names])
        bench.main()
        assert ran == (names or list(bench.WORKLOADS))
        every |= set(names)
    assert every == set(bench.WORKLOADS)


# Options for one short measurement.
BRIEFLY = {
    "tests.bench.gevent": ["--streams", "2", "--requests", "2"],
    "tests.bench.relay": ["--runs", "1", "flask run"],
    "tests.bench.relay_cancel": ["--runs", "1", "flask run"],
}
# Modules that the programs in tests/ import.
IMPORTED = ("pytest", "httpx", "trustme", "tests.support")


@pytest.mark.server
@pytest.mark.gevent
def test_benchmarks_of_servers_run() -> None:
    programs = programs_of(of_kind("benchmark of servers"))
    briefly = [Program([*words, *BRIEFLY[words[0]]]) for words, _ in programs]
    _, *outputs = re.split(r"^\$ ", run_all(briefly, ROOT, *IMPORTED, timeout=SECONDS), flags=re.M)
    assert len(outputs) == len(programs)
    assert all(re.search(r"\d ms", output) for output in outputs)


def shortened(words: Sequence[str]) -> list[str]:
    """Return a long run with a small count. The program itself fails if its promise does not hold."""
    count = "0.002" if words[0] == "tests.engine.soak" else "2"
    return [words[0], *(re.sub(r"^\d+$", count, re.sub("^(?:SEED|N)$", "1", word)) for word in words[1:])]


@pytest.mark.redis
@pytest.mark.nginx
def test_long_runs_run() -> None:
    if NGINX is None or not NCHAN.exists():
        pytest.skip("nginx with nchan is not installed")
    programs = [Program(shortened(words)) for words, _ in programs_of(of_kind("long run"))]
    assert "Traceback" not in run_all(programs, ROOT, *IMPORTED, timeout=SECONDS)


# --- Command line ---


@pytest.mark.parametrize("command", of_kind("command line"), ids=lambda command: command.text)
def test_command_line_runs(command: Command) -> None:
    _, argument = command.shell_words
    script = Path(sysconfig.get_path("scripts")) / "sseqbridge"
    program = [str(script)] if script.exists() else command.words[:-1]
    with SSEServer([send("Hello!"), DONE]) as server:
        arguments = [server.url] if argument == "URL" else [argument, "--help"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*program, *arguments], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Hello!\n" if argument == "URL" else f"sseqbridge {argument}" in done.stdout


def test_options_of_the_interpreter_show_details() -> None:
    for command in of_kind("interpreter"):
        assert re.search(r"\| +sseqbridge$", output_of(command), re.M)


# --- Servers that no other test starts ---

# Runs a module whose Flask application has a fixed port, on another port: the arguments are the port and the module.
ON_PORT = """
import runpy, sys
import flask
run, port, module = flask.Flask.run, int(sys.argv[1]), sys.argv[2]
flask.Flask.run = lambda app, **options: run(app, **{**options, "port": port})
del sys.argv[:2]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def serving(command: Command, port: int, cwd: Path, **variables: str) -> Any:
    _, option, *words = command.words
    assert option == "-m"
    return running([sys.executable, "-c", ON_PORT, str(port), *words], cwd, **variables)


@pytest.mark.server
@pytest.mark.parametrize(
    ("command", "path", "body"),
    [
        (documented("python -m examples.saved_answers"), "ask", {"question": "Hello, you"}),
        (documented("python -m examples.small_chat"), "answers/a-key", {"question": "Hello, you"}),
    ],
    ids=lambda value: getattr(value, "text", ""),
)
def test_program_serves_without_an_account(command: Command, path: str, body: Any, tmp_path: Path) -> None:
    with reserved_port() as port, serving(command, port, tmp_path) as program:
        url = f"http://127.0.0.1:{port}"
        program.wait_until_serving(url)
        assert "<form" in httpx.get(url, timeout=60).text
        answer = httpx.post(f"{url}/{path}", json=body, timeout=60).text
    assert "you" in answer
    assert answer.endswith("data: [DONE]\n\n")


@pytest.mark.server
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_program_of_the_sdks_answers_curl(tmp_path: Path) -> None:
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
    events = [send(delta, "content_block_delta"), send({"type": "message_stop"}, "message_stop")]
    with SSEServer(events) as anthropic, reserved_port() as port:
        variables = {"ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": anthropic.url}
        with serving(documented("python -m examples.sdk_chat"), port, tmp_path, **variables) as program:
            program.wait_until_serving(f"http://127.0.0.1:{port}/plain")
            for command in (
                documented("curl -N 'http://127.0.0.1:5000/openai?prompt=Hello'"),
                documented("curl -N 'http://127.0.0.1:5000/anthropic?prompt=Hello'"),
            ):
                words = [word.replace("5000", str(port)) for word in command.words]
                answer = subprocess.run(
                    [*words, "--silent"], stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True
                )
                assert answer.stdout.endswith("data: Hello\n\ndata: [DONE]\n\n")


@pytest.mark.server
@pytest.mark.redis
def test_chat_with_kept_answers_serves(tmp_path: Path) -> None:
    command = documented(
        "REDIS_URL=redis://127.0.0.1:6379 gunicorn --workers 2 --threads 100 'examples.flask_chat.app:create_app()'"
    )
    with redis_server() as redis, SSEServer(chat_completions("Hello!")) as upstream, reserved_port() as port:
        variables = {**dict.fromkeys(command.variables, redis.url), "OPENAI_BASE_URL": upstream.url}
        words = [*command.words, "--bind", f"127.0.0.1:{port}"]
        with running(words, tmp_path, HOME=str(tmp_path), **variables) as program:
            url = f"http://127.0.0.1:{port}"
            program.wait_until_serving(url)
            program.wait_for_output("Using worker: gthread")
            body = {"messages": [{"role": "user", "content": "Hello"}]}
            first, again = (httpx.post(f"{url}/chat?key=a-key", json=body, timeout=60).text for _ in range(2))
    # The first response may begin with a heartbeat.
    assert first.removeprefix(":\n") == again
    assert "Hello!" in again
    assert len(upstream.requests) == 1
