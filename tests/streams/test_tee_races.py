"""Tee.add at the moment at which the last reader leaves: the new reader works, or there is an error.

Both calls run in threads of their own, stopped at each line of the broadcaster.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sseqbridge import EventStream, ServerSentEvent, UsageError
from sseqbridge._engine.batches import Batch
from sseqbridge._engine.channel import End, Outcome, ThreadChannel
from sseqbridge._engine.responses import Head
from sseqbridge._engine.scope import Ownership
from sseqbridge._engine.stats import StreamStats
from sseqbridge._streams import broadcaster as stepped
from sseqbridge._streams.broadcaster import Broadcaster
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.decoding import Decoder
from sseqbridge._streams.reader import ItemReader
from tests.stepping import Stepped

# More than the lines of either call.
MOST_LINES = 40


class Loop:
    """A loop whose callbacks run when the test says so."""

    def __init__(self) -> None:
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        self._posted.append((callback, args))

    def run(self) -> None:
        while self._posted:
            callback, args = self._posted.popleft()
            callback(*args)


class Upstream:
    """A subscription that the test fills."""

    target = "http://upstream/"
    initial_event_id = ""
    done_event = None
    is_inherited = False
    shares_events = False
    finished = True
    is_running = True

    def __init__(self) -> None:
        self.channel: ThreadChannel[Any] = ThreadChannel(1 << 20)
        self.loop: Any = Loop()
        self.aborted = threading.Event()
        self.ownership = Ownership()

    def nothing(self, *_: Any) -> None: ...

    check_process = drain = reconnect = notify_finished = watch = nothing
    call_at_loop_end = cancel_call_at_loop_end = wait_finished = nothing

    async def await_finished(self, timeout: float) -> None: ...

    def in_loop_thread(self) -> bool:
        return False

    def stats(self) -> StreamStats:
        return StreamStats(0, 0, 0, 0, None)

    def abort(self) -> None:
        self.aborted.set()
        self.channel.close()

    def send(self, text: str) -> None:
        self.channel.send_nowait(Batch([ServerSentEvent(data=text)], 1, 1, "", None))
        self.loop.run()


def added(broadcaster: Broadcaster[str]) -> ItemReader[str] | None:
    try:
        return broadcaster.add(replay=False)
    except UsageError:
        return None


def race(first_lines: int, other_lines: int, *, close_first: bool) -> tuple[bool, bool]:
    """Stop one call, then the other; then finish both. Return whether they have that many lines."""
    upstream = Upstream()
    head = Head(200, httpx.Headers(), "HTTP/1.1")
    source: ItemReader[str] = ItemReader(Cursor(upstream, head, Decoder("text", None, "raise"), None, None))
    broadcaster = Broadcaster(source, ends_slow=False, max_buffered=1 << 20, max_history=0)
    last = broadcaster.add(replay=False)
    broadcaster.start()
    calls: list[Callable[[], Any]] = [last.abort, lambda: added(broadcaster)]
    both = [
        Stepped(call, lines, stepped)
        for call, lines in zip(calls if close_first else calls[::-1], (first_lines, other_lines), strict=True)
    ]
    results = [call.finish() for call in both]
    reader = results[1 if close_first else 0]
    upstream.loop.run()
    if reader is None:
        assert upstream.aborted.is_set(), "an upstream without a reader is aborted"
    else:
        upstream.send("after the race")
        assert EventStream(reader).poll() == ["after the race"]
        assert not upstream.aborted.is_set()
        reader.abort()
        assert upstream.aborted.is_set()
        upstream.loop.run()
    return both[0].reached_its_stop, both[1].reached_its_stop


@pytest.mark.heavy
@pytest.mark.parametrize("close_first", [True, False], ids=["close is stopped first", "add is stopped first"])
def test_reader_added_while_the_last_leaves_works_or_raises(close_first: bool) -> None:
    for first_lines in range(1, MOST_LINES):
        other_lines, is_stopped, is_other_stopped = 0, True, True
        while is_other_stopped:
            other_lines += 1
            is_stopped, is_other_stopped = race(first_lines, other_lines, close_first=close_first)
        assert other_lines < MOST_LINES
        if not is_stopped:
            # Both calls ran to their end, one after the other.
            assert first_lines > 3
            return
    raise AssertionError("a call has more lines than the test expects")


@pytest.mark.parametrize("outcome", ["eof", "done"])
def test_reader_of_the_history_is_added_after_all_have_left(outcome: Outcome) -> None:
    upstream = Upstream()
    head = Head(200, httpx.Headers(), "HTTP/1.1")
    source: ItemReader[str] = ItemReader(Cursor(upstream, head, Decoder("text", None, "raise"), None, None))
    broadcaster = Broadcaster(source, ends_slow=False, max_buffered=1 << 20, max_history=1 << 20)
    last = broadcaster.add(replay=False)
    broadcaster.start()
    upstream.send("a")
    upstream.channel.end(End(outcome))
    upstream.loop.run()
    last.abort()
    late = EventStream(broadcaster.add(replay=True))
    assert (late.poll(), late.outcome) == (["a"], outcome)
