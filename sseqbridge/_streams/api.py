"""The two functions that most users call: request_sse and arequest_sse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

from sseqbridge._engine.caller_loops import running_loop_state, state_of_client
from sseqbridge._engine.channel import End
from sseqbridge._engine.reconnecting import Reconnecting, call_on_reconnect
from sseqbridge._engine.responses import Head
from sseqbridge._engine.scope import check_scope
from sseqbridge._engine.stream_task import StreamTask
from sseqbridge._exceptions import RequestAbortedError

from .aio import AsyncEventStream, AsyncSSEResponse
from .arguments import Headers, PreparedRequest, RequestArguments, prepare
from .bridge import Bridge, check_bridge, default_bridge
from .cursor import Cursor
from .reader import ItemReader
from .sync import EventStream, SSEResponse

if TYPE_CHECKING:
    import httpx
    from typing_extensions import TypedDict, Unpack

    from sseqbridge._checks import CancelFlag, Timeout
    from sseqbridge._engine.reconnecting import OnReconnect
    from sseqbridge._sse.dialects import Dialect, DialectName, Done
    from sseqbridge._sse.events import Comment, ServerSentEvent
    from sseqbridge._sse.retry_policy import ReconnectionPolicy

    from .decoding import ErrorEvents

    class RequestKeywords(TypedDict, total=False):
        """The keyword arguments of both functions, except `decode` and `comments`, for type checkers."""

        json: Any
        method: str | None
        params: Any
        content: Any
        auth: Any
        cookies: Any
        files: Any
        extensions: Mapping[str, Any] | None
        dialect: Dialect | DialectName
        done: Done
        require_done: bool
        error_events: ErrorEvents
        timeout: Timeout | float | Mapping[str, float | None] | None
        cancel: CancelFlag | None
        reconnect: ReconnectionPolicy | bool | None
        on_reconnect: OnReconnect | None
        last_event_id: str | None
        follow_redirects: bool | None
        check_content_type: bool
        max_event_bytes: int
        max_buffered_bytes: int

    class BridgeKeywords(RequestKeywords, total=False):
        """The keyword arguments of request_sse alone."""

        bridge: Bridge | None

    class ClientKeywords(RequestKeywords, total=False):
        """The keyword arguments of arequest_sse alone."""

        client: Any


__all__ = ["PendingResponse", "apending", "arequest_sse", "pending", "request_sse"]

T = TypeVar("T")


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
def request_sse(url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Any) -> SSEResponse[Any]:
    """Send a request, and return `status, headers, events` once the answer's headers have arrived.

    Request. `data` (or `json`) is sent as a JSON body. The method is POST if there is a body, `{}` and `[]`
    included, else GET; `method` overrides it. `params`, `content`, `auth`, `cookies`, `files` and
    `extensions` are as in httpx. A GET follows redirects; a request with a body follows only 307 and 308
    within its origin; `follow_redirects=True` follows all redirects, False none.

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
    2xx of type text/event-stream is read as a stream, too.)

    Limits. `timeout` is in seconds: a number (for connect and read), a mapping, a Timeout, or None.
    `cancel` is an object with `is_set()`, such as a threading.Event; once it is set, the request is aborted
    within 50 ms. At most `max_buffered_bytes` bytes are held for a slow consumer (backpressure), by default
    1 MiB, or less if more than 64 streams are open: a share of 64 MiB. An event has at most
    `max_event_bytes` bytes.

    Reconnecting. With `reconnect=True`, or a ReconnectionPolicy, the stream outlives its connection: the
    request is sent again with the ID of the last event. `on_reconnect(attempt, delay, cause)` is called in
    the thread that reads the stream, before the wait of `delay` seconds, with the error, or None after a
    clean end; an exception that it raises ends the stream. The call waits for its first answer for at most
    `total` seconds, or 60. `last_event_id` is the ID to resume from.

    `bridge` is a Bridge to use instead of the process's own.

    Raises UsageError for arguments that cannot work, ConnectError, StreamTimeoutError and other
    TransportErrors, RedirectError, ContentTypeError for a 200 that is not text/event-stream,
    RequestAbortedError if `cancel` was set first, and ReconnectionError if no attempt brought an answer.
    """
    response = _pending(RequestArguments(url, headers, data, **_without(options, "bridge")), options.get("bridge"))
    try:
        # Sent inside of the block: an interrupt leaves no request running.
        response.send()
        while (head := response.head_of(response.subscription.channel.receive())) is None:
            pass
        return response.response(head)
    except BaseException:
        response.subscription.abort()
        raise


@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["json"] = "json",
    **options: Unpack[ClientKeywords],
) -> AsyncSSEResponse[Any]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["text"],
    **options: Unpack[ClientKeywords],
) -> AsyncSSEResponse[str]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: Literal[False] = False,
    **options: Unpack[ClientKeywords],
) -> AsyncSSEResponse[ServerSentEvent]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: bool,
    **options: Unpack[ClientKeywords],
) -> AsyncSSEResponse[ServerSentEvent | Comment]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Callable[[ServerSentEvent], T],
    **options: Unpack[ClientKeywords],
) -> AsyncSSEResponse[T]: ...
async def arequest_sse(
    url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Any
) -> AsyncSSEResponse[Any]:
    """Do the same as request_sse in a coroutine: on the caller's own event loop, without a thread.

    The arguments are those of request_sse except `bridge`. `client` is an httpx.AsyncClient (or an
    httpx2.AsyncClient) of the caller's to send the request with; by default the library keeps one for each
    event loop and closes it with the loop. The caller's client is neither closed nor changed, and keeps
    its cookie jar. If it speaks HTTP/2, its streams share a connection: an abort closes its own stream alone,
    or logs a warning if the client's transport offers no way to do so.
    """
    arguments = RequestArguments(url, headers, data, **_without(options, "client"))
    response = await _apending(arguments, options.get("client"))
    try:
        response.send()
        while (head := response.head_of(await response.subscription.channel.areceive())) is None:
            pass
        return response.aresponse(head)
    except BaseException:
        response.subscription.abort_on_loop(None)
        raise


def _without(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return {key: value for key, value in options.items() if key != name} if name in options else options


def _describe(function: Callable[..., object], name: str, annotation: str, result: str) -> None:
    """Give a function the signature of RequestArguments, plus one keyword argument."""
    signature = inspect.signature(RequestArguments)
    own = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    signature = signature.replace(parameters=[*signature.parameters.values(), own], return_annotation=result)
    function.__signature__ = signature  # type: ignore[attr-defined]


_describe(request_sse, "bridge", "Bridge | None", "SSEResponse[Any]")
_describe(arequest_sse, "client", "Any", "AsyncSSEResponse[Any]")


class PendingResponse(NamedTuple):
    """A request whose answer's head has not arrived. It is not sent before `send`."""

    subscription: StreamTask
    prepared: PreparedRequest
    # None for a request on the caller's own loop.
    bridge: Bridge | None

    def send(self) -> None:
        """Send the request. If the call fails, the caller aborts it."""
        if self.bridge is None:
            self.subscription.start()
        else:
            self.bridge.start(self.subscription.state, self.subscription)

    def head_of(self, entry: object) -> Head | None:
        """Return the head if the entry is one, None for an entry before it. Raises the stream's error."""
        self.subscription.check_process()
        if isinstance(entry, Reconnecting):
            call_on_reconnect(self.prepared.on_reconnect, entry)
            return None
        if isinstance(entry, Head):
            return entry
        assert isinstance(entry, End)
        if entry.error is None:
            check_scope()
        raise entry.error or RequestAbortedError("the request was aborted before the response's headers were in")

    def reader(self, head: Head) -> ItemReader[Any]:
        """Return a reader of the stream."""
        options, decoder, on_reconnect = self.prepared
        return ItemReader(Cursor(self.subscription, head, decoder, options.cancel, on_reconnect))

    def response(self, head: Head) -> SSEResponse[Any]:
        """Return what request_sse returns."""
        return SSEResponse(EventStream(self.reader(head)))

    def aresponse(self, head: Head) -> AsyncSSEResponse[Any]:
        """Return what arequest_sse returns."""
        return AsyncSSEResponse(AsyncEventStream(self.reader(head)))


def pending(call: functools.partial[Any]) -> PendingResponse:
    """Return the request of functools.partial(request_sse, ...), which was not sent yet."""
    options = call.keywords
    return _pending(RequestArguments(*call.args, **_without(options, "bridge")), options.get("bridge"))


async def apending(call: functools.partial[Any]) -> PendingResponse:
    """Return the request of functools.partial(arequest_sse, ...), which was not sent yet."""
    options = call.keywords
    return await _apending(RequestArguments(*call.args, **_without(options, "client")), options.get("client"))


def _pending(arguments: RequestArguments, bridge: Bridge | None) -> PendingResponse:
    prepared = prepare(arguments)
    check_bridge(bridge)
    bridge = bridge or default_bridge()
    return PendingResponse(bridge.new_task(prepared.options), prepared, bridge)


async def _apending(arguments: RequestArguments, client: Any) -> PendingResponse:
    prepared = prepare(arguments)
    state = await running_loop_state() if client is None else state_of_client(client)
    return PendingResponse(StreamTask(state, prepared.options), prepared, None)
