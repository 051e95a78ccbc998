"""The clients that are measured, each as its documentation uses it at its most efficient.

Every one has `chunks(url)`, which gives the decoded JSON of one stream's events in order, without `[DONE]`, and one
client or session for all of them. What reads on to the end of the body keeps its connection for the next stream.

Rule: a client's packages are imported when it is made, and by it alone. They are imported by name, so that types can be
checked where they are not installed.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

__all__ = ["CLIENTS", "Client"]

DONE = "[DONE]"
TIMEOUT_SECONDS = 120.0
# More than any workload has streams.
POOL_SIZE = 2000


class Client(Protocol):
    """One of the clients."""

    def chunks(self, url: str) -> Iterable[Any]:
        """Ask for a stream, and give its events' JSON."""


class Sseqbridge:
    """This library."""

    def __init__(self) -> None:
        from sseqbridge import request_sse

        self._request_sse = request_sse

    def chunks(self, url: str) -> Iterable[Any]:
        """Return the stream itself: it is what the user loops over."""
        _, _, events = self._request_sse(url, timeout=TIMEOUT_SECONDS)
        return events


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
        self._session = _requests_session()

    def chunks(self, url: str) -> Iterator[Any]:
        """Read to the end of the body, each of its chunks as it comes: the default is 128 bytes at a time."""
        with self._session.get(url, stream=True, timeout=TIMEOUT_SECONDS, headers=_ACCEPT) as response:
            for event in self._sse_client(response.iter_content(None)).events():
                if event.data != DONE:
                    yield json.loads(event.data)


class RequestsSse:
    """requests-sse."""

    def __init__(self) -> None:
        self._event_source = import_module("requests_sse").EventSource
        self._session = _requests_session()

    def chunks(self, url: str) -> Iterator[Any]:
        """Read until `[DONE]`: past the end of the body it would wait and ask again."""
        with self._event_source(url, session=self._session, timeout=TIMEOUT_SECONDS) as source:
            for event in source:
                if event.data == DONE:
                    break
                yield json.loads(event.data)


_ACCEPT = {"Accept": "text/event-stream"}


def _requests_session() -> Any:
    requests = import_module("requests")
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=POOL_SIZE)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class Naive:
    """The bridge that people write first: for each ask a thread, a loop, a client and an unbounded queue."""

    def __init__(self) -> None:
        import httpx

        self._new_client = httpx.AsyncClient

    def chunks(self, url: str) -> Iterator[Any]:
        """Decode what the thread puts into the queue."""
        lines: queue.Queue[str | BaseException | None] = queue.Queue()
        threading.Thread(target=lambda: asyncio.run(self._ask(url, lines)), daemon=True).start()
        while (line := lines.get()) is not None:
            if isinstance(line, BaseException):
                raise line
            if line.startswith("data: ") and line != f"data: {DONE}":
                yield json.loads(line[6:])

    async def _ask(self, url: str, lines: queue.Queue[str | BaseException | None]) -> None:
        try:
            async with self._new_client(timeout=TIMEOUT_SECONDS) as client, client.stream("GET", url) as response:
                async for line in response.aiter_lines():
                    lines.put(line)
        except Exception as error:
            lines.put(error)
        finally:
            lines.put(None)


class Floor:
    """The least that it can cost in Python: http.client, cut at blank lines, the fastest decoder there is.

    It knows nothing of the event stream's format but `data: ` and the blank line, and one connection a thread.
    """

    def __init__(self) -> None:
        self._decode = import_module("msgspec").json.Decoder().decode
        self._local = threading.local()

    def chunks(self, url: str) -> Iterable[Any]:
        """Read to the end of the body."""
        return itertools.chain.from_iterable(self._batches(url))

    def _batches(self, url: str) -> Iterator[list[Any]]:
        decode, rest = self._decode, b""
        response = self._get(url)
        while data := response.read1(65_536):
            *events, rest = (rest + data).split(b"\n\n")
            if events and events[-1] == b"data: [DONE]":
                del events[-1]
            yield [decode(event[6:]) for event in events]

    def _get(self, url: str) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        connections: dict[str, http.client.HTTPConnection] = self._local.__dict__
        connection = connections.get(parts.netloc)
        if connection is None:
            maker = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = connections[parts.netloc] = maker(parts.netloc, timeout=TIMEOUT_SECONDS)
        connection.request("GET", f"{parts.path}?{parts.query}", headers=_ACCEPT)
        return connection.getresponse()


CLIENTS: dict[str, Callable[[], Client]] = {
    "sseqbridge": Sseqbridge,
    "httpx-sse": HttpxSse,
    "httpx2": Httpx2,
    "requests + sseclient-py": RequestsSseclient,
    "requests-sse": RequestsSse,
    "naive bridge": Naive,
    "http.client": Floor,
}
