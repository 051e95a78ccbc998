"""Streams with random faults, read in random ways by many threads: no loss, no leak, no hang.

`python -m tests.engine.test_chaos STREAMS SEED` reads many streams; `--stream N` reads one of them repeatedly.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import pytest

from .chaos import run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* was dropped while it was open:ResourceWarning")
def test_random_faults_lose_no_event_thread_or_descriptor() -> None:
    done = run(600, 1)
    assert sum(done.ends.values()) == 600


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.test_chaos", description=__doc__)
    parser.add_argument("streams", type=int, nargs="?", default=10_000)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("--stream", type=int, help="read only this stream, `streams` times")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    at = time.monotonic()
    streams = options.streams if options.stream is None else [options.stream] * options.streams
    done = run(streams, options.seed, lambda number: print(f"\r{number}", end="", file=sys.stderr, flush=True))
    print(f"\r{options.streams} streams in {time.monotonic() - at:.0f} s, {done.items} items; nothing leaked")
    print(f"failed on a dead connection of an earlier stream: {done.victims}, at most {done.spoilers} expected")
    for (ending, end), count in sorted(done.ends.items()):
        print(f"{ending:>8} -> {end:<22} {count}")


if __name__ == "__main__":
    main()
