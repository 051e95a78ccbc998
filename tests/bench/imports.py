"""Import time of sseqbridge and of httpx, and the time until a new process has its first event."""

from __future__ import annotations

import sys

from .runner import BASELINE, CONFIGURATIONS, FAST, OURS, PLAIN, Bench, Column, Configuration, Control, Workload

__all__ = ["FIRST_EVENT", "HTTPX", "IMPORT", "REQUEST_SSE", "WORKLOAD"]

IMPORT, FIRST_EVENT = "import", "first event"
HTTPX, REQUEST_SSE = "import httpx", "from sseqbridge import request_sse"
STATEMENTS = (HTTPX, "import sseqbridge", REQUEST_SSE)
ROUNDS = 15

# Wall time, and the CPU time of all threads.
CLOCKS = """
import json, sys, time
def now():
    return time.perf_counter() * 1000, time.process_time() * 1000
started = now()
"""
IMPORTED = (
    CLOCKS
    + """
{statement}
done = now()
print(json.dumps({{"import_ms": done[0] - started[0], "import_cpu_ms": done[1] - started[1]}}))
"""
)
TIMED = (
    CLOCKS
    + """
{statement}
imported = now()
{first}
print(json.dumps({{
    "import_ms": imported[0] - started[0], "import_cpu_ms": imported[1] - started[1],
    "first_event_ms": done[0] - imported[0], "first_event_cpu_ms": done[1] - imported[1],
    "both_ms": done[0] - started[0], "both_cpu_ms": done[1] - started[1],
}}))
"""
)
OUR_FIRST_EVENT = """
_, _, events = request_sse(sys.argv[1])
next(events)
done = now()
"""
HTTPX_SSE_FIRST_EVENT = """
with httpx.Client() as client, httpx_sse.connect_sse(client, "GET", sys.argv[1]) as source:
    next(source.iter_sse()).json()
    done = now()
"""
PROGRAMS = {
    PLAIN: TIMED.format(statement=REQUEST_SSE, first=OUR_FIRST_EVENT),
    FAST: TIMED.format(statement=REQUEST_SSE, first=OUR_FIRST_EVENT),
    BASELINE: TIMED.format(statement="import httpx, httpx_sse", first=HTTPX_SSE_FIRST_EVENT),
}


def run(bench: Bench) -> None:
    """Measure the statements and clients in turn, each in a new process."""
    Control(bench.upstream.http).prepare_burst(10, 1)
    url = f"{bench.upstream.http}/stream?events=10&batch=1"
    clients = bench.available(client for client in CONFIGURATIONS if client.name in PROGRAMS)
    for number in range(2 if bench.quick else ROUNDS):
        for statement in STATEMENTS:
            run_program(bench, IMPORT, OURS[-1], statement, number, IMPORTED.format(statement=statement), "")
        for client in clients:
            run_program(bench, FIRST_EVENT, client, client.name, number, PROGRAMS[client.name], url)


def run_program(
    bench: Bench, case: str, configuration: Configuration, name: str, number: int, program: str, url: str
) -> None:
    """Run one program in a new process, and record its figures."""
    figures = bench.run_json([sys.executable, "-c", program, url], bench.environment(configuration))
    bench.record("imports", case, name, number, figures)


WORKLOAD = Workload(
    "imports",
    "imports: milliseconds in a new process",
    (
        Column("import_ms", "import ms", ".1f"),
        Column("import_ms", "x httpx", ".2f", HTTPX),
        Column("import_ms", "x httpx-sse", ".2f", BASELINE),
        Column("import_cpu_ms", "CPU ms", ".1f"),
        Column("import_cpu_ms", "x httpx", ".2f", HTTPX),
        Column("first_event_ms", "first event ms", ".1f"),
        Column("first_event_ms", "x httpx-sse", ".2f", BASELINE),
        Column("first_event_cpu_ms", "CPU ms", ".1f"),
        Column("both_ms", "both ms", ".1f"),
        Column("both_ms", "x httpx-sse", ".2f", BASELINE),
        Column("both_cpu_ms", "CPU ms", ".1f"),
        Column("both_cpu_ms", "x httpx-sse", ".2f", BASELINE),
    ),
    run,
)
