"""Runs clients against the upstream, in rounds. In each round every client runs once, in a new process.

Invariant: a client that fails or hangs is reported, and the other clients still run.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    "LLHTTP_FLOOR",
    "NAIVE",
    "OURS",
    "PEER_ROUNDS",
    "PLAIN",
    "Bench",
    "Column",
    "Configuration",
    "Control",
    "Workload",
    "end",
    "rotated",
]

T = TypeVar("T")

PLAIN, FAST, BASELINE, NAIVE, FLOOR = "sseqbridge", "sseqbridge[fast]", "httpx-sse", "naive bridge", "http.client"
LLHTTP_FLOOR = "socket + httptools"
TIMEOUT_SECONDS, QUICK_TIMEOUT_SECONDS = 180.0, 120.0
PEER_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Configuration:
    """A row of the tables: a client, the modules that it needs, and the environment of its process.

    `is_peer`: no target depends on it closely, so that fewer rounds are enough.
    """

    name: str
    client: str
    needs: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_peer: bool = False


# SSEQBRIDGE_WITHOUT lists optional parts that are treated as not installed.
OURS = (
    Configuration(PLAIN, "sseqbridge", (), {"SSEQBRIDGE_WITHOUT": "uvloop,msgspec"}),
    Configuration(FAST, "sseqbridge", ("uvloop", "msgspec")),
)
CONFIGURATIONS = (
    *OURS,
    Configuration(BASELINE, "httpx-sse", ("httpx_sse",)),
    Configuration("httpx2", "httpx2", ("httpx2",), is_peer=True),
    Configuration("requests + sseclient-py", "requests + sseclient-py", ("requests", "sseclient"), is_peer=True),
    Configuration("requests-sse", "requests-sse", ("requests_sse",), is_peer=True),
    Configuration(NAIVE, "naive bridge", (), is_peer=True),
    *(
        Configuration(f"{package} + split", package, (package, "msgspec"), is_peer=True)
        for package in ("requests", "urllib3", "pycurl", "pyreqwest", "primp", "rqx", "pyqwest")
    ),
    Configuration(FLOOR, "http.client", ("msgspec",)),
    Configuration(LLHTTP_FLOOR, "socket + httptools", ("httptools", "msgspec"), is_peer=True),
)
# Of the extra bench-peers: compiled packages, which not every interpreter and machine has wheels of.
PEERS = frozenset({"httptools", "primp", "pycurl", "pyqwest", "pyreqwest", "rqx", "urllib3"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a workload's table: a figure's median, or its ratio `against` another client."""

    key: str
    heading: str
    format: str
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of measurement, and the columns of its table."""

    name: str
    title: str
    columns: Sequence[Column]
    run: Callable[[Bench], None]


class Upstream:
    """The process of the upstream."""

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
        """End the process."""
        end(self._process)


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that serves until the end of its standard input."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def rotated(clients: Sequence[T], number: int) -> Sequence[T]:
    """Return the clients in the order of a round: each round starts with another client."""
    start = number % len(clients) if clients else 0
    return [*clients[start:], *clients[:start]]


class Bench:
    """One run of benchmarks: its options, results and upstream."""

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
        """The upstream, which is started on first use."""
        if self._upstream is None:
            self._upstream = Upstream()
        return self._upstream

    def schemes(self) -> list[tuple[str, str]]:
        """Return (name, URL) for HTTP, and for TLS if trustme is installed."""
        if self.upstream.https is None:
            self.importable("trustme")
            return [("HTTP", self.upstream.http)]
        return [("HTTP", self.upstream.http), ("TLS", self.upstream.https)]

    def available(self, configurations: Iterable[Configuration]) -> list[Configuration]:
        """Return the configurations that --clients selects and whose packages are installed."""
        selected = [each for each in configurations if not self._only or each.name in self._only]
        found = self.importable(*{module: None for each in selected for module in each.needs})
        return [each for each in selected if found.issuperset(each.needs)]

    def importable(self, *modules: str) -> set[str]:
        """Return the modules that are installed. Prints the others, each once."""
        found = {module for module in modules if importlib.util.find_spec(module) is not None}
        if missing := [module for module in modules if module not in found | self._missing]:
            self._missing.update(missing)
            for extra, names in (
                ("bench", [name for name in missing if name not in PEERS]),
                ("bench-peers", [name for name in missing if name in PEERS]),
            ):
                if names:
                    print(
                        f"not installed, so their clients are skipped: {', '.join(names)}; pip install "
                        f"'sseqbridge[{extra}]' has them if there are wheels for {platform.python_implementation()} "
                        f"{platform.python_version()} on {platform.machine()}"
                    )
        return found

    def measure_each(
        self,
        workload: str,
        case: str,
        url: str,
        arguments: Mapping[str, float],
        configurations: Iterable[Configuration] = CONFIGURATIONS,
        *,
        rounds: int | None = None,
        overrides: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Measure the workload with each client in each round, every time in a new process.

        Peers take part in the first rounds alone. `overrides` replaces some of the `arguments` for clients, by name.
        """
        available = self.available(configurations)
        rounds = rounds or self.rounds

        def measure(configuration: Configuration) -> dict[str, float] | str:
            merged = {**arguments, **(overrides or {}).get(configuration.name, {})}
            return self._measure(configuration, workload, url, merged)

        # The figures of a quick run are ignored, so that its clients may run side by side.
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1) if self.quick else 1) as pool:
            for number in range(rounds):
                print(f"{workload}, {case}: round {number + 1} of {rounds}", file=sys.stderr)
                clients = [each for each in rotated(available, number) if not each.is_peer or number < PEER_ROUNDS]
                for configuration, figures in zip(clients, pool.map(measure, clients), strict=True):
                    self.record(workload, case, configuration.name, number, figures)

    def record(self, workload: str, case: str, client: str, number: int, figures: Mapping[str, float] | str) -> None:
        """Add figures, or the reason of a failure."""
        if isinstance(figures, str):
            print(f"{workload}, {case}: {client} failed: {figures}", file=sys.stderr)
            self.results.add(Failure(workload, case, client, number, figures))
        else:
            self.results.add(Sample(workload, case, client, number, figures))

    def _measure(
        self, configuration: Configuration, workload: str, url: str, arguments: Mapping[str, float]
    ) -> dict[str, float] | str:
        pairs = [f"{name}={value}" for name, value in arguments.items()]
        command = [sys.executable, "-m", "tests.bench.clients", configuration.client, workload, url, *pairs]
        environment = self.environment(configuration, tls=url.startswith("https:"))
        figures: dict[str, float] | str = self.run_json(command, environment)
        return figures

    def run_json(self, command: Sequence[str], environment: Mapping[str, str]) -> Any:
        """Run a process, and return the JSON that it prints; the reason as a string if it fails."""
        seconds = QUICK_TIMEOUT_SECONDS if self.quick else TIMEOUT_SECONDS
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, env=environment, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return f"took more than {seconds:g} s"
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return json.loads(done.stdout)

    def environment(self, configuration: Configuration, *, tls: bool = False) -> dict[str, str]:
        """Return the environment of a client's process, without proxies: nothing may leave loopback."""
        own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        own.pop("SSEQBRIDGE_WITHOUT", None)
        if tls:
            # requests reads the file again for each connection, so it gets the short one.
            own |= {"SSL_CERT_FILE": self.upstream.bundle or "", "REQUESTS_CA_BUNDLE": self.upstream.ca or ""}
        return own | dict(configuration.environment)


class Control:
    """A connection for the upstream's requests other than streams."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        connection_class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = connection_class(parts.netloc, timeout=TIMEOUT_SECONDS)

    def get_json(self, path: str, **parameters: object) -> dict[str, Any]:
        """Send a GET request, and return the JSON of its response."""
        value: dict[str, Any] = json.loads(self._read(path, parameters))
        return value

    def prepare_burst(self, events: int, batch: int) -> None:
        """Request a burst once, so that the upstream has built it before it is measured."""
        self._read("/stream", {"events": events, "batch": batch})

    def _read(self, path: str, parameters: Mapping[str, object]) -> bytes:
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        self._connection.request("GET", f"{path}?{query}")
        return self._connection.getresponse().read()
