"""Log and MemoryLog: streams that one producer writes, and any number of readers read from any point.

Thread-safe. The methods check their arguments: _log_core.py holds the state, _operations.py does the work.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from sseqbridge._checks import NotCopyable
from sseqbridge._signatures import signature_with
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge._streams.aio import AsyncEventStream
from sseqbridge._streams.sync import EventStream

from ._arguments import (
    AllOpenOptions,
    LogOptions,
    OpenOptions,
    Replay,
    Start,
    check_key,
    checked_settings,
    prepare_open,
)
from ._log_core import LogCore
from ._memory import MemoryStores
from ._operations import aopen_stream, aproduce, cancel_stream, delete_stream, open_stream, produce
from ._store import LogSettings, Store

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from sseqbridge._engine.channel import Outcome

__all__ = ["Log", "LogOptions", "MemoryLog", "Replay", "Start"]

T = TypeVar("T")


class Log(NotCopyable, abc.ABC):
    """Streams that one producer each writes, and any number of readers read. The base class of MemoryLog and RedisLog.

        events = log.open(key, lambda: request_sse(url, headers, data), last_event_id=last_event_id)

    Times are in seconds. Readers notice a dead producer within `lease`, which a live producer renews. A stream
    is deleted `ttl` after its end, or its producer's. The log keeps at most `max_events` of each stream (None:
    all): a reader whose next event was trimmed away gets an EventsLostError. A producer needs no readers;
    after `abandon_after` without a reader in any process, it aborts its upstream (None: never). During an
    outage of the store, readers and producers wait and retry, for at most `outage`. `bridge` is a Bridge to run on
    instead of the process's own.

    Raises UsageError for arguments that cannot work.
    """

    def __init__(self, **options: Unpack[LogOptions]) -> None:
        name = type(self).__name__
        settings, bridge = checked_settings(name, options)
        self._core = LogCore(name, settings, bridge, self._store_factory())

    @abc.abstractmethod
    def _store_factory(self) -> Callable[[LogSettings], Store]:
        """Return a function that returns the store for one event loop."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._core.is_closed else 'open'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @overload
    def open(
        self,
        key: str,
        start: Start | None = None,
        *,
        decode: Literal["json"] = "json",
        **options: Unpack[OpenOptions],
    ) -> EventStream[Any]: ...
    @overload
    def open(
        self, key: str, start: Start | None = None, *, decode: Literal["text"], **options: Unpack[OpenOptions]
    ) -> EventStream[str]: ...
    @overload
    def open(
        self, key: str, start: Start | None = None, *, decode: Literal["event"], **options: Unpack[OpenOptions]
    ) -> EventStream[ServerSentEvent]: ...
    @overload
    def open(
        self,
        key: str,
        start: Start | None = None,
        *,
        decode: Callable[[ServerSentEvent], T],
        **options: Unpack[OpenOptions],
    ) -> EventStream[T]: ...
    @overload
    def open(
        self, key: str, start: Start | None = None, *, decode: str, **options: Unpack[OpenOptions]
    ) -> EventStream[Any]: ...
    def open(self, key: str, start: Start | None = None, **options: Any) -> EventStream[Any]:
        """Return a reader of the stream `key`: its events so far, then new ones, until its end.

        If there is no such stream, this thread calls `start` to begin it: a function that returns a response of
        request_sse. The bridge's loop then reads the upstream, whether readers leave or not, and everyone reads
        from the log, whose ids the events have. (The upstream's `done` ends the stream for all; `decode` is
        each reader's own.) Without `start` a reader waits `wait` seconds for another process to begin.

        `start` may also return an iterable of items, as relays send them: str, dict or list (written as JSON),
        ServerSentEvent, or None for nothing. It runs in a worker thread, in a scope of its own, which cancel() and
        close() cancel; an asynchronous one runs on the loop of iterate(), where an awaitable that `start` returns is
        awaited. If it raises an SSEError, readers get that error; any other exception is a CallbackError.

        `last_event_id` is the id of the last event that the reader has, as a browser sends it; it never
        begins a stream. Without it, `replay` chooses the first event: "all" the stream's first, "kept" the
        first that the log still has, "none" the next new one.

        If the producer dies, its readers get a ProducerLostError. With `takeover=True`, which needs `start`,
        the next reader that notices calls `start` again (during iteration in a thread, in a copy of this
        context); all readers then get an event of the type "restart" (`{"restart":true}`), which voids all
        events before it.

        `dialect`, `error_events` and `max_buffered_bytes` (bytes) are those of request_sse, for this reader.

        The stream's `status` is 200, or that of the upstream's error response; then a read raises the StatusError.
        Raises UsageError for wrong arguments, StreamNotFoundError, EventsLostError, ProducerLostError,
        RequestAbortedError after a cancel, the error of `start` (waiting readers get it too if it is an SSEError),
        and LogError if the log's store fails, or an entry of the stream cannot be read.
        """
        self._core.check_may_wait("Log.open", "aopen")
        return open_stream(self._core, prepare_open(key, start, options))

    @overload
    async def aopen(
        self,
        key: str,
        start: Start | None = None,
        *,
        decode: Literal["json"] = "json",
        **options: Unpack[OpenOptions],
    ) -> AsyncEventStream[Any]: ...
    @overload
    async def aopen(
        self, key: str, start: Start | None = None, *, decode: Literal["text"], **options: Unpack[OpenOptions]
    ) -> AsyncEventStream[str]: ...
    @overload
    async def aopen(
        self, key: str, start: Start | None = None, *, decode: Literal["event"], **options: Unpack[OpenOptions]
    ) -> AsyncEventStream[ServerSentEvent]: ...
    @overload
    async def aopen(
        self,
        key: str,
        start: Start | None = None,
        *,
        decode: Callable[[ServerSentEvent], T],
        **options: Unpack[OpenOptions],
    ) -> AsyncEventStream[T]: ...
    @overload
    async def aopen(
        self, key: str, start: Start | None = None, *, decode: str, **options: Unpack[OpenOptions]
    ) -> AsyncEventStream[Any]: ...
    async def aopen(self, key: str, start: Start | None = None, **options: Any) -> AsyncEventStream[Any]:
        """Return the same as `open`, for the caller's own event loop.

        `start` runs in a thread of its own, so it may call request_sse. If it returns an awaitable, such as a
        coroutine of arequest_sse, that is awaited on the caller's loop; an asynchronous iterable runs there too.

        `key`, `last_event_id`, `replay`, `takeover`, `wait` (seconds), `decode`, `dialect`, `error_events`, `cancel`
        and `max_buffered_bytes` (bytes), and the errors that it raises, are those of `open`.
        """
        return await aopen_stream(self._core, prepare_open(key, start, options))

    def produce(self, key: str, start: Start, *, takeover: bool = False) -> Outcome | None:
        """Write the stream `key` to its end, and return its outcome: "done", "eof" or "closed".

        For a worker, whose stream other processes read. `start` and `takeover` are those of `open`. Returns None
        without a call of `start` if another process began the stream. Raises the error of `start`, the upstream's
        error, which readers get too, and LogError. An interrupt ends the stream as the death of the process would.
        """
        self._core.check_may_wait("Log.produce", "aproduce")
        return produce(self._core, key, start, takeover=takeover)

    async def aproduce(self, key: str, start: Start, *, takeover: bool = False) -> Outcome | None:
        """Do the same as `produce` in a coroutine; `start` runs as in `aopen`.

        `key` and `takeover` are those of `produce`, as are the errors that it raises.
        """
        return await aproduce(self._core, key, start, takeover=takeover)

    def cancel(self, key: str) -> bool:
        """End a stream that is being written, from any process: abort its upstream, end all readers as "closed".

        Returns False if there is no stream `key`. Raises LogError if the log's store fails.
        """
        self._core.check_may_wait("Log.cancel", "acancel")
        return self._core.run(partial(cancel_stream, check_key(key)))

    async def acancel(self, key: str) -> bool:
        """Do the same as `cancel`, for the stream `key`, in a coroutine. Raises LogError."""
        return await self._core.arun(partial(cancel_stream, check_key(key)))

    def delete(self, key: str) -> bool:
        """Delete a stream, so that the next `open` begins it again; cancel it first if it is being written.

        Returns False if there is no stream `key`. Raises LogError if the log's store fails.
        """
        self._core.check_may_wait("Log.delete", "adelete")
        return self._core.run(partial(delete_stream, check_key(key)))

    async def adelete(self, key: str) -> bool:
        """Do the same as `delete`, for the stream `key`, in a coroutine. Raises LogError."""
        return await self._core.arun(partial(delete_stream, check_key(key)))

    def close(self) -> None:
        """End this process's readers and producers, and close its connections to the store. Thread-safe.

        The readers end as "closed". The streams stay. Leases are released, so that readers elsewhere notice at once.
        Waits for the log's store for at most 3 seconds.
        """
        self._core.close()


def _describe(method: Callable[..., object], *options: type) -> None:
    method.__signature__ = signature_with(method, *options)  # type: ignore[attr-defined]


_describe(Log.__init__, LogOptions)
_describe(Log.open, AllOpenOptions)
_describe(Log.aopen, AllOpenOptions)
_describe(Log.produce)
_describe(Log.aproduce)


class MemoryLog(Log):
    """A log in this process's memory, for the threads and coroutines of this process alone.

        log = MemoryLog()
        for item in log.open("chat-1", lambda: request_sse(url, headers, data)):
            ...

    `RedisLog` has the same methods, for any number of processes and machines. `lease`, `ttl`, `max_events`,
    `abandon_after`, `outage` (times in seconds) and `bridge` are those of Log. A forked child starts with an empty log.

    Raises UsageError for arguments that cannot work.
    """

    def _store_factory(self) -> Callable[[LogSettings], Store]:
        return MemoryStores()
