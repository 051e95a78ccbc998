"""From the consumer's leaving to the end of file at the upstream, over HTTP and TLS, in each way that we are built.

The upstream is either silent, or held back: the consumer does not read, and every buffer on the way is full.
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
    "close(), held back": {"full": 1, "by_break": 0},
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
PATIENCE_SECONDS = 10.0


def run(bench: Bench) -> None:
    """Measure each way of leaving in one process, whatever the number of rounds."""
    streams = 5 if bench.quick else 200
    for scheme, url in bench.schemes():
        for way, arguments in WAYS.items():
            bench.in_turn("abort", f"{way}, {scheme}", url, {"streams": streams, **arguments}, CONFIGURATIONS, rounds=1)


def measure(client: Client, url: str, *, streams: int, full: int, by_break: int) -> dict[str, float]:
    """Open a stream and leave it, so many times."""
    control = Control(url)
    left = [leave_one(client, control, url, is_full=bool(full), by_break=bool(by_break)) for _ in range(streams)]
    taken, cpu = sorted(milliseconds for milliseconds, _ in left), sorted(cpu for _, cpu in left)
    return {
        "median_ms": percentile(taken, 50),
        "worst_ms": percentile(taken, 100),
        "cpu_us": percentile(cpu, 50) * 1e6,
    }


def leave_one(client: Client, control: Control, url: str, *, is_full: bool, by_break: bool) -> tuple[float, float]:
    """Return the milliseconds from leaving to the upstream's end of file, and the seconds of CPU time to have left."""
    name = uuid.uuid4().hex
    events: Any = client.chunks(f"{url}/hold?id={name}&full={'yes' if is_full else 'no'}")
    if by_break:
        for _ in events:
            meter, left_at = Meter(), time.monotonic_ns()
            break
    else:
        next(events)
        if is_full:
            wait_until_held_back(control, name)
        meter, left_at = Meter(), time.monotonic_ns()
        events.close()
    _, cpu = meter.read()
    noticed_at: int = wait_for(lambda: control.ask("/held", id=name)["left_at"])
    return (noticed_at - left_at) / 1e6, cpu


def wait_until_held_back(control: Control, name: str) -> None:
    """Return once the upstream cannot send any more."""
    sent = [-1, -2]

    def has_stopped() -> bool:
        time.sleep(0.02)
        sent.append(control.ask("/held", id=name)["sent"])
        return sent[-3] == sent[-2] == sent[-1] > 0

    wait_for(has_stopped)


def wait_for(look: Any) -> Any:
    """Look until there is something to see, and return it. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if seen := look():
            return seen
    raise TimeoutError(f"the upstream saw nothing of it in {PATIENCE_SECONDS:g} s")


WORKLOAD = Workload(
    "abort",
    "abort: milliseconds from leaving to the upstream's end of file",
    (Column("median_ms", "median ms", ".2f"), Column("worst_ms", "worst ms", ".2f"), Column("cpu_us", "CPU us", ".0f")),
    run,
)
