"""Time from `close()` or `break` to the end of file at the upstream, over HTTP and TLS, for each configuration.

The upstream is either silent, or under backpressure: the consumer does not read, and all buffers are full.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from .meter import Meter, percentile
from .peers import Client
from .runner import OURS, Bench, Column, Configuration, Control, Workload

__all__ = ["CONFIGURATIONS", "WAYS", "WORKLOAD", "measure"]

WAYS: dict[str, dict[str, float]] = {
    "close(), silent": {"full": 0, "by_break": 0},
    "break, silent": {"full": 0, "by_break": 1},
    "close(), backpressure": {"full": 1, "by_break": 0},
}
CONFIGURATIONS = (
    *OURS,
    Configuration(
        "sseqbridge, httpx's transport", "sseqbridge", (), {"SSEQBRIDGE_WITHOUT": "transport,uvloop,msgspec"}
    ),
    Configuration(
        "sseqbridge[fast], httpx's transport", "sseqbridge", ("uvloop", "msgspec"), {"SSEQBRIDGE_WITHOUT": "transport"}
    ),
)
WAIT_SECONDS = 10.0


def run(bench: Bench) -> None:
    """Measure each way to abort in one process, in a single round."""
    streams = 5 if bench.quick else 200
    for scheme, url in bench.schemes():
        for way, arguments in WAYS.items():
            case, merged = f"{way}, {scheme}", {"streams": streams, **arguments}
            bench.measure_each("abort", case, url, merged, CONFIGURATIONS, rounds=1)


def measure(client: Client, url: str, *, streams: int, full: int, by_break: int) -> dict[str, float]:
    """Open and abort `streams` streams, one after another."""
    control = Control(url)
    aborts = [abort_once(client, control, url, is_full=bool(full), by_break=bool(by_break)) for _ in range(streams)]
    taken, cpu = sorted(milliseconds for milliseconds, _ in aborts), sorted(cpu for _, cpu in aborts)
    return {
        "median_ms": percentile(taken, 50),
        "worst_ms": percentile(taken, 100),
        "cpu_us": percentile(cpu, 50) * 1e6,
    }


def abort_once(client: Client, control: Control, url: str, *, is_full: bool, by_break: bool) -> tuple[float, float]:
    """Abort a stream. Returns milliseconds until the upstream's end of file, and seconds of CPU time of the call."""
    name = uuid.uuid4().hex
    events: Any = client.chunks(f"{url}/hold?id={name}&full={'yes' if is_full else 'no'}")
    if by_break:
        for _ in events:
            meter, aborted_at = Meter(), time.monotonic_ns()
            break
    else:
        next(events)
        if is_full:
            wait_for_backpressure(control, name)
        meter, aborted_at = Meter(), time.monotonic_ns()
        events.close()
    _, cpu = meter.read()
    noticed_at: int = wait_for(lambda: control.get_json("/held", id=name)["left_at"])
    return (noticed_at - aborted_at) / 1e6, cpu


def wait_for_backpressure(control: Control, name: str) -> None:
    """Wait until the upstream cannot send any more."""
    sent = [-1, -2]

    def has_stopped() -> bool:
        time.sleep(0.02)
        sent.append(control.get_json("/held", id=name)["sent"])
        return sent[-3] == sent[-2] == sent[-1] > 0

    wait_for(has_stopped)


def wait_for(poll: Any) -> Any:
    """Call `poll` until it returns a true value, and return the value. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if value := poll():
            return value
    raise TimeoutError(f"the upstream did not notice within {WAIT_SECONDS:g} s")


WORKLOAD = Workload(
    "abort",
    "abort: milliseconds until the upstream's end of file",
    (Column("median_ms", "median ms", ".2f"), Column("worst_ms", "worst ms", ".2f"), Column("cpu_us", "CPU us", ".0f")),
    run,
)
