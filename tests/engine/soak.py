"""Two hundred streams that open and close all the time: nothing of them is to pile up, however long that goes on.

`python -m tests.engine.soak MINUTES` shows what the process holds, round after round, and fails where that is not flat.
A round is some seconds of streams at random faults (chaos.py). Between two rounds, when all streams have ended, it
measures what the process holds: growth from round to round is what the streams have left behind.
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
# How long an answer takes, so that as many streams are open as there are threads.
LASTS = 0.4

# What memory may grow by with each stream, in bytes. Python's objects: less than one for ten streams.
# The process: more than that, since the allocator gives back what it likes.
MOST_TRACED, MOST_RESIDENT = 5.0, 100.0
# The part of the rounds that is not looked at.
WARM_UP = 0.3

# From malloc.h.
M_ARENA_MAX = -8

Told = Callable[[str], object]


class Sample(NamedTuple):
    """What there is after so many streams: memory in bytes, and descriptors besides those of idle connections."""

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
    told: Told = lambda line: None,
    *,
    streams: int = STREAMS,
    round_streams: int | None = None,
) -> list[Sample]:
    """Read `streams` streams at a time for so many minutes, in rounds; return what there was after each.

    A round takes ROUND_SECONDS, or `round_streams` streams. There are two rounds at least.
    """
    samples: list[Sample] = []
    asked, begun = itertools.count(), time.monotonic()
    with proxied(seed) as (url, open_connections), Bridge() as bridge:
        run = Run(url, bridge, seed, LASTS)
        told(HEADING)
        while len(samples) < 2 or time.monotonic() < begun + 60 * minutes:
            numbers = until_then(asked, time.monotonic() + ROUND_SECONDS)
            run.read(numbers if round_streams is None else itertools.islice(asked, round_streams), streams)
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
            told(str(sample))
        run.check()
    return samples


def tell_allocator(function: str, *arguments: int) -> None:
    """Call a function of glibc's, where that is what the process has."""
    if hasattr(libc := ctypes.CDLL(None), function):
        getattr(libc, function)(*arguments)


def resident_bytes() -> int:
    """Return how much memory the process has, without what the allocator only keeps for later."""
    tell_allocator("malloc_trim", 0)
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def until_then(numbers: Iterator[int], at: float) -> Iterator[int]:
    """Give numbers until it is time to stop, to any thread."""
    return iter(lambda: next(numbers) if time.monotonic() < at else -1, -1)


def settled(count: Callable[[], int]) -> int:
    """Return what `count` comes to: the other side takes note of an end a little later."""
    counts = [-1]

    def is_settled() -> bool:
        time.sleep(0.02)
        counts.append(count())
        return len(counts) > 10 and len(set(counts[-10:])) == 1

    until(is_settled)
    return counts[-1]


def warm(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return those after the warm-up."""
    return samples[int(len(samples) * WARM_UP) :]


def growth_of(name: str, samples: Sequence[Sample]) -> float:
    """Return by how many bytes a memory grows with each stream: the slope of a line through all samples."""
    streams, sizes = zip(*((sample.streams, getattr(sample, name)) for sample in samples), strict=True)
    return statistics.linear_regression(streams, sizes).slope


def more_than_before(samples: Sequence[Sample]) -> list[str]:
    """Return of what there was more than after the first of these rounds."""
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
    # One for all threads: how much of each lies idle would be all that shows.
    tell_allocator("mallopt", M_ARENA_MAX, 1)
    before = Left.now()
    tracemalloc.start()
    samples = soak(options.minutes, options.seed, lambda line: print(line, flush=True))
    tracemalloc.stop()
    faults, left = more_than_before(warm(samples)), Left.now()
    if left.is_more_than(before):
        faults.append(f"at the end: {left}, and {before} before")
    for name, most in (("resident", MOST_RESIDENT), ("traced", MOST_TRACED)):
        growth = growth_of(name, warm(samples))
        print(f"{name}: {growth:+.1f} bytes a stream after the warm-up; {most:g} may be")
        if growth > most:
            faults.append(f"{name} memory is not flat")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
