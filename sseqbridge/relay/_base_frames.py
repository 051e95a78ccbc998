"""The common part of Frames and AsyncFrames: the times of heartbeats, and how a relay ended.

One thread (or coroutine) of the web server at a time asks for the next piece, and writes all fields except these:
`close` and `end_with` may be called by any thread, `end_with` in a signal handler too. `_last_frame` and `_end` are
written once each; of two writers at the same time, either may count.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sseqbridge._checks import NotCopyable
from sseqbridge._exceptions import CallbackError, DecodeError, SSEError, UsageError, is_cancellation
from sseqbridge._runtime import threads
from sseqbridge._runtime.clock import clock

from . import _live
from ._ending import Ending, RelayEnd
from ._refused import is_refusal
from ._source import ApplicationError
from ._upstream_errors import upstream_error_of
from ._writer import CANCELLED

if TYPE_CHECKING:
    import asyncio

    from sseqbridge._streams.reader import ItemReader

    from ._ending import Outcome
    from ._options import RelayOptions
    from ._source import BaseSource
    from ._writer import Writer

__all__ = ["LONG", "PATIENCE_SECONDS", "PIECE_BYTES", "POLL_SECONDS", "BaseFrames"]

logger = logging.getLogger("sseqbridge")

# Longest wait for a frame when no timeout is set.
LONG = 3600.0
# A piece is complete once it has this size.
PIECE_BYTES = 64 * 1024
# How long `on_end` waits for a call of `on_item` that is under way in the thread of an iterable.
PATIENCE_SECONDS = 1.0
POLL_SECONDS = 0.005
# How long frames are collected for one piece: `map` may be slow.
_COLLECT_SECONDS = 0.01


class BaseFrames(NotCopyable):
    """The state of Frames and AsyncFrames."""

    def __init__(self, source: BaseSource, writer: Writer, options: RelayOptions, ending: Ending) -> None:
        self._any_source = source
        self._writer = writer
        self._heartbeat = options["heartbeat"]
        self._ending = ending
        self._sent_at: float | None = None
        # The ID of the last event that the web server was given.
        self._sent_id = ""
        self._ended = False
        # How the relay ended, and its error; None until that is known.
        self._end: tuple[Outcome, BaseException | None] | None = None
        # A frame after which the relay ends, whatever its source does.
        self._last_frame: bytes | None = None
        # An error behind the frames of a piece; it is reported after them.
        self._failure: Exception | None = None
        # During a call that reads.
        self._is_being_read = False
        # Whether a first call has read.
        self._has_begun = False
        _live.add(self)

    def __repr__(self) -> str:
        state = "ended" if self._ended else "not begun" if self._sent_at is None else "open"
        return f"<{type(self).__name__} {state}>"

    def _begin(self) -> None:
        # An interrupt may leave the flag set where the relay has ended.
        if self._is_being_read and not self._ended:
            raise UsageError("a relay is read by one call at a time, and `map` or `decode` must not read it either")
        self._has_begun = True

    @property
    def ending(self) -> Ending:
        """Calls `on_end`."""
        return self._ending

    def end_with(self, frame: bytes) -> None:
        """Send `frame` next, and end the relay; for `end_all`. Thread-safe, safe in a signal handler.

        For use within the package. Raises nothing.
        """
        if not self._ended and self._last_frame is None:
            self._last_frame = frame
            self._note("cancelled")
            # A source that was not read may be the application's, whose close() must not run in a signal handler.
            if self._has_begun:
                self._any_source.interrupt()

    def _take_last_frame(self) -> bytes:
        frame, self._last_frame = self._last_frame or b"", None
        self._ended = True
        return frame

    def _note(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """Note how the relay ended. The first call counts."""
        if self._end is None:
            self._end = outcome, error

    def _relay_end(self) -> RelayEnd:
        """Return how the relay ended. A relay that ends for no other reason was left by its client."""
        self._note("disconnected")
        assert self._end is not None
        return RelayEnd(*self._end, self._sent_id)

    def _wait_for_on_item(self) -> None:
        """Let no further call of `on_item` begin, and wait shortly for one that is under way in another thread."""
        until = clock.monotonic() + PATIENCE_SECONDS
        while not self._writer.end_observing() and clock.monotonic() < until:
            threads.new_waiter().wait(POLL_SECONDS)

    def _drop(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Abort the upstream, and have `on_end` called later: the finalizer runs in any thread, in any code.

        `loop` is the event loop that has read the relay.
        """
        # The last attribute of __init__, which an interrupt may have ended.
        if not hasattr(self, "_has_begun"):
            return
        _live.remove(self)
        self._any_source.drop()
        if self._has_begun or self._ending.is_of_request:
            self._ending.drop(self._relay_end(), loop)

    def _end_of_source(self) -> bytes:
        """Note how the source ended. Returns the last frame."""
        source = self._any_source
        # Nothing after close(), which another thread may have called.
        last = b"" if self._ended else source.end()
        self._ended = True
        self._sent_id = source.last_event_id
        self._note(source.outcome or "disconnected", source.error)
        return last

    def _note_failure(self, error: BaseException) -> None:
        if is_cancellation(error):
            self._note("cancelled")
        else:
            self._note("error", error)

    def note_refusal(self, refused: ItemReader[Any]) -> None:
        """Note that the upstream has refused: the application sends another response, and then closes the relay.

        For use within the package. `refused` is the reader of the refusal. Raises nothing.
        """
        if is_refusal(refused):
            self._note("error", refused.cursor.status_error())
        else:
            # A 204: there is nothing to send.
            self._note("eof")

    def _wait(self) -> float:
        """Return how many seconds to wait for a frame before a heartbeat is due."""
        if self._sent_at is None:
            return 0.0
        return LONG if self._heartbeat is None else max(0.0, self._sent_at + self._heartbeat - clock.monotonic())

    def _begin_piece(self) -> float:
        """Return the time until which frames are collected for one piece."""
        return clock.monotonic() + _COLLECT_SECONDS

    def _send(self, piece: bytes) -> bytes:
        self._sent_at = clock.monotonic()
        self._sent_id = self._any_source.last_event_id
        return piece

    def _fail(self, error: BaseException) -> bytes:
        """End the relay and log the error. Returns the frame that reports it to the client."""
        self._ended = True
        if isinstance(error, ApplicationError):
            error = error.error
        self._note_failure(error)
        if is_cancellation(error):
            # A scope of this application that surrounds the iterable.
            return CANCELLED
        if isinstance(error, SSEError) or upstream_error_of(error) is not None:
            # The traceback helps where the application's own function failed.
            traceback_of = error if isinstance(error, (CallbackError, DecodeError)) else None
            logger.warning("a relayed stream ended with %s: %s", type(error).__name__, error, exc_info=traceback_of)
        else:
            logger.error("the application's code failed in a relay", exc_info=error)
        return self._writer.error(error)
