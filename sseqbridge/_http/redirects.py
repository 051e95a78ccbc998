"""Redirects, and other places where a stream continues: the request that follows. Pure: nothing is sent here.

httpx follows redirects too, but sends custom credentials (such as X-Api-Key) on to other origins, and turns a
POST into a GET without asking. Here a request with a body only follows redirects that keep it and its origin,
unless `follow_redirects` is True, and another origin gets none of the caller's headers but a few. The same host over
https, on the default ports, gets them all. A place that a response names for resuming its stream is treated alike.
Sources: RFC 9110, section 15.4; https://fetch.spec.whatwg.org/#http-redirect-fetch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sseqbridge._exceptions import RedirectError

from .request import BODY_HEADERS, DEFAULT_HEADERS
from .urls import describe, is_https_upgrade, is_requestable, origin_key

if TYPE_CHECKING:
    from .request import RequestOptions

__all__ = [
    "MAX_REDIRECTS",
    "PERMANENT_STATUSES",
    "REDIRECT_STATUSES",
    "Place",
    "Redirect",
    "is_trusted_hop",
    "own_headers",
    "redirect",
    "redirect_url",
    "request_for_place",
    "target_url",
]

MAX_REDIRECTS = 20
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
PERMANENT_STATUSES = frozenset({301, 308})

# The caller's headers that another origin gets: none of them can hold a credential.
_CROSS_ORIGIN_HEADERS = BODY_HEADERS | {"accept", "last-event-id"}
# The new request gets its own.
_RENEWED_HEADERS = frozenset({"content-length", "transfer-encoding"})
# Headers that describe a single request, or that the library adds to each request.
_MESSAGE_HEADERS = _RENEWED_HEADERS | BODY_HEADERS | {"connection", "cookie", "host", "last-event-id"}


class Redirect(NamedTuple):
    """The request that follows a redirect. `is_trusted`: it may carry the caller's headers and auth."""

    request: Any
    is_trusted: bool


class Place(NamedTuple):
    """Where a stream is resumed, and how: the request has no body.

    `headers` are all of the caller's; None keeps those of the request before. `is_trusted`: the request before had the
    caller's headers and auth, and may pass them on to `url`.
    """

    method: str
    url: Any
    headers: list[tuple[str, str]] | None
    is_trusted: bool


def redirect_url(request: Any, status: int, location: str | None) -> Any:
    """Return the URL that a Location header names. Raises RedirectError if no request can be sent to it."""
    cause = None
    try:
        url = None if location is None else target_url(request.url, location)
    except Exception as exc:
        url, cause = None, exc
    if url is None or not is_requestable(url):
        raise RedirectError(f"{describe(request.url)}: {status} without a usable Location", status) from cause
    return url


def target_url(url: Any, target: str) -> Any:
    """Return `target`, relative to a request's `url`, with the user and password of `url` if it may have them.

    Raises exceptions of httpx or httpx2, and of the modules for URLs below them, if it cannot be parsed.
    """
    joined = url.join(target)
    if url.userinfo and not joined.userinfo and is_trusted_hop(url, joined):
        return joined.copy_with(userinfo=url.userinfo)
    return joined


def redirect(request: Any, status: int, url: Any, options: RequestOptions, package: Any) -> Redirect:
    """Return the request that follows `request` after a redirect to `url`. `package` is httpx or httpx2.

    Raises RedirectError if `options` do not allow to follow it, and if it needs a body that was read already.
    """
    method, same_origin = request.method, origin_key(url) == origin_key(request.url)
    is_trusted = is_trusted_hop(request.url, url)
    becomes_get = (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST")
    keeps_body = options.has_body and method == options.method and not becomes_get
    where = f"{describe(request.url)}: {status} to {describe(url)}"
    if options.has_body and not options.follow_redirects and not (status in (307, 308) and same_origin):
        raise RedirectError(
            f"{where}; a request with a body follows only 307 and 308 within its origin. "
            "Pass follow_redirects=True to follow this one.",
            status,
        )
    if keeps_body and not options.replayable:
        raise RedirectError(f"{where}; the body can be read only once. Pass it as bytes.", status)
    dropped = _RENEWED_HEADERS if keeps_body else _RENEWED_HEADERS | BODY_HEADERS
    headers = _carried(request, dropped, is_trusted=is_trusted)
    # The Host that the caller gave belongs to the credentials: another virtual host must not get them.
    if not is_trusted:
        headers += _neutral_headers(package)
    content = options.build["content"] if keeps_body else None
    method = "GET" if becomes_get else method
    return Redirect(_request(request, method, url, headers, content, is_trusted=is_trusted), is_trusted)


def request_for_place(request: Any, place: Place, package: Any) -> Redirect:
    """Return the request that resumes a stream at `place`, in place of `request`, which has the caller's headers."""
    method, url, own, is_trusted = place
    if own is None:
        headers = _carried(request, _RENEWED_HEADERS | BODY_HEADERS, is_trusted=is_trusted)
    else:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in own]
        kept = {"accept", "last-event-id", *(("cookie",) if is_trusted else ())} - {name.lower() for name, _ in own}
        headers += [(name, value) for name, value in request.headers.raw if name.decode("ascii").lower() in kept]
    if own is not None or not is_trusted:
        present = {name.lower() for name, _ in headers}
        headers += [(name, value) for name, value in _neutral_headers(package) if name.lower() not in present]
    return Redirect(_request(request, method, url, headers, None, is_trusted=is_trusted), is_trusted)


def is_trusted_hop(url: Any, target: Any) -> bool:
    """Whether a request to `target` may carry the caller's headers and auth that one to `url` has."""
    return origin_key(target) == origin_key(url) or is_https_upgrade(url, target)


def own_headers(pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return a request's headers that another request may repeat."""
    return [(name, value) for name, value in pairs if name.decode("ascii").lower() not in _MESSAGE_HEADERS]


def _carried(request: Any, dropped: frozenset[str], *, is_trusted: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request that the next one carries."""
    return [
        (name, value)
        for name, value in request.headers.raw
        if (key := name.decode("ascii").lower()) not in dropped and (is_trusted or key in _CROSS_ORIGIN_HEADERS)
    ]


def _request(
    before: Any, method: str, url: Any, headers: list[tuple[bytes, bytes]], content: Any, *, is_trusted: bool
) -> Any:
    extensions = before.extensions if is_trusted else {"timeout": before.extensions["timeout"]}
    return type(before)(method, url, headers=headers, extensions=extensions, content=content)


def _neutral_headers(package: Any) -> list[tuple[bytes, bytes]]:
    """Return headers for another origin, in place of the caller's."""
    agent = ("User-Agent", f"python-{package.__name__}/{package.__version__}")
    return [(name.encode(), value.encode()) for name, value in (*DEFAULT_HEADERS, agent)]
