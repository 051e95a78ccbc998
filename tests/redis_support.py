"""A real redis-server for tests, on a free port of loopback, which can be killed and started again."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from .support import until

__all__ = ["RedisServer", "needs_redis", "redis_server"]

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


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
        until(self.answers)

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
