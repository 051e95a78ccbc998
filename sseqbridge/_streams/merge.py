"""Many streams as one: read by one thread, or one coroutine, in the order in which their events arrive.

Each stream keeps its own channel, and so its own bound: what one sends takes no room of another's.
A stream that has something for the consumer says so once, in a queue that all of them share, and
again when that was taken: one batch, what one read of the network gave. So nobody is passed over.

Which thread writes what: the streams' loops put into `_ready`, which takes several producers as
long as nothing is charged. `_members` is changed by the consumer, and by `add`, `close` and a
finalizer, in any thread: each change is one step, and finds nothing that must be there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sseqbridge._engine.channel import End, ThreadChannel
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import fork
from sseqbridge._runtime.callbacks import CallersCode

from .api import PendingResponse, abegin, arequest_sse, begin, request_sse
from .claims import Claim, Claims
from .sync import AsyncEventStream, AsyncSSEResponse, EventStream, NotCopyable, SSEResponse

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["AsyncMergedStreams", "MergedStreams", "amerge", "gather", "merge"]

Errors = Literal["raise", "yield"]
Named = Mapping[Any, Any] | Iterable[Any]


def merge(streams: Named = (), *, errors: Errors = "raise") -> MergedStreams:
    """Return an iterator of `(name, item)` over many streams, in the order in which events arrive.

    `streams` is a mapping of names to streams, or an iterable of them, whose names are 0, 1, 2...
    Each is what request_sse returns, its stream, or functools.partial(request_sse, ...): such
    requests are sent together, and one that is refused is a StatusError.

    One stream's error is raised, with its name as `stream_name`, and ends the others too; with
    `errors="yield"` it is an item, and they go on. Leaving the loop, however, aborts all that are
    left; so does `close()`, from any thread. `add(name, stream)` adds one while it runs.

    Raises UsageError for what is no stream.
    """
    merged = MergedStreams(errors)
    try:
        for name, stream in _named(streams):
            merged.add(name, stream)
    except BaseException:
        merged.close()
        raise
    return merged


def amerge(streams: Named = (), *, errors: Errors = "raise") -> AsyncMergedStreams:
    """Return what `merge` does as an asynchronous iterator, of what arequest_sse returns.

    Requests that functools.partial(arequest_sse, ...) puts off are sent when it is first iterated
    over. Use `async with` where the loop may be left early. A wait that is cancelled loses nothing.
    """
    return AsyncMergedStreams(_named(streams), errors)


def gather(
    calls: Named,
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Errors = "raise",
    progress: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Yield `(name, items)` of many short streams, `limit` of them at a time: all items of each, as a list.

    `calls` is a mapping of names to functools.partial(request_sse, ...), or an iterable of these,
    read as it is needed. The results come in the order of the calls (those that are complete before
    their turn are kept until then), or with `in_order=False` as they are complete. One stream's error
    is raised at once and ends the others; with `errors="yield"` it stands in the place of its items.
    `progress=True` shows a bar, with tqdm.

    Raises UsageError for arguments that cannot work, ImportError where tqdm is not installed.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise UsageError(f"limit={limit!r}; it is a number of streams, 1 or more")
    merged = MergedStreams(errors)
    bar = _bar(calls) if progress else None
    return _gathered(merged, _named(calls), limit, in_order, bar)


def _gathered(
    merged: MergedStreams, calls: Iterator[tuple[Any, Any]], limit: int, in_order: bool, bar: Any
) -> Iterator[tuple[Any, Any]]:
    # By number: of those that are under way, and of those that are complete.
    items: dict[int, list[Any]] = {}
    results: dict[int, Any] = {}
    order: deque[int] = deque()
    try:
        while True:
            for name, call in itertools.islice(calls, limit - len(items)):
                number = merged.add(name, call)
                items[number] = []
                order.append(number)
            if not items:
                return
            step = merged._next_step()
            items[step.number] += step.items
            if not step.has_ended:
                merged._go_on(step)
                continue
            if step.error is not None and merged.errors == "raise":
                raise step.error
            got = items.pop(step.number)
            results[step.number] = step.name, got if step.error is None else step.error
            if bar is not None:
                bar.update(1)
            if not in_order:
                order.remove(step.number)
                yield results.pop(step.number)
            while order and order[0] in results:
                yield results.pop(order.popleft())
    finally:
        merged.close()
        if bar is not None:
            bar.close()


def _bar(calls: Named) -> Any:
    try:
        tqdm = import_module("tqdm").tqdm
    except ImportError as exc:
        raise ImportError("progress=True shows a bar with tqdm: pip install tqdm", name="tqdm") from exc
    return tqdm(total=len(calls) if isinstance(calls, Sized) else None, unit="stream")


def _named(streams: Named) -> Iterator[tuple[Any, Any]]:
    if isinstance(streams, (str, bytes, EventStream, SSEResponse)) or not isinstance(streams, Iterable):
        raise UsageError(
            f"a {type(streams).__name__} is not many streams; pass a mapping of names to streams, or a list"
        )
    return iter(streams.items()) if isinstance(streams, Mapping) else iter(enumerate(streams))


class _Member:
    """A stream among others, or a request whose answer's head is not in yet."""

    # `was_opened_here`: nobody else knows of the request.
    __slots__ = ("name", "opening", "stream", "was_opened_here")

    def __init__(
        self, name: Any, opening: PendingResponse | None, stream: EventStream[Any] | AsyncEventStream[Any] | None
    ) -> None:
        self.name = name
        self.opening = opening
        self.stream = stream
        self.was_opened_here = opening is not None

    def watch(self, wake: Callable[[], None]) -> None:
        """Have `wake` called once, as soon as there is something to take."""
        if self.stream is not None:
            self.stream._notify(wake)
        else:
            assert self.opening is not None
            self.opening.stream_task.channel.notify(wake)

    def take(self) -> tuple[list[Any], bool]:
        """Return the items of a batch, and whether nothing comes any more. Raises the stream's error."""
        if self.stream is None:
            self._open()
            return [], False
        if self.was_opened_here and not self.stream._has_good_status():
            self.stream._poll_refusal()
        return self.stream._poll_batch()

    def _open(self) -> None:
        assert self.opening is not None
        entry = self.opening.stream_task.channel.poll()
        head = None if entry is None else self.opening.head_of(entry)
        if head is not None:
            is_plain = self.opening.is_synchronous
            response = self.opening.response(head) if is_plain else self.opening.aresponse(head)
            self.stream, self.opening = response.events, None

    def abort(self) -> None:
        if self.stream is not None:
            self.stream._abort()
        else:
            assert self.opening is not None
            self.opening.stream_task.channel.close()
            self.opening.stream_task.request_abort()


class _Step(NamedTuple):
    """What came of one stream: items, or its end, with the error if it was one."""

    number: int
    name: Any
    items: list[Any]
    has_ended: bool = False
    error: Exception | None = None


class _Merged(NotCopyable):
    def __init__(self, errors: Errors) -> None:
        if errors not in ("raise", "yield"):
            raise UsageError(f'errors={errors!r}; it is "raise" or "yield"')
        self.errors = errors
        self._ready: ThreadChannel[int] = ThreadChannel(1)
        self._numbers = itertools.count()
        self._process = fork.process_token()
        self._members: dict[int, _Member] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{'closed' if self._ready.closed else 'open'}] streams={len(self._members)}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # Between any two bytecodes of any thread: no lock, no wait. What others know of has a finalizer of its own.
        left = [member for member in getattr(self, "_members", {}).values() if member.was_opened_here]
        if left and self._is_own_process():
            told = f"{self!r} was dropped with requests under way: close it, or use with"
            for member in left:
                member.abort()
            _warn(told, ResourceWarning, source=self)

    def _is_own_process(self) -> bool:
        return self._process == fork.process_token()

    def _check_process(self) -> None:
        if not self._is_own_process():
            raise UsageError("these streams were merged before a fork, and are the parent's to read: merge others")

    def _put_in(self, member: _Member) -> int:
        if any(member.stream is not None and member.stream is other.stream for other in tuple(self._members.values())):
            raise UsageError(f"{member.name!r} is a stream that is merged already, under another name")
        number = next(self._numbers)
        self._members[number] = member
        if self._ready.closed:
            # Also where that was closed by another thread just now.
            self._abort_all()
            raise UsageError("these streams were merged and are over: merge others")
        self._watch(number, member)
        return number

    def _watch(self, number: int, member: _Member) -> None:
        member.watch(functools.partial(self._ready.send_nowait, number))

    def _step(self, number: int) -> _Step:
        """Return what has come of the stream that said so."""
        member = self._members.get(number)
        if member is None:
            # Another thread has closed it just now.
            return _CLOSED
        try:
            items, has_ended = member.take()
        except Exception as exc:
            self._members.pop(number, None)
            member.abort()
            if self._ready.closed:
                # By another thread, just now: that is what it came of.
                return _CLOSED
            exc.stream_name = member.name  # type: ignore[attr-defined]
            if sys.version_info >= (3, 11):
                exc.add_note(f"It is the stream that was merged as {member.name!r}.")
            return _Step(number, member.name, [], True, exc)
        if has_ended:
            self._members.pop(number, None)
        return _Step(number, member.name, items, has_ended)

    def _go_on(self, step: _Step) -> None:
        """Wait for the stream's next, now that the consumer is done with what it was given."""
        member = self._members.get(step.number)
        if member is not None:
            self._watch(step.number, member)

    def _told(self, step: _Step) -> list[tuple[Any, Any]]:
        """Return what the consumer is given of a step. Raises its error, if that is how errors are told."""
        if step.error is None:
            return [(step.name, item) for item in step.items]
        if self.errors == "raise":
            raise step.error
        return [(step.name, step.error)]

    def _abort_all(self) -> None:
        # Others may be at it too.
        with contextlib.suppress(KeyError):
            while True:
                _, member = self._members.popitem()
                member.abort()

    def close(self) -> None:
        """Abort all streams that are left, and end the loop. Any thread may call it."""
        if not self._is_own_process():
            return
        self._ready.close()
        self._abort_all()


class MergedStreams(_Merged):
    """Many streams, read as one; see `merge`. One thread reads them."""

    _was_left = False

    def __init__(self, errors: Errors) -> None:
        super().__init__(errors)
        self._claims = Claims()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: Any, stream: Any) -> int:
        """Add a stream, from any thread, and return its number. Raises UsageError once the loop is over."""
        # First of all: in a forked child no request may be sent.
        self._check_process()
        return self._put_in(_member(name, stream))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Return an iterator whose end, however it comes, aborts all that are left.

        Raises UsageError for a second one at a time, and after one was left.
        """
        self._check_process()
        if self._was_left:
            raise UsageError("the loop over these streams was left, and they were aborted: merge others")
        claim = Claim()
        loop = self._loop(claim)
        claim.held_by(loop)
        return loop

    def _loop(self, claim: Claim) -> Generator[tuple[Any, Any], None, None]:
        self._claims.append(claim)
        if not self._claims.contend(claim, self.close):
            raise UsageError("merged streams have one consumer at a time, and are being read already")
        try:
            while self._members:
                step = self._next_step()
                for named in self._told(step):
                    if self._ready.closed:
                        return
                    yield named
                if step.number < 0:
                    return
                self._go_on(step)
        except GeneratorExit:
            self._was_left = True
            raise
        finally:
            self.close()
            self._claims.discard(claim)

    def _next_step(self) -> _Step:
        """Wait for the next step; one without a number where close() has ended it."""
        self._check_process()
        number = self._ready.receive()
        return _CLOSED if isinstance(number, End) else self._step(number)


_CLOSED = _Step(-1, None, [])


def _member(name: Any, stream: Any) -> _Member:
    if isinstance(stream, SSEResponse):
        stream = stream.events
    if isinstance(stream, EventStream):
        stream._check_usable()
        return _Member(name, None, stream)
    if isinstance(stream, functools.partial) and stream.func is request_sse:
        return _Member(name, begin(stream), None)
    raise UsageError(
        f"{name!r} is a {type(stream).__name__}; a stream to be merged is what request_sse returns, or "
        "functools.partial(request_sse, url, ...)"
    )


class AsyncMergedStreams(_Merged):
    """Many streams, read as one by a coroutine; see `amerge`."""

    def __init__(self, streams: Iterator[tuple[Any, Any]], errors: Errors) -> None:
        super().__init__(errors)
        self._streams = streams
        # The one that is being opened, which a cancelled wait leaves for the next.
        self._next_in: tuple[Any, Any] | None = None
        # What the step in hand gave, as far as it is still to be told.
        self._step_in_hand: _Step | None = None
        self._items: deque[tuple[Any, Any]] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def add(self, name: Any, stream: Any) -> int:
        """Add a stream, and return its number. Raises UsageError once the loop is over."""
        self._check_process()
        return self._put_in(await _amember(name, stream))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Any, Any]:
        self._check_process()
        try:
            await self._open()
            while not self._items:
                if not await self._advance():
                    raise StopAsyncIteration
        except Exception:
            self.close()
            raise
        return self._items.popleft()

    async def _open(self) -> None:
        while (named := self._next_in or self._next_named()) is not None:
            self._next_in = named
            await self.add(*named)
            self._next_in = None

    def _next_named(self) -> tuple[Any, Any] | None:
        with CallersCode("the iterable of streams", passes=Exception):
            return next(self._streams, None)

    async def _advance(self) -> bool:
        """Take the next step in hand; False where there is none."""
        if self._step_in_hand is not None:
            self._go_on(self._step_in_hand)
            self._step_in_hand = None
        if not self._members:
            return False
        number = await self._ready.areceive()
        if isinstance(number, End):
            return False
        self._step_in_hand = self._step(number)
        self._items.extend(self._told(self._step_in_hand))
        return True

    def close(self) -> None:
        """Abort all streams that are left, and end the loop. Any thread may call it."""
        super().close()
        self._items.clear()


async def _amember(name: Any, stream: Any) -> _Member:
    if isinstance(stream, AsyncSSEResponse):
        stream = stream.events
    if isinstance(stream, AsyncEventStream):
        return _Member(name, None, stream)
    if isinstance(stream, functools.partial) and stream.func is arequest_sse:
        return _Member(name, await abegin(stream), None)
    raise UsageError(
        f"{name!r} is a {type(stream).__name__}; a stream to be merged is what arequest_sse returns, or "
        "functools.partial(arequest_sse, url, ...)"
    )
