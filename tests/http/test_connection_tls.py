"""HTTP11Connection over TLS: handshakes, and TLS messages between the records of a response."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from sseqbridge import StreamTimeoutError, TransportError, TruncatedStreamError
from sseqbridge._http import client as http_client
from sseqbridge._http import dial, network_stream
from sseqbridge.testing import SSEServer, send
from tests.clock import FakeClock
from tests.requesters import Requester, Response
from tests.support import in_thread

from .tls13 import Records, start_tls
from .upstream import Run, asking, new_client, own_transport, upstream

pytestmark = pytest.mark.slow


def test_untrusted_certificate_is_a_connect_error(run: Run, server_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with new_client(ssl.create_default_context()) as client:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await client.get(server.url)

    with SSEServer([send(1)], ssl_context=server_tls) as server:
        run(main)
        assert server.requests == []


@pytest.mark.parametrize("leave", ["close", "reset", "speaks no TLS"])
def test_failed_tls_handshake_is_a_connect_error(run: Run, client_tls: ssl.SSLContext, leave: str) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(client_tls) as client,
            asking(client, server.url.replace("http:", "https:")) as pending,
        ):
            peer = await server.accept()
            await peer.receive_some()
            if leave == "speaks no TLS":
                await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            elif leave == "reset":
                peer.reset()
            else:
                peer.socket.close()
            reason = "(?i)wrong.version" if leave == "speaks no TLS" else "closed the connection during the TLS"
            with pytest.raises(httpx.ConnectError, match=reason):
                await pending

    run(main)


def test_tls_handshake_times_out(clock: FakeClock, run: Run, client_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with (
            upstream() as server,
            new_client(client_tls, timeout=httpx.Timeout(None, connect=60)) as client,
            asking(client, server.url.replace("http:", "https:")) as pending,
        ):
            peer = await server.accept()
            with pytest.raises(httpx.ConnectTimeout):
                await clock.aadvance_until_done(pending, step=10)
            assert await peer.client_has_left()

    run(main)


@pytest.fixture
def hand_made(
    ask_fresh: Requester,
    monkeypatch: pytest.MonkeyPatch,
    authority: trustme.CA,
    client_tls: ssl.SSLContext,
    tmp_path: Path,
) -> Callable[..., AbstractContextManager[Response]]:
    """A function that sends a request to a server of hand-made TLS records, and runs `serve` on its connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    authority.issue_cert("127.0.0.1").configure_cert(context)
    monkeypatch.setattr(http_client, "_tls_context", client_tls)

    @contextlib.contextmanager
    def send_request(serve: Callable[[socket.socket, Records], None], **options: Any) -> Iterator[Response]:
        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(30)
                records = start_tls(connection, context, tmp_path / "keys")
                # The request may have arrived with the last part of the handshake, so it is not awaited.
                with contextlib.suppress(ConnectionError):
                    serve(connection, records)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            # A small buffer for bytes that the server does not read.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            in_thread(run)
            with ask_fresh(f"https://127.0.0.1:{listener.getsockname()[1]}/", **options) as response:
                yield response

    return send_request


ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"


@own_transport
def test_tls_tickets_do_not_extend_the_read_timeout(
    clock: FakeClock,
    hand_made: Callable[..., AbstractContextManager[Response]],
) -> None:
    def serve(connection: socket.socket, records: Records) -> None:
        connection.sendall(records.data(ENDLESS))
        while True:
            is_awaited.wait(30)
            connection.sendall(records.ticket())
            clock.advance(5)

    is_awaited = threading.Event()
    with hand_made(serve, timeout={"read": 60}) as response:
        assert response.next() == 1
        is_awaited.set()
        with pytest.raises(StreamTimeoutError) as caught:
            response.next()
        assert caught.value.which == "read"


@own_transport
@pytest.mark.parametrize("end", ["close-notify", "length"])
def test_response_may_end_with_the_read_that_has_its_head(
    hand_made: Callable[..., AbstractContextManager[Response]], end: str
) -> None:
    def serve(connection: socket.socket, records: Records) -> None:
        head = ENDLESS if end == "close-notify" else ENDLESS.replace(b"\r\n\r\n", b"\r\nContent-Length: 99\r\n\r\n")
        # One segment, and so one read.
        connection.sendall(records.data(head) + records.goodbye())
        is_read.wait(30)

    is_read = threading.Event()
    with hand_made(serve, timeout=None, done=None) as response:
        if end == "close-notify":
            assert response.items() == [1]
        else:
            items, error = response.fail()
            assert (items, type(error)) == ([1], TruncatedStreamError)
        is_read.set()


@own_transport
def test_tls_keys_may_change_during_a_stream(
    hand_made: Callable[..., AbstractContextManager[Response]],
) -> None:
    def serve(connection: socket.socket, records: Records) -> None:
        connection.sendall(records.data(ENDLESS) + records.key_update() + records.data(b"data: 2\n\n"))
        connection.sendall(records.ticket() + records.goodbye() + b"no TLS record")
        # Closing with unread bytes of the client would reset the connection, and drop what the client has not read.
        with contextlib.suppress(ConnectionError):
            while connection.recv(65_536):
                pass

    with hand_made(serve) as response:
        assert response.items() == [1, 2]


@own_transport
@pytest.mark.parametrize("updates_sent_with_the_head", [0, 3000])
def test_server_that_ignores_key_update_responses_is_aborted(
    hand_made: Callable[..., AbstractContextManager[Response]],
    monkeypatch: pytest.MonkeyPatch,
    updates_sent_with_the_head: int,
) -> None:
    """Earlier events are delivered, also events of the same read."""

    def serve(connection: socket.socket, records: Records) -> None:
        # The client's key updates soon fill the buffers.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(records.data(ENDLESS) + updates(records, updates_sent_with_the_head))
        while True:
            connection.sendall(updates(records, 300))

    def updates(records: Records, count: int) -> bytes:
        return b"".join(records.key_update() for _ in range(count))

    attempt = dial.attempt

    async def with_little_room(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
        connection = await attempt(loop, address)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return connection

    monkeypatch.setattr(dial, "attempt", with_little_room)
    monkeypatch.setattr(network_stream, "_MAX_UNSENT_TLS_BYTES", 10_000)
    with hand_made(serve) as response:
        assert response.next() == 1
        with pytest.raises(TransportError, match="does not read them"):
            response.next(30)


@own_transport
def test_close_notify_closes_an_idle_connection(
    ask_fresh: Requester,
    hand_made: Callable[..., AbstractContextManager[Response]],
) -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, records: Records) -> None:
        body = b"data: 1\n\n"
        connection.sendall(records.data(ENDLESS[:-11] + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)))
        over.wait(30)
        connection.sendall(records.goodbye())
        while connection.recv(1000):
            pass
        closed.set()

    over = threading.Event()
    with hand_made(serve) as response:
        assert response.items() == [1]
        over.set()
        ask_fresh.run_blocking(closed.wait, 30)
        assert closed.is_set()


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_tls_handshake_with_and_without_timeout(
    run: Run, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, timeout: float | None
) -> None:
    async def main() -> None:
        async with new_client(client_tls, timeout=timeout) as client:
            assert (await client.get(server.url)).content == b"data: 1\n\n"

    with SSEServer([send(1)], ssl_context=server_tls) as server:
        run(main)
