"""The bytes of a request that is built without httpx are those of the request that httpx builds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from sseqbridge import ReconnectionPolicy
from sseqbridge._http.client import ClientPool
from sseqbridge._http.h1_heads import write_head
from sseqbridge._http.request import build_request
from sseqbridge._streams.arguments import prepare

pytestmark = pytest.mark.configurations("default")

URL = "http://localhost:8000/a%20b?key=1&c=%7E"

SENDABLE: dict[str, dict[str, Any]] = {
    "GET": {},
    "POST": {"data": {"a": "é"}},
    "POST without a body": {"method": "POST"},
    "POST of nothing": {"content": b""},
    "GET with a body": {"method": "GET", "content": b"abc"},
    "PUT": {"method": "put", "content": bytearray(b"abc")},
    "PATCH without a body": {"method": "PATCH"},
    "DELETE": {"method": "DELETE"},
    "headers": {"headers": {"X-A": "ä", "authorization": "Bearer secret", "Cookie": "a=1"}},
    "repeated headers": {"headers": [("X-A", "1"), ("x-a", "2")]},
    "replaced defaults": {"headers": {"ACCEPT": "*/*", "user-agent": "me", "accept-encoding": "gzip"}},
    "empty value": {"headers": {"X-A": ""}},
    "another host": {"url": "https://b%C3%BCcher.example./"},
    "an address": {"url": "http://[::1]:81?"},
    "default port": {"url": "https://a.example:443/#part"},
    "no path": {"url": "http://a.example"},
    "percent": {"url": "http://a.example/%2F%zz/ü"},
}

NOT_SENDABLE: dict[str, dict[str, Any]] = {
    "params": {"params": {"a": 1}},
    "cookies": {"cookies": {"a": "1"}},
    "files": {"files": {"a": b"1"}},
    "extensions": {"extensions": {"target": b"/b"}},
    "auth": {"auth": ("a", "b")},
    "auth of the URL": {"url": "http://a:b@localhost/"},
    "iterator": {"content": iter([b"a"])},
    "text": {"content": "a"},
    "last event ID": {"last_event_id": "7"},
    "reconnect": {"reconnect": ReconnectionPolicy()},
    "long body": {"content": b"a" * 65_000},
    "NTLM": {"headers": {"Authorization": "NTLM abc"}},
    "length": {"headers": {"Content-Length": "1"}, "content": b"a"},
    "connection": {"headers": {"Connection": "close"}},
    "upgrade": {"headers": {"Upgrade": "x"}},
    "host": {"headers": {"Host": "a"}},
    "another method": {"method": "QUERY"},
    "another scheme": {"url": "ftp://a.example/"},
    "no host": {"url": "http:///a"},
    "relative": {"url": "/a"},
    "invalid": {"url": "http://a.example:99999999/"},
    "half an address": {"url": "http://[::1"},
    "port out of range": {"url": "http://a.example:70000/"},
}


def made(changes: dict[str, Any]) -> tuple[Any, Any]:
    """Return the client and the options of a request."""
    arguments: dict[str, Any] = {"url": URL, **changes}
    first = {name: arguments.pop(name) for name in ("url", "headers", "data") if name in arguments}
    return ClientPool().lease(""), prepare(**first, options=arguments).options


@pytest.mark.parametrize("name", SENDABLE)
def test_bytes_are_those_of_httpx(name: str) -> None:
    client, options = made(SENDABLE[name])
    direct = client.direct_request(options)
    request = build_request(client, options, "")
    expected = write_head(request.method.encode(), request.url.raw_path, request.headers.raw) + request.content
    assert (direct.data, direct.method, direct.url) == (expected, request.method, request.url)


@pytest.mark.parametrize("name", NOT_SENDABLE)
def test_other_requests_are_left_to_httpx(name: str) -> None:
    client, options = made(NOT_SENDABLE[name])
    assert client.direct_request(options) is None


def test_header_that_cannot_be_sent_is_left_to_httpx() -> None:
    client, options = made({})
    for pair in [("a b", "c"), ("a", "b\nc")]:
        assert client.direct_request(replace(options, headers=[pair])) is None


def test_proxied_requests_are_left_to_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    client, options = made({})
    assert client.direct_request(options) is None


def test_clients_of_callers_send_by_themselves() -> None:
    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(201))) as http:
            own, options = made({})
            client = ClientPool.of(http).lease("")
            direct = own.direct_request(options)
            assert client.direct_request(options) is None
            assert client.reused_connection(direct) is None
            assert (await client.resend(build_request(client, options, ""))).status_code == 201

    asyncio.run(main())


def test_replaced_transport_sends_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return httpx.Response(202)

    async def main() -> None:
        client, options = made({})
        direct = client.direct_request(options)
        with monkeypatch.context() as patch:
            patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)
            assert client.reused_connection(direct) is None
            assert (await client.resend(build_request(client, options, ""))).status_code == 202
        await client.aclose()

    asyncio.run(main())
