"""Every SDK's stream relayed by Flask and Django: a reader who leaves in silence aborts the upstream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import flask
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from django.urls import path

from sseqbridge import relay
from sseqbridge.testing import SSEServer, silence
from tests.relay.serving import under_werkzeug
from tests.sdk.clients import SDK, SDKS
from tests.servers import Reader

_OF_CLIENTS_AND_SERVERS = ("httpx", "httpcore", "werkzeug")

flask_app = flask.Flask(__name__)
# How the views open the stream, and the text of an item.
answer: dict[str, Callable[..., Any]] = {}


@flask_app.get("/")
def view() -> flask.Response:
    return relay.flask.stream_response(answer["open"], map=answer["text"])


urlpatterns = [
    path("", lambda request: relay.django.stream_response(request, answer["open"], map=answer["text"])),
]

APPLICATIONS: dict[str, Callable[[], Any]] = {"flask": lambda: flask_app, "django": WSGIHandler}


@pytest.mark.parametrize("framework", APPLICATIONS)
@pytest.mark.parametrize("sdk", SDKS, ids=str)
def test_reader_who_leaves_in_silence_aborts_the_upstream(
    sdk: SDK, framework: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        override_settings(ROOT_URLCONF=__name__),
        SSEServer([*sdk.begin(), silence()]) as upstream,
        sdk.client(upstream.url) as client,
        under_werkzeug(APPLICATIONS[framework](), joins_threads=True) as url,
    ):
        answer.update(open=partial(sdk.open, client), text=lambda item: sdk.text(item) or None)
        reader = Reader(f"{url}/")
        assert reader.event().data == "Hello"
        reader.leave()
        upstream.requests[0].wait_aborted()
    own = [record for record in caplog.records if not record.name.startswith(_OF_CLIENTS_AND_SERVERS)]
    assert [record.getMessage() for record in own if record.levelno > logging.DEBUG] == []
