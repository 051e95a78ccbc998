"""The hub: the store, the topics and the tasks that a log's readers and producers share in one event loop.

Runs on the loop thread, except the constructor, which runs in a caller's thread before the loop knows the
hub. Readers share the fan-out of new entries but no errors: only an error of the store ends them all.

The keeper task is the hub's first. When it is cancelled, by `aclose` or at the end of the loop, it
cancels the other tasks, waits until their leases are released, and closes the store. Once `is_closing` is
True, no reader and no call starts.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sseqbridge._exceptions import LogUnavailableError, SSEError

from ._lease_watch import LeaseWatch
from ._store import ClaimState, FencingToken, LogSettings, OutageError, Store
from ._topic import Subscriber, Topic
from ._topic_group import TopicGroup

if TYPE_CHECKING:
    from sseqbridge._engine.channel import Channel
    from sseqbridge._engine.loop_state import LoopState

    from ._store import Claim

__all__ = ["Hub", "HubReader"]

logger = logging.getLogger("sseqbridge")

T = TypeVar("T")

# The delays between attempts during an outage.
_FIRST_DELAY, _MAX_DELAY = 0.02, 1.0
# How long the release of leases may take: at the end of the loop, whose thread does not wait much longer, and
# in `close`, which a process on a busy machine may call at its end.
_LOOP_END_SECONDS, _CLOSE_SECONDS = 0.15, 3.0
# After this time a read that continues is cancelled again: asyncio.wait_for, in which redis-py sends commands, loses a
# cancellation that meets the end of its wait (before Python 3.12).
_CANCEL_AGAIN_SECONDS = 0.05


class HubReader(Subscriber, Protocol):
    """A reader, as the hub ends it."""

    channel: Channel[Any]

    def end_with_loop(self) -> None:
        """End because the loop ends."""


class Hub:
    """Shared state of one log in one event loop."""

    def __init__(self, state: LoopState, store: Store, settings: LogSettings) -> None:
        self.state = state
        self.loop = state.loop
        self.store = store
        self.settings = settings
        self.readers: set[HubReader] = set()
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, TopicGroup] = {}
        self.lease_watch = LeaseWatch(self)
        # The time of the last failed call during an outage.
        self.disturbed_at: float | None = None
        self.is_closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        # Never cancelled: a producer may be cancelled twice, at its own end and when the log is closed.
        self._releases: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._release_seconds = _LOOP_END_SECONDS
        state.call_at_end(self._end_readers)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that ends with the hub."""
        if self._keeper is None:
            self._keeper = self.loop.create_task(self._keep())
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self) -> None:
        try:
            await self.loop.create_future()
        finally:
            self.is_closing = True
            for task in tuple(self._tasks):
                task.cancel()
            await self._wait_for_tasks()
            await self.store.aclose()

    async def _wait_for_tasks(self) -> None:
        """Wait for the cancelled tasks and the release of leases, for a limited time."""
        waiting: set[asyncio.Task[Any]] = {*self._tasks, *self._releases}
        deadline = self.loop.time() + self._release_seconds
        while waiting and (left := deadline - self.loop.time()) > 0:
            _, waiting = await asyncio.wait(waiting, timeout=min(left, _CANCEL_AGAIN_SECONDS))
            for group in self.groups.values():
                group.cancel()

    async def retry_while_unavailable(
        self,
        function: Callable[..., Awaitable[T]],
        *args: Any,
        retry_now: asyncio.Event | None = None,
        **options: Any,
    ) -> T:
        """Call the store, and repeat the call during an outage. Raises LogUnavailableError after `outage` seconds.

        `retry_now` ends the delay before the next attempt, which clears it.
        """
        deadline = None
        delay = _FIRST_DELAY
        while True:
            try:
                return await function(*args, **options)
            except OutageError as outage:
                if self.is_closing and asyncio.current_task() in self._tasks:
                    # Some clients answer a cancellation with an error of their own.
                    raise asyncio.CancelledError from outage
                now = self.disturbed_at = self.loop.time()
                if deadline is None:
                    deadline = now + self.settings.outage
                    logger.warning("a log's store is unavailable: %s", outage)
                if now >= deadline:
                    message = (
                        f"the log's store was out for {self.settings.outage:g} s (outage= sets this limit): {outage}"
                    )
                    raise LogUnavailableError(message) from outage.__cause__
            await _sleep(delay, retry_now)
            delay = min(2 * delay, _MAX_DELAY)

    # Leases.

    async def claim(
        self, key: str, *, may_begin: bool, takeover: bool, longest_ttl: int | None
    ) -> tuple[Claim, FencingToken]:
        """Try to become a stream's producer. The token is valid if elected; a cancellation releases it."""
        owner = uuid.uuid4().hex
        claiming = self.spawn(
            self.retry_while_unavailable(
                self.store.claim, key, owner, may_begin=may_begin, takeover=takeover, longest_ttl=longest_ttl
            )
        )
        try:
            claim = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(partial(self._release_unused, key, owner))
            raise
        return claim, FencingToken(key, claim.fence, owner)

    def _release_unused(self, key: str, owner: str, claiming: asyncio.Task[Claim]) -> None:
        if claiming.cancelled() or claiming.exception() is not None or self.is_closing:
            return
        claim = claiming.result()
        if claim.state is ClaimState.ELECTED:
            self.spawn(self.release(FencingToken(key, claim.fence, owner)))

    async def release(self, token: FencingToken) -> None:
        """Release a lease, also if the caller is cancelled. Without success the lease expires."""
        task = self.loop.create_task(self._release(token))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        await asyncio.shield(task)

    async def _release(self, token: FencingToken) -> None:
        try:
            await self.store.release(token)
        except (OutageError, SSEError) as exc:
            logger.debug("a lease was not released, and expires: %s", exc)

    # Topics.

    def topic(self, key: str) -> Topic:
        """Return the stream's topic, a new one if there is none. The caller registers a subscriber before it awaits."""
        topic = self.topics.get(key)
        if topic is None:
            topic = self.topics[key] = Topic(self, key)
        return topic

    def tail(self, topic: Topic) -> None:
        """Broadcast the entries after the topic's position from now on."""
        name = self.store.group_of(topic.key)
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = TopicGroup(self, name, self.store.new_tail())
            group.topics[topic.key] = topic
            group.task = self.spawn(group.run())
        else:
            group.topics[topic.key] = topic
            group.wake()

    def remove_group(self, name: str) -> None:
        """Forget a group that has ended."""
        del self.groups[name]

    def remove_topic(self, topic: Topic) -> None:
        """Forget a topic that has failed, or has no subscriber."""
        if self.topics.get(topic.key) is topic:
            del self.topics[topic.key]
        if self.is_closing:
            return
        group = self.groups.get(self.store.group_of(topic.key))
        if group is not None and group.topics.get(topic.key) is topic:
            del group.topics[topic.key]
            if not group.topics:
                group.wake()

    # The end.

    def _end_readers(self) -> None:
        for reader in tuple(self.readers):
            reader.end_with_loop()

    async def aclose(self) -> None:
        """End all readers and tasks, release all leases, and close the store. Idempotent."""
        was_closing, self.is_closing = self.is_closing, True
        self.state.cancel_call_at_end(self._end_readers)
        for reader in tuple(self.readers):
            reader.channel.close()
        self._release_seconds = _CLOSE_SECONDS
        if self._keeper is not None:
            if not was_closing:
                # A second cancellation would cut the release of the leases short.
                self._keeper.cancel()
            await asyncio.wait({self._keeper})


async def _sleep(seconds: float, wake: asyncio.Event | None) -> None:
    """Sleep for some seconds, or until `wake` is set, and clear that."""
    if wake is None:
        await asyncio.sleep(seconds)
        return
    timer = asyncio.get_running_loop().call_later(seconds, wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()
        wake.clear()
