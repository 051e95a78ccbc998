"""A redis-server on a free port of loopback, which tests can kill and restart, and a proxy in front of it."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support import until

__all__ = ["Proxy", "RedisServer", "needs_redis", "redis_server"]

# tiers.py skips tests with this marker if redis-server is not installed.
needs_redis = pytest.mark.redis


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class RedisServer:
    """A server, with its data in `directory`."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it is ready."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
        self._process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL)
        until(self.is_ready, 30)

    def is_ready(self) -> bool:
        """Whether the server responds to PING."""
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.ResponseError) as exc:
            return isinstance(exc, redis.AuthenticationError)

    def client(self) -> redis.Redis:
        """Return a synchronous client of redis-py."""
        return redis.Redis(port=self.port, decode_responses=True)

    def kill(self) -> None:
        """Kill the server with SIGKILL. Its data stays."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the process with SIGSTOP for the block: the server accepts connections and does not respond."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server with these command line options."""
    with tempfile.TemporaryDirectory() as directory, RedisServer(Path(directory), *options) as server:
        yield server


class Proxy:
    """A port that forwards to the port `target` of loopback. A change of `target` concerns new connections only."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _limit(self) -> int:
        """Return the number of bytes after which a new connection is cut."""
        return sys.maxsize

    def _was_cut(self) -> None:
        """Called when a connection has reached its limit."""

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client, self._limit()), daemon=True).start()

    def _forward(self, client: socket.socket, remaining: int) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            with server:
                peers = {client: server, server: client}
                while True:
                    for source in select.select(list(peers), (), ())[0]:
                        try:
                            data = source.recv(65_536)
                            peers[source].sendall(data[:remaining])
                        except OSError:
                            return
                        remaining -= len(data)
                        if remaining <= 0:
                            self._was_cut()
                        if not data or remaining <= 0:
                            return

    def close(self) -> None:
        # Unlike close(), this unblocks a waiting accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
