"""Cookies of one call: which later requests of the call carry them. No other call does: tests/streams."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import ReconnectionPolicy
from sseqbridge._http.cookies import CallCookies
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, respond, send
from tests.requesters import Requester

DONE = send("[DONE]")

RECONNECTS: dict[str, Any] = {"decode": "text", "reconnect": ReconnectionPolicy(delay=0.01)}


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def package(request: pytest.FixtureRequest) -> Any:
    return request.param


def store(cookies: CallCookies, url: str, *values: str, package: Any = httpx) -> None:
    request = package.Request("GET", url)
    cookies.store(package.Response(200, headers=[("Set-Cookie", value) for value in values], request=request))


def sent(cookies: CallCookies, url: str, cookie: str | None = None, package: Any = httpx) -> str | None:
    request = package.Request("GET", url, headers={} if cookie is None else {"Cookie": cookie})
    cookies.add_to(request)
    assert len(request.headers.get_list("cookie")) <= 1
    value: str | None = request.headers.get("cookie")
    return value


def test_no_cookie_changes_no_request(package: Any) -> None:
    cookies = CallCookies()
    store(cookies, "http://a.test/", package=package)
    assert sent(cookies, "http://a.test/", package=package) is None
    assert sent(cookies, "http://a.test/", "a=1", package=package) == "a=1"


def test_cookies_are_sent_to_their_origin(package: Any) -> None:
    cookies = CallCookies()
    store(cookies, "http://user:pass@a.test/x/y", "one=1", "two=2; Path=/", "three=3; HttpOnly", package=package)
    assert sent(cookies, "http://a.test/x/", package=package) in ("one=1; three=3; two=2", "two=2; one=1; three=3")
    assert sent(cookies, "http://a.test/", package=package) == "two=2"


def test_cookies_replace_those_of_the_caller_by_name() -> None:
    cookies = CallCookies()
    store(cookies, "http://a.test/", "session=new", "other=1")
    assert sent(cookies, "http://a.test/", "session=old; mine=2") == "mine=2; session=new; other=1"


@pytest.mark.parametrize(
    ("set_by", "value", "url", "is_sent"),
    [
        ("http://a.test/", "a=1", "http://a.test/", True),
        ("http://a.test/", "a=1", "http://a.test:80/x", True),
        ("http://a.test/", "a=1", "http://b.test/", False),
        ("http://a.test/", "a=1", "http://x.a.test/", False),
        # Unlike in browsers, a port is another origin.
        ("http://a.test/", "a=1", "http://a.test:81/", False),
        ("http://127.0.0.1:1/", "a=1", "http://127.0.0.1:1/", True),
        ("http://127.0.0.1:1/", "a=1", "http://127.0.0.1:2/", False),
        ("http://127.0.0.1:1/", "a=1; Domain=127.0.0.1", "http://127.0.0.1:2/", False),
        ("http://[::1]:1/", "a=1", "http://[::1]:1/", True),
        ("http://localhost:1/", "a=1", "http://localhost:1/x", True),
        ("http://a.test/", "a=1", "https://a.test/", True),
        ("https://a.test/", "a=1", "http://a.test/", False),
        ("https://a.test/", "a=1; Secure", "https://a.test/", True),
        ("http://a.test/", "a=1; Secure", "http://a.test/", False),
        # A Domain is what the server shares the cookie with.
        ("http://login.a.test/", "a=1; Domain=a.test", "http://api.a.test:81/", True),
        ("http://login.a.test/", "a=1; Domain=.a.test", "https://a.test/", True),
        ("http://login.a.test/", "a=1; Domain=a.test", "http://nota.test/", False),
        ("http://a.test/", "a=1; Domain=b.test", "http://b.test/", False),
        ("http://a.test/", "a=1; Domain=test", "http://b.test/", False),
        ("http://a.test/", "a=1; Path=/x", "http://a.test/x/y", True),
        ("http://a.test/", "a=1; Path=/x", "http://a.test/y", False),
        ("http://a.test/", "a=1; Max-Age=100", "http://a.test/", True),
        ("http://a.test/", "a=1; Max-Age=0", "http://a.test/", False),
        ("http://a.test/", "a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "http://a.test/", False),
        # These would not be valid in a header.
        ("http://a.test/", "a=1\x01", "http://a.test/", False),
        ("http://a.test/", f"a={'x' * 5000}", "http://a.test/", False),
    ],
)
def test_cookie_is_sent_where_it_belongs(set_by: str, value: str, url: str, is_sent: bool) -> None:
    cookies = CallCookies()
    store(cookies, set_by, value)
    assert sent(cookies, url) == (value.partition(";")[0] if is_sent else None)


def test_cookie_in_latin1_is_sent_as_it_was_received() -> None:
    cookies = CallCookies()
    request = httpx.Request("GET", "http://a.test/")
    cookies.store(httpx.Response(200, headers=[(b"Set-Cookie", b"a=J\xf6rg")], request=request))
    cookies.add_to(request)
    assert (b"Cookie", b"a=J\xf6rg") in request.headers.raw


def test_deleted_cookie_is_not_sent() -> None:
    cookies = CallCookies()
    store(cookies, "http://a.test/", "a=1", "b=2")
    store(cookies, "http://a.test/", "a=; Max-Age=0")
    assert sent(cookies, "http://a.test/") == "b=2"


def test_number_of_cookies_is_limited() -> None:
    cookies = CallCookies()
    for number in range(200):
        store(cookies, f"http://a{number}.test/", *(f"c{number}-{n}=1; Path=/" for n in range(10)))
    assert cookies.count == 50


def test_cookies_leave_no_reference_cycle() -> None:
    cookies = CallCookies()
    store(cookies, "http://a.test/", "a=1")
    gc.disable()
    try:
        alive = weakref.ref(cookies)
        del cookies
        assert alive() is None
    finally:
        gc.enable()


def test_cookie_pairs_are_read_in_linear_time() -> None:
    began = time.monotonic()
    cookies = CallCookies()
    store(cookies, "http://a.test/", "a=1")
    assert str(sent(cookies, "http://a.test/", ";" * 100_000)) == "a=1"
    assert time.monotonic() - began < 30


def test_reconnection_sends_the_cookies_of_the_stream(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        cookie = request.headers.get("cookie")
        number = len(server.requests)
        steps = [respond(headers={"Set-Cookie": f"session={number}; Path=/"}), send(cookie, id=str(number))]
        return [*steps, DONE] if number % 3 == 0 else steps

    with SSEServer(script) as server:
        for first in (1, 4):
            with ask(server.url, cookies={"mine": "0"}, **RECONNECTS) as response:
                assert response.items() == ["mine=0", f"mine=0; session={first}", f"mine=0; session={first + 1}"]


def test_reconnection_sends_cookies_where_a_permanent_redirect_leads(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/":
            return [respond(308, {"Location": "/end", "Set-Cookie": "lb=1"}, content_type=None)]
        last = [DONE] if "last-event-id" in request.headers else []
        return [send(request.headers.get("cookie"), id="1"), *last]

    with SSEServer(script) as server:
        with ask(server.url, **RECONNECTS) as response:
            assert response.items() == ["lb=1", "lb=1"]
        assert [request.path for request in server.requests] == ["/", "/end", "/end"]


def test_refused_first_attempt_sets_cookies_for_the_next(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if "cookie" in request.headers:
            return [send(request.headers["cookie"]), DONE]
        return [respond(503, {"Set-Cookie": "seen=1"}, content_type=None)]

    with SSEServer(script) as server, ask(server.url, **RECONNECTS) as response:
        assert response.items() == ["seen=1"]
