"""run.sh, with the commands of the documents. Stubs of Python, apt, npm and nox only record their arguments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.examples.commands import Command, of_kind
from tests.support import ROOT

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]

# The stub of each program. `id -u` prints root's ID, dpkg-query finds no package, and Python makes an environment of
# stubs. nox also records a variable, and the number of other child processes of run.sh: those of --busy.
_PROGRAM = """#!/bin/bash
name=${0##*/}
echo "$name $*" >>"$RECORD"
case "$name $*" in
    "id -u") echo 0 ;;
    python*" -m venv .venv") mkdir -p .venv/bin .venv/npm && cp "$0" .venv/bin/python && cp "$0" .venv/bin/nox ;;
    nox*)
        read -ra children <"/proc/$PPID/task/$PPID/children"
        echo "NO_SKIPS=${SSEQBRIDGE_NO_SKIPS:-} OTHERS=$((${#children[@]} - 1))" >>"$RECORD"
        ;;
    "dpkg-query "*) exit 1 ;;
esac
"""
_PROGRAMS = ("apt-cache", "apt-get", "dpkg-query", "id", "npm", "python3", "python3.12")


def record_of(command: Command, directory: Path) -> list[str]:
    """Run the command in a copy of the files that run.sh reads, and return the records of the stubs."""
    programs = directory / "programs"
    for folder in (programs, directory / "tests", directory / "sseqbridge"):
        folder.mkdir()
    for name in ("tests/run.sh", "setup.py", "setup.cfg", "sseqbridge/__init__.py"):
        shutil.copy(ROOT / name, directory / name)
    for name in _PROGRAMS:
        (programs / name).write_text(_PROGRAM)
        (programs / name).chmod(0o755)
    # The script reads or exports these.
    own = ("CI", "PYTHON", "SSEQBRIDGE_NO_SKIPS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"PATH": f"{programs}:{environment['PATH']}", "RECORD": str(directory / "record")}
    environment |= {"TMPDIR": str(directory), **command.variables}
    done = subprocess.run(
        command.words, cwd=directory, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return (directory / "record").read_text("utf-8").splitlines()


@pytest.mark.parametrize("command", of_kind("run.sh"), ids=lambda command: command.text)
def test_script_runs_the_sessions(command: Command, tmp_path: Path) -> None:
    options = command.words[2:]
    record = record_of(command, tmp_path)
    assert f"{command.variables.get('PYTHON', 'python3')} -m venv .venv" in record
    assert any(line.startswith("python -m pip ") and line.endswith(" --editable .[dev]") for line in record)
    assert any(line.startswith("npm install ") for line in record)
    assert any(line.startswith("apt-get install ") for line in record) is ("--no-apt" not in options)
    for_pytest = [option for option in options if option not in ("--busy", "--no-apt")]
    nox, inherited = record[-2:]
    # Only sessions with tests run if arguments select tests.
    sessions = r"--session tests [\w ]+" if for_pytest else ""
    assert re.fullmatch(rf"nox -f tests/noxfile\.py {sessions}--{''.join(f' {each}' for each in for_pytest)}", nox)
    skips, others = ("1" if "CI" in command.variables else ""), (4 if "--busy" in options else 0)
    assert inherited == f"NO_SKIPS={skips} OTHERS={others}"


def test_made_environment_is_used_again(tmp_path: Path) -> None:
    [command] = [command for command in of_kind("run.sh") if command.text == "bash tests/run.sh"]
    record_of(command, tmp_path)
    for folder in ("programs", "sseqbridge", "tests"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "record").unlink()
    record = record_of(command, tmp_path)
    assert not any(" -m venv " in line or line.startswith(("npm ", "python -m pip ")) for line in record)
