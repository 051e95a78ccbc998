"""Claims: which call, loop or coroutine is the one consumer of a stream.

A lock would not do. An interrupt (Ctrl-C, a signal handler that raises) can come between any two bytecodes, so also
between the acquisition of a lock and the `try:` after it, or just before its release, and the lock would stay
held. A claim is an object that belongs to a call instead. The call releases it; if the call has ended without
doing so, the next call takes the stream over.

    sys._getframe()                                the claim of a call: its own frame
    claim = Claim(); claim.held_by(generator)      the claim of a loop or coroutine, which can be suspended

Python can tell for each frame whether its call has ended, in every thread and greenlet, even while a traceback keeps
the frame alive.

Thread-safe without a lock: a claim is appended, and the first claim in the queue is the consumer's. Appending and
removing are atomic, and removing a claim that is not in the queue does nothing.

Invariant: a claim that is held is removed by its own call only; others remove claims whose calls have ended. So a
claim that was appended to an empty queue is the first one.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import FrameType, GeneratorType
from typing import Any

__all__ = ["Claim", "Claims"]


class Claim:
    """The claim of a generator or coroutine; without `held_by` it is held forever."""

    __slots__ = ("_holder",)

    def __init__(self) -> None:
        self._holder: weakref.ref[Any] | None = None

    def held_by(self, holder: Generator[Any, Any, Any] | Coroutine[Any, Any, Any]) -> None:
        """Set the holder. Must be called before it starts to run."""
        self._holder = weakref.ref(holder)

    @property
    def is_gone(self) -> bool:
        """Whether the holder has ended."""
        if self._holder is None:
            return False
        holder = self._holder()
        frame = holder.gi_frame if isinstance(holder, GeneratorType) else getattr(holder, "cr_frame", None)
        return frame is None


class Claims(deque[object]):
    """The queue of claims to one stream. The first claim is the consumer's."""

    def is_held(self) -> bool:
        """Whether the stream has a consumer."""
        try:
            return not _is_gone(self[0])
        except IndexError:
            return False

    def admit(self, claim: object, on_stale: Callable[[], object]) -> bool:
        """Make `claim`, which was appended, the first one by removing claims whose calls have ended.

        Returns False, and removes `claim`, if another claim is held. `on_stale` is called before each removal of a
        claim whose call has ended.
        """
        while (first := self[0]) is not claim:
            if not _is_gone(first):
                self.discard(claim)
                return False
            on_stale()
            self.discard(first)
        return True

    def discard(self, claim: object) -> None:
        """Remove a claim, if it is in the queue."""
        # Not contextlib.suppress, which takes four calls: this runs at the end of every loop.
        try:
            self.remove(claim)
        except ValueError:
            pass


def _is_gone(claim: object) -> bool:
    if isinstance(claim, Claim):
        return claim.is_gone
    assert isinstance(claim, FrameType)
    try:
        # Raises RuntimeError while the frame is being executed, or is suspended.
        claim.clear()
    except RuntimeError:
        return False
    return True
