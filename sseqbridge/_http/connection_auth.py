"""Authentication of connections: NTLM and Negotiate authenticate the connection, and not each request on it.

A later request on such a connection has the identity of the earlier one, so no other call may use it
(RFC 4559, section 6). The handshake takes several requests on one connection, which belongs to the task of the call in
the meantime, or to the owner that the task has been given: a client sends each request in a task of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from contextvars import ContextVar

__all__ = ["authenticates_connection", "connection_owner", "own_connections"]

_owner: ContextVar[object] = ContextVar("sseqbridge_connection_owner", default=None)

_SCHEMES = re.compile(rb"[ \t]*(?:ntlm|negotiate)(?![^ \t])", re.IGNORECASE)


def authenticates_connection(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request with these headers authenticates its connection."""
    return any(
        name.lower() in (b"authorization", b"proxy-authorization") and _SCHEMES.match(value) is not None
        for name, value in headers
    )


def own_connections(owner: object) -> None:
    """Make `owner`, which must be hashable, the owner of the connections that the current task authenticates."""
    _owner.set(owner)


def connection_owner() -> object:
    """Return the owner of the connections that are being authenticated now."""
    return _owner.get() or asyncio.current_task()
