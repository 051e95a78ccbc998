"""Time from a client's disconnect to the upstream's end of file, for each web server, as a Markdown table.

    python -m tests.bench.relay [--runs 10] [SERVER ...]

The client disconnects between events, which are sent every 100 ms, or while the upstream is silent. The disconnects
are spread over the interval between two events or two probes. The relay has its default options (`probe=1.0`,
`heartbeat=15`). Only under runserver, which does not expose its socket, silent streams have `heartbeat=1`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from sseqbridge.testing import ReceivedRequest, Script, SSEServer, Step, send, silence, wait
from tests.servers import NGINX, UWSGI, Reader, Servers

__all__ = ["ROWS", "WAIT_SECONDS", "Row", "cells", "main", "one_event", "selected", "spaced"]

EVENT_SECONDS = 0.1
WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """A row of the table: a view on a server, and the parameters of its requests."""

    heading: str
    server: str
    view: str = "/relay"
    in_silence: str = ""
    # The disconnects are spread over this many seconds after the last event.
    spread: float = 1.0
    is_behind_nginx: bool = False


ROWS = (
    Row("Flask, development server", "flask run"),
    Row("Flask, gunicorn sync", "gunicorn sync"),
    Row("Flask, gunicorn gthread", "gunicorn gthread"),
    Row("Flask, gunicorn gevent", "gunicorn gevent"),
    Row("Flask, uWSGI", "uwsgi"),
    Row("Flask, uWSGI --enable-threads", "uwsgi threads"),
    Row("Django, gunicorn gthread", "django gunicorn"),
    Row("Django, gunicorn gevent", "django gevent"),
    Row("Django, runserver, `heartbeat=1`", "runserver", in_silence="&heartbeat=1"),
    Row("Django, uvicorn, sync view", "django uvicorn", spread=0.1),
    Row("Django, uvicorn, async view", "django uvicorn", "/arelay", spread=0.1),
    Row("Django, daphne, sync view", "django daphne", spread=0.1),
    Row("Django, daphne, async view", "django daphne", "/arelay", spread=0.1),
    Row("Starlette, uvicorn", "starlette", spread=0.1),
    Row("FastAPI, uvicorn", "starlette", "/fastapi/relay", spread=0.1),
    Row("Flask, gunicorn gthread behind nginx", "gunicorn gthread", is_behind_nginx=True),
    Row("Starlette, uvicorn behind nginx", "starlette", spread=0.1, is_behind_nginx=True),
)


def main() -> None:
    """Measure, and print the table."""
    rows, runs = selected(ROWS, "relay", __doc__)
    if NGINX is None:
        rows = [row for row in rows if not row.is_behind_nginx]
    print("| server | between events, median | worst | in silence, median | worst |")
    print("|---|---:|---:|---:|---:|")
    with Servers() as servers:
        for row in rows:
            url = f"{servers[row.server].url}{row.view}"
            if row.is_behind_nginx:
                url = f"{servers['nginx'].url}/{url.removeprefix('http://127.0.0.1:')}"
            between = measure(url, spaced, runs, EVENT_SECONDS)
            in_silence = measure(url, one_event, runs, row.spread, row.in_silence)
            print(f"| {row.heading} | {cells(between)} | {cells(in_silence)} |", flush=True)


def selected(rows: Sequence[Row], module: str, description: str | None) -> tuple[list[Row], int]:
    """Return the rows whose servers the command line names, without missing programs, and the runs for each figure."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{module}", description=description)
    parser.add_argument("--runs", type=int, default=10, help="disconnects for each figure (10)")
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"{', '.join(row.server for row in rows)}; or all")
    options = parser.parse_args()
    chosen = [row for row in rows if not options.servers or row.server in options.servers]
    return [row for row in chosen if UWSGI is not None or not row.server.startswith("uwsgi")], options.runs


def spaced(request: ReceivedRequest) -> Iterator[Step]:
    """Send an event every EVENT_SECONDS."""
    while True:
        yield send({"n": 1})
        yield wait(EVENT_SECONDS)


def one_event(request: ReceivedRequest) -> Iterator[Step]:
    """Send one event, then nothing."""
    yield send({"n": 1})
    yield silence()


def measure(url: str, script: Script, runs: int, spread: float, options: str = "") -> Sequence[float]:
    """Return the seconds until the upstream noticed, for each disconnect."""
    with SSEServer(script) as upstream:
        address = f"{url}?{urlencode({'upstream': upstream.url})}{options}"
        return [_disconnect(address, upstream, spread * run / runs) for run in range(runs)]


def _disconnect(address: str, upstream: SSEServer, after: float) -> float:
    reader = Reader(address)
    try:
        reader.event()
        time.sleep(after)
    finally:
        disconnected_at = reader.leave()
    return upstream.requests[-1].wait_aborted(WAIT_SECONDS) - disconnected_at


def cells(seconds: Sequence[float]) -> str:
    """Return the median and the worst in milliseconds, as cells of the table."""
    return f"{_milliseconds(statistics.median(seconds))} | {_milliseconds(max(seconds))}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"


if __name__ == "__main__":
    main()
