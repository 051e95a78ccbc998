"""Frames and AsyncFrames: a relay's bytes as an iterator, with heartbeats and a check for a disconnect.

Every piece is one or more whole frames. `_base_frames.py` says which thread writes which field.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sseqbridge._checks import show_members_of
from sseqbridge._exceptions import Cancelled
from sseqbridge._runtime import threads
from sseqbridge._runtime.clock import clock
from sseqbridge._runtime.loops import in_coroutine

from . import _live
from ._base_frames import LONG, BaseFrames
from ._disconnect import ClientDisconnected, disconnect_flag
from ._ending import Ending
from ._opening import AsyncFunctionSource, FunctionSource
from ._options import ASYNC_WITHOUT, SYNC_WITHOUT, RelayOptions, describe, relay_options
from ._refused import arefusal, is_refusal, refusal
from ._source import ApplicationError
from ._upstream import Upstream
from ._writer import HEARTBEAT, Writer, notice

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sseqbridge._streams.reader import ItemReader

    from ._opening import Caller
    from ._options import AsyncRelayKeywords, SyncRelayKeywords
    from ._source import AsyncSource, Source

__all__ = ["AsyncFrames", "Frames", "aframes", "arelay", "frames", "relay"]

logger = logging.getLogger("sseqbridge")

# A piece is complete once it has this size.
_PIECE_BYTES = 64 * 1024
# How long `on_end` waits for a call of `on_item` that is under way in the thread of an iterable.
_PATIENCE_SECONDS = 1.0
_POLL_SECONDS = 0.005
# How long frames are collected for one piece: `map` may be slow.
_COLLECT_SECONDS = 0.01


def frames(stream: Any, *, environ: Mapping[str, Any] | None = None, **options: Unpack[SyncRelayKeywords]) -> Frames:
    """Return an iterator of bytes that a WSGI application can return; `close()` aborts the upstream.

        def application(environ, start_response):
            start_response("200 OK", list(EVENT_STREAM_HEADERS.items()))
            return frames(request_sse(url, headers, data), environ=environ)

    `stream` is the result of request_sse, whose events are forwarded unchanged, with their names and ids. It
    may also be any iterable, which runs in a thread of its own and is closed at its next `yield` when the
    client disconnects. Its items are str, dict or list (sent as JSON), ServerSentEvent, Comment, or None for
    nothing.

    `stream` may also be a function without arguments that returns one of these, such as one that calls request_sse.
    It is called at the first read, or by `open()`; once the client disconnects, its request is aborted.

    `environ` is the request's WSGI environment; without it there is no `probe`.

    If the stream, the function or `map` fails, the client gets an event named "error" (see `error`); the details are
    logged.

    Raises UsageError for arguments that cannot work, and for a stream that was read to its end; StatusError if
    the upstream's status is not 200.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("frames", options, without=SYNC_WITHOUT)
        checked.check_synchronous()
        upstream.check_synchronous()
        refused = upstream.refused
        if refused is not None and is_refusal(refused):
            error = refusal(refused)
            assert error is not None
            raise error
        return relay(upstream, checked, environ)


def aframes(stream: Any, **options: Unpack[AsyncRelayKeywords]) -> AsyncFrames:
    """Return the same as `frames` for an asynchronous server: an asynchronous iterator with `aclose()`.

        async for piece in aframes(await arequest_sse(url, headers, data)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    `stream` may also be the result of arequest_sse, or an asynchronous iterable, which runs in a task of its
    own, and is closed by cancelling the task; or a coroutine function that returns one of these. `map` and `on_item`
    are called on the event loop, except for an iterable; a plain function in place of a stream in a thread.

    Raises UsageError for arguments that cannot work; `open()`, or the first read, StatusError if the upstream's status
    is not 200.
    """
    with Upstream(stream) as upstream:
        return arelay(upstream, relay_options("aframes", options, without=ASYNC_WITHOUT))


describe(frames, without=(*SYNC_WITHOUT, "refusal"))
describe(aframes, without=(*ASYNC_WITHOUT, "refusal"))


def relay(
    upstream: Upstream,
    options: RelayOptions,
    environ: Mapping[str, Any] | None,
    after_work: Callable[[], object] | None = None,
    ending: type[Ending] = Ending,
) -> Frames:
    """Return the frames of an upstream for a WSGI server.

    `after_work` is called in the worker thread of an iterable after its end. `ending` says how `on_end` is called.
    """
    writer = Writer(options)
    disconnected = disconnect_flag(environ, options.probe)
    source = upstream.source(writer, after_work, early=options.early, cancel=disconnected)
    return Frames(source, writer, options, ending(options.on_end), disconnected)


def arelay(
    upstream: Upstream,
    options: RelayOptions,
    after_work: Callable[[], object] | None = None,
    ending: type[Ending] = Ending,
    caller: Caller | None = None,
) -> AsyncFrames:
    """Return the frames of an upstream for an ASGI server.

    `caller` awaits the call of a plain function that opens the upstream; None: in a thread of its own.
    """
    writer = Writer(options)
    source = upstream.async_source(writer, after_work, early=options.early, caller=caller)
    return AsyncFrames(source, writer, options, ending(options.on_end))


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
    ) -> None:
        super().__init__(source, writer, options, ending)
        self._source = source
        self._disconnected = disconnected
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
                if self._farewell is None:
                    self._source.open()
                self._is_being_read = False
            except BaseException as exc:
                self._is_being_read = False
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
            if self._farewell is not None:
                self._source.close()
                return self._say_farewell()
            # Checked here, not only on timeout: `map` may leave out every event.
            if self._disconnected.is_set():
                self.close()
                break
            try:
                piece = self._collect(min(self._wait(), self._probe))
            except StopIteration:
                if self._farewell is not None or self._disconnected.is_set():
                    continue
                last = self._end_of_source()
                if last:
                    return last
            except Exception as exc:
                if self._farewell is not None:
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
        until = clock.monotonic() + _COLLECT_SECONDS
        while size < _PIECE_BYTES and clock.monotonic() < until:
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
        if not self._is_being_read:
            self._conclude()

    def discard(self) -> None:
        """Close the relay without a call of `on_end`: for HEAD. For use within the package."""
        self._ending.discard()
        self.close()

    def _conclude(self) -> None:
        _live.remove(self)
        until = clock.monotonic() + _PATIENCE_SECONDS
        while not self._writer.end_observing() and clock.monotonic() < until:
            threads.new_waiter().wait(_POLL_SECONDS)
        self._ending.call(self._relay_end())


show_members_of(Frames, BaseFrames)


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
        self._send_timeout = options.send_timeout
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
                if self._farewell is None:
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
                self._send_timeout, _give_up, weakref.ref(self), self._send_timeout
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
            if self._farewell is not None:
                self._source.abandon()
                return self._say_farewell()
            try:
                piece = await self._collect(self._wait())
            except StopAsyncIteration:
                if self._farewell is not None:
                    continue
                last = self._end_of_source()
                if last:
                    return last
            except Exception as exc:
                if self._farewell is not None:
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
        until = clock.monotonic() + _COLLECT_SECONDS
        while size < _PIECE_BYTES and clock.monotonic() < until:
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

    def give_up(self, seconds: float) -> None:
        """Abort the upstream, since the client has not read for so many `seconds`.

        For use within the package. Raises nothing.
        """
        if self._ended:
            return
        logger.warning("a relay's client has not read for %g s: its upstream is aborted", seconds)
        self._note("disconnected")
        self._farewell = notice("error", "SendTimeout", "the answer was not read in time")
        self._source.abandon()
        if self._loop is not None:
            self._ending.call_later(self._relay_end(), self._loop)

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
        self._writer.end_observing()
        end = self._relay_end()
        if in_coroutine():
            self._ending.call_later(end, asyncio.get_running_loop())
        else:
            self._ending.call_in_thread(end, self._loop)

    async def _aconclude(self) -> None:
        _live.remove(self)
        until = clock.monotonic() + _PATIENCE_SECONDS
        while not self._writer.end_observing() and clock.monotonic() < until:
            await asyncio.sleep(_POLL_SECONDS)
        await self._ending.acall(self._relay_end())


show_members_of(AsyncFrames, BaseFrames)


def _give_up(reference: weakref.ref[AsyncFrames], seconds: float) -> None:
    frames = reference()
    if frames is not None:
        frames.give_up(seconds)
