"""Many streams at once, each with an event every 100 ms, spread over the interval.

Each stream has a consumer thread; sseqbridge also reads all of them in one loop (`merge`).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import traceback
import uuid
from array import array
from pathlib import Path

from .meter import CountError, Meter, check_count, count, percentile
from .peers import Client, SseqbridgeMerge
from .runner import BASELINE, CONFIGURATIONS, OURS, PEER_ROUNDS, Bench, Column, Configuration, Control, Workload

__all__ = ["WORKLOAD", "case_of", "measure", "merged"]

INTERVAL_SECONDS = 0.1
# The threads start one after another, this far apart.
RAMP_SECONDS = 0.001


def merged(name: str) -> str:
    """Return the name of the client that reads all streams in one loop."""
    return f"{name} (merge)"


MERGED = tuple(Configuration(merged(ours.name), "sseqbridge (merge)", ours.needs, ours.environment) for ours in OURS)


def case_of(streams: int) -> str:
    """Return the name of the case."""
    return f"{streams:,} streams"


def run(bench: Bench) -> None:
    """Measure every client at one size, and sseqbridge at smaller sizes too, to compare the cost of a stream."""
    for_all, only_ours, events = (40, (10,), 5) if bench.quick else (1_000, (100, 300), 60)
    for streams in only_ours:
        arguments = {"streams": streams, "events": events}
        bench.measure_each(
            "many", case_of(streams), bench.upstream.http, arguments, OURS, rounds=min(bench.rounds, PEER_ROUNDS)
        )
    arguments = {"streams": for_all, "events": events}
    bench.measure_each("many", case_of(for_all), bench.upstream.http, arguments, (*CONFIGURATIONS, *MERGED))


def measure(client: Client, url: str, *, streams: int, events: int) -> dict[str, float]:
    """Open all streams, and measure until each has had its last event; all streams are open during that time."""
    check_count(count(client.chunks(f"{url}/paced?events=10&interval=0.001")), 10)
    readers = (MergedReader if isinstance(client, SseqbridgeMerge) else Readers)(client, streams, events)
    memory_before = process_status("VmRSS")
    group = uuid.uuid4().hex
    readers.start(f"{url}/join?group={group}&size={streams}&events={events}&interval={INTERVAL_SECONDS}")
    control = Control(url)
    control.get_json("/start", group=group)
    meter = Meter()
    readers.had_last_event.wait()
    _, cpu = meter.read()
    memory, threads = process_status("VmRSS"), process_status("Threads")
    readers.join()
    late = sorted(readers.late)
    return {
        "cpu_s": cpu,
        "cpu_us_per_event": cpu / (streams * events) * 1e6,
        "p50_ms": percentile(late, 50) / 1e6,
        "p99_ms": percentile(late, 99) / 1e6,
        "worst_ms": percentile(late, 100) / 1e6,
        "threads": threads,
        "kib_per_stream": (memory - memory_before) / streams,
        "upstream_p99_ms": control.get_json("/stats")["late_ms"]["p99"],
    }


def process_status(field: str) -> int:
    """Return a number from /proc/self/status; sizes are in KiB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


class Readers:
    """One consumer thread per stream, which records the delay of each event.

    The memory for the delays is allocated before the streams are opened, and does not count as memory of a stream.
    """

    def __init__(self, client: Client, streams: int, events: int) -> None:
        self._client = client
        self._events = events
        self._counter = itertools.count(1)
        self.late = array("q", bytes(8 * streams * events))
        self.had_last_event = threading.Event()
        self._streams = streams
        self._threads: list[threading.Thread] = []

    def start(self, url: str) -> None:
        """Open the streams."""
        for number in range(self._streams):
            thread = threading.Thread(target=self._follow, args=(url, number * self._events))
            self._threads.append(thread)
            thread.start()
            time.sleep(RAMP_SECONDS)

    def join(self) -> None:
        """Wait until all streams have ended."""
        for thread in self._threads:
            thread.join()

    def _follow(self, url: str, start: int) -> None:
        try:
            at, end = start, start + self._events
            for chunk in self._client.chunks(url):
                if at == end:
                    raise CountError(f"received more than {self._events} events")
                self.late[at] = time.monotonic_ns() - chunk["created"]
                at += 1
                # next() of an itertools counter is atomic.
                if at == end and next(self._counter) == self._streams:
                    self.had_last_event.set()
            check_count(at - start, self._events)
        except BaseException:
            # The upstream waits until all streams are open, so it would wait forever.
            traceback.print_exc()
            os._exit(1)


class MergedReader(Readers):
    """One consumer thread for all streams."""

    def start(self, url: str) -> None:
        """Open the streams."""
        thread = threading.Thread(target=self._follow_all, args=(url,))
        self._threads.append(thread)
        thread.start()

    def _follow_all(self, url: str) -> None:
        try:
            assert isinstance(self._client, SseqbridgeMerge)
            at, end = 0, len(self.late)
            for chunk in self._client.merged(url, self._streams):
                if at == end:
                    raise CountError(f"received more than {end} events")
                self.late[at] = time.monotonic_ns() - chunk["created"]
                at += 1
                if at == end:
                    self.had_last_event.set()
            check_count(at, end)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


WORKLOAD = Workload(
    "many",
    "many: concurrent streams, an event every 100 ms; a thread each, or one loop (merge)",
    (
        Column("cpu_s", "CPU s", ".2f"),
        Column("cpu_s", "x httpx-sse", ".2f", BASELINE),
        Column("cpu_us_per_event", "CPU us each", ".0f"),
        Column("p50_ms", "p50 ms", ".2f"),
        Column("p99_ms", "p99 ms", ".2f"),
        Column("p99_ms", "x httpx-sse", ".2f", BASELINE),
        Column("worst_ms", "worst ms", ".1f"),
        Column("threads", "threads", ".0f"),
        Column("kib_per_stream", "KiB a stream", ".0f"),
        Column("upstream_p99_ms", "upstream's p99", ".2f"),
    ),
    run,
)
