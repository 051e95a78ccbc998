"""Detects the monkey patches of gevent, eventlet and mocket, and returns the functions that gevent replaced.

Checked at each call, since the application may patch the process after it imported the library.
Thread-safe.
"""

from __future__ import annotations

import _socket
import socket
import sys
from typing import Any

__all__ = ["is_eventlet", "is_gevent", "is_socket_replaced", "original"]


# The class at import, None if it had been replaced by then. `is_socket_replaced` compares the current class with it.
_SOCKET = socket.socket if issubclass(socket.socket, _socket.socket) else None


def is_gevent() -> bool:
    """Return whether gevent has patched the process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def is_eventlet() -> bool:
    """Return whether eventlet has patched the process."""
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))


def original(module: str, name: str) -> Any:
    """Return a function of the standard library, even if gevent has replaced it."""
    if is_gevent():
        from . import gevent

        return gevent.original(module, name)
    return getattr(sys.modules[module], name)


def is_socket_replaced() -> bool:
    """Return whether sockets are objects that no event loop can wait for, as those of mocket are."""
    if socket.socket is _SOCKET:
        return False
    return not issubclass(original("socket", "socket"), _socket.socket)
