"""Logs of streams: one producer writes a stream once, and any number of readers read it from any point.

A stream in a log outlives its readers, its connection and, in Redis, its process.

    from sseqbridge.resume import RedisLog

    log = RedisLog.from_url("redis://localhost")        # or MemoryLog(), for one process
    events = log.open(id, start=lambda: request_sse(url, headers, data), last_event_id=last_event_id)

Each name is imported on first access, so that MemoryLog works without redis-py.
"""

# Modules: `_log.py` is the public class, whose arguments `_arguments.py` checks and whose work `_operations.py` does
# on a loop (`_loop_call.py`), over the state in `_log_core.py`. `_store.py` is the protocol of a store, which
# `_memory.py` and `_redis_store.py` implement. `_start.py` calls `start` in the elected process, `_producer.py`
# writes what `_upstream.py` reads, under a lease with a fencing token, `_reader.py` reads what `_delivery.py` brings.
# `_hub.py` shares one blocking read among all readers of a process: a `_topic.py` for each stream, a
# `_topic_group.py` for the topics of one read, which broadcast `_segments.py`; `_lease_watch.py` notices dead
# producers. `redis.py` is RedisLog, `_redis_client.py` and `_redis_tail.py` its connections, `_lua.py` its scripts,
# `_redis_errors.py` the codes of Redis's errors. `_entries.py` is the format of entries, with its version,
# `_payloads.py` that of errors in them, `_errors.py` the errors that readers get.

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._log import Log, MemoryLog
    from .redis import RedisLog

__all__ = ["Log", "MemoryLog", "RedisLog"]

_MODULES = {"Log": "_log", "MemoryLog": "_log", "RedisLog": "redis"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
