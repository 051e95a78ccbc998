"""The notice of a reconnection, an entry of a stream. Apart from reconnecting.py, which few streams need."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sseqbridge._exceptions import SSEError, StatusError
from sseqbridge._runtime.callbacks import CallersFunction

__all__ = ["OnReconnect", "Reconnecting", "call_on_reconnect"]

OnReconnect = Callable[[int, float, SSEError | None], object]

# The charge of a Reconnecting entry, besides the body of a refusal.
_OVERHEAD = 1024


class Reconnecting(NamedTuple):
    """A notice that the connection has ended, and when the next attempt is: the arguments of `on_reconnect`."""

    attempt: int
    delay: float
    cause: SSEError | None

    @property
    def charge(self) -> int:
        """The size of the entry in a bounded channel."""
        return _OVERHEAD + (len(self.cause.body) if isinstance(self.cause, StatusError) else 0)


def call_on_reconnect(on_reconnect: OnReconnect | None, entry: Reconnecting) -> None:
    """Call the caller's function, if there is one, in the consumer's thread or coroutine. Its exceptions propagate."""
    if on_reconnect is not None:
        with CallersFunction("on_reconnect", passes=Exception):
            on_reconnect(*entry)
