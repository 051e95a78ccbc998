"""Clients of httpx, httpx2 and openai on a BridgeTransport, beside each package's own transport in the same run.

JSON requests with one thread and with eight, a streamed burst read by lines, over HTTP and TLS, and OpenAI's stream.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .meter import Meter, check_count, count
from .peers import TIMEOUT_SECONDS
from .runner import Bench, Column, Configuration, Control, Workload

__all__ = ["CASES", "CLIENTS", "CONFIGURATIONS", "PACKAGES", "WORKLOAD", "measure", "names"]

PACKAGES = ("httpx", "httpx2")
CASES = ("JSON, 1 thread", "JSON, 8 threads", "burst, HTTP", "burst, TLS", "openai")


def names(package: str) -> tuple[str, str]:
    """Return the names of a package's clients: on a BridgeTransport, and on its own transport."""
    return f"{package}, BridgeTransport", f"{package}, own transport"


CONFIGURATIONS = tuple(
    Configuration(name, name, (package, "uvloop")) for package in PACKAGES for name in names(package)
)


def _client(package: str, *, is_ours: bool) -> Any:
    module = import_module(package)
    if is_ours:
        from sseqbridge import BridgeTransport

        return module.Client(transport=BridgeTransport(), timeout=TIMEOUT_SECONDS)
    limits = module.Limits(max_connections=None, max_keepalive_connections=None)
    return module.Client(limits=limits, timeout=TIMEOUT_SECONDS)


CLIENTS: dict[str, Callable[[], Any]] = {
    name: (lambda package=package, is_ours=is_ours: _client(package, is_ours=is_ours))  # type: ignore[misc]
    for package in PACKAGES
    for name, is_ours in zip(names(package), (True, False), strict=True)
}


def run(bench: Bench) -> None:
    """Measure every case with both transports of both packages; openai is one of httpx2's."""
    requests, events = (60, 2_000) if bench.quick else (3_000, 50_000)
    for events_of_a_stream in (1, events):
        Control(bench.upstream.http).prepare_burst(events_of_a_stream, 1)
    for case, threads in (("JSON, 1 thread", 1), ("JSON, 8 threads", 8)):
        bench.measure_each("sdk", case, bench.upstream.http, {"requests": requests, "threads": threads}, CONFIGURATIONS)
    for scheme, url in bench.schemes():
        bench.measure_each("sdk", f"burst, {scheme}", url, {"events": events}, CONFIGURATIONS)
    if bench.importable("openai"):
        of_httpx2 = [one for one in CONFIGURATIONS if one.name in names("httpx2")]
        bench.measure_each("sdk", "openai", bench.upstream.http, {"events": events // 5, "is_openai": 1}, of_httpx2)


def measure(
    client: Any, url: str, *, requests: int = 0, threads: int = 1, events: int = 0, is_openai: int = 0
) -> dict[str, float]:
    """Measure the requests or the events of one case, after a few others."""
    if requests:
        return {"per_s": requests / _ask(client, f"{url}/json", requests, threads)}
    read = _openai_reader(client, url) if is_openai else _line_reader(client, url)
    read(events)
    meter = Meter()
    check_count(read(events), events)
    wall, _ = meter.read()
    return {"per_s": events / wall}


def _ask(client: Any, url: str, requests: int, threads: int) -> float:
    def ask(number: int) -> None:
        for _ in range(number):
            client.get(url).json()

    ask(requests // 10)
    meter = Meter()
    workers = [threading.Thread(target=ask, args=(requests // threads,)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return meter.read()[0]


def _line_reader(client: Any, url: str) -> Callable[[int], int]:
    def read(events: int) -> int:
        with client.stream("GET", f"{url}/stream?events={events}&batch=1") as response:
            # Every event has a line and an empty one; the last event is `[DONE]`.
            return count(line for line in response.iter_lines() if line) - 1

    return read


def _openai_reader(client: Any, url: str) -> Callable[[int], int]:
    openai = import_module("openai")
    sdk = openai.OpenAI(base_url=url, api_key="none", http_client=client)
    stream = openai.Stream[import_module("openai.types.chat").ChatCompletionChunk]

    def read(events: int) -> int:
        chunk = import_module("openai.types.chat").ChatCompletionChunk
        path = f"/stream?events={events}&batch=1"
        return count(itertools.islice(sdk.get(path, cast_to=chunk, stream=True, stream_cls=stream), events + 1))

    return read


WORKLOAD = Workload(
    "sdk",
    "sdk: JSON requests, or events, a second",
    (
        Column("per_s", "a second", ",.0f"),
        *(Column("per_s", f"x {names(package)[1]}", ".2f", names(package)[1]) for package in PACKAGES),
    ),
    run,
)
