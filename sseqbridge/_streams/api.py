"""The two functions that most users call: request_sse and arequest_sse, requests of an SSEClient without options.

Importing them loads the checks of arguments. The first call loads the client and the engine, so that a program which
imports the functions and does not call them starts faster.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from sseqbridge._signatures import signature_with

from .arguments import check_options
from .keywords import AsyncKeywords, BridgeKeywords, ItemKeywords

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Unpack

    from sseqbridge._http.pauses import Pauses
    from sseqbridge._sse.events import Comment, ServerSentEvent

    from .aio import AsyncSSEResponse
    from .arguments import Headers
    from .bridge import Bridge
    from .pending import PendingResponse
    from .sync import SSEResponse

__all__ = ["apending_of", "arequest_sse", "pending_of", "request_sse"]

T = TypeVar("T")

# The paragraph that request_sse alone has.
_OF_BRIDGES = "`bridge` is a Bridge to use instead of the process's own.\n\n"


@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["json"] = "json",
    **options: Unpack[BridgeKeywords],
) -> SSEResponse[Any]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["text"],
    **options: Unpack[BridgeKeywords],
) -> SSEResponse[str]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: Literal[False] = False,
    **options: Unpack[BridgeKeywords],
) -> SSEResponse[ServerSentEvent]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: bool,
    **options: Unpack[BridgeKeywords],
) -> SSEResponse[ServerSentEvent | Comment]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Callable[[ServerSentEvent], T],
    **options: Unpack[BridgeKeywords],
) -> SSEResponse[T]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: str,
    comments: bool = False,
    **options: Unpack[BridgeKeywords],
) -> SSEResponse[Any]: ...
def request_sse(url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Any) -> SSEResponse[Any]:
    """Send a request, and return `status, headers, events` once the response's headers have arrived.

        status, response_headers, it = request_sse(url, headers, data, timeout=Timeout(read=60, idle=120))
        for item in it:
            print(item)

    Request. `url` is a str or an httpx.URL, `headers` a mapping or pairs. `data` (or `json`) is sent as a JSON body.
    The method is POST if there is a body, `{}` and `[]` included, else GET; `method` overrides it. `params`, `content`,
    `auth`, `cookies`, `files` and `extensions` are as in httpx. A GET follows redirects; a request with a body follows
    only 307 and 308 within its origin; `follow_redirects=True` follows all redirects, False none.

    Items. `decode` is "json" (the data of each event, decoded), "text" (the data), "event" (the whole
    ServerSentEvent; with `comments=True` also Comment items), or a function of the event.

    `dialect` says which events end the stream, are heartbeats, or report an error: "openai", "anthropic",
    "mcp", "events" (no end marker, no heartbeats but comments), or a Dialect. Heartbeats do not reset the `idle`
    limit, and are no items in JSON mode. `done` overrides the dialect's end: the data that ends the stream, a
    function that returns True for the last event, or None. With `require_done` an end without the last event
    raises TruncatedStreamError. In JSON mode an error that the server sends as an event raises UpstreamError,
    unless `error_events="yield"`.

    A body that has no field of the format and no comment raises UpstreamError if it is a JSON error object, else
    ProtocolError. The event of a last block without its blank line is dropped with a WARNING, unless it ends the
    stream, or is a whole JSON object or array in JSON mode and the stream does not reconnect.

    A status other than 200 is returned, not raised. In JSON mode the stream then yields the body once; in
    the other modes it raises StatusError. `raise_for_status()` raises StatusError in all modes. (Another
    2xx of type text/event-stream is read as a stream, too.) With `check_content_type=False` a 200 of another type is
    read as an event stream.

    Limits. `timeout` is in seconds: a number (for connect and read), a mapping, a Timeout, or None.
    `cancel` is an object with `is_set()`, such as a threading.Event; once it is set, the request is aborted
    within 50 ms. At most `max_buffered_bytes` bytes are held for a slow consumer (backpressure), by default
    1 MiB, or less if more than 64 streams are open: a share of 64 MiB. An event has at most
    `max_event_bytes` bytes.

    Reconnecting. With `reconnect=True`, or a ReconnectionPolicy, the stream outlives its connection: the
    request is sent again with the ID of the last event. (One with a body is not, once an event stream has
    answered it, unless the policy's `resume` allows it.) `on_reconnect(attempt, delay, cause)` is called in
    the thread that reads the stream, before the wait of `delay` seconds, with the error, or None after a
    clean end; an exception that it raises ends the stream. The call waits for its first response for at most
    `total` seconds, or 60. `last_event_id` is the ID to resume from.

    `bridge` is a Bridge to use instead of the process's own.

    Raises UsageError for arguments that cannot work, ConnectError, StreamTimeoutError and other
    TransportErrors, RedirectError, ContentTypeError for a 200 that is not text/event-stream,
    RequestAbortedError if `cancel` was set first, and ReconnectionError if no attempt brought a response.
    """
    response = _pending(url, headers, data, **options)
    return response.open()


@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["json"] = "json",
    **options: Unpack[AsyncKeywords],
) -> AsyncSSEResponse[Any]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["text"],
    **options: Unpack[AsyncKeywords],
) -> AsyncSSEResponse[str]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: Literal[False] = False,
    **options: Unpack[AsyncKeywords],
) -> AsyncSSEResponse[ServerSentEvent]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: bool,
    **options: Unpack[AsyncKeywords],
) -> AsyncSSEResponse[ServerSentEvent | Comment]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Callable[[ServerSentEvent], T],
    **options: Unpack[AsyncKeywords],
) -> AsyncSSEResponse[T]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: str,
    comments: bool = False,
    **options: Unpack[AsyncKeywords],
) -> AsyncSSEResponse[Any]: ...
async def arequest_sse(
    url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Any
) -> AsyncSSEResponse[Any]:
    """Do the same as request_sse in a coroutine: on the caller's own event loop, without a thread.

        async with await arequest_sse(url, headers, data) as response:
            async for item in response.events:
                print(item)

    `client` is an httpx.AsyncClient (or an httpx2.AsyncClient) of the caller's to send the request with; by default the
    library keeps one for each event loop and closes it with the loop. The caller's client is neither closed nor
    changed, and keeps its cookie jar. If it speaks HTTP/2, its streams share a connection: an abort closes its own
    stream alone, or logs a warning if the client's transport offers no way to do so.

    The other arguments, and the errors, are those of request_sse, except `bridge`:
    """
    response = await _apending(url, headers, data, **options)
    return await response.aopen()


# The reference of both functions is complete, and is written once.
_, _request, _rest = (inspect.getdoc(request_sse) or "").partition("Request. ")
arequest_sse.__doc__ = f"{inspect.getdoc(arequest_sse)}\n\n{_request}{_rest.replace(_OF_BRIDGES, '')}"

request_sse.__signature__ = signature_with(request_sse, ItemKeywords, BridgeKeywords)  # type: ignore[attr-defined]
arequest_sse.__signature__ = signature_with(arequest_sse, ItemKeywords, AsyncKeywords)  # type: ignore[attr-defined]


def pending_of(call: functools.partial[Any], pauses: Pauses | None = None) -> PendingResponse:
    """Return the request of functools.partial(request_sse, ...), which was not sent yet.

    `pauses` are those that it shares with other requests.
    """
    return _pending(*call.args, _pauses=pauses, **call.keywords)


async def apending_of(call: functools.partial[Any]) -> PendingResponse:
    """Return the request of functools.partial(arequest_sse, ...), which was not sent yet."""
    return await _apending(*call.args, **call.keywords)


def _pending(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    bridge: Bridge | None = None,
    _pauses: Pauses | None = None,
    **options: Any,
) -> PendingResponse:
    check_options(options, "request_sse")
    module = _clients()
    request: PendingResponse = module.pending_of_client(
        module.default_client(), url, headers, data, options, bridge, _pauses
    )
    return request


async def _apending(
    url: str | httpx.URL, headers: Headers = None, data: Any = None, *, client: Any = None, **options: Any
) -> PendingResponse:
    check_options(options, "arequest_sse")
    module = _clients()
    request: PendingResponse = await module.apending_of_client(
        module.default_client(), url, headers, data, options, client
    )
    return request


# The names in the TypeError of a missing argument, or of too many ones.
_pending.__qualname__, _apending.__qualname__ = "request_sse", "arequest_sse"


@functools.cache
def _clients() -> Any:
    """Return the module of clients. An import statement would look for it at each call: 3 % of a short stream."""
    from . import client

    return client
