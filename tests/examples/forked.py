"""Runs modules as programs, one after another, each in a forked child of one interpreter: shared imports happen once.

`python -m tests.examples.forked MODULE...` imports these modules, which must start no thread, and reads the programs
from its standard input (see `run_all`). It ends at the first program that fails.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Program", "run_all"]


# Not imported from tests/support.py, which imports the package: a pytest that runs here must be the first to do so.
ROOT = Path(__file__).parents[2]


class Program(NamedTuple):
    """`python -m` and `words`, with variables of the environment that are set beside those of the tests."""

    words: Sequence[str]
    variables: Mapping[str, str] = {}


def run_all(programs: Iterable[Program], cwd: Path, *imported: str, timeout: float) -> str:
    """Run programs in a directory, and return their output. Raises AssertionError with the output if one fails.

    `imported` are the modules that they share.
    """
    jobs = json.dumps([(program.words, dict(program.variables)) for program in programs])
    # Programs may leave temporary files.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        done = subprocess.run(
            [sys.executable, "-m", "tests.examples.forked", *imported],
            cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": temporary}, input=jobs, text=True,
            encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def main() -> None:
    jobs = json.loads(sys.stdin.read())
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for (module, *arguments), variables in jobs:
        print(f"$ python -m {shlex.join([module, *arguments])}", flush=True)
        child = os.fork()
        if not child:
            # The child returns from main(), and so exits as a program does.
            os.environ.update(variables)
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"status {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
