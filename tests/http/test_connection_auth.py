"""Connections that NTLM and Negotiate authenticate: no other call may use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, ProtocolError, arequest_sse, request_sse
from sseqbridge._http.connection_auth import authenticates_connection
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, respond, send, silence, wire
from tests.clock import FakeClock
from tests.requesters import Requester
from tests.support import until

from .upstream import SHORT, Peer, Run, asking, new_transport, upstream

DONE = send("[DONE]")


@pytest.mark.parametrize(
    ("name", "value", "authenticates"),
    [
        ("Authorization", "NTLM TlRMTVNTUAAD", True),
        ("authorization", "negotiate YII=", True),
        ("AUTHORIZATION", "Negotiate", True),
        ("Proxy-Authorization", "ntlm x", True),
        ("Authorization", "Bearer NTLM", False),
        ("Authorization", "NTLM2 x", False),
        ("Authorization", "Basic x", False),
        ("X-Authorization", "NTLM x", False),
        ("Cookie", "NTLM x", False),
    ],
)
def test_schemes_of_connections_are_recognized(name: str, value: str, authenticates: bool) -> None:
    assert authenticates_connection(httpx.Headers({"Accept": "*/*", name: value}).raw) is authenticates


@pytest.mark.usefixtures("patient_end")
@pytest.mark.parametrize(("header", "connections"), [("Negotiate YII=", 3), ("NTLM TlRM", 3), ("Bearer x", 1)])
def test_authenticated_connection_serves_no_other_call(ask: Requester, header: str, connections: int) -> None:
    with SSEServer([send(1), DONE]) as server:
        for headers in ({"Authorization": header}, {"Authorization": header}, None):
            with ask(server.url, headers) as response:
                assert response.items() == [1]
        assert server.connections == connections


@pytest.mark.parametrize("is_shared", [False, True])
def test_authenticated_connection_of_a_callers_client_serves_no_other_call(is_shared: bool) -> None:
    headers = {"Authorization": "Negotiate YII="}
    with SSEServer([send(1), DONE]) as server:
        if is_shared:

            async def main() -> None:
                async with httpx.AsyncClient() as client:
                    for _ in range(2):
                        stream = await arequest_sse(server.url, headers, client=client)
                        assert [item async for item in stream.events] == [1]
                        await stream.events.aclose()

            asyncio.run(main())
        else:
            with Bridge(client=httpx.AsyncClient) as bridge:
                for _ in range(2):
                    assert list(request_sse(server.url, headers, bridge=bridge).events) == [1]
                    until(lambda: repr(bridge) == "<Bridge open streams=0>")
        assert server.connections == 2


class Handshake(httpx.Auth):
    """NTLM's three requests."""

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        response = yield request
        for message in ("one", "three"):
            assert response.status_code == 401
            request.headers["Authorization"] = f"NTLM {message}"
            response = yield request


def pausing_client(pause: asyncio.Event) -> httpx.AsyncClient:
    """Return a client that waits before the last request of a Handshake, when its connection is idle."""

    async def hook(request: httpx.Request) -> None:
        if request.headers.get("authorization") == "NTLM three":
            await pause.wait()

    return httpx.AsyncClient(transport=new_transport(), timeout=30, event_hooks={"request": [hook]})


def test_handshake_stays_on_its_connection(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if request.headers.get("authorization") == "NTLM three":
            return [send(1), DONE]
        return [respond(401, {"WWW-Authenticate": "NTLM two"}, content_type=None, framing="length")]

    with SSEServer(script) as server:
        for number in (1, 2):
            with ask(server.url, auth=Handshake()) as response:
                assert response.items() == [1]
            assert len(server.requests) == 3 * number
            assert server.connections == number


REFUSAL = b"HTTP/1.1 401 No\r\nWWW-Authenticate: NTLM x\r\nContent-Length: 0\r\n\r\n"


async def handshake(peer: Peer, *responses: bytes) -> None:
    for response in responses:
        await peer.respond(response)


def test_no_other_request_gets_into_a_handshake(run: Run) -> None:
    async def main() -> None:
        pause = asyncio.Event()
        async with upstream() as server, pausing_client(pause) as client:
            request = client.build_request("GET", server.url)
            asked = asyncio.create_task(client.send(request, auth=Handshake(), stream=True))
            peer = await server.accept()
            await handshake(peer, REFUSAL, REFUSAL)
            # The connection is idle now, and another request does not get it.
            async with asking(client, server.url) as other:
                await (await server.accept()).respond(SHORT)
                assert await (await other).aread() == b"hello"
                pause.set()
                await peer.respond(SHORT)
                response = await asked
                assert (response.status_code, await response.aread()) == (200, b"hello")
                assert await peer.client_has_left()
            assert server.connections == 2

    run(main)


def test_abandoned_handshake_expires(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        transport: Any = new_transport(keepalive_expiry=400)
        async with upstream() as server, httpx.AsyncClient(transport=transport, timeout=None) as client:
            peers = []
            for _ in range(2):
                async with asking(client, server.url, headers={"Authorization": "NTLM one"}) as pending:
                    peers.append(await server.accept())
                    await peers[-1].respond(REFUSAL)
                    await (await pending).aread()
            clock.advance(401)
            for peer in peers:
                assert await peer.client_has_left()
            assert transport.connection_count == 0

    run(main)


@pytest.mark.parametrize("way", ["the client is closed", "the server closes"])
def test_connection_of_a_handshake_can_end(run: Run, way: str) -> None:
    async def main() -> None:
        pause = asyncio.Event()
        async with upstream() as server, pausing_client(pause) as client:
            request = client.build_request("GET", server.url)
            asked = asyncio.create_task(client.send(request, auth=Handshake()))
            peer = await server.accept()
            await handshake(peer, REFUSAL, REFUSAL)
            if way == "the server closes":
                peer.socket.close()
                pause.set()
                # The handshake would have to begin again: the response of the server decides.
                await (await server.accept()).respond(SHORT)
                assert (await asked).content == b"hello"
            else:
                # Its own response shows that the connection of the handshake is idle.
                async with asking(client, server.url) as other:
                    await (await server.accept()).respond(SHORT)
                    await (await other).aread()
                await client.aclose()
                assert await peer.client_has_left()
                asked.cancel()
                await asyncio.wait({asked})

    run(main)


def test_handshakes_connection_ends_with_its_response_on_a_closed_client(run: Run) -> None:
    async def main() -> None:
        transport: Any = new_transport(keepalive_expiry=400)
        client = httpx.AsyncClient(transport=transport, timeout=None)
        async with upstream() as server, asking(client, server.url, headers={"Authorization": "NTLM one"}) as pending:
            peer = await server.accept()
            await peer.respond(REFUSAL.replace(b"0\r\n\r\n", b"2\r\n\r\n"))
            response = await pending
            await client.aclose()
            await peer.send(b"no")
            assert await response.aread() == b"no"
            assert await peer.client_has_left()

    run(main)


def test_two_lengths_end_the_connection(ask: Requester) -> None:
    """With both fields, an intermediary may have found another end of the body."""
    fields = b"Content-Type: text/event-stream\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
    with SSEServer([wire(b"HTTP/1.1 200 OK\r\n" + fields + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")]) as server:
        for _ in range(2):
            with ask(server.url) as response:
                assert response.items() == [1]
        assert server.connections == 2


def test_unrequested_switch_of_protocols_is_a_protocol_error(ask: Requester) -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    with SSEServer([wire(head), silence()]) as server:
        with pytest.raises(ProtocolError):
            ask(server.url)
        assert server.requests[0].wait_aborted()
        with ask(server.url, {"Upgrade": "websocket", "Connection": "upgrade"}) as response:
            assert response.status == 101
