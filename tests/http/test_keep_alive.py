"""TCP options of connections: keep-alive and no delay, on every transport."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, arequest_sse, request_sse
from sseqbridge._runtime import sockets
from sseqbridge.testing import SSEServer, send, silence
from tests.requesters import Requester
from tests.support import subscription_of

EXPECTED = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 60, "TCP_KEEPCNT": 5}


def assert_is_kept_alive(connection: Any) -> None:
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for name, value in EXPECTED.items():
        if hasattr(socket, name):
            assert connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value


def socket_of(events: Any) -> Any:
    return subscription_of(events).exchange.network_stream.get_extra_info("socket")


@pytest.mark.parametrize("extensions", [None, {"target": b"/other"}], ids=["direct", "by httpx"])
def test_connections_are_kept_alive(ask: Requester, extensions: Any) -> None:
    with SSEServer([send(1), silence()]) as server, ask(server.url, extensions=extensions) as response:
        assert response.next() == 1
        assert_is_kept_alive(socket_of(response.events))


def test_connections_of_a_factorys_clients_are_kept_alive() -> None:
    with (
        SSEServer([send(1), silence()]) as server,
        Bridge(client=httpx.AsyncClient) as bridge,
        request_sse(server.url, bridge=bridge) as (_, _, events),
    ):
        assert_is_kept_alive(socket_of(events))


def test_keep_alive_of_a_callers_client_is_not_changed() -> None:
    async def main() -> None:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)]
        transport = httpx.AsyncHTTPTransport(socket_options=options)
        async with (
            httpx.AsyncClient(transport=transport) as client,
            await arequest_sse(server.url, client=client) as (_, _, events),
        ):
            assert socket_of(events).getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        async with httpx.AsyncClient() as client, await arequest_sse(server.url, client=client) as (_, _, events):
            assert_is_kept_alive(socket_of(events))

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())


class OtherSocket:
    """A socket that is no TCP socket, or refuses every option."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.calls = 0

    def get_extra_info(self, name: str) -> OtherSocket:
        return self

    def fileno(self) -> int:
        return 7

    def getsockopt(self, *option: int) -> int:
        return 0

    def setsockopt(self, *option: int) -> None:
        self.calls += 1
        raise OSError("Protocol not available")


def test_refused_options_are_no_error() -> None:
    other = OtherSocket(socket.AF_INET)
    sockets.keep_connection_alive(other)
    assert other.calls == len(sockets.TCP_OPTIONS)


def test_other_sockets_are_left_as_they_are() -> None:
    other = OtherSocket(socket.AF_UNIX)
    sockets.keep_connection_alive(other)
    assert other.calls == 0
