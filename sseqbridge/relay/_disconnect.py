"""Whether a reader is still there, asked of the socket that the web server hands out.

A WSGI server notices that a reader has left when it writes. Between writes the socket knows it,
and says so without being read or written: it belongs to the server.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sseqbridge._checks import check_seconds
from sseqbridge._runtime import sockets
from sseqbridge._runtime.clock import clock

__all__ = ["Reader", "ReaderLeft", "reader_left", "reader_left_of", "reader_of"]


class Reader:
    """The other end of a server's socket."""

    def __init__(self, fd: int, *, is_tls: bool) -> None:
        self._fd = fd
        self._is_tls = is_tls

    def has_left(self) -> bool:
        """Whether the reader has closed the connection, or the way to the server. Never waits."""
        return sockets.peer_has_left(self._fd, may_peek=not self._is_tls)


class ReaderLeft:
    """A flag that is set once the reader has left: for `request_sse(..., cancel=...)`, and for relays.

    Without a reader, and where `probe` is None, it is never set.
    """

    def __init__(self, reader: Reader | None, probe: float | None) -> None:
        self._reader = reader
        # Seconds from look to look, None where there is nothing to look at.
        self.probe = None if reader is None else probe
        self._look_at = 0.0
        self._has_left = False

    def is_set(self) -> bool:
        """Whether the reader has left, as of a look `probe` seconds ago at most."""
        if self.probe is not None and self._reader is not None and not self._has_left:
            now = clock.monotonic()
            if now >= self._look_at:
                self._look_at = now + self.probe
                self._has_left = self._reader.has_left()
        return self._has_left


def reader_left(environ: Mapping[str, Any], *, probe: float = 1.0) -> ReaderLeft:
    """Return a flag for request_sse's `cancel` that is set once the reader of a WSGI request has left.

    A relay looks after the reader once there is a stream; this does it while the view waits for the
    upstream's headers, too: request_sse raises RequestAbortedError then. The socket is looked at every
    `probe` seconds. Where the server hands out none the flag is never set. Raises UsageError for
    seconds that are none.
    """
    check_seconds("probe", probe, never=True)
    return reader_left_of(environ, probe)


def reader_left_of(environ: Mapping[str, Any] | None, probe: float | None) -> ReaderLeft:
    """Return the same for what has been checked; `environ` is None where there is none."""
    return ReaderLeft(None if environ is None else reader_of(environ), probe)


def reader_of(environ: Mapping[str, Any]) -> Reader | None:
    """Return the reader of a WSGI request, None where the server does not hand its socket out.

    gunicorn, Werkzeug and uWSGI do. Call it in the thread that the server calls the application in.
    """
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if connection is not None:
        # An SSLSocket, whichever: gevent has one of its own.
        return _checked(connection.fileno(), is_tls=hasattr(connection, "cipher"))
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and "uwsgi.version" in environ:
        return _checked(uwsgi.connection_fd(), is_tls=environ.get("wsgi.url_scheme") == "https")
    return None


def _checked(fd: int, *, is_tls: bool) -> Reader | None:
    return Reader(fd, is_tls=is_tls) if fd >= 0 else None
