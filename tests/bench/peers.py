"""The clients that are compared, each in the most efficient way that its documentation shows.

`chunks(url)` yields the decoded JSON of one stream's events in order, without `[DONE]`. All streams of a client share
one HTTP client or session. A client that reads to the end of the body reuses its connection for the next stream.

Invariant: a client imports its packages when it is created. It imports them by name, so that mypy runs without them.
"""

from __future__ import annotations

import asyncio
import functools
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Protocol

from . import split_peers
from .split_peers import ACCEPT, TIMEOUT_SECONDS, requests_session

__all__ = ["CLIENTS", "TIMEOUT_SECONDS", "Client", "SseqbridgeMerge"]

DONE = "[DONE]"


class Client(Protocol):
    """The interface of all clients."""

    def chunks(self, url: str) -> Iterable[Any]:
        """Request a stream, and return an iterable of its events' JSON."""


class Sseqbridge:
    """This library."""

    def __init__(self) -> None:
        from sseqbridge import request_sse

        self._request_sse = request_sse

    def chunks(self, url: str) -> Iterable[Any]:
        """Return the stream itself, as in an application."""
        _, _, events = self._request_sse(url, timeout=TIMEOUT_SECONDS)
        return events


class SseqbridgeMerge(Sseqbridge):
    """This library, with all streams in one loop."""

    def merged(self, url: str, streams: int) -> Iterable[Any]:
        """Open the streams, and return an iterable of the JSON of all their events."""
        from sseqbridge import merge

        call = functools.partial(self._request_sse, url, timeout=TIMEOUT_SECONDS)
        return (chunk for _, chunk in merge([call] * streams))


class HttpxSse:
    """httpx-sse on a sync httpx.Client."""

    def __init__(self) -> None:
        import httpx

        self._connect = import_module("httpx_sse").connect_sse
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS, limits=limits)

    def chunks(self, url: str) -> Iterator[Any]:
        """Read to the end of the body."""
        with self._connect(self._client, "GET", url) as source:
            for event in source.iter_sse():
                if event.data != DONE:
                    yield event.json()


class Httpx2:
    """httpx2's own client.sse()."""

    def __init__(self) -> None:
        httpx2 = import_module("httpx2")
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx2.Client(timeout=TIMEOUT_SECONDS, limits=limits)

    def chunks(self, url: str) -> Iterator[Any]:
        """Read to the end of the body."""
        with self._client.sse(url) as source:
            for event in source:
                if event.data != DONE:
                    yield event.json()


class RequestsSseclient:
    """requests with sseclient-py."""

    def __init__(self) -> None:
        self._sse_client = import_module("sseclient").SSEClient
        self._session = requests_session()

    def chunks(self, url: str) -> Iterator[Any]:
        """Read to the end of the body, in chunks as they arrive. (requests reads 128 bytes at a time by default.)"""
        with self._session.get(url, stream=True, timeout=TIMEOUT_SECONDS, headers=ACCEPT) as response:
            for event in self._sse_client(response.iter_content(None)).events():
                if event.data != DONE:
                    yield json.loads(event.data)


class RequestsSse:
    """requests-sse."""

    def __init__(self) -> None:
        self._event_source = import_module("requests_sse").EventSource
        self._session = requests_session()

    def chunks(self, url: str) -> Iterator[Any]:
        """Read until `[DONE]`, since at the end of the body it would reconnect."""
        with self._event_source(url, session=self._session, timeout=TIMEOUT_SECONDS) as source:
            for event in source:
                if event.data == DONE:
                    break
                yield json.loads(event.data)


class Naive:
    """The obvious bridge: a thread, an event loop, a client and an unbounded queue for each request."""

    def __init__(self) -> None:
        import httpx

        self._new_client = httpx.AsyncClient

    def chunks(self, url: str) -> Iterator[Any]:
        """Decode the lines that the thread puts into the queue."""
        lines: queue.Queue[str | BaseException | None] = queue.Queue()
        threading.Thread(target=lambda: asyncio.run(self._read_lines(url, lines)), daemon=True).start()
        while (line := lines.get()) is not None:
            if isinstance(line, BaseException):
                raise line
            if line.startswith("data: ") and line != f"data: {DONE}":
                yield json.loads(line[6:])

    async def _read_lines(self, url: str, lines: queue.Queue[str | BaseException | None]) -> None:
        try:
            async with self._new_client(timeout=TIMEOUT_SECONDS) as client, client.stream("GET", url) as response:
                async for line in response.aiter_lines():
                    lines.put(line)
        except Exception as error:
            lines.put(error)
        finally:
            lines.put(None)


CLIENTS: dict[str, Callable[[], Client]] = {
    "sseqbridge": Sseqbridge,
    "sseqbridge (merge)": SseqbridgeMerge,
    "httpx-sse": HttpxSse,
    "httpx2": Httpx2,
    "requests + sseclient-py": RequestsSseclient,
    "requests-sse": RequestsSse,
    "naive bridge": Naive,
    **split_peers.CLIENTS,
}
