"""The caller's headers that delimit the request or name its host, and what a value may end in."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sseqbridge import UsageError
from sseqbridge.testing import SSEServer, send
from tests.requesters import Requester

DONE = send("[DONE]")


@pytest.fixture
def server() -> Iterator[SSEServer]:
    with SSEServer([DONE]) as server:
        yield server


@pytest.mark.parametrize("headers", [[("Host", "a"), ("host", "b")], [("Host", "a"), ("HOST", "a")]])
def test_two_hosts_are_a_usage_error(ask: Requester, server: SSEServer, headers: Any) -> None:
    with pytest.raises(UsageError, match="'Host' must be given once"):
        ask(server.url, headers)
    assert server.requests == []


@pytest.mark.parametrize(
    "values", [["6, 6"], ["6", "6"], ["6", "7"], ["5"], ["7"], ["x"], ["-6"], ["+6"], ["6.0"], [""], ["0x6"], ["٦"]]
)
@pytest.mark.parametrize("content", ["hellö", "hellö".encode(), bytearray(6)])
def test_content_length_must_be_that_of_the_body(
    ask: Requester, server: SSEServer, values: list[str], content: Any
) -> None:
    with pytest.raises(UsageError, match=r"Content-Length|latin-1"):
        ask(server.url, [("Content-Length", value) for value in values], content=content)
    assert server.requests == []


def parts() -> Iterator[bytes]:
    yield b"hel"
    yield b"lo!"


async def parts_async() -> AsyncIterator[bytes]:
    yield b"hel"
    yield b"lo!"


MAKERS = [lambda: "hello!", lambda: b"hello!", parts, parts_async, lambda: [b"hello!"], lambda: io.BytesIO(b"hello!")]


@pytest.mark.parametrize("make", MAKERS)
def test_content_length_of_the_body_is_sent(ask: Requester, server: SSEServer, make: Callable[[], Any]) -> None:
    with ask(server.url, {"Content-Length": "6"}, content=make()) as response:
        assert response.items() == []
    [request] = server.requests
    assert (request.body, request.headers["content-length"]) == (b"hello!", "6")
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("make", MAKERS[2:])
@pytest.mark.parametrize("length", ["2", "5", "7"])
def test_body_of_unknown_length_is_measured(
    ask: Requester, server: SSEServer, make: Callable[[], Any], length: str
) -> None:
    with pytest.raises(UsageError, match=rf"must be the length of the body, got {length} for a body of"):
        ask(server.url, {"Content-Length": length}, content=make())


def one_by_one() -> Iterator[bytes]:
    yield from (b"a", b"", b"b", b"", b"c")


def test_too_long_body_is_never_sent_as_complete(ask: Requester, server: SSEServer) -> None:
    with pytest.raises(UsageError, match="got 2 for a body of at least 3 bytes"):
        ask(server.url, {"Content-Length": "2"}, content=one_by_one())
    assert server.requests == []
    with ask(server.url, {"Content-Length": "3"}, content=one_by_one()) as response:
        assert response.items() == []
    assert [request.body for request in server.requests] == [b"abc"]


async def asynchronous(content: list[bytes]) -> AsyncIterator[bytes]:
    for part in content:
        yield part


@pytest.mark.parametrize("iterator_of", [iter, asynchronous])
@pytest.mark.parametrize("content", [[], [b"", b""]], ids=["no part", "empty parts"])
def test_empty_body_of_unknown_length_is_sent(
    ask: Requester, server: SSEServer, content: list[bytes], iterator_of: Callable[[list[bytes]], Any]
) -> None:
    with ask(server.url, {"Content-Length": "0"}, content=iterator_of(content)) as response:
        assert response.items() == []
    assert [(request.body, request.headers["content-length"]) for request in server.requests] == [(b"", "0")]


@pytest.mark.parametrize("end", ["\xa0", "\x85", "x\xa0"])
def test_only_blanks_are_refused_at_the_ends_of_values(ask: Requester, server: SSEServer, end: str) -> None:
    values = [f"a{end}", f"{end}a", f"{end}a{end}", f"a{end}".encode("latin-1")]
    for value in values:
        with ask(server.url, [("X-Name", value)]) as response:
            assert response.items() == []
    assert [request.headers["x-name"] for request in server.requests] == [*values[:3], f"a{end}"]
    for space in (" ", "\t"):
        for value in (f"a{space}", f"{space}a"):
            with pytest.raises(UsageError, match="begin or end with a space"):
                ask(server.url, {"X-Name": value})
