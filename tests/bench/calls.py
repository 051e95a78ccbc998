"""iterate, run and enter beside run_coroutine_threadsafe and anyio's portal, from a synchronous thread.

`python -m tests.bench.calls` is its process. All clients use asyncio's event loop, or all use uvloop's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from .runner import OURS, Bench, Column, Workload, rotated

__all__ = ["CASES", "WORKLOAD", "main"]

OURS_NAME, THREADSAFE, PORTAL = "sseqbridge", "run_coroutine_threadsafe", "anyio's portal"
CALLS, ITEMS, SESSIONS = "a coroutine", "a generator's items", "a context manager"
CASES = (CALLS, ITEMS, SESSIONS)

# A function that does the work of a case `count` times.
Work = Callable[[int], object]


def run(bench: Bench) -> None:
    """Measure every client in one process for each of our configurations."""
    for configuration in bench.available(OURS):
        command = [sys.executable, "-m", "tests.bench.calls", str(bench.rounds), "50" if bench.quick else "3000"]
        samples = bench.run_json(command, bench.environment(configuration))
        loop = "uvloop" if "uvloop" in configuration.needs else "asyncio"
        if isinstance(samples, str):
            bench.record("calls", f"{CALLS}, {loop}", OURS_NAME, 0, samples)
            continue
        for case, client, number, figures in samples:
            bench.record("calls", f"{case}, {loop}", client, number, figures)


def main() -> None:
    """Print the samples: a JSON list of [case, client, round, figures]."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.calls", description=__doc__)
    options.add_argument("rounds", type=int)
    options.add_argument("count", type=int, help="calls of a measurement; there are ten times as many items")
    parsed = options.parse_args()
    print(json.dumps([sample for number in range(parsed.rounds) for sample in samples(parsed.count, number)]))


def samples(count: int, number: int) -> Iterator[tuple[Any, ...]]:
    """Yield one round's samples."""
    with contextlib.ExitStack() as stack:
        clients = {
            OURS_NAME: works_of_ours(),
            THREADSAFE: works_of_threadsafe(stack.enter_context(loop_in_thread())),
            PORTAL: stack.enter_context(works_of_portal()),
        }
        for case in CASES:
            for client in rotated([name for name, works in clients.items() if case in works], number):
                repeat = 10 * count if case == ITEMS else count // 4 if case == SESSIONS else count
                began = time.perf_counter()
                clients[client][case](repeat)
                yield case, client, number, {"per_s": repeat / (time.perf_counter() - began)}


async def nothing() -> int:
    """Be called."""
    return 1


async def numbers(count: int) -> AsyncIterator[int]:
    """Yield numbers without waiting."""
    for n in range(count):
        yield n


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[int]:
    """Be entered and exited."""
    yield 1


def works_of_ours() -> dict[str, Work]:
    """Return the works with this library."""
    from sseqbridge import enter, iterate
    from sseqbridge import run as run_async

    def calls(count: int) -> None:
        for _ in range(count):
            run_async(nothing())

    def items(count: int) -> None:
        check(sum(1 for _ in iterate(numbers(count))), count)

    def sessions(count: int) -> None:
        for _ in range(count):
            with enter(session()):
                pass

    return {CALLS: calls, ITEMS: items, SESSIONS: sessions}


@contextlib.contextmanager
def loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop of the kind that this library uses in a thread."""
    from sseqbridge._runtime.loops import new_event_loop

    loop = new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def works_of_threadsafe(loop: asyncio.AbstractEventLoop) -> dict[str, Work]:
    """Return the works with asyncio.run_coroutine_threadsafe. It has no context managers."""

    def calls(count: int) -> None:
        for _ in range(count):
            asyncio.run_coroutine_threadsafe(nothing(), loop).result()

    def items(count: int) -> None:
        generator = numbers(count)

        async def next_item() -> int:
            return await anext(generator, -1)

        seen = 0
        while asyncio.run_coroutine_threadsafe(next_item(), loop).result() >= 0:
            seen += 1
        check(seen, count)

    return {CALLS: calls, ITEMS: items}


@contextlib.contextmanager
def works_of_portal() -> Iterator[dict[str, Work]]:
    """Return the works with anyio's portal. It has no iteration: each item is a call."""
    from anyio.from_thread import start_blocking_portal

    from sseqbridge import _accelerators

    uses_uvloop = _accelerators.imported("uvloop") is not None
    with start_blocking_portal("asyncio", {"use_uvloop": uses_uvloop}) as portal:

        def calls(count: int) -> None:
            for _ in range(count):
                portal.call(nothing)

        def items(count: int) -> None:
            generator = numbers(count)

            async def next_item() -> int:
                return await anext(generator, -1)

            seen = 0
            while portal.call(next_item) >= 0:
                seen += 1
            check(seen, count)

        def sessions(count: int) -> None:
            for _ in range(count):
                with portal.wrap_async_context_manager(session()):
                    pass

        yield {CALLS: calls, ITEMS: items, SESSIONS: sessions}


def check(seen: int, expected: int) -> None:
    """Raise ValueError if items are missing."""
    if seen != expected:
        raise ValueError(f"{seen} items instead of {expected}")


WORKLOAD = Workload(
    "calls",
    "calls: asynchronous code from a synchronous thread, a second",
    (Column("per_s", "per second", ",.0f"), Column("per_s", "x run_coroutine_threadsafe", ".2f", THREADSAFE)),
    run,
)

if __name__ == "__main__":
    main()
