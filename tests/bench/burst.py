"""Events per second of one fast stream: chat completion chunks of 300 bytes, sent as fast as loopback allows."""

from __future__ import annotations

from .meter import Meter, check_count, count
from .peers import Client
from .runner import BASELINE, FLOOR, Bench, Column, Control, Workload

__all__ = ["BATCHES", "WORKLOAD", "measure"]

BATCHES = {"one event a chunk": 1, "100 events a chunk": 100}


def run(bench: Bench) -> None:
    """Measure every client with one and with 100 events per HTTP chunk."""
    events, warmup = (4_000, 200) if bench.quick else (50_000, 10_000)
    for case, batch in BATCHES.items():
        for number in (warmup, events):
            Control(bench.upstream.http).prepare_burst(number, batch)
        bench.measure_each("burst", case, bench.upstream.http, {"events": events, "batch": batch, "warmup": warmup})


def measure(client: Client, url: str, *, events: int, batch: int, warmup: int) -> dict[str, float]:
    """Read one stream after a warm-up stream of the same kind."""
    check_count(count(client.chunks(f"{url}/stream?events={warmup}&batch={batch}")), warmup)
    meter = Meter()
    received = count(client.chunks(f"{url}/stream?events={events}&batch={batch}"))
    wall, cpu = meter.read()
    check_count(received, events)
    return {"events_per_s": events / wall, "events_per_cpu_s": events / cpu}


WORKLOAD = Workload(
    "burst",
    "burst: events a second, JSON decoded",
    (
        Column("events_per_s", "events/s", ",.0f"),
        Column("events_per_s", "x httpx-sse", ".2f", BASELINE),
        Column("events_per_s", "x floor", ".2f", FLOOR),
        Column("events_per_cpu_s", "events/CPU s", ",.0f"),
        Column("events_per_cpu_s", "x httpx-sse", ".2f", BASELINE),
        Column("events_per_cpu_s", "x floor", ".2f", FLOOR),
    ),
    run,
)
