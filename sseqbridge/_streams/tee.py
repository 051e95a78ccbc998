"""One upstream, read by several threads: each has a stream of its own, and its own backlog and end.

What the upstream's channel gives is put on into one channel for each reader, undecoded: the reader
decodes, in its own thread, an item of its own. That is done in the loop's thread, by whoever
finds that there is something to move; when the loop ends, for the last time, whether or not there is room.

    field        written by
    _entry         the loop's thread: taken from the upstream's channel, and in no reader's yet
    _awaited       the loop's thread: readers without room, who call when they have some
    _is_moving, _is_wanted, _is_last_time: the loop's thread
    _readers       under `_lock`, any thread
    _history       under `_lock`, the loop's thread; None once it was more than is kept
    _last_id, _end under `_lock`, the loop's thread

(Where the loop has ended before `start`, its thread is the caller's.)
Nothing is called under `_lock` that could wait or come back here. A reader that leaves, which a
finalizer may do, takes no lock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from sseqbridge._checks import check_limits
from sseqbridge._engine.channel import CLOSED, End, ThreadChannel, post
from sseqbridge._engine.exchange import Batch, Body
from sseqbridge._engine.reconnecting import Reconnecting
from sseqbridge._exceptions import EventsLostError, UsageError
from sseqbridge._runtime import threads

from .sync import EventStream, NotCopyable, SSEResponse

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from sseqbridge._engine.stream_task import Entry

    from .sync import Upstream

__all__ = ["Tee", "tee"]

T = TypeVar("T")

_DEFAULT_MAX_BYTES = 1024 * 1024

Slow = Literal["wait", "end"]


def tee(
    stream: EventStream[T] | SSEResponse[T],
    n: int = 2,
    *,
    slow: Slow = "wait",
    max_buffered_bytes: int = _DEFAULT_MAX_BYTES,
    max_history_bytes: int = _DEFAULT_MAX_BYTES,
) -> Tee[T]:
    """Return `n` streams, a tuple, that all give what is still to come of one: each to a thread of its own.

    A reader is an EventStream, which decodes its own items. At most `max_buffered_bytes` are held for
    each, or what one read of the network gave. The one furthest behind then holds up the upstream; with
    `slow="end"` the fastest does, and who has no room when that goes on is ended, after what it has, by
    an EventsLostError. The upstream is aborted when the last reader has left.

    `add(replay=True)` on what is returned gives one more reader, which begins with what was so far,
    as long as that was not more than `max_history_bytes`. `stream` itself is not read any more;
    closing it ends all readers.

    Raises UsageError for arguments that cannot work, and for a stream that somebody reads.
    """
    if isinstance(stream, SSEResponse):
        stream = stream.events
    if not isinstance(stream, EventStream):
        raise UsageError(f"tee of a {type(stream).__name__}; it takes what request_sse returns")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"n={n!r}; it is a number of readers, 1 or more")
    if slow not in ("wait", "end"):
        raise UsageError(f'slow={slow!r}; it is "wait" or "end"')
    check_limits("max_buffered_bytes", max_buffered_bytes)
    if max_history_bytes != 0:
        check_limits("max_history_bytes", max_history_bytes)
    fan: Broadcaster[T] | None = None
    try:
        fan = Broadcaster(stream, slow == "end", max_buffered_bytes, max_history_bytes)
        readers = [fan.add(replay=False) for _ in range(n)]
        fan.start()
        return Tee(fan, readers)
    except UsageError:
        raise
    except BaseException:
        # An interrupt. Nobody else can read it any more.
        (fan or stream).close()
        raise


class Tee(NotCopyable, tuple[EventStream[T], ...], Generic[T]):  # noqa: SLOT001 (a tuple takes no slots but empty ones)
    """The readers that `tee` made, a tuple, which can be told to add others."""

    _fan: Broadcaster[T]

    def __new__(cls, fan: Broadcaster[T], readers: Iterable[EventStream[T]]) -> Self:
        made = super().__new__(cls, readers)
        made._fan = fan
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._fan.source!r} readers={self._fan.open_readers}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A child that leaves the parent's block has nothing to close.
        if not self._fan.subscription.is_inherited:
            self.close()

    def add(self, *, replay: bool = False) -> EventStream[T]:
        """Return one more reader, of what comes from now on, or with `replay` of what was so far as well.

        Raises EventsLostError where that was more than `max_history_bytes`, and UsageError once all
        readers have left.
        """
        return self._fan.add(replay=replay)

    def close(self) -> None:
        """Abort the upstream and end all readers, at once. Any thread may call it."""
        self._fan.close()


class Broadcaster(Generic[T]):
    """What moves the upstream's entries on to the readers."""

    def __init__(self, source: EventStream[T], ends_slow: bool, max_buffered: int, max_history: int) -> None:
        # It is read here from now on, and by nobody else. Kept, for its end would abort the upstream.
        source._check_usable()
        source._claim_for_good()
        self.source = source
        self.subscription: Upstream = source._subscription
        self._ends_slow = ends_slow
        self._max_buffered = max_buffered
        self._max_history = max_history
        self._lock = threads.new_lock()
        self._entry: Entry | End | None = None
        self._awaited: list[TeeReader] = []
        self._is_moving = self._is_wanted = False
        self._is_last_time = False
        self._readers: tuple[TeeReader, ...] = ()
        self._history: list[Batch | Body] | None = []
        self._history_bytes = 0
        self._end: End | None = None
        self._first_id = self._last_id = source.last_event_id

    @property
    def open_readers(self) -> int:
        """How many have not left."""
        return sum(not reader.channel.closed for reader in self._readers)

    def start(self) -> None:
        """Give the readers what was taken from the upstream already, and see that they get the rest."""
        for entry in self._in_hand():
            self._give(entry)
        if self.source._end is not None:
            self._give(self.source._end)
            return
        # First this: where the loop has ended, nobody else moves anything.
        self.subscription.call_at_loop_end(self._move_all)
        self._watch()
        # It may be a reader that is waited for when the upstream is closed.
        self.subscription.notify_finished(self._wake)

    def _in_hand(self) -> list[Batch | Body]:
        source = self.source
        items = list(source._items)
        if not items or isinstance(items[0], Body):
            return items
        batch = source._batch
        assert batch is not None
        return [replace(batch, items=items, events=len(items))]

    def add(self, *, replay: bool) -> EventStream[T]:
        """Return another reader."""
        self.subscription.check_process()
        with self._lock:
            history: list[Batch | Body] | None = self._history if replay else []
            if history is None:
                raise EventsLostError(f"more came than max_history_bytes={self._max_history}, which is not kept")
            if self._is_left():
                raise UsageError("all readers of this tee have left, and the upstream was aborted: ask it anew")
            branch = TeeReader(self, self._max_buffered, self._first_id if replay else self._last_id)
            for entry in history:
                branch.put(entry)
            if self._end is not None:
                branch.put(self._end)
            self._readers += (branch,)
        source = self.source
        return EventStream(branch, source._head, source._decoder, source._cancel, source._on_reconnect)

    def close(self) -> None:
        """End all readers, and abort the upstream."""
        self.subscription.check_process()
        for reader in self._readers:
            reader.channel.close()
        self.source.close()

    def _is_left(self) -> bool:
        if self._end is not None:
            return self._end.outcome == "closed"
        return bool(self._readers) and not self.open_readers

    # In the loop's thread.

    def _watch(self) -> None:
        self.subscription.channel.notify(self._wake)

    def _wake(self) -> None:
        # Called by whoever puts something in, takes something out, or closes.
        if self.subscription.in_loop_thread():
            self._move()
        else:
            post(self.subscription.loop, self._move)

    def _move_all(self) -> None:
        """The loop ends: nobody would call again for what does not fit."""
        self._is_last_time = True
        self._move()

    def _move(self) -> None:
        # Putting something in can lead back here, where a reader is itself read by several: later, and in order.
        self._is_wanted = True
        if self._is_moving:
            return
        self._is_moving = True
        try:
            while self._is_wanted:
                self._is_wanted = False
                self._move_what_is_there()
        finally:
            self._is_moving = False

    def _move_what_is_there(self) -> None:
        while self._awaited:
            self._awaited.pop().channel.cancel_notify(self._wake)
        while self._end is None:
            entry = self._entry or self.subscription.channel.poll()
            if entry is None:
                self._watch()
                return
            self._entry = entry
            if self._must_wait(_charge(entry)):
                return
            self._entry = None
            # An end that is theirs to read: none of them has closed.
            self._give(End("closed") if entry is CLOSED else entry)

    def _must_wait(self, charge: int) -> bool:
        """Whether this has to be called again, which readers without room will do once they have some."""
        if self._is_last_time:
            return False
        full = [reader for reader in self._readers if not reader.channel.fits(charge)]
        if self._ends_slow and len(full) < self.open_readers:
            for reader in full:
                reader.fall_behind(self._max_buffered)
                self._drop(reader)
            return False
        self._awaited = [reader for reader in full if reader.channel.notify_when_drained(self._wake, charge)]
        return bool(self._awaited)

    def _drop(self, left: TeeReader) -> None:
        with self._lock:
            self._readers = tuple(reader for reader in self._readers if reader is not left)

    def _give(self, entry: Entry | End) -> None:
        with self._lock:
            readers = self._readers
            self._note(entry)
        if isinstance(entry, End):
            self.source._end = entry
            self.subscription.cancel_call_at_loop_end(self._move_all)
        for reader in readers:
            if not reader.channel.closed:
                reader.put(entry)
                if isinstance(entry, Reconnecting):
                    # It is told once.
                    return

    def _note(self, entry: Entry | End) -> None:
        # Under the lock.
        if isinstance(entry, End):
            self._end = entry
        elif isinstance(entry, (Batch, Body)):
            if isinstance(entry, Batch):
                self._last_id = entry.last_event_id
            self._history_bytes += _charge(entry)
            if self._history is not None and self._history_bytes <= self._max_history:
                self._history.append(entry)
            else:
                self._history = None

    def _finish(self) -> None:
        if self._end is None:
            self._give(End("done"))

    # From anywhere, between any two bytecodes: no lock, no wait.

    def leave(self) -> None:
        """A reader has left: abort the upstream where it was the last one."""
        if not self.open_readers:
            self.subscription.channel.close()
            self.subscription.request_abort()

    def finish(self) -> None:
        """A reader's `done` function has accepted an event: nothing comes after it for any of them."""
        post(self.subscription.loop, self._finish)
        self.subscription.request_drain()


def _charge(entry: Entry | End) -> int:
    if isinstance(entry, Body):
        return len(entry.content)
    return entry.charge if isinstance(entry, (Batch, Reconnecting)) else 0


class TeeReader:
    """What a reader has for an upstream of its own; see Upstream."""

    def __init__(self, fan: Broadcaster[Any], max_buffered: int, last_event_id: str) -> None:
        self.channel: ThreadChannel[Entry] = ThreadChannel(max_buffered)
        self.last_event_id = last_event_id
        self._fan = fan
        self._subscription = subscription = fan.subscription
        self.loop = subscription.loop
        self.check_process = subscription.check_process
        self.in_loop_thread = subscription.in_loop_thread
        self.request_reconnect = subscription.request_reconnect
        self.request_drain = fan.finish

    def put(self, entry: Entry | End) -> None:
        """Add an entry, whether or not there is room."""
        if isinstance(entry, End) and entry.error is not None:
            # Of its own: each reader raises it, in its own thread.
            error = copy.copy(entry.error)
            error.__cause__ = entry.error.__cause__
            entry = End(entry.outcome, error)
        self.channel.send_nowait(entry, _charge(entry))

    def fall_behind(self, limit: int) -> None:
        """End the reader, after what it has."""
        told = f"this reader's backlog was full, with max_buffered_bytes={limit}, when others went on"
        self.channel.end(End("error", EventsLostError(told)))

    @property
    def exchange(self) -> Any:
        return self._subscription.exchange

    @property
    def time_to_first_event(self) -> float | None:
        return self._subscription.time_to_first_event

    @property
    def is_inherited(self) -> bool:
        return self._subscription.is_inherited

    def request_abort(self) -> None:
        self._fan.leave()

    @property
    def finished(self) -> bool:
        # While others read, this one's leaving ends nothing that could be waited for.
        return self._subscription.finished or self._fan.open_readers > 0

    def wait_finished(self, timeout: float) -> None:
        if not self.finished:
            self._subscription.wait_finished(timeout)

    async def await_finished(self, timeout: float) -> None:
        if not self.finished:
            await self._subscription.await_finished(timeout)

    def notify_finished(self, callback: Callable[[], object]) -> None:
        self._subscription.notify_finished(callback)

    def call_at_loop_end(self, callback: Callable[[], object]) -> None:
        self._subscription.call_at_loop_end(callback)

    def cancel_call_at_loop_end(self, callback: Callable[[], object]) -> None:
        self._subscription.cancel_call_at_loop_end(callback)
