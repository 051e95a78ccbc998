"""AsyncFrames: a relay's bytes as an asynchronous iterator, with heartbeats.

Every piece is one or more whole frames. `_base_frames.py` says which thread writes which field.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any

from sseqbridge._exceptions import Cancelled
from sseqbridge._runtime.clock import clock
from sseqbridge._runtime.loops import in_coroutine
from sseqbridge._signatures import show_members_of

from . import _live
from ._base_frames import PATIENCE_SECONDS, PIECE_BYTES, POLL_SECONDS, BaseFrames
from ._ending import Ending, start_task
from ._opening import AsyncFunctionSource
from ._options import RelayOptions
from ._refused import arefusal, is_refusal
from ._source import ApplicationError
from ._writer import HEARTBEAT, Writer, notice

if TYPE_CHECKING:
    from sseqbridge._streams.reader import ItemReader

    from ._source import AsyncSource

__all__ = ["AsyncFrames"]

logger = logging.getLogger("sseqbridge")


class AsyncFrames(BaseFrames):
    """An asynchronous iterator of bytes, each one or more whole frames, for an ASGI server.

        pieces = aframes(partial(arequest_sse, url, headers, data))
        await pieces.open()  # raises StatusError before the response has begun

    `aframes` returns it.
    """

    # The loop that reads the relay, None before the first read.
    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, source: AsyncSource, writer: Writer, options: RelayOptions, ending: Ending) -> None:
        super().__init__(source, writer, options, ending)
        self._source = source
        self._send_timeout = options["send_timeout"]
        self._send_timer: asyncio.TimerHandle | None = None

    def __del__(self) -> None:
        # Usually after aclose(), unless an error in the server has left its loop over the relay.
        self._drop(self._loop)

    def __aiter__(self) -> AsyncFrames:
        return self

    async def open(self) -> None:
        """Call the function in place of the stream now, and wait for the upstream's headers.

        Before the web server sends the headers of the response: the application can still choose its status. Does
        nothing if the stream is open. Raises StatusError if the upstream refuses, with the body, and the function's
        exceptions.
        """
        refused = await self.open_upstream()
        if refused is not None and is_refusal(refused):
            error = await arefusal(refused)
            await self.aclose()
            raise error

    async def open_upstream(self) -> ItemReader[Any] | None:
        """Do the same as `open`, but return the reader of a refusal. For use within the package."""
        source = self._source
        if isinstance(source, AsyncFunctionSource) and not self._ended:
            self._begin_on_loop()
            failure: BaseException | None = None
            try:
                self._is_being_read = True
                if self._last_frame is None:
                    await source.open()
                self._is_being_read = False
            except ApplicationError as exc:
                failure = exc.error
            except Exception as exc:
                failure = exc
            except BaseException as exc:
                self._is_being_read = False
                await self._leave(exc)
                raise
            if failure is not None:
                self._is_being_read = False
                self._note_failure(failure)
                await self.aclose()
                if isinstance(failure, Cancelled):
                    return None
                # Not in the block above: it keeps the cause and context of the application's exception.
                raise failure
            if self._ended:
                await self.aclose()
        refused = source.refused
        if refused is not None:
            self.note_refusal(refused)
        return refused

    def _begin_on_loop(self) -> None:
        self._begin()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()

    async def __anext__(self) -> bytes:
        self._begin_on_loop()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        try:
            self._is_being_read = True
            piece = await self._next_piece()
            self._is_being_read = False
        except StopAsyncIteration:
            self._is_being_read = False
            await self._aconclude()
            raise
        except BaseException as exc:
            # A cancellation: the server cancels the task when the client disconnects.
            self._is_being_read = False
            await self._leave(exc)
            raise
        if self._send_timeout is not None and self._loop is not None:
            self._send_timer = self._loop.call_later(
                self._send_timeout, _time_out_sending, weakref.ref(self), self._send_timeout
            )
        return piece

    async def _leave(self, error: BaseException) -> None:
        """End the relay in a coroutine that is being cancelled or closed."""
        if isinstance(error, (asyncio.CancelledError, Exception)):
            await self.aclose()
        else:
            # A coroutine that is closed must not wait.
            self.close()

    async def _next_piece(self) -> bytes:
        while not self._ended:
            if self._last_frame is not None:
                self._source.abandon()
                return self._take_last_frame()
            try:
                piece = await self._collect(self._wait())
            except StopAsyncIteration:
                if self._last_frame is not None:
                    continue
                last = self._end_of_source()
                if last:
                    return last
            except Exception as exc:
                if self._last_frame is not None:
                    continue
                try:
                    report = self._fail(exc)
                finally:
                    self._source.abandon()
                if report:
                    return report
            if self._ended:
                break
            if piece or self._wait() <= 0:
                return self._send(piece or HEARTBEAT)
            await asyncio.sleep(0)
        raise StopAsyncIteration

    async def _collect(self, timeout: float) -> bytes:
        """Return the frames that have arrived, up to one piece, waiting for the first; b"" if `timeout` elapses."""
        if self._failure is not None:
            raise self._failure
        frame = await self._source.anext(timeout)
        if frame is None:
            return b""
        collected, size = [frame], len(frame)
        until = self._begin_piece()
        while size < PIECE_BYTES and clock.monotonic() < until:
            try:
                frame = await self._source.anext(0.0)
            except StopAsyncIteration:
                break
            except Exception as exc:
                self._failure = exc
                break
            if frame is None:
                break
            collected.append(frame)
            size += len(frame)
        return b"".join(collected)

    def time_out_sending(self, seconds: float) -> None:
        """Abort the upstream, since the client has not read for so many `seconds`.

        For use within the package. Raises nothing.
        """
        if self._ended:
            return
        logger.warning("a relay's client has not read for %g s: its upstream is aborted", seconds)
        self._note("disconnected")
        self._last_frame = notice("error", "SendTimeout", "the answer was not read in time")
        self._source.abandon()
        # In a timer of the loop; it waits for a call of `on_item` that is under way.
        start_task(self._aconclude())

    def close(self) -> None:
        """Abort the upstream, or cancel the iterable's task, without waiting for it."""
        self._stop()
        if not self._is_being_read:
            _live.remove(self)
            self._conclude_elsewhere()

    async def aclose(self) -> None:
        """Abort the upstream, or cancel the iterable's task."""
        self._stop()
        if not self._is_being_read:
            await self._aconclude()

    def discard(self) -> None:
        """Close the relay without a call of `on_end`: for HEAD. For use within the package."""
        self._ending.discard()
        self.close()

    def _stop(self) -> None:
        self._note("disconnected")
        self._ended = True
        self._source.abandon()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def _conclude_elsewhere(self) -> None:
        if not in_coroutine():
            self._wait_for_on_item()
            self._ending.call_in_thread(self._relay_end(), self._loop)
        elif self._writer.end_observing():
            self._ending.call_later(self._relay_end(), asyncio.get_running_loop())
        else:
            start_task(self._aconclude())

    async def _aconclude(self) -> None:
        _live.remove(self)
        until = clock.monotonic() + PATIENCE_SECONDS
        while not self._writer.end_observing() and clock.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
        await self._ending.acall(self._relay_end())


show_members_of(AsyncFrames, BaseFrames)


def _time_out_sending(reference: weakref.ref[AsyncFrames], seconds: float) -> None:
    frames = reference()
    if frames is not None:
        frames.time_out_sending(seconds)
