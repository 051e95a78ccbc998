"""SSEClient: its options, base URL and headers, and that it is immutable, lazy and fork-safe."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    ContentTypeError,
    DecodeError,
    ReconnectionPolicy,
    RequestAbortedError,
    ServerSentEvent,
    SSEClient,
    Timeout,
    UsageError,
    arequest_sse,
    request_sse,
)
from sseqbridge.testing import SSEServer, raw, respond, send
from tests.streams.async_support import Run
from tests.streams.client_support import ClientRequester
from tests.support import python, together

pytestmark = pytest.mark.configurations("default", "plain")

DONE = send("[DONE]")


@pytest.fixture
def server() -> Iterator[SSEServer]:
    with SSEServer([send({"n": 1}), DONE]) as server:
        yield server


def test_requests_have_the_options_of_the_client(send_with: ClientRequester, server: SSEServer) -> None:
    client = SSEClient(server.url, headers={"X-Key": "1"}, auth=("user", "pw"), decode="text")
    with send_with(client, "/chat", data={"a": 1}) as response:
        assert response.status == 200
        assert response.items() == ['{"n": 1}']
    request = server.requests[0]
    assert (request.method, request.path, request.json()) == ("POST", "/chat", {"a": 1})
    assert request.headers["x-key"] == "1"
    assert request.headers["authorization"] == httpx.BasicAuth("user", "pw")._auth_header


def test_default_options_are_those_of_request_sse(send_with: ClientRequester, server: SSEServer) -> None:
    with send_with(SSEClient(), f"{server.url}/a?b=c") as response:
        assert response.items() == [{"n": 1}]
    request = server.requests[0]
    assert (request.method, request.path, request.body) == ("GET", "/a?b=c", b"")
    assert request.headers["accept"] == "text/event-stream"


def test_arguments_of_a_request_override_options(send_with: ClientRequester) -> None:
    with SSEServer([send("1"), send("END"), send("2"), DONE]) as server:
        client = SSEClient(server.url, decode="text", done="[DONE]", auth=("user", "pw"))
        with send_with(client, "/", done="END", auth=None, method="PUT", params={"q": "x"}) as response:
            assert response.items() == ["1"]
        with send_with(client, "/") as response:
            assert response.items() == ["1", "END", "2"]
    first, second = server.requests
    assert (first.method, first.path) == ("PUT", "/?q=x")
    assert "authorization" not in first.headers
    assert "authorization" in second.headers


def test_headers_of_a_request_replace_those_of_the_client(send_with: ClientRequester, server: SSEServer) -> None:
    client = SSEClient(server.url, headers=[("X-A", "1"), ("X-A", "2"), ("x-b", "3"), ("Accept", "text/*")])
    with send_with(client, "/", [("x-a", "4"), ("X-C", "5")], {}):
        pass
    headers = server.requests[0].headers
    assert [headers[name] for name in ("x-a", "x-b", "x-c", "accept")] == ["4", "3", "5", "text/*"]
    assert headers["content-type"] == "application/json"


def test_last_event_id_header_of_a_client_resumes(send_with: ClientRequester, server: SSEServer) -> None:
    with send_with(SSEClient(server.url, headers={"Last-Event-ID": "7"}), "/") as response:
        assert response.events.last_event_id == "7"
    assert server.requests[0].headers["last-event-id"] == "7"


# The base URL.


@pytest.mark.slow
@pytest.mark.parametrize("base_url", ["http://h/v1", "http://h/v1/", "http://h", "http://u:p@h:8/a//", "https://h/%20"])
@pytest.mark.parametrize(
    "url", ["chat", "/chat", "", "?q=1", "a?q=%2F#f", "../up", "http://other/x", "https://other", "a%2Fb"]
)
def test_urls_are_joined_as_httpx_joins_them(base_url: str, url: str) -> None:
    with httpx.Client(base_url=base_url) as http:
        expected = http.build_request("GET", url).url
    call = SSEClient(base_url).call(url)
    assert httpx.URL(call._prepared.options.url) == expected
    assert httpx.URL(SSEClient(httpx.URL(base_url)).call(httpx.URL(url))._prepared.options.url) == expected


@pytest.mark.parametrize(
    ("base_url", "message"),
    [
        (1, "`base_url` must be a str or an httpx.URL, got int"),
        ("api.example.com", "`base_url` must be a URL with a host. Begin it with http:// or https://."),
        ("ftp://secret@h", "`base_url` must be a URL with a host"),
        ("http://h:x/secret", "`base_url` must be a URL with a host"),
        ("http://h/?key=secret", "`base_url` must have no query and no fragment. Pass `params` with each request."),
        ("http://h/#secret", "`base_url` must have no query and no fragment"),
    ],
)
def test_base_url_that_cannot_work_is_a_usage_error(base_url: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SSEClient(base_url)
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


# Options that cannot work.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headers": 5}, "`headers` must be a function, a mapping"),
        ({"headers": {"X-A": "a\nb"}}, "`headers`: the value of 'X-A'"),
        ({"headers": {"Content-Length": "5"}}, "`headers` must not contain 'Content-Length'"),
        ({"auth": 5}, "`auth` must be"),
        ({"timeout": {"idel": 3}}, "the keys of `timeout` must be connect, read, idle or total"),
        ({"decode": "xml"}, "`decode` must be"),
        ({"comments": True}, "`comments=True` must come with"),
        ({"dialect": "other"}, "`dialect` must be"),
        ({"reconnect": 1}, "`reconnect` must be True or"),
        ({"on_reconnect": print}, "`on_reconnect` must come with `reconnect`"),
        ({"max_event_bytes": 0}, "`max_event_bytes` must be"),
        ({"bridge": 1}, "`bridge` must be a sseqbridge.Bridge"),
        ({"retries": -1}, "`retries` must be an integer of at least 0, got -1"),
        ({"retries": True}, "`retries` must be an integer of at least 0, got True"),
        ({"retries": 1, "reconnect": True}, "`retries` must not come with `reconnect`"),
        ({"params": {"a": 1}}, "`params` must be an option of a request"),
        ({"cancel": None}, "`cancel` must be an option of a request"),
    ],
)
def test_options_that_cannot_work_are_usage_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SSEClient("http://h", **options)
    assert str(caught.value).startswith(message)
    with pytest.raises(UsageError):
        SSEClient("http://h").with_options(**options)


@pytest.mark.parametrize("name", ["decode", "comments", "bridge", "base_url", "retries"])
def test_options_of_the_client_alone_are_refused_for_a_request(send_with: ClientRequester, name: str) -> None:
    with pytest.raises(UsageError, match=rf"`{name}` must be an option of the client.*with_options\({name}="):
        send_with(SSEClient("http://h"), "/", **{name: "text"})


def test_unknown_names_are_type_errors(send_with: ClientRequester) -> None:
    method = {"asend": "call"}.get(send_with.way, send_with.way)
    with pytest.raises(TypeError, match=rf"SSEClient\.{method}\(\) got an unexpected keyword argument 'methd'"):
        send_with(SSEClient("http://h"), "/", methd="GET")
    wrong: Any = {"methd": "GET"}
    with pytest.raises(TypeError, match=r"SSEClient\(\) got an unexpected keyword argument 'methd'"):
        SSEClient("http://h", **wrong)


def test_arguments_of_requests_that_cannot_work_are_usage_errors(send_with: ClientRequester) -> None:
    client = SSEClient("http://h")
    wrong: list[dict[str, Any]] = [{"data": {}, "json": {}}, {"timeout": -1}, {"cancel": 1}, {"headers": {"a b": "x"}}]
    for options in wrong:
        with pytest.raises(UsageError):
            send_with(client, "/", **options)
    with pytest.raises(UsageError, match=r"`url` must be a str or an httpx\.URL, got int"):
        send_with(client, 5)


def test_relative_url_without_a_base_url_is_a_usage_error(send_with: ClientRequester) -> None:
    with pytest.raises(UsageError, match="`url` must be an http:// or https:// URL"):
        send_with(SSEClient(), "/chat")


@pytest.mark.parametrize("url", ["models:generate", "mailto:x", "//127.0.0.1:9/x"])
def test_url_with_a_scheme_or_host_alone_loses_neither(send_with: ClientRequester, url: str) -> None:
    with pytest.raises(UsageError, match="`url` must be an http:// or https:// URL"):
        send_with(SSEClient("http://127.0.0.1:9/v1"), url)


def test_errors_of_requests_are_those_of_request_sse(send_with: ClientRequester) -> None:
    with SSEServer([respond(200, {"Content-Type": "text/html"}), raw(b"<html>")]) as server:
        with pytest.raises(ContentTypeError):
            send_with(SSEClient(server.url), "/")
        with send_with(SSEClient(server.url, check_content_type=False, decode="text"), "/") as response:
            response.fail()


def test_set_cancel_flag_prevents_the_request(send_with: ClientRequester, server: SSEServer) -> None:
    class Flag:
        def is_set(self) -> bool:
            return True

    with pytest.raises(RequestAbortedError):
        send_with(SSEClient(server.url), "/", cancel=Flag())
    assert server.requests == []


# with_options.


def test_with_options_replaces_options(send_with: ClientRequester, server: SSEServer) -> None:
    client = SSEClient("http://h/v1", headers={"X-A": "1", "X-B": "1"}, decode="text")
    other = client.with_options(
        base_url=server.url, headers={"X-A": "2"}, decode="event", done=None
    )
    with send_with(other, "/x") as response:
        assert [event.data for event in response.items()] == ['{"n": 1}', "[DONE]"]
    assert server.requests[0].headers["x-a"] == "2"
    assert "x-b" not in server.requests[0].headers
    with send_with(client, f"{server.url}/y") as response:
        assert response.items() == ['{"n": 1}']
    assert server.requests[1].headers["x-b"] == "1"


def test_with_options_keeps_a_subclass(server: SSEServer) -> None:
    class Own(SSEClient[Any]):
        def __init__(self, url: str) -> None:
            super().__init__(url, timeout=3)

    assert repr(Own(server.url).with_options(done=None)) == f"<Own {server.url}/ done timeout>"


# The client as an object.


def test_client_is_immutable() -> None:
    client = SSEClient("http://h")
    for name in ("_own", "timeout"):
        with pytest.raises(AttributeError, match="SSEClient is immutable"):
            setattr(client, name, "x")
        with pytest.raises(AttributeError, match="SSEClient is immutable"):
            delattr(client, name)


def test_objects_of_the_caller_can_change_later(server: SSEServer) -> None:
    headers: dict[str, str] = {"X-A": "1"}
    timeout: Any = {"idle": 30.0}
    client = SSEClient(server.url, headers=headers, timeout=timeout)
    headers["X-A"] = "bad\n"
    timeout["idle"] = -1
    with client.request("/"):
        assert server.requests[0].headers["x-a"] == "1"


def test_copies_are_the_client_itself_and_it_cannot_be_pickled() -> None:
    with Bridge() as bridge:
        client = SSEClient("http://h", headers={"Authorization": "secret"}, bridge=bridge)
        assert copy.copy(client) is client
        assert copy.deepcopy({"client": client})["client"] is client
        with pytest.raises(TypeError, match=r"SSEClient cannot be pickled.*Make one in each process"):
            pickle.dumps(client)


def test_repr_shows_no_secrets() -> None:
    client = SSEClient(
        "http://user:secret@h:81/v1", headers={"X-Key": "secret"}, auth=("secret", "secret"), timeout=Timeout(idle=3)
    )
    assert repr(client) == "<SSEClient http://h:81/v1 auth timeout>"
    assert repr(SSEClient()) == "<SSEClient>"


def test_signature_shows_the_options_with_their_defaults() -> None:
    own = inspect.signature(SSEClient).parameters
    shared = inspect.signature(request_sse).parameters
    assert list(own)[:2] == ["base_url", "headers"]
    assert own["decode"] == shared["decode"]
    assert own["timeout"] == shared["timeout"]
    assert {"json", "params", "content", "cancel", "last_event_id"}.isdisjoint(own)


def test_subclass_has_the_signature_of_its_own_constructor() -> None:
    """Frameworks that inject dependencies read it."""

    class Ours(SSEClient[Any]):
        def __init__(self, key: str) -> None:
            super().__init__("http://h", headers={"Authorization": f"Bearer {key}"})

    assert list(inspect.signature(Ours).parameters) == ["key"]
    assert repr(Ours("sk-secret").with_options(retries=1)) == "<Ours http://h/>"


def test_signatures_of_the_functions_are_frozen() -> None:
    """New options belong to the client."""
    frozen = (
        "url headers data json method params content auth cookies files extensions decode dialect done require_done "
        "error_events comments timeout cancel reconnect on_reconnect last_event_id follow_redirects "
        "check_content_type max_event_bytes max_buffered_bytes"
    )
    for function, last in ((request_sse, "bridge"), (arequest_sse, "client")):
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:3] == ["url", "headers", "data"]
        # The order of keyword arguments has no meaning.
        assert sorted(parameters) == sorted(f"{frozen} {last}".split())


def test_requests_run_on_the_bridge_of_the_client(server: SSEServer) -> None:
    with Bridge() as bridge:
        client = SSEClient(server.url, bridge=bridge)
        assert repr(bridge) == "<Bridge not started>"
        with client.request("/") as response:
            assert response.events.collect() == [{"n": 1}]
        client.call("/")().events.close()
        assert bridge.stats().bytes > 0
        assert len(server.requests) == 2


def test_many_threads_share_a_client(server: SSEServer) -> None:
    client = SSEClient(server.url, reconnect=ReconnectionPolicy(attempts=1))

    def collect() -> list[Any]:
        return client.request("/").events.collect()

    assert together([collect] * 8) == [[{"n": 1}]] * 8


def test_arequest_uses_a_client_of_the_caller(run: Run, server: SSEServer) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(headers={"X-Own": "1"}) as http:
            response = await SSEClient(server.url).arequest("/", client=http)
            assert [item async for item in response.events] == [{"n": 1}]

    run(main)
    assert server.requests[0].headers["x-own"] == "1"


def test_client_keeps_no_cookies(send_with: ClientRequester) -> None:
    with SSEServer([respond(200, {"Content-Type": "text/event-stream", "Set-Cookie": "a=1"}), DONE]) as server:
        client = SSEClient(server.url)
        for _ in range(2):
            with send_with(client, "/"):
                pass
    assert ["cookie" in request.headers for request in server.requests] == [False, False]


def test_function_of_decode_that_fails_is_a_decode_error(send_with: ClientRequester, server: SSEServer) -> None:
    def decode(event: ServerSentEvent) -> int:
        raise ValueError

    with send_with(SSEClient(server.url, decode=decode), "/") as response:
        assert isinstance(response.fail()[1], DecodeError)


# Laziness and forks.

LAZY = """
import threading
from sseqbridge import SSEClient

client = SSEClient("http://h/v1", headers={"X": "1"}, timeout=3)
call = client.with_options(decode="text").call("/chat", data={"a": 1})
assert threading.active_count() == 1, threading.enumerate()
"""


@pytest.mark.slow
def test_client_and_calls_start_no_thread() -> None:
    assert python(LAZY) == (0, "", "")


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
from sseqbridge import SSEClient

client = SSEClient(sys.argv[1])
call = client.call("/call")
assert client.request("/").events.collect() == [{"n": 1}]
child = os.fork()
if not child:
    status = 1
    try:
        assert client.request("/").events.collect() == [{"n": 1}]
        assert call().events.collect() == [{"n": 1}]
        status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert call().events.collect() == [{"n": 1}]
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_client_works_in_a_forked_child(server: SSEServer) -> None:
    assert python(FORK, server.url) == (0, "", "")
