"""Origins of URLs."""

from __future__ import annotations

import httpx
import pytest

from sseqbridge._http.origin import Origin, origin_of

pytestmark = pytest.mark.configurations("default")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://upstream.test", ("http", "upstream.test", 80)),
        ("https://upstream.test/path?query", ("https", "upstream.test", 443)),
        ("HTTPS://user:pass@Upstream.TEST:8443", ("https", "upstream.test", 8443)),
        ("http://upstream.test:80/", ("http", "upstream.test", 80)),
        ("http://[::1]:8000/", ("http", "::1", 8000)),
        ("http://b\u00fccher.test", ("http", "xn--bcher-kva.test", 80)),
    ],
)
def test_origin_is_scheme_ascii_host_and_port(url: str, origin: tuple[str, str, int]) -> None:
    assert origin_of(httpx.URL(url)) == Origin(*origin)
