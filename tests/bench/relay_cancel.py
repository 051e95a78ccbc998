"""Time from the close of a relay, whose client has disconnected, to the end of its iterable's read.

    python -m tests.bench.relay_cancel [--runs 10] [SERVER ...]

The iterable is a generator that reads a stream. Each row of the Markdown table has the time until the read raises
Cancelled (in an asynchronous generator CancelledError), and the time until the upstream sees the end of file. The
client disconnects between events, which are sent every 100 ms, or while the upstream is silent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from sseqbridge.testing import Script, SSEServer, respond
from tests.bench.relay import WAIT_SECONDS, cells, one_event, spaced
from tests.servers import UWSGI, Reader, Servers

__all__ = ["ROWS", "main"]


@dataclass(frozen=True)
class Row:
    """A row of the table: a view on a server."""

    heading: str
    server: str
    view: str = "/cancelling"


ROWS = (
    Row("Flask, development server", "flask run"),
    Row("Flask, gunicorn sync", "gunicorn sync"),
    Row("Flask, gunicorn gthread", "gunicorn gthread"),
    Row("Flask, gunicorn gevent", "gunicorn gevent"),
    Row("Flask, uWSGI", "uwsgi"),
    Row("Flask, uWSGI --enable-threads", "uwsgi threads"),
    Row("Django, gunicorn gthread", "django gunicorn"),
    Row("Django, gunicorn gevent", "django gevent"),
    Row("Django, runserver", "runserver"),
    Row("Django, uvicorn, generator", "django uvicorn"),
    Row("Django, uvicorn, asynchronous generator", "django uvicorn", "/acancelling"),
    Row("Django, daphne, generator", "django daphne"),
    Row("Django, daphne, asynchronous generator", "django daphne", "/acancelling"),
    Row("Starlette, uvicorn, generator", "starlette"),
    Row("Starlette, uvicorn, asynchronous generator", "starlette", "/acancelling"),
)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.relay_cancel", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="disconnects for each figure, half in silence (10)")
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"{', '.join(row.server for row in ROWS)}; or all")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.servers or row.server in options.servers]
    if UWSGI is None:
        rows = [row for row in rows if not row.server.startswith("uwsgi")]
    print("| server | read cancelled, median | maximum | upstream aborted, median | maximum |")
    print("|---|---:|---:|---:|---:|")
    with Servers() as servers:
        for row in rows:
            url = f"{servers[row.server].url}{row.view}"
            times = [both for script in (spaced, one_event) for both in measure(url, script, -(-options.runs // 2))]
            cancelled, aborted = zip(*times, strict=True)
            print(f"| {row.heading} | {cells(cancelled)} | {cells(aborted)} |", flush=True)


def measure(url: str, script: Script, runs: int) -> Sequence[tuple[float, float]]:
    """Return the seconds until the read was cancelled, and until the upstream noticed, for each disconnect."""
    return [_disconnect(url, script, 0.1 * run / runs) for run in range(runs)]


def _disconnect(url: str, script: Script, after: float) -> tuple[float, float]:
    with SSEServer(script) as upstream, SSEServer([respond(framing="length")]) as collector:
        query = {"upstream": upstream.url, "collector": collector.url, "heartbeat": "0.5"}
        reader = Reader(f"{url}?{urlencode(query)}")
        try:
            reader.event()
            time.sleep(after)
        finally:
            reader.leave()
        aborted_at = upstream.requests[0].wait_aborted(WAIT_SECONDS)
        reported = collector.wait_for_request(timeout=WAIT_SECONDS)
        closed_at, cancelled_at = (float(text) for text in reported.path.strip("/").split("/"))
        return cancelled_at - closed_at, aborted_at - closed_at


if __name__ == "__main__":
    main()
