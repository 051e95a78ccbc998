"""Runs the benchmarks named on the command line, or all of them, and prints medians and ratios.

A target that is not reached does not fail the run. A client that crashes or hangs does, after all benchmarks have run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.bench import abort, burst, calls, imports, linearity, many, paced, parse, sdk, short

from .charts import draw
from .results import machine
from .runner import Bench, Workload
from .table import print_table, verdicts

__all__ = ["main"]

MODULES = (burst, paced, short, many, parse, linearity, abort, calls, imports, sdk)
WORKLOADS: dict[str, Workload] = {module.WORKLOAD.name: module.WORKLOAD for module in MODULES}

# A target is a ratio of the medians of at least so many rounds of one run.
ROUNDS = 7


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="the same as NAME NAME")
    parser.add_argument(
        "--rounds", type=int, default=None, help=f"rounds of each measurement ({ROUNDS}; 1 with --quick)"
    )
    parser.add_argument("--quick", action="store_true", help="a short run, to check that everything works")
    parser.add_argument("--clients", default="", metavar="A,B", help="only these clients")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="PATH", help="file for the figures")
    parser.add_argument("--charts", type=Path, default=None, metavar="DIR", help="directory for the charts")
    options = parser.parse_args()
    names = options.names + [name for name in options.only.split(",") if name]
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    only = [name for name in options.clients.split(",") if name]
    with Bench(rounds=rounds, quick=options.quick, only=only) as bench:
        for name in names or WORKLOADS:
            began = time.monotonic()
            WORKLOADS[name].run(bench)
            print_table(WORKLOADS[name], bench.results)
            print(f"({name} took {time.monotonic() - began:.0f} s)")
    write_json(options.json, bench)
    if options.charts is not None:
        for path in draw(bench.results, options.charts):
            print(f"drew {path}")
    if bench.results.failures:
        sys.exit(f"{len(bench.results.failures)} measurements failed")


def write_json(path: Path, bench: Bench) -> None:
    """Write all figures, and a description of the machine."""
    targets = [
        asdict(verdict.target) | {"value": verdict.value, "reached": verdict.is_reached}
        for verdict in verdicts(bench.results)
    ]
    facts = {"machine": machine(), "quick": bench.quick, "targets": targets, **bench.results.to_json()}
    path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    missed = [verdict for verdict in verdicts(bench.results) if not verdict.is_reached]
    print(f"\n{len(targets) - len(missed)} of {len(targets)} targets reached; all figures are in {path}")
    for verdict in missed:
        at = verdict.target
        print(f"{at.workload}, {at.case}, {at.client}: {verdict}")
    if bench.rounds < ROUNDS:
        print(f"These are figures of {bench.rounds} rounds. Targets are decided by {ROUNDS}.")


if __name__ == "__main__":
    main()
