"""Successful answers: which statuses, media types and encodings are read as an event stream."""

from __future__ import annotations

import logging
import threading

import pytest

from sseqbridge import ContentTypeError, ReconnectionPolicy, StatusError
from sseqbridge._engine import responses
from sseqbridge.testing import SSEServer, cut, hold, in_turn, raw, respond, send, silence
from tests.clock import FakeClock
from tests.requesters import Requester

DONE = send("[DONE]")

LISTED = [("Content-Type", "text/event-stream; charset=utf-8"), ("Content-Type", "text/event-stream")]


@pytest.mark.parametrize("status", [201, 202, 203, 205, 206, 226, 299])
def test_every_2xx_of_the_type_is_a_stream(ask: Requester, status: int) -> None:
    seen = threading.Event()
    with SSEServer([respond(status), send(1), hold(seen), send(2), DONE]) as server:
        response = ask(server.url, data={})
        # Each item comes when it arrives, and not with the end of the body.
        assert (response.status, response.next()) == (status, 1)
        seen.set()
        assert response.items() == [2]
        assert response.events.outcome == "done"
        assert response.raise_for_status() is not None


def test_cut_201_raises_an_error(ask: Requester) -> None:
    with SSEServer([respond(201), send(1), cut()]) as server:
        items, error = ask(server.url).fail()
    assert items == [1]
    assert "closed in mid-stream" in str(error)


def test_201_of_another_type_is_a_refusal(ask: Requester) -> None:
    with SSEServer([respond(201, content_type="application/json"), raw(b'{"id": 7}')]) as server:
        response = ask(server.url, data={})
        assert response.items() == [{"id": 7}]
        with pytest.raises(StatusError):
            response.raise_for_status()


def test_201_counts_as_a_reconnection(ask: Requester) -> None:
    script = in_turn([respond(201), send(1, id="1"), cut()], [respond(202), send(2), DONE])
    with SSEServer(script) as server:
        with ask(server.url, reconnect=ReconnectionPolicy(delay=0.01)) as response:
            assert response.items() == [1, 2]
            assert response.events.stats.reconnections == 1
        assert server.requests[1].headers["last-event-id"] == "1"


@pytest.mark.parametrize("headers", [LISTED, [("Content-Type", "text/html, text/event-stream")]])
def test_list_of_media_types_is_accepted(ask: Requester, headers: list[tuple[str, str]]) -> None:
    with SSEServer([respond(200, headers, content_type=None), send(1), DONE]) as server:
        assert ask(server.url).items() == [1]


@pytest.mark.parametrize("coding", ["none", "utf-8", "", "identity, none", "8BIT"])
def test_content_encoding_that_is_no_coding_is_ignored(
    ask: Requester, caplog: pytest.LogCaptureFixture, coding: str
) -> None:
    caplog.set_level(logging.DEBUG, "sseqbridge")
    with SSEServer([respond(200, {"Content-Encoding": coding}), send(1), DONE]) as server:
        assert ask(server.url).items() == [1]
    assert ("no registered coding" in caplog.text) is bool(coding)


@pytest.mark.slow
@pytest.mark.parametrize("has_data", [True, False])
def test_endless_stream_of_another_type_is_an_error_at_once(
    ask: Requester, monkeypatch: pytest.MonkeyPatch, has_data: bool
) -> None:
    # Limits that must not be what ends the request: that of bodies with a length, and that of bodies without a pause.
    monkeypatch.setattr(responses, "BODY_SECONDS", 1000.0)
    if has_data:
        monkeypatch.setattr(responses, "_PROMPT_SECONDS", 1000.0)
    head = respond(200, content_type="application/x-ndjson")
    with SSEServer([head, *[raw(b'{"a": 1}\n')] * has_data, silence()]) as server:
        with pytest.raises(ContentTypeError) as caught:
            ask(server.url, timeout=None)
        assert caught.value.text == '{"a": 1}\n' * has_data
        server.requests[0].wait_aborted()


@pytest.mark.slow
def test_page_of_unknown_length_in_several_packets_is_read_whole(
    ask: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "_PROMPT_SECONDS", 1000.0)
    monkeypatch.setattr(responses, "_PAUSE_SECONDS", 1000.0)
    go = threading.Event()
    with SSEServer([respond(200, content_type="text/html"), raw(b"<p>a"), hold(go), raw(b"b</p>")]) as server:
        opened = threading.Timer(0.5, go.set)
        opened.start()
        with pytest.raises(ContentTypeError) as caught:
            ask(server.url)
        opened.join()
        assert caught.value.text == "<p>ab</p>"


@pytest.mark.slow
def test_body_of_known_length_of_another_type_is_read_whole(ask: Requester, clock: FakeClock) -> None:
    go = threading.Event()
    head = respond(200, {"Content-Length": "8"}, content_type="application/json", framing="none")
    with SSEServer([head, raw(b'{"a"'), hold(go), raw(b": 1}")]) as server:
        opened = threading.Timer(1.0, go.set)
        opened.start()
        with pytest.raises(ContentTypeError) as caught:
            ask(server.url)
        opened.join()
        assert caught.value.text == '{"a": 1}'
