"""Streams on a reused connection, read in callbacks: each ends as on a new connection, which a task reads."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import Bridge, BridgeClosedError, SSEError, StreamTimeoutError, cancel_on, request_sse
from sseqbridge._engine.callback_transfer import DirectExchange
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send, silence
from tests.clock import FakeClock
from tests.engine.byte_server import ByteServer, Pieces
from tests.engine.reconnecting import UNLIMITED
from tests.requesters import Requester, Response
from tests.support import HAS_OWN_TRANSPORT, until

pytestmark = pytest.mark.configurations("default", "plain")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def sized(data: bytes, *, head: bytes = HEAD) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


def events(*texts: str) -> bytes:
    return b"".join(b"data: %b\n\n" % text.encode() for text in texts)


PLAIN = CHUNKED + chunk(events("1", "2", "[DONE]")) + LAST
OTHER = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{\"a\": 1}"
JSON_TYPE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

RESPONSES: dict[str, Pieces] = {
    "one write": [PLAIN],
    "each byte alone": [PLAIN[at : at + 1] for at in range(len(PLAIN))],
    "an event a chunk": [CHUNKED + chunk(events("1")) + chunk(events("2")) + chunk(events("[DONE]")) + LAST],
    "head alone": [CHUNKED, chunk(events("1")), chunk(events("[DONE]")), LAST],
    "known length": [sized(events("1", "[DONE]"))],
    "until the end": [HEAD + b"\r\n" + events("1", "2"), None],
    "no last event": [CHUNKED + chunk(events("1", "2")) + LAST],
    "no event": [CHUNKED + LAST],
    "blank lines": [CHUNKED + chunk(b"\n\n") + LAST],
    "comment alone": [CHUNKED + chunk(b": hi\n\n") + LAST],
    "interim responses": [INTERIM * 100 + PLAIN],
    "too many interim responses": [INTERIM * 101 + PLAIN],
    "interim responses one by one": [*[INTERIM] * 5, PLAIN],
    "switch of protocols": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"],
    "head too long": [b"HTTP/1.1 200 OK\r\n" + b"A: " + b"a" * 110_000],
    "no status line": [b"hello\r\n\r\n"],
    "refused": [OTHER],
    "refused in pieces": [OTHER[:20], OTHER[20:95], OTHER[95:]],
    "no content": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "created": [sized(events("1"), head=HEAD.replace(b"200 OK", b"201 Created"))],
    "redirect": [b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"],
    "redirect without location": [b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"],
    "another type": [sized(b"{}", head=JSON_TYPE)],
    "two types": [sized(events("1"), head=HEAD + b"Content-Type: text/plain\r\n")],
    "list of types": [sized(events("1"), head=HEAD.replace(b"stream", b"stream;a, text/plain"))],
    "no type": [sized(events("1"), head=b"HTTP/1.1 200 OK\r\n")],
    "type with a parameter": [sized(events("1"), head=HEAD.replace(b"stream", b"stream; charset=utf-8"))],
    "gzip": [sized(gzip.compress(events("1", "[DONE]")), head=HEAD + b"Content-Encoding: gzip\r\n")],
    "identity": [sized(events("1"), head=HEAD + b"Content-Encoding: identity\r\n")],
    "unsupported coding": [sized(events("1"), head=HEAD + b"Content-Encoding: br\r\n")],
    "HTTP/1.0": [sized(events("1"), head=HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"))],
    "close": [sized(events("1", "[DONE]"), head=HEAD + b"Connection: close\r\n"), None],
    "bad chunk": [CHUNKED + chunk(events("1")) + b"zz\r\n"],
    "bad chunk after the last event": [CHUNKED + chunk(events("1", "[DONE]")) + b"zz\r\n"],
    "cut off": [CHUNKED + chunk(events("1")) + b"5\r\nab", None],
    "cut off after the last event": [CHUNKED + chunk(events("1", "[DONE]")), None],
    "cut off in the head": [CHUNKED[:30], None],
    "last block without its blank line": [CHUNKED + chunk(b"data: 1\n\ndata: {}") + LAST],
    "end marker without its blank line": [CHUNKED + chunk(b"data: 1\n\ndata: [DONE]") + LAST],
    "half an event": [CHUNKED + chunk(b"data: 1\n\ndata: 2") + LAST],
    "half an id": [CHUNKED + chunk(b"id: 1\ndata: 1\n\nid: 2") + LAST],
    "error event": [CHUNKED + chunk(b'event: error\ndata: {"message": "no"}\n\n') + LAST],
    "error object alone": [sized(b'{"error": {"message": "no"}}')],
    "no event stream": [sized(b"hello there")],
    "invalid JSON": [sized(events("1", "{"))],
    "ids, types and retry": [sized(b"id: 7\nevent: a\nretry: 5\ndata: 1\n\nevent: b\ndata: 2\n\n")],
    "event too long": [sized(events("1", "2" * 5_000))],
    "many events": [sized(events(*map(str, range(5_000)), "[DONE]"))],
}
REDIRECTED: Pieces = [PLAIN]


def outcome_of(ask: Requester, url: str, **options: Any) -> Any:
    """Return everything that a caller can notice of a stream."""
    try:
        response = ask(url, **options)
    except SSEError as exc:
        return type(exc), str(exc), type(exc.__cause__)
    items, error = [], None
    try:
        while True:
            items.append(response.next())
    except (StopIteration, StopAsyncIteration):
        pass
    except SSEError as exc:
        error = type(exc), str(exc), type(exc.__cause__)
    stream = response.events
    # If a function finds the last event, in the consumer's thread, the loop may have parsed events after it.
    events = None if "done" in options else stream.stats.events
    figures = events, stream.stats.bytes, stream.outcome, stream.last_event_id, stream.retry
    return response.status, list(response.headers.raw), stream.http_version, items, error, figures


if HAS_OWN_TRANSPORT:
    # httpx's transport reads them as the next response.
    RESPONSES["bytes after the body"] = [PLAIN + b"HTTP/1.1 200 OK\r\n\r\n"]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"decode": "event", "comments": True},
    {"require_done": True, "max_event_bytes": 4_000},
    {"check_content_type": False, "max_buffered_bytes": 2_000, "done": lambda event: event.data == "2"},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=["json", "event", "strict", "lenient"])
@pytest.mark.parametrize("name", RESPONSES)
def test_responses_are_read_as_on_a_new_connection(ask: Requester, name: str, options: dict[str, Any]) -> None:
    response = RESPONSES[name]
    follow = [REDIRECTED] if name == "redirect" else []
    with ByteServer(response, *follow, [PLAIN]) as server:
        expected = outcome_of(ask, server.url, **options)
        port = server.url.rpartition(":")[2]
    with ByteServer([PLAIN], response, *follow, [PLAIN]) as server:
        assert ask(server.url).items() == [1, 2]
        found = outcome_of(ask, server.url, **options)
        assert repr(found).replace(server.url.rpartition(":")[2], port) == repr(expected)
        # Nothing of the response may be read as the next one.
        assert ask(server.url).items() == [1, 2]


def task_of(response: Response) -> Any:
    subscription: Any = reader_of(response.events).cursor.subscription
    return subscription.task


@pytest.mark.own_transport
@pytest.mark.parametrize("data", [None, {"a": 1}], ids=["GET", "POST"])
def test_only_the_first_stream_needs_a_task(ask: Requester, data: Any) -> None:
    with SSEServer([send(1), send(2), send("[DONE]")]) as server:
        for number in range(4):
            response = ask(server.url, {"X-Test": str(number)}, data)
            assert response.items() == [1, 2]
            assert response.events.outcome == "done"
            assert (task_of(response) is None) == (number > 0)
            assert server.requests[number].headers["x-test"] == str(number)
            assert server.requests[number].body == (b"" if data is None else b'{"a":1}')
            assert server.requests[number].connection == server.requests[0].connection


@pytest.mark.own_transport
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_safe_requests_are_resent_after_their_connection_was_closed(ask: Requester, method: str) -> None:
    with ByteServer([PLAIN], [None], [PLAIN]) as server:
        assert ask(server.url, method=method).items() == [1, 2]
        if method == "GET":
            assert ask(server.url, method=method).items() == [1, 2]
        else:
            with pytest.raises(SSEError, match="closed"):
                ask(server.url, method=method)
            assert len(server.requests) == 2


@pytest.mark.own_transport
def test_safe_request_is_sent_again_once(ask_fresh: Requester) -> None:
    both_open = threading.Event()
    late: Pieces = [CHUNKED, both_open, chunk(events("[DONE]")) + LAST]
    with ByteServer(late, late, [None], [PLAIN]) as server:
        responses = [ask_fresh(server.url), ask_fresh(server.url)]
        both_open.set()
        assert [response.items() for response in responses] == [[], []]
        assert server.connections == 2
        # One of two idle connections fails; the other one would, too.
        assert ask_fresh(server.url).items() == [1, 2]
        assert (server.connections, len(server.requests)) == (3, 4)


def test_fault_between_callbacks_and_task_ends_the_stream(ask: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    with ByteServer([PLAIN], [OTHER], [PLAIN]) as server:
        assert ask(server.url).items() == [1, 2]
        with monkeypatch.context() as patch:
            patch.setattr(DirectExchange, "continue_with", fail)
            if HAS_OWN_TRANSPORT:
                with pytest.raises(SSEError, match="MemoryError"):
                    ask(server.url)
            else:
                assert ask(server.url).status == 404
        assert ask(server.url).items() == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("response", [[b""], [CHUNKED[:20]], [INTERIM]], ids=["nothing", "half a head", "interim"])
def test_read_limit_before_the_head(ask: Requester, response: Pieces) -> None:
    with ByteServer([PLAIN], response) as server:
        assert ask(server.url).items() == [1, 2]
        with pytest.raises(StreamTimeoutError) as caught:
            ask(server.url, timeout={"read": 0.05})
        assert caught.value.which == "read"


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["read", "idle", "total"])
def test_limits_within_the_body(clock: FakeClock, ask: Requester, limit: str) -> None:
    with ByteServer([PLAIN], [CHUNKED + chunk(events("1"))]) as server:
        assert ask(server.url, timeout=UNLIMITED).items() == [1, 2]
        response = ask(server.url, timeout={"connect": None, "read": None, limit: 300})
        assert response.next() == 1
        items, error = clock.advance_until_done(response.fail, step=10)
        assert isinstance(error, StreamTimeoutError)
        assert (items, error.which) == ([], limit)


def silent_after_one(request: ReceivedRequest) -> list[Step]:
    return [send(1), silence()] if request.path == "/silent" else [send("[DONE]")]


@pytest.fixture
def silent() -> Iterator[SSEServer]:
    with SSEServer(silent_after_one) as server:
        yield server


def test_close_aborts_the_request(ask: Requester, silent: SSEServer) -> None:
    assert ask(silent.url).items() == []
    response = ask(f"{silent.url}/silent")
    assert response.next() == 1
    response.close()
    silent.requests[1].wait_aborted()
    assert response.events.outcome == "closed"
    assert task_of(response) is None or not HAS_OWN_TRANSPORT


def test_cancel_flag_ends_the_wait(ask: Requester, silent: SSEServer) -> None:
    assert ask(silent.url).items() == []
    flag = threading.Event()
    response = ask(f"{silent.url}/silent", cancel=flag)
    assert response.next() == 1
    flag.set()
    assert response.items() == []
    assert response.events.outcome == "closed"
    silent.requests[1].wait_aborted()


def test_cancelled_scope_ends_the_wait(ask: Requester, silent: SSEServer) -> None:
    assert ask(silent.url).items() == []
    flag = threading.Event()
    with cancel_on(flag) as scope:
        response = ask(f"{silent.url}/silent")
        assert response.next() == 1
        flag.set()
        response.items()
    assert scope.cancelled
    silent.requests[1].wait_aborted()


@pytest.mark.slow
def test_slow_consumer_holds_the_upstream_back(ask: Requester) -> None:
    numbers = list(range(3_000))
    with SSEServer(lambda request: [send(number) for number in numbers] + [send("[DONE]")]) as server:
        for _ in range(3):
            response = ask(server.url, max_buffered_bytes=4_000)
            assert response.next() == 0
            response.settle()
            assert response.events.stats.buffered <= 4_000
            assert response.items() == numbers[1:]


@pytest.mark.own_transport
def test_end_waits_for_events_that_a_slow_consumer_holds_back(clock: FakeClock) -> None:
    """The rest of the body, for which the end waits a moment, does not come."""
    rest = threading.Event()
    late: Pieces = [CHUNKED, chunk(events("1", "2", "[DONE]")), rest, LAST]
    with ByteServer([PLAIN], late, [PLAIN]) as server, Bridge() as bridge:

        def collected() -> list[Any]:
            return request_sse(server.url, bridge=bridge, timeout=UNLIMITED).events.collect()

        assert collected() == [1, 2]
        slow = request_sse(server.url, bridge=bridge, timeout=UNLIMITED, max_buffered_bytes=1).events
        subscription: Any = reader_of(slow).cursor.subscription
        until(lambda: subscription.task is not None)
        clock.advance(0.5)
        # The loop has run its due timers.
        assert collected() == [1, 2]
        assert slow.collect() == [1, 2]
        assert slow.outcome == "done"
        rest.set()


@pytest.mark.own_transport
@pytest.mark.usefixtures("patient_end")
def test_rest_of_the_body_is_drained(ask: Requester) -> None:
    late = [PLAIN[: -len(LAST)], LAST]
    with ByteServer([PLAIN], late, [PLAIN]) as server:
        for _ in range(3):
            assert ask(server.url).items() == [1, 2]
        # The end of the consumer waits for a late end of the body, so that the connection is reused.
        assert server.connections == 1


def test_long_rest_of_the_body_is_not_drained(ask: Requester) -> None:
    is_read = threading.Event()
    long: Pieces = [CHUNKED, chunk(events("1", "[DONE]")), is_read, *[chunk(b": " + b"x" * 20_000 + b"\n")] * 200]
    with ByteServer([PLAIN], long, [PLAIN]) as server:
        assert ask(server.url).items() == [1, 2]
        response = ask(server.url)
        assert response.items() == [1]
        is_read.set()
        subscription: Any = reader_of(response.events).cursor.subscription

        def has_ended() -> bool:
            response.settle()
            return bool(subscription.finished)

        until(has_ended)
        # 64 KiB, and what one read brings.
        assert response.events.stats.bytes < 1_000_000
        assert ask(server.url).items() == [1, 2]
        assert server.connections == 2


def test_done_function_drains(ask: Requester) -> None:
    with ByteServer([PLAIN], [CHUNKED, chunk(events("1", "2", "3")), LAST], [PLAIN]) as server:
        assert ask(server.url).items() == [1, 2]
        assert ask(server.url, done=lambda event: event.data == "2").items() == [1, 2]
        assert ask(server.url).items() == [1, 2]


@pytest.mark.own_transport
def test_end_of_the_loop_ends_a_stream() -> None:
    with SSEServer(silent_after_one) as server:
        bridge = Bridge()
        assert list(request_sse(server.url, bridge=bridge).events) == []
        events = request_sse(f"{server.url}/silent", bridge=bridge).events
        assert next(events) == 1
        bridge.close()
        with pytest.raises(BridgeClosedError):
            next(events)
        server.requests[1].wait_aborted()
