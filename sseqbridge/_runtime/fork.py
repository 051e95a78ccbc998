"""Fork: one token tells a process from its parent, and what was the parent's is kept, unused.

A forked child has its parent's objects and none of its threads: locks that are never released, a loop
that does not run, sockets that the parent still uses. The library compares process tokens wherever a
stream or a loop is entered, and starts anew in the child on first use. The token holds the process ID
besides a counter of fork hooks, since uWSGI forks without running Python's hooks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from .patching import original

__all__ = [
    "ForkSafeLock",
    "after_fork",
    "pin",
    "process_token",
]

_allocate_rlock = original("_thread", "RLock")
# How many forks have led here, as far as hooks tell of them; written by them alone.
_forks = 0
_after_fork: list[Callable[[], object]] = []
# What is the parent's.
_kept: list[object] = []


def process_token() -> tuple[int, int]:
    """Return what no other process has: a forked child has another one than its parent.

    By its number, too: uWSGI forks without a word to Python.
    """
    return _forks, os.getpid()


def after_fork(callback: Callable[[], object]) -> None:
    """Have `callback` called in each forked child, where hooks are, before anything else runs there."""
    _after_fork.append(callback)


def pin(*objects: object) -> None:
    """Keep what is a parent's from being finalized in its child, where that would reach the parent's sockets."""
    _kept.extend(objects)


def _forked() -> None:
    global _forks
    _forks += 1
    for callback in _after_fork:
        callback()


class ForkSafeLock:
    """A lock between threads of the operating system, which each process has for itself: `with lock.native`.

    One that another thread held at a fork would be held for ever in the child. What is entered is a
    lock of the interpreter's, since an interrupt may come between any two steps of a function here,
    and one that its holder may enter again: a signal handler, which interrupted that, would wait for ever.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        # By process; setdefault is one step.
        self._locks: dict[tuple[int, int], Any] = {}

    @property
    def native(self) -> Any:
        """This process's."""
        this = process_token()
        lock = self._locks.get(this)
        return self._locks.setdefault(this, _allocate_rlock()) if lock is None else lock


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forked)
