"""Responses that a relay does not forward: what reaches the client of them."""

from __future__ import annotations

import asyncio
from typing import Any

import flask
import pytest

from sseqbridge import StatusError, UpstreamError, arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, respond, silence
from tests.relay.support import Relay, error_of

SECRET = b'{"error": {"message": "the key sk-123 is over its quota"}}'
EVENTS = {"Content-Type": "text/event-stream"}


def answered(steps: list[Any], **options: Any) -> Any:
    """Return the response of a view that relays an upstream with these steps."""
    with SSEServer(steps) as server:
        app = flask.Flask(__name__)
        app.add_url_rule(
            "/", view_func=lambda: relay.flask.stream_response(lambda: request_sse(server.url), **options)
        )
        return app.test_client().get("/", buffered=True)


# The body of a 200 that is no event stream.


def test_error_in_place_of_events_is_reported_without_its_text(relayed: Relay) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([respond(200, EVENTS), SECRET]) as server:
        read = relayed(request_sse(server.url), on_end=ends.append).rest()
    assert error_of(read) == {"type": "UpstreamError", "message": "the upstream reported an error"}
    [end] = ends
    assert isinstance(end.error, UpstreamError)
    assert "sk-123" in str(end.error)


def test_error_in_place_of_events_passes_if_refusals_do() -> None:
    text = answered([respond(200, EVENTS), SECRET], refusal="pass").text
    assert '"message":"the key sk-123 is over its quota"' in text


@pytest.mark.parametrize("content_type", ["application/json", "text/html", "text/plain", ""])
@pytest.mark.parametrize("early", [False, True])
def test_other_type_is_refused_without_its_text(content_type: str, early: bool) -> None:
    with SSEServer([respond(200, {"Content-Type": content_type}), SECRET]) as server:
        app = flask.Flask(__name__)
        relay.flask.register_error_handlers(app)
        app.add_url_rule(
            "/", view_func=lambda: relay.flask.stream_response(lambda: request_sse(server.url), early=early)
        )
        response = app.test_client().get("/", buffered=True)
    assert response.status_code == (200 if early else 502)
    assert "sk-123" not in response.text
    assert not early or error_of(response.data)["message"] == "the upstream's response is no event stream"


# A 205 has no body.


@pytest.mark.parametrize("option", ["error", "pass", lambda error: (error.status, {"status": error.status})])
def test_205_of_the_type_of_events_is_a_refusal(option: Any) -> None:
    response = answered([respond(205, EVENTS), b"data: 1\n\n", silence()], refusal=option)
    assert response.status_code == 502
    assert "data: 1" not in response.text


def test_205_raises_status_error_in_frames() -> None:
    with SSEServer([respond(205, EVENTS), silence()]) as server:
        with pytest.raises(StatusError, match="205"):
            relay.frames(request_sse(server.url))
        frames = relay.frames(lambda: request_sse(server.url))
        with pytest.raises(StatusError, match="205"):
            frames.open()
        assert error_of(b"".join(relay.frames(lambda: request_sse(server.url))))["type"] == "StatusError"


def test_205_raises_status_error_in_asynchronous_frames() -> None:
    async def main() -> None:
        with pytest.raises(StatusError, match="205"):
            await relay.aframes(lambda: arequest_sse(server.url)).open()
        pieces = [piece async for piece in relay.aframes(await arequest_sse(server.url), heartbeat=None)]
        assert error_of(b"".join(pieces))["type"] == "StatusError"

    with SSEServer([respond(205, EVENTS), silence()]) as server:
        asyncio.run(main())


# The character set of a refusal that is passed on.


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/plain; charset=iso-8859-1", "text/plain; charset=iso-8859-1"),
        ('text/plain; a=b; CHARSET="latin1"', "text/plain; charset=latin1"),
        ("text/html; charset=iso-8859-1", "text/plain; charset=iso-8859-1"),
        ("text/html", "text/plain; charset=utf-8"),
        ("text/html; charset=<script>", "text/plain; charset=utf-8"),
        ("text/plain", "text/plain"),
        ("application/json; charset=utf-8", "application/json"),
        ("application/json; charset=iso-8859-1", "application/json; charset=iso-8859-1"),
        ("application/problem+json", "application/problem+json"),
    ],
)
def test_refusal_that_is_passed_on_keeps_its_character_set(content_type: str, expected: str) -> None:
    body = "é".encode("latin-1")
    response = answered([respond(400, {"Content-Type": content_type}), body], refusal="pass")
    assert (response.status_code, response.headers["Content-Type"], response.data) == (400, expected, body)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
