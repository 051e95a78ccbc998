"""Latency of other requests while one gunicorn gevent worker relays 200 streams.

    python -m tests.bench.gevent [--streams 200] [--requests 500]

A view that does nothing gets one request after another on one connection: first without any stream, then while the
streams are relayed, each with an event every 100 ms.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlencode, urlsplit

from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send, wait
from tests.servers import Reader, Servers, reading

__all__ = ["main"]

EVENT_SECONDS = 0.1


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gevent", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="number of open streams (200)")
    parser.add_argument("--requests", type=int, default=500, help="number of requests for each figure (500)")
    options = parser.parse_args()
    with Servers() as servers, SSEServer(ticking) as upstream, ExitStack() as stack:
        url = servers["gunicorn gevent"].url
        print(f"without streams: {summary(response_times(url, options.requests))}")
        relayed = f"{url}/relay?{urlencode({'upstream': upstream.url})}"
        readers = [stack.enter_context(reading(relayed)) for _ in range(options.streams)]
        for reader in readers:
            reader.event()
        counter = _EventCounter(readers)
        counter.start()
        print(f"with {options.streams} streams: {summary(response_times(url, options.requests))}")
        events = counter.stop()
        print(f"received {events:.0f} events a second, sent {options.streams / EVENT_SECONDS:.0f}")


def ticking(request: ReceivedRequest) -> Iterator[Step]:
    """Send an event every EVENT_SECONDS."""
    while True:
        yield send({"n": 1})
        yield wait(EVENT_SECONDS)


class _EventCounter(threading.Thread):
    """Reads all streams in turn, so that none is under backpressure, and counts their events."""

    def __init__(self, readers: list[Reader]) -> None:
        super().__init__(daemon=True)
        self._readers = readers
        self._is_stopped = threading.Event()
        self._events = 0
        self._started_at = time.monotonic()

    def run(self) -> None:
        while not self._is_stopped.is_set():
            for reader in self._readers:
                reader.event()
                self._events += 1

    def stop(self) -> float:
        """Stop the thread, and return the number of events per second."""
        seconds = time.monotonic() - self._started_at
        self._is_stopped.set()
        self.join()
        return self._events / seconds


def response_times(url: str, requests: int) -> list[float]:
    """Send requests one after another, and return the seconds until each response was read."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    seconds = []
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)) as connection:
        for _ in range(requests):
            sent_at = time.monotonic()
            connection.request("GET", "/nothing")
            connection.getresponse().read()
            seconds.append(time.monotonic() - sent_at)
    return seconds


def summary(seconds: list[float]) -> str:
    """Return the median, the 99th percentile and the maximum, in milliseconds."""
    quantiles = statistics.quantiles(seconds, n=100)
    return f"p50 {quantiles[49] * 1000:.1f} ms, p99 {quantiles[98] * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms"


if __name__ == "__main__":
    main()
