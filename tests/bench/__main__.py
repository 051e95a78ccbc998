"""Runs the benchmarks named on the command line, or all of them, and prints medians and ratios.

Figures never fail a run, targets that are not reached included; a client that crashes or hangs does, at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
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


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(WORKLOADS)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each measurement (5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a short form of everything, to see that it works")
    parser.add_argument("--clients", default="", metavar="A,B", help="only these lines of the tables")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="PATH", help="where the figures go")
    parser.add_argument("--charts", type=Path, default=None, metavar="DIR", help="where charts are drawn")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    rounds = options.rounds or (1 if options.quick else 5)
    only = [name for name in options.clients.split(",") if name]
    with Bench(rounds=rounds, quick=options.quick, only=only) as bench:
        for name in options.names or WORKLOADS:
            WORKLOADS[name].run(bench)
            print_table(WORKLOADS[name], bench.results)
    write_json(options.json, bench)
    if options.charts is not None:
        for path in draw(bench.results, options.charts):
            print(f"drew {path}")
    if bench.results.failures:
        sys.exit(f"{len(bench.results.failures)} measurements failed")


def write_json(path: Path, bench: Bench) -> None:
    """Write everything that was measured, and where."""
    targets = [asdict(one.target) | {"value": one.value, "reached": one.is_reached} for one in verdicts(bench.results)]
    facts = {"machine": machine(), "quick": bench.quick, "targets": targets, **bench.results.to_json()}
    path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    reached = sum(bool(one["reached"]) for one in targets)
    print(f"\n{reached} of {len(targets)} targets reached; every figure is in {path}")


if __name__ == "__main__":
    main()
