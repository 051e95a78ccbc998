"""Detection of the client's disconnect by the web server's socket."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest

from sseqbridge import (
    Bridge,
    RequestAbortedError,
    UsageError,
    relay,
    request_sse,
)
from sseqbridge._runtime import sockets
from sseqbridge.relay import RelayEnd
from sseqbridge.relay._disconnect import client_of, stops_threads
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    hold,
    send,
    silence,
    wait,
)
from tests.clock import FakeClock
from tests.relay.support import DONE
from tests.support import in_thread, is_waiting, until

pytestmark = pytest.mark.configurations("default", "plain", "httpx_transport")

# A web server's socket, and its client's.
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    with server, client:
        yield server, client


@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_disconnect_is_detected(pair: Pair, name: str, how: str) -> None:
    server, connection = pair
    client = client_of({name: server})
    assert client is not None
    assert not client.has_disconnected()
    connection.send(b"the next request")
    assert not client.has_disconnected()
    connection.close() if how == "close" else connection.shutdown(socket.SHUT_WR)
    assert client.has_disconnected()


def test_disconnect_is_detected_without_pollrdhup(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("select.POLLRDHUP")
    server, connection = pair
    disconnected = [sockets.peer_has_left(server.fileno(), may_peek=True)]
    connection.send(b"x")
    disconnected.append(sockets.peer_has_left(server.fileno(), may_peek=True))
    server.recv(1)
    connection.shutdown(socket.SHUT_WR)
    disconnected.append(sockets.peer_has_left(server.fileno(), may_peek=True))
    assert disconnected == [False, False, True]


def test_environ_without_an_open_socket_has_no_client() -> None:
    server, client = socket.socketpair()
    server.close()
    client.close()
    assert client_of({}) is None
    assert client_of({"gunicorn.socket": server}) is None


def test_probe_ends_the_relay_after_a_disconnect(clock: FakeClock, pair: Pair) -> None:
    server_side, connection = pair
    with SSEServer([send(1), silence()]) as server:
        frames = relay.frames(
            request_sse(server.url, timeout=None), heartbeat=None, probe=60, environ={"gunicorn.socket": server_side}
        )
        while next(frames) == HEARTBEAT:
            pass
        reading = in_thread(lambda: list(frames))
        until(lambda: is_waiting(reading))
        connection.close()
        clock.advance(61)
        assert reading.result(30) == []
        server.requests[0].wait_aborted()


def test_relay_of_a_silent_client_goes_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server_side, connection = pair
    connection.send(b"the next request")
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as server:
        frames = relay.frames(
            request_sse(server.url), heartbeat=None, probe=0.01, environ={"gunicorn.socket": server_side}
        )
        checks = []
        monkeypatch.setattr(sockets, "peer_has_left", lambda fd, may_peek: checks.append(1))
        reading = in_thread(lambda: b"".join(frames))
        until(lambda: len(checks) > 10)
        go.set()
        assert reading.result(30).endswith(b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n")


def test_disconnect_is_detected_while_map_leaves_out_every_event(
    pair: Pair,
) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        while True:
            yield send(1)
            yield wait(0.005)

    server_side, connection = pair
    with SSEServer(script) as server:
        frames = relay.frames(
            request_sse(server.url),
            heartbeat=None,
            probe=0.05,
            map=lambda item: None,
            environ={"gunicorn.socket": server_side},
        )
        reading = in_thread(lambda: list(frames))
        until(lambda: server.requests[0].sent_bytes > 100)
        connection.close()
        assert reading.result(30) in ([], [HEARTBEAT])
        server.requests[0].wait_aborted()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", ["iterable", "function", "stream"])
def test_close_under_uwsgi_without_threads_waits_for_the_threads(
    kind: str, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uWSGI would not run them after the request."""

    class Uwsgi:
        opt = MappingProxyType[str, Any]({})

        @staticmethod
        def connection_fd() -> int:
            return -1

    monkeypatch.setitem(sys.modules, "uwsgi", Uwsgi())
    steps: list[str] = []

    def items() -> Iterator[Any]:
        try:
            yield from request_sse(server.url).events
        finally:
            steps.append("ended")

    with SSEServer([send(1), silence()]) as server:
        stream: Any = {"iterable": items, "function": lambda: items, "stream": lambda: request_sse(server.url)}[kind]
        frames = relay.frames(stream(), environ={"uwsgi.version": b"2.0"}, early=early)
        while next(frames) == HEARTBEAT:
            pass
        # A bridge that has ended has no loop to wait for.
        ended = Bridge()
        ended.started()
        ended.close()
        frames.close()
        assert steps == ([] if kind == "stream" else ["ended"])
        server.requests[0].wait_aborted()
    monkeypatch.setattr(Uwsgi, "opt", {"threads": b"2"})
    assert not stops_threads({"uwsgi.version": b"2.0"})
    assert not stops_threads({})


def test_socket_of_uwsgi_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module `uwsgi` exists only in its own processes."""

    class Uwsgi:
        connection_fd = staticmethod(pair[0].fileno)

    monkeypatch.setitem(sys.modules, "uwsgi", Uwsgi())
    assert client_of({}) is None
    client = client_of({"uwsgi.version": b"2.0", "wsgi.url_scheme": "http"})
    assert client is not None
    assert not client.has_disconnected()
    pair[1].close()
    assert client.has_disconnected()


def test_disconnect_before_the_headers_aborts_the_request(pair: Pair) -> None:
    server_side, connection = pair
    with SSEServer([silence()]) as server:
        cancel = relay.reader_left({"gunicorn.socket": server_side}, probe=0.02)
        requesting = in_thread(lambda: request_sse(server.url, cancel=cancel))
        server.wait_for_request()
        assert not cancel.is_set()
        connection.close()
        with pytest.raises(RequestAbortedError):
            requesting.result(30)
        server.requests[0].wait_aborted()
        assert cancel.is_set()


def test_probe_of_reader_left_must_be_above_zero() -> None:
    with pytest.raises(UsageError, match="number of seconds above 0"):
        relay.reader_left({}, probe=0)


def test_flag_is_never_set_without_a_socket() -> None:
    assert not relay.reader_left({}).is_set()


def test_flag_does_not_watch_the_next_client_of_its_descriptor(pair: Pair) -> None:
    server, _ = pair
    flag = relay.reader_left({"gunicorn.socket": server}, probe=1e-9)
    assert not flag.is_set()
    number = server.fileno()
    other_server, other_client = socket.socketpair()
    with other_server, other_client:
        # As if the web server had closed the socket, and accepted another client.
        os.dup2(other_server.fileno(), number)
        other_client.close()
        assert sockets.peer_has_left(number, may_peek=True)
        assert not flag.is_set()


def test_flag_of_a_closed_socket_is_not_set(pair: Pair) -> None:
    server, _ = pair
    flag = relay.reader_left({"gunicorn.socket": server}, probe=1e-9)
    server.close()
    assert not flag.is_set()


def test_flags_keep_their_state_after_the_response_is_closed(pair: Pair) -> None:
    server, connection = pair
    environ = {"gunicorn.socket": server}
    flag, other = (relay.reader_left(environ, probe=1e-9) for _ in range(2))
    frames = relay.frames(iter(["a"]), environ=environ)
    assert not flag.is_set()
    frames.close()
    # The connection served a later request, and is closed now.
    connection.close()
    assert not flag.is_set()
    assert not other.is_set()


def test_flags_of_a_request_are_set_together(pair: Pair) -> None:
    """A relay whose stream is ended by another flag finds its own set, and its client gone."""
    server, connection = pair
    environ = {"gunicorn.socket": server}
    seldom, often = (relay.reader_left(environ, probe=probe) for probe in (1000, 1e-9))
    assert not seldom.is_set()
    connection.close()
    assert often.is_set()
    assert seldom.is_set()


@pytest.mark.parametrize("early", [False, True])
def test_stream_that_the_flag_of_its_view_ends_is_disconnected(pair: Pair, early: bool) -> None:
    server, connection = pair
    environ = {"gunicorn.socket": server}
    ends: list[Any] = []
    with SSEServer([silence()]) as upstream:
        cancel = relay.reader_left(environ, probe=0.01)
        frames = relay.frames(
            lambda: request_sse(upstream.url, cancel=cancel), environ=environ, probe=1000, early=early,
            on_end=ends.append,
        )
        reading = in_thread(lambda: list(frames))
        upstream.wait_for_request(timeout=30)
        connection.close()
        assert b"cancelled" not in b"".join(reading.result(30))
        frames.close()
    assert [end.outcome for end in ends] == ["disconnected"]


def test_function_that_fails_after_the_disconnect_is_no_error(pair: Pair) -> None:
    server, connection = pair

    def opens() -> Any:
        connection.close()
        raise LookupError

    ends: list[RelayEnd] = []
    frames = relay.frames(opens, environ={"gunicorn.socket": server}, on_end=ends.append)
    with pytest.raises(LookupError):
        frames.open()
    assert ends == [RelayEnd("disconnected", None, "")]
