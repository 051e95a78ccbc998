"""The processes of `tests.bench.resume`: one that writes streams into Redis, and those that read them.

    python -m tests.bench.resume_processes producer URL NAME
    python -m tests.bench.resume_processes READERS URL NAME        READERS is one of log, each, one

Each takes orders, a JSON line each with the name of a method and its arguments, and prints a JSON line once it is
done. It serves until its standard input ends. NAME is what its connections tell Redis, `log`, `each` and `one` are:

    log     this library's, a thread a reader
    each    redis-py with a connection and an XREAD for each reader, a thread a reader
    one     redis-py with one XREAD over all keys, whose events go to nobody: what fanning out costs nothing

Rule: what is done for each event is the same in all of them, decoding it and looking at the clock.
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

# An event's key, and what it holds.
Deliveries = Generator[tuple[str, dict[str, Any]], None, None]


def main() -> None:
    """Be what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.resume_processes", description=__doc__)
    parser.add_argument("kind", choices=["producer", *READERS])
    parser.add_argument("url")
    parser.add_argument("name")
    options = parser.parse_args()
    raise_file_limit()
    if options.kind == "producer":
        serve(Producing(options.url, options.name))
    else:
        serve(Reading(READERS[options.kind](options.url, options.name)))


def serve(server: object) -> None:
    """Do what is ordered."""
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(server, order.pop("do"))(**order)), flush=True)


def open_log(url: str, name: str) -> RedisLog:
    """Return the log, whose connections have a name."""
    return RedisLog.from_url(url, prefix=PREFIX, client_options={"client_name": name})


class Producing:
    """Writes streams, a thread for each that waits until it is over."""

    def __init__(self, url: str, name: str) -> None:
        self._log = open_log(url, name)
        self._meter = Meter()
        self._threads: list[threading.Thread] = []

    def begin(self, keys: Sequence[str], upstream: str) -> None:
        """Begin to write each of the keys what the upstream sends."""
        self._threads = [threading.Thread(target=self._produce, args=(key, upstream)) for key in keys]
        for thread in self._threads:
            thread.start()
        self._meter = Meter()

    def _produce(self, key: str, upstream: str) -> None:
        try:
            outcome = self._log.produce(key, lambda: request_sse(upstream))
            if outcome != "done":
                raise CountError(f"a stream ended as {outcome!r}")
        except BaseException:
            fail()

    def end(self) -> float:
        """Wait until all are written, and return the CPU seconds since they began."""
        for thread in self._threads:
            thread.join()
        return self._meter.read()[1]


def fail() -> None:
    """Tell why, and end this process: the others would wait for what does not come."""
    traceback.print_exc()
    os._exit(1)


class LogReaders:
    """Readers of this library's."""

    has_threads = True

    def __init__(self, url: str, name: str) -> None:
        self._log = open_log(url, name)

    def follow(self, keys: Sequence[str], is_there: Callable[[], object]) -> Deliveries:
        """Yield what comes of the one key, to its end; `is_there` is called once the stream has begun."""
        (key,) = keys
        events = self._log.open(key)
        is_there()
        for chunk in events:
            yield key, chunk

    def begin(self, key: str, upstream: str) -> Deliveries:
        """Begin a stream, and yield what comes of it."""
        with self._log.open(key, lambda: request_sse(upstream)) as events:
            for chunk in events:
                yield key, chunk


class PlainReaders:
    """An XREAD BLOCK loop of redis-py's for each call of `follow`."""

    has_threads = True

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name

    def follow(self, keys: Sequence[str], is_there: Callable[[], object]) -> Deliveries:
        """Yield what comes of the keys, to their ends; `is_there` is called once all have begun."""
        decode = msgspec.json.Decoder().decode
        named = {f"{PREFIX}:{{{key}}}:events".encode(): key for key in keys}
        positions: dict[Any, Any] = dict.fromkeys(named, "0-0")
        to_begin = set(named)
        # RESP2, whose answers redis-py need not turn into what they are in Python.
        with redis.Redis.from_url(self._url, client_name=self._name, protocol=2) as client:
            while positions:
                reply: Any = client.xread(positions, READ_AT_A_TIME, BLOCK_MILLISECONDS)
                for name, entries in reply:
                    for positions[name], fields in entries:
                        if b"data" in fields:
                            yield named[name], decode(fields[b"data"])
                        elif b"begin" in fields:
                            to_begin.discard(name)
                            if not to_begin:
                                is_there()
                        else:
                            del positions[name]


class OneReader(PlainReaders):
    """One for all keys of the process."""

    has_threads = False


READERS: dict[str, Callable[[str, str], LogReaders | PlainReaders]] = {
    "log": LogReaders,
    "each": PlainReaders,
    "one": OneReader,
}


class Reading:
    """A process's readers."""

    def __init__(self, readers: LogReaders | PlainReaders) -> None:
        self._readers = readers
        self._follows: list[_Follow] = []
        self._newcomers: list[_Newcomers] = []
        self._meter = Meter()

    def open(self, keys: Sequence[str], events: int) -> None:
        """Open a reader of each of the keys, a key as often as it is named, and wait until all have begun."""
        groups = [[key] for key in keys] if self._readers.has_threads else [list(dict.fromkeys(keys))]
        self._follows = [_Follow(self._readers, group, events) for group in groups]
        for follow in self._follows:
            follow.start()
        for follow in self._follows:
            follow.is_there.wait()

    def go(self, newcomers: int, kept: str, names: str, upstream: str, seconds: float) -> None:
        """Count from now on; let newcomers come meanwhile, spread over so many seconds."""
        self._meter = Meter()
        self._newcomers = [_Newcomers(self._readers, newcomers, kept, names, upstream, seconds)]
        self._newcomers[0].start()

    def come(self, newcomers: int, kept: str, names: str, upstream: str) -> dict[str, list[float]]:
        """Let newcomers come now, and return their seconds, but for the first's, who pays for what all share."""
        coming = _Newcomers(self._readers, newcomers + 1, kept, names, upstream, 0.0)
        coming.start()
        coming.join()
        return {what: seconds[1:] for what, seconds in coming.seconds.items()}

    def end(self) -> dict[str, Any]:
        """Wait for the last events, and return what was measured from `go` on."""
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
    """One reader, and how late each event came to it, in nanoseconds."""

    def __init__(self, readers: LogReaders | PlainReaders, keys: Sequence[str], events: int) -> None:
        super().__init__()
        self.is_there = threading.Event()
        self.had_last = threading.Event()
        self.late = array("q", bytes(8 * events * len(keys)))
        # When its first event was sent, and when its last one came.
        self.first_at = self.last_at = 0
        self._readers = readers
        self._keys = keys

    def run(self) -> None:
        try:
            late, at, end = self.late, 0, len(self.late)
            for _, chunk in self._readers.follow(self._keys, self.is_there.set):
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
    """Readers that come one after the other, and the seconds that each waited for its first event.

    `kept`: of a stream that is there already. `begun`: of one that it begins. `alone`: of the upstream, without a log.
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
        self.seconds: dict[str, list[float]] = {"kept": [], "begun": [], "alone": []}
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
                self._come(f"{self._names}-{number}")
        except BaseException:
            fail()

    def _come(self, name: str) -> None:
        readers = self._readers
        self._time("kept", readers.follow([self._kept], _nothing))
        if isinstance(readers, LogReaders):
            self._time("begun", readers.begin(name, self._upstream))
            self._time("alone", _alone(self._upstream))

    def _time(self, what: str, deliveries: Deliveries) -> None:
        with closing(deliveries):
            began = time.perf_counter()
            next(deliveries)
            self.seconds[what].append(time.perf_counter() - began)


def _alone(upstream: str) -> Deliveries:
    with request_sse(upstream) as (_, _, events):
        for chunk in events:
            yield "", chunk


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
