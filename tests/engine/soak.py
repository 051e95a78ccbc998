"""Two hundred streams that open and close all the time must not leak.

`python -m tests.engine.soak MINUTES` prints memory, descriptors and threads of the process after each round, and fails
if they grow. A round is some seconds of streams with random faults (chaos.py); it is measured after all have ended.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import resource
import statistics
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sseqbridge import Bridge
from tests.support import until

from .chaos import Left, Run, proxied

__all__ = ["Sample", "more_than_before", "soak"]

STREAMS = 200
ROUND_SECONDS = 10.0
# The duration of a response: as many streams as threads are open at a time.
LASTS = 0.4

# The allowed growth of memory per stream, in bytes. Python's objects: less than one for ten streams.
# The process: more than that, since the allocator keeps freed memory.
MOST_TRACED, MOST_RESIDENT = 5.0, 100.0
# With fewer streams the slope of the process's memory is chance.
LEAST_STREAMS = 20_000
# The share of rounds that is ignored, as warm-up.
WARM_UP = 0.3

# From malloc.h.
M_ARENA_MAX = -8

Report = Callable[[str], object]


class Sample(NamedTuple):
    """Memory in bytes after some streams, and descriptors without those of idle connections."""

    seconds: float
    streams: int
    resident: int
    traced: int
    threads: int
    descriptors: int
    objects: int
    idle: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:7.0f} {self.streams:9,} {self.resident / 1e6:8.1f} {self.traced / 1e3:10.1f}"
            f" {self.threads:8} {self.descriptors:12} {self.objects:8} {self.idle:6}"
        )


HEADING = "seconds   streams   RSS MB  traced kB  threads  descriptors  objects   idle"


def soak(
    minutes: float,
    seed: int,
    report: Report = lambda line: None,
    *,
    streams: int = STREAMS,
    round_streams: int | None = None,
) -> list[Sample]:
    """Read `streams` streams at a time for `minutes`, in rounds; return a sample after each.

    A round takes ROUND_SECONDS or half of the time, or `round_streams` streams. There are two rounds at least.
    """
    round_seconds = min(ROUND_SECONDS, 60 * minutes / 2)
    samples: list[Sample] = []
    numbers_of_streams, begun = itertools.count(), time.monotonic()
    with proxied(seed) as (url, open_connections), Bridge() as bridge:
        run = Run(url, bridge, seed, LASTS)
        report(HEADING)
        while len(samples) < 2 or time.monotonic() < begun + 60 * minutes:
            numbers = until_then(numbers_of_streams, time.monotonic() + round_seconds)
            run.read(numbers if round_streams is None else itertools.islice(numbers_of_streams, round_streams), streams)
            idle, left = settled(open_connections), Left.now()
            sample = Sample(
                seconds=time.monotonic() - begun,
                streams=sum(run.ends.values()),
                resident=resident_bytes(),
                traced=tracemalloc.get_traced_memory()[0],
                threads=left.threads,
                descriptors=left.descriptors - idle,
                objects=left.objects,
                idle=idle,
            )
            samples.append(sample)
            report(str(sample))
        run.check()
    return samples


def call_glibc(function: str, *arguments: int) -> None:
    """Call a function of glibc, if the process uses glibc."""
    if hasattr(libc := ctypes.CDLL(None), function):
        getattr(libc, function)(*arguments)


def resident_bytes() -> int:
    """Return the memory of the process, without freed memory that the allocator keeps."""
    call_glibc("malloc_trim", 0)
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def until_then(numbers: Iterator[int], at: float) -> Iterator[int]:
    """Yield numbers until the deadline. Thread-safe."""
    return iter(lambda: next(numbers) if time.monotonic() < at else -1, -1)


def settled(count: Callable[[], int]) -> int:
    """Return `count()` once it is stable: the other side notices an end a little later."""
    counts = [-1]

    def is_settled() -> bool:
        time.sleep(0.02)
        counts.append(count())
        return len(counts) > 10 and len(set(counts[-10:])) == 1

    until(is_settled)
    return counts[-1]


def warm(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples after the warm-up."""
    return samples[int(len(samples) * WARM_UP) :]


def growth_of(name: str, samples: Sequence[Sample]) -> float:
    """Return the growth of memory in bytes a stream: the slope of a line through all samples."""
    streams, sizes = zip(*((sample.streams, getattr(sample, name)) for sample in samples), strict=True)
    return statistics.linear_regression(streams, sizes).slope


def more_than_before(samples: Sequence[Sample]) -> list[str]:
    """Return which counts are larger than after the first of these rounds."""
    return [
        f"{name}: {getattr(sample, name)} after {sample.seconds:.0f} s, {getattr(samples[0], name)} before"
        for sample in samples
        for name in ("threads", "descriptors", "objects")
        if getattr(sample, name) > getattr(samples[0], name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    # One arena for all threads: otherwise the figures show mostly idle memory of arenas.
    call_glibc("mallopt", M_ARENA_MAX, 1)
    before = Left.now()
    tracemalloc.start()
    samples = soak(options.minutes, options.seed, lambda line: print(line, flush=True))
    tracemalloc.stop()
    faults, left = more_than_before(warm(samples)), Left.now()
    if left.is_more_than(before):
        faults.append(f"at the end: {left}, and {before} before")
    is_short = samples[-1].streams < LEAST_STREAMS
    for name, most in (("resident", MOST_RESIDENT), ("traced", MOST_TRACED)):
        growth = growth_of(name, warm(samples))
        note = f"not judged below {LEAST_STREAMS:,} streams" if is_short else f"{most:g} may be"
        print(f"{name}: {growth:+.1f} bytes a stream after the warm-up; {note}")
        if growth > most and not is_short:
            faults.append(f"{name} memory is not flat")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
