"""Server-Sent Events in synchronous Python, on one background event loop.

    from sseqbridge import request_sse

    status, response_headers, it = request_sse(url, headers, data)
    for item in it:
        ...

The public names, and nothing else. Each is imported when it is first asked for, so that
`import sseqbridge` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from ._api import arequest_sse, request_sse
    from ._bridge import Bridge, BridgeStats
    from ._exceptions import (
        BridgeClosedError,
        BufferLimitError,
        CallbackError,
        ConnectError,
        ContentTypeError,
        DecodeError,
        EventError,
        EventsLostError,
        LogAccessError,
        LogError,
        LogFullError,
        LogUnavailableError,
        ProducerLostError,
        ProtocolError,
        ReadError,
        ReconnectionError,
        RedirectError,
        RequestAbortedError,
        ResponseError,
        SSEError,
        StatusError,
        StreamNotFoundError,
        StreamTimeoutError,
        TransportError,
        TruncatedStreamError,
        UpstreamError,
        UsageError,
    )
    from ._merge import AsyncMergedStreams, MergedStreams, amerge, gather, merge
    from ._models import Comment, ServerSentEvent
    from ._options import Timeout
    from ._parser import EventStreamParser
    from ._reconnection import ReconnectionPolicy
    from ._streams import AsyncEventStream, AsyncSSEResponse, EventStream, SSEResponse, StreamStats
    from ._tee import Tee, tee

__all__ = [
    "AsyncEventStream",
    "AsyncMergedStreams",
    "AsyncSSEResponse",
    "Bridge",
    "BridgeClosedError",
    "BridgeStats",
    "BufferLimitError",
    "CallbackError",
    "Comment",
    "ConnectError",
    "ContentTypeError",
    "DecodeError",
    "EventError",
    "EventStream",
    "EventStreamParser",
    "EventsLostError",
    "LogAccessError",
    "LogError",
    "LogFullError",
    "LogUnavailableError",
    "MergedStreams",
    "ProducerLostError",
    "ProtocolError",
    "ReadError",
    "ReconnectionError",
    "ReconnectionPolicy",
    "RedirectError",
    "RequestAbortedError",
    "ResponseError",
    "SSEError",
    "SSEResponse",
    "ServerSentEvent",
    "StatusError",
    "StreamNotFoundError",
    "StreamStats",
    "StreamTimeoutError",
    "Tee",
    "Timeout",
    "TransportError",
    "TruncatedStreamError",
    "UpstreamError",
    "UsageError",
    "amerge",
    "arequest_sse",
    "gather",
    "merge",
    "request_sse",
    "tee",
]

_MODULES = {
    "arequest_sse": "_api",
    "request_sse": "_api",
    "Bridge": "_bridge",
    "BridgeStats": "_bridge",
    "AsyncMergedStreams": "_merge",
    "MergedStreams": "_merge",
    "amerge": "_merge",
    "gather": "_merge",
    "merge": "_merge",
    "Comment": "_models",
    "ServerSentEvent": "_models",
    "Timeout": "_options",
    "EventStreamParser": "_parser",
    "ReconnectionPolicy": "_reconnection",
    "AsyncEventStream": "_streams",
    "AsyncSSEResponse": "_streams",
    "EventStream": "_streams",
    "SSEResponse": "_streams",
    "Tee": "_tee",
    "tee": "_tee",
    "StreamStats": "_streams",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES.get(name, '_exceptions')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | {"__version__", *__all__})
