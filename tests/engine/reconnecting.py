"""Policies, helpers and a callback for tests of reconnecting streams."""

from __future__ import annotations

import threading

from sseqbridge import (
    ReconnectionPolicy,
    SSEError,
    Timeout,
)
from sseqbridge.testing import (
    SSEServer,
    send,
)
from tests.requesters import Response
from tests.support import subscription_of

AT_ONCE = ReconnectionPolicy(delay=0.01, max_delay=0.01, jitter=0)
# Longer than any test: no attempt follows by itself.
LATE = ReconnectionPolicy(delay=1e6, max_delay=1e6, jitter=0)
# For tests that advance the clock while connecting: only the limit under test may elapse.
UNLIMITED = Timeout(connect=None, read=None)
DONE = send("[DONE]")


def ids_sent(server: SSEServer) -> list[str | None]:
    return [request.headers.get("last-event-id") for request in server.requests]


def is_between_connections(response: Response) -> bool:
    """Whether the connection has ended, and the next one is not open."""
    return subscription_of(response.events).exchange.opened_at is None


class Notes:
    """An on_reconnect function that records its arguments and threads."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float, SSEError | None]] = []
        self.threads: set[int] = set()

    def __call__(self, attempt: int, delay: float, cause: SSEError | None) -> None:
        self.calls.append((attempt, delay, cause))
        self.threads.add(threading.get_ident())

    @property
    def causes(self) -> list[type]:
        return [type(cause) for _, _, cause in self.calls]
