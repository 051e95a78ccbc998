"""The two functions that most users ever call, and the checking of what they are called with.

Rule: an argument that cannot work is a UsageError here, before anything is sent; nothing that
the caller passed in is changed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

from sseqbridge._checks import CancelFlag, Timeout, as_timeout, check_limits
from sseqbridge._engine.bridge import Bridge, default_bridge
from sseqbridge._engine.channel import End
from sseqbridge._engine.exchange import Head
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._engine.reconnecting import Reconnecting, tell
from sseqbridge._engine.scope import cancel_flag
from sseqbridge._engine.stream_task import StreamTask
from sseqbridge._exceptions import BridgeClosedError, RequestAbortedError, UsageError
from sseqbridge._http.client import ClientPool, prepare
from sseqbridge._http.request import (
    DEFAULT_HEADERS,
    RequestOptions,
    check_last_event_id,
    encode_json,
    header_list,
    is_replayable,
)
from sseqbridge._runtime import fork, loops
from sseqbridge._runtime.callbacks import guarded_body
from sseqbridge._sse.parser import DEFAULT_MAX_EVENT_BYTES
from sseqbridge._sse.retry_policy import ReconnectionPolicy

from .decoding import Decode, Decoder, Done, ErrorEvents
from .sync import AsyncEventStream, AsyncSSEResponse, EventStream, SSEResponse

if TYPE_CHECKING:
    import httpx
    from typing_extensions import TypedDict, Unpack

    from sseqbridge._engine.reconnecting import OnReconnect
    from sseqbridge._sse.events import Comment, ServerSentEvent

    class RequestArguments(TypedDict, total=False):
        """The keyword arguments that both functions take, but for `decode` and `comments`."""

        json: Any
        method: str | None
        params: Any
        content: Any
        auth: Any
        cookies: Any
        files: Any
        extensions: Mapping[str, Any] | None
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

    class BridgeArguments(RequestArguments, total=False):
        """What request_sse takes besides."""

        bridge: Bridge | None

    class ClientArguments(RequestArguments, total=False):
        """What arequest_sse takes besides."""

        client: Any


__all__ = ["PendingResponse", "abegin", "arequest_sse", "begin", "request_sse"]

T = TypeVar("T")
Headers = Mapping[str, str] | Sequence[tuple[str, str]] | None

_DEFAULT_TIMEOUT = Timeout()
_DEFAULT_MAX_BUFFERED_BYTES = 1024 * 1024
_READ_BYTES = 64 * 1024
# Not None: that a caller's iterator gives None is a fault to be told, not the end of the body.
_NO_CHUNK: Any = object()


@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["json"] = "json",
    **options: Unpack[BridgeArguments],
) -> SSEResponse[Any]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["text"],
    **options: Unpack[BridgeArguments],
) -> SSEResponse[str]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: Literal[False] = False,
    **options: Unpack[BridgeArguments],
) -> SSEResponse[ServerSentEvent]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: bool,
    **options: Unpack[BridgeArguments],
) -> SSEResponse[ServerSentEvent | Comment]: ...
@overload
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Callable[[ServerSentEvent], T],
    **options: Unpack[BridgeArguments],
) -> SSEResponse[T]: ...
def request_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    json: Any = None,
    method: str | None = None,
    params: Any = None,
    content: Any = None,
    auth: Any = None,
    cookies: Any = None,
    files: Any = None,
    extensions: Mapping[str, Any] | None = None,
    decode: Decode = "json",
    done: Done = "[DONE]",
    require_done: bool = False,
    error_events: ErrorEvents = "raise",
    comments: bool = False,
    timeout: Timeout | float | Mapping[str, float | None] | None = _DEFAULT_TIMEOUT,
    cancel: CancelFlag | None = None,
    reconnect: ReconnectionPolicy | bool | None = None,
    on_reconnect: OnReconnect | None = None,
    last_event_id: str | None = None,
    follow_redirects: bool | None = None,
    check_content_type: bool = True,
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    max_buffered_bytes: int = _DEFAULT_MAX_BUFFERED_BYTES,
    bridge: Bridge | None = None,
) -> SSEResponse[Any]:
    """Ask for an event stream and return `status, headers, events` once the headers are in.

    Request. `data` (or `json`) is sent as a JSON body: POST when there is a body, `{}` and `[]`
    included, GET when there is none; `method` overrides. `params`, `content`, `auth`, `cookies`,
    `files` and `extensions` are as httpx has them. A GET follows redirects, a request with a
    body only 307 and 308 within its origin; `follow_redirects=True` follows all, False none.

    Items. `decode` is "json" (each event's data decoded), "text" (the data), "event" (the whole
    ServerSentEvent; with `comments=True` Comment items too) or a function of the event. `done`
    is the data that ends the stream, or a function of an event that accepts the last one, or
    None; with `require_done` an end without it is a TruncatedStreamError. In JSON mode an error
    sent as an event raises UpstreamError, unless `error_events="yield"`.

    A status other than 200 is returned as it is: in JSON mode the stream then gives the body
    once, in the others it raises StatusError; `raise_for_status()` raises it in all of them.

    Limits. `timeout` is in seconds: a number (connect and read), a mapping, a Timeout, or None.
    `cancel` is anything with `is_set()`, such as a threading.Event; once set, the request is
    aborted within 50 ms. At most `max_buffered_bytes` are held for a slow consumer, and one
    event is at most `max_event_bytes`.

    Reconnecting. With `reconnect=True`, or a ReconnectionPolicy, the stream outlives its
    connection: it is asked for again, with the ID of its last event. `on_reconnect(attempt, delay,
    cause)` is called by whoever reads the stream: before the wait of `delay` seconds, with the error,
    or None after a clean end; what it raises ends the stream. For its first answer the call waits
    `total` seconds at most, or 60. `last_event_id` is what an earlier stream left.

    `bridge` picks a Bridge other than the process's own.

    Raises UsageError for arguments that cannot work, ConnectError, StreamTimeoutError and other
    TransportErrors, RedirectError, ContentTypeError for a 200 of another type than
    text/event-stream, RequestAbortedError when `cancel` was set first, and ReconnectionError where
    no attempt has brought an answer.
    """
    decoder, options = _prepare(
        url, headers, data, json, method, params, content, auth, cookies, files, extensions, decode, done,
        require_done, error_events, comments, timeout, cancel, reconnect, on_reconnect, last_event_id,
        follow_redirects, check_content_type, max_event_bytes, max_buffered_bytes,
    )  # fmt: skip
    opening = PendingResponse(_submitted(options, bridge), decoder, options.cancel, on_reconnect)
    try:
        while (head := opening.head_of(opening.stream_task.channel.receive())) is None:
            pass
        return opening.response(head)
    except BaseException:
        opening.stream_task.request_abort()
        raise


@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["json"] = "json",
    **options: Unpack[ClientArguments],
) -> AsyncSSEResponse[Any]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["text"],
    **options: Unpack[ClientArguments],
) -> AsyncSSEResponse[str]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: Literal[False] = False,
    **options: Unpack[ClientArguments],
) -> AsyncSSEResponse[ServerSentEvent]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    comments: bool,
    **options: Unpack[ClientArguments],
) -> AsyncSSEResponse[ServerSentEvent | Comment]: ...
@overload
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Callable[[ServerSentEvent], T],
    **options: Unpack[ClientArguments],
) -> AsyncSSEResponse[T]: ...
async def arequest_sse(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    json: Any = None,
    method: str | None = None,
    params: Any = None,
    content: Any = None,
    auth: Any = None,
    cookies: Any = None,
    files: Any = None,
    extensions: Mapping[str, Any] | None = None,
    decode: Decode = "json",
    done: Done = "[DONE]",
    require_done: bool = False,
    error_events: ErrorEvents = "raise",
    comments: bool = False,
    timeout: Timeout | float | Mapping[str, float | None] | None = _DEFAULT_TIMEOUT,
    cancel: CancelFlag | None = None,
    reconnect: ReconnectionPolicy | bool | None = None,
    on_reconnect: OnReconnect | None = None,
    last_event_id: str | None = None,
    follow_redirects: bool | None = None,
    check_content_type: bool = True,
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    max_buffered_bytes: int = _DEFAULT_MAX_BUFFERED_BYTES,
    client: Any = None,
) -> AsyncSSEResponse[Any]:
    """Do what request_sse does, in a coroutine: on the caller's own asyncio loop, with no thread.

    The arguments are request_sse's, but for `bridge`: `client` is an httpx.AsyncClient (or
    httpx2.AsyncClient) of yours to send the request with, instead of one that the library keeps
    for each loop and closes with it. It stays yours, its cookie jar and its closing too; where it
    speaks HTTP/2, its streams share a connection, which an abort then leaves open.
    """
    decoder, options = _prepare(
        url, headers, data, json, method, params, content, auth, cookies, files, extensions, decode, done,
        require_done, error_events, comments, timeout, cancel, reconnect, on_reconnect, last_event_id,
        follow_redirects, check_content_type, max_event_bytes, max_buffered_bytes,
    )  # fmt: skip
    opening = PendingResponse(await _started(options, client), decoder, options.cancel, on_reconnect)
    try:
        while (head := opening.head_of(await opening.stream_task.channel.areceive())) is None:
            pass
        return opening.aresponse(head)
    except BaseException:
        opening.stream_task.abort_on_loop(None)
        raise


class PendingResponse(NamedTuple):
    """A request that was sent, and whose answer's head is not in yet."""

    stream_task: StreamTask
    decoder: Decoder
    cancel: CancelFlag | None
    on_reconnect: OnReconnect | None
    is_synchronous: bool = True

    def head_of(self, entry: object) -> Head | None:
        """Return the head, None for what comes before it. Raises what came instead of it."""
        self.stream_task.check_process()
        if isinstance(entry, Reconnecting):
            tell(self.on_reconnect, entry)
            return None
        if isinstance(entry, Head):
            return entry
        assert isinstance(entry, End)
        raise entry.error or RequestAbortedError("the request was aborted before the response's headers were in")

    def response(self, head: Head) -> SSEResponse[Any]:
        """Return what request_sse does."""
        return SSEResponse(EventStream(self.stream_task, head, self.decoder, self.cancel, self.on_reconnect))

    def aresponse(self, head: Head) -> AsyncSSEResponse[Any]:
        """Return what arequest_sse does."""
        return AsyncSSEResponse(AsyncEventStream(self.stream_task, head, self.decoder, self.cancel, self.on_reconnect))


def begin(call: functools.partial[Any]) -> PendingResponse:
    """Send a request that functools.partial(request_sse, ...) puts off, and do not wait for its answer."""
    arguments = _bound(request_sse, call)
    bridge = arguments.pop("bridge")
    decoder, options = _prepare(**arguments)
    return PendingResponse(_submitted(options, bridge), decoder, options.cancel, arguments["on_reconnect"])


async def abegin(call: functools.partial[Any]) -> PendingResponse:
    """Do the same for functools.partial(arequest_sse, ...)."""
    arguments = _bound(arequest_sse, call)
    client = arguments.pop("client")
    decoder, options = _prepare(**arguments)
    return PendingResponse(await _started(options, client), decoder, options.cancel, arguments["on_reconnect"], False)


_signature = functools.lru_cache(inspect.signature)


def _bound(function: Callable[..., object], call: functools.partial[Any]) -> dict[str, Any]:
    bound = _signature(function).bind(*call.args, **call.keywords)
    bound.apply_defaults()
    return bound.arguments


def _submitted(options: RequestOptions, bridge: Bridge | None) -> StreamTask:
    if bridge is not None and not isinstance(bridge, Bridge):
        raise UsageError(f"bridge is a {type(bridge).__name__}; it is a sseqbridge.Bridge")
    return (bridge or default_bridge()).submit(options)


async def _started(options: RequestOptions, client: Any) -> StreamTask:
    if client is None:
        state = await _loop_state()
    else:
        state = LoopState(asyncio.get_running_loop(), ClientPool.of(client))
    stream_task = StreamTask(state, options)
    stream_task.start()
    return stream_task


# One state a loop. Written by each loop's own thread, and dict operations are atomic.
_loop_states: dict[asyncio.AbstractEventLoop, LoopState] = {}


async def _loop_state() -> LoopState:
    loop = asyncio.get_running_loop()
    inherited = _loop_states.get(loop)
    if inherited is not None and inherited.process != fork.process_token():
        # Of a loop that a forked child goes on with: its connections are the parent's.
        fork.pin(_loop_states.pop(loop, None))
    if loop not in _loop_states:
        for other in _loop_states.copy():
            if other.is_closed():
                _loop_states.pop(other, None)
        # Another request may make the state meanwhile.
        await prepare()
        if loop not in _loop_states:
            state = _loop_states[loop] = LoopState(loop, ClientPool())
            state.at_loop_end = _at_loop_end(state)
            await state.at_loop_end.__anext__()
    return _loop_states[loop]


async def _at_loop_end(state: LoopState) -> AsyncGenerator[None, None]:
    # asyncio.run() and its like close the asynchronous generators that are left over before they
    # close the loop: that is the one hook that a loop has for its end.
    try:
        yield
    finally:
        # A forked child that ends its parent's loop leaves the streams alone.
        if state.process == fork.process_token():
            _loop_states.pop(state.loop, None)
            await state.aclose(_loop_ended, seconds=0.5)


def _loop_ended() -> BridgeClosedError:
    return BridgeClosedError("the event loop that the stream ran on is ending")


def _prepare(
    url: object,
    headers: object,
    data: object,
    json: object,
    method: object,
    params: Any,
    content: Any,
    auth: Any,
    cookies: Any,
    files: Any,
    extensions: Any,
    decode: Decode,
    done: Done,
    require_done: bool,
    error_events: ErrorEvents,
    comments: bool,
    timeout: object,
    cancel: Any,
    reconnect: object,
    on_reconnect: object,
    last_event_id: object,
    follow_redirects: bool | None,
    check_content_type: bool,
    max_event_bytes: object,
    max_buffered_bytes: object,
) -> tuple[Decoder, RequestOptions]:
    """Return the decoder and options for a call. Raises UsageError for what cannot work."""
    decoder = Decoder(decode, done, error_events)
    if comments and decode != "event":
        raise UsageError('comments=True gives Comment items, which only decode="event" can')
    if require_done and done is None:
        raise UsageError("require_done=True with done=None: say which event is the last")
    if data is not None and json is not None:
        raise UsageError("data and json are two names for the JSON body; pass one of them")
    body = data if data is not None else json
    if sum(part is not None for part in (body, content, files)) > 1:
        raise UsageError("a request has one body: pass data (or json), content or files")
    if not _is_auth(auth):
        raise UsageError(f"auth is a {type(auth).__name__}; it is (user, password) or an httpx.Auth")
    if extensions is not None and not isinstance(extensions, Mapping):
        raise UsageError(f"extensions is a {type(extensions).__name__}; it is a mapping, as httpx has it")
    cancel = cancel_flag(cancel, "the request was sent")
    policy = _policy(reconnect)
    if on_reconnect is not None and (policy is None or not callable(on_reconnect)):
        raise UsageError("on_reconnect is a function of (attempt, delay, cause), which reconnect=True has called")
    if inspect.iscoroutinefunction(on_reconnect):
        raise UsageError("on_reconnect is a coroutine function, which nobody would await; it is a plain function")
    own_headers, own_id = _without_last_event_id(header_list(headers), check_last_event_id(last_event_id))
    has_body = body is not None or content is not None or files is not None
    _check_framing(own_headers, own_length=content is not None)
    replayable = files is None and is_replayable(content)
    if policy is not None and not replayable:
        raise UsageError("reconnect sends the body again, and this one can be read only once: pass it as bytes")
    options = RequestOptions(
        method=_method(method, has_body),
        url=_url(url),
        headers=_with_defaults(own_headers, is_json=body is not None),
        build={
            "params": params,
            "content": encode_json(body) if body is not None else _content(content),
            "cookies": cookies,
            "files": files,
            "extensions": dict(extensions or {}),
        },
        send={} if auth is None else {"auth": auth},
        has_body=has_body,
        last_event_id=own_id,
        reconnect=policy,
        replayable=replayable,
        timeout=as_timeout(timeout),
        follow_redirects=follow_redirects,
        check_content_type=check_content_type,
        done=done if isinstance(done, str) else None,
        require_done=require_done,
        comments=comments,
        skip_empty=decode == "json",
        max_event_bytes=check_limits("max_event_bytes", max_event_bytes),
        max_buffered_bytes=check_limits("max_buffered_bytes", max_buffered_bytes),
        cancel=cancel,
    )
    return decoder, options


def _policy(reconnect: object) -> ReconnectionPolicy | None:
    if reconnect is None or reconnect is False:
        return None
    policy = ReconnectionPolicy() if reconnect is True else reconnect
    if not isinstance(policy, ReconnectionPolicy):
        raise UsageError(f"reconnect is a {type(reconnect).__name__}; it is True, or a sseqbridge.ReconnectionPolicy")
    return policy


def _without_last_event_id(headers: list[tuple[str, str]], given: str) -> tuple[list[tuple[str, str]], str]:
    """Return the headers without a Last-Event-ID, and what the first request is to go on from."""
    sent = [value for name, value in headers if name.lower() == "last-event-id"]
    if not sent:
        return headers, given
    if given or len(sent) > 1:
        raise UsageError("Last-Event-ID is given more than once: pass last_event_id, or one header")
    # As a server's own framework gives it on: bytes, each as one character.
    given = sent[0].encode("latin-1").decode("utf-8", "replace")
    return [pair for pair in headers if pair[0].lower() != "last-event-id"], check_last_event_id(given)


def _is_auth(auth: Any) -> bool:
    if isinstance(auth, tuple):
        return len(auth) == 2 and all(isinstance(part, (str, bytes)) for part in auth)
    return auth is None or callable(auth) or hasattr(auth, "async_auth_flow")


def _check_framing(headers: list[tuple[str, str]], *, own_length: bool) -> None:
    # What a response's headers hold, where they took the place of the request's under one name.
    for name, _ in headers:
        if name.lower() == "transfer-encoding" or (name.lower() == "content-length" and not own_length):
            raise UsageError(
                f"headers: {name!r} is for the HTTP client to set; are these the headers of an earlier response?"
            )


def _method(method: object, has_body: bool) -> str:
    if method is None:
        return "POST" if has_body else "GET"
    if not isinstance(method, str) or not method.isascii() or not method.isalpha():
        raise UsageError(f"method={method!r} is no HTTP method")
    return method.upper()


def _url(url: object) -> str:
    if not isinstance(url, str) and not (hasattr(url, "scheme") and hasattr(url, "host")):
        raise UsageError(f"url is a {type(url).__name__}; it is a str or an httpx.URL")
    return str(url)


def _with_defaults(headers: list[tuple[str, str]], *, is_json: bool) -> list[tuple[str, str]]:
    present = {name.lower() for name, _ in headers}
    defaults = (*DEFAULT_HEADERS, *((("Content-Type", "application/json"),) if is_json else ()))
    return headers + [(name, value) for name, value in defaults if name.lower() not in present]


def _content(content: Any) -> Any:
    """Return a body that an asynchronous client takes."""
    if isinstance(content, (bytearray, memoryview)):
        return bytes(content)
    if content is None or isinstance(content, (str, bytes)):
        return content
    if isinstance(content, AsyncIterable):
        return guarded_body(content)
    if isinstance(content, Mapping) or not isinstance(content, Iterable):
        raise UsageError(
            f"content is a {type(content).__name__}; it is str, bytes, an iterable of bytes or a binary file. "
            "data= takes an object to be sent as JSON"
        )
    if isinstance(content, io.TextIOBase):
        raise UsageError("content is a file that is open for text; open it as a binary file")
    read = getattr(content, "read", None)
    return guarded_body(_async_chunks(iter(lambda: read(_READ_BYTES), b"") if read is not None else iter(content)))


async def _async_chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    # In a thread, chunk by chunk: the caller's iterator may take its time, the loop may not.
    while (chunk := await loops.run_in_daemon_thread("sseqbridge-body", next, chunks, _NO_CHUNK)) is not _NO_CHUNK:
        yield chunk
