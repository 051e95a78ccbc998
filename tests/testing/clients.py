"""Clients of an SSEServer on raw sockets, and scripts that wait."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    cut,
    hold,
    raw,
    respond,
    send,
    silence,
    wait,
)

__all__ = [
    "GET",
    "HEAD",
    "WAITS",
    "connect",
    "raw_response",
    "read_to_end",
    "read_until",
    "send_fin",
    "send_rst",
    "wait_until_blocked",
]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
NEVER = threading.Event()


def connect(server: SSEServer, sent: bytes = GET) -> socket.socket:
    """Connect to `server`, with a small receive buffer, so that backpressure reaches the server soon."""
    client = socket.socket()
    client.settimeout(30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    url = httpx.URL(server.url)
    client.connect((url.host, url.port))
    client.sendall(sent)
    return client


def read_to_end(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65_536), b""))


def read_until(client: socket.socket, ending: bytes) -> bytes:
    data = b""
    while not data.endswith(ending):
        piece = client.recv(1)
        assert piece, data
        data += piece
    return data


def raw_response(script: list[Step], request: bytes = GET) -> bytes:
    """Send one request and return all bytes that the server sends."""
    with SSEServer([*script, cut()]) as server, connect(server, request) as client:
        return read_to_end(client)


def send_rst(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def send_fin(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def wait_until_blocked(request: ReceivedRequest) -> None:
    """Wait until a write of the server has been blocked for a tenth of a second."""
    before = -1
    while before != request.sent_bytes or not before:
        before = request.sent_bytes
        time.sleep(0.1)


def endless() -> Iterator[Step]:
    while True:
        yield raw(b"x" * 16_384)


WAITS: dict[str, Callable[[], Iterator[Step]]] = {
    "before the head": lambda: iter([silence()]),
    "silence": lambda: iter([send("x"), silence()]),
    "wait": lambda: iter([send("x"), wait(60)]),
    "hold": lambda: iter([send("x"), hold(NEVER)]),
    "a held body": lambda: iter([respond(framing="length"), send("x"), silence()]),
    "a blocked write": endless,
}
