"""The operations of a log, each for threads and for coroutines.

A reader that was elected finds its producer in its channel before the head, and has its caller call `start`.
"""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

from sseqbridge._engine.channel import End
from sseqbridge._engine.responses import Head
from sseqbridge._engine.scope import check_scope
from sseqbridge._exceptions import RequestAbortedError
from sseqbridge._streams.aio import AsyncEventStream
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.reader import ItemReader
from sseqbridge._streams.sync import EventStream

from ._arguments import PreparedOpen, check_key
from ._producer import Producer
from ._reader import Reader
from ._start import acall_start, acall_start_shielded, call_start, check_start, claim_producer, new_producer

if TYPE_CHECKING:
    from sseqbridge._engine.channel import Outcome

    from ._hub import Hub
    from ._log_core import LogCore

__all__ = ["aopen_stream", "aproduce", "cancel_stream", "delete_stream", "open_stream", "produce"]


def open_stream(core: LogCore, prepared: PreparedOpen) -> EventStream[Any]:
    """Return a stream of the log after its head has arrived; see Log.open."""
    reader = _new_reader(prepared, core.hub(), None)
    try:
        # Started inside of the block: an interrupt leaves no reader running.
        core.start_reader(reader)
        while not isinstance(entry := reader.channel.receive(), Head):
            call_start(_producer_in(entry), prepared.start)
        return EventStream(_item_reader(reader, entry, prepared))
    except BaseException:
        reader.abort()
        raise


async def aopen_stream(core: LogCore, prepared: PreparedOpen) -> AsyncEventStream[Any]:
    """Do the same in a coroutine."""
    reader = _new_reader(prepared, await core.ahub(), asyncio.get_running_loop())
    try:
        core.start_reader(reader)
        while not isinstance(entry := await reader.channel.areceive(), Head):
            await acall_start_shielded(_producer_in(entry), prepared.start)
        return AsyncEventStream(_item_reader(reader, entry, prepared))
    except BaseException:
        reader.abort()
        raise


def _new_reader(prepared: PreparedOpen, hub: Hub, loop: asyncio.AbstractEventLoop | None) -> Reader:
    options = prepared.options._replace(callers_loop=loop)
    return Reader(hub, options, partial(new_producer, hub, prepared.start, loop))


def _producer_in(entry: object) -> Producer:
    """Return the producer that a reader elected. Raises the error of an End."""
    if isinstance(entry, Producer):
        return entry
    assert isinstance(entry, End)
    if entry.error is None:
        check_scope()
    raise entry.error or RequestAbortedError("the stream was closed before it had begun")


def _item_reader(reader: Reader, head: Head, prepared: PreparedOpen) -> ItemReader[Any]:
    return ItemReader(Cursor(reader, head, prepared.decoder, prepared.options.cancel, None))


def produce(core: LogCore, key: str, start: Any, *, takeover: bool) -> Outcome | None:
    """Write a stream to its end, and return its outcome; None if another process began it."""
    claim = partial(claim_producer, check_key(key), check_start(start), takeover)
    call = core.call(core.hub(), claim)
    try:
        producer = core.value_of(call)
        if producer is None:
            return None
        call_start(producer, start)
        return _outcome(producer.result.receive())
    except BaseException:
        # Aborts the producer too, also if an interrupt came before it was received.
        call.abort()
        raise


async def aproduce(core: LogCore, key: str, start: Any, *, takeover: bool) -> Outcome | None:
    """Do the same in a coroutine."""
    claim = partial(claim_producer, check_key(key), check_start(start), takeover)
    call = core.call(await core.ahub(), claim)
    try:
        producer = await core.avalue_of(call)
        if producer is None:
            return None
        await acall_start(producer, start)
        return _outcome(await producer.result.areceive())
    except BaseException:
        call.abort()
        raise


def _outcome(end: End) -> Outcome:
    if end.error is not None:
        raise end.error
    return end.outcome


async def cancel_stream(key: str, hub: Hub) -> bool:
    """Cancel a stream; False if there is none that has not ended. On the loop thread."""
    return await hub.retry_while_unavailable(hub.store.cancel, key, uuid.uuid4().hex)


async def delete_stream(key: str, hub: Hub) -> bool:
    """Delete a stream, and end its readers and its producer; False if there is none. On the loop thread."""
    return await hub.retry_while_unavailable(hub.store.delete, key, uuid.uuid4().hex)
