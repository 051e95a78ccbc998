"""Streams in Redis with many readers: a RedisLog compared with plain redis-py.

    python -m tests.bench.resume [--rounds 3] [--rate 2] [--quick] [--clients A,B]

1,000 readers, each with a thread, in four processes: ten readers for each of 100 keys, and every process reads all
keys. A fifth process writes the streams with `RedisLog.produce`: first an event every 500 ms per key, which is 2,000
events a second for the readers; then a burst, as fast as upstream and producer can send. All clients read in turn, from
a Redis of the benchmark's own.

The latency of an event counts from the upstream's send, so it includes the write. `CPU s` is the CPU time of the
readers' processes, `producer's` that of the producer. The client `without fan-out` passes events to no reader, and
counts them once per process. Newcomers are readers that open a stream during the run: one that was already complete
(`kept`), one that they start (`begun`), or one that they start while the process's XREAD waits and must be woken
(`silence`); `direct` is the same upstream without a log.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import redis

from .meter import CountError, percentile
from .resume_processes import PREFIX
from .runner import OURS, Bench, Column, Configuration, Control, Workload, end, rotated
from .table import print_table

__all__ = ["main"]

# Without commas: --clients separates names by them.
EACH, ONE = "redis-py (an XREAD each)", "redis-py (one XREAD without fan-out)"
CLIENTS = (
    *(Configuration(ours.name, "log", (*ours.needs, "redis"), ours.environment) for ours in OURS),
    Configuration(EACH, "each", ("redis", "msgspec")),
    Configuration(ONE, "one", ("redis", "msgspec")),
)
START_SECONDS = 10.0
POLL_SECONDS = 0.02
COUNT = """
local count = 0
for _, key in ipairs(KEYS) do count = count + redis.call('XLEN', key) end
return count
"""

_numbers = itertools.count()


@dataclass(frozen=True)
class Sizes:
    """The size of a run."""

    processes: int
    keys: int
    readers_of_each: int
    # Paced: events per key, and events per second and key.
    events: int
    rate: float
    # Burst: events per key.
    burst: int
    # Newcomers per process.
    newcomers: int

    @property
    def readers(self) -> int:
        """The number of readers."""
        return self.keys * self.readers_of_each


FULL = Sizes(processes=4, keys=100, readers_of_each=10, events=10, rate=2.0, burst=200, newcomers=5)
QUICK = Sizes(processes=2, keys=20, readers_of_each=5, events=5, rate=10.0, burst=50, newcomers=1)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (3; 1 with --quick)")
    parser.add_argument("--rate", type=float, default=None, help="events per second and key (2)")
    parser.add_argument("--quick", action="store_true", help="a short run, to check that it works")
    parser.add_argument("--clients", default="", metavar="A,B", help="only these clients")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    if options.rate is not None:
        sizes = replace(sizes, rate=options.rate, events=round(sizes.events / sizes.rate * options.rate))
    only = [name for name in options.clients.split(",") if name]
    with Bench(rounds=1 if options.quick else options.rounds, quick=options.quick, only=only) as bench:
        measure(bench, sizes)
        for workload in (PACED, BURST):
            print_table(workload, bench.results)
    if bench.results.failures:
        sys.exit(f"{len(bench.results.failures)} measurements failed")


def measure(bench: Bench, sizes: Sizes) -> None:
    """Run each client in each round, and record the figures."""
    # The short run omits sseqbridge without its optional packages.
    clients = bench.available(CLIENTS[1:] if bench.quick else CLIENTS)
    paced = f"{sizes.readers:,} readers of {sizes.keys} keys, {sizes.rate:g}/s each"
    burst = f"{sizes.readers:,} readers of {sizes.keys} keys, {sizes.burst} at once"
    with redis_server() as url, Process("producer", url, "producer", bench.environment(OURS[-1])) as producer:
        kept = _name()
        producer.call("begin", keys=[kept], upstream=f"{bench.upstream.http}/paced?events=1&interval=0.001")
        producer.call("end")
        for number in range(bench.rounds):
            for client in rotated(clients, number):
                print(f"round {number + 1} of {bench.rounds}: {client.name}", file=sys.stderr)
                environment = bench.environment(client)
                with ExitStack() as stack:
                    readers = [
                        stack.enter_context(Process(client.client, url, f"reader-{at}", environment))
                        for at in range(sizes.processes)
                    ]
                    run = Run(sizes, url, bench.upstream.http, producer, readers, kept)
                    bench.record(PACED.name, paced, client.name, number, run.paced())
                    bench.record(BURST.name, burst, client.name, number, run.burst())


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis without persistence, and yield its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        command += ["--save", "", "--appendonly", "no", "--maxclients", "4000", "--loglevel", "warning"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                _wait_until_ready(client)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(client: redis.Redis) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


class Process:
    """A process of `resume_processes`, whose methods are called by JSON over pipes."""

    def __init__(self, kind: str, url: str, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        command = [sys.executable, "-m", "tests.bench.resume_processes", kind, url, name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        end(self._process)

    def send_call(self, method: str, **arguments: object) -> None:
        """Call a method without waiting; `receive_result` waits."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"method": method, **arguments}) + "\n")
        self._process.stdin.flush()

    def receive_result(self) -> Any:
        """Return the result of a call. Raises CountError if the process has failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CountError(f"the process {self.name} has failed")
        return json.loads(line)

    def call(self, method: str, **arguments: object) -> Any:
        """Call a method, and return its result."""
        self.send_call(method, **arguments)
        return self.receive_result()


class Run:
    """The readers of one client, for one round."""

    def __init__(
        self, sizes: Sizes, url: str, upstream: str, producer: Process, readers: list[Process], kept: str
    ) -> None:
        self._sizes = sizes
        self._url = url
        self._upstream = upstream
        self._producer = producer
        self._readers = readers
        self._newcomers = {
            "newcomers": sizes.newcomers,
            "kept": kept,
            "upstream": f"{upstream}/stream?events=2&batch=1",
        }
        self._control = Control(upstream)

    def paced(self) -> dict[str, float]:
        """Measure events at a fixed rate, and newcomers."""
        sizes = self._sizes
        _, group = self._open(sizes.events, 1 / sizes.rate)
        seconds = sizes.events / sizes.rate
        silent = [
            second
            for reader in self._readers
            for second in reader.call("measure_newcomers", names=_name(), **self._newcomers)["begun"]
        ]
        for reader in self._readers:
            reader.call("start_counting", names=_name(), seconds=0.7 * seconds, **self._newcomers)
        self._control.get_json("/start", group=group)
        time.sleep(seconds / 2)
        held = self._connections()
        ends = self._end()
        late = sorted(us for end in ends for us in end["late_us"])
        waited = {"silence": silent}
        for kind in ("kept", "begun", "direct"):
            waited[kind] = [second for end in ends for second in end["newcomers"][kind]]
        return {
            "received_per_s": len(late) / seconds,
            "p50_ms": percentile(late, 50) / 1e3,
            "p99_ms": percentile(late, 99) / 1e3,
            "worst_ms": percentile(late, 100) / 1e3,
            "cpu_s": sum(end["cpu"] for end in ends),
            "producer_cpu_s": self._producer_cpu,
            "connections": max(held[reader.name] for reader in self._readers),
            **{f"{kind}_ms": statistics.median(waits) * 1e3 for kind, waits in waited.items() if waits},
        }

    def burst(self) -> dict[str, float]:
        """Measure the throughput."""
        events = self._sizes.burst
        keys, group = self._open(events, 0)
        for reader in self._readers:
            reader.call("start_counting", names="", seconds=0, **(self._newcomers | {"newcomers": 0}))
        self._control.get_json("/start", group=group)
        written = self._when_written(keys, events)
        ends = self._end()
        started = min(end["first_at"] for end in ends) / 1e9
        received = sum(len(end["late_us"]) for end in ends)
        seconds = max(end["last_at"] for end in ends) / 1e9 - started
        return {
            "received_per_s": received / seconds,
            "written_per_s": events * len(keys) / (written - started),
            "seconds": seconds,
            "cpu_s": sum(end["cpu"] for end in ends),
            "producer_cpu_s": self._producer_cpu,
        }

    def _open(self, events: int, interval: float) -> tuple[list[str], str]:
        """Request the streams, which do not start yet, and open all readers."""
        keys = [_name() for _ in range(self._sizes.keys)]
        group = _name()
        upstream = f"{self._upstream}/join?group={group}&size={len(keys)}&events={events}&interval={interval}"
        self._producer.call("begin", keys=keys, upstream=upstream)
        # Distribute the readers of each key over the processes, as a load balancer does over workers.
        readers_of_keys = [key for key in keys for _ in range(self._sizes.readers_of_each)]
        for at, reader in enumerate(self._readers):
            reader.send_call("open", keys=readers_of_keys[at :: len(self._readers)], events=events)
        for reader in self._readers:
            reader.receive_result()
        return keys, group

    def _end(self) -> list[Any]:
        for reader in self._readers:
            reader.send_call("end")
        ends = [reader.receive_result() for reader in self._readers]
        self._producer_cpu: float = self._producer.call("end")
        return ends

    def _connections(self) -> Counter[str]:
        """Return the number of connections per process."""
        with redis.Redis.from_url(self._url) as client:
            return Counter(found["name"] for found in client.client_list())

    def _when_written(self, keys: list[str], events: int) -> float:
        """Wait until all events are in Redis, and return the time."""
        names = [f"{PREFIX}:{{{key}}}:events" for key in keys]
        with redis.Redis.from_url(self._url) as client:
            count = client.register_script(COUNT)
            # The first entry of a stream is not an event.
            while count(names) < (events + 1) * len(keys):
                time.sleep(POLL_SECONDS)
            return time.monotonic()


def _name() -> str:
    return f"bench-{next(_numbers)}"


def _run(bench: Bench) -> None:
    """Measure both workloads, one after the other in the same processes."""
    measure(bench, QUICK if bench.quick else FULL)


_SHARED = (
    Column("cpu_s", "CPU s", ".2f"),
    Column("cpu_s", "x each", ".2f", EACH),
    Column("producer_cpu_s", "producer's", ".2f"),
)
PACED = Workload(
    "resume paced",
    "resume: events at a fixed rate",
    (
        Column("received_per_s", "received/s", ",.0f"),
        Column("p50_ms", "p50 ms", ".2f"),
        Column("p50_ms", "x each", ".2f", EACH),
        Column("p99_ms", "p99 ms", ".2f"),
        Column("p99_ms", "x each", ".2f", EACH),
        *_SHARED,
        Column("connections", "connections a process", ".0f"),
        Column("kept_ms", "newcomers: kept ms", ".1f"),
        Column("begun_ms", "begun", ".1f"),
        Column("silence_ms", "silence", ".1f"),
        Column("direct_ms", "direct", ".1f"),
    ),
    _run,
)
BURST = Workload(
    "resume burst",
    "resume: a burst",
    (
        Column("received_per_s", "received/s", ",.0f"),
        Column("received_per_s", "x each", ".2f", EACH),
        Column("written_per_s", "written/s", ",.0f"),
        Column("seconds", "seconds", ".2f"),
        *_SHARED,
    ),
    _run,
)


if __name__ == "__main__":
    main()
