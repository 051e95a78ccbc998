"""The bytes of a request that needs no more than headers and a body in memory, for a reused connection.

They are the bytes that the transport would send for a request object of httpx, which the tests compare: built from the
options of a call without such an object, or from the object of another client. Pure; runs on the caller's thread. The
cached parts of a URL are those of its target and its Host header.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from .connection_auth import authenticates_connection
from .h1_heads import HeadError, framing_of, write_head
from .header_syntax import FORBIDDEN_IN_FETCH_VALUE_BYTES, TOKEN_BYTES
from .origin import Origin, origin_of
from .request import ACCEPT, DEFAULT_HEADERS

if TYPE_CHECKING:
    from .forwarded import ForwardedRequest
    from .request import RequestOptions

__all__ = ["DefaultHeaders", "DirectRequest", "direct_request", "forwarded_bytes"]

# Of the client: (name in lower case, line).
DefaultHeaders = list[tuple[str, bytes]]

# The methods of which a request is built here, and those for which httpx sends the length of an empty body.
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_SENDS_EMPTY_LENGTH = frozenset({"POST", "PUT", "PATCH"})

# Headers that change what is sent, or how long the connection lives.
_SPECIAL_HEADERS = frozenset(
    {"connection", "content-length", "host", "last-event-id", "proxy-authorization", "transfer-encoding", "upgrade"}
)

# Names in lower case, and lines, of headers that are no secrets.
_KNOWN_LINES = {
    pair: (pair[0].lower(), b"%b: %b\r\n" % (pair[0].encode(), pair[1].encode()))
    for pair in (("Accept", ACCEPT["sse"]), ("Content-Type", "application/json"), *DEFAULT_HEADERS)
}

# The longest URL whose parts are cached.
_MAX_CACHED_URL = 2_048

# The longest request that leaves in one write.
_MAX_BYTES = 63 * 1024


class DirectRequest(NamedTuple):
    """A request as bytes. `url` is a URL of httpx or httpx2. The repr shows no secrets."""

    url: httpx.URL
    origin: Origin
    method: str
    data: bytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method} {self.origin.scheme}://{self.origin.host}>"


class _Target(NamedTuple):
    url: httpx.URL
    origin: Origin
    # From the target to the Host header.
    start: bytes


@functools.lru_cache(maxsize=64)
def _target(url: str) -> _Target | None:
    """Return the parts of a request that its URL decides; None if no plain request can be sent to the URL."""
    try:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or (parsed.port or 0) > 65535:
            return None
        host = httpx.Request("GET", parsed).headers["host"].encode("ascii")
        head = write_head(b"GET", parsed.raw_path, [(b"Host", host)])
    except (httpx.InvalidURL, HeadError, ValueError):
        return None
    return _Target(parsed, origin_of(parsed), head.removeprefix(b"GET").removesuffix(b"\r\n"))


def direct_request(options: RequestOptions, defaults: DefaultHeaders) -> DirectRequest | None:
    """Return the request that the options make; None if it takes more than the bytes of a head and a body."""
    build, method = options.build, options.method
    content = build.get("content")
    if (
        options.send
        or options.format != "sse"
        or options.reconnect is not None
        or options.pauses is not None
        or options.last_event_id
        or method not in _METHODS
        or build.get("params") is not None
        or build.get("cookies") is not None
        or build.get("files") is not None
        or build.get("extensions")
        or not (content is None or type(content) is bytes)
    ):
        return None
    target = (_target if len(options.url) <= _MAX_CACHED_URL else _target.__wrapped__)(options.url)
    if target is None:
        return None
    own: dict[str, None] = {}
    lines: list[bytes] = []
    for pair in options.headers:
        known = _KNOWN_LINES.get(pair) or _line(*pair)
        if known is None:
            return None
        own[known[0]] = None
        lines.append(known[1])
    if not _SPECIAL_HEADERS.isdisjoint(own):
        return None
    body = content or b""
    parts = [method.encode("ascii"), target.start]
    if not body and method in _SENDS_EMPTY_LENGTH:
        parts.append(b"Content-Length: 0\r\n")
    for key, line in defaults:
        if key not in own:
            parts.append(line)
    parts += lines
    parts.append(b"Content-Length: %d\r\n\r\n%b" % (len(body), body) if body else b"\r\n")
    data = b"".join(parts)
    return DirectRequest(target.url, target.origin, method, data) if len(data) <= _MAX_BYTES else None


def _line(name: str, value: str) -> tuple[str, bytes] | None:
    """Return a header's name in lower case and its line; None if it must not be sent, or authenticates a connection."""
    raw_name, raw_value = name.encode("ascii", "replace"), value.encode("latin-1", "replace")
    if not TOKEN_BYTES.fullmatch(raw_name) or FORBIDDEN_IN_FETCH_VALUE_BYTES.search(raw_value):
        return None
    if authenticates_connection([(raw_name, raw_value)]):
        return None
    return name.lower(), b"%b: %b\r\n" % (raw_name, raw_value)


def forwarded_bytes(request: ForwardedRequest) -> DirectRequest | None:
    """Return the request that another client built; None if it takes more than the bytes of a head and a body.

    A request that would not be valid HTTP, or has no valid timeouts, takes more: an error.
    """
    headers, stream = request.headers.raw, request.stream
    if not _has_only_timeouts(request.extensions) or not isinstance(stream, httpx.ByteStream):
        return None
    try:
        framing = framing_of(headers)
        head = write_head(request.method.encode("ascii", "replace"), request.url.raw_path, headers)
    except HeadError:
        return None
    body = b"".join(stream)
    is_plain = framing.keeps_alive and not framing.is_chunked and len(body) == (framing.length or 0)
    if not is_plain or len(head) + len(body) > _MAX_BYTES or authenticates_connection(headers):
        return None
    return DirectRequest(request.url, origin_of(request.url), request.method, head + body)


def _has_only_timeouts(extensions: dict[str, Any]) -> bool:
    timeouts = extensions.get("timeout", {})
    if not extensions.keys() <= {"timeout"} or not isinstance(timeouts, dict):
        return False
    read = timeouts.get("read")
    return read is None or isinstance(read, (int, float))
