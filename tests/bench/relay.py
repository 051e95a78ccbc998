"""From a reader's leaving to the upstream's end of file, on each web server: a Markdown table.

    python -m tests.bench.relay [--runs 10] [SERVER ...]

The reader leaves between events, one of which comes every 100 ms, or in silence; each time at another moment between
two events, or two looks at the reader. With the relay's own settings (`probe=1.0`, `heartbeat=15`), but in silence with
`heartbeat=1` under runserver, which does not hand its socket out.
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

__all__ = ["ROWS", "main"]

EVENT_SECONDS = 0.1
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """A line of the table: a view on a server, and how it is asked."""

    heading: str
    server: str
    view: str = "/relay"
    in_silence: str = ""
    # Within how long after an event in silence readers leave.
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
    parser = argparse.ArgumentParser(prog="python -m tests.bench.relay", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="how often a reader leaves, for each figure (10)")
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"{', '.join(row.server for row in ROWS)}; or all")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.servers or row.server in options.servers]
    if UWSGI is None:
        rows = [row for row in rows if not row.server.startswith("uwsgi")]
    if NGINX is None:
        rows = [row for row in rows if not row.is_behind_nginx]
    print("| server | between events, median | worst | in silence, median | worst |")
    print("|---|---:|---:|---:|---:|")
    with Servers() as servers:
        for row in rows:
            url = f"{servers[row.server].url}{row.view}"
            if row.is_behind_nginx:
                url = f"{servers['nginx'].url}/{url.removeprefix('http://127.0.0.1:')}"
            between = measure(url, spaced, options.runs, EVENT_SECONDS)
            in_silence = measure(url, one_event, options.runs, row.spread, row.in_silence)
            print(f"| {row.heading} | {cells(between)} | {cells(in_silence)} |", flush=True)


def spaced(request: ReceivedRequest) -> Iterator[Step]:
    """One event after another."""
    while True:
        yield send({"n": 1})
        yield wait(EVENT_SECONDS)


def one_event(request: ReceivedRequest) -> Iterator[Step]:
    """One event, and nothing more."""
    yield send({"n": 1})
    yield silence()


def measure(url: str, script: Script, runs: int, spread: float, options: str = "") -> Sequence[float]:
    """Return the seconds that it took, each time that a reader left."""
    with SSEServer(script) as upstream:
        address = f"{url}?{urlencode({'upstream': upstream.url})}{options}"
        return [_leave_one(address, upstream, spread * run / runs) for run in range(runs)]


def _leave_one(address: str, upstream: SSEServer, after: float) -> float:
    reader = Reader(address)
    try:
        reader.event()
        time.sleep(after)
    finally:
        left_at = reader.leave()
    return upstream.requests[-1].wait_aborted(PATIENCE_SECONDS) - left_at


def cells(seconds: Sequence[float]) -> str:
    """Return the median and the worst in milliseconds, as cells of the table."""
    return f"{_milliseconds(statistics.median(seconds))} | {_milliseconds(max(seconds))}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"


if __name__ == "__main__":
    main()
