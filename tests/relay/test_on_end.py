"""`on_item` and `on_end` of relay.frames and relay.aframes."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from sseqbridge import (
    CallbackError,
    Cancelled,
    Comment,
    ConnectError,
    StatusError,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    cancel_on,
    relay,
    request_sse,
)
from sseqbridge.relay import RelayEnd
from sseqbridge.relay._writer import HEARTBEAT
from sseqbridge.testing import SSEServer, cut, respond, send, silence
from tests.clock import FakeClock
from tests.relay.support import DONE, Relay, collect, error_of
from tests.support import until

Ends = list[RelayEnd]


def test_relay_end_is_frozen() -> None:
    end = RelayEnd("done", None, "5")
    assert (end.outcome, end.error, end.last_event_id) == ("done", None, "5")
    with pytest.raises(FrozenInstanceError):
        end.outcome = "eof"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("steps", "outcome", "error"),
    [
        ([DONE], "done", None),
        ([], "eof", None),
        ([cut()], "error", TruncatedStreamError),
        ([send({"error": {"message": "no"}})], "error", UpstreamError),
        ([send({"type": "error"}, event="error"), DONE], "error", UpstreamError),
    ],
)
def test_on_end_is_called_with_the_outcome(relayed: Relay, steps: list[Any], outcome: str, error: Any) -> None:
    ends: Ends = []
    with SSEServer([send({"n": 1}, id="7"), *steps]) as server:
        reading = relayed(request_sse(server.url), on_end=ends.append)
        assert reading.rest()
        # Before the client sees the end of the response.
        [end] = ends
        reading.close()
    assert ends == [end]
    assert (end.outcome, end.last_event_id) == (outcome, "7")
    assert end.error is None if error is None else isinstance(end.error, error)


def test_outcome_of_a_client_that_left_is_disconnected(relayed: Relay) -> None:
    ends: Ends = []
    with SSEServer([send(1, id="7"), silence()]) as server:
        reading = relayed(request_sse(server.url), on_end=ends.append)
        assert reading.next_event()
        reading.close()
        reading.close()
    assert ends == [RelayEnd("disconnected", None, "7")]


def test_outcome_of_a_relay_that_was_never_read_is_disconnected(relayed: Relay) -> None:
    ends: Ends = []
    relayed(["a"], on_end=ends.append).close()
    assert ends == [RelayEnd("disconnected", None, "")]


@pytest.mark.parametrize("how", ["close", "flag"])
def test_outcome_of_a_stream_that_was_closed_is_cancelled(relayed: Relay, how: str) -> None:
    ends: Ends = []
    flag = threading.Event()
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url, cancel=flag)
        reading = relayed(stream, on_end=ends.append)
        assert reading.next_event()
        flag.set() if how == "flag" else stream.events.close()
        assert reading.rest().startswith(b"event: cancelled\n")
    assert ends == [RelayEnd("cancelled", None, "")]


def test_outcome_of_an_iterable_that_a_scope_cancels_is_cancelled(relayed: Relay) -> None:
    ends: Ends = []
    flag = threading.Event()

    def items() -> Iterator[Any]:
        yield from request_sse(server.url).events

    with SSEServer([send({"n": 1}), silence()]) as server, cancel_on(flag):
        reading = relayed(items(), on_end=ends.append)
        assert reading.next_event()
        flag.set()
        assert reading.rest().startswith(b"event: cancelled\n")
    assert ends == [RelayEnd("cancelled", None, "")]


@pytest.mark.parametrize("result", [5, b"bytes"])
def test_outcome_of_a_result_that_cannot_be_relayed_is_error(relayed: Relay, result: Any) -> None:
    ends: Ends = []
    reading = relayed(lambda: result, on_end=ends.append)
    with pytest.raises(UsageError, match="`stream` must be"):
        opened = reading.frames.open()
        if reading.loop is not None:
            reading.loop.run_until_complete(opened)
    [end] = ends
    assert end.outcome == "error"
    assert isinstance(end.error, UsageError)


def test_outcome_of_a_function_that_a_scope_cancels_is_cancelled() -> None:
    ends: Ends = []

    async def opens() -> Any:
        raise Cancelled

    async def main() -> None:
        await relay.aframes(opens, on_end=ends.append).open()

    asyncio.run(main())
    assert ends == [RelayEnd("cancelled", None, "")]


def test_outcome_of_an_iterable(relayed: Relay) -> None:
    ends: Ends = []
    assert relayed(["a"], on_end=ends.append).rest() == b"data: a\n\n"
    assert ends == [RelayEnd("eof", None, "")]
    ends.clear()
    failure = LookupError()

    def items() -> Iterator[str]:
        yield "a"
        raise failure

    assert relayed(items(), on_end=ends.append).rest()
    assert ends == [RelayEnd("error", failure, "")]


@pytest.mark.parametrize("early", [False, True])
def test_outcome_of_a_function_that_fails_is_error(relayed: Relay, early: bool) -> None:
    ends: Ends = []
    failure = ConnectError("refused")

    def fails() -> Any:
        raise failure

    assert relayed(fails, early=early, on_end=ends.append).rest()
    assert ends == [RelayEnd("error", failure, "")]


class LazyError(Exception):
    """An error whose attribute of that name is no group's."""

    @property
    def exceptions(self) -> tuple[Exception, ...]:
        raise RuntimeError("not loaded")


def test_error_whose_property_raises_is_reported(relayed: Relay) -> None:
    def fails() -> Iterator[str]:
        yield "1"
        raise LazyError("broken")

    ends: Ends = []
    assert relayed(fails(), map=str, on_end=ends.append).rest()
    [end] = ends
    assert (end.outcome, type(end.error)) == ("error", LazyError)


def test_outcome_of_an_open_that_fails_is_error(relayed: Relay) -> None:
    ends: Ends = []
    with SSEServer([respond(401), b"no"]) as server:
        reading = relayed(lambda: request_sse(server.url), on_end=ends.append)
        with pytest.raises(StatusError):
            opened = reading.frames.open()
            if reading.loop is not None:
                reading.loop.run_until_complete(opened)
        reading.close()
    [end] = ends
    assert end.outcome == "error"
    assert isinstance(end.error, StatusError)


@pytest.mark.slow
def test_on_end_is_called_once_for_a_dropped_relay() -> None:
    ends: Ends = []
    frames = relay.frames(["a"], on_end=ends.append)
    assert next(frames)
    del frames
    gc.collect()
    until(lambda: ends)
    assert [end.outcome for end in ends] == ["disconnected"]


def test_on_end_is_called_for_asynchronous_frames_that_are_dropped() -> None:
    """A framework's loop was left because the client's connection broke."""
    ended = threading.Event()

    async def main() -> None:
        async def write(piece: bytes) -> None:
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            async for piece in relay.aframes(["a"], on_end=lambda end: ended.set()):
                await write(piece)
        await asyncio.to_thread(ended.wait, 30)

    asyncio.run(main())
    assert ended.is_set()


def test_failure_of_on_end_is_logged(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    def fails(end: RelayEnd) -> None:
        raise LookupError("no database")

    assert relayed(["a"], on_end=fails).rest() == b"data: a\n\n"
    assert "no database" in caplog.text
    assert "`on_end` failed" in caplog.text


def test_on_end_runs_in_the_views_context(relayed: Relay) -> None:
    user = contextvars.ContextVar[str]("user")
    users: list[str] = []

    def view() -> Any:
        user.set("ann")
        return relayed(["a"], on_end=lambda end: users.append(user.get()))

    contextvars.copy_context().run(view).rest()
    assert users == ["ann"]


def test_on_end_runs_in_the_responses_thread() -> None:
    threads: list[Any] = []
    list(relay.frames(["a"], on_end=lambda end: threads.append(threading.current_thread())))
    assert threads == [threading.current_thread()]


def test_plain_on_end_leaves_the_event_loop_free() -> None:
    loops: list[Any] = []
    asyncio.run(collect(relay.aframes(["a"], on_end=lambda end: loops.append(asyncio._get_running_loop()))))
    assert loops == [None]


# Coroutine functions.


async def silent() -> AsyncIterator[str]:
    await asyncio.Event().wait()
    yield ""


async def ends_of(frames: Callable[[Any], Any], leave: Callable[[Any], Any]) -> Ends:
    """Return what a coroutine function `on_end` gets that waits for a moment."""
    ends: Ends = []

    async def on_end(end: RelayEnd) -> None:
        await asyncio.sleep(0.01)
        ends.append(end)

    await leave(frames(on_end))
    return ends


def test_coroutine_function_is_awaited_at_the_end() -> None:
    [end] = asyncio.run(ends_of(lambda on_end: relay.aframes(["a"], on_end=on_end), collect))
    assert end == RelayEnd("eof", None, "")


def test_coroutine_function_is_awaited_after_a_cancellation() -> None:
    async def leave(frames: Any) -> None:
        assert await anext(frames) == HEARTBEAT
        reading = asyncio.create_task(anext(frames))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    [end] = asyncio.run(ends_of(lambda on_end: relay.aframes(silent(), on_end=on_end), leave))
    assert end == RelayEnd("disconnected", None, "")


def test_coroutine_function_runs_after_a_close_on_the_loop() -> None:
    async def main() -> None:
        ends: asyncio.Queue[RelayEnd] = asyncio.Queue()
        frames = relay.aframes(["a"], on_end=ends.put)
        await anext(frames)
        frames.close()
        assert await ends.get() == RelayEnd("disconnected", None, "")

    asyncio.run(main())


def test_coroutine_function_runs_after_a_close_in_a_thread() -> None:
    """Of a relay that no loop has read."""

    async def on_end(end: RelayEnd) -> None:
        ends.append(end)

    ends: Ends = []
    relay.aframes(["a"], on_end=on_end).close()
    assert ends == [RelayEnd("disconnected", None, "")]


def test_coroutine_of_a_plain_function_is_awaited(relayed: Relay) -> None:
    ends: Ends = []

    async def on_end(end: RelayEnd) -> None:
        await asyncio.sleep(0)
        ends.append(end)

    assert relayed(["a"], on_end=lambda end: on_end(end)).rest() == b"data: a\n\n"  # noqa: PLW0108 (not a coroutine function)
    assert ends == [RelayEnd("eof", None, "")]


def test_coroutine_of_on_item_is_an_error(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    async def on_item(item: Any) -> None:
        raise AssertionError("must not be awaited")

    read = relayed(["a"], on_item=lambda item: on_item(item)).rest()  # noqa: PLW0108 (not a coroutine function)
    assert error_of(read)["type"] == "CallbackError"
    assert "returns a coroutine" in caplog.text


def test_coroutine_function_is_cancelled_after_five_seconds(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def on_end(end: RelayEnd) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def main() -> None:
        at = clock.monotonic()
        await clock.aadvance_until_done(collect(relay.aframes(["a"], on_end=on_end)), step=1)
        assert clock.monotonic() - at >= 5
        while not cancelled.is_set():
            await asyncio.sleep(0)

    asyncio.run(main())
    assert begun.is_set()
    assert "had not ended after 5 s" in caplog.text


@pytest.mark.parametrize("kind", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_failure_of_a_coroutine_function_is_logged(
    caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    async def on_end(end: RelayEnd) -> None:
        raise kind

    assert b"".join(asyncio.run(collect(relay.aframes(["a"], on_end=on_end)))) == b"data: a\n\n"
    assert "`on_end` failed" in caplog.text


def test_coroutine_function_needs_an_asynchronous_server() -> None:
    async def on_end(end: RelayEnd) -> None:
        raise AssertionError("must not be called")

    with pytest.raises(UsageError, match="`on_end` must be a plain function for a synchronous server"):
        relay.frames([], on_end=on_end)


@pytest.mark.parametrize("name", ["on_end", "on_item"])
def test_type_of_a_function_is_checked(name: str) -> None:
    options: dict[str, Any] = {name: "x"}
    with pytest.raises(UsageError, match=f"`{name}` must be a function of .*, got str"):
        relay.frames([], **options)


async def coroutine_function(item: Any) -> None:
    raise AssertionError("must not be called")


class WithCoroutineFunction:
    async def __call__(self, item: Any) -> None:
        raise AssertionError("must not be called")


@pytest.mark.parametrize("function", [coroutine_function, WithCoroutineFunction()], ids=["function", "object"])
def test_on_item_must_not_be_a_coroutine_function(function: Any) -> None:
    with pytest.raises(UsageError, match="`on_item` must be a plain function, got a coroutine function"):
        relay.aframes([], on_item=function)


# on_item.


@pytest.mark.parametrize("options", [{}, {"map": lambda item: {"mapped": item}}])
def test_on_item_is_called_with_each_item_before_map(relayed: Relay, options: Any) -> None:
    items: list[Any] = []
    with SSEServer([send({"n": 1}), send({"n": 2}), DONE]) as server:
        read = relayed(request_sse(server.url), on_item=items.append, **options).rest()
    assert items == [{"n": 1}, {"n": 2}]
    assert read.count(b"data: ") == 3


def test_on_item_gets_the_items_of_the_streams_decode(relayed: Relay) -> None:
    cases: list[Any] = [("text", ["1"]), (lambda event: event.data * 2, ["11"])]
    for decode, expected in cases:
        items: list[Any] = []
        with SSEServer([send(1), DONE]) as server:
            relayed(request_sse(server.url, decode=decode), on_item=items.append).rest()
        assert items == expected


def test_event_that_cannot_be_decoded_is_forwarded_without_on_item(relayed: Relay) -> None:
    items: list[Any] = []
    with SSEServer([send(1), b"data: {\n\n", send(2), DONE]) as server:
        read = relayed(request_sse(server.url), on_item=items.append).rest()
    assert read == b"data: 1\n\ndata: {\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert items == [1, 2]


def test_on_item_is_called_with_the_items_of_an_iterable(relayed: Relay) -> None:
    items: list[Any] = []
    assert relayed(["a", None, Comment("b"), {"c": 1}], on_item=items.append).rest()
    assert items == ["a", {"c": 1}]


@pytest.mark.parametrize("kind", [LookupError, SystemExit, GeneratorExit, StopIteration, TimeoutError])
def test_failure_of_on_item_ends_the_stream_with_callback_error(
    relayed: Relay, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    def fails(item: Any) -> None:
        raise kind("secret")

    ends: Ends = []
    with SSEServer([send(1), silence()]) as server:
        for made in (lambda: request_sse(server.url), lambda: iter(["a"])):
            ends.clear()
            read = relayed(made(), on_item=fails, on_end=ends.append).rest()
            assert error_of(read)["type"] == "CallbackError"
            assert b"secret" not in read
            [end] = ends
            assert end.outcome == "error"
            assert isinstance(end.error, CallbackError)
            assert isinstance(end.error.__cause__, kind)
        server.requests[0].wait_aborted()
    assert "secret" in caplog.text


def test_frames_closed_by_another_thread_call_on_end_once() -> None:
    ends: Ends = []
    with SSEServer([send(1), silence()]) as server:
        frames = relay.frames(request_sse(server.url), heartbeat=None, on_end=ends.append)
        while b"data" not in next(frames):
            pass
        reading = threading.Thread(target=lambda: list(frames))
        reading.start()
        frames.close()
        reading.join(30)
        until(lambda: ends)
    assert ends == [RelayEnd("disconnected", None, "")]


@pytest.mark.parametrize("is_plain", [False, True])
def test_repeated_cancellations_do_not_interrupt_on_end(is_plain: bool) -> None:
    """A server that cancels its tasks twice."""
    ends: Ends = []
    begun, go = threading.Event(), threading.Event()

    async def awaited(end: RelayEnd) -> None:
        begun.set()
        while not go.is_set():
            await asyncio.sleep(0)
        ends.append(end)

    def plain(end: RelayEnd) -> None:
        begun.set()
        assert go.wait(30)
        ends.append(end)

    async def main() -> None:
        frames = relay.aframes(silent(), on_end=plain if is_plain else awaited)
        assert await anext(frames) == HEARTBEAT
        reading = asyncio.create_task(anext(frames))
        await asyncio.sleep(0)
        reading.cancel()
        while not begun.is_set():
            await asyncio.sleep(0)
        for _ in range(3):
            reading.cancel()
            await asyncio.sleep(0)
            assert not reading.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert ends == [RelayEnd("disconnected", None, "")]

    asyncio.run(main())


def test_closed_coroutine_leaves_on_end_its_five_seconds(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def on_end(end: RelayEnd) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def until_cancelled() -> None:
        while not cancelled.is_set():
            await asyncio.sleep(0.1)

    async def main() -> None:
        frames = relay.aframes(silent(), on_end=on_end)
        assert await anext(frames) == HEARTBEAT
        closing = frames.aclose()
        closing.send(None)
        closing.close()
        await clock.aadvance_until_done(until_cancelled(), step=1)

    asyncio.run(main())
    assert begun.is_set()
    assert "had not ended after 5 s" in caplog.text
