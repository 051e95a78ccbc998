"""Relays on real web servers: events are forwarded without delay, and a disconnect aborts the upstream."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from sseqbridge import Comment, ServerSentEvent
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, respond, send, silence, wait
from tests.servers import NGINX, UWSGI, Reader, Server, Servers, reading
from tests.support import together, until

pytestmark = pytest.mark.server


class Place(NamedTuple):
    """A view on a server."""

    server: str
    view: str

    def __str__(self) -> str:
        return f"{self.server} {self.view}"


# Grouped by how the relay detects a disconnect: the server's socket, a write, or the server itself.
SOCKET = [
    Place("flask run", "/relay"),
    Place("gunicorn sync", "/relay"),
    Place("gunicorn gthread", "/relay"),
    Place("gunicorn gevent", "/relay"),
    Place("uwsgi", "/relay"),
    Place("uwsgi threads", "/relay"),
    Place("django gunicorn", "/relay"),
    Place("django gunicorn", "/arelay"),
    Place("django gevent", "/relay"),
]
OVER_TLS = [Place(f"{server}, TLS", "/relay") for server in ("flask run", "gunicorn gthread", "gunicorn gevent")]
WRITE = [Place("runserver", "/relay"), Place("runserver", "/arelay")]
ASGI = [
    Place("django uvicorn", "/relay"),
    Place("django uvicorn", "/arelay"),
    Place("django daphne", "/relay"),
    Place("django daphne", "/arelay"),
    Place("starlette", "/relay"),
    Place("starlette", "/threaded"),
    Place("starlette", "/fastapi/relay"),
]
EVERYWHERE = SOCKET + WRITE + ASGI
SERVERS = list(dict.fromkeys(place.server for place in EVERYWHERE))


def at(places: Iterable[Place]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", list(places), ids=str)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture
def server(servers: Servers, place: Place) -> Server:
    """The server of the place where the test is."""
    if UWSGI is None and place.server.startswith("uwsgi"):
        pytest.skip("there is no uWSGI for this Python: install Debian's uwsgi-core and uwsgi-plugin-python3")
    return servers[place.server]


Address = Callable[..., str]


@pytest.fixture
def address(server: Server, place: Place) -> Address:
    """A function that returns the view's address for an upstream, with further parameters."""
    return partial(_address, server, place.view)


def _address(server: Server, view: str, upstream: SSEServer | str, **parameters: object) -> str:
    url = upstream if isinstance(upstream, str) else upstream.url
    return f"{server.url}{view}?{urlencode({'upstream': url, **parameters})}"


def one_by_one(count: int) -> tuple[list[threading.Event], list[Step]]:
    """Return flags, and steps that send the head at once and an event for each flag."""
    flags = [threading.Event() for _ in range(count)]
    steps = [respond()]
    for n, flag in enumerate(flags):
        steps += [hold(flag), send({"n": n})]
    return flags, [*steps, send("[DONE]")]


def without_end(request: ReceivedRequest) -> Iterator[Step]:
    while True:
        yield send({"n": 1})
        yield wait(0.02)


ONE_THEN_SILENCE = [send({"n": 1}), silence()]


# Forwarding.


@at(EVERYWHERE)
def test_head_and_each_event_are_forwarded_at_once(address: Address) -> None:
    flags, steps = one_by_one(3)
    with SSEServer(steps) as upstream, reading(address(upstream)) as reader:
        assert reader.status == 200
        assert reader.headers["content-type"] == "text/event-stream; charset=utf-8"
        for n, flag in enumerate(flags):
            flag.set()
            assert reader.event().json() == {"n": n}
        assert [event.data for event in reader.events()] == ["[DONE]"]


@at(EVERYWHERE)
def test_names_ids_and_lines_are_forwarded(address: Address) -> None:
    steps = [
        send({"n": 1}, event="count", id="a"),
        send('{\n"n": "ü"}', id="b", retry=1.5),
        send({"n": 3}),
        send({"n": 4}, id=""),
    ]
    with SSEServer(steps) as upstream, reading(address(upstream)) as reader:
        assert reader.events() == [
            ServerSentEvent("count", '{"n": 1}', "a"),
            ServerSentEvent("message", '{\n"n": "ü"}', "b", 1.5),
            ServerSentEvent("message", '{"n": 3}', "b"),
            ServerSentEvent("message", '{"n": 4}', "b"),
        ]


@at(EVERYWHERE)
def test_refusal_has_the_status_and_retry_after(address: Address) -> None:
    refusal = respond(429, {"Retry-After": "7"}, framing="length", content_type="text/html")
    with SSEServer([refusal, b"<h1>slow down</h1>"]) as upstream, reading(address(upstream)) as reader:
        assert reader.status == 429
        assert reader.headers["content-type"] == "application/json"
        assert reader.headers["retry-after"] == "7"
        assert json.loads(reader.body())["error"]["status"] == 429


@at(EVERYWHERE)
def test_broken_upstream_becomes_an_error_event(address: Address) -> None:
    with SSEServer([send({"n": 1}), cut()]) as upstream, reading(address(upstream)) as reader:
        first, error = reader.events()
        assert first.json() == {"n": 1}
        assert error.event == "error"
        assert error.json()["error"]["type"] == "TruncatedStreamError"


@at(EVERYWHERE)
def test_heartbeats_are_sent_while_the_upstream_is_silent(address: Address) -> None:
    with SSEServer(ONE_THEN_SILENCE) as upstream, reading(address(upstream, heartbeat=0.05)) as reader:
        assert reader.event().json() == {"n": 1}
        assert [reader.item() for _ in range(3)] == [Comment()] * 3


COMPRESSING = [place for place in EVERYWHERE if not place.server.startswith("starlette")]


@at(COMPRESSING)
def test_compressing_middleware_delays_no_event(server: Server, address: Address) -> None:
    accept = {"Accept-Encoding": "gzip"}
    with reading(f"{server.url}/plain", headers=accept) as reader:
        assert reader.headers["content-encoding"] == "gzip"
    flags, steps = one_by_one(3)
    with SSEServer(steps) as upstream, reading(address(upstream), headers=accept) as reader:
        for n, flag in enumerate(flags):
            flag.set()
            assert reader.event().json() == {"n": n}


# Disconnects. Each test turns off all other means of detection.


def leave(reader: Reader, how: str) -> None:
    """Close the connection, or reset it."""
    if how == "reset":
        reader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reader.leave()


HOW = pytest.mark.parametrize("how", ["close", "reset"])


@HOW
@at(EVERYWHERE)
def test_disconnect_between_events_aborts_the_upstream(address: Address, how: str) -> None:
    with SSEServer(without_end) as upstream, reading(address(upstream)) as reader:
        assert [reader.event().json() for _ in range(3)] == [{"n": 1}] * 3
        leave(reader, how)
        upstream.requests[0].wait_aborted(30)


@HOW
@at(SOCKET + OVER_TLS)
def test_probe_detects_a_disconnect_in_silence(address: Address, how: str) -> None:
    with (
        SSEServer(ONE_THEN_SILENCE) as upstream,
        reading(address(upstream, heartbeat="never", probe=0.2)) as reader,
    ):
        assert reader.event().json() == {"n": 1}
        leave(reader, how)
        upstream.requests[0].wait_aborted(30)


@HOW
@at(SOCKET + WRITE)
def test_heartbeats_detect_a_disconnect_in_silence(address: Address, how: str) -> None:
    with (
        SSEServer(ONE_THEN_SILENCE) as upstream,
        reading(address(upstream, heartbeat=0.2, probe="never")) as reader,
    ):
        assert reader.event().json() == {"n": 1}
        leave(reader, how)
        # The client's machine refuses the first heartbeat after the disconnect, the server's machine the second.
        upstream.requests[0].wait_aborted(30)


@HOW
@at(ASGI)
def test_asgi_servers_detect_a_disconnect_in_silence_at_once(address: Address, how: str) -> None:
    with SSEServer(ONE_THEN_SILENCE) as upstream, reading(address(upstream, heartbeat="never")) as reader:
        assert reader.event().json() == {"n": 1}
        leave(reader, how)
        upstream.requests[0].wait_aborted(30)


ITERATED = [Place(place.server, "/iterated") for place in SOCKET if not place.server.startswith("django")]


@pytest.mark.parametrize("script", [without_end, ONE_THEN_SILENCE], ids=["between events", "in silence"])
@at(ITERATED)
def test_disconnect_aborts_the_stream_of_an_iterable(address: Address, script: Any) -> None:
    """Without another request, during which uWSGI would run the iterable's thread."""
    with SSEServer(script) as upstream, reading(address(upstream, heartbeat="never", probe=0.2)) as reader:
        assert reader.event().json() == {"n": 1}
        reader.leave()
        upstream.requests[0].wait_aborted(30)


WATCHED = [Place(place.server, "/watched") for place in SOCKET if not place.server.startswith("django")]
CANCELLED = [Place("django uvicorn", "/arelay"), Place("django daphne", "/arelay")]


@at(WATCHED + CANCELLED)
def test_disconnect_before_the_upstreams_headers_aborts_the_request(address: Address) -> None:
    with SSEServer([silence()]) as upstream, reading(address(upstream, probe=0.1)) as reader:
        request = upstream.wait_for_request(timeout=30)
        reader.leave()
        request.wait_aborted(30)


@pytest.mark.parametrize("sent_ahead", [b"", b"GET /plain HTTP/1.1\r\n"], ids=["nothing", "half a request"])
@at(SOCKET + OVER_TLS)
def test_probe_does_not_end_a_connected_client(address: Address, sent_ahead: bytes) -> None:
    """The upstream is silent for twenty probes and more."""
    steps = [send({"n": 1}), wait(0.25), send({"n": 2})]
    with SSEServer(steps) as upstream, reading(address(upstream, heartbeat="never", probe=0.01)) as reader:
        assert reader.event().json() == {"n": 1}
        reader.socket.sendall(sent_ahead)
        assert reader.event().json() == {"n": 2}


@at(place for place in EVERYWHERE if "fastapi" not in place.view)
def test_head_request_aborts_the_upstream(address: Address) -> None:
    with SSEServer(ONE_THEN_SILENCE) as upstream, reading(address(upstream), method="HEAD") as reader:
        assert reader.status == 200
        assert reader.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reader.body() == b""
        upstream.requests[0].wait_aborted(30)


# Iterables of the application.


class GeneratorUpstream:
    """The upstream of a generator: delays its items until the test allows them, and notices when it is closed."""

    def __init__(self, *flags: threading.Event) -> None:
        self._flags = flags
        self._server = SSEServer(self._respond)

    def __enter__(self) -> GeneratorUpstream:
        self._server.start()
        self.url = self._server.url
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.close()

    def _respond(self, request: ReceivedRequest) -> Iterator[Step]:
        _, _, number = request.path.rpartition("/compute/")
        if number.isdigit():
            yield hold(self._flags[int(number)]) if self._flags else wait(0.01)
        yield respond(framing="length", content_type="text/plain")

    @property
    def paths(self) -> list[str]:
        """The paths of the generator's requests so far."""
        return [request.path for request in self._server.requests]

    def until_closed(self, server: Server) -> None:
        """Wait until the generator is closed."""

        def is_closed() -> bool:
            if server.name == "uwsgi":
                # Without --enable-threads other threads run only while a request does.
                request_a_plain_view(server)
            return "/closed" in self.paths

        until(is_closed)


GENERATORS = [Place(server, "/counting") for server in SERVERS]
COROUTINES = [Place(server, "/acounting") for server in ("django uvicorn", "django daphne", "starlette")]
ENDLESS = [Place(place.server, place.view.replace("counting", "endless")) for place in GENERATORS + COROUTINES]


@at(GENERATORS + COROUTINES)
def test_heartbeats_are_sent_while_a_generator_computes(address: Address, server: Server) -> None:
    flags = [threading.Event() for _ in range(2)]
    with GeneratorUpstream(*flags) as generator, reading(address(generator.url, count=2, heartbeat=0.05)) as reader:
        for n, flag in enumerate(flags):
            # The first heartbeat is sent at once, with the head.
            assert [reader.item() for _ in range(2)] == [Comment()] * 2
            flag.set()
            assert reader.event().json() == {"n": n}
        assert reader.events() == []
        generator.until_closed(server)


@at(GENERATORS + COROUTINES)
def test_disconnect_closes_a_generator_at_its_next_yield(address: Address, server: Server) -> None:
    with GeneratorUpstream() as generator, reading(address(generator.url, count=1_000_000)) as reader:
        assert [reader.event().json()["n"] for _ in range(3)] == [0, 1, 2]
        reader.leave()
        generator.until_closed(server)


@at(COROUTINES)
def test_disconnect_closes_a_waiting_asynchronous_generator(address: Address, server: Server) -> None:
    never = threading.Event()
    with GeneratorUpstream(never) as generator, reading(address(generator.url, count=1)) as reader:
        assert reader.item() == Comment()
        reader.leave()
        generator.until_closed(server)


@at(ENDLESS)
def test_disconnect_closes_a_generator_under_backpressure(address: Address, server: Server) -> None:
    with GeneratorUpstream() as generator, reading(address(generator.url), buffer=4096) as reader:
        assert reader.event().json() == {"padding": "x" * 1000}
        reader.leave()
        generator.until_closed(server)


# Through nginx, as Debian configures it.


@pytest.fixture
def through_nginx(servers: Servers) -> Callable[[str], str]:
    """A function that returns the address through nginx for that of a server."""
    if NGINX is None:
        pytest.skip("there is no nginx: install Debian's")
    front = servers["nginx"].url
    return lambda url: f"{front}/{url.removeprefix('http://127.0.0.1:')}"


BEHIND_NGINX = at(place for place in EVERYWHERE if place.server != "runserver")


@pytest.mark.nginx
@at(EVERYWHERE)
def test_nginx_forwards_each_event_at_once(address: Address, through_nginx: Callable[[str], str]) -> None:
    flags, steps = one_by_one(3)
    with SSEServer(steps) as upstream, reading(through_nginx(address(upstream))) as reader:
        for n, flag in enumerate(flags):
            flag.set()
            assert reader.event().json() == {"n": n}
        assert [event.data for event in reader.events()] == ["[DONE]"]


@pytest.mark.nginx
@BEHIND_NGINX
def test_disconnect_in_silence_is_detected_behind_nginx(
    address: Address, place: Place, through_nginx: Callable[[str], str]
) -> None:
    options = {"heartbeat": "never"} if place in ASGI else {"heartbeat": "never", "probe": 0.2}
    with SSEServer(ONE_THEN_SILENCE) as upstream, reading(through_nginx(address(upstream, **options))) as reader:
        assert reader.event().json() == {"n": 1}
        reader.leave()
        upstream.requests[0].wait_aborted(30)


# Third-party upstreams.


@at([Place("flask run", "/relay"), Place("gunicorn gevent", "/relay"), Place("django daphne", "/arelay")])
@pytest.mark.parametrize("path", ["sse-starlette", "fastapi"])
def test_third_party_upstreams_are_relayed_and_see_the_disconnect(
    servers: Servers, address: Address, path: str
) -> None:
    upstream = servers["upstreams"].url
    name = uuid.uuid4().hex

    def has_left() -> bool:
        with urllib.request.urlopen(f"{upstream}/left?name={name}", timeout=30) as response:
            return json.load(response) is not None

    with reading(address(f"{upstream}/{path}?name={name}", heartbeat=0.1, probe=0.1)) as reader:
        events = [reader.event() for _ in range(3)]
        assert events == [ServerSentEvent("count", json.dumps({"n": n}), str(n)) for n in range(3)]
        reader.leave()
        until(has_left)


# Many readers, and one that stalls.


def open_together(urls: Iterable[str]) -> list[Reader]:
    return [Reader(url) for url in urls]


def request_a_plain_view(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/plain", timeout=30) as response:
        assert response.status == 200
        response.read()


MANY = [
    (Place("gunicorn gthread", "/relay"), 50),
    (Place("gunicorn gevent", "/relay"), 50),
    (Place("gunicorn gevent", "/relay"), 200),
    (Place("django gevent", "/relay"), 200),
    (Place("starlette", "/relay"), 200),
]


@pytest.mark.parametrize(("place", "count"), MANY, ids=[f"{place} {count}" for place, count in MANY])
def test_many_clients_leave_room_for_a_plain_view(server: Server, address: Address, count: int) -> None:
    go, end = threading.Event(), threading.Event()
    steps = [send({"n": 0}), hold(go), *(send({"n": n}) for n in range(1, 20)), hold(end), send("[DONE]")]
    with SSEServer(steps) as upstream:
        readers = open_together([address(upstream)] * count)
        assert [reader.event().json() for reader in readers] == [{"n": 0}] * count
        request_a_plain_view(server)
        go.set()
        request_a_plain_view(server)
        got = [[reader.event().json()["n"] for _ in range(19)] for reader in readers]
        assert got == [list(range(1, 20))] * count
        end.set()
        assert [[event.data for event in reader.events()] for reader in readers] == [["[DONE]"]] * count
        for reader in readers:
            reader.leave()


def flood(request: ReceivedRequest) -> Iterator[Step]:
    while True:
        yield send({"padding": "x" * 8000})


def until_backpressure(request: ReceivedRequest) -> int:
    """Wait until backpressure stops the upstream. Returns the number of bytes that it has sent."""
    last = [-1, time.monotonic()]

    def has_stopped() -> bool:
        if request.sent_bytes != last[0]:
            last[:] = request.sent_bytes, time.monotonic()
        return time.monotonic() - last[1] > 0.3

    until(has_stopped)
    return request.sent_bytes


STALLING = [place for place in EVERYWHERE if place.server in ("gunicorn gthread", "gunicorn gevent", "starlette")]


@at(STALLING)
def test_stalled_client_gets_backpressure_and_delays_no_other(server: Server, address: Address) -> None:
    flags, steps = one_by_one(3)
    with SSEServer(flood) as flooding, SSEServer(steps) as upstream, reading(address(flooding), buffer=4096) as stalled:
        # The buffers of the sockets, up to 6 MB each, and a megabyte for the relay.
        assert until_backpressure(flooding.wait_for_request(timeout=30)) < 32_000_000
        with reading(address(upstream)) as reader:
            for n, flag in enumerate(flags):
                flag.set()
                assert reader.event().json() == {"n": n}
            assert [event.data for event in reader.events()] == ["[DONE]"]
        request_a_plain_view(server)
        stalled.leave()
        flooding.requests[0].wait_aborted(30)


# gevent.


@pytest.mark.parametrize(("server_name", "view"), [("gunicorn gevent", "/loop"), ("django gevent", "/orm")])
def test_view_under_gevent_sees_no_running_loop(servers: Servers, server_name: str, view: str) -> None:
    with SSEServer(ONE_THEN_SILENCE) as upstream, SSEServer(ONE_THEN_SILENCE) as other:
        server = servers[server_name]
        with reading(_address(server, "/relay", other)) as streaming:
            assert streaming.event().json() == {"n": 1}
            with urllib.request.urlopen(_address(server, view, upstream), timeout=30) as response:
                found = json.load(response)
        assert found["item"] == {"n": 1}
        assert found["loop"] is None


def test_two_hundred_streams_leave_a_gevent_worker_responsive(servers: Servers) -> None:
    server = servers["gunicorn gevent"]
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), send("[DONE]")]) as upstream, contextlib.ExitStack() as stack:
        readers = [stack.enter_context(reading(_address(server, "/relay", upstream))) for _ in range(200)]
        assert [reader.event().json() for reader in readers] == [1] * 200
        # All streams are open and silent; other requests are served.
        assert upstream.open_requests == 200
        for _ in range(10):
            with urllib.request.urlopen(f"{server.url}/nothing", timeout=30) as response:
                assert response.status == 200
        go.set()
        for reader in readers:
            assert [event.data for event in reader.events()] == ["2", "[DONE]"]


def test_django_orm_works_under_gevent_during_streams(servers: Servers) -> None:
    server = servers["django gevent"]
    with SSEServer(ONE_THEN_SILENCE) as upstream:

        def ask() -> Any:
            with urllib.request.urlopen(_address(server, "/orm", upstream), timeout=30) as response:
                return json.load(response)

        assert [found["model"] for found in together([ask] * 10)] == ["kind"] * 10
