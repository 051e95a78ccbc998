"""Functions in place of streams, and `on_end`, in Flask, Django and Starlette, each under a server in this process."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flask
import httpx
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import AsyncClient, Client, override_settings
from django.urls import path as route
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Route

from sseqbridge import StatusError, UpstreamError, UsageError, arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, respond, send, silence
from tests.relay.serving import under_uvicorn, under_werkzeug, under_wsgiref
from tests.support import until

DONE = send("[DONE]")

pytestmark = [pytest.mark.usefixtures("urls"), pytest.mark.slow]


@pytest.fixture
def urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__):
        yield


class Case:
    """The stream of the views, and the calls of their functions. Set by each test."""

    def __init__(self) -> None:
        self.url = ""
        self.options: dict[str, Any] = {}
        self.calls: list[Any] = []
        self.ends: list[RelayEnd] = []

    def opens(self) -> Any:
        self.calls.append(threading.current_thread())
        return request_sse(self.url)

    async def aopens(self) -> Any:
        self.calls.append(threading.current_thread())
        return await arequest_sse(self.url)

    def keywords(self) -> dict[str, Any]:
        return {"headers": {"X-Mine": "1"}, "on_end": self.ends.append, **self.options}


case = Case()


@pytest.fixture(autouse=True)
def fresh() -> None:
    case.__init__()  # type: ignore[misc]


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/function")
    def function() -> flask.Response:
        response = relay.flask.stream_response(case.opens, **case.keywords())
        response.set_cookie("a", "b")
        return response

    @app.get("/direct")
    def direct() -> flask.Response:
        return relay.flask.stream_response(request_sse(case.url), **case.keywords())

    @app.errorhandler(LookupError)
    def handle(error: LookupError) -> tuple[str, int]:
        return "handled", 418

    return app


def with_cookie(response: Any) -> Any:
    response.set_cookie("a", "b")
    return response


def django_function(request: Any) -> Any:
    return with_cookie(relay.django.stream_response(request, case.opens, **case.keywords()))


async def django_afunction(request: Any) -> Any:
    return with_cookie(relay.django.stream_response(request, case.aopens, **case.keywords()))


def django_direct(request: Any) -> Any:
    return relay.django.stream_response(request, request_sse(case.url), **case.keywords())


async def django_adirect(request: Any) -> Any:
    return relay.django.stream_response(request, await arequest_sse(case.url), **case.keywords())


urlpatterns = [
    route("function", django_function),
    route("afunction", django_afunction),
    route("direct", django_direct),
    route("adirect", django_adirect),
]


def starlette_app() -> Starlette:
    def function(request: Any) -> Any:
        return with_cookie(relay.starlette.stream_response(case.opens, **case.keywords()))

    async def afunction(request: Any) -> Any:
        return with_cookie(relay.starlette.stream_response(case.aopens, **case.keywords()))

    def direct(request: Any) -> Any:
        return relay.starlette.stream_response(request_sse(case.url), **case.keywords())

    async def adirect(request: Any) -> Any:
        return relay.starlette.stream_response(await arequest_sse(case.url), **case.keywords())

    views = {"function": function, "afunction": afunction, "direct": direct, "adirect": adirect}
    return Starlette(routes=[Route(f"/{name}", view) for name, view in views.items()])


class Place(NamedTuple):
    server: str
    view: str

    def __str__(self) -> str:
        return f"{self.server} {self.view}"


SERVERS: dict[str, Callable[[], Any]] = {
    "flask": lambda: under_werkzeug(flask_app()),
    "django-wsgi": lambda: under_werkzeug(WSGIHandler()),
    "django-asgi": lambda: under_uvicorn(ASGIHandler()),
    "starlette": lambda: under_uvicorn(starlette_app()),
}
FUNCTIONS = [
    Place("flask", "function"),
    Place("django-wsgi", "function"),
    *(Place(server, view) for server in ("django-asgi", "starlette") for view in ("function", "afunction")),
]
DIRECT = [Place(place.server, place.view.replace("function", "direct")) for place in FUNCTIONS]


def at(places: list[Place]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", places, ids=str)


@pytest.fixture
def view(place: Place) -> Iterator[str]:
    with SERVERS[place.server]() as url:
        yield f"{url}/{place.view}"


def serve(*steps: Any) -> SSEServer:
    server = SSEServer(steps)
    server.start()
    case.url = server.url
    return server


@pytest.fixture
def served() -> Iterator[Callable[..., SSEServer]]:
    servers: list[SSEServer] = []

    def start(*steps: Any) -> SSEServer:
        servers.append(serve(*steps))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Served = Callable[..., SSEServer]


@pytest.mark.parametrize("early", [False, True])
@at(FUNCTIONS)
def test_function_is_relayed(view: str, served: Served, early: bool) -> None:
    case.options = {"early": early}
    served(send(1), DONE)
    response = httpx.get(view)
    assert (response.status_code, response.text.replace(":\n", "")) == (200, "data: 1\n\ndata: [DONE]\n\n")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (response.headers["x-mine"], response.cookies["a"]) == ("1", "b")
    assert len(case.calls) == 1
    assert case.ends == [RelayEnd("done", None, "")]


@pytest.mark.parametrize("early", [False, True])
@at(FUNCTIONS)
def test_head_request_never_opens_the_upstream(view: str, served: Served, early: bool) -> None:
    case.options = {"early": early}
    server = served(send(1), DONE)
    response = httpx.head(view)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (case.calls, case.ends, server.requests) == ([], [], [])


@at(DIRECT)
def test_on_end_is_not_called_for_a_head_request(view: str, served: Served) -> None:
    server = served(send(1), silence())
    assert httpx.head(view).status_code == 200
    server.requests[0].wait_aborted()
    server = served(respond(401))
    assert httpx.head(view).status_code == 502
    assert case.ends == []


@at(FUNCTIONS + DIRECT)
def test_refusal_has_its_status_and_the_views_cookies(view: str, served: Served) -> None:
    served(respond(429, headers={"Retry-After": "7"}), b"busy")
    response = httpx.get(view)
    assert (response.status_code, response.json()["error"]["status"]) == (429, 429)
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-mine"] == "1"
    assert "content-encoding" not in response.headers
    if view.endswith("function"):
        assert response.cookies["a"] == "b"
    until(lambda: case.ends)
    [end] = case.ends
    assert (end.outcome, end.last_event_id) == ("error", "")
    assert isinstance(end.error, StatusError)


@at(FUNCTIONS)
def test_refusal_of_a_function_may_be_answered_by_a_function(view: str, served: Served) -> None:
    case.options = {"refusal": lambda error: (409, {"said": error.body.decode()})}
    served(respond(400, content_type="text/plain"), b"no")
    response = httpx.get(view)
    assert (response.status_code, response.json()) == (409, {"said": "no"})


@at(FUNCTIONS)
def test_early_refusal_is_an_error_event(view: str, served: Served) -> None:
    case.options = {"early": True}
    served(respond(401), b"no")
    response = httpx.get(view)
    assert response.status_code == 200
    assert "event: error\n" in response.text
    [end] = case.ends
    assert isinstance(end.error, StatusError)


@at(FUNCTIONS + DIRECT)
def test_204_remains(view: str, served: Served) -> None:
    served(respond(204))
    response = httpx.get(view)
    assert (response.status_code, response.content) == (204, b"")
    until(lambda: case.ends)
    assert case.ends == [RelayEnd("eof", None, "")]


@at(FUNCTIONS + DIRECT)
def test_provider_error_is_forwarded_with_the_outcome_error(view: str, served: Served) -> None:
    served(send({"error": {"message": "out of tokens"}}))
    assert 'data: {"error": {"message": "out of tokens"}}\n\n' in httpx.get(view).text
    [end] = case.ends
    assert end.outcome == "error"
    assert isinstance(end.error, UpstreamError)


@at(FUNCTIONS + DIRECT)
def test_on_end_is_called_when_the_client_leaves(view: str, served: Served) -> None:
    case.options = {"heartbeat": 0.05}
    server = served(send(1, id="7"), silence())
    with httpx.stream("GET", view) as response:
        for text in response.iter_text():
            if "data: 1" in text:
                break
    server.requests[0].wait_aborted()
    until(lambda: case.ends)
    assert case.ends == [RelayEnd("disconnected", None, "7")]


def leave_before_the_headers(view: str, server: SSEServer) -> None:
    """Send a request, and close the connection once the upstream has it."""
    url = httpx.URL(view)
    with socket.create_connection(("127.0.0.1", url.port or 0)) as client:
        client.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % url.raw_path)
        server.wait_for_request()


@pytest.mark.parametrize("early", [False, True])
@at(FUNCTIONS)
def test_client_that_leaves_before_the_headers_aborts_the_upstream(
    view: str, served: Served, early: bool, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    case.options = {"early": early}
    if place.server in ("flask", "django-wsgi"):
        case.options |= {"probe": 0.05, "heartbeat": 0.05}
    server = served(silence())
    leave_before_the_headers(view, server)
    server.requests[0].wait_aborted()
    until(lambda: case.ends)
    assert case.ends == [RelayEnd("disconnected", None, "")]
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


def fail() -> Any:
    raise LookupError("no such chat")


def test_error_of_a_function_reaches_the_error_handlers_of_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "opens", fail)
    response = flask_app().test_client().get("/function")
    assert (response.status_code, response.text) == (418, "handled")
    [end] = case.ends
    assert isinstance(end.error, LookupError)


def test_error_of_a_function_without_handler_is_500_in_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(case, "opens", fails)
    assert flask_app().test_client().get("/function").status_code == 500


@pytest.mark.leaves("thread")  # asgiref's
@pytest.mark.parametrize("is_async", [False, True])
def test_error_of_a_function_is_raised_to_django(monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    async def afail() -> Any:
        fail()

    monkeypatch.setattr(case, "opens", fail)
    monkeypatch.setattr(case, "aopens", afail)
    if is_async:
        for view in ("/function", "/afunction"):
            with pytest.raises(LookupError):
                asyncio.run(AsyncClient().get(view))
            assert [end.outcome for end in case.ends] == ["error"]
            case.ends.clear()
    else:
        with pytest.raises(LookupError):
            Client().get("/function")


def test_error_of_a_function_reaches_the_handlers_of_starlette(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(request: Any, error: Exception) -> Any:
        from starlette.responses import PlainTextResponse

        return PlainTextResponse("handled", 418)

    monkeypatch.setattr(case, "opens", fail)
    app = starlette_app()
    app.add_exception_handler(LookupError, handle)
    with under_uvicorn(app) as url:
        response = httpx.get(f"{url}/function")
    assert (response.status_code, response.text) == (418, "handled")


def test_failing_function_for_refusals_reaches_flasks_error_handlers(served: Served) -> None:
    def refuse(error: StatusError) -> Any:
        raise LookupError

    case.options = {"refusal": refuse}
    served(respond(401))
    for view in ("/function", "/direct"):
        assert flask_app().test_client().get(view).status_code == 418
    assert [end.outcome for end in case.ends] == ["error", "error"]


def test_flask_response_is_opened_outside_of_an_application() -> None:
    def start_response(*arguments: Any) -> Any:
        raise AssertionError("there is no response")

    for function, error in ((fail, LookupError), (lambda: 5, UsageError)):
        response = relay.flask.stream_response(function)
        with pytest.raises(error):
            response({"REQUEST_METHOD": "GET"}, start_response)


def test_function_runs_in_the_context_of_the_flask_request() -> None:
    app = flask.Flask(__name__)
    on_ends: list[bool] = []

    def on_end(end: RelayEnd) -> None:
        on_ends.append(flask.has_app_context())

    @app.get("/<name>")
    def view(name: str) -> flask.Response:
        return relay.flask.stream_response(lambda: [flask.request.path], early=name == "early", on_end=on_end)

    for path in ("/early", "/late"):
        assert app.test_client().get(path).text.endswith(f"data: {path}\n\n")
    assert on_ends == [True, True]


def test_app_context_of_on_end_is_torn_down() -> None:
    app = flask.Flask(__name__)
    log: list[str] = []
    app.teardown_appcontext(lambda error: log.append("teardown"))

    @app.get("/")
    def view() -> flask.Response:
        return relay.flask.stream_response(["a"], on_end=lambda end: log.append("end"))

    with under_wsgiref(app) as url:
        assert httpx.get(url).status_code == 200
    assert log == ["teardown", "end", "teardown"]


def test_function_that_leaves_a_middleware_of_starlette_is_relayed(served: Served) -> None:
    served(send(1), DONE)
    app = starlette_app()
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
    with under_uvicorn(app) as url:
        assert httpx.get(f"{url}/function").text.endswith("data: [DONE]\n\n")


def test_coroutine_function_on_end_is_awaited_by_asynchronous_servers(served: Served) -> None:
    async def on_end(end: RelayEnd) -> None:
        await asyncio.sleep(0)
        case.ends.append(end)

    for place in FUNCTIONS + DIRECT:
        if place.server in ("django-asgi", "starlette"):
            for steps, outcome in (([send(1), DONE], "done"), ([respond(500)], "error")):
                case.ends.clear()
                case.options = {"on_end": on_end}
                served(*steps)
                with SERVERS[place.server]() as url:
                    httpx.get(f"{url}/{place.view}")
                    until(lambda: case.ends)
                assert [end.outcome for end in case.ends] == [outcome], place


def test_coroutine_function_on_end_is_awaited_when_the_client_leaves(served: Served) -> None:
    async def on_end(end: RelayEnd) -> None:
        await asyncio.sleep(0.01)
        case.ends.append(end)

    for place in FUNCTIONS + DIRECT:
        if place.server in ("django-asgi", "starlette"):
            case.ends.clear()
            case.options = {"on_end": on_end}
            server = served(send(1), silence())
            with SERVERS[place.server]() as url:
                with httpx.stream("GET", f"{url}/{place.view}") as response:
                    next(response.iter_text())
                server.requests[0].wait_aborted()
                until(lambda: case.ends)
            assert [end.outcome for end in case.ends] == ["disconnected"], place


def test_views_can_be_partials() -> None:
    """The function's own arguments are bound by functools.partial."""
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> flask.Response:
        return relay.flask.stream_response(functools.partial(list, "ab"))

    assert app.test_client().get("/").text.endswith("data: a\n\ndata: b\n\n")
