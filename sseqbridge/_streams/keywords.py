"""The keyword arguments of requests and clients, for type checkers. `RequestArguments` has their defaults.

Each is declared once: a client has the options of `SharedKeywords`, and so has each of its requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag, Timeout, TimeoutLimits
    from sseqbridge._engine.reconnecting import OnReconnect
    from sseqbridge._sse.dialects import Dialect, DialectName, Done
    from sseqbridge._sse.retry_policy import ReconnectionPolicy

    from .arguments import Headers, HeadersFunction
    from .bridge import Bridge
    from .decoding import ErrorEvents

__all__ = ["AsyncKeywords", "BridgeKeywords", "ClientKeywords", "RequestKeywords", "SharedKeywords"]


class SharedKeywords(TypedDict, total=False):
    """The options of a client, which each of its requests may override; `decode` and `comments` are the client's."""

    auth: Any
    dialect: Dialect | DialectName
    done: Done
    require_done: bool
    error_events: ErrorEvents
    timeout: Timeout | float | TimeoutLimits | None
    reconnect: ReconnectionPolicy | bool | None
    on_reconnect: OnReconnect | None
    follow_redirects: bool | None
    check_content_type: bool
    max_event_bytes: int
    max_buffered_bytes: int


class RequestKeywords(SharedKeywords, total=False):
    """The options of one request, except `decode` and `comments`."""

    json: Any
    method: str | None
    params: Any
    content: Any
    cookies: Any
    files: Any
    extensions: Mapping[str, Any] | None
    cancel: CancelFlag | None
    last_event_id: str | None


class BridgeKeywords(RequestKeywords, total=False):
    """The keyword arguments of request_sse alone."""

    bridge: Bridge | None


class AsyncKeywords(RequestKeywords, total=False):
    """The keyword arguments of arequest_sse alone."""

    client: Any


class ClientKeywords(SharedKeywords, total=False):
    """The options of SSEClient, except `decode` and `comments`."""

    headers: Headers | HeadersFunction
    retries: int
    bridge: Bridge | None
