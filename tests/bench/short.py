"""Streams of ten events on one shared client: one after another, over HTTP and TLS, and in 100 threads at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .meter import Meter, check_count, count
from .peers import Client
from .runner import BASELINE, CONFIGURATIONS, FLOOR, NAIVE, Bench, Column, Control, Workload

__all__ = ["IN_THREADS", "WORKLOAD", "measure"]

EVENTS = 10
THREADS, STREAMS_OF_A_THREAD = 100, 30
IN_THREADS = f"{THREADS} threads"


def run(bench: Bench) -> None:
    """Measure every client; the naive bridge, by far the slowest, with fewer streams."""
    streams, fewer = (40, 4) if bench.quick else (1_000, 50)
    for case, url in bench.schemes():
        Control(bench.upstream.http).prepare_burst(EVENTS, 1)
        overrides = {NAIVE: {"streams": fewer, "warmup": 2}}
        bench.measure_each("short", case, url, {"streams": streams, "warmup": streams // 10}, overrides=overrides)
    arguments = {"streams": 2 if bench.quick else STREAMS_OF_A_THREAD, "warmup": 10, "threads": THREADS}
    # The naive bridge starts a thread and a loop for each stream, in seconds of CPU time.
    clients = [each for each in CONFIGURATIONS if each.name != NAIVE]
    bench.measure_each("short", IN_THREADS, bench.upstream.http, arguments, clients)


def measure(client: Client, url: str, *, streams: int, warmup: int, threads: int = 1) -> dict[str, float]:
    """Read `streams` streams in each thread, after `warmup` others."""
    stream_url = f"{url}/stream?events={EVENTS}&batch=1"

    def read(times: int) -> None:
        for _ in range(times):
            check_count(count(client.chunks(stream_url)), EVENTS)

    read(warmup)
    meter = Meter()
    if threads == 1:
        read(streams)
    else:
        read_in_threads(threads, lambda: read(streams))
    wall, cpu = meter.read()
    total = threads * streams
    return {"streams_per_s": total / wall, "cpu_ms_per_stream": cpu / total * 1000}


def read_in_threads(threads: int, read: Callable[[], None]) -> None:
    """Call `read` in threads at the same time. Raises the first of their errors."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            read()
        except BaseException as exc:
            errors.append(exc)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


WORKLOAD = Workload(
    "short",
    "short: streams of ten events, one after another, and in 100 threads",
    (
        Column("streams_per_s", "streams/s", ",.0f"),
        Column("streams_per_s", "x httpx-sse", ".2f", BASELINE),
        Column("streams_per_s", "x naive", ".1f", NAIVE),
        Column("cpu_ms_per_stream", "CPU ms each", ".3f"),
        Column("cpu_ms_per_stream", "x httpx-sse", ".2f", BASELINE),
        Column("cpu_ms_per_stream", "x floor", ".2f", FLOOR),
    ),
    run,
)
