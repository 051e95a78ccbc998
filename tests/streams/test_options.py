"""Wrong use: an invalid argument raises UsageError, and nothing is sent; for both functions."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import sseqbridge
from sseqbridge import Bridge, RequestAbortedError, Timeout, UsageError, request_sse
from sseqbridge.testing import SSEServer, send
from tests.requesters import Requester

pytestmark = pytest.mark.configurations("default")

DONE = send("[DONE]")


@pytest.fixture(scope="module")
def unused_server() -> Iterator[SSEServer]:
    with SSEServer([DONE]) as server:
        yield server


@pytest.fixture
def server(unused_server: SSEServer) -> Iterator[SSEServer]:
    """A server to which no test connects."""
    yield unused_server
    assert (unused_server.requests, unused_server.connections) == ([], 0)


def is_refused(ask: Requester, url: Any, match: str, *args: Any, **options: Any) -> None:
    with pytest.raises(UsageError, match=match):
        ask(url, *args, **options)


# URL and method.


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/v1/chat",
        "127.0.0.1/v1",
        "localhost:8000",
        "ftp://127.0.0.1/",
        "ws://127.0.0.1/",
        "file:///etc/hosts",
        "http:",
        "http://",
        "http:///v1",
        "https://:443/",
        "http://[::1",
        "http://127.0.0.1:port/",
        "http://127.0.0.1:99999999/",
        "http://127.0.0.1/\n",
        "http://127.0.0.1/\0",
        httpx.URL("/v1/chat"),
        httpx.URL("ftp://127.0.0.1/"),
    ],
)
def test_url_must_be_an_http_url(ask: Requester, url: Any) -> None:
    is_refused(ask, url, "`url` must .*(http:// or https:// URL|port)")


@pytest.mark.parametrize("url", [None, 80, b"http://127.0.0.1/", ("http", "host"), ["http://127.0.0.1/"], object()])
def test_type_of_the_url_is_checked(ask: Requester, url: Any) -> None:
    is_refused(ask, url, f"`url` must be a str .*, got {type(url).__name__}")


@pytest.mark.parametrize("method", ["", "GET POST", "GET\n", "GÉT", b"GET", 1, "G/T"])
def test_method_must_be_a_token(ask: Requester, server: SSEServer, method: Any) -> None:
    is_refused(ask, server.url, "name of an HTTP method", method=method)


# The body.

CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


def nested() -> list[Any]:
    """Return lists in lists. Each test makes its own: the garbage collector examines them during imports."""
    outermost: list[Any] = []
    for _ in range(200_000):
        outermost = [outermost]
    return outermost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (float("nan"), "not finite"),
        ({"a": [float("inf")]}, "not finite"),
        ({1, 2}, "set"),
        ({"a": {1, 2}}, "set"),
        ({"a": object()}, "object"),
        ({"a": b"bytes"}, "bytes"),
        ({"a": "\udc80"}, "lone surrogate"),
        ({(1, 2): 3}, "key"),
        (CIRCULAR, "itself"),
        (nested, "nested too deeply"),
        (1j, "complex"),
    ],
)
def test_data_must_be_json_serializable(ask: Requester, server: SSEServer, data: Any, reason: str) -> None:
    if data is nested:
        data = nested()
    is_refused(ask, server.url, f"`data` must be something that JSON can represent, got .*{reason}", None, data)
    is_refused(ask, server.url, f"`data` must be something that JSON can represent, got .*{reason}", json=data)


@pytest.mark.parametrize("data", ["text", '{"a": 1}', "", b"bytes", b"", bytearray(b"a"), memoryview(b"a")])
def test_data_must_not_be_encoded_already(ask: Requester, server: SSEServer, data: Any) -> None:
    is_refused(ask, server.url, f"`data` must be the object.*got {type(data).__name__}.*content=", None, data)
    is_refused(ask, server.url, "content=", json=data)


@pytest.mark.parametrize(
    "bodies",
    [
        {"data": {}, "content": b""},
        {"json": {}, "content": b"a"},
        {"data": {}, "files": {"a": b""}},
        {"content": b"", "files": {"a": b""}},
        {"data": [], "json": []},
        {"data": {}, "json": {}, "content": b"", "files": {}},
    ],
)
def test_only_one_body_is_allowed(ask: Requester, server: SSEServer, bodies: dict[str, Any]) -> None:
    is_refused(ask, server.url, "Pass", **bodies)


@pytest.mark.parametrize("content", [{"a": 1}, 1, object(), True])
def test_content_must_be_bytes(ask: Requester, server: SSEServer, content: Any) -> None:
    is_refused(ask, server.url, f"`content` must be .*, got {type(content).__name__}.*`data`", content=content)


def test_content_must_not_be_a_text_file(ask: Requester, server: SSEServer) -> None:
    is_refused(ask, server.url, "binary", content=io.StringIO("text"))


# Headers, auth, and other arguments for httpx.


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"X-A": "secret\n"}, "'X-A'"),
        ({"X-A": "secret\r\nX-B: 1"}, "'X-A'"),
        ({"X-A": "secret\0"}, "'X-A'"),
        ({"X-A": " secret"}, "'X-A'"),
        ({"X-A": "secret "}, "'X-A'"),
        ({"X-A": "secret\u20ac"}, "'X-A'"),
        ({"X-A": b"secret\n"}, "'X-A'"),
        ({"X-A": 1}, "'X-A' must be a str, got int"),
        ({"X-A": None}, "'X-A' must be a str, got NoneType"),
        ({"X-A": ["secret"]}, "'X-A' must be a str, got list"),
        ([("X-A", "1"), ("X-A", 2)], "'X-A' must be a str, got int"),
        ({"": "secret"}, "begins with ''"),
        ({"X A": "secret"}, "begins with 'X'"),
        ({"X-A:": "secret"}, "begins with 'X-A'"),
        ({"X-Ä": "secret"}, "begins with 'X-'"),
        ({"X-A\n": "secret"}, "begins with 'X-A'"),
        ({1: "secret"}, "a name must be a str, got int"),
        ({None: "secret"}, "a name must be a str, got NoneType"),
        ("X-A: secret", "must be a mapping or a list"),
        (["X-A: secret"], "must be a mapping or a list"),
        ([("X-A", "1", "secret")], "must be a mapping or a list"),
        (1, "must be a mapping or a list"),
    ],
)
def test_headers_must_be_sendable(ask: Requester, server: SSEServer, headers: Any, message: str) -> None:
    with pytest.raises(UsageError, match=r"^`headers`") as caught:
        ask(server.url, headers)
    assert message in str(caught.value)
    assert "secret" not in repr(caught.value)


@pytest.mark.parametrize(
    "auth", ["user:pass", ["user", "pass"], 1, ("user",), ("user", None), ("a", "b", "c"), (), (1, 2), {"user": "pass"}]
)
def test_auth_must_be_one_of_httpxs_forms(ask: Requester, server: SSEServer, auth: Any) -> None:
    is_refused(ask, server.url, f"`auth` must be .*, got {type(auth).__name__}", auth=auth)


@pytest.mark.parametrize(
    "options",
    [
        {"cookies": "a=1"},
        {"cookies": {"a": "1\n"}},
        {"cookies": {"a": "\u20ac"}},
        {"cookies": 1},
        {"files": "name"},
        {"files": 1},
        {"params": 1},
        {"extensions": "trace"},
        {"extensions": [("trace", 1)]},
    ],
    ids=repr,
)
def test_arguments_that_httpx_refuses_raise_usage_error(
    ask: Requester, server: SSEServer, options: dict[str, Any]
) -> None:
    is_refused(ask, server.url, "^`headers`|^`extensions`|must be able to build a request", **options)


# Options of decoding.


@pytest.mark.parametrize("decode", ["xml", "JSON", "", None, 1, b"json", ["json"]])
def test_decode_is_checked(ask: Requester, server: SSEServer, decode: Any) -> None:
    is_refused(ask, server.url, '`decode` must be "json", "text", "event" or a function', decode=decode)


@pytest.mark.parametrize("done", [1, b"[DONE]", ["[DONE]"], True])
def test_done_is_checked(ask: Requester, server: SSEServer, done: Any) -> None:
    is_refused(ask, server.url, "`done` must be a str, a function of the event, or None, got", done=done)


@pytest.mark.parametrize("error_events", ["ignore", None, True, ""])
def test_error_events_is_checked(ask: Requester, server: SSEServer, error_events: Any) -> None:
    is_refused(ask, server.url, '`error_events` must be "raise" or "yield", got', error_events=error_events)


@pytest.mark.parametrize("decode", ["json", "text", lambda event: event])
def test_comments_need_event_mode(ask: Requester, server: SSEServer, decode: Any) -> None:
    is_refused(ask, server.url, '`comments=True` .*decode="event"', decode=decode, comments=True)


def test_require_done_needs_done(ask: Requester, server: SSEServer) -> None:
    is_refused(ask, server.url, "`require_done=True` must come with an end marker", done=None, require_done=True)


# Limits.

NO_SECONDS = [0, -1, 0.0, -0.5, True, False, "1", float("nan"), [1], 1j]


@pytest.mark.parametrize("seconds", NO_SECONDS)
def test_time_limits_must_be_above_zero(ask: Requester, server: SSEServer, seconds: Any) -> None:
    is_refused(ask, server.url, "^`timeout", timeout=seconds)
    for which in ("connect", "read", "idle", "total"):
        is_refused(ask, server.url, f"^`timeout.{which}` must be", timeout={which: seconds})
        with pytest.raises(UsageError, match=f"^`timeout.{which}` must be"):
            Timeout(**{which: seconds})


@pytest.mark.parametrize("timeout", [{"conect": 1}, {"read": 1, "write": 1}, {1: 1}, {None: None}])
def test_unknown_time_limit_raises_usage_error(ask: Requester, server: SSEServer, timeout: Any) -> None:
    is_refused(ask, server.url, "keys of `timeout` must be connect, read, idle or total", timeout=timeout)


@pytest.mark.parametrize(
    ("timeout", "got"),
    [
        ((1, 2), r"\(1, 2\)"),
        ([3], r"\[3\]"),
        ("5", "'5'"),
        (httpx.Timeout(5), r"httpx\.Timeout"),
        (object(), "object"),
    ],
)
def test_type_of_timeout_is_checked(ask: Requester, server: SSEServer, timeout: Any, got: str) -> None:
    is_refused(ask, server.url, rf"`timeout` must be .*, got {got}\. Pass Timeout\(", timeout=timeout)


@pytest.mark.parametrize("name", ["max_event_bytes", "max_buffered_bytes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "1", None, True, float("inf")])
def test_limits_in_bytes_must_be_positive(ask: Requester, server: SSEServer, name: str, value: Any) -> None:
    is_refused(ask, server.url, f"`{name}` must be", **{name: value})


def test_repr_of_timeout_shows_its_limits() -> None:
    assert Timeout() == Timeout(connect=10.0, read=600.0, idle=None, total=None)
    assert repr(Timeout(connect=1, read=2, idle=3, total=4)) == "Timeout(connect=1, read=2, idle=3, total=4)"


@pytest.mark.parametrize(
    "timeout",
    [
        5,
        0.5,
        None,
        float("inf"),
        {},
        {"connect": 1, "read": 2, "idle": 3, "total": 4},
        {"idle": float("inf"), "total": float("inf")},
        {"connect": None, "read": None},
        Timeout(connect=None, read=None, idle=None, total=None),
    ],
)
def test_timeout_accepts_every_form(ask: Requester, timeout: Any) -> None:
    with SSEServer([send(1), DONE]) as server, ask(server.url, timeout=timeout) as response:
        assert response.items() == [1]


@pytest.mark.parametrize("limits", [{"max_event_bytes": 1}, {"max_buffered_bytes": 1}])
def test_smallest_limits_are_accepted(ask: Requester, limits: dict[str, Any]) -> None:
    with SSEServer([send(n) for n in range(9)]) as server:
        if "max_event_bytes" in limits:
            with ask(server.url, **limits) as response:
                assert response.fail()[1].args == (1,)
        else:
            with ask(server.url, **limits) as response:
                assert response.items() == list(range(9))


# Cancel and bridge.


class NotCallable:
    is_set = True


@pytest.mark.parametrize("cancel", [True, False, "event", object(), NotCallable(), threading.Lock()])
def test_cancel_must_have_is_set(ask: Requester, server: SSEServer, cancel: Any) -> None:
    is_refused(ask, server.url, f"must have an is_set\\(\\) method, got {type(cancel).__name__}", cancel=cancel)


@pytest.mark.parametrize("kind", [threading.Event, asyncio.Event])
def test_cancel_that_is_set_already_sends_nothing(ask: Requester, server: SSEServer, kind: Any) -> None:
    cancel = kind()
    cancel.set()
    with pytest.raises(RequestAbortedError, match="before the request was sent"):
        ask(server.url, cancel=cancel)


@pytest.mark.parametrize("bridge", ["bridge", Bridge, object(), 0])
def test_type_of_bridge_is_checked(server: SSEServer, bridge: Any) -> None:
    with pytest.raises(UsageError, match=f"`bridge` must be .*, got {type(bridge).__name__}"):
        request_sse(server.url, bridge=bridge)


def test_closed_bridge_raises_usage_error(server: SSEServer) -> None:
    bridge = Bridge()
    bridge.close()
    with pytest.raises(UsageError, match="closed"):
        request_sse(server.url, bridge=bridge)


@pytest.mark.parametrize("client", ["client", object(), httpx.AsyncClient])
def test_type_of_client_is_checked(server: SSEServer, client: Any) -> None:
    requester = Requester(is_async=True)
    is_refused(requester, server.url, "`client` must", client=client)
    requester.close()


def test_unknown_argument_raises_type_error(ask: Requester, server: SSEServer) -> None:
    with pytest.raises(TypeError, match=r"^a?request_sse\(\) got an unexpected keyword argument 'stream'"):
        ask(server.url, stream=True)


def test_wrong_arguments_start_nothing(ask: Requester) -> None:
    """The next request works, and the refused ones cause no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with SSEServer([send(1), DONE]) as server:
            is_refused(ask, server.url, "data", None, {"a": {1}})
            is_refused(ask, server.url, "headers", cookies={"a": "\n"})
            with ask(server.url) as response:
                assert response.items() == [1]
            assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding"])
def test_headers_of_an_earlier_response_are_refused(ask: Requester, server: SSEServer, name: str) -> None:
    is_refused(ask, server.url, "must not contain .*, which the HTTP client sets", {name: "7"}, {})


def test_version_is_that_of_the_distribution() -> None:
    assert sseqbridge.__version__ == importlib.metadata.version("sseqbridge")
