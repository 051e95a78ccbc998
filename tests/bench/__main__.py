"""Runs the benchmarks named on the command line, or all of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from . import abort, imports

BENCHMARKS: dict[str, Callable[[], None]] = {"abort": abort.main, "imports": imports.main}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all where none is named")
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        print(f"== {name}")
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
