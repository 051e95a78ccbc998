"""Redirects without I/O: from a request, a status and a Location to the next request or a RedirectError."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sseqbridge import RedirectError
from sseqbridge._http.redirects import redirect, redirect_url
from tests.engine.test_batches import options

pytestmark = pytest.mark.configurations("default")

SECRETS = {"Authorization": "Bearer secret", "X-Api-Key": "secret", "Cookie": "secret=1", "X-Trace": "1"}


def request(method: str = "GET", url: str = "http://a.test/x?key=secret", **rest: Any) -> httpx.Request:
    headers = {**SECRETS, "Accept": "text/event-stream", "Last-Event-ID": "7"} | rest.pop("headers", {})
    return httpx.Request(method, url, headers=headers, extensions={"timeout": {}, "sni_hostname": "b"}, **rest)


def followed(sent: httpx.Request, status: int, to: str, **changes: Any) -> httpx.Request:
    given = options(**{"method": sent.method, "build": {"content": sent.content}} | changes)
    made: httpx.Request = redirect(sent, status, redirect_url(sent, status, to), given, httpx).request
    return made


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/y", "http://a.test/y"),
        ("y?z=1", "http://a.test/y?z=1"),
        ("//b.test/y", "http://b.test/y"),
        ("https://b.test:444/y", "https://b.test:444/y"),
    ],
)
def test_location_is_relative_to_the_request(location: str, url: str) -> None:
    assert str(redirect_url(request(), 302, location)) == url


@pytest.mark.parametrize(
    "location",
    [None, "ftp://b.test/", "mailto:a@b.test", "http://b.test:99999/", "http://b:x/", "http://xn--b.test/", "//xn--/"],
)
def test_unusable_location_is_an_error(location: str | None) -> None:
    with pytest.raises(RedirectError, match=r"http://a.test/x: 302 without a usable Location") as caught:
        redirect_url(request(), 302, location)
    assert caught.value.status == 302
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_get_stays_a_get_with_its_headers(status: int) -> None:
    made = followed(request(), status, "/y")
    assert (made.method, str(made.url)) == ("GET", "http://a.test/y")
    assert {name: made.headers[name] for name in SECRETS} == SECRETS
    assert made.extensions == {"timeout": {}, "sni_hostname": "b"}


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (301, "PUT", "PUT"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
    ],
)
def test_methods_follow_the_fetch_standard(status: int, method: str, becomes: str) -> None:
    sent = request(method, content=b"{}", headers={"Content-Type": "application/json"})
    made = followed(sent, status, "/y", has_body=True, follow_redirects=True)
    keeps_body = becomes == method
    assert made.method == becomes
    assert made.content == (b"{}" if keeps_body else b"")
    assert ("content-type" in made.headers) is keeps_body
    assert made.headers.get("content-length") == ("2" if keeps_body else None)


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_body_is_not_dropped_unasked(status: int) -> None:
    with pytest.raises(RedirectError, match="follow_redirects=True") as caught:
        followed(request("POST", content=b"{}"), status, "/y", has_body=True)
    assert caught.value.status == status


@pytest.mark.parametrize("to", ["http://b.test/x", "https://a.test/x", "http://a.test:81/x"])
def test_a_body_does_not_leave_its_origin_unasked(to: str) -> None:
    with pytest.raises(RedirectError, match="within its origin"):
        followed(request("POST", content=b"{}"), 307, to, has_body=True)


def test_a_body_that_was_read_is_not_sent_again() -> None:
    with pytest.raises(RedirectError, match="only once"):
        followed(request("POST", content=b"{}"), 307, "/y", has_body=True, replayable=False)


# Another host, another port, and https on a port from which it is no upgrade.
OTHERS = ["http://b.test/x", "https://b.test/x", "http://a.test:81/x", "https://a.test:444/x"]


@pytest.mark.parametrize("to", OTHERS)
def test_another_origin_gets_no_credentials(to: str) -> None:
    sent = request(headers={"Host": "tenant.test"})
    url = redirect_url(sent, 302, to)
    made, is_trusted = redirect(sent, 302, url, options(build={"content": None}), httpx)
    assert not is_trusted
    assert "secret" not in str(made.headers.raw)
    assert "x-trace" not in made.headers
    assert (made.headers["accept"], made.headers["last-event-id"]) == ("text/event-stream", "7")
    assert made.headers["user-agent"] == f"python-httpx/{httpx.__version__}"
    assert made.headers["host"] == url.netloc.decode()
    assert made.extensions == {"timeout": {}}


def test_the_default_port_is_the_same_origin() -> None:
    sent = request()
    url = redirect_url(sent, 302, "http://a.test:80/y")
    assert redirect(sent, 302, url, options(build={"content": None}), httpx).is_trusted


@pytest.mark.parametrize("to", ["https://a.test/y", "https://a.test:443/y", "//a.test/y", "https://A.test/y"])
@pytest.mark.parametrize("url", ["http://a.test/x", "http://a.test:80/x"])
def test_https_on_the_same_host_gets_the_credentials(url: str, to: str) -> None:
    sent = request(url=url, headers={"Host": "tenant.test"})
    made, is_trusted = redirect(sent, 301, redirect_url(sent, 301, to), options(build={"content": None}), httpx)
    assert is_trusted
    assert {name: made.headers[name] for name in SECRETS} == SECRETS
    assert made.headers["host"] == "tenant.test"
    assert made.extensions == sent.extensions


@pytest.mark.parametrize(
    ("url", "to"),
    [
        ("https://a.test/x", "http://a.test/x"),
        ("http://a.test:8080/x", "https://a.test/x"),
        ("http://a.test:8080/x", "https://a.test:8080/x"),
        ("http://a.test/x", "https://a.test:8443/x"),
        ("http://a.test/x", "https://www.a.test/x"),
        ("http://a.test/x", "https://a.test./x"),
    ],
)
def test_other_changes_of_the_scheme_are_no_upgrade(url: str, to: str) -> None:
    sent = request(url=url)
    made, is_trusted = redirect(sent, 301, redirect_url(sent, 301, to), options(build={"content": None}), httpx)
    assert not is_trusted
    assert "secret" not in str(made.headers.raw)


def test_host_of_the_caller_stays_within_the_origin() -> None:
    made = followed(request(headers={"Host": "tenant.test"}), 307, "/y")
    assert made.headers.get_list("host") == ["tenant.test"]
    # Without one, the target's own is sent.
    assert followed(request(), 307, "/y").headers["host"] == "a.test"
    assert followed(request(), 307, "https://a.test/y").headers["host"] == "a.test"
