"""The keyword arguments of the functions of sseqbridge.relay: their declaration, documentation and checks."""

# Without annotations of __future__: the types are quoted, and the defaults are evaluated. See _signatures.py.

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

from sseqbridge._checks import check_bool, check_plain_function, check_seconds
from sseqbridge._exceptions import StatusError, UsageError
from sseqbridge._signatures import check_names, defaults_of, signature_with
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import ServerSentEvent

if TYPE_CHECKING:
    from ._ending import RelayEnd

__all__ = [
    "AsyncRelayOptions",
    "CommonRelayOptions",
    "RefusalOption",
    "RelayOptions",
    "SyncRelayOptions",
    "check_synchronous",
    "describe",
    "done_event",
    "relay_options",
]

RefusalFunction = Callable[[StatusError], tuple[int, Any]]
RefusalOption = Literal["error", "pass"] | RefusalFunction


class CommonRelayOptions(TypedDict, total=False):
    """The options of all relays; see RelayOptions."""

    heartbeat: Annotated["float | None", 15.0]
    map: Annotated["Callable[[Any], Any] | None", None]
    done: Annotated["bool | str | ServerSentEvent | None", True]
    error: Annotated["Callable[[BaseException], Any] | None", None]
    refusal: Annotated["RefusalOption", "error"]
    early: Annotated["bool", False]
    on_item: Annotated["Callable[[Any], Any] | None", None]
    on_end: Annotated["Callable[[RelayEnd], Any] | None", None]


class AsyncRelayOptions(CommonRelayOptions, total=False):
    """The options of relays for asynchronous servers; see RelayOptions."""

    send_timeout: Annotated["float | None", None]


class SyncRelayOptions(CommonRelayOptions, total=False):
    """The options of relays for synchronous servers; see RelayOptions."""

    probe: Annotated["float | None", 1.0]


class RelayOptions(AsyncRelayOptions, SyncRelayOptions, total=False):
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


_DEFAULTS = defaults_of(RelayOptions)


def relay_options(name: str, declared: type, options: Mapping[str, Any]) -> RelayOptions:
    """Return all relay options: those that were passed to the function `name`, and the defaults of the others.

    `declared` is the TypedDict of the options that the function has. Raises UsageError for a wrong value, and
    TypeError, as a call does, for an option that the function does not have.
    """
    check_names(options, defaults_of(declared), name)
    checked = cast("RelayOptions", {**_DEFAULTS, **options})
    _check(checked)
    return checked


def _check(options: RelayOptions) -> None:
    check_seconds("heartbeat", options["heartbeat"], never=True)
    check_seconds("probe", options["probe"], never=True)
    check_seconds("send_timeout", options["send_timeout"], never=True)
    _check_function("map", options["map"], "the item")
    _check_function("on_item", options["on_item"], "the item")
    _check_function("error", options["error"], "the error")
    _check_function("on_end", options["on_end"], "the RelayEnd", may_be_coroutine=True)
    check_bool("early", options["early"])
    done, refusal = options["done"], options["refusal"]
    if not (done is None or isinstance(done, (bool, str, ServerSentEvent))):
        raise UsageError(
            f"`done` must be a bool, a str, a ServerSentEvent or None, got {type(done).__name__}. "
            "Pass True to forward [DONE], False to leave it out."
        )
    event = done_event(options)
    if event is not None:
        # An event that cannot be encoded is refused now, not at the end of the stream.
        encode(event)
    if not (callable(refusal) or refusal in ("error", "pass")):
        raise UsageError(f'`refusal` must be "error", "pass" or a function of the StatusError, got {refusal!r}')


def _check_function(name: str, function: object, argument: str, *, may_be_coroutine: bool = False) -> None:
    if function is not None and not callable(function):
        raise UsageError(f"`{name}` must be a function of {argument}, or None, got {type(function).__name__}")
    if not may_be_coroutine:
        check_plain_function(name, function)


def check_synchronous(options: RelayOptions) -> None:
    """Raise UsageError for an option that only an asynchronous server can use."""
    if inspect.iscoroutinefunction(options["on_end"]):
        raise UsageError(
            "`on_end` must be a plain function for a synchronous server, got a coroutine function, which is never "
            "awaited"
        )


def done_event(options: RelayOptions) -> ServerSentEvent | None:
    """Return the event to send at every clean end instead of the upstream's `[DONE]`; None if there is none."""
    done = options["done"]
    if isinstance(done, str):
        return ServerSentEvent(data=done)
    return done if isinstance(done, ServerSentEvent) else None


def describe(function: Callable[..., Any], declared: type, *, without: tuple[str, ...] = ()) -> None:
    """Give a function that takes relay options as `**options` a signature, and a docstring, that list them."""
    function.__signature__ = signature_with(function, declared, without=without)  # type: ignore[attr-defined]
    names = defaults_of(declared).keys() - without
    text, raises, errors = (inspect.getdoc(function) or "").rpartition("\n\nRaises ")
    options = [part for part in (inspect.getdoc(RelayOptions) or "").split("\n\n") if part[1:].split("`")[0] in names]
    function.__doc__ = "\n\n".join([text, *options]) + raises + errors
