"""A pause that the requests of one gather share, for each origin: after a 429 with Retry-After all of them wait.

Any thread and loop may use Pauses: each step on the dict and its deques is atomic, and a deadline is only ever added.
A CallPauses belongs to one call, and to the loop of its stream.
"""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar

import anyio

from sseqbridge._runtime.clock import clock

__all__ = ["CallPauses", "Pauses", "pauses_of_function"]


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

    def seconds_left(self, origin: str) -> float:
        """Return for how many seconds no request may be sent to `origin`; 0 or less for none."""
        return self._end(origin) - clock.monotonic()

    def of_call(self) -> CallPauses:
        """Return these pauses as one call waits for them."""
        return CallPauses(self)

    def _end(self, origin: str) -> float:
        ends = self._ends.get(origin)
        # A copy: another thread may append in the meantime.
        return 0.0 if ends is None else max(ends.copy(), default=0.0)


class CallPauses:
    """The pauses of a gather as one of its calls waits for them.

    `seconds` is the time that the call has waited, and waits now, for them. It does not count for the call's `total`.
    """

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self.seconds = 0.0
        # A limit that is on during a wait: see extend().
        self._scope: anyio.CancelScope | None = None

    def begin(self, origin: str, seconds: float) -> None:
        """Pause the requests of all calls to `origin`; see Pauses.begin()."""
        self._pauses.begin(origin, seconds)

    async def wait(self, origin: str) -> bool:
        """Wait until no pause of `origin` is left. Returns whether there was one."""
        has_waited = False
        while (left := self._pauses.seconds_left(origin)) > 0:
            has_waited = True
            self.seconds += left
            if self._scope is not None:
                self._scope.deadline += left
            await anyio.sleep(left)
        return has_waited

    def extend(self, scope: anyio.CancelScope) -> None:
        """Let each wait from now on move the deadline of `scope`, in place of an earlier scope's."""
        self._scope = scope


# The pauses of the gather that has called a function of the caller's, in that function's context.
pauses_of_function: ContextVar[Pauses | None] = ContextVar("sseqbridge-pauses", default=None)
