"""The arguments of a log's methods: their types, their defaults, and their checks.

Plain functions of their arguments; any thread may call them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Union

from sseqbridge._checks import CancelFlag, check_limits, check_seconds
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES
from sseqbridge._engine.scope import cancel_flag
from sseqbridge._exceptions import UsageError
from sseqbridge._sse.dialects import Dialect, DialectName, event_rules
from sseqbridge._streams.bridge import Bridge
from sseqbridge._streams.decoding import Decode, Decoder, ErrorEvents

from ._reader import ReaderOptions
from ._start import check_start

if TYPE_CHECKING:
    from sseqbridge._streams.aio import AsyncEventStream, AsyncSSEResponse
    from sseqbridge._streams.sync import SSEResponse, Stream

__all__ = [
    "LogOptions",
    "OpenArguments",
    "OpenOptions",
    "PreparedOpen",
    "Replay",
    "Start",
    "check_key",
    "prepare_open",
]

AnyStream = Union[
    "SSEResponse[Any]",
    "Stream[Any]",
    "AsyncSSEResponse[Any]",
    "AsyncEventStream[Any]",
    Iterable[Any],
    AsyncIterable[Any],
]
Start = Callable[[], AnyStream | Awaitable[AnyStream]]
Replay = Literal["all", "kept", "none"]

_MAX_KEY_BYTES = 512


class LogOptions(TypedDict, total=False):
    """The options of every log, for type checkers; see Log."""

    lease: float
    ttl: float
    max_events: int | None
    abandon_after: float | None
    outage: float
    bridge: Bridge | None


class OpenOptions(TypedDict, total=False):
    """The options of `open` and `aopen` except `decode`, for type checkers."""

    last_event_id: str | None
    replay: Replay
    takeover: bool
    wait: float
    dialect: Dialect | DialectName
    error_events: ErrorEvents
    cancel: CancelFlag | None
    max_buffered_bytes: int


@dataclass(frozen=True)
class OpenArguments:
    """The arguments of `open` and `aopen`, as the caller passed them."""

    key: str
    start: Any = None
    _: KW_ONLY
    last_event_id: str | None = None
    replay: Replay = "all"
    takeover: bool = False
    wait: float = 10.0
    decode: Decode = "json"
    dialect: Dialect | DialectName = "openai"
    error_events: ErrorEvents = "raise"
    cancel: CancelFlag | None = None
    max_buffered_bytes: int = DEFAULT_MAX_BUFFERED_BYTES


# The name in the TypeError of an unknown or missing argument.
OpenArguments.__init__.__qualname__ = "Log.open"


class PreparedOpen(NamedTuple):
    """Checked arguments of `open`: the reader's options, and how its items are decoded."""

    options: ReaderOptions
    decoder: Decoder
    start: Any


def prepare_open(arguments: OpenArguments) -> PreparedOpen:
    """Check the arguments. Raises UsageError for a wrong one, RequestAbortedError if `cancel` is set."""
    start, last_event_id, replay = arguments.start, arguments.last_event_id, arguments.replay
    if replay not in ("all", "kept", "none"):
        raise UsageError(f'`replay` must be "all", "kept" or "none", got {replay!r}')
    if last_event_id is not None and not isinstance(last_event_id, str):
        raise UsageError(f"`last_event_id` must be a str or None, got {type(last_event_id).__name__}")
    if arguments.takeover and start is None:
        raise UsageError("`takeover=True` must come with `start`, got none. Pass the function that begins the stream.")
    check_seconds("wait", arguments.wait, zero=True)
    # The producer's dialect has ended the stream; the reader's own says what its events are.
    rules = event_rules(arguments.dialect, None, is_json=arguments.decode == "json")
    decoder = Decoder(arguments.decode, None, arguments.error_events, rules)
    # The body of an error response is part of the StatusError, and no item.
    decoder.gives_body = False
    if start is not None:
        check_start(start)
    cancel = cancel_flag(arguments.cancel, "the stream was opened")
    options = ReaderOptions(
        key=check_key(arguments.key),
        last_event_id=last_event_id or "",
        replay=replay,
        may_begin=start is not None,
        takeover=arguments.takeover,
        wait=arguments.wait,
        rules=rules,
        max_buffered_bytes=check_limits("max_buffered_bytes", arguments.max_buffered_bytes),
        cancel=cancel,
    )
    return PreparedOpen(options, decoder, start)


def check_key(key: object) -> str:
    """Return a stream's key, which may be user input: no key can reach another stream's keys in the store."""
    if not isinstance(key, str):
        raise UsageError(f"`key` must be a str, got {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise UsageError("`key` must be valid Unicode, got a lone surrogate, which UTF-8 cannot encode") from None
    if not 0 < size <= _MAX_KEY_BYTES:
        raise UsageError(f"`key` must have 1 to {_MAX_KEY_BYTES} bytes, got {size}")
    if not key.isprintable() or "{" in key or "}" in key:
        raise UsageError("`key` must have no control characters, line breaks or braces, got one")
    return key
