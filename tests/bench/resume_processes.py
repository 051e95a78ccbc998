"""The processes of `tests.bench.resume`: one that writes streams into Redis, and others that read them.

    python -m tests.bench.resume_processes producer URL NAME
    python -m tests.bench.resume_processes READERS URL NAME        READERS is one of log, each, one

Each line of standard input is a call in JSON: the name of a method and its arguments. The process prints the result of
each call as a line of JSON, and serves until its standard input ends. NAME is the client name of its connections to
Redis. The readers are:

    log     this library's, with a thread per reader
    each    redis-py with a connection, an XREAD and a thread per reader
    one     redis-py with one XREAD over all keys, without fan-out to readers

Invariant: all of them do the same for each event: they decode it and read the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import msgspec
import redis

from sseqbridge import request_sse
from sseqbridge.resume import RedisLog

from .meter import CountError, Meter, check_count
from .upstream import raise_file_limit

__all__ = ["PREFIX", "main"]

PREFIX = "bench"
BLOCK_MILLISECONDS = 2000
READ_AT_A_TIME = 1000

# The key of an event, and its JSON.
Deliveries = Generator[tuple[str, dict[str, Any]], None, None]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.resume_processes", description=__doc__)
    parser.add_argument("kind", choices=["producer", *READERS])
    parser.add_argument("url")
    parser.add_argument("name")
    options = parser.parse_args()
    raise_file_limit()
    if options.kind == "producer":
        serve(ProducerProcess(options.url, options.name))
    else:
        serve(ReaderProcess(READERS[options.kind](options.url, options.name)))


def serve(server: object) -> None:
    """Call methods of `server` until the standard input ends."""
    for line in sys.stdin:
        call = json.loads(line)
        print(json.dumps(getattr(server, call.pop("method"))(**call)), flush=True)


def open_log(url: str, name: str) -> RedisLog:
    """Return a log whose connections have this client name."""
    return RedisLog.from_url(url, prefix=PREFIX, client_options={"client_name": name})


class ProducerProcess:
    """Writes streams into a log, with a thread for each."""

    def __init__(self, url: str, name: str) -> None:
        self._log = open_log(url, name)
        self._meter = Meter()
        self._threads: list[threading.Thread] = []

    def begin(self, keys: Sequence[str], upstream: str) -> None:
        """Start to write a stream of the upstream for each of the keys."""
        self._threads = [threading.Thread(target=self._produce, args=(key, upstream)) for key in keys]
        for thread in self._threads:
            thread.start()
        self._meter = Meter()

    def _produce(self, key: str, upstream: str) -> None:
        try:
            outcome = self._log.produce(key, lambda: request_sse(upstream))
            if outcome != "done":
                raise CountError(f"a stream has the outcome {outcome!r}")
        except BaseException:
            fail()

    def end(self) -> float:
        """Wait until all streams are written, and return the CPU seconds since `begin`."""
        for thread in self._threads:
            thread.join()
        return self._meter.read()[1]


def fail() -> None:
    """Print the traceback and exit. Otherwise other threads would wait forever for the failed one."""
    traceback.print_exc()
    os._exit(1)


class LogReaders:
    """Readers of a RedisLog."""

    has_threads = True

    def __init__(self, url: str, name: str) -> None:
        self._log = open_log(url, name)

    def follow(self, keys: Sequence[str], on_begin: Callable[[], object]) -> Deliveries:
        """Yield the events of one key. Calls `on_begin` when the stream has begun."""
        (key,) = keys
        events = self._log.open(key)
        on_begin()
        for chunk in events:
            yield key, chunk

    def begin(self, key: str, upstream: str) -> Deliveries:
        """Begin a stream, and yield its events."""
        with self._log.open(key, lambda: request_sse(upstream)) as events:
            for chunk in events:
                yield key, chunk


class PlainReaders:
    """Readers of plain redis-py: each call of `follow` is an XREAD BLOCK loop."""

    has_threads = True

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name

    def follow(self, keys: Sequence[str], on_begin: Callable[[], object]) -> Deliveries:
        """Yield the events of all keys. Calls `on_begin` when all streams have begun."""
        decode = msgspec.json.Decoder().decode
        keys_by_name = {f"{PREFIX}:{{{key}}}:events".encode(): key for key in keys}
        positions: dict[Any, Any] = dict.fromkeys(keys_by_name, "0-0")
        to_begin = set(keys_by_name)
        # With RESP2 redis-py converts less.
        with redis.Redis.from_url(self._url, client_name=self._name, protocol=2) as client:
            while positions:
                reply: Any = client.xread(positions, READ_AT_A_TIME, BLOCK_MILLISECONDS)
                for name, entries in reply:
                    for positions[name], fields in entries:
                        if b"data" in fields:
                            yield keys_by_name[name], decode(fields[b"data"])
                        elif b"begin" in fields:
                            to_begin.discard(name)
                            if not to_begin:
                                on_begin()
                        else:
                            del positions[name]


class OneReader(PlainReaders):
    """One reader for all keys of the process."""

    has_threads = False


READERS: dict[str, Callable[[str, str], LogReaders | PlainReaders]] = {
    "log": LogReaders,
    "each": PlainReaders,
    "one": OneReader,
}


class ReaderProcess:
    """The readers of a process."""

    def __init__(self, readers: LogReaders | PlainReaders) -> None:
        self._readers = readers
        self._follows: list[_Follow] = []
        self._newcomers: list[_Newcomers] = []
        self._meter = Meter()

    def open(self, keys: Sequence[str], events: int) -> None:
        """Open a reader for each entry of `keys`, which may repeat, and wait until all streams have begun."""
        groups = [[key] for key in keys] if self._readers.has_threads else [list(dict.fromkeys(keys))]
        self._follows = [_Follow(self._readers, group, events) for group in groups]
        for follow in self._follows:
            follow.start()
        for follow in self._follows:
            follow.has_begun.wait()

    def start_counting(self, newcomers: int, kept: str, names: str, upstream: str, seconds: float) -> None:
        """Start to measure CPU time, and let newcomers arrive during the next `seconds`."""
        self._meter = Meter()
        self._newcomers = [_Newcomers(self._readers, newcomers, kept, names, upstream, seconds)]
        self._newcomers[0].start()

    def measure_newcomers(self, newcomers: int, kept: str, names: str, upstream: str) -> dict[str, list[float]]:
        """Let newcomers arrive now, and return their waits, without the first, which includes one-time costs."""
        arriving = _Newcomers(self._readers, newcomers + 1, kept, names, upstream, 0.0)
        arriving.start()
        arriving.join()
        return {kind: seconds[1:] for kind, seconds in arriving.seconds.items()}

    def end(self) -> dict[str, Any]:
        """Wait for the last events, and return the figures since `start_counting`."""
        for follow in self._follows:
            follow.had_last.wait()
        _, cpu = self._meter.read()
        for thread in (*self._follows, *self._newcomers):
            thread.join()
        late = array("q")
        for follow in self._follows:
            late.extend(follow.late)
        return {
            "late_us": [late // 1000 for late in sorted(late)],
            "cpu": cpu,
            "first_at": min(follow.first_at for follow in self._follows),
            "last_at": max(follow.last_at for follow in self._follows),
            "newcomers": self._newcomers[0].seconds,
        }


class _Follow(threading.Thread):
    """One reader, which records the delay of each event in nanoseconds."""

    def __init__(self, readers: LogReaders | PlainReaders, keys: Sequence[str], events: int) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self.had_last = threading.Event()
        self.late = array("q", bytes(8 * events * len(keys)))
        # The send time of the first event, and the arrival of the last.
        self.first_at = self.last_at = 0
        self._readers = readers
        self._keys = keys

    def run(self) -> None:
        try:
            late, at, end = self.late, 0, len(self.late)
            for _, chunk in self._readers.follow(self._keys, self.has_begun.set):
                now = time.monotonic_ns()
                late[at] = now - chunk["created"]
                at += 1
                if at == 1:
                    self.first_at = chunk["created"]
                if at == end:
                    self.last_at = now
                    self.had_last.set()
            check_count(at, end)
        except BaseException:
            fail()


class _Newcomers(threading.Thread):
    """Readers that arrive one after another, and the seconds until each had its first event.

    `kept`: of a complete stream. `begun`: of a stream that the reader begins. `direct`: of the upstream, without a log.
    """

    def __init__(
        self,
        readers: LogReaders | PlainReaders,
        number: int,
        kept: str,
        names: str,
        upstream: str,
        seconds: float,
    ) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {"kept": [], "begun": [], "direct": []}
        self._readers = readers
        self._number = number
        self._kept = kept
        self._names = names
        self._upstream = upstream
        self._pause = seconds / max(number, 1)

    def run(self) -> None:
        try:
            for number in range(self._number):
                time.sleep(self._pause)
                self._read_first_events(f"{self._names}-{number}")
        except BaseException:
            fail()

    def _read_first_events(self, name: str) -> None:
        readers = self._readers
        self._time("kept", readers.follow([self._kept], _ignore))
        if isinstance(readers, LogReaders):
            self._time("begun", readers.begin(name, self._upstream))
            self._time("direct", _direct(self._upstream))

    def _time(self, kind: str, deliveries: Deliveries) -> None:
        with closing(deliveries):
            started = time.perf_counter()
            next(deliveries)
            self.seconds[kind].append(time.perf_counter() - started)


def _direct(upstream: str) -> Deliveries:
    with request_sse(upstream) as (_, _, events):
        for chunk in events:
            yield "", chunk


def _ignore() -> None:
    pass


if __name__ == "__main__":
    main()
