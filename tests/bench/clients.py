"""The process of one client: `python -m tests.bench.clients CLIENT WORKLOAD URL name=value...`.

It runs the workload with the client, and prints the figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from tests.bench import abort, burst, many, paced, sdk, short

from .peers import CLIENTS
from .upstream import raise_file_limit

__all__ = ["main"]

ALL_CLIENTS: dict[str, Callable[[], Any]] = {**CLIENTS, **sdk.CLIENTS}
WORKLOADS: dict[str, Callable[..., dict[str, float]]] = {
    "abort": abort.measure,
    "burst": burst.measure,
    "many": many.measure,
    "paced": paced.measure,
    "sdk": sdk.measure,
    "short": short.measure,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clients", description="one client, one workload")
    parser.add_argument("client", choices=ALL_CLIENTS)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("url")
    parser.add_argument("arguments", nargs="*", metavar="name=value")
    options = parser.parse_args()
    arguments = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in options.arguments)}
    raise_file_limit()
    print(json.dumps(WORKLOADS[options.workload](ALL_CLIENTS[options.client](), options.url, **arguments)))


if __name__ == "__main__":
    main()
