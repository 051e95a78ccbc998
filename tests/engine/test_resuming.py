"""`ReconnectionPolicy(resume=...)`: which request follows one with a body. Sync and async, over real sockets."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import (
    Attempt,
    Bridge,
    CallbackError,
    ConnectError,
    ReconnectionError,
    ReconnectionPolicy,
    Resume,
    SSEClient,
    StatusError,
    TruncatedStreamError,
    UsageError,
    request_sse,
)
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, in_turn, raw, respond, send, silence
from tests.engine.reconnecting import AT_ONCE, DONE, Notes, ids_sent
from tests.requesters import Requester
from tests.support import until

GET = dataclasses.replace(AT_ONCE, resume="get")
SECRETS = {"Authorization": "Bearer sk-secret", "X-Api-Key": "sk-secret"}
PROMPT = {"prompt": "x"}


def by(function: Callable[[Attempt], Resume | None]) -> ReconnectionPolicy:
    return dataclasses.replace(AT_ONCE, resume=function)


def lines(server: SSEServer) -> list[tuple[str, str]]:
    return [(request.method, request.path) for request in server.requests]


# "get".


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({}, "/run?a=1"),
        ({"Location": "/runs/1/stream?b=2"}, "/runs/1/stream?b=2"),
        ({"Content-Location": "runs/1"}, "/runs/1"),
        ({"Location": "/runs/1/stream", "Content-Location": "/runs/1"}, "/runs/1/stream"),
        # A header with a URL that cannot be requested is ignored.
        ({"Location": "mailto:x", "Content-Location": "/runs/1"}, "/runs/1"),
        ({"Location": "http://127.0.0.1:99999/"}, "/run?a=1"),
        ({"Location": "http://127.0.0.1:x/"}, "/run?a=1"),
    ],
    ids=str,
)
def test_get_asks_for_the_rest(ask: Requester, headers: dict[str, str], path: str) -> None:
    first = [respond(headers=headers), send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        response = ask(server.url + "/run?a=1", SECRETS, PROMPT, reconnect=GET, cookies={"c": "1"})
        assert response.items() == [1, 2]
        assert lines(server) == [("POST", "/run?a=1"), ("GET", path)]
        resumed = server.requests[1]
        assert resumed.last_event_id == "a"
        assert resumed.body == b""
        assert resumed.headers["authorization"] == "Bearer sk-secret"
        assert resumed.headers["cookie"] == "c=1"
        assert resumed.headers["accept"] == "text/event-stream"
        assert {"content-type", "content-length", "transfer-encoding"}.isdisjoint(resumed.headers)


def test_place_is_kept_until_an_answer_names_another(ask: Requester) -> None:
    scripts = [
        [respond(headers={"Location": "/one"}), send(1, id="a"), cut()],
        [send(2, id="b"), cut()],
        [respond(headers={"Location": "two"}), send(3, id="c"), cut()],
        [respond(503)],
        [send(4), DONE],
    ]
    with SSEServer(in_turn(*scripts)) as server:
        assert ask(server.url + "/run", data=PROMPT, reconnect=GET).items() == [1, 2, 3, 4]
        assert lines(server) == [("POST", "/run"), ("GET", "/one"), ("GET", "/one"), ("GET", "/two"), ("GET", "/two")]
        assert ids_sent(server) == [None, "a", "b", "c", "c"]


def test_params_stay_with_the_same_url_alone(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> Iterable[Step]:
        if request.method == "GET":
            return [DONE]
        return [respond(headers={"Location": "/other"} if "x" in request.path else {}), send(1, id="a"), cut()]

    with SSEServer(script) as server:
        for value in ("x", "y"):
            assert ask(server.url, data={}, params={"q": value}, reconnect=GET).items() == [1]
        assert [path for method, path in lines(server) if method == "GET"] == ["/other", "/?q=y"]


def test_get_follows_redirects_of_the_place(ask: Requester) -> None:
    """A permanent one is remembered, for this place alone."""

    def script(request: ReceivedRequest) -> Iterable[Step]:
        if request.path == "/moved":
            return [respond(308, {"Location": "/new"})]
        if request.path == "/new":
            step = next(parts)
            return [send(step, id=str(step)), cut()] if step < 4 else [DONE]
        return [respond(headers={"Location": "/moved"}), send(1, id="1"), cut()]

    parts = iter([2, 3, 4])
    with SSEServer(script) as server:
        assert ask(server.url, data={}, reconnect=GET).items() == [1, 2, 3]
        assert [path for _, path in lines(server)] == ["/", "/moved", "/new", "/new", "/new"]


def test_permanent_redirect_of_a_post_leads_the_get(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> Iterable[Step]:
        if request.path == "/old":
            return [respond(308, {"Location": "/new"})]
        return [send(1, id="a"), cut()] if request.method == "POST" else [send(2), DONE]

    with SSEServer(script) as server:
        assert ask(server.url + "/old", data={}, reconnect=GET).items() == [1, 2]
        assert lines(server) == [("POST", "/old"), ("POST", "/new"), ("GET", "/new")]


def test_another_origin_gets_no_credentials(ask: Requester) -> None:
    with SSEServer([respond(headers={"Set-Cookie": "s=1"}), send(2, id="b"), cut()]) as other:
        first = [respond(headers={"Location": other.url + "/x", "Set-Cookie": "own=1"}), send(1, id="a"), cut()]
        with SSEServer(first) as server:
            policy = dataclasses.replace(GET, attempts=2)
            options = {"auth": ("me", "sk-secret"), "cookies": {"c": "sk-secret"}}
            response = ask(server.url, SECRETS, PROMPT, reconnect=policy, **options)
            assert [response.next(), response.next(), response.next()] == [1, 2, 2]
            response.close()
            assert lines(server) == [("POST", "/")]
        for request in other.requests:
            assert request.method == "GET"
            assert request.last_event_id in ("a", "b")
            assert "secret" not in str(request.header_pairs)
            assert {"authorization", "x-api-key"}.isdisjoint(request.headers)
        # Its own cookie alone.
        assert [request.headers.get("cookie") for request in other.requests[:2]] == [None, "s=1"]


def test_place_cannot_lead_back_to_the_credentials(ask: Requester) -> None:
    """As after redirects: another origin must not choose what is requested with them."""

    def script(request: ReceivedRequest) -> Iterable[Step]:
        if request.method == "POST":
            return [respond(307, {"Location": other.url})]
        return [send(2), DONE]

    with SSEServer(script) as server:
        with SSEServer([respond(headers={"Location": server.url + "/delete"}), send(1, id="a"), cut()]) as other:
            response = ask(server.url, SECRETS, PROMPT, reconnect=GET, follow_redirects=True, auth=("me", "secret"))
            assert response.items() == [1, 2]
        assert lines(server) == [("POST", "/"), ("GET", "/delete")]
        assert "authorization" in server.requests[0].headers
        assert {"authorization", "x-api-key"}.isdisjoint(server.requests[1].headers)


@pytest.mark.parametrize("name", ["Location", "Content-Location"])
@pytest.mark.parametrize("target", ["{}/rest", "/rest", "//{}/rest"], ids=["absolute", "relative", "no scheme"])
def test_place_of_the_same_origin_keeps_the_urls_credentials(ask: Requester, name: str, target: str) -> None:
    def script(request: ReceivedRequest) -> Iterable[Step]:
        if request.method == "POST":
            place = target.format(server.url if target.startswith("{") else request.headers["host"])
            return [respond(headers={name: place}), send(1, id="a"), cut()]
        return [send(2), DONE]

    with SSEServer(script) as server:
        url = server.url.replace("://", "://me:sk-secret@")
        assert ask(url, data=PROMPT, reconnect=GET).items() == [1, 2]
        assert lines(server)[1] == ("GET", "/rest")
        assert server.requests[1].headers["authorization"] == server.requests[0].headers["authorization"]


def test_function_with_an_absolute_url_keeps_the_urls_credentials(ask: Requester) -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        policy = by(lambda attempt: Resume("GET", server.url + "/rest"))
        assert ask(server.url.replace("://", "://me:sk-secret@"), data=PROMPT, reconnect=policy).items() == [1, 2]
        assert server.requests[1].headers["authorization"] == server.requests[0].headers["authorization"]


def test_permanent_redirect_keeps_the_credentials_of_the_url(ask: Requester) -> None:
    """Also on the next connection, whose request begins at the new URL."""

    def script(request: ReceivedRequest) -> Iterable[Step]:
        if request.path == "/old":
            return [respond(308, {"Location": server.url + "/new"})]
        return [send(2), DONE] if request.last_event_id else [send(1, id="a"), cut()]

    with SSEServer(script) as server:
        url = server.url.replace("://", "://me:sk-secret@")
        assert ask(url + "/old", reconnect=AT_ONCE).items() == [1, 2]
        assert lines(server) == [("GET", "/old"), ("GET", "/new"), ("GET", "/new")]
        assert {request.headers.get("authorization") for request in server.requests} == {"Basic bWU6c2stc2VjcmV0"}


def test_credentials_of_the_url_do_not_reach_another_origin(ask: Requester) -> None:
    with SSEServer([send(2), DONE]) as other:
        with SSEServer([respond(headers={"Location": other.url}), send(1, id="a"), cut()]) as server:
            assert ask(server.url.replace("://", "://me:sk-secret@"), reconnect=GET).items() == [1, 2]
        assert "authorization" not in other.requests[0].headers


def test_without_redirects_a_place_at_another_origin_is_refused(ask: Requester) -> None:
    with SSEServer([send(2), DONE]) as other:
        with SSEServer([respond(headers={"Location": other.url}), send(1, id="a"), cut()]) as server:
            response = ask(server.url, SECRETS, PROMPT, reconnect=GET, follow_redirects=False)
            assert response.next() == 1
            with pytest.raises(ReconnectionError, match="follow_redirects=False"):
                response.next()
            assert len(server.requests) == 1
        assert other.requests == []


def test_without_redirects_a_place_of_the_same_origin_is_requested(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> Iterable[Step]:
        if request.method == "POST":
            return [respond(headers={"Location": server.url + "/rest"}), send(1, id="a"), cut()]
        return [send(2), DONE]

    with SSEServer(script) as server:
        assert ask(server.url, data=PROMPT, reconnect=GET, follow_redirects=False).items() == [1, 2]


def test_clients_defaults_do_not_reach_another_origin() -> None:
    clients: list[httpx.AsyncClient] = []

    def client() -> httpx.AsyncClient:
        clients.append(httpx.AsyncClient(headers=SECRETS, cookies={"c": "secret"}))
        return clients[-1]

    with SSEServer([send(2), DONE]) as other, Bridge(client=client) as bridge:
        with SSEServer([respond(headers={"Location": other.url}), send(1, id="a"), cut()]) as server:
            assert request_sse(server.url, data={}, reconnect=GET, bridge=bridge).events.collect() == [1, 2]
            assert server.requests[0].headers["x-api-key"] == "sk-secret"
        assert "secret" not in str(other.requests[0].header_pairs)


def test_get_without_id_or_place_is_abandoned(ask: Requester) -> None:
    """At the same URL a GET would be another stream."""
    with SSEServer([send(1), cut()]) as server:
        # The ID of an earlier stream is none of this one.
        items, error = ask(server.url, data={}, reconnect=GET, last_event_id="old").fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert "Location" in str(error)
        with ask(server.url, data={}, reconnect=GET) as response:
            assert response.next() == 1
            with pytest.raises(UsageError, match="Location"):
                response.events.reconnect()
        assert len(server.requests) == 2


def test_get_at_a_place_needs_no_id(ask: Requester) -> None:
    with SSEServer(in_turn([respond(headers={"Location": "/1"}), cut()], [send(1), DONE])) as server:
        assert ask(server.url, data={}, reconnect=GET).items() == [1]
        assert ids_sent(server) == [None, None]


def test_get_that_is_refused_ends_the_stream(ask: Requester) -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [respond(405)])) as server:
        items, error = ask(server.url, data={}, reconnect=GET).fail()
        assert items == [1]
        assert isinstance(error, StatusError)
        assert error.status == 405
        assert isinstance(error.__cause__, TruncatedStreamError)
        assert lines(server) == [("POST", "/"), ("GET", "/")]


def test_clean_end_of_a_post_resumes_only_with_on_eof(ask: Requester) -> None:
    """Some servers end the answer on purpose, and expect the client back."""
    with SSEServer([send(1, id="a")]) as server:
        assert ask(server.url, data={}, reconnect=GET).items() == [1]
        assert len(server.requests) == 1
    with SSEServer(in_turn([send(1, id="a")], [send(2), DONE])) as server:
        policy = dataclasses.replace(GET, on_eof=True)
        assert ask(server.url, data={}, reconnect=policy).items() == [1, 2]
        assert lines(server) == [("POST", "/"), ("GET", "/")]


@pytest.mark.parametrize("priming", [raw(b"id: a\nretry: 100\ndata:\n\n"), raw(b"id: a\n\n"), send({}, id="a")])
def test_mcp_stream_that_ends_before_its_response_is_resumed(ask: Requester, priming: Step) -> None:
    result = {"jsonrpc": "2.0", "id": 1, "result": {}}
    with SSEServer(in_turn([priming], [send(result, id="b"), silence()])) as server:
        items = ask(server.url, data={}, dialect="mcp", reconnect=GET).items()
        assert [item for item in items if item] == [result]
        assert lines(server) == [("POST", "/"), ("GET", "/")]
        assert ids_sent(server) == [None, "a"]


@pytest.mark.parametrize("last", [[], [cut()]], ids=["clean", "broken"])
def test_mcp_stream_is_not_resumed_after_its_response(ask: Requester, last: list[Step]) -> None:
    """Although the consumer, which decides about the end, has not read the response yet."""
    steps = [send({"jsonrpc": "2.0", "method": "n"}, id="a"), send({"jsonrpc": "2.0", "id": 1, "result": {}}, id="b")]
    with SSEServer([*steps, *last]) as server:
        response = ask(server.url, data={}, dialect="mcp", reconnect=GET)
        subscription = reader_of(response.events).cursor.subscription
        # A stream that is resumed does not end before it is read.
        ask.run_blocking(until, lambda: subscription.finished or len(server.requests) > 1)
        assert len(response.items()) == 2
        assert response.events.outcome == "done"
        assert lines(server) == [("POST", "/")]


def test_mcp_stream_without_an_id_ends_with_its_body(ask: Requester) -> None:
    with SSEServer([send({"jsonrpc": "2.0", "method": "n"})]) as server:
        assert len(ask(server.url, data={}, dialect="mcp", reconnect=GET).items()) == 1
        assert len(server.requests) == 1


def test_reconnect_call_resumes_by_get(ask: Requester) -> None:
    never = threading.Event()
    with SSEServer(in_turn([send(1, id="a"), hold(never)], [send(2), DONE])) as server:
        response = ask(server.url, data={}, reconnect=GET)
        assert response.next() == 1
        response.events.reconnect()
        assert response.items() == [2]
        assert lines(server) == [("POST", "/"), ("GET", "/")]
        never.set()


def test_post_without_a_body_is_resumed_by_get(ask: Requester) -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        assert ask(server.url, method="POST", reconnect=GET).items() == [1, 2]
        assert lines(server) == [("POST", "/"), ("GET", "/")]


def test_get_of_a_request_without_a_body(ask: Requester) -> None:
    first = [respond(headers={"Content-Location": "/rest"}), send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        assert ask(server.url, reconnect=GET).items() == [1, 2]
        assert lines(server) == [("GET", "/"), ("GET", "/rest")]


@pytest.mark.parametrize("resume", ["get", lambda attempt: Resume("GET", "/")], ids=["get", "function"])
def test_headers_function_is_called_for_the_resumed_request(resume: Any) -> None:
    """Its headers describe no body."""
    numbers = count(1)

    def headers() -> dict[str, str]:
        return {"Authorization": f"Bearer {next(numbers)}", "Content-Type": "application/x-prompt"}

    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        client = SSEClient(server.url, headers=headers, reconnect=dataclasses.replace(AT_ONCE, resume=resume))
        assert client.request("/", content=b"x").events.collect() == [1, 2]
        first, second = server.requests
        assert (first.headers["authorization"], second.headers["authorization"]) == ("Bearer 1", "Bearer 2")
        assert (first.headers["content-type"], second.headers.get("content-type")) == ("application/x-prompt", None)


# Before the first answer.


@pytest.mark.parametrize(
    "resume", [None, "repeat", "get", lambda attempt: None], ids=["None", "repeat", "get", "function"]
)
def test_request_that_did_not_reach_the_server_is_sent(ask: Requester, closed_port: int, resume: Any) -> None:
    """It is no second time, whatever `resume` says. A refusal is not either: the server says that it did nothing."""
    servers: list[SSEServer] = []

    def on_reconnect(attempt: int, delay: float, cause: Any) -> None:
        causes.append(type(cause))
        if not servers:
            servers.append(SSEServer(in_turn([respond(503)], [send(1), DONE]), port=closed_port))
            servers[0].__enter__()

    causes: list[type] = []
    try:
        policy = dataclasses.replace(AT_ONCE, resume=resume)
        url = f"http://127.0.0.1:{closed_port}/"
        assert ask(url, data=PROMPT, reconnect=policy, on_reconnect=on_reconnect).items() == [1]
        # The next attempts may come before the server has started.
        assert [cause for cause, _ in itertools.groupby(causes)] == [ConnectError, StatusError]
        assert [(request.method, request.json()) for request in servers[0].requests] == [("POST", PROMPT)] * 2
    finally:
        for server in servers:
            server.__exit__(None, None, None)


# A function.


def test_function_chooses_the_next_request(ask: Requester) -> None:
    attempts: list[Attempt] = []
    threads: list[threading.Thread] = []

    def resume(attempt: Attempt) -> Resume:
        attempts.append(attempt)
        threads.append(threading.current_thread())
        return Resume("GET", f"/responses/7?after={len(attempts)}")

    first = [respond(headers={"X-Request-Id": "7"}), send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [send(2), cut()], [send(3), DONE])) as server:
        response = ask(server.url + "/run", SECRETS, PROMPT, reconnect=by(resume), cookies={"c": "1"})
        assert response.items() == [1, 2, 3]
        assert lines(server) == [("POST", "/run"), ("GET", "/responses/7?after=1"), ("GET", "/responses/7?after=2")]
        assert ids_sent(server) == [None, "a", "a"]
        for request in server.requests:
            assert (request.headers["x-api-key"], request.headers["cookie"]) == ("sk-secret", "c=1")
        assert server.requests[1].body == b""
        # The request that was lost, and its answer.
        one, two = attempts
        assert (one.number, one.method, one.url, one.last_event_id) == (1, "POST", server.url + "/run", "a")
        assert (one.response_headers["x-request-id"], one.headers["x-api-key"]) == ("7", "sk-secret")
        assert (two.number, two.method, two.url) == (1, "GET", server.url + "/responses/7?after=1")
        assert "x-request-id" not in two.response_headers
    assert all(thread.daemon and thread is not threading.main_thread() for thread in threads)


def test_function_may_pass_headers(ask: Requester) -> None:
    def resume(attempt: Attempt) -> Resume:
        assert {"host", "content-length", "content-type", "cookie", "last-event-id"}.isdisjoint(attempt.headers)
        return Resume("QUERY", attempt.url, {**attempt.headers, "X-Api-Key": "new", "Last-Event-ID": "mine"})

    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        response = ask(server.url, SECRETS, PROMPT, reconnect=by(resume), cookies={"c": "1"}, auth=("me", "pw"))
        assert response.items() == [1, 2]
        resumed = server.requests[1]
        assert (resumed.method, resumed.headers["x-api-key"], ids_sent(server)) == ("QUERY", "new", [None, "mine"])
        assert (resumed.headers["cookie"], resumed.headers["accept"]) == ("c=1", "text/event-stream")
        assert resumed.headers["authorization"] == server.requests[0].headers["authorization"]


def test_functions_own_headers_are_all_that_is_sent(ask: Requester) -> None:
    """Besides those that the library adds to each request."""
    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        response = ask(server.url, SECRETS, reconnect=by(lambda attempt: Resume("GET", "/", {"X-Mine": "1"})))
        assert response.items() == [1, 2]
        resumed = server.requests[1].headers
        assert (resumed["x-mine"], resumed["accept"], resumed["last-event-id"]) == ("1", "text/event-stream", "a")
        assert {"authorization", "x-api-key"}.isdisjoint(resumed)


def test_function_may_repeat_a_header(ask: Requester) -> None:
    pairs = [("X-Tag", "1"), ("x-tag", "2")]
    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        assert ask(server.url, reconnect=by(lambda attempt: Resume("GET", "/", pairs))).items() == [1, 2]
        assert server.requests[1].headers["x-tag"] == "1, 2"


@pytest.mark.parametrize("headers", [None, {"X-Token": "short-lived"}], ids=["none", "own"])
def test_function_at_another_origin(ask: Requester, headers: dict[str, str] | None) -> None:
    """It gets what the function passes, and neither the auth nor the cookies of the call."""
    with SSEServer([send(2), DONE]) as other, SSEServer([send(1, id="a"), cut()]) as server:
        policy = by(lambda attempt: Resume("GET", other.url, headers))
        options = {"auth": ("me", "sk-secret"), "cookies": {"c": "sk-secret"}}
        assert ask(server.url, SECRETS, PROMPT, reconnect=policy, **options).items() == [1, 2]
        request = other.requests[0]
        assert request.last_event_id == "a"
        assert request.headers.get("x-token") == (headers and headers["X-Token"])
        assert "secret" not in str(request.header_pairs)
        assert {"authorization", "cookie"}.isdisjoint(request.headers)


def test_function_abandons_the_stream(ask: Requester) -> None:
    notes = Notes()
    with SSEServer([send(1, id="a"), cut()]) as server:
        response = ask(server.url, data={}, reconnect=by(lambda attempt: None), on_reconnect=notes)
        items, error = response.fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert error.attempts == 0
        assert isinstance(error.__cause__, notes.causes[0])
        assert len(server.requests) == 1


def test_resume_function_may_end_the_stream_after_a_clean_end(ask: Requester) -> None:
    with SSEServer([send(1, id="a")]) as server:
        response = ask(server.url, reconnect=by(lambda attempt: None))
        assert response.items() == [1]
        assert response.events.outcome == "eof"


def test_function_that_abandons_after_reconnect_loses_the_stream(ask: Requester) -> None:
    never = threading.Event()
    with SSEServer([send(1, id="a"), hold(never)]) as server:
        response = ask(server.url, data={}, reconnect=by(lambda attempt: None))
        assert response.next() == 1
        response.events.reconnect()
        items, error = response.fail()
        assert items == []
        assert isinstance(error, ReconnectionError)
        never.set()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("http://127.0.0.1/", "Resume or None"),
        (Resume("GET", "ftp://x/"), "http"),
        (Resume("GET", "http://127.0.0.1:99999/"), "http"),
        (Resume("GET", "http://127.0.0.1:x/"), "http"),
        (Resume("GET", "/", {"X": "a\nb"}), "control characters"),
        (Resume("GET", "/", 5), "`headers` of a Resume must be a mapping"),  # type: ignore[arg-type]
        (Resume("GET", "/", {"Transfer-Encoding": "chunked"}), "of a request, not of a response"),
        (Resume("GET", "/", {"Content-Length": "3"}), "of a request, not of a response"),
    ],
    ids=str,
)
def test_function_that_returns_no_request(ask: Requester, returned: Any, words: str) -> None:
    with SSEServer([send(1, id="a"), cut()]) as server:
        items, error = ask(server.url, data={}, reconnect=by(lambda attempt: returned)).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert isinstance(error.__cause__, UsageError)
        assert words in str(error.__cause__)
        assert len(server.requests) == 1


def test_function_that_returns_a_coroutine(ask: Requester) -> None:
    """A lambda that calls a coroutine function; the coroutine is closed, without a warning."""

    async def resume(attempt: Attempt) -> Resume:
        return Resume("GET", attempt.url)

    wrong: Any = lambda attempt: resume(attempt)  # noqa: E731, PLW0108
    with SSEServer([send(1, id="a"), cut()]) as server:
        items, error = ask(server.url, data={}, reconnect=by(wrong)).fail()
        assert items == [1]
        assert "Resume or None, got coroutine" in str(error.__cause__)


def test_function_that_raises(ask: Requester) -> None:
    def resume(attempt: Attempt) -> Resume:
        raise ValueError("sk-secret")

    with SSEServer([send(1, id="a")]) as server:
        # Also after a clean end, which a policy might take for a reason to try again.
        items, error = ask(server.url, reconnect=by(resume)).fail()
        assert items == [1]
        assert isinstance(error, CallbackError)
        assert isinstance(error.__cause__, ValueError)
        assert "secret" not in str(error)


def test_function_blocks_no_other_stream(ask: Requester) -> None:
    """And the stream can be closed while it runs."""
    has_begun, may_end = threading.Event(), threading.Event()

    def resume(attempt: Attempt) -> None:
        has_begun.set()
        may_end.wait(60)

    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        response = ask(server.url, data={}, reconnect=by(resume))
        assert response.next() == 1
        ask.run_blocking(has_begun.wait, 30)
        assert ask(server.url).items() == [2]
        response.close()
        assert response.events.outcome == "closed"
        may_end.set()


def test_reconnect_during_the_function_calls_it_once(ask: Requester) -> None:
    has_begun, may_end, calls = threading.Event(), threading.Event(), []

    def resume(attempt: Attempt) -> Resume:
        calls.append(attempt)
        has_begun.set()
        may_end.wait(60)
        return Resume("GET", "/")

    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        response = ask(server.url, data={}, reconnect=by(resume))
        assert response.next() == 1
        ask.run_blocking(has_begun.wait, 30)
        response.events.reconnect()
        response.settle()
        may_end.set()
        assert response.items() == [2]
        assert len(calls) == 1


def test_requests_of_a_function_go_through_a_bridges_clients() -> None:
    """One client for each origin, where a client may speak HTTP/2."""
    with (
        SSEServer([send(2), DONE]) as other,
        SSEServer([send(1, id="a"), cut()]) as server,
        Bridge(client=httpx.AsyncClient) as bridge,
    ):
        policy = by(lambda attempt: Resume("GET", other.url))
        assert request_sse(server.url, data={}, reconnect=policy, bridge=bridge).events.collect() == [1, 2]


# Attempt and Resume.


def test_attempt_and_resume_are_frozen_and_show_no_secrets() -> None:
    headers = httpx.Headers(SECRETS)
    attempt = Attempt(2, "POST", "https://me:sk-secret@host/?key=sk-secret", headers, "sk-secret", headers)
    resume = Resume("GET", "https://host/?key=sk-secret", SECRETS)
    assert repr(attempt) == "Attempt(number=2, method='POST')"
    assert repr(resume) == "Resume(method='GET')"
    for value in (attempt, resume):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.url = "x"  # type: ignore[misc]
    assert "secret" not in repr(ReconnectionPolicy(resume=lambda attempt: resume))


@pytest.mark.parametrize(("method", "url"), [("", "/"), (None, "/"), ("GE T", "/"), ("GET", b"/"), ("GET", None)])
def test_resume_checks_its_types(method: Any, url: Any) -> None:
    with pytest.raises(UsageError, match=r"method|url"):
        Resume(method, url)


def test_resume_takes_an_httpx_url(ask: Requester) -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2), DONE])) as server:
        policy = by(lambda attempt: Resume("get", httpx.URL(attempt.url).copy_with(path="/x")))  # type: ignore[arg-type]
        assert ask(server.url, data={}, reconnect=policy).items() == [1, 2]
        assert lines(server)[1] == ("GET", "/x")


def test_requests_of_httpx2_are_resumed() -> None:
    first = [respond(headers={"Location": "/rest"}), send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [send(2), DONE])) as server, Bridge(client=httpx2.AsyncClient) as bridge:
        assert request_sse(server.url, data={}, reconnect=GET, bridge=bridge).events.collect() == [1, 2]
        assert lines(server) == [("POST", "/"), ("GET", "/rest")]
