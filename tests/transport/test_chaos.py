"""Streams that are closed at random moments, in many threads: each is complete or ends with an error.

`python -m tests.transport.test_chaos 10000 SEED` is the long run.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import Bridge, BridgeTransport, cancel_on
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, respond, send, silence, wait
from tests.support import until

THREADS = 20
EVENTS = 12
ENDS = ("end", "cut", "silence", "silent head")
WAYS = ("close in another thread", "leave", "drop", "scope", "read", "close before reading")


def answer(request: ReceivedRequest) -> Iterator[Step]:
    """Play the answer that the request's path names."""
    end, seed = request.path.strip("/").split("/")
    pauses = random.Random(seed)
    if end == "silent-head":
        yield silence()
    yield respond()
    for number in range(EVENTS):
        if pauses.random() < 0.2:
            yield wait(pauses.random() * 0.005)
        yield send("x" * pauses.choice((1, 100, 20_000)), id=str(number))
    if end == "end":
        yield send("[DONE]")
    else:
        yield cut() if end == "cut" else silence()


class Chaos:
    """A number of streams of two clients, and how each of them ended."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._seed = seed
        transport = BridgeTransport()
        self._clients: list[tuple[Any, Any]] = [
            (package, package.Client(transport=transport, timeout=60)) for package in (httpx, httpx2)
        ]
        self._closers = ThreadPoolExecutor(THREADS)
        self.results: Counter[str] = Counter()

    def run(self, streams: int) -> None:
        """Run the streams in 20 threads."""
        with self._closers, ThreadPoolExecutor(THREADS) as threads:
            for result in threads.map(self._stream, range(streams)):
                self.results[result] += 1
        for _, client in self._clients:
            client.close()

    def _stream(self, number: int) -> str:
        dice = random.Random(self._seed * 1_000_003 + number)
        package, client = dice.choice(self._clients)
        end, way = dice.choice(ENDS), dice.choice(WAYS)
        if way == "read" or (end == "silent head" and way != "scope"):
            # Nothing would end the others.
            end = dice.choice(ENDS[:2])
        url = f"{self._url}/{end.replace(' ', '-')}/{number}"
        flag = threading.Event()
        if way == "scope":
            self._closers.submit(_set_later, flag, dice.random() * 0.02)
            with cancel_on(flag) as scope:
                return self._read(package, client, url, end, "read", dice)
            assert scope.cancelled
            return "cancelled"
        return self._read(package, client, url, end, way, dice)

    def _read(self, package: Any, client: Any, url: str, end: str, way: str, dice: random.Random) -> str:
        try:
            response = client.send(client.build_request("GET", url), stream=True)
            if way == "close before reading":
                response.close()
                return "closed"
            if way == "close in another thread":
                self._closers.submit(_close_later, response, dice.random() * 0.02)
            elif way in ("leave", "drop"):
                # All of an answer may come in one piece.
                for _ in itertools.islice(response.iter_raw(), dice.randrange(2)):
                    pass
                if way == "leave":
                    response.close()
                return way
            text = response.read().decode()
        except (package.ReadError, package.StreamClosed, package.RemoteProtocolError) as error:
            return type(error).__name__
        # A clean end: every event has come, and the server had no other end in mind.
        ids = [line for line in text.splitlines() if line.startswith("id:")]
        assert (len(ids), text.endswith("data: [DONE]\n\n"), end) == (EVENTS, True, "end"), (url, len(ids))
        return "complete"


def _set_later(flag: threading.Event, seconds: float) -> None:
    time.sleep(seconds)
    flag.set()


def _close_later(response: Any, seconds: float) -> None:
    time.sleep(seconds)
    response.close()


def run(streams: int, seed: int) -> Counter[str]:
    """Run streams, check that nothing is left of them, and return how they ended."""
    with SSEServer(answer) as server:
        chaos = Chaos(server.url, seed)
        chaos.run(streams)
        gc.collect()
        until(lambda: Bridge.default().stats().open_streams == 0)
        until(lambda: server.open_requests == 0)
        assert Bridge.default().stats().buffered == 0
    return chaos.results


@pytest.mark.slow
def test_every_stream_is_complete_or_raises() -> None:
    results = run(300, seed=1)
    assert sum(results.values()) == 300
    assert {"complete", "cancelled", "closed", "leave", "drop", "ReadError", "RemoteProtocolError"} <= set(results)


def main() -> None:
    """Run the number of streams of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.transport.test_chaos", description=__doc__)
    parser.add_argument("streams", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=random.randrange(1_000_000))
    options = parser.parse_args()
    descriptors = partial(os.listdir, "/proc/self/fd")
    run(THREADS, options.seed)
    before, started_at = len(descriptors()), time.monotonic()
    results = run(options.streams, options.seed)
    # Idle connections expire after some seconds.
    until(lambda: len(descriptors()) <= before)
    threads = [thread.name for thread in threading.enumerate()]
    print(f"seed {options.seed}: {dict(results)}, {time.monotonic() - started_at:.0f} s, threads left: {threads}")


if __name__ == "__main__":
    main()
