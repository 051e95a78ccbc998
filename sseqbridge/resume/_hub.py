"""What a log's readers and producers share in one loop: the store, the topics, and who follows them.

A topic is one stream, as it is followed in this loop. Those whose entries one Tail can wait for are
a group, and each is given what comes, which it gives on to its followers. From time to time the hub
looks whether all that are read still have a producer.

Streams share what brings their entries, but no faults: an error of one topic, or of one follower, ends
that topic's followers, or that follower, and all others read on. Only an error of the store ends all.

Everything here runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sseqbridge._exceptions import LogError, LogUnavailableError, SSEError

from ._entries import START, Entry, Position
from ._parts import Part, parts_of
from ._store import OutageError, Store, Terms, Token

if TYPE_CHECKING:
    from sseqbridge._engine.channel import Channel
    from sseqbridge._engine.loop_state import LoopState

    from ._store import Claim, Tail, Watch

__all__ = ["Follower", "Hub", "Topic", "as_log_error", "own_error"]

logger = logging.getLogger("sseqbridge")

T = TypeVar("T")
E = TypeVar("E", bound=SSEError)

# Between attempts, while the store is out.
_FIRST_DELAY, _LONGEST_DELAY = 0.02, 1.0
# How long leases may take to be given back: when the loop ends, which does not wait much longer, and when
# the log is closed, as by a process that ends while the machine is busy.
_END_SECONDS, _CLOSE_SECONDS = 0.15, 3.0


class Follower(Protocol):
    """Who is given what comes: a reader, or the producer itself."""

    is_reader: bool

    @property
    def position(self) -> Position: ...
    def deliver(self, parts: Iterable[Part]) -> bool: ...
    def lost(self) -> None: ...
    def fail(self, error: SSEError) -> None: ...


class ReadingFollower(Follower, Protocol):
    """A reader, as its loop's end knows it."""

    channel: Channel[Any]

    def end_with_loop(self, *, is_quiet: bool) -> None: ...


def as_log_error(exc: Exception) -> SSEError:
    """Return the error that readers get for an exception that the log has no error for: nobody is left waiting."""
    if isinstance(exc, SSEError):
        return exc
    logger.error("reading a log failed", exc_info=exc)
    error = LogError(f"reading the log failed with {type(exc).__name__}")
    error.__cause__ = exc
    return error


def own_error(error: E) -> E:
    """Return a copy of an error that several readers get: each thread raises, and marks, its own."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


class Hub:
    """What one log's readers and producers share in one loop."""

    def __init__(self, state: LoopState, store: Store, terms: Terms) -> None:
        self.state = state
        self.loop = state.loop
        self.store = store
        self.terms = terms
        self.readers: set[ReadingFollower] = set()
        self._name = uuid.uuid4().hex
        self._topics: dict[str, Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        # These are not cancelled: a producer may be cancelled twice, as it ends and as the log is closed.
        self._releases: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()
        # Those that were not looked at yet.
        self._to_look_at: set[Topic] = set()
        # When the store was last out: a producer may not have come to renew its lease since.
        self.disturbed_at: float | None = None
        # Ends the other tasks, then closes the store, when it is cancelled: by `aclose`, or as the loop ends.
        self._keeper: asyncio.Task[None] | None = None
        # From then on nothing is started here.
        self.is_closing = False
        self._seconds_for_tasks = _END_SECONDS
        state.call_at_end(self._end)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, and keep it."""
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
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks or self._releases:
                await asyncio.wait({*tasks, *self._releases}, timeout=self._seconds_for_tasks)
            await self.store.aclose()

    async def retry_while_unavailable(self, function: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Ask the store, again and again while it is out. Raises LogUnavailableError once that is too long."""
        deadline = None
        delay = _FIRST_DELAY
        while True:
            try:
                return await function(*args, **options)
            except OutageError as outage:
                if self.is_closing and asyncio.current_task() in self._tasks:
                    # The store's client has turned the cancellation into an error of its own.
                    raise asyncio.CancelledError from outage
                now = self.disturbed_at = self.loop.time()
                if deadline is None:
                    deadline = now + self.terms.outage
                    logger.warning("a log's store is out: %s", outage)
                if now >= deadline:
                    told = f"the log's store was out for {self.terms.outage:g} s (outage= sets this limit): {outage}"
                    raise LogUnavailableError(told) from outage.__cause__
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def claim(self, key: str, *, may_begin: bool, takeover: bool) -> tuple[Claim, Token]:
        """Try to become a stream's producer, whose token this is then. After a cancellation it is given back."""
        owner = uuid.uuid4().hex
        claiming = self.spawn(
            self.retry_while_unavailable(self.store.claim, key, owner, may_begin=may_begin, takeover=takeover),
        )
        try:
            claim = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(partial(self._give_back, key, owner))
            raise
        return claim, Token(key, claim.fence, owner)

    def _give_back(self, key: str, owner: str, claiming: asyncio.Task[Claim]) -> None:
        if claiming.cancelled() or claiming.exception() is not None or self.is_closing:
            return
        claim = claiming.result()
        if claim.state == "elected":
            self.spawn(self.release(Token(key, claim.fence, owner)))

    async def release(self, token: Token) -> None:
        """Give a lease back, if that can be, also if the caller is cancelled meanwhile."""
        task = self.loop.create_task(self._release(token))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        await asyncio.shield(task)

    async def _release(self, token: Token) -> None:
        try:
            await self.store.release(token)
        except (OutageError, SSEError) as exc:
            logger.debug("a lease was not given back, and runs out: %s", exc)

    def topic(self, key: str) -> Topic:
        """Return what brings a stream's entries, and note that it is followed."""
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(self, key)
        return topic

    def follow(self, topic: Topic) -> None:
        """Have the topic be given what comes."""
        name = self.store.group_of(topic.key)
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(self, name, self.store.new_tail())
            group.topics[topic.key] = topic
            self.spawn(group.run())
        else:
            group.topics[topic.key] = topic
            group.tail.wake()

    def forget(self, name: str) -> None:
        """A group has ended: what is followed from now on has another."""
        del self._groups[name]

    def drop(self, topic: Topic) -> None:
        """Nobody follows it any more."""
        if self._topics.get(topic.key) is topic:
            del self._topics[topic.key]
        if self.is_closing:
            return
        group = self._groups.get(self.store.group_of(topic.key))
        if group is not None and group.topics.get(topic.key) is topic:
            del group.topics[topic.key]
            if not group.topics:
                group.tail.wake()

    def leave(self, topic: Topic) -> None:
        """Nobody in this process reads it any more."""
        if not self.is_closing:
            self.spawn(self._leave(topic.key))

    async def _leave(self, key: str) -> None:
        try:
            if not (key in self._topics and self._topics[key].is_read):
                await self.store.leave(key, self._name)
        except (OutageError, SSEError) as exc:
            logger.debug("leaving a stream of a log failed: %s", exc)

    def look(self, topic: Topic) -> None:
        """Tell at once that it is read here, and look whether it has a producer; of all, from time to time."""
        self._to_look_at.add(topic)
        self._look_now.set()
        if self._looking is None:
            self._looking = self.spawn(self._look())

    async def _look(self) -> None:
        due = self.loop.time()
        try:
            while topics := [topic for topic in self._topics.values() if topic.is_read]:
                self._look_now.clear()
                if self.loop.time() < due:
                    topics = [topic for topic in topics if topic in self._to_look_at]
                else:
                    due = self.loop.time() + self.terms.looked_every
                self._to_look_at.clear()
                await self._look_at(topics)
                timer = self.loop.call_at(due, self._look_now.set)
                await self._look_now.wait()
                timer.cancel()
        finally:
            self._looking = None

    async def _look_at(self, topics: list[Topic]) -> None:
        try:
            watches = await self.retry_while_unavailable(self.store.watch, [topic.key for topic in topics], self._name)
        except Exception as exc:
            error = as_log_error(exc)
            for topic in topics:
                topic.fail(error)
                self.drop(topic)
        else:
            for topic, watch in zip(topics, watches, strict=True):
                if watch.error is None:
                    topic.seen(watch)
                else:
                    topic.fail(watch.error)
                    self.drop(topic)

    def _end(self) -> None:
        """The loop ends: let the readers go."""
        for reader in tuple(self.readers):
            reader.end_with_loop(is_quiet=self.state.ends_quietly)

    async def aclose(self) -> None:
        """End all readers, give all leases back, and what the store holds."""
        self.is_closing = True
        self.state.cancel_call_at_end(self._end)
        for reader in tuple(self.readers):
            reader.channel.close()
        self._seconds_for_tasks = _CLOSE_SECONDS
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})


class _Group:
    """Topics that one Tail serves."""

    def __init__(self, hub: Hub, name: str, tail: Tail) -> None:
        self._hub = hub
        self._name = name
        self.tail = tail
        self.topics: dict[str, Topic] = {}

    async def run(self) -> None:
        try:
            while self.topics:
                await self._read_on()
        finally:
            # In one step with that look: no topic is added between.
            self._hub.forget(self._name)

    async def _read_on(self) -> None:
        try:
            await self._read()
        except Exception as exc:
            error = as_log_error(exc)
            for topic in tuple(self.topics.values()):
                topic.fail(error)
                # Whoever comes now begins anew.
                self._hub.drop(topic)

    async def _read(self) -> None:
        topics = dict(self.topics)
        positions = {key: topic.position for key, topic in topics.items()}
        for key, found in await self._hub.retry_while_unavailable(self.tail.read, positions):
            # Meanwhile it may have been dropped, and another come in its place that is further on.
            if self.topics.get(key) is topics[key]:
                self._bring(topics[key], found)

    def _bring(self, topic: Topic, found: list[Entry] | SSEError) -> None:
        """Deliver what the tail has found of one stream. An error ends the followers of that stream."""
        try:
            if isinstance(found, SSEError):
                raise found
            topic.deliver(found)
        except Exception as exc:
            topic.fail(as_log_error(exc))
            # A follower that comes later begins anew.
            self._hub.drop(topic)


class Topic:
    """One stream, as it is followed in this loop."""

    def __init__(self, hub: Hub, key: str) -> None:
        self.key = key
        self.position = START
        self._hub = hub
        self._followers: set[Follower] = set()
        self._joined: set[Follower] = set()
        self._readers = 0
        self._is_tailed = False

    def enter(self, follower: Follower) -> None:
        """Count as one that follows it."""
        self._followers.add(follower)
        if follower.is_reader:
            self._readers += 1
            self._hub.look(self)

    def leave(self, follower: Follower) -> None:
        """Count as none any more."""
        self._joined.discard(follower)
        self._followers.discard(follower)
        if follower.is_reader:
            self._readers -= 1
            if not self.is_read:
                self._hub.leave(self)
        if not self._followers:
            self._hub.drop(self)

    @property
    def is_read(self) -> bool:
        """Whether somebody in this process reads it."""
        return self._readers > 0

    def listen(self, follower: Follower) -> None:
        """Be given what comes, wherever that begins."""
        self.join(follower)
        self._joined.add(follower)

    def join(self, follower: Follower) -> bool:
        """Be given what comes after the follower's position; False where that is behind what has come."""
        if not self._is_tailed:
            self._is_tailed = True
            self.position = follower.position
            self._hub.follow(self)
        elif self.position > follower.position:
            return False
        self._joined.add(follower)
        return True

    def go_back_to(self, position: Position) -> None:
        """Go on from there, where that is behind what has come: the log does not hold that any more."""
        self.position = position
        self._hub.follow(self)

    def part(self, follower: Follower) -> None:
        """Be given nothing any more."""
        self._joined.discard(follower)

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Give on what has come."""
        before, self.position = self.position, entries[-1].position
        shared = list(parts_of(entries, before))
        for follower in tuple(self._joined):
            try:
                takes_more = follower.deliver(self._parts_for(follower, entries, before, shared))
            except Exception as exc:
                follower.fail(as_log_error(exc))
                takes_more = False
            if not takes_more:
                self._joined.discard(follower)

    @staticmethod
    def _parts_for(
        follower: Follower, entries: Sequence[Entry], before: Position, shared: Sequence[Part]
    ) -> Iterable[Part]:
        """Return what has come for a follower: the parts of all, unless it is further on than the topic was."""
        at = follower.position
        return shared if at == before else parts_of([entry for entry in entries if entry.position > at], at)

    def seen(self, watch: Watch) -> None:
        """Tell the followers where nobody is going to write any more."""
        if watch.is_held or (watch.last is not None and watch.last > self.position):
            return
        disturbed_at = self._hub.disturbed_at
        if disturbed_at is None or self._hub.loop.time() - disturbed_at > self._hub.terms.lease:
            for follower in tuple(self._joined):
                follower.lost()

    def fail(self, error: SSEError) -> None:
        """End all followers."""
        for follower in tuple(self._followers):
            follower.fail(error)
