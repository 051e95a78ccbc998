"""Aborts at each stage of a request before its response; tests/streams/test_abort.py aborts open streams."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
from typing import Any

import pytest

from sseqbridge import RequestAbortedError
from sseqbridge._http import dial
from tests.requesters import Requester
from tests.support import in_thread

from .upstream import Resolve, Run, asking, full_listener, new_client, own_transport, upstream

pytestmark = pytest.mark.slow


def test_abort_while_the_body_is_written(ask: Requester) -> None:
    cancel = threading.Event()
    seen = threading.Event()

    def serve(listener: socket.socket) -> bool:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            connection.recv(1000)
            seen.set()
            cancel.set()
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(1_000_000):
                    pass
            return True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: serve(listener))
        with pytest.raises(RequestAbortedError):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}", content=bytes(50_000_000), cancel=cancel)
        assert serving.result(30)


@own_transport
@pytest.mark.parametrize("names", [1, 2])
def test_abort_while_connecting(ask: Requester, resolve: Resolve, names: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    attempt, begun = dial.attempt, []

    async def seen_attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
        begun.append(address)
        if len(begun) == names:
            cancel.set()
        return await attempt(loop, address)

    monkeypatch.setattr(dial, "attempt", seen_attempt)
    with full_listener() as full:
        resolve(*[full] * names)
        with pytest.raises(RequestAbortedError):
            ask("http://upstream.test/", cancel=cancel)
    gc.collect()


def test_abort_while_the_head_is_awaited(ask: Requester) -> None:
    cancel = threading.Event()

    def serve(listener: socket.socket) -> bool:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            assert connection.recv(65_536)
            cancel.set()
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(65_536):
                    pass
        return True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: serve(listener))
        with pytest.raises(RequestAbortedError):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}/", cancel=cancel)
        assert serving.result(30)


def test_cancelled_tls_handshake_closes_the_connection(run: Run, client_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with upstream() as server, new_client(client_tls) as client:
            async with asking(client, server.url.replace("http:", "https:")) as pending:
                peer = await server.accept()
                assert await peer.receive_some()
                assert not pending.done()
            assert pending.cancelled()
            assert await peer.client_has_left()

    run(main)


def test_abort_while_a_name_is_resolved(ask: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, over = threading.Event(), threading.Event()

    def look_up(*args: Any, **options: Any) -> list[Any]:
        cancel.set()
        over.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with pytest.raises(RequestAbortedError):
            ask("http://upstream.test/", cancel=cancel)
    finally:
        over.set()


def test_cancelled_request_leaves_no_socket(run: Run) -> None:
    async def main() -> None:
        async with new_client() as client:
            async with asking(client, f"http://127.0.0.1:{full}/") as pending:
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not pending.done()
            assert pending.cancelled()

    with full_listener() as full:
        run(main)
