"""Cancellation scopes: blocks of code that a flag cancels, the streams that belong to them, and cancel flags.

The current scope is a context variable: each thread and task has its own value. A stream belongs to the scope in
which it was read last, or was opened. Once the scope's flag is set, the stream is aborted, and its consumer gets
Cancelled. A flag is checked on the loop thread (every 25 ms, one timer for all streams of a loop) and by the consumer
where it takes a batch.

| object      | field      | written by                                              | guarded by      |
|-------------|------------|---------------------------------------------------------|-----------------|
| CancelScope | `_is_set`  | any thread                                              | turns True once |
| CancelScope | all others | the thread or task of the block                         | one writer      |
| Ownership   | all fields | the loop at the stream's start, then the consumer       | the claim       |
| _Turn       | `is_over`  | the stream's consumer; the loop                         | turns True once |
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from sseqbridge._checks import CancelFlag, name_of_type
from sseqbridge._exceptions import CallbackError, Cancelled, RequestAbortedError, UsageError, is_cancellation
from sseqbridge._runtime.callbacks import CallersFunction
from sseqbridge._runtime.clock import clock

from .last_read import note_read

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from sseqbridge._runtime.loop_watch import LoopWatch

    from .loop_state import Cancellable

__all__ = [
    "CancelScope",
    "Ownership",
    "cancel_flag",
    "cancel_on",
    "check_not_cancelled",
    "check_scope",
    "checked_flag",
    "current_scope",
    "is_cancelled",
    "watched_flag",
]


class CancelScope:
    """A block of code that ends with Cancelled once its flag is set.

        with cancel_on(stop) as scope:
            for item in events:
                print(item)
        if scope.cancelled:
            print("stopped")

    `cancel_on` returns it.
    """

    def __init__(self, flag: CancelFlag, *, is_outermost: bool = False) -> None:
        """Make a scope that `flag` cancels. `is_outermost`: scopes around it do not cancel it."""
        self._flag = flag
        self._is_outermost = is_outermost
        # The scope that was current before, and the one that cancels this scope too.
        self._before: CancelScope | None = None
        self._outer: CancelScope | None = None
        self._is_set = False
        self._was_entered = False
        self._has_ended = False

    def __enter__(self) -> Self:
        if self._was_entered:
            raise UsageError("a scope must be entered once. Make a new one with cancel_on().")
        self._was_entered = True
        self._before = _current.get()
        self._outer = None if self._is_outermost else self._before
        try:
            _current.set(self)
            return self
        except BaseException:
            # An interrupt: the block does not begin, so that nothing would leave the scope.
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            is_cancelled_by_itself = self._check_own_flag()
            self._has_ended = True
            is_outer_cancelled = self._outer is not None and self._outer.cancelled
            swallows = is_cancellation(error) and is_cancelled_by_itself and not is_outer_cancelled
            if swallows:
                note_read(found_cancelled=True)
            return swallows
        finally:
            self._leave()

    def _leave(self) -> None:
        # Not by a token: a generator may be closed in another context than the one in which it entered the scope.
        if _current.get() is self:
            _current.set(self._before)

    def __repr__(self) -> str:
        state = "cancelled" if self._is_set else "ended" if self._has_ended else "open" if self._was_entered else "new"
        return f"<{type(self).__name__} {state}>"

    @property
    def cancelled(self) -> bool:
        """Whether this scope or one around it is cancelled; after the block, whether it was at the block's end.

        Raises CallbackError if the flag's is_set() raises.
        """
        return self._check_own_flag() or (self._outer is not None and self._outer.cancelled)

    def check(self) -> None:
        """Raise Cancelled if the scope is cancelled."""
        if self.cancelled:
            raise Cancelled("the scope is cancelled: its flag is set, or the client of its relay has disconnected")

    def _check_own_flag(self) -> bool:
        # The first True is kept: an aborted stream must not look complete because the flag was cleared.
        if not self._is_set and not self._has_ended and is_cancelled(self._flag):
            self._is_set = True
        return self._is_set


_current: ContextVar[CancelScope | None] = ContextVar("sseqbridge-scope", default=None)


# Returns the scope that surrounds the caller, None if there is none. Without a function around it, which would run for
# every batch of every stream.
current_scope: Callable[[], CancelScope | None] = _current.get


def check_scope() -> None:
    """Raise Cancelled if the scope that surrounds the caller is cancelled."""
    scope = _current.get()
    if scope is not None:
        scope.check()


def cancel_on(flag: CancelFlag) -> CancelScope:
    """Return a context manager whose block ends once `flag` is set.

    `flag` is an object with `is_set()`, such as a threading.Event. Once it is set, Cancelled is raised, within about
    50 ms, in every wait of the block: where the block reads a stream, waits for the headers of a response, or reads
    merged streams, a tee or a log. The streams that it read last are aborted. The context manager swallows the
    exception (or a group of nothing else, as asyncio.TaskGroup raises it), and `cancelled` says whether the scope was
    cancelled:

        with cancel_on(stop) as scope:
            for item in request_sse(url).events:
                print(item)
        if scope.cancelled:
            print("stopped")

    Cancelled is a BaseException, so that code which retries after every Exception does not retry after it. Scopes may
    be nested. A thread that the block starts belongs to no scope, unless it runs in a copy of the context
    (`contextvars.copy_context().run`). Works in coroutines too.

    Raises UsageError if `flag` has no is_set().
    """
    return CancelScope(_checked(flag, "flag"))


class Owned(Protocol):
    """A subscription, as a scope uses it."""

    @property
    def is_running(self) -> bool: ...
    def abort(self) -> None: ...
    @property
    def watch(self) -> Callable[[Cancellable], None]: ...


class Ownership:
    """Which scope a subscription belongs to: the one in which it was opened or read last, or none.

    Refers neither to the subscription, whose field it is, nor to what the loop checks: there is no reference cycle.
    """

    __slots__ = ("_turn", "scope")

    def __init__(self) -> None:
        # The scope that the subscription belongs to, None if it belongs to none.
        self.scope: CancelScope | None = None
        self._turn: _Turn | None = None

    def enter(self, subscription: Owned, scope: CancelScope | None) -> None:
        """Let the subscription belong to `scope`. Aborts it, and raises Cancelled, if the scope is cancelled."""
        if scope is not self.scope:
            self.move(subscription, scope)
        if scope is not None:
            try:
                scope.check()
            except BaseException:
                subscription.abort()
                raise
        note_read(found_cancelled=False)

    def move(self, subscription: Owned, scope: CancelScope | None) -> None:
        """Let the subscription belong to `scope` alone."""
        if self._turn is not None:
            self._turn.is_over = True
            self._turn = None
        self.scope = scope
        if scope is not None:
            self._turn = _Turn()
            subscription.watch(_Adoption(scope, subscription, self._turn))


class _Turn:
    """The time during which a subscription belongs to one scope."""

    __slots__ = ("is_over",)

    def __init__(self) -> None:
        self.is_over = False


class _Adoption:
    """Aborts a subscription once its scope is cancelled. The loop checks it every 25 ms."""

    def __init__(self, scope: CancelScope, subscription: Owned, turn: _Turn) -> None:
        self._scope = scope
        self._subscription = subscription
        self._turn = turn

    @property
    def finished(self) -> bool:
        return self._turn.is_over or not self._subscription.is_running

    def check_cancel(self, watch: LoopWatch | None) -> None:
        try:
            is_cancelled = self._scope.cancelled
        except CallbackError:
            # The consumer, which the abort wakes, gets the error from the flag itself.
            is_cancelled = True
        if is_cancelled and not self._turn.is_over:
            self._turn.is_over = True
            self._subscription.abort()


def cancel_flag(cancel: Any, before: str) -> CancelFlag | None:
    """Return the flag of a stream that is opened with `cancel`, None if there is none.

    Raises UsageError if `cancel` is no flag, and RequestAbortedError if it is set already: the error's message ends
    with `before`, the step that it comes before. Raises Cancelled if the current scope is cancelled.
    """
    flag = checked_flag(cancel)
    check_not_cancelled(flag, before)
    return flag


def checked_flag(cancel: Any) -> CancelFlag | None:
    """Return the flag of a stream that is opened later. Raises UsageError if `cancel` is neither a flag nor None."""
    return None if cancel is None else _checked(cancel, "cancel")


def check_not_cancelled(flag: CancelFlag | None, before: str) -> None:
    """Raise RequestAbortedError if a flag is set, Cancelled if the current scope is cancelled; see cancel_flag."""
    check_scope()
    if flag is not None and is_cancelled(flag):
        raise RequestAbortedError(f"cancel was set before {before}")


def _checked(flag: Any, name: str) -> CancelFlag:
    if not callable(getattr(flag, "is_set", None)):
        raise UsageError(f"`{name}` must have an is_set() method, got {type(flag).__name__}. Pass a threading.Event.")
    checked: CancelFlag = flag
    return checked


def is_cancelled(cancel: CancelFlag | None) -> bool:
    """Whether a flag is set. Raises CallbackError if is_set() raises; on a loop also for an exit or interrupt."""
    if cancel is None:
        return False
    with CallersFunction("cancel.is_set()", passes=()):
        return bool(cancel.is_set())


class Named(Protocol):
    """A task, as messages name it."""

    @property
    def target(self) -> str: ...


def watched_flag(cancel: CancelFlag | None, task: Named, watch: LoopWatch | None) -> bool:
    """Whether the flag of a task is set. The loop's watch records how long that took. Raises as is_cancelled does."""
    began = clock.monotonic()
    try:
        return is_cancelled(cancel)
    finally:
        if watch is not None:
            watch.ran(
                clock.monotonic() - began,
                lambda: f"is_set() of the cancel flag, a {name_of_type(type(cancel))}, of {task.target}",
            )
