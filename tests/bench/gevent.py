"""How long other greenlets wait while 200 streams are open in one gunicorn gevent worker.

    python -m tests.bench.gevent [--streams 200] [--asks 500]

A view that does nothing is asked, one time after another on one connection: by itself, and while
the streams are relayed, one event each every 100 ms.
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
    parser.add_argument("--streams", type=int, default=200, help="how many are open (200)")
    parser.add_argument("--asks", type=int, default=500, help="how often the view is asked, for each figure (500)")
    options = parser.parse_args()
    with Servers() as servers, SSEServer(ticking) as upstream, ExitStack() as stack:
        url = servers["gunicorn gevent"].url
        print(f"alone: {told(asked(url, options.asks))}")
        relayed = f"{url}/relay?{urlencode({'upstream': upstream.url})}"
        readers = [stack.enter_context(reading(relayed)) for _ in range(options.streams)]
        for reader in readers:
            reader.event()
        counting = _Counting(readers)
        counting.start()
        print(f"beside {options.streams} streams: {told(asked(url, options.asks))}")
        events = counting.stop()
        print(f"which gave {events:.0f} events a second, of {options.streams / EVENT_SECONDS:.0f} that were sent")


def ticking(request: ReceivedRequest) -> Iterator[Step]:
    """One event after another."""
    while True:
        yield send({"n": 1})
        yield wait(EVENT_SECONDS)


class _Counting(threading.Thread):
    """Reads all of them in turn, so that nothing is held back."""

    def __init__(self, readers: list[Reader]) -> None:
        super().__init__(daemon=True)
        self._readers = readers
        self._ends = threading.Event()
        self._events = 0
        self._began_at = time.monotonic()

    def run(self) -> None:
        while not self._ends.is_set():
            for reader in self._readers:
                reader.event()
                self._events += 1

    def stop(self) -> float:
        """End, and return how many events came each second."""
        seconds = time.monotonic() - self._began_at
        self._ends.set()
        self.join()
        return self._events / seconds


def asked(url: str, times: int) -> list[float]:
    """Return the seconds that each answer took."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    seconds = []
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)) as connection:
        for _ in range(times):
            began = time.monotonic()
            connection.request("GET", "/nothing")
            connection.getresponse().read()
            seconds.append(time.monotonic() - began)
    return seconds


def told(seconds: list[float]) -> str:
    """Return the median, the 99th percentile and the worst, in milliseconds."""
    quantiles = statistics.quantiles(seconds, n=100)
    return f"p50 {quantiles[49] * 1000:.1f} ms, p99 {quantiles[98] * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms"


if __name__ == "__main__":
    main()
