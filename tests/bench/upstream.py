"""The upstream of all clients: `python -m tests.bench.upstream` serves until its standard input ends.

It prints one line of JSON with its addresses, then serves GET requests on loopback, with a thread per connection:

    /stream?events=&batch=              a burst, `batch` events per HTTP chunk, then `[DONE]`
    /paced?events=&interval=            one event every `interval` seconds; its "created" is the send time
    /join?group=&size=&events=&interval=  one of `size` streams that are paced together, spread ended the interval
    /start?group=                       responds when all streams of the group are open, and starts them
    /hold?id=&full=                     one event, then silence until the client disconnects; with `full` endless events
    /held?id=                           JSON: how much /hold sent, and when its client disconnected
    /stats                              JSON: connections so far, and the delays of the last paced streams

Times are time.monotonic_ns(), which is the same clock in all processes on Linux. A burst is built before it is sent.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import select
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from .recordings import DONE, chat_stream, http_chunk, timed_chunk

__all__ = ["main", "raise_file_limit"]

SETTLE_SECONDS = 0.3
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = http_chunk(DONE) + b"0\r\n\r\n"
LEFT = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL

Parameters = dict[str, str]


@functools.lru_cache(maxsize=8)
def burst(events: int, batch: int) -> bytes:
    """Return a complete response: head, events and `[DONE]`."""
    frames = list(chat_stream(events))
    chunks = (http_chunk(b"".join(frames[at : at + batch])) for at in range(0, events, batch))
    return b"".join(chain([HEAD], chunks, [END]))


class Pacer:
    """Sends timed events at absolute deadlines, and records its own delays."""

    def __init__(self) -> None:
        self.late: list[int] = []

    def play(self, sockets: list[socket.socket], events: int, interval: float) -> None:
        """Send `events` on each socket, the sockets evenly spread ended the interval."""
        step = int(interval * 1e9 / len(sockets))
        chunk_sent_at = timed_chunk()
        self.late = []
        deadline = time.monotonic_ns()
        for _ in range(events):
            for sock in sockets:
                deadline += step
                remaining = deadline - time.monotonic_ns()
                if remaining > 0:
                    time.sleep(remaining / 1e9)
                now = time.monotonic_ns()
                sock.sendall(chunk_sent_at(now))
                self.late.append(now - deadline)

    def lateness(self) -> dict[str, float]:
        """Return median, 99th percentile and maximum of the delays, in milliseconds."""
        late = sorted(self.late) or [0]
        return {"p50": late[len(late) // 2] / 1e6, "p99": late[len(late) * 99 // 100] / 1e6, "worst": late[-1] / 1e6}


@dataclass(eq=False)
class Group:
    """Streams that start together."""

    sockets: list[socket.socket] = field(default_factory=list)
    full: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Held:
    """The state of one /hold request."""

    sent: int = 0
    left_at: int | None = None


class Upstream:
    """The routes, and their shared state."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections = 0
        self._groups: dict[str, Group] = {}
        self._held: dict[str, Held] = {}
        self._pacer = Pacer()
        self._routes: dict[str, Callable[[socket.socket, Parameters], None]] = {
            "/json": self._json,
            "/stream": self._stream,
            "/paced": self._paced,
            "/join": self._join,
            "/start": self._start,
            "/hold": self._hold,
            "/held": self._send_held,
            "/stats": self._send_stats,
        }

    def listen(self, context: ssl.SSLContext | None = None) -> int:
        """Start to serve on a free port, and return the port."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._accept, args=(listener, context), daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        while True:
            client, _ = listener.accept()
            with self._lock:
                self._connections += 1
            threading.Thread(target=self._serve, args=(client, context), daemon=True).start()

    def _serve(self, client: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            if context is not None:
                client = context.wrap_socket(client, server_side=True)
            with client, client.makefile("rb") as requests:
                while request := requests.readline():
                    while requests.readline() not in (b"\r\n", b""):
                        pass
                    target = urlsplit(request.split()[1].decode())
                    self._routes[target.path](client, dict(parse_qsl(target.query)))
        except OSError:  # The client has disconnected.
            client.close()

    def _json(self, client: socket.socket, parameters: Parameters) -> None:
        _send_json(client, {"id": "1", "choices": [{"message": {"role": "assistant", "content": "x" * 300}}]})

    def _stream(self, client: socket.socket, parameters: Parameters) -> None:
        client.sendall(burst(int(parameters["events"]), int(parameters["batch"])))

    def _paced(self, client: socket.socket, parameters: Parameters) -> None:
        client.sendall(HEAD)
        self._pacer.play([client], int(parameters["events"]), float(parameters["interval"]))
        client.sendall(END)

    def _join(self, client: socket.socket, parameters: Parameters) -> None:
        group = self._group(parameters)
        client.sendall(HEAD)
        with self._lock:
            group.sockets.append(client)
            is_last = len(group.sockets) == int(parameters["size"])
        if is_last:
            group.full.set()
            group.started.wait()
            try:
                self._pacer.play(group.sockets, int(parameters["events"]), float(parameters["interval"]))
                # A pause before the ends, so that a client can be measured after its last event.
                time.sleep(SETTLE_SECONDS)
            finally:
                group.ended.set()
        group.ended.wait()
        client.sendall(END)

    def _start(self, client: socket.socket, parameters: Parameters) -> None:
        group = self._group(parameters)
        group.full.wait()
        time.sleep(SETTLE_SECONDS)
        _send_json(client, {})
        time.sleep(SETTLE_SECONDS)
        group.started.set()

    def _group(self, parameters: Parameters) -> Group:
        with self._lock:
            return self._groups.setdefault(parameters["group"], Group())

    def _hold(self, client: socket.socket, parameters: Parameters) -> None:
        is_full = parameters["full"] == "yes"
        held = self._held[parameters["id"]] = Held()
        client.sendall(HEAD + http_chunk(b'data: "here"\n\n'))
        event = http_chunk(b'data: "%b"\n\n' % (b"x" * 16_000))
        poll = select.poll()
        poll.register(client, LEFT | (select.POLLOUT if is_full else 0))
        client.setblocking(False)
        while not poll.poll()[0][1] & LEFT:
            try:
                held.sent += client.send(event)
            except (BlockingIOError, ssl.SSLWantWriteError):
                # TLS keeps an incomplete record, and must get the same bytes again. POLLOUT is set
                # if there is room for less than a record: without a pause this loop would spin.
                time.sleep(0.0002)
            except OSError:
                break
        held.left_at = time.monotonic_ns()
        raise ConnectionAbortedError

    def _send_held(self, client: socket.socket, parameters: Parameters) -> None:
        held = self._held.get(parameters["id"], Held())
        _send_json(client, {"sent": held.sent, "left_at": held.left_at})

    def _send_stats(self, client: socket.socket, parameters: Parameters) -> None:
        _send_json(client, {"connections": self._connections, "late_ms": self._pacer.lateness()})


def _send_json(client: socket.socket, value: object) -> None:
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    client.sendall(head % len(body) + body)


def raise_file_limit() -> None:
    """Raise the soft limit of open descriptors to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tls_context(ca_path: Path, bundle_path: Path) -> ssl.SSLContext:
    """Return a context with a certificate for 127.0.0.1. Needs trustme.

    Writes the authority's certificate, alone and in a bundle with certifi's. Reading a bundle of that size is the usual
    cost of a TLS context.
    """
    import certifi
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_path)
    bundle_path.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.upstream", description="the benchmarks' upstream")
    parser.parse_args()
    raise_file_limit()
    upstream = Upstream()
    with tempfile.TemporaryDirectory() as folder:
        ca, bundle = Path(folder) / "ca.pem", Path(folder) / "bundle.pem"
        addresses = {"http": f"http://127.0.0.1:{upstream.listen()}"}
        try:
            port = upstream.listen(_tls_context(ca, bundle))
        except ImportError:
            pass
        else:
            addresses |= {"https": f"https://127.0.0.1:{port}", "ca": str(ca), "bundle": str(bundle)}
        print(json.dumps(addresses), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
