"""Where a stream's entries come from: the interface between the engine's side and readers of items.

A `StreamTask`, a tee's reader and a log's reader implement it. Everything above reading (merge, gather,
tee, relay, resume) stands on this protocol and on `ItemReader`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

    from sseqbridge._engine.channel import Channel
    from sseqbridge._engine.loop_state import Cancellable
    from sseqbridge._engine.scope import Ownership
    from sseqbridge._engine.stats import StreamStats
    from sseqbridge._engine.stream_task import Entry
    from sseqbridge._sse.events import ServerSentEvent

__all__ = ["Subscription"]


class Subscription(Protocol):
    """A source of entries, and the control of what produces them.

    One consumer at a time reads `channel`. The methods are thread-safe. `abort`, `drain` and
    `check_process` take no lock and never wait, so that they are safe in finalizers and signal handlers.
    """

    @property
    def shares_events(self) -> bool:
        """Whether the channel's events are also in other readers' channels: a consumer must not change them."""

    @property
    def channel(self) -> Channel[Entry]:
        """The channel that the entries arrive in; `channel.closed` once the consumer wants no more."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that fills the channel."""

    @property
    def target(self) -> str:
        """The name of the source in messages: a URL without query string and credentials, or a log's stream."""

    @property
    def initial_event_id(self) -> str:
        """The last event ID before the first entry; "" if there is none."""

    @property
    def done_event(self) -> ServerSentEvent | None:
        """The event that ended the stream and is no item; None if there is none."""

    @property
    def ownership(self) -> Ownership:
        """The scope that the subscription belongs to."""

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a forked child, and the subscription its parent's."""

    @property
    def finished(self) -> bool:
        """Whether the producer has ended, and its connection is closed or back in the pool."""

    @property
    def is_running(self) -> bool:
        """Whether entries may still arrive."""

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters."""

    def check_process(self) -> None:
        """Raise UsageError in a forked child."""

    def in_loop_thread(self) -> bool:
        """Whether the caller runs on `loop`, where it must not wait for the loop."""

    def abort(self) -> None:
        """Close the channel and abort the request."""

    def drain(self) -> None:
        """Deliver no more entries, but let the rest of the body be read, so that the connection is reused."""

    def reconnect(self) -> None:
        """Drop the connection for a new one. Raises UsageError if the stream does not reconnect."""

    def watch(self, cancellable: Cancellable) -> None:
        """Let the loop check `cancellable` every 25 ms until it is finished."""

    def notify_finished(self, callback: Callable[[], object]) -> None:
        """Call `callback` once `finished` is True, on the loop's thread, or now."""

    def call_at_loop_end(self, callback: Callable[[], object]) -> None:
        """Call `callback` on the loop's thread when the loop ends, or now if it has ended."""

    def cancel_call_at_loop_end(self, callback: Callable[[], object]) -> None:
        """Undo call_at_loop_end()."""

    def wait_finished(self, timeout: float) -> None:
        """Wait until `finished` is True, at most `timeout` seconds. Not on the loop's thread."""

    async def await_finished(self, timeout: float) -> None:
        """Wait until `finished` is True, at most `timeout` seconds, in a coroutine of any loop."""
