"""The arguments of a log's methods: their types, their defaults, and their checks.

Plain functions of their arguments; any thread may call them.
"""

# Without annotations of __future__: the types of options are quoted, and the defaults evaluated. See _signatures.py.

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict, Union, cast

from sseqbridge._checks import CancelFlag, check_limits, check_seconds
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES
from sseqbridge._engine.scope import cancel_flag
from sseqbridge._exceptions import UsageError
from sseqbridge._signatures import complete
from sseqbridge._sse.dialects import Dialect, DialectName, event_rules
from sseqbridge._streams.bridge import Bridge, check_bridge
from sseqbridge._streams.decoding import Decoder, ErrorEvents
from sseqbridge._streams.keywords import DecodeKeywords

from ._reader import ReaderOptions
from ._start import check_start
from ._store import LogSettings

if TYPE_CHECKING:
    from sseqbridge._streams.aio import AsyncEventStream, AsyncSSEResponse
    from sseqbridge._streams.sync import SSEResponse, Stream

__all__ = [
    "AllOpenOptions",
    "LogOptions",
    "OpenOptions",
    "PreparedOpen",
    "Replay",
    "Start",
    "check_key",
    "checked_settings",
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
    """The options of every log; see Log."""

    lease: Annotated["float", 10.0]
    ttl: Annotated["float", 3600.0]
    max_events: Annotated["int | None", 10_000]
    abandon_after: Annotated["float | None", None]
    outage: Annotated["float", 30.0]
    bridge: Annotated["Bridge | None", None]


class OpenOptions(TypedDict, total=False):
    """The options of `open` and `aopen` except `decode`, whose types are those of overloads."""

    last_event_id: Annotated["str | None", None]
    replay: Annotated["Replay", "all"]
    takeover: Annotated["bool", False]
    wait: Annotated["float", 10.0]
    dialect: Annotated["Dialect | DialectName", "openai"]
    error_events: Annotated["ErrorEvents", "raise"]
    cancel: Annotated["CancelFlag | None", None]
    max_buffered_bytes: Annotated["int", DEFAULT_MAX_BUFFERED_BYTES]


class AllOpenOptions(OpenOptions, DecodeKeywords, total=False):
    """The options of `open` and `aopen`."""


def checked_settings(log: str, options: Mapping[str, Any]) -> tuple[LogSettings, Bridge | None]:
    """Return the settings and the bridge of a log. Raises UsageError for an option that cannot work."""
    settings = complete(log, LogOptions, options)
    check_seconds("lease", settings["lease"])
    check_seconds("ttl", settings["ttl"])
    check_seconds("outage", settings["outage"], zero=True)
    check_seconds("abandon_after", settings["abandon_after"], zero=True, never=True)
    if settings["max_events"] is not None:
        check_limits("max_events", settings["max_events"])
    bridge: Bridge | None = settings.pop("bridge")
    check_bridge(bridge)
    return LogSettings(**settings), bridge


class PreparedOpen(NamedTuple):
    """Checked arguments of `open`: the reader's options, and how its items are decoded."""

    options: ReaderOptions
    decoder: Decoder
    start: Any


def prepare_open(key: str, start: Any, options: Mapping[str, Any]) -> PreparedOpen:
    """Check the arguments. Raises UsageError for a wrong one, RequestAbortedError if `cancel` is set."""
    given = cast("AllOpenOptions", complete("Log.open", AllOpenOptions, options))
    last_event_id, replay = given["last_event_id"], given["replay"]
    if replay not in ("all", "kept", "none"):
        raise UsageError(f'`replay` must be "all", "kept" or "none", got {replay!r}')
    if last_event_id is not None and not isinstance(last_event_id, str):
        raise UsageError(f"`last_event_id` must be a str or None, got {type(last_event_id).__name__}")
    if given["takeover"] and start is None:
        raise UsageError("`takeover=True` must come with `start`, got none. Pass the function that begins the stream.")
    check_seconds("wait", given["wait"], zero=True)
    # The producer's dialect has ended the stream; the reader's own says what its events are.
    rules = event_rules(given["dialect"], None, is_json=given["decode"] == "json")
    decoder = Decoder(given["decode"], None, given["error_events"], rules)
    # The body of an error response is part of the StatusError, and no item.
    decoder.gives_body = False
    if start is not None:
        check_start(start)
    cancel = cancel_flag(given["cancel"], "the stream was opened")
    reader_options = ReaderOptions(
        key=check_key(key),
        last_event_id=last_event_id or "",
        replay=replay,
        may_begin=start is not None,
        takeover=given["takeover"],
        wait=given["wait"],
        rules=rules,
        max_buffered_bytes=check_limits("max_buffered_bytes", given["max_buffered_bytes"]),
        cancel=cancel,
    )
    return PreparedOpen(reader_options, decoder, start)


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
