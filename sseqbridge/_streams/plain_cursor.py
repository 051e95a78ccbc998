"""A consumer's place in a stream whose items are not events: the items of an asynchronous iterable.

The rules of cursor.py hold: only the consumer that holds the stream's claim calls the methods and writes the fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sseqbridge._checks import CancelFlag
from sseqbridge._engine.batches import Batch
from sseqbridge._engine.channel import CLOSED
from sseqbridge._engine.responses import made_head

from .cursor import Cursor
from .decoding import Decoder
from .subscription import Subscription

if TYPE_CHECKING:
    from sseqbridge._engine.channel import End
    from sseqbridge._engine.stream_task import Entry

    from .cursor import Position

__all__ = ["PlainCursor"]

T = TypeVar("T")

# In place of the head of a response, and of the caller's options.
_HEAD = made_head(200, {})
_DECODER = Decoder("event", None, "raise")


class _Mark(str):
    """An empty event ID, which differs from another one by its identity."""

    __slots__ = ()


class PlainCursor(Cursor[T]):
    """A cursor that returns the items as they are. `last_event` stays None, and `last_event_id` "".

    For `lose`, another `committed_id` for each batch stands in place of a last event.
    """

    __slots__ = ()

    def __init__(self, subscription: Subscription, cancel: CancelFlag | None) -> None:
        super().__init__(subscription, _HEAD, _DECODER, cancel, None)

    def fork(self, subscription: Subscription) -> PlainCursor[T]:
        """Return a cursor over another subscription of the same items."""
        return PlainCursor(subscription, self._cancel)

    @property
    def last_event_id(self) -> str:
        return ""

    @property
    def inline_decode(self) -> None:
        return None

    def leave_batch(self) -> bool:
        """Release the current batch. Returns False if no entry can follow."""
        mark = self.committed_id
        try:
            return super().leave_batch()
        finally:
            self.committed_id = mark

    def lose(self, position: Position | None = None) -> None:
        """End the stream as "closed", also after its end if batches were taken since `position`."""
        is_ahead = position is not None and self.committed_id is not position[1]
        if is_ahead and self.end is not None and self.end.error is None:
            self.end = CLOSED
        super().lose(position)

    def accept(self, entry: Entry | End) -> None:
        """Make an entry the current one; the readers of a tee share its items. Raises the stream's error."""
        if isinstance(entry, Batch):
            self._batch, self.items = entry, iter(entry.items)
            self.committed_id = _Mark()
        else:
            super().accept(entry)

    def item(self, event: Any) -> T:
        """Return the item."""
        return event  # type: ignore[no-any-return]
