"""Connecting: resolve a host name and connect to one of its addresses (happy eyeballs, RFC 8305).

Runs on the event loop. At most one socket is left open by a call, and none if it fails or is cancelled.

This is the project's own code because neither alternative does the same on every loop. uvloop's
`create_connection` has no `happy_eyeballs_delay`. asyncio's opens its sockets itself, so that they cannot be
moved above the standard descriptors, and reports several different failures as one OSError without an errno,
where a caller needs the errno of the address that the resolver prefers; so does aiohappyeyeballs, which would
also be a dependency that httpx does not bring.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio

from sseqbridge._runtime import loops, sockets

from .errors import ConnectionFailedError

__all__ = ["Dial", "attempt", "connecting", "dial", "interleaved"]

# Seconds until the next address is tried in parallel (RFC 8305, section 5).
_ATTEMPT_DELAY = 0.25

# Connects a protocol to a host and port on the running loop: calls its `connection_made`, and its other
# methods later. Raises OSError if there is no connection.
Dial = Callable[[asyncio.BufferedProtocol, str, int], Awaitable[None]]


@contextlib.contextmanager
def connecting(timeout: float | None, package: Any, abort: Callable[[], None]) -> Iterator[None]:
    """Give the block, which makes a connection, `timeout` seconds. If it fails, close the connection with `abort`.

    Raises the ConnectTimeout and ConnectError of `package` (httpx or httpcore).
    """
    try:
        with anyio.fail_after(timeout):
            yield
    except BaseException as exc:
        # If this is cancelled just after connection_made(), the loop would only close the connection gracefully.
        abort()
        # The operating system's own ETIMEDOUT is a TimeoutError too, and not the caller's limit.
        if isinstance(exc, TimeoutError) and not (isinstance(exc, OSError) and exc.errno is not None):
            raise package.ConnectTimeout("the connection was not established in time") from exc
        if isinstance(exc, (OSError, OverflowError, ValueError)):
            raise package.ConnectError(str(exc)) from exc
        raise


async def dial(protocol: asyncio.BufferedProtocol, host: str, port: int) -> None:
    """Connect `protocol` to one of the addresses of `host`.

    Raises OSError with the failure of the first address if no address accepts the connection.
    """
    loop = asyncio.get_running_loop()
    connection = await _connected_socket(loop, host, port)
    # The loop owns the socket from here on, and closes it if this call fails.
    with sockets.standard_descriptors:
        await loop.create_connection(lambda: protocol, sock=connection)


async def _connected_socket(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    found = sockets.literal_address(host, port) or await loops.resolve(host, port)
    addresses = interleaved(found)
    if len(addresses) == 1:
        return await attempt(loop, addresses[0])
    attempts: set[asyncio.Task[socket.socket]] = set()
    failures: list[BaseException] = []
    try:
        while addresses or attempts:
            if addresses:
                attempts.add(loop.create_task(attempt(loop, addresses.popleft())))
            done, attempts = await asyncio.wait(
                attempts, timeout=_ATTEMPT_DELAY if addresses else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if task.exception() is None:
                    # Other attempts that succeeded in the same iteration are closed below.
                    attempts |= done - {task}
                    return task.result()
                failures.append(task.exception())  # type: ignore[arg-type]
    finally:
        for task in attempts:
            task.add_done_callback(_close_result)
            task.cancel()
    # The failure of the address that the resolver prefers.
    raise failures[0]


def interleaved(found: list[Any]) -> collections.deque[Any]:
    """Return getaddrinfo's addresses with alternating families, each family in the resolver's order.

    Raises OSError if there is no address.
    """
    if not found:
        raise ConnectionFailedError(errno.EADDRNOTAVAIL, "the name has no address")
    families: dict[Any, list[Any]] = {}
    for address in found:
        families.setdefault(address[0], []).append(address)
    longest = max(len(addresses) for addresses in families.values())
    return collections.deque(
        addresses[index] for index in range(longest) for addresses in families.values() if index < len(addresses)
    )


async def attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
    """Return a socket connected to one address, a getaddrinfo tuple. Raises OSError."""
    family, kind, protocol, _, socket_address = address
    connection = sockets.above_standard_descriptors(socket.socket(family, kind, protocol))
    try:
        connection.setblocking(False)
        sockets.keep_alive(connection)
        await loop.sock_connect(connection, socket_address)
    except BaseException:
        connection.close()
        raise
    return connection


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
