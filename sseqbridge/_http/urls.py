"""URLs: how messages show them, their origins, and which can be requested. Pure."""

from __future__ import annotations

from typing import Any

import httpx

from .client import parsed_url

__all__ = ["describe", "is_https_upgrade", "is_requestable", "origin_key"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


def describe(url: Any) -> str:
    """Return a URL as messages may show it: without credentials, query and fragment."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = "" if url.port is None else f":{url.port}"
    # From the raw path: in the decoded one, escaped line breaks are line breaks.
    return f"{url.scheme}://{host}{port}{url.raw_path.partition(b'?')[0].decode('ascii')}"


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
    """Whether a URL is one of http or https, with a host and a port up to 65535."""
    return url.scheme in _DEFAULT_PORTS and bool(url.host) and (url.port or 0) <= 65535
