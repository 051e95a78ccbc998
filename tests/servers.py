"""Real web servers on loopback, each in its own process, and a client for their event streams.

Invariant: each server is ended together with its child processes, and nothing listens beyond loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import h11
import trustme

from sseqbridge import Comment, ServerSentEvent
from sseqbridge._sse.parser import EventStreamParser
from tests.examples.commands import documented
from tests.leaks import shared
from tests.support import ROOT, until

__all__ = ["NCHAN", "NGINX", "UWSGI", "Reader", "Server", "Servers", "reading"]

_READY_SECONDS = 30.0
_READ_SECONDS = 30.0

_ANY_CERTIFICATE = ssl.create_default_context()
_ANY_CERTIFICATE.check_hostname = False
_ANY_CERTIFICATE.verify_mode = ssl.CERT_NONE


def _nginx() -> str | None:
    # Debian installs it in a directory that only root has in PATH.
    return shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def _uwsgi() -> list[str] | None:
    """Return the command of a uWSGI for this version of Python, from Debian or else from PyPI."""
    version = f"python{sys.version_info.major}{sys.version_info.minor}"
    from_debian = Path("/usr/bin/uwsgi-core")
    if from_debian.exists() and Path(f"/usr/lib/uwsgi/plugins/{version}_plugin.so").exists():
        # It runs Debian's interpreter with the packages of this one.
        paths = [path for path in sys.path if path.endswith("site-packages")]
        return [str(from_debian), "--plugin", version, *(f"--pythonpath={path}" for path in (*paths, ROOT))]
    from_pypi = Path(sys.executable).with_name("uwsgi")
    return [str(from_pypi)] if from_pypi.exists() else None


# Their commands; None if they are not installed.
NGINX = _nginx()
# The nginx module that stores messages and resumes event streams.
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
UWSGI = _uwsgi()


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _gunicorn(port: int, application: str, *worker: str) -> list[str]:
    options = ["--bind", f"127.0.0.1:{port}", "--workers", "1", "--log-level", "warning", "--worker-class", *worker]
    return _python("gunicorn", *options, application)


def _uvicorn(port: int, application: str, lifespan: str = "off") -> list[str]:
    return _python("uvicorn", "--port", str(port), "--lifespan", lifespan, "--log-level", "warning", application)


def _uwsgi_server(port: int, *options: str, application: str = "tests.apps.flask_app:app") -> list[str]:
    assert UWSGI is not None
    return [
        *UWSGI,
        f"--http-socket=127.0.0.1:{port}",
        f"--module={application}",
        "--need-app",
        "--disable-logging",
        *options,
    ]


_SDK_FLASK = "examples.sdk_chat.flask_app:app"
_SDK_GTHREAD = documented("gunicorn -k gthread --threads 100 examples.sdk_chat.flask_app:app")
_SDK_WSGI = documented("gunicorn -k gthread --threads 100 examples.sdk_chat.django_app:wsgi")
_SDK_ASGI = documented("uvicorn examples.sdk_chat.django_app:asgi")
_FLASK, _DJANGO, _PRELOADED = "tests.apps.flask_app:app", "tests.apps.django_app", "tests.apps.preloaded:app"

_ENDING = documented("gunicorn -c examples/gunicorn_conf.py APPLICATION")

# The commands of application servers by name. For flask run and gunicorn, ", TLS" can be appended to the name.
_COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "flask run": lambda port: _python("flask", "--app", _FLASK, "run", "--port", str(port)),
    "gunicorn sync": lambda port: _gunicorn(port, _FLASK, "sync"),
    "gunicorn gthread": lambda port: _gunicorn(port, _FLASK, "gthread", "--threads", "64"),
    "gunicorn gevent": lambda port: _gunicorn(port, _FLASK, "gevent"),
    "uwsgi": _uwsgi_server,
    "uwsgi threads": lambda port: _uwsgi_server(port, "--enable-threads"),
    "runserver": lambda port: _python(_DJANGO, "runserver", "--noreload", str(port)),
    "django gunicorn": lambda port: _gunicorn(port, f"{_DJANGO}:wsgi", "gthread", "--threads", "8"),
    "django gevent": lambda port: _gunicorn(port, f"{_DJANGO}:wsgi", "gevent"),
    "django uvicorn": lambda port: _uvicorn(port, f"{_DJANGO}:asgi"),
    "django daphne": lambda port: _python("daphne", "--port", str(port), "--verbosity", "0", f"{_DJANGO}:asgi"),
    "starlette": lambda port: _uvicorn(port, "tests.apps.starlette_app:app"),
    "gunicorn sync, preload": lambda port: [*_gunicorn(port, _PRELOADED, "sync"), "--preload"],
    "gunicorn gthread, preload": lambda port: [*_gunicorn(port, _PRELOADED, "gthread", "--threads", "4"), "--preload"],
    "gunicorn gevent, preload": lambda port: [*_gunicorn(port, _PRELOADED, "gevent"), "--preload"],
    "uwsgi, preload": lambda port: _uwsgi_server(
        port, "--enable-threads", "--master", "--processes=2", application=_PRELOADED
    ),
    "sdk flask run": lambda port: _python("flask", "--app", _SDK_FLASK, "run", "--port", str(port)),
    "sdk gunicorn gthread": lambda port: [*_SDK_GTHREAD.words, "--bind", f"127.0.0.1:{port}"],
    "sdk gunicorn gevent": lambda port: _gunicorn(port, _SDK_FLASK, "gevent"),
    "sdk django gunicorn": lambda port: [*_SDK_WSGI.words, "--bind", f"127.0.0.1:{port}"],
    "sdk django uvicorn": lambda port: [*_SDK_ASGI.words, "--port", str(port), "--log-level", "warning"],
    "gunicorn gthread, ending": lambda port: [
        _FLASK if word == "APPLICATION" else word
        for word in [*_ENDING.words, "--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    ],
    "uvicorn, ending": lambda port: _uvicorn(port, "tests.apps.ending:app", lifespan="on"),
    "hypercorn, ending": lambda port: _python("tests.apps.ending", str(port)),
    "django uvicorn, ending": lambda port: _uvicorn(port, "tests.apps.ending_django:application", lifespan="on"),
    "upstreams": lambda port: _uvicorn(port, "tests.apps.upstreams:app"),
}

_NGINX_CONFIGURATION = """
daemon off;
pid nginx.pid;
error_log stderr;
%s
events {}
http {
    access_log off;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    server {
        listen 127.0.0.1:%d;
        location = /plain { return 204; }
        %s
    }
}
"""
_LOCATIONS = {
    "nginx": "location ~ ^/(\\d+)(/.*)$ { proxy_pass http://127.0.0.1:$1$2$is_args$args; }",
    "nchan": """
        nchan_channel_id $arg_id;
        nchan_message_buffer_length 100000;
        nchan_message_timeout 0;
        location = /publish { nchan_publisher; }
        location = /subscribe { nchan_subscriber eventsource; nchan_subscriber_first_message oldest; }
    """,
}


class Server:
    """The process of a web server. `url` is its origin."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Reserves the port for the server's lifetime. The server can bind it too, since this socket
        # does not listen.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.port: int = self._port.getsockname()[1]
        self.url = f"http{'s' if name.endswith(', TLS') else ''}://127.0.0.1:{self.port}"
        self.directory = Path(tempfile.mkdtemp(prefix="sseqbridge-"))
        self._log = self.directory / "log"
        # nginx must not run as root. (Except with nchan, whose master process needs a fixed directory in /var/lib; its
        # workers run as another user.)
        self._user = "nobody" if name == "nginx" and os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.directory, self._user)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._user,
                extra_groups=None if self._user is None else [],
            )

    def _command(self) -> list[str]:
        if self.name not in _LOCATIONS:
            application = self.name.removesuffix(", TLS")
            tls = application != self.name
            return _COMMANDS[application](self.port) + (self._tls_options(application) if tls else [])
        assert NGINX is not None
        configuration = self.directory / "nginx.conf"
        module = f"load_module {NCHAN};" if self.name == "nchan" else ""
        configuration.write_text(_NGINX_CONFIGURATION % (module, self.port, _LOCATIONS[self.name]))
        return [NGINX, "-p", str(self.directory), "-c", str(configuration), "-e", "stderr"]

    def _tls_options(self, application: str) -> list[str]:
        certificate = self.directory / "certificate.pem"
        issued = trustme.CA().issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(certificate)
        options = ("--cert", "--key") if application == "flask run" else ("--certfile", "--keyfile")
        return [argument for option in options for argument in (option, str(certificate))]

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return own | {"TMPDIR": str(self.directory), "PYTHONWARNINGS": "default::ResourceWarning"}

    @property
    def log(self) -> str:
        """The output of the server so far."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until the server responds. Raises RuntimeError with its log if it does not."""
        try:
            until(self._is_ready, _READY_SECONDS)
        except TimeoutError:
            raise RuntimeError(f"{self.name} does not respond:\n{self.log}") from None

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended with status {self._process.returncode}:\n{self.log}")
        try:
            with urllib.request.urlopen(
                f"{self.url}/plain", timeout=_READY_SECONDS, context=_ANY_CERTIFICATE
            ) as response:
                return bool(response.read() or True)
        except urllib.error.URLError:
            time.sleep(0.01)
            return False

    def terminate(self) -> int:
        """Send the server SIGTERM, and return its status once it has ended."""
        self._process.terminate()
        return self._process.wait(_READY_SECONDS)

    def close(self) -> None:
        """Kill the server and its child processes."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._port.close()
        shutil.rmtree(self.directory)


class Servers:
    """Servers by name. Each is started on first use; all end together."""

    def __init__(self) -> None:
        self._running: dict[str, Server] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self._running.values():
            server.close()

    def __getitem__(self, name: str) -> Server:
        server = self._running.get(name)
        if server is None:
            # The server outlives the test that starts it.
            with shared():
                server = self._running[name] = Server(name)
                server.wait_until_ready()
        return server


class Reader:
    """A request and its response. Iterating yields events and comments as they arrive, until the end of the response.

    Raises h11.RemoteProtocolError if the response is cut off, TimeoutError after _READ_SECONDS without data.
    """

    def __init__(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, buffer: int | None = None
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.socket = socket.socket()
        if buffer is not None:
            # Before connecting, since it determines the TCP window.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(_READ_SECONDS)
        self.socket.connect((parts.hostname, parts.port))
        if parts.scheme == "https":
            self.socket = _ANY_CERTIFICATE.wrap_socket(self.socket)
        self._http = h11.Connection(h11.CLIENT)
        self._parser = EventStreamParser(comments=True)
        self._items: deque[ServerSentEvent | Comment] = deque()
        request = h11.Request(
            method=method,
            target=parts._replace(scheme="", netloc="").geturl(),
            headers=[("Host", parts.netloc), *(headers or {}).items()],
        )
        self.socket.sendall((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        self._response: h11.Response | None = None

    @property
    def response(self) -> h11.Response:
        """The head of the response. Waits for it."""
        if self._response is None:
            event = self._next()
            assert isinstance(event, h11.Response)
            self._response = event
        return self._response

    @property
    def status(self) -> int:
        """The status of the response."""
        return self.response.status_code

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response by lower-case name."""
        return {name.decode(): value.decode() for name, value in self.response.headers}

    def _next(self) -> h11.Event:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(self.socket.recv(65_536))
            elif not isinstance(event, h11.InformationalResponse):
                assert not isinstance(event, type)
                return event

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives, until its clean end."""
        assert self.response
        while not isinstance(event := self._next(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            yield bytes(event.data)

    def body(self) -> bytes:
        """Return the rest of the body."""
        return b"".join(self.pieces())

    def __iter__(self) -> Iterator[ServerSentEvent | Comment]:
        pieces = self.pieces()
        while True:
            while self._items:
                yield self._items.popleft()
            piece = next(pieces, None)
            if piece is None:
                return
            for item in self._parser.feed(piece):
                assert not isinstance(item, str)
                self._items.append(item)

    def item(self) -> ServerSentEvent | Comment:
        """Return the next event or comment."""
        return next(iter(self))

    def event(self) -> ServerSentEvent:
        """Return the next event."""
        return next(item for item in self if isinstance(item, ServerSentEvent))

    def comment(self) -> Comment:
        """Return the next item, which must be a comment."""
        item = self.item()
        assert isinstance(item, Comment)
        return item

    def events(self) -> list[ServerSentEvent]:
        """Return all events until the end of the response."""
        return [item for item in self if isinstance(item, ServerSentEvent)]

    def leave(self) -> float:
        """Close the connection, and return the time.monotonic() of that."""
        closed_at = time.monotonic()
        self.socket.close()
        return closed_at


@contextmanager
def reading(
    url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, buffer: int | None = None
) -> Iterator[Reader]:
    """Send a request, and close its connection at the end of the block."""
    reader = Reader(url, method=method, headers=headers, buffer=buffer)
    try:
        yield reader
    finally:
        reader.leave()
