"""Real web servers on loopback, each a process of its own, and readers that speak to them through real sockets.

Rule: whatever is started here is ended here, with all that it has started itself; nothing listens past loopback.
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
from tests.leaks import shared
from tests.support import ROOT, until

__all__ = ["NCHAN", "NGINX", "UWSGI", "Reader", "Server", "Servers", "reading"]

_READY_SECONDS = 30.0
_READ_SECONDS = 30.0

_ANY_CERTIFICATE = ssl.create_default_context()
_ANY_CERTIFICATE.check_hostname = False
_ANY_CERTIFICATE.verify_mode = ssl.CERT_NONE


def _nginx() -> str | None:
    # Debian's is where only root's PATH leads.
    return shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def _uwsgi() -> list[str] | None:
    """Return the command of a uWSGI for this version of Python: Debian's, or else PyPI's."""
    version = f"python{sys.version_info.major}{sys.version_info.minor}"
    debians = Path("/usr/bin/uwsgi-core")
    if debians.exists() and Path(f"/usr/lib/uwsgi/plugins/{version}_plugin.so").exists():
        # It runs Debian's own interpreter, on this one's packages.
        paths = [path for path in sys.path if path.endswith("site-packages")]
        return [str(debians), "--plugin", version, *(f"--pythonpath={path}" for path in (*paths, ROOT))]
    pypis = Path(sys.executable).with_name("uwsgi")
    return [str(pypis)] if pypis.exists() else None


# What they are started with; None where they are not installed.
NGINX = _nginx()
# nginx's module that stores messages, and resumes event streams.
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
UWSGI = _uwsgi()


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _gunicorn(port: int, application: str, *worker: str) -> list[str]:
    options = ["--bind", f"127.0.0.1:{port}", "--workers", "1", "--log-level", "warning", "--worker-class", *worker]
    return _python("gunicorn", *options, application)


def _uvicorn(port: int, application: str) -> list[str]:
    return _python("uvicorn", "--port", str(port), "--lifespan", "off", "--log-level", "warning", application)


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


_SDK_FLASK, _SDK_DJANGO = "examples.sdk_chat.flask_app:app", "examples.sdk_chat.django_app"
_FLASK, _DJANGO, _PRELOADED = "tests.apps.flask_app:app", "tests.apps.django_app", "tests.apps.preloaded:app"

# The commands of the servers that run an application, by name; ", TLS" may follow it for flask run and gunicorn.
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
    "sdk gunicorn gthread": lambda port: _gunicorn(port, _SDK_FLASK, "gthread", "--threads", "8"),
    "sdk gunicorn gevent": lambda port: _gunicorn(port, _SDK_FLASK, "gevent"),
    "sdk django gunicorn": lambda port: _gunicorn(port, f"{_SDK_DJANGO}:wsgi", "gthread", "--threads", "8"),
    "sdk django uvicorn": lambda port: _uvicorn(port, f"{_SDK_DJANGO}:asgi"),
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
    """A web server's process. `url` is its origin."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Bound all the time, so that nobody else gets the port; the server may share it, since
        # this socket does not listen.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.port: int = self._port.getsockname()[1]
        self.url = f"http{'s' if name.endswith(', TLS') else ''}://127.0.0.1:{self.port}"
        self.directory = Path(tempfile.mkdtemp(prefix="sseqbridge-"))
        self._log = self.directory / "log"
        # Whoever is root lets others in: nginx is to run without its rights. (nchan's master wants them, for a
        # directory in /var/lib that cannot be another one; its workers have none.)
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
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Return once it answers. Raises RuntimeError, with its log, where it does not come to that."""
        try:
            until(self._answers, _READY_SECONDS)
        except TimeoutError:
            raise RuntimeError(f"{self.name} does not answer:\n{self.log}") from None

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended with status {self._process.returncode}:\n{self.log}")
        try:
            with urllib.request.urlopen(
                f"{self.url}/plain", timeout=_READY_SECONDS, context=_ANY_CERTIFICATE
            ) as answer:
                return bool(answer.read() or True)
        except urllib.error.URLError:
            time.sleep(0.01)
            return False

    def close(self) -> None:
        """End it, and whatever it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._port.close()
        shutil.rmtree(self.directory)


class Servers:
    """Servers by name, each started when it is first asked for, and ended with all the others."""

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
            # For all tests of the module, whichever comes first.
            with shared():
                server = self._running[name] = Server(name)
                server.wait_until_ready()
        return server


class Reader:
    """One request and its answer, read as it comes: iterating gives events and comments until the answer's end.

    Raises h11.RemoteProtocolError where the answer breaks off, TimeoutError where nothing comes for long.
    """

    def __init__(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, buffer: int | None = None
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.socket = socket.socket()
        if buffer is not None:
            # Before the connection is made: it says what the server may send ahead.
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
        """The answer's head, waiting for it."""
        if self._response is None:
            event = self._next()
            assert isinstance(event, h11.Response)
            self._response = event
        return self._response

    @property
    def status(self) -> int:
        """The answer's status."""
        return self.response.status_code

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers by lower-case name."""
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
        """Give the body as it comes, to its clean end."""
        assert self.response
        while not isinstance(event := self._next(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            yield bytes(event.data)

    def body(self) -> bytes:
        """Return what is left of the body."""
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
        """Return the next comment, which no event may come before."""
        item = self.item()
        assert isinstance(item, Comment)
        return item

    def events(self) -> list[ServerSentEvent]:
        """Return all events to the answer's end."""
        return [item for item in self if isinstance(item, ServerSentEvent)]

    def leave(self) -> float:
        """Close the connection, and return when, as time.monotonic() has it."""
        left_at = time.monotonic()
        self.socket.close()
        return left_at


@contextmanager
def reading(
    url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, buffer: int | None = None
) -> Iterator[Reader]:
    """Read an address for the time of a block."""
    reader = Reader(url, method=method, headers=headers, buffer=buffer)
    try:
        yield reader
    finally:
        reader.leave()
