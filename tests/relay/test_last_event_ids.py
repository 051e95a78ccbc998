"""RelayEnd.last_event_id: the client's last event ID, as far as the web server was given events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import EventStreamParser, ServerSentEvent, merge, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, cut, send, silence
from tests.relay.support import DONE, Relay


def client_id(read: bytes) -> str:
    """Return the last event ID of a client that has read these bytes."""
    events = [event for event in EventStreamParser().feed(read) if isinstance(event, ServerSentEvent)]
    return events[-1].id if events else ""


def end_of(relayed: Relay, stream: Any, **options: Any) -> RelayEnd:
    """Return the end of a relay that a client has read to its end, whose last event ID is that of the client."""
    ends: list[RelayEnd] = []
    read = relayed(stream, on_end=ends.append, **options).rest()
    [end] = ends
    assert client_id(read) == end.last_event_id
    return end


FIVE = send({"n": 1}, id="5")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([FIVE, DONE], "5"),
        ([FIVE, send({"n": 2}), DONE], "5"),
        ([FIVE, send("[DONE]", id="6")], "6"),
        ([FIVE, cut()], "5"),
        ([FIVE, b"id: 6\ndata: {", cut()], "5"),
        # An ID without data makes no event.
        ([FIVE, b"id: 6\n\n"], "5"),
        ([FIVE, b"id:\ndata: {}\n\n"], ""),
        ([DONE], ""),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
def test_id_after_the_end_of_a_stream(relayed: Relay, steps: list[Any], expected: str, as_function: bool) -> None:
    with SSEServer(steps) as server:
        stream = (lambda: request_sse(server.url)) if as_function else request_sse(server.url)
        assert end_of(relayed, stream).last_event_id == expected


def test_event_that_was_not_sent_does_not_count(relayed: Relay) -> None:
    def odd(item: dict[str, int]) -> Any:
        if item["n"] == 9:
            raise LookupError
        return item if item["n"] % 2 else None

    steps = [send({"n": number}, id=str(number)) for number in (1, 2, 3, 4)]
    with SSEServer([*steps, DONE]) as server:
        assert end_of(relayed, request_sse(server.url), map=odd).last_event_id == "3"
    with SSEServer([*steps, send({"n": 9}, id="9")]) as server:
        assert end_of(relayed, request_sse(server.url), map=odd).last_event_id == "3"


def test_ids_of_the_application_count(relayed: Relay) -> None:
    def named(item: Any) -> Any:
        return ServerSentEvent(data=json.dumps(item), id=f"own-{item['n']}")

    with SSEServer([FIVE, send({"n": 2}), DONE]) as server:
        assert end_of(relayed, request_sse(server.url), map=named).last_event_id == "own-2"


def test_id_of_the_upstream_counts_after_one_of_the_application(relayed: Relay) -> None:
    """The upstream's ID is the same as before."""

    def first_is_own(item: Any) -> Any:
        return ServerSentEvent(data="own", id="own") if item["n"] == 2 else item

    with SSEServer([FIVE, send({"n": 2}), send({"n": 3}), DONE]) as server:
        assert end_of(relayed, request_sse(server.url), map=first_is_own).last_event_id == "5"


def test_id_of_an_iterable(relayed: Relay) -> None:
    def items() -> Iterator[Any]:
        yield ServerSentEvent(data="a", id="1")
        yield "b"
        raise LookupError

    assert end_of(relayed, items()).last_event_id == "1"
    with SSEServer([FIVE, DONE]) as server:
        # The items of a stream have no IDs.
        assert end_of(relayed, (item for item in request_sse(server.url).events)).last_event_id == ""
        merged = merge([request_sse(server.url)])
        assert end_of(relayed, (item for _, item in merged)).last_event_id == ""


def test_item_that_waits_for_the_client_does_not_count(relayed: Relay) -> None:
    """The iterable is ahead of the client."""
    ends: list[RelayEnd] = []
    reading = relayed((ServerSentEvent(data="x" * 60_000, id=str(n)) for n in range(9)), on_end=ends.append)
    first = reading.next_event()
    reading.close()
    assert [end.last_event_id for end in ends] == [client_id(first)]


def test_id_that_the_stream_was_resumed_after_does_not_count(relayed: Relay) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([b":\n\n", silence()]) as server:
        reading = relayed(request_sse(server.url, last_event_id="4"), on_end=ends.append)
        reading.next()
        reading.close()
    assert [end.last_event_id for end in ends] == [""]


def test_events_before_end_all_count() -> None:
    ends: list[RelayEnd] = []
    with SSEServer([FIVE, silence()]) as server:
        frames = relay.frames(request_sse(server.url), on_end=ends.append)
        while b"data" not in next(frames):
            pass
        relay.end_all()
        assert b"shutdown" in b"".join(frames)
    assert ends == [RelayEnd("cancelled", None, "5")]
