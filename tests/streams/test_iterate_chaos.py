"""Asynchronous code of random behaviour. `python -m tests.streams.test_iterate_chaos STREAMS SEED` runs it for long."""

from __future__ import annotations

import argparse
import time
import warnings

import pytest

from .iterate_chaos import run

pytestmark = pytest.mark.configurations("default", "plain")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* was dropped while it was open:ResourceWarning")
def test_random_asynchronous_code_loses_no_item_task_or_thread() -> None:
    done = run(300, 1)
    assert sum(done.ends.values()) == 300


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.streams.test_iterate_chaos", description=__doc__)
    parser.add_argument("streams", type=int, nargs="?", default=10_000)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    began = time.monotonic()
    done = run(options.streams, options.seed)
    print(f"{options.streams} streams in {time.monotonic() - began:.0f} s, {done.items} items; nothing is left of them")
    for end, count in sorted(done.ends.items()):
        print(f"{end:<28} {count}")


if __name__ == "__main__":
    main()
