"""A topic group: the topics whose entries one Tail waits for, and the task that broadcasts them.

Runs on the loop thread. An error of one stream ends the subscribers of that topic; an error of the store
ends the subscribers of all topics of the group. In either case the topic is removed from the hub, so that
a later subscriber gets a new one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sseqbridge._exceptions import LogError, SSEError

from ._errors import as_log_error

if TYPE_CHECKING:
    from ._entries import Entry
    from ._hub import Hub
    from ._store import Tail
    from ._topic import Topic

__all__ = ["TopicGroup"]


class TopicGroup:
    """Topics that share one Tail."""

    def __init__(self, hub: Hub, name: str, tail: Tail) -> None:
        self._hub = hub
        self._name = name
        self.tail = tail
        self._retry_now = asyncio.Event()
        self.topics: dict[str, Topic] = {}
        # The task that runs run().
        self.task: asyncio.Task[None]

    def cancel(self) -> None:
        """Cancel the read."""
        self.task.cancel()

    def wake(self) -> None:
        """Begin to wait for the present topics at once, also during an outage: others may have ended it."""
        self._retry_now.set()
        self.tail.wake()

    async def run(self) -> None:
        """Broadcast new entries until the group has no topic."""
        try:
            while self.topics:
                await self._read_or_fail()
        finally:
            # No await since the check of the topics, so none can have been added in between.
            self._hub.remove_group(self._name)
            await self.tail.aclose()

    async def _read_or_fail(self) -> None:
        try:
            await self._read()
        except Exception as exc:
            error = as_log_error(exc)
            for topic in tuple(self.topics.values()):
                topic.fail(error)
                self._hub.remove_topic(topic)

    async def _read(self) -> None:
        found_by_topic = await self._hub.retry_while_unavailable(self._read_once, retry_now=self._retry_now)
        for topic, found in found_by_topic:
            # During the read another topic with a later position may have replaced this one.
            if self.topics.get(topic.key) is topic:
                self._broadcast(topic, found)

    async def _read_once(self) -> list[tuple[Topic, list[Entry] | LogError]]:
        """Wait for entries of the topics at the time of the call, which each attempt is: readers come and go."""
        topics = dict(self.topics)
        self._retry_now.clear()
        if not topics:
            return []
        positions = {key: topic.position for key, topic in topics.items()}
        return [(topics[key], found) for key, found in await self.tail.read(positions)]

    def _broadcast(self, topic: Topic, found: list[Entry] | SSEError) -> None:
        try:
            if isinstance(found, SSEError):
                raise found
            topic.broadcast(found)
        except Exception as exc:
            topic.fail(as_log_error(exc))
            self._hub.remove_topic(topic)
