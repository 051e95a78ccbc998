"""The keyword arguments of requests and clients: each is declared once, with its type and its default.

A client has the options of `SharedKeywords`, and so has each of its requests. `_signatures.py` explains the form.

The overloads for `decode` are those of SSEClient's constructor: its requests and calls have none, since the client has
the type of their items, nor has with_options, whose items are Any after another `decode`. The functions without a
client repeat them (test_overloads.py keeps them equal): no type of Python expresses "these overloads, with other
parameters". A ParamSpec carries overloads over to another type of result, but not to other keyword arguments: none may
stand between `*args: P.args` and `**kwargs: P.kwargs`, and `Unpack` takes no type variable. A constructor whose type
comes from a decorator or a callback protocol has no type of items in pyright. The overload of the default comes first:
functools.partial has its type.
"""

# Without annotations of __future__: the types are quoted, and the defaults are evaluated.

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from sseqbridge._checks import Timeout
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES
from sseqbridge._sse.dialects import DEFAULT_DONE
from sseqbridge._sse.parser import DEFAULT_MAX_EVENT_BYTES

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag, TimeoutLimits
    from sseqbridge._engine.reconnection_notice import OnReconnect
    from sseqbridge._http.media_types import Format
    from sseqbridge._sse.dialects import Dialect, DialectName, Done
    from sseqbridge._sse.retry_policy import ReconnectionPolicy

    from .arguments import Headers, HeadersFunction
    from .bridge import Bridge
    from .decoding import Decode, ErrorEvents

__all__ = [
    "AllKeywords",
    "AsyncKeywords",
    "BridgeKeywords",
    "ClientKeywords",
    "DecodeKeywords",
    "ItemKeywords",
    "LineKeywords",
    "OwnKeywords",
    "RequestKeywords",
    "SharedKeywords",
]


class DecodeKeywords(TypedDict, total=False):
    """How items are decoded. Type checkers read the overloads instead."""

    decode: Annotated["Decode", "json"]


class ItemKeywords(DecodeKeywords, total=False):
    """Which items a stream has, and how they are decoded. Type checkers read the overloads instead."""

    comments: Annotated["bool", False]


class _SharedOfAllFormats(TypedDict, total=False):
    auth: Annotated["Any", None]
    done: Annotated["Done", DEFAULT_DONE]
    require_done: Annotated["bool", False]
    error_events: Annotated["ErrorEvents", "raise"]
    timeout: Annotated["Timeout | float | TimeoutLimits | None", Timeout()]
    follow_redirects: Annotated["bool | None", None]
    check_content_type: Annotated["bool", True]
    max_event_bytes: Annotated["int", DEFAULT_MAX_EVENT_BYTES]
    max_buffered_bytes: Annotated["int", DEFAULT_MAX_BUFFERED_BYTES]


class _RequestOfAllFormats(TypedDict, total=False):
    json: Annotated["Any", None]
    method: Annotated["str | None", None]
    params: Annotated["Any", None]
    content: Annotated["Any", None]
    cookies: Annotated["Any", None]
    files: Annotated["Any", None]
    extensions: Annotated["Mapping[str, Any] | None", None]
    cancel: Annotated["CancelFlag | None", None]


class SharedKeywords(_SharedOfAllFormats, total=False):
    """The options of a client, which each of its requests may override; `decode` and `comments` are the client's."""

    dialect: Annotated["Dialect | DialectName", "openai"]
    reconnect: Annotated["ReconnectionPolicy | bool | None", None]
    on_reconnect: Annotated["OnReconnect | None", None]


class RequestKeywords(_RequestOfAllFormats, SharedKeywords, total=False):
    """The options of one request, except `decode` and `comments`."""

    last_event_id: Annotated["str | None", None]


class AllKeywords(ItemKeywords, RequestKeywords, total=False):
    """The options of one request."""


class LineKeywords(_RequestOfAllFormats, _SharedOfAllFormats, total=False):
    """The keyword arguments of request_jsonl, except `decode`."""

    bridge: Annotated["Bridge | None", None]


class BridgeKeywords(RequestKeywords, total=False):
    """The keyword arguments of request_sse, except `decode` and `comments`."""

    bridge: Annotated["Bridge | None", None]


class AsyncKeywords(RequestKeywords, total=False):
    """The keyword arguments of arequest_sse, except `decode` and `comments`."""

    client: Annotated["Any", None]


class OwnKeywords(TypedDict, total=False):
    """The options that a client has, and none of its requests."""

    headers: Annotated["Headers | HeadersFunction", None]
    retries: Annotated["int", 0]
    bridge: Annotated["Bridge | None", None]
    format: Annotated["Format", "sse"]


class ClientKeywords(OwnKeywords, SharedKeywords, total=False):
    """The options of SSEClient, except `decode` and `comments`."""
