"""gather: many short streams, a few at a time, each to its end."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from sseqbridge._checks import check_limits
from sseqbridge._http.pauses import Pauses
from sseqbridge._signatures import with_hints

from .merger import Errors, Merger, NamedStreams, member_of, named_streams

if TYPE_CHECKING:
    from .merger import Source, Unnamed

__all__ = ["gather"]

K = TypeVar("K")
T = TypeVar("T")


@overload
def gather(  # type: ignore[overload-overlap]
    calls: Mapping[K, Source[T]],
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Literal["raise"] = "raise",
    progress: bool = False,
) -> Iterator[tuple[K, list[T]]]: ...
@overload
def gather(  # type: ignore[overload-overlap]
    calls: Mapping[K, Source[T]],
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Literal["yield"],
    progress: bool = False,
) -> Iterator[tuple[K, list[T] | Exception]]: ...
@overload
def gather(
    calls: Iterable[Source[T]],
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Literal["raise"] = "raise",
    progress: bool = False,
) -> Iterator[tuple[int, list[T]]]: ...
@overload
def gather(
    calls: Iterable[Source[T]],
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Literal["yield"],
    progress: bool = False,
) -> Iterator[tuple[int, list[T] | Exception]]: ...
@overload
def gather(
    calls: Mapping[K, object],
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Literal["raise"] = "raise",
    progress: bool = False,
) -> Iterator[tuple[K, list[Any]]]: ...
@overload
def gather(
    calls: Unnamed,
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Literal["raise"] = "raise",
    progress: bool = False,
) -> Iterator[tuple[int, list[Any]]]: ...
@overload
def gather(
    calls: Mapping[Any, object] | Iterable[object],
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Errors,
    progress: bool = False,
) -> Iterator[tuple[Any, Any]]: ...
@with_hints(
    {
        **dict.fromkeys(("concurrency", "max_concurrency", "max_workers", "size", "workers"), "Pass `limit`."),
        "ordered": "Pass `in_order`.",
        "return_exceptions": 'Pass errors="yield".',
    }
)
def gather(
    calls: NamedStreams,
    *,
    limit: int = 16,
    in_order: bool = True,
    errors: Errors = "raise",
    progress: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Yield `(name, items)` for many short streams, `limit` of them at a time; `items` is a list.

        for name, items in gather({p: client.call("/chat", data=body(p)) for p in prompts}, limit=8):
            print(name, len(items))

    `calls` is a mapping of names to Calls, functools.partial(request_sse, ...), functools.partial(iterate, ...) or
    functions that return a stream, or an iterable of them, which is read as far as needed. The results have the order
    of the calls (a stream that completes early is kept until its turn; at most twice `limit` calls are started and not
    yet yielded); with `in_order=False` they have the order in which the streams complete. An error of one stream is
    raised at once and ends the others; with `errors="yield"` it takes the place of the stream's items. `progress=True`
    shows a progress bar, with tqdm.

    After a 429 with Retry-After (of up to 120 s), no other request of this gather is sent to that server until then,
    however many calls there are; a client with `retries` repeats the refused one. The pause does not count for the
    `total` of the calls that wait for it. Requests that a function sends in its thread, by request_sse or a client,
    share the pause.

    Raises UsageError for arguments that cannot work, ImportError if tqdm is not installed.
    """
    check_limits("limit", limit)
    merger = Merger(errors)
    bar = _progress_bar(calls) if progress else None
    return _results(merger, named_streams(calls), limit, in_order, bar)


def _results(
    merger: Merger, calls: Iterator[tuple[Any, Any]], limit: int, in_order: bool, bar: Any
) -> Iterator[tuple[Any, Any]]:
    # By number: the items of streams that are open, and the results of streams that have ended.
    items: dict[int, list[Any]] = {}
    pauses = Pauses()
    results: dict[int, Any] = {}
    order: deque[int] = deque()
    try:
        while True:
            # `order` has the calls that were started and not yet yielded.
            for name, call in itertools.islice(calls, min(limit - len(items), 2 * limit - len(order))):
                # Before the request is sent.
                merger.check_process()
                number = merger.add(member_of(name, call, pauses))
                items[number] = []
                order.append(number)
            if not items:
                return
            step = merger.receive()
            items[step.number] += step.items
            if not step.has_ended:
                merger.release(step)
                continue
            if step.error is not None and merger.errors == "raise":
                raise step.error
            complete = items.pop(step.number)
            results[step.number] = step.name, complete if step.error is None else step.error
            if bar is not None:
                bar.update(1)
            if not in_order:
                order.remove(step.number)
                yield results.pop(step.number)
            while order and order[0] in results:
                yield results.pop(order.popleft())
    finally:
        merger.close()
        if bar is not None:
            bar.close()


def _progress_bar(calls: NamedStreams) -> Any:
    try:
        tqdm = import_module("tqdm").tqdm
    except ImportError as exc:
        raise ImportError("progress=True shows a bar with tqdm: pip install tqdm", name="tqdm") from exc
    return tqdm(total=len(calls) if isinstance(calls, Sized) else None, unit="stream")
