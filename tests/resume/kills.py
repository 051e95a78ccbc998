"""A long run: randomly killed producers, and readers that leave and return; no event is lost, repeated or reordered.

`python -m tests.resume.kills 1000 SEED` kills 1000 producer processes with kill -9, while a proxy cuts connections to
Redis in mid-message. Every few seconds Redis is disturbed: it is killed and restarted, fails over to its replica, is
partitioned from its clients, closes their connections (CLIENT KILL), or loses leases as by eviction. At the end the ids
that each reader received are compared with the entries in Redis.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import forkserver
from typing import Any

from sseqbridge import Bridge, EventStream, LogError, ProducerLostError, SSEError, request_sse
from sseqbridge.resume import Log, RedisLog
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send, wait
from tests.leaks import shared
from tests.redis_support import Proxy, RedisServer, redis_server

from .failovers import command, fail_over

__all__ = ["Tally", "run"]

_EVENTS = 30
_LEASE = 0.6
# An upper limit for each stream, also on a busy machine.
_SECONDS = 120.0


@dataclass
class Tally:
    """The counts of a run, and how the readers ended."""

    kills: int = 0
    disturbances: collections.Counter[str] = field(default_factory=collections.Counter)
    cuts: int = 0
    events: int = 0
    ends: collections.Counter[str] = field(default_factory=collections.Counter)


class CuttingProxy(Proxy):
    """Cuts connections to a port after a random number of bytes, in either direction."""

    def __init__(self, port: int, seed: int) -> None:
        self.cuts = 0
        # Cleared during a partition.
        self.carries = threading.Event()
        self.carries.set()
        self._chance = random.Random(seed)
        super().__init__(port)

    def _limit(self) -> int:
        # Half of the connections are never cut, so that the run makes progress.
        return int(self._chance.expovariate(1 / 60_000)) if self._chance.random() < 0.5 else sys.maxsize

    def _was_cut(self) -> None:
        self.cuts += 1

    def _wait_to_carry(self) -> None:
        self.carries.wait()


class Disturber:
    """Disturbs a Redis and its replica, in a thread, until the end of a `with` block."""

    def __init__(self, nodes: list[RedisServer], proxy: CuttingProxy, chance: random.Random) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        # The master is the first.
        self._nodes = nodes
        self._proxy = proxy
        self._chance = chance
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    def __enter__(self) -> Disturber:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._has_ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def master(self) -> RedisServer:
        return self._nodes[0]

    def _run(self) -> None:
        ways = [self._restart, self._fail_over, self._part, self._close_connections, self._evict]
        try:
            while not self._has_ended.wait(0.5 + 1.5 * self._chance.random()):
                way = self._chance.choice(ways)
                way()
                self.counts[way.__name__.strip("_").replace("_", " ")] += 1
        except BaseException as error:
            self._error = error

    def _restart(self) -> None:
        self.master.kill()
        self._has_ended.wait(0.2 * self._chance.random())
        self.master.start()
        # It may have begun as the replica.
        command(self.master, "REPLICAOF", "NO", "ONE")

    def _fail_over(self) -> None:
        """Fail over in order, as an operator does: a failover that loses entries is an EventsLostError for readers."""
        old, new = self._nodes
        command(new, "REPLICAOF", "127.0.0.1", old.port)
        fail_over(old, new)
        self._nodes.reverse()
        self._proxy.target = new.port

    def _part(self) -> None:
        self._proxy.carries.clear()
        self._has_ended.wait(0.5 * self._chance.random())
        self._proxy.carries.set()

    def _close_connections(self) -> None:
        with self.master.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")

    def _evict(self) -> None:
        with self.master.client() as client:
            for key in client.scan_iter("*:lease", count=1000):
                client.delete(key)


def _script(request: ReceivedRequest) -> Iterator[Step]:
    chance = random.Random(request.path)
    for number in range(_EVENTS):
        yield send({"path": request.path, "number": number})
        if chance.random() < 0.5:
            yield wait(chance.random() * 0.02)
    yield send("[DONE]")


def _produce(redis_url: str, upstream: str, key: str) -> None:
    """The main function of a process that will be killed."""
    logging.disable()
    try:
        with RedisLog.from_url(redis_url, lease=_LEASE) as log:
            log.produce(key, lambda: request_sse(f"{upstream}/{key}"), takeover=True)
    except SSEError:
        sys.exit(1)


class Round:
    """One stream: killed producers one after another, then one that ends it, and readers during all of that."""

    def __init__(self, number: int, seed: int, kills: int, logs: list[Log], redis_url: str, upstream: str) -> None:
        self.key = f"k{number}"
        self._chance = random.Random(f"{seed} {number}")
        self._kills = kills
        self._logs = logs
        self._redis_url = redis_url
        self._upstream = upstream
        self.ends: collections.Counter[str] = collections.Counter()
        self.received: list[tuple[list[str], str]] = []

    def run(self) -> None:
        deadline = time.monotonic() + _SECONDS
        readers = ThreadPoolExecutor(4)
        reading = [readers.submit(self._read, random.Random(self._chance.random()), deadline) for _ in range(4)]
        context = multiprocessing.get_context("forkserver")
        for kill in range(self._kills + 1):
            process = context.Process(target=_produce, args=(self._redis_url, self._upstream, self.key), daemon=True)
            process.start()
            if kill < self._kills:
                process.join(self._chance.random() * 0.35)
                process.kill()
                process.join()
                # Usually the lease expires.
                time.sleep(_LEASE if self._chance.random() < 0.7 else 0.05)
            else:
                process.join(max(0.1, deadline - time.monotonic()))
                assert not process.is_alive(), f"{self.key}: a producer hangs"
        # The last producer may have found a live lease: end the stream now.
        self._end(deadline)
        for result in reading:
            result.result(max(0.1, deadline - time.monotonic()))
        readers.shutdown()

    def _end(self, deadline: float) -> None:
        start: Callable[[], Any] = lambda: request_sse(f"{self._upstream}/{self.key}")  # noqa: E731
        while time.monotonic() < deadline:
            try:
                self._logs[0].produce(self.key, start, takeover=True)
                with self._logs[0].open(self.key, decode="event", wait=0) as events:
                    events.collect()
                return
            except (ProducerLostError, LogError):
                time.sleep(0.05)
        raise AssertionError(f"{self.key}: it does not end")

    def _read(self, chance: random.Random, deadline: float) -> None:
        """Read to the end; resume after the last id after each loss, and after leaving at random."""
        ids: list[str] = []
        last_id: str | None = None
        while True:
            assert time.monotonic() < deadline, f"{self.key}: a reader hangs"
            try:
                with chance.choice(self._logs).open(self.key, decode="event", last_event_id=last_id, wait=5) as events:
                    end = self._follow(events, chance, ids)
            except SSEError as error:
                end = f"{type(error).__name__}: {error}"
                events = None
            if events is not None:
                last_id = events.last_event_id or last_id
            self.ends[end.split(":")[0]] += 1
            if end in ("done", "eof"):
                self.received.append((ids, end))
                return
            if end.split(":")[0] not in ("left", "ProducerLostError", "StreamNotFoundError", "LogUnavailableError"):
                raise AssertionError(f"{self.key}: a reader ended by {end} after {last_id} with {ids}")

    @staticmethod
    def _follow(events: EventStream[Any], chance: random.Random, ids: list[str]) -> str:
        try:
            while True:
                if chance.random() < 0.02:
                    return "left"
                ids.append(events.next(timeout=_SECONDS).id)
        except StopIteration:
            return str(events.outcome)
        except SSEError as error:
            return f"{type(error).__name__}: {error}"

    def check(self, entries: list[tuple[str, dict[str, str]]]) -> int:
        """Compare the received ids with the log's entries; return the number of received events."""
        written = [entry_id for entry_id, fields in entries if "data" in fields]
        # Readers get an event for each start of the stream except the first.
        restarts = [entry_id for entry_id, fields in entries if "begin" in fields][1:]
        expected = [entry_id for entry_id, _ in entries if entry_id in {*written, *restarts}]
        for ids, _ in self.received:
            assert ids == expected, f"{self.key}: {ids} and not {expected}"
        by_fence = collections.Counter(entry_id.partition("-")[0] for entry_id in written)
        numbers = [int(fields["data"].split('"number":')[1].rstrip("}")) for _, fields in entries if "data" in fields]
        at = 0
        for count in by_fence.values():
            assert numbers[at : at + count] == list(range(count)), f"{self.key}: {numbers}"
            at += count
        assert numbers[-1] == _EVENTS - 1, f"{self.key} ends with {numbers[-1]}"
        return len(expected) * len(self.received)


def run(kills: int, seed: int, *, at_once: int = 16, disturbs: bool = True) -> Tally:
    """Kill `kills` producers. Raises AssertionError for a lost, repeated or reordered event, and for a hang."""
    tally = Tally()
    chance = random.Random(seed)
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, "sseqbridge.resume.redis"])
    with shared("session"):
        # The fork server runs until the end of the session.
        forkserver.ensure_running()
    with (
        redis_server("--repl-diskless-sync-delay", "0") as master,
        redis_server("--replicaof", "127.0.0.1", str(master.port)) as replica,
        SSEServer(_script) as upstream,
        Bridge() as one,
        Bridge() as other,
    ):
        proxy = CuttingProxy(master.port, seed)
        disturber = Disturber([master, replica], proxy, chance)
        url = f"redis://127.0.0.1:{proxy.port}" if disturbs else master.url
        rounds: list[Round] = []
        with (
            disturber if disturbs else contextlib.nullcontext(),
            RedisLog.from_url(url, lease=_LEASE, bridge=one) as log,
            RedisLog.from_url(url, lease=_LEASE, bridge=other) as another,
            ThreadPoolExecutor(at_once) as pool,
        ):
            while tally.kills < kills:
                times = min(kills - tally.kills, 1 + len(rounds) % 3)
                rounds.append(Round(len(rounds), seed, times, [log, another], url, upstream.url))
                tally.kills += times
            for result in [pool.submit(each.run) for each in rounds]:
                result.result()
        with disturber.master.client() as client:
            for each in rounds:
                entries: Any = client.xrange(f"sseqbridge:{{{each.key}}}:events")
                tally.events += each.check(entries)
                tally.ends += each.ends
        tally.cuts, tally.disturbances = proxy.cuts, disturber.counts
        proxy.close()
    return tally


def main() -> None:
    """Run from the command line, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.resume.kills", description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=1000)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    options = parser.parse_args()
    logging.disable()
    began = time.monotonic()
    tally = run(options.kills, options.seed)
    print(
        f"{tally.kills} producers killed, {tally.cuts} connections cut in {time.monotonic() - began:.0f} s; "
        f"{tally.events} events received, each once and in order"
    )
    for name, count in tally.disturbances.most_common():
        print(f"{name:>22} {count}")
    for end, count in tally.ends.most_common():
        print(f"{end:>22} {count}")


if __name__ == "__main__":
    main()
