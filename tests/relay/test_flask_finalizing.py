"""Flask: functions of after_request see the response as it is sent, since the upstream is opened before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
import pytest

from sseqbridge import ConnectError, UsageError, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, respond, send

Made = Callable[..., "Application"]


class Application(flask.Flask):
    """A relay of a function at /, and the statuses that after_request and the client have seen."""

    def __init__(self, opens: Callable[[], Any], **options: Any) -> None:
        super().__init__(__name__)
        self.log: list[Any] = []
        self.opens = opens
        self.options = options
        self.add_url_rule("/", view_func=self.relayed)
        self.after_request(self.see)

    def relayed(self) -> Any:
        response = relay.flask.stream_response(self.logged, **self.options)
        self.log.append("view")
        response.headers["X-Mine"] = "1"
        return response, {"X-Other": "2"}

    def logged(self) -> Any:
        self.log.append("open")
        assert flask.request.path == "/"
        return self.opens()

    def see(self, response: flask.Response) -> flask.Response:
        self.log.append(response.status_code)
        return response

    def fetch(self, **options: Any) -> Any:
        return self.test_client().open("/", **options)


@pytest.mark.parametrize(("status", "expected"), [(200, 200), (401, 502), (429, 429), (204, 204)])
def test_after_request_sees_the_status_of_the_upstream(status: int, expected: int) -> None:
    steps = [send(1), send("[DONE]")] if status == 200 else [respond(status), b""]
    with SSEServer(steps) as server:
        app = Application(lambda: request_sse(server.url))
        response = app.fetch()
        assert (response.status_code, response.headers["X-Mine"], response.headers["X-Other"]) == (expected, "1", "2")
        response.get_data()
    assert app.log == ["view", "open", expected]


def test_exception_of_the_function_goes_to_the_error_handlers() -> None:
    def fails() -> Any:
        raise ConnectError("refused")

    app = Application(fails)
    relay.flask.register_error_handlers(app)
    assert app.fetch().status_code == 502
    assert app.log == ["view", "open", 502]


def test_exception_without_a_handler_is_a_server_error() -> None:
    def fails() -> Any:
        raise LookupError("a function failed")

    app = Application(fails)
    assert app.fetch().status_code == 500
    # Flask's own 500 passes the functions of after_request too.
    assert app.log == ["view", "open", 500]
    app.testing = True
    with pytest.raises(LookupError, match="a function failed"):
        app.fetch()


def test_result_that_cannot_be_relayed_is_an_application_error() -> None:
    app = Application(lambda: 5)
    app.testing = True
    with pytest.raises(UsageError, match="`stream` must be"):
        app.fetch()


@pytest.mark.parametrize("early", [False, True])
def test_head_and_early_open_nothing_before_the_response(early: bool) -> None:
    with SSEServer([respond(401), b"no"]) as server:
        app = Application(lambda: request_sse(server.url), early=early)
        assert app.fetch(method="HEAD").status_code == 200
        assert app.log == ["view", 200]
        if early:
            app.log.clear()
            assert b"event: error" in app.fetch().data
            assert app.log == ["view", 200, "open"]


def test_response_class_of_the_application_is_kept() -> None:
    class Own(flask.Response):
        pass

    with SSEServer([respond(401), b"no"]) as server:
        app = Application(lambda: request_sse(server.url))
        app.response_class = Own
        seen: list[type] = []
        app.after_request(lambda response: seen.append(type(response)) or response)  # type: ignore[func-returns-value]
        assert app.fetch().status_code == 502
        assert seen == [Own]
        assert app.fetch(method="HEAD").status_code == 200
        assert len(server.requests) == 1


def test_response_that_is_aborted_with_is_sent() -> None:
    """flask.abort() with a response: Flask sends another one around it."""
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> Any:
        flask.abort(relay.flask.stream_response(lambda: request_sse(server.url)))

    with SSEServer([send("a"), send("[DONE]")]) as server:
        # A slow upstream has the relay send a comment first.
        assert app.test_client().get("/").data.removeprefix(b":\n") == b"data: a\n\ndata: [DONE]\n\n"


def test_response_outside_of_a_request_is_opened_by_the_server() -> None:
    with SSEServer([respond(401), b"no"]) as server:
        response = relay.flask.stream_response(lambda: request_sse(server.url))
        environ = {"REQUEST_METHOD": "GET", "SERVER_NAME": "a", "SERVER_PORT": "1", "wsgi.url_scheme": "http"}
        statuses: list[str] = []
        body = response(environ, lambda status, headers: statuses.append(status))  # type: ignore[arg-type]
        assert b"upstream_error" in b"".join(body)
        body.close()  # type: ignore[attr-defined]
    assert statuses == ["502 BAD GATEWAY"]


def test_relay_may_be_made_without_an_application() -> None:
    ends: list[RelayEnd] = []
    response = relay.flask.stream_response(["a"], on_end=ends.append)
    assert response.get_data().endswith(b"data: a\n\n")
    response.close()
    assert ends == [RelayEnd("eof", None, "")]
