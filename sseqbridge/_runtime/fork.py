"""Fork: a token that identifies the process, locks that survive a fork, and objects of the parent.

A forked child inherits its parent's objects but none of its threads: locks that are never released, a
loop that does not run, sockets that the parent still uses. The library therefore compares process tokens
wherever a stream or a loop is entered, and creates new objects in the child on first use.

Invariant: the counter and the lists are written by the fork hook and at import, when one thread runs.
`pin` may be called by any thread: list.extend is atomic.
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
# The number of forks between the first process and this one for which Python's hooks ran.
_forks = 0
_after_fork: list[Callable[[], object]] = []
# Objects of the parent process, kept alive.
_pinned: list[object] = []


def process_token() -> tuple[int, int]:
    """Return a token that differs between a process and its forked children.

    The counter alone is not enough: uWSGI forks without running Python's hooks. The process ID alone is
    not enough: the system reuses it.
    """
    return _forks, os.getpid()


def after_fork(callback: Callable[[], object]) -> None:
    """Call `callback` in each forked child, before other code, if Python's fork hooks run there."""
    _after_fork.append(callback)


def pin(*objects: object) -> None:
    """Keep objects of the parent process alive: finalizing them in the child would affect the parent's sockets."""
    _pinned.extend(objects)


def _run_callbacks() -> None:
    global _forks
    _forks += 1
    for callback in _after_fork:
        callback()


class ForkSafeLock:
    """A re-entrant lock between OS threads, with one instance per process. Use `with lock.native:`.

    If another thread held a plain lock during a fork, the child could never acquire it. `native` is the
    interpreter's own lock object, since an interrupt can arrive between any two bytecodes of an __enter__
    written in Python. It is re-entrant, since a signal handler may run while its own thread holds the lock.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        # By process token. dict.setdefault is atomic.
        self._locks: dict[tuple[int, int], Any] = {}

    @property
    def native(self) -> Any:
        """The lock of this process."""
        token = process_token()
        lock = self._locks.get(token)
        return self._locks.setdefault(token, _allocate_rlock()) if lock is None else lock


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_run_callbacks)
