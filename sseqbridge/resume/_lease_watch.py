"""The lease watch: reports which streams this process reads, and checks that each has a live producer.

Runs on the loop thread: one task for all topics, which ends when no topic has a reader.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING

from sseqbridge._exceptions import SSEError

from ._errors import as_log_error
from ._store import OutageError

if TYPE_CHECKING:
    from ._hub import Hub
    from ._topic import Topic

__all__ = ["LeaseWatch"]

logger = logging.getLogger("sseqbridge")


def _is_due(topic: Topic, now: float) -> bool:
    """Whether a topic's lease was missing for so long that it may count as lost."""
    return topic.recheck_at is not None and topic.recheck_at <= now


class LeaseWatch:
    """Sends the heartbeats of one hub's readers, every `liveness_interval` seconds and for each new topic at once.

    A topic whose lease is missing is checked again when the lease counts as lost.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # Identifies this hub as a reader in the store.
        self._reader = uuid.uuid4().hex
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._unchecked: set[Topic] = set()

    def add(self, topic: Topic) -> None:
        """Check a topic that has a new reader, at once and then regularly."""
        self._unchecked.add(topic)
        self._wake.set()
        if self._task is None:
            self._task = self._hub.spawn(self._run())

    def remove(self, topic: Topic) -> None:
        """Report that this process no longer reads the stream."""
        if not self._hub.is_closing:
            self._hub.spawn(self._remove(topic.key))

    async def _remove(self, key: str) -> None:
        try:
            topic = self._hub.topics.get(key)
            if topic is None or not topic.has_readers:
                await self._hub.store.remove_reader(key, self._reader)
        except (OutageError, SSEError) as exc:
            logger.debug("removing a reader of a log's stream failed: %s", exc)

    async def _run(self) -> None:
        loop = self._hub.loop
        due = loop.time()
        try:
            while topics := [topic for topic in self._hub.topics.values() if topic.has_readers]:
                self._wake.clear()
                now = loop.time()
                if now < due:
                    topics = [topic for topic in topics if topic in self._unchecked or _is_due(topic, now)]
                else:
                    due = now + self._hub.settings.liveness_interval
                self._unchecked.clear()
                await self.check(topics)
                timer = loop.call_at(self._next_check(loop.time(), due), self._wake.set)
                await self._wake.wait()
                timer.cancel()
        finally:
            self._task = None

    def _next_check(self, now: float, due: float) -> float:
        """Return the time of the next regular check, or of an earlier one of a topic whose lease is missing."""
        rechecks = (topic.recheck_at for topic in self._hub.topics.values())
        return min([due, *(at for at in rechecks if at is not None and at > now)])

    async def check(self, topics: list[Topic]) -> None:
        """Send a heartbeat for the topics, and pass the liveness of each on."""
        hub = self._hub
        try:
            found = await hub.retry_while_unavailable(
                hub.store.heartbeat, [topic.key for topic in topics], self._reader
            )
        except Exception as exc:
            error = as_log_error(exc)
            for topic in topics:
                topic.fail(error)
                hub.remove_topic(topic)
        else:
            for topic, liveness in zip(topics, found, strict=True):
                if liveness.error is None:
                    topic.update_liveness(liveness)
                else:
                    topic.fail(liveness.error)
                    hub.remove_topic(topic)
