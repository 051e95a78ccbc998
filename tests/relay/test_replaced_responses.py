"""Responses that a framework drops, since code after the view raises or replaces them.

The upstream is aborted, and `on_end` is called once: in the request's thread, never on an event loop's, and never
within a garbage collection.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flask
import httpx
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path as route
from django.utils.decorators import sync_and_async_middleware
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from sseqbridge import arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, send, silence
from tests.relay.serving import under_uvicorn, under_werkzeug, under_wsgiref
from tests.support import until

pytestmark = [pytest.mark.usefixtures("fresh"), pytest.mark.slow]


class Case:
    """The stream of the views, the fate of their responses, and the calls of on_end. Set by each test."""

    def __init__(self) -> None:
        self.url = ""
        self.after_view = ""
        self.opens_itself = False
        self.kept: list[Any] = []
        self.ends: list[tuple[RelayEnd, Any, bool]] = []
        self.view_thread: Any = None
        self.has_app = False
        # The threads in which a garbage collection is under way.
        self.collecting: set[Any] = set()

    def on_collection(self, phase: str, info: Any) -> None:
        (self.collecting.add if phase == "start" else self.collecting.discard)(threading.current_thread())

    def on_end(self, end: RelayEnd) -> None:
        thread = threading.current_thread()
        self.ends.append((end, thread, thread in self.collecting))
        self.has_app = flask.has_app_context()
        assert asyncio._get_running_loop() is None

    def stream(self) -> Any:
        self.view_thread = threading.current_thread()
        return request_sse(self.url) if self.opens_itself else lambda: request_sse(self.url)

    def change(self, response: Any, plain: Callable[[str], Any]) -> Any:
        """Do to a response what the test says."""
        if self.after_view == "raise":
            raise LookupError("a middleware failed")
        if self.after_view == "raise and keep":
            self.kept.append(response)
            raise LookupError("a middleware failed")
        if self.after_view == "replace and keep":
            self.kept.append(response)
        return plain("replaced")


case = Case()


@pytest.fixture
def fresh() -> Iterator[None]:
    vars(case).clear()
    case.__init__()  # type: ignore[misc]
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.changes"], DEBUG_PROPAGATE_EXCEPTIONS=False):
        gc.callbacks.append(case.on_collection)
        yield
        gc.callbacks.remove(case.on_collection)
    case.kept.clear()


# Django.


def django_view(request: Any) -> Any:
    return relay.django.stream_response(request, case.stream(), on_end=case.on_end)


async def django_aview(request: Any) -> Any:
    async def opens() -> Any:
        return await arequest_sse(case.url)

    opened = await opens() if case.opens_itself else opens
    return relay.django.stream_response(request, opened, on_end=case.on_end)


@sync_and_async_middleware  # type: ignore[untyped-decorator]
def changes(get_response: Any) -> Any:
    if iscoroutinefunction(get_response):

        async def amiddleware(request: Any) -> Any:
            return case.change(await get_response(request), HttpResponse)

        return amiddleware

    def middleware(request: Any) -> Any:
        return case.change(get_response(request), HttpResponse)

    return middleware


urlpatterns = [route("", django_view), route("a", django_aview)]


# Flask.


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> Any:
        return relay.flask.stream_response(case.stream(), on_end=case.on_end)

    @app.after_request
    def change(response: Any) -> Any:
        return case.change(response, flask.Response) if isinstance(response.response, relay.Frames) else response

    return app


WAYS = ["raise", "raise and keep", "replace"]


@pytest.fixture(params=WAYS)
def after_view(fresh: None, request: pytest.FixtureRequest) -> str:
    case.after_view = request.param
    return case.after_view


@pytest.fixture(params=[False, True], ids=["function", "stream"])
def opens_itself(fresh: None, request: pytest.FixtureRequest) -> bool:
    case.opens_itself = request.param
    return case.opens_itself


def assert_released(server: SSEServer, *, in_thread_of_view: bool) -> None:
    server.requests[0].wait_aborted(30)
    until(lambda: case.ends)
    [(end, thread, is_in_collection)] = case.ends
    assert (end.outcome, end.error, end.last_event_id) == ("disconnected", None, "")
    assert not is_in_collection
    assert (thread is case.view_thread) is in_thread_of_view


@pytest.mark.usefixtures("after_view", "opens_itself")
@pytest.mark.parametrize("make", [flask_app, WSGIHandler])
@pytest.mark.parametrize("serve", [under_werkzeug, under_wsgiref])
def test_dropped_response_of_a_wsgi_server(make: Any, serve: Any) -> None:
    gc.disable()
    try:
        with SSEServer([send(1), silence()]) as server, serve(make()) as url:
            case.url = server.url
            assert httpx.get(url).status_code == (200 if case.after_view == "replace" else 500)
            assert_released(server, in_thread_of_view=True)
    finally:
        gc.enable()
    assert case.has_app is (make is flask_app)


@pytest.mark.usefixtures("after_view", "opens_itself")
@pytest.mark.parametrize("path", ["/", "/a"])
def test_dropped_response_of_django_under_asgi(path: str) -> None:
    gc.disable()
    try:
        with SSEServer([send(1), silence()]) as server, under_uvicorn(ASGIHandler()) as url:
            case.url = server.url
            assert httpx.get(url + path).status_code == (200 if case.after_view == "replace" else 500)
            server.requests[0].wait_aborted(30)
            until(lambda: case.ends)
    finally:
        gc.enable()
    [(end, _, is_in_collection)] = case.ends
    assert end.outcome == "disconnected"
    assert not is_in_collection


@pytest.mark.usefixtures("after_view")
def test_dropped_response_of_the_test_clients() -> None:
    async def get() -> None:
        client = AsyncClient(raise_request_exception=False)
        await client.get("/a")

    with SSEServer([send(1), silence()]) as server:
        case.url = server.url
        for number, client in enumerate(
            (lambda: Client(raise_request_exception=False).get("/"), async_to_sync(get), flask_client_get), 1
        ):
            client()
            server.requests[number - 1].wait_aborted(30)
            until(lambda number=number: len(case.ends) == number)  # type: ignore[misc]


def flask_client_get() -> None:
    app = flask_app()
    app.testing = True
    try:
        app.test_client().get("/")
    except LookupError:
        assert case.after_view != "replace"


@pytest.mark.parametrize("make", [flask_app, WSGIHandler])
def test_dropped_response_to_head_calls_no_on_end(make: Any) -> None:
    case.after_view = "raise"
    with SSEServer([send(1), silence()]) as server, under_werkzeug(make()) as url:
        case.url = server.url
        assert httpx.head(url).status_code == 500
        assert not server.requests
        case.opens_itself = True
        assert httpx.head(url).status_code == 500
        server.requests[0].wait_aborted(30)
    assert case.ends == []


def test_frames_in_a_response_of_the_applications_own_are_sent() -> None:
    """A decorator builds a response around the frames, which Flask has not seen."""
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> Any:
        response = relay.flask.stream_response(case.stream(), on_end=case.on_end)
        pieces: Any = (piece.upper() for piece in response.response)
        return flask.Response(pieces, content_type="text/event-stream")

    with SSEServer([send("a"), send("[DONE]")]) as server, under_werkzeug(app) as url:
        case.url = server.url
        assert "DATA: A" in httpx.get(url).text
        until(lambda: case.ends)
    [(end, _, _)] = case.ends
    assert end.outcome == "done"


def test_frames_in_a_response_of_a_middlewares_own_are_sent() -> None:
    def wrap(response: Any, plain: Any) -> Any:
        return StreamingHttpResponse(piece.upper() for piece in response.streaming_content)

    case.change = wrap  # type: ignore[method-assign]
    with SSEServer([send("a"), send("[DONE]")]) as server, under_werkzeug(WSGIHandler()) as url:
        case.url = server.url
        assert "DATA: A" in httpx.get(url).text
        until(lambda: case.ends)
    [(end, _, _)] = case.ends
    assert end.outcome == "done"


def test_relay_that_answers_an_error_is_sent() -> None:
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> Any:
        raise LookupError

    @app.errorhandler(500)
    def handle(error: Exception) -> Any:
        return relay.flask.stream_response(case.stream(), on_end=case.on_end)

    with SSEServer([send("a"), send("[DONE]")]) as server, under_werkzeug(app) as url:
        case.url = server.url
        assert "data: a" in httpx.get(url).text
        until(lambda: case.ends)
    [(end, _, _)] = case.ends
    assert end.outcome == "done"


# Starlette: a response is sent in the endpoint's task.


class Changes(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return case.change(await call_next(request), PlainTextResponse)


@pytest.mark.usefixtures("after_view", "opens_itself")
def test_dropped_response_of_starlette() -> None:
    async def view(request: Any) -> Any:
        async def opens() -> Any:
            return await arequest_sse(case.url)

        opened = await opens() if case.opens_itself else opens
        return relay.starlette.stream_response(opened, on_end=case.on_end)

    app = Starlette(routes=[Route("/", view)])
    app.add_middleware(Changes)
    with SSEServer([send(1), silence()]) as server, under_uvicorn(app) as url:
        case.url = server.url
        assert httpx.get(url).status_code == (200 if case.after_view == "replace" else 500)
        server.requests[0].wait_aborted(30)
        until(lambda: case.ends)
    [(end, _, _)] = case.ends
    assert end.outcome == "disconnected"


# Frames that nothing closes.


class Cycle:
    """Keeps an object until a garbage collection."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept
        self.cycle = self


@pytest.mark.filterwarnings("ignore:.*was dropped while it was open")
def test_garbage_collected_frames_call_on_end_in_their_own_thread() -> None:
    with SSEServer([send(1), silence()]) as server:
        case.url = server.url
        frames = relay.frames(case.stream(), on_end=case.on_end)
        assert next(frames)
        Cycle(frames)
        del frames
        gc.collect()
        assert_released(server, in_thread_of_view=False)


async def collect_on_the_loop(on_end: Any) -> None:
    frames = relay.aframes(["a"], on_end=on_end)
    assert await anext(frames)
    Cycle(frames)
    del frames
    gc.collect()


def test_garbage_collected_async_frames_call_on_end_in_a_thread() -> None:
    async def main() -> None:
        await collect_on_the_loop(case.on_end)
        while not case.ends:
            await asyncio.sleep(0)

    asyncio.run(main())
    [(end, _, is_in_collection)] = case.ends
    assert end.outcome == "disconnected"
    assert not is_in_collection


def test_asynchronous_frames_that_outlive_their_loop_call_on_end() -> None:
    async def on_end(end: RelayEnd) -> None:
        ends.append(end)

    async def main() -> Any:
        frames = relay.aframes(["a"], on_end=on_end)
        assert await anext(frames)
        return frames

    ends: list[RelayEnd] = []
    frames = asyncio.run(main())
    del frames
    until(lambda: ends)
    assert [end.outcome for end in ends] == ["disconnected"]


def test_on_end_of_frames_whose_loop_ends_is_called() -> None:
    """The loop ends before it runs the call that the finalizer asked it for."""

    async def main() -> None:
        frames = relay.aframes(["a"], on_end=case.on_end)
        assert await anext(frames)
        loop.call_soon(loop.stop)
        loop.call_soon(frames_of.clear)
        frames_of.append(frames)

    frames_of: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    frames_of.clear()
    loop.close()
    until(lambda: case.ends)
    assert [end.outcome for end, _, _ in case.ends] == ["disconnected"]


def test_frames_that_were_never_read_call_no_on_end() -> None:
    relay.frames(["a"], on_end=case.on_end)
    assert case.ends == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()")
def test_dropped_frames_call_no_on_end_in_a_forked_child() -> None:
    frames = relay.frames(["a"], on_end=case.on_end)
    assert next(frames)
    child = os.fork()
    if not child:
        try:
            del frames
            os._exit(len(case.ends) + (threading.active_count() > 1))
        finally:
            os._exit(9)
    assert os.waitpid(child, 0)[1] == 0
    frames.close()
    assert len(case.ends) == 1


def test_on_end_that_cannot_be_called_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(sys.modules["sseqbridge._runtime.threads"], "_start_new_thread", fails)
    frames = relay.frames(["a"], on_end=case.on_end)
    assert next(frames)
    del frames
    assert "`on_end` was not called with RelayEnd(outcome='disconnected'" in caplog.text
