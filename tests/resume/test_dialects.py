"""The producer's dialect decides which events a log stores, and the reader's own which of them are items."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sseqbridge import Dialect, ProtocolError, SSEError, UpstreamError, UsageError
from sseqbridge.resume import Log
from sseqbridge.testing import SSEServer, raw, send
from tests.engine.reconnecting import AT_ONCE

from .support import DONE, LogCaller

PING = send("now", event="ping")
ERROR = b'{"error": {"message": "too long"}}'


def test_end_event_ends_a_log_for_all_readers(log: Log, caller: LogCaller) -> None:
    steps = [send({"n": 1}), PING, send({"stop": 1}, event="message_stop"), send("not read")]
    with SSEServer(steps) as upstream:
        for _ in range(2):
            reading = caller.open(log, "k", caller.start(upstream.url, dialect="anthropic"))
            assert reading.items() == [{"n": 1}, {"stop": 1}]
            assert reading.outcome == "done"


@pytest.mark.parametrize("decode", ["json", "event"])
def test_reader_in_json_mode_skips_heartbeats(log: Log, caller: LogCaller, decode: Any) -> None:
    """Also those that the producer stored, because its own mode made them items."""
    with SSEServer([PING, send(1), send(" "), send(": keepalive"), DONE]) as upstream:
        start = caller.start(upstream.url, decode=decode)
        assert caller.open(log, "k", start).items() == [1]
        kept = [1] if decode == "json" else ["now", 1, " ", ": keepalive"]
        assert caller.open(log, "k", decode="text").items() == [str(item) for item in kept]


def test_reader_has_a_dialect_of_its_own(log: Log, caller: LogCaller) -> None:
    dialect = Dialect(error_events=("failure",), heartbeat_events=("alive",))
    steps = [send("now", event="alive"), send(1), send("busy", event="failure"), DONE]
    with SSEServer(steps) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url, decode="event"), dialect=dialect)
        items, error = reading.fail()
        assert (items, type(error), str(error)) == ([1], UpstreamError, "the upstream sent an error: busy")
        assert caller.open(log, "k", dialect="events", decode="text").items() == ["now", "1", "busy"]
        with pytest.raises(UsageError, match="`dialect` must be"):
            caller.open(log, "k", dialect="none")


def test_last_block_without_its_blank_line_is_stored(log: Log, caller: LogCaller) -> None:
    with SSEServer([send(1), raw(b'data: {"n": 2}')]) as upstream:
        for _ in range(2):
            assert caller.open(log, "k", caller.start(upstream.url)).items() == [1, {"n": 2}]
    with SSEServer([send(1), raw(b"data: [DONE]")]) as upstream:
        reading = caller.open(log, "m", caller.start(upstream.url, reconnect=AT_ONCE))
        assert (reading.items(), reading.outcome, len(upstream.requests)) == ([1], "done", 1)


@pytest.mark.parametrize("accepts", [True, False])
def test_done_function_decides_about_the_last_block(
    log: Log, caller: LogCaller, accepts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send("1"), raw(b"data: 2\n")]) as upstream:
        start = caller.start(upstream.url, decode="text", done=lambda event: accepts and event.data == "2")
        reading = caller.open(log, "k", start, decode="text")
        assert reading.items() == (["1", "2"] if accepts else ["1"])
        assert reading.outcome == ("done" if accepts else "eof")
    assert ("which is dropped" in caplog.text) is not accepts


@pytest.mark.parametrize(("body", "kind"), [(ERROR, UpstreamError), (b"<html>busy</html>", ProtocolError)])
def test_body_that_is_no_event_stream_fails_all_readers(
    log: Log, caller: LogCaller, body: bytes, kind: type[SSEError]
) -> None:
    with SSEServer([raw(body)]) as upstream:
        for _ in range(2):
            items, error = caller.open(log, "k", caller.start(upstream.url)).fail()
            assert (items, type(error), getattr(error, "event", None)) == ([], kind, None)
            assert getattr(error, "payload", None) == (json.loads(ERROR) if body is ERROR else None)
        assert len(upstream.requests) == 1


def test_retry_is_up_to_date_with_the_item_in_hand(log: Log, caller: LogCaller) -> None:
    with SSEServer([raw(b"data: 1\n\nretry: 1000\ndata: 2\n\ndata: 3\n\nretry: 2000\ndata: 4\n\n"), DONE]) as upstream:
        assert caller.produce(log, "k", caller.start(upstream.url)) == "done"
        reading = caller.open(log, "k")
        assert [(reading.next(), reading.events.retry) for _ in range(4)] == [(1, None), (2, 1.0), (3, 1.0), (4, 2.0)]
