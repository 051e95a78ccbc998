"""Sockets and descriptors: shutting down, detecting a closed peer, and avoiding descriptors 0 to 2.

Thread-safe, and nothing here blocks. Invariant: functions use duplicates or poll(), and never close a
descriptor that they did not open.
"""

from __future__ import annotations

import _socket
import os
import select
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from .fork import ForkSafeLock
from .patching import original

if sys.platform != "win32":
    import fcntl

__all__ = [
    "TCP_OPTIONS",
    "above_standard_descriptors",
    "detach_connection_after_fork",
    "identity",
    "is_reading_end_closed",
    "is_writable",
    "keep_alive",
    "keep_connection_alive",
    "literal_address",
    "peer_has_left",
    "read_check",
    "shut_down_connection",
    "shut_down_socket",
    "standard_descriptors",
    "unread_bytes",
]


# A peer that is gone without a trace, behind a NAT or after a crash, is noticed after six minutes of silence.
_KEEP_ALIVE_SECONDS = 60
_KEEP_ALIVE_PROBES = 5


def _tcp_options() -> list[tuple[int, int, int]]:
    """Return the options of TCP connections as arguments of setsockopt(): those that the platform has."""
    # macOS has another name for the idle time.
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
    values = {
        idle: _KEEP_ALIVE_SECONDS,
        "TCP_KEEPINTVL": _KEEP_ALIVE_SECONDS,
        "TCP_KEEPCNT": _KEEP_ALIVE_PROBES,
        "TCP_NODELAY": 1,
    }
    named = [(getattr(socket, name, None), value) for name, value in values.items()]
    tcp = [(socket.IPPROTO_TCP, option, value) for option, value in named if option is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *tcp]


TCP_OPTIONS = _tcp_options()


def keep_alive(connection: Any) -> None:
    """Turn on TCP keep-alive, and turn off Nagle's algorithm, for a TCP socket."""
    for option in TCP_OPTIONS:
        try:
            connection.setsockopt(*option)
        except OSError:
            pass  # Some sandboxes have not all of them.


def keep_connection_alive(transport: Any) -> None:
    """Do the same for the connection of one of httpx's network streams, unless its owner has turned keep-alive on."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0 or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        keep_alive(connection)


def shut_down_socket(fd: int) -> None:
    """Shut a connection down in both directions, so that its peer sees the end at once. Idempotent.

    close() would not reach the peer while a forked child has the descriptor, or before unsent data is sent.
    """
    # A duplicate, since the loop must close its own descriptor. The C class, which no monkey patch replaces.
    try:
        duplicate = _socket.socket(fileno=_socket.dup(fd))
    except OSError:
        return
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # Not connected any more.
    finally:
        duplicate.close()


def shut_down_connection(transport: Any) -> None:
    """Shut down the connection of an asyncio transport or of one of httpx's network streams."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        shut_down_socket(connection.fileno())


def detach_connection_after_fork(transport: Any) -> None:
    """In a forked child, replace an inherited connection by a socket whose peer has closed.

    If the child kept running the inherited loop, it would read the parent's data from the shared socket.
    The descriptor stays open on the new socket; the parent's connection is not affected.
    """
    connection = transport.get_extra_info("socket")
    if sys.platform == "win32" or connection is None or connection.fileno() < 0:
        return
    try:
        ours, theirs = _socket.socketpair()
        os.dup2(ours.fileno(), connection.fileno(), inheritable=False)
    except OSError:
        return  # No descriptor is free.
    ours.close()
    theirs.close()


def unread_bytes(fd: int, limit: int) -> bytes:
    """Return what the peer of a connection had sent before the connection was reset, at most `limit` bytes.

    A write fails at the reset, although the bytes before it can still be read. Never blocks.
    """
    if sys.platform == "win32":
        return b""
    try:
        duplicate = _socket.socket(fileno=_socket.dup(fd))
    except OSError:
        return b""  # For example if the process has no descriptor left.
    received = bytearray()
    try:
        # Else the socket has the default timeout, if there is one, and waits for it.
        duplicate.setblocking(False)
        while len(received) < limit and (part := duplicate.recv(limit - len(received), socket.MSG_DONTWAIT)):
            received += part
    except OSError:
        pass  # There is no more, or the reset itself.
    finally:
        duplicate.close()
    return bytes(received)


def read_check(fd: int) -> Callable[[], object]:
    """Return a function whose result is true if a socket has bytes to read, or has ended.

    It must not be called after the descriptor was closed.
    """
    if sys.platform == "win32":
        return lambda: select.select([fd], (), (), 0)[0]
    poll = original("select", "poll")()
    poll.register(fd, select.POLLIN)
    return partial(poll.poll, 0)


def identity(fd: int) -> tuple[int, int] | None:
    """Return what distinguishes the file behind a descriptor from a later one; None if the descriptor is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def peer_has_left(fd: int, *, may_peek: bool) -> bool:
    """Return whether the peer of a socket has closed its end. The socket may belong to a web server.

    `may_peek` must be False for TLS, whose records do not show whether the stream has ended.
    """
    if sys.platform == "win32":
        return False
    poll = original("select", "poll")()
    ended = getattr(select, "POLLRDHUP", 0)
    poll.register(fd, select.POLLIN | ended)
    events = dict(poll.poll(0)).get(fd, 0)
    if events & (ended | select.POLLHUP | select.POLLERR | select.POLLNVAL):
        return True
    if ended or not may_peek or not events:
        # Readable bytes are a pipelined request.
        return False
    duplicate = _socket.socket(fileno=_socket.dup(fd))
    try:
        return not duplicate.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    finally:
        duplicate.close()


def is_reading_end_closed(fd: int) -> bool:
    """Return whether the reading end of a pipe or terminal is closed."""
    if sys.platform == "win32":
        return False
    poll = original("select", "poll")()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def is_writable(fd: int) -> bool:
    """Return whether a write to a pipe, terminal or file would not block. A closed reading end counts as writable."""
    if sys.platform == "win32":
        return True
    poll = original("select", "poll")()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def literal_address(host: str, port: int) -> list[Any]:
    """Return getaddrinfo's result if `host` is an IP address, else an empty list."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    return []


class _StandardDescriptors:
    """Context manager inside which newly opened descriptors are never 0 to 2. Re-entrant.

    A process may run with standard input, output or error closed. libuv aborts the process when it closes a
    descriptor of 0 to 2, and a connection with such a descriptor would receive printed text. Inside the block
    /dev/null takes the place of the closed ones; afterwards they are closed again, as the application left them.
    (uvloop opens descriptors when it creates a loop, and for a loop's connections.)
    """

    def __init__(self) -> None:
        # Guards the other two fields.
        self._lock = ForkSafeLock()
        self._users = 0
        self._placeholders: list[int] = []

    def __enter__(self) -> None:
        with self._lock.native:
            if not self._users and not all(map(_is_open, range(3))):
                self._placeholders = _take_standard_descriptors()
            self._users += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock.native:
            self._users -= 1
            if not self._users:
                placeholders, self._placeholders = self._placeholders, []
                for fd in filter(_is_placeholder, placeholders):
                    os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True


def _is_placeholder(fd: int) -> bool:
    # The application may have opened a file of its own there with dup2(), which makes it inheritable.
    return _is_open(fd) and not os.get_inheritable(fd)


def _take_standard_descriptors() -> list[int]:
    taken: list[int] = []
    try:
        # open() returns the lowest free descriptor.
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            taken.append(fd)
        os.close(fd)
    except OSError:
        for fd in taken:
            os.close(fd)
        raise
    return taken


standard_descriptors = _StandardDescriptors()


def above_standard_descriptors(connection: socket.socket) -> socket.socket:
    """Return the socket, moved if its descriptor is 0 to 2 (see _StandardDescriptors). Raises OSError."""
    if connection.fileno() > 2:
        return connection
    with connection:
        fd = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        return socket.socket(connection.family, connection.type, connection.proto, fileno=fd)
