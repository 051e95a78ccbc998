"""A producer's upstream: the entries of a stream, or the items of an iterable, become the fields of log entries.

Runs on the loop thread, except the constructors and `open`, which run in the thread that called `start`, and `abort`,
which is thread-safe. The caller's functions (`done`, `on_reconnect`) may block, so they run in threads of their own,
while `gather` awaits them. An iterable runs, and its items are encoded, in a worker thread.

| field                   | written by                                            | guarded by                         |
|-------------------------|-------------------------------------------------------|------------------------------------|
| `end`                   | the loop thread; the thread of `done` during `gather` | the loop thread awaits that thread |
| `_unread`, `_recorded`  | the loop thread                                       | no other thread reads it           |
| `_detached`, `_channel` | `open`                                                | written before the producer has it |
"""

from __future__ import annotations

import abc
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sseqbridge._engine.batches import EVENT_OVERHEAD, Batch
from sseqbridge._engine.channel import CLOSED, End
from sseqbridge._engine.last_block import warn_of_dropped_event
from sseqbridge._engine.reconnection_notice import Reconnecting, call_on_reconnect
from sseqbridge._engine.responses import Body, status_error
from sseqbridge._exceptions import CallbackError, SSEError, UsageError, bridge_error_of
from sseqbridge._runtime.loops import run_in_daemon_thread
from sseqbridge._sse.encoder import encode, item_event
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge._streams.plain_cursor import PlainCursor
from sseqbridge._streams.worker import IterableWorker

from ._entries import event_fields, refusal_fields
from ._errors import as_callback_error

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterable

    from sseqbridge._engine.channel import Outcome
    from sseqbridge._exceptions import StatusError
    from sseqbridge._streams.reader import Detached, ItemReader

__all__ = ["IterableUpstream", "StreamUpstream", "Upstream"]

logger = logging.getLogger("sseqbridge")

# The limits of one append, in bytes of data and in events: enough to catch up, not enough to delay other streams.
_APPEND_BYTES = 256 * 1024
_APPEND_EVENTS = 1000


class Upstream(abc.ABC):
    """Where a producer's entries come from. `end` is set once all of its entries were returned."""

    end: End | None = None

    @abc.abstractmethod
    def open(self) -> None:
        """Become the only consumer, before all other calls. Raises UsageError if there is one."""

    @property
    @abc.abstractmethod
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item; None if there is none."""

    @property
    @abc.abstractmethod
    def outcome(self) -> Outcome | None:
        """How the stream ended; None while it is open."""

    @property
    @abc.abstractmethod
    def is_ended(self) -> bool:
        """Whether the end was recorded."""

    @abc.abstractmethod
    def record_end(self, end: End) -> None:
        """Make the outcome visible on the caller's stream object."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Abort the request, or end the iterable. Thread-safe and idempotent."""

    def fail(self, error: SSEError) -> None:
        """Abort the upstream, and end with an error."""
        self.abort()
        self.end = End("error", error)

    @abc.abstractmethod
    async def refusal(self) -> tuple[dict[str, str], StatusError] | None:
        """Return the fields and the error of a response that is not an event stream; None for an event stream."""

    @abc.abstractmethod
    async def gather(self) -> list[dict[str, str]]:
        """Return the entries that have arrived, waiting for the first."""


class StreamUpstream(Upstream):
    """A stream of request_sse, iterate or another function, which is detached from its reader."""

    def __init__(self, reader: ItemReader[Any]) -> None:
        reader.check_usable()
        self._reader = reader
        # The items of iterate() are the application's; the others are events that were parsed.
        self._is_plain = isinstance(reader.cursor, PlainCursor)

    def open(self) -> None:
        """Detach the stream. Raises UsageError if it has a consumer."""
        self._detached: Detached = self._reader.detach()
        self._channel = self._detached.subscription.channel
        self._unread = self._detached.unread
        self.end = self._detached.end

    @property
    def done_event(self) -> ServerSentEvent | None:
        return self._detached.subscription.done_event

    @property
    def outcome(self) -> Outcome | None:
        return self._reader.cursor.outcome

    @property
    def is_ended(self) -> bool:
        return self._reader.cursor.end is not None

    def record_end(self, end: End) -> None:
        self._reader.cursor.end = end

    def abort(self) -> None:
        self._reader.abort()

    async def refusal(self) -> tuple[dict[str, str], StatusError] | None:
        head = self._detached.head
        if head.is_stream:
            return None
        body = await self._body()
        return refusal_fields(head, body), status_error(self._detached.subscription.target, head, body)

    async def _body(self) -> Body:
        """Return the body of a response that is not an event stream, as far as it arrived."""
        if self._detached.body is not None:
            return self._detached.body
        entry = await self._channel.areceive()
        return entry if isinstance(entry, Body) else Body(b"", entry.error if isinstance(entry, End) else None)

    async def gather(self) -> list[dict[str, str]]:
        fields: list[dict[str, str]] = []
        size = 0
        while self.end is None and size < _APPEND_BYTES and len(fields) < _APPEND_EVENTS:
            entry = await self._next_entry(may_wait=not fields)
            if entry is None:
                break
            if isinstance(entry, Batch):
                size += entry.charge
                decoder = self._detached.decoder
                kept = entry if decoder.keeps_heartbeats else entry.without_heartbeats(decoder.rules)
                await self._add(kept.items, fields)
                if entry.incomplete is not None:
                    await self._add_incomplete(entry.incomplete, fields)
            elif isinstance(entry, End):
                self.end = _sse_end(End("closed") if entry is CLOSED else entry)
            elif isinstance(entry, Reconnecting) and self._detached.on_reconnect is not None:
                await run_in_daemon_thread(
                    "sseqbridge-callback", partial(call_on_reconnect, self._detached.on_reconnect, entry)
                )
        return fields

    async def _next_entry(self, *, may_wait: bool) -> Any:
        if self._unread:
            return self._unread.pop(0)
        return await self._channel.areceive() if may_wait else self._channel.poll()

    async def _add(self, items: list[Any], fields: list[dict[str, str]]) -> None:
        if self._is_plain:
            self._add_plain(items, fields)
            return
        # Comments are not stored.
        events = [item for item in items if isinstance(item, ServerSentEvent)]
        if events and self._detached.decoder.has_done_function:
            events = await run_in_daemon_thread("sseqbridge-done", self._up_to_last, events)
        fields.extend(map(event_fields, events))

    def _add_plain(self, items: list[Any], fields: list[dict[str, str]]) -> None:
        try:
            fields.extend(entry for item in items if (entry := _item_fields(item)) is not None)
        except CallbackError as error:
            # The items before it are written.
            self.fail(error)

    async def _add_incomplete(self, event: ServerSentEvent, fields: list[dict[str, str]]) -> None:
        """Add the event of a last block without its blank line, if the `done` function accepts it."""
        if await run_in_daemon_thread("sseqbridge-done", self._detached.decoder.is_last, event):
            self.end = End("done")
            fields.append(event_fields(event))
        else:
            warn_of_dropped_event(self._detached.subscription.target, event)

    def _up_to_last(self, events: list[Any]) -> list[Any]:
        for count, event in enumerate(events, 1):
            if self._detached.decoder.is_last(event):
                self.end = End("done")
                self._detached.subscription.drain()
                return events[:count]
        return events


class IterableUpstream(Upstream):
    """An iterable of the application's, which runs in a worker thread, in a scope of its own.

    It runs in a copy of `context`. `start_thread` starts the worker thread.
    """

    def __init__(
        self, items: Iterable[Any], context: contextvars.Context, start_thread: Callable[..., object]
    ) -> None:
        self._worker: IterableWorker[dict[str, str]] = IterableWorker(
            items, _charged_fields, max_buffered=_APPEND_BYTES, context=context, start_thread=start_thread
        )
        self._recorded: End | None = None

    def open(self) -> None:
        """Start the worker thread, in the thread that called `start`: under gevent the worker is a greenlet of it."""
        self._worker.start()

    @property
    def done_event(self) -> None:
        return None

    @property
    def outcome(self) -> Outcome | None:
        if self._recorded is not None:
            return self._recorded.outcome
        return "closed" if self._worker.is_closed else None

    @property
    def is_ended(self) -> bool:
        return self._recorded is not None

    def record_end(self, end: End) -> None:
        self._recorded = end

    def abort(self) -> None:
        self._worker.close()

    async def refusal(self) -> None:
        return None

    async def gather(self) -> list[dict[str, str]]:
        fields: list[dict[str, str]] = []
        size = 0
        while self.end is None and size < _APPEND_BYTES and len(fields) < _APPEND_EVENTS:
            entry = self._worker.poll() if fields else await self._worker.areceive(None)
            if entry is None:
                break
            if isinstance(entry, End):
                self.end = _sse_end(entry)
            else:
                fields.append(entry)
                size += len(entry["data"])
        return fields


def _charged_fields(item: Any) -> tuple[dict[str, str], int] | None:
    """Return the fields of the entry for an item, and their charge; None if nothing is written for it."""
    fields = _item_fields(item)
    return None if fields is None else (fields, len(fields["data"]) + EVENT_OVERHEAD)


def _item_fields(item: Any) -> dict[str, str] | None:
    """Return the fields of the entry for an item of the application's; None if nothing is written for it.

    Raises CallbackError for an unfit item, also for one that no relay could send.
    """
    try:
        event = item_event(item, "an item of the stream of `start`")
        if not isinstance(event, ServerSentEvent):
            return None
        encode(replace(event, id=""))
    except (UsageError, TypeError, ValueError, RecursionError) as exc:
        raise CallbackError(f"an item cannot be written to a log: {exc}") from exc
    return event_fields(event)


def _sse_end(end: End) -> End:
    """Return the end of an upstream, with an SSEError for an error of an iterable."""
    error = end.error
    if error is None:
        return end
    closed = bridge_error_of(error)
    if closed is not None:
        # Also if an SDK, or the iterable, has raised another error for it.
        return End(end.outcome, closed)
    if not isinstance(error, SSEError):
        # Readers get neither the exception nor its traceback.
        logger.error("an iterable that `start` returned has failed", exc_info=error)
    return End(end.outcome, as_callback_error(error, "the stream of `start`"))
