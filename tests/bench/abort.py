"""From the consumer's leaving to the end of file at the upstream, in milliseconds.

The upstream runs in this process, so that both ends read one clock. Each way of leaving is
measured while the upstream is silent, and close() also while the stream is held back: the
consumer does not read, and every buffer on the way is full.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from sseqbridge import EventStream, request_sse
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send, silence

__all__ = ["main"]

ROUNDS = 200
HELD_BACK_ROUNDS = 40


def main() -> None:
    """Print median and worst of each way of leaving."""
    with SSEServer(one_event_then_silence) as server:
        for name, leave in (("close(), silent", leave_by_close), ("break, silent", leave_by_break)):
            report(name, [measure(server, leave) for _ in range(ROUNDS)])
    with SSEServer(endless) as server:
        report("close(), held back", [measure(server, leave_held_back) for _ in range(HELD_BACK_ROUNDS)])


def report(name: str, milliseconds: list[float]) -> None:
    """Print one line of the table."""
    print(
        f"{name:<20} median {statistics.median(milliseconds):6.2f} ms   worst of {len(milliseconds)} "
        f"{max(milliseconds):6.2f} ms"
    )


def measure(server: SSEServer, leave: Callable[[SSEServer, EventStream[str]], float]) -> float:
    """Open a stream, leave it, and return the milliseconds until the upstream knew."""
    _, _, events = request_sse(server.url, decode="text")
    left_at = leave(server, events)
    return (server.requests[-1].wait_aborted() - left_at) * 1000


def leave_by_close(server: SSEServer, events: EventStream[str]) -> float:
    """Close the stream explicitly."""
    next(events)
    left_at = time.monotonic()
    events.close()
    return left_at


def leave_by_break(server: SSEServer, events: EventStream[str]) -> float:
    """Leave the for loop."""
    left_at = 0.0
    for _ in events:
        left_at = time.monotonic()
        break
    return left_at


def leave_held_back(server: SSEServer, events: EventStream[str]) -> float:
    """Close the stream once nothing more fits on the way to its consumer."""
    request, sent = server.requests[-1], -1
    while request.sent_bytes != sent:
        sent = request.sent_bytes
        time.sleep(0.02)
    return leave_by_close(server, events)


def one_event_then_silence(request: ReceivedRequest) -> Iterator[Step]:
    """A stream that says one thing."""
    yield send("here")
    yield silence()


def endless(request: ReceivedRequest) -> Iterator[Step]:
    """A stream that never stops."""
    event = send("x" * 16_000)
    while True:
        yield event
