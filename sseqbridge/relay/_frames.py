"""The frames of a relay in time: what there is to send, else a heartbeat, and a look at the reader.

One reader's thread (or coroutine) at a time asks for the next; `close` comes from any thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sseqbridge._exceptions import CallbackError, DecodeError, SSEError
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge._streams.sync import EventStream

from ._disconnect import ReaderLeft, reader_left_of
from ._source import AsyncSource, FailedError, Source, abort_on_error, async_source_of, source_of, stream_of
from ._writer import HEARTBEAT, RelayOptions, Writer, error_frame

__all__ = ["AsyncFrames", "Frames", "aframes", "arelayed", "frames", "relayed"]

logger = logging.getLogger("sseqbridge")

# What is sent in one piece, where so much is there.
_PIECE_BYTES = 64 * 1024
# Instead of "for ever".
_LONG = 3600.0
# How long what is there is collected: a `map` may take its time.
_GATHER_SECONDS = 0.01


def frames(
    stream: Any,
    *,
    heartbeat: float | None = 15.0,
    probe: float | None = 1.0,
    map: Callable[[Any], Any] | None = None,
    done: bool | str | ServerSentEvent | None = True,
    environ: Mapping[str, Any] | None = None,
) -> Frames:
    """Return an iterator of bytes that a WSGI application can return; `close()` aborts the upstream.

    `stream` is what request_sse returns, whose events go on as they came, with their names and
    ids. It may also be any iterable: then it runs in a thread of its own, and is closed at its next
    `yield` when the reader leaves; its items are str, dict or list (sent as JSON), ServerSentEvent,
    Comment, or None for nothing.

    While there is nothing to send, a comment goes out every `heartbeat` seconds (None: never); the
    first at once, so that the headers do. With `environ`, the request's WSGI environment, the reader
    is looked at every `probe` seconds (None: never) while there is nothing to send, where the server
    hands out its socket: gunicorn, Werkzeug and uWSGI do.

    `map` is called with each item, in the reader's thread, and returns what goes out for it, as an
    iterable's items do; what is no ServerSentEvent keeps the name and id of the event that it came
    from. `done` is True to pass on the upstream's `[DONE]`, False or None to leave it out, or what is
    sent at every clean end instead, a str or ServerSentEvent.

    When the stream breaks, or `map` fails, the reader gets an event named "error" whose data is a JSON
    object with `type` and `message`, and the log the rest.

    Raises UsageError for arguments that cannot be, and for a stream that was read to its end;
    StatusError where the upstream's status is not 200.
    """
    with abort_on_error(stream):
        options = RelayOptions(heartbeat, probe, map, done)
        events = stream_of(stream)
        if isinstance(events, EventStream):
            events.raise_for_status()
        return relayed(stream, options, environ)


def aframes(
    stream: Any,
    *,
    heartbeat: float | None = 15.0,
    map: Callable[[Any], Any] | None = None,
    done: bool | str | ServerSentEvent | None = True,
) -> AsyncFrames:
    """Return what `frames` does for an asynchronous server: an asynchronous iterator with `aclose()`.

    `map` is called in the loop (for an iterable in its thread), so let it not block. `stream` may also
    be what arequest_sse returns, or an asynchronous iterable, which then runs in a task of its own,
    and is closed where it stands.
    """
    with abort_on_error(stream):
        return arelayed(stream, RelayOptions(heartbeat, None, map, done))


def relayed(stream: Any, options: RelayOptions, environ: Mapping[str, Any] | None) -> Frames:
    """Return the frames of what is not refused, for a WSGI server."""
    return Frames(source_of(stream, Writer(options)), options, reader_left_of(environ, options.probe))


def arelayed(stream: Any, options: RelayOptions) -> AsyncFrames:
    """Return the frames of what is not refused, for an ASGI server."""
    return AsyncFrames(async_source_of(stream, Writer(options)), options)


class _Frames:
    def __init__(self, options: RelayOptions) -> None:
        self._heartbeat = options.heartbeat
        self._sent_at: float | None = None
        self._ended = False
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "not begun" if self._sent_at is None else "open"
        return f"<{type(self).__name__} {state}>"

    def _wait(self) -> float:
        """How long to wait for something to send; not at all before the first."""
        if self._sent_at is None:
            return 0.0
        return _LONG if self._heartbeat is None else max(0.0, self._sent_at + self._heartbeat - clock.monotonic())

    def _send(self, piece: bytes) -> bytes:
        self._sent_at = clock.monotonic()
        return piece

    def _fail(self, error: BaseException) -> bytes:
        """Return what tells the reader, and tell the log."""
        self._ended = True
        if isinstance(error, FailedError):
            error = error.error
        if isinstance(error, SSEError):
            # In the application's own functions it is of use to know where.
            where = error if isinstance(error, (CallbackError, DecodeError)) else None
            logger.warning("a relayed stream ended with %s: %s", type(error).__name__, error, exc_info=where)
        else:
            logger.error("making a relayed stream failed", exc_info=error)
        return error_frame(error)


class Frames(_Frames):
    """An iterator of bytes, each at least one whole frame; see `frames`."""

    def __init__(self, source: Source, options: RelayOptions, reader_left: ReaderLeft) -> None:
        super().__init__(options)
        self._source = source
        self._reader_left = reader_left
        self._probe = _LONG if reader_left.probe is None else reader_left.probe

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> bytes:
        while not self._ended:
            # Looked at also while all that comes is left out.
            if self._reader_left.is_set():
                self.close()
                break
            try:
                piece = self._gathered(min(self._wait(), self._probe))
            except TimeoutError:
                piece = b""
            except StopIteration:
                self._ended = True
                if last := self._source.end():
                    return last
            except Exception as exc:
                told = self._fail(exc)
                self._source.close()
                return told
            if self._ended:
                break
            if piece or self._wait() <= 0:
                return self._send(piece or HEARTBEAT)
        raise StopIteration

    def _gathered(self, timeout: float) -> bytes:
        """Return all that is there, as far as it makes one piece, waiting for the first of it."""
        if self._failure is not None:
            raise self._failure
        frame = self._source.next(timeout)
        gathered, size = [frame], len(frame)
        until = clock.monotonic() + _GATHER_SECONDS
        while size < _PIECE_BYTES and clock.monotonic() < until:
            try:
                frame = self._source.next(0.0)
            except (TimeoutError, StopIteration):
                break
            except Exception as exc:
                # After what came before it.
                self._failure = exc
                break
            gathered.append(frame)
            size += len(frame)
        return b"".join(gathered)

    def close(self) -> None:
        """Abort the upstream, or end the iterable; WSGI servers call it."""
        self._ended = True
        self._source.close()


class AsyncFrames(_Frames):
    """An asynchronous iterator of bytes, each at least one whole frame; see `aframes`."""

    def __init__(self, source: AsyncSource, options: RelayOptions) -> None:
        super().__init__(options)
        self._source = source

    def __aiter__(self) -> AsyncFrames:
        return self

    async def __anext__(self) -> bytes:
        try:
            while not self._ended:
                try:
                    piece = await self._gathered(self._wait())
                except TimeoutError:
                    piece = b""
                except StopAsyncIteration:
                    self._ended = True
                    if last := self._source.end():
                        return last
                except Exception as exc:
                    told = self._fail(exc)
                    self.close()
                    return told
                if self._ended:
                    break
                if piece or self._wait() <= 0:
                    return self._send(piece or HEARTBEAT)
                await asyncio.sleep(0)
        except BaseException:
            # Cancelled: the server says in this way that the reader has left.
            self.close()
            raise
        raise StopAsyncIteration

    async def _gathered(self, timeout: float) -> bytes:
        if self._failure is not None:
            raise self._failure
        frame = await self._source.anext(timeout)
        gathered, size = [frame], len(frame)
        until = clock.monotonic() + _GATHER_SECONDS
        while size < _PIECE_BYTES and clock.monotonic() < until:
            try:
                frame = await self._source.anext(0.0)
            except (TimeoutError, StopAsyncIteration):
                break
            except Exception as exc:
                self._failure = exc
                break
            gathered.append(frame)
            size += len(frame)
        return b"".join(gathered)

    def close(self) -> None:
        """Abort the upstream, or cancel the iterable's task, without waiting for it."""
        self._ended = True
        self._source.abandon()

    async def aclose(self) -> None:
        """Abort the upstream, or cancel the iterable's task."""
        self.close()
