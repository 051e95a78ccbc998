"""Errors of other HTTP clients, and of SDKs, whose cause is an upstream: its connection, its status, or an error event.

Pure: it only looks at exceptions. The packages are those that are loaded: no other one can have raised an error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sseqbridge._engine.responses import made_head
from sseqbridge._exceptions import (
    BridgeClosedError,
    ConnectError,
    ReadError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    TransportError,
    UpstreamError,
    bridge_error_of,
    causes_of,
)

__all__ = ["upstream_error_of"]


def upstream_error_of(error: BaseException) -> SSEError | None:
    """Return the error of this package for the upstream's failure that `error` stands for; None for other errors."""
    for cause in causes_of(error):
        if isinstance(cause, (BridgeClosedError, TransportError, StreamTimeoutError)):
            return cause
        for package in _packages():
            if isinstance(cause, getattr(package, "TransportError", ())):
                # A bridge that was closed is the cause of an error of its transport.
                return bridge_error_of(cause) or _translated(cause, package)
        reported = _reported(cause)
        if reported is not None:
            return reported
    return None


def _packages() -> list[Any]:
    return [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]


def _is_any(value: object, kind: str) -> bool:
    return any(isinstance(value, getattr(package, kind, ())) for package in _packages())


def _reported(error: BaseException) -> SSEError | None:
    """Return the error for the upstream's response, or error event, that an error of a client or SDK refers to."""
    # Not by getattr(): an attribute may be a property that raises.
    attributes = vars(error)
    body = attributes.get("body")
    responses: list[Any] = [attributes.get(name) for name in ("response", "raw_response")]
    statuses = [response.status_code for response in responses if _is_any(response, "Response")]
    if not statuses and body is not None and isinstance(attributes.get("headers"), Mapping):
        # Cohere's SDK keeps the parts of the response.
        statuses = [attributes.get("status_code")]
    status = statuses[0] if statuses else None
    if isinstance(status, int) and status >= 300:
        return StatusError(f"the upstream answered {status}", status, made_head(status, {}).headers, b"")
    if body is not None and (status == 200 or _is_any(attributes.get("request"), "Request")):
        return UpstreamError("the upstream sent an error", None, body)
    return None


def _translated(error: BaseException, package: Any) -> SSEError | None:
    if isinstance(error, (package.UnsupportedProtocol, package.LocalProtocolError)):
        # The request was wrong.
        return None
    if isinstance(error, package.TimeoutException):
        return StreamTimeoutError("read", None)
    kind = ConnectError if isinstance(error, (package.ConnectError, package.ProxyError)) else ReadError
    return kind("the connection to the upstream was lost")
