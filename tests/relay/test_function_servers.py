"""Relays of functions on real web servers: the upstream is opened when the response starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
from urllib.parse import urlencode

import pytest

from sseqbridge import Comment
from sseqbridge.testing import SSEServer, respond, send, silence
from tests.servers import UWSGI, Server, Servers, reading

pytestmark = pytest.mark.server


class Place(NamedTuple):
    """A view on a server."""

    server: str
    view: str

    def __str__(self) -> str:
        return f"{self.server} {self.view}"


SOCKET = [
    Place("flask run", "/function"),
    Place("gunicorn sync", "/function"),
    Place("gunicorn gthread", "/function"),
    Place("gunicorn gevent", "/function"),
    Place("uwsgi", "/function"),
    Place("uwsgi threads", "/function"),
    Place("django gunicorn", "/function"),
    Place("django gunicorn", "/afunction"),
    Place("django gevent", "/function"),
]
# A disconnect is noticed by a write alone.
WRITE = [Place("runserver", "/function"), Place("runserver", "/afunction")]
ASGI = [
    Place(server, view)
    for server in ("django uvicorn", "django daphne", "starlette")
    for view in ("/function", "/afunction")
]
# Without threads of its own, uWSGI runs the one of `early` only while a request runs.
WITH_THREADS = [place for place in [*SOCKET, *WRITE, *ASGI] if place.server != "uwsgi"]

Address = Callable[..., str]


def at(places: list[Place]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", places, ids=str)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture
def address(servers: Servers, place: Place) -> Address:
    """A function that returns the view's address for an upstream, with further parameters."""
    if UWSGI is None and place.server.startswith("uwsgi"):
        pytest.skip("there is no uWSGI for this Python: install Debian's uwsgi-core and uwsgi-plugin-python3")
    return partial(_address, servers[place.server], place.view)


def _address(server: Server, view: str, upstream: SSEServer, **parameters: object) -> str:
    return f"{server.url}{view}?{urlencode({'upstream': upstream.url, **parameters})}"


@at([*SOCKET, *WRITE, *ASGI])
def test_upstream_is_forwarded(address: Address) -> None:
    with SSEServer([send({"n": 1}), send("[DONE]")]) as upstream, reading(address(upstream)) as reader:
        assert reader.status == 200
        assert [event.data for event in reader.events()] == ['{"n": 1}', "[DONE]"]


@at([*SOCKET, *WRITE, *ASGI])
def test_refusal_has_its_status(address: Address) -> None:
    with SSEServer([respond(429, {"Retry-After": "7"}), b"no"]) as upstream, reading(address(upstream)) as reader:
        assert (reader.status, reader.headers["retry-after"]) == (429, "7")
        assert json.loads(reader.body())["error"]["status"] == 429


@at([*SOCKET, *WRITE, *ASGI])
def test_head_request_opens_no_upstream(address: Address) -> None:
    with SSEServer([send({"n": 1}), silence()]) as upstream, reading(address(upstream), method="HEAD") as reader:
        assert reader.status == 200
        assert reader.body() == b""
        assert not upstream.requests


@at([*SOCKET, *ASGI])
def test_disconnect_before_the_upstreams_headers_aborts_the_request(address: Address, place: Place) -> None:
    options = {"probe": 0.1} if place in SOCKET else {"heartbeat": "never"}
    with SSEServer([silence()]) as upstream, reading(address(upstream, **options)) as reader:
        request = upstream.wait_for_request(timeout=30)
        reader.leave()
        request.wait_aborted(30)


@at(WITH_THREADS)
def test_heartbeats_are_sent_early_and_detect_a_disconnect(address: Address) -> None:
    with SSEServer([silence()]) as upstream, reading(address(upstream, early=1, heartbeat=0.1)) as reader:
        assert [reader.item() for _ in range(3)] == [Comment()] * 3
        request = upstream.wait_for_request(timeout=30)
        reader.leave()
        request.wait_aborted(30)
