"""One request's options, checked, and the parts of a request that are built from a caller's arguments.

Every error is raised at the call, before anything is sent. No message repeats a header's value, a
body or a query string, since they may hold credentials.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sseqbridge._checks import CancelFlag, Timeout
from sseqbridge._exceptions import UsageError

from .header_syntax import (
    FORBIDDEN_IN_FETCH_VALUE,
    FORBIDDEN_IN_FETCH_VALUE_BYTES,
    FORBIDDEN_IN_VALUE,
    FORBIDDEN_IN_VALUE_BYTES,
    TOKEN,
    TOKEN_BYTES,
)

if TYPE_CHECKING:
    from sseqbridge._sse.retry_policy import ReconnectionPolicy

__all__ = [
    "DEFAULT_HEADERS",
    "RequestOptions",
    "check_last_event_id",
    "check_raw_headers",
    "encode_json",
    "header_list",
    "is_replayable",
]

# What is sent unless the caller says otherwise.
DEFAULT_HEADERS = (
    ("Accept", "text/event-stream"),
    ("Cache-Control", "no-cache"),
    ("Accept-Encoding", "identity"),
)

# An event ID is sent as it was received, so that its header only has to satisfy the Fetch standard. The parser
# ignores IDs with NUL, and CR and LF end its lines: no ID that a server sent contains one of the three.
_FORBIDDEN_IN_ID = FORBIDDEN_IN_FETCH_VALUE
_FORBIDDEN_IN_ID_BYTES = FORBIDDEN_IN_FETCH_VALUE_BYTES


@dataclass(frozen=True, repr=False)
class RequestOptions:
    """One request, and how its answer is read. Made by the API, never changed; no repr shows a secret."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    # What httpx builds the request from besides: params, content, files, cookies, extensions.
    build: dict[str, Any]
    # What httpx sends it with besides: auth.
    send: dict[str, Any]
    has_body: bool
    # Where the stream is to go on from, "" for nowhere.
    last_event_id: str
    # What becomes of a connection that was dropped; None: nothing.
    reconnect: ReconnectionPolicy | None
    # Whether the body can be sent a second time.
    replayable: bool
    timeout: Timeout
    follow_redirects: bool | None
    check_content_type: bool
    done: str | None
    require_done: bool
    comments: bool
    # Whether events without data are passed over, as keep-alives that no JSON can be.
    skip_empty: bool
    max_event_bytes: int
    max_buffered_bytes: int
    cancel: CancelFlag | None


def encode_json(data: object) -> bytes:
    """Return `data` as JSON, in UTF-8. Raises UsageError for what JSON cannot hold."""
    if isinstance(data, (str, bytes, bytearray, memoryview)):
        raise UsageError(
            f"data is a {type(data).__name__}, which would be encoded a second time; "
            "pass the object itself, or content= for a body that is encoded already"
        )
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        reason = _json_reason(data, exc)
    # Out here, so that nothing is chained: the cause may quote the body.
    raise UsageError(f"data holds something that JSON cannot: {reason}")


def _json_reason(data: object, exc: Exception) -> str:
    if isinstance(exc, UnicodeEncodeError):
        return "a lone surrogate"
    if isinstance(exc, RecursionError) or "Circular" in str(exc):
        return "itself"
    if isinstance(exc, TypeError):
        return str(exc).partition("type ")[2] or "a key that is no string"
    return "a number that is not finite" if "range" in str(exc) or "Out of" in str(exc) else type(exc).__name__


def header_list(headers: object) -> list[tuple[str, str]]:
    """Return `headers`, a mapping or pairs of str or bytes, as a new list of pairs of str.

    Raises UsageError, which never shows a value, for what cannot stand in a request.
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
        raise UsageError("headers is neither a mapping nor a list of (name, value) pairs") from None
    return [_header(name, value) for name, value in pairs]


def check_raw_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise UsageError, which never shows a value, for a header that cannot stand in a request."""
    for name, value in headers:
        bad = _FORBIDDEN_IN_ID_BYTES if name.lower() == b"last-event-id" else FORBIDDEN_IN_VALUE_BYTES
        if not TOKEN_BYTES.fullmatch(name) or bad.search(value):
            _header(name, value)


def _header(name: object, value: object) -> tuple[str, str]:
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    if not isinstance(name, str):
        raise UsageError(f"headers: a name is a {type(name).__name__}; it must be a str")
    if not TOKEN.fullmatch(name):
        # No more of it: in "Authorization: Bearer ..." as a name, the value comes next.
        begin = TOKEN.match(name)
        raise UsageError(f"headers: the name that begins with {begin[0] if begin else ''!r} is no header name")
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise UsageError(
            f"headers: the value of {name!r} is a {type(value).__name__}; it must be a str "
            "(the JSON body is the third argument, data)"
        )
    if name.lower() == "last-event-id":
        if _FORBIDDEN_IN_ID.search(value):
            raise UsageError(f"headers: the value of {name!r} must not have NUL, CR or LF, which no event ID has")
    elif FORBIDDEN_IN_VALUE.search(value):
        raise UsageError(f"headers: the value of {name!r} has a control character, or a space at an end")
    if not value.isascii() and not _is_latin1(value):
        raise UsageError(f"headers: the value of {name!r} has a character that a header cannot carry")
    return name, value


def _is_latin1(value: str) -> bool:
    return all(ord(character) < 256 for character in value)


def check_last_event_id(value: object) -> str:
    """Return a last event ID, "" for None.

    Raises UsageError for an ID that no header can carry: one with NUL, CR, LF or a lone surrogate. Other
    control characters are sent as they are; spaces and tabs at its ends are not sent.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"last_event_id must be a str, as events have it, got {type(value).__name__}")
    if _FORBIDDEN_IN_ID.search(value):
        raise UsageError("last_event_id must not have NUL, CR or LF, which no event ID has")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError("last_event_id has a lone surrogate, which no server sends") from None
    return value


def is_replayable(content: object) -> bool:
    """Whether a body can be read twice: bytes and text can, iterators and files cannot."""
    return content is None or isinstance(content, (str, bytes, bytearray, memoryview))
