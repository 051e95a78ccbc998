"""Errors of other HTTP clients, and of SDKs, whose cause is the connection to an upstream.

Pure: it only looks at exceptions. It imports neither httpx nor httpx2: an error of a package that is not loaded cannot
have been raised.
"""

from __future__ import annotations

import sys
from typing import Any

from sseqbridge._exceptions import (
    BridgeClosedError,
    ConnectError,
    ReadError,
    SSEError,
    StreamTimeoutError,
    TransportError,
    bridge_error_of,
    causes_of,
)

__all__ = ["upstream_error_of"]


def upstream_error_of(error: BaseException) -> SSEError | None:
    """Return the error of this package for the network's failure that `error` stands for; None for other errors."""
    for cause in causes_of(error):
        if isinstance(cause, (BridgeClosedError, TransportError, StreamTimeoutError)):
            return cause
        for name in ("httpx", "httpx2"):
            package = sys.modules.get(name)
            if isinstance(cause, getattr(package, "TransportError", ())):
                # A bridge that was closed is the cause of an error of its transport.
                return bridge_error_of(cause) or _translated(cause, package)
    return None


def _translated(error: BaseException, package: Any) -> SSEError | None:
    if isinstance(error, (package.UnsupportedProtocol, package.LocalProtocolError)):
        # The request was wrong.
        return None
    if isinstance(error, package.TimeoutException):
        return StreamTimeoutError("read", None)
    kind = ConnectError if isinstance(error, (package.ConnectError, package.ProxyError)) else ReadError
    return kind("the connection to the upstream was lost")
