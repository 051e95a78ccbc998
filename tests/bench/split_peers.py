"""Clients that return bytes, with the least on top: a split at blank lines, and the fastest JSON decoder.

Of the event stream format they know only `data: ` and the blank line, so they show what the HTTP client costs. Each
reads as its documentation shows, and trusts the certificates of SSL_CERT_FILE. The last two are floors: the standard
library's client, and a socket of this thread with llhttp, which has no pool, no time limit and no checks.

Invariant: a client imports its packages when it is created. It imports them by name, so that mypy runs without them.
"""

from __future__ import annotations

import abc
import http.client
import itertools
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["CLIENTS", "POOL_SIZE", "TIMEOUT_SECONDS", "requests_session"]

TIMEOUT_SECONDS = 120.0
# More than the streams of any workload.
POOL_SIZE = 2000
ACCEPT = {"Accept": "text/event-stream"}
READ_BYTES = 65_536


def requests_session() -> Any:
    """Return a session of requests whose pool is large enough."""
    requests = import_module("requests")
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=POOL_SIZE)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def certificates() -> bytes | None:
    """Return the certificates that a client must trust, None for its own."""
    path = os.environ.get("SSL_CERT_FILE")
    return Path(path).read_bytes() if path else None


class SplitClient(abc.ABC):
    """A client of which a subclass reads the bytes of a body."""

    def __init__(self) -> None:
        self._decode = import_module("msgspec").json.Decoder().decode

    @abc.abstractmethod
    def reads(self, url: str) -> Iterator[bytes]:
        """Yield the bytes of a body as they arrive, to its end."""

    def chunks(self, url: str) -> Iterable[Any]:
        """Read to the end of the body."""
        return itertools.chain.from_iterable(self._batches(url))

    def _batches(self, url: str) -> Iterator[list[Any]]:
        decode, rest = self._decode, b""
        for data in self.reads(url):
            *events, rest = (rest + data).split(b"\n\n")
            if events and events[-1] == b"data: [DONE]":
                del events[-1]
            yield [decode(event[6:]) for event in events]


class Urllib3(SplitClient):
    """urllib3."""

    def __init__(self) -> None:
        super().__init__()
        options = {"ca_certs": os.environ["SSL_CERT_FILE"]} if "SSL_CERT_FILE" in os.environ else {}
        self._pools = import_module("urllib3").PoolManager(maxsize=POOL_SIZE, timeout=TIMEOUT_SECONDS, **options)

    def reads(self, url: str) -> Iterator[bytes]:
        response = self._pools.request("GET", url, headers=ACCEPT, preload_content=False)
        yield from response.stream(READ_BYTES)
        response.release_conn()


class Requests(SplitClient):
    """requests."""

    def __init__(self) -> None:
        super().__init__()
        self._session = requests_session()

    def reads(self, url: str) -> Iterator[bytes]:
        with self._session.get(url, stream=True, timeout=TIMEOUT_SECONDS, headers=ACCEPT) as response:
            yield from response.iter_content(None)


class Pyreqwest(SplitClient):
    """pyreqwest: reqwest, in Rust."""

    def __init__(self) -> None:
        super().__init__()
        builder = import_module("pyreqwest.client").SyncClientBuilder()
        pem = certificates()
        self._client = (builder if pem is None else builder.add_root_certificate_pem(pem)).build()

    def reads(self, url: str) -> Iterator[bytes]:
        with self._client.get(url).build_streamed() as response:
            reader = response.body_reader
            while (chunk := reader.read_chunk()) is not None:
                yield bytes(chunk)


class Primp(SplitClient):
    """primp: reqwest, in Rust."""

    def __init__(self) -> None:
        super().__init__()
        # It reads SSL_CERT_FILE itself.
        self._client = import_module("primp").Client(timeout=TIMEOUT_SECONDS)

    def reads(self, url: str) -> Iterator[bytes]:
        with self._client.get(url, stream=True) as response:
            yield from response.iter_bytes()


class Rqx(SplitClient):
    """rqx: reqwest, in Rust, with httpx's interface."""

    def __init__(self) -> None:
        super().__init__()
        verify = os.environ.get("SSL_CERT_FILE") or True
        self._client = import_module("rqx").Client(verify=verify, timeout=TIMEOUT_SECONDS)

    def reads(self, url: str) -> Iterator[bytes]:
        with self._client.stream("GET", url) as response:
            yield from response.iter_bytes()


class Pyqwest(SplitClient):
    """pyqwest: reqwest, in Rust."""

    def __init__(self) -> None:
        super().__init__()
        pyqwest = import_module("pyqwest")
        self._client = pyqwest.SyncClient(pyqwest.SyncHTTPTransport(tls_ca_cert=certificates()))

    def reads(self, url: str) -> Iterator[bytes]:
        with self._client.stream("GET", url) as response:
            yield from map(bytes, response.content)


class Pycurl(SplitClient):
    """pycurl: libcurl's multi interface, one for each thread, which keeps connections alive."""

    def __init__(self) -> None:
        super().__init__()
        self._pycurl = import_module("pycurl")
        self._local = threading.local()

    def reads(self, url: str) -> Iterator[bytes]:
        multi = self._multi()
        received: list[bytes] = []
        easy = self._pycurl.Curl()
        easy.setopt(easy.URL, url)
        easy.setopt(easy.HTTPHEADER, ["Accept: text/event-stream"])
        easy.setopt(easy.WRITEFUNCTION, received.append)
        if "SSL_CERT_FILE" in os.environ:
            easy.setopt(easy.CAINFO, os.environ["SSL_CERT_FILE"])
        multi.add_handle(easy)
        try:
            is_running = 1
            while is_running:
                _, is_running = multi.perform()
                if received:
                    yield b"".join(received)
                    received.clear()
                elif is_running:
                    multi.select(TIMEOUT_SECONDS)
            for _, code, message in multi.info_read()[2]:
                raise OSError(code, message)
        finally:
            multi.remove_handle(easy)
            easy.close()

    def _multi(self) -> Any:
        if not hasattr(self._local, "multi"):
            self._local.multi = self._pycurl.CurlMulti()
        return self._local.multi


class HttpClient(SplitClient):
    """http.client, with one connection per thread."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def reads(self, url: str) -> Iterator[bytes]:
        response = self._get(url)
        while data := response.read1(READ_BYTES):
            yield data

    def _get(self, url: str) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        connections: dict[str, http.client.HTTPConnection] = self._local.__dict__
        connection = connections.get(parts.netloc)
        if connection is None:
            connection_class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = connections[parts.netloc] = connection_class(parts.netloc, timeout=TIMEOUT_SECONDS)
        connection.request("GET", f"{parts.path}?{parts.query}", headers=ACCEPT)
        return connection.getresponse()


class SocketWithHttptools(SplitClient):
    """A blocking socket per thread, and llhttp."""

    def __init__(self) -> None:
        super().__init__()
        self._parser = import_module("httptools").HttpResponseParser
        self._local = threading.local()

    def reads(self, url: str) -> Iterator[bytes]:
        parts = urlsplit(url)
        connection = self._connection(parts.scheme, parts.netloc)
        connection.sendall(
            b"GET %b?%b HTTP/1.1\r\nHost: %b\r\nAccept: text/event-stream\r\n\r\n"
            % (parts.path.encode(), parts.query.encode(), parts.netloc.encode())
        )
        answer = _Answer()
        parser = self._parser(answer)
        while not answer.is_complete:
            data = connection.recv(READ_BYTES)
            if not data:
                raise ConnectionError("the upstream has closed the connection")
            parser.feed_data(data)
            yield b"".join(answer.body)
            answer.body.clear()

    def _connection(self, scheme: str, netloc: str) -> socket.socket:
        connections: dict[str, socket.socket] = self._local.__dict__
        connection = connections.get(netloc)
        if connection is None:
            host, _, port = netloc.partition(":")
            connection = socket.create_connection((host, int(port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
            connections[netloc] = connection
        return connection


class _Answer:
    """The callbacks of llhttp."""

    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.is_complete = False
        self.on_body = self.body.append

    def on_message_complete(self) -> None:
        self.is_complete = True


CLIENTS: dict[str, Callable[[], SplitClient]] = {
    "urllib3": Urllib3,
    "requests": Requests,
    "pyreqwest": Pyreqwest,
    "pycurl": Pycurl,
    "primp": Primp,
    "rqx": Rqx,
    "pyqwest": Pyqwest,
    "http.client": HttpClient,
    "socket + httptools": SocketWithHttptools,
}
