"""Applications for tests on real web servers. Each relays the stream whose URL is in the query of the request.

`upstream` is the address to read from; `heartbeat` and `probe` are in seconds, or "never".
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import httpx

from tests.apps.cancelling import acancelling, cancelling

__all__ = ["GENERATORS", "LARGE", "relay_options", "running_loop"]

# Long enough for every compressing middleware.
LARGE = "plain text " * 1000


def relay_options(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the query's `heartbeat`, `probe` and `early` as arguments of stream_response."""
    given = {name: query[name] for name in ("heartbeat", "probe") if name in query}
    options: dict[str, Any] = {name: None if value == "never" else float(value) for name, value in given.items()}
    return options | ({"early": True} if "early" in query else {})


def counting(query: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Yield `count` items, each when the upstream responds, and report the generator's end to the upstream."""
    upstream = query["upstream"]
    try:
        for n in range(int(query["count"])):
            _ask(f"{upstream}/compute/{n}")
            yield {"n": n}
    finally:
        _ask(f"{upstream}/closed")


def endless(query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield items without a pause, and report the generator's end to the upstream."""
    try:
        while True:
            yield {"padding": "x" * 1000}
    finally:
        _ask(f"{query['upstream']}/closed")


def _ask(url: str) -> None:
    with urllib.request.urlopen(url, timeout=10) as response:
        response.read()


async def acounting(query: Mapping[str, str]) -> AsyncIterator[dict[str, int]]:
    """Do the same as `counting`, asynchronously."""
    upstream = query["upstream"]
    async with httpx.AsyncClient(timeout=10) as client:
        try:
            for n in range(int(query["count"])):
                await client.get(f"{upstream}/compute/{n}")
                yield {"n": n}
        finally:
            await client.get(f"{upstream}/closed")


async def aendless(query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Do the same as `endless`, asynchronously."""
    async with httpx.AsyncClient(timeout=10) as client:
        try:
            while True:
                yield {"padding": "x" * 1000}
        finally:
            await client.get(f"{query['upstream']}/closed")


# Functions of a request's query, by name.
GENERATORS: dict[str, Callable[[Mapping[str, str]], Any]] = {
    "counting": counting,
    "endless": endless,
    "acounting": acounting,
    "aendless": aendless,
    "cancelling": cancelling,
    "acancelling": acancelling,
}


def running_loop() -> str | None:
    """Return the type of the event loop that runs in the view's thread; None if there is none."""
    try:
        return type(asyncio.get_running_loop()).__name__
    except RuntimeError:
        return None
