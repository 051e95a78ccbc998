"""A pause that the requests of one gather share, for each origin: after a 429 with Retry-After all of them wait.

Any thread and loop may use it: each step on the dict and its deques is atomic, and a deadline is only ever added.
"""

from __future__ import annotations

from collections import deque

import anyio

from sseqbridge._runtime.clock import clock

__all__ = ["Pauses"]


class Pauses:
    """Until when no request is sent to an origin."""

    def __init__(self) -> None:
        # The ends of the pauses of each origin, on the library's clock. The last one of them counts.
        self._ends: dict[str, deque[float]] = {}

    def begin(self, origin: str, seconds: float) -> None:
        """Pause requests to `origin` for some seconds; a longer pause stays."""
        end = clock.monotonic() + seconds
        if end > self._end(origin):
            self._ends.setdefault(origin, deque()).append(end)

    async def wait(self, origin: str) -> bool:
        """Wait until no pause of `origin` is left. Returns whether there was one."""
        has_waited = False
        while (left := self._end(origin) - clock.monotonic()) > 0:
            has_waited = True
            await anyio.sleep(left)
        return has_waited

    def _end(self, origin: str) -> float:
        ends = self._ends.get(origin)
        # A copy: another thread may append in the meantime.
        return 0.0 if ends is None else max(ends.copy(), default=0.0)
