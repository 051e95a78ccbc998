"""A producer's upstream: entries of a detached stream become the fields of log entries.

Runs on the loop thread, except the constructor, which runs in the thread that called `start`. The caller's
functions (`done`, `on_reconnect`) may block, so they run in threads of their own, while `gather` awaits them.

| field     | written by                                            | guarded by                         |
|-----------|-------------------------------------------------------|------------------------------------|
| `end`     | the loop thread; the thread of `done` during `gather` | the loop thread awaits that thread |
| `_unread` | the loop thread                                       | no other thread reads it           |
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sseqbridge._engine.batches import Batch
from sseqbridge._engine.channel import CLOSED, End
from sseqbridge._engine.last_block import warn_of_dropped_event
from sseqbridge._engine.reconnecting import Reconnecting, call_on_reconnect
from sseqbridge._engine.responses import Body, status_error
from sseqbridge._exceptions import CallbackError, UsageError
from sseqbridge._runtime.loops import run_in_daemon_thread
from sseqbridge._sse.encoder import item_text
from sseqbridge._sse.events import Comment, ServerSentEvent

from ._entries import event_fields
from ._errors import as_callback_error

if TYPE_CHECKING:
    from sseqbridge._engine.channel import Outcome
    from sseqbridge._engine.responses import Head
    from sseqbridge._exceptions import SSEError, StatusError
    from sseqbridge._streams.reader import Detached, ItemReader

__all__ = ["Upstream"]

# The limits of one append, in bytes of data and in events: enough to catch up, not enough to delay other streams.
_APPEND_BYTES = 256 * 1024
_APPEND_EVENTS = 1000


class Upstream:
    """A detached stream. `end` is set once all of its entries were returned."""

    def __init__(self, reader: ItemReader[Any], detached: Detached) -> None:
        self._reader = reader
        self._detached = detached
        self._channel = detached.subscription.channel
        self._unread = detached.unread
        self.end: End | None = detached.end

    @property
    def head(self) -> Head:
        """The head of the answer."""
        return self._detached.head

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item; None if there is none."""
        return self._detached.subscription.done_event

    @property
    def outcome(self) -> Outcome | None:
        """How the stream ended; None while it is open."""
        return self._reader.cursor.outcome

    def abort(self) -> None:
        """Abort the request."""
        self._reader.abort()

    def record_end(self, end: End) -> None:
        """Make the outcome visible on the caller's stream object."""
        self._reader.cursor.end = end

    @property
    def is_ended(self) -> bool:
        """Whether the end was recorded."""
        return self._reader.cursor.end is not None

    def fail(self, error: SSEError) -> None:
        """Abort the request, and end with an error."""
        self.abort()
        self.end = End("error", error)

    async def gather(self) -> list[dict[str, str]]:
        """Return the entries that have arrived, waiting for the first."""
        fields: list[dict[str, str]] = []
        size = 0
        while self.end is None and size < _APPEND_BYTES and len(fields) < _APPEND_EVENTS:
            entry = await self._next_entry(may_wait=not fields)
            if entry is None:
                break
            if isinstance(entry, Batch):
                size += entry.charge
                await self._add(entry.items, fields)
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
        events = [event for item in items if (event := _event_of(item)) is not None]
        if events and self._detached.decoder.has_done_function:
            events = await run_in_daemon_thread("sseqbridge-done", self._up_to_last, events)
        fields.extend(map(event_fields, events))

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

    async def body(self) -> Body:
        """Return the body of an answer that is not an event stream, as far as it arrived."""
        if self._detached.body is not None:
            return self._detached.body
        entry = await self._channel.areceive()
        return entry if isinstance(entry, Body) else Body(b"", entry.error if isinstance(entry, End) else None)

    def status_error(self, body: Body) -> StatusError:
        """Return the error for the answer's status."""
        return status_error(self._detached.subscription.target, self.head, body)


def _event_of(item: Any) -> ServerSentEvent | None:
    """Return the event that is written for an item, None if none is. Raises CallbackError for an unfit item."""
    if isinstance(item, ServerSentEvent):
        return item
    if item is None or isinstance(item, Comment):
        return None
    try:
        return ServerSentEvent(data=item_text(item, "an item of the stream of `start`"))
    except (UsageError, TypeError, ValueError, RecursionError) as exc:
        raise CallbackError(f"an item cannot be written to a log: {exc}") from exc


def _sse_end(end: End) -> End:
    """Return the end of an upstream, with an SSEError for an error of the asynchronous iterable of iterate()."""
    error = end.error
    return end if error is None else End(end.outcome, as_callback_error(error, "the stream of `start`"))
