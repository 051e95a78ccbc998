"""Bounded channel from a producer to one consumer, in another thread or in a coroutine of any event loop.

The producer is the loop thread (or one other thread, of a ThreadChannel). The consumer is one thread or coroutine at
a time. `close` may be called anywhere, also in a finalizer or signal handler that has interrupted one of the two.
So there is no lock: each field has one writing side, and the order of writes and reads prevents lost wakeups.

    field        written by     guarded by
    _queue       both           deque.append and deque.popleft, which are atomic
    _produced    the producer   written before the producer reads the size again
    _consumed    the consumer   written before the consumer looks for a paused producer
    _in_hand     the consumer
    _wanted      the producer   written before _resume
    _resume      the producer   published before the producer reads the size again
    _ended       the producer
    _waiters     both           published before the waiting side reads the queue again; deque.pop hands each
                                wake-up to exactly one caller, except that close() calls all of them
    closed       anyone         set once, to True, before the waiters are woken

An interrupt (Ctrl-C) can come between any two bytecodes of the consumer. The consumer's side therefore takes no wake-up
of another thread away before it calls it: wake-ups are idempotent, and the waiting side withdraws its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from sseqbridge._runtime import loops, threads
from sseqbridge._runtime.clock import clock

from .memory import limit_of, memory

__all__ = ["CLOSED", "ELAPSED", "Channel", "End", "Outcome", "ThreadChannel", "post", "settle"]

T = TypeVar("T")


# How a stream ended.
Outcome = Literal["done", "eof", "closed", "error"]


class End(NamedTuple):
    """The last entry of every channel: the stream's outcome, and the error if it is "error"."""

    outcome: Outcome
    error: BaseException | None = None


CLOSED = End("closed")

# The message of a TimeoutError.
ELAPSED = "no event came in time; the stream is still open"


def settle(future: asyncio.Future[None]) -> None:
    """End the wait for a future, unless it has ended."""
    if not future.done():
        future.set_result(None)


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Schedule `callback` on a loop; does nothing if the loop is closed. Thread-safe; safe in finalizers."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        pass  # A closed loop has no task that could wait for this.


class Channel(Generic[T]):
    """Carries entries from the loop thread to one consumer, holding at most `max_bytes` of charge; see memory.py.

    An entry with a larger charge enters if no other entry is held. An entry is held until the consumer asks for the
    next one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self._loop = loop
        self._limit = limit_of(max_bytes)
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
        """The charge of the entries that are held."""
        return self._produced - self._consumed

    # The producer, on the loop thread.

    async def send(self, entry: T, charge: int = 0) -> None:
        """Add an entry, waiting until it fits. A closed channel drops entries."""
        if not self.fits(charge):
            self._wanted = charge
            while not self.fits(charge):
                self._resume = self._loop.create_future()
                try:
                    # The second check, after the future was published: after the first one the consumer may have taken
                    # the last entry, or the limit may have grown, and found no future to settle.
                    if not self.fits(charge):
                        await self._resume
                finally:
                    self._resume = None
        self.send_nowait(entry, charge)

    def fits(self, charge: int) -> bool:
        """Whether an entry of this charge can be added without waiting."""
        held = self._produced - self._consumed
        return not held or self.closed or self._limit.allows(held, charge)

    def has_room(self, charge: int) -> bool:
        """Whether this much more charge stays within the limit."""
        return self.closed or self._limit.allows(self._produced - self._consumed, charge)

    def _is_drained(self) -> bool:
        # Down to half, so that a slow consumer does not wake the loop for every entry.
        return self.fits(self._wanted) and (self.closed or self.buffered <= self._limit.bytes // 2)

    def send_nowait(self, entry: T | End, charge: int = 0) -> None:
        """Add an entry without waiting, whether or not it fits."""
        if self._add(entry, charge):
            self._wake()

    def try_send(self, entry: T, charge: int, *, wakes: bool = True) -> bool:
        """Add an entry if it fits. Returns False if it does not, and if the channel is closed or has ended.

        Without `wakes`, a waiting consumer is woken by wake_consumer(), or by the next entry.
        """
        held = self._produced - self._consumed
        if self.closed or self._ended or (held and not self._limit.allows(held, charge)):
            return False
        self._produced += charge
        self._queue.append((charge, entry))
        if wakes and self._waiters:
            self._wake()
        return True

    def send_deferred(self, entry: T, charge: int = 0) -> None:
        """Add an entry without waiting, and wake a waiting consumer in the next iteration of the event loop.

        The consumer then finds the entries that follow in the same iteration, too.
        """
        if self._add(entry, charge):
            self._loop.call_soon(self._wake)

    def send_silently(self, entry: T, charge: int = 0) -> None:
        """Add an entry without waiting; a waiting consumer is woken by wake_consumer(), or by the next entry."""
        self._add(entry, charge)

    def wake_consumer(self) -> None:
        """Wake a waiting consumer, if there is an entry."""
        if self._waiters and self._queue:
            self._wake()

    def wake_consumer_soon(self) -> None:
        """Call wake_consumer() in the next iteration of the event loop."""
        self._loop.call_soon(self.wake_consumer)

    def _add(self, entry: T | End, charge: int) -> bool:
        if self._ended or self.closed:
            return False
        self._ended = type(entry) is End
        self._produced += charge
        self._queue.append((charge, entry))
        return True

    def end(self, end: End) -> None:
        """Add the last entry. Later entries, and later ends, are dropped."""
        self.send_nowait(end)

    def _try_resume(self) -> None:
        if self._resume is not None and self._is_drained():
            settle(self._resume)

    # The consumer, in its thread or in a coroutine.

    @property
    def pending(self) -> int:
        """The number of entries that could be received without waiting."""
        return len(self._queue)

    def poll(self) -> T | End | None:
        """Return the next entry, None if there is none yet, CLOSED after close()."""
        self._release()
        return self._pop()

    def notify(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, in any thread, as soon as poll() has an entry; at once if it has one now.

        Releases the entry that was received last.
        """
        self._release()
        self._waiters.append(wake)
        if (self._queue or self.closed) and _withdraw(self._waiters, wake):
            wake()

    def receive(self, timeout: float | None = None) -> T | End:
        """Return the next entry, blocking until there is one; CLOSED after close().

        `timeout` is in seconds, None waits indefinitely. Raises TimeoutError when it elapses.
        """
        entry = self.take_within(timeout)
        if entry is None:
            raise TimeoutError(ELAPSED)
        return entry

    def receive_after(self, start: Callable[[], object]) -> T | End:
        """Call `start`, which makes the loop send the first entry, and receive that.

        All that a wait needs is ready before. So this thread blocks, and releases the GIL, by the time at which the
        loop's thread is awake.
        """
        self._wait(None, start)
        return self.receive()

    def take_within(self, timeout: float | None) -> T | End | None:
        """Do the same as receive(), but return None when `timeout` elapses."""
        if self._in_hand:
            self._release()
        left = timeout
        deadline = 0.0 if timeout is None else clock.monotonic() + timeout
        while (entry := self._pop()) is None:
            if left is not None and left <= 0:
                return None
            self._wait(left)
            if timeout is not None:
                left = deadline - clock.monotonic()
        return entry

    def _wait(self, timeout: float | None, start: Callable[[], object] | None = None) -> None:
        loops.check_may_wait()
        waiter = threads.new_waiter()
        wake = waiter.wake
        self._waiters.append(wake)
        woken = False
        try:
            if start is not None:
                start()
            if not self._queue and not self.closed:
                woken = waiter.wait(timeout)
        finally:
            # The side that woke it has popped it, except close().
            if not woken or self.closed:
                _withdraw(self._waiters, wake)

    async def areceive(self, timeout: float | None = None) -> T | End:
        """Do the same as receive(), in a coroutine of any loop.

        A wait that is cancelled, or whose timeout elapses, takes no entry.
        """
        entry = await self.atake_within(timeout)
        if entry is None:
            raise TimeoutError(ELAPSED)
        return entry

    async def atake_within(self, timeout: float | None) -> T | End | None:
        """Do the same as areceive(), but return None when `timeout` elapses."""
        self._release()
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while (entry := self._pop()) is None:
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

    def _pop(self) -> T | End | None:
        if self.closed:
            return CLOSED
        if not self._queue:
            return None
        self._in_hand, entry = self._queue.popleft()
        if type(entry) is End:
            memory.leave(self)
        return entry

    def _release(self) -> None:
        if self._in_hand:
            self._consumed += self._in_hand
            self._in_hand = 0
            if self.is_producer_waiting and self._is_drained():
                self._resume_producer()

    @property
    def is_producer_waiting(self) -> bool:
        """Whether the producer waits for room: backpressure."""
        return self._resume is not None

    def _resume_producer(self) -> None:
        post(self._loop, self._try_resume)

    # Thread-safe, and safe in finalizers and signal handlers: no lock, no wait.

    def close(self) -> None:
        """End the consumer's wait, drop the entries that are held, and let the producer continue."""
        self.closed = True
        for wake in tuple(self._waiters):
            wake()
        self._resume_producer()
        memory.leave(self)

    def limit_has_grown(self) -> None:
        """Let a waiting producer continue if its entry fits now, although the consumer has taken none."""
        if self._resume is not None:
            post(self._loop, self._resume_if_it_fits)

    def _resume_if_it_fits(self) -> None:
        if self._resume is not None and self.fits(self._wanted):
            settle(self._resume)

    def _wake(self) -> None:
        # The newest waiter: a signal handler that reads may have interrupted a wait of the same thread.
        try:
            wake = self._waiters.pop()
        except IndexError:
            return
        wake()


class ThreadChannel(Channel[T]):
    """A Channel whose producer is a thread, or a greenlet, that does nothing but produce."""

    def __init__(self, max_bytes: int) -> None:
        # Without a loop: each method that uses one is overridden here, or is for producers on a loop.
        super().__init__(None, max_bytes)  # type: ignore[arg-type]
        # Wake-ups of the producer, which it publishes and withdraws itself.
        self._paused: deque[Callable[[], None]] = deque()

    def send_blocking(self, entry: T, charge: int = 0) -> bool:
        """Add an entry, blocking until it fits. Returns False if the channel is closed."""
        while not self.fits(charge):
            waiter = threads.new_waiter()
            wake = waiter.wake
            if self.notify_when_drained(wake, charge):
                waiter.wait(None)
                self.cancel_notify(wake)
        self.send_nowait(entry, charge)
        return not self.closed

    def notify_when_drained(self, wake: Callable[[], None], charge: int) -> bool:
        """Call `wake` in the consumer's thread as soon as `charge` fits, perhaps several times until cancel_notify().

        Returns False if `charge` fits now.
        """
        if self.fits(charge):
            return False
        self._wanted = charge
        self._paused.append(wake)
        # The second check, after the wake-up was published: the consumer, or a limit that grew, may have found none to
        # call.
        if not self.fits(charge):
            return True
        self.cancel_notify(wake)
        return False

    def cancel_notify(self, wake: Callable[[], None]) -> None:
        """Withdraw a wake-up of notify_when_drained()."""
        _withdraw(self._paused, wake)

    @property
    def is_producer_waiting(self) -> bool:
        return bool(self._paused)

    def _resume_producer(self) -> None:
        for wake in tuple(self._paused):
            wake()

    limit_has_grown = _resume_producer


def _withdraw(waiting: deque[Callable[[], None]], wake: Callable[[], None]) -> bool:
    """Remove a wake-up. Returns False if the other side has popped it already."""
    try:
        waiting.remove(wake)
    except ValueError:
        return False
    return True
