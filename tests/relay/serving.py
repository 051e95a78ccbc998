"""Web servers in this process, and Django's settings."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
import uvicorn
from django.conf import settings
from werkzeug.serving import make_server as make_werkzeug_server

from tests.support import in_thread, until

__all__ = ["sending", "under_uvicorn", "under_werkzeug", "under_wsgiref"]

_FOLDER = tempfile.TemporaryDirectory()

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        # A file: Django does not close an in-memory database.
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": _FOLDER.name + "/database"}},
        # A test of other views overrides it.
        ROOT_URLCONF="tests.relay.test_frameworks",
        SECRET_KEY="tests",
    )
    django.setup()


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


def under_werkzeug(app: Any) -> Any:
    return serving_wsgi(make_werkzeug_server("127.0.0.1", 0, app, threaded=True))


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
