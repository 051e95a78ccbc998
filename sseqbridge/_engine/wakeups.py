"""A chain of wake-ups: the consumers of one loop's streams are woken one after another, not all at once.

A woken thread needs the GIL, which the loop's thread holds: it gets it when the loop waits for the network, or after
the switch interval (5 ms). If the loop has woken many, it waits for the GIL behind each of them, and so works
off a backlog no faster than one event for each hand-over. So the loop wakes a consumer at once only while no other one
is on its way. Further wake-ups are queued, and a consumer that starts to run wakes the next one. If several wait at the
end of the loop's iteration, the loop waits for the chain, a few milliseconds at most.

    field        written by                  guarded by
    _queue       the loop, and consumers     atomic deque operations; a wake-up is removed after it was called
    _is_underway the loop, and consumers     a hint: a wrong value delays a wake-up until the next iteration of the loop
    _is_flushing the loop
    _is_closed   the loop
    _is_waiting  the loop
    _idle        the loop, and consumers     at most one wait of the loop, which a wake-up too many ends early

No lost wakeup: while the queue is not empty, the loop has a callback that wakes what is left, so it does not matter if
a consumer is interrupted, or does not run for a while. Wake-ups are idempotent: two threads may call the same one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from sseqbridge._runtime import threads

__all__ = ["WakeupChain"]

# How many queued wake-ups the loop waits for, and for how many seconds.
_MIN_QUEUED = 4
_WAIT_SECONDS = 0.003


class _Wakeup:
    """A wake-up in the queue. Each object is queued once, so that removing it removes no later one."""

    __slots__ = ("wake",)

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake


class WakeupChain:
    """Wakes the consumers of one loop's channels."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[_Wakeup] = deque()
        self._is_underway = False
        self._is_flushing = False
        self._is_closed = False
        # Ends the loop's wait for the chain.
        self._idle = threads.ThreadWaiter()
        self._is_waiting = False

    # On the loop thread.

    def begin(self) -> bool:
        """Return whether the caller may wake a consumer itself, since no other one is on its way."""
        if self._is_closed:
            return True
        if self._is_underway or self._queue:
            return False
        self._is_underway = True
        return True

    def add(self, wake: Callable[[], object]) -> None:
        """Call `wake` in a while, in any thread, perhaps several times."""
        self._queue.append(_Wakeup(wake))
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if len(self._queue) >= _MIN_QUEUED:
            self._wait_for_consumers()
        if self._queue:
            self._wake_next()
            self._loop.call_soon(self._flush)
        else:
            self._is_flushing = False

    def _wait_for_consumers(self) -> None:
        self._is_waiting = True
        if not self._is_underway:
            self._wake_next()
        self._idle.wait(_WAIT_SECONDS)
        self._is_waiting = False

    def close(self) -> None:
        """Wake all consumers in the queue; later ones are woken at once, since the loop runs no callback any more."""
        self._is_closed = True
        while self._queue:
            self._wake_next()

    # In any thread.

    def pass_on(self) -> None:
        """Wake the next consumer. Called by each consumer that was woken."""
        self._wake_next()
        if self._is_waiting and not self._queue:
            self._idle.wake()

    def _wake_next(self) -> None:
        self._is_underway = False
        try:
            first = self._queue[0]
        except IndexError:
            return
        self._is_underway = True
        first.wake()
        # Last: after an interrupt the wake-up is still in the queue.
        try:
            self._queue.remove(first)
        except ValueError:
            pass  # Another thread has called it, too.
