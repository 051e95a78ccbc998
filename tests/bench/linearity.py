"""Whether the parser takes linear time: one huge line, and one event of many lines, in small chunks.

`python -m tests.bench.linearity` is the process that parses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from .meter import Meter, check_count
from .runner import OURS, Bench, Column, Workload

__all__ = ["EVENT", "FACTORS", "LINE", "WORKLOAD", "main"]

FACTORS = (1, 2, 4, 8)
CHUNK_BYTES = 512
LINE, EVENT = f"a line in {CHUNK_BYTES}-byte chunks", f"an event of many lines in {CHUNK_BYTES}-byte chunks"


def run(bench: Bench) -> None:
    """Measure the parser of sseqbridge."""
    command = [sys.executable, "-m", "tests.bench.linearity", str(bench.rounds), "100" if bench.quick else "4000"]
    samples = bench.run_json(command, bench.environment(OURS[0]))
    if isinstance(samples, str):
        bench.record("linearity", LINE, "1x", 0, samples)
        return
    for case, size, number, figures in samples:
        bench.record("linearity", case, size, number, figures)


def main() -> None:
    """Print the samples: a JSON list of [case, size, round, figures]."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.linearity", description=__doc__)
    options.add_argument("rounds", type=int)
    options.add_argument("kilobytes", type=int, help="size of the smallest input")
    parsed = options.parse_args()
    print(json.dumps([sample for number in range(parsed.rounds) for sample in samples(parsed.kilobytes, number)]))


def samples(kilobytes: int, number: int) -> Iterator[tuple[Any, ...]]:
    """Yield the samples of one round."""
    for case, unit in ((LINE, b"x" * 1000), (EVENT, b"x" * 43 + b"\ndata: ")):
        first = None
        for factor in FACTORS:
            size = factor * kilobytes * 1000
            milliseconds = parse_milliseconds(b"data: " + unit * (size // len(unit)) + b"\n\n")
            first = first or milliseconds
            figures = {"ms": milliseconds, "x_linear": milliseconds / first / factor}
            yield case, f"{factor * kilobytes:,} kB", number, figures


def parse_milliseconds(event: bytes) -> float:
    """Return the CPU time of parsing one event in small chunks."""
    from sseqbridge import EventStreamParser

    chunks = [event[at : at + CHUNK_BYTES] for at in range(0, len(event), CHUNK_BYTES)]
    feed = EventStreamParser().feed
    meter = Meter()
    received = sum(len(feed(chunk)) for chunk in chunks)
    _, cpu = meter.read()
    check_count(received, 1)
    return cpu * 1000


WORKLOAD = Workload(
    "linearity",
    "linearity: CPU time of the parser, and its ratio to linear time",
    (Column("ms", "ms", ".2f"), Column("x_linear", "x linear", ".2f")),
    run,
)

if __name__ == "__main__":
    main()
