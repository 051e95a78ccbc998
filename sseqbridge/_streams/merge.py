"""merge and amerge: many streams as one, in the order in which their events arrive."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from sseqbridge._checks import NotCopyable
from sseqbridge._engine.last_read import note_read
from sseqbridge._exceptions import Cancelled, UsageError
from sseqbridge._runtime.callbacks import CallersFunction
from sseqbridge._signatures import show_members_of

from .claims import Claim, Claims
from .merger import Errors, Merger, NamedStreams, Step, amember_of, member_of, named_streams

if TYPE_CHECKING:
    from typing_extensions import Self

    from .merger import AsyncSource, Source, Unnamed

__all__ = ["AsyncMergedStreams", "MergedStreams", "amerge", "merge"]

K = TypeVar("K")
T = TypeVar("T")

_IS_READ = "merged streams have one consumer at a time, and are being read already"


# To mypy, a mapping of functions is also an iterable of functions. Streams of different types are merged to Any.
@overload
def merge(  # type: ignore[overload-overlap]
    streams: Mapping[K, Source[T]], *, errors: Literal["raise"] = "raise"
) -> MergedStreams[K, T]: ...
@overload
def merge(  # type: ignore[overload-overlap]
    streams: Mapping[K, Source[T]], *, errors: Literal["yield"]
) -> MergedStreams[K, T | Exception]: ...
@overload
def merge(streams: Iterable[Source[T]], *, errors: Literal["raise"] = "raise") -> MergedStreams[int, T]: ...
@overload
def merge(streams: Iterable[Source[T]], *, errors: Literal["yield"]) -> MergedStreams[int, T | Exception]: ...
@overload
def merge(streams: Mapping[K, object], *, errors: Literal["raise"] = "raise") -> MergedStreams[K, Any]: ...
@overload
def merge(streams: Unnamed = (), *, errors: Literal["raise"] = "raise") -> MergedStreams[Any, Any]: ...
@overload
def merge(streams: Mapping[Any, object] | Iterable[object] = (), *, errors: Errors) -> MergedStreams[Any, Any]: ...
def merge(streams: NamedStreams = (), *, errors: Errors = "raise") -> MergedStreams[Any, Any]:
    """Return an iterator of `(name, item)` over many streams, in the order in which events arrive.

        for name, item in merge({"a": call_a, "b": call_b}):
            print(name, item)

    `streams` is a mapping of names to streams, or an iterable of streams, whose names are 0, 1, 2...
    A stream is what request_sse or iterate returns, a Call, functools.partial(request_sse, ...), or a function that
    returns a stream. Calls and partials are sent at the same time; each other function is called in a thread of its
    own. A request that is refused raises StatusError, and a function that fails CallbackError.

    An error of one stream is raised, with the stream's name in its attribute `stream_name`, and ends the
    other streams; with `errors="yield"` it is an item, and the others go on. Leaving the loop aborts all
    streams that are left, and so does `close()`, from any thread. `add(name, stream)` adds a stream while
    the loop runs.

    Raises UsageError for values that are not streams.
    """
    merged: MergedStreams[Any, Any] = MergedStreams(errors)
    try:
        for name, stream in named_streams(streams):
            merged.add(name, stream)
        return merged
    except BaseException:
        merged.close()
        raise


@overload
def amerge(  # type: ignore[overload-overlap]
    streams: Mapping[K, AsyncSource[T]], *, errors: Literal["raise"] = "raise"
) -> AsyncMergedStreams[K, T]: ...
@overload
def amerge(  # type: ignore[overload-overlap]
    streams: Mapping[K, AsyncSource[T]], *, errors: Literal["yield"]
) -> AsyncMergedStreams[K, T | Exception]: ...
@overload
def amerge(streams: Iterable[AsyncSource[T]], *, errors: Literal["raise"] = "raise") -> AsyncMergedStreams[int, T]: ...
@overload
def amerge(
    streams: Iterable[AsyncSource[T]], *, errors: Literal["yield"]
) -> AsyncMergedStreams[int, T | Exception]: ...
@overload
def amerge(streams: Mapping[K, object], *, errors: Literal["raise"] = "raise") -> AsyncMergedStreams[K, Any]: ...
@overload
def amerge(streams: Unnamed = (), *, errors: Literal["raise"] = "raise") -> AsyncMergedStreams[Any, Any]: ...
@overload
def amerge(
    streams: Mapping[Any, object] | Iterable[object] = (), *, errors: Errors
) -> AsyncMergedStreams[Any, Any]: ...
def amerge(streams: NamedStreams = (), *, errors: Errors = "raise") -> AsyncMergedStreams[Any, Any]:
    """Return an asynchronous iterator that does the same as `merge`, for responses of arequest_sse.

        async for name, item in amerge({"a": call_a, "b": call_b}):
            print(name, item)

    `streams` and `errors` are those of `merge`. Calls, and requests that functools.partial(arequest_sse, ...) stands
    for, are sent when the iteration begins. Other functions, and coroutine functions, are called on the running loop,
    each in a task of its own. Use `async with` if the loop may be left early. A wait that is cancelled loses no item.

    Raises UsageError for values that are not streams, and for a second consumer at a time.
    """
    return AsyncMergedStreams(named_streams(streams), errors)


class _BaseMerged(NotCopyable, Generic[K, T]):
    def __init__(self, errors: Errors) -> None:
        self._merger = Merger(errors)
        self._claims = Claims()

    def __repr__(self) -> str:
        state = "closed" if self._merger.is_closed else "open"
        return f"<{type(self).__name__} [{state}] streams={len(self._merger)}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # The attribute is missing if __init__ raised. Streams with other references have their own finalizer.
        merger: Merger | None = getattr(self, "_merger", None)
        if merger is not None:
            message = f"{self!r} was dropped with requests under way: close it, or use `with`"
            if merger.abort_own():
                _warn(message, ResourceWarning, source=self)

    def close(self) -> None:
        """Abort all streams that are left, and end the loop. Thread-safe."""
        self._merger.close()


class MergedStreams(_BaseMerged[K, T]):
    """Many streams, read as one by one thread: an iterable of `(name, item)`.

        with merge({"a": call_a, "b": call_b}) as merged:
            for name, item in merged:
                print(name, item)

    `merge` returns it.
    """

    _was_left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def add(self, name: Any, stream: Any) -> int:
        """Add a `stream`, whose items come as `(name, item)`, from any thread, and return its number.

        Raises UsageError once the loop is over.
        """
        self._merger.check_process()
        return self._merger.add(member_of(name, stream))

    def __iter__(self) -> Iterator[tuple[K, T]]:
        """Return an iterator whose end, however it comes, aborts all streams that are left.

        Raises UsageError for a second iterator at a time, and after a loop was left.
        """
        self._merger.check_process()
        if self._was_left:
            raise UsageError("these merged streams were aborted when their loop was left. Merge new ones.")
        claim = Claim()
        loop = self._loop(claim)
        claim.held_by(loop)
        return loop

    def _loop(self, claim: Claim) -> Generator[tuple[Any, Any], None, None]:
        merger = self._merger
        self._claims.append(claim)
        if not self._claims.admit(claim, self.close):
            raise UsageError(_IS_READ)
        try:
            while len(merger):
                step = merger.receive()
                for named in merger.delivered(step):
                    if merger.is_closed:
                        return
                    yield named
                if step.number < 0:
                    return
                merger.release(step)
        except GeneratorExit:
            self._was_left = True
            raise
        finally:
            if merger.is_closed and not self._was_left:
                # By another call of close(), during the loop. (A loop that was left has read no end.)
                note_read(found_cancelled=True)
            self.close()
            self._claims.discard(claim)


show_members_of(MergedStreams, _BaseMerged)


class AsyncMergedStreams(_BaseMerged[K, T]):
    """Many streams, read as one by a coroutine: an asynchronous iterator of `(name, item)`.

        async with amerge({"a": call_a, "b": call_b}) as merged:
            async for name, item in merged:
                print(name, item)

    `amerge` returns it.
    """

    def __init__(self, streams: Iterator[tuple[Any, Any]], errors: Errors) -> None:
        super().__init__(errors)
        self._streams = streams
        # The stream that is being opened. A cancelled wait leaves it to the next one.
        self._opening: tuple[Any, Any] | None = None
        # The step that is being delivered, and its items that were not yielded yet.
        self._step: Step | None = None
        self._items: deque[tuple[Any, Any]] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def add(self, name: Any, stream: Any) -> int:
        """Add a `stream`, whose items come as `(name, item)`, and return its number.

        Raises UsageError once the loop is over.
        """
        self._merger.check_process()
        return self._merger.add(await amember_of(name, stream))

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, tuple[K, T]]:
        claim = Claim()
        coroutine = self._next(claim)
        claim.held_by(coroutine)
        return coroutine

    async def _next(self, claim: Claim) -> tuple[Any, Any]:
        self._merger.check_process()
        self._claims.append(claim)
        # A call that has ended without releasing its claim has left its step to the next call.
        if not self._claims.admit(claim, lambda: None):
            raise UsageError(_IS_READ)
        try:
            try:
                await self._open_all()
                while not self._items:
                    if not await self._receive():
                        raise StopAsyncIteration
            except (Exception, Cancelled):
                self.close()
                raise
            return self._items.popleft()
        finally:
            self._claims.discard(claim)

    async def _open_all(self) -> None:
        while (named := self._opening or self._next_named()) is not None:
            self._opening = named
            await self.add(*named)
            self._opening = None

    def _next_named(self) -> tuple[Any, Any] | None:
        with CallersFunction("the iterable of streams", passes=Exception):
            return next(self._streams, None)

    async def _receive(self) -> bool:
        """Wait for the next step. Returns False if there is none."""
        if self._step is not None:
            self._merger.release(self._step)
            self._step = None
        if not len(self._merger):
            if self._merger.is_closed:
                note_read(found_cancelled=True)
            return False
        step = await self._merger.areceive()
        if step.number < 0:
            return False
        self._step = step
        self._items.extend(self._merger.delivered(step))
        return True

    def close(self) -> None:
        """Abort all streams that are left, and end the loop. Thread-safe."""
        super().close()
        self._items.clear()


show_members_of(AsyncMergedStreams, _BaseMerged)
