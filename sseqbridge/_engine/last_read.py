"""LastRead: whether an iterable was left without the rest of a stream, because this application ended the stream.

A stream that is ended by its cancel flag, by close() or by `log.cancel` ends the loop that reads it quietly. An
iterable over it would therefore look complete. So the code that runs an iterable records how its last read ended: each
reader of a stream notes it in the context of its consumer. Threads and tasks that run in a copy of the context share
the record.

Rule: an iterable was cut short if the last stream that it read was ended by this application, or its last `cancel_on`
block was cancelled. A later read of another stream makes the record void: the iterable continued without the first one.
A loop that is left by `break` has read no end. Of several threads that note something at the same time, any may win.
"""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["LastRead", "note_read", "record_reads"]


class LastRead:
    """How the last read in an iterable ended. Written by the iterable's threads and tasks: single assignments."""

    __slots__ = ("found_cancelled",)

    def __init__(self) -> None:
        # Whether it found a stream that this application has ended.
        self.found_cancelled = False


_current: ContextVar[LastRead | None] = ContextVar("sseqbridge-last-read", default=None)


def record_reads() -> LastRead:
    """Return a new record of the reads in the current context, which an iterable is about to run in."""
    record = LastRead()
    _current.set(record)
    return record


def note_read(*, found_cancelled: bool) -> None:
    """Note that a stream is being read, or that a read has found a stream that this application has ended."""
    record = _current.get()
    if record is not None:
        record.found_cancelled = found_cancelled
