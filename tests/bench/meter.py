"""Clocks, and counting of the events that a client returned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

__all__ = ["CountError", "Meter", "check_count", "count", "percentile"]


class CountError(Exception):
    """A client returned more or fewer events than were sent."""


class Meter:
    """Measures wall time, and the CPU time of all threads of this process, since it was created."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> tuple[float, float]:
        """Return (wall, CPU) in seconds."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def count(items: Iterable[object]) -> int:
    """Loop over `items`, and return their number."""
    number = 0
    for _ in items:
        number += 1
    return number


def check_count(received: int, sent: int) -> None:
    """Raise CountError if the two numbers differ."""
    if received != sent:
        raise CountError(f"received {received} of {sent} events")


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile of values in ascending order; 100 is the maximum."""
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]
