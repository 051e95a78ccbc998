"""A topic: one stream as this process follows it, with broadcast to the subscribers of one event loop.

Runs on the loop thread. An error of one subscriber ends that subscriber alone; an error of the stream
ends the subscribers of that topic alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from sseqbridge._exceptions import SSEError

from ._entries import START, Entry, Position
from ._errors import as_log_error
from ._segments import Segment, segments_of
from ._store import MissingLease

if TYPE_CHECKING:
    from ._hub import Hub
    from ._store import Liveness

__all__ = ["Subscriber", "Topic"]


class Subscriber(Protocol):
    """Receives the segments of one topic: a reader, or the stream's own producer."""

    is_reader: bool

    @property
    def position(self) -> Position:
        """The position of the last entry that it has."""

    def deliver(self, segments: Iterable[Segment]) -> bool:
        """Take new segments; False to be unsubscribed, without room or at an end."""

    def on_lease_lost(self) -> None:
        """Handle a lease that no producer holds."""

    def fail(self, error: SSEError) -> None:
        """End with an error of the log."""


class Topic:
    """One stream in one event loop.

    A registered subscriber keeps the topic alive, counts as a reader and receives errors. A subscribed one
    receives new segments too. `position` is that of the last entry that was broadcast.
    """

    def __init__(self, hub: Hub, key: str) -> None:
        self.key = key
        self.position = START
        self.registered: set[Subscriber] = set()
        self.subscribers: set[Subscriber] = set()
        # None while the lease is held, or was not looked for.
        self.missing_lease: MissingLease | None = None
        self._hub = hub
        self._readers = 0
        self._is_tailed = False

    def register(self, subscriber: Subscriber) -> None:
        """Keep the topic for a subscriber."""
        self.registered.add(subscriber)
        if subscriber.is_reader:
            self._readers += 1
            self._hub.lease_watch.add(self)

    def unregister(self, subscriber: Subscriber) -> None:
        """Undo register() and subscribe(). The last subscriber's removes the topic."""
        self.subscribers.discard(subscriber)
        self.registered.discard(subscriber)
        if subscriber.is_reader:
            self._readers -= 1
            if not self.has_readers:
                self._hub.lease_watch.remove(self)
        if not self.registered:
            self._hub.remove_topic(self)

    @property
    def has_readers(self) -> bool:
        """Whether this process reads the stream."""
        return self._readers > 0

    def subscribe(self, subscriber: Subscriber) -> None:
        """Deliver new segments to a subscriber, from any position on."""
        self.try_subscribe(subscriber)
        self.subscribers.add(subscriber)

    def try_subscribe(self, subscriber: Subscriber) -> bool:
        """Deliver the segments after the subscriber's position; False if newer ones were broadcast already."""
        if not self._is_tailed:
            self._is_tailed = True
            self.position = subscriber.position
            self._hub.tail(self)
        elif self.position > subscriber.position:
            return False
        self.subscribers.add(subscriber)
        return True

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Deliver no more segments to a subscriber."""
        self.subscribers.discard(subscriber)

    def rewind(self, position: Position) -> None:
        """Continue from an earlier position: the log no longer holds the entries after it."""
        self.position = position
        self._hub.tail(self)

    def broadcast(self, entries: Sequence[Entry]) -> None:
        """Deliver new entries to all subscribers."""
        previous, self.position = self.position, entries[-1].position
        shared = list(segments_of(entries, previous))
        for subscriber in tuple(self.subscribers):
            try:
                takes_more = subscriber.deliver(self._segments_for(subscriber, entries, previous, shared))
            except Exception as exc:
                subscriber.fail(as_log_error(exc))
                takes_more = False
            if not takes_more:
                self.subscribers.discard(subscriber)

    @staticmethod
    def _segments_for(
        subscriber: Subscriber, entries: Sequence[Entry], previous: Position, shared: Sequence[Segment]
    ) -> Iterable[Segment]:
        """Return the shared segments, or its own for a subscriber that was ahead of the topic."""
        at = subscriber.position
        return shared if at == previous else segments_of([entry for entry in entries if entry.position > at], at)

    @property
    def recheck_at(self) -> float | None:
        """When a missing lease counts as lost unless it is renewed, in the loop's time; None if it is not missing."""
        return None if self.missing_lease is None else self.missing_lease.since + self._hub.settings.grace

    def update_liveness(self, liveness: Liveness) -> None:
        """Notify the subscribers if no producer holds the lease and all entries were broadcast.

        A lease that the store has evicted is renewed within one renewal interval, so that long it must be missing. Not
        within one lease after an outage, in which a live producer may not have renewed its lease yet.
        """
        now = self._hub.loop.time()
        if liveness.is_held:
            self.missing_lease = None
            return
        missing = self.missing_lease
        if missing is None or missing.was_renewed(liveness.fence_ttl, now, self._hub.settings):
            missing = self.missing_lease = MissingLease(now, liveness.fence_ttl)
        if liveness.last is not None and liveness.last > self.position:
            return
        disturbed_at = self._hub.disturbed_at
        is_disturbed = disturbed_at is not None and now - disturbed_at <= self._hub.settings.lease
        is_lost = liveness.is_certain or now - missing.since >= self._hub.settings.grace
        if is_lost and not is_disturbed:
            for subscriber in tuple(self.subscribers):
                subscriber.on_lease_lost()

    def fail(self, error: SSEError) -> None:
        """End all subscribers with an error."""
        for subscriber in tuple(self.registered):
            subscriber.fail(error)
