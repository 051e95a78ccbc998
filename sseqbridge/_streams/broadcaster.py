"""One upstream for several readers: what tee() returns readers of.

The Broadcaster takes entries from a detached subscription and puts each, undecoded, into one channel for
each reader; a reader decodes its own items in its own thread. Entries are moved on the loop's thread, by
whichever callback finds that there is an entry and room. When the loop ends, all that is left is moved
for the last time, whether or not there is room.

    field                                    written by
    _entry, _full, _is_moving,
    _must_move, _is_last_time                the loop's thread
    _readers                                 any thread, under `_lock`
    _leaving                                 any thread; atomic, published before `_readers` is read
    _history, _history_bytes, _last_id, _end the loop's thread, under `_lock`

If the loop has ended before `start`, its thread is the caller's. No call under `_lock` waits or re-enters
this module. A reader that leaves, perhaps in a finalizer, takes no lock: `add` publishes its reader and then looks
for a last reader that is leaving, `leave` does the reverse. So at least one of the two notices the other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sseqbridge._engine.batches import Batch
from sseqbridge._engine.channel import CLOSED, End, ThreadChannel, post
from sseqbridge._engine.memory import limit_of, memory
from sseqbridge._engine.reconnection_notice import Reconnecting
from sseqbridge._engine.responses import Body
from sseqbridge._engine.scope import Ownership
from sseqbridge._exceptions import EventsLostError, UsageError, copy_error
from sseqbridge._runtime import threads

from .reader import ItemReader

if TYPE_CHECKING:
    from sseqbridge._engine.stats import StreamStats
    from sseqbridge._engine.stream_task import Entry
    from sseqbridge._sse.events import ServerSentEvent

__all__ = ["Broadcaster", "TeeReader"]

T = TypeVar("T")

_ALL_HAVE_LEFT = "all readers of this tee have left, and the upstream was aborted: open a new stream"


class Broadcaster(Generic[T]):
    """Moves the entries of one subscription into the channels of its readers."""

    def __init__(self, reader: ItemReader[T], *, ends_slow: bool, max_buffered: int, max_history: int) -> None:
        """Take the reader's subscription over. Raises UsageError if it has a consumer."""
        reader.check_usable()
        self._first_id = self._last_id = reader.cursor.last_event_id
        self._detached = reader.detach()
        self._reader = reader
        self.subscription = self._detached.subscription
        self._ends_slow = ends_slow
        self._max_buffered = max_buffered
        self._max_history = max_history
        self._lock = threads.new_lock()
        # Taken from the subscription, and in no reader's channel yet.
        self._entry: Entry | End | None = None
        # Readers without room, which call `_wake` once they have some.
        self._full: list[TeeReader] = []
        self._is_moving = self._must_move = False
        self._is_last_time = False
        self._readers: tuple[TeeReader, ...] = ()
        # One entry for each reader that may be the last one, and is about to abort the upstream.
        self._leaving: deque[object] = deque()
        # None once it was longer than `max_history`.
        self._history: list[Batch | Body] | None = []
        self._history_bytes = 0
        self._end: End | None = None

    @property
    def open_readers(self) -> int:
        """The number of readers that have not left."""
        return sum(not reader.channel.closed for reader in self._readers)

    def start(self) -> None:
        """Deliver the entries that were received already, and begin to move those that follow."""
        for entry in self._detached.unread:
            self._deliver(entry)
        if self._detached.end is not None:
            self._deliver(self._detached.end)
            return
        # Before the first notification: if the loop has ended, no other callback moves anything.
        self.subscription.call_at_loop_end(self._move_all)
        self._await_entry()
        # A reader may be waiting when the upstream is closed.
        self.subscription.notify_finished(self._wake)

    def add(self, *, replay: bool) -> ItemReader[T]:
        """Return another reader; see Tee.add."""
        self.subscription.check_process()
        reader: TeeReader | None = None
        try:
            with self._lock:
                history: list[Batch | Body] | None = self._history if replay else []
                if history is None:
                    message = f"the history is longer than max_history_bytes={self._max_history}, and not kept"
                    raise EventsLostError(message)
                if self._is_over():
                    raise UsageError(_ALL_HAVE_LEFT)
                reader = TeeReader(self, self._max_buffered, self._first_id if replay else self._last_id)
                memory.enter(reader.channel, reader.loop)
                for entry in history:
                    reader.put(entry)
                if self._end is not None:
                    reader.put(self._end)
                self._readers += (reader,)
            if self._is_left():
                self._remove(reader)
                raise UsageError(_ALL_HAVE_LEFT)
            return self._reader.fork(reader)
        except BaseException:
            # Nobody reads it. This aborts the upstream if the other side noticed this reader, and did not.
            if reader is not None:
                reader.abort()
            raise

    def close(self) -> None:
        """End all readers, and abort the upstream."""
        self.subscription.check_process()
        for reader in self._readers:
            reader.channel.close()
        self._reader.close()

    def _is_over(self) -> bool:
        if self._end is not None:
            return self._end.outcome == "closed"
        return bool(self._readers) and not self.open_readers

    def _is_left(self) -> bool:
        """Whether the upstream was aborted, or is about to be, since the last reader has left."""
        # In this order: leave() closes the channel before it removes its entry from `_leaving`, and the loop
        # records the end before it closes the channel.
        if not self._leaving and not self.subscription.channel.closed:
            return False
        return self._end is None or self._end.outcome == "closed"

    # On the loop's thread.

    def _await_entry(self) -> None:
        self.subscription.channel.notify(self._wake)

    def _wake(self) -> None:
        # Runs in the thread that adds an entry, makes room, or closes.
        if self.subscription.in_loop_thread():
            self._move()
        else:
            post(self.subscription.loop, self._move)

    def _move_all(self) -> None:
        """Move what is left, since the loop is ending and no callback will run once there is room."""
        self._is_last_time = True
        self._move()

    def _move(self) -> None:
        # Re-entrant, since a reader may itself be read by a tee: the inner call only notes that it came,
        # so that entries stay in order.
        self._must_move = True
        if self._is_moving:
            return
        self._is_moving = True
        try:
            while self._must_move:
                self._must_move = False
                self._move_available()
        finally:
            self._is_moving = False

    def _move_available(self) -> None:
        while self._full:
            self._full.pop().channel.cancel_notify(self._wake)
        while self._end is None:
            entry = self._entry or self.subscription.channel.poll()
            if entry is None:
                self._await_entry()
                return
            self._entry = entry
            if self._must_wait(_charge(entry)):
                return
            self._entry = None
            # CLOSED stands for a close() by the consumer. The readers were not closed: they receive an end.
            self._deliver(End("closed") if entry is CLOSED else entry)

    def _must_wait(self, charge: int) -> bool:
        """Whether a reader without room holds the entry back; it calls `_wake` once it has room."""
        if self._is_last_time:
            return False
        full = [reader for reader in self._readers if not reader.channel.fits(charge)]
        if self._ends_slow and len(full) < self.open_readers:
            for reader in full:
                reader.end_as_too_slow(limit_of(self._max_buffered).bytes)
                self._remove(reader)
            return False
        self._full = [reader for reader in full if reader.channel.notify_when_drained(self._wake, charge)]
        return bool(self._full)

    def _remove(self, removed: TeeReader) -> None:
        with self._lock:
            self._readers = tuple(reader for reader in self._readers if reader is not removed)

    def _deliver(self, entry: Entry | End) -> None:
        with self._lock:
            readers = self._readers
            self._record(entry)
        if isinstance(entry, End):
            self._reader.cursor.end = entry
            self.subscription.cancel_call_at_loop_end(self._move_all)
        for reader in readers:
            if not reader.channel.closed:
                reader.put(entry)
                if isinstance(entry, Reconnecting):
                    # `on_reconnect` is called once, by one reader.
                    return

    def _record(self, entry: Entry | End) -> None:
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
            self._deliver(End("done"))

    # From any thread, between any two bytecodes: no lock, no wait.

    def leave(self) -> None:
        """Abort the upstream if the last reader has left."""
        if self.open_readers:
            return
        entry = object()
        self._leaving.append(entry)
        # Checked again, now that add() can see the entry: it may have added a reader after the first check.
        if not self.open_readers:
            self.subscription.abort()
        self._leaving.remove(entry)

    def finish(self) -> None:
        """End all readers as "done", since the `done` function of one accepted an event."""
        post(self.subscription.loop, self._finish)
        self.subscription.drain()


def _charge(entry: Entry | End) -> int:
    if isinstance(entry, Body):
        return len(entry.content)
    return entry.charge if isinstance(entry, (Batch, Reconnecting)) else 0


class TeeReader:
    """The subscription of one reader."""

    shares_events = True

    def __init__(self, broadcaster: Broadcaster[Any], max_buffered: int, initial_event_id: str) -> None:
        self.channel: ThreadChannel[Entry] = ThreadChannel(max_buffered)
        self.initial_event_id = initial_event_id
        self._broadcaster = broadcaster
        self._upstream = upstream = broadcaster.subscription
        self.loop = upstream.loop
        self.check_process = upstream.check_process
        self.in_loop_thread = upstream.in_loop_thread
        self.reconnect = upstream.reconnect
        self.drain = broadcaster.finish
        self.watch = upstream.watch
        self.ownership = Ownership()
        self.notify_finished = upstream.notify_finished
        self.call_at_loop_end = upstream.call_at_loop_end
        self.cancel_call_at_loop_end = upstream.cancel_call_at_loop_end

    def put(self, entry: Entry | End) -> None:
        """Add an entry, whether or not there is room."""
        if isinstance(entry, End) and entry.error is not None:
            # A copy: each reader raises it in its own thread.
            entry = End(entry.outcome, copy_error(entry.error))
        self.channel.send_nowait(entry, _charge(entry))

    def end_as_too_slow(self, limit: int) -> None:
        """End the reader with EventsLostError, after the entries that it has."""
        message = f"this reader's backlog of max_buffered_bytes={limit} was full when other readers went on"
        self.channel.end(End("error", EventsLostError(message)))

    @property
    def target(self) -> str:
        return self._upstream.target

    @property
    def done_event(self) -> ServerSentEvent | None:
        return self._upstream.done_event

    @property
    def is_inherited(self) -> bool:
        return self._upstream.is_inherited

    def stats(self) -> StreamStats:
        return replace(self._upstream.stats(), buffered=self.channel.buffered)

    def abort(self) -> None:
        self.channel.close()
        self._broadcaster.leave()

    @property
    def finished(self) -> bool:
        # While other readers are open, the upstream does not end when this reader leaves.
        return self._upstream.finished or self._broadcaster.open_readers > 0

    @property
    def is_running(self) -> bool:
        return not (self.channel.closed or self._upstream.finished)

    def wait_finished(self, timeout: float) -> None:
        if not self.finished:
            self._upstream.wait_finished(timeout)

    async def await_finished(self, timeout: float) -> None:
        if not self.finished:
            await self._upstream.await_finished(timeout)
