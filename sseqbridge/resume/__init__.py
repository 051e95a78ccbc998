"""Logs of streams: one producer writes a stream once, and any number of readers read it from any point.

A stream in a log outlives its readers, its connection and, in Redis, its process.

    from sseqbridge.resume import RedisLog

    log = RedisLog.from_url("redis://localhost")        # or MemoryLog(), for one process
    events = log.open(id, start=lambda: request_sse(url, headers, data), last_event_id=last_event_id)

Each name is imported on first access, so that MemoryLog works without redis-py.
"""

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
