"""The connection of an answer, where it belongs to a client of the caller's."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from sseqbridge._engine.client_lease import ClientLease
from sseqbridge._http.client import ClientPool


class NetworkStream:
    """As httpcore's, as far as a lease uses it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def get_extra_info(self, name: str) -> Any:
        return self._connection if name == "socket" else None


def test_forked_child_leaves_the_connection_to_its_parent() -> None:
    pool = ClientPool()
    lease = ClientLease(pool, "")
    childs, upstream = socket.socketpair()
    # The parent's descriptor of the same connection.
    parents = childs.dup()
    with childs, upstream, parents:
        lease.network_stream = NetworkStream(childs)
        lease.detach_after_fork()
        # The child reads an end, and nothing that is for its parent.
        upstream.sendall(b"for the parent")
        assert childs.recv(100) == b""
        assert parents.recv(100) == b"for the parent"
    asyncio.run(pool.aclose())
