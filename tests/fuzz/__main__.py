"""Fuzzes each target with a number of inputs. Exits with status 1 if the library and a reference differ.

Needs atheris (Linux, macOS). Each run starts with the corpus of earlier runs.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .corpus import kept, write
from .targets import TARGETS

__all__ = ["main"]

_ROOT = Path(__file__).parents[2]

# Enough for streams of several events. Longer inputs are slower and reach no more code.
_MAX_BYTES = 48

_EXECUTED = re.compile(r"^stat::number_of_executed_units: *(\d+)", re.MULTILINE)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("inputs", type=int, metavar="INPUTS", help="how many for each target")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this target; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="concurrent processes (1), which share the inputs")
    parser.add_argument("--seconds", type=int, default=0, help="a time limit (0: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the first process (0: random)")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach more code to tests/data/corpus")
    options = parser.parse_args()
    differences = 0
    for target in options.target or TARGETS:
        differences += not _fuzz(target, options)
    sys.exit(1 if differences else 0)


def _fuzz(target: str, options: argparse.Namespace) -> bool:
    """Fuzz one target. Returns whether there was no difference."""
    with tempfile.TemporaryDirectory(prefix="sseqbridge-fuzz-") as name:
        directory = Path(name)
        corpora = [directory / f"corpus{number}" for number in range(options.jobs)]
        for corpus in corpora:
            corpus.mkdir()
            for number, data in enumerate(kept(target)):
                (corpus / f"kept{number}").write_bytes(data)
        started = time.monotonic()
        processes = [_worker(target, directory, options, number, corpus) for number, corpus in enumerate(corpora)]
        outputs = [process.communicate()[0] for process in processes]
        seconds = time.monotonic() - started
        failed = [output for process, output in zip(processes, outputs, strict=True) if process.returncode]
        executed = sum(int(number) for output in outputs for number in _EXECUTED.findall(output))
        if options.keep and not failed:
            _keep(target, directory, corpora)
    for output in failed:
        print(output)
    result = f"{len(failed)} processes failed" if failed else "no difference"
    print(f"{target}: {executed:,} inputs, {executed / seconds:,.0f} a second, {result}", flush=True)
    return not failed


def _worker(
    target: str, directory: Path, options: argparse.Namespace, number: int, corpus: Path
) -> subprocess.Popen[str]:
    return _start(
        target,
        f"-runs={options.inputs // options.jobs}",
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed + number if options.seed else 0}",
        f"-max_len={_MAX_BYTES}",
        f"-artifact_prefix={directory}/",
        "-verbosity=0",
        "-print_final_stats=1",
        str(corpus),
    )


def _keep(target: str, directory: Path, corpora: list[Path]) -> None:
    merged = directory / "merged"
    merged.mkdir()
    # libFuzzer starts further processes of itself by the name of its program.
    program = directory / "worker"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(_command(target))} "$@"\n')
    program.chmod(0o755)
    process = _start(target, "-merge=1", str(merged), *map(str, corpora), SSEQBRIDGE_FUZZ_WORKER=str(program))
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(output)
    write(target, (path.read_bytes() for path in merged.iterdir()))


def _command(target: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.worker", target]


def _start(target: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_command(target), *arguments],
        cwd=_ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


if __name__ == "__main__":
    main()
