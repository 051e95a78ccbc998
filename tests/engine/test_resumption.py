"""Requests of a reconnecting stream: IDs, bodies, redirects. Sync and async, over real sockets."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    CallbackError,
    ReadError,
    ReconnectionError,
    ReconnectionPolicy,
    RedirectError,
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
    cut,
    hold,
    in_turn,
    raw,
    reset,
    respond,
    send,
    silence,
)
from tests.clock import FakeClock
from tests.engine.reconnecting import AT_ONCE, DONE, UNLIMITED, Notes, ids_sent
from tests.requesters import Requester
from tests.support import HAS_OWN_TRANSPORT, in_thread

# Last-Event-ID, and the request that is sent again.


@pytest.mark.parametrize("way", [cut, reset], ids=["cut", "reset"])
def test_stream_goes_on_after_a_drop(ask: Requester, way: Callable[[], Step]) -> None:
    notes = Notes()
    # A reset may discard bytes that were not read yet.
    flags = [threading.Event(), threading.Event()]
    first = [send(1, id="a"), send(2, id="b"), hold(flags[0]), way()]
    with SSEServer(in_turn(first, [send(3, id="c"), hold(flags[1]), way()], [send(4), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes)
        assert [response.next(), response.next()] == [1, 2]
        flags[0].set()
        assert response.next() == 3
        flags[1].set()
        assert response.items() == [4]
        assert ids_sent(server) == [None, "b", "c"]
        assert response.events.stats.reconnections == 2
        assert response.events.stats.events == 4
        assert response.events.outcome == "done"
    assert [call[:2] for call in notes.calls] == [(1, 0.01), (1, 0.01)]
    assert all(issubclass(cause, (TruncatedStreamError, ReadError)) for cause in notes.causes)
    assert notes.threads == {threading.get_ident()}


def test_status_and_headers_stay_those_of_the_first_response(ask: Requester) -> None:
    first = [respond(headers={"X-Which": "1"}), send(1), cut()]
    with SSEServer(in_turn(first, [respond(headers={"X-Which": "2"}), send(2), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.items() == [1, 2]
        assert (response.events.status, response.events.headers["x-which"]) == (200, "1")


def test_id_of_an_incomplete_block_is_not_committed(ask: Requester) -> None:
    first = [send(1, id="a"), b"id: b\ndata: 2\n", cut()]
    with SSEServer(in_turn(first, [send(2, id="b"), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1, 2]
        assert ids_sent(server) == [None, "a"]


def test_id_of_a_block_without_data_is_committed(ask: Requester) -> None:
    with SSEServer(in_turn([send(1, id="a"), b"id: b\n\n", cut()], [DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1]
        assert ids_sent(server) == [None, "b"]


def test_empty_id_clears_the_last_event_id(ask: Requester) -> None:
    first = [send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [b"id\ndata: 2\n\n", cut()], [DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.items() == [1, 2]
        assert ids_sent(server) == [None, "a", None]
        assert response.events.last_event_id == ""


def test_id_outlives_connections_without_one(ask: Requester) -> None:
    first, without = [send(1, id="\u00e4 7"), cut()], [send(2), cut()]
    with SSEServer(in_turn(first, without, [DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.items() == [1, 2]
        assert [response.events.last_event.id, response.events.last_event_id] == ["\u00e4 7", "\u00e4 7"]
        # In UTF-8.
        assert [sent and sent.encode("latin-1").decode() for sent in ids_sent(server)] == [None, "\u00e4 7", "\u00e4 7"]


def test_last_event_id_can_be_preset(ask: Requester) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [DONE] if request.headers.get("last-event-id") == "b" else [send(1, id="b"), cut()]

    for presets in ({"last_event_id": "a"}, {"headers": {"last-event-id": "a"}}):
        with SSEServer(script) as server:
            response = ask(server.url, reconnect=AT_ONCE, **presets)
            assert response.events.last_event_id == "a"
            assert response.items() == [1]
            assert ids_sent(server) == ["a", "b"]


def test_last_event_id_without_reconnecting(ask: Requester) -> None:
    with SSEServer([send(1), DONE]) as server:
        response = ask(server.url, last_event_id="\u20ac")
        assert response.events.last_event_id == "\u20ac"
        assert response.items() == [1]
        assert [sent and sent.encode("latin-1").decode() for sent in ids_sent(server)] == ["\u20ac"]


SENT_IDS = ["a\x01b", "\x01", "\x7f", "a\x1bb", "a\tb", "\u0085", "\u2028", "\ufffd", "\u00e0", "x" * 5000]


@pytest.mark.slow
@pytest.mark.parametrize("event_id", SENT_IDS, ids=ascii)
@pytest.mark.parametrize("way", [cut, None], ids=["cut", "clean end"])
def test_id_is_sent_unchanged(ask: Requester, event_id: str, way: Callable[[], Step] | None) -> None:
    first = [send(1, id=event_id), *([] if way is None else [way()])]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.items() == [1, 2]
        assert [request.last_event_id for request in server.requests] == ["", event_id]
    for preset in ({"last_event_id": event_id}, {"headers": {"Last-Event-ID": event_id.encode()}}):
        with SSEServer([DONE]) as server:
            assert ask(server.url, **preset).items() == []
            assert server.requests[0].last_event_id == event_id


@pytest.mark.parametrize("event_id", ["  a ", "\t a\t", " ", "  \t"], ids=repr)
def test_blanks_at_the_ends_of_an_id_are_not_sent(ask: Requester, event_id: str) -> None:
    # The parser drops one space after the colon.
    first = [raw(b"id: " + event_id.encode() + b"\ndata: 1\n\n")]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.items() == [1, 2]
        assert [response.events.last_event_id, ids_sent(server)] == [event_id, [None, event_id.strip()]]
    for preset in ({"last_event_id": event_id}, {"headers": {"Last-Event-ID": event_id}}):
        with SSEServer([DONE]) as server:
            assert ask(server.url, **preset).items() == []
            assert ids_sent(server) == [event_id.strip()]


class HeadServer:
    """Answers each request with an event stream, also heads that h11, and so SSEServer, refuses."""

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
def test_id_that_h11_refuses_ends_the_stream(ask: Requester, event_id: bytes, is_clean: bool) -> None:
    notes = Notes()
    first = b"id: " + event_id + b"\ndata: 1\n\n"
    with HeadServer(first, b"data: 2\n\ndata: [DONE]\n\n") as server:
        response = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes, require_done=not is_clean)
        if HAS_OWN_TRANSPORT or len(event_id) > 9:
            assert response.items() == [1, 2]
            assert server.ids == [b"", event_id]
            return
        # h11 refuses the ID, and would refuse it again.
        items, error = response.fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert isinstance(error.__cause__, TransportError)
        assert (len(notes.calls), error.attempts, server.ids) == (1, 1, [b""])


@pytest.mark.parametrize("event_id", ["a\0b", "a\rb", "a\nb"], ids=ascii)
def test_impossible_id_is_refused(ask: Requester, event_id: str) -> None:
    for preset in ({"last_event_id": event_id}, {"headers": {"Last-Event-ID": event_id}}):
        with pytest.raises(UsageError, match="NUL, CR or LF"):
            ask("http://127.0.0.1:9", **preset)


@pytest.mark.parametrize("failure", [CallbackError("x"), UsageError("x"), OSError("x")], ids=repr)
@pytest.mark.parametrize("is_clean", [True, False], ids=["clean end", "cut"])
def test_request_that_cannot_be_rebuilt_ends_the_stream(
    ask: Requester, failure: Exception, is_clean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, although the policy has no limit of attempts."""
    notes = Notes()
    is_prepared = threading.Event()
    with SSEServer([send(1), hold(is_prepared), *([] if is_clean else [cut()])]) as server:
        response = ask(server.url, reconnect=ReconnectionPolicy(delay=0.01), on_reconnect=notes)

        def lease(pool: _client.ClientPool, origin: str) -> Any:
            raise failure

        monkeypatch.setattr(_client.ClientPool, "lease", lease)
        is_prepared.set()
        items, error = response.fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert (error.__cause__, error.attempts, len(notes.calls), len(server.requests)) == (failure, 1, 1, 1)
        assert "cannot be sent again" in str(error)


def test_failing_client_function_after_a_redirect_ends_the_stream() -> None:
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


def test_redirect_to_an_invalid_port_ends_the_stream(ask: Requester) -> None:
    with SSEServer(in_turn([send(1), cut()], [respond(308, {"Location": "http://127.0.0.1:99999/"})])) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, RedirectError)
        assert len(server.requests) == 2


def test_request_is_sent_again_with_its_method_and_body(ask: Requester) -> None:
    first = [send(1, id="a"), cut()]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        policy = dataclasses.replace(AT_ONCE, resume="repeat")
        response = ask(server.url, {"X-Mine": "1"}, {"prompt": "x"}, method="REPORT", reconnect=policy)
        assert response.items() == [1, 2]
        for request in server.requests:
            assert (request.method, request.json(), request.headers["x-mine"]) == ("REPORT", {"prompt": "x"}, "1")
        assert ids_sent(server) == [None, "a"]


def test_each_connection_has_a_new_parser(ask: Requester) -> None:
    """Byte order mark, incomplete line, CR without LF, event type: the next connection inherits none of them."""
    first = [b'\xef\xbb\xbfdata: 1\n\nevent: x\ndata: "lost', cut()]
    second = [b"\xef\xbb\xbfdata: 2\r\n\r", cut()]
    with SSEServer(in_turn(first, second, [b"\ndata: 3\n\n", DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE, decode="event")
        assert [(event.event, event.data) for event in response.items()] == [(("message"), n) for n in "123"]


@pytest.mark.slow
def test_done_function_sees_events_of_all_connections(ask: Requester) -> None:
    with SSEServer(in_turn([send(1), cut()], [send(2), send(3), silence()])) as server:
        response = ask(server.url, reconnect=AT_ONCE, done=lambda event: event.data == "2")
        assert response.items() == [1, 2]
        assert response.events.outcome == "done"
        ask.run_blocking(server.requests[1].wait_aborted, 30)
        assert len(server.requests) == 2


def test_reconnecting_stream_can_be_relayed() -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [send(2, id="b"), DONE])) as server:
        frames = relay.frames(request_sse(server.url, reconnect=AT_ONCE), heartbeat=None)
        assert b"".join(frames).removeprefix(b":\n") == b"id: a\ndata: 1\n\nid: b\ndata: 2\n\ndata: [DONE]\n\n"
    with SSEServer([send(1), cut()]) as server:
        frames = relay.frames(request_sse(server.url, data={}, reconnect=AT_ONCE), heartbeat=None)
        assert b'{"type":"ReconnectionError","message":"the upstream\'s stream was cut off"}' in b"".join(frames)


def test_items_received_before_a_drop_come_first(ask: Requester) -> None:
    events = b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(500))
    with SSEServer(in_turn([events, cut()], [send(500), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        ask.run_blocking(lambda: server.wait_for_request(2, timeout=30))
        assert response.items() == list(range(501))
        assert ids_sent(server) == [None, "499"]


def test_items_of_a_full_buffer_survive_a_drop(ask: Requester) -> None:
    events = b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(500))
    with SSEServer(in_turn([events, cut()], [send(500), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE, max_buffered_bytes=2000).items() == list(range(501))


def test_servers_retry_time_holds_for_later_connections(clock: FakeClock, ask: Requester) -> None:
    notes = Notes()
    first = [send(1, retry=20), cut()]
    with SSEServer(in_turn(first, [send(2), cut()], [DONE])) as server:
        policy = ReconnectionPolicy(delay=3, jitter=0)
        response = ask(server.url, reconnect=policy, timeout=UNLIMITED, on_reconnect=notes)
        assert clock.advance_until_done(response.items) == [1, 2]
        assert response.events.retry == 20
    assert [delay for _, delay, _ in notes.calls] == [20, 20]


@pytest.mark.slow
def test_retry_of_zero_still_waits(ask: Requester) -> None:
    notes = Notes()
    once = [raw(b"retry: 0\n\n"), send(1)]
    with SSEServer(in_turn(once, once, once, [DONE])) as server:
        assert ask(server.url, reconnect=True, on_reconnect=notes).items() == [1, 1, 1]
    assert [delay for _, delay, _ in notes.calls] == [0.1] * 3


# Redirects.


def redirected(status: int, again: bool) -> list[str]:
    """Return the requested paths, if the first response redirects and its stream is dropped once."""

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/":
            return [respond(status, {"Location": "/moved"})]
        return [DONE] if "last-event-id" in request.headers else [send(1, id="a"), cut()]

    with SSEServer(script) as server:
        assert list(request_sse(server.url, reconnect=AT_ONCE).events) == [1]
        return [request.path for request in server.requests]


@pytest.mark.parametrize("status", [301, 308])
def test_permanent_redirect_is_remembered(status: int) -> None:
    assert redirected(status, True) == ["/", "/moved", "/moved"]


@pytest.mark.parametrize("status", [302, 303, 307])
def test_temporary_redirect_is_not_remembered(status: int) -> None:
    assert redirected(status, False) == ["/", "/moved", "/", "/moved"]


def test_redirects_are_remembered_up_to_the_first_temporary_one() -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if to := {"/": (301, "/a"), "/a": (307, "/b"), "/b": (308, "/c")}.get(request.path):
            return [respond(to[0], {"Location": to[1]})]
        return [DONE] if "last-event-id" in request.headers else [send(1, id="a"), cut()]

    with SSEServer(script) as server:
        assert list(request_sse(server.url, reconnect=AT_ONCE).events) == [1]
        assert [request.path for request in server.requests] == ["/", "/a", "/b", "/c", "/a", "/b", "/c"]


def test_remembered_redirect_sends_no_credentials_to_another_origin() -> None:
    with SSEServer(in_turn([send(1, id="a"), cut()], [DONE])) as other:
        with SSEServer([respond(301, {"Location": f"{other.url}/moved"})]) as server:
            secrets = {"Authorization": "Bearer x", "X-Api-Key": "y"}
            assert list(request_sse(server.url, secrets, reconnect=AT_ONCE).events) == [1]
            assert len(server.requests) == 1
        assert ids_sent(other) == [None, "a"]
        for request in other.requests:
            assert request.headers.keys().isdisjoint({"authorization", "x-api-key"})
