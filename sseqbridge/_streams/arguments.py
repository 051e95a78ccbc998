"""The checks of the arguments of request_sse and arequest_sse, whose options keywords.py declares.

A wrong argument raises UsageError before anything is sent. Nothing that the caller passed is changed.
"""

from __future__ import annotations

import inspect
import io
import operator
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sseqbridge._checks import (
    Timeout,
    as_timeout,
    check_integer,
    check_limits,
    check_method,
    check_plain_function,
    check_url,
)
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES
from sseqbridge._engine.scope import check_not_cancelled, checked_flag
from sseqbridge._exceptions import UsageError
from sseqbridge._http.request import (
    ACCEPT,
    DEFAULT_HEADERS,
    RequestOptions,
    check_framing,
    check_last_event_id,
    encode_json,
    header_list,
    is_replayable,
)
from sseqbridge._runtime import loops
from sseqbridge._runtime.callbacks import CallersFunction, guarded_body, guarded_coroutine_function
from sseqbridge._signatures import defaults_of
from sseqbridge._sse.dialects import DEFAULT_DONE, event_rules, line_rules

from .decoding import Decoder
from .keywords import ItemKeywords, RequestKeywords, SharedKeywords

if TYPE_CHECKING:
    import httpx

    from sseqbridge._engine.reconnection_notice import OnReconnect
    from sseqbridge._http.media_types import Format
    from sseqbridge._sse.retry_policy import ReconnectionPolicy

    from .keywords import AllKeywords

__all__ = [
    "NOT_OF_LINES",
    "Headers",
    "HeadersFunction",
    "PreparedRequest",
    "check_line_options",
    "check_options",
    "prepare",
]

Headers = Mapping[str, str] | Sequence[tuple[str, str]] | None
HeadersFunction = Callable[[], Headers]
_Pairs = list[tuple[str, str]]

_READ_BYTES = 64 * 1024
_TRACE = "the `trace` extension"
_NO_OPTIONS: Mapping[str, Any] = {}
_DEFAULTS = defaults_of(ItemKeywords, RequestKeywords)
# The options that decide how a response is read. A client may have each of them.
_READING = sorted({*defaults_of(ItemKeywords, SharedKeywords)} - {"auth", "reconnect", "on_reconnect"})
_values_for_reading = operator.itemgetter(*_READING)
# The options that most requests lack, and whose checks take a while: all others but `method`.
_RARE = _DEFAULTS.keys() - {*_READING, "method"}
# The further arguments of httpx's build_request() without rare options. Never changed.
_USUAL_BUILD: dict[str, Any] = {"params": None, "content": None, "cookies": None, "files": None, "extensions": {}}
# Why options have no meaning for JSON Lines.
_REASONS = {
    "comments": "no comments",
    "dialect": "no types of events, heartbeats or end markers. Pass `done` for a last line",
    "last_event_id": "no event IDs to resume from",
    "reconnect": "no event IDs to resume from",
    "on_reconnect": "no event IDs to resume from",
}
NOT_OF_LINES = frozenset(_REASONS)
# A sentinel other than None: a caller's iterator that yields None is an error, not the end of the body.
_NO_CHUNK: Any = object()


class PreparedRequest(NamedTuple):
    """A checked request: its options, and how its events are decoded."""

    options: RequestOptions
    decoder: Decoder
    on_reconnect: OnReconnect | None

    def check_not_cancelled(self) -> None:
        """Raise RequestAbortedError if `cancel` is set, Cancelled if the current scope is cancelled."""
        check_not_cancelled(self.options.cancel, "the request was sent")


def check_options(options: Mapping[str, Any], function: str) -> None:
    """Raise TypeError for an unknown option of a function that has those of request_sse."""
    if not _DEFAULTS.keys() >= options.keys():
        # Imported here: most programs have no use for it.
        from .hints import check_names

        check_names(options, _DEFAULTS, function)


def prepare(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    options: Mapping[str, Any] = _NO_OPTIONS,
    *,
    client_headers: Headers | HeadersFunction = None,
    retries: int = 0,
    format: Format = "sse",
) -> PreparedRequest:
    """Check the arguments of a request. Raises UsageError for arguments that cannot work.

    `options` are those of RequestKeywords and ItemKeywords that the caller has passed. `client_headers` are sent too,
    unless `headers` have some of the same name. `retries` is the client's. With `format="jsonl"` the response is read
    as JSON Lines; see check_line_options.
    """
    given: AllKeywords = {**_DEFAULTS, **options}  # type: ignore[typeddict-item]
    # Most requests have no rare options. The checks of those take as long as all others.
    is_usual = _RARE.isdisjoint(options)
    if not is_usual:
        _check_combinations(data, given)
    body = data if data is not None else given["json"]
    content = given["content"]
    replayable = is_usual or (given["files"] is None and is_replayable(content))
    policy = None if is_usual else _policy(given["reconnect"], given["on_reconnect"], replayable)
    pairs = header_list(headers)
    if client_headers is not None and not callable(client_headers):
        pairs = _merged(header_list(client_headers), pairs)
    own_headers, own_id = pairs, "" if is_usual else check_last_event_id(given["last_event_id"])
    if pairs:
        own_headers, own_id = _without_last_event_id(pairs, own_id)
        if format == "jsonl" and len(own_headers) < len(pairs):
            raise UsageError(_not_of_lines("Last-Event-ID", _REASONS["last_event_id"]))
        check_framing(own_headers, own_length=content is not None)
    has_body = body is not None or content is not None or given["files"] is not None
    # A stream that is resumed by GET is still the response to one request.
    is_request = (has_body or bool(own_id)) and not _is_batch(body, content)
    decoder, common_options = _reading(given, format, is_request=is_request)
    complete = partial(_with_defaults, is_json=body is not None, accept=ACCEPT[format])
    own_options: dict[str, Any] = {
        "method": _method(given["method"], has_body),
        "url": _url(url),
        "headers": complete(own_headers),
        "build": _USUAL_BUILD if body is None else {**_USUAL_BUILD, "content": encode_json(body)},
        "has_body": has_body,
        "last_event_id": own_id,
        "reconnect": policy,
        "replayable": replayable,
        "new_headers": _HeadersOfAttempts(client_headers, own_headers, complete) if callable(client_headers) else None,
        "retries": retries,
    }
    if not is_usual:
        _add_rare(own_options, given)
    complete_options = common_options.with_values(own_options)
    if type(retries) is not int or retries:
        _check_retries(complete_options)
    return PreparedRequest(complete_options, decoder, given["on_reconnect"])


def _add_rare(own_options: dict[str, Any], given: AllKeywords) -> None:
    content = own_options["build"]["content"]
    own_options["build"] = {
        "params": _copied(given["params"]),
        "content": _content(given["content"]) if content is None else content,
        "cookies": _copied(given["cookies"]),
        "files": _copied(given["files"]),
        "extensions": _guarded(given["extensions"] or {}),
    }
    own_options["send"] = {} if given["auth"] is None else {"auth": given["auth"]}
    own_options["cancel"] = checked_flag(given["cancel"])


def _guarded(extensions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a request's extensions, of which httpcore calls `trace` within its own code."""
    trace = extensions.get("trace")
    return {**extensions, "trace": guarded_coroutine_function(trace, _TRACE)} if callable(trace) else {**extensions}


# The types of arguments for which _checked_reading() keeps its results: plain values, none of a caller's own type.
_KEPT_TYPES = frozenset(
    {str, bool, int, float, type(None), Timeout, type(DEFAULT_DONE), type(DEFAULT_MAX_BUFFERED_BYTES)}
)


def _reading(given: AllKeywords, format: Format, *, is_request: bool) -> tuple[Decoder, RequestOptions]:
    """Return how the response is read: its decoder, and options that lack the request, which with_values() adds."""
    values = _values_for_reading(given)
    # Most requests of a process are read in one of few ways. Functions of the caller's are not kept alive.
    read = _kept_reading if _KEPT_TYPES.issuperset(map(type, values)) else _checked_reading
    return read(format, is_request, *values)


def _checked_reading(format: Format, is_request: bool, *values: Any) -> tuple[Decoder, RequestOptions]:
    """Check the options of reading, whose `values` have the order of _READING."""
    given = cast("AllKeywords", dict(zip(_READING, values, strict=True)))
    decode, done = given["decode"], given["done"]
    if given["comments"] and decode != "event":
        raise UsageError('`comments=True` must come with decode="event", which yields Comment items')
    is_json = decode == "json"
    if format == "jsonl":
        rules = line_rules(done, is_json=is_json)
        got = "none. JSON Lines have no end of their own"
    else:
        rules = event_rules(given["dialect"], done, is_json=is_json, is_request=is_request)
        got = "done=None" if done is None else f"dialect={given['dialect']!r}, which has none here"
    if given["require_done"] and not rules.has_end:
        raise UsageError(f"`require_done=True` must come with an end marker, got {got}. Pass `done`.")
    decoder = Decoder(decode, done, given["error_events"], rules)
    options = RequestOptions(
        method="GET",
        url="",
        headers=[],
        build=_USUAL_BUILD,
        send={},
        has_body=False,
        last_event_id="",
        reconnect=None,
        replayable=True,
        timeout=as_timeout(given["timeout"]),
        follow_redirects=given["follow_redirects"],
        check_content_type=given["check_content_type"],
        rules=rules,
        require_done=given["require_done"],
        comments=given["comments"],
        max_event_bytes=check_limits("max_event_bytes", given["max_event_bytes"]),
        max_buffered_bytes=check_limits("max_buffered_bytes", given["max_buffered_bytes"]),
        cancel=None,
        format=format,
    )
    return decoder, options


# Typed: True is no number of bytes, and 1 is one.
_kept_reading = lru_cache(maxsize=64, typed=True)(_checked_reading)


def _check_combinations(data: Any, given: AllKeywords) -> None:
    if data is not None and given["json"] is not None:
        raise UsageError("`data` and `json` are two names for the JSON body, got both. Pass one of them.")
    body = data if data is not None else given["json"]
    if (body is not None) + (given["content"] is not None) + (given["files"] is not None) > 1:
        raise UsageError("a request must have one body, got several. Pass `data` (or `json`), `content` or `files`.")
    auth = given["auth"]
    if not _is_auth(auth):
        raise UsageError(f"`auth` must be (user, password) or an httpx.Auth, got {type(auth).__name__}")
    extensions: object = given["extensions"]
    if extensions is not None and not isinstance(extensions, Mapping):
        raise UsageError(f"`extensions` must be a mapping, as httpx has it, got {type(extensions).__name__}")


def check_line_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that JSON Lines give no meaning. None and False stand for no option."""
    for name, reason in _REASONS.items():
        if options.get(name) not in (None, False):
            raise UsageError(_not_of_lines(name, reason))


def _not_of_lines(name: str, reason: str) -> str:
    return f"`{name}` must be left out for JSON Lines, which have {reason}"


def _is_batch(body: object, content: Any) -> bool:
    """Whether a JSON body holds several JSON-RPC requests, each of which gets a response."""
    if isinstance(content, str):
        return content.lstrip()[:1] == "["
    is_bytes = isinstance(content, (bytes, bytearray, memoryview))
    return isinstance(body, list) or (is_bytes and bytes(content[:64]).lstrip()[:1] == b"[")


def _policy(reconnect: object, on_reconnect: object, replayable: bool) -> ReconnectionPolicy | None:
    policy: ReconnectionPolicy | None = None
    if reconnect is not None and reconnect is not False:
        # Imported here: most programs do not reconnect.
        from sseqbridge._sse.retry_policy import ReconnectionPolicy

        if reconnect is not True and not isinstance(reconnect, ReconnectionPolicy):
            raise UsageError(
                f"`reconnect` must be True or a sseqbridge.ReconnectionPolicy, got {type(reconnect).__name__}. "
                "Pass for example ReconnectionPolicy(attempts=5)."
            )
        policy = ReconnectionPolicy() if reconnect is True else reconnect
    if on_reconnect is not None:
        _check_on_reconnect(on_reconnect, policy)
    if policy is not None and not replayable:
        raise UsageError(
            "`content` must be readable again for `reconnect`, got a body that can be read only once. Pass bytes."
        )
    return policy


def _check_on_reconnect(on_reconnect: object, policy: ReconnectionPolicy | None) -> None:
    if policy is None:
        raise UsageError("`on_reconnect` must come with `reconnect`, got it alone. Pass reconnect=True too.")
    if not callable(on_reconnect):
        kind = type(on_reconnect).__name__
        raise UsageError(f"`on_reconnect` must be a function of (attempt, delay, cause), got {kind}")
    check_plain_function("on_reconnect", on_reconnect)


def _check_retries(options: RequestOptions) -> None:
    retries = check_integer("retries", options.retries, 0)
    if retries and options.reconnect is not None:
        raise UsageError(
            "`retries` must not come with `reconnect`, which repeats the first request too, got both. "
            "Use client.with_options(retries=0) or reconnect=None."
        )
    if retries and not options.has_reusable_body:
        raise UsageError(
            "the body must be readable again for `retries`, got one that can be read only once. "
            "Pass bytes, or use client.with_options(retries=0)."
        )


def _without_last_event_id(headers: _Pairs, given: str) -> tuple[_Pairs, str]:
    """Return the headers without Last-Event-ID, and the event ID that the first request resumes from."""
    sent = [value for name, value in headers if name.lower() == "last-event-id"]
    if not sent:
        return headers, given
    if given or len(sent) > 1:
        raise UsageError(
            "the last event ID must be given once, got several. Pass `last_event_id` or one Last-Event-ID header."
        )
    # As web frameworks pass a header on: each byte as one character.
    given = sent[0].encode("latin-1").decode("utf-8", "replace")
    return [pair for pair in headers if pair[0].lower() != "last-event-id"], check_last_event_id(given)


def _is_auth(auth: Any) -> bool:
    if isinstance(auth, tuple):
        return len(auth) == 2 and all(isinstance(part, (str, bytes)) for part in auth)
    return auth is None or callable(auth) or hasattr(auth, "async_auth_flow")


def _method(method: object, has_body: bool) -> str:
    if method is None:
        return "POST" if has_body else "GET"
    return check_method(method).upper()


def _url(url: object) -> str:
    return url if type(url) is str else check_url("url", url)


def _copied(value: Any) -> Any:
    """Return a copy of a dict or list and those in it, which the caller may change before the request is sent again."""
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


@lru_cache(maxsize=8)
def _default_headers(accept: str, *, is_json: bool) -> tuple[tuple[str, str], ...]:
    content_type = (("Content-Type", "application/json"),) if is_json else ()
    return (("Accept", accept), *DEFAULT_HEADERS, *content_type)


def _with_defaults(headers: _Pairs, *, is_json: bool, accept: str) -> _Pairs:
    defaults = _default_headers(accept, is_json=is_json)
    if not headers:
        return list(defaults)
    present = {name.lower() for name, _ in headers}
    return headers + [(name, value) for name, value in defaults if name.lower() not in present]


def _merged(client_headers: _Pairs, headers: _Pairs) -> _Pairs:
    """Return the headers of a client and those of a request, which replace the client's of the same name."""
    replaced = {name.lower() for name, _ in headers}
    return [pair for pair in client_headers if pair[0].lower() not in replaced] + headers


@dataclass(frozen=True, repr=False)
class _HeadersOfAttempts:
    """Calls the headers function of a client for each attempt, and adds the headers of the request.

    Its repr is left out because it would show secrets.
    """

    function: HeadersFunction
    own: _Pairs
    complete: Callable[[_Pairs], _Pairs]

    def __call__(self) -> _Pairs:
        """Return the headers. Raises CallbackError if the function fails, UsageError for headers that cannot be sent.

        Outside of an event loop, an exit or interrupt of the function passes through.
        """
        with CallersFunction("the headers function", passes=()):
            returned = self.function()
        if inspect.iscoroutine(returned):
            # A lambda that calls a coroutine function.
            returned.close()
            raise UsageError("`headers`: the function must return headers, got a coroutine, which is never awaited")
        headers = header_list(returned, "`headers`: the function must return")
        check_framing(headers, own_length=False)
        if any(name.lower() == "last-event-id" for name, _ in headers):
            raise UsageError("`headers`: the function must not return Last-Event-ID. Pass `last_event_id`.")
        return self.complete(_merged(headers, self.own))


def _content(content: Any) -> Any:
    """Return a body that an asynchronous HTTP client can send."""
    if isinstance(content, (bytearray, memoryview)):
        return bytes(content)
    if content is None or isinstance(content, (str, bytes)):
        return content
    if isinstance(content, AsyncIterable):
        return guarded_body(content)
    if isinstance(content, Mapping) or not isinstance(content, Iterable):
        raise UsageError(
            f"`content` must be str, bytes, an iterable of bytes or a binary file, got {type(content).__name__}. "
            "Pass an object to be sent as JSON as `data`."
        )
    if isinstance(content, io.TextIOBase):
        raise UsageError("`content` must be a binary file, got a text file: open it in mode 'rb'")
    read = getattr(content, "read", None)
    if read is not None:
        return guarded_body(_file_chunks(read))
    with CallersFunction("the request's body, an iterable,"):
        chunks = iter(content)
    return guarded_body(_async_chunks(chunks))


async def _file_chunks(read: Callable[[int], bytes]) -> AsyncIterator[bytes]:
    # In a thread, as in _async_chunks.
    while chunk := await loops.run_in_daemon_thread("sseqbridge-body", read, _READ_BYTES):
        yield chunk


async def _async_chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    # Each chunk in a thread, since the caller's iterator may block.
    while (chunk := await loops.run_in_daemon_thread("sseqbridge-body", next, chunks, _NO_CHUNK)) is not _NO_CHUNK:
        yield chunk
