"""Bounded channel of entries from the loop to one consumer, which may be another thread.

The producer is the loop's thread alone (or one thread, of a `ThreadChannel`), the consumer one
thread (or one coroutine of any loop) at a time; `close` comes from anywhere, also from a finalizer
or a signal handler that interrupted either of them. So there is no lock at all: each field has one
writing side.

    field        written by     order that matters
    _queue       both           deque: append and popleft are atomic
    _produced    the producer   before it looks at the size again
    _consumed    the consumer   before it looks for a paused producer
    _in_hand     the consumer
    _wanted      the producer   before _resume
    _resume      the producer   published before the size is looked at again
    _ended       the producer
    _waiters     both           published before the queue is looked at again; whoever pops
                                a wake-up is the only one to call it
    closed       anyone         set once, to True, before the waiters are woken
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from sseqbridge._runtime import threads
from sseqbridge._runtime.clock import clock

__all__ = ["ELAPSED", "Channel", "End", "ThreadChannel", "post", "settle"]

T = TypeVar("T")


class End(NamedTuple):
    """The last entry of every channel: how the stream ended, and the error if it was one."""

    outcome: str
    error: BaseException | None = None


CLOSED = End("closed")

# The message of a TimeoutError.
ELAPSED = "no event came in time; the stream is still open"


def settle(future: asyncio.Future[None]) -> None:
    """End the wait for a future, unless it has ended."""
    if not future.done():
        future.set_result(None)


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Have the loop call `callback` soon; a loop that is closed calls nothing. From anywhere."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        pass  # Nobody waits there any more.


class Channel(Generic[T]):
    """Carries entries to one consumer, holding at most `max_bytes` of charge.

    An entry whose charge is larger than that enters when nothing else is held. An entry counts
    as held until the consumer comes back for the next one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self._loop = loop
        self._max = max_bytes
        self._queue: deque[tuple[int, T | End]] = deque()
        self._waiters: deque[Callable[[], None]] = deque()
        self._produced = 0
        self._consumed = 0
        self._in_hand = 0
        self._resume: asyncio.Future[None] | None = None
        self._wanted = 0
        self._ended = False
        self.closed = False

    @property
    def buffered(self) -> int:
        """The charge that is held now."""
        return self._produced - self._consumed

    # In the loop's thread.

    async def send(self, entry: T, charge: int = 0) -> None:
        """Add an entry, waiting while there is no room. Once closed, entries are dropped."""
        if not self.fits(charge):
            self._wanted = charge
            while not self._is_drained():
                self._resume = self._loop.create_future()
                try:
                    # Once more, now that the consumer can see the future: it may have taken the
                    # last entry, and found nobody waiting, since the loop looked.
                    if not self._is_drained():
                        await self._resume
                finally:
                    self._resume = None
        self.send_nowait(entry, charge)

    def fits(self, charge: int) -> bool:
        """Whether an entry of this charge can be added without waiting."""
        held = self._produced - self._consumed
        return not held or held + charge <= self._max or self.closed

    def has_room(self, charge: int) -> bool:
        """Whether this much more stays within the bound."""
        return self._produced - self._consumed + charge <= self._max or self.closed

    def _is_drained(self) -> bool:
        # Down to half, so that a slow consumer does not wake the loop for every entry.
        return self.fits(self._wanted) and (self.closed or self.buffered <= self._max // 2)

    def send_nowait(self, entry: T | End, charge: int = 0) -> None:
        """Add an entry without waiting."""
        if self._add(entry, charge):
            self._wake()

    def try_send(self, entry: T, charge: int) -> bool:
        """Add an entry if that needs no wait; False where it does, and once nothing is wanted."""
        held = self._produced - self._consumed
        if (held and held + charge > self._max) or self.closed or self._ended:
            return False
        self._produced += charge
        self._queue.append((charge, entry))
        if self._waiters:
            self._wake()
        return True

    def send_deferred(self, entry: T, charge: int = 0) -> None:
        """Add an entry without waiting; a consumer that waits is woken once the loop gets round to it.

        What follows in the same step of the loop is then there as well when it looks.
        """
        if self._add(entry, charge):
            self._loop.call_soon(self._wake)

    def _add(self, entry: T | End, charge: int) -> bool:
        if self._ended or self.closed:
            return False
        self._ended = type(entry) is End
        self._produced += charge
        self._queue.append((charge, entry))
        return True

    def end(self, end: End) -> None:
        """Add the last entry. Later ones, and later ends, are dropped."""
        self.send_nowait(end)

    def _try_resume(self) -> None:
        if self._resume is not None and self._is_drained():
            settle(self._resume)

    # In the consumer's thread, or in a coroutine of its loop.

    @property
    def pending(self) -> int:
        """How many entries could be taken now."""
        return len(self._queue)

    def poll(self) -> T | End | None:
        """Return the next entry without waiting, None where there is none; after close() CLOSED."""
        self._release()
        return self._poll()

    def notify(self, wake: Callable[[], None]) -> None:
        """Have `wake` called once, from whichever thread, as soon as there is something to take, or now.

        What the consumer has in hand it is done with, as where it waits.
        """
        self._release()
        self._waiters.append(wake)
        if (self._queue or self.closed) and _withdraw(self._waiters, wake):
            wake()

    def receive(self, timeout: float | None = None) -> T | End:
        """Return the next entry, waiting while there is none; after close() CLOSED.

        `timeout` is in seconds, None waits for ever. Raises TimeoutError when it elapsed.
        """
        entry = self.take_within(timeout)
        if entry is None:
            raise TimeoutError(ELAPSED)
        return entry

    def take_within(self, timeout: float | None) -> T | End | None:
        """Return what receive() does, or None once `timeout` seconds have elapsed."""
        self._release()
        left = timeout
        deadline = 0.0 if timeout is None else clock.monotonic() + timeout
        while (entry := self._poll()) is None:
            if left is not None and left <= 0:
                return None
            self._wait(left)
            if timeout is not None:
                left = deadline - clock.monotonic()
        return entry

    def _wait(self, timeout: float | None) -> None:
        waiter = threads.new_waiter()
        wake = waiter.wake
        self._waiters.append(wake)
        woken = False
        try:
            if not self._queue and not self.closed:
                woken = waiter.wait(timeout)
        finally:
            # Whoever woke it has taken it.
            if not woken:
                _withdraw(self._waiters, wake)

    async def areceive(self, timeout: float | None = None) -> T | End:
        """Return the next entry as receive() does, in a coroutine of any loop.

        A wait that is cancelled, or whose timeout elapses, takes nothing.
        """
        entry = await self.atake_within(timeout)
        if entry is None:
            raise TimeoutError(ELAPSED)
        return entry

    async def atake_within(self, timeout: float | None) -> T | End | None:
        """Return what areceive() does, or None once `timeout` seconds have elapsed."""
        self._release()
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while (entry := self._poll()) is None:
            if deadline is not None and loop.time() >= deadline:
                return None
            await self._await(loop, deadline)
        return entry

    async def _await(self, loop: asyncio.AbstractEventLoop, deadline: float | None) -> None:
        woken = loop.create_future()
        wake = partial(post, loop, settle, woken)
        timer = None if deadline is None else loop.call_at(deadline, settle, woken)
        self._waiters.append(wake)
        try:
            if not self._queue and not self.closed:
                await woken
        finally:
            _withdraw(self._waiters, wake)
            if timer is not None:
                timer.cancel()

    def _poll(self) -> T | End | None:
        if self.closed:
            return CLOSED
        if not self._queue:
            return None
        self._in_hand, entry = self._queue.popleft()
        return entry

    def _release(self) -> None:
        if self._in_hand:
            self._consumed += self._in_hand
            self._in_hand = 0
            if self._is_held_back() and self._is_drained():
                self._let_go_on()

    def _is_held_back(self) -> bool:
        return self._resume is not None

    def _let_go_on(self) -> None:
        post(self._loop, self._try_resume)

    # From anywhere, between any two bytecodes: no lock, no wait.

    def close(self) -> None:
        """End the consumer's wait and let the producer go on: what is held is given up."""
        self.closed = True
        self._wake()
        self._let_go_on()

    def _wake(self) -> None:
        # The newest: a signal handler that reads may have interrupted a wait of the same thread.
        _call_one(self._waiters)


class ThreadChannel(Channel[T]):
    """The same from a thread, or a greenlet, that does nothing but produce."""

    def __init__(self, max_bytes: int) -> None:
        # Without a loop: what uses one is replaced here, or for producers on a loop alone.
        super().__init__(None, max_bytes)  # type: ignore[arg-type]
        self._held_back: deque[Callable[[], None]] = deque()

    def send_blocking(self, entry: T, charge: int = 0) -> bool:
        """Add an entry, waiting while there is no room; False once nothing is wanted any more."""
        while not self.fits(charge):
            waiter = threads.new_waiter()
            if self.notify_when_drained(waiter.wake, charge):
                waiter.wait(None)
        self.send_nowait(entry, charge)
        return not self.closed

    def notify_when_drained(self, wake: Callable[[], None], charge: int) -> bool:
        """Have `wake` called once, by the consumer, as soon as there is room; False where there is now."""
        if self.fits(charge):
            return False
        self._wanted = charge
        self._held_back.append(wake)
        # Once more, now that the consumer can see it. Who has taken it out meanwhile calls it.
        return not (self._is_drained() and self.cancel_notify(wake))

    def cancel_notify(self, wake: Callable[[], None]) -> bool:
        """Take that back; False where it was called, or is about to be."""
        return _withdraw(self._held_back, wake)

    def _is_held_back(self) -> bool:
        return bool(self._held_back)

    def _let_go_on(self) -> None:
        _call_one(self._held_back)


def _withdraw(waiting: deque[Callable[[], None]], wake: Callable[[], None]) -> bool:
    """Take a wake-up back; False where whoever had something to tell has taken it already."""
    try:
        waiting.remove(wake)
    except ValueError:
        return False
    return True


def _call_one(waiting: deque[Callable[[], None]]) -> None:
    try:
        wake = waiting.pop()
    except IndexError:
        return
    wake()
