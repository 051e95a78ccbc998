"""The bytes that all streams hold together: each one's share of 64 MiB, unless its caller has set a limit."""

from __future__ import annotations

import asyncio
import gc
import gzip
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import sseqbridge._engine.memory as stepped
from sseqbridge import (
    Bridge,
    ConnectError,
    EventStream,
    RequestAbortedError,
    StatusError,
    amerge,
    arequest_sse,
    gather,
    merge,
    request_sse,
    tee,
)
from sseqbridge._engine.channel import Channel, End, ThreadChannel
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES, limit_of, memory
from sseqbridge._runtime import fork
from sseqbridge._streams.stream import reader_of
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import ReceivedRequest, SSEServer, cut, hold, respond, send, silence
from tests.requesters import Requester
from tests.stepping import Stepped
from tests.support import until

KIB = 1024
MIB = 1024 * KIB

DONE = send("[DONE]")
# 4 MiB, in events of 4 KiB.
FLOOD = [*(send("x" * 4000) for _ in range(1000)), DONE]


def open_channels() -> Any:
    """Return the channels that are counted."""
    return memory._open


def recount() -> None:
    """Compute the share again."""
    memory.enter(Held(closed=True), LOOP)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Let the collections of these tests examine only what the tests have made: each is a tenth of a second faster."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_counted() -> Iterator[None]:
    """Begin each test with no open stream, and end it with none."""
    gc.collect()
    # Of its own: a stream of an earlier test may be counted that something still refers to.
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(memory, "_open", {})
        recount()
        yield
        gc.collect()
        assert open_channels() == {}
    recount()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small shares, so that less has to be sent: 16 to 256 KiB, of 1 MiB."""
    monkeypatch.setattr(stepped, "_TOTAL_BYTES", MIB)
    monkeypatch.setattr(stepped, "_MOST_BYTES", MIB * 7 // 8)
    monkeypatch.setattr(stepped, "_MIN_SHARE", 16 * KIB)
    monkeypatch.setattr(stepped, "_MAX_SHARE", 256 * KIB)
    recount()
    yield
    monkeypatch.undo()
    recount()


class Held:
    """A channel of which nothing but its memory counts."""

    def __init__(self, *, closed: bool = False) -> None:
        self.closed = closed
        self.buffered = 0
        self.notified = 0

    def limit_has_grown(self) -> None:
        self.notified += 1


LOOP: Any = object()


def test_share_depends_on_the_number_of_open_streams() -> None:
    expected = {1: MIB, 64: MIB, 65: 64 * MIB // 65, 150: 64 * MIB // 150, 1024: 64 * KIB, 3000: 64 * KIB}
    held = []
    for count in range(1, 3001):
        held.append(Held())
        memory.enter(held[-1], LOOP)
        if count in expected:
            assert memory.bytes == expected[count]
    while held:
        memory.leave(held[-1])
        memory.leave(held.pop())
        assert memory.bytes == max(64 * KIB, min(MIB, 64 * MIB // max(1, len(held))))


def test_stream_that_is_dropped_counts_no_longer() -> None:
    held = [Held() for _ in range(128)]
    for one in held:
        memory.enter(one, LOOP)
    assert memory.bytes == 512 * KIB
    del one, held
    gc.collect()
    assert memory.bytes == MIB


def test_stream_closed_before_it_is_counted_does_not_count() -> None:
    held = Held(closed=True)
    memory.enter(held, LOOP)
    assert open_channels() == {}


def test_limit_of_the_caller_is_not_the_share() -> None:
    for number in (MIB, int(DEFAULT_MAX_BUFFERED_BYTES), 5 * MIB, 1):
        assert limit_of(number) is not memory
        assert limit_of(number).bytes == number
    assert limit_of(DEFAULT_MAX_BUFFERED_BYTES) is memory


@pytest.mark.parametrize("function", [request_sse, arequest_sse, tee, MemoryLog.open, MemoryLog.aopen])
def test_signatures_show_the_largest_share(function: Callable[..., object]) -> None:
    default = inspect.signature(function).parameters["max_buffered_bytes"].default
    assert repr(default) == "1048576"


def test_growth_notifies_waiting_producers_a_bounded_number_of_times() -> None:
    held = [Held() for _ in range(2000)]
    for one in held:
        memory.enter(one, LOOP)
    assert sum(one.notified for one in held) == 0
    while len(held) > 1:
        memory.leave(held.pop())
    # From 64 KiB to 1 MiB, in steps of a quarter or more.
    assert 4 <= held[0].notified <= 14


@pytest.mark.heavy
@pytest.mark.parametrize("other", ["enter", "leave"])
@pytest.mark.parametrize("first", ["enter", "leave"])
def test_share_is_right_after_concurrent_changes(first: str, other: str) -> None:
    line, is_stopped = 0, True
    while is_stopped:
        line += 1
        held = [Held() for _ in range(130)]
        for one in held[2:]:
            memory.enter(one, LOOP)
        changes = {"enter": partial(memory.enter, held[0], LOOP), "leave": partial(memory.leave, held[2])}
        stopped = Stepped(changes[first], line, stepped)
        is_stopped = stopped.reached_its_stop
        changes = {"enter": partial(memory.enter, held[1], LOOP), "leave": partial(memory.leave, held[3])}
        changes[other]()
        stopped.finish()
        assert memory.bytes == 64 * MIB // len(open_channels())
        for one in held:
            memory.leave(one)
    assert line > 5


def test_share_is_right_after_a_change_while_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [Held() for _ in range(130)]
    late = [held[129]]
    for one in held[:128]:
        memory.enter(one, LOOP)

    class Racing(dict[Any, Any]):
        """Another thread, which has not updated the share yet, has entered a channel right after the first count."""

        def __len__(self) -> int:
            count = super().__len__()
            if late:
                self[weakref.ref(late.pop())] = LOOP
            return count

    monkeypatch.setattr(memory, "_open", Racing(open_channels()))
    memory.enter(held[128], LOOP)
    assert len(open_channels()) == 130
    assert memory.bytes == 64 * MIB // 130
    # The first 128 are in the real dict, too.
    monkeypatch.undo()
    for one in held:
        memory.leave(one)
    assert not open_channels()


def test_share_that_grows_during_the_check_lets_an_entry_in() -> None:
    held = [Held() for _ in range(1000)]
    for one in held:
        memory.enter(one, LOOP)

    class Racing(int):
        """A sum whose first comparison is followed by the end of the other streams, in another thread."""

        def __add__(self, other: int) -> Racing:
            return Racing(int(self) + other)

        def __gt__(self, share: int) -> bool:
            is_greater = super().__gt__(share)
            while held:
                memory.leave(held.pop())
            return is_greater

    assert not memory.allows(100 * KIB, 0)
    assert memory.allows(Racing(100 * KIB), 0)


def test_growth_notifies_channels_other_than_a_dropped_one() -> None:
    held = [Held() for _ in range(1000)]
    for one in held:
        memory.enter(one, LOOP)
    dropped = Held()
    reference: Any = weakref.ref(dropped)
    # As if the callback of the reference had not run yet.
    open_channels()[reference] = LOOP
    del dropped
    while len(held) > 1:
        memory.leave(held.pop())
    assert held[0].notified
    del open_channels()[reference]


def test_forked_child_does_not_count_its_parents_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [Held() for _ in range(1000)]
    for one in parents:
        memory.enter(one, LOOP)
    monkeypatch.setattr(fork, "process_token", lambda: ("child", 1))
    own = Held()
    memory.enter(own, LOOP)
    assert memory.bytes == MIB
    assert len(open_channels()) == 1
    monkeypatch.undo()
    memory.detach_after_fork()


# Channels.


def test_producer_goes_on_when_its_share_grows(small: None) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        others = [Held() for _ in range(31)]
        channel: Channel[str] = Channel(loop, DEFAULT_MAX_BUFFERED_BYTES)
        memory.enter(channel, loop)
        for one in others:
            memory.enter(one, loop)
        assert memory.bytes == 32 * KIB
        await channel.send("a", 32 * KIB)
        sending = asyncio.create_task(channel.send("b", 1 * KIB))
        while not channel.is_producer_waiting:
            await asyncio.sleep(0)
        for one in others:
            memory.leave(one)
        await sending
        assert channel.buffered == 33 * KIB
        channel.close()

    asyncio.run(main())


def test_producer_in_a_thread_is_notified_when_its_share_grows(small: None) -> None:
    others = [Held() for _ in range(31)]
    channel: ThreadChannel[str] = ThreadChannel(DEFAULT_MAX_BUFFERED_BYTES)
    memory.enter(channel, LOOP)
    for one in others:
        memory.enter(one, LOOP)
    channel.send_nowait("a", 32 * KIB)
    woken: list[bool] = []

    def wake() -> None:
        woken.append(True)

    assert channel.notify_when_drained(wake, 1 * KIB)
    assert not woken
    for one in others:
        memory.leave(one)
    # Perhaps several times.
    assert woken
    channel.cancel_notify(wake)
    channel.end(End("eof"))
    assert channel.poll() == "a"
    assert channel.poll() == End("eof")


@pytest.mark.heavy
def test_waiting_producer_is_notified_when_a_lowered_share_grows(small: None) -> None:
    line, is_stopped, has_waited = 0, True, False
    while is_stopped:
        line += 1
        others = [Held() for _ in range(4)]
        channel: ThreadChannel[str] = ThreadChannel(DEFAULT_MAX_BUFFERED_BYTES)
        memory.enter(channel, LOOP)
        for one in others[:3]:
            memory.enter(one, LOOP)
        channel.send_nowait("a", 200 * KIB)
        woken: list[bool] = []
        wake = partial(woken.append, True)
        # The fifth stream lowers the share from 256 to 204.8 KiB.
        opening = Stepped(partial(memory.enter, others[3], LOOP), line, stepped)
        is_stopped = opening.reached_its_stop
        waits = channel.notify_when_drained(wake, 20 * KIB)
        has_waited |= waits
        memory.leave(others[0])
        opening.finish()
        assert woken or not waits
        channel.cancel_notify(wake)
        channel.close()
        for one in others:
            memory.leave(one)
    assert has_waited


# Streams. httpx's transport reads other portions: what each stream holds is tested with the library's own transport.

own_transport = pytest.mark.own_transport


class Flooding:
    """An upstream that floods its streams, those under /late once `go` is set."""

    def __init__(self, flood: list[Any]) -> None:
        self.go = threading.Event()
        self._flood = flood
        self.server = SSEServer(self._script)

    def _script(self, request: ReceivedRequest) -> list[Any]:
        return [respond(), hold(self.go), *self._flood] if request.path == "/late" else self._flood

    def open(self, path: str = "/", **options: Any) -> EventStream[Any]:
        return request_sse(f"{self.server.url}{path}", decode="text", **options).events


@pytest.fixture
def flooding() -> Iterator[Flooding]:
    made = Flooding(FLOOD)
    with made.server:
        yield made


def until_full(*streams: EventStream[Any]) -> None:
    until(lambda: all(reader_of(stream).cursor.channel.is_producer_waiting for stream in streams), timeout=60)


def close(*streams: EventStream[Any]) -> None:
    for stream in streams:
        stream.close()


@pytest.mark.heavy
@pytest.mark.parametrize("path", ["/", "/late"], ids=["one after the other", "all at once"])
def test_150_streams_that_nobody_reads_hold_64_mib(flooding: Flooding, path: str) -> None:
    with Bridge() as bridge:
        streams = [flooding.open(path, bridge=bridge) for _ in range(150)]
        flooding.go.set()
        until_full(*streams)
        assert 32 * MIB < bridge.stats().buffered <= 64 * MIB
        assert bridge.stats().buffered == sum(stream.stats.buffered for stream in streams)
        close(*streams)


@own_transport
def test_each_stream_holds_its_share(small: None, flooding: Flooding) -> None:
    streams = [flooding.open("/late") for _ in range(16)]
    flooding.go.set()
    until_full(*streams)
    assert memory.bytes == 64 * KIB
    for stream in streams:
        assert 0 < stream.stats.buffered <= 64 * KIB
    close(*streams)


@own_transport
def test_open_streams_have_smaller_and_larger_shares(small: None, flooding: Flooding) -> None:
    first = flooding.open()
    until_full(first)
    assert 128 * KIB < first.stats.buffered <= 256 * KIB
    others = [flooding.open("/late") for _ in range(15)]
    while first.stats.buffered > 64 * KIB:
        next(first)
    for _ in range(100):
        next(first)
        assert first.stats.buffered <= 64 * KIB
    until_full(first)
    close(*others)
    # Although nothing is read.
    until(lambda: first.stats.buffered > 128 * KIB)
    assert first.stats.buffered <= 256 * KIB
    first.close()


@pytest.mark.slow
@own_transport
def test_streams_with_most_of_the_memory_leave_some_to_others(small: None, flooding: Flooding) -> None:
    early = [flooding.open() for _ in range(4)]
    until_full(*early)
    held = sum(stream.stats.buffered for stream in early)
    # And a batch of each that was on its way when the sum was counted.
    assert held <= MIB * 7 // 8 + 4 * 16 * KIB
    late = [flooding.open("/late") for _ in range(4)]
    flooding.go.set()
    until_full(*late)
    for stream in late:
        # The least share, and what was left.
        assert 0 < stream.stats.buffered <= max(16 * KIB, MIB * 7 // 8 - held)
    assert sum(stream.stats.buffered for stream in (*early, *late)) <= MIB
    # Their consumers get every event.
    close(*early)
    assert [len(stream.collect()) for stream in late] == [1000] * 4


@own_transport
def test_stream_whose_caller_set_a_limit_keeps_it(small: None, flooding: Flooding) -> None:
    streams = [flooding.open("/late") for _ in range(31)]
    own = flooding.open("/late", max_buffered_bytes=256 * KIB)
    flooding.go.set()
    until_full(own, *streams)
    assert memory.bytes == 32 * KIB
    assert 128 * KIB < own.stats.buffered <= 256 * KIB
    for stream in streams:
        assert stream.stats.buffered <= 32 * KIB
    close(own, *streams)


@own_transport
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_batches_of_tiny_events_fit_into_the_share(small: None, coding: str) -> None:
    """Each event is charged 256 bytes besides its own, in large reads or a small compressed body."""
    body = b"data: x\n\n" * 20_000
    if coding == "gzip":
        body = gzip.compress(body)
    go = threading.Event()
    with SSEServer([respond(headers={"Content-Encoding": coding}), hold(go), body, silence()]) as server:
        streams = [request_sse(server.url, decode="text").events for _ in range(32)]
        go.set()
        until_full(*streams)
        for stream in streams:
            assert 16 * KIB <= stream.stats.buffered <= 32 * KIB
        close(*streams)


@own_transport
def test_readers_of_tees_and_logs_count(small: None, flooding: Flooding) -> None:
    with Bridge() as bridge, MemoryLog(bridge=bridge) as log:
        readers = tee(flooding.open("/late", bridge=bridge), 3)
        assert len(open_channels()) == 4

        def start() -> EventStream[Any]:
            return flooding.open("/late", bridge=bridge)

        logged = [log.open("key", start, decode="text") for _ in range(4)]
        # With the log's own request.
        assert len(open_channels()) == 9
        flooding.go.set()
        until_full(*readers, *logged)
        # The log has read its upstream to the end.
        until(lambda: len(open_channels()) == 8)
        for reader in (*readers, *logged):
            assert 0 < reader.stats.buffered <= 128 * KIB
        upstream = readers._broadcaster.subscription.channel
        channels = [upstream, *(reader_of(reader).cursor.channel for reader in (*readers, *logged))]
        until(lambda: bridge.stats().buffered == sum(channel.buffered for channel in channels))
        readers.close()
        close(*logged)


@own_transport
def test_merged_and_gathered_streams_count(small: None) -> None:
    async def main() -> None:
        async with amerge([partial(arequest_sse, server.url, decode="text")] * 3) as merged:
            await merged.__anext__()
            # Another stream may start after the first one's item has come.
            while len(open_channels()) < 3:
                await asyncio.sleep(0.001)

    with SSEServer([send("a"), silence()]) as server:
        with merge([partial(request_sse, server.url, decode="text")] * 3) as merged:
            loop = iter(merged)
            next(loop)
            until(lambda: len(open_channels()) == 3)
        asyncio.run(main())
    with SSEServer([send("a"), DONE]) as server:
        assert len(list(gather([partial(request_sse, server.url, decode="text")] * 30))) == 30


@own_transport
@pytest.mark.parametrize("steps", [[send("a"), DONE], [send("a")], [send("a"), cut()]], ids=["done", "eof", "error"])
def test_stream_counts_until_its_end_was_received(ask: Requester, steps: list[Any]) -> None:
    with SSEServer(steps) as server:
        response = ask(server.url, decode="text")
        until(lambda: server.requests[0].finished.is_set() or server.requests[0].aborted.is_set())
        assert len(open_channels()) == 1
        try:
            assert response.items() == ["a"]
        except Exception as error:
            assert steps[-1] not in (DONE, steps[0]), error
        assert open_channels() == {}


@pytest.mark.parametrize("end", ["close", "drop", "break"])
def test_stream_that_is_left_counts_no_longer(end: str) -> None:
    with SSEServer([send("a"), silence()]) as server:
        stream = request_sse(server.url, decode="text").events
        if end == "close":
            stream.close()
        elif end == "break":
            for _ in stream:
                break
        else:
            with pytest.warns(ResourceWarning):
                del stream
        assert open_channels() == {}
        server.requests[0].wait_aborted()


def test_requests_that_fail_count_no_longer(ask: Requester, closed_port: int) -> None:
    with pytest.raises(ConnectError):
        ask(f"http://127.0.0.1:{closed_port}/")
    assert open_channels() == {}
    with SSEServer([respond(500)]) as server, pytest.raises(StatusError):
        ask(server.url, decode="text").items()
    assert open_channels() == {}


def test_request_that_is_aborted_before_its_start_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LoopState.post_start

    def abort_first(state: LoopState, stream: Any, context: Any) -> None:
        stream.abort()
        real(state, stream, context)

    monkeypatch.setattr(LoopState, "post_start", abort_first)
    with SSEServer([silence()]) as server, pytest.raises(RequestAbortedError):
        request_sse(server.url)
    assert open_channels() == {}
