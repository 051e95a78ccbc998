"""Which ends of a connection a stream outlives: sync and async, over real sockets."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import count
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    BufferLimitError,
    ConnectError,
    ContentTypeError,
    ReadError,
    ReconnectionError,
    ReconnectionPolicy,
    StatusError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UsageError,
    request_sse,
)
from sseqbridge._engine.channel import post
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    comment,
    cut,
    hold,
    in_turn,
    reset,
    respond,
    send,
    silence,
    wait,
)
from tests.clock import FakeClock
from tests.engine.reconnecting import AT_ONCE, DONE, LATE, UNLIMITED, Notes, ids_sent, is_between_connections
from tests.requesters import Requester
from tests.support import in_thread, subscription_of, until

# Final ends of a stream.


def test_client_made_too_late_is_closed(clock: FakeClock, closed_port: int) -> None:
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


def test_client_function_that_fails_later_ends_the_stream(closed_port: int) -> None:
    made: list[httpx.AsyncClient] = []

    def factory() -> Any:
        if made:
            return None
        made.append(httpx.AsyncClient())
        return made[-1]

    with Bridge(client=factory) as bridge, pytest.raises(ReconnectionError) as caught:
        request_sse(f"http://127.0.0.1:{closed_port}", reconnect=AT_ONCE, bridge=bridge)
    assert isinstance(caught.value.__cause__, UsageError)


def test_204_ends_the_stream(ask: Requester) -> None:
    with SSEServer(in_turn([send(1), cut()], [respond(204)])) as server:
        response = ask(server.url, reconnect=AT_ONCE)
        assert response.items() == [1]
        assert response.events.outcome == "eof"
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_final_refusal_ends_the_stream(ask: Requester, status: int) -> None:
    refusal = [respond(status, content_type="application/json"), b'{"error": "no"}']
    with SSEServer(in_turn([send(1), cut()], refusal)) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, StatusError)
        assert (error.status, error.body) == (status, b'{"error": "no"}')
        assert len(server.requests) == 2


def test_other_content_type_ends_the_stream(ask: Requester) -> None:
    page = [respond(content_type="text/html"), b"log in"]
    with SSEServer(in_turn([send(1), cut()], page)) as server:
        items, error = ask(server.url, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, ContentTypeError)
        assert error.body == b"log in"


def test_oversized_event_ends_the_stream(ask: Requester) -> None:
    with SSEServer([send(1), send("x" * 2000), silence()]) as server:
        items, error = ask(server.url, reconnect=AT_ONCE, max_event_bytes=1000).fail()
        assert items == [1]
        assert isinstance(error, BufferLimitError)
        assert len(server.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_temporary_refusal_is_retried(ask: Requester, status: int) -> None:
    notes = Notes()
    refusal = [respond(status, content_type="text/plain"), b"busy"]
    with SSEServer(in_turn([send(1), cut()], refusal, refusal, [send(2), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE, on_reconnect=notes)
        assert response.items() == [1, 2]
        assert response.events.stats.reconnections == 1
        # A refusal that is read to its end keeps the connection alive.
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
        # HTTP dates have whole seconds; by the real clock.
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


def test_stream_is_lost_after_the_limit_of_attempts(ask: Requester) -> None:
    policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=3)
    with SSEServer(in_turn([send(1), cut()], [respond(503)])) as server:
        items, error = ask(server.url, reconnect=policy).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert error.attempts == 3
        assert isinstance(error.__cause__, StatusError)
        assert len(server.requests) == 4
        assert "attempts=3" in str(error)


def test_long_connection_without_events_resets_the_attempts(clock: FakeClock, ask: Requester) -> None:
    flags = [threading.Event() for _ in range(3)]
    silent = [[respond(), comment(), hold(flag), cut()] for flag in flags]
    with SSEServer(in_turn(*silent, [send(1), DONE])) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1, reset_after=30)
        response = ask(server.url, reconnect=policy)
        reading = in_thread(response.items)
        received = 0
        for flag in flags:
            # Once a comment is received, the connection is open by the clock that is advanced now.
            until(lambda received=received: response.events.stats.bytes > received)  # type: ignore[misc]
            received = response.events.stats.bytes
            clock.advance(31)
            flag.set()
        assert reading.result(30) == [1]


def test_short_connection_without_events_counts_as_an_attempt(ask: Requester) -> None:
    with SSEServer([respond(), comment(), cut()]) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0, attempts=1, reset_after=1000)
        items, error = ask(server.url, reconnect=policy).fail()
        assert items == []
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 2


def test_refused_connection_is_retried(ask: Requester) -> None:
    notes = Notes()
    policy = ReconnectionPolicy(delay=0.01, factor=1, jitter=0, attempts=2)
    # The end of the server cuts the connection: no attempt before it can get another item.
    with SSEServer([send(1), silence()]) as server:
        response = ask(server.url, reconnect=policy, on_reconnect=notes)
        assert response.next() == 1
    items, error = response.fail()
    assert items == []
    assert isinstance(error, ReconnectionError)
    assert isinstance(error.__cause__, ConnectError)
    assert [attempt for attempt, _, _ in notes.calls] == [1, 2]
    # The second time, the same.
    with pytest.raises(ReconnectionError):
        response.next()


# Clean ends, and requests with a body.


def test_clean_end_of_a_get_is_reconnected(ask: Requester) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a")], [send(2), DONE])) as server:
        assert ask(server.url, reconnect=AT_ONCE, on_reconnect=notes).items() == [1, 2]
        assert ids_sent(server) == [None, "a"]
    assert notes.calls == [(1, 0.01, None)]


def test_clean_end_of_a_post_ends_the_stream(ask: Requester) -> None:
    with SSEServer([send(1, id="a")]) as server:
        response = ask(server.url, data={}, reconnect=AT_ONCE)
        assert response.items() == [1]
        assert response.events.outcome == "eof"
        assert len(server.requests) == 1


def test_on_eof_decides_for_all_methods(ask: Requester) -> None:
    never = ReconnectionPolicy(on_eof=False)
    always = dataclasses.replace(AT_ONCE, on_eof=True, resume="repeat")
    with SSEServer([send(1)]) as server:
        assert ask(server.url, reconnect=never).items() == [1]
    with SSEServer(in_turn([send(1, id="a")], [send(2), DONE])) as server:
        assert ask(server.url, data={}, reconnect=always).items() == [1, 2]


def test_required_done_makes_a_clean_end_a_truncation(ask: Requester) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a")], [send(2), DONE])) as server:
        response = ask(server.url, reconnect=AT_ONCE, require_done=True, on_reconnect=notes)
        assert response.items() == [1, 2]
    assert notes.causes == [TruncatedStreamError]
    # A clean end that is not reconnected is this error.
    with SSEServer([send(1, id="a")]) as server:
        items, error = ask(server.url, data={}, reconnect=AT_ONCE, require_done=True).fail()
        assert items == [1]
        assert isinstance(error, TruncatedStreamError)
        assert len(server.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", [cut, reset], ids=["cut", "reset"])
@pytest.mark.parametrize("is_later", [True, False], ids=["later", "at once"])
@pytest.mark.parametrize("data", [None, {}], ids=["GET", "POST"])
def test_no_reconnection_after_the_last_event(
    ask: Requester, way: Callable[[], Step], is_later: bool, data: Any
) -> None:
    notes = Notes()
    is_read = threading.Event()
    # A reset may discard bytes that were not read yet, also the last event.
    after = [hold(is_read)] if is_later or way is reset else []
    with SSEServer([send(1, id="a"), DONE, *after, way()]) as server:
        response = ask(server.url, data=data, reconnect=AT_ONCE, on_reconnect=notes)
        assert response.items() == [1]
        is_read.set()
        assert response.events.outcome == "done"
        ask.run_blocking(until, lambda: reader_of(response.events).cursor.subscription.finished)
        assert len(server.requests) == 1
    assert notes.calls == []


def test_no_reconnection_after_a_done_function_accepted(ask: Requester) -> None:
    """Although the connection has ended by then."""
    with SSEServer([send(1, id="1"), send(2, id="2")]) as server:
        response = ask(server.url, reconnect=LATE, done=lambda event: event.data == "2")
        assert response.next() == 1
        ask.run_blocking(until, lambda: is_between_connections(response))
        assert response.items() == [2]
        assert response.events.outcome == "done"
        ask.run_blocking(until, lambda: reader_of(response.events).cursor.subscription.finished)
        assert len(server.requests) == 1


def test_prompt_is_not_sent_twice_unasked(ask: Requester) -> None:
    with SSEServer([send(1), cut()]) as server:
        items, error = ask(server.url, data={}, reconnect=AT_ONCE).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert isinstance(error.__cause__, (TruncatedStreamError, ReadError))
        assert 'resume="repeat"' in str(error)
        assert len(server.requests) == 1


def test_unanswered_prompt_is_not_sent_again(clock: FakeClock, ask: Requester) -> None:
    with SSEServer([silence()]) as server:
        asking = in_thread(lambda: ask(server.url, data={}, reconnect=AT_ONCE, timeout=Timeout(read=30, connect=None)))
        server.wait_for_request(timeout=30)
        with pytest.raises(StreamTimeoutError):
            clock.advance_until_done(asking.result)
        assert len(server.requests) == 1


def test_reconnect_call_sends_no_prompt_twice(ask: Requester) -> None:
    """Even if the event arrives between the call and its callback on the loop."""
    with SSEServer([send(1), silence()]) as server:
        response = ask(server.url, data={}, reconnect=AT_ONCE)
        assert response.next() == 1
        task = subscription_of(response.events)
        # Without the check of reconnect(), which has seen no event yet.
        post(task.loop, task.reconnect_on_loop)
        items, error = response.fail()
        assert items == []
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 1


@pytest.mark.parametrize("allowed", [{"resend": True}, {"resume": "repeat"}], ids=str)
def test_repeat_allows_sending_a_prompt_twice(ask: Requester, allowed: dict[str, Any]) -> None:
    policy = dataclasses.replace(AT_ONCE, **allowed)
    with SSEServer(in_turn([send(1), cut()], [send(1), send(2), DONE])) as server:
        assert ask(server.url, data={}, reconnect=policy).items() == [1, 1, 2]
        assert [request.method for request in server.requests] == ["POST", "POST"]


@pytest.mark.parametrize("first", [[respond(), comment(), cut()], [send(1, id="a"), cut()]], ids=["no event", "an ID"])
def test_answered_prompt_is_not_sent_again(ask: Requester, first: list[Step]) -> None:
    """The tool that it started may be running, whatever its answer has delivered."""
    with SSEServer(first) as server:
        _, error = ask(server.url, data={}, reconnect=AT_ONCE).fail()
        assert isinstance(error, ReconnectionError)
        assert len(server.requests) == 1


@pytest.mark.parametrize("body", [{"content": iter([b"x"])}, {"files": {"file": b"x"}}], ids=["iterator", "files"])
def test_body_that_can_be_read_once_is_refused(ask: Requester, body: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="only once"):
        ask("http://127.0.0.1:9", reconnect=True, **body)


# Timeouts.


def test_read_timeout_is_a_drop(clock: FakeClock, ask: Requester) -> None:
    notes = Notes()
    with SSEServer(in_turn([send(1, id="a"), silence()], [send(2), DONE])) as server:
        timeout = dataclasses.replace(UNLIMITED, read=30)
        response = ask(server.url, reconnect=AT_ONCE, timeout=timeout, on_reconnect=notes)
        assert response.next() == 1
        assert clock.advance_until_done(response.items) == [2]
        server.requests[0].wait_aborted(30)
        # The moved clock may make the next response late, too.
        assert ids_sent(server)[:2] == [None, "a"]
    for _, _, cause in notes.calls:
        assert isinstance(cause, StreamTimeoutError)
        assert cause.which == "read"


def heartbeats() -> Iterator[Step]:
    while True:
        yield comment()
        yield wait(0.005)


def test_idle_timeout_is_a_drop(clock: FakeClock, ask: Requester) -> None:
    notes = Notes()
    numbers = count()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        number = next(numbers)
        yield send(number, id=str(number))
        if number < 2:
            yield from heartbeats()
        yield DONE

    with SSEServer(script) as server:
        response = ask(server.url, reconnect=AT_ONCE, timeout=Timeout(idle=300), on_reconnect=notes)
        for number in range(2):
            assert response.next() == number
            received = response.events.stats.bytes
            ask.run_blocking(until, lambda received=received: response.events.stats.bytes > received + 20)
            response.settle()
            clock.advance(301)
        assert response.items() == [2]
        server.requests[0].wait_aborted(30)
        assert ids_sent(server) == [None, "0", "1"]
    assert [cause and (type(cause), getattr(cause, "which", "")) for _, _, cause in notes.calls] == [
        (StreamTimeoutError, "idle")
    ] * 2


def test_idle_clock_stops_between_connections(clock: FakeClock, ask: Requester) -> None:
    notes = Notes()
    is_asked = threading.Event()
    timeout = dataclasses.replace(UNLIMITED, idle=300)
    with SSEServer(in_turn([send(1), cut()], [hold(is_asked), send(2), DONE])) as server:
        response = ask(server.url, reconnect=LATE, timeout=timeout, on_reconnect=notes)
        assert response.next() == 1
        ask.run_blocking(until, lambda: is_between_connections(response))
        reading = in_thread(response.items)
        while len(server.requests) < 2:
            clock.advance(100_000)
            time.sleep(0.002)
        is_asked.set()
        assert reading.result(30) == [2]
    assert StreamTimeoutError not in notes.causes


def test_stalled_refusal_is_no_drop(clock: FakeClock, ask: Requester) -> None:
    with SSEServer([respond(401), b"no", silence()]) as server:
        # Less than the time limit for the body of a refusal.
        response = ask(server.url, decode="text", reconnect=AT_ONCE, timeout=Timeout(idle=5))
        items, error = clock.advance_until_done(response.fail, step=0.5)
        assert items == []
        assert isinstance(error, (StatusError, StreamTimeoutError))
        assert len(server.requests) == 1
