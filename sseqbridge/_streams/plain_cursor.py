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


class PlainCursor(Cursor[T]):
    """A cursor that returns the items as they are. `last_event` stays None, and `last_event_id` ""."""

    __slots__ = ("_newest",)

    def __init__(self, subscription: Subscription, cancel: CancelFlag | None) -> None:
        super().__init__(subscription, _HEAD, _DECODER, cancel, None)
        # In place of a last event: another object for each batch.
        self._newest: Any = object()

    def fork(self, subscription: Subscription) -> PlainCursor[T]:
        """Return a cursor over another subscription of the same items."""
        return PlainCursor(subscription, self._cancel)

    @property
    def position(self) -> Position:
        return self._newest, self.committed_id

    def lose(self, position: Position | None = None) -> None:
        """End the stream as "closed", as for events. A `position` of last_event, which is None, says nothing."""
        if position is not None and position[0] is not None:
            if self._newest is not position[0] and self.end is not None and self.end.error is None:
                self.end = CLOSED
            position = None, position[1]
        super().lose(position)

    @property
    def inline_decode(self) -> None:
        return None

    def accept(self, entry: Entry | End) -> None:
        """Make an entry the current one; the readers of a tee share its items. Raises the stream's error."""
        if isinstance(entry, Batch):
            self._batch, self.items = entry, iter(entry.items)
            self._newest = object()
        else:
            super().accept(entry)

    def item(self, event: Any) -> T:
        """Return the item."""
        return event  # type: ignore[no-any-return]
