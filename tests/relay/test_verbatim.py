"""Without `map`, events are forwarded as they are, whether or not they can be decoded."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sseqbridge import Dialect, UpstreamError, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.relay.support import DONE, Relay, error_of


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b"event: ping\ndata: ping\n\n", {"dialect": "events"}),
        (b"event: ping\ndata: ping\n\n", {}),
        (b'event: ping\ndata: {"type": "ping"}\n\n', {"dialect": "anthropic"}),
        (b"event: keepalive\ndata: \n\n", {}),
        (b"event: ping\ndata: ping\n\n", {"decode": "text"}),
        (b"event: tick\ndata: now\n\n", {"dialect": Dialect(heartbeat_events=("tick",))}),
        (b'data: {"a": 1, "error": ""}\n\n', {}),
        (b'data: {"a": 1, "error": null}\n\n', {}),
        (b"data: [DONE] \n\n", {"decode": "text"}),
        (b"data: plain text\n\n", {}),
        (b"data: {\n\n", {}),
        (b'data: "\\ud83d"\n\n', {}),
        (b"event: x\nid: 5\nretry: 10\ndata: [1,\ndata: 2]\n\n", {}),
        (b'data: {"error": {"message": "no"}}\n\n', {"error_events": "yield"}),
    ],
)
def test_event_is_forwarded_as_it_is(relayed: Relay, body: bytes, options: dict[str, Any]) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), body, send({"n": 2})]) as server:
        read = relayed(request_sse(server.url, **options), on_end=ends.append).rest()
    assert read.startswith(b'data: {"n": 1}\n\n')
    assert read.replace(b"id: 5\n", b"").endswith(b'data: {"n": 2}\n\n')
    assert body in read
    assert [(end.outcome, end.error) for end in ends] == [("eof", None)]


HEARTBEATS = b"event: ping\ndata: 1\n\ndata:\n\ndata: : keepalive\n\n"


def test_heartbeats_are_no_items(relayed: Relay) -> None:
    """Heartbeats without a name are left out, since a page would take their data for JSON."""
    items: list[Any] = []
    with SSEServer([HEARTBEATS, send({"n": 1}), HEARTBEATS, DONE]) as server:
        ping = b"event: ping\ndata: 1\n\n"
        read = relayed(request_sse(server.url), on_item=items.append).rest()
        assert read == ping + b'data: {"n": 1}\n\n' + ping + b"data: [DONE]\n\n"
        mapped = relayed(request_sse(server.url), on_item=items.append, map=lambda item: item).rest()
        assert mapped == b'data: {"n":1}\n\ndata: [DONE]\n\n'
    assert items == [{"n": 1}] * 2


def test_id_of_an_event_without_data_is_forwarded(relayed: Relay) -> None:
    """A client of MCP resumes there."""
    ends: list[RelayEnd] = []
    with SSEServer([b"id: 5\ndata:\n\n", send({"jsonrpc": "2.0", "method": "m"})]) as server:
        read = relayed(request_sse(server.url, dialect="mcp"), on_end=ends.append).rest()
    assert read.startswith(b"id: 5\ndata: \n\n")
    assert [end.last_event_id for end in ends] == ["5"]


def test_log_keeps_no_heartbeats(relayed: Relay) -> None:
    with SSEServer([HEARTBEATS, send({"n": 1}), HEARTBEATS, DONE]) as server, MemoryLog() as log:
        assert log.produce("key", lambda: request_sse(server.url)) == "done"
        assert [event.data for event in log.open("key", decode="event", dialect="events")] == ['{"n": 1}']


@pytest.mark.parametrize("decode", ["json", "text", "event"])
@pytest.mark.parametrize(
    ("event", "options"),
    [
        (send({"error": {"message": "out of tokens"}}), {}),
        (send("overloaded", event="error"), {}),
        (send({"type": "overloaded"}, event="error"), {"dialect": "anthropic"}),
        (send({"reason": "x"}, event="failed"), {"dialect": Dialect(error_events=("failed",))}),
    ],
)
def test_error_of_the_provider_is_forwarded_with_outcome_error(
    relayed: Relay, event: Any, options: dict[str, Any], decode: Any
) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), event]) as server:
        read = relayed(request_sse(server.url, decode=decode, **options), on_end=ends.append, done="over").rest()
        [sent] = [server.requests[0].sent_bytes]
    assert sent
    # Neither an error event of the relay's own follows, nor the event of a clean end.
    assert read.count(b"data: ") == 2
    [end] = ends
    assert end.outcome == "error"
    assert isinstance(end.error, UpstreamError)
    assert end.error.event is not None
    assert end.error.event.data.encode() in read


def test_end_of_the_provider_is_forwarded_after_its_error(relayed: Relay) -> None:
    with SSEServer([send({"error": {"message": "no"}}), DONE]) as server:
        assert relayed(request_sse(server.url)).rest().endswith(b"data: [DONE]\n\n")


def test_map_gets_decoded_items_and_errors_end_the_stream(relayed: Relay) -> None:
    for event, kind in ((b"data: {\n\n", "DecodeError"), (b'data: {"error": "no"}\n\n', "UpstreamError")):
        with SSEServer([send({"n": 1}), event, silence()]) as server:
            read = relayed(request_sse(server.url), map=lambda item: item).rest()
            server.requests[0].wait_aborted()
        assert read.startswith(b'data: {"n":1}\n\n')
        assert error_of(read)["type"] == kind


def test_mcp_stream_ends_at_its_response(relayed: Relay) -> None:
    response = {"jsonrpc": "2.0", "id": 1, "result": {}}
    ends: list[RelayEnd] = []
    with SSEServer([send({"jsonrpc": "2.0", "method": "m"}), send(response), silence()]) as server:
        read = relayed(request_sse(server.url, dialect="mcp", json={"id": 1}), on_end=ends.append).rest()
    assert read.count(b"data: ") == 2
    assert [end.outcome for end in ends] == ["done"]


def test_function_for_done_ends_a_stream_that_is_forwarded(relayed: Relay) -> None:
    with SSEServer([send(1), send("not JSON"), silence()]) as server:
        stream = request_sse(server.url, done=lambda event: event.data == "not JSON")
        assert relayed(stream).rest() == b"data: 1\n\ndata: not JSON\n\n"


def test_items_read_before_the_relay_are_decoded(relayed: Relay) -> None:
    with SSEServer([b"data: 1\n\ndata: {\n\n", DONE]) as server:
        stream = request_sse(server.url)
        assert next(stream.events) == 1
        assert relayed(stream).rest() == b"data: {\n\ndata: [DONE]\n\n"


def test_cancelled_log_ends_with_an_event(relayed: Relay) -> None:
    go = threading.Event()
    ends: list[RelayEnd] = []
    with SSEServer([send(1), hold(go)]) as server, MemoryLog() as log:
        reading = relayed(log.open("key", lambda: request_sse(server.url)), on_end=ends.append, done="over")
        first = reading.next_event()
        assert first.endswith(b"data: 1\n\n")
        assert log.cancel("key")
        read = reading.rest()
        assert read.startswith(b"event: cancelled\ndata: {")
        assert b'"type":"Cancelled"' in read
        assert b"over" not in read
    [end] = ends
    assert (end.outcome, end.error) == ("cancelled", None)
    assert end.last_event_id
