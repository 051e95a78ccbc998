"""Targets for the figures of sseqbridge, as data, and whether they are reached."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import abort, imports, linearity, parse, sdk

from .many import merged
from .results import Results
from .runner import BASELINE, FAST, FLOOR, NAIVE, PLAIN
from .short import IN_THREADS

__all__ = ["TARGETS", "Target", "Verdict", "verdict_on"]

COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a client's figure, or on its ratio to that of the client `against`."""

    workload: str
    case: str
    client: str
    key: str
    comparison: str
    bound: float
    against: str | None = None
    against_case: str | None = None

    def __str__(self) -> str:
        relative = f" x {self.against_case or self.against}" if self.against else ""
        return f"{self.key} {self.comparison} {self.bound:g}{relative}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and the measured value."""

    target: Target
    value: float

    @property
    def is_reached(self) -> bool:
        """Whether the value is within the bound."""
        return COMPARISONS[self.target.comparison](self.value, self.target.bound)

    def __str__(self) -> str:
        return f"{self.target}: {self.value:.3g}, {'reached' if self.is_reached else 'NOT REACHED'}"


def verdict_on(target: Target, results: Results) -> Verdict | None:
    """Return the verdict on a target, None if it was not measured."""
    at = (target.workload, target.case, target.client, target.key)
    value = results.median(*at) if target.against is None else results.ratio(*at, target.against, target.against_case)
    return None if value is None else Verdict(target, value)


TARGETS = (
    Target("burst", "one event a chunk", PLAIN, "events_per_s", ">=", 1.2, BASELINE),
    Target("burst", "one event a chunk", FAST, "events_per_s", ">=", 6.5, BASELINE),
    Target("burst", "one event a chunk", FAST, "events_per_s", ">=", 1.5, FLOOR),
    *(
        Target("paced", "one event a millisecond", client, key, "<=", bound, BASELINE)
        for client, key, bound in (
            *((FAST, "p50_us", 1.05), (FAST, "p99_us", 1.2), (FAST, "cpu_us_per_event", 1.05)),
            *((PLAIN, "p50_us", 1.25), (PLAIN, "cpu_us_per_event", 1.25)),
        )
    ),
    *(
        Target("short", scheme, client, "streams_per_s", ">=", bound, BASELINE)
        for scheme, client, bound in (("HTTP", PLAIN, 1.8), ("HTTP", FAST, 2), ("TLS", PLAIN, 1.5), ("TLS", FAST, 1.5))
    ),
    *(
        Target("short", scheme, client, "streams_per_s", ">=", 30, NAIVE)
        for scheme in ("HTTP", "TLS")
        for client in (PLAIN, FAST)
    ),
    Target("short", "HTTP", PLAIN, "cpu_ms_per_stream", "<=", 1.85, FLOOR),
    Target("short", "HTTP", FAST, "cpu_ms_per_stream", "<=", 1.5, FLOOR),
    Target("short", IN_THREADS, FAST, "cpu_ms_per_stream", "<=", 1.1, FLOOR),
    Target("many", "1,000 streams", PLAIN, "cpu_s", "<=", 0.9, BASELINE),
    Target("many", "1,000 streams", FAST, "cpu_s", "<=", 0.5, BASELINE),
    *(
        target
        for client in (PLAIN, FAST)
        for target in (
            Target("many", "1,000 streams", client, "p99_ms", "<", 1, BASELINE),
            Target("many", "1,000 streams", client, "p99_ms", "<=", 15),
            Target("many", "1,000 streams", merged(client), "cpu_s", "<=", 0.5, client),
            Target("many", "1,000 streams", client, "kib_per_stream", "<=", 60),
            # The cost of an event does not depend on the number of streams; 15 % is noise.
            Target("many", "1,000 streams", client, "cpu_us_per_event", "<=", 1.15, client, "100 streams"),
            Target("many", "1,000 streams", client, "cpu_us_per_event", "<=", 1.15, client, "300 streams"),
        )
    ),
    Target("imports", imports.IMPORT, imports.REQUEST_SSE, "import_ms", "<=", 1.4, imports.HTTPX),
    *(Target("parse", case, PLAIN, "mb_per_s", ">=", 1.5, BASELINE) for case in parse.CASES),
    # Twice the bytes take twice the time, plus noise. (Smaller inputs fit into the caches of the machine.)
    *(
        Target("linearity", case, "32,000 kB", "ms", "<=", 2.4, "16,000 kB")
        for case in (linearity.LINE, linearity.EVENT)
    ),
    *(
        target
        for scheme in ("HTTP", "TLS")
        for way in abort.WAYS
        for configuration in abort.CONFIGURATIONS
        for target in (
            Target("abort", f"{way}, {scheme}", configuration.name, "median_ms", "<", 5),
            Target("abort", f"{way}, {scheme}", configuration.name, "worst_ms", "<", 50),
        )
    ),
    *(
        Target("sdk", case, sdk.names(package)[0], "per_s", ">=", bound, sdk.names(package)[1])
        for package in sdk.PACKAGES
        for case, bound in zip(sdk.CASES, (0.9, 1.5, 5, 5, 1.1), strict=True)
        if package == "httpx2" or case != "openai"
    ),
)
