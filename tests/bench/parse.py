"""The parsers of all clients, without a network, on recorded streams.

`python -m tests.bench.parse` is the process in which all parsers run in turn. Each gets bytes, and passes every event
to a loop.
"""

from __future__ import annotations

import argparse
import codecs
import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from .meter import CountError, Meter, count
from .recordings import RECORDINGS, Recording
from .runner import BASELINE, OURS, PLAIN, Bench, Column, Workload, rotated

__all__ = ["CASES", "WORKLOAD", "main"]

CHUNKINGS: dict[str, Callable[[Recording], list[bytes]]] = {
    "one event a chunk": lambda recording: list(recording.pieces),
    "64 KiB chunks": lambda recording: recording.in_chunks_of(65_536),
}
CASES = [f"{record(0).name}, {chunking}" for record in RECORDINGS for chunking in CHUNKINGS]

Parser = Callable[[list[bytes]], int]


def run(bench: Bench) -> None:
    """Measure every parser that is installed."""
    packages = ("httpx_sse", "httpx2", "requests_sse", "sseclient", "openai")
    arguments = [str(bench.rounds), str(100_000 if bench.quick else 4_000_000)]
    command = [sys.executable, "-m", "tests.bench.parse", *arguments, *bench.importable(*packages)]
    samples = bench.run_json(command, bench.environment(OURS[0]))
    if isinstance(samples, str):
        bench.record("parse", CASES[0], PLAIN, 0, samples)
        return
    for case, client, number, figures in samples:
        bench.record("parse", case, client, number, figures)


def our_parser() -> Parser:
    """Return sseqbridge's EventStreamParser, with a loop over each list that it returns."""
    from sseqbridge import EventStreamParser

    def parse(chunks: list[bytes]) -> int:
        feed = EventStreamParser().feed
        number = 0
        for chunk in chunks:
            for _ in feed(chunk):
                number += 1
        return number

    return parse


class Response:
    """The part of a response that httpx-sse and httpx2 read. Decodes text like httpx, without its other costs."""

    headers = {"content-type": "text/event-stream"}  # noqa: RUF012
    request = None

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def iter_text(self) -> Iterator[str]:
        """Return the text of the chunks."""
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        return map(decode, self._chunks)


def httpx_sse_parser() -> Parser:
    """Return httpx-sse's EventSource."""
    event_source = import_module("httpx_sse").EventSource
    return lambda chunks: count(event_source(Response(chunks)).iter_sse())


def httpx2_parser() -> Parser:
    """Return httpx2's EventSource."""
    event_source = import_module("httpx2").EventSource
    return lambda chunks: count(event_source(Response(chunks)))


def sseclient_parser() -> Parser:
    """Return sseclient-py's SSEClient, which takes any iterator of bytes."""
    client = import_module("sseclient").SSEClient
    return lambda chunks: count(client(iter(chunks)).events())


def openai_parser() -> Parser:
    """Return the decoder of openai.Stream."""
    decoder = import_module("openai._streaming").SSEDecoder
    return lambda chunks: count(decoder().iter_bytes(iter(chunks)))


def requests_sse_parser() -> Parser:
    """Return requests-sse's EventSource, over a session whose response has the chunks."""
    event_source = import_module("requests_sse").EventSource
    new_response = import_module("requests").Response

    class Raw:
        def __init__(self, chunks: list[bytes]) -> None:
            self._chunks = chunks

        def stream(self, size: int, decode_content: bool) -> Iterator[bytes]:
            return iter(self._chunks)

        def close(self) -> None:
            pass

        release_conn = close

    class Session:
        def __init__(self, chunks: list[bytes]) -> None:
            self._chunks = chunks

        def request(self, *arguments: Any, **named: Any) -> Any:
            response = new_response()
            response.status_code = 200
            response.url = "http://127.0.0.1/"
            response.headers["Content-Type"] = "text/event-stream"
            response.raw = Raw(self._chunks)
            return response

    class EndedError(Exception):
        pass

    def stop() -> None:
        raise EndedError

    def parse(chunks: list[bytes]) -> int:
        number = 0
        # At the end of the body it calls on_error, then would wait and reconnect.
        with event_source("http://127.0.0.1/", session=Session(chunks), on_error=stop) as source:
            try:
                for _ in source:
                    number += 1
            except EndedError:
                pass
        return number

    return parse


# By required package: the name of the client, and a function that creates its parser.
PEERS: dict[str, tuple[str, Callable[[], Parser]]] = {
    "httpx_sse": (BASELINE, httpx_sse_parser),
    "httpx2": ("httpx2", httpx2_parser),
    "requests_sse": ("requests-sse", requests_sse_parser),
    "sseclient": ("sseclient-py", sseclient_parser),
    "openai": ("openai", openai_parser),
}


def main() -> None:
    """Print the samples: a JSON list of [case, client, round, figures]."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.parse", description=__doc__)
    options.add_argument("rounds", type=int)
    options.add_argument("size", type=int, help="bytes per recording")
    options.add_argument("packages", nargs="*", choices=PEERS)
    parsed = options.parse_args()
    parsers = {PLAIN: our_parser()} | {name: make() for name, make in (PEERS[package] for package in parsed.packages)}
    recordings = [record(parsed.size) for record in RECORDINGS]
    print(json.dumps([sample for number in range(parsed.rounds) for sample in samples(parsers, recordings, number)]))


def samples(parsers: dict[str, Parser], recordings: Iterable[Recording], number: int) -> Iterator[tuple[Any, ...]]:
    """Yield the samples of one round."""
    for recording in recordings:
        for chunking, cut in CHUNKINGS.items():
            chunks = cut(recording)
            for name in rotated(list(parsers), number):
                yield f"{recording.name}, {chunking}", name, number, figures(parsers[name], chunks, recording, name)


def figures(parse: Parser, chunks: list[bytes], recording: Recording, name: str) -> dict[str, float]:
    """Parse a recording once, and return the figures."""
    gc.collect()
    meter = Meter()
    events = parse(chunks)
    wall, cpu = meter.read()
    # Not all clients implement the whole standard: their number of events is shown, that of sseqbridge is checked.
    if name == PLAIN and events != recording.events:
        raise CountError(f"parsed {events} of {recording.events} events of {recording.name}")
    return {
        "mb_per_s": recording.size / wall / 1e6,
        "mb_per_cpu_s": recording.size / cpu / 1e6,
        "events_per_s": recording.events / wall,
        "events": events,
    }


WORKLOAD = Workload(
    "parse",
    "parse: the parser alone",
    (
        Column("mb_per_s", "MB/s", ".0f"),
        Column("mb_per_s", "x httpx-sse", ".2f", BASELINE),
        Column("mb_per_cpu_s", "MB/CPU s", ".0f"),
        Column("mb_per_cpu_s", "x httpx-sse", ".2f", BASELINE),
        Column("events_per_s", "events/s", ",.0f"),
        Column("events", "events found", ",.0f"),
    ),
    run,
)

if __name__ == "__main__":
    main()
