"""Requests: method, body, headers, redirects, proxies; by request_sse and arequest_sse, to real sockets."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from sseqbridge import (
    CallbackError,
    ConnectError,
    ProtocolError,
    RedirectError,
    TransportError,
    UsageError,
    request_sse,
)
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, raw, respond, send
from tests.requesters import Requester
from tests.support import HAS_OWN_TRANSPORT

DONE = send("[DONE]")
Sent = Callable[..., ReceivedRequest]


@pytest.fixture
def server() -> Iterator[SSEServer]:
    with SSEServer([DONE]) as server:
        yield server


@pytest.fixture
def sent(ask: Requester, server: SSEServer) -> Sent:
    """A function that sends a request, reads the response, and returns the request that the server received."""

    def sent(headers: Any = None, data: Any = None, *, path: str = "/", **options: Any) -> ReceivedRequest:
        with ask(server.url + path, headers, data, **options) as response:
            assert response.items() == []
        return server.requests[-1]

    return sent


# Method and body.


@pytest.mark.parametrize(
    ("options", "method", "body"),
    [
        ({}, "GET", b""),
        ({"data": {}}, "POST", b"{}"),
        ({"data": []}, "POST", b"[]"),
        ({"data": 0}, "POST", b"0"),
        ({"data": False}, "POST", b"false"),
        ({"json": {}}, "POST", b"{}"),
        ({"json": [1]}, "POST", b"[1]"),
        ({"content": b""}, "POST", b""),
        ({"method": "POST"}, "POST", b""),
        ({"method": "DELETE"}, "DELETE", b""),
        ({"method": "put", "data": {}}, "PUT", b"{}"),
        ({"method": "GET", "data": {}}, "GET", b"{}"),
    ],
)
def test_a_body_makes_a_post(sent: Sent, options: dict[str, Any], method: str, body: bytes) -> None:
    request = sent(**options)
    assert (request.method, request.body) == (method, body)


def test_data_is_sent_as_json_in_utf8(sent: Sent) -> None:
    data = {"text": "ä\u2028\N{GRINNING FACE}", "n": [1, 2.5, None, True], "empty": {}}
    request = sent(None, data)
    assert request.json() == data
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(request.body))
    assert "ä".encode() in request.body


def test_none_among_the_chunks_is_skipped(sent: Sent) -> None:
    assert sent(content=[b"one ", None, b"two"]).body == b"one two"


def chunks() -> Iterator[bytes]:
    yield b"one "
    yield b""
    yield b"two"


async def chunks_async() -> AsyncIterator[bytes]:
    yield b"one "
    yield b"two"


@pytest.mark.parametrize(
    "make",
    [
        lambda: "one two",
        lambda: b"one two",
        lambda: bytearray(b"one two"),
        lambda: memoryview(b"one two"),
        lambda: io.BytesIO(b"one two"),
        lambda: [b"one ", b"two"],
        lambda: (b"one ", b"two"),
        chunks,
        chunks_async,
    ],
    ids=["str", "bytes", "bytearray", "memoryview", "file", "list", "tuple", "generator", "async generator"],
)
def test_content_is_sent_as_it_is(sent: Sent, make: Callable[[], Any]) -> None:
    request = sent(content=make())
    assert (request.method, request.body) == ("POST", b"one two")
    assert "content-type" not in request.headers


def test_content_from_a_file_on_disk(sent: Sent, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(bytes(range(256)) * 1000)
    with path.open("rb") as file:
        assert sent({"Content-Type": "audio/wav"}, content=file).body == path.read_bytes()


def test_slow_content_delays_no_other_stream(server: SSEServer) -> None:
    other_is_done = threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"one"
        with request_sse(server.url) as (_, _, items):
            assert list(items) == []
        other_is_done.set()
        yield b"two"

    with request_sse(server.url, content=slow()) as (_, _, items):
        assert list(items) == []
    assert other_is_done.is_set()
    assert [request.body for request in server.requests] == [b"", b"onetwo"]


def test_content_that_raises_is_a_typed_error(ask: Requester, server: SSEServer) -> None:
    def broken() -> Iterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    with pytest.raises(CallbackError) as caught:
        ask(server.url, content=broken())
    # httpcore raises the error again "from None", which removes its cause.
    cause = caught.value.__cause__ if HAS_OWN_TRANSPORT else caught.value.__context__
    assert isinstance(cause, ZeroDivisionError)


@pytest.mark.parametrize("content", [["text"], [b"one", 1]])
def test_content_chunks_must_be_bytes(ask: Requester, server: SSEServer, content: Any) -> None:
    with pytest.raises(TransportError):
        ask(server.url, content=content)


def test_a_text_file_is_no_body(ask: Requester, server: SSEServer, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_text("one two")
    with path.open() as file, pytest.raises(UsageError, match="binary"):
        ask(server.url, content=file)
    with pytest.raises(UsageError, match="binary"):
        ask(server.url, content=io.StringIO("one two"))
    assert server.requests == []


def test_content_is_read_while_the_response_arrives(ask: Requester) -> None:
    """An upstream may respond before it has received the whole body."""
    flag = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"one"
        flag.set()
        yield b"two"

    with SSEServer([send(1), hold(flag), DONE]) as server:
        with ask(server.url, content=body()) as response:
            assert response.items() == [1]
        assert server.requests[0].body == b"onetwo"


def test_files_are_sent_as_a_form(sent: Sent) -> None:
    request = sent(files={"audio": ("a.wav", io.BytesIO(b"RIFF"), "audio/wav")})
    assert request.method == "POST"
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n' in request.body


# URL, query, headers.


@pytest.mark.parametrize("kind", [str, httpx.URL])
def test_url_and_params(ask: Requester, server: SSEServer, kind: Callable[[str], Any]) -> None:
    url = kind(f"{server.url}/a%2Fb/ä?x=%7E~%2F#part")
    for params in (None, {"q": "a b", "n": [1, 2]}):
        with ask(url, params=params) as response:
            assert response.items() == []
    # As in httpx, params replace a query.
    assert [request.path for request in server.requests] == [
        "/a%2Fb/%C3%A4?x=%7E~%2F",
        "/a%2Fb/%C3%A4?q=a+b&n=1&n=2",
    ]


def test_default_headers_can_be_overridden(sent: Sent) -> None:
    headers = sent().headers
    assert headers["accept"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["accept-encoding"] == "identity"
    given = {"ACCEPT": "application/json", "cache-control": "max-age=1", "accept-Encoding": "gzip"}
    headers = sent(given).headers
    assert {name: headers[name.lower()] for name in given} == given


def test_the_callers_content_type_wins(sent: Sent) -> None:
    request = sent({"content-type": "application/vnd.api+json"}, {"a": 1})
    assert [value for name, value in request.header_pairs if name.lower() == "content-type"] == [
        "application/vnd.api+json"
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-One": "1", "X-Two": "2"},
        [("X-One", "1"), ("X-Two", "2")],
        (("X-One", "1"), ("X-Two", "2")),
        {b"X-One": b"1", b"X-Two": b"2"},
        httpx.Headers({"X-One": "1", "X-Two": "2"}),
    ],
    ids=["dict", "list", "tuple", "bytes", "httpx.Headers"],
)
def test_headers_accept_every_form_of_httpx(sent: Sent, headers: Any) -> None:
    got = sent(headers).headers
    assert (got["x-one"], got["x-two"]) == ("1", "2")


def test_a_header_may_come_twice_and_hold_latin1(sent: Sent) -> None:
    request = sent([("X-Tag", "a"), ("X-Tag", "b"), ("X-Name", "J\xf6rg"), ("X-Empty", "")])
    pairs = [pair for pair in request.header_pairs if pair[0].startswith("X-")]
    assert pairs == [("X-Tag", "a"), ("X-Tag", "b"), ("X-Name", "J\xf6rg"), ("X-Empty", "")]


@pytest.mark.parametrize("kind", [dict, list, lambda pairs: httpx.Cookies(dict(pairs))])
def test_cookies_are_sent(sent: Sent, kind: Callable[[Any], Any]) -> None:
    assert sent(cookies=kind([("a", "1"), ("b", "2")])).headers["cookie"] == "a=1; b=2"


@pytest.mark.parametrize("auth", [("user", "pass"), ("user", b"pass"), httpx.BasicAuth("user", "pass")])
def test_basic_auth(sent: Sent, auth: Any) -> None:
    assert sent(auth=auth).headers["authorization"] == "Basic dXNlcjpwYXNz"


def test_a_function_as_auth(sent: Sent) -> None:
    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["X-Signature"] = str(len(request.content))
        return request

    assert sent(None, {"a": 1}, auth=sign).headers["x-signature"] == "7"


def test_credentials_in_the_url(ask: Requester, server: SSEServer) -> None:
    with ask(server.url.replace("://", "://user:pass@")) as response:
        assert response.items() == []
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwYXNz"


def test_digest_auth_responds_to_the_challenge() -> None:
    challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=SHA-256'

    def script(request: ReceivedRequest) -> list[Step]:
        if "authorization" not in request.headers:
            return [respond(401, {"WWW-Authenticate": challenge}, framing="length"), raw(b"who?")]
        return [DONE]

    for is_async in (False, True):
        requester = Requester(is_async=is_async)
        with SSEServer(script) as server:
            with requester(server.url, data={"a": 1}, auth=httpx.DigestAuth("user", "pass")) as response:
                assert (response.status, response.items()) == (200, [])
            assert [request.json() for request in server.requests] == [{"a": 1}] * 2
            assert server.requests[1].headers["authorization"].startswith('Digest username="user", realm="r"')
        requester.close()


def test_extensions_are_httpxs(sent: Sent) -> None:
    seen: list[str] = []

    async def trace(name: str, info: Mapping[str, Any]) -> None:
        seen.append(name)

    sent(extensions={"trace": trace})
    assert "http11.send_request_headers.started" in seen


def test_arguments_of_the_caller_are_never_changed(ask: Requester, server: SSEServer) -> None:
    given: dict[str, Any] = {
        "headers": {"X-One": "1"},
        "data": {"messages": [{"role": "user"}]},
        "params": {"q": ["1", "2"]},
        "cookies": {"a": "1"},
        "extensions": {"sni_hostname": "x"},
        "timeout": {"connect": 5},
    }
    before = copy.deepcopy(given)
    with ask(f"{server.url}/?a=1", **given) as response:
        assert response.items() == []
    assert given == before


def test_headers_as_a_list_are_never_changed(sent: Sent) -> None:
    headers = [("X-One", "1")]
    sent(headers, {"a": 1})
    assert headers == [("X-One", "1")]


# Redirects.

# The headers of a request without a body that another origin gets. None is the caller's.
NEUTRAL = {"host", "accept", "accept-encoding", "cache-control", "user-agent"}


class Redirecting:
    """Two origins that redirect from the paths in `locations`, initially /start, and send streams from all others."""

    def __init__(self, status: int, location: str | None) -> None:
        self.status = status
        self.locations = {"/start": location}
        self.start = SSEServer(self._respond)
        self.other = SSEServer(self._respond)

    def _respond(self, request: ReceivedRequest) -> list[Step]:
        if request.path not in self.locations:
            return [DONE]
        headers = [("Set-Cookie", "from=redirect")]
        if (location := self.locations[request.path]) is not None:
            headers.append(("Location", location.format(other=self.other.url)))
        return [respond(self.status, headers, content_type=None)]

    def __enter__(self) -> Redirecting:
        self.other.start()
        self.start.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.start.close()
        self.other.close()

    @property
    def url(self) -> str:
        return f"{self.start.url}/start"


REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("follow", [None, True])
def test_a_get_follows_within_its_origin_with_its_headers(ask: Requester, status: int, follow: bool | None) -> None:
    with Redirecting(status, "/end?b=2") as servers:
        options: dict[str, Any] = {"cookies": {"c": "1"}, "auth": ("user", "pass"), "follow_redirects": follow}
        with ask(servers.url, {"X-Api-Key": "k", "Last-Event-ID": "7"}, **options) as response:
            assert (response.status, response.items()) == (200, [])
        first, second = servers.start.requests
        assert (second.method, second.path, second.body) == ("GET", "/end?b=2", b"")
        assert second.headers == {**first.headers, "cookie": "c=1; from=redirect"}


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_get_follows_to_another_origin_without_the_callers_headers(ask: Requester, status: int) -> None:
    headers = {
        "Authorization": "Bearer secret",
        "Cookie": "secret=1",
        "X-Api-Key": "secret",
        "Api-Key": "secret",
        "User-Agent": "secret",
        "Cache-Control": "secret",
        "Referer": "secret",
        "Content-Type": "secret",
        "Accept": "text/event-stream, text/plain",
        "Last-Event-ID": "7",
    }
    with Redirecting(status, "{other}/end") as servers:
        with ask(servers.url, headers) as response:
            assert (response.status, response.items()) == (200, [])
        [request] = servers.other.requests
        assert (request.method, request.path) == ("GET", "/end")
        assert set(request.headers) == NEUTRAL | {"last-event-id"}
        assert "secret" not in str(request.headers)
        assert (request.headers["accept"], request.headers["last-event-id"]) == (headers["Accept"], "7")
        assert request.headers["host"] == servers.other.url.removeprefix("http://")


@pytest.mark.parametrize(
    "options",
    [{"auth": ("user", "pass")}, {"auth": httpx.BasicAuth("user", "pass")}, {"cookies": {"a": "1"}}],
    ids=["auth", "BasicAuth", "cookies"],
)
def test_credentials_of_the_call_do_not_go_to_another_origin(ask: Requester, options: dict[str, Any]) -> None:
    with Redirecting(307, "{other}/end") as servers:
        with ask(servers.url, **options) as response:
            assert response.items() == []
        assert {"cookie", "authorization"} & set(servers.start.requests[0].headers)
        assert set(servers.other.requests[0].headers) == NEUTRAL


@pytest.mark.parametrize(("location", "times"), [("/end", 2), ("{other}/end", 1)])
def test_extensions_do_not_go_to_another_origin(ask: Requester, location: str, times: int) -> None:
    """Such as `sni_hostname`, which names the first server."""
    seen: list[str] = []

    async def trace(name: str, info: Mapping[str, Any]) -> None:
        seen.append(name)

    with Redirecting(302, location) as servers, ask(servers.url, extensions={"trace": trace}) as response:
        assert response.items() == []
    assert seen.count("http11.send_request_headers.started") == times


def test_credentials_of_the_url_do_not_go_to_another_origin(ask: Requester) -> None:
    with Redirecting(302, "{other}/end") as servers:
        with ask(servers.url.replace("://", "://user:pass@")) as response:
            assert response.items() == []
        assert "authorization" in servers.start.requests[0].headers
        assert set(servers.other.requests[0].headers) == NEUTRAL


def test_a_redirect_back_does_not_bring_the_headers_back(ask: Requester) -> None:
    """The other origin chooses the URL, which must not get the caller's credentials."""
    with Redirecting(302, "{other}/back") as servers:
        servers.locations["/back"] = f"{servers.start.url}/end"
        with ask(servers.url, {"X-Api-Key": "secret"}, auth=("user", "pass")) as response:
            assert response.items() == []
        assert [request.path for request in servers.start.requests] == ["/start", "/end"]
        # The cookie is the server's own.
        back = servers.start.requests[1].headers
        assert (set(back), back["cookie"]) == (NEUTRAL | {"cookie"}, "from=redirect")


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("options", [{"data": {"a": 1}}, {"content": b'{"a":1}', "method": "PUT"}])
def test_a_body_follows_307_and_308_within_its_origin(ask: Requester, status: int, options: dict[str, Any]) -> None:
    with Redirecting(status, "/end") as servers:
        with ask(servers.url, {"X-Api-Key": "k"}, **options) as response:
            assert (response.status, response.items()) == (200, [])
        first, second = servers.start.requests
        assert (second.method, second.json(), second.path) == (first.method, {"a": 1}, "/end")
        assert second.headers == {**first.headers, "cookie": "from=redirect"}


@pytest.mark.parametrize(
    ("status", "location"),
    [(301, "/end"), (302, "/end"), (303, "/end"), *((status, "{other}/end") for status in REDIRECTS)],
)
def test_a_body_follows_no_other_redirect(ask: Requester, status: int, location: str) -> None:
    with Redirecting(status, f"{location}?key=secret") as servers:
        with pytest.raises(RedirectError, match="follow_redirects=True") as caught:
            ask(servers.url, data={"a": 1})
        assert caught.value.status == status
        assert "secret" not in repr(caught.value)
        assert len(servers.start.requests) == 1
        assert servers.other.requests == []


@pytest.mark.parametrize("status", [301, 302, 303])
def test_follow_redirects_turns_a_body_into_a_get(ask: Requester, status: int) -> None:
    with Redirecting(status, "/end") as servers:
        with ask(servers.url, {"X-Api-Key": "k"}, {"a": 1}, follow_redirects=True) as response:
            assert response.items() == []
        second = servers.start.requests[1]
        assert (second.method, second.body, second.headers["x-api-key"]) == ("GET", b"", "k")
        assert not {"content-type", "content-length", "transfer-encoding"} & set(second.headers)


@pytest.mark.parametrize("status", [307, 308])
def test_followed_body_loses_its_headers_at_another_origin(ask: Requester, status: int) -> None:
    with Redirecting(status, "{other}/end") as servers:
        with ask(servers.url, {"X-Api-Key": "k"}, {"a": 1}, auth=("a", "b"), follow_redirects=True) as response:
            assert response.items() == []
        [request] = servers.other.requests
        assert (request.method, request.json()) == ("POST", {"a": 1})
        assert set(request.headers) == NEUTRAL | {"content-type", "content-length"}


def test_followed_put_keeps_its_body(ask: Requester) -> None:
    with Redirecting(302, "/end") as servers:
        with ask(servers.url, data={"a": 1}, method="PUT", follow_redirects=True) as response:
            assert response.items() == []
        assert [(request.method, request.json()) for request in servers.start.requests] == [("PUT", {"a": 1})] * 2


def test_a_header_in_latin1_follows(ask: Requester) -> None:
    with Redirecting(302, "/end") as servers:
        with ask(servers.url, {"X-Name": "J\xf6rg"}) as response:
            assert response.items() == []
        assert [request.headers["x-name"] for request in servers.start.requests] == ["J\xf6rg"] * 2


@pytest.mark.parametrize("method", ["HEAD", "DELETE"])
def test_other_methods_keep_their_name(ask: Requester, method: str) -> None:
    with Redirecting(302, "/end") as servers:
        with ask(servers.url, method=method) as response:
            assert response.status == 200
        assert [request.method for request in servers.start.requests] == [method] * 2


@pytest.mark.parametrize("data", [None, {"a": 1}])
def test_follow_redirects_false_follows_none(ask: Requester, data: Any) -> None:
    with Redirecting(307, "/end") as servers:
        with ask(servers.url, data=data, follow_redirects=False) as response:
            assert (response.status, response.headers["location"]) == (307, "/end")
            assert response.items() == []
        assert len(servers.start.requests) == 1


@pytest.mark.parametrize("status", [300, 304, 305])
def test_statuses_that_are_no_redirects_are_responses(ask: Requester, status: int) -> None:
    with Redirecting(status, "/end") as servers:
        with ask(servers.url) as response:
            assert (response.status, response.items()) == (status, [])
        assert len(servers.start.requests) == 1


@pytest.mark.parametrize("location", [None, "ftp://127.0.0.1/", "ws://127.0.0.1/"])
def test_a_redirect_without_a_usable_location_is_an_error(ask: Requester, location: str | None) -> None:
    with Redirecting(301, location) as servers:
        for method in ("GET", "POST"):
            with pytest.raises(RedirectError, match="without a usable Location") as caught:
                ask(servers.url, method=method)
            assert caught.value.status == 301


@pytest.mark.parametrize("location", ["http://127.0.0.1:port/", "mailto:a@b.test"])
def test_a_location_that_httpx_cannot_read_is_an_error(ask: Requester, location: str) -> None:
    with Redirecting(301, location) as servers:
        if HAS_OWN_TRANSPORT:
            with pytest.raises(RedirectError, match="301 without a usable Location"):
                ask(servers.url)
        # With auth, httpx's client sends the request, and parses the Location before it returns.
        with pytest.raises(ProtocolError, match="without a usable Location"):
            ask(servers.url, auth=("user", "password"))


@pytest.mark.parametrize("make", [chunks, lambda: io.BytesIO(b"one two"), chunks_async])
@pytest.mark.parametrize("follow", [None, True])
def test_a_body_that_can_be_read_once_follows_nowhere(
    ask: Requester, make: Callable[[], Any], follow: bool | None
) -> None:
    with Redirecting(307, "/end") as servers:
        with pytest.raises(RedirectError, match="only once"):
            ask(servers.url, content=make(), follow_redirects=follow)
        assert len(servers.start.requests) == 1


@pytest.mark.parametrize(
    ("location", "path"), [("next", "/next"), ("../x?y=1", "/x?y=1"), ("?q=1", "/start?q=1"), ("{other}", "/")]
)
def test_a_location_may_be_relative(ask: Requester, location: str, path: str) -> None:
    with Redirecting(302, location) as servers:
        with ask(servers.url) as response:
            assert response.items() == []
        last = (servers.other if location == "{other}" else servers.start).requests[-1]
        assert last.path == path


def test_a_location_may_leave_out_the_scheme(ask: Requester) -> None:
    with Redirecting(302, None) as servers:
        servers.locations["/start"] = servers.other.url.removeprefix("http:") + "/end"
        with ask(servers.url) as response:
            assert response.items() == []
        assert servers.other.requests[0].path == "/end"


def test_query_of_the_redirect_replaces_the_first_one(ask: Requester) -> None:
    with Redirecting(302, "/end?b=2") as servers:
        servers.locations["/start?key=secret"] = "/end?b=2"
        with ask(f"{servers.url}?key=secret") as response:
            assert response.items() == []
        assert servers.start.requests[1].path == "/end?b=2"


# Cookies.


def test_no_responses_cookie_reaches_another_request(ask: Requester) -> None:
    cookies = [("Set-Cookie", "session=1; Path=/"), ("Set-Cookie", "other=2; Domain=127.0.0.1")]
    with SSEServer([respond(200, cookies), DONE]) as server:
        for _ in range(2):
            with ask(server.url, cookies={"mine": "3"}) as response:
                assert response.items() == []
            with ask(server.url) as response:
                assert response.items() == []
        assert [request.headers.get("cookie") for request in server.requests] == ["mine=3", None] * 2


def test_cookie_of_a_redirect_is_sent_within_its_call_alone(ask: Requester) -> None:
    with Redirecting(302, "/end") as servers:
        for _ in range(2):
            with ask(servers.url) as response:
                assert response.items() == []
        assert [request.headers.get("cookie") for request in servers.start.requests] == [None, "from=redirect"] * 2


# Proxies.


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_used(
    ask_fresh: Requester, server: SSEServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, server.url.replace("://", "://proxy:pass@"))
    with ask_fresh("http://upstream.test/stream?a=1", {"X-One": "1"}, {"b": 2}) as response:
        assert response.items() == []
    [request] = server.requests
    assert (request.method, request.path) == ("POST", "http://upstream.test/stream?a=1")
    assert (request.headers["host"], request.headers["x-one"], request.json()) == ("upstream.test", "1", {"b": 2})
    assert request.headers["proxy-authorization"].startswith("Basic ")


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "*"])
def test_hosts_in_no_proxy_are_connected_directly(
    ask_fresh: Requester, server: SSEServer, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    with SSEServer([DONE]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        with ask_fresh(server.url) as response:
            assert response.items() == []
        assert (len(server.requests), len(proxy.requests)) == (1, 0)


def test_https_proxy_gets_a_connect_request(ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([respond(407, content_type=None)]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(ConnectError):
            ask_fresh("https://upstream.test/?key=secret", {"Authorization": "secret"})
        [request] = proxy.requests
        assert (request.method, request.path) == ("CONNECT", "upstream.test:443")
        assert "authorization" not in request.headers


def test_unreachable_proxy_raises_connect_error(
    ask_fresh: Requester, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@127.0.0.1:{closed_port}")
    with pytest.raises(ConnectError) as caught:
        ask_fresh("http://upstream.test/")
    assert "secret" not in str(caught.value)
