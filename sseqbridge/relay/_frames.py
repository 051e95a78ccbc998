"""Frames and AsyncFrames: a relay's bytes as an iterator, with heartbeats and a check for a disconnect.

One thread (or coroutine) of the web server at a time asks for the next piece, and writes all fields;
`close` may be called by any thread. Every piece is one or more whole frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sseqbridge._checks import NotCopyable
from sseqbridge._exceptions import CallbackError, DecodeError, SSEError, UsageError
from sseqbridge._runtime.clock import clock

from ._disconnect import ClientDisconnected, disconnect_flag
from ._options import ASYNC_WITHOUT, RelayOptions, describe, relay_options
from ._source import ApplicationError, AsyncSource, Source, Upstream
from ._writer import HEARTBEAT, Writer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import AsyncRelayKeywords, RelayKeywords

__all__ = ["AsyncFrames", "Frames", "aframes", "arelay", "frames", "relay"]

logger = logging.getLogger("sseqbridge")

# A piece is complete once it has this size.
_PIECE_BYTES = 64 * 1024
# Longest wait for a frame when no timeout is set.
_LONG = 3600.0
# How long frames are collected for one piece: `map` may be slow.
_COLLECT_SECONDS = 0.01


def frames(stream: Any, *, environ: Mapping[str, Any] | None = None, **options: Unpack[RelayKeywords]) -> Frames:
    """Return an iterator of bytes that a WSGI application can return; `close()` aborts the upstream.

    `stream` is the result of request_sse, whose events are forwarded unchanged, with their names and ids. It
    may also be any iterable, which runs in a thread of its own and is closed at its next `yield` when the
    client disconnects. Its items are str, dict or list (sent as JSON), ServerSentEvent, Comment, or None for
    nothing.

    `environ` is the request's WSGI environment; without it there is no `probe`. The other options are the
    fields of RelayOptions, which describes them; `refusal` has no meaning here.

    If the stream or `map` fails, the client gets an event named "error" (see `error`); the details are logged.

    Raises UsageError for arguments that cannot work, and for a stream that was read to its end; StatusError if
    the upstream's status is not 200.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("frames", options)
        upstream.check_synchronous()
        refused = upstream.refused
        if refused is not None and refused.cursor.is_refused:
            error = refused.refusal()
            assert error is not None
            raise error
        return relay(upstream, checked, environ)


def aframes(stream: Any, **options: Unpack[AsyncRelayKeywords]) -> AsyncFrames:
    """Return the same as `frames` for an asynchronous server: an asynchronous iterator with `aclose()`.

    `stream` may also be the result of arequest_sse, or an asynchronous iterable, which runs in a task of its
    own, and is closed by cancelling the task. `map` is called on the event loop, except for an iterable.
    """
    with Upstream(stream) as upstream:
        return arelay(upstream, relay_options("aframes", options, without=ASYNC_WITHOUT))


describe(frames, without=("refusal",))
describe(aframes, without=(*ASYNC_WITHOUT, "refusal"))


def relay(
    upstream: Upstream,
    options: RelayOptions,
    environ: Mapping[str, Any] | None,
    after_work: Callable[[], object] | None = None,
) -> Frames:
    """Return the frames of an upstream that has not refused, for a WSGI server.

    `after_work` is called in the worker thread of an iterable after its end.
    """
    writer = Writer(options)
    source = upstream.source(writer, after_work)
    return Frames(source, options.heartbeat, disconnect_flag(environ, options.probe), writer.error)


def arelay(
    upstream: Upstream, options: RelayOptions, after_work: Callable[[], object] | None = None
) -> AsyncFrames:
    """Return the frames of an upstream that has not refused, for an ASGI server."""
    writer = Writer(options)
    return AsyncFrames(upstream.async_source(writer, after_work), options.heartbeat, writer.error)


class _BaseFrames(NotCopyable):
    """The state of Frames and AsyncFrames, and the time of the next heartbeat."""

    def __init__(self, heartbeat: float | None, report: Callable[[BaseException], bytes]) -> None:
        self._heartbeat = heartbeat
        # Returns the frame that reports an error, or raises an error that breaks the connection off.
        self._report = report
        self._sent_at: float | None = None
        self._ended = False
        # An error behind the frames of a piece; it is reported after them.
        self._failure: Exception | None = None
        # During a call that reads.
        self._is_being_read = False

    def __repr__(self) -> str:
        state = "ended" if self._ended else "not begun" if self._sent_at is None else "open"
        return f"<{type(self).__name__} {state}>"

    def _check_not_being_read(self) -> None:
        # An interrupt may leave the flag set where the relay has ended.
        if self._is_being_read and not self._ended:
            raise UsageError("a relay is read by one call at a time, and `map` or `decode` must not read it either")

    def _wait(self) -> float:
        """Return how many seconds to wait for a frame before a heartbeat is due."""
        if self._sent_at is None:
            return 0.0
        return _LONG if self._heartbeat is None else max(0.0, self._sent_at + self._heartbeat - clock.monotonic())

    def _send(self, piece: bytes) -> bytes:
        self._sent_at = clock.monotonic()
        return piece

    def _fail(self, error: BaseException) -> bytes:
        """End the relay and log the error. Returns the frame that reports it to the client."""
        self._ended = True
        if isinstance(error, ApplicationError):
            error = error.error
        if isinstance(error, SSEError):
            # The traceback helps where the application's own function failed.
            traceback_of = error if isinstance(error, (CallbackError, DecodeError)) else None
            logger.warning("a relayed stream ended with %s: %s", type(error).__name__, error, exc_info=traceback_of)
        else:
            logger.error("the application's code failed in a relay", exc_info=error)
        return self._report(error)


class Frames(_BaseFrames):
    """An iterator of bytes, each one or more whole frames; see `frames`."""

    def __init__(
        self,
        source: Source,
        heartbeat: float | None,
        disconnected: ClientDisconnected,
        report: Callable[[BaseException], bytes],
    ) -> None:
        super().__init__(heartbeat, report)
        self._source = source
        self._disconnected = disconnected
        self._probe = _LONG if disconnected.probe is None else disconnected.probe

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> bytes:
        self._check_not_being_read()
        try:
            self._is_being_read = True
            piece = self._next_piece()
            self._is_being_read = False
            return piece
        except StopIteration:
            self._is_being_read = False
            raise
        except BaseException:
            # An interrupt: the frames that were taken are lost, so that none may follow.
            self._ended = True
            self._is_being_read = False
            self._source.abandon()
            raise

    def _next_piece(self) -> bytes:
        while not self._ended:
            # Checked here, not only on timeout: `map` may leave out every event.
            if self._disconnected.is_set():
                self.close()
                break
            try:
                piece = self._collect(min(self._wait(), self._probe))
            except StopIteration:
                self._ended = True
                if last := self._source.end():
                    return last
            except Exception as exc:
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
        self._ended = True
        self._disconnected.end_request()
        self._source.close()


class AsyncFrames(_BaseFrames):
    """An asynchronous iterator of bytes, each one or more whole frames; see `aframes`."""

    def __init__(
        self, source: AsyncSource, heartbeat: float | None, report: Callable[[BaseException], bytes]
    ) -> None:
        super().__init__(heartbeat, report)
        self._source = source

    def __aiter__(self) -> AsyncFrames:
        return self

    async def __anext__(self) -> bytes:
        self._check_not_being_read()
        try:
            self._is_being_read = True
            piece = await self._next_piece()
            self._is_being_read = False
            return piece
        except StopAsyncIteration:
            self._is_being_read = False
            raise
        except BaseException:
            # A cancellation: the server cancels the task when the client disconnects.
            self._is_being_read = False
            self.close()
            raise

    async def _next_piece(self) -> bytes:
        while not self._ended:
            try:
                piece = await self._collect(self._wait())
            except StopAsyncIteration:
                self._ended = True
                if last := self._source.end():
                    return last
            except Exception as exc:
                try:
                    report = self._fail(exc)
                finally:
                    self.close()
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

    def close(self) -> None:
        """Abort the upstream, or cancel the iterable's task, without waiting for it."""
        self._ended = True
        self._source.abandon()

    async def aclose(self) -> None:
        """Abort the upstream, or cancel the iterable's task."""
        self.close()
