"""The web-platform-tests of EventSource that apply outside of a browser, in this library's terms.

Each test names the corresponding file. The format tests (format-*) are vectors in tests/data, which the parser's tests
also use. Tests of browser objects are omitted: prototypes, URL syntax, workers, back/forward cache, CORS, credentials.
"""

from __future__ import annotations

from typing import Any

import pytest

from sseqbridge import ContentTypeError, ReconnectionPolicy, StatusError, UsageError
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, respond, send, silence, wait
from tests.requesters import Requester
from tests.sse.vectors import VECTORS, Vector

AT_ONCE = ReconnectionPolicy(delay=0.01, jitter=0)
DONE = send("[DONE]")


def read(server: SSEServer, ask: Requester, **options: Any) -> list[Any]:
    """Return the events up to `[DONE]`, across reconnections, as an EventSource delivers them."""
    return list(ask(server.url, decode="event", reconnect=AT_ONCE, **options).items())


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if vector.see], ids=str)
def test_formats_over_a_connection(ask: Requester, vector: Vector) -> None:
    """format-*.js, over a connection whose end is the end of the stream."""
    with SSEServer([respond(framing="close"), vector.stream]) as server:
        response = ask(server.url, decode="event", done=None)
        assert response.items() == vector.events
        assert response.events.last_event_id == vector.last_event_id
        assert response.events.retry == vector.retry


def test_event_data(ask: Requester) -> None:
    """event-data.js: empty data lines count, unknown fields do not."""
    with SSEServer(
        [b"data:msg\ndata: msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\ndata:end\n\n", DONE]
    ) as server:
        assert [event.data for event in read(server, ask)] == ["msg\nmsg", "", "end"]


def test_request_accept(ask: Requester) -> None:
    """request-accept.js"""
    with SSEServer([DONE]) as server:
        read(server, ask)
        assert server.requests[0].headers["accept"] == "text/event-stream"


def test_request_cache_control(ask: Requester) -> None:
    """request-cache-control.any.js: the header is sent with the first and with each later request."""
    with SSEServer(first_and_then([send(1), wait(0.05), cut()], [DONE])) as server:
        read(server, ask)
        assert [request.headers["cache-control"] for request in server.requests] == ["no-cache", "no-cache"]


def first_and_then(first: list[Step], then: list[Step]) -> Any:
    seen: list[ReceivedRequest] = []

    def script(request: ReceivedRequest) -> list[Step]:
        seen.append(request)
        return first if len(seen) == 1 else then

    return script


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_request_redirect(ask: Requester, status: int) -> None:
    """request-redirect.js"""

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/":
            return [respond(status, {"Location": "/message"})]
        return [send("data"), DONE]

    with SSEServer(script) as server:
        assert [event.data for event in read(server, ask)] == ["data"]


@pytest.mark.parametrize("status", [204, 404, 410])
def test_request_status_error(ask: Requester, status: int) -> None:
    """request-status-error.js: a response that is no success is no stream, and the request is not repeated.

    The original includes 205, 210 and 299: a browser reads a stream with the status 200 alone. Servers send others.
    """
    with SSEServer([respond(status), *([] if status == 204 else [send("data")])]) as server:
        response = ask(server.url, decode="event", reconnect=AT_ONCE)
        if status == 204:
            assert response.items() == []
        else:
            with pytest.raises(StatusError):
                response.next()
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_request_status_error_that_may_be_retried(ask: Requester, status: int) -> None:
    """request-status-error.js: these are final for EventSource. `reconnect` retries them, unless statuses=()."""
    with SSEServer([respond(status), send("data")]) as server:
        policy = ReconnectionPolicy(statuses=())
        with pytest.raises(StatusError):
            ask(server.url, decode="event", reconnect=policy).next()
        assert len(server.requests) == 1
    with SSEServer(first_and_then([respond(status)], [send("data"), DONE])) as server:
        assert [event.data for event in read(server, ask)] == ["data"]


@pytest.mark.slow
def test_eventsource_reconnect(ask: Requester) -> None:
    """eventsource-reconnect.js: a reconnection after each clean end, after the delay of `retry`."""
    delays: list[float] = []
    with SSEServer(first_and_then([b"retry: 150\ndata: opened\n\n"], [b"data: reconnected\n\n", DONE])) as server:
        events = read(server, ask, on_reconnect=lambda attempt, delay, cause: delays.append(delay))
    assert [event.data for event in events] == ["opened", "reconnected"]
    assert delays == [0.15]


def test_eventsource_reconnect_fails(ask: Requester) -> None:
    """eventsource-reconnect.js, with resources/reconnect-fail.py: 200, 200 and then 204, which ends the stream."""
    responses = iter([[send("opened")], [send("reconnected")], [respond(204)], [send("too much")]])
    with SSEServer(lambda request: next(responses)) as server:
        assert [event.data for event in read(server, ask)] == ["opened", "reconnected"]
        assert len(server.requests) == 3


def test_eventsource_close(ask: Requester) -> None:
    """eventsource-close.window.js: a closed stream stays closed, and does not reconnect."""

    def script(request: ReceivedRequest) -> list[Step]:
        return [b"retry: 1\ndata: one\n\n" if request.path == "/" else respond(), silence()]

    with SSEServer(script) as server:
        with ask(server.url, decode="event", reconnect=True) as response:
            assert response.next().data == "one"
        assert response.items() == []
        count = len(server.requests)
        with ask(f"{server.url}/other", reconnect=True):
            pass
        assert [request.path for request in server.requests[count:]] == ["/other"]


def test_eventsource_request_cancellation(ask: Requester) -> None:
    """eventsource-request-cancellation.any.js: the server notices the abort of a request."""
    with SSEServer([respond(), silence()]) as server:
        with ask(server.url, reconnect=True):
            pass
        server.requests[0].wait_aborted()


def test_eventsource_onopen(ask: Requester) -> None:
    """eventsource-onopen.js: the call returns when the headers have arrived, before any event."""
    with SSEServer([respond(), silence()]) as server, ask(server.url) as response:
        assert (response.status, response.events.outcome) == (200, None)


def test_eventsource_url_without_a_fragment(ask: Requester) -> None:
    """eventsource-url.js: the URL is sent unchanged except for its fragment."""
    with SSEServer([DONE]) as server:
        ask(f"{server.url}/a%20b/?x=%2F&y#part").items()
        assert server.requests[0].path == "/a%20b/?x=%2F&y"


@pytest.mark.parametrize("url", ["", "/message"])
def test_eventsource_constructor_empty_url(ask: Requester, url: str) -> None:
    """eventsource-constructor-empty-url.js: a relative URL is an error, since there is no page."""
    with pytest.raises(UsageError, match="URL"):
        ask(url, reconnect=True)


def last_event_ids(ask: Requester, first: bytes) -> list[str | None]:
    """Return the Last-Event-ID of the connections after one that sent `first`."""
    with SSEServer(first_and_then([first, wait(0.05), cut()], [b"retry: 1\ndata: x\n\n", DONE])) as server:
        read(server, ask)
        sent = [request.headers.get("last-event-id") for request in server.requests]
    return [value and value.encode("latin-1").decode() for value in sent]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "first", "sent"),
    [
        ("format-field-id.js", "id: \u2026\nretry: 200\ndata: hello\n\n", "\u2026"),
        ("format-field-id-2.any.js", "id: 1\ndata: a\n\nid\ndata: b\n\n", None),
        ("format-field-id-2.any.js, kept", "id: 1\ndata: a\n\ndata: b\n\n", "1"),
        ("format-field-id-3.window.js", "id: 1\ndata: a\n\nid: 2\n\n", "2"),
        ("format-field-id-3.window.js, cut off", "id: 1\ndata: a\n\nid: 2\ndata: b\n", "1"),
        ("format-field-id-null.window.js", "id: \0\ndata: a\n\n", None),
        ("format-field-id-null.window.js, later", "id: 1\ndata: a\n\nid: x\0y\ndata: b\n\n", "1"),
        ("cors-unsafe-last-event-id.py", "id: \u00e5\u4e00 (x)\ndata: a\n\n", "\u00e5\u4e00 (x)"),
    ],
)
def test_last_event_id(ask: Requester, file: str, first: str, sent: str | None) -> None:
    """format-field-id*.js, with resources/last-event-id.php and last-event-id2.py."""
    assert last_event_ids(ask, first.encode()) == [None, sent]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "field", "delay"),
    [
        ("format-field-retry.js", "retry:150", 0.15),
        ("format-field-retry-bogus.js", "retry:150\nretry:1000x", 0.15),
        ("format-field-retry-bogus.js, alone", "retry:-150", 0.01),
        ("format-field-retry-empty.js", "retry", 0.01),
    ],
)
def test_format_field_retry(ask: Requester, file: str, field: str, delay: float) -> None:
    """format-field-retry*.js: the delay before the next connection."""
    delays: list[float] = []
    first = [f"{field}\ndata: test\n\n".encode(), wait(0.05), cut()]
    with SSEServer(first_and_then(first, [DONE])) as server:
        read(server, ask, on_reconnect=lambda attempt, delay, cause: delays.append(delay))
    assert delays == [delay]


@pytest.mark.parametrize(
    "media_type",
    ["text/event-stream;", "text/event-stream;charset=utf-8", "text/event-stream; x=bogus", "TEXT/Event-Stream"],
)
def test_valid_content_type_is_accepted(ask: Requester, media_type: str) -> None:
    """format-mime-trailing-semicolon.js, format-mime-valid-bogus.js"""
    with SSEServer([respond(content_type=media_type), send("data"), DONE]) as server:
        assert [event.data for event in read(server, ask)] == ["data"]


@pytest.mark.parametrize("media_type", ["text/event-stream bogus", "x bogus", "text/plain", None])
def test_wrong_content_type_is_an_error(ask: Requester, media_type: str | None) -> None:
    """format-mime-bogus.js: an error without a reconnection."""
    with SSEServer([respond(content_type=media_type), send("data")]) as server:
        with pytest.raises(ContentTypeError):
            ask(server.url, reconnect=AT_ONCE)
        assert len(server.requests) == 1


def test_stream_is_utf_8_regardless_of_the_charset(ask: Requester) -> None:
    """format-utf-8.any.js"""
    steps = [respond(content_type="text/event-stream;charset=windows-1252"), send("ok\u2026"), DONE]
    with SSEServer(steps) as server:
        assert [event.data for event in read(server, ask)] == ["ok\u2026"]
