"""Streams of ten events, one after another on one shared client, over HTTP and TLS."""

from __future__ import annotations

from .meter import Meter, check_count, count
from .peers import Client
from .runner import BASELINE, NAIVE, Bench, Column, Control, Workload

__all__ = ["WORKLOAD", "measure"]

EVENTS = 10


def run(bench: Bench) -> None:
    """Measure every client; the naive bridge, by far the slowest, with fewer streams."""
    streams, fewer = (40, 4) if bench.quick else (1_000, 50)
    for case, url in bench.schemes():
        Control(bench.upstream.http).prepare_burst(EVENTS, 1)
        overrides = {NAIVE: {"streams": fewer, "warmup": 2}}
        bench.measure_each("short", case, url, {"streams": streams, "warmup": streams // 10}, overrides=overrides)


def measure(client: Client, url: str, *, streams: int, warmup: int) -> dict[str, float]:
    """Read `streams` streams after `warmup` others."""
    stream_url = f"{url}/stream?events={EVENTS}&batch=1"
    for _ in range(warmup):
        check_count(count(client.chunks(stream_url)), EVENTS)
    meter = Meter()
    for _ in range(streams):
        check_count(count(client.chunks(stream_url)), EVENTS)
    wall, cpu = meter.read()
    return {"streams_per_s": streams / wall, "cpu_ms_per_stream": cpu / streams * 1000}


WORKLOAD = Workload(
    "short",
    "short: streams of ten events, one after another",
    (
        Column("streams_per_s", "streams/s", ",.0f"),
        Column("streams_per_s", "x httpx-sse", ".2f", BASELINE),
        Column("streams_per_s", "x naive", ".1f", NAIVE),
        Column("cpu_ms_per_stream", "CPU ms each", ".3f"),
        Column("cpu_ms_per_stream", "x httpx-sse", ".2f", BASELINE),
    ),
    run,
)
