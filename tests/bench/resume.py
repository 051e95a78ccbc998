"""Streams in Redis with many readers: what this library's cost beside plain ones of redis-py.

    python -m tests.bench.resume [--rounds 3] [--rate 2] [--quick] [--clients A,B]

1,000 readers, a thread each, in four processes: ten of each of 100 keys, and all keys in each process. One more
process writes them with `RedisLog.produce`. At first an event comes every 500 ms on each key, which is 2,000 a second
to the readers; then a burst, as fast as upstream and producer can. All clients, one after the other, read what
is written in the same way, from a Redis of the benchmark's own.

How late an event is counts from the upstream's sending, and so has the writing in it. `CPU s` is that of the readers'
processes, `producer's` that of what writes. What reads `for nobody` gives an event to no reader, and counts it once a
process. Newcomers are readers that come while the others are under way: to a stream that is `kept` already, with one
that they have `begun`, or with one begun in `silence`, when the process's XREAD waits and has to be woken; `alone` is
the same upstream without a log.
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
from .runner import OURS, Bench, Column, Configuration, Control, Workload, end, in_turn
from .table import print_table

__all__ = ["main"]

EACH, ONE = "redis-py with an XREAD each", "redis-py with one XREAD for nobody"
CLIENTS = (
    *(Configuration(one.name, "log", (*one.needs, "redis"), one.environment) for one in OURS),
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
    """How much is done."""

    processes: int
    keys: int
    readers_of_each: int
    # Paced: how many events of each key, and how many a second.
    events: int
    rate: float
    # At once: how many of each key.
    burst: int
    # In each process.
    newcomers: int

    @property
    def readers(self) -> int:
        """How many there are."""
        return self.keys * self.readers_of_each


FULL = Sizes(processes=4, keys=100, readers_of_each=10, events=10, rate=2.0, burst=200, newcomers=5)
QUICK = Sizes(processes=2, keys=20, readers_of_each=5, events=5, rate=10.0, burst=50, newcomers=1)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (3; 1 with --quick)")
    parser.add_argument("--rate", type=float, default=None, help="events a second of each key (2)")
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it works")
    parser.add_argument("--clients", default="", metavar="A,B", help="only these lines of the tables")
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
    """Have each client read, round after round, and record the figures."""
    # The short form leaves out what differs in no more than two packages.
    clients = bench.installed(CLIENTS[1:] if bench.quick else CLIENTS)
    paced = f"{sizes.readers:,} readers of {sizes.keys} keys, {sizes.rate:g}/s each"
    burst = f"{sizes.readers:,} readers of {sizes.keys} keys, {sizes.burst} at once"
    with redis_server() as url, Process("producer", url, "producer", bench.environment(OURS[-1])) as producer:
        kept = _name()
        producer.ask("begin", keys=[kept], upstream=f"{bench.upstream.http}/paced?events=1&interval=0.001")
        producer.ask("end")
        for number in range(bench.rounds):
            for one in in_turn(clients, number):
                print(f"round {number + 1} of {bench.rounds}: {one.name}", file=sys.stderr)
                environment = bench.environment(one)
                with ExitStack() as stack:
                    readers = [
                        stack.enter_context(Process(one.client, url, f"reader-{at}", environment))
                        for at in range(sizes.processes)
                    ]
                    run = Run(sizes, url, bench.upstream.http, producer, readers, kept)
                    bench.record(PACED.name, paced, one.name, number, run.paced())
                    bench.record(BURST.name, burst, one.name, number, run.burst())


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis that keeps nothing, and give its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        command += ["--save", "", "--appendonly", "no", "--maxclients", "4000", "--loglevel", "warning"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                _wait_until_it_answers(client)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait_until_it_answers(client: redis.Redis) -> None:
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
    """A process of `resume_processes`, and what is ordered of it."""

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

    def order(self, do: str, **arguments: object) -> None:
        """Have it do something; `answer` waits for that."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return what came of the order. Raises CountError where the process has failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CountError(f"the process {self.name} has failed")
        return json.loads(line)

    def ask(self, do: str, **arguments: object) -> Any:
        """Have it do something, and return what came of it."""
        self.order(do, **arguments)
        return self.answer()


class Run:
    """One client's readers, for a while."""

    def __init__(
        self, sizes: Sizes, url: str, upstream: str, producer: Process, readers: list[Process], kept: str
    ) -> None:
        self._sizes = sizes
        self._url = url
        self._upstream = upstream
        self._producer = producer
        self._readers = readers
        self._coming = {"kept": kept, "upstream": f"{upstream}/stream?events=2&batch=1"}
        self._control = Control(upstream)

    def paced(self) -> dict[str, float]:
        """Measure what is sent at a pace, and newcomers."""
        sizes = self._sizes
        _, group = self._open(sizes.events, 1 / sizes.rate)
        seconds = sizes.events / sizes.rate
        silent = [
            second
            for reader in self._readers
            for second in reader.ask("come", newcomers=sizes.newcomers, names=_name(), **self._coming)["begun"]
        ]
        for reader in self._readers:
            reader.ask("go", newcomers=sizes.newcomers, names=_name(), seconds=0.7 * seconds, **self._coming)
        self._control.ask("/start", group=group)
        time.sleep(seconds / 2)
        held = self._connections()
        ends = self._end()
        late = sorted(us for end in ends for us in end["late_us"])
        waited = {"silence": silent}
        for what in ("kept", "begun", "alone"):
            waited[what] = [second for end in ends for second in end["newcomers"][what]]
        return {
            "taken_each_second": len(late) / seconds,
            "p50_ms": percentile(late, 50) / 1e3,
            "p99_ms": percentile(late, 99) / 1e3,
            "worst_ms": percentile(late, 100) / 1e3,
            "cpu_s": sum(end["cpu"] for end in ends),
            "producer_cpu_s": self._producer_cpu,
            "connections": max(held[reader.name] for reader in self._readers),
            **{f"{what}_ms": statistics.median(waits) * 1e3 for what, waits in waited.items() if waits},
        }

    def burst(self) -> dict[str, float]:
        """Measure how much comes through."""
        events = self._sizes.burst
        keys, group = self._open(events, 0)
        for reader in self._readers:
            reader.ask("go", newcomers=0, names="", seconds=0, **self._coming)
        self._control.ask("/start", group=group)
        written = self._when_written(keys, events)
        ends = self._end()
        began = min(end["first_at"] for end in ends) / 1e9
        taken = sum(len(end["late_us"]) for end in ends)
        seconds = max(end["last_at"] for end in ends) / 1e9 - began
        return {
            "taken_each_second": taken / seconds,
            "written_each_second": events * len(keys) / (written - began),
            "seconds": seconds,
            "cpu_s": sum(end["cpu"] for end in ends),
            "producer_cpu_s": self._producer_cpu,
        }

    def _open(self, events: int, interval: float) -> tuple[list[str], str]:
        """Begin the streams, which wait, and open all readers."""
        keys = [_name() for _ in range(self._sizes.keys)]
        group = _name()
        upstream = f"{self._upstream}/join?group={group}&size={len(keys)}&events={events}&interval={interval}"
        self._producer.ask("begin", keys=keys, upstream=upstream)
        # One reader of each key after the other, as they would come to four workers.
        wanted = [key for key in keys for _ in range(self._sizes.readers_of_each)]
        for at, reader in enumerate(self._readers):
            reader.order("open", keys=wanted[at :: len(self._readers)], events=events)
        for reader in self._readers:
            reader.answer()
        return keys, group

    def _end(self) -> list[Any]:
        for reader in self._readers:
            reader.order("end")
        ends = [reader.answer() for reader in self._readers]
        self._producer_cpu: float = self._producer.ask("end")
        return ends

    def _connections(self) -> Counter[str]:
        """Return how many each process holds."""
        with redis.Redis.from_url(self._url) as client:
            return Counter(found["name"] for found in client.client_list())

    def _when_written(self, keys: list[str], events: int) -> float:
        """Return when all events were there."""
        names = [f"{PREFIX}:{{{key}}}:events" for key in keys]
        with redis.Redis.from_url(self._url) as client:
            count = client.register_script(COUNT)
            # The entry that begins a stream is none.
            while count(names) < (events + 1) * len(keys):
                time.sleep(POLL_SECONDS)
            return time.monotonic()


def _name() -> str:
    return f"bench-{next(_numbers)}"


def _run(bench: Bench) -> None:
    """Measure both workloads: the same processes have the one, then the other."""
    measure(bench, QUICK if bench.quick else FULL)


_SHARED = (
    Column("cpu_s", "CPU s", ".2f"),
    Column("cpu_s", "x each", ".2f", EACH),
    Column("producer_cpu_s", "producer's", ".2f"),
)
PACED = Workload(
    "resume paced",
    "resume: events at a pace",
    (
        Column("taken_each_second", "taken/s", ",.0f"),
        Column("p50_ms", "p50 ms", ".2f"),
        Column("p50_ms", "x each", ".2f", EACH),
        Column("p99_ms", "p99 ms", ".2f"),
        Column("p99_ms", "x each", ".2f", EACH),
        *_SHARED,
        Column("connections", "connections a process", ".0f"),
        Column("kept_ms", "newcomers: kept ms", ".1f"),
        Column("begun_ms", "begun", ".1f"),
        Column("silence_ms", "silence", ".1f"),
        Column("alone_ms", "alone", ".1f"),
    ),
    _run,
)
BURST = Workload(
    "resume burst",
    "resume: a burst",
    (
        Column("taken_each_second", "taken/s", ",.0f"),
        Column("taken_each_second", "x each", ".2f", EACH),
        Column("written_each_second", "written/s", ",.0f"),
        Column("seconds", "seconds", ".2f"),
        *_SHARED,
    ),
    _run,
)


if __name__ == "__main__":
    main()
