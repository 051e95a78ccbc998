"""Dialects over real sockets: ends, heartbeats and errors of providers, wherever a stream is read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sseqbridge import (
    DecodeError,
    Dialect,
    ReconnectionPolicy,
    ServerSentEvent,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    gather,
    merge,
    relay,
    request_sse,
    tee,
)
from sseqbridge._streams.stream import reader_of
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, Step, comment, cut, hold, in_turn, raw, send, silence
from tests.clock import FakeClock
from tests.requesters import Requester
from tests.support import until

pytestmark = pytest.mark.configurations("default", "plain")

DONE = send("[DONE]")
# Events after an end are not read.
AFTER = send("after the end")

RESPONSES_API = [
    send({"type": "response.created"}, event="response.created"),
    send({"delta": "Hi"}, event="response.output_text.delta"),
    send({"usage": 7}, event="response.completed"),
    AFTER,
]
MESSAGES_API = [
    send({"type": "message_start"}, event="message_start"),
    send({"type": "ping"}, event="ping"),
    send({"delta": "Hi"}, event="content_block_delta"),
    send({"type": "message_stop"}, event="message_stop"),
    AFTER,
]
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
PROGRESS = {"jsonrpc": "2.0", "method": "notifications/progress"}
RESULT = {"jsonrpc": "2.0", "id": 1, "result": {}}
MCP = [send("", id="prime", retry=2), send(PROGRESS, id="1"), send(RESULT, id="2"), AFTER]
GRADIO = Dialect(end_data='{"msg":"close_stream"}', heartbeat_data=('{"msg":"heartbeat"}',))
LANGGRAPH = Dialect(end_data=None, end_events=("end",))


# Ends.


@pytest.mark.parametrize(
    ("steps", "options", "items"),
    [
        (RESPONSES_API, {}, [{"type": "response.created"}, {"delta": "Hi"}, {"usage": 7}]),
        (RESPONSES_API, {"dialect": "openai"}, [{"type": "response.created"}, {"delta": "Hi"}, {"usage": 7}]),
        (
            MESSAGES_API,
            {"dialect": "anthropic"},
            [{"type": "message_start"}, {"delta": "Hi"}, {"type": "message_stop"}],
        ),
        ([send({"n": 1}), DONE, AFTER], {"dialect": "anthropic"}, [{"n": 1}]),
        (MCP, {"dialect": "mcp", "data": CALL}, [PROGRESS, RESULT]),
        (
            [send({"n": 1}), raw(b'data: {"msg":"heartbeat"}\n\ndata: {"msg":"close_stream"} \n\n'), AFTER],
            {"dialect": GRADIO},
            [{"n": 1}],
        ),
        ([send({"n": 1}), send("null", event="end"), AFTER], {"dialect": LANGGRAPH}, [{"n": 1}]),
        ([send({"n": 1}), send("bye", event="end"), AFTER], {"dialect": LANGGRAPH}, [{"n": 1}]),
    ],
    ids=range(8),
)
def test_dialect_ends_the_stream(ask: Requester, steps: list[Step], options: dict[str, Any], items: list[Any]) -> None:
    with SSEServer(steps) as server, ask(server.url, require_done=True, **options) as response:
        assert response.items() == items
        assert response.events.outcome == "done"


@pytest.mark.parametrize("decode", ["json", "text", "event"])
@pytest.mark.parametrize(
    "block", [b"event: end\n\n", b"event: end\r\nid: 2\r\n\r\n", b": bye\nevent:end\n\n", b"event: end\ndata\n\n"]
)
def test_end_event_needs_no_data(ask: Requester, decode: Any, block: bytes) -> None:
    options = {"dialect": LANGGRAPH, "require_done": True, "decode": decode}
    with SSEServer([send("1"), raw(block), AFTER]) as server, ask(server.url, **options) as response:
        assert len(response.items()) == (1 if decode == "json" else 2)
        assert response.events.outcome == "done"


def test_end_event_whose_data_is_cut_off_is_no_end(ask: Requester) -> None:
    with SSEServer([send("1"), raw(b"event: end\n")]) as server:
        with ask(server.url, dialect=LANGGRAPH, require_done=True) as response:
            items, error = response.fail()
        assert items == [1]
        assert isinstance(error, TruncatedStreamError)


def test_event_without_data_is_no_end_if_done_is_given(ask: Requester) -> None:
    steps = [raw(b"event: end\n\n"), send("1")]
    with SSEServer(steps) as server, ask(server.url, dialect=LANGGRAPH, done=None) as response:
        assert (response.items(), response.events.outcome) == ([1], "eof")


def test_end_event_without_data_is_forwarded() -> None:
    with SSEServer([send("1"), raw(b"event: end\n\n"), AFTER]) as server, MemoryLog() as log:
        ask = partial(request_sse, server.url, dialect=LANGGRAPH)
        forwarded = b"data: 1\n\nevent: end\ndata: \n\n"
        assert b"".join(relay.frames(ask())).removeprefix(b":\n") == forwarded
        assert log.produce("a", ask) == "done"
        events = log.open("a", decode="event", dialect=LANGGRAPH)
        assert ([event.data for event in events], events.outcome) == (["1"], "done")


def test_connection_is_reused_after_an_end_event(ask: Requester) -> None:
    with SSEServer(RESPONSES_API) as server:
        for _ in range(3):
            with ask(server.url) as response:
                assert len(response.items()) == 3
                subscription = reader_of(response.events).cursor.subscription
                ask.run_blocking(until, lambda subscription=subscription: subscription.finished)
        assert {request.connection for request in server.requests} == {0}


@pytest.mark.parametrize("decode", ["text", "event", ServerSentEvent.json])
def test_end_event_is_the_last_item_in_other_modes(ask: Requester, decode: Any) -> None:
    with SSEServer(MESSAGES_API) as server, ask(server.url, decode=decode, dialect="anthropic") as response:
        assert len(response.items()) == 4, "the heartbeat too"
        assert response.events.outcome == "done"
        assert response.events.last_event is not None
        assert response.events.last_event.event == "message_stop"


@pytest.mark.parametrize("decode", ["json", "text", "event", ServerSentEvent.json])
def test_response_ends_the_stream_in_every_mode(ask: Requester, decode: Any) -> None:
    steps = [send(PROGRESS), send(RESULT), send(PROGRESS)]
    with SSEServer(steps) as server, ask(server.url, data=CALL, decode=decode, dialect="mcp") as response:
        assert len(response.items()) == 2
        assert response.events.outcome == "done"


@pytest.mark.parametrize("decode", ["json", "text", ServerSentEvent.json])
@pytest.mark.parametrize("batch", [[RESULT], [PROGRESS, RESULT], [{**RESULT, "id": None}, RESULT]])
def test_response_in_a_batch_ends_the_stream(ask: Requester, decode: Any, batch: list[Any]) -> None:
    steps = [send([PROGRESS]), send([]), send(batch), AFTER]
    with SSEServer(steps) as server, ask(server.url, data=CALL, decode=decode, dialect="mcp") as response:
        assert len(response.items()) == 3
        assert response.events.outcome == "done"


@pytest.mark.parametrize(
    ("options", "is_end"),
    [
        ({"data": CALL}, True),
        ({"json": CALL}, True),
        ({"content": b'{"id": 1}'}, True),
        ({"last_event_id": "7"}, True),
        ({"headers": {"Last-Event-ID": "7"}}, True),
        ({}, False),
        ({"data": [CALL, {**CALL, "id": 2}]}, False),
        ({"content": ' [{"id": 1}, {"id": 2}]'}, False),
        ({"content": bytearray(b'[{"id": 1}]')}, False),
        ({"data": CALL, "done": None}, False),
        ({"data": CALL, "dialect": Dialect(end_data=None)}, False),
    ],
    ids=range(11),
)
def test_response_ends_the_stream_of_one_request_alone(ask: Requester, options: dict[str, Any], is_end: bool) -> None:
    """A batch gets several responses. A stream that no request began may hold those of others."""
    steps = [send(RESULT), send({**RESULT, "id": 2})]
    with SSEServer(steps) as server, ask(server.url, **({"dialect": "mcp"} | options)) as response:
        assert response.items() == ([RESULT] if is_end else [RESULT, {**RESULT, "id": 2}])
        assert response.events.outcome == ("done" if is_end else "eof")


@pytest.mark.parametrize("done", ["[DONE]", None, lambda event: event.data == "last"])
def test_done_overrides_the_dialect(ask: Requester, done: Any) -> None:
    steps = [send("1", event="message_stop"), send("2"), DONE, send("last")]
    with SSEServer(steps) as server, ask(server.url, dialect="anthropic", decode="text", done=done) as response:
        assert response.items() == (["1", "2"] if done == "[DONE]" else ["1", "2", "[DONE]", "last"])
        assert response.events.outcome == ("eof" if done is None else "done")


def test_events_dialect_has_no_end(ask: Requester) -> None:
    steps = [send("[DONE]"), send("{}", event="response.completed"), send("1", event="ping")]
    with SSEServer(steps) as server, ask(server.url, dialect="events", decode="text") as response:
        assert response.items() == ["[DONE]", "{}", "1"]
        assert response.events.outcome == "eof"


@pytest.mark.parametrize("options", [{"dialect": "events"}, {"dialect": "mcp"}, {"dialect": LANGGRAPH, "done": None}])
def test_required_end_must_be_possible(ask: Requester, options: dict[str, Any]) -> None:
    with SSEServer([]) as server, pytest.raises(UsageError, match="`require_done=True` must come with an end marker"):
        ask(server.url, require_done=True, **options)


def test_end_event_that_is_missing_is_an_error(ask: Requester) -> None:
    with SSEServer([send({"n": 1})]) as server, ask(server.url, dialect=LANGGRAPH, require_done=True) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([{"n": 1}], TruncatedStreamError)
        assert str(error).endswith("the stream ended without its last event")


@pytest.mark.parametrize("dialect", ["OpenAI", None, 7])
def test_dialect_is_checked(ask: Requester, dialect: Any) -> None:
    with SSEServer([]) as server:
        with pytest.raises(UsageError, match="`dialect` must be"):
            ask(server.url, dialect=dialect)
        assert not server.requests


@pytest.mark.parametrize("size", [600, 1_000_000])
def test_events_before_an_end_event_fit_a_small_buffer(ask: Requester, size: int) -> None:
    body = b"".join(b'event: a\ndata: {"n": %d}\n\nevent: ping\ndata: now\n\n' % n for n in range(300))
    with (
        SSEServer([raw(body + b"event: message_stop\ndata: {}\n\n"), AFTER]) as server,
        ask(server.url, dialect="anthropic", max_buffered_bytes=size) as response,
    ):
        assert response.items() == [*({"n": n} for n in range(300)), {}]
        assert response.events.stats.events == 301


def test_end_event_ends_a_reconnecting_stream(ask: Requester) -> None:
    policy = ReconnectionPolicy(delay=0.01, max_delay=0.01)
    with SSEServer(in_turn([send({"n": 1}, id="a"), cut()], RESPONSES_API)) as server:
        response = ask(server.url, reconnect=policy)
        assert response.items()[-1] == {"usage": 7}
        assert (response.events.outcome, len(server.requests)) == ("done", 2)


# Heartbeats.

HEARTBEATS = [
    send("ping", event="ping"),
    send("2026-01-01T00:00:00Z", event="ping"),
    send("now", event="keepalive"),
    send("null", event="heartbeat"),
    send(""),
    send("  \t"),
    send(": keepalive"),
    send(": ping - now"),
    raw(b"data\ndata:\n\n"),
]


@pytest.mark.parametrize("reader", ["plain", "poll", "merge", "gather", "tee", "relay", "log"])
def test_heartbeats_are_no_items_of_json_mode(reader: str) -> None:
    with SSEServer([*HEARTBEATS, send({"n": 1}), *HEARTBEATS, DONE]) as server:
        assert READERS[reader](server.url) == [{"n": 1}]


def _poll(url: str) -> list[Any]:
    items: list[Any] = []
    with request_sse(url) as response:

        def has_ended() -> bool:
            items.extend(response.events.poll())
            return response.events.outcome is not None

        until(has_ended)
    return items


def _tee(url: str) -> list[Any]:
    first, second = tee(request_sse(url))
    items = list(first)
    assert list(second) == items
    return items


def _relay(url: str) -> list[Any]:
    body = b"".join(relay.frames(request_sse(url))).replace(b":\n", b"")
    with SSEServer([raw(body)]) as server:
        assert body.endswith(b"data: [DONE]\n\n")
        events = request_sse(server.url, decode="event").events
        # Heartbeats with a name are forwarded.
        return [event.json() for event in events if isinstance(event, ServerSentEvent) and event.event == "message"]


def _log(url: str) -> list[Any]:
    with MemoryLog() as log:
        items = list(log.open("k", lambda: request_sse(url)))
        # A reader in JSON mode skips heartbeats also if the producer's mode has kept them.
        assert list(log.open("m", lambda: request_sse(url, decode="event"))) == items
    return items


READERS: dict[str, Callable[[str], list[Any]]] = {
    "plain": lambda url: list(request_sse(url).events),
    "poll": _poll,
    "merge": lambda url: [item for _, item in merge({"a": request_sse(url)})],
    "gather": lambda url: [item for _, items in gather([partial(request_sse, url)]) for item in items],
    "tee": _tee,
    "relay": _relay,
    "log": _log,
}


def test_heartbeats_are_items_of_other_modes(ask: Requester) -> None:
    with SSEServer([*HEARTBEATS, DONE]) as server:
        for decode in ("text", "event"):
            with ask(server.url, decode=decode) as response:
                assert len(response.items()) == len(HEARTBEATS)
                # Heartbeats without a value are tokens in text mode: "" and " ".
                assert response.events.stats.events == 4


def test_events_dialect_takes_pings_for_events(ask: Requester) -> None:
    steps = [send({"n": 1}, event="ping"), send("now", event="ping")]
    with SSEServer(steps) as server, ask(server.url, dialect="events") as response:
        items, error = response.fail()
        assert (items, type(error)) == ([{"n": 1}], DecodeError)


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["json", "text", "event"])
@pytest.mark.parametrize(
    ("dialect", "heartbeat", "resets"),
    [
        ("openai", send({"type": "ping"}, event="ping"), False),
        ("openai", send(": keepalive"), False),
        ("anthropic", send({"type": "ping"}, event="ping"), False),
        ("mcp", send("", id="prime"), False),
        (GRADIO, raw(b'data: {"msg":"heartbeat"}\n\n'), False),
        ("events", comment("ping"), False),
        ("events", send("1", event="ping"), True),
        ("openai", send("1", event="tick"), True),
    ],
    ids=range(8),
)
def test_heartbeats_do_not_reset_the_idle_limit(
    clock: FakeClock, ask: Requester, dialect: Any, heartbeat: Step, resets: bool, decode: Any
) -> None:
    flag = threading.Event()
    steps = [send({"n": 1}), hold(flag), heartbeat, silence()]
    timeout = Timeout(connect=None, read=None, idle=100)
    with SSEServer(steps) as server, ask(server.url, dialect=dialect, decode=decode, timeout=timeout) as response:
        response.next()
        received = response.events.stats.bytes
        clock.advance(60)
        response.settle()
        flag.set()
        ask.run_blocking(until, lambda: response.events.stats.bytes > received)
        response.settle()
        response.events.poll()
        clock.advance(60)
        response.settle()
        if resets:
            assert response.events.outcome is None
            assert response.events.poll() == []
        else:
            error = response.fail()[1]
            assert isinstance(error, StreamTimeoutError)
            assert error.which == "idle"


def test_heartbeats_do_not_count_as_events_of_a_connection(ask: Requester) -> None:
    """A connection with nothing but heartbeats is a failed attempt."""
    policy = ReconnectionPolicy(delay=0.01, max_delay=0.01, attempts=2, resume="repeat")
    ping = send({"type": "ping"}, event="ping")
    with SSEServer(in_turn([ping, cut()], [ping, cut()], [send(1), DONE])) as server:
        response = ask(server.url, data={}, reconnect=policy)
        assert response.items() == [1]
        assert len(server.requests) == 3


def test_id_of_a_heartbeat_is_where_the_stream_is_resumed(ask: Requester) -> None:
    policy = ReconnectionPolicy(delay=0.01, max_delay=0.01, resume="get")
    with SSEServer(in_turn([send("", id="prime"), cut()], [send(RESULT, id="1")])) as server:
        response = ask(server.url, data=CALL, dialect="mcp", reconnect=policy)
        assert response.items() == [RESULT]
        assert server.requests[1].last_event_id == "prime"


# Errors.


@pytest.mark.parametrize("data", [{"message": "busy"}, "busy"])
def test_dialect_names_types_of_errors(ask: Requester, data: Any) -> None:
    dialect = Dialect(error_events=("failure",))
    with SSEServer([send(1), send(data, event="failure"), DONE]) as server:
        with ask(server.url, dialect=dialect) as response:
            items, error = response.fail()
            assert (items, str(error)) == ([1], "the upstream sent an error: busy")
            assert isinstance(error, UpstreamError)
        with ask(server.url, dialect=dialect, error_events="yield") as response:
            assert response.items() == [1, data]
        with ask(server.url, dialect=dialect, decode="text") as response:
            assert len(response.items()) == 2


def test_error_event_that_ends_the_stream_is_raised(ask: Requester) -> None:
    dialect = Dialect(end_events=("failure",), error_events=("failure",))
    with SSEServer([send("busy", event="failure"), AFTER]) as server, ask(server.url, dialect=dialect) as response:
        items, error = response.fail()
        assert (items, type(error)) == ([], UpstreamError)
