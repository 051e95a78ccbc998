"""A consumer's place in a stream: entries of a subscription become items, one after another.

Only the consumer that holds the stream's claim (see reader.py) calls the methods and writes the fields.
Any thread may read `outcome`, `last_event`, `last_event_id`, `retry`, and call `abort`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sseqbridge._engine.batches import Batch
from sseqbridge._engine.channel import CLOSED, End
from sseqbridge._engine.last_block import warn_of_dropped_event
from sseqbridge._engine.last_read import note_read
from sseqbridge._engine.reconnection_notice import Reconnecting, call_on_reconnect
from sseqbridge._engine.responses import Body, status_error
from sseqbridge._engine.scope import current_scope, is_cancelled
from sseqbridge._exceptions import CallbackError, StatusError
from sseqbridge._sse.events import Comment, ServerSentEvent, copied

from .subscription import Subscription

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag
    from sseqbridge._engine.channel import Outcome
    from sseqbridge._engine.reconnection_notice import OnReconnect
    from sseqbridge._engine.responses import Head
    from sseqbridge._engine.stream_task import Entry

    from .decoding import Decoder

__all__ = ["Cursor"]

T = TypeVar("T")

# An event, and the ID behind the batch if the event is the last one of its batch.
Position = tuple[ServerSentEvent | None, str | None]

_NO_ITEMS: Iterator[Any] = iter(())


class Cursor(Generic[T]):
    """The current batch, the position behind it, and how the stream ended."""

    __slots__ = (
        "_accepted",
        "_batch",
        "_body",
        "_cancel",
        "_on_reconnect",
        "_retry",
        "channel",
        "committed_id",
        "decoder",
        "end",
        "has_cancel",
        "head",
        "is_draining",
        "items",
        "last_event",
        "subscription",
    )

    def __init__(
        self,
        subscription: Subscription,
        head: Head,
        decoder: Decoder,
        cancel: CancelFlag | None,
        on_reconnect: OnReconnect | None,
    ) -> None:
        self.subscription = subscription
        self.channel = subscription.channel
        self.head = head
        self.decoder = decoder
        self.has_cancel = cancel is not None
        self._cancel = cancel
        self._on_reconnect = on_reconnect
        # The undecoded items of the current batch. Every way of reading draws on this one iterator.
        self.items: Iterator[Any] = _NO_ITEMS
        self._batch: Batch | None = None
        self._body: Body | None = None
        self.last_event: ServerSentEvent | None = None
        # The last event ID behind the last batch that was consumed whole; None within a batch.
        self.committed_id: str | None = subscription.initial_event_id
        # The reconnection time before the current batch.
        self._retry: float | None = None
        # The event of a last block without its blank line that the caller's `done` function has accepted.
        self._accepted: ServerSentEvent | None = None
        self.end: End | None = None
        # Whether the caller's `done` function ended the stream, and the rest of the body is being read.
        self.is_draining = False

    def fork(self, subscription: Subscription) -> Cursor[T]:
        """Return a cursor over another subscription that decodes in the same way."""
        return Cursor(subscription, self.head, self.decoder, self._cancel, self._on_reconnect)

    # From any thread.

    @property
    def is_open(self) -> bool:
        """Whether the stream has neither ended nor been closed."""
        return self.end is None and not self.channel.closed

    @property
    def outcome(self) -> Outcome | None:
        """None while the stream is open, then "done", "eof", "closed" or "error"."""
        if self.end is not None:
            return self.end.outcome
        return "closed" if self.channel.closed else None

    @property
    def last_event_id(self) -> str:
        """The last event ID that the consumer has reached; "" if there is none."""
        # Each field is read once, since the consumer's thread may be writing them.
        committed_id = self.committed_id
        if committed_id is not None:
            return committed_id
        event = self.last_event
        return "" if event is None else event.id

    @property
    def retry(self) -> float | None:
        """The reconnection time that the server has asked for up to the last item, in seconds; None if it has not."""
        batch = self._batch
        if batch is None:
            return self._retry
        return batch.retry_at(self.last_event, self._retry)

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item; None if there is none."""
        return self.subscription.done_event

    def abort(self) -> None:
        """Close the channel and abort the request. Safe between any two bytecodes: no lock, no wait."""
        if not self.subscription.is_inherited:
            self.subscription.abort()

    # The consumer's.

    @property
    def is_refused(self) -> bool:
        """Whether the response is neither an event stream nor a 204."""
        return not self.head.is_stream and self.head.status != 204

    @property
    def lacks_body(self) -> bool:
        """Whether the body of an error response may still arrive."""
        return self._body is None and self.is_open

    def status_error(self) -> StatusError:
        """Return the error for the response's status, with as much of the body as has arrived."""
        body = self._body or Body(b"", None if self.end is None else self.end.error)
        return status_error(self.subscription.target, self.head, body)

    @property
    def body(self) -> Body | None:
        """The body of an error response, once it was received."""
        return self._body

    @property
    def on_reconnect(self) -> OnReconnect | None:
        """The caller's function, which the consumer calls for each attempt to reconnect."""
        return self._on_reconnect

    def unread(self) -> list[Batch | Body]:
        """Return the part of the current entry that was not consumed, as entries."""
        items = list(self.items)
        if not items or isinstance(items[0], Body):
            return items
        assert self._batch is not None
        return [self._batch.rest(items)]

    @property
    def position(self) -> Position:
        """The last event that was reached, and `committed_id`."""
        return self.last_event, self.committed_id

    @property
    def inline_decode(self) -> Callable[[Any], Any] | None:
        """The function that makes the items of the current entry, for loops that do the rest of item().

        None: call item(). Comments, and the body of an error response, are no events.
        """
        decoder, batch = self.decoder, self._batch
        if batch is None or decoder.has_done_function:
            return None
        return None if decoder.may_get_comments and Comment in set(map(type, batch.items)) else decoder.item

    def item(self, event: Any) -> T:
        """Return the item for an event, a comment, or an error response's body."""
        decoder = self.decoder
        try:
            if type(event) is Body:
                return decoder.body(event.content)  # type: ignore[no-any-return]
            item: T = decoder.item(event)
            is_last = (
                decoder.has_done_function
                and type(event) is not Comment
                and (event is self._accepted or decoder.is_last(event, item))
            )
        except Exception as exc:
            self.fail(exc)
            raise
        if type(event) is not Comment:
            self.last_event = event
            self.committed_id = None
            if is_last:
                self._finish()
        return item

    def _finish(self) -> None:
        """End the stream, since the caller's `done` function accepted an event."""
        self.end = End("done")
        self.is_draining = True
        self.channel.close()
        self.subscription.drain()

    def lose(self, position: Position | None = None) -> None:
        """End the stream as "closed", since an interrupted call may have taken items.

        `position` is that of the last item that was delivered, if the stream's own may be ahead of it. A stream that
        has ended has lost an item only if its position is ahead.
        """
        is_ahead = position is not None and self.last_event is not position[0]
        if not self.is_open and not is_ahead:
            return
        if self.end is not None:
            if self.end.error is not None:
                return
            self.end = CLOSED
        if position is not None:
            self.last_event, self.committed_id = position
        self.abort()

    def fail(self, exc: Exception) -> None:
        """End the stream with an error, which every later read raises again."""
        self.end = End("error", exc)
        self.abort()

    def enter_scope(self) -> None:
        """Let the stream belong to the consumer's scope. Raises Cancelled if that is cancelled."""
        subscription, scope = self.subscription, current_scope()
        ownership = subscription.ownership
        if scope is not None or ownership.scope is not None:
            ownership.enter(subscription, scope)
        else:
            # As enter() does: the read of another stream makes an earlier note void.
            note_read(found_cancelled=False)

    def note_end(self) -> None:
        """Tell the consumer's iterable, if it is one, that a read has found the stream's end."""
        if self.outcome == "closed":
            note_read(found_cancelled=True)

    def leave_batch(self) -> bool:
        """Commit the current batch, which was consumed whole. Returns False if no entry can follow."""
        self.enter_scope()
        self.subscription.check_process()
        if self._batch is not None:
            # As is_open, inlined: this runs for every batch.
            if self.end is None and not self.channel.closed:
                self.committed_id, self._retry = self._batch.last_event_id, self._batch.retry
            else:
                # It was not consumed whole: the last event is the position.
                self._retry = self.retry
            self._batch = None
        if self.end is not None:
            if self.end.error is not None:
                # Without the frames of earlier raises, which would accumulate.
                raise self.end.error.with_traceback(None)
            return False
        # As is_stopped(), inlined for streams without a flag.
        return not (self.channel.closed or (self.has_cancel and self.is_stopped()))

    def is_stopped(self) -> bool:
        """Whether close() was called or the caller's cancel flag is set: no further item is wanted."""
        if self.has_cancel and self.is_open:
            try:
                if is_cancelled(self._cancel):
                    self.abort()
            except CallbackError as exc:
                self.fail(exc)
                raise
        return self.channel.closed

    def accept(self, entry: Entry | End) -> None:
        """Make an entry the current one. Raises the stream's error if the entry is one."""
        if isinstance(entry, Batch):
            if not self.decoder.keeps_heartbeats:
                entry = entry.without_heartbeats(self.decoder.rules)
            if self.subscription.shares_events:
                # Other readers must not notice if the consumer changes an event.
                entry = entry.with_own_items()
            self._batch, self.items = entry, iter(entry.items)
            if entry.incomplete is not None:
                self._accept_incomplete(entry.incomplete)
        elif isinstance(entry, Reconnecting):
            try:
                call_on_reconnect(self._on_reconnect, entry)
            except Exception as exc:
                self.fail(exc)
                raise
        elif isinstance(entry, Body):
            self._body = entry
            if not self.decoder.gives_body or entry.error is not None:
                self.fail(self.status_error())
            elif entry.content:
                self.items = iter((entry,))
        else:
            assert isinstance(entry, End)
            self.end = entry
        if self.end is not None and self.end.error is not None:
            raise self.end.error

    def _accept_incomplete(self, event: ServerSentEvent) -> None:
        """Make the event of a last block without its blank line an item, if it is the stream's last event."""
        try:
            is_last = self.decoder.is_last(event)
        except Exception as exc:
            self.fail(exc)
            raise
        if is_last:
            own: Any = copied(event) if self.subscription.shares_events else event
            self._accepted = own
            self.items = iter((own,))
        else:
            warn_of_dropped_event(self.subscription.target, event)
