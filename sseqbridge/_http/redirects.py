"""Redirects: the request that follows one, or a RedirectError. Pure: nothing is sent here.

httpx follows redirects too, but sends custom credentials (such as X-Api-Key) on to other origins, and turns a
POST into a GET without asking. Here a request with a body only follows redirects that keep it and its origin,
unless `follow_redirects` is True, and another origin gets none of the caller's headers but a few. The same host over
https, on the default ports, gets them all.
Sources: RFC 9110, section 15.4; https://fetch.spec.whatwg.org/#http-redirect-fetch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sseqbridge._exceptions import RedirectError

from .request import DEFAULT_HEADERS
from .urls import describe, is_https_upgrade, is_requestable, origin_key

if TYPE_CHECKING:
    from .request import RequestOptions

__all__ = ["MAX_REDIRECTS", "PERMANENT_STATUSES", "REDIRECT_STATUSES", "Redirect", "redirect", "redirect_url"]

MAX_REDIRECTS = 20
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
PERMANENT_STATUSES = frozenset({301, 308})

_BODY_HEADERS = frozenset({"content-encoding", "content-language", "content-type"})
# The caller's headers that another origin gets: none of them can hold a credential.
_CROSS_ORIGIN_HEADERS = _BODY_HEADERS | {"accept", "last-event-id"}
# The new request gets its own.
_RENEWED_HEADERS = frozenset({"content-length", "transfer-encoding"})


class Redirect(NamedTuple):
    """The request that follows a redirect. `is_trusted`: it may carry the caller's headers and auth."""

    request: Any
    is_trusted: bool


def redirect_url(request: Any, status: int, location: str | None) -> Any:
    """Return the URL that a Location header names. Raises RedirectError if no request can be sent to it."""
    cause = None
    try:
        url = None if location is None else request.url.join(location)
    except Exception as exc:
        url, cause = None, exc
    if url is None or not is_requestable(url):
        raise RedirectError(f"{describe(request.url)}: {status} without a usable Location", status) from cause
    return url


def redirect(request: Any, status: int, url: Any, options: RequestOptions, package: Any) -> Redirect:
    """Return the request that follows `request` after a redirect to `url`. `package` is httpx or httpx2.

    Raises RedirectError if `options` do not allow to follow it, and if it needs a body that was read already.
    """
    method, same_origin = request.method, origin_key(url) == origin_key(request.url)
    is_trusted = same_origin or is_https_upgrade(request.url, url)
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
    dropped = _RENEWED_HEADERS if keeps_body else _RENEWED_HEADERS | _BODY_HEADERS
    headers = [
        (name, value)
        for name, value in request.headers.raw
        if (key := name.decode("ascii").lower()) not in dropped and (is_trusted or key in _CROSS_ORIGIN_HEADERS)
    ]
    extensions = request.extensions
    # The Host that the caller gave belongs to the credentials: another virtual host must not get them.
    if not is_trusted:
        headers += _neutral_headers(package)
        extensions = {"timeout": extensions["timeout"]}
    content = options.build["content"] if keeps_body else None
    method = "GET" if becomes_get else method
    request = type(request)(method, url, headers=headers, extensions=extensions, content=content)
    return Redirect(request, is_trusted)


def _neutral_headers(package: Any) -> list[tuple[bytes, bytes]]:
    """Return headers for another origin, in place of the caller's."""
    agent = ("User-Agent", f"python-{package.__name__}/{package.__version__}")
    defaults = (*(pair for pair in DEFAULT_HEADERS if pair[0] != "Accept"), agent)
    return [(name.encode(), value.encode()) for name, value in defaults]
