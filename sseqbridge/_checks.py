"""Argument checks and types that all layers share: `Timeout`, `CancelFlag`, numbers of bytes and seconds.

A wrong argument raises UsageError at the call, before anything is sent. Pure functions of their
arguments; any thread may call them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

from ._exceptions import UsageError

__all__ = [
    "CancelFlag",
    "Timeout",
    "as_timeout",
    "check_limits",
    "check_seconds",
]


class CancelFlag(Protocol):
    """Anything with is_set(): a threading.Event, a gevent one, an asyncio.Event, an object of yours."""

    def is_set(self) -> object:
        """Whether the request is to be aborted. Called in the loop's thread; it must not wait."""


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """The time limits of one stream, in seconds; None is no limit.

    `connect`: until the connection, TLS included, stands. `read`: without a byte from the
    upstream (or, while the request is sent, without it taking one). `idle`: without an event;
    comments do not count, and the clock stands still while the consumer holds the stream back.
    `total`: the whole stream, from the call to the end.

    Raises UsageError for a limit that is negative, zero or not a number.
    """

    connect: float | None = 10.0
    read: float | None = 600.0
    idle: float | None = None
    total: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise UsageError(
                    f"timeout: {field.name}={value!r}; it is a number of seconds above 0, or None for no limit"
                )


def as_timeout(value: object) -> Timeout:
    """Return the Timeout that `value` stands for: a Timeout, number, mapping or None."""
    if isinstance(value, Timeout):
        return value
    if value is None:
        return Timeout(connect=None, read=None)
    if isinstance(value, Mapping):
        unknown = set(value) - {field.name for field in fields(Timeout)}
        if unknown:
            raise UsageError(f"timeout: {sorted(map(str, unknown))} unknown; its keys are connect, read, idle, total")
        return replace(Timeout(), **value)
    if isinstance(value, (int, float)):
        return Timeout(connect=value, read=value)
    raise UsageError(
        f"timeout is a {type(value).__module__}.{type(value).__qualname__}; it takes a number of seconds, "
        "a mapping, or a sseqbridge.Timeout"
    )


def check_limits(name: str, value: object) -> int:
    """Return a limit in bytes. Raises UsageError where it is no int above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r}; it is a number of bytes, 1 or more")
    return value


def check_seconds(name: str, value: object, *, zero: bool = False, never: bool = False) -> None:
    """Raise UsageError for what is no number of seconds above 0. `zero` allows 0 besides, and `never` None."""
    if never and value is None:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (0 < value < math.inf or (zero and value == 0)):  # type: ignore[operator]
        allowed = f"a number of seconds{', 0 or more' if zero else ' above 0'}{', or None for never' if never else ''}"
        raise UsageError(f"{name}={value!r}: it is {allowed}")
