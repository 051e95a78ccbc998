"""Web servers in this process: context managers that serve an application, and return its URL."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet
from wsgiref.simple_server import WSGIRequestHandler, make_server

import uvicorn
from werkzeug.serving import ThreadedWSGIServer

from tests.support import in_thread, until

__all__ = ["sending", "under_uvicorn", "under_werkzeug", "under_wsgiref"]


@contextlib.contextmanager
def serving_wsgi(server: Any) -> Iterator[str]:
    # shutdown() takes as long as one poll.
    serving = in_thread(lambda: server.serve_forever(poll_interval=0.02))
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.result(30)
        server.server_close()


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class JoiningServer(ThreadedWSGIServer):
    """Waits for the threads of its requests when it is closed, so that a later test finds none."""

    daemon_threads = False

    def __init__(self, app: Any) -> None:
        super().__init__("127.0.0.1", 0, app)
        self._connections: WeakSet[socket.socket] = WeakSet()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        # A browser has spare connections, on which a thread waits for a request.
        for connection in tuple(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        super().server_close()


def under_werkzeug(app: Any, *, joins_threads: bool = False) -> Any:
    """With `joins_threads`, the end of the block waits for the threads of requests."""
    return serving_wsgi(JoiningServer(app) if joins_threads else ThreadedWSGIServer("127.0.0.1", 0, app))


def under_wsgiref(app: Any) -> Any:
    """One request at a time, and no socket in the environment."""
    return serving_wsgi(make_server("127.0.0.1", 0, app, handler_class=Quiet))


@contextlib.contextmanager
def under_uvicorn(app: Any) -> Iterator[str]:
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: server.run(sockets=[listener]))
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            serving.result(30)


@contextlib.contextmanager
def sending(url: str, request: str) -> Iterator[None]:
    """Send a request to a server of this module, and close the connection at the end of the block."""
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
        client.sendall(request.encode())
        yield
