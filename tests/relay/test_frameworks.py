"""The relay's functions for Flask, Django and Starlette, each under a server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import re
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import flask
import httpx
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.test import AsyncRequestFactory, RequestFactory
from django.urls import path as route
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Route

from sseqbridge import StatusError, UsageError, arequest_sse, relay, request_sse
from sseqbridge._streams.stream import reader_of
from sseqbridge.relay import RelayEnd
from sseqbridge.relay._disconnect import Client, ClientDisconnected
from sseqbridge.relay._response import read_refusal, refusal_of
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, respond, send, silence, wait
from tests.clock import FakeClock
from tests.relay.serving import sending, under_uvicorn, under_werkzeug, under_wsgiref
from tests.support import until

pytestmark = pytest.mark.slow

DONE = send("[DONE]")
EVENT_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
    "content-encoding": "identity",
}

# The URL that the views relay; set by each test.
upstream: list[str] = []


# The views' option `refusal`; a test of another value sets it.
refusal: list[Any] = ["error"]


def options() -> dict[str, Any]:
    return {"heartbeat": 0.1, "headers": {"X-Mine": "1"}, "refusal": refusal[0]}


@pytest.fixture
def passes() -> Iterator[None]:
    """Let the views pass refusals on."""
    refusal[:] = ["pass"]
    yield
    refusal[:] = ["error"]


# The same two views in each framework: a relay of the upstream, and a relay of an iterable.


def numbers() -> Iterator[dict[str, int]]:
    yield from ({"n": n} for n in range(3))


async def anumbers() -> AsyncIterator[dict[str, int]]:
    for n in range(3):
        yield {"n": n}


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/")
    def root() -> flask.Response:
        return relay.flask.stream_response(request_sse(upstream[0]), **options())

    @app.get("/made")
    def made() -> flask.Response:
        return relay.flask.stream_response(({"path": flask.request.path} for _ in range(1)), **options())

    return app


def django_view(request: Any) -> Any:
    return relay.django.stream_response(request, request_sse(upstream[0]), **options())


async def django_aview(request: Any) -> Any:
    return relay.django.stream_response(request, await arequest_sse(upstream[0]), **options())


def django_made(request: Any) -> Any:
    return relay.django.stream_response(request, ({"path": request.path} for _ in range(1)), **options())


urlpatterns = [route("", django_view), route("async", django_aview), route("made", django_made)]

ended = threading.Event()


def starlette_app() -> Starlette:
    def root(request: Any) -> Any:
        return relay.starlette.stream_response(
            request_sse(upstream[0]), background=BackgroundTask(ended.set), **options()
        )

    async def aroot(request: Any) -> Any:
        return relay.starlette.stream_response(await arequest_sse(upstream[0]), **options())

    async def made(request: Any) -> Any:
        async def items() -> AsyncIterator[Any]:
            yield {"path": request.url.path}

        return relay.starlette.stream_response(items(), **options())

    return Starlette(routes=[Route("/", root), Route("/async", aroot), Route("/made", made)])


SERVERS: dict[str, Callable[[], Any]] = {
    "flask": lambda: under_werkzeug(flask_app()),
    "django-wsgi": lambda: under_wsgiref(WSGIHandler()),
    "django-asgi": lambda: under_uvicorn(ASGIHandler()),
    "starlette": lambda: under_uvicorn(starlette_app()),
}


@pytest.fixture(params=SERVERS)
def origin(request: pytest.FixtureRequest) -> Iterator[str]:
    with SERVERS[request.param]() as url:
        yield url


@pytest.fixture(
    params=["flask /", "django-wsgi /", "django-asgi /", "django-asgi /async", "starlette /", "starlette /async"]
)
def view(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a synchronous or asynchronous view that relays the upstream."""
    server, _, path = request.param.partition(" ")
    with SERVERS[server]() as url:
        yield url + path


@pytest.fixture(params=["django-asgi", "starlette"])
def asynchronous(request: pytest.FixtureRequest) -> Iterator[str]:
    with SERVERS[request.param]() as url:
        yield url


@contextlib.contextmanager
def script(*steps: Step) -> Iterator[SSEServer]:
    with SSEServer(steps) as server:
        upstream[:] = [server.url]
        yield server


def without_heartbeats(text: str) -> str:
    return re.sub("(?m)^:\n", "", text)


def test_events_are_sent_with_the_headers_of_an_event_stream(origin: str) -> None:
    with script(send(1, id="5", event="tick"), DONE):
        response = httpx.get(origin)
    assert (response.status_code, without_heartbeats(response.text)) == (
        200,
        "event: tick\nid: 5\ndata: 1\n\ndata: [DONE]\n\n",
    )
    assert {name: response.headers[name] for name in EVENT_STREAM} == EVENT_STREAM
    assert response.headers["x-mine"] == "1"


def test_asynchronous_stream_is_forwarded(asynchronous: str) -> None:
    with script(send(1), DONE):
        assert without_heartbeats(httpx.get(f"{asynchronous}/async").text) == "data: 1\n\ndata: [DONE]\n\n"


def test_items_of_the_view_are_sent(origin: str) -> None:
    response = httpx.get(f"{origin}/made")
    assert without_heartbeats(response.text) == 'data: {"path":"/made"}\n\n'
    assert response.headers["content-type"] == EVENT_STREAM["content-type"]


def test_headers_and_heartbeats_are_sent_while_the_upstream_is_silent(origin: str) -> None:
    go = threading.Event()
    with script(respond(), hold(go), send(1), DONE), httpx.stream("GET", origin) as response:
        read = ""
        for text in response.iter_text():
            read += text
            if len(re.findall("(?m)^:\n", read)) >= 3:
                go.set()
        assert without_heartbeats(read) == "data: 1\n\ndata: [DONE]\n\n"


def test_disconnect_aborts_the_upstream(view: str) -> None:
    with script(send(1), silence()) as server:
        with httpx.stream("GET", view) as response:
            for text in response.iter_text():
                if "data: 1" in text:
                    break
        server.requests[0].wait_aborted()


@pytest.mark.parametrize(
    ("upstreams", "status"), [(401, 502), (403, 502), (404, 502), (500, 502), (201, 502), (429, 429), (503, 503)]
)
def test_refusal_reveals_nothing_of_the_upstreams_response(origin: str, upstreams: int, status: int) -> None:
    head = respond(upstreams, headers={"Retry-After": "7", "X-Secret": "1"}, content_type="text/html")
    with script(head, b"<script>alert(1)</script> invalid key sk-1"):
        response = httpx.get(origin)
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"type", "status", "message"}
    assert (error["type"], error["status"]) == ("upstream_error", upstreams)
    assert str(upstreams) in error["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["retry-after"] == "7"
    assert response.headers["x-mine"] == "1"
    assert "x-secret" not in response.headers


def test_refusal_is_passed_without_its_other_headers(view: str, passes: None) -> None:
    head = respond(402, headers={"Retry-After": "7", "X-Secret": "1"}, content_type="application/json")
    with script(head, b'{"error": "busy"}'):
        response = httpx.get(view)
    assert (response.status_code, response.json()) == (402, {"error": "busy"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["retry-after"] == "7"
    assert "x-secret" not in response.headers


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "", None, "a/b; c"])
def test_refusal_of_an_active_type_is_passed_as_text(view: str, passes: None, kind: str | None) -> None:
    with script(respond(500, content_type=kind), b"<script>"):
        response = httpx.get(view)
    assert (response.status_code, response.content) == (500, b"<script>")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_problem_json_is_passed(view: str, passes: None) -> None:
    with script(respond(422, content_type="application/problem+json; charset=utf-8"), b"{}"):
        response = httpx.get(view)
    assert (response.status_code, response.content) == (422, b"{}")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b'event: error\ndata: {"error": {"message": "no"}}\n\n', {"error": {"message": "no"}}),
        (b'data: {"error": 1}', {"error": 1}),
        (b"data: overloaded\n\n", {"error": {"message": "overloaded"}}),
        (b"", {"error": {"message": ""}}),
    ],
)
def test_refusal_that_is_an_event_stream_is_passed_as_json(view: str, passes: None, body: bytes, content: Any) -> None:
    with script(respond(500, content_type="text/event-stream"), body):
        response = httpx.get(view)
    assert (response.status_code, response.json()) == (500, content)
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["flask", "django-wsgi", "django-asgi", "starlette"])
def test_refusal_is_what_the_applications_function_returns(path: str) -> None:
    def translated(error: StatusError) -> tuple[int, Any]:
        return 409, {"said": error.body.decode(), "status": error.status}

    refusal[:] = [translated]
    try:
        with SERVERS[path]() as url, script(respond(400, content_type="text/plain"), b"no"):
            response = httpx.get(url)
    finally:
        refusal[:] = ["error"]
    assert (response.status_code, response.json()) == (409, {"said": "no", "status": 400})
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("status", [100, 199, 204, 205, 304, 600, "400", None])
def test_status_of_the_applications_function_becomes_502(status: Any) -> None:
    error = StatusError("refused", 400, httpx.Headers(), b"")
    assert refusal_of(error, lambda error: (status, "no"), None).status == 502


@pytest.mark.parametrize("body", [b"no", None, 5])
def test_body_of_the_applications_function_is_checked(body: Any) -> None:
    error = StatusError("refused", 400, httpx.Headers(), b"")
    with pytest.raises(UsageError, match=f"`refusal` must return .*got {type(body).__name__}"):
        refusal_of(error, lambda error: (400, body), None)


def test_a_function_is_refused_in_an_asynchronous_view_of_django() -> None:
    async def main() -> None:
        request = AsyncRequestFactory().get("/")
        with pytest.raises(UsageError, match='`refusal` must be "error" or "pass"'):
            relay.django.stream_response(request, anumbers(), refusal=lambda error: (400, ""))

    asyncio.run(main())


@pytest.mark.parametrize("pause", [0.01, None], ids=["drags on", "stalls"])
@pytest.mark.parametrize(
    ("serving", "path"),
    [
        (lambda: under_werkzeug(flask_app()), ""),
        (lambda: under_werkzeug(WSGIHandler()), ""),
        (SERVERS["django-asgi"], "async"),
        (SERVERS["starlette"], ""),
        (SERVERS["starlette"], "async"),
    ],
    ids=["flask", "django-wsgi", "django-asgi async", "starlette", "starlette async"],
)
def test_disconnect_during_an_endless_refusal_aborts_the_upstream(
    serving: Callable[[], Any], path: str, pause: float | None, passes: None
) -> None:
    with serving() as origin, endless_refusal(pause) as server:
        leave_during_the_refusal(f"{origin}/{path}", server)
        server.requests[0].wait_aborted()


@pytest.mark.parametrize("pause", [0.01, None], ids=["drags on", "stalls"])
def test_endless_refusal_in_an_asgi_thread_ends_with_its_limit(
    clock: FakeClock, pause: float | None, passes: None
) -> None:
    """Django does not tell a synchronous view that the client has left."""
    with SERVERS["django-asgi"]() as origin, endless_refusal(pause) as server:
        leave_during_the_refusal(f"{origin}/", server)
        clock.advance_until(server.requests[0].aborted.is_set)


def endless_refusal(pause: float | None) -> SSEServer:
    """Return an upstream that refuses, and whose body drags on, or stalls without a `pause`."""

    def drag(request: ReceivedRequest) -> Iterator[Step]:
        yield respond(503, content_type="text/plain")
        while True:
            yield b"x"
            yield silence() if pause is None else wait(pause)

    return SSEServer(drag)


def leave_during_the_refusal(url: str, server: SSEServer) -> None:
    upstream[:] = [server.url]
    with sending(url, f"GET {httpx.URL(url).path} HTTP/1.1\r\nHost: a\r\n\r\n"):
        request = server.wait_for_request()
        until(lambda: request.sent_bytes > 0)


def test_client_is_checked_while_the_body_of_a_refusal_arrives() -> None:
    class CountingClient(Client):
        checks = 0

        def has_disconnected(self) -> bool:
            self.checks += 1
            return self.checks == 3

    client = CountingClient(-1, is_tls=False)
    with SSEServer([respond(503, content_type="text/plain"), b"x", silence()]) as server:
        reader = reader_of(request_sse(server.url).events)
        response = read_refusal(reader, "pass", None, ClientDisconnected(client, 0.01))
        assert (response.status, response.body, client.checks) == (503, b"", 3)
        server.requests[0].wait_aborted()


def test_refusal_with_an_undefined_status_becomes_502(view: str, passes: None) -> None:
    with script(respond(999, content_type="text/plain"), b"odd"):
        response = httpx.get(view)
    assert (response.status_code, response.content) == (502, b"odd")


@pytest.mark.parametrize("rest", [[b"{", cut()], [bytes(1024 * 1024 + 1)]], ids=["cut", "long"])
def test_incomplete_body_of_a_refusal_is_logged(
    view: str, passes: None, caplog: pytest.LogCaptureFixture, rest: list[Step]
) -> None:
    with script(respond(500, content_type="text/plain"), *rest):
        assert httpx.get(view).status_code == 500
    assert "not received completely" in caplog.text


def test_refusal_after_a_disconnect_is_a_response_to_middlewares(
    passes: None, caplog: pytest.LogCaptureFixture
) -> None:
    """BaseHTTPMiddleware raises an error if there is no response."""
    app = starlette_app()
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
    with under_uvicorn(app) as origin, script(respond(503), b"x", silence()) as server:
        with socket.create_connection(("127.0.0.1", httpx.URL(origin).port or 0)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            server.wait_for_request()
        server.requests[0].wait_aborted()
    assert "No response returned" not in caplog.text


def test_header_of_a_refusal_that_is_not_ascii_is_dropped(origin: str, passes: None) -> None:
    with script(respond(503, headers={"Retry-After": "\u00e4"}, content_type="text/plain"), b"busy"):
        response = httpx.get(origin)
    assert (response.status_code, response.content) == (503, b"busy")


def test_no_content_is_forwarded(origin: str) -> None:
    """A 204 ends the reconnecting of an EventSource."""
    with script(respond(204)):
        response = httpx.get(origin)
    assert (response.status_code, response.content) == (204, b"")


def test_arguments_are_checked_also_for_a_refusal() -> None:
    request = RequestFactory().get("/")
    for stream_response in (
        relay.flask.stream_response,
        functools.partial(relay.django.stream_response, request),
        relay.starlette.stream_response,
    ):
        with script(respond(503)), pytest.raises(UsageError, match="heartbeat"):
            stream_response(request_sse(upstream[0]), heartbeat=0)


def test_database_connections_of_an_iterables_thread_are_closed() -> None:
    opened: list[Any] = []

    def rows() -> Iterator[list[int]]:
        connection = connections["default"]
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            opened.append(connection.connection)
            yield list(cursor.fetchone())

    response = relay.django.stream_response(RequestFactory().get("/"), rows(), heartbeat=None)
    assert b"".join(response).endswith(b"data: [1]\n\n")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_failure_to_close_database_connections_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise LookupError("no database")

    monkeypatch.setattr(connections, "close_all", fail)
    response = relay.django.stream_response(RequestFactory().get("/"), ["a"], heartbeat=None)
    assert b"".join(response).endswith(b"data: a\n\n")
    assert "no database" in caplog.text


def test_thread_of_on_end_closes_its_database_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request and its response were dropped without an end of the request."""
    closing, ending = list[threading.Thread](), list[threading.Thread]()
    monkeypatch.setattr(connections, "close_all", lambda: closing.append(threading.current_thread()))

    def on_end(end: RelayEnd) -> None:
        ending.append(threading.current_thread())

    relay.django.stream_response(RequestFactory().get("/"), ["a"], on_end=on_end)
    gc.collect()
    until(lambda: ending and ending[0] in closing)


def test_refusal_has_the_headers_that_a_django_view_has_set() -> None:
    with SSEServer([respond(429), b"busy"]) as server:
        response: Any = relay.django.stream_response(RequestFactory().get("/"), lambda: request_sse(server.url))
        response["X-View"] = "2"
        refusal = response.render()
        response.close()
    assert (refusal.status_code, refusal["X-View"]) == (429, "2")
    refusal.close()


def test_background_task_runs_after_the_response() -> None:
    ended.clear()
    with under_uvicorn(starlette_app()) as origin, script(send(1), DONE):
        httpx.get(origin)
        assert ended.wait(30)
        ended.clear()
        with script(respond(500)):
            assert httpx.get(origin).status_code == 502
        assert ended.wait(30)


def test_os_error_in_send_aborts_the_upstream() -> None:
    """A server reports a disconnect in this way since ASGI 2.4."""

    async def main() -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                raise OSError

        response = relay.starlette.stream_response(await arequest_sse(upstream[0]))
        await response({"type": "http", "method": "GET"}, receive, send)
        await asyncio.to_thread(server.requests[0].wait_aborted)

    with script(send(1), silence()) as server:
        asyncio.run(main())


def test_asynchronous_stream_under_wsgi_is_an_error_and_aborted() -> None:
    with under_wsgiref(WSGIHandler()) as origin, script(send(1), silence()) as server:
        assert httpx.get(f"{origin}/async").status_code == 500
        server.requests[0].wait_aborted()


def test_refusal_of_an_asynchronous_stream_under_wsgi_is_an_error() -> None:
    with under_wsgiref(WSGIHandler()) as origin, script(respond(503)):
        assert httpx.get(f"{origin}/async").status_code == 500


def test_head_request_aborts_the_upstream(view: str) -> None:
    with script(send(1), silence()) as server:
        response = httpx.head(view)
        assert (response.status_code, response.content) == (200, b"")
        server.requests[0].wait_aborted()


def test_request_of_django_rest_framework_is_accepted() -> None:
    class Request:
        _request = RequestFactory().get("/")

    response = relay.django.stream_response(Request(), iter(["a"]))
    assert b"".join(response).replace(b":\n", b"", 1) == b"data: a\n\n"
    response.close()


def test_request_must_be_an_http_request() -> None:
    with pytest.raises(UsageError, match="`request` must be an HttpRequest, got list_iterator"):
        relay.django.stream_response(iter(["a"]), None)


def test_flask_response_outside_of_a_request() -> None:
    response = relay.flask.stream_response(iter(["a"]))
    assert response.get_data().replace(b":\n", b"", 1) == b"data: a\n\n"
