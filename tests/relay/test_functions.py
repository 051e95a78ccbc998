"""Functions in place of streams: they are called when the response starts, and not before."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sseqbridge import CallbackError, ConnectError, StatusError, UsageError, arequest_sse, relay, request_sse
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import SSEServer, hold, respond, send, silence
from tests.clock import FakeClock
from tests.relay.support import DONE, Reading, Relay, collect, error_of
from tests.support import in_thread, is_waiting, until

EARLY = pytest.mark.parametrize("early", [False, True])


def open_now(reading: Reading) -> None:
    """Open the upstream of a relay."""
    opened = reading.frames.open()
    if reading.loop is not None:
        reading.loop.run_until_complete(opened)


class Opener:
    """A function that opens a stream, and counts its calls."""

    def __init__(self, server: SSEServer, **options: Any) -> None:
        self.server = server
        self.options = options
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return request_sse(self.server.url, **self.options)


@EARLY
def test_function_is_called_at_the_first_read(relayed: Relay, early: bool) -> None:
    with SSEServer([send(1), DONE]) as server:
        opener = Opener(server)
        reading = relayed(opener, early=early)
        assert opener.calls == 0
        assert not server.requests
        assert reading.rest() == b"data: 1\n\ndata: [DONE]\n\n"
        assert opener.calls == 1


@EARLY
@pytest.mark.parametrize(
    "function",
    [
        lambda server: lambda: request_sse(server.url).events,
        lambda server: functools.partial(request_sse, server.url),
        lambda server: lambda: iter([1, 2]),
        lambda server: lambda: [1, 2],
        lambda server: lambda: (n for n in (1, 2)),
    ],
    ids=["stream", "partial", "iterator", "list", "generator"],
)
def test_function_returns_what_can_be_relayed(relayed: Relay, function: Any, early: bool) -> None:
    with SSEServer([send(1), send(2)]) as server:
        assert relayed(function(server), map=str, early=early).rest() == b"data: 1\n\ndata: 2\n\n"


def test_generator_function_is_relayed(relayed: Relay) -> None:
    def items() -> Iterator[str]:
        yield "a"

    assert relayed(items).rest() == b"data: a\n\n"


@EARLY
@pytest.mark.parametrize("kind", ["coroutine function", "lambda", "partial", "asynchronous generator function"])
def test_asynchronous_function_is_relayed_by_an_asynchronous_server(early: bool, kind: str) -> None:
    async def opens() -> Any:
        return await arequest_sse(server.url)

    async def items() -> AsyncIterator[str]:
        yield "1"

    async def main(function: Callable[[], Any]) -> None:
        assert b"".join(await collect(relay.aframes(function, early=early, done=False))) == b"data: 1\n\n"

    with SSEServer([send(1), DONE]) as server:
        functions: dict[str, Callable[[], Any]] = {
            "coroutine function": opens,
            "lambda": lambda: arequest_sse(server.url),
            "partial": functools.partial(arequest_sse, server.url),
            "asynchronous generator function": items,
        }
        asyncio.run(main(functions[kind]))


def test_coroutine_function_needs_an_asynchronous_server() -> None:
    async def opens() -> Any:
        raise AssertionError("must not be called")

    with pytest.raises(UsageError, match=r"coroutine function\. Relay it through an asynchronous server"):
        relay.frames(opens)
    frames = relay.frames(lambda: opens())  # noqa: PLW0108 (not a coroutine function)
    with pytest.raises(UsageError, match="Relay it through an asynchronous server"):
        frames.open()


@EARLY
@pytest.mark.parametrize("result", [5, None, "text", b"bytes", {"a": 1}, list])
def test_result_that_cannot_be_relayed_is_an_error(
    relayed: Relay, caplog: pytest.LogCaptureFixture, result: Any, early: bool
) -> None:
    assert error_of(relayed(lambda: result, early=early).rest())["type"] == "ServerError"
    assert "`stream` must be" in caplog.text


def test_heartbeats_are_sent_early_while_the_upstream_is_silent(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()
    with SSEServer([hold(go), send(1), DONE]) as server:
        reading = relayed(Opener(server, timeout=None), heartbeat=60, early=True)
        assert reading.next() == HEARTBEAT
        server.wait_for_request()
        assert [clock.advance_until_done(reading.next, step=10) for _ in range(2)] == [HEARTBEAT] * 2
        go.set()
        assert reading.rest() == b"data: 1\n\ndata: [DONE]\n\n"


def test_nothing_is_sent_before_the_upstreams_headers(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()
    with SSEServer([hold(go), respond(), silence()]) as server:
        reading = relayed(Opener(server, timeout=None), heartbeat=60)
        waiting = in_thread(reading.next)
        server.wait_for_request()
        clock.advance(200)
        assert not waiting.done()
        go.set()
        assert waiting.result(30) == HEARTBEAT
        reading.close()


@EARLY
def test_close_aborts_an_upstream_that_has_not_answered(early: bool) -> None:
    with SSEServer([silence()]) as server:
        frames = relay.frames(Opener(server, timeout=None), heartbeat=None, early=early)
        reading = in_thread(lambda: [piece for piece in frames if piece != HEARTBEAT])
        request = server.wait_for_request()
        until(lambda: is_waiting(reading))
        frames.close()
        request.wait_aborted()
        assert reading.result(30) == []


@EARLY
@pytest.mark.parametrize("is_coroutine", [False, True])
def test_cancellation_aborts_an_upstream_that_has_not_answered(early: bool, is_coroutine: bool) -> None:
    async def opens() -> Any:
        return await arequest_sse(server.url)

    async def main() -> None:
        function: Any = opens if is_coroutine else Opener(server, timeout=None)
        reading = asyncio.create_task(collect(relay.aframes(function, early=early)))
        request = await asyncio.to_thread(server.wait_for_request)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.to_thread(request.wait_aborted)

    with SSEServer([silence()]) as server:
        asyncio.run(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_dropped_relay_aborts_an_upstream_that_has_not_answered(is_async: bool) -> None:
    async def main() -> None:
        frames = relay.aframes(Opener(server, timeout=None), early=True)
        assert await anext(frames) == HEARTBEAT
        await asyncio.to_thread(server.wait_for_request)
        del frames
        await asyncio.to_thread(server.requests[0].wait_aborted)

    with SSEServer([silence()]) as server:
        if is_async:
            asyncio.run(main())
        else:
            frames = relay.frames(Opener(server, timeout=None), early=True)
            assert next(frames) == HEARTBEAT
            request = server.wait_for_request()
            del frames
            request.wait_aborted()


@EARLY
def test_stream_that_a_function_returns_too_late_is_aborted(relayed: Relay, early: bool) -> None:
    is_closed = threading.Event()
    opened = threading.Event()

    def opens() -> Any:
        stream = request_sse(server.url)
        opened.set()
        is_closed.wait(30)
        return stream

    with SSEServer([send(1), silence()]) as server:
        reading = relayed(opens, early=early)
        waiting = in_thread(reading.rest)
        assert opened.wait(30)
        if reading.loop is None:
            reading.frames.close()
        else:
            reading.loop.call_soon_threadsafe(reading.frames.close)
            until(lambda: "ended" in repr(reading.frames))
        is_closed.set()
        server.requests[0].wait_aborted()
        assert waiting.result(30) == b""


class Late:
    """An iterable that is returned when its relay has been closed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("must not be read")

    def close(self) -> None:
        self.closed.set()
        if self.error is not None:
            raise self.error


@EARLY
@pytest.mark.parametrize("error", [None, LookupError("in the end")])
def test_iterable_that_a_function_returns_too_late_is_closed(
    early: bool, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    late = Late(error)
    called, is_closed = threading.Event(), threading.Event()

    def opens() -> Any:
        called.set()
        is_closed.wait(30)
        return late

    frames = relay.frames(opens, early=early, heartbeat=None)
    reading = in_thread(lambda: [piece for piece in frames if piece != HEARTBEAT])
    assert called.wait(30)
    frames.close()
    is_closed.set()
    assert late.closed.wait(30)
    assert reading.result(30) == []
    if error is not None:
        until(lambda: "in the end" in caplog.text)


def test_heartbeats_are_sent_while_a_refusals_body_is_awaited() -> None:
    with SSEServer([respond(503), b"x", silence()]) as server:
        frames = relay.frames(Opener(server), early=True, heartbeat=0.01)
        assert next(frames) == HEARTBEAT
        until(lambda: server.requests and server.requests[0].sent_bytes)
        assert [next(frames) for _ in range(3)] == [HEARTBEAT] * 3
        frames.close()
        server.assert_aborted()


@EARLY
def test_refusal_of_an_opened_upstream_is_an_error_event(relayed: Relay, early: bool) -> None:
    with SSEServer([respond(401), b"busy"]) as server:
        assert error_of(relayed(Opener(server), early=early).rest())["type"] == "StatusError"


def test_open_raises_a_refusal_with_its_body(relayed: Relay) -> None:
    with SSEServer([respond(503), b"busy"]) as server:
        reading = relayed(Opener(server))
        with pytest.raises(StatusError) as caught:
            open_now(reading)
        assert caught.value.body == b"busy"
        assert reading.rest() == b""


def test_open_waits_for_the_headers_once(relayed: Relay) -> None:
    with SSEServer([send(1), DONE]) as server:
        opener = Opener(server)
        reading = relayed(opener)
        open_now(reading)
        open_now(reading)
        assert opener.calls == 1
        assert reading.rest() == b"data: 1\n\ndata: [DONE]\n\n"


def test_open_does_nothing_for_a_stream_that_is_open(relayed: Relay) -> None:
    with SSEServer([send(1), DONE]) as server:
        reading = relayed(request_sse(server.url))
        open_now(reading)
        assert reading.rest() == b"data: 1\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("error", [LookupError("no"), ConnectError("refused")])
def test_open_raises_the_functions_exceptions(relayed: Relay, error: Exception) -> None:
    cause = ValueError()

    def fails() -> Any:
        raise error from cause

    reading = relayed(fails)
    with pytest.raises(type(error)) as caught:
        open_now(reading)
    assert caught.value is error
    assert error.__cause__ is cause
    assert error.__context__ in (None, cause)
    assert reading.rest() == b""


@EARLY
@pytest.mark.parametrize(
    ("error", "kind"), [(LookupError("secret"), "ServerError"), (ConnectError("secret"), "ConnectError")]
)
def test_error_of_a_function_is_reported_and_logged(
    relayed: Relay, caplog: pytest.LogCaptureFixture, early: bool, error: Exception, kind: str
) -> None:
    def fails() -> Any:
        raise error

    read = relayed(fails, early=early).rest()
    assert error_of(read)["type"] == kind
    assert b"secret" not in read
    assert "secret" in caplog.text


@pytest.mark.parametrize("early", [False, True])
def test_exit_in_a_loops_function_is_a_callback_error(early: bool) -> None:
    async def fails() -> Any:
        raise SystemExit

    async def main() -> None:
        read = b"".join(await collect(relay.aframes(fails, early=early)))
        assert error_of(read)["type"] == "CallbackError"
        with pytest.raises(CallbackError):
            await relay.aframes(fails).open()

    asyncio.run(main())


def test_early_must_be_a_bool() -> None:
    early: Any = 1
    with pytest.raises(UsageError, match="`early` must be True or False, got 1"):
        relay.frames([], early=early)


def test_204_of_an_opened_upstream_ends_the_relay(relayed: Relay) -> None:
    with SSEServer([respond(204)]) as server:
        assert relayed(Opener(server), done="over").rest() == b"data: over\n\n"
