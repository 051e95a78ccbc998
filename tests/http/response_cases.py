"""Cases of responses, and both ways to run them: through the sans-IO units, and over a fake connection.

A case is an object in a file of tests/data, whose bytes are written as text, one character a byte:

    name    a description
    see     the corresponding case of the corpus
    method  of the request ("GET")
    upgrade whether the request asks for another protocol
    sent    the lines of the response, joined without separators
    closes  whether the server closes the connection after the response
    status  of the response; without it, the head must be refused
    reason  the reason phrase, if it is checked
    headers the headers, if they are checked
    body    all bytes of the body that are delivered ("")
    error   a regular expression for the error after the head and the body
    kept    whether the connection is used for the next request (false)
    why     why this outcome is intended and safe, where a corpus, RFC or other client has another
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sseqbridge._http.h1_bodies import BodyReader, body_reader
from sseqbridge._http.h1_heads import HeadError, HeadReader, ResponseHead
from sseqbridge._http.transport import Transport

from .fake_connection import EOF, FakeConnection, FakeNetwork

__all__ = ["Case", "Outcome", "every_split", "load", "no_plain", "no_tls", "read_by_units", "read_over_transport"]

_DATA = Path(__file__).parents[1] / "data"

# The response to a second request. Nothing of the first response may be read as this one.
_NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"


@dataclass(frozen=True)
class Outcome:
    """The result of reading a response."""

    status: int | None = None
    reason: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    error: str | None = None
    kept: bool = False


@dataclass(frozen=True)
class Case:
    """A response, and the intended outcome."""

    name: str
    sent: bytes
    outcome: Outcome
    closes: bool = False
    method: str = "GET"
    upgrade: bool = False
    checks: frozenset[str] = frozenset()
    why: str = ""

    def assert_is(self, outcome: Outcome) -> None:
        """Raise AssertionError if `outcome` is not the intended one."""
        intended = self.outcome
        assert (outcome.status, outcome.body, outcome.kept) == (intended.status, intended.body, intended.kept)
        assert (outcome.error is None) == (intended.error is None), outcome.error
        if intended.error is not None:
            assert intended.error in str(outcome.error)
        if "reason" in self.checks:
            assert outcome.reason == intended.reason
        if "headers" in self.checks:
            assert outcome.headers == intended.headers


def load(file: str) -> list[Case]:
    """Return the cases of a file in tests/data."""
    return [_case(**entry) for entry in json.loads((_DATA / file).read_text("utf-8"))]


def _case(
    name: str,
    sent: Sequence[str],
    see: str,
    closes: bool = False,
    method: str = "GET",
    upgrade: bool = False,
    status: int | None = None,
    reason: str | None = None,
    headers: list[tuple[str, str]] | None = None,
    body: str = "",
    error: str | None = None,
    kept: bool = False,
    why: str = "",
) -> Case:
    assert see
    outcome = Outcome(
        status,
        (reason or "").encode("latin-1"),
        tuple((key.encode("latin-1"), value.encode("latin-1")) for key, value in headers or ()),
        body.encode("latin-1"),
        error,
        kept,
    )
    checked = {"reason": reason, "headers": headers}
    checks = frozenset(name for name, value in checked.items() if value is not None)
    return Case(name, "".join(sent).encode("latin-1"), outcome, closes, method, upgrade, checks, why)


def every_split(data: bytes) -> Iterator[list[bytes]]:
    """Yield the bytes whole, one by one, cut in two at every place, and cut at random places."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    places = range(1, len(data))
    for at in places:
        yield [data[:at], data[at:]]
    choose = random.Random(len(data))
    for _ in range(20):
        cuts = sorted({0, len(data), *choose.choices(places, k=choose.randrange(2, 9))})
        yield [data[begin:end] for begin, end in itertools.pairwise(cuts)]


class _Reading:
    """A response that is read by HeadReader and BodyReader, as the transport does, without a connection."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._reader = HeadReader()
        self.head: ResponseHead | None = None
        self.reader: BodyReader | None = None
        self.body = b""

    def feed(self, data: bytes) -> None:
        while self.reader is None:
            head = self._reader.feed(data)
            if head is None:
                return
            data = b""
            if head.status >= 200 or head.status == 101:
                self.head, data = head, self._reader.rest
                length, is_chunked = head.framing.length, head.framing.is_chunked
                self.reader = body_reader(self._method, head.status, length=length, is_chunked=is_chunked)
        # The transport, too, feeds nothing to a body that is complete.
        if self.reader.complete:
            self.reader.rest += data
        else:
            self.body += self.reader.feed(data)


def read_by_units(case: Case, pieces: list[bytes]) -> Outcome:
    """Read a response in these pieces with the sans-IO units, and return the outcome."""
    reading = _Reading(case.method)
    try:
        for piece in pieces:
            reading.feed(piece)
    except HeadError as exc:
        return Outcome(error=str(exc))
    head, reader = reading.head, reading.reader
    if head is None or reader is None:
        return Outcome(error="disconnected" if case.closes else None)
    if head.status == 101 and not case.upgrade:
        return Outcome(error="switched protocols")
    if case.closes:
        reader.end()
    kept = reader.complete and not reader.rest and head.framing.keeps_alive and head.status != 101 and not case.closes
    return Outcome(head.status, head.reason, tuple(head.headers), reading.body, reader.error, kept)


def read_over_transport(case: Case, pieces: list[bytes]) -> Outcome:
    """Read a response in these pieces with the transport. Checks that the next request gets its own response."""
    return asyncio.run(_read_over_transport(case, pieces))


async def _read_over_transport(case: Case, pieces: list[bytes]) -> Outcome:
    connection = FakeConnection([*pieces, EOF] if case.closes else pieces, [_NEXT])
    network = FakeNetwork(connection, FakeConnection([_NEXT]))
    transport = Transport(keepalive_expiry=60, tls_context=no_tls, plain=no_plain, dial=network.dial)
    outcome = await _ask(transport, case.method, {"Upgrade": "other"} if case.upgrade else {})
    # Bytes after the response must have arrived before the next request.
    await connection.over.wait()
    following = await _ask(transport, "GET", {})
    assert (following.status, following.body, following.error) == (200, b"next", None)
    await transport.aclose()
    kept = len(network.dialled) == 1
    assert len(connection.written) == (2 if kept else 1)
    return Outcome(outcome.status, outcome.reason, outcome.headers, outcome.body, outcome.error, kept)


async def _ask(transport: Transport, method: str, headers: dict[str, str]) -> Outcome:
    request = httpx.Request(method, "http://upstream.test/", headers=headers)
    try:
        response = await transport.handle_async_request(request)
    except httpx.RemoteProtocolError as exc:
        return Outcome(error=str(exc))
    body, error = b"", None
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        async for part in response.stream:
            body += part
    except httpx.RemoteProtocolError as exc:
        error = str(exc)
    await response.aclose()
    reason = response.extensions["reason_phrase"]
    return Outcome(response.status_code, reason, tuple(response.headers.raw), body, error)


async def no_tls() -> ssl.SSLContext:
    raise AssertionError("no request here is for https")


async def no_plain(scheme: str, proxy: str | None) -> Any:
    raise AssertionError("no request here is left to httpx's transport")
