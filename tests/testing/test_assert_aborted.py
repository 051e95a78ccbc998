"""SSEServer.assert_aborted, for tests of applications that relay a stream."""

from __future__ import annotations

import asyncio

import pytest

from sseqbridge import arequest_sse, request_sse
from sseqbridge.testing import SSEServer, send, silence


def test_aborted_requests_pass() -> None:
    with SSEServer([send(1), silence()]) as server:
        for _ in range(2):
            with request_sse(server.url) as (_status, _headers, events):
                assert next(events) == 1
        server.assert_aborted()


def test_server_without_requests_fails() -> None:
    with SSEServer() as server, pytest.raises(AssertionError, match="has received none"):
        server.assert_aborted()


def test_open_request_fails() -> None:
    with (
        SSEServer([send(1), silence()]) as server,
        request_sse(server.url),
        pytest.raises(AssertionError, match=r"is still connected after 0\.05 s\. In a test of a view, close"),
    ):
        server.assert_aborted(timeout=0.05)


def test_request_that_ended_by_itself_fails() -> None:
    with SSEServer([send(1), send("[DONE]")]) as server:
        assert request_sse(server.url).events.collect() == [1]
        with pytest.raises(AssertionError, match="its script ended by itself"):
            server.assert_aborted()


def test_one_of_several_requests_that_ended_by_itself_fails() -> None:
    with SSEServer() as server:
        server.play([send(1), silence()], [send(1)])
        request_sse(server.url).events.close()
        assert request_sse(server.url).events.collect() == [1]
        with pytest.raises(AssertionError, match="its script ended by itself"):
            server.assert_aborted()


def test_wait_on_an_event_loop_says_so() -> None:
    advice = "has blocked the event loop of this thread: in a coroutine, call the method by asyncio.to_thread"

    async def check(server: SSEServer) -> None:
        with pytest.raises(TimeoutError, match=f"0 of 1 requests arrived within 0 s.*{advice}"):
            server.wait_for_request(timeout=0)
        async with await arequest_sse(server.url):
            with pytest.raises(AssertionError, match=f"is still connected after 0 s.*{advice}"):
                server.assert_aborted(timeout=0)
            with pytest.raises(TimeoutError, match=f"within 0 s.*{advice}"):
                server.requests[0].wait_aborted(timeout=0)
        await asyncio.to_thread(server.assert_aborted)
        await asyncio.to_thread(server.requests[0].wait_aborted)

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(check(server))


def test_wait_in_a_thread_does_not_mention_an_event_loop(sse_server: SSEServer) -> None:
    with pytest.raises(TimeoutError, match=r"0 of 1 requests arrived within 0 s$"):
        sse_server.wait_for_request(timeout=0)
