"""Runs clients against the upstream: each in a fresh process, in turn, round after round.

Rule: a client that fails or hangs is reported and left behind; the others go on.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .results import Failure, Results, Sample

__all__ = [
    "BASELINE",
    "CONFIGURATIONS",
    "FAST",
    "FLOOR",
    "NAIVE",
    "OURS",
    "PLAIN",
    "Bench",
    "Column",
    "Configuration",
    "Control",
    "Workload",
    "end",
    "in_turn",
]

T = TypeVar("T")

PLAIN, FAST, BASELINE, NAIVE, FLOOR = "sseqbridge", "sseqbridge[fast]", "httpx-sse", "naive bridge", "http.client"
TIMEOUT_SECONDS, QUICK_TIMEOUT_SECONDS = 180.0, 30.0


@dataclass(frozen=True, slots=True)
class Configuration:
    """A line of the tables: a client, the environment of its process, and the modules that it needs."""

    name: str
    client: str
    needs: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


# What SSEQBRIDGE_WITHOUT names is as if it were not installed.
OURS = (
    Configuration(PLAIN, "sseqbridge", (), {"SSEQBRIDGE_WITHOUT": "uvloop,msgspec"}),
    Configuration(FAST, "sseqbridge", ("uvloop", "msgspec")),
)
CONFIGURATIONS = (
    *OURS,
    Configuration(BASELINE, "httpx-sse", ("httpx_sse",)),
    Configuration("httpx2", "httpx2", ("httpx2",)),
    Configuration("requests + sseclient-py", "requests + sseclient-py", ("requests", "sseclient")),
    Configuration("requests-sse", "requests-sse", ("requests_sse",)),
    Configuration(NAIVE, "naive bridge", ()),
    Configuration(FLOOR, "http.client", ("msgspec",)),
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a workload's table: a figure's median, or its ratio `against` another client."""

    key: str
    heading: str
    format: str
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of measurement, and how its figures are shown."""

    name: str
    title: str
    columns: Sequence[Column]
    run: Callable[[Bench], None]


class Upstream:
    """The upstream's process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.bench.upstream"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        addresses = json.loads(self._process.stdout.readline())
        self.http: str = addresses["http"]
        self.https: str | None = addresses.get("https")
        self.ca: str | None = addresses.get("ca")
        self.bundle: str | None = addresses.get("bundle")

    def close(self) -> None:
        """End it."""
        end(self._process)


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that reads its orders to their end."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def in_turn(clients: Sequence[T], number: int) -> Sequence[T]:
    """Return the clients as a round has them: each begins with another, so that nobody always follows the same one."""
    start = number % len(clients) if clients else 0
    return [*clients[start:], *clients[:start]]


class Bench:
    """One run of benchmarks: what they have in common."""

    def __init__(self, *, rounds: int, quick: bool, only: Sequence[str] = ()) -> None:
        self.rounds = rounds
        self.quick = quick
        self.results = Results()
        self._only = only
        self._missing: set[str] = set()
        self._upstream: Upstream | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._upstream is not None:
            self._upstream.close()

    @property
    def upstream(self) -> Upstream:
        """The upstream, started when it is first asked for."""
        if self._upstream is None:
            self._upstream = Upstream()
        return self._upstream

    def schemes(self) -> list[tuple[str, str]]:
        """Return (name, URL) of the addresses to ask: HTTP, and TLS where trustme is installed."""
        if self.upstream.https is None:
            self.having("trustme")
            return [("HTTP", self.upstream.http)]
        return [("HTTP", self.upstream.http), ("TLS", self.upstream.https)]

    def installed(self, configurations: Iterable[Configuration]) -> list[Configuration]:
        """Return those whose packages are there, and that were asked for."""
        wanted = [one for one in configurations if not self._only or one.name in self._only]
        there = self.having(*{module: None for one in wanted for module in one.needs})
        return [one for one in wanted if there.issuperset(one.needs)]

    def having(self, *modules: str) -> set[str]:
        """Return those that are installed; says once which ones are not."""
        there = {module for module in modules if importlib.util.find_spec(module) is not None}
        if missing := [module for module in modules if module not in there | self._missing]:
            self._missing.update(missing)
            print(f"not installed, and what needs it left out: {', '.join(missing)}; pip install 'sseqbridge[bench]'")
        return there

    def in_turn(
        self,
        workload: str,
        case: str,
        url: str,
        arguments: Mapping[str, float],
        configurations: Iterable[Configuration] = CONFIGURATIONS,
        *,
        rounds: int | None = None,
        instead: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Measure the workload with each client, in a fresh process each time.

        `instead` gives some clients, by name, other `arguments`.
        """
        here = self.installed(configurations)
        rounds = rounds or self.rounds
        for number in range(rounds):
            print(f"{workload}, {case}: round {number + 1} of {rounds}", file=sys.stderr)
            for one in in_turn(here, number):
                own = (instead or {}).get(one.name, {})
                figures = self._measure(one, workload, url, {**arguments, **own})
                self.record(workload, case, one.name, number, figures)

    def record(self, workload: str, case: str, client: str, number: int, figures: Mapping[str, float] | str) -> None:
        """Keep figures, or the reason why there are none."""
        if isinstance(figures, str):
            print(f"{workload}, {case}: {client} failed: {figures}", file=sys.stderr)
            self.results.add(Failure(workload, case, client, number, figures))
        else:
            self.results.add(Sample(workload, case, client, number, figures))

    def _measure(
        self, one: Configuration, workload: str, url: str, arguments: Mapping[str, float]
    ) -> dict[str, float] | str:
        pairs = [f"{name}={value}" for name, value in arguments.items()]
        command = [sys.executable, "-m", "tests.bench.clients", one.client, workload, url, *pairs]
        figures: dict[str, float] | str = self.run_json(command, self.environment(one, tls=url.startswith("https:")))
        return figures

    def run_json(self, command: Sequence[str], environment: Mapping[str, str]) -> Any:
        """Run a process and return the JSON that it prints, or as a string why there is none."""
        seconds = QUICK_TIMEOUT_SECONDS if self.quick else TIMEOUT_SECONDS
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, env=environment, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return f"it took more than {seconds:g} s"
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return json.loads(done.stdout)

    def environment(self, one: Configuration, *, tls: bool = False) -> dict[str, str]:
        """Return the environment of its process: nothing in it may lead past loopback."""
        own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        own.pop("SSEQBRIDGE_WITHOUT", None)
        if tls:
            # requests reads it again for each connection, and gets the short one.
            own |= {"SSL_CERT_FILE": self.upstream.bundle or "", "REQUESTS_CA_BUNDLE": self.upstream.ca or ""}
        return own | dict(one.environment)


class Control:
    """A connection to the upstream for what is not a stream."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        maker = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = maker(parts.netloc, timeout=TIMEOUT_SECONDS)

    def ask(self, path: str, **parameters: object) -> dict[str, Any]:
        """Return what the upstream tells."""
        facts: dict[str, Any] = json.loads(self._read(path, parameters))
        return facts

    def prepare_burst(self, events: int, batch: int) -> None:
        """Have the upstream build a burst, which it does when it is first asked for it."""
        self._read("/stream", {"events": events, "batch": batch})

    def _read(self, path: str, parameters: Mapping[str, object]) -> bytes:
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        self._connection.request("GET", f"{path}?{query}")
        return self._connection.getresponse().read()
