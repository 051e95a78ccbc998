"""Frames: a relay's bytes as an iterator, with heartbeats and a check for a disconnect.

Every piece is one or more whole frames. `_base_frames.py` says which thread writes which field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sseqbridge._engine.bridge import run_posted_calls
from sseqbridge._runtime.clock import clock
from sseqbridge._signatures import show_members_of

from . import _live
from ._base_frames import LONG, PIECE_BYTES, BaseFrames
from ._disconnect import ClientDisconnected
from ._ending import Ending
from ._opening import FunctionSource
from ._options import RelayOptions
from ._refused import is_refusal, refusal
from ._writer import HEARTBEAT, Writer

if TYPE_CHECKING:
    from sseqbridge._streams.reader import ItemReader

    from ._source import Source

__all__ = ["Frames"]

# How long close() waits for the source's threads, and then for the loops, where they would stop after the request.
_CLOSE_SECONDS = 3.0


class Frames(BaseFrames):
    """An iterator of bytes, each one or more whole frames, for a WSGI server.

        pieces = frames(partial(request_sse, url, headers, data))
        pieces.open()  # raises StatusError before the response has begun

    `frames` returns it.
    """

    def __init__(
        self,
        source: Source,
        writer: Writer,
        options: RelayOptions,
        ending: Ending,
        disconnected: ClientDisconnected,
        *,
        must_wait: bool = False,
    ) -> None:
        """`must_wait`: no other thread runs after the request, so that close() waits for the source's threads."""
        super().__init__(source, writer, options, ending)
        self._source = source
        self._disconnected = disconnected
        self._must_wait = must_wait
        self._probe = LONG if disconnected.probe is None else disconnected.probe

    def __del__(self) -> None:
        # Usually after close(), which servers call.
        self._drop()

    def __iter__(self) -> Frames:
        return self

    def open(self) -> None:
        """Call the function in place of the stream now, and wait for the upstream's headers.

        Before the web server sends the headers of the response: the application can still choose its status. Does
        nothing if the stream is open. Raises StatusError if the upstream refuses, with the body, and the function's
        exceptions.
        """
        refused = self.open_upstream()
        if refused is not None and is_refusal(refused):
            error = refusal(refused)
            self.close()
            assert error is not None
            raise error

    def open_upstream(self) -> ItemReader[Any] | None:
        """Do the same as `open`, but return the reader of a refusal. For use within the package."""
        if isinstance(self._source, FunctionSource) and not self._ended:
            self._begin()
            try:
                self._is_being_read = True
                # Not after end_all(): the client then gets the event "shutdown" alone.
                if self._last_frame is None:
                    self._source.open()
                self._is_being_read = False
            except BaseException as exc:
                self._is_being_read = False
                if not self._disconnected.is_set():
                    self._note_failure(exc)
                self.close()
                raise
            if self._ended or self._disconnected.is_set():
                self.close()
        refused = self._source.refused
        if refused is not None:
            self.note_refusal(refused)
        return refused

    def __next__(self) -> bytes:
        self._begin()
        try:
            self._is_being_read = True
            piece = self._next_piece()
            self._is_being_read = False
            return piece
        except StopIteration:
            self._is_being_read = False
            self._conclude()
            raise
        except BaseException as exc:
            # An interrupt: the frames that were taken are lost, so that none may follow.
            self._ended = True
            self._is_being_read = False
            self._note("error", exc)
            self._source.abandon()
            raise

    def _next_piece(self) -> bytes:
        while not self._ended:
            if self._last_frame is not None:
                self._source.close()
                return self._take_last_frame()
            # Checked here, not only on timeout: `map` may leave out every event.
            if self._disconnected.is_set():
                self.close()
                break
            try:
                piece = self._collect(min(self._wait(), self._probe))
            except StopIteration:
                if self._last_frame is not None or self._disconnected.is_set():
                    continue
                last = self._end_of_source()
                if last:
                    return last
            except Exception as exc:
                if self._last_frame is not None or self._disconnected.is_set():
                    continue
                try:
                    report = self._fail(exc)
                finally:
                    self._source.close()
                if report:
                    return report
            if self._ended:
                break
            if piece or self._wait() <= 0:
                return self._send(piece or HEARTBEAT)
        raise StopIteration

    def _collect(self, timeout: float) -> bytes:
        """Return the frames that have arrived, up to one piece, waiting for the first; b"" if `timeout` elapses."""
        if self._failure is not None:
            raise self._failure
        frame = self._source.next(timeout)
        if frame is None:
            return b""
        collected, size = [frame], len(frame)
        until = self._begin_piece()
        while size < PIECE_BYTES and clock.monotonic() < until:
            try:
                frame = self._source.next(0.0)
            except StopIteration:
                break
            except Exception as exc:
                self._failure = exc
                break
            if frame is None:
                break
            collected.append(frame)
            size += len(frame)
        return b"".join(collected)

    def close(self) -> None:
        """Abort the upstream, or end the iterable; WSGI servers call it."""
        self._note("disconnected")
        self._ended = True
        self._disconnected.end_request()
        self._source.close()
        if self._must_wait:
            self._source.wait_ended(_CLOSE_SECONDS)
            run_posted_calls(_CLOSE_SECONDS)
        if not self._is_being_read:
            self._conclude()

    def discard(self) -> None:
        """Close the relay without a call of `on_end`: for HEAD. For use within the package."""
        self._ending.discard()
        self.close()

    def _conclude(self) -> None:
        _live.remove(self)
        self._wait_for_on_item()
        self._ending.call(self._relay_end())


show_members_of(Frames, BaseFrames)
