"""Streams that outlive their connections, through both doors and over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import count
from typing import Any

import h2.exceptions
import httpx
import pytest

from sseqbridge import (
    Bridge,
    BufferLimitError,
    CallbackError,
    ConnectError,
    ContentTypeError,
    ProtocolError,
    ReadError,
    ReconnectionError,
    ReconnectionPolicy,
    RedirectError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    Timeout,
    TransportError,
    TruncatedStreamError,
    UsageError,
    relay,
    request_sse,
)
from sseqbridge._http import client as _client
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    comment,
    cut,
    hold,
    in_turn,
    raw,
    reset,
    respond,
    send,
    silence,
    wait,
)
from tests.clock import FakeClock
from tests.doors import Answer, Door
from tests.support import HAS_OWN_TRANSPORT, in_thread, is_waiting, until

AT_ONCE = ReconnectionPolicy(delay=0.01, max_delay=0.01, jitter=0)
# Longer than any test: nothing comes of its own accord.
LATE = ReconnectionPolicy(delay=1e6, max_delay=1e6, jitter=0)
# For a test that advances the clock while connections are made: only what it is about may elapse.
UNLIMITED = Timeout(connect=None, read=None)
DONE = send("[DONE]")

# For machines that are busy: a wait for an event takes up to 30 s before it fails.
pytestmark = pytest.mark.timeout(120)


def ids_sent(server: SSEServer) -> list[str | None]:
    return [request.headers.get("last-event-id") for request in server.requests]


def is_between_connections(answer: Answer) -> bool:
    """Whether the connection is gone, and the next one not made."""
    return answer.events._cursor.subscription.exchange.opened_at is None


class Notes:
    """What on_reconnect was called with, and by which thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float, SSEError | None]] = []
        self.threads: set[int] = set()

    def __call__(self, attempt: int, delay: float, cause: SSEError | None) -> None:
        self.calls.append((attempt, delay, cause))
        self.threads.add(threading.get_ident())

    @property
    def causes(self) -> list[type]:
        return [type(cause) for _, _, cause in self.calls]


# What is sent again, and from where.


@pytest.mark.parametrize("way", [cut, reset], ids=["cut", "reset"])
def test_stream_goes_on_after_a_drop(ask: Door, way: Callable[[], Step]) -> None:
    notes = Notes()
    # A reset may take with it what was not read yet.
    flags = [threading.Event(), threading.Event()]
    first = [send(1, id="a"), send(2, id="b"), hold(flags[0]), way()]
    with SSEServer(in_turn(first, [send(3, id="c"), hold(flags[1]), way()], [send(4), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes)
        assert [answer.next(), answer.next()] == [1, 2]
        flags[0].set()
        assert answer.next() == 3
        flags[1].set()
        assert answer.items() == [4]
        assert ids_sent(server) == [None, "b", "c"]
        assert answer.events.stats.reconnections == 2
        assert answer.events.stats.events == 4
        assert answer.events.outcome == "done"
    assert [call[:2] for call in notes.calls] == [(1, 0.01), (1, 0.01)]
    assert all(issubclass(cause, (TruncatedStreamError, ReadError)) for cause in notes.causes)
    assert notes.threads == {threading.get_ident()}


def test_status_and_headers_stay_those_of_the_first_answer(ask: Door) -> None:
    first = [respond(headers={"X-Which": "1"}), send(1), cut()]
    with SSEServer(in_turn(first, [respond(headers={"X-Which": "2"}), send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert (answer.events.status, answer.events.headers["x-which"]) == (200, "1")


def test_id_of_a_block_that_was_cut_off_is_not_committed(ask: Door) -> None:
    first = [send(1, id="a"), b"id: b\ndata: 2\n", cut()]
    with SSEServer(in_turn(first, [send(2, id="b"), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1, 2]
        assert ids_sent(server) == [None, "a"]


def test_id_of_a_block_without_data_is_committed(ask: Door) -> None:
    with SSEServer(in_turn([send(1, id="a"), b"id: b\n\n", cut()], [DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1]
        assert ids_sent(server) == [None, "b"]


def test_empty_id_takes_it_back(ask: Door) -> None:
    first = [send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [b"id\ndata: 2\n\n", cut()], [DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert ids_sent(server) == [None, "a", None]
        assert answer.events.last_event_id == ""


def test_id_outlives_connections_without_one(ask: Door) -> None:
    first, without = [send(1, id="\u00e4 7"), cut()], [send(2), cut()]
    with SSEServer(in_turn(first, without, [DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert [answer.events.last_event.id, answer.events.last_event_id] == ["\u00e4 7", "\u00e4 7"]
        # As UTF-8.
        assert [sent and sent.encode("latin-1").decode() for sent in ids_sent(server)] == [None, "\u00e4 7", "\u00e4 7"]


def test_last_event_id_can_be_preset(ask: Door) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [DONE] if request.headers.get("last-event-id") == "b" else [send(1, id="b"), cut()]

    for presets in ({"last_event_id": "a"}, {"headers": {"last-event-id": "a"}}):
        with SSEServer(script) as server:
            answer = ask(server.url, reconnect=AT_ONCE, **presets)
            assert answer.events.last_event_id == "a"
            assert answer.items() == [1]
            assert ids_sent(server) == ["a", "b"]


def test_last_event_id_without_reconnecting(ask: Door) -> None:
    with SSEServer([send(1), DONE]) as server:
        answer = ask(server.url, last_event_id="\u20ac")
        assert answer.events.last_event_id == "\u20ac"
        assert answer.items() == [1]
        assert [sent and sent.encode("latin-1").decode() for sent in ids_sent(server)] == ["\u20ac"]


SENT_IDS = ["a\x01b", "\x01", "\x7f", "a\x1bb", "a\tb", "\u0085", "\u2028", "\ufffd", "\u00e0", "x" * 5000]


@pytest.mark.parametrize("event_id", SENT_IDS, ids=ascii)
@pytest.mark.parametrize("way", [cut, None], ids=["cut", "clean end"])
def test_an_id_is_sent_as_it_came(ask: Door, event_id: str, way: Callable[[], Step] | None) -> None:
    first = [send(1, id=event_id), *([] if way is None else [way()])]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert [request.last_event_id for request in server.requests] == ["", event_id]
    for preset in ({"last_event_id": event_id}, {"headers": {"Last-Event-ID": event_id.encode()}}):
        with SSEServer([DONE]) as server:
            assert ask(server.url, **preset).items() == []
            assert server.requests[0].last_event_id == event_id


@pytest.mark.parametrize("event_id", ["  a ", "\t a\t", " ", "  \t"], ids=repr)
def test_blanks_at_the_ends_of_an_id_are_not_sent(ask: Door, event_id: str) -> None:
    # The parser drops one space after the colon.
    first = [raw(b"id: " + event_id.encode() + b"\ndata: 1\n\n")]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert [answer.events.last_event_id, ids_sent(server)] == [event_id, [None, event_id.strip()]]
    for preset in ({"last_event_id": event_id}, {"headers": {"Last-Event-ID": event_id}}):
        with SSEServer([DONE]) as server:
            assert ask(server.url, **preset).items() == []
            assert ids_sent(server) == [event_id.strip()]


class HeadServer:
    """Answers each request with an event stream, whatever its head holds: h11, and so SSEServer, refuses some of it."""

    def __init__(self, *bodies: bytes) -> None:
        self.heads: list[bytes] = []
        self._bodies = bodies
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> HeadServer:
        self._serving = in_thread(self._serve)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        socket.create_connection(self._listener.getsockname()).close()
        self._serving.result(30)
        self._listener.close()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            connection, _ = self._listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head and (part := connection.recv(65_536)):
                    head += part
                if head:
                    body = self._bodies[len(self.heads)]
                    self.heads.append(head)
                    status = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n"
                    connection.sendall(status % len(body) + b"Connection: close\r\n\r\n" + body)

    @property
    def ids(self) -> list[bytes]:
        """The Last-Event-ID of each request, b"" for none."""
        fields = [dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2]) for head in self.heads]
        return [field.get(b"Last-Event-ID", b"") for field in fields]


@pytest.mark.parametrize("event_id", [b"a\x0bb", b"\x0c", b"x" * 300_000], ids=["VT", "FF", "300 kB"])
@pytest.mark.parametrize("is_clean", [True, False], ids=["clean end", "cut"])
def test_an_id_is_sent_as_it_came_or_the_stream_ends(ask: Door, event_id: bytes, is_clean: bool) -> None:
    notes = Notes()
    first = b"id: " + event_id + b"\ndata: 1\n\n"
    with HeadServer(first, b"data: 2\n\ndata: [DONE]\n\n") as server:
        answer = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes, require_done=not is_clean)
        if HAS_OWN_TRANSPORT or len(event_id) > 9:
            assert answer.items() == [1, 2]
            assert server.ids == [b"", event_id]
            return
        # h11 refuses it, and would so the next time.
        items, error = answer.fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert isinstance(error.__cause__, TransportError)
        assert (len(notes.calls), error.attempts, server.ids) == (1, 1, [b""])


@pytest.mark.parametrize("event_id", ["a\0b", "a\rb", "a\nb"], ids=ascii)
def test_an_id_that_no_server_sends_is_wrong_use(ask: Door, event_id: str) -> None:
    for preset in ({"last_event_id": event_id}, {"headers": {"Last-Event-ID": event_id}}):
        with pytest.raises(UsageError, match="NUL, CR or LF"):
            ask("http://127.0.0.1:9", **preset)


@pytest.mark.parametrize("failure", [CallbackError("x"), UsageError("x"), OSError("x")], ids=repr)
@pytest.mark.parametrize("is_clean", [True, False], ids=["clean end", "cut"])
def test_a_request_that_cannot_be_built_again_ends_the_stream(
    ask: Door, failure: Exception, is_clean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, though the policy has no limit of attempts."""
    notes = Notes()
    is_prepared = threading.Event()
    with SSEServer([send(1), hold(is_prepared), *([] if is_clean else [cut()])]) as server:
        answer = ask(server.url, reconnect=ReconnectionPolicy(delay=0.01), on_reconnect=notes)

        def lease(pool: _client.ClientPool, origin: str) -> Any:
            raise failure

        monkeypatch.setattr(_client.ClientPool, "lease", lease)
        is_prepared.set()
        items, error = answer.fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert (error.__cause__, error.attempts, len(notes.calls), len(server.requests)) == (failure, 1, 1, 1)
        assert "cannot be sent again" in str(error)


def test_a_client_for_the_other_origin_of_a_redirect_that_fails_ends_the_stream() -> None:
    notes = Notes()
    made: list[httpx.AsyncClient] = []

    def factory() -> Any:
        if made:
            raise ZeroDivisionError
        made.append(httpx.AsyncClient())
        return made[-1]

    script = in_turn([send(1), cut()], [respond(307, {"Location": "http://localhost:1/"})])
    with SSEServer(script) as server, Bridge(client=factory) as bridge:
        stream = request_sse(server.url, reconnect=AT_ONCE, on_reconnect=notes, bridge=bridge).events
        assert next(stream) == 1
        with pytest.raises(ReconnectionError) as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, CallbackError)
        assert (len(notes.calls), len(server.requests)) == (1, 2)


def test_a_redirect_to_a_port_that_cannot_be_ends_the_stream(ask: Door) -> None:
    with SSEServer(in_turn([send(1), cut()], [respond(308, {"Location": "http://127.0.0.1:99999/"})])) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, RedirectError)
        assert len(server.requests) == 2


def test_request_is_sent_again_with_its_method_and_body(ask: Door) -> None:
    first = [send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        answer = ask(server.url, {"X-Mine": "1"}, {"prompt": "x"}, method="REPORT", reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        for request in server.requests:
            assert (request.method, request.json(), request.headers["x-mine"]) == ("REPORT", {"prompt": "x"}, "1")
        assert ids_sent(server) == [None, "a"]


def test_parser_starts_anew_with_each_connection(ask: Door) -> None:
    """The byte order mark, half a line, a CR whose LF never came, an event's type: nothing of them lasts."""
    first = [b'\xef\xbb\xbfdata: 1\n\nevent: x\ndata: "lost', cut()]
    second = [b"\xef\xbb\xbfdata: 2\r\n\r", cut()]
    with SSEServer(in_turn(first, second, [b"\ndata: 3\n\n", DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, decode="event")
        assert [(event.event, event.data) for event in answer.items()] == [(("message"), n) for n in "123"]


def test_function_that_says_which_event_is_the_last_is_asked_across_connections(ask: Door) -> None:
    with SSEServer(in_turn([send(1), cut()], [send(2), send(3), silence()])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, done=lambda event: event.data == "2")
        assert answer.items() == [1, 2]
        assert answer.events.outcome == "done"
        ask.meanwhile(server.requests[1].wait_aborted, 30)
        assert len(server.requests) == 2


def test_stream_that_reconnects_goes_on_to_a_reader() -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2, id="b"), DONE])) as server:
        frames = relay.frames(request_sse(server.url, reconnect=AT_ONCE), heartbeat=None)
        assert b"".join(frames).removeprefix(b":\n") == b"id: a\ndata: 1\n\nid: b\ndata: 2\n\ndata: [DONE]\n\n"
    with SSEServer([send(1), cut()]) as server:
        frames = relay.frames(request_sse(server.url, data={}, reconnect=AT_ONCE), heartbeat=None)
        assert b'{"type":"ReconnectionError","message":"the upstream\'s stream was cut off"}' in b"".join(frames)


def test_what_was_received_before_the_drop_is_given_first(ask: Door) -> None:
    events = b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(500))
    with SSEServer(in_turn([events, cut()], [send(500), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        ask.meanwhile(lambda: server.wait_for_request(2, timeout=30))
        assert answer.items() == list(range(501))
        assert ids_sent(server) == [None, "499"]


def test_what_was_received_is_given_though_it_fills_all_that_may_be_buffered(ask: Door) -> None:
    events = b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(500))
    with SSEServer(in_turn([events, cut()], [send(500), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE, max_buffered_bytes=2000).items() == list(range(501))


def test_reconnection_time_of_the_server_holds_for_all_connections_that_follow(clock: FakeClock, ask: Door) -> None:
    notes = Notes()
    first = [send(1, retry=20), cut()]
    with SSEServer(in_turn(first, [send(2), cut()], [DONE])) as server:
        answer = ask(server.url, reconnect=ReconnectionPolicy(delay=3, jitter=0), timeout=UNLIMITED, on_reconnect=notes)
        assert clock.advance_until_done(answer.items) == [1, 2]
        assert answer.events.retry == 20
    assert [delay for _, delay, _ in notes.calls] == [20, 20]


def test_a_retry_of_zero_is_not_without_a_wait(ask: Door) -> None:
    notes = Notes()
    once = [raw(b"retry: 0\n\n"), send(1)]
    with SSEServer(in_turn(once, once, once, [DONE])) as server:
        assert ask(server.url, reconnect=True, on_reconnect=notes).items() == [1, 1, 1]
    assert [delay for _, delay, _ in notes.calls] == [0.1] * 3


# Redirects.


def redirected(status: int, again: bool) -> list[str]:
    """The paths that are asked, where the first answer is a redirect and the stream behind it is dropped once."""

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/":
            return [respond(status, {"Location": "/moved"})]
        return [DONE] if "last-event-id" in request.headers else [send(1, id="a"), cut()]

    with SSEServer(script) as server:
        assert list(request_sse(server.url, reconnect=AT_ONCE).events) == [1]
        return [request.path for request in server.requests]


@pytest.mark.parametrize("status", [301, 308])
def test_redirect_for_good_is_remembered(status: int) -> None:
    assert redirected(status, True) == ["/", "/moved", "/moved"]


@pytest.mark.parametrize("status", [302, 303, 307])
def test_redirect_for_now_is_not(status: int) -> None:
    assert redirected(status, False) == ["/", "/moved", "/", "/moved"]


def test_redirects_are_remembered_as_far_as_all_of_them_are_for_good() -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if to := {"/": (301, "/a"), "/a": (307, "/b"), "/b": (308, "/c")}.get(request.path):
            return [respond(to[0], {"Location": to[1]})]
        return [DONE] if "last-event-id" in request.headers else [send(1, id="a"), cut()]

    with SSEServer(script) as server:
        assert list(request_sse(server.url, reconnect=AT_ONCE).events) == [1]
        assert [request.path for request in server.requests] == ["/", "/a", "/b", "/c", "/a", "/b", "/c"]


def test_remembered_redirect_takes_no_credentials_to_another_origin() -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [DONE])) as other:
        with SSEServer([respond(301, {"Location": f"{other.url}/moved"})]) as server:
            secrets = {"Authorization": "Bearer x", "X-Api-Key": "y"}
            assert list(request_sse(server.url, secrets, reconnect=AT_ONCE).events) == [1]
            assert len(server.requests) == 1
        assert ids_sent(other) == [None, "a"]
        for request in other.requests:
            assert request.headers.keys().isdisjoint({"authorization", "x-api-key"})


# What ends a stream for good.


def test_clients_that_are_made_too_late_are_closed(clock: FakeClock, closed_port: int) -> None:
    made: list[httpx.AsyncClient] = []
    is_called, may_go_on = threading.Event(), threading.Event()

    def factory() -> httpx.AsyncClient:
        if made:
            is_called.set()
            assert may_go_on.wait(30)
        made.append(httpx.AsyncClient())
        return made[-1]

    with Bridge(client=factory) as bridge:
        url = f"http://127.0.0.1:{closed_port}"
        asking = in_thread(lambda: request_sse(url, reconnect=AT_ONCE, bridge=bridge, timeout=Timeout(total=1000)))
        assert is_called.wait(30)
        with pytest.raises(ReconnectionError):
            clock.advance_until_done(asking.result, step=1000)
        may_go_on.set()
        # The second client is in the pool once the thread that made it has ended.
        until(lambda: all(thread.name != "sseqbridge-client" for thread in threading.enumerate()))
    assert len(made) == 2
    assert all(client.is_closed for client in made)


def test_factory_that_fails_the_second_time_says_so(closed_port: int) -> None:
    made: list[httpx.AsyncClient] = []

    def factory() -> Any:
        if made:
            return None
        made.append(httpx.AsyncClient())
        return made[-1]

    with Bridge(client=factory) as bridge, pytest.raises(ReconnectionError) as caught:
        request_sse(f"http://127.0.0.1:{closed_port}", reconnect=AT_ONCE, bridge=bridge)
    assert isinstance(caught.value.__cause__, UsageError)


def test_204_ends_it(ask: Door) -> None:
    with SSEServer(in_turn([send(1), cut()], [respond(204)])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1]
        assert answer.events.outcome == "eof"
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusal_for_good_ends_it(ask: Door, status: int) -> None:
    refusal = [respond(status, content_type="application/json"), b'{"error": "no"}']
    with SSEServer(in_turn([send(1), cut()], refusal)) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, StatusError)
        assert (error.status, error.body) == (status, b'{"error": "no"}')
        assert len(server.requests) == 2


def test_answer_of_another_type_ends_it(ask: Door) -> None:
    page = [respond(content_type="text/html"), b"log in"]
    with SSEServer(in_turn([send(1), cut()], page)) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, ContentTypeError)
        assert error.body == b"log in"


def test_event_that_is_too_large_ends_it(ask: Door) -> None:
    with SSEServer([send(1), send("x" * 2000), silence()]) as server:
        items, error = ask(server.url, reconnect=AT_ONCE, max_event_bytes=1000).fail()
        assert items == [1]
        assert isinstance(error, BufferLimitError)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_refusal_for_now_is_tried_again(ask: Door, status: int) -> None:
    notes = Notes()
    refusal = [respond(status, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn([send(1), cut()], refusal, refusal, [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes)
        assert answer.items() == [1, 2]
        assert answer.events.stats.reconnections == 1
        # A refusal that is read to its end leaves a connection to be used again.
        assert server.connections == 2
    assert [attempt for attempt, _, _ in notes.calls] == [1, 2, 3]
    last = notes.calls[-1][2]
    assert isinstance(last, StatusError)
    assert (last.status, last.body) == (status, b"busy")


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0", 0.01, 0.01),
        ("20", 20, 20),
        # To the second, and by the real clock.
        (lambda: format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2000), usegmt=True), 1900, 2000),
        ("3600", 3000, 3000),
        ("never", 0.01, 0.01),
    ],
)
def test_retry_after_is_honoured_up_to_max_delay(clock: FakeClock, value: Any, least: float, most: float) -> None:
    notes = Notes()
    value = value() if callable(value) else value
    busy = [respond(503, {"Retry-After": value})]
    policy = ReconnectionPolicy(delay=0.01, max_delay=3000, factor=1, jitter=0)
    with SSEServer(in_turn([send(1), cut()], busy, [DONE])) as server:
        stream = request_sse(server.url, reconnect=policy, timeout=UNLIMITED, on_reconnect=notes).events
        assert clock.advance_until_done(lambda: list(stream), step=100) == [1]
    assert least <= notes.calls[1][1] <= most


def test_retry_after_counts_by_the_servers_clock(clock: FakeClock) -> None:
    notes = Notes()
    then = datetime(2020, 1, 1, tzinfo=timezone.utc)
    dates = {
        "Date": format_datetime(then, usegmt=True),
        "Retry-After": format_datetime(then + timedelta(seconds=50), usegmt=True),
    }
    policy = ReconnectionPolicy(delay=1, jitter=0)
    with SSEServer(in_turn([send(1), cut()], [respond(503, dates)], [DONE])) as server:
        stream = request_sse(server.url, reconnect=policy, timeout=UNLIMITED, on_reconnect=notes).events
        assert clock.advance_until_done(lambda: list(stream)) == [1]
    assert notes.calls[1][1] == 50


def test_it_gives_up_after_so_many_attempts(ask: Door) -> None:
    policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=3)
    with SSEServer(in_turn([send(1), cut()], [respond(503)])) as server:
        items, error = ask(server.url, reconnect=policy).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert error.attempts == 3
        assert isinstance(error.__cause__, StatusError)
        assert len(server.requests) == 4
        assert "attempts=3" in str(error)


def test_connection_that_lasted_starts_the_count_anew_though_it_gave_no_event(clock: FakeClock, ask: Door) -> None:
    flags = [threading.Event() for _ in range(3)]
    silent = [[respond(), comment(), hold(flag), cut()] for flag in flags]
    with SSEServer(in_turn(*silent, [send(1), DONE])) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1, reset_after=30)
        answer = ask(server.url, reconnect=policy)
        reading = in_thread(answer.items)
        received = 0
        for flag in flags:
            # A comment is in, so that the connection is open by the clock that is advanced now.
            until(lambda received=received: answer.events.stats.bytes > received)  # type: ignore[misc]
            received = answer.events.stats.bytes
            clock.advance(31)
            flag.set()
        assert reading.result(30) == [1]


def test_connection_that_gave_nothing_and_did_not_last_counts(ask: Door) -> None:
    with SSEServer([respond(), comment(), cut()]) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1, reset_after=1000)
        items, error = ask(server.url, reconnect=policy).fail()
        assert items == []
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 2


def test_server_that_is_gone_is_tried_again(ask: Door) -> None:
    notes = Notes()
    policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=2)
    with SSEServer([send(1), cut()]) as server:
        answer = ask(server.url, reconnect=policy, on_reconnect=notes)
        assert answer.next() == 1
    items, error = answer.fail()
    assert items == []
    assert isinstance(error, ReconnectionError)
    assert isinstance(error.__cause__, ConnectError)
    assert [attempt for attempt, _, _ in notes.calls] == [1, 2]
    # And again the same.
    with pytest.raises(ReconnectionError):
        answer.next()


# Clean ends, and requests with a body.


def test_clean_end_of_a_get_is_reconnected(ask: Door) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a")], [send(2), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE, on_reconnect=notes).items() == [1, 2]
        assert ids_sent(server) == [None, "a"]
    assert notes.calls == [(1, 0.01, None)]


def test_clean_end_of_a_post_is_the_end(ask: Door) -> None:
    with SSEServer([send(1, id="a")]) as server:
        answer = ask(server.url, data={}, reconnect=AT_ONCE)
        assert answer.items() == [1]
        assert answer.events.outcome == "eof"
        assert len(server.requests) == 1


def test_on_eof_says_it_for_all(ask: Door) -> None:
    never, always = ReconnectionPolicy(on_eof=False), ReconnectionPolicy(delay=0.01, jitter=0, on_eof=True)
    with SSEServer([send(1)]) as server:
        assert ask(server.url, reconnect=never).items() == [1]
    with SSEServer(in_turn([send(1, id="a")], [send(2), DONE])) as server:
        assert ask(server.url, data={}, reconnect=always).items() == [1, 2]


def test_stream_that_must_end_with_its_last_event_is_cut_off_without(ask: Door) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a")], [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, require_done=True, on_reconnect=notes)
        assert answer.items() == [1, 2]
    assert notes.causes == [TruncatedStreamError]
    # Where a clean end is not reconnected, that is its error.
    with SSEServer([send(1, id="a")]) as server:
        items, error = ask(server.url, data={}, reconnect=AT_ONCE, require_done=True).fail()
        assert items == [1]
        assert isinstance(error, TruncatedStreamError)
        assert len(server.requests) == 1


@pytest.mark.parametrize("way", [cut, reset], ids=["cut", "reset"])
@pytest.mark.parametrize("is_later", [True, False], ids=["later", "at once"])
@pytest.mark.parametrize("data", [None, {}], ids=["GET", "POST"])
def test_nothing_is_asked_for_after_the_last_event_whatever_becomes_of_the_connection(
    ask: Door, way: Callable[[], Step], is_later: bool, data: Any
) -> None:
    notes = Notes()
    is_read = threading.Event()
    # A reset may take with it what was not read yet, the last event too.
    after = [hold(is_read)] if is_later or way is reset else []
    with SSEServer([send(1, id="a"), DONE, *after, way()]) as server:
        answer = ask(server.url, data=data, reconnect=AT_ONCE, on_reconnect=notes)
        assert answer.items() == [1]
        is_read.set()
        assert answer.events.outcome == "done"
        ask.meanwhile(until, lambda: answer.events._cursor.subscription.finished)
        assert len(server.requests) == 1
    assert notes.calls == []


def test_nothing_is_asked_for_after_a_function_accepted_the_last_event(ask: Door) -> None:
    """Of a connection that has ended by then."""
    with SSEServer([send(1, id="1"), send(2, id="2")]) as server:
        answer = ask(server.url, reconnect=LATE, done=lambda event: event.data == "2")
        assert answer.next() == 1
        ask.meanwhile(until, lambda: is_between_connections(answer))
        assert answer.items() == [2]
        assert answer.events.outcome == "done"
        ask.meanwhile(until, lambda: answer.events._cursor.subscription.finished)
        assert len(server.requests) == 1


def test_prompt_is_not_paid_for_twice_in_silence(ask: Door) -> None:
    with SSEServer([send(1), cut()]) as server:
        items, error = ask(server.url, data={}, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert isinstance(error.__cause__, (TruncatedStreamError, ReadError))
        assert "resend=True" in str(error)
        assert len(server.requests) == 1


def test_id_that_the_caller_brought_is_none_of_the_servers(ask: Door) -> None:
    with SSEServer([send(1), cut()]) as server:
        items, error = ask(server.url, data={}, reconnect=AT_ONCE, last_event_id="x").fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 1


def test_prompt_that_may_be_at_work_is_not_sent_again(clock: FakeClock, ask: Door) -> None:
    with SSEServer([silence()]) as server:
        asking = in_thread(lambda: ask(server.url, data={}, reconnect=AT_ONCE, timeout=Timeout(read=30, connect=None)))
        server.wait_for_request(timeout=30)
        with pytest.raises(StreamTimeoutError):
            clock.advance_until_done(asking.result)
        assert len(server.requests) == 1


def test_asking_for_another_connection_pays_for_no_prompt_twice(ask: Door) -> None:
    """Where the event comes between the asking and the loop's turn."""
    with SSEServer([send(1), silence()]) as server:
        answer = ask(server.url, data={}, reconnect=AT_ONCE)
        assert answer.next() == 1
        answer.events._cursor.subscription.request_reconnect()
        items, error = answer.fail()
        assert items == []
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 1


def test_prompt_is_paid_for_twice_where_that_is_said(ask: Door) -> None:
    policy = ReconnectionPolicy(delay=0.01, jitter=0, resend=True)
    with SSEServer(in_turn([send(1), cut()], [send(1), send(2), DONE])) as server:
        assert ask(server.url, data={}, reconnect=policy).items() == [1, 1, 2]


def test_request_whose_answer_gave_nothing_yet_is_sent_again(ask: Door) -> None:
    with SSEServer(in_turn([respond(), comment(), cut()], [send(1), DONE])) as server:
        assert ask(server.url, data={}, reconnect=AT_ONCE).items() == [1]


@pytest.mark.parametrize("body", [{"content": iter([b"x"])}, {"files": {"file": b"x"}}], ids=["iterator", "files"])
def test_body_that_can_be_read_only_once(ask: Door, body: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="only once"):
        ask("http://127.0.0.1:9", reconnect=True, **body)


# The first answer.


def test_first_connection_is_tried_again(ask: Door) -> None:
    notes = Notes()
    busy = [respond(503, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn([cut()], busy, [respond(429)], [send(1), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes)
        assert answer.status == 200
        assert answer.items() == [1]
        assert answer.events.stats.reconnections == 0
    assert [attempt for attempt, _, _ in notes.calls] == [1, 2, 3]
    assert notes.threads == {threading.get_ident()}


def test_first_connection_that_fails_for_good_is_not(ask: Door) -> None:
    with SSEServer([respond(401, content_type="text/plain"), b"no"]) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert (answer.status, answer.items()) == (401, ["no"])
        assert len(server.requests) == 1
    with SSEServer([respond(302)]) as server:
        with pytest.raises(RedirectError):
            ask(server.url, reconnect=AT_ONCE)
        assert len(server.requests) == 1


def test_first_answer_is_waited_for_so_many_attempts(ask: Door, closed_port: int) -> None:
    policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=2)
    with pytest.raises(ReconnectionError) as caught:
        ask(f"http://127.0.0.1:{closed_port}", reconnect=policy)
    assert caught.value.attempts == 2
    assert isinstance(caught.value.__cause__, ConnectError)
    with SSEServer([respond(503, content_type="text/plain"), b"busy"]) as server:
        answer = ask(server.url, reconnect=policy)
        assert (answer.status, answer.items(), answer.events.outcome) == (503, ["busy"], "eof")
        assert len(server.requests) == 3


def test_first_answer_is_waited_for_no_longer_than_total(clock: FakeClock, ask: Door, closed_port: int) -> None:
    notes = Notes()
    policy = ReconnectionPolicy(delay=600, max_delay=600, factor=1, jitter=0)
    url, timeout = f"http://127.0.0.1:{closed_port}", Timeout(total=1000)
    began = clock.monotonic()
    # The second attempt is within the time, a third would come too late.
    asking = in_thread(lambda: ask(url, reconnect=policy, timeout=timeout, on_reconnect=notes))
    until(lambda: notes.calls)
    with pytest.raises(ReconnectionError) as caught:
        clock.advance_until_done(asking.result, step=50)
    assert clock.monotonic() - began >= 600
    assert (caught.value.attempts, len(notes.calls)) == (1, 1)
    assert isinstance(caught.value.__cause__, (ConnectError, StreamTimeoutError))


def test_first_attempt_is_the_only_one_where_the_next_would_come_too_late(ask: Door, closed_port: int) -> None:
    notes = Notes()
    with pytest.raises(ReconnectionError, match="would come too late") as caught:
        ask(f"http://127.0.0.1:{closed_port}", reconnect=LATE, timeout=Timeout(total=999), on_reconnect=notes)
    assert (caught.value.attempts, notes.calls) == (0, [])
    assert isinstance(caught.value.__cause__, ConnectError)


def test_last_answer_is_returned_where_the_time_is_over(ask: Door) -> None:
    """The next attempt would come too late."""
    busy = [respond(503, {"Retry-After": "100"}, content_type="text/plain"), b"busy"]
    with SSEServer(busy) as server:
        answer = ask(server.url, reconnect=LATE)
        assert (answer.status, answer.items()) == (503, ["busy"])
        assert len(server.requests) == 1


def test_last_answer_is_returned_where_no_other_came_in_time(clock: FakeClock, ask: Door) -> None:
    busy = [respond(503, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn(busy, [silence()])) as server:
        asking = in_thread(lambda: ask(server.url, reconnect=AT_ONCE, timeout=Timeout(total=1000)))
        server.wait_for_request(2, timeout=30)
        answer = clock.advance_until_done(asking.result, step=100)
        assert (answer.status, answer.events.outcome) == (503, None)
        server.requests[1].wait_aborted(30)


def test_last_answer_is_returned_where_no_other_came(ask: Door) -> None:
    busy = [respond(503, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn(busy, [cut()])) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1)
        answer = ask(server.url, reconnect=policy)
        assert (answer.status, answer.items(), answer.events.outcome) == (503, ["busy"], "eof")


@pytest.mark.parametrize("total", [1000, None], ids=["total", "a minute"])
def test_attempt_under_way_ends_with_the_time(clock: FakeClock, ask: Door, total: float | None) -> None:
    began = clock.monotonic()
    with SSEServer([silence()]) as server:
        asking = in_thread(lambda: ask(server.url, reconnect=AT_ONCE, timeout=Timeout(total=total, read=None)))
        server.wait_for_request(timeout=30)
        with pytest.raises(ReconnectionError) as caught:
            clock.advance_until_done(asking.result, step=10)
        cause = caught.value.__cause__
        assert isinstance(cause, StreamTimeoutError)
        assert (cause.which, cause.seconds) == ("total", total or 60)
        assert clock.monotonic() - began >= (total or 60)
        server.requests[0].wait_aborted(30)


def test_without_total_only_the_first_answer_has_a_limit(clock: FakeClock, ask: Door) -> None:
    flag = threading.Event()
    with SSEServer([send(1), hold(flag), DONE]) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.next() == 1
        clock.advance(100)
        answer.settle()
        flag.set()
        assert answer.items() == []
        assert len(server.requests) == 1


def test_total_holds_across_connections(clock: FakeClock, ask: Door) -> None:
    policy = ReconnectionPolicy(delay=10, factor=1, jitter=0)
    with SSEServer([send(1), cut()]) as server:
        answer = ask(server.url, reconnect=policy, timeout=dataclasses.replace(UNLIMITED, total=1_000_000))
        for _ in range(3):
            assert clock.advance_until_done(answer.next) == 1
        _, error = clock.advance_until_done(answer.fail, step=100_000)
        assert isinstance(error, StreamTimeoutError)
        assert (error.which, error.seconds) == ("total", 1_000_000)


@pytest.mark.parametrize("asked", ["policy", "retry", "Retry-After"])
def test_total_ends_a_wait_that_is_longer(
    clock: FakeClock, ask: Door, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = LATE if asked == "policy" else ReconnectionPolicy(delay=0.01, max_delay=1e6, jitter=0)
    first = [send(1, retry=1e6 if asked == "retry" else None), cut()]
    with (
        caplog.at_level(logging.DEBUG, "sseqbridge"),
        SSEServer(in_turn(first, [respond(503, {"Retry-After": "1000000"})])) as server,
    ):
        began = clock.monotonic()
        answer = ask(server.url, reconnect=policy, timeout=dataclasses.replace(UNLIMITED, total=300))
        assert answer.next() == 1
        # Before the clock is advanced: what is asked for must not be late, too.
        ask.meanwhile(until, lambda: "to reconnect in 1e+06 s" in caplog.text)
        items, error = clock.advance_until_done(answer.fail)
        assert items == []
        assert isinstance(error, StreamTimeoutError)
        assert error.which == "total"
        # Long before the wait would be over, on a machine that is busy too.
        assert 300 <= clock.monotonic() - began < 100_000
        assert len(server.requests) == (2 if asked == "Retry-After" else 1)


# Timeouts.


def test_silence_is_a_drop(clock: FakeClock, ask: Door) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        timeout = dataclasses.replace(UNLIMITED, read=30)
        answer = ask(server.url, reconnect=AT_ONCE, timeout=timeout, on_reconnect=notes)
        assert answer.next() == 1
        assert clock.advance_until_done(answer.items) == [2]
        server.requests[0].wait_aborted(30)
        # The time may go on so fast that the next answer is late, too.
        assert ids_sent(server)[:2] == [None, "a"]
    for _, _, cause in notes.calls:
        assert isinstance(cause, StreamTimeoutError)
        assert cause.which == "read"


def heartbeats() -> Iterator[Step]:
    while True:
        yield comment()
        yield wait(0.005)


def test_stream_of_heartbeats_alone_is_a_drop(clock: FakeClock, ask: Door) -> None:
    notes = Notes()
    numbers = count()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        number = next(numbers)
        yield send(number, id=str(number))
        if number < 2:
            yield from heartbeats()
        yield DONE

    with SSEServer(script) as server:
        answer = ask(server.url, reconnect=AT_ONCE, timeout=Timeout(idle=300), on_reconnect=notes)
        for number in range(2):
            assert answer.next() == number
            received = answer.events.stats.bytes
            ask.meanwhile(until, lambda received=received: answer.events.stats.bytes > received + 20)
            answer.settle()
            clock.advance(301)
        assert answer.items() == [2]
        server.requests[0].wait_aborted(30)
        assert ids_sent(server) == [None, "0", "1"]
    assert [cause and (type(cause), getattr(cause, "which", "")) for _, _, cause in notes.calls] == [
        (StreamTimeoutError, "idle")
    ] * 2


def test_idle_clock_stands_still_while_there_is_no_connection(clock: FakeClock, ask: Door) -> None:
    notes = Notes()
    is_asked = threading.Event()
    timeout = dataclasses.replace(UNLIMITED, idle=300)
    with SSEServer(in_turn([send(1), cut()], [hold(is_asked), send(2), DONE])) as server:
        answer = ask(server.url, reconnect=LATE, timeout=timeout, on_reconnect=notes)
        assert answer.next() == 1
        ask.meanwhile(until, lambda: is_between_connections(answer))
        reading = in_thread(answer.items)
        while len(server.requests) < 2:
            clock.advance(100_000)
            time.sleep(0.002)
        is_asked.set()
        assert reading.result(30) == [2]
    assert StreamTimeoutError not in notes.causes


def test_refusal_that_stalls_is_no_drop(clock: FakeClock, ask: Door) -> None:
    with SSEServer([respond(401), b"no", silence()]) as server:
        # Less than the body of a refusal is waited for.
        answer = ask(server.url, decode="text", reconnect=AT_ONCE, timeout=Timeout(idle=5))
        items, error = clock.advance_until_done(answer.fail, step=0.5)
        assert items == []
        assert isinstance(error, (StatusError, StreamTimeoutError))
        assert len(server.requests) == 1


# The caller's part.


def test_close_during_the_wait_ends_it_and_no_request_follows(ask: Door) -> None:
    waits = threading.Event()
    with SSEServer([send(1), cut()]) as server:
        with ask(server.url, reconnect=LATE, on_reconnect=lambda *told: waits.set()) as answer:
            assert answer.next() == 1
            while not waits.is_set():
                with pytest.raises(TimeoutError):
                    answer.next(timeout=0.05)
        assert answer.items() == []
        assert answer.events.outcome == "closed"
        # Nothing can come of a task that has ended.
        assert answer.events._cursor.subscription.finished
        assert len(server.requests) == 1


@pytest.mark.parametrize("stage", ["read", "wait", "open"])
def test_asking_for_another_connection_and_closing_at_the_same_time(ask: Door, stage: str) -> None:
    first = [send(1), silence()] if stage == "read" else [send(1), cut()]
    answers = in_turn(first, [silence()], [send(2), silence()])

    def count() -> int:
        """How many requests were sent: all that were before this one are in once it is answered."""
        assert list(request_sse(f"{server.url}/count").events) == [0]
        return sum(request.path == "/" for request in server.requests)

    with SSEServer(lambda request: [send(0), DONE] if request.path == "/count" else answers(request)) as server:
        with ask(server.url, reconnect=LATE if stage == "wait" else AT_ONCE) as answer:
            assert answer.next() == 1
            if stage == "wait":
                ask.meanwhile(until, lambda: is_between_connections(answer))
            elif stage == "open":
                ask.meanwhile(lambda: server.wait_for_request(2, timeout=30))
            answer.events.reconnect()
        # Nothing can come of a task that has ended.
        assert answer.events._cursor.subscription.finished
        assert count() <= 2 if stage != "open" else count() <= 3


def test_what_is_told_of_attempts_is_bounded_while_nobody_reads(clock: FakeClock, ask: Door) -> None:
    busy = [respond(503, content_type="text/plain"), bytes(100_000)]
    with SSEServer(in_turn([send(1), cut()], busy)) as server:
        policy = ReconnectionPolicy(delay=1, factor=1, jitter=0)
        with ask(server.url, reconnect=policy, timeout=UNLIMITED, max_buffered_bytes=250_000) as answer:
            assert answer.next() == 1
            while len(server.requests) < 3:
                clock.advance(1)
                ask.meanwhile(time.sleep, 0.01)
            # Time enough for as many attempts as there may be.
            for _ in range(30):
                clock.advance(10)
                ask.meanwhile(time.sleep, 0.01)
            assert 3 <= len(server.requests) <= 5
            assert answer.events.stats.buffered <= 250_000


@pytest.mark.blocks_its_loop
def test_what_is_told_of_attempts_is_bounded_before_the_first_answer_too(ask: Door) -> None:
    seen: list[int] = []

    def slowly(attempt: int, delay: float, cause: SSEError | None) -> None:
        if not seen:
            time.sleep(0.5)
        seen.append(len(server.requests))

    busy = [respond(503, content_type="text/plain"), bytes(100_000)]
    with SSEServer(busy) as server:
        policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=20)
        answer = ask(server.url, reconnect=policy, max_buffered_bytes=250_000, on_reconnect=slowly)
        assert (answer.status, len(seen)) == (503, 20)
        assert seen[0] <= 5


def test_close_while_the_next_connection_is_made(ask: Door) -> None:
    with SSEServer(in_turn([send(1), cut()], [silence()])) as server:
        with ask(server.url, reconnect=AT_ONCE) as answer:
            assert answer.next() == 1
            ask.meanwhile(lambda: server.wait_for_request(2, timeout=30))
        server.requests[1].wait_aborted(30)


def test_callback_that_raises_ends_the_stream(ask: Door, closed_port: int) -> None:
    class EnoughError(Exception):
        pass

    def stop(attempt: int, delay: float, cause: SSEError | None) -> None:
        raise EnoughError

    with SSEServer([send(1), cut()]) as server:
        answer = ask(server.url, reconnect=LATE, on_reconnect=stop)
        assert answer.next() == 1
        for _ in range(2):
            with pytest.raises(EnoughError):
                answer.next()
        assert answer.events.outcome == "error"
    with pytest.raises(EnoughError):
        ask(f"http://127.0.0.1:{closed_port}", reconnect=True, on_reconnect=stop)


def test_callback_is_called_between_what_came_before_and_after() -> None:
    seen: list[Any] = []
    with SSEServer(in_turn([send(1), send(2), cut()], [send(3), DONE])) as server:
        stream = request_sse(server.url, reconnect=AT_ONCE, on_reconnect=lambda *told: seen.append("drop")).events
        server.wait_for_request(2, timeout=30)
        seen.extend(stream)
    assert seen == [1, 2, "drop", 3]


def test_what_reconnects_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG, "sseqbridge"),
        SSEServer(in_turn([send(1), cut()], [DONE])) as server,
    ):
        list(request_sse(f"{server.url}/?key=secret", reconnect=AT_ONCE).events)
    assert "attempt 1 to reconnect in 0.01 s, after" in caplog.text
    assert "secret" not in caplog.text


def test_reconnect_drops_the_connection_now(ask: Door) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=ReconnectionPolicy(delay=30), on_reconnect=notes)
        assert answer.next() == 1
        answer.events.reconnect()
        assert answer.items() == [2]
        server.requests[0].wait_aborted(30)
        assert ids_sent(server) == [None, "a"]
        assert answer.events.stats.reconnections == 1
        answer.events.reconnect()
        # As it comes where the end and the asking cross.
        answer.events._cursor.subscription.reconnect_on_loop()
        assert len(server.requests) == 2
    assert notes.calls == [(1, 0.0, None)]


def test_reconnect_from_another_thread_while_the_consumer_waits() -> None:
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        stream = request_sse(server.url, reconnect=True).events
        assert next(stream) == 1
        rest = in_thread(lambda: list(stream))
        until(lambda: is_waiting(rest))
        stream.reconnect()
        assert rest.result(30) == [2]


def test_reconnect_during_the_wait_ends_it(ask: Door) -> None:
    with SSEServer(in_turn([send(1), cut()], [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=LATE)
        assert answer.next() == 1
        ask.meanwhile(until, lambda: is_between_connections(answer))
        answer.events.reconnect()
        assert answer.items() == [2]


def test_reconnect_while_the_next_connection_is_made(ask: Door) -> None:
    with SSEServer(in_turn([send(1), cut()], [silence()], [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.next() == 1
        ask.meanwhile(lambda: server.wait_for_request(2, timeout=30))
        answer.events.reconnect()
        assert answer.items() == [2]
        server.requests[1].wait_aborted(30)


def test_reconnect_while_the_next_connection_waits_for_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    leased, go = threading.Semaphore(0), threading.Event()
    lease = _client.ClientPool.lease

    def slowly(pool: _client.ClientPool, origin: str) -> Any:
        leased.release()
        go.wait(30)
        return lease(pool, origin)

    is_slow = threading.Event()
    script = in_turn([send(1), hold(is_slow), cut()], [send(2), DONE])
    with SSEServer(script) as server, Bridge(client=httpx.AsyncClient) as bridge:
        stream = request_sse(server.url, reconnect=AT_ONCE, bridge=bridge).events
        monkeypatch.setattr(_client.ClientPool, "lease", slowly)
        is_slow.set()
        assert next(stream) == 1
        assert leased.acquire(timeout=30)
        stream.reconnect()
        # It has come to the loop, as what was posted after it.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), stream._cursor.subscription.loop).result(30)
        go.set()
        assert list(stream) == [2]
        assert len(server.requests) == 2


def test_reconnect_of_a_stream_that_is_held_back_loses_nothing(ask: Door) -> None:
    total = 3000

    def script(request: ReceivedRequest) -> Iterator[Step]:
        begin = int(request.headers.get("last-event-id", "-1")) + 1
        for start in range(begin, total, 50):
            yield b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(start, min(start + 50, total)))
            # More in all than is read at a time: what is in, to its end, is not asked for again.
            yield b":" + b"x" * 20_000 + b"\n"
        yield DONE

    with SSEServer(script) as server:
        answer = ask(server.url, reconnect=AT_ONCE, max_buffered_bytes=20_000)
        items = [answer.next()]
        for _ in range(5):
            answer.events.reconnect()
            items += [answer.next() for _ in range(200)]
        assert items + answer.items() == list(range(total))
        assert len(server.requests) > 1


def test_reconnect_is_not_for_streams_that_cannot(ask: Door) -> None:
    with SSEServer([send(1), silence()]) as server:
        with ask(server.url) as answer, pytest.raises(UsageError, match="reconnect=True"):
            answer.events.reconnect()
        with ask(server.url, data={}, reconnect=True) as answer:
            assert answer.next() == 1
            with pytest.raises(UsageError, match="resend=True"):
                answer.events.reconnect()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reconnect": 3}, "ReconnectionPolicy"),
        ({"reconnect": "yes"}, "ReconnectionPolicy"),
        ({"on_reconnect": print}, "reconnect=True"),
        ({"on_reconnect": 5, "reconnect": True}, "function"),
        ({"on_reconnect": asyncio.sleep, "reconnect": True}, "coroutine function"),
        ({"last_event_id": 5}, "a str"),
        ({"last_event_id": "a\nb"}, "NUL, CR or LF"),
        ({"last_event_id": "\ud800"}, "surrogate"),
        ({"last_event_id": "a", "headers": {"Last-Event-ID": "b"}}, "more than once"),
        ({"headers": [("Last-Event-ID", "a"), ("last-event-id", "b")]}, "more than once"),
    ],
)
def test_arguments_that_cannot_work(ask: Door, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask("http://127.0.0.1:9", **options)


@pytest.mark.parametrize("off", [None, False])
def test_without_reconnecting_a_drop_is_an_error(ask: Door, off: bool | None) -> None:
    with SSEServer([send(1), cut()]) as server:
        items, error = ask(server.url, reconnect=off).fail()
    assert items == [1]
    assert isinstance(error, (TruncatedStreamError, ReadError))


def test_corrupt_answer_is_a_drop(ask: Door) -> None:
    notes = Notes()
    broken = [
        respond(headers={"Transfer-Encoding": "chunked"}, framing="none"),
        raw(b"9\r\ndata: 1\n\n\r\nzz\r\n"),
        silence(),
    ]
    with SSEServer(in_turn(broken, [send(2), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE, on_reconnect=notes).items() == [1, 2]
    assert notes.causes == [ProtocolError]


# What the HTTP client refuses to send.


def refusing_client(failure: Exception, requests: list[int], *, from_number: int) -> Bridge:
    """A bridge whose client gives an event a request, and raises `failure` for one of them and those after it."""

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(len(requests))
        if requests[-1] >= from_number:
            raise failure
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"data: 1\n\n")

    return Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(answer)))


def test_a_request_that_the_client_refuses_is_not_sent_again() -> None:
    requests: list[int] = []
    failure = httpx.LocalProtocolError("a header")
    with refusing_client(failure, requests, from_number=1) as bridge:
        stream = request_sse("http://mock.test/", bridge=bridge, reconnect=AT_ONCE).events
        assert next(stream) == 1
        with pytest.raises(ReconnectionError) as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, TransportError)
        assert caught.value.__cause__.__cause__ is failure
        assert requests == [0, 1]


def test_a_first_request_that_the_client_refuses_is_an_error_of_the_call() -> None:
    requests: list[int] = []
    failure = httpx.LocalProtocolError("a header")
    with refusing_client(failure, requests, from_number=0) as bridge:
        with pytest.raises(TransportError) as caught:
            request_sse("http://mock.test/", bridge=bridge, reconnect=AT_ONCE)
        assert caught.value.__cause__ is failure
        assert requests == [0]


def test_a_request_that_fails_by_http2_is_sent_again() -> None:
    """Where a server breaks HTTP/2, httpx says that it was this side."""
    requests: list[int] = []
    failure = httpx.LocalProtocolError("a frame")
    failure.__cause__ = h2.exceptions.ProtocolError()
    policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=3)
    with refusing_client(failure, requests, from_number=1) as bridge:
        stream = request_sse("http://mock.test/", bridge=bridge, reconnect=policy).events
        assert next(stream) == 1
        with pytest.raises(ReconnectionError, match="attempts=3"):
            next(stream)
        assert len(requests) == 4
