"""URLs: how messages show them, their origins, which can be requested, and base URLs. Pure."""

from __future__ import annotations

import functools
from typing import Any

import httpx

from sseqbridge._checks import check_url
from sseqbridge._exceptions import UsageError

__all__ = [
    "check_base_url",
    "describe",
    "describe_text",
    "is_https_upgrade",
    "is_requestable",
    "join_base_url",
    "origin_key",
    "parsed_url",
]

_DEFAULT_PORTS = {"http": 80, "https": 443}


@functools.lru_cache(maxsize=64)
def parsed_url(url: str) -> httpx.URL:
    """Return a parsed URL, from a cache: parsing is slow. Raises httpx.InvalidURL."""
    parsed = httpx.URL(url)
    if not _is_valid_name(parsed):
        raise httpx.InvalidURL("the host is not a valid name")
    return parsed


def _is_valid_name(url: Any) -> bool:
    """Whether a URL's host can be read. httpx decodes a host in Punycode ("xn--...") only when it is read."""
    try:
        return url.host is not None
    except UnicodeError:
        return False


def describe(url: Any) -> str:
    """Return a URL as messages may show it: without credentials, query and fragment."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = "" if url.port is None else f":{url.port}"
    # From the raw path: in the decoded one, escaped line breaks are line breaks.
    return f"{url.scheme}://{host}{port}{url.raw_path.partition(b'?')[0].decode('ascii')}"


def describe_text(url: str) -> str:
    """Return a URL that was not parsed as messages may show it, or a substitute if it cannot be parsed."""
    try:
        parsed = parsed_url(url)
    except httpx.InvalidURL:
        return "an invalid URL"
    return describe(parsed) if parsed.is_absolute_url else parsed.raw_path.partition(b"?")[0].decode("ascii")


def origin_key(url: Any) -> str:
    """Return a URL's origin (RFC 6454), "" for a URL that has none, such as a relative one."""
    try:
        url = url if isinstance(url, httpx.URL) else parsed_url(str(url))
        port = url.port or _DEFAULT_PORTS.get(url.scheme)
        return f"{url.scheme}://{url.host}:{port}"
    except (httpx.InvalidURL, ValueError):
        return ""


def is_https_upgrade(url: Any, target: Any) -> bool:
    """Whether `target` is the same host over https, where `url` is http, both on their default ports."""
    begin, end = origin_key(url), origin_key(target)
    host = begin.removeprefix("http://").removesuffix(":80")
    return begin == f"http://{host}:80" and end == f"https://{host}:443"


def is_requestable(url: Any) -> bool:
    """Whether a URL is one of http or https, with a valid host and a port up to 65535."""
    return url.scheme in _DEFAULT_PORTS and _is_valid_name(url) and bool(url.host) and (url.port or 0) <= 65535


def check_base_url(base_url: object) -> str:
    """Return a base URL, "" for none. Raises UsageError if it is no http or https URL, or has a query or fragment."""
    text = check_url("base_url", base_url)
    if not text:
        return ""
    try:
        url = parsed_url(text)
    except httpx.InvalidURL:
        url = None
    # Outside of the handler, so that the error has no context: its message may hold the URL.
    if url is None or not is_requestable(url):
        raise UsageError("`base_url` must be a URL with a host. Begin it with http:// or https://.")
    if url.query or url.fragment:
        raise UsageError("`base_url` must have no query and no fragment. Pass `params` with each request.")
    return text


@functools.lru_cache(maxsize=64)
def join_base_url(base_url: str, url: str) -> str:
    """Return a request's URL as httpx joins it to a client's `base_url`: its path is added to the base's path.

    An absolute URL stays as it is, and so does one that cannot be parsed, or has a scheme or a host alone, which
    building the request reports.
    """
    try:
        relative = parsed_url(url)
    except httpx.InvalidURL:
        return url
    if relative.scheme or relative.host:
        return url
    base = parsed_url(base_url)
    path = base.raw_path if base.raw_path.endswith(b"/") else base.raw_path + b"/"
    return str(base.copy_with(raw_path=path + relative.raw_path.lstrip(b"/")))
