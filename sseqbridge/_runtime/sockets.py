"""Sockets and descriptors: shutting down, looking at a peer, and staying clear of descriptors 0 to 2.

Functions here never wait. They work on duplicates or by poll(), and never close a descriptor of
somebody else's.
"""

from __future__ import annotations

import _socket
import os
import select
import socket
import sys
from typing import Any

from .fork import ForkSafeLock
from .patching import original

if sys.platform != "win32":
    import fcntl

__all__ = [
    "above_standard_descriptors",
    "detach_connection_after_fork",
    "is_readable",
    "literal_address",
    "peer_has_left",
    "reader_has_left",
    "shut_down_connection",
    "shut_down_socket",
    "standard_descriptors",
]

def shut_down_socket(fd: int) -> None:
    """Shut a connection down both ways, so that its peer sees the end at once.

    Unlike a close this holds although a forked child has inherited the descriptor, and although
    unread or unsent data stands in the way. A connection that is down already is left alone.
    """
    # Through a duplicate, so that the loop keeps its own descriptor to close; of the C class,
    # which no monkey patch replaces.
    try:
        duplicate = _socket.socket(fileno=_socket.dup(fd))
    except OSError:
        return
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # Not connected any more: there is nothing left to tell the peer.
    finally:
        duplicate.close()


def shut_down_connection(transport: Any) -> None:
    """Do that to what has a socket to tell of: a transport, one of httpx's network streams."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        shut_down_socket(connection.fileno())


def detach_connection_after_fork(transport: Any) -> None:
    """In a forked child, have what was its parent's connection lead nowhere.

    A loop that the child goes on with would read, from the same socket, what the parent is to be given. The
    descriptor stays open, on another socket whose peer has gone: the parent's own stays as it is.
    """
    connection = transport.get_extra_info("socket")
    if sys.platform == "win32" or connection is None or connection.fileno() < 0:
        return
    try:
        ours, theirs = _socket.socketpair()
        os.dup2(ours.fileno(), connection.fileno(), inheritable=False)
    except OSError:
        return  # No descriptor is left for that.
    ours.close()
    theirs.close()


def is_readable(fd: int) -> bool:
    """Whether a socket has something to read, its end included."""
    if sys.platform == "win32":
        return bool(select.select([fd], (), (), 0)[0])
    poll = original("select", "poll")()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def peer_has_left(fd: int, *, may_peek: bool) -> bool:
    """Whether the peer of a socket, which is someone else's, has closed its end. Never waits.

    `may_peek` says that what can be read is not TLS, where it may be anything.
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
        # What can be read is the next request's, sent ahead.
        return False
    duplicate = _socket.socket(fileno=_socket.dup(fd))
    try:
        return not duplicate.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    finally:
        duplicate.close()


def reader_has_left(fd: int) -> bool:
    """Whether nobody reads any more what is written there: a pipe's reader, a terminal. Never waits."""
    if sys.platform == "win32":
        return False
    poll = original("select", "poll")()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def literal_address(host: str, port: int) -> list[Any]:
    """Return what getaddrinfo does, for a host that is no name and needs no look-up; else nothing."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    return []


class _StandardDescriptors:
    """Context manager that keeps descriptors 0 to 2 from being given to what is opened in the meantime.

    A process may run with its standard input, output or error closed. libuv aborts the process when it closes a
    descriptor of its own that is one of these, and a connection would get what is printed. So /dev/null takes the
    place of those that are closed, until they are closed again: the application finds them as it has left them.
    (uvloop opens descriptors when a loop is made, and with a loop's connections.)
    """

    def __init__(self) -> None:
        # All of it under the lock.
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
    # The application may have put something of its own in the place: dup2() makes that inheritable.
    return _is_open(fd) and not os.get_inheritable(fd)


def _take_standard_descriptors() -> list[int]:
    taken: list[int] = []
    try:
        # The lowest that is free is taken first.
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
    """Return a new socket, moved if its descriptor is one of 0 to 2; see _StandardDescriptors. Raises OSError."""
    if connection.fileno() > 2:
        return connection
    with connection:
        fd = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        return socket.socket(connection.family, connection.type, connection.proto, fileno=fd)
