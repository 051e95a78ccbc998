"""The options of one request, and the checks of a caller's arguments from which a request is built.

Runs on the caller's thread, before anything is sent. Invariant: no error message contains a header's value, a body
or a query string, since they may hold credentials.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx

from sseqbridge._checks import CancelFlag, Timeout
from sseqbridge._exceptions import CallbackError, UsageError
from sseqbridge._runtime.callbacks import CallersFunction

from .header_syntax import (
    FORBIDDEN_IN_FETCH_VALUE,
    FORBIDDEN_IN_FETCH_VALUE_BYTES,
    FORBIDDEN_IN_VALUE,
    FORBIDDEN_IN_VALUE_BYTES,
    LENGTH,
    TOKEN,
    TOKEN_BYTES,
)

if TYPE_CHECKING:
    from sseqbridge._sse.dialects import EventRules
    from sseqbridge._sse.retry_policy import ReconnectionPolicy

    from .client import Client
    from .media_types import Format
    from .pauses import CallPauses

__all__ = [
    "ACCEPT",
    "BODY_HEADERS",
    "DEFAULT_HEADERS",
    "RequestOptions",
    "build_request",
    "check_framing",
    "check_last_event_id",
    "check_raw_headers",
    "encode_json",
    "header_list",
    "is_replayable",
]

# The Accept header of a request for each format. Kubernetes has no type for the lines of its watches.
ACCEPT: Mapping[Format, str] = {
    "sse": "text/event-stream",
    "jsonl": "application/jsonl, application/x-ndjson, application/json-seq;q=0.9, application/json;q=0.8",
}
# Sent too, unless the caller passes headers of the same name.
DEFAULT_HEADERS = (
    ("Cache-Control", "no-cache"),
    ("Accept-Encoding", "identity"),
)

# Headers that describe the request's body.
BODY_HEADERS = frozenset({"content-encoding", "content-language", "content-type"})

# An event ID is sent as it was received, so that its header only has to satisfy the Fetch standard. The parser
# ignores IDs with NUL, and CR and LF end its lines: no ID that a server sent contains one of the three.
_FORBIDDEN_IN_ID = FORBIDDEN_IN_FETCH_VALUE
_FORBIDDEN_IN_ID_BYTES = FORBIDDEN_IN_FETCH_VALUE_BYTES


@dataclass(frozen=True, eq=False, repr=False)
class RequestOptions:
    """One request, and how its response is read. Immutable; the repr is left out because it would show secrets."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    # Further arguments of httpx's build_request(): params, content, files, cookies, extensions.
    build: dict[str, Any]
    # Further arguments of httpx's send(): auth.
    send: dict[str, Any]
    has_body: bool
    # The event ID after which the stream continues, "" for none.
    last_event_id: str
    # When to connect again after the connection was lost; None for never.
    reconnect: ReconnectionPolicy | None
    # Whether the body can be sent a second time.
    replayable: bool
    timeout: Timeout
    follow_redirects: bool | None
    check_content_type: bool
    # Which events end the stream, are heartbeats, or report errors.
    rules: EventRules
    require_done: bool
    comments: bool
    max_event_bytes: int
    max_buffered_bytes: int
    cancel: CancelFlag | None
    # How the body of the response is read.
    format: Format = "sse"
    # A function of the caller's that returns the headers of the next attempt; None if they stay the same.
    new_headers: Callable[[], list[tuple[str, str]]] | None = None
    # How often the request is sent again if its first response is a failure that may pass.
    retries: int = 0
    # Pauses that the call shares with others.
    pauses: CallPauses | None = None

    def with_values(self, values: Mapping[str, Any]) -> RequestOptions:
        """Return a copy with other values of some fields, as replace() does, but without one call for each field."""
        copy: RequestOptions = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(values)
        return copy

    @property
    def is_repeated(self) -> bool:
        """Whether the call may send several requests, apart from redirects."""
        return self.reconnect is not None or self.retries > 0

    @property
    def has_reusable_body(self) -> bool:
        """Whether the body can be read any number of times: it is in memory."""
        files = self.build["files"]
        return is_replayable(self.build["content"]) and (files is None or _are_in_memory(files))

    def check_buildable(self) -> None:
        """Raise UsageError if the options make no valid request. Leases no client."""
        build_request(_Builder(), self, self.last_event_id)

    def for_next_attempt(self) -> RequestOptions:
        """Return the options of one attempt. May call a function of the caller's, which may block."""
        return self if self.new_headers is None else replace(self, headers=self.new_headers())

    def without_body(self) -> RequestOptions:
        """Return the options of a GET that carries all of the request but its body."""
        new_headers = self.new_headers
        return replace(
            self,
            method="GET",
            headers=_without_body_headers(self.headers),
            new_headers=None if new_headers is None else lambda: _without_body_headers(new_headers()),
            build={**self.build, "content": None, "files": None},
            has_body=False,
        )


def _without_body_headers(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in BODY_HEADERS | {"content-length"}]


class _Builder:
    """Builds requests as a client of httpx without settings of its own."""

    package = httpx

    def build(self, method: str, url: str, headers: list[tuple[bytes, bytes]], **options: Any) -> httpx.Request:
        extensions = {"timeout": options.pop("timeout"), **options.pop("extensions")}
        return httpx.Request(method, url, headers=headers, extensions=extensions, **options)


def encode_json(data: object) -> bytes:
    """Return `data` as JSON, in UTF-8. Raises UsageError, which never shows a value, if JSON cannot represent it."""
    if isinstance(data, (str, bytes, bytearray, memoryview)):
        raise UsageError(
            f"`data` must be the object to encode as JSON, got {type(data).__name__}. "
            "Pass content= for a body that is encoded already."
        )
    try:
        return _dumps(data, allow_nan=False).encode()
    except _UnsupportedTypeError as exc:
        reason = str(exc)
    except UnicodeEncodeError:
        reason = "a lone surrogate"
    except TypeError:
        reason = "a key that is no string"
    except RecursionError:
        reason = "an object that contains itself, or is nested too deeply"
    except ValueError:
        reason = _value_reason(data)
    # Outside of the handlers, so that the error has no context: json's own errors may quote the body.
    raise UsageError(f"`data` must be something that JSON can represent, got {reason}")


class _UnsupportedTypeError(Exception):
    pass


def _dumps(data: object, *, allow_nan: bool) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=allow_nan, default=_refuse)


def _refuse(value: object) -> Any:
    raise _UnsupportedTypeError(type(value).__name__)


def _value_reason(data: object) -> str:
    """Return why json raises ValueError for `data`: it does so for several faults."""
    try:
        _dumps(data, allow_nan=True)
    except ValueError:
        return "an object that contains itself, or an integer with too many digits"
    return "a number that is not finite"


def header_list(headers: object, must: str | None = None) -> list[tuple[str, str]]:
    """Return `headers`, a mapping or pairs of str or bytes, as a new list of pairs of str.

    Raises UsageError, which never shows a value, if they are of another type or cannot be sent. `must` begins its
    message about the type, and is None for the argument of a request.
    """
    if headers is None:
        return []
    multi_items = getattr(headers, "multi_items", None)
    try:
        if multi_items is not None:
            pairs = list(multi_items())
        elif isinstance(headers, Mapping):
            pairs = list(headers.items())
        else:
            pairs = [(name, value) for name, value in headers]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        got = type(headers).__name__
        if must is None:
            must = "`headers` must be"
            got += "." + _hint_for_headers(headers)
        raise UsageError(f"{must} a mapping or a list of (name, value) pairs, got {got}") from None
    return [_header(name, value) for name, value in pairs]


def _hint_for_headers(headers: object) -> str:
    if isinstance(headers, str):
        return " The URL is the first argument; pass another method than the default as `method`."
    return " Pass a function to SSEClient(headers=...)." if callable(headers) else ""


def check_raw_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise UsageError, which never shows a value, if a header cannot be sent."""
    for name, value in headers:
        bad = _FORBIDDEN_IN_ID_BYTES if name.lower() == b"last-event-id" else FORBIDDEN_IN_VALUE_BYTES
        if not TOKEN_BYTES.fullmatch(name) or bad.search(value):
            _header(name, value)


def _header(name: object, value: object) -> tuple[str, str]:
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    if not isinstance(name, str):
        raise UsageError(f"`headers`: a name must be a str, got {type(name).__name__}")
    if not TOKEN.fullmatch(name):
        # Only the valid part: in "Authorization: Bearer ..." as a name, the value follows.
        begin = TOKEN.match(name)
        got = begin[0] if begin else ""
        raise UsageError(f"`headers`: a name must be letters, digits and hyphens, got one that begins with {got!r}")
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        advice = "Pass a JSON body as the third argument, `data`."
        if value is None:
            advice = "Is a variable of the environment unset?"
        raise UsageError(f"`headers`: the value of {name!r} must be a str, got {type(value).__name__}. {advice}")
    if name.lower() == "last-event-id":
        if _FORBIDDEN_IN_ID.search(value):
            raise UsageError(f"`headers`: the value of {name!r} must not contain NUL, CR or LF: no event ID does")
    elif FORBIDDEN_IN_VALUE.search(value):
        raise UsageError(
            f"`headers`: the value of {name!r} must not contain control characters, or begin or end with a space"
        )
    if not value.isascii() and not _is_latin1(value):
        raise UsageError(f"`headers`: the value of {name!r} must be latin-1 text")
    return name, value


def _is_latin1(value: str) -> bool:
    return all(ord(character) < 256 for character in value)


def check_framing(headers: Iterable[tuple[str, str]], *, own_length: bool) -> None:
    """Raise UsageError for headers about the length of a body, which the HTTP client sets."""
    # These headers occur when a response's headers are passed by mistake.
    for name, _ in headers:
        if name.lower() == "transfer-encoding" or (name.lower() == "content-length" and not own_length):
            raise UsageError(
                f"`headers` must not contain {name!r}, which the HTTP client sets. "
                "Pass the headers of a request, not of a response."
            )


def check_last_event_id(value: object) -> str:
    """Return a last event ID, "" for None.

    Raises UsageError if a header cannot carry it: if it contains NUL, CR, LF or a lone surrogate. Other control
    characters are sent as they are; spaces and tabs at its ends are not sent.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"`last_event_id` must be a str, such as the `id` of an event, got {type(value).__name__}")
    if _FORBIDDEN_IN_ID.search(value):
        raise UsageError("`last_event_id` must not contain NUL, CR or LF, which no event ID does")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError("`last_event_id` must not contain a lone surrogate: no server sends one") from None
    return value


def _checked_content(headers: list[tuple[str, str]], content: Any) -> Any:
    """Return the body, checked against the caller's Host and Content-Length headers.

    Raises UsageError for a header that is given twice, and for a length that is not that of the body. The returned
    body raises it while it is sent if its length was not known before.
    """
    names = [name.lower() for name, _ in headers]
    if names.count("host") > 1:
        raise UsageError("`headers`: 'Host' must be given once at most, got several")
    if "content-length" not in names:
        return content
    value = headers[names.index("content-length")][1]
    if names.count("content-length") > 1 or not LENGTH.fullmatch(value):
        raise UsageError("`headers`: 'Content-Length' must be one number of bytes. Leave it out: it is added.")
    if isinstance(content, str):
        content = content.encode()
    if not isinstance(content, AsyncIterable):
        _check_length(int(value), 0 if content is None else len(content), is_over=True)
        return content
    measured = _MeasuredContent(content, int(value))
    # httpx refuses to send a generator twice, and detects it by its type.
    return aiter(measured) if inspect.isasyncgen(content) else measured


def _check_length(length: int, sent: int, *, is_over: bool) -> None:
    if sent > length or (is_over and sent < length):
        got = f"{length} for a body of {'at least ' if not is_over else ''}{sent} bytes"
        raise UsageError(f"`headers`: 'Content-Length' must be the length of the body, got {got}. Leave it out.")


class _MeasuredContent:
    """A body that raises UsageError while it is read if it is not `length` bytes long.

    The part that completes it is held back until the content ends: a server that got `length` bytes would process the
    request.
    """

    def __init__(self, content: AsyncIterable[bytes], length: int) -> None:
        self._content = content
        self._length = length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent, last = 0, b""
        async for part in self._content:
            sent += len(part)
            _check_length(self._length, sent, is_over=False)
            if sent < self._length:
                yield part
            else:
                # More than one part at most: others are empty.
                last += part
        _check_length(self._length, sent, is_over=True)
        if last:
            yield last


def is_replayable(content: object) -> bool:
    """Whether a body can be read twice: bytes and text can, iterators and files cannot."""
    return content is None or isinstance(content, (str, bytes, bytearray, memoryview))


def _are_in_memory(files: object) -> bool:
    """Whether a multipart body, in one of httpx's forms, has no files but those in memory."""
    if isinstance(files, Mapping):
        values = list(files.values())
    elif isinstance(files, Sequence):
        values = [pair[-1] if isinstance(pair, tuple) else None for pair in files]
    else:
        return False
    return all(is_replayable(value[1] if isinstance(value, tuple) and len(value) > 1 else value) for value in values)


def build_request(client: Client | _Builder, options: RequestOptions, last_event_id: str) -> Any:
    """Return a request of the client's package, httpx or httpx2.

    Raises UsageError if no request can be built of the options, and if it would not be valid HTTP.
    """
    timeout = options.timeout
    build = {**options.build, "content": _checked_content(options.headers, options.build["content"])}
    # As bytes: httpx encodes text as ASCII only.
    headers = [(name.encode(), value.encode("latin-1")) for name, value in options.headers]
    if last_event_id:
        # In UTF-8 (WHATWG). No header can carry blanks at the ends of its value.
        headers.append((b"Last-Event-ID", last_event_id.encode().strip(b" \t")))
    fault: type[Exception] | None = None
    try:
        # httpx reads the names and sizes of the caller's files.
        has_files = options.build["files"] is not None
        with CallersFunction("a file of the request", passes=Exception) if has_files else nullcontext():
            request = client.build(
                options.method,
                options.url,
                headers,
                timeout=(timeout.connect, timeout.read, timeout.read, timeout.connect),
                **build,
            )
    except CallbackError:
        raise
    except Exception as exc:
        fault = type(exc)
    # Raised here, without a cause: the cause's message may hold the URL or the body.
    # A UnicodeError is about the host's name, but a UnicodeEncodeError about a cookie.
    is_of_url = fault is not None and issubclass(fault, (client.package.InvalidURL, UnicodeError))
    if is_of_url and fault is not UnicodeEncodeError:
        raise UsageError("`url` must be a valid http:// or https:// URL")
    if fault is not None:
        raise UsageError(f"the HTTP client must be able to build a request from the arguments, got {fault.__name__}")
    # Again: the request's headers include cookies, and what the client adds.
    check_raw_headers(request.headers.raw)
    if request.url.scheme not in ("http", "https") or not request.url.host:
        raise UsageError("`url` must be an http:// or https:// URL with a host. Begin it with one of these schemes.")
    if (request.url.port or 0) > 65535:
        raise UsageError(f"`url` must have a port from 0 to 65535, got {request.url.port}")
    return request
