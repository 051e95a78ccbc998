"""Beginning a stream: whoever was elected calls `start`, and gives the producer what it returned.

That is the thread of whoever opens the stream, a coroutine's loop with a thread for `start`, or, where
a reader that is under way takes a stream over, a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from sseqbridge._engine.scope import surrounding_cancel
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import loops
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._streams.aio import AsyncEventStream, AsyncSSEResponse
from sseqbridge._streams.stream import reader_of
from sseqbridge._streams.sync import EventStream, SSEResponse

from ._entries import START, Position
from ._hub import Hub
from ._producer import Producer, as_callback_error
from ._store import Token

__all__ = ["abegin", "begin", "check_start", "elect", "elected"]

logger = logging.getLogger("sseqbridge")

T = TypeVar("T")


def check_start(start: Any) -> Any:
    """Return a function that begins a stream. Raises UsageError for what is none."""
    if not callable(start):
        raise UsageError(
            f"start is a {type(start).__name__}; it is a function that returns what request_sse does, "
            "as in start=lambda: request_sse(url, headers, data)"
        )
    return start


def begin(producer: Producer, start: Any) -> None:
    """Call `start` here, and give the producer what comes of it. Raises what `start` raises."""
    try:
        producer.begin(_events_of(_call(producer, start)))
    except BaseException as error:
        producer.refuse(error)
        raise


async def abegin(producer: Producer, start: Any) -> None:
    """Do the same in a coroutine: `start` is called in a thread, and an awaitable that it returns is awaited here.

    An exit that `start` raises is a CallbackError: raised here, it would end the caller's event loop.
    """
    try:
        with CallersCode("start", passes=Exception):
            stream = await loops.run_in_daemon_thread("sseqbridge-start", _call, producer, start, discard=_discard)
        if inspect.isawaitable(stream):
            stream = await _awaited(producer, stream)
        producer.begin(_events_of(stream))
    except BaseException as error:
        producer.refuse(error)
        raise


def _call(producer: Producer, start: Callable[[], T]) -> T:
    with _ended_by(producer):
        return start()


@contextlib.contextmanager
def _ended_by(producer: Producer) -> Iterator[None]:
    """Have the requests that are made here end with the producer, and not with a reader that is being served."""
    token = surrounding_cancel.set(producer)
    try:
        yield
    finally:
        surrounding_cancel.reset(token)


def _discard(stream: Any) -> None:
    """Nobody waits any more for what `start` has returned."""
    if inspect.iscoroutine(stream):
        stream.close()
    elif isinstance(stream, (SSEResponse, AsyncSSEResponse)):
        reader_of(stream.events).abort()


def _events_of(stream: Any) -> EventStream[Any] | AsyncEventStream[Any]:
    events = stream.events if isinstance(stream, (SSEResponse, AsyncSSEResponse)) else stream
    if not isinstance(events, (EventStream, AsyncEventStream)):
        raise UsageError(f"start returned a {type(stream).__name__}; it returns what request_sse does")
    return events


# In the loop's thread.


def elected(hub: Hub, start: Any, loop: asyncio.AbstractEventLoop | None, token: Token, last: Position) -> Producer:
    """Make the producer of a stream, for a reader: `loop` is an asynchronous one's."""
    producer = Producer(hub, token, last, partial(_take_over, start, loop))
    producer.start()
    return producer


async def _take_over(start: Any, loop: asyncio.AbstractEventLoop | None, producer: Producer) -> None:
    """Begin a stream anew for a reader that is under way: its own thread has other things to do."""
    await loops.run_in_daemon_thread("sseqbridge-start", _begin_elsewhere, start, loop, producer)


def _begin_elsewhere(start: Any, loop: asyncio.AbstractEventLoop | None, producer: Producer) -> None:
    try:
        stream = _call(producer, start)
        if inspect.isawaitable(stream):
            assert loop is not None
            stream = asyncio.run_coroutine_threadsafe(_awaited(producer, stream), loop).result()
        producer.begin(_events_of(stream))
    except BaseException as error:
        # No more than told: an exit, too, would end the loop of all streams there.
        logger.warning("taking a stream over failed: %s", type(error).__name__)
        # Written, whatever it was: else the next reader would find the same, and so on.
        producer.refuse(as_callback_error(error, "start"))


async def _awaited(producer: Producer, awaitable: Awaitable[T]) -> T:
    with _ended_by(producer), CallersCode("start", passes=Exception):
        return await awaitable


async def elect(key: str, start: Any, takeover: bool, hub: Hub) -> Producer | None:
    """Return the stream's new producer, who is to begin; None where it is somebody else's."""
    claim, token = await hub.claim(key, may_begin=True, takeover=takeover)
    return elected(hub, start, None, token, claim.last or START) if claim.state == "elected" else None
