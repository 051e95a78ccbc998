"""SSEClient(headers=function): called for each attempt, in which thread, and what its failures do."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    CallbackError,
    ReconnectionError,
    ReconnectionPolicy,
    SSEClient,
    StreamTimeoutError,
    Timeout,
    UsageError,
    amerge,
    gather,
    merge,
)
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, raw, respond, send, silence
from tests.clock import FakeClock
from tests.engine.reconnecting import AT_ONCE
from tests.streams.async_support import Run
from tests.streams.client_support import ClientRequester
from tests.support import in_thread, is_waiting, until

DONE = send("[DONE]")


class Tokens:
    """Returns headers with a new token each time, and records the threads that called it."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: list[str] = []

    def __call__(self) -> dict[str, str]:
        self.count += 1
        self.threads.append(threading.current_thread().name)
        return {"Authorization": f"Bearer {self.count}"}


def tokens_sent(server: SSEServer) -> list[str]:
    return [request.headers["authorization"] for request in server.requests]


@pytest.fixture(name="server")
def one_item_server() -> Iterator[SSEServer]:
    with SSEServer([send(1), DONE]) as server:
        yield server


def test_function_is_called_for_each_request(send_with: ClientRequester, server: SSEServer) -> None:
    tokens = Tokens()
    client = SSEClient(server.url, headers=tokens)
    assert tokens.count == 0
    for _ in range(2):
        with send_with(client, "/", data={}) as response:
            assert response.items() == [1]
    assert tokens_sent(server) == ["Bearer 1", "Bearer 2"]
    assert server.requests[0].headers["content-type"] == "application/json"
    # Never on a loop: the thread of a coroutine runs one.
    expected = "sseqbridge-headers" if send_with.is_async else threading.current_thread().name
    assert tokens.threads == [expected] * 2


def test_a_call_gets_its_headers_when_it_is_sent(server: SSEServer) -> None:
    tokens = Tokens()
    call = SSEClient(server.url, headers=tokens).call("/")
    assert tokens.count == 0
    for _ in range(2):
        call().events.close()
    assert tokens_sent(server) == ["Bearer 1", "Bearer 2"]


def test_headers_of_a_request_replace_those_of_the_function(send_with: ClientRequester, server: SSEServer) -> None:
    client = SSEClient(server.url, headers=lambda: [("X-A", "1"), ("x-b", "2"), ("ACCEPT", "text/*"), ("X-B", "3")])
    with send_with(client, "/", {"x-A": "4"}):
        pass
    headers = server.requests[0].headers
    assert (headers["x-a"], headers["x-b"], headers["accept"]) == ("4", "2, 3", "text/*")


def test_function_may_return_none(send_with: ClientRequester, server: SSEServer) -> None:
    with send_with(SSEClient(server.url, headers=lambda: None), "/") as response:
        assert response.items() == [1]


def test_with_options_replaces_the_function(send_with: ClientRequester, server: SSEServer) -> None:
    client = SSEClient(server.url, headers={"Authorization": "Bearer 0"})
    for headers in (Tokens(), {"Authorization": "Bearer 2"}):
        with send_with(client.with_options(headers=headers), "/"):
            pass
    assert tokens_sent(server) == ["Bearer 1", "Bearer 2"]


# Later attempts.


def numbered(request: ReceivedRequest) -> Iterator[Step]:
    n = int(request.headers.get("last-event-id", "0")) + 1
    yield raw(f"id: {n}\nretry: 1\ndata: {n}\n\n".encode())
    yield cut() if n < 3 else DONE


def test_function_is_called_for_each_reconnection(send_with: ClientRequester) -> None:
    tokens = Tokens()
    with SSEServer(numbered) as server:
        client = SSEClient(server.url, headers=tokens, reconnect=AT_ONCE)
        with send_with(client, "/", {"X-A": "1"}) as response:
            assert response.items() == [1, 2, 3]
        assert tokens_sent(server) == ["Bearer 1", "Bearer 2", "Bearer 3"]
        assert [request.headers.get("last-event-id") for request in server.requests] == [None, "1", "2"]
        assert {request.headers["x-a"] for request in server.requests} == {"1"}
    assert tokens.threads[1:] == ["sseqbridge-headers"] * 2


def test_function_is_called_for_each_attempt_at_the_first_answer(send_with: ClientRequester) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [DONE] if request.headers["authorization"] == "Bearer 3" else [respond(503)]

    with SSEServer(script) as server:
        with send_with(SSEClient(server.url, headers=Tokens(), reconnect=AT_ONCE), "/") as response:
            assert response.status == 200
        assert tokens_sent(server) == ["Bearer 1", "Bearer 2", "Bearer 3"]


def test_blocking_function_blocks_no_other_stream() -> None:
    go_on, calling, tick = threading.Event(), threading.Event(), threading.Event()
    count = itertools.count()

    def headers() -> dict[str, str]:
        if next(count):
            calling.set()
            assert go_on.wait(30)
        return {}

    with Bridge() as bridge, SSEServer(numbered) as server, SSEServer([hold(tick), send(7), DONE]) as other:
        stream = SSEClient(server.url, headers=headers, reconnect=AT_ONCE, bridge=bridge).request("/").events
        assert next(stream) == 1
        reading = in_thread(stream.collect)
        waiting = in_thread(SSEClient(other.url, bridge=bridge).call("/"))
        assert calling.wait(30)
        tick.set()
        assert waiting.result(30).events.collect() == [7]
        go_on.set()
        assert reading.result(30) == [2, 3]


def test_close_does_not_wait_for_the_function() -> None:
    go_on, calling = threading.Event(), threading.Event()
    count = itertools.count()

    def headers() -> dict[str, str]:
        if next(count):
            calling.set()
            assert go_on.wait(30)
        return {}

    with SSEServer(numbered) as server:
        stream = SSEClient(server.url, headers=headers, reconnect=AT_ONCE).request("/").events
        assert next(stream) == 1
        reading = in_thread(stream.collect)
        assert calling.wait(30)
        until(lambda: is_waiting(reading))
        stream.close()
        assert reading.result(30) == []
        assert stream.outcome == "closed"
        go_on.set()
        assert len(server.requests) == 1


# Failures.


def failing(after: int, error: BaseException) -> Callable[[], dict[str, str]]:
    count = itertools.count()

    def headers() -> dict[str, str]:
        if next(count) >= after:
            raise error
        return {}

    return headers


def test_failure_is_a_callback_error(send_with: ClientRequester, server: SSEServer) -> None:
    error = KeyError("secret")
    with pytest.raises(CallbackError) as caught:
        send_with(SSEClient(server.url, headers=failing(0, error)), "/")
    assert str(caught.value) == "the headers function raised KeyError"
    assert caught.value.__cause__ is error
    assert server.requests == []


def test_failure_is_not_retried(send_with: ClientRequester, server: SSEServer) -> None:
    tokens = Tokens()

    def headers() -> dict[str, str]:
        tokens()
        raise ConnectionError

    with pytest.raises(CallbackError):
        send_with(SSEClient(server.url, headers=headers, retries=2), "/")
    assert tokens.count == 1


def test_total_begins_after_the_first_call(clock: FakeClock, send_with: ClientRequester, server: SSEServer) -> None:
    def headers() -> dict[str, str]:
        clock.advance(30)
        return {}

    with send_with(SSEClient(server.url, headers=headers, timeout=Timeout(total=10)), "/") as response:
        assert response.items() == [1]


def test_total_includes_the_call_for_a_retry(clock: FakeClock, send_with: ClientRequester, server: SSEServer) -> None:
    tokens, has_timed_out = Tokens(), threading.Event()

    def headers() -> dict[str, str]:
        if tokens()["Authorization"] == "Bearer 2":
            clock.advance(30)
            has_timed_out.wait(20)
        return {}

    server.play([respond(503, {"Retry-After": "0"})], [send(1), DONE])
    with pytest.raises(StreamTimeoutError) as caught:
        send_with(SSEClient(server.url, headers=headers, retries=1, timeout=Timeout(total=10)), "/")
    has_timed_out.set()
    assert caught.value.which == "total"


class Signing(httpx.Auth):
    """Sends the number of the function's token again, signed, after a 401."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        assert response.status_code == 401
        request.headers["Authorization"] += ", signed"
        yield request


def test_function_is_combined_with_an_auth(send_with: ClientRequester) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        return [send(1), DONE] if request.headers["authorization"].endswith("signed") else [respond(401)]

    with SSEServer(script) as server:
        client = SSEClient(server.url, headers=Tokens(), auth=Signing())
        with send_with(client, "/") as response:
            assert response.items() == [1]
        assert tokens_sent(server) == ["Bearer 1", "Bearer 1, signed"]


@pytest.mark.parametrize("script", [[raw(b"id: 1\ndata: 1\n\n"), cut()], [raw(b"id: 1\ndata: 1\n\n")]])
def test_failure_for_a_reconnection_ends_the_stream(send_with: ClientRequester, script: list[Step]) -> None:
    """Also after a clean end, which the policy would answer by another attempt."""
    error = KeyError()
    policy = ReconnectionPolicy(delay=0.01, max_delay=0.01, on_eof=True)
    with SSEServer(script) as server:
        client = SSEClient(server.url, headers=failing(1, error), reconnect=policy)
        with send_with(client, "/") as response:
            items, caught = response.fail()
            assert items == [1]
            assert type(caught) is CallbackError
            assert caught.__cause__ is error
            assert response.events.outcome == "error"
        assert len(server.requests) == 1


def test_failure_before_the_second_attempt_ends_the_opening(send_with: ClientRequester) -> None:
    with SSEServer([respond(503)]) as server:
        client = SSEClient(server.url, headers=failing(1, KeyError()), reconnect=AT_ONCE)
        with pytest.raises(CallbackError, match="the headers function raised KeyError"):
            send_with(client, "/")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("Bearer 1", "`headers`: the function must return a mapping or a list of (name, value) pairs, got str"),
        ({"X": "a\nb"}, "`headers`: the value of 'X'"),
        ({"Content-Length": "5"}, "`headers` must not contain 'Content-Length'"),
        ({"Last-Event-ID": "5"}, "`headers`: the function must not return Last-Event-ID. Pass `last_event_id`."),
    ],
)
def test_headers_that_cannot_be_sent_are_usage_errors(send_with: ClientRequester, returned: Any, message: str) -> None:
    results = itertools.chain([returned, {}], itertools.repeat(returned))
    with SSEServer([raw(b"id: 1\ndata: 1\n\n"), cut()]) as server:
        client = SSEClient(server.url, headers=lambda: next(results), reconnect=AT_ONCE)
        with pytest.raises(UsageError) as caught:
            send_with(client, "/")
        assert str(caught.value).startswith(message)
        assert server.requests == []
        with send_with(client, "/") as response:
            assert response.next() == 1
            with pytest.raises(ReconnectionError) as lost:
                response.next()
            assert isinstance(lost.value.__cause__, UsageError)
            assert str(lost.value.__cause__).startswith(message)


def test_coroutine_function_is_a_usage_error() -> None:
    async def headers() -> dict[str, str]:
        return {}

    class Headers:
        async def __call__(self) -> dict[str, str]:
            return {}

    wrongs: list[Any] = [headers, partial(headers), Headers()]
    for wrong in wrongs:
        with pytest.raises(UsageError, match="`headers` must be a plain function, got a coroutine function"):
            SSEClient("http://h", headers=wrong)


def test_function_that_returns_a_coroutine_is_a_usage_error(send_with: ClientRequester) -> None:
    """A lambda that calls a coroutine function; the coroutine is closed, without a warning."""

    async def headers() -> dict[str, str]:
        return {}

    wrong: Any = lambda: headers()  # noqa: E731, PLW0108
    with pytest.raises(UsageError, match="the function must return headers, got a coroutine, which is never awaited"):
        send_with(SSEClient("http://h", headers=wrong), "/")


@pytest.mark.parametrize(
    ("headers", "kind"),
    [(failing(0, KeyError()), CallbackError), (lambda: {"Authorization": None}, UsageError)],
    ids=["raises", "returns-none"],
)
def test_failure_in_merged_streams_belongs_to_its_own_stream(
    run: Run, server: SSEServer, headers: Any, kind: Any
) -> None:
    client = SSEClient(server.url)
    calls = {"bad": client.with_options(headers=headers).call("/"), "good": client.call("/")}

    async def main() -> dict[str, Any]:
        async with amerge(calls, errors="yield") as merged:
            return {name: item async for name, item in merged}

    for named in (dict(merge(calls, errors="yield")), run(main)):
        assert named["good"] == 1
        assert type(named["bad"]) is kind
        assert named["bad"].stream_name == "bad"
    results = dict(gather(calls, errors="yield"))
    assert results["good"] == [1]
    assert type(results["bad"]) is kind
    with pytest.raises(kind):
        list(merge(calls))


def test_stream_is_aborted_while_the_function_runs_in_a_coroutine(run: Run) -> None:
    """The cancelled wait abandons the function's thread."""
    go_on, calling = threading.Event(), threading.Event()

    def headers() -> dict[str, str]:
        calling.set()
        assert go_on.wait(30)
        return {}

    async def main() -> None:
        asking = asyncio.create_task(SSEClient(server.url, headers=headers).arequest("/"))
        await asyncio.to_thread(calling.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()

    with SSEServer([silence()]) as server:
        run(main)
        assert server.requests == []
