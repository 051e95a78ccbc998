"""Samples, their medians, and ratios between clients.

Invariant: a ratio is one of medians over the rounds of one run in which both clients have a figure.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Failure", "Results", "Sample", "machine"]

PACKAGES = (
    "sseqbridge", "httpx", "httpcore", "h11", "httpx-sse", "httpx2", "requests", "urllib3", "sseclient-py",
    "requests-sse", "openai", "uvloop", "msgspec", "orjson", "httptools", "primp", "pycurl", "pyqwest", "pyreqwest",
    "rqx",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one client in one round of one case."""

    workload: str
    case: str
    client: str
    round: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """A client without figures in a round, and the reason."""

    workload: str
    case: str
    client: str
    round: int
    reason: str


class Results:
    """All samples and failures of one run."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []
        self._clients: dict[str, dict[str, dict[str, None]]] = {}

    def add(self, entry: Sample | Failure) -> None:
        """Add the result of one round."""
        clients = self._clients.setdefault(entry.workload, {}).setdefault(entry.case, {})
        clients[entry.client] = None
        if isinstance(entry, Sample):
            self.samples.append(entry)
        else:
            self.failures.append(entry)

    def cases(self, workload: str) -> list[str]:
        """Return the cases of a workload in the order of their runs."""
        return list(self._clients.get(workload, {}))

    def clients(self, workload: str, case: str) -> list[str]:
        """Return the clients that ran in a case, in the order of their first run."""
        return list(self._clients.get(workload, {}).get(case, {}))

    def rounds(self, workload: str, case: str, client: str, key: str) -> dict[int, float]:
        """Return one figure of one client by round."""
        at = (workload, case, client)
        found = (sample for sample in self.samples if (sample.workload, sample.case, sample.client) == at)
        return {sample.round: sample.figures[key] for sample in found if key in sample.figures}

    def failed_rounds(self, workload: str, case: str, client: str) -> int:
        """Return in how many rounds a client failed."""
        at = (workload, case, client)
        return sum((failure.workload, failure.case, failure.client) == at for failure in self.failures)

    def median(self, workload: str, case: str, client: str, key: str) -> float | None:
        """Return the median over the rounds, None without a figure."""
        return _median(self.rounds(workload, case, client, key).values())

    def ratio(
        self, workload: str, case: str, client: str, key: str, against: str, against_case: str | None = None
    ) -> float | None:
        """Return the ratio of the medians to another client or case, None if both have no round in common."""
        own = self.rounds(workload, case, client, key)
        other = self.rounds(workload, against_case or case, against, key)
        common = [number for number in own if other.get(number)]
        return (
            statistics.median(own[each] for each in common) / statistics.median(other[each] for each in common)
            if common
            else None
        )

    def to_json(self) -> dict[str, Any]:
        """Return the medians, every sample and every failure."""
        keyed: dict[tuple[str, str, str], dict[str, None]] = {}
        for sample in self.samples:
            keys = keyed.setdefault((sample.workload, sample.case, sample.client), {})
            keys.update(dict.fromkeys(sample.figures))
        medians = [
            {"workload": at[0], "case": at[1], "client": at[2]} | {key: self.median(*at, key) for key in keys}
            for at, keys in keyed.items()
        ]
        return {
            "medians": medians,
            "rounds": [asdict(sample) for sample in self.samples],
            "failures": [asdict(failure) for failure in self.failures],
        }


def _median(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return statistics.median(numbers) if numbers else None


def machine() -> dict[str, Any]:
    """Return Python, platform and versions, which the figures depend on."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }
