"""Server-Sent Events in synchronous Python, on one background event loop.

    from sseqbridge import request_sse

    status, response_headers, it = request_sse(url, headers, data)
    for item in it:
        ...

`request_sse` is for synchronous code, `arequest_sse` for coroutines, `SSEClient` for several requests to one API. The
package `relay` sends a stream to a browser, `resume` keeps streams for later readers, `testing` has a scripted
upstream.

This module holds the public names and nothing else. Each is imported on first access, so that
`import sseqbridge` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import relay, resume, testing
    from ._checks import Timeout
    from ._engine.scope import CancelScope, cancel_on
    from ._engine.stats import BridgeStats, StreamStats
    from ._exceptions import (
        BridgeClosedError,
        BufferLimitError,
        CallbackError,
        Cancelled,
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
    from ._sse.dialects import Dialect
    from ._sse.events import Comment, ServerSentEvent
    from ._sse.parser import EventStreamParser
    from ._sse.resumption import Attempt, Resume
    from ._sse.retry_policy import ReconnectionPolicy
    from ._streams.aio import AsyncEventStream, AsyncSSEResponse
    from ._streams.api import arequest_sse, request_sse
    from ._streams.bridge import Bridge
    from ._streams.bridge_transport import BridgeTransport
    from ._streams.call import Call
    from ._streams.calls import enter, iterate, run
    from ._streams.client import SSEClient
    from ._streams.gather import gather
    from ._streams.jsonl import request_jsonl
    from ._streams.merge import AsyncMergedStreams, MergedStreams, amerge, merge
    from ._streams.sync import EventStream, SSEResponse, Stream
    from ._streams.tee import Tee, tee

__all__ = [
    "AsyncEventStream",
    "AsyncMergedStreams",
    "AsyncSSEResponse",
    "Attempt",
    "Bridge",
    "BridgeClosedError",
    "BridgeStats",
    "BridgeTransport",
    "BufferLimitError",
    "Call",
    "CallbackError",
    "CancelScope",
    "Cancelled",
    "Comment",
    "ConnectError",
    "ContentTypeError",
    "DecodeError",
    "Dialect",
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
    "Resume",
    "SSEClient",
    "SSEError",
    "SSEResponse",
    "ServerSentEvent",
    "StatusError",
    "Stream",
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
    "cancel_on",
    "enter",
    "gather",
    "iterate",
    "merge",
    "relay",
    "request_jsonl",
    "request_sse",
    "resume",
    "run",
    "tee",
    "testing",
]

# The only place of the version: setup.cfg reads it here.
__version__ = "0.2.0"

_MODULES = {
    "arequest_sse": "_streams.api",
    "request_jsonl": "_streams.jsonl",
    "request_sse": "_streams.api",
    "Bridge": "_streams.bridge",
    "Call": "_streams.call",
    "SSEClient": "_streams.client",
    "enter": "_streams.calls",
    "iterate": "_streams.calls",
    "run": "_streams.calls",
    "BridgeStats": "_engine.stats",
    "CancelScope": "_engine.scope",
    "cancel_on": "_engine.scope",
    "BridgeTransport": "_streams.bridge_transport",
    "StreamStats": "_engine.stats",
    "AsyncMergedStreams": "_streams.merge",
    "MergedStreams": "_streams.merge",
    "amerge": "_streams.merge",
    "gather": "_streams.gather",
    "merge": "_streams.merge",
    "Comment": "_sse.events",
    "Dialect": "_sse.dialects",
    "ServerSentEvent": "_sse.events",
    "Timeout": "_checks",
    "EventStreamParser": "_sse.parser",
    "Attempt": "_sse.resumption",
    "Resume": "_sse.resumption",
    "ReconnectionPolicy": "_sse.retry_policy",
    "AsyncEventStream": "_streams.aio",
    "AsyncSSEResponse": "_streams.aio",
    "EventStream": "_streams.sync",
    "SSEResponse": "_streams.sync",
    "Stream": "_streams.sync",
    "Tee": "_streams.tee",
    "tee": "_streams.tee",
}

_PACKAGES = ("relay", "resume", "testing")

# Names of other public modules, which are imported from there.
_ELSEWHERE = {
    "AsyncFrames": "sseqbridge.relay",
    "ErrorMiddleware": "sseqbridge.relay.django",
    "Frames": "sseqbridge.relay",
    "Log": "sseqbridge.resume",
    "MemoryLog": "sseqbridge.resume",
    "RedisLog": "sseqbridge.resume",
    "RelayEnd": "sseqbridge.relay",
    "SSEServer": "sseqbridge.testing",
    "aframes": "sseqbridge.relay",
    "chat_completions": "sseqbridge.testing",
    "end_all": "sseqbridge.relay",
    "frames": "sseqbridge.relay",
    "reader_left": "sseqbridge.relay",
    "register_error_handlers": "sseqbridge.relay.flask or .starlette",
    "respond": "sseqbridge.testing",
    "stream_response": "sseqbridge.relay.flask, .django or .starlette",
}

# Names that other libraries have, and what this one has instead.
_OTHER_NAMES = {
    "AsyncSSEClient": "SSEClient, whose `arequest` is for coroutines",
    "EventSource": "request_sse",
    "aconnect_sse": "arequest_sse",
    "connect_sse": "request_sse",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name in _ELSEWHERE:
        # Not an AttributeError, whose text an import statement would not show.
        message = f"cannot import name {name!r} from {__name__!r}. Import it from {_ELSEWHERE[name]}."
        raise ImportError(message, name=name)
    if name in _OTHER_NAMES:
        message = f"cannot import name {name!r} from {__name__!r}. Use {_OTHER_NAMES[name]}."
        raise ImportError(message, name=name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES.get(name, '_exceptions')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
