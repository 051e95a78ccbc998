"""A redis-server on a free port of loopback, which tests can kill and restart, and a proxy in front of it."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typing_extensions import Self

from tests.support import until

__all__ = [
    "PROGRAMS",
    "Proxy",
    "RedisSentinel",
    "RedisServer",
    "needs_redis",
    "redis_cluster",
    "redis_server",
    "sentinel_of",
]

# tiers.py skips tests with this marker if redis-server is not installed.
needs_redis = pytest.mark.redis
# The servers for tests that depend on the server's version: Redis, and Valkey where it is installed.
PROGRAMS = ["redis-server", *filter(shutil.which, ["valkey-server"])]


class RedisServer:
    """One server, with what it has written in a directory of its own. `program` may be one that is compatible."""

    def __init__(self, directory: Path, *options: str, program: str = "redis-server", max_port: int = 65_535) -> None:
        # Until the end of the block no other process gets the port, also while the server is killed. The server can
        # bind it too, since this socket does not listen.
        self._reserved = _reserved_port(max_port)
        self.port: int = self._reserved.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._directory = directory
        self._options = options
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        process = self._process = subprocess.Popen(self._command(), stdout=subprocess.DEVNULL)
        until(lambda: self.answers() or process.poll() is not None, 60)
        # For example because another process has taken the port.
        assert process.poll() is None, f"{self.program} has ended with status {process.poll()}"

    def _command(self) -> list[str]:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
        return [*command, *self._options]

    def answers(self) -> bool:
        """Whether it does."""
        try:
            # Another process may have taken the port, and never answer.
            with redis.Redis(port=self.port, socket_timeout=10) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as exc:
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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self._reserved.close()


def _reserved_port(max_port: int) -> socket.socket:
    while True:
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        if reserved.getsockname()[1] <= max_port:
            return reserved
        reserved.close()


class RedisSentinel(RedisServer):
    """A Sentinel that watches one master, under the name "mymaster"."""

    def __init__(self, directory: Path, master: RedisServer) -> None:
        super().__init__(directory)
        self._config = directory / "sentinel.conf"
        # It begins a failover after 500 ms without an answer, and without the consent of others.
        self._config.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\n"
            "sentinel failover-timeout mymaster 20000\n"
        )

    def _command(self) -> list[str]:
        return ["redis-server", str(self._config), "--sentinel", "--port", str(self.port), "--bind", "127.0.0.1"]


@contextlib.contextmanager
def redis_server(*options: str, program: str = "redis-server") -> Iterator[RedisServer]:
    """Run one, with these options of the command line."""
    with tempfile.TemporaryDirectory() as directory, RedisServer(Path(directory), *options, program=program) as server:
        yield server


@contextlib.contextmanager
def sentinel_of(master: RedisServer) -> Iterator[RedisSentinel]:
    """Run a Sentinel that watches a master."""
    with tempfile.TemporaryDirectory() as directory, RedisSentinel(Path(directory), master) as sentinel:
        yield sentinel


@contextlib.contextmanager
def redis_cluster(replicas: int = 0, program: str = "redis-server") -> Iterator[list[RedisServer]]:
    """Run a Cluster: three masters, then replicas of the first one."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "15000", "--repl-diskless-sync-delay", "0"]
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(3 + replicas):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # The port of the node's bus is 10,000 higher.
            node = RedisServer(directory, *options, program=program, max_port=50_000)
            nodes.append(stack.enter_context(node))
        clients: list[Any] = [stack.enter_context(node.client()) for node in nodes]
        for index, client in enumerate(clients[:3]):
            begin, end = index * 5461, 16_384 if index == 2 else (index + 1) * 5461
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)

        def is_whole() -> bool:
            return all(
                "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO"))
                and f"cluster_known_nodes:{len(nodes)}" in str(client.execute_command("CLUSTER", "INFO"))
                for client in clients
            )

        until(is_whole, 60)
        first = clients[0].execute_command("CLUSTER", "MYID")
        for client in clients[3:]:
            client.execute_command("CLUSTER", "REPLICATE", first)
        until(lambda: all("master_link_status:up" in _replication(client) for client in clients[3:]), 60)
        yield nodes


def _replication(client: Any) -> str:
    found = client.execute_command("INFO", "replication")
    return "\n".join(f"{name}:{value}" for name, value in found.items()) if isinstance(found, dict) else str(found)


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

    def _wait_to_carry(self) -> None:
        """Wait before each piece of data: a partition."""

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
                        self._wait_to_carry()
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
