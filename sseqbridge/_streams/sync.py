"""What users hold: `EventStream`, `AsyncEventStream` and the response tuples.

Which thread writes what: the consumer, one thread (or coroutine) at a time, writes every field of
a stream; `_claims` says who that is (see _streams/claims.py), and is never waited for.
`close` may come from anywhere and writes nothing but the channel's `closed`.

No class here has both `__iter__` and `__aiter__`: a server that tries `iter()` first would drain
an asynchronous stream synchronously.
"""

from __future__ import annotations

import asyncio
import operator
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, SupportsIndex, TypeVar

from sseqbridge._engine.channel import CLOSED, ELAPSED, End
from sseqbridge._engine.exchange import Batch, Body, status_error
from sseqbridge._engine.reconnecting import Reconnecting, tell
from sseqbridge._engine.scope import is_cancelled
from sseqbridge._engine.stats import StreamStats
from sseqbridge._exceptions import CallbackError, SSEError, StatusError, UsageError
from sseqbridge._runtime import threads
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.events import Comment, ServerSentEvent

from .claims import Claim, Claims

if TYPE_CHECKING:
    from types import TracebackType

    import httpx
    from typing_extensions import Self

    from sseqbridge._checks import CancelFlag
    from sseqbridge._engine.channel import Channel
    from sseqbridge._engine.exchange import Head
    from sseqbridge._engine.reconnecting import OnReconnect
    from sseqbridge._engine.stream_task import Entry

    from .decoding import Decoder

__all__ = ["AsyncEventStream", "AsyncSSEResponse", "EventStream", "NotCopyable", "SSEResponse"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

# How long an explicit close() waits for the upstream's socket to be down.
_CLOSE_SECONDS = 1.0
# How long the end waits for the rest of the body, after the caller's `done` function said so.
_END_SECONDS = 0.02

_NO_ITEMS: Iterator[Any] = iter(())

_HOW_TO_GO_ON = (
    "leaving a for loop aborts the stream; to take a few items and go on later use next(it), "
    "or loop over it.keep_open(), which aborts nothing when it is left"
)


class Origin(Protocol):
    """What a stream's events come from, as far as a stream tells of it: a Connection, several, or a log."""

    @property
    def target(self) -> str: ...
    @property
    def received(self) -> int: ...
    @property
    def events(self) -> int: ...
    @property
    def reconnections(self) -> int: ...
    @property
    def done_event(self) -> ServerSentEvent | None: ...
    def check_asked(self) -> None: ...


class Upstream(Protocol):
    """What a stream reads from: a StreamTask, its part of one that several read, or a log's reader."""

    @property
    def channel(self) -> Channel[Entry]: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def exchange(self) -> Origin: ...
    @property
    def last_event_id(self) -> str: ...
    @property
    def time_to_first_event(self) -> float | None: ...
    @property
    def is_inherited(self) -> bool: ...
    @property
    def finished(self) -> bool: ...
    def check_process(self) -> None: ...
    def in_loop_thread(self) -> bool: ...
    def request_abort(self) -> None: ...
    def request_drain(self) -> None: ...
    def request_reconnect(self) -> None: ...
    def notify_finished(self, callback: Callable[[], object]) -> None: ...
    def call_at_loop_end(self, callback: Callable[[], object]) -> None: ...
    def cancel_call_at_loop_end(self, callback: Callable[[], object]) -> None: ...
    def wait_finished(self, timeout: float) -> None: ...
    async def await_finished(self, timeout: float) -> None: ...


class NotCopyable:
    """An open request: a copy would be a second owner, whose end would abort the first one's request."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # Called by copy.copy(), copy.deepcopy() and pickle.
        raise TypeError(
            f"{type(self).__name__} is an open request, which cannot be copied or pickled; pass its items on"
        )


class _BaseStream(NotCopyable, Generic[T]):
    """What the two kinds of stream share: everything but the waiting."""

    # The thread of a for loop that is under way: it may call next() and poll() in its body.
    _loop_thread: int | None = None

    def __init__(
        self,
        subscription: Upstream,
        head: Head,
        decoder: Decoder,
        cancel: CancelFlag | None,
        on_reconnect: OnReconnect | None,
    ) -> None:
        self._subscription = subscription
        self._channel = subscription.channel
        self._head = head
        self._decoder = decoder
        self._cancel = cancel
        self._on_reconnect = on_reconnect
        self._claims = Claims()
        # Whether a call that is interrupted may have taken what nobody gets any more.
        self._may_lose = False
        # The items of the batch in hand that are still to come. Every way of reading draws on this.
        self._items: Iterator[Any] = _NO_ITEMS
        self._batch: Batch | None = None
        self._body: Body | None = None
        self._last_event: ServerSentEvent | None = None
        # Where the last batch read to its end leaves the stream; None while there is one in hand.
        self._committed_id: str | None = subscription.last_event_id
        self._retry: float | None = None
        self._end: End | None = None
        self._draining = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.status}] {self.outcome or 'open'}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # Not there where __init__ was not reached.
        if not hasattr(self, "_draining") or self._end is not None or self._subscription.is_inherited:
            return
        if self._channel.closed:
            # An interrupt may have come between the two steps of an abort.
            self._subscription.request_abort()
        else:
            target = self._subscription.exchange.target
            told = f"{self!r} of {target} was dropped while it was open: close it, or use with"
            self._abort()
            if self.status == 200:
                _warn(told, ResourceWarning, source=self)

    @property
    def status(self) -> int:
        """The answer's status, an int."""
        return self._head.status

    @property
    def headers(self) -> httpx.Headers:
        """The answer's headers."""
        return self._head.headers

    @property
    def http_version(self) -> str:
        """What the upstream speaks: "HTTP/1.1", "HTTP/2"."""
        return self._head.http_version

    @property
    def outcome(self) -> str | None:
        """None while the stream goes on, then "done", "eof", "closed" or "error"."""
        if self._end is not None:
            return self._end.outcome
        return "closed" if self._channel.closed else None

    @property
    def last_event(self) -> ServerSentEvent | None:
        """The event behind the last item, whatever was decoded of it; None before the first."""
        return self._last_event

    @property
    def last_event_id(self) -> str:
        """The stream's last event ID as of what was consumed; "" where none was sent."""
        # Each is looked at once: another thread than the consumer's may ask.
        committed_id = self._committed_id
        if committed_id is not None:
            return committed_id
        event = self._last_event
        return "" if event is None else event.id

    @property
    def retry(self) -> float | None:
        """The reconnection time that the server asked for, in seconds; None where it did not."""
        return self._retry

    @property
    def stats(self) -> StreamStats:
        """A snapshot of the stream's counters."""
        subscription = self._subscription
        return StreamStats(
            bytes=subscription.exchange.received,
            events=subscription.exchange.events,
            buffered=self._channel.buffered,
            reconnections=subscription.exchange.reconnections,
            time_to_first_event=subscription.time_to_first_event,
        )

    def poll(self) -> list[T]:
        """Return the items that are there, without waiting; an empty list where there are none.

        At the end, which `outcome` tells, there are none any more. The stream's error, where it has
        one, is raised once all items before it were returned.
        """
        self._check_usable()
        claimed = self._nested if self._is_in_loop() else self._claimed
        # What comes in the meantime is for the next time: it could be without end.
        return claimed(self._polled, self._channel.pending + 1)

    # For what merges streams.

    def _notify(self, wake: Callable[[], None]) -> None:
        """Have `wake` called once, as soon as there is something to poll, or now."""
        if self._end is not None or operator.length_hint(self._items):
            wake()
        else:
            self._channel.notify(wake)

    def _poll_batch(self) -> tuple[list[T], bool]:
        """Return the items that one read of the network gave, and whether nothing comes any more."""
        items = self._claimed(self._polled, 1)
        return items, not items and self.outcome is not None

    def _poll_refusal(self) -> NoReturn:
        """Raise StatusError for an error answer, once its body, or why there is none, can be polled."""
        entry = self._channel.poll()
        assert entry is not None
        try:
            self._accept(entry)
        except SSEError:
            pass  # The status is the news.
        raise self._status_error()

    def _polled(self, batches: int) -> list[T]:
        polled: list[T] = []
        try:
            while True:
                for event in self._items:
                    if self._is_stopped():
                        break
                    polled.append(self._item(event))
                batches -= 1
                if batches < 0 or not self._before_take():
                    break
                entry = self._channel.poll()
                if entry is None or entry is CLOSED:
                    break
                self._accept(entry)
        except Exception as exc:
            # One that has ended the stream comes again. Any other is a signal handler's.
            if not polled or self._end is None or self._end.error is not exc:
                raise
        return polled

    def reconnect(self) -> None:
        """Drop the connection now and go on with another, from any thread; the consumer sees no error.

        During a wait for the next attempt, make it now; after the stream's end, nothing. Raises
        UsageError for a stream without `reconnect`, and where the request would be paid for twice:
        it has a body, its answer gave events but no id, and the policy has no `resend`.
        """
        self._subscription.check_process()
        self._subscription.exchange.check_asked()
        if self._is_open():
            self._subscription.request_reconnect()

    # For relays.

    @property
    def _has_decode_function(self) -> bool:
        """Whether the items are what a function of the caller's made of the events."""
        return self._decoder.is_function

    @property
    def _done_event(self) -> ServerSentEvent | None:
        """The event that has ended the stream by its data; None where none did."""
        return self._subscription.exchange.done_event

    def _check_usable(self) -> None:
        self._subscription.check_process()

    def _is_open(self) -> bool:
        return self._end is None and not self._channel.closed

    # Claiming: see _streams/claims.py. An interrupt of a call that may have taken something ends the stream.

    def _claim_for_good(self) -> None:
        """Have nobody else read the stream, ever."""
        self._subscription.check_process()
        claim = Claim()
        self._claims.append(claim)
        self._check_claim(claim)

    @property
    def _is_claimed(self) -> bool:
        """Whether somebody reads the stream now."""
        return self._claims.is_held()

    def _check_claim(self, claim: object) -> None:
        """Raise UsageError if somebody else reads the stream."""
        if not self._claims.contend(claim, self._lose):
            raise UsageError(
                "this stream has one consumer at a time, and is being read already: by another thread, or by a "
                "loop that is not over (a variable may hold its iterator); inside a loop, next() takes further items"
            )

    def _lose(self) -> None:
        """A call was interrupted, or failed: end the stream if it may have taken what nobody gets any more."""
        if self._may_lose and self._is_open():
            self._abort()

    def _is_in_loop(self) -> bool:
        """Whether this is the body of a for loop over the stream, which may call next() and poll()."""
        return self._loop_thread == threading.get_ident() and self._claims.is_held()

    def _claimed(self, read: Callable[..., R], *arguments: Any) -> R:
        """Call a method that reads, as the only consumer."""
        self._subscription.check_process()
        claims = self._claims
        # In no variable of its own: a frame that holds itself is garbage for the collector alone.
        claims.append(sys._getframe())
        if len(claims) > 1:
            self._check_claim(sys._getframe())
        try:
            self._may_lose = True
            result = read(*arguments)
            claims.popleft()
            return result
        except BaseException:
            self._lose()
            claims.discard(sys._getframe())
            raise

    def _nested(self, read: Callable[..., R], *arguments: Any) -> R:
        """Call a method that reads, in the body of a for loop."""
        self._may_lose = True
        try:
            return read(*arguments)
        except BaseException:
            self._lose()
            raise

    def _aclaimed(self, read: Callable[..., Awaitable[R]], *arguments: Any) -> Coroutine[Any, Any, R]:
        """Await a method that reads, as the only consumer."""
        claim = Claim()
        coroutine = self._hold(claim, read, *arguments)
        claim.held_by(coroutine)
        return coroutine

    async def _hold(self, claim: Claim, read: Callable[..., Awaitable[R]], *arguments: Any) -> R:
        self._subscription.check_process()
        claims = self._claims
        claims.append(claim)
        if claims[0] is not claim:
            self._check_claim(claim)
        try:
            self._may_lose = True
            result = await read(*arguments)
            claims.popleft()
            return result
        except BaseException as exc:
            # A wait that is cancelled, or whose coroutine is closed, has taken nothing.
            if not isinstance(exc, (asyncio.CancelledError, GeneratorExit)):
                self._lose()
            claims.discard(claim)
            raise

    def _elapse(self) -> NoReturn:
        """Raise TimeoutError: nothing was taken."""
        self._may_lose = False
        raise TimeoutError(ELAPSED)

    def _item(self, event: Any) -> T:
        """Return what the caller asked for of an event, or of an error answer's body."""
        decoder = self._decoder
        try:
            if type(event) is Body:
                return decoder.body(event.content)  # type: ignore[no-any-return]
            item: T = decoder.item(event)
            if type(event) is not Comment:
                self._last_event = event
                self._committed_id = None
                if decoder.has_done_function and decoder.is_last(event):
                    self._finish()
        except Exception as exc:
            self._fail(exc)
            raise
        return item

    def _finish(self) -> None:
        """The caller's `done` function has accepted an event: nothing comes after it."""
        self._end = End("done")
        self._draining = True
        self._channel.close()
        self._subscription.request_drain()

    def _fail(self, exc: Exception) -> None:
        """End the stream with an error, which every later use raises again."""
        self._end = End("error", exc)
        self._abort()

    def _abort(self) -> None:
        # Between any two bytecodes of any thread: no lock, no wait.
        if not self._subscription.is_inherited:
            self._channel.close()
            self._subscription.request_abort()

    def _before_take(self) -> bool:
        """Leave the batch that was read to its end; False where nothing more can come."""
        self._subscription.check_process()
        if self._batch is not None:
            if self._is_open():
                self._committed_id, self._retry = self._batch.last_event_id, self._batch.retry
            # Else it was not read to its end: the last event is where the consumer stands.
            self._batch = None
        if self._end is not None:
            if self._end.error is not None:
                # Without the frames of earlier times, which would pile up.
                raise self._end.error.with_traceback(None)
            return False
        return not self._is_stopped()

    def _is_stopped(self) -> bool:
        """Whether close(), or the caller's cancel flag, says that no further item is wanted."""
        if self._cancel is not None and self._is_open():
            try:
                if is_cancelled(self._cancel):
                    self._abort()
            except CallbackError as exc:
                self._fail(exc)
                raise
        return self._channel.closed

    def _accept(self, entry: Entry | End) -> None:
        """Take the channel's next entry in hand. Raises the stream's error where it is one."""
        if isinstance(entry, Batch):
            self._batch, self._items = entry, iter(entry.items)
        elif isinstance(entry, Reconnecting):
            try:
                tell(self._on_reconnect, entry)
            except Exception as exc:
                self._fail(exc)
                raise
        elif isinstance(entry, Body):
            self._body = entry
            if not self._decoder.gives_body or entry.error is not None:
                self._fail(self._status_error())
            elif entry.content:
                self._items = iter((entry,))
        else:
            assert isinstance(entry, End)
            self._end = entry
        if self._end is not None and self._end.error is not None:
            raise self._end.error

    def _status_error(self) -> StatusError:
        body = self._body or Body(b"", None if self._end is None else self._end.error)
        return status_error(self._subscription.exchange.target, self._head, body)

    # In a coroutine, of any loop: an EventStream's too, where a synchronous view hands one to an
    # asynchronous server.

    def _anext(self, timeout: float | None) -> Coroutine[Any, Any, T]:
        # In no task of its own: a cancellation could come after that task took an item and before
        # this one returned it.
        return self._aclaimed(self._anext_item, timeout)

    async def _anext_item(self, timeout: float | None) -> T:
        deadline = None if timeout is None else clock.monotonic() + timeout
        while True:
            if not self._is_stopped():
                for event in self._items:
                    return self._item(event)
            if not await self._aadvance(None if deadline is None else max(0.0, deadline - clock.monotonic())):
                raise StopAsyncIteration

    async def _aadvance(self, timeout: float | None) -> bool:
        """Take the next entry in hand; False at the end of the stream."""
        if self._draining:
            self._draining = False
            await self._subscription.await_finished(_END_SECONDS)
        if not self._before_take():
            return False
        entry = await self._channel.atake_within(timeout)
        if entry is None:
            self._elapse()
        if entry is CLOSED:
            return False
        self._accept(entry)
        return self._end is None

    async def _araise_for_status(self) -> None:
        if not self._has_good_status():
            if self._lacks_body():
                try:
                    await self._aclaimed(self._aadvance, None)
                except SSEError:
                    pass  # The status is the news. A StatusError of the stream's own is among these.
            raise self._status_error()

    def _lacks_body(self) -> bool:
        return self._body is None and self._is_open()

    def _has_good_status(self) -> bool:
        return self.status in (200, 204)


class EventStream(_BaseStream[T]):
    """An event stream, read by one thread at a time: `for item in stream`.

    Leaving the for loop, by break, return or an exception, aborts the request at once; so does
    close(), from any thread, though another may be waiting for the next item. To take a few items
    and go on later, use `next(stream)`, `stream.next(timeout=...)` or `stream.keep_open()`.
    A stream is its own context manager: `with` closes it.
    """

    _abandoned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A child that leaves the parent's block has nothing to close.
        if not self._subscription.is_inherited:
            self.close()

    def __iter__(self) -> Iterator[T]:
        """Return a fresh iterator whose end, however it comes, aborts the request.

        Raises UsageError after an earlier loop was left.
        """
        self._check_usable()
        return self._begin_loop(abort_when_left=True)

    def keep_open(self) -> Iterator[T]:
        """Return an iterator that can be left: the stream stays open, and can be read on."""
        self._check_usable()
        return self._begin_loop(abort_when_left=False)

    def _begin_loop(self, abort_when_left: bool) -> Iterator[T]:
        claim = Claim()
        loop = self._loop(claim, abort_when_left)
        claim.held_by(loop)
        return loop

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """Return the next item, waiting for it.

        `timeout` is in seconds, None waits for ever. Raises TimeoutError when it elapsed (the
        stream stays open), StopIteration at the end, and the stream's error where it has one.
        What a signal handler raises in the meantime ends the stream.
        """
        self._check_usable()
        if self._loop_thread is not None and self._is_in_loop():
            return self._nested(self._next, timeout)
        # What _claimed does, in place: a call for each item shows in the benchmark.
        claims = self._claims
        claims.append(sys._getframe())
        if len(claims) > 1:
            self._check_claim(sys._getframe())
        try:
            self._may_lose = True
            item = self._next(timeout)
            claims.popleft()
            return item
        except BaseException:
            self._lose()
            claims.discard(sys._getframe())
            raise

    def collect(self) -> list[T]:
        """Read to the end, and return all items that are left. Raises the stream's error where it has one."""
        return list(self)

    def raise_for_status(self) -> Self:
        """Return the stream. Raises StatusError, with the body, for a status but 200 and 204."""
        if not self._has_good_status():
            self._wait_for_body(None)
            raise self._status_error()
        return self

    def close(self) -> None:
        """Abort the request and end the stream; a consumer's loop ends quietly.

        Waits until the upstream's socket is down, a second at most. After the stream's natural
        end there is nothing to do. Can be called from any thread, and more than once. Raises
        UsageError in a forked child.
        """
        self._subscription.check_process()
        if self._end is None or self._end.outcome == "error":
            self._abort()
            if not self._subscription.finished and not self._subscription.in_loop_thread() and threads.may_wait():
                self._subscription.wait_finished(_CLOSE_SECONDS)

    def _check_usable(self) -> None:
        self._subscription.check_process()
        if self._abandoned:
            raise UsageError(f"the request was aborted when its for loop was left; {_HOW_TO_GO_ON}")

    def _loop(self, claim: Claim, abort_when_left: bool) -> Generator[T, None, None]:
        self._subscription.check_process()
        self._claims.append(claim)
        self._check_claim(claim)
        channel, cancel = self._channel, self._cancel
        this_thread = threading.get_ident
        decode = None if self._decoder.has_done_function else self._decoder.item
        try:
            while True:
                items = self._items
                for event in items:
                    if channel.closed or (cancel is not None and self._is_stopped()):
                        break
                    if decode is not None and type(event) is not Comment and type(event) is not Body:
                        # What _item does of it, in place: a call for each event shows in the benchmark.
                        item = decode(event)
                        self._last_event = event
                        self._committed_id = None
                    else:
                        item = self._item(event)
                    # In the loop's body, and there alone: what interrupts a wait may not read.
                    self._loop_thread = this_thread()
                    yield item
                    self._loop_thread = None
                # The loop's body may have called next(), and that have taken the next batch.
                if self._items is items and not self._advance(None):
                    return
        except BaseException as exc:
            left = isinstance(exc, GeneratorExit)
            if self._is_open() and (abort_when_left or not left):
                if isinstance(exc, SSEError):
                    # Out of `decode`.
                    self._fail(exc)
                self._abandoned = left
                self._abort()
            raise
        finally:
            self._loop_thread = None
            self._claims.discard(claim)

    def _next(self, timeout: float | None) -> T:
        deadline = None if timeout is None else clock.monotonic() + timeout
        while True:
            if not self._is_stopped():
                for event in self._items:
                    return self._item(event)
            if not self._advance(None if deadline is None else max(0.0, deadline - clock.monotonic())):
                raise StopIteration

    def _advance(self, timeout: float | None) -> bool:
        """Take the next entry in hand; False at the end of the stream."""
        if self._draining:
            self._draining = False
            self._subscription.wait_finished(_END_SECONDS)
        if not self._before_take():
            return False
        entry = self._channel.take_within(timeout)
        if entry is None:
            self._elapse()
        if entry is CLOSED:
            return False
        self._accept(entry)
        return self._end is None

    def _wait_for_body(self, timeout: float | None) -> bool:
        """Whether the body of an error answer is in, or why there is none; waits for it."""
        if self._lacks_body():
            try:
                self._claimed(self._advance, timeout)
            except SSEError:
                pass  # The status is the news. A StatusError of the stream's own is among these.
            except TimeoutError:
                return False
        return True


class AsyncEventStream(_BaseStream[T]):
    """An event stream on the caller's own asyncio loop: `async for item in stream`.

    Use `async with`, or contextlib.aclosing, where the loop may be left early: nothing tells an
    asynchronous iterator that it was left. A wait that is cancelled loses no item.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._subscription.is_inherited:
            await self.aclose()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self.next()

    async def next(self, timeout: float | None = None) -> T:
        """Return the next item, waiting for it.

        `timeout` is in seconds, None waits for ever. Raises TimeoutError when it elapsed (the
        stream stays open), StopAsyncIteration at the end, and the stream's error where it has one.
        """
        return await self._anext(timeout)

    async def collect(self) -> list[T]:
        """Read to the end, and return all items that are left. Raises the stream's error where it has one."""
        return [item async for item in self]

    async def raise_for_status(self) -> Self:
        """Return the stream. Raises StatusError, with the body, for a status but 200 and 204."""
        await self._araise_for_status()
        return self

    async def aclose(self) -> None:
        """Abort the request and end the stream; a consumer's loop ends quietly.

        Waits until the upstream's socket is down, a second at most. Raises UsageError in a forked
        child.
        """
        self._subscription.check_process()
        if self._end is None or self._end.outcome == "error":
            self._abort()
            await self._subscription.await_finished(_CLOSE_SECONDS)


class SSEResponse(NotCopyable, tuple[int, "httpx.Headers", EventStream[T_co]], Generic[T_co]):
    """`status, headers, events`: what request_sse returns, and a context manager that closes it."""

    __slots__ = ()

    def __new__(cls, events: EventStream[T_co]) -> Self:
        return super().__new__(cls, (events.status, events.headers, events))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.events!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.events.__exit__(kind, value, traceback)

    @property
    def status(self) -> int:
        """The answer's status, an int."""
        return self[0]

    @property
    def headers(self) -> httpx.Headers:
        """The answer's headers."""
        return self[1]

    @property
    def events(self) -> EventStream[T_co]:
        """The stream."""
        return self[2]

    def raise_for_status(self) -> Self:
        """Return the response. Raises StatusError, with the body, for a status but 200 and 204."""
        self.events.raise_for_status()
        return self


class AsyncSSEResponse(NotCopyable, tuple[int, "httpx.Headers", AsyncEventStream[T_co]], Generic[T_co]):
    """`status, headers, events`: what arequest_sse returns; `async with` closes it."""

    __slots__ = ()

    def __new__(cls, events: AsyncEventStream[T_co]) -> Self:
        return super().__new__(cls, (events.status, events.headers, events))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.events!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.events.__aexit__(kind, value, traceback)

    @property
    def status(self) -> int:
        """The answer's status, an int."""
        return self[0]

    @property
    def headers(self) -> httpx.Headers:
        """The answer's headers."""
        return self[1]

    @property
    def events(self) -> AsyncEventStream[T_co]:
        """The stream."""
        return self[2]

    async def raise_for_status(self) -> Self:
        """Return the response. Raises StatusError, with the body, for a status but 200 and 204."""
        await self.events.raise_for_status()
        return self
