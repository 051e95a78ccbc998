"""Streams that outlive their connections, through both doors and over real sockets."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import count
from typing import Any

import httpx
import pytest

import sseqbridge
from sseqbridge import (
    Bridge,
    BufferLimitError,
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
    TruncatedStreamError,
    UsageError,
    _client,
    relay,
    request_sse,
)
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    comment,
    cut,
    in_turn,
    raw,
    reset,
    respond,
    send,
    silence,
    wait,
)

from .doors import Door
from .support import in_thread, is_waiting, until

AT_ONCE = ReconnectionPolicy(delay=0.01, max_delay=0.01, jitter=0)
DONE = send("[DONE]")


def ids_sent(server: SSEServer) -> list[str | None]:
    return [request.headers.get("last-event-id") for request in server.requests]


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
    broken = [send(1, id="a"), send(2, id="b"), wait(0.05), way()]
    with SSEServer(in_turn(broken, [send(3, id="c"), wait(0.05), way()], [send(4), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes)
        assert answer.items() == [1, 2, 3, 4]
        assert ids_sent(server) == [None, "b", "c"]
        assert answer.events.stats.reconnections == 2
        assert answer.events.stats.events == 4
        assert answer.events.outcome == "done"
    assert [call[:2] for call in notes.calls] == [(1, 0.01), (1, 0.01)]
    assert all(issubclass(cause, (TruncatedStreamError, ReadError)) for cause in notes.causes)
    assert notes.threads == {threading.get_ident()}


def test_status_and_headers_stay_those_of_the_first_answer(ask: Door) -> None:
    first = [respond(headers={"X-Which": "1"}), send(1), wait(0.05), cut()]
    with SSEServer(in_turn(first, [respond(headers={"X-Which": "2"}), send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert (answer.events.status, answer.events.headers["x-which"]) == (200, "1")


def test_id_of_a_block_that_was_cut_off_is_not_committed(ask: Door) -> None:
    first = [send(1, id="a"), b"id: b\ndata: 2\n", wait(0.05), cut()]
    with SSEServer(in_turn(first, [send(2, id="b"), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1, 2]
        assert ids_sent(server) == [None, "a"]


def test_id_of_a_block_without_data_is_committed(ask: Door) -> None:
    with SSEServer(in_turn([send(1, id="a"), b"id: b\n\n", wait(0.05), cut()], [DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1]
        assert ids_sent(server) == [None, "b"]


def test_empty_id_takes_it_back(ask: Door) -> None:
    first = [send(1, id="a"), wait(0.05), cut()]
    with SSEServer(in_turn(first, [b"id\ndata: 2\n\n", wait(0.05), cut()], [DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert ids_sent(server) == [None, "a", None]
        assert answer.events.last_event_id == ""


def test_id_outlives_connections_without_one(ask: Door) -> None:
    first, without = [send(1, id="\u00e4 7"), wait(0.05), cut()], [send(2), wait(0.05), cut()]
    with SSEServer(in_turn(first, without, [DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        assert [answer.events.last_event.id, answer.events.last_event_id] == ["\u00e4 7", "\u00e4 7"]
        # As UTF-8.
        assert [sent and sent.encode("latin-1").decode() for sent in ids_sent(server)] == [None, "\u00e4 7", "\u00e4 7"]


def test_last_event_id_can_be_preset(ask: Door) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [DONE] if request.headers.get("last-event-id") == "b" else [send(1, id="b"), wait(0.05), cut()]

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


def test_id_that_no_header_can_carry(ask: Door) -> None:
    with SSEServer([b"id: \x01\ndata: 1\n\n", wait(0.05), cut()]) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert "header" in str(error)
        assert len(server.requests) == 1


def test_request_is_sent_again_with_its_method_and_body(ask: Door) -> None:
    first = [send(1, id="a"), wait(0.05), cut()]
    with SSEServer(in_turn(first, [send(2), DONE])) as server:
        answer = ask(server.url, {"X-Mine": "1"}, {"prompt": "x"}, method="REPORT", reconnect=AT_ONCE)
        assert answer.items() == [1, 2]
        for request in server.requests:
            assert (request.method, request.json(), request.headers["x-mine"]) == ("REPORT", {"prompt": "x"}, "1")
        assert ids_sent(server) == [None, "a"]


def test_parser_starts_anew_with_each_connection(ask: Door) -> None:
    """The byte order mark, half a line, a CR whose LF never came, an event's type: nothing of them lasts."""
    first = [b'\xef\xbb\xbfdata: 1\n\nevent: x\ndata: "lost', wait(0.05), cut()]
    second = [b"\xef\xbb\xbfdata: 2\r\n\r", wait(0.05), cut()]
    with SSEServer(in_turn(first, second, [b"\ndata: 3\n\n", DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, decode="event")
        assert [(event.event, event.data) for event in answer.items()] == [(("message"), n) for n in "123"]


def test_function_that_says_which_event_is_the_last_is_asked_across_connections(ask: Door) -> None:
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [send(2), send(3), silence()])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, done=lambda event: event.data == "2")
        assert answer.items() == [1, 2]
        assert answer.events.outcome == "done"
        ask.meanwhile(server.requests[1].wait_aborted)
        assert len(server.requests) == 2


def test_stream_that_reconnects_goes_on_to_a_reader() -> None:
    with SSEServer(in_turn([send(1, id="a"), wait(0.05), cut()], [send(2, id="b"), DONE])) as server:
        frames = relay.frames(request_sse(server.url, reconnect=AT_ONCE), heartbeat=None)
        assert b"".join(frames).removeprefix(b":\n") == b"id: a\ndata: 1\n\nid: b\ndata: 2\n\ndata: [DONE]\n\n"
    with SSEServer([send(1), wait(0.05), cut()]) as server:
        frames = relay.frames(request_sse(server.url, data={}, reconnect=AT_ONCE), heartbeat=None)
        assert b'{"type":"ReconnectionError","message":"the upstream\'s stream was cut off"}' in b"".join(frames)


def test_what_was_received_before_the_drop_is_given_first(ask: Door) -> None:
    events = b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(500))
    with SSEServer(in_turn([events, cut()], [send(500), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        ask.meanwhile(lambda: server.wait_for_request(2))
        assert answer.items() == list(range(501))
        assert ids_sent(server) == [None, "499"]


def test_what_was_received_is_given_though_it_fills_all_that_may_be_buffered(ask: Door) -> None:
    events = b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(500))
    with SSEServer(in_turn([events, cut()], [send(500), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE, max_buffered_bytes=2000).items() == list(range(501))


def test_reconnection_time_of_the_server_holds_for_all_connections_that_follow(ask: Door) -> None:
    notes = Notes()
    first = [send(1, retry=0.02), wait(0.05), cut()]
    with SSEServer(in_turn(first, [send(2), wait(0.05), cut()], [DONE])) as server:
        answer = ask(server.url, reconnect=ReconnectionPolicy(delay=30, jitter=0), on_reconnect=notes)
        assert answer.items() == [1, 2]
        assert answer.events.retry == 0.02
    assert [delay for _, delay, _ in notes.calls] == [0.02, 0.02]


# Redirects.


def redirected(status: int, again: bool) -> list[str]:
    """The paths that are asked, where the first answer is a redirect and the stream behind it is dropped once."""

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/":
            return [respond(status, {"Location": "/moved"})]
        return [DONE] if "last-event-id" in request.headers else [send(1, id="a"), wait(0.05), cut()]

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
        return [DONE] if "last-event-id" in request.headers else [send(1, id="a"), wait(0.05), cut()]

    with SSEServer(script) as server:
        assert list(request_sse(server.url, reconnect=AT_ONCE).events) == [1]
        assert [request.path for request in server.requests] == ["/", "/a", "/b", "/c", "/a", "/b", "/c"]


def test_remembered_redirect_takes_no_credentials_to_another_origin() -> None:
    with SSEServer(in_turn([send(1, id="a"), wait(0.05), cut()], [DONE])) as other:
        with SSEServer([respond(301, {"Location": f"{other.url}/moved"})]) as server:
            secrets = {"Authorization": "Bearer x", "X-Api-Key": "y"}
            assert list(request_sse(server.url, secrets, reconnect=AT_ONCE).events) == [1]
            assert len(server.requests) == 1
        assert ids_sent(other) == [None, "a"]
        for request in other.requests:
            assert request.headers.keys().isdisjoint({"authorization", "x-api-key"})


# What ends a stream for good.


def test_clients_that_are_made_too_late_are_closed(closed_port: int) -> None:
    made: list[httpx.AsyncClient] = []

    def factory() -> httpx.AsyncClient:
        if made:
            time.sleep(1)
        made.append(httpx.AsyncClient())
        return made[-1]

    with Bridge(client=factory) as bridge:
        with pytest.raises(ReconnectionError):
            url = f"http://127.0.0.1:{closed_port}"
            request_sse(url, reconnect=AT_ONCE, bridge=bridge, timeout=Timeout(total=0.5))
        until(lambda: len(made) == 2)
    assert all(client.is_closed for client in made)


def test_factory_that_fails_the_second_time_says_so(closed_port: int) -> None:
    made: list[httpx.AsyncClient] = []

    def factory() -> Any:
        if made:
            return None
        made.append(httpx.AsyncClient())
        return made[-1]

    with Bridge(client=factory) as bridge, pytest.raises(SSEError) as caught:
        request_sse(f"http://127.0.0.1:{closed_port}", reconnect=AT_ONCE, bridge=bridge)
    assert isinstance(caught.value.__cause__, UsageError)


def test_204_ends_it(ask: Door) -> None:
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [respond(204)])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.items() == [1]
        assert answer.events.outcome == "eof"
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusal_for_good_ends_it(ask: Door, status: int) -> None:
    refusal = [respond(status, content_type="application/json"), b'{"error": "no"}']
    with SSEServer(in_turn([send(1), wait(0.05), cut()], refusal)) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, StatusError)
        assert (error.status, error.body) == (status, b'{"error": "no"}')
        assert len(server.requests) == 2


def test_answer_of_another_type_ends_it(ask: Door) -> None:
    page = [respond(content_type="text/html"), b"log in"]
    with SSEServer(in_turn([send(1), wait(0.05), cut()], page)) as server:
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
    with SSEServer(in_turn([send(1), wait(0.05), cut()], refusal, refusal, [send(2), DONE])) as server:
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
        ("0", 0, 0.02),
        ("1", 1, 1.02),
        (lambda: format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True), 0.9, 2.1),
        ("never", 0, 0.02),
    ],
)
def test_retry_after_is_honoured(value: Any, least: float, most: float) -> None:
    notes = Notes()
    value = value() if callable(value) else value
    busy = [respond(503, {"Retry-After": value})]
    with SSEServer(in_turn([send(1), wait(0.05), cut()], busy, [DONE])) as server:
        assert list(request_sse(server.url, reconnect=AT_ONCE, on_reconnect=notes).events) == [1]
    assert least <= notes.calls[1][1] <= most


def test_retry_after_counts_by_the_servers_clock() -> None:
    notes = Notes()
    then = datetime(2020, 1, 1, tzinfo=timezone.utc)
    dates = {
        "Date": format_datetime(then, usegmt=True),
        "Retry-After": format_datetime(then + timedelta(seconds=1), usegmt=True),
    }
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [respond(503, dates)], [DONE])) as server:
        assert list(request_sse(server.url, reconnect=AT_ONCE, on_reconnect=notes).events) == [1]
    assert notes.calls[1][1] == 1


def test_it_gives_up_after_so_many_attempts(ask: Door) -> None:
    policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=3)
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [respond(503)])) as server:
        items, error = ask(server.url, reconnect=policy).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert error.attempts == 3
        assert isinstance(error.__cause__, StatusError)
        assert len(server.requests) == 4
        assert "attempts=3" in str(error)


def test_connection_that_lasted_starts_the_count_anew_though_it_gave_no_event(ask: Door) -> None:
    silent = [respond(), comment(), wait(0.2), cut()]
    with SSEServer(in_turn(silent, silent, silent, [send(1), DONE])) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1, reset_after=0.1)
        assert ask(server.url, reconnect=policy).items() == [1]
    with SSEServer(silent) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1, reset_after=10)
        items, error = ask(server.url, reconnect=policy).fail()
        assert items == []
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 2


def test_server_that_is_gone_is_tried_again(ask: Door) -> None:
    notes = Notes()
    policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=2)
    with SSEServer([send(1), wait(0.05), cut()]) as server:
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


@pytest.mark.parametrize("after", [[cut()], [reset()], [wait(0.1), cut()]], ids=["cut", "reset", "later"])
@pytest.mark.parametrize("data", [None, {}], ids=["GET", "POST"])
def test_nothing_is_asked_for_after_the_last_event_whatever_becomes_of_the_connection(
    ask: Door, after: list[Step], data: Any
) -> None:
    notes = Notes()
    with SSEServer([send(1, id="a"), DONE, *after]) as server:
        policy = ReconnectionPolicy(delay=0, jitter=0)
        answer = ask(server.url, data=data, reconnect=policy, on_reconnect=notes)
        assert answer.items() in ([1], [1, 1])[: 1 if after[0] != reset() else 2]
        assert answer.events.outcome == "done"
        ask.meanwhile(lambda: time.sleep(0.3))
        assert len(server.requests) == 1
    assert notes.calls == []


def test_nothing_is_asked_for_after_a_function_accepted_the_last_event(ask: Door) -> None:
    """Of a connection that has ended by then."""
    with SSEServer([send(1, id="1"), send(2, id="2")]) as server:
        policy = ReconnectionPolicy(delay=0.3, jitter=0)
        answer = ask(server.url, reconnect=policy, done=lambda event: event.data == "2")
        assert answer.next() == 1
        ask.meanwhile(lambda: time.sleep(0.1))
        assert answer.items() == [2]
        assert answer.events.outcome == "done"
        ask.meanwhile(lambda: time.sleep(0.6))
        assert len(server.requests) == 1


def test_prompt_is_not_paid_for_twice_in_silence(ask: Door) -> None:
    with SSEServer([send(1), wait(0.05), cut()]) as server:
        items, error = ask(server.url, data={}, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert isinstance(error.__cause__, (TruncatedStreamError, ReadError))
        assert "resend=True" in str(error)
        assert len(server.requests) == 1


def test_id_that_the_caller_brought_is_none_of_the_servers(ask: Door) -> None:
    with SSEServer([send(1), wait(0.05), cut()]) as server:
        items, error = ask(server.url, data={}, reconnect=AT_ONCE, last_event_id="x").fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 1


def test_prompt_that_may_be_at_work_is_not_sent_again(ask: Door) -> None:
    with SSEServer([wait(100)]) as server:
        with pytest.raises(StreamTimeoutError):
            ask(server.url, data={}, reconnect=AT_ONCE, timeout=Timeout(read=0.1))
        assert len(server.requests) == 1


def test_asking_for_another_connection_pays_for_no_prompt_twice(ask: Door) -> None:
    """Where the event comes between the asking and the loop's turn."""
    with SSEServer([send(1), silence()]) as server:
        answer = ask(server.url, data={}, reconnect=AT_ONCE)
        assert answer.next() == 1
        answer.events._pump.request_reconnect()
        items, error = answer.fail()
        assert items == []
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 1


def test_prompt_is_paid_for_twice_where_that_is_said(ask: Door) -> None:
    policy = ReconnectionPolicy(delay=0.01, jitter=0, resend=True)
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [send(1), send(2), DONE])) as server:
        assert ask(server.url, data={}, reconnect=policy).items() == [1, 1, 2]


def test_request_whose_answer_gave_nothing_yet_is_sent_again(ask: Door) -> None:
    with SSEServer(in_turn([respond(), comment(), wait(0.05), cut()], [send(1), DONE])) as server:
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


def test_first_answer_is_waited_for_no_longer_than_total(ask: Door, closed_port: int) -> None:
    policy = ReconnectionPolicy(delay=0.1, factor=1, jitter=0)
    started = time.monotonic()
    with pytest.raises(ReconnectionError) as caught:
        ask(f"http://127.0.0.1:{closed_port}", reconnect=policy, timeout=Timeout(total=0.35))
    assert time.monotonic() - started < 3
    assert caught.value.attempts == 3
    assert isinstance(caught.value.__cause__, ConnectError)


def test_last_answer_is_returned_where_the_time_is_over(ask: Door) -> None:
    """The next attempt would come too late."""
    busy = [respond(503, {"Retry-After": "100"}, content_type="text/plain"), b"busy"]
    with SSEServer(busy) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert (answer.status, answer.items()) == (503, ["busy"])
        assert len(server.requests) == 1


def test_last_answer_is_returned_where_no_other_came_in_time(ask: Door) -> None:
    busy = [respond(503, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn(busy, [wait(100)])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, timeout=Timeout(total=0.4))
        assert (answer.status, answer.events.outcome) == (503, None)
        server.requests[1].wait_aborted()
    with SSEServer(in_turn(busy, [wait(0.05), cut()])) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1)
        answer = ask(server.url, reconnect=policy)
        assert (answer.status, answer.items(), answer.events.outcome) == (503, ["busy"], "eof")


def test_attempt_under_way_ends_with_the_time(ask: Door) -> None:
    with SSEServer([wait(100)]) as server:
        with pytest.raises(ReconnectionError) as caught:
            ask(server.url, reconnect=AT_ONCE, timeout=Timeout(total=0.2))
        assert isinstance(caught.value.__cause__, StreamTimeoutError)
        server.requests[0].wait_aborted()


def test_without_total_the_first_answer_has_a_minute(ask: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sseqbridge._reconnecting._OPEN_SECONDS == 60
    monkeypatch.setattr(sseqbridge._reconnecting, "_OPEN_SECONDS", 0.2)
    with SSEServer([wait(100)]) as server, pytest.raises(ReconnectionError):
        ask(server.url, reconnect=AT_ONCE)
    # The stream itself has no such limit.
    with SSEServer([send(1), wait(0.5), DONE]) as server:
        assert ask(server.url, reconnect=AT_ONCE).items() == [1]


def test_total_holds_across_connections(ask: Door) -> None:
    with SSEServer([send(1), wait(0.05), cut()]) as server:
        started = time.monotonic()
        items, error = ask(server.url, reconnect=AT_ONCE, timeout=Timeout(total=0.5)).fail()
        assert 0.4 < time.monotonic() - started < 5
        assert len(items) > 2
        assert isinstance(error, StreamTimeoutError)
        assert error.which == "total"


# Timeouts.


def test_silence_is_a_drop(ask: Door) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE, timeout=Timeout(read=0.1), on_reconnect=notes)
        assert answer.items() == [1, 2]
        server.requests[0].wait_aborted()
        assert ids_sent(server) == [None, "a"]
    [(_, _, cause)] = notes.calls
    assert isinstance(cause, StreamTimeoutError)
    assert cause.which == "read"


def heartbeats() -> Iterator[Step]:
    while True:
        yield comment()
        yield wait(0.02)


def test_stream_of_heartbeats_alone_is_a_drop(ask: Door) -> None:
    notes = Notes()
    numbers = count()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        number = next(numbers)
        yield send(number, id=str(number))
        if number < 2:
            yield from heartbeats()
        yield DONE

    with SSEServer(script) as server:
        answer = ask(server.url, reconnect=AT_ONCE, timeout=Timeout(idle=0.15), on_reconnect=notes)
        assert answer.items() == [0, 1, 2]
        server.requests[0].wait_aborted()
        assert ids_sent(server) == [None, "0", "1"]
    assert [cause and (type(cause), getattr(cause, "which", "")) for _, _, cause in notes.calls] == [
        (StreamTimeoutError, "idle")
    ] * 2


def test_idle_clock_stands_still_while_there_is_no_connection(ask: Door) -> None:
    notes = Notes()
    policy = ReconnectionPolicy(delay=0.4, factor=1, jitter=0)
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [respond(), wait(0.1), send(2), DONE])) as server:
        answer = ask(server.url, reconnect=policy, timeout=Timeout(idle=0.2), on_reconnect=notes)
        assert answer.items() == [1, 2]
    assert StreamTimeoutError not in notes.causes


def test_refusal_that_stalls_is_no_drop(ask: Door) -> None:
    with SSEServer([respond(401), b"no", silence()]) as server:
        answer = ask(server.url, decode="text", reconnect=AT_ONCE, timeout=Timeout(idle=0.1))
        items, error = answer.fail()
        assert items == []
        assert isinstance(error, (StatusError, StreamTimeoutError))
        assert len(server.requests) == 1


# The caller's part.


def test_close_during_the_wait_ends_it_and_no_request_follows(ask: Door) -> None:
    waits = threading.Event()
    policy = ReconnectionPolicy(delay=0.5, jitter=0)
    with SSEServer([send(1), wait(0.05), cut()]) as server:
        with ask(server.url, reconnect=policy, on_reconnect=lambda *told: waits.set()) as answer:
            assert answer.next() == 1
            with pytest.raises(TimeoutError):
                answer.next(timeout=0.2)
            assert waits.is_set()
            started = time.monotonic()
        assert time.monotonic() - started < 0.3
        assert answer.items() == []
        assert answer.events.outcome == "closed"
        time.sleep(0.6)
        assert len(server.requests) == 1


@pytest.mark.parametrize("stage", ["read", "wait", "open"])
def test_asking_for_another_connection_and_closing_at_the_same_time(ask: Door, stage: str) -> None:
    first = [send(1), silence()] if stage == "read" else [send(1), wait(0.05), cut()]
    answers = in_turn(first, [wait(100)], [send(2), silence()])

    def count() -> int:
        """How many requests were sent: all that were before this one are in once it is answered."""
        assert list(request_sse(f"{server.url}/count").events) == [0]
        return sum(request.path == "/" for request in server.requests)

    with SSEServer(lambda request: [send(0), DONE] if request.path == "/count" else answers(request)) as server:
        policy = ReconnectionPolicy(delay=0.3 if stage == "wait" else 0, jitter=0)
        with ask(server.url, reconnect=policy) as answer:
            assert answer.next() == 1
            if stage == "wait":
                ask.meanwhile(lambda: time.sleep(0.15))
            elif stage == "open":
                ask.meanwhile(lambda: server.wait_for_request(2))
            answer.events.reconnect()
            started = time.monotonic()
        assert time.monotonic() - started < 0.5
        assert answer.events._pump.finished
        asked = count()
        ask.meanwhile(lambda: time.sleep(0.5))
        assert count() == asked


def test_what_is_told_of_attempts_is_bounded_while_nobody_reads(ask: Door) -> None:
    busy = [respond(503, content_type="text/plain"), bytes(100_000)]
    with SSEServer(in_turn([send(1), wait(0.05), cut()], busy)) as server:
        policy = ReconnectionPolicy(delay=0, jitter=0)
        with ask(server.url, reconnect=policy, max_buffered_bytes=250_000) as answer:
            assert answer.next() == 1
            ask.meanwhile(lambda: time.sleep(0.5))
            assert 2 <= len(server.requests) <= 5
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
        policy = ReconnectionPolicy(delay=0, jitter=0, attempts=20)
        answer = ask(server.url, reconnect=policy, max_buffered_bytes=250_000, on_reconnect=slowly)
        assert (answer.status, len(seen)) == (503, 20)
        assert seen[0] <= 5


def test_close_while_the_next_connection_is_made(ask: Door) -> None:
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [wait(100)])) as server:
        with ask(server.url, reconnect=AT_ONCE) as answer:
            assert answer.next() == 1
            ask.meanwhile(lambda: server.wait_for_request(2))
        server.requests[1].wait_aborted()


def test_callback_that_raises_ends_the_stream(ask: Door, closed_port: int) -> None:
    class EnoughError(Exception):
        pass

    def stop(attempt: int, delay: float, cause: SSEError | None) -> None:
        raise EnoughError

    with SSEServer([send(1), wait(0.05), cut()]) as server:
        answer = ask(server.url, reconnect=ReconnectionPolicy(delay=0.3, jitter=0), on_reconnect=stop)
        assert answer.next() == 1
        for _ in range(2):
            with pytest.raises(EnoughError):
                answer.next()
        assert answer.events.outcome == "error"
    with pytest.raises(EnoughError):
        ask(f"http://127.0.0.1:{closed_port}", reconnect=True, on_reconnect=stop)


def test_callback_is_called_between_what_came_before_and_after() -> None:
    seen: list[Any] = []
    with SSEServer(in_turn([send(1), send(2), wait(0.05), cut()], [send(3), DONE])) as server:
        stream = request_sse(server.url, reconnect=AT_ONCE, on_reconnect=lambda *told: seen.append("drop")).events
        server.wait_for_request(2)
        seen.extend(stream)
    assert seen == [1, 2, "drop", 3]


def test_what_reconnects_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG, "sseqbridge"),
        SSEServer(in_turn([send(1), wait(0.05), cut()], [DONE])) as server,
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
        server.requests[0].wait_aborted()
        assert ids_sent(server) == [None, "a"]
        assert answer.events.stats.reconnections == 1
        answer.events.reconnect()
        # As it comes where the end and the asking cross.
        answer.events._pump.reconnect()
        assert len(server.requests) == 2
    assert notes.calls == [(1, 0.0, None)]


def test_reconnect_from_another_thread_while_the_consumer_waits() -> None:
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        stream = request_sse(server.url, reconnect=True).events
        assert next(stream) == 1
        rest = in_thread(lambda: list(stream))
        until(lambda: is_waiting(rest))
        stream.reconnect()
        assert rest.result(5) == [2]


def test_reconnect_during_the_wait_ends_it(ask: Door) -> None:
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=ReconnectionPolicy(delay=30))
        assert answer.next() == 1
        with pytest.raises(TimeoutError):
            answer.next(timeout=0.2)
        answer.events.reconnect()
        assert answer.items() == [2]


def test_reconnect_while_the_next_connection_is_made(ask: Door) -> None:
    with SSEServer(in_turn([send(1), wait(0.05), cut()], [wait(100)], [send(2), DONE])) as server:
        answer = ask(server.url, reconnect=AT_ONCE)
        assert answer.next() == 1
        ask.meanwhile(lambda: server.wait_for_request(2))
        answer.events.reconnect()
        assert answer.items() == [2]
        server.requests[1].wait_aborted()


def test_reconnect_while_the_next_connection_waits_for_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    leased, go = threading.Semaphore(0), threading.Event()
    lease = _client.ClientPool.lease

    def slowly(pool: _client.ClientPool, origin: str) -> Any:
        leased.release()
        go.wait(5)
        return lease(pool, origin)

    script = in_turn([send(1), wait(0.05), cut()], [send(2), DONE])
    with SSEServer(script) as server, Bridge(client=httpx.AsyncClient) as bridge:
        stream = request_sse(server.url, reconnect=AT_ONCE, bridge=bridge).events
        monkeypatch.setattr(_client.ClientPool, "lease", slowly)
        assert next(stream) == 1
        assert leased.acquire(timeout=5)
        stream.reconnect()
        # It has come to the loop, as what was posted after it.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), stream._pump.loop).result(5)
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
        ({"last_event_id": "a\nb"}, "control character"),
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
    with SSEServer([send(1), wait(0.05), cut()]) as server:
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
