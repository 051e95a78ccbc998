"""Origins of URLs: connections are reused for requests to the same origin (RFC 9110, section 4.3.1)."""

from __future__ import annotations

from typing import NamedTuple

import httpx

__all__ = ["Origin", "origin_of"]


class Origin(NamedTuple):
    """Scheme, host and port of a URL; the host is in ASCII, as in DNS look-ups and certificates."""

    scheme: str
    host: str
    port: int


def origin_of(url: httpx.URL) -> Origin:
    """Return the origin of an http or https URL, with the scheme's default port if the URL has none."""
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80))
