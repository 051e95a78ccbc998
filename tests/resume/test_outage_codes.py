"""Every error code of a Redis that fails over, for every command of a log, plain and as a script's error."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from sseqbridge import request_sse
from sseqbridge.resume import RedisLog, _lua
from sseqbridge.resume._redis_client import Script
from sseqbridge.testing import SSEServer, hold, respond, send
from tests.redis_support import RedisServer
from tests.support import in_thread

from .failovers import PATIENT
from .faulty_redis import RESET, FaultyRedis
from .support import DONE

pytestmark = [pytest.mark.redis, pytest.mark.slow]

CODES = {
    "UNBLOCKED": "force unblock from blocking operation, instance state changed (master -> replica?)",
    "READONLY": "You can't write against a read only replica.",
    "LOADING": "Redis is loading the dataset in memory",
    "MASTERDOWN": "Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "TRYAGAIN": "Multiple keys request during rehashing of slot",
    "CLUSTERDOWN": "Hash slot not served",
    "MISCONF": "Redis is configured to save RDB snapshots, but it is currently not able to persist on disk.",
    "NOREPLICAS": "Not enough good replicas to write.",
    "BUSY": "Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
}
SHA = "0123456789abcdef0123456789abcdef01234567"
# As the reply to a command, and to a script in Redis 6.2 and in later versions.
FORMS = (
    "{code} {text}",
    "ERR Error running script (call to f_" + SHA + "): @user_script:7: @user_script: 7: -{code} {text}",
    "{code} {text} script: " + SHA + ", on @user_script:7.",
)


def errors() -> list[str]:
    found = [form.format(code=code, text=text) for code, text in CODES.items() for form in FORMS]
    return [*found, RESET]


# Of the scripts that each of the logs runs.
HASHES = {Script(text).sha for text in (_lua.CLAIM, _lua.WRITE, _lua.RENEW, _lua.CANCEL, _lua.DELETE, _lua.HEARTBEAT)}
# Redis answers these before it looks at its role, its data and its disk.
HANDSHAKE = frozenset({"HELLO", "CLIENT", "AUTH", "SELECT"})


@pytest.mark.parametrize("error", errors(), ids=lambda error: error[:90])
def test_every_command_is_repeated_after_an_outage(server: RedisServer, error: str) -> None:
    """The first two commands of each name, and of each script, fail; not XADD, without which a wait takes 2 s more."""

    def fault(name: str, count: int) -> str | None:
        return error if count < 2 and name != "XADD" and (name not in HANDSHAKE or error == RESET) else None

    go = threading.Event()
    key = uuid.uuid4().hex
    with (
        SSEServer([respond(), send(1), send(2), hold(go), send(3), DONE]) as upstream,
        FaultyRedis(server.port, fault) as proxy,
        RedisLog.from_url(f"redis://127.0.0.1:{proxy.port}", **PATIENT) as log,
        RedisLog.from_url(f"redis://127.0.0.1:{proxy.port}", **PATIENT) as elsewhere,
    ):
        start: Callable[[], Any] = lambda: request_sse(upstream.url)  # noqa: E731
        opened = {name: log.open(f"{key}-{name}", start) for name in ("read", "cancel", "delete")}
        produced = in_thread(lambda: elsewhere.produce(f"{key}-produce", start))
        followed = elsewhere.open(f"{key}-read", wait=30)
        assert [[next(each), next(each)] for each in (*opened.values(), followed)] == [[1, 2]] * 4
        assert elsewhere.cancel(f"{key}-cancel")
        assert elsewhere.delete(f"{key}-delete")
        for name in ("cancel", "delete"):
            assert (list(opened[name]), opened[name].outcome) == ([], "closed")
        go.set()
        assert (list(opened["read"]), list(followed), produced.result(30)) == ([3], [3], "done")
        resumed = elsewhere.open(f"{key}-read", last_event_id=followed.last_event_id)
        assert (list(resumed), list(log.open(f"{key}-produce", wait=0))) == ([], [1, 2, 3])
    assert {name for name, count in proxy.counts.items() if count > 2} >= {"XREAD", "XRANGE", *HASHES}
