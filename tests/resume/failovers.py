"""Helpers for tests of a Redis that fails over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sseqbridge.resume import RedisLog
from sseqbridge.testing import Step, hold, respond, send
from tests.redis_support import RedisServer
from tests.support import until

from .support import DONE, hub_of

__all__ = ["PATIENT", "command", "fail_over", "is_in_step", "replicate", "role_of", "stages", "was_disturbed"]

# No test here waits for the end of a lease or of `outage`.
PATIENT: dict[str, Any] = {"lease": 60.0, "outage": 60.0}


def command(server: RedisServer, *arguments: object) -> Any:
    with server.client() as client:
        return client.execute_command(*arguments)


def role_of(server: RedisServer) -> str:
    return str(command(server, "ROLE")[0])


def is_in_step(master: RedisServer) -> bool:
    with master.client() as client:
        return "state=online" in str(client.execute_command("INFO", "replication")) or any(
            isinstance(value, dict) and value.get("state") == "online" for value in client.info("replication").values()
        )


def replicate(master: RedisServer, key: str) -> None:
    """Wait until the replica has all that was written so far."""
    with master.client() as client:
        # WAIT is about the writes of its own connection, and of those before.
        client.set(key, "x")
        assert client.wait(1, 30_000) == 1


def fail_over(old: RedisServer, new: RedisServer) -> None:
    """Make the replica the master, as Sentinel and operators do, and wait for it."""
    until(lambda: is_in_step(old), 30)
    command(old, "FAILOVER", "TO", "127.0.0.1", new.port)
    until(lambda: (role_of(old), role_of(new)) == ("slave", "master"), 30)


def was_disturbed(log: RedisLog, since: float | None = None) -> Callable[[], bool]:
    def has_been() -> bool:
        at = hub_of(log).disturbed_at
        return at is not None and (since is None or at > since)

    return has_been


def stages(count: int, size: int) -> tuple[list[Step], list[threading.Event]]:
    """Return an upstream that sends numbers in stages, and the events that start each stage and the end."""
    gates = [threading.Event() for _ in range(count + 1)]
    steps: list[Step] = []
    for stage, gate in enumerate(gates[:-1]):
        steps += [hold(gate), *map(send, range(stage * size, (stage + 1) * size))]
    return [respond(), *steps, hold(gates[-1]), DONE], gates
