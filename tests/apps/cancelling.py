"""Iterables that report when their relay was closed, and when they were cancelled in the read of a stream.

For one client at a time, in a process of its own: the functions that close a relay are replaced.
"""

from __future__ import annotations

import functools
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from sseqbridge import arequest_sse, relay, request_sse

__all__ = ["acancelling", "cancelling"]

# The times of time.monotonic() at which relays were closed, since the last iterable began.
_closed_at: list[float] = []


def _noting(close: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(close)
    def noting(self: Any) -> Any:
        _closed_at.append(time.monotonic())
        return close(self)

    return noting


@functools.cache
def _note_closes() -> None:
    for kind, name in ((relay.Frames, "close"), (relay.AsyncFrames, "close"), (relay.AsyncFrames, "aclose")):
        setattr(kind, name, _noting(getattr(kind, name)))


def _report(query: Mapping[str, str], cancelled_at: float) -> None:
    with urllib.request.urlopen(f"{query['collector']}/{_closed_at[0]}/{cancelled_at}", timeout=10) as response:
        response.read()


def cancelling(query: Mapping[str, str]) -> Iterator[Any]:
    """Relay `upstream`, and report the two times as the path of a request to `collector`."""
    _note_closes()
    _closed_at.clear()
    try:
        yield from request_sse(query["upstream"]).events
    except BaseException:
        _report(query, time.monotonic())
        raise


async def acancelling(query: Mapping[str, str]) -> AsyncIterator[Any]:
    """Do the same, asynchronously."""
    _note_closes()
    _closed_at.clear()
    try:
        async for item in (await arequest_sse(query["upstream"])).events:
            yield item
    except BaseException:
        # In a thread: the event loop goes on to abort the upstream.
        threading.Thread(target=_report, args=(query, time.monotonic())).start()
        raise
