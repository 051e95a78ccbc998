"""End all relays at SIGTERM and SIGINT: the web server would wait for them before it shuts down.

production.md shows where each server calls `end_relays_at_shutdown`.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from sseqbridge import relay

__all__ = ["end_relays_at_shutdown", "with_shutdown"]


def end_relays_at_shutdown() -> None:
    """Call relay.end_all() at SIGTERM and SIGINT, before the server's own handler. Must run in the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        _end_relays_at(number)


def _end_relays_at(number: int) -> None:
    before = signal.getsignal(number)

    def handle(number: int, frame: FrameType | None) -> None:
        relay.end_all()
        if callable(before):
            before(number, frame)
        elif before is signal.SIG_DFL:
            # The process ends.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(number, handle)


ASGIApplication = Callable[[Any, Any, Any], Awaitable[None]]


def with_shutdown(application: ASGIApplication) -> ASGIApplication:
    """Return an ASGI application that calls `end_relays_at_shutdown` once its server has started.

    For Django, which has no lifespan events of its own. uvicorn installs its handlers before it sends the first one.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        await receive()
        end_relays_at_shutdown()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return wrapped
