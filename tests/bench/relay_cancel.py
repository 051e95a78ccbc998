"""Time from the close of a relay, whose client has disconnected, to the end of its iterable's read.

    python -m tests.bench.relay_cancel [--runs 10] [SERVER ...]

The iterable is a generator that reads a stream. Each row of the Markdown table has the time until the read raises
Cancelled (in an asynchronous generator CancelledError), and the time until the upstream sees the end of file. The
client disconnects between events, which are sent every 100 ms, or while the upstream is silent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlencode

from sseqbridge.testing import Script, SSEServer, respond
from tests.bench.relay import WAIT_SECONDS, Row, cells, one_event, selected, spaced
from tests.servers import Reader, Servers

__all__ = ["ROWS", "main"]


_cancelling = partial(Row, view="/cancelling")
_acancelling = partial(Row, view="/acancelling")

ROWS = (
    _cancelling("Flask, development server", "flask run"),
    _cancelling("Flask, gunicorn sync", "gunicorn sync"),
    _cancelling("Flask, gunicorn gthread", "gunicorn gthread"),
    _cancelling("Flask, gunicorn gevent", "gunicorn gevent"),
    _cancelling("Flask, uWSGI", "uwsgi"),
    _cancelling("Flask, uWSGI --enable-threads", "uwsgi threads"),
    _cancelling("Django, gunicorn gthread", "django gunicorn"),
    _cancelling("Django, gunicorn gevent", "django gevent"),
    _cancelling("Django, runserver", "runserver"),
    _cancelling("Django, uvicorn, generator", "django uvicorn"),
    _acancelling("Django, uvicorn, asynchronous generator", "django uvicorn"),
    _cancelling("Django, daphne, generator", "django daphne"),
    _acancelling("Django, daphne, asynchronous generator", "django daphne"),
    _cancelling("Starlette, uvicorn, generator", "starlette"),
    _acancelling("Starlette, uvicorn, asynchronous generator", "starlette"),
)


def main() -> None:
    """Measure, and print the table."""
    rows, runs = selected(ROWS, "relay_cancel", __doc__)
    print("| server | read cancelled, median | maximum | upstream aborted, median | maximum |")
    print("|---|---:|---:|---:|---:|")
    with Servers() as servers:
        for row in rows:
            url = f"{servers[row.server].url}{row.view}"
            times = [both for script in (spaced, one_event) for both in measure(url, script, -(-runs // 2))]
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
