"""RelayOptions: the keyword arguments that all functions of sseqbridge.relay share, checked. Immutable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sseqbridge._checks import check_seconds, near_miss
from sseqbridge._exceptions import StatusError, UsageError
from sseqbridge._signatures import shown
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import ServerSentEvent

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    from ._ending import RelayEnd

    class CommonRelayKeywords(TypedDict, total=False):
        """The keyword arguments of all relays, for type checkers; see RelayOptions."""

        heartbeat: float | None
        map: Callable[[Any], Any] | None
        done: bool | str | ServerSentEvent | None
        error: Callable[[BaseException], Any] | None
        refusal: RefusalOption
        early: bool
        on_item: Callable[[Any], Any] | None
        on_end: Callable[[RelayEnd], Any] | None

    class AsyncRelayKeywords(CommonRelayKeywords, total=False):
        """The keyword arguments of relays for asynchronous servers, for type checkers; see RelayOptions."""

        send_timeout: float | None

    class SyncRelayKeywords(CommonRelayKeywords, total=False):
        """The keyword arguments of relays for synchronous servers, for type checkers; see RelayOptions."""

        probe: float | None

    class RelayKeywords(AsyncRelayKeywords, SyncRelayKeywords, total=False):
        """The keyword arguments of relays for servers of both kinds, for type checkers; see RelayOptions."""


__all__ = ["ASYNC_WITHOUT", "SYNC_WITHOUT", "RelayOptions", "describe", "relay_options"]

# The options that have no meaning for an asynchronous server, and for a synchronous one.
ASYNC_WITHOUT = ("probe",)
SYNC_WITHOUT = ("send_timeout",)

RefusalFunction = Callable[[StatusError], tuple[int, Any]]
RefusalOption = Literal["error", "pass"] | RefusalFunction


@dataclass(frozen=True, kw_only=True)
class RelayOptions:
    """How a stream is relayed.

    `heartbeat`: seconds without an event after which a comment is sent, None for never. The first heartbeat
    is sent at once if no event has arrived, so that the web server sends the response's headers.

    `probe`: seconds between checks of the client's socket while there is nothing to send, None for never.
    WSGI only, and only if the server exposes the socket: gunicorn, Werkzeug and uWSGI do.

    `map`: a function that is called with each item and returns what is sent for it: a str, a dict or list
    (sent as JSON), a ServerSentEvent, a Comment, or None to send nothing. Unless it returns a ServerSentEvent
    the name and id of the upstream's event are kept. It is called in the thread that writes to the client, by
    an asynchronous server on its event loop (so it must not block), and for an iterable in its worker thread.

    `done`: True to forward the upstream's `[DONE]`, False or None to leave it out, or a str or ServerSentEvent
    to send at every clean end instead.

    `error`: a function that is called with the error that ended the stream, where `map` is called, and returns
    what is sent for it: a str, a dict or list (the data of an event named "error"), a ServerSentEvent, or None
    to send nothing. If it raises, the connection to the client is broken off, if the web server can do that.
    None: an event named "error" which the SDKs of providers recognize as an error, with the type of the error
    and a text that names no host.

    `refusal`: the response if the upstream's status is not 200. "error": 502, or the upstream's own 429 or 503
    with its Retry-After, and a JSON object `{"error": {"type": "upstream_error", "status": ..., "message":
    ...}}`. "pass": the upstream's status and body, as JSON or plain text. A function: it is called with the
    StatusError, and returns the status, and the body as a dict or list (sent as JSON), or a str. In each form
    a 204 remains a 204. An error object that an upstream sends with the status 200 in place of events is reported as
    an event: with its own message only for "pass".

    `early`: True to send headers and heartbeats before the upstream's headers are in, if `stream` is a function.
    A refusal of the upstream is then reported like an error in the stream. The function is called at the first read,
    under WSGI in a thread of its own.

    `on_item`: a function that is called with each item, where `map` is called, and before it. Without `map`, an event
    that cannot be decoded, or reports an error, is forwarded without a call. If the function raises, the
    stream ends with CallbackError.

    `on_end`: a function that is called once, with a RelayEnd, when the response has been sent, or has been closed
    earlier; also after a refusal, but not for HEAD. A synchronous server calls it in the response's thread. An
    asynchronous one calls a plain function in a thread, and awaits a coroutine function for at most 5 s, although
    the client has left. Its exceptions are logged. The client sees the end of the response after the call.

    `send_timeout`: seconds after which a client that does not read counts as disconnected, None for never: the
    upstream is aborted, although the web server still waits for the client. ASGI only.

    Raises UsageError for an argument of the wrong type, seconds that are not above 0, or a `done` that cannot
    be encoded.
    """

    heartbeat: float | None = 15.0
    probe: float | None = 1.0
    map: Callable[[Any], Any] | None = None
    done: bool | str | ServerSentEvent | None = True
    error: Callable[[BaseException], Any] | None = None
    refusal: RefusalOption = "error"
    early: bool = False
    on_item: Callable[[Any], Any] | None = None
    on_end: Callable[[RelayEnd], Any] | None = None
    send_timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("heartbeat", "probe", "send_timeout"):
            check_seconds(name, getattr(self, name), never=True)
        _check_function("map", self.map, "the item")
        _check_function("on_item", self.on_item, "the item")
        _check_function("error", self.error, "the error")
        _check_function("on_end", self.on_end, "the RelayEnd", may_be_coroutine=True)
        if not isinstance(self.early, bool):
            raise UsageError(f"`early` must be a bool, got {type(self.early).__name__}")
        if not (self.done is None or isinstance(self.done, (bool, str, ServerSentEvent))):
            raise UsageError(
                f"`done` must be a bool, a str, a ServerSentEvent or None, got {type(self.done).__name__}. "
                "Pass True to forward [DONE], False to leave it out."
            )
        if self.done_event is not None:
            # An event that cannot be encoded is refused now, not at the end of the stream.
            encode(self.done_event)
        if not (callable(self.refusal) or self.refusal in ("error", "pass")):
            raise UsageError(
                f'`refusal` must be "error", "pass" or a function of the StatusError, got {self.refusal!r}'
            )

    def check_synchronous(self) -> None:
        """Raise UsageError for an option that only an asynchronous server can use."""
        if inspect.iscoroutinefunction(self.on_end):
            raise UsageError(
                "`on_end` must be a plain function for a synchronous server, got a coroutine function, which is never "
                "awaited"
            )

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event to send at every clean end instead of the upstream's `[DONE]`; None if there is none."""
        if isinstance(self.done, str):
            return ServerSentEvent(data=self.done)
        return self.done if isinstance(self.done, ServerSentEvent) else None


def _check_function(name: str, function: object, argument: str, *, may_be_coroutine: bool = False) -> None:
    if function is not None and not callable(function):
        raise UsageError(f"`{name}` must be a function of {argument}, or None, got {type(function).__name__}")
    if not may_be_coroutine and inspect.iscoroutinefunction(function):
        raise UsageError(f"`{name}` must be a plain function, got a coroutine function, which is never awaited")


def describe(function: Callable[..., Any], *, without: tuple[str, ...] = ()) -> None:
    """Give a function that takes relay options as `**options` a signature, and a docstring, that list them."""
    signature = inspect.signature(function)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, one in inspect.signature(RelayOptions).parameters.items()
        if name not in without
    ]
    first = [one for one in own if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    last = [one for one in own if one.kind is inspect.Parameter.KEYWORD_ONLY]
    function.__signature__ = shown(signature.replace(parameters=[*first, *shared, *last]))  # type: ignore[attr-defined]
    names = {one.name for one in shared}
    text, raises, errors = (inspect.getdoc(function) or "").rpartition("\n\nRaises ")
    options = [part for part in (inspect.getdoc(RelayOptions) or "").split("\n\n") if part[1:].split("`")[0] in names]
    function.__doc__ = "\n\n".join([text, *options]) + raises + errors


def relay_options(name: str, options: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> RelayOptions:
    """Return the options of the function `name`. Raises TypeError, as a call does, for one that it does not have."""
    known = inspect.signature(RelayOptions).parameters
    for option in options:
        if option not in known or option in without:
            hint = near_miss(option, set(known).difference(without))
            raise TypeError(f"{name}() got an unexpected keyword argument {option!r}. {hint}".rstrip())
    return RelayOptions(**options)
