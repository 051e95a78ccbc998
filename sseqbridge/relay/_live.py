"""The relays of this process that have not ended, and `end_all`, which ends them.

`end_all` may run in a signal handler, between any two bytecodes of any code: it takes no lock and never waits. The
dictionary is read and written by atomic operations alone.
"""

from __future__ import annotations

import weakref
from typing import Protocol

from sseqbridge._checks import check_seconds
from sseqbridge._runtime import fork

from ._writer import shutdown_notice

__all__ = ["add", "end_all", "remove"]


class Endable(Protocol):
    """A relay, as `end_all` uses it."""

    def end_with(self, frame: bytes) -> None: ...


# By id(): a WeakValueDictionary is not safe in signal handlers.
_live: dict[int, tuple[object, weakref.ref[Endable]]] = {}


def add(relay: Endable) -> None:
    """Let `end_all` end the relay."""
    _live[id(relay)] = fork.process_token(), weakref.ref(relay)


def remove(relay: Endable) -> None:
    """Forget the relay. Idempotent; safe in finalizers."""
    _live.pop(id(relay), None)


def end_all(retry: float | None = 5) -> None:
    """End all relays of this process, before the web server shuts down.

        signal.signal(signal.SIGTERM, lambda *_: end_all(retry=2))

    Each client gets an event named "shutdown", with a `retry:` of so many seconds, after which an EventSource
    connects again (None: without), and the end of the response; the upstreams are aborted. Relays that begin later are
    not affected. Thread-safe, safe in a signal handler, and never waits.

    Raises UsageError if `retry` is not a number of seconds, at least 0, or None.
    """
    check_seconds("retry", retry, zero=True, never=True)
    frame = shutdown_notice(retry)
    for token, reference in _live.copy().values():
        relay = reference()
        if relay is not None and token == fork.process_token():
            relay.end_with(frame)
