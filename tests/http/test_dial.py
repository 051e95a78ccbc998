"""Resolving and connecting: happy eyeballs, and the errors of connections that cannot be made."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from typing import Any

import httpx
import pytest

from sseqbridge import ConnectError, StreamTimeoutError, Timeout
from sseqbridge._http import dial
from sseqbridge._runtime import sockets
from sseqbridge.testing import SSEServer, send
from tests.clock import FakeClock
from tests.requesters import Requester
from tests.support import in_thread

from .upstream import DONE, SHORT, Resolve, Run, asking, full_listener, new_client, own_transport, upstream

pytestmark = pytest.mark.slow


def test_ipv6_literal_is_connected_to(ask: Requester) -> None:
    def serve(listener: socket.socket) -> bytes:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            request = connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        return request

    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        serving = in_thread(lambda: serve(listener))
        assert ask(f"http://[::1]:{port}/").items() == [1]
        assert f"Host: [::1]:{port}\r\n".encode() in serving.result(30)


@own_transport
def test_second_address_is_tried_if_the_first_refuses(ask: Requester, resolve: Resolve, closed_port: int) -> None:
    with SSEServer([send(1), DONE]) as server:
        resolve(closed_port, closed_port, int(server.url.rpartition(":")[2]))
        assert ask("http://upstream.test/").items() == [1]
    gc.collect()


@own_transport
def test_second_address_is_tried_if_the_first_is_silent(ask: Requester, resolve: Resolve) -> None:
    with SSEServer([send(1), DONE]) as server, full_listener() as full:
        resolve(full, int(server.url.rpartition(":")[2]))
        assert ask("http://upstream.test/").items() == [1]
    # If the first socket were not closed, it would warn here.
    gc.collect()


@own_transport
def test_name_with_silent_addresses_times_out(clock: FakeClock, ask: Requester, resolve: Resolve) -> None:
    with full_listener() as full:
        resolve(full, full)
        with pytest.raises(StreamTimeoutError) as caught:
            clock.advance_until_done(lambda: ask("http://upstream.test/", timeout=Timeout(connect=60)), step=5)
        assert caught.value.which == "connect"
    gc.collect()


@own_transport
def test_name_without_an_address_is_a_connect_error(ask: Requester, resolve: Resolve) -> None:
    resolve()
    with pytest.raises(ConnectError):
        ask("http://upstream.test/")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Do what `resolve` does on every loop: uvloop does not use socket.getaddrinfo()."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(sockets, "literal_address", lambda host, port: found)


def test_error_is_the_failure_of_the_first_address(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            raise OSError(errno.EHOSTUNREACH, f"of port {address[4][1]}")

        monkeypatch.setattr(dial, "attempt", attempt)
        resolve_to(monkeypatch, 1, 2, 3)
        async with new_client() as client:
            with pytest.raises(httpx.ConnectError, match="of port 1"):
                await client.get("http://upstream.test/")

    run(main)


def test_simultaneous_attempts_leave_one_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        attempt = dial.attempt
        begun = asyncio.Event()
        made: list[socket.socket] = []

        async def attempt_together(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            made.append(await attempt(loop, address))
            if len(made) == 2:
                begun.set()
            await begun.wait()
            return made[0] if address[4][1] == first.port else made[1]

        monkeypatch.setattr(dial, "attempt", attempt_together)
        async with upstream() as first, upstream() as second, new_client() as client:
            resolve_to(monkeypatch, first.port, second.port)
            async with asking(client, "http://upstream.test/") as pending:
                peers = [await first.accept(), await second.accept()]
                heads = [asyncio.create_task(peer.receive_some()) for peer in peers]
                await asyncio.wait(heads, return_when=asyncio.FIRST_COMPLETED)
                [used] = [n for n, head in enumerate(heads) if head.done() and head.exception() is None]
                await peers[used].send(SHORT)
                assert await (await pending).aread() == b"hello"
                assert len([connection for connection in made if connection.fileno() >= 0]) <= 1

    run(main)


def test_last_attempt_may_succeed_after_an_earlier_one_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        attempt = dial.attempt
        begun, failed = asyncio.Event(), asyncio.Event()

        async def attempt_in_turn(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            if address[4][1] == 1:
                await begun.wait()
                loop.call_soon(loop.call_soon, failed.set)
                raise OSError(errno.EHOSTUNREACH, "no route")
            begun.set()
            await failed.wait()
            return await attempt(loop, address)

        monkeypatch.setattr(dial, "attempt", attempt_in_turn)
        async with upstream() as server, new_client() as client:
            resolve_to(monkeypatch, 1, server.port)
            async with asking(client, "http://upstream.test/") as pending:
                peer = await server.accept()
                await peer.respond(SHORT)
                assert await (await pending).aread() == b"hello"

    run(main)


def test_address_families_alternate() -> None:
    found = [(family, 1, 6, "", (name, 80)) for family, name in ((6, "a"), (6, "b"), (6, "c"), (4, "d"), (4, "e"))]
    assert [address[4][0] for address in dial.interleaved(found)] == ["a", "d", "b", "e", "c"]


def test_etimedout_is_a_connect_error_and_no_timeout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

        monkeypatch.setattr(dial, "attempt", attempt)
        async with new_client() as client:
            with pytest.raises(httpx.ConnectError, match="timed out"):
                await client.get("http://127.0.0.1:1/")

    run(main)


@own_transport
def test_invalid_host_name_is_a_connect_error(ask: Requester) -> None:
    with pytest.raises(ConnectError, match="the host is not a valid name"):
        ask("http://a..test/")
