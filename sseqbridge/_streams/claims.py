"""Who reads a stream: one call, loop or coroutine at a time, and none once it has ended, however it did.

An interrupt (Ctrl-C, a signal handler that raises) can come between any two bytecodes, so also between the taking of a
lock and the `try:` after it, or before its release: a lock would stay taken. A claim is instead an object that belongs
to a call. It is released by its call; if its call has ended without that, the next one takes the stream over.

    sys._getframe()                                of a call: its own frame
    claim = Claim(); claim.held_by(generator)      of a loop or coroutine, which can be suspended

Python tells of a frame whether it has ended, in whichever thread or greenlet; a traceback may keep it alive after that.
A claim that was appended to an empty queue is the first one: only claims that are gone are removed by others.

Thread-safe without a lock: a claim is put in, and the first one in the queue is who reads. Appending and removing are
one step each, and removing one that somebody else has removed does nothing.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import FrameType, GeneratorType
from typing import Any

__all__ = ["Claim", "Claims"]


class Claim:
    """The claim of a generator or coroutine; for good, if `held_by` is not called."""

    __slots__ = ("_holder",)

    def __init__(self) -> None:
        self._holder: weakref.ref[Any] | None = None

    def held_by(self, holder: Generator[Any, Any, Any] | Coroutine[Any, Any, Any]) -> None:
        """Say whose claim it is, before that has begun."""
        self._holder = weakref.ref(holder)

    @property
    def is_gone(self) -> bool:
        """Whether whoever holds it has ended."""
        if self._holder is None:
            return False
        holder = self._holder()
        frame = holder.gi_frame if isinstance(holder, GeneratorType) else getattr(holder, "cr_frame", None)
        return frame is None


class Claims(deque[object]):
    """The claims to one stream: the first has it."""

    def is_held(self) -> bool:
        """Whether somebody reads the stream."""
        try:
            return not _is_gone(self[0])
        except IndexError:
            return False

    def contend(self, claim: object, lose: Callable[[], object]) -> bool:
        """Take the stream over from claims that are gone. Returns False, and takes the claim back, if it is held.

        `lose` is called for each claim that was gone, before it is taken out.
        """
        while (first := self[0]) is not claim:
            if not _is_gone(first):
                self.discard(claim)
                return False
            lose()
            self.discard(first)
        return True

    def discard(self, claim: object) -> None:
        """Take a claim out, if it is in."""
        with contextlib.suppress(ValueError):
            self.remove(claim)


def _is_gone(claim: object) -> bool:
    if isinstance(claim, Claim):
        return claim.is_gone
    assert isinstance(claim, FrameType)
    try:
        # Only one that has ended can be cleared.
        claim.clear()
    except RuntimeError:
        return False
    return True
