"""SSEClient: the defaults of several requests in one place.

Immutable and without a thread, connection or cookie of its own: requests run on a bridge, by default that of the
process, which the first request starts. So a client may be made at import, before a fork, and used by any thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar, overload

from sseqbridge._checks import Immutable, as_timeout, check_plain_function, is_url
from sseqbridge._exceptions import UsageError
from sseqbridge._http.request import header_list
from sseqbridge._http.urls import check_base_url, describe_text, join_base_url
from sseqbridge._signatures import defaults_of, signature_with

from .arguments import check_line_options, prepare
from .bridge import check_bridge
from .call import Call
from .hints import check_names, no_attribute_of_client
from .keywords import ItemKeywords, OwnKeywords, RequestKeywords, SharedKeywords
from .pending import apending, pending

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Unpack

    from sseqbridge._http.pauses import Pauses
    from sseqbridge._sse.events import Comment, ServerSentEvent

    from .aio import AsyncSSEResponse
    from .arguments import Headers, PreparedRequest
    from .bridge import Bridge
    from .decoding import Decode
    from .keywords import AsyncKeywords, ClientKeywords
    from .pending import PendingResponse
    from .sync import SSEResponse

__all__ = ["SSEClient", "apending_of_client", "default_client", "lines_client", "pending_of_client"]

T = TypeVar("T")
R = TypeVar("R")


_OWN = defaults_of(OwnKeywords)
# The options that a client passes on to its requests, and those of a request.
_SHARED = frozenset(defaults_of(ItemKeywords, SharedKeywords))
_OF_REQUEST = RequestKeywords.__optional_keys__
# For the check of a client's options, which needs a URL.
_ANY_URL = "http://localhost"


class SSEClient(Immutable, Generic[T]):
    """Requests with common defaults: `client.request(path, data=...)` is request_sse with the client's options.

        client = SSEClient("https://api.openai.com/v1", headers={"Authorization": "Bearer ..."}, retries=2)
        status, response_headers, it = client.request("/chat/completions", data=data)

    `base_url`: a relative URL of a request is added to its path, as with httpx.Client. `headers` are sent with every
    request, unless the request has headers of the same name. They may be a function that returns them, for credentials
    that expire: it is called for each attempt, the first time in the caller's thread (in a thread of its own for a
    coroutine), and before each reconnection in a thread of its own; a failure is a CallbackError.

    `retries`: how often a request is sent again if its first response is a failure that may pass: no connection, 408,
    409, 429 or 5xx. The delay is 0.5 s and doubles up to 8 s, a quarter of it random; a Retry-After of up to 120 s
    replaces it, and after a longer one the response is returned. X-Should-Retry overrides the status. Nothing is sent
    again after a timeout or error of a request that was sent, nor in mid-stream. `total` includes the delays. Not
    together with `reconnect`.

    `format` is "sse", or "jsonl" for responses of JSON Lines: see request_jsonl, also for the options that have no
    meaning for them.

    `decode` and `comments` select the type of the items. `auth`, `dialect`, `done`, `require_done`, `error_events`,
    `timeout` (in seconds), `reconnect`, `on_reconnect`, `follow_redirects`, `check_content_type`, `max_event_bytes` and
    `max_buffered_bytes` are the options of request_sse; a request may override each. `bridge` is the Bridge of
    `request` and of calls, None for the process's own.

    Immutable and thread-safe, it keeps no cookies and starts no thread before its first request, so that it may be a
    global variable of a program that forks. It needs no close(). A copy is the client itself; it cannot be pickled. The
    repr shows no secrets.

    Raises UsageError for options that cannot work.
    """

    __slots__ = ("_base_url", "_own", "_shared")

    _base_url: str
    _own: OwnKeywords
    _shared: Mapping[str, Any]

    @overload
    def __init__(
        self: SSEClient[Any],
        base_url: str | httpx.URL = "",
        *,
        decode: Literal["json"] = "json",
        **options: Unpack[ClientKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: SSEClient[str],
        base_url: str | httpx.URL = "",
        *,
        decode: Literal["text"],
        **options: Unpack[ClientKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: SSEClient[ServerSentEvent],
        base_url: str | httpx.URL = "",
        *,
        decode: Literal["event"],
        comments: Literal[False] = False,
        **options: Unpack[ClientKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: SSEClient[ServerSentEvent | Comment],
        base_url: str | httpx.URL = "",
        *,
        decode: Literal["event"],
        comments: bool,
        **options: Unpack[ClientKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: SSEClient[R],
        base_url: str | httpx.URL = "",
        *,
        decode: Callable[[ServerSentEvent], R],
        **options: Unpack[ClientKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: SSEClient[Any],
        base_url: str | httpx.URL = "",
        *,
        decode: str,
        comments: bool = False,
        **options: Unpack[ClientKeywords],
    ) -> None: ...
    def __init__(self, base_url: Any = "", **options: Any) -> None:
        """Check the options; see the class."""
        self._set_all(base_url, options)

    def _set_all(self, base_url: Any, options: dict[str, Any]) -> None:
        for name in sorted(_OF_REQUEST.difference(_SHARED).intersection(options)):
            raise UsageError(f"`{name}` must be an option of a request, got it for the client. Pass it to request().")
        check_names(options, _SHARED | _OWN.keys(), type(self).__name__)
        own: OwnKeywords = {**_OWN, **{name: options.pop(name) for name in _OWN.keys() & options}}  # type: ignore[typeddict-item]
        check_bridge(own["bridge"])
        headers = own["headers"]
        check_plain_function("headers", headers)
        if own["format"] not in ("sse", "jsonl"):
            raise UsageError(f'`format` must be "sse" or "jsonl", got {own["format"]!r}')
        # Of objects that their owner may change: a copy.
        own["headers"] = headers if callable(headers) else header_list(headers, "`headers` must be a function,") or None
        self._set(_base_url="", _own=own, _shared={})
        self._prepared(_ANY_URL, None, None, options)
        if "timeout" in options:
            options["timeout"] = as_timeout(options["timeout"])
        self._set(_base_url=check_base_url(base_url), _shared=options)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            no_attribute_of_client(type(self), name)

        # `with` and `async with`, as for a client of httpx.
        def __enter__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__!r} has nothing to close. Use it without `with`.")

        def __exit__(self, *exc_info: object) -> None:
            """Not called: there is no way into the block."""

        __aenter__ = __enter__
        __aexit__ = __exit__

    def __repr__(self) -> str:
        base_url = [describe_text(self._base_url)] if self._base_url else []
        body_format = [] if self._own["format"] == "sse" else [self._own["format"]]
        return f"<{' '.join([type(self).__name__, *base_url, *body_format, *sorted(self._shared)])}>"

    @overload
    def with_options(self, *, base_url: str | httpx.URL = ..., **options: Unpack[ClientKeywords]) -> SSEClient[T]: ...
    @overload
    def with_options(
        self,
        *,
        base_url: str | httpx.URL = ...,
        decode: Decode | str,
        comments: bool = False,
        **options: Unpack[ClientKeywords],
    ) -> SSEClient[Any]: ...
    def with_options(self, **options: Any) -> SSEClient[Any]:
        """Return a client with some options replaced. `headers` replace all headers of this client.

        `options` are those of the constructor. With another `decode`, a type checker takes the items for Any: annotate
        the client, as in `texts: SSEClient[str] = client.with_options(decode="text")`. Raises UsageError for options
        that cannot work.
        """
        made = object.__new__(type(self))
        base_url = options.pop("base_url", self._base_url)
        made._set_all(base_url, {**self._own, **self._shared, **options})
        return made

    def request(
        self, url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Unpack[RequestKeywords]
    ) -> SSEResponse[T]:
        """Send a request, and return `status, headers, events` once the response's headers have arrived.

        `url` may be relative to the client's base URL. `headers` are added to the client's, and replace those of the
        same name. `data` and the other `options` are those of request_sse; an option that is given overrides the
        client's, and `decode`, `comments` and `bridge` are the client's. Raises what request_sse raises.
        """
        self._check_names(options, "request")
        response = pending_of_client(self, url, headers, data, options)
        return response.open()

    async def arequest(
        self, url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Unpack[AsyncKeywords]
    ) -> AsyncSSEResponse[T]:
        """Do the same in a coroutine, on its own event loop and without a bridge, as arequest_sse does.

        `url`, `headers`, `data` and `options` are those of `request`. The option `client` is an httpx.AsyncClient of
        the caller's to send the request with; see arequest_sse. Raises what arequest_sse raises.
        """
        own: dict[str, Any] = {**options}
        http = own.pop("client", None)
        self._check_names(own, "arequest")
        response = await apending_of_client(self, url, headers, data, own, http)
        return await response.aopen()

    def call(
        self, url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Unpack[RequestKeywords]
    ) -> Call[T]:
        """Return a request that is checked now, and sent by `call()` or `await call.asend()`.

        `url`, `headers`, `data` and `options` are those of `request`. Raises UsageError for arguments that cannot work,
        and for a body that can be read only once: a call may be sent several times.
        """
        self._check_names(options, "call")
        return Call(self._prepared(url, headers, data, options), self._own["bridge"])

    def _check_names(self, options: Mapping[str, Any], method: str) -> None:
        if not options.keys() <= _OF_REQUEST:
            for name in sorted({"base_url", *_OWN, *_SHARED}.difference(_OF_REQUEST).intersection(options)):
                raise UsageError(
                    f"`{name}` must be an option of the client, got it for one request. "
                    f"Send it with client.with_options({name}=...).{method}(...)"
                )
            check_names(options, _OF_REQUEST, f"{type(self).__name__}.{method}")

    def _prepared(self, url: Any, headers: Headers, data: Any, options: Mapping[str, Any]) -> PreparedRequest:
        """Check a request. Raises UsageError for options that cannot work."""
        own = self._own
        if self._base_url and is_url(url):
            url = join_base_url(self._base_url, str(url))
        if self._shared:
            options = {**self._shared, **options}
        if own["format"] == "jsonl":
            check_line_options(options)
        return prepare(
            url,
            headers,
            data,
            options,
            client_headers=own["headers"],
            retries=own["retries"],
            format=own["format"],
        )


# Of the constructor, not of the class: a subclass with a constructor of its own would inherit it.
SSEClient.__init__.__signature__ = signature_with(  # type: ignore[attr-defined]
    SSEClient.__init__, OwnKeywords, ItemKeywords, SharedKeywords
)

# Made on first use, not at import: pdoc reloads the modules one by one, and a client made between two reloads would
# hold defaults of a replaced class.


@functools.cache
def default_client() -> SSEClient[Any]:
    """Return the client of request_sse and arequest_sse."""
    return SSEClient()


@functools.cache
def lines_client() -> SSEClient[Any]:
    """Return the client of request_jsonl."""
    return SSEClient(format="jsonl")


def pending_of_client(
    client: SSEClient[Any],
    url: Any,
    headers: Headers,
    data: Any,
    options: Mapping[str, Any],
    bridge: Bridge | None = None,
    pauses: Pauses | None = None,
) -> PendingResponse:
    """Return a request of a client, which was not sent yet. The caller has checked the names of the options.

    Besides the options of a request, `options` may have `decode` and `comments`. `bridge` overrides the client's.
    `pauses` are shared with the other calls of a gather.
    """
    prepared = client._prepared(url, headers, data, options)
    return pending(prepared, client._own["bridge"] if bridge is None else bridge, pauses)


async def apending_of_client(
    client: SSEClient[Any], url: Any, headers: Headers, data: Any, options: Mapping[str, Any], http: Any = None
) -> PendingResponse:
    """Return a request of a client on the running loop, which was not sent yet. `http` is a client of httpx or None."""
    return await apending(client._prepared(url, headers, data, options), http)
