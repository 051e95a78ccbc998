"""Aborts of streams on a reused connection, at the moments when neither callbacks nor a task own the connection."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, RequestAbortedError, request_sse
from sseqbridge._engine.batches import BatchReader
from sseqbridge._engine.callback_transfer import CallbackTransfer
from sseqbridge._http.content_encoding import BodyDecoder
from sseqbridge._http.direct_request import direct_request
from sseqbridge._streams.arguments import prepare
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, respond, send, silence
from tests.support import until, until_no_stream_is_open

pytestmark = pytest.mark.own_transport

OTHERS: dict[str, list[Step]] = {
    "refusal": [respond(404, content_type="application/json"), b"{"],
    "redirect": [respond(302, {"Location": "/"}), b"-"],
    "another type": [respond(content_type="text/html"), b"<p>"],
    "compressed": [respond(headers={"Content-Encoding": "gzip"}), b"\x1f\x8b"],
}


@pytest.mark.parametrize("steps", OTHERS.values(), ids=OTHERS)
def test_abort_before_the_task_begins_closes_the_connection(monkeypatch: pytest.MonkeyPatch, steps: list[Step]) -> None:
    continue_with_rest = CallbackTransfer.continue_with

    def abort_first(self: CallbackTransfer, result: httpx.Response | Exception) -> None:
        # As another thread may, whose close() is posted in the same iteration of the loop.
        self._stream.abort()
        continue_with_rest(self, result)

    def script(request: ReceivedRequest) -> list[Step]:
        return [send("[DONE]")] if request.path == "/first" else [*steps, silence()]

    with SSEServer(script) as server, Bridge() as bridge:
        assert request_sse(server.url + "/first", bridge=bridge).events.collect() == []
        until_no_stream_is_open(bridge)
        monkeypatch.setattr(CallbackTransfer, "continue_with", abort_first)
        with pytest.raises(RequestAbortedError):
            request_sse(server.url, bridge=bridge)
        assert server.connections == 1
        server.requests[1].wait_aborted()
        until(lambda: bridge.stats().connections == 0)


@pytest.mark.blocks_its_loop
@pytest.mark.parametrize("is_reused", [False, True])
def test_request_that_was_aborted_before_its_start_is_not_sent(is_reused: bool) -> None:
    with SSEServer([send("[DONE]")]) as server, Bridge() as bridge:
        if is_reused:
            assert request_sse(server.url, bridge=bridge).events.collect() == []
            until_no_stream_is_open(bridge)
        state, go_on = bridge.started(), threading.Event()
        stream = bridge.new_task(prepare(server.url, data={"pay": 1}).options)
        state.loop.call_soon_threadsafe(go_on.wait)
        bridge.start(state, stream)
        stream.abort()
        go_on.set()
        until(lambda: stream.finished)
        until_no_stream_is_open(bridge)
        # The next request is the next that arrives.
        assert request_sse(server.url, bridge=bridge).events.collect() == []
        assert [request.method for request in server.requests] == ["GET"] * (1 + is_reused)


def test_batch_keeps_its_reconnection_times_while_the_next_is_parsed() -> None:
    """Its consumer reads them in another thread."""
    options = prepare("http://127.0.0.1:9").options
    reader = BatchReader(options, "", None)
    reader.decoder = BodyDecoder(reader.slice_bytes)
    batches: list[Any] = []

    def put(batch: Any) -> bool:
        batches.append(batch)
        return True

    for chunk in (b"data: 1\n\n", b"retry: 2000\ndata: 2\n\n", b"data: 3\n\n"):
        assert reader.feed_to(chunk, put)
    assert [list(batch.retries) for batch in batches] == [[], [(0, 2.0)], []]


def test_request_of_bytes_shows_no_secrets() -> None:
    prepared = prepare("http://127.0.0.1:9/?key=secret", {"Authorization": "secret"}, {"a": "secret"})
    request = direct_request(prepared.options, [])
    assert request is not None
    assert b"secret" in request.data
    assert repr(request) == "<DirectRequest POST http://127.0.0.1>"


def test_parts_of_long_urls_are_not_kept() -> None:
    from sseqbridge._http import direct_request as module

    before = module._target.cache_info().currsize
    for number in range(3):
        url = f"http://127.0.0.1:9/?{'x' * 4000}{number}"
        assert direct_request(prepare(url).options, []) is not None
    assert module._target.cache_info().currsize == before
