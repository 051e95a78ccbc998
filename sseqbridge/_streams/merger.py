"""Many streams as one: the common part of merge and gather.

Each stream keeps its own channel, and so its own bound (backpressure is per stream). A stream that has
something for the consumer puts its number into one queue, and again after the consumer has taken that:
one batch at a time, so that a stream with many events starves no other.

Thread-safety: the streams' loops put into the ready queue, which takes several producers as long as its
entries carry no charge. The dict of members is changed by the consumer and, from any thread, by `add`,
`close` and finalizers: each change is one atomic step that expects no key to be present.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from sseqbridge._checks import is_coroutine_function
from sseqbridge._engine.channel import End, ThreadChannel
from sseqbridge._engine.last_read import note_read
from sseqbridge._engine.scope import CancelScope, check_scope, current_scope
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import fork

from .aio import AsyncEventStream, AsyncSSEResponse
from .api import arequest_sse, request_sse
from .bridge import Bridge
from .call import Call
from .calls import iterate
from .openings import (
    AsyncFunctionOpening,
    FunctionOpening,
    Opening,
    aopening_of,
    aopening_of_partial,
    opening_of,
    opening_of_partial,
)
from .reader import ItemReader
from .stream import reader_of
from .subscription import Subscription
from .sync import SSEResponse, Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence, ValuesView
    from collections.abc import Set as AbstractSet

    from sseqbridge._http.pauses import Pauses

    T = TypeVar("T")
    # The arguments of merge, gather and amerge, for type checkers. A Call is a function that returns a response.
    Source = SSEResponse[T] | Stream[T] | Callable[[], SSEResponse[T] | Stream[T]]
    AsyncStream = AsyncSSEResponse[T] | AsyncEventStream[T]
    # Iterables of streams of different types. A mapping is none of them, so that the type of its names is kept.
    Unnamed = Sequence[object] | Iterator[object] | AbstractSet[object] | ValuesView[object]
    AsyncSource = AsyncStream[T] | Call[T] | Callable[[], AsyncStream[T] | Awaitable[AsyncStream[T]]]

__all__ = ["CLOSED", "Errors", "Member", "Merger", "NamedStreams", "Step", "amember_of", "member_of", "named_streams"]

Errors = Literal["raise", "yield"]
NamedStreams = Mapping[Any, Any] | Iterable[Any]

# How often a consumer in a scope looks whether the scope is cancelled, while a function opens one of its streams.
_CHECK_SECONDS = 0.025


def named_streams(streams: NamedStreams) -> Iterator[tuple[Any, Any]]:
    """Return the names and streams of a mapping, or an iterable, whose names are 0, 1, 2..."""
    if isinstance(streams, (str, bytes, Stream, SSEResponse)) or not isinstance(streams, Iterable):
        raise UsageError(
            f"`streams` must be a mapping of names to streams, or an iterable of streams, got {_kind(streams)}"
        )
    return iter(streams.items()) if isinstance(streams, Mapping) else iter(enumerate(streams))


def _kind(value: object) -> str:
    return type(value).__name__


class Member:
    """One of the streams: a reader, or at first a stream that is being opened."""

    __slots__ = ("is_own", "name", "opening", "reader")

    def __init__(
        self, name: Any, opening: Opening | None, reader: ItemReader[Any] | None, *, is_own: bool = False
    ) -> None:
        self.name = name
        self.opening = opening
        self.reader = reader
        # Whether the stream was opened for the merger, so that there is no other reference to it.
        self.is_own = is_own or opening is not None

    @property
    def wakes_when_cancelled(self) -> bool:
        """Whether the consumer is woken when the scope is cancelled to which the stream belongs."""
        return self.opening is None or self.opening.wakes_when_cancelled

    def move(self, scope: CancelScope | None) -> None:
        """Let the stream belong to `scope`."""
        if self.reader is None:
            assert self.opening is not None
            self.opening.move(scope)
            return
        subscription: Subscription = self.reader.cursor.subscription
        if subscription.ownership.scope is not scope:
            subscription.ownership.move(subscription, scope)

    def start(self) -> None:
        """Begin to open the stream, if it is not open."""
        if self.opening is not None:
            self.opening.start()

    def notify(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, as soon as take() has something to return."""
        if self.reader is not None:
            self.reader.notify(wake)
        else:
            assert self.opening is not None
            self.opening.notify(wake)

    def take(self) -> tuple[list[Any], bool]:
        """Return the items of one batch, and whether the stream has ended. Raises the stream's error."""
        reader = self.reader
        if reader is None:
            self._take_reader()
            return [], False
        if self.is_own and reader.cursor.is_refused:
            raise reader.poll_refusal()
        return reader.poll_batch()

    def _take_reader(self) -> None:
        assert self.opening is not None
        reader = self.opening.poll()
        if reader is not None:
            self.reader, self.opening = reader, None

    def abort(self) -> None:
        """Abort the request. Safe between any two bytecodes: no lock, no wait."""
        if self.reader is not None:
            self.reader.abort()
        elif self.opening is not None:
            self.opening.abort()


class Step(NamedTuple):
    """The delivery of one stream: items, or its end, with the error if there was one."""

    number: int
    name: Any
    items: list[Any]
    has_ended: bool = False
    error: Exception | None = None


# The step after close().
CLOSED = Step(-1, None, [])


class Merger:
    """The streams that are merged, by number."""

    def __init__(self, errors: Errors) -> None:
        if errors not in ("raise", "yield"):
            raise UsageError(f'`errors` must be "raise" or "yield", got {errors!r}')
        self.errors = errors
        self._ready: ThreadChannel[int] = ThreadChannel(1)
        self._numbers = itertools.count()
        self._process = fork.process_token()
        self._members: dict[int, Member] = {}
        # The scope in which the consumer read last.
        self._scope: CancelScope | None = None
        # Whether streams were added since: set by any thread, cleared by the consumer before it reads the members.
        self._has_new = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._ready.closed

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child, and the streams its parent's."""
        return self._process != fork.process_token()

    def check_process(self) -> None:
        """Raise UsageError in a forked child."""
        if self.is_inherited:
            raise UsageError(
                "these streams were merged before a fork and belong to the parent process. Merge new ones in the child."
            )

    def _check_unmerged(self, member: Member) -> None:
        others = (other for other in tuple(self._members.values()) if other is not member)
        if member.reader is not None and any(member.reader is other.reader for other in others):
            raise UsageError(f"{member.name!r} is a stream that is merged already, under another name")

    def add(self, member: Member) -> int:
        """Add a stream, from any thread, and return its number. Raises UsageError once closed."""
        self.check_process()
        self._check_unmerged(member)
        number = next(self._numbers)
        try:
            # The consumer, or close(), can abort the request from here on.
            self._members[number] = member
            self._has_new = True
            if self._ready.closed:
                # Checked after the insertion: close() may have run in another thread in between.
                self._abort_all()
                raise UsageError("these merged streams have ended. Merge new ones.")
            member.start()
            self._await(number, member)
            return number
        except BaseException:
            self._remove(number, member)
            raise

    def _remove(self, number: int, member: Member) -> None:
        """Undo add(): abort the request if it is the merger's own, and wake the consumer."""
        self._members.pop(number, None)
        if member.is_own:
            member.abort()
        self._ready.send_nowait(number)

    def _await(self, number: int, member: Member) -> None:
        member.notify(functools.partial(self._ready.send_nowait, number))

    def receive(self) -> Step:
        """Wait for the next step; CLOSED after close(). Raises Cancelled if the consumer's scope is cancelled."""
        self.check_process()
        number = None
        while number is None:
            number = self._ready.take_within(self._enter_scope())
        return self._received(number)

    async def areceive(self) -> Step:
        """Do the same in a coroutine."""
        number = None
        while number is None:
            number = await self._ready.atake_within(self._enter_scope())
        return self._received(number)

    def _received(self, number: int | End) -> Step:
        step = CLOSED if isinstance(number, End) else self._step(number)
        if step.has_ended or step is CLOSED:
            # By the scope, which raises, or for other reasons.
            check_scope()
        if step is CLOSED:
            note_read(found_cancelled=True)
        return step

    def _enter_scope(self) -> float | None:
        """Let the streams belong to the consumer's scope: also those that never have anything to read.

        Returns for how many seconds the consumer may wait until it calls this again, None for no limit.
        """
        scope = current_scope()
        if scope is not self._scope or self._has_new:
            self._scope, self._has_new = scope, False
            for member in tuple(self._members.values()):
                member.move(scope)
        if scope is None:
            return None
        scope.check()
        has_functions = not all(member.wakes_when_cancelled for member in tuple(self._members.values()))
        return _CHECK_SECONDS if has_functions else None

    def _step(self, number: int) -> Step:
        member = self._members.get(number)
        if member is None:
            # Removed, or closed in another thread.
            return CLOSED if self._ready.closed else Step(number, None, [], True)
        try:
            was_opening = member.opening is not None
            is_new = member.reader is None
            items, has_ended = member.take()
            if is_new:
                self._check_unmerged(member)
            # A stream that a function has opened belongs to the function's scope.
            if was_opening and member.reader is not None:
                self._has_new = True
        except Exception as exc:
            member.abort()
            self._members.pop(number, None)
            if self._ready.closed:
                # The error is a consequence of close() in another thread.
                return CLOSED
            exc.stream_name = member.name  # type: ignore[attr-defined]
            if sys.version_info >= (3, 11):
                exc.add_note(f"It is the stream that was merged as {member.name!r}.")
            return Step(number, member.name, [], True, exc)
        if has_ended:
            self._members.pop(number, None)
        return Step(number, member.name, items, has_ended)

    def release(self, step: Step) -> None:
        """Wait for the stream's next batch, now that the consumer has processed this one."""
        member = self._members.get(step.number)
        if member is not None:
            self._await(step.number, member)

    def delivered(self, step: Step) -> list[tuple[Any, Any]]:
        """Return the step's items with the stream's name. Raises its error, unless errors are items."""
        if step.error is None:
            return [(step.name, item) for item in step.items]
        if self.errors == "raise":
            raise step.error
        return [(step.name, step.error)]

    def _abort_all(self) -> None:
        # Several threads may run this at the same time. A member is removed last: after an interrupt, the next call
        # aborts it.
        while self._members:
            for number, member in tuple(self._members.items()):
                member.abort()
                self._members.pop(number, None)

    def close(self) -> None:
        """Abort all streams that are left, and end the consumer's wait. Thread-safe."""
        if not self.is_inherited:
            self._ready.close()
            self._abort_all()

    def abort_own(self) -> bool:
        """Abort the requests that were sent for the merger. Returns False if there are none. For finalizers."""
        own = [] if self.is_inherited else [member for member in tuple(self._members.values()) if member.is_own]
        for member in own:
            member.abort()
        return bool(own)


def member_of(name: Any, stream: Any, pauses: Pauses | None = None) -> Member:
    """Return a member for what a caller passed to merge or gather. Raises UsageError.

    Requests that are sent for the member share `pauses`.
    """
    if isinstance(stream, SSEResponse):
        stream = stream.events
    if isinstance(stream, Stream):
        reader = reader_of(stream)
        reader.check_usable()
        return Member(name, None, reader)
    if isinstance(stream, Call):
        return Member(name, opening_of(stream, pauses), None)
    if isinstance(stream, functools.partial):
        if stream.func is request_sse:
            return Member(name, opening_of_partial(stream, pauses), None)
        if stream.func is iterate or getattr(stream.func, "__func__", None) is Bridge.iterate:
            return Member(name, None, reader_of(stream()), is_own=True)
    if callable(stream) and not is_coroutine_function(stream):
        return Member(name, FunctionOpening(name, stream, pauses), None)
    raise UsageError(
        f"the stream {name!r} must be what request_sse or iterate returns, or a Call or other function that returns "
        f"it, as functools.partial(request_sse, url) does, got {_kind(stream)}"
    )


async def amember_of(name: Any, stream: Any) -> Member:
    """Return a member for what a caller passed to amerge. Raises UsageError."""
    if isinstance(stream, AsyncSSEResponse):
        stream = stream.events
    if isinstance(stream, AsyncEventStream):
        return Member(name, None, reader_of(stream))
    if isinstance(stream, Call):
        return Member(name, await aopening_of(stream), None)
    if isinstance(stream, functools.partial) and stream.func is arequest_sse:
        return Member(name, await aopening_of_partial(stream), None)
    if callable(stream):
        return Member(name, AsyncFunctionOpening(name, stream), None)
    raise UsageError(
        f"the stream {name!r} must be what arequest_sse returns, or a Call or other function that returns it, "
        f"as functools.partial(arequest_sse, url) does, got {_kind(stream)}"
    )
