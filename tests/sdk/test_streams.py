"""Every SDK's stream: read to its end, aborted, limited, left, retried and cut."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from sseqbridge import Cancelled, cancel_on
from sseqbridge.testing import SSEServer, comment, cut, hold, in_turn, raw, respond, silence
from tests.clock import FakeClock
from tests.sdk.clients import SDK, SDKS, STRUCTURED
from tests.support import in_thread, is_waiting, until, until_no_stream_is_open

every_sdk = pytest.mark.parametrize("sdk", [*SDKS, STRUCTURED], ids=str)
closable_sdk = pytest.mark.parametrize("sdk", [sdk for sdk in [*SDKS, STRUCTURED] if sdk.is_closable], ids=str)
retrying_sdk = pytest.mark.parametrize("sdk", [sdk for sdk in [*SDKS, STRUCTURED] if sdk.is_retried], ids=str)


@every_sdk
def test_a_stream_is_read_to_its_end(sdk: SDK) -> None:
    with SSEServer(sdk.steps()) as server, sdk.client(server.url) as client:
        for _ in range(3):
            assert "".join(sdk.texts(sdk.open(client))) == "Hello, world"
            # Some SDKs close the response after its last event; the rest of its body is read in the background.
            until_no_stream_is_open()
        until(lambda: server.open_requests == 0)
        assert server.connections == 1
        assert server.aborted_requests == 0


@closable_sdk
def test_closing_a_silent_stream_frees_its_reader(sdk: SDK) -> None:
    with SSEServer([*sdk.begin(), silence()]) as server, sdk.client(server.url) as client:
        stream = sdk.open(client)
        reading = in_thread(lambda: sdk.texts(stream))
        until(lambda: is_waiting(reading))
        stream.close()
        assert isinstance(reading.exception(30), sdk.aborted)
        server.requests[0].wait_aborted()
        assert len(server.requests) == 1


@every_sdk
def test_a_scope_ends_a_silent_stream(sdk: SDK) -> None:
    flag = threading.Event()
    texts: list[str] = []

    def read() -> bool:
        with cancel_on(flag) as scope:
            for item in sdk.open(client):
                texts.append(sdk.text(item) or "")  # noqa: PERF401 (each as it comes)
        return scope.cancelled

    with SSEServer([*sdk.begin(), silence()]) as server, sdk.client(server.url) as client:
        reading = in_thread(read)
        until(lambda: "Hello" in texts and is_waiting(reading))
        flag.set()
        assert reading.result(30)
        server.requests[0].wait_aborted()


@every_sdk
def test_scope_ends_the_wait_for_a_head_without_retries(sdk: SDK) -> None:
    flag = threading.Event()

    def ask() -> Any:
        with cancel_on(flag):
            try:
                return list(sdk.open(client))
            except Cancelled:
                return "cancelled"

    with SSEServer([silence()]) as server, sdk.client(server.url) as client:
        asking = in_thread(ask)
        until(lambda: is_waiting(asking) and server.requests)
        flag.set()
        assert asking.result(30) == "cancelled"
        server.requests[0].wait_aborted()
        assert len(server.requests) == 1


@every_sdk
def test_the_idle_limit_ends_a_stream_of_heartbeats(sdk: SDK, clock: FakeClock) -> None:
    more = threading.Event()

    def steps(request: Any) -> Any:
        yield from sdk.begin()
        while True:
            yield comment("keep-alive")
            yield hold(more)
            more.clear()

    with SSEServer(steps) as server, sdk.client(server.url, idle=30) as client:
        stream = sdk.open(client)
        reading = in_thread(lambda: sdk.texts(stream))
        until(lambda: is_waiting(reading))

        def comes() -> bool:
            more.set()
            return reading.done()

        clock.advance_until(comes, step=5.0)
        assert isinstance(reading.exception(), sdk.timed_out)
        server.requests[0].wait_aborted()


@closable_sdk
def test_leaving_the_block_of_a_stream_aborts_it(sdk: SDK) -> None:
    with SSEServer([*sdk.begin(), silence()]) as server, sdk.client(server.url) as client:
        with sdk.open(client) as stream:
            for item in stream:
                if sdk.text(item):
                    break
        server.requests[0].wait_aborted()


@every_sdk
def test_a_dropped_stream_is_aborted(sdk: SDK) -> None:
    with SSEServer([*sdk.begin(), silence()]) as server, sdk.client(server.url) as client:
        for item in sdk.open(client):
            if sdk.text(item):
                break
        del item
        gc.collect()
        server.requests[0].wait_aborted()


@retrying_sdk
def test_a_request_is_repeated_after_429(sdk: SDK) -> None:
    refusal = [respond(429, {"Retry-After": "0.01", "Retry-After-Ms": "10"}, content_type="application/json")]
    with (
        SSEServer(in_turn([*refusal, raw(b'{"error": {}}')], sdk.steps())) as server,
        sdk.client(server.url) as client,
    ):
        assert "".join(sdk.texts(sdk.open(client))) == "Hello, world"
        assert len(server.requests) == 2


@every_sdk
def test_a_stream_that_is_cut_raises(sdk: SDK) -> None:
    with SSEServer([*sdk.begin(), cut()]) as server, sdk.client(server.url, retries=0) as client:
        texts: list[str] = []
        with pytest.raises(sdk.cut):
            texts.extend(sdk.text(item) or "" for item in sdk.open(client))
        assert "".join(texts) == "Hello"
