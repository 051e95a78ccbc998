"""Calling `start`: the elected process begins the stream, and hands the upstream to its producer.

`start` runs in the thread that calls `open` or `produce`, in a thread of its own for `aopen` and `aproduce`,
or in one for a reader that takes a stream over. The functions at the end run on the loop thread.

`start` returns a stream, or an iterable of items. A synchronous iterable runs in a worker thread. An asynchronous one
runs on the caller's loop for `aopen` and `aproduce`, else on the loop of iterate(). Both run in a copy of the context
of `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn

from sseqbridge._engine.scope import CancelScope, check_scope
from sseqbridge._exceptions import RequestAbortedError, UsageError
from sseqbridge._runtime import loops, threads
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._streams.aio import AsyncSSEResponse
from sseqbridge._streams.async_code import aiterate
from sseqbridge._streams.calls import iterate, run
from sseqbridge._streams.stream import BaseStream, reader_of
from sseqbridge._streams.sync import SSEResponse
from sseqbridge._streams.worker import check_unread

from ._errors import as_callback_error
from ._hub import Hub
from ._producer import Producer
from ._store import Claim, ClaimState, FencingToken, MissingLease
from ._upstream import IterableUpstream, StreamUpstream, Upstream

__all__ = ["acall_start", "acall_start_shielded", "call_start", "check_start", "claim_producer", "new_producer"]

logger = logging.getLogger("sseqbridge")

_THREAD_NAME = "sseqbridge-start"


class _Started(NamedTuple):
    """The result of `start`, and a copy of its context: in the producer's scope, and in none around that."""

    result: Any
    context: contextvars.Context


def check_start(start: Any) -> Any:
    """Return `start`. Raises UsageError if it is not callable."""
    if not callable(start):
        raise UsageError(
            f"`start` must be a function, got {type(start).__name__}. Pass one that returns a response of "
            "request_sse: start=lambda: request_sse(url, headers, data)"
        )
    return start


def call_start(producer: Producer, start: Any) -> None:
    """Call `start` in this thread, and pass its stream or its error to the producer. Raises the error too."""
    started: _Started | None = None
    try:
        started = _call(producer, start)
        producer.set_upstream(_upstream_of(_iterated(producer, started), threads.start_worker))
    except BaseException as error:
        producer.set_start_error(error)
        if not isinstance(error, UsageError) and started is not None:
            # An interrupt between the two steps: the request has no other owner.
            _abort_unused(started.result)
        _raise_for_start(producer, error)


async def acall_start_shielded(producer: Producer, start: Any) -> None:
    """Do the same as acall_start(), and continue if the caller is cancelled: the stream outlives its first reader."""
    error = await asyncio.shield(asyncio.ensure_future(_error_of_start(producer, start)))
    if error is not None:
        raise error


async def _error_of_start(producer: Producer, start: Any) -> BaseException | None:
    # Returned: asyncio would report what a shielded task raises whose caller was cancelled.
    try:
        await acall_start(producer, start)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return error
    return None


async def acall_start(producer: Producer, start: Any) -> None:
    """Call `start` in a thread of its own, and await an awaitable that it returns here; else like call_start().

    An exit that `start` raises becomes a CallbackError: raised here, it would end the caller's event loop.
    """
    producer.start_loop = asyncio.get_running_loop()
    try:
        with CallersCode("start", passes=Exception):
            started = await loops.run_in_daemon_thread(_THREAD_NAME, _call, producer, start, discard=_discard)
        started = await _awaited(producer, started)
        producer.set_upstream(_upstream_of(started, threads.start_worker))
    except BaseException as error:
        producer.set_start_error(error)
        _raise_for_start(producer, error)


def _raise_for_start(producer: Producer, error: BaseException) -> NoReturn:
    if isinstance(error, RequestAbortedError):
        # The reason may be that the caller's scope was cancelled, and the caller was the last reader.
        check_scope()
    own = producer.error_for_start(error)
    if own is error:
        raise error
    raise own from error


def _call(producer: Producer, start: Callable[[], Any]) -> _Started:
    producer.is_start_called = True
    # In a copy of the context, in which an interrupt can leave no scope behind.
    return contextvars.copy_context().run(_call_in_scope, producer, start)


def _call_in_scope(producer: Producer, start: Callable[[], Any]) -> _Started:
    with _cancelled_by(producer):
        return _Started(start(), contextvars.copy_context())


@contextlib.contextmanager
def _cancelled_by(producer: Producer) -> Iterator[None]:
    """Let the producer cancel the requests that are made in this context, not a relay that surrounds them.

    Raises RequestAbortedError if the producer was cancelled.
    """
    with CancelScope(producer, is_outermost=True):
        yield
        return
    raise RequestAbortedError("the log's stream was cancelled before its upstream was opened")


def _discard(started: _Started) -> None:
    """Close a result of `start` that arrives after its caller was cancelled."""
    stream = started.result
    if inspect.iscoroutine(stream):
        stream.close()
    elif isinstance(stream, (SSEResponse, AsyncSSEResponse)):
        reader_of(stream.events).abort()
    elif isinstance(stream, BaseStream):
        reader_of(stream).abort()


def _abort_unused(stream: Any) -> None:
    """Abort a result of `start` that no producer reads."""
    events = stream.events if isinstance(stream, SSEResponse) else stream
    if isinstance(events, BaseStream) and not reader_of(events).is_detached:
        reader_of(events).abort()


def _upstream_of(started: _Started, start_thread: Callable[..., object]) -> Upstream:
    """Return the upstream for a result of `start`. Raises UsageError if there is none."""
    result, context = started
    if isinstance(result, (SSEResponse, AsyncSSEResponse)):
        result = result.events
    if isinstance(result, BaseStream):
        return StreamUpstream(reader_of(result))
    if isinstance(result, (str, bytes, dict)) or not isinstance(result, Iterable):
        raise UsageError(
            "`start` must return a response of request_sse, a stream, or an iterable of items, "
            f"got {type(result).__name__}. Return the result of request_sse(...), or of a generator function."
        )
    check_unread("the result of `start`", result)
    return IterableUpstream(result, context, start_thread)


def _is_async_iterable(result: Any) -> bool:
    """Whether a result of `start` is an asynchronous iterable, and no stream. Raises UsageError for one that ended."""
    if isinstance(result, BaseStream) or not isinstance(result, AsyncIterable):
        return False
    check_unread("the result of `start`", result)
    return True


def _iterated(producer: Producer, started: _Started) -> _Started:
    """Await a result of `start` that is awaitable; return a stream in place of an asynchronous iterable.

    Both run on the loop of iterate().
    """
    result, context = started
    if inspect.isawaitable(result):
        result = context.run(_run_in_scope, producer, result)
        started = _Started(result, context)
    if isinstance(result, Iterable) or not _is_async_iterable(result):
        return started
    return _Started(context.run(_iterate_in_scope, producer, result), context)


def _run_in_scope(producer: Producer, awaitable: Awaitable[Any]) -> Any:
    with _cancelled_by(producer):
        return run(awaitable)


def _iterate_in_scope(producer: Producer, items: AsyncIterable[Any]) -> Any:
    with _cancelled_by(producer):
        return iterate(items)


async def _awaited(producer: Producer, started: _Started) -> _Started:
    """Await a result of `start` that is awaitable; return a stream in place of an asynchronous iterable."""
    result, context = started
    if inspect.isawaitable(result):
        result, context = await _in_scope(producer, result)
    if _is_async_iterable(result):
        result = await aiterate(result, context)
    return _Started(result, context)


async def _in_scope(producer: Producer, awaitable: Awaitable[Any]) -> _Started:
    # The scope is the inner one: it swallows Cancelled, which is no error of the caller's code.
    with CallersCode("start", passes=Exception), _cancelled_by(producer):
        return _Started(await awaitable, contextvars.copy_context())


# On the loop thread.


def new_producer(
    hub: Hub, start: Any, loop: asyncio.AbstractEventLoop | None, token: FencingToken, claim: Claim
) -> Producer:
    """Return a started producer for an elected reader. An awaitable that `start` returns is awaited on `loop`."""
    producer = Producer(hub, token, claim, partial(_call_start_in_thread, start, loop))
    producer.start()
    return producer


async def claim_producer(key: str, start: Any, takeover: bool, hub: Hub) -> Producer | None:
    """Return the stream's new producer; None if another process began the stream."""
    claim, token = await hub.claim(key, may_begin=True, takeover=takeover, longest_ttl=None)
    while takeover and claim.state is ClaimState.LOST:
        missing = MissingLease(hub.loop.time(), claim.fence_ttl)
        # A live producer renews its lease within this time if the store has evicted it.
        await asyncio.sleep(hub.settings.grace)
        ttl = missing.longest_ttl(hub.loop.time(), hub.settings)
        claim, token = await hub.claim(key, may_begin=True, takeover=True, longest_ttl=ttl)
    return new_producer(hub, start, None, token, claim) if claim.state is ClaimState.ELECTED else None


async def _call_start_in_thread(start: Any, loop: asyncio.AbstractEventLoop | None, producer: Producer) -> None:
    await loops.run_in_daemon_thread(_THREAD_NAME, _call_start_for_takeover, start, loop, producer)


def _call_start_for_takeover(start: Any, loop: asyncio.AbstractEventLoop | None, producer: Producer) -> None:
    try:
        started = _call(producer, start)
        if loop is None:
            started = _iterated(producer, started)
        elif inspect.isawaitable(started.result) or _is_async_iterable(started.result):
            # Else the loop is not needed: it may have ended since.
            started = asyncio.run_coroutine_threadsafe(_awaited(producer, started), loop).result()
        producer.set_upstream(_upstream_of(started, threads.start_os_worker))
    except BaseException as error:
        # No caller waits in this thread. Even an exit is only logged here: it must not end the loop.
        logger.warning("taking over a stream failed: %s", type(error).__name__)
        # Any error is written to the log, else each reader would elect itself and fail in the same way.
        producer.set_start_error(as_callback_error(error, "start"))
