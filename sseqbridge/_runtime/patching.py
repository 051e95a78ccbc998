"""What gevent or eventlet has patched, and what the standard library had in its place.

Checked at each call, since the library may be imported before the process is patched.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_eventlet", "is_gevent", "original"]

def is_gevent() -> bool:
    """Whether gevent has patched the process: asked each time, for it may come later than this."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def is_eventlet() -> bool:
    """Whether eventlet has patched the process."""
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))


def original(module: str, name: str) -> Any:
    """Return a function of the standard library's, and not what gevent has put in its place."""
    if is_gevent():
        from . import gevent

        return gevent.original(module, name)
    return getattr(sys.modules[module], name)
