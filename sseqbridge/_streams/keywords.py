"""The keyword arguments of requests and clients, for type checkers. `RequestArguments` has their defaults.

Each is declared once: a client has the options of `SharedKeywords`, and so has each of its requests.

The overloads for `decode` are written out in each function that has it: to mypy and pyright a ParamSpec, which could
share them, is the first overload alone. That is why the one of the default comes first: functools.partial has its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag, Timeout, TimeoutLimits
    from sseqbridge._engine.reconnection_notice import OnReconnect
    from sseqbridge._http.media_types import Format
    from sseqbridge._sse.dialects import Dialect, DialectName, Done
    from sseqbridge._sse.retry_policy import ReconnectionPolicy

    from .arguments import Headers, HeadersFunction
    from .bridge import Bridge
    from .decoding import ErrorEvents

__all__ = [
    "AsyncKeywords",
    "BridgeKeywords",
    "ClientKeywords",
    "LineKeywords",
    "RequestKeywords",
    "SharedKeywords",
]


class _SharedOfAllFormats(TypedDict, total=False):
    auth: Any
    done: Done
    require_done: bool
    error_events: ErrorEvents
    timeout: Timeout | float | TimeoutLimits | None
    follow_redirects: bool | None
    check_content_type: bool
    max_event_bytes: int
    max_buffered_bytes: int


class _RequestOfAllFormats(TypedDict, total=False):
    json: Any
    method: str | None
    params: Any
    content: Any
    cookies: Any
    files: Any
    extensions: Mapping[str, Any] | None
    cancel: CancelFlag | None


class SharedKeywords(_SharedOfAllFormats, total=False):
    """The options of a client, which each of its requests may override; `decode` and `comments` are the client's."""

    dialect: Dialect | DialectName
    reconnect: ReconnectionPolicy | bool | None
    on_reconnect: OnReconnect | None


class RequestKeywords(SharedKeywords, _RequestOfAllFormats, total=False):
    """The options of one request, except `decode` and `comments`."""

    last_event_id: str | None


class LineKeywords(_SharedOfAllFormats, _RequestOfAllFormats, total=False):
    """The keyword arguments of request_jsonl, except `decode`."""

    bridge: Bridge | None


class BridgeKeywords(RequestKeywords, total=False):
    """The keyword arguments of request_sse alone."""

    bridge: Bridge | None


class AsyncKeywords(RequestKeywords, total=False):
    """The keyword arguments of arequest_sse alone."""

    client: Any


class ClientKeywords(SharedKeywords, total=False):
    """The options of SSEClient, except `decode` and `comments`."""

    format: Format
    headers: Headers | HeadersFunction
    retries: int
    bridge: Bridge | None
