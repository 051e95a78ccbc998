"""One event per millisecond: the latency from the upstream's send to the consumer."""

from __future__ import annotations

import time

from .meter import Meter, check_count, count, percentile
from .peers import Client
from .runner import BASELINE, Bench, Column, Workload

__all__ = ["WORKLOAD", "measure"]

INTERVAL_SECONDS = 0.001


def run(bench: Bench) -> None:
    """Measure every client."""
    events, warmup = (300, 20) if bench.quick else (2_000, 100)
    bench.measure_each("paced", "one event a millisecond", bench.upstream.http, {"events": events, "warmup": warmup})


def measure(client: Client, url: str, *, events: int, warmup: int) -> dict[str, float]:
    """Read one stream after a short warm-up stream, and compare each event's send time with the clock."""
    path = f"{url}/paced?interval={INTERVAL_SECONDS}"
    check_count(count(client.chunks(f"{path}&events={warmup}")), warmup)
    clock = time.monotonic_ns
    meter = Meter()
    late = [clock() - chunk["created"] for chunk in client.chunks(f"{path}&events={events}")]
    _, cpu = meter.read()
    check_count(len(late), events)
    late.sort()
    return {
        "p50_us": percentile(late, 50) / 1000,
        "p99_us": percentile(late, 99) / 1000,
        "cpu_us_per_event": cpu / events * 1e6,
    }


WORKLOAD = Workload(
    "paced",
    "paced: microseconds from sending to the consumer",
    (
        Column("p50_us", "p50 us", ".0f"),
        Column("p50_us", "x httpx-sse", ".2f", BASELINE),
        Column("p99_us", "p99 us", ".0f"),
        Column("p99_us", "x httpx-sse", ".2f", BASELINE),
        Column("cpu_us_per_event", "CPU us each", ".0f"),
        Column("cpu_us_per_event", "x httpx-sse", ".2f", BASELINE),
    ),
    run,
)
