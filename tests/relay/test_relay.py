"""The relay without a web server: what goes out for what comes in, and when, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import logging
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge import (
    Comment,
    EventStreamParser,
    RequestAbortedError,
    ServerSentEvent,
    StatusError,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    arequest_sse,
    relay,
    request_sse,
)
from sseqbridge._runtime import sockets
from sseqbridge.relay._disconnect import reader_of
from sseqbridge.relay._response import event_stream_headers
from sseqbridge.relay._writer import HEARTBEAT, RelayOptions, Writer, error_frame
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    comment,
    cut,
    hold,
    reset,
    respond,
    send,
    silence,
    wait,
)
from tests.clock import FakeClock
from tests.support import in_thread, is_idle, is_waiting, thread_waits, until

DONE = send("[DONE]")

# One relay, as a WSGI server reads it, and as an ASGI server does.
Relay = Callable[..., "Reading"]


class Reading:
    """One relay, read by one reader."""

    def __init__(self, frames: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.frames = frames
        self.loop = loop

    def next(self) -> bytes:
        if self.loop is None:
            return next(self.frames)  # type: ignore[no-any-return]
        return self.loop.run_until_complete(anext(self.frames))  # type: ignore[no-any-return]

    def rest(self) -> bytes:
        """Read to the end; return what came, without the heartbeats."""
        read = b""
        while True:
            try:
                piece = self.next()
            except (StopIteration, StopAsyncIteration):
                return read
            read += b"" if piece == HEARTBEAT else piece

    def next_event(self) -> bytes:
        while (piece := self.next()) == HEARTBEAT:
            pass
        return piece

    def close(self) -> None:
        if self.loop is None:
            self.frames.close()
        else:
            self.loop.run_until_complete(self.frames.aclose())


@pytest.fixture(params=["sync", "async"])
def relayed(request: pytest.FixtureRequest) -> Iterator[Relay]:
    """relay.frames, and in a second run of the test relay.aframes, of the same synchronous streams."""
    if request.param == "sync":
        yield lambda stream, **options: Reading(relay.frames(stream, **options), None)
        return
    loop = asyncio.new_event_loop()
    yield lambda stream, **options: Reading(relay.aframes(stream, **options), loop)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def error_of(read: bytes) -> dict[str, str]:
    """The error event that ends what was read."""
    [*_, event] = EventStreamParser().feed(read)
    assert isinstance(event, ServerSentEvent)
    assert event.event == "error"
    error = event.json()
    assert error.keys() == {"type", "message"}
    return error  # type: ignore[no-any-return]


# What goes out.


def test_events_go_on_as_they_came(relayed: Relay) -> None:
    sent = (
        b'data: {"n": 1}\n\n',
        b"data: [1,2]\n\n",
        b"event: tick\nid: 7\nretry: 1500\ndata: 2\ndata: 3\n\n",
        b"id: 7\ndata: 4\n\n",
    )
    with SSEServer([*sent, DONE]) as server:
        read = relayed(request_sse(server.url, decode="text")).rest()
    assert read == b"".join(sent) + b"data: [DONE]\n\n"


def test_an_id_that_is_taken_back_is_taken_back_from_the_reader_too(relayed: Relay) -> None:
    with SSEServer([send(1, id="7"), b"id\ndata: 2\n\n", b"data: 3\n\n", DONE]) as server:
        read = relayed(request_sse(server.url, decode="text")).rest()
    assert read == b"id: 7\ndata: 1\n\nid:\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n"
    assert [event.id for event in EventStreamParser().feed(read) if isinstance(event, ServerSentEvent)] == [
        "7",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize("decode", ["json", "text", "event"])
def test_whatever_is_decoded_the_event_goes_on(relayed: Relay, decode: Any) -> None:
    with SSEServer([send('{"a":   1}', event="tick"), DONE]) as server:
        read = relayed(request_sse(server.url, decode=decode)).rest()
    assert read == b'event: tick\ndata: {"a":   1}\n\ndata: [DONE]\n\n'


def test_what_a_decode_function_makes_goes_on_with_the_name_and_id_of_the_event(relayed: Relay) -> None:
    with SSEServer([send("a", event="tick", id="1"), send("b"), DONE]) as server:
        read = relayed(request_sse(server.url, decode=lambda event: event.data.upper())).rest()
    assert read == b"event: tick\nid: 1\ndata: A\n\nid: 1\ndata: B\n\ndata: [DONE]\n\n"


def test_comments_go_on_where_they_were_asked_for(relayed: Relay) -> None:
    script = [comment("one"), send("a"), DONE]
    with SSEServer(script) as server:
        assert relayed(request_sse(server.url, decode="text")).rest() == b"data: a\n\ndata: [DONE]\n\n"
        stream = request_sse(server.url, decode="event", comments=True)
        assert relayed(stream, map=lambda item: item).rest() == b": one\n\ndata: a\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    ("made", "frame"),
    [
        ("text", b"event: tick\nid: 1\ndata: text\n\n"),
        ("two\nlines", b"event: tick\nid: 1\ndata: two\ndata: lines\n\n"),
        ({"a": "\u00e4"}, b'event: tick\nid: 1\ndata: {"a":"\xc3\xa4"}\n\n'),
        # Half a character, as an upstream's JSON may have it.
        ({"a": "\ud83d"}, b'event: tick\nid: 1\ndata: {"a":"\\ud83d"}\n\n'),
        ([1, None], b"event: tick\nid: 1\ndata: [1,null]\n\n"),
        (ServerSentEvent("other", "x", "9", 2.0), b"event: other\nid: 9\nretry: 2000\ndata: x\n\n"),
        (Comment("x"), b": x\n\n"),
        (None, b""),
    ],
)
def test_map_says_what_goes_out(relayed: Relay, made: Any, frame: bytes) -> None:
    asked = []

    def note(item: Any) -> Any:
        asked.append(item)
        return made

    with SSEServer([send({"n": 1}, event="tick", id="1"), DONE]) as server:
        assert relayed(request_sse(server.url), map=note).rest() == frame + b"data: [DONE]\n\n"
    assert asked == [{"n": 1}]


@pytest.mark.parametrize(
    ("done", "last"),
    [
        (True, b"data: [DONE]\n\n"),
        (False, b""),
        (None, b""),
        ("over", b"data: over\n\n"),
        ("", b"data: \n\n"),
        (ServerSentEvent("end", "{}"), b"event: end\ndata: {}\n\n"),
    ],
)
def test_last_event_is_passed_on_or_rewritten(relayed: Relay, done: Any, last: bytes) -> None:
    with SSEServer([send(1), DONE]) as server:
        assert relayed(request_sse(server.url), done=done).rest() == b"data: 1\n\n" + last


def test_last_event_keeps_its_name_and_an_id_of_its_own(relayed: Relay) -> None:
    first, named, with_id = send(1, id="7"), send("[DONE]", event="end"), send("[DONE]", id="8")
    with SSEServer([first, named]) as server:
        assert relayed(request_sse(server.url)).rest() == b"id: 7\ndata: 1\n\nevent: end\ndata: [DONE]\n\n"
    with SSEServer([first, with_id]) as server:
        assert relayed(request_sse(server.url)).rest() == b"id: 7\ndata: 1\n\nid: 8\ndata: [DONE]\n\n"
    with SSEServer([with_id]) as server:
        assert relayed(request_sse(server.url)).rest() == b"id: 8\ndata: [DONE]\n\n"
    # The reader stands where `map` has left it.
    with SSEServer([first, DONE]) as server:
        read = relayed(request_sse(server.url), map=lambda item: ServerSentEvent(data="x", id="mine")).rest()
        assert read == b"id: mine\ndata: x\n\ndata: [DONE]\n\n"


def test_end_without_a_last_event_may_be_told_as_well(relayed: Relay) -> None:
    with SSEServer([send(1)]) as server:
        assert relayed(request_sse(server.url)).rest() == b"data: 1\n\n"
        assert relayed(request_sse(server.url), done="over").rest() == b"data: 1\n\ndata: over\n\n"
    with SSEServer([send(1), send(2)]) as server:
        stream = request_sse(server.url, done=lambda event: event.data == "1")
        assert relayed(stream).rest() == b"data: 1\n\n"


def test_what_is_there_goes_out_in_one_piece(relayed: Relay) -> None:
    events = b"".join(b"data: %d\n\n" % n for n in range(100))
    with SSEServer([events, silence()]) as server:
        stream = request_sse(server.url)
        until(lambda: stream.events.stats.events == 100)
        reading = relayed(stream)
        assert reading.next_event() == events
        reading.close()


def test_what_is_much_goes_out_in_pieces(relayed: Relay) -> None:
    with SSEServer([send("x" * 10_000)] * 50) as server:
        reading, sizes = relayed(request_sse(server.url, decode="text")), []
        while True:
            try:
                sizes.append(len(reading.next()))
            except (StopIteration, StopAsyncIteration):
                break
    assert max(sizes) < 64 * 1024 + 10_010
    assert sum(size for size in sizes if size > 3) == 50 * 10_008


keys = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), min_size=1)


@given(
    st.lists(
        st.builds(ServerSentEvent, event=keys, data=st.text(), id=st.just("") | keys)
        | st.text(st.characters(codec="utf-8"))
        | st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()),
        max_size=10,
    )
)
def test_whatever_is_written_parses_back(items: list[Any]) -> None:
    writer = Writer(RelayOptions())
    read = EventStreamParser().feed(b"".join(map(writer.item, items)))
    last_id = ""
    for item, event in zip(items, read, strict=True):
        assert isinstance(event, ServerSentEvent)
        if isinstance(item, ServerSentEvent):
            last_id = item.id or last_id
            assert (event.event, event.data) == (item.event, with_line_feeds(item.data))
        elif isinstance(item, str):
            assert (event.event, event.data) == ("message", with_line_feeds(item))
        else:
            assert event.json() == item
        assert event.id == last_id


def with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


# When.


def test_headers_and_heartbeats_go_out_while_there_is_nothing_else(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()
    with SSEServer([respond(), hold(go), send(1), DONE]) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=60)
        at = clock.monotonic()
        assert reading.next() == HEARTBEAT
        assert clock.monotonic() - at < 60
        assert [clock.advance_until_done(reading.next, step=10) for _ in range(2)] == [HEARTBEAT] * 2
        assert clock.monotonic() - at >= 120
        go.set()
        assert reading.rest() == b"data: 1\n\ndata: [DONE]\n\n"


def test_no_heartbeat_goes_out_while_there_are_events(clock: FakeClock, relayed: Relay) -> None:
    flags = [threading.Event() for _ in range(5)]
    with SSEServer([respond(), *(step for n, flag in enumerate(flags) for step in (hold(flag), send(n)))]) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=60)
        assert reading.next() == HEARTBEAT
        for n, flag in enumerate(flags):
            # Two thirds of the time, since the event before.
            clock.advance(40)
            flag.set()
            assert reading.next() == b"data: %d\n\n" % n
        reading.close()


def test_events_that_are_left_out_are_no_reason_to_be_silent(clock: FakeClock, relayed: Relay) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        while True:
            yield send(1)
            yield wait(0.005)

    with SSEServer(script) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=60, map=lambda item: None)
        assert reading.next() == HEARTBEAT
        assert [clock.advance_until_done(reading.next, step=10) for _ in range(2)] == [HEARTBEAT] * 2
        reading.close()
        server.requests[0].wait_aborted()


def test_heartbeats_can_be_turned_off(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()
    with SSEServer([respond(), hold(go), send(1), DONE]) as server:
        reading = relayed(request_sse(server.url, timeout=None), heartbeat=None)
        assert reading.next() == HEARTBEAT
        clock.advance(100_000)
        waiting = in_thread(reading.next)
        until(lambda: is_idle(waiting))
        go.set()
        assert waiting.result(30).startswith(b"data: 1\n\n")
        reading.close()


# How it ends.


def test_close_aborts_the_upstream(relayed: Relay) -> None:
    with SSEServer([send(1), silence()]) as server:
        reading = relayed(request_sse(server.url))
        assert reading.next_event() == b"data: 1\n\n"
        reading.close()
        server.requests[0].wait_aborted()
        assert reading.rest() == b""
        reading.close()


def test_close_from_another_thread_ends_the_wait() -> None:
    with SSEServer([send(1), silence()]) as server:
        frames = relay.frames(request_sse(server.url))
        while next(frames) == HEARTBEAT:
            pass
        reading = in_thread(lambda: list(frames))
        until(lambda: is_waiting(reading))
        frames.close()
        assert reading.result(30) == []
        server.requests[0].wait_aborted()


def test_reader_that_is_cancelled_aborts_the_upstream() -> None:
    async def main() -> None:
        frames = relay.aframes(await arequest_sse(server.url))
        while await anext(frames) == HEARTBEAT:
            pass
        task = asyncio.create_task(collect(frames))
        # It waits after its first step.
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.requests[0].wait_aborted)

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())


async def collect(frames: AsyncIterator[bytes]) -> list[bytes]:
    return [frame async for frame in frames if frame != HEARTBEAT]


def test_asynchronous_stream_goes_on() -> None:
    async def main() -> None:
        assert b"".join(await collect(relay.aframes(await arequest_sse(server.url)))) == b"data: 1\n\ndata: [DONE]\n\n"
        response = await arequest_sse(server.url)
        assert b"".join(await collect(relay.aframes(response.events, done=False))) == b"data: 1\n\n"

    with SSEServer([send(1), DONE]) as server:
        asyncio.run(main())


@pytest.mark.parametrize(
    ("steps", "options", "kind"),
    [
        ([reset()], {}, "ReadError"),
        ([cut()], {}, "TruncatedStreamError"),
        ([], {"require_done": True}, "TruncatedStreamError"),
        ([silence()], {"timeout": {"read": None, "idle": 60}}, "StreamTimeoutError"),
        ([b"data: {\n\n"], {}, "DecodeError"),
        ([b"data: " + bytes(2000)], {"max_event_bytes": 1000}, "BufferLimitError"),
    ],
)
def test_upstream_that_breaks_is_an_event_and_then_the_end(
    clock: FakeClock,
    relayed: Relay,
    caplog: pytest.LogCaptureFixture,
    steps: list[Any],
    options: dict[str, Any],
    kind: str,
) -> None:
    with SSEServer([send(1), *steps]) as server:
        reading = relayed(request_sse(server.url, **options))
        read = reading.next_event()
        if kind == "StreamTimeoutError":
            read += clock.advance_until_done(reading.rest, step=10)
        read += reading.rest()
        port = server.url.rpartition(":")[2].strip("/")
    assert read.startswith(b"data: 1\n\nevent: error\n")
    error = error_of(read)
    assert error["type"] == kind
    assert port not in error["message"]
    assert f"ended with {kind}" in caplog.text


def test_error_that_the_upstream_reports_is_told_in_its_own_words(relayed: Relay) -> None:
    with SSEServer([send(1), send({"error": {"message": "out of tokens", "type": "x"}})]) as server:
        error = error_of(relayed(request_sse(server.url)).rest())
    assert error == {"type": "UpstreamError", "message": "out of tokens"}


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"error": "short"}, "short"),
        ({"message": "plain"}, "plain"),
        ("text", "text"),
        ({"error": {"code": 1}}, "the upstream reported an error"),
        ([1], "the upstream reported an error"),
        ("x" * 300, "x" * 200),
    ],
)
def test_words_of_an_upstreams_error(payload: Any, words: str) -> None:
    frame = error_frame(UpstreamError("secret", ServerSentEvent(), payload))
    assert error_of(frame) == {"type": "UpstreamError", "message": words}


@pytest.mark.parametrize("made", [5, True, b"bytes", object(), {"a": float("nan")}, {"a": object()}, "\ud800"])
def test_what_map_makes_and_cannot_be_sent(relayed: Relay, caplog: pytest.LogCaptureFixture, made: Any) -> None:
    with SSEServer([send(1), send(2), silence()]) as server:
        read = relayed(request_sse(server.url), map=lambda item: made if item == 2 else "one").rest()
        server.requests[0].wait_aborted()
    assert read.startswith(b"data: one\n\n")
    assert error_of(read) == {"type": "ServerError", "message": "the server failed while it made the stream"}
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info


def test_map_that_fails(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    with SSEServer([send(1), silence()]) as server:
        read = relayed(request_sse(server.url), map=lambda item: item["secret"]).rest()
        server.requests[0].wait_aborted()
    assert error_of(read)["type"] == "ServerError"
    assert "secret" not in read.decode()
    assert 'item["secret"]' in caplog.text


def test_decode_function_that_fails(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    with SSEServer([send(1), silence()]) as server:
        read = relayed(request_sse(server.url, decode=lambda event: ["wrong"][int(event.data)])).rest()
        server.requests[0].wait_aborted()
    assert error_of(read)["type"] == "DecodeError"
    assert '["wrong"][int(event.data)]' in caplog.text


def test_map_that_asks_for_the_processs_end(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    with SSEServer([send(1), silence()]) as server:
        read = relayed(request_sse(server.url), map=lambda item: sys.exit("enough")).rest()
        server.requests[0].wait_aborted()
    assert error_of(read)["type"] == "ServerError"
    assert "enough" in caplog.text


def test_ids_that_map_gives_are_not_taken_back(relayed: Relay) -> None:
    """Those of a server without ids."""

    def sparse(item: int) -> Any:
        return ServerSentEvent(data="a", id="5") if item == 1 else {"n": item}

    with SSEServer([send(1), send(2), send(3), DONE]) as server:
        read = relayed(request_sse(server.url), map=sparse).rest()
    assert read == b'id: 5\ndata: a\n\ndata: {"n":2}\n\ndata: {"n":3}\n\ndata: [DONE]\n\n'


def test_stream_that_somebody_else_reads_before_the_relay_does(
    relayed: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with SSEServer([send(1), DONE]) as server:
        response = request_sse(server.url)
        reading = relayed(response)
        assert list(response.events) == [1]
        assert error_of(reading.rest())["type"] == "ServerError"
    assert "somebody else" in caplog.text


def test_stream_that_its_owner_closes_ends_without_a_last_event(relayed: Relay) -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url)
        reading = relayed(stream, done="over")
        assert reading.next_event() == b"data: 1\n\n"
        stream.events.close()
        assert reading.rest() == b""


# What the application makes itself.


def test_items_of_an_iterable(relayed: Relay) -> None:
    items = ["a", {"b": 1}, None, ServerSentEvent("tick", "c", "5"), Comment("d"), ["e"]]
    expected = b'data: a\n\ndata: {"b":1}\n\nevent: tick\nid: 5\ndata: c\n\n: d\n\ndata: ["e"]\n\n'
    assert relayed(items).rest() == expected
    assert relayed(iter(items), done="over").rest() == expected + b"data: over\n\n"
    assert relayed([1, 2], map=lambda n: f"<{n}>").rest() == b"data: <1>\n\ndata: <2>\n\n"


def test_heartbeats_go_out_while_an_iterable_computes(clock: FakeClock, relayed: Relay) -> None:
    go = threading.Event()

    def work() -> Iterator[Any]:
        go.wait(30)
        yield "made"

    reading = relayed(work(), heartbeat=60)
    assert reading.next() == HEARTBEAT
    assert [clock.advance_until_done(reading.next, step=10) for _ in range(2)] == [HEARTBEAT] * 2
    go.set()
    assert reading.rest() == b"data: made\n\n"


def test_iterable_is_closed_where_it_stands(relayed: Relay) -> None:
    closed: list[Any] = []

    def work() -> Iterator[Any]:
        try:
            yield from range(10**9)
        finally:
            closed.append(threading.current_thread())

    reading = relayed(work(), map=str)
    assert reading.next_event().startswith(b"data: 0\n\n")
    reading.close()
    until(lambda: closed)
    assert closed[0] is not threading.current_thread()
    assert reading.rest() == b""


def test_iterable_is_held_back_by_a_slow_reader(relayed: Relay) -> None:
    made = []

    workers: list[int] = []

    def work() -> Iterator[str]:
        workers.append(threading.get_ident())
        for n in range(1000):
            made.append(n)
            yield "x" * 1000

    reading = relayed(work())
    assert reading.next_event()
    until(lambda: len(made) > 30)
    until(lambda: thread_waits(workers[0]))
    assert len(made) < 200
    assert reading.rest().count(b"data: ") <= 1000
    assert len(made) == 1000


def test_iterable_that_fails(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> Iterator[str]:
        yield "one"
        raise LookupError("secret")

    read = relayed(work()).rest()
    assert read.startswith(b"data: one\n\nevent: error\n")
    assert error_of(read) == {"type": "ServerError", "message": "the server failed while it made the stream"}
    assert "LookupError: secret" in caplog.text


def test_iterable_that_fails_after_the_reader_has_left(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    has_left = threading.Event()

    def work() -> Iterator[str]:
        yield "one"
        has_left.wait(30)
        raise LookupError("too late")

    reading = relayed(work())
    assert reading.next_event()
    reading.close()
    has_left.set()
    until(lambda: "LookupError: too late" in caplog.text)


def test_iterable_that_fails_as_it_is_closed(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> Iterator[str]:
        try:
            while True:
                yield "one"
        finally:
            raise LookupError("in the end")

    reading = relayed(work())
    assert reading.next_event()
    reading.close()
    until(lambda: "LookupError: in the end" in caplog.text)


@pytest.mark.parametrize("error", [TimeoutError, StopIteration, StopAsyncIteration, asyncio.CancelledError])
def test_errors_that_mean_something_here_are_the_applications_there(relayed: Relay, error: type[BaseException]) -> None:
    def work() -> Iterator[str]:
        yield "one"
        yield from Raising()

    class Raising:
        def __iter__(self) -> Raising:
            return self

        def __next__(self) -> str:
            # Not out of a generator, which makes something else of some.
            raise error if error is not StopIteration else TimeoutError

    def fail(item: Any) -> Any:
        raise error

    read = relayed(work()).rest()
    assert read.startswith(b"data: one\n\n")
    assert error_of(read)["type"] == "ServerError"
    with SSEServer([send(1), silence()]) as server:
        if error is not asyncio.CancelledError:
            assert error_of(relayed(request_sse(server.url), map=fail).rest())["type"] == "ServerError"
            server.requests[0].wait_aborted()


@pytest.mark.parametrize("error", [TimeoutError, StopIteration, asyncio.CancelledError])
def test_errors_of_an_asynchronous_iterable_are_its_own(error: type[BaseException]) -> None:
    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> str:
            raise error

    async def main() -> None:
        assert error_of(b"".join(await collect(relay.aframes(Items()))))["type"] == "ServerError"

    asyncio.run(main())


@pytest.mark.blocks_its_loop
def test_map_that_takes_its_time_holds_back_nothing(clock: FakeClock, relayed: Relay) -> None:
    with SSEServer([*[send(n) for n in range(20)], DONE]) as server:
        stream = request_sse(server.url, timeout=None)
        until(lambda: stream.events.stats.events == 20)

        def slowly(item: int) -> str:
            clock.advance(30)
            return str(item)

        reading = relayed(stream, map=slowly)
        first = reading.next_event().count(b"data: ")
        assert first <= 2
        assert first + reading.rest().count(b"data: ") == 21


def test_iterator_is_closed_however_its_reading_ends(relayed: Relay, caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    class Items:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __iter__(self) -> Items:
            return self

        def __next__(self) -> Any:
            return b"cannot be sent"

        def close(self) -> None:
            closed.append(True)
            if self.fails:
                raise LookupError("in close")

    for fails in (False, True):
        assert error_of(relayed(Items(fails)).rest())["type"] == "ServerError"
    assert closed == [True] * 2
    assert "LookupError: in close" in caplog.text


def test_iterator_that_fails_when_it_is_closed_at_its_end(relayed: Relay) -> None:
    class Items:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __iter__(self) -> Items:
            return self

        def __next__(self) -> Any:
            raise StopIteration

        def close(self) -> None:
            raise self.error

    for error in (LookupError(), SystemExit()):
        assert error_of(relayed(Items(error)).rest())["type"] == "ServerError"


def test_refusal_has_no_frames_for_an_asynchronous_server() -> None:
    async def main() -> None:
        read = b"".join(await collect(relay.aframes(await arequest_sse(server.url))))
        assert error_of(read)["type"] == "StatusError"

    with SSEServer([respond(503), b"busy"]) as server:
        asyncio.run(main())


@pytest.mark.parametrize("done", [ServerSentEvent("a\nb"), "\ud800"])
def test_last_event_that_cannot_be_sent(done: Any) -> None:
    with pytest.raises(UsageError):
        relay.frames([], done=done)


def test_iterable_that_ends_its_thread_ends_the_stream(relayed: Relay) -> None:
    def work() -> Iterator[str]:
        yield "one"
        raise SystemExit

    assert error_of(relayed(work()).rest())["type"] == "ServerError"


def test_iterable_whose_reader_never_came_is_closed() -> None:
    closed = []

    class Items:
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("nobody reads this")

        def close(self) -> None:
            closed.append(True)

    relay.frames(Items()).close()
    assert closed == [True]


def test_relay_that_is_dropped_ends_its_iterable() -> None:
    closed = threading.Event()

    def work() -> Iterator[str]:
        try:
            while True:
                yield "one"
        finally:
            closed.set()

    frames = relay.frames(work())
    while next(frames) == HEARTBEAT:
        pass
    del frames
    gc.collect()
    assert closed.wait(30)


def test_iterable_and_map_find_what_the_view_finds(relayed: Relay) -> None:
    user = contextvars.ContextVar[str]("user")

    def view() -> list[Reading]:
        user.set("ann")
        return [
            relayed(user.get() for _ in range(1)),
            relayed(request_sse(server.url), map=lambda item: user.get(), done=False),
        ]

    with SSEServer([send(1), DONE]) as server:
        assert [reading.rest() for reading in contextvars.copy_context().run(view)] == [b"data: ann\n\n"] * 2


def test_stream_that_an_iterable_waits_for_ends_with_the_reader(relayed: Relay) -> None:
    ended = threading.Event()

    def items() -> Iterator[Any]:
        # Closed at its yield, or after the stream that it waited for has ended.
        try:
            with request_sse(server.url) as (_, _, events):
                yield from events
        finally:
            ended.set()

    with SSEServer([send({"n": 1}), silence()]) as server:
        reading = relayed(items())
        assert reading.next_event() == b'data: {"n":1}\n\n'
        reading.close()
        server.requests[0].wait_aborted()
        assert ended.wait(30)


def test_stream_of_an_iterable_keeps_its_own_flag() -> None:
    flag = threading.Event()

    def items() -> Iterator[Any]:
        yield from request_sse(server.url, cancel=flag).events
        yield "over"

    with SSEServer([send({"n": 1}), silence()]) as server:
        frames = relay.frames(items(), heartbeat=None)
        assert next(piece for piece in frames if piece != HEARTBEAT) == b'data: {"n":1}\n\n'
        flag.set()
        assert b"".join(frames) == b"data: over\n\n"
        with pytest.raises(RequestAbortedError):
            list(items())


def test_iterable_is_closed_as_well_as_its_iterator(relayed: Relay) -> None:
    closed: list[str] = []

    class Items:
        def __iter__(self) -> Iterator[str]:
            try:
                yield "a"
            finally:
                closed.append("iterator")

        def close(self) -> None:
            closed.append("iterable")

    assert relayed(Items()).rest() == b"data: a\n\n"
    until(lambda: len(closed) == 2)
    assert closed == ["iterator", "iterable"]


class FailsAtItsEnd:
    """An asynchronous iterator whose aclose() fails."""

    def __init__(self, *items: Any) -> None:
        self._items = list(items)

    def __aiter__(self) -> FailsAtItsEnd:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            raise StopAsyncIteration
        if isinstance(item := self._items.pop(0), Exception):
            raise item
        return item

    async def aclose(self) -> None:
        raise LookupError("in the end")


def test_asynchronous_iterable_that_fails_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def read(*items: Any) -> bytes:
        return b"".join([piece async for piece in relay.aframes(FailsAtItsEnd(*items), heartbeat=None)])

    read_well = asyncio.run(read("a"))
    assert b"data: a\n\n" in read_well
    assert error_of(read_well)["type"] == "ServerError"
    assert "LookupError: in the end" in caplog.text
    caplog.clear()
    # The first failure is what is told, both are in the log.
    assert error_of(asyncio.run(read(ValueError("first"))))["type"] == "ServerError"
    assert "ValueError: first" in caplog.text
    assert "LookupError: in the end" in caplog.text


def test_asynchronous_iterable_finds_what_the_view_finds() -> None:
    user = contextvars.ContextVar[str]("user")

    async def items() -> AsyncIterator[str]:
        yield user.get()

    def view() -> relay.AsyncFrames:
        user.set("ann")
        return relay.aframes(items(), heartbeat=None)

    async def main() -> bytes:
        # As a server calls a synchronous view: its context is not the one that the response is sent in.
        return b"".join([piece async for piece in contextvars.copy_context().run(view)])

    assert asyncio.run(main()).endswith(b"data: ann\n\n")


def test_items_of_an_asynchronous_iterable(clock: FakeClock) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def items() -> AsyncIterator[Any]:
            yield "a"
            await go.wait()
            yield {"b": 1}

        frames = relay.aframes(items(), heartbeat=60, done="over")
        pieces = []
        while b"data: a\n\n" not in pieces:
            pieces.append(await anext(frames))
        assert await clock.aadvance_until_done(anext(frames), step=10) == HEARTBEAT
        go.set()
        pieces += [piece async for piece in frames]
        read = b"".join(piece for piece in pieces if piece != HEARTBEAT)
        assert read == b'data: a\n\ndata: {"b":1}\n\ndata: over\n\n'

    asyncio.run(main())


def test_asynchronous_iterable_that_waits_for_nothing_is_closed_too(clock: FakeClock) -> None:
    closed = asyncio.Event()
    made: list[relay.AsyncFrames] = []

    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> None:
            await asyncio.sleep(0)

    class Greedy(Items):
        async def aclose(self) -> None:
            closed.set()

        async def __anext__(self) -> None:
            if made[-1]._ended:
                # As code does that takes a cancellation for something else.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def main() -> None:
        for items in (Items(), Greedy()):
            frames = relay.aframes(items, heartbeat=60)
            made.append(frames)
            assert await anext(frames) == HEARTBEAT
            assert await clock.aadvance_until_done(anext(frames), step=10) == HEARTBEAT
            await frames.aclose()
        await asyncio.wait_for(closed.wait(), 30)

    asyncio.run(main())


@pytest.mark.parametrize("stands", ["at an await", "at a yield"])
def test_asynchronous_iterable_is_closed_where_it_stands(stands: str) -> None:
    stood, ended = [], []

    async def items() -> AsyncIterator[Any]:
        try:
            yield "a"
            stood.append(stands)
            while stands == "at a yield":
                yield "x" * 1000
            await asyncio.sleep(60)
        except BaseException as exc:
            ended.append(type(exc))
            raise

    async def main() -> None:
        frames = relay.aframes(items())
        while await anext(frames) == HEARTBEAT:
            pass
        while not stood:
            await asyncio.sleep(0)
        await frames.aclose()
        while not ended:
            await asyncio.sleep(0.001)
        assert ended == [asyncio.CancelledError if stands == "at an await" else GeneratorExit]
        assert await collect(frames) == []

    asyncio.run(main())


def test_asynchronous_iterable_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def items() -> AsyncIterator[Any]:
        yield "a"
        raise LookupError("secret")

    async def main() -> None:
        read = b"".join(await collect(relay.aframes(items())))
        assert read.startswith(b"data: a\n\n")
        assert error_of(read)["type"] == "ServerError"

    asyncio.run(main())
    assert "LookupError: secret" in caplog.text


def test_asynchronous_iterable_that_fails_as_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def items() -> AsyncIterator[Any]:
        try:
            yield "a"
            await asyncio.sleep(60)
        finally:
            raise LookupError("in the end")

    async def main() -> None:
        frames = relay.aframes(items())
        while await anext(frames) == HEARTBEAT:
            pass
        frames.close()
        while "in the end" not in caplog.text:
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_asynchronous_iterable_whose_reader_never_came() -> None:
    class Items:
        def __aiter__(self) -> AsyncIterator[str]:
            raise AssertionError("nobody reads this")

    relay.aframes(Items()).close()


def test_asynchronous_iterable_need_not_be_a_generator() -> None:
    class Items:
        def __init__(self) -> None:
            self.left = 2

        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> str:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return "a"

    async def main() -> None:
        assert b"".join(await collect(relay.aframes(Items()))) == b"data: a\n\n" * 2

    asyncio.run(main())


# Wrong use.


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", True])
@pytest.mark.parametrize("name", ["heartbeat", "probe"])
def test_seconds_that_are_none(name: str, seconds: Any) -> None:
    options: dict[str, Any] = {name: seconds}
    with pytest.raises(UsageError, match=f"`{name}` must be a number of seconds above 0"):
        relay.frames([], **options)


@pytest.mark.parametrize(("option", "told"), [({"map": "x"}, "map is a str"), ({"done": 1.5}, "done is a float")])
def test_options_that_are_none(option: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        relay.frames([], **option)


@pytest.mark.parametrize("stream", [5, None, "text", b"bytes", {"a": 1}])
def test_what_is_no_stream(relayed: Relay, stream: Any) -> None:
    with pytest.raises(UsageError, match="is no stream"):
        relayed(stream)


def test_asynchronous_stream_needs_an_asynchronous_server() -> None:
    async def items() -> AsyncIterator[str]:
        yield "a"

    async def main() -> None:
        async with await arequest_sse(server.url) as response:
            for stream in (response, response.events, items()):
                with pytest.raises(UsageError, match="asynchronous server"):
                    relay.frames(stream)

    with SSEServer([send(1), silence()]) as server:
        asyncio.run(main())


def test_stream_that_was_read_already(relayed: Relay) -> None:
    with SSEServer([send(1), DONE]) as server:
        read = request_sse(server.url)
        assert list(read.events) == [1]
        left = request_sse(server.url)
        for _ in left.events:
            break
        for stream in (read, read.events, left):
            with pytest.raises(UsageError, match="has ended already"):
                relayed(stream)
    for generator in (iter_of_nothing(), agen()):
        with pytest.raises(UsageError, match="has ended already"):
            relay.aframes(exhausted(generator))


def iter_of_nothing() -> Iterator[str]:
    yield from ()


async def agen() -> AsyncIterator[str]:
    return
    yield ""


def exhausted(generator: Any) -> Any:
    async def read() -> None:
        async for _ in generator:
            pass

    if hasattr(generator, "__aiter__"):
        asyncio.run(read())
    else:
        list(generator)
    return generator


def test_refusal_has_no_frames() -> None:
    with SSEServer([respond(503), b"busy"]) as server, pytest.raises(StatusError) as caught:
        relay.frames(request_sse(server.url))
    assert caught.value.body == b"busy"


def test_stream_that_is_read_elsewhere_too(relayed: Relay) -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url)
        reading = in_thread(lambda: list(stream.events))
        until(lambda: stream.events.last_event and is_waiting(reading))
        with pytest.raises(UsageError, match="is being read already"):
            relayed(stream)
        stream.events.close()
        assert reading.result(30) == [1]


# The headers.


def test_headers_of_an_event_stream() -> None:
    assert event_stream_headers({"X-Mine": "1", "cache-control": "private"}) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "X-Accel-Buffering": "no",
        "Content-Encoding": "identity",
        "X-Mine": "1",
        "cache-control": "private",
    }


@pytest.mark.parametrize("name", ["Connection", "transfer-encoding", "Content-Length", "Keep-Alive"])
def test_headers_that_are_the_servers(name: str) -> None:
    with pytest.raises(UsageError, match=f"the header {name} is the web server's"):
        event_stream_headers({name: "x"})


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\0", "\u20ac", 5, ["a"]])
def test_header_that_cannot_be_sent(value: Any) -> None:
    with pytest.raises(UsageError, match="the header X-A has a value that cannot be sent"):
        event_stream_headers({"X-A": value})


@pytest.mark.parametrize("name", ["X-A: 1\r\nSet-Cookie", "", "X A", "X\u00fc", "X-A:", 5])
def test_name_that_is_no_headers(name: Any) -> None:
    with pytest.raises(UsageError, match="header's name"):
        event_stream_headers({name: "x"})


def test_headers_are_a_mapping_and_each_counts_once() -> None:
    with pytest.raises(UsageError, match="mapping"):
        event_stream_headers([("X-A", "1")])  # type: ignore[arg-type]
    merged = event_stream_headers({"x-a": "1", "X-A": "2", "cache-control": "private", "CACHE-CONTROL": "no-store"})
    assert merged["X-A"] == "2"
    assert [name for name in merged if name.lower() in ("x-a", "cache-control")] == ["X-A", "CACHE-CONTROL"]


# The reader's socket.


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, reader = socket.socketpair()
    with server, reader:
        yield server, reader


@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_reader_that_leaves_is_seen(pair: tuple[socket.socket, socket.socket], name: str, how: str) -> None:
    server, connection = pair
    reader = reader_of({name: server})
    assert reader is not None
    assert not reader.has_left()
    connection.send(b"the next request")
    assert not reader.has_left()
    connection.close() if how == "close" else connection.shutdown(socket.SHUT_WR)
    assert reader.has_left()


def test_reader_that_leaves_is_seen_where_the_system_knows_no_rdhup(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("select.POLLRDHUP")
    server, connection = pair
    has_left = [sockets.peer_has_left(server.fileno(), may_peek=True)]
    connection.send(b"x")
    has_left.append(sockets.peer_has_left(server.fileno(), may_peek=True))
    server.recv(1)
    connection.shutdown(socket.SHUT_WR)
    has_left.append(sockets.peer_has_left(server.fileno(), may_peek=True))
    assert has_left == [False, False, True]


def test_no_socket_no_reader() -> None:
    server, reader = socket.socketpair()
    server.close()
    reader.close()
    assert reader_of({}) is None
    assert reader_of({"gunicorn.socket": server}) is None


def test_probe_ends_the_relay_of_a_reader_who_has_left(
    clock: FakeClock, pair: tuple[socket.socket, socket.socket]
) -> None:
    server_side, connection = pair
    with SSEServer([send(1), silence()]) as server:
        frames = relay.frames(
            request_sse(server.url, timeout=None), heartbeat=None, probe=60, environ={"gunicorn.socket": server_side}
        )
        while next(frames) == HEARTBEAT:
            pass
        reading = in_thread(lambda: list(frames))
        until(lambda: is_waiting(reading))
        connection.close()
        clock.advance(61)
        assert reading.result(30) == []
        server.requests[0].wait_aborted()


def test_reader_who_stays_and_says_nothing_is_not_ended(pair: tuple[socket.socket, socket.socket]) -> None:
    server_side, connection = pair
    connection.send(b"the next request")
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as server:
        frames = relay.frames(
            request_sse(server.url), heartbeat=None, probe=0.01, environ={"gunicorn.socket": server_side}
        )
        looks = []
        frames._reader_left._reader.has_left = lambda: looks.append(1)  # type: ignore[union-attr, method-assign]
        reading = in_thread(lambda: b"".join(frames))
        until(lambda: len(looks) > 10)
        go.set()
        assert reading.result(30).endswith(b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n")


def test_reader_who_has_left_is_noticed_while_all_that_comes_is_left_out(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        while True:
            yield send(1)
            yield wait(0.005)

    server_side, connection = pair
    with SSEServer(script) as server:
        frames = relay.frames(
            request_sse(server.url),
            heartbeat=None,
            probe=0.05,
            map=lambda item: None,
            environ={"gunicorn.socket": server_side},
        )
        reading = in_thread(lambda: list(frames))
        until(lambda: server.requests[0].sent_bytes > 100)
        connection.close()
        assert reading.result(30) in ([], [HEARTBEAT])
        server.requests[0].wait_aborted()


def test_socket_of_uwsgi(pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is there in its own processes alone."""

    class Uwsgi:
        connection_fd = staticmethod(pair[0].fileno)

    monkeypatch.setitem(sys.modules, "uwsgi", Uwsgi())
    assert reader_of({}) is None
    reader = reader_of({"uwsgi.version": b"2.0", "wsgi.url_scheme": "http"})
    assert reader is not None
    assert not reader.has_left()
    pair[1].close()
    assert reader.has_left()


def test_reader_who_leaves_before_the_headers_stops_the_upstream(pair: tuple[socket.socket, socket.socket]) -> None:
    server_side, connection = pair
    with SSEServer([silence()]) as server:
        cancel = relay.reader_left({"gunicorn.socket": server_side}, probe=0.02)
        asking = in_thread(lambda: request_sse(server.url, cancel=cancel))
        server.wait_for_request()
        assert not cancel.is_set()
        connection.close()
        with pytest.raises(RequestAbortedError):
            asking.result(30)
        server.requests[0].wait_aborted()
        assert cancel.is_set()


def test_seconds_of_a_flag_that_are_none() -> None:
    with pytest.raises(UsageError, match="number of seconds above 0"):
        relay.reader_left({}, probe=0)


def test_reader_whose_socket_nobody_hands_out_is_never_gone() -> None:
    assert not relay.reader_left({}).is_set()


def test_public_names() -> None:
    assert sorted(relay.__all__) == [
        "AsyncFrames",
        "Frames",
        "aframes",
        "django",
        "flask",
        "frames",
        "reader_left",
        "starlette",
    ]
    assert all(hasattr(relay, name) for name in relay.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pyramid'"):
        _ = relay.pyramid


@pytest.mark.parametrize(("missing", "told"), [("flask", "pip install 'sseqbridge"), ("werkzeug", "No module named")])
def test_framework_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, missing: str, told: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flask", "werkzeug")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sseqbridge.relay.flask", raising=False)
    # Not delattr(), which asks for the attribute first, and so imports what is to be missing.
    monkeypatch.delitem(vars(relay), "flask", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape(told)):
        _ = relay.flask


def test_json_of_an_error_is_compact() -> None:
    assert json.loads(error_frame(TruncatedStreamError("secret")).split(b"data: ")[1]) == {
        "type": "TruncatedStreamError",
        "message": "the upstream's stream was cut off",
    }


def test_stream_that_is_refused_is_aborted(relayed: Relay) -> None:
    """Who passed it on has let go of it."""
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url)
        with pytest.raises(UsageError):
            relayed(stream, heartbeat=0)
        server.requests[0].wait_aborted()
        assert stream.events.outcome == "closed"
