"""Detecting the client's disconnect: a check of the socket that a WSGI server exposes.

A WSGI server notices a disconnect when it writes. Between writes the socket's state shows it. The socket
belongs to the server: nothing here reads from it or writes to it.

`ClientDisconnected.is_set` may be called by any thread. A race between two callers costs one more check.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from sseqbridge._checks import check_seconds
from sseqbridge._runtime import sockets
from sseqbridge._runtime.clock import clock

__all__ = ["Client", "ClientDisconnected", "client_of", "disconnect_flag", "reader_left", "stops_threads"]


# The key of a WSGI environment under which the flags of its request are kept.
_FLAGS = "sseqbridge.disconnect_flags"


class Client:
    """The peer of a web server's socket."""

    def __init__(self, fd: int, *, is_tls: bool) -> None:
        self._fd = fd
        self._is_tls = is_tls
        self._identity = sockets.identity(fd)

    def has_disconnected(self) -> bool:
        """Whether the client has closed the connection, or its sending half. Never waits.

        False once the server has closed its socket: the descriptor may belong to another client by then.
        """
        if self._identity is None or sockets.identity(self._fd) != self._identity:
            return False
        return sockets.peer_has_left(self._fd, may_peek=not self._is_tls)


class ClientDisconnected:
    """A flag that is set once the client has disconnected: for relays, and for `request_sse(..., cancel=...)`.

    Without a client, and with `probe` None, the flag is never set. `flags_of_request` is a list of all flags of one
    request; they keep their state once its response is closed.
    """

    def __init__(
        self, client: Client | None, probe: float | None, flags_of_request: list[ClientDisconnected] | None = None
    ) -> None:
        self._flags_of_request = [] if flags_of_request is None else flags_of_request
        self._flags_of_request.append(self)
        self._client = client
        # Seconds between two checks; None if there is no socket to check.
        self.probe = None if client is None else probe
        self._next_check = 0.0
        self._is_set = False

    def is_set(self) -> bool:
        """Whether the client has disconnected, as of a check at most `probe` seconds ago."""
        if self.probe is not None and self._client is not None and not self._is_set:
            now = clock.monotonic()
            if now >= self._next_check:
                self._next_check = now + self.probe
                if self._client.has_disconnected():
                    # All flags of the request at once: a relay whose stream ends by another flag must find its own set.
                    self._is_set = True
                    for flag in tuple(self._flags_of_request):
                        flag._is_set = flag._is_set or flag.probe is not None
        return self._is_set

    def end_request(self) -> None:
        """Let all flags of the request keep their state: its response is closed, and its connection has other uses."""
        while self._flags_of_request:
            self._flags_of_request.pop().probe = None


def reader_left(environ: Mapping[str, Any], *, probe: float = 1.0) -> ClientDisconnected:
    """Return a flag for request_sse's `cancel` that is set once the client of a WSGI request has disconnected.

        status, response_headers, it = request_sse(url, headers, data, cancel=reader_left(request.environ))

    `environ` is the request's WSGI environment.

    A relay watches the client as soon as there is a stream; the flag does so also while the view waits for
    the upstream's headers, where request_sse then raises RequestAbortedError. The socket is checked every
    `probe` seconds. If the server does not expose it, the flag is never set. Once the response is closed, the flag
    keeps its state.

    Raises UsageError if `probe` is not a number of seconds above 0, or None.
    """
    check_seconds("probe", probe, never=True)
    return disconnect_flag(environ, probe)


def disconnect_flag(environ: Mapping[str, Any] | None, probe: float | None) -> ClientDisconnected:
    """Return the flag for arguments that have been checked; `environ` is None outside of a request."""
    if environ is None:
        return ClientDisconnected(None, probe)
    flags = environ.setdefault(_FLAGS, []) if isinstance(environ, MutableMapping) else environ.get(_FLAGS)
    return ClientDisconnected(client_of(environ), probe, flags)


def client_of(environ: Mapping[str, Any]) -> Client | None:
    """Return the client of a WSGI request; None if the server does not expose its socket.

    gunicorn, Werkzeug and uWSGI do. Must be called in the thread in which the server called the application.
    """
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if connection is not None:
        # Recognizes every SSLSocket; gevent's is a class of its own.
        return _client(connection.fileno(), is_tls=hasattr(connection, "cipher"))
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and "uwsgi.version" in environ:
        return _client(uwsgi.connection_fd(), is_tls=environ.get("wsgi.url_scheme") == "https")
    return None


def stops_threads(environ: Mapping[str, Any] | None) -> bool:
    """Whether the web server runs other threads of Python only during a request, as uWSGI does by default."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None or environ is None or "uwsgi.version" not in environ:
        return False
    return not (uwsgi.opt.get("enable-threads") or uwsgi.opt.get("threads"))


def _client(fd: int, *, is_tls: bool) -> Client | None:
    return Client(fd, is_tls=is_tls) if fd >= 0 else None
