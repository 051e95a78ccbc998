"""Origins of URLs, and URLs that are not valid."""

from __future__ import annotations

import importlib

import httpx
import pytest

from sseqbridge._http import urls
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


def test_host_in_invalid_punycode_is_an_invalid_url() -> None:
    with pytest.raises(httpx.InvalidURL, match="not a valid name"):
        urls.parsed_url("http://xn--0/")
    assert urls.describe_text("http://xn--0/") == "an invalid URL"
    assert urls.origin_key("http://xn--0/") == ""
    # Building the request reports it.
    assert urls.join_base_url("http://upstream.test/", "http://xn--0/") == "http://xn--0/"


def test_type_of_unpacked_headers_is_httpx_headers_at_run_time() -> None:
    assert importlib.import_module("sseqbridge._http.unpacked").UnpackedHeaders is httpx.Headers
