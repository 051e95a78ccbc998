"""Fork: a token that identifies the process, locks that survive a fork, and objects of the parent.

A forked child inherits its parent's objects but none of its threads: locks that are never released, a
loop that does not run, sockets that the parent still uses. The library therefore compares process tokens
wherever a stream or a loop is entered, and creates new objects in the child on first use.

Invariant: the counter and the lists are written by the fork hook and at import, when one thread runs.
`pin` may be called by any thread: list.extend is atomic.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, Protocol
from weakref import WeakSet

from .patching import original

__all__ = [
    "Detachable",
    "ForkSafeLock",
    "detach_in_children",
    "pin",
    "process_token",
    "stop_detaching",
]

# Linux's MADV_WIPEONFORK, which the module mmap does not name.
_WIPE_ON_FORK = 18
NEVER = b"\0"


def wiped_on_fork() -> mmap.mmap | bytes:
    """Return memory whose first byte the kernel sets to 0 in each forked child; `NEVER` if it cannot do that.

    The first byte says whether the process ID is known. Asking the system for it, at each step of a short stream, is a
    measurable part of the stream's time.
    """
    if sys.platform != "linux":
        return NEVER
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except OSError:
        # Before Linux 4.14, and in some sandboxes.
        return NEVER
    return page


_id_is_known: Any = wiped_on_fork()
_process_id = 0

_allocate_rlock = original("_thread", "RLock")
# The number of forks between the first process and this one for which Python's hooks ran.
_forks = 0
_detachables: WeakSet[Detachable] = WeakSet()
# Objects of the parent process, kept alive.
pinned: list[object] = []


def process_token() -> tuple[int, int]:
    """Return a token that differs between a process and its forked children.

    The counter alone is not enough: uWSGI forks without running Python's hooks. The process ID alone is
    not enough: the system reuses it.
    """
    return _forks, _process_id if _id_is_known[0] else _look_up_id()


def _look_up_id() -> int:
    global _process_id
    _process_id = os.getpid()
    if _id_is_known is not NEVER:
        _id_is_known[0] = 1
    return _process_id


class Detachable(Protocol):
    """An object that a forked child must not use as it is: it would take part in its parent's streams."""

    def detach_after_fork(self) -> None: ...


def detach_in_children(inherited: Detachable) -> None:
    """Call `inherited.detach_after_fork()` in each forked child, before other code runs there. Thread-safe.

    Does not keep the object alive. Nothing is called in a child that was forked without Python's hooks (uWSGI):
    there only the process token protects the parent's streams.
    """
    _detachables.add(inherited)


def stop_detaching(inherited: Detachable) -> None:
    """Undo detach_in_children(), once the object holds nothing that a child would share. Thread-safe."""
    _detachables.discard(inherited)


def pin(*objects: object) -> None:
    """Keep objects of the parent process alive: finalizing them in the child would affect the parent's sockets."""
    pinned.extend(objects)


def _detach_all() -> None:
    global _forks
    _forks += 1
    for inherited in tuple(_detachables):
        inherited.detach_after_fork()


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
    os.register_at_fork(after_in_child=_detach_all)
