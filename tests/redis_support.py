"""A real redis-server for tests, on a free port of loopback, which can be killed and started again."""

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

# Tests with this marker are skipped where redis-server is not installed: tiers.py.
needs_redis = pytest.mark.redis


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class RedisServer:
    """One server, with what it has written in a directory of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
        self._process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL)
        until(self.answers, 30)

    def answers(self) -> bool:
        """Whether it does."""
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.ResponseError) as exc:
            return isinstance(exc, redis.AuthenticationError)

    def client(self) -> redis.Redis:
        """Return a client of redis-py's, synchronous."""
        return redis.Redis(port=self.port, decode_responses=True)

    def kill(self) -> None:
        """End it without a word."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the process with SIGSTOP for the block: the server accepts connections and answers nothing."""
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
    """Run one, with these options of the command line."""
    with tempfile.TemporaryDirectory() as directory, RedisServer(Path(directory), *options) as server:
        yield server


class Proxy:
    """An address that leads to the port `target` of loopback; a connection stays where it led when it was made."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _limit(self) -> int:
        """Return after how many bytes a new connection is cut."""
        return sys.maxsize

    def _was_cut(self) -> None:
        """A connection came to its limit."""

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(inner, self._limit()), daemon=True).start()

    def _carry(self, inner: socket.socket, left: int) -> None:
        with inner:
            try:
                outer = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            with outer:
                ways = {inner: outer, outer: inner}
                while True:
                    for source in select.select(list(ways), (), ())[0]:
                        try:
                            data = source.recv(65_536)
                            ways[source].sendall(data[:left])
                        except OSError:
                            return
                        left -= len(data)
                        if left <= 0:
                            self._was_cut()
                        if not data or left <= 0:
                            return

    def close(self) -> None:
        # Unlike close(), this ends an accept() that waits.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
