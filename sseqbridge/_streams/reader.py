"""ItemReader: all ways of reading a stream's items, one consumer at a time.

Its base class StreamOwner has what concerns the whole stream: abort, close, detach, and the claims.

The public streams wrap an ItemReader; merge, gather and relay read one; tee and a log's producer detach
its subscription and read the entries themselves.

The reader owns the request: when the last reference to an open reader is dropped, the request is aborted.
A loop's generator refers to the reader, so that `for item in request_sse(...).events` keeps it.

A claim says who the consumer is (see claims.py): the frame of a call, or a suspended loop or coroutine.
A claim whose call has ended is taken over by the next call. Fields written by the consumer are written under the
claim alone; `abort` needs none.

Interrupts (Ctrl-C, a signal handler that raises, gevent.Timeout) can come between any two bytecodes. After one, the
stream has ended, or continues with the very next event. A call that reads therefore has this form, in the function
that the application calls:

    release = reader.enter(sys._getframe())
    try:
        item = reader.take(timeout)
        release()
        return item
    except BaseException:
        reader.fail(sys._getframe())
        raise

Once `release` has returned, only the return itself is left, and the item is the caller's. Before that, `fail` ends the
stream as "closed", unless nothing can have been taken, and takes the position back to the last item that was returned.
"""

from __future__ import annotations

import asyncio
import operator
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

from sseqbridge._engine.channel import CLOSED, ELAPSED, End
from sseqbridge._exceptions import SSEError, StatusError, UsageError
from sseqbridge._runtime import loops
from sseqbridge._runtime.clock import clock

from .claims import Claim, Claims
from .cursor import Cursor
from .decoding import UNDECODED

if TYPE_CHECKING:
    from types import FrameType

    from sseqbridge._engine.batches import Batch
    from sseqbridge._engine.reconnection_notice import OnReconnect
    from sseqbridge._engine.responses import Body, Head

    from .cursor import Position
    from .decoding import Decoder
    from .subscription import Subscription

__all__ = ["Detached", "ItemReader", "StreamOwner"]

T = TypeVar("T")
R = TypeVar("R")


def _nothing() -> None:
    pass


# How long close() waits until the upstream's socket is shut down.
_CLOSE_SECONDS = 1.0
# How long the end of a stream waits for the rest of the body, after the caller's `done` function accepted
# an event: long enough for the connection to be reused, short enough not to be noticed.
_END_SECONDS = 0.02


class Detached(NamedTuple):
    """The source of a reader, for its new owner: `unread` comes first, then the entries of `subscription`.

    `end` is set if the stream has ended already; `body` is that of an error response, if it was received.
    """

    subscription: Subscription
    head: Head
    decoder: Decoder
    on_reconnect: OnReconnect | None
    unread: list[Batch | Body]
    body: Body | None
    end: End | None


class StreamOwner(Generic[T]):
    """Owns a request, and admits one consumer at a time to its cursor."""

    def __init__(self, cursor: Cursor[T]) -> None:
        self.cursor = cursor
        self._claims = Claims()
        # Whether a call that is interrupted may have taken an item, and the position before it.
        self._may_lose = False
        self._position = cursor.last_event, cursor.committed_id
        # The thread of a for loop that is under way: the loop's body may call next() and poll().
        self._loop_thread: int | None = None
        # Whether a for loop was left, which aborted the request.
        self.is_abandoned = False
        self.is_detached = False

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # The attribute is missing if __init__ raised.
        if not hasattr(self, "is_detached") or self.is_detached:
            return
        cursor = self.cursor
        if cursor.end is not None or cursor.subscription.is_inherited:
            return
        was_open = cursor.is_open
        # Also if it was closed: an interrupt may have come between the two steps of an abort.
        cursor.abort()
        if was_open and cursor.head.is_stream:
            message = f"a stream of {cursor.subscription.target} was dropped while it was open: close it, or use `with`"
            _warn(message, ResourceWarning, source=self)

    # Ownership.

    @property
    def is_claimed(self) -> bool:
        """Whether there is a consumer now."""
        return self._claims.is_held()

    def check_usable(self) -> None:
        """Raise UsageError in a forked child, and after a for loop was left."""
        self.cursor.subscription.check_process()
        if self.is_abandoned:
            raise UsageError(
                "the request was aborted when its for loop was left; to take a few items and go on later use "
                "next(it), or loop over it.keep_open(), which aborts nothing when it is left"
            )

    def detach(self) -> Detached:
        """Give the subscription to the caller. Raises UsageError if there is a consumer."""
        self.cursor.subscription.check_process()
        claim = Claim()
        self._claims.append(claim)
        self._check_claim(claim)
        self.is_detached = True
        cursor = self.cursor
        cursor.subscription.ownership.move(cursor.subscription, None)
        return Detached(
            cursor.subscription,
            cursor.head,
            cursor.decoder,
            cursor.on_reconnect,
            cursor.unread(),
            cursor.body,
            cursor.end,
        )

    def abort(self) -> None:
        """Abort the request and end the stream. Safe between any two bytecodes: no lock, no wait."""
        self.cursor.abort()

    def close(self) -> None:
        """Abort the request, and wait until the upstream's socket is shut down, at most a second."""
        subscription = self.cursor.subscription
        subscription.check_process()
        try:
            if self._abort_unless_ended() and not subscription.in_loop_thread() and loops.may_wait():
                subscription.wait_finished(_CLOSE_SECONDS)
        except BaseException:
            # An interrupt between the two steps of an abort.
            self._abort_unless_ended()
            raise

    async def aclose(self) -> None:
        """Do the same as close(), in a coroutine."""
        subscription = self.cursor.subscription
        subscription.check_process()
        if self._abort_unless_ended():
            await subscription.await_finished(_CLOSE_SECONDS)

    def _abort_unless_ended(self) -> bool:
        end = self.cursor.end
        if end is not None and end.outcome != "error":
            return False
        self.abort()
        return True

    # Claims.

    def _check_claim(self, claim: object) -> None:
        if not self._claims.admit(claim, self._end_if_lossy):
            raise UsageError(
                "this stream has one consumer at a time, and is being read already: by another thread, or by a "
                "loop that is not over (a variable may hold its iterator); inside a loop, next() takes further items"
            )

    def _end_if_lossy(self) -> None:
        """End the stream if a call that was interrupted, or failed, may have taken an item."""
        if self._may_lose:
            self.cursor.lose()

    def enter(self, call: FrameType) -> Callable[[], object]:
        """Make a call, given by its frame, the only consumer. Returns a function that releases the claim.

        A call in the body of a for loop reads under the loop's claim. Raises UsageError if another call reads.
        """
        # No caller keeps its frame in a local variable: a frame that refers to itself is left to the garbage collector.
        if self._loop_thread is not None and self._is_in_loop_body():
            release: Callable[[], object] = _nothing
        else:
            claims = self._claims
            claims.append(call)
            if len(claims) > 1:
                self._check_claim(call)
            release = claims.popleft
        cursor = self.cursor
        # As cursor.position, inlined: this runs for every item.
        self._position = cursor.last_event, cursor.committed_id
        self._may_lose = True
        return release

    def fail(self, call: FrameType) -> None:
        """After an exception in a call that has entered: release its claim, and end the stream if it may have lost."""
        if self._may_lose:
            self.cursor.lose(self._position)
        self._claims.discard(call)

    @property
    def took_nothing(self) -> bool:
        """Whether the last call returned, or failed, because its timeout had elapsed."""
        return not self._may_lose

    def _is_in_loop_body(self) -> bool:
        return self._loop_thread == threading.get_ident() and self._claims.is_held()

    def _claimed(self, read: Callable[..., R], *arguments: Any) -> R:
        """Call a method that reads, as the only consumer."""
        self.cursor.subscription.check_process()
        release = self.enter(sys._getframe())
        try:
            result = read(*arguments)
            release()
            return result
        except BaseException:
            self.fail(sys._getframe())
            raise

    def _aclaimed(self, read: Callable[..., Awaitable[R]], *arguments: Any) -> Coroutine[Any, Any, R]:
        """Return a coroutine that awaits a method which reads, as the only consumer."""
        claim = Claim()
        coroutine = self._aread(claim, read, *arguments)
        claim.held_by(coroutine)
        return coroutine

    async def _aread(self, claim: Claim, read: Callable[..., Awaitable[R]], *arguments: Any) -> R:
        self.cursor.subscription.check_process()
        claims = self._claims
        claims.append(claim)
        if claims[0] is not claim:
            self._check_claim(claim)
        position = self.cursor.position
        try:
            self._may_lose = True
            result = await read(*arguments)
            claims.popleft()
            return result
        except BaseException as exc:
            # A wait that is cancelled, or whose coroutine is closed, has taken nothing.
            if self._may_lose and not isinstance(exc, (asyncio.CancelledError, GeneratorExit)):
                self.cursor.lose(position)
            claims.discard(claim)
            raise

    def _raise_timeout(self) -> NoReturn:
        # Nothing was taken.
        self._may_lose = False
        raise TimeoutError(ELAPSED)


class ItemReader(StreamOwner[T]):
    """Reads the items of one subscription."""

    def fork(self, subscription: Subscription) -> ItemReader[T]:
        """Return a reader of another subscription that decodes in the same way."""
        return ItemReader(self.cursor.fork(subscription))

    # In a thread.

    def next(self, timeout: float | None = None) -> T:
        """Return the next item, waiting at most `timeout` seconds; see EventStream.next."""
        return self._claimed(self.take, timeout)

    def take(self, timeout: float | None) -> T:
        """Return the next item. For a call that has entered."""
        cursor = self.cursor
        channel = cursor.channel
        deadline = None if timeout is None else clock.monotonic() + timeout
        while True:
            # As cursor.is_stopped, inlined: this runs for every item.
            if not (channel.closed or (cursor.has_cancel and cursor.is_stopped())):
                for event in cursor.items:
                    return cursor.item(event)
            if not self._receive(None if deadline is None else max(0.0, deadline - clock.monotonic())):
                cursor.note_end()
                raise StopIteration

    def _receive(self, timeout: float | None) -> bool:
        """Make the next entry the current one, waiting for it. Returns False at the end of the stream."""
        cursor = self.cursor
        if cursor.is_draining:
            cursor.is_draining = False
            if not cursor.subscription.in_loop_thread():
                cursor.subscription.wait_finished(_END_SECONDS)
        if not cursor.leave_batch():
            return False
        try:
            entry = cursor.channel.take_within(timeout)
        except UsageError:
            # A wait on the loop's thread was refused.
            self._may_lose = False
            raise
        if entry is None:
            self._raise_timeout()
        if entry is CLOSED:
            # By its scope, which raises, or by close().
            cursor.enter_scope()
            return False
        cursor.accept(entry)
        return cursor.end is None

    def iterate(self, *, abort_when_left: bool) -> Generator[T, None, None]:
        """Return a generator of the items; see EventStream.__iter__ and keep_open."""
        claim = Claim()
        loop = self._iterate(claim, abort_when_left)
        claim.held_by(loop)
        return loop

    def _iterate(self, claim: Claim, abort_when_left: bool) -> Generator[T, None, None]:
        cursor = self.cursor
        cursor.subscription.check_process()
        claims = self._claims
        claims.append(claim)
        if claims[0] is not claim:
            self._check_claim(claim)
        channel, has_cancel = cursor.channel, cursor.has_cancel
        this_thread = threading.get_ident
        last_event, committed_id = cursor.last_event, cursor.committed_id
        is_undelivered = False
        try:
            while True:
                items, decode = cursor.items, cursor.inline_decode
                loads, error_types = cursor.decoder.loads, cursor.decoder.rules.error_types
                for event in items:
                    if channel.closed or (has_cancel and cursor.is_stopped()):
                        break
                    last_event, committed_id = cursor.last_event, cursor.committed_id
                    is_undelivered = True
                    if decode is None:
                        item = cursor.item(event)
                    else:
                        # As cursor.item, and decoder.item of JSON mode, inlined: this runs for every event.
                        item = UNDECODED
                        if loads is not None:
                            try:
                                item = loads(event.data)
                            except Exception:
                                pass
                        if item is UNDECODED or (type(item) is dict and "error" in item) or event.event in error_types:
                            item = decode(event)
                        cursor.last_event = event
                        cursor.committed_id = None
                    # Set in the loop's body alone: a signal handler that interrupts a wait must not read.
                    self._loop_thread = this_thread()
                    yield item
                    is_undelivered = False
                    self._loop_thread = None
                # The loop's body may have called next(), which took the next batch.
                if cursor.items is items and not self._receive(None):
                    cursor.note_end()
                    return
        except BaseException as exc:
            self._leave_loop(exc, (last_event, committed_id) if is_undelivered else None, abort_when_left)
            raise
        finally:
            self._loop_thread = None
            claims.discard(claim)

    def _leave_loop(self, error: BaseException, position: Position | None, abort_when_left: bool) -> None:
        """End the stream after an exception in a loop. `position` is that before an item that was not delivered."""
        # Not a GeneratorExit that `decode` raised.
        was_left = isinstance(error, GeneratorExit) and self._loop_thread is not None
        if not was_left:
            if isinstance(error, SSEError) and self.cursor.is_open:
                # Raised by `decode`.
                self.cursor.fail(error)
            self.cursor.lose(position)
        elif abort_when_left and self.cursor.is_open:
            self.is_abandoned = True
            self.abort()

    def refusal(self, timeout: float | None = None) -> StatusError | None:
        """Return the StatusError of an error response with its body; None if `timeout` elapsed first."""
        if self.cursor.lacks_body:
            try:
                self._claimed(self._receive, timeout)
            except SSEError:
                pass  # The status is more useful. A StatusError of the cursor's own is one of these.
            except TimeoutError:
                return None
        return self.cursor.status_error()

    # Without waiting.

    def take_available(self) -> list[T]:
        """Return the items that have arrived; see EventStream.poll. For a call that has entered."""
        # Items that arrive during this call are left to the next one: there could be no end of them.
        return self._poll(self.cursor.channel.pending + 1)

    def poll_batch(self) -> tuple[list[T], bool]:
        """Return the items of at most one batch, and whether the stream has ended."""
        items = self._claimed(self._poll, 1)
        return items, not items and self.cursor.outcome is not None

    def poll_refusal(self) -> StatusError:
        """Return the StatusError of an error response, whose body, or the reason for its absence, has arrived."""
        entry = self.cursor.channel.poll()
        assert entry is not None
        try:
            self.cursor.accept(entry)
        except SSEError:
            pass  # As in refusal().
        return self.cursor.status_error()

    def _poll(self, batches: int) -> list[T]:
        cursor = self.cursor
        polled: list[T] = []
        try:
            while True:
                for event in cursor.items:
                    if cursor.is_stopped():
                        break
                    polled.append(cursor.item(event))
                batches -= 1
                if batches < 0 or not cursor.leave_batch():
                    break
                entry = cursor.channel.poll()
                if entry is None or entry is CLOSED:
                    break
                cursor.accept(entry)
        except Exception as exc:
            # The stream's own error is raised again by the next call. Any other one is a signal handler's.
            if not polled or cursor.end is None or cursor.end.error is not exc:
                raise
        if not polled:
            cursor.note_end()
        return polled

    def notify(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, as soon as poll_batch() has something to return, or now."""
        if self.cursor.end is not None or operator.length_hint(self.cursor.items):
            wake()
        else:
            self.cursor.channel.notify(wake)

    # In a coroutine of any event loop.

    def anext(self, timeout: float | None = None) -> Coroutine[Any, Any, T]:
        """Return a coroutine that returns the next item; see AsyncEventStream.next."""
        # The coroutine must not wrap a task: that task could take an item after the wait was cancelled.
        return self._aclaimed(self._anext, timeout)

    async def _anext(self, timeout: float | None) -> T:
        cursor = self.cursor
        channel = cursor.channel
        deadline = None if timeout is None else clock.monotonic() + timeout
        while True:
            # As cursor.is_stopped, inlined: this runs for every item.
            if not (channel.closed or (cursor.has_cancel and cursor.is_stopped())):
                for event in cursor.items:
                    return cursor.item(event)
            if not await self._areceive(None if deadline is None else max(0.0, deadline - clock.monotonic())):
                cursor.note_end()
                raise StopAsyncIteration

    async def _areceive(self, timeout: float | None) -> bool:
        cursor = self.cursor
        if cursor.is_draining:
            cursor.is_draining = False
            await cursor.subscription.await_finished(_END_SECONDS)
        if not cursor.leave_batch():
            return False
        entry = await cursor.channel.atake_within(timeout)
        if entry is None:
            self._raise_timeout()
        if entry is CLOSED:
            # By its scope, which raises, or by close().
            cursor.enter_scope()
            return False
        cursor.accept(entry)
        return cursor.end is None

    async def arefusal(self) -> StatusError:
        """Return the StatusError of an error response, with its body."""
        if self.cursor.lacks_body:
            try:
                await self._aclaimed(self._areceive, None)
            except SSEError:
                pass  # As in refusal().
        return self.cursor.status_error()
