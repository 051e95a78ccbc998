"""Views that save an answer: with django.test.TestCase, with Flask-SQLAlchemy, and under real servers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import flask
import httpx
import pytest
from django.db import connection
from django.test import TestCase, override_settings
from django.urls import path as route
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.pool import StaticPool

from sseqbridge import relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, cut, respond, send, silence
from tests.relay import serving, views_of_answers
from tests.servers import Servers, reading
from tests.support import until

# Slow, as the imports of Django's tests and SQLAlchemy.
pytestmark = pytest.mark.slow

ANSWER = [send({"text": "Hello, "}), send({"text": "world"}), send("[DONE]")]
CUT = [send({"text": "Hello, "}), cut()]
REFUSED = [respond(401), b"no"]

# The steps of an upstream, and what is saved.
CASES = [
    (ANSWER, ["Hello, world", "done", "NoneType"]),
    (CUT, ["Hello, ", "error", "TruncatedStreamError"]),
    (REFUSED, ["", "error", "StatusError"]),
]

urlpatterns = [route("save", views_of_answers.save), route("asave", views_of_answers.asave)]


# Django's TestCase: all in one transaction, which is rolled back.


@pytest.mark.leaves("descriptor")  # The journal of the transaction that surrounds all tests of the class.
@override_settings(ROOT_URLCONF=__name__)
class SavedAnswers(TestCase):  # type: ignore[misc]
    @classmethod
    def setUpClass(cls) -> None:
        views_of_answers.create_table()
        # Of tests whose views no transaction surrounds.
        views_of_answers.Answer.objects.all().delete()
        super().setUpClass()

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        connection.close()

    def setUp(self) -> None:
        assert self.saved() == []

    def saved(self) -> list[list[str]]:
        return [list(answer) for answer in views_of_answers.saved()]

    def test_answer_is_saved_before_the_client_sees_its_end(self) -> None:
        for steps, expected in CASES:
            with SSEServer(steps) as server:
                response = self.client.get("/save", {"upstream": server.url})
                if response.streaming:
                    assert b"Hello, " in response.getvalue()
            assert self.saved()[-1] == expected
        assert len(self.saved()) == len(CASES)

    def test_answer_is_saved_when_the_client_leaves(self) -> None:
        with SSEServer([send({"text": "Hello, "}), silence()]) as server:
            response = self.client.get("/save", {"upstream": server.url})
            while b"Hello" not in next(response.streaming_content):
                pass
            # The test client's generator, which closes the response and keeps the connection of the test.
            response._iterator.close()
        assert self.saved() == [["Hello, ", "disconnected", "NoneType"]]

    async def test_answer_is_saved_by_asynchronous_views(self) -> None:
        for steps, expected in CASES:
            for view in ("/save", "/asave"):
                with SSEServer(steps) as server:
                    response = await self.async_client.get(view, {"upstream": server.url})
                    if response.streaming:
                        assert b"Hello, " in b"".join([piece async for piece in response.streaming_content])
                newest = await views_of_answers.Answer.objects.order_by("-id").afirst()
                assert [newest.text, newest.outcome, newest.error] == expected

    async def test_answer_is_saved_when_an_async_views_client_leaves(self) -> None:
        for view in ("/save", "/asave"):
            with SSEServer([send({"text": "Hello, "}), silence()]) as server:
                response = await self.async_client.get(view, {"upstream": server.url})
                pieces = aiter(response)
                while b"Hello" not in await anext(pieces):
                    pass
                await pieces.aclose()
            newest = await views_of_answers.Answer.objects.order_by("-id").afirst()
            assert [newest.text, newest.outcome] == ["Hello, ", "disconnected"]


# Flask with SQLAlchemy.


class Answers:
    """An application that saves answers by db.session, in a database in memory."""

    def __init__(self) -> None:
        self.app = flask.Flask(__name__)
        self.app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        self.app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
            "poolclass": StaticPool,
            "connect_args": {"check_same_thread": False},
        }
        self.db: Any = SQLAlchemy(self.app)
        db = self.db

        class Answer(db.Model):  # type: ignore[misc,name-defined]
            id = db.Column(db.Integer, primary_key=True)
            text = db.Column(db.Text)
            outcome = db.Column(db.Text)
            error = db.Column(db.Text)

        self.model = Answer
        self.app.add_url_rule("/", view_func=self.view)
        with self.app.app_context():
            db.create_all()

    def view(self) -> flask.Response:
        url = flask.request.args["upstream"]
        parts: list[str] = []

        def on_end(end: RelayEnd) -> None:
            row = self.model(text="".join(parts), outcome=end.outcome, error=type(end.error).__name__)
            self.db.session.add(row)
            self.db.session.commit()

        def on_item(item: dict[str, str]) -> None:
            parts.append(item["text"])

        return relay.flask.stream_response(lambda: request_sse(url), on_item=on_item, on_end=on_end, probe=0.05)

    def saved(self) -> list[list[str]]:
        with self.app.app_context():
            rows = self.db.session.execute(self.db.select(self.model).order_by(self.model.id)).scalars()
            return [[row.text, row.outcome, row.error] for row in rows]


@pytest.fixture
def answers() -> Iterator[Answers]:
    made = Answers()
    yield made
    with made.app.app_context():
        made.db.engine.dispose()


def test_answer_is_saved_by_sqlalchemy(answers: Answers) -> None:
    with serving.under_werkzeug(answers.app) as url:
        for steps, _ in CASES:
            with SSEServer(steps) as server:
                httpx.get(url, params={"upstream": server.url})
    # The client sees the end of a response after it was saved.
    assert answers.saved() == [expected for _, expected in CASES]


def test_sessions_of_sqlalchemy_are_removed(answers: Answers) -> None:
    with SSEServer(ANSWER) as server:
        for _ in range(3):
            assert "world" in answers.app.test_client().get("/", query_string={"upstream": server.url}).text
    assert answers.db.session.registry.registry == {}


# Real servers.


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


PLACES = [
    ("django gunicorn", "/save"),
    ("runserver", "/save"),
    ("django uvicorn", "/save"),
    ("django uvicorn", "/asave"),
    ("django daphne", "/asave"),
]


@pytest.fixture(params=PLACES, ids=" ".join)
def place(servers: Servers, request: pytest.FixtureRequest) -> tuple[str, Callable[[], list[list[str]]]]:
    """The address of a view, and a function that returns what it has saved."""
    name, view = request.param
    url = servers[name].url

    def saved() -> list[list[str]]:
        with urllib.request.urlopen(f"{url}/answers", timeout=30) as response:
            return json.load(response)  # type: ignore[no-any-return]

    return f"{url}{view}", saved


@pytest.mark.server
@pytest.mark.parametrize(("steps", "expected"), CASES, ids=["answer", "cut", "refused"])
def test_answer_is_saved_under_a_server(place: Any, steps: Any, expected: list[str]) -> None:
    view, saved = place
    before = len(saved())
    with SSEServer(steps) as upstream, reading(f"{view}?{urlencode({'upstream': upstream.url})}") as reader:
        reader.body()
    until(lambda: saved()[before:] == [expected])


@pytest.mark.server
def test_partial_answer_is_saved_under_a_server(place: Any) -> None:
    view, saved = place
    before = len(saved())
    options = {"heartbeat": 0.1, "probe": 0.1}
    with (
        SSEServer([send({"text": "Hello, "}), silence()]) as upstream,
        reading(f"{view}?{urlencode({'upstream': upstream.url, **options})}") as reader,
    ):
        assert reader.event().json() == {"text": "Hello, "}
        reader.leave()
        upstream.requests[0].wait_aborted(30)
        until(lambda: saved()[before:] == [["Hello, ", "disconnected", "NoneType"]])
