"""Clocks, and the counting of what a client gave."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

__all__ = ["CountError", "Meter", "check_count", "count", "percentile"]


class CountError(Exception):
    """A client gave another number of events than were sent."""


class Meter:
    """Wall time, and the CPU time of all threads of this process, from its making on."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> tuple[float, float]:
        """Return (wall, CPU) in seconds."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def count(items: Iterable[object]) -> int:
    """Loop over `items`, and return how many came."""
    number = 0
    for _ in items:
        number += 1
    return number


def check_count(came: int, sent: int) -> None:
    """Raise CountError unless all came, and no more."""
    if came != sent:
        raise CountError(f"{came} of {sent} events came")


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile of values in ascending order, 100 being the last one."""
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]
