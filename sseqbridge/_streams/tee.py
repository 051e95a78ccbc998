"""tee: one stream for several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from sseqbridge._checks import NotCopyable, check_limits
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime.callbacks import CallersFunction
from sseqbridge._signatures import show_members_of

from .broadcaster import Broadcaster
from .stream import reader_of
from .sync import EventStream, SSEResponse, Stream

if TYPE_CHECKING:
    from typing_extensions import Self

    from .reader import ItemReader

__all__ = ["PlainTee", "Tee", "tee"]

T = TypeVar("T")
S = TypeVar("S")

_MAX_HISTORY_BYTES = 1024 * 1024

Slow = Literal["wait", "end"]


@overload
def tee(  # type: ignore[overload-overlap]  # an EventStream is a Stream
    stream: EventStream[T] | SSEResponse[T] | Callable[[], EventStream[T] | SSEResponse[T]],
    n: int = 2,
    *,
    slow: Slow = "wait",
    max_buffered_bytes: int = DEFAULT_MAX_BUFFERED_BYTES,
    max_history_bytes: int = _MAX_HISTORY_BYTES,
) -> Tee[T]: ...
@overload
def tee(
    stream: Stream[T] | Callable[[], Stream[T]],
    n: int = 2,
    *,
    slow: Slow = "wait",
    max_buffered_bytes: int = DEFAULT_MAX_BUFFERED_BYTES,
    max_history_bytes: int = _MAX_HISTORY_BYTES,
) -> PlainTee[T]: ...
def tee(
    stream: Stream[T] | SSEResponse[T] | Callable[[], Stream[T] | SSEResponse[T]],
    n: int = 2,
    *,
    slow: Slow = "wait",
    max_buffered_bytes: int = DEFAULT_MAX_BUFFERED_BYTES,
    max_history_bytes: int = _MAX_HISTORY_BYTES,
) -> Tee[T] | PlainTee[T]:
    """Return a tuple of `n` streams that each deliver all of the rest of one stream, to `n` threads.

        to_browser, to_database = tee(request_sse(url, headers, data))

    `stream` is what request_sse or iterate returns, or a Call or other function that returns it, which is called now.
    Each is a stream of the same kind; an EventStream decodes its own items. At most `max_buffered_bytes` are held
    for each reader (by default its share, as in request_sse), or what one read of the network delivered; an item of
    iterate() counts 256 bytes, plus its length if it is text or bytes. With `slow="wait"` the slowest reader holds
    the upstream back (backpressure); with `slow="end"` the fastest does, and a reader that has no room when the
    fastest goes on is ended, after its backlog, by an EventsLostError. The upstream is aborted when the last reader
    has left.

    `add(replay=True)` on the tuple returns one more reader, which begins with the events so far, unless
    they were more than `max_history_bytes`. `stream` itself cannot be read any more; closing it ends all
    readers.

    Raises UsageError for arguments that cannot work, and for a stream that is being read.
    """
    check_limits("n", n)
    if slow not in ("wait", "end"):
        raise UsageError(f'`slow` must be "wait" or "end", got {slow!r}')
    check_limits("max_buffered_bytes", max_buffered_bytes)
    if max_history_bytes != 0:
        check_limits("max_history_bytes", max_history_bytes)
    source = _opened(stream)
    broadcaster: Broadcaster[T] | None = None
    try:
        broadcaster = Broadcaster(
            reader_of(source),
            ends_slow=slow == "end",
            max_buffered=max_buffered_bytes,
            max_history=max_history_bytes,
        )
        kind: type[BaseTee[Any, T]] = Tee if isinstance(source, EventStream) else PlainTee
        readers = [kind._stream_of(broadcaster.add(replay=False)) for _ in range(n)]
        broadcaster.start()
        made: Tee[T] | PlainTee[T] = kind(broadcaster, source, readers)  # type: ignore[assignment]
        return made
    except UsageError:
        raise
    except BaseException:
        # An interrupt: there is no other reference to the readers.
        (broadcaster or source).close()
        raise


def _opened(stream: Any) -> Stream[Any]:
    """Return the stream of what a caller passed, which a Call or other function opens now."""
    if callable(stream):
        with CallersFunction("the function of `stream`", passes=Exception):
            stream = stream()
    if isinstance(stream, SSEResponse):
        stream = stream.events
    if not isinstance(stream, Stream):
        raise UsageError(
            f"`stream` must be what request_sse or iterate returns, or a Call or other function that returns it, "
            f"got {type(stream).__name__}"
        )
    return stream


class BaseTee(NotCopyable, tuple[S, ...], Generic[S, T]):  # noqa: SLOT001 (a tuple takes no slots but empty ones)
    """The readers that `tee` made, a tuple, to which others can be added."""

    # The class of the readers.
    _stream_of: Callable[[ItemReader[Any]], Any]
    _broadcaster: Broadcaster[T]
    _source: Stream[T]

    def __new__(cls, broadcaster: Broadcaster[T], source: Stream[T], readers: Iterable[S]) -> Self:
        made = super().__new__(cls, readers)
        made._broadcaster = broadcaster
        made._source = source
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._source!r} readers={self._broadcaster.open_readers}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # A forked child that leaves its parent's block has nothing to close.
        if not self._broadcaster.subscription.is_inherited:
            self.close()

    def add(self, *, replay: bool = False) -> S:
        """Return one more reader, of what follows from now on; with `replay`, also of the events so far.

        Raises EventsLostError if those were more than `max_history_bytes`, and UsageError once all readers
        have left.
        """
        reader = None
        try:
            reader = self._broadcaster.add(replay=replay)
            stream: S = type(self)._stream_of(reader)
            return stream
        except BaseException:
            if reader is not None:
                reader.abort()
            raise

    def close(self) -> None:
        """Abort the upstream and end all readers, at once. Thread-safe."""
        self._broadcaster.close()


class Tee(BaseTee[EventStream[T], T], Generic[T]):
    """The readers of one event stream, a tuple, to which others can be added.

        readers = tee(request_sse(url, headers, data), 2, max_history_bytes=1_000_000)
        late = readers.add(replay=True)

    `tee` returns it.
    """

    _stream_of = EventStream


show_members_of(Tee, BaseTee)


class PlainTee(BaseTee[Stream[T], T], Generic[T]):
    """The readers of one stream of iterate() that `tee` made, a tuple, to which others can be added."""

    _stream_of = Stream
