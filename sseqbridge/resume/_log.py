"""Logs: streams that are written once, and read by any number of readers from any point.

Which thread writes what: `_hubs`, and a MemoryLog's `_store`, are written under `_lock`, by callers'
threads; `_closed` turns True once, in any thread; all else is set when a log is made.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Union, overload

from sseqbridge._checks import check_limits, check_seconds
from sseqbridge._engine.bridge import Bridge, default_bridge
from sseqbridge._engine.channel import End
from sseqbridge._engine.responses import Head
from sseqbridge._engine.scope import cancel_flag
from sseqbridge._exceptions import BridgeClosedError, RequestAbortedError, UsageError
from sseqbridge._runtime import fork, loops
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge._streams.aio import AsyncEventStream, AsyncSSEResponse
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.decoding import Decode, Decoder, ErrorEvents
from sseqbridge._streams.reader import ItemReader
from sseqbridge._streams.sync import EventStream, SSEResponse

from ._election import abegin, begin, check_start, elect, elected
from ._errand import LoopCall
from ._hub import Hub
from ._memory import MemoryStore
from ._producer import Producer
from ._reader import Reader, ReaderOptions
from ._store import Store, Terms

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from sseqbridge._checks import CancelFlag
    from sseqbridge._engine.loop_state import LoopState

    class LogOptions(TypedDict, total=False):
        """The options of every log; see Log."""

        lease: float
        ttl: float
        max_events: int | None
        abandon_after: float | None
        outage: float
        bridge: Bridge | None

    class OpenOptions(TypedDict, total=False):
        """The options of `open` that its items' type has nothing to do with."""

        last_event_id: str | None
        replay: Replay
        takeover: bool
        wait: float
        error_events: ErrorEvents
        cancel: CancelFlag | None
        max_buffered_bytes: int


__all__ = ["Log", "MemoryLog", "Replay", "Start"]

T = TypeVar("T")

Stream = Union["SSEResponse[Any]", "EventStream[Any]", "AsyncSSEResponse[Any]", "AsyncEventStream[Any]"]
Start = Callable[[], Stream]
AsyncStart = Callable[[], Stream | Awaitable[Stream]]
Replay = Literal["all", "kept", "none"]

_MAX_KEY = 512
_MAX_BUFFERED_BYTES = 1024 * 1024


class Log(abc.ABC):
    """Streams that are written once, by one producer each, and read by any number of readers; see MemoryLog.

    `lease` is within how many seconds the readers learn that a producer has died; it renews its
    lease all the while. `ttl` seconds after its end, or its producer's, a stream is forgotten. At most
    `max_events` of each are kept (None: all): a reader whose next event was trimmed away gets an
    EventsLostError. A producer goes on whether or not anybody reads; after `abandon_after` seconds without
    a reader, anywhere, its upstream is aborted (None: never). While the store is out, readers and
    producers wait and try again, for `outage` seconds at most.
    """

    def __init__(
        self,
        *,
        lease: float = 10.0,
        ttl: float = 3600.0,
        max_events: int | None = 10_000,
        abandon_after: float | None = None,
        outage: float = 30.0,
        bridge: Bridge | None = None,
    ) -> None:
        check_seconds("lease", lease)
        check_seconds("ttl", ttl)
        check_seconds("outage", outage, zero=True)
        check_seconds("abandon_after", abandon_after, zero=True, never=True)
        if max_events is not None:
            check_limits("max_events", max_events)
        if bridge is not None and not isinstance(bridge, Bridge):
            raise UsageError(f"bridge is a {type(bridge).__name__}; it is a sseqbridge.Bridge")
        self._terms = Terms(lease, ttl, max_events, abandon_after, outage)
        self._bridge = bridge
        self._lock = fork.ForkSafeLock()
        self._hubs: dict[LoopState, Hub] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else 'open'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def _new_store(self) -> Store:
        """Return what keeps the streams, for one loop."""

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
        self,
        key: str,
        start: Start | None = None,
        *,
        decode: Literal["text"],
        **options: Unpack[OpenOptions],
    ) -> EventStream[str]: ...

    @overload
    def open(
        self,
        key: str,
        start: Start | None = None,
        *,
        decode: Literal["event"],
        **options: Unpack[OpenOptions],
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

    def open(
        self,
        key: str,
        start: Start | None = None,
        *,
        last_event_id: str | None = None,
        replay: Replay = "all",
        takeover: bool = False,
        wait: float = 10.0,
        decode: Decode = "json",
        error_events: ErrorEvents = "raise",
        cancel: CancelFlag | None = None,
        max_buffered_bytes: int = _MAX_BUFFERED_BYTES,
    ) -> EventStream[Any]:
        """Return a reader of the stream `key`: what was so far, then what comes, to its end.

        Where there is no such stream, `start` is called, here, to begin it: a function that returns
        what request_sse does. The upstream is then read by the bridge's loop, whoever leaves, and everyone
        reads from the log, whose ids the events have. (What its `done` ends, it ends; `decode` is each
        reader's own.) Without `start` a reader waits for somebody to begin, for `wait` seconds.

        `last_event_id` is that of the last event that the reader has had, as a browser sends it; it never
        begins a stream. Without one, `replay` says where to begin: "all" at the first event, "kept" at the
        first that is kept still, "none" with what comes from now on.

        A producer that dies ends its readers with a ProducerLostError. With `takeover=True`, which
        needs `start`, the next reader that finds it dead calls `start` anew (a reader that is under
        way does so in a thread, in a copy of this context); all are told by an event of the type "restart"
        (`{"restart":true}`): what came before it is void.

        The stream's `status` is 200, or what the upstream answered instead; reading that raises the StatusError.
        Raises UsageError for arguments that cannot work, StreamNotFoundError, EventsLostError,
        ProducerLostError, RequestAbortedError after a cancel, what `start` raises (an SSEError is what others who
        wait get, too), and LogError if the log's store fails, or an entry of the stream cannot be read.
        """
        self._check_may_wait("Log.open", "aopen")
        call = _OpenCall(
            key, start, last_event_id, replay, takeover, wait, decode, error_events, cancel, max_buffered_bytes
        )
        reader = self._reader(call, self._hub())
        try:
            while not isinstance(entry := reader.channel.receive(), Head):
                begin(_producer(entry), start)
        except BaseException:
            reader.abort()
            raise
        return EventStream(ItemReader(Cursor(reader, entry, call.decoder, call.cancel, None)))

    @overload
    async def aopen(
        self,
        key: str,
        start: AsyncStart | None = None,
        *,
        decode: Literal["json"] = "json",
        **options: Unpack[OpenOptions],
    ) -> AsyncEventStream[Any]: ...

    @overload
    async def aopen(
        self,
        key: str,
        start: AsyncStart | None = None,
        *,
        decode: Literal["text"],
        **options: Unpack[OpenOptions],
    ) -> AsyncEventStream[str]: ...

    @overload
    async def aopen(
        self,
        key: str,
        start: AsyncStart | None = None,
        *,
        decode: Literal["event"],
        **options: Unpack[OpenOptions],
    ) -> AsyncEventStream[ServerSentEvent]: ...

    @overload
    async def aopen(
        self,
        key: str,
        start: AsyncStart | None = None,
        *,
        decode: Callable[[ServerSentEvent], T],
        **options: Unpack[OpenOptions],
    ) -> AsyncEventStream[T]: ...

    async def aopen(
        self,
        key: str,
        start: AsyncStart | None = None,
        *,
        last_event_id: str | None = None,
        replay: Replay = "all",
        takeover: bool = False,
        wait: float = 10.0,
        decode: Decode = "json",
        error_events: ErrorEvents = "raise",
        cancel: CancelFlag | None = None,
        max_buffered_bytes: int = _MAX_BUFFERED_BYTES,
    ) -> AsyncEventStream[Any]:
        """Return the same as `open`, to be read on the caller's own loop.

        `start` is called in a thread, so that it may be a function that calls request_sse; what it returns is awaited
        here where it can be, as a coroutine of arequest_sse.
        """
        call = _OpenCall(
            key, start, last_event_id, replay, takeover, wait, decode, error_events, cancel, max_buffered_bytes
        )
        reader = self._reader(call, await self._ahub(), asyncio.get_running_loop())
        try:
            while not isinstance(entry := await reader.channel.areceive(), Head):
                await abegin(_producer(entry), start)
        except BaseException:
            reader.abort()
            raise
        return AsyncEventStream(ItemReader(Cursor(reader, entry, call.decoder, call.cancel, None)))

    def produce(self, key: str, start: Start, *, takeover: bool = False) -> str | None:
        """Write the stream `key` to its end, and return its outcome: "done", "eof" or "closed".

        For a worker: views of other processes read it. Returns None, and calls nothing, where somebody else has
        begun it. Raises what `start` raises, the upstream's error, which readers get too, and
        LogError. An interrupt ends it as the process's death would.
        """
        self._check_may_wait("Log.produce", "aproduce")
        producer = self._run(LoopCall(partial(elect, _check_key(key), check_start(start), takeover)))
        if producer is None:
            return None
        try:
            begin(producer, start)
            return _outcome(producer.result.receive())
        except BaseException:
            producer.abort()
            raise

    async def aproduce(self, key: str, start: AsyncStart, *, takeover: bool = False) -> str | None:
        """Do the same in a coroutine; `start` is called as `aopen` calls it."""
        producer = await self._arun(LoopCall(partial(elect, _check_key(key), check_start(start), takeover)))
        if producer is None:
            return None
        try:
            await abegin(producer, start)
            return _outcome(await producer.result.areceive())
        except BaseException:
            producer.abort()
            raise

    def cancel(self, key: str) -> bool:
        """End a stream that is being written, from any process: its upstream is aborted, all readers end as "closed".

        Returns False where there is none. Raises LogError where the log's store fails.
        """
        self._check_may_wait("Log.cancel", "acancel")
        return self._run(LoopCall(partial(_cancel, _check_key(key))))

    async def acancel(self, key: str) -> bool:
        """Do the same in a coroutine."""
        return await self._arun(LoopCall(partial(_cancel, _check_key(key))))

    def delete(self, key: str) -> bool:
        """Forget a stream, so that the next `open` begins it anew; one that is being written is cancelled first.

        Returns False where there is none. Raises LogError where the log's store fails.
        """
        self._check_may_wait("Log.delete", "adelete")
        return self._run(LoopCall(partial(_delete, _check_key(key))))

    async def adelete(self, key: str) -> bool:
        """Do the same in a coroutine."""
        return await self._arun(LoopCall(partial(_delete, _check_key(key))))

    def close(self) -> None:
        """End this process's readers and producers, and its connections. Any thread may call it.

        What was written stays; leases are given back, so that readers elsewhere learn at once. Waits for the log's
        store at most 3 seconds.
        """
        self._closed = True
        hub = self._forget_hub()
        if hub is not None:
            call: LoopCall[None] = LoopCall(Hub.aclose, is_of_hub=False)
            # The bridge's end has ended all of that.
            with contextlib.suppress(BridgeClosedError):
                self._run(call, hub)

    def _check_may_wait(self, name: str, async_name: str) -> None:
        self._the_bridge().check_may_wait(name, async_name, stacklevel=5)

    def _the_bridge(self) -> Bridge:
        return self._bridge or default_bridge()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"this {type(self).__name__} is closed: make a new one")

    def _hub(self) -> Hub:
        self._check_open()
        state = self._the_bridge().started()
        with self._lock.native:
            # Closed meanwhile, nobody would close the hub.
            self._check_open()
            hub = self._hubs.get(state)
            if hub is None:
                # Those of other loops have ended with them, or are a parent's.
                self._hubs = {state: Hub(state, self._new_store(), self._terms)}
                hub = self._hubs[state]
            return hub

    def _forget_hub(self) -> Hub | None:
        with self._lock.native:
            hubs, self._hubs = self._hubs, {}
        this = fork.process_token()
        own = [hub for hub in hubs.values() if hub.state.process == this and not hub.loop.is_closed()]
        return own[0] if own else None

    async def _ahub(self) -> Hub:
        # In a thread: to start the bridge's takes a wait.
        return await loops.run_in_daemon_thread("sseqbridge-start", self._hub)

    def _reader(self, call: _OpenCall, hub: Hub, loop: asyncio.AbstractEventLoop | None = None) -> Reader:
        reader = Reader(hub, call.options, partial(elected, hub, call.start, loop))
        self._the_bridge().start(hub.state, reader)
        return reader

    def _run(self, call: LoopCall[T], hub: Hub | None = None) -> T:
        self._send(call, hub or self._hub())
        try:
            return call.value(call.result.receive())
        except BaseException:
            call.abort()
            raise

    async def _arun(self, call: LoopCall[T]) -> T:
        self._send(call, await self._ahub())
        try:
            return call.value(await call.result.areceive())
        except BaseException:
            call.abort()
            raise

    def _send(self, call: LoopCall[Any], hub: Hub) -> None:
        call.belong_to(hub)
        self._the_bridge().start(hub.state, call)


class MemoryLog(Log):
    """A log in this process's memory: its streams are read by threads and coroutines of this process alone.

        log = MemoryLog()
        for item in log.open("chat-1", lambda: request_sse(url, headers, data)):
            ...

    `RedisLog` has the same methods, for any number of processes and machines. See Log for the arguments.
    A forked child's is empty.
    """

    _store: tuple[tuple[int, int], MemoryStore] | None = None

    def _new_store(self) -> Store:
        # Under the lock. Streams outlive the bridge's loop, and are not a child's.
        process = fork.process_token()
        if self._store is None or self._store[0] != process:
            self._store = process, MemoryStore(self._terms)
        return self._store[1]


class _OpenCall:
    """The arguments of `open`. Raises UsageError for those that cannot work."""

    def __init__(
        self,
        key: str,
        start: Any,
        last_event_id: str | None,
        replay: Replay,
        takeover: bool,
        wait: float,
        decode: Decode,
        error_events: ErrorEvents,
        cancel: Any,
        max_buffered_bytes: int,
    ) -> None:
        if replay not in ("all", "kept", "none"):
            raise UsageError(f'replay={replay!r}: it is "all", "kept" or "none"')
        if last_event_id is not None and not isinstance(last_event_id, str):
            raise UsageError(f"last_event_id is a {type(last_event_id).__name__}; it is a str, or None")
        if takeover and start is None:
            raise UsageError("takeover=True calls start anew: pass one")
        check_seconds("wait", wait, zero=True)
        self.decoder = Decoder(decode, None, error_events)
        # A refusal's body is no item: it is in the StatusError.
        self.decoder.gives_body = False
        self.start = None if start is None else check_start(start)
        self.cancel = cancel_flag(cancel, "the stream was opened")
        self.options = ReaderOptions(
            key=_check_key(key),
            last_event_id=last_event_id or "",
            replay=replay,
            may_begin=start is not None,
            takeover=takeover,
            wait=wait,
            skip_empty=decode == "json",
            max_buffered_bytes=check_limits("max_buffered_bytes", max_buffered_bytes),
            cancel=self.cancel,
        )


def _check_key(key: object) -> str:
    """Return a stream's key. It may be a user's words: they reach no other key of the store's."""
    if not isinstance(key, str):
        raise UsageError(f"key is a {type(key).__name__}; it is a str")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise UsageError("key holds a lone surrogate, which UTF-8 cannot carry") from None
    if not 0 < size <= _MAX_KEY:
        raise UsageError(f"key has {size} bytes; it is one of 1 to {_MAX_KEY}")
    if not key.isprintable() or "{" in key or "}" in key:
        raise UsageError("key holds a control character, a line break or a brace, which no key may")
    return key


def _producer(entry: object) -> Producer:
    """Return who is to begin, as a reader was told. Raises what came instead."""
    if isinstance(entry, Producer):
        return entry
    assert isinstance(entry, End)
    raise entry.error or RequestAbortedError("the stream was closed before it had begun")


def _outcome(end: End) -> str:
    if end.error is not None:
        raise end.error
    return end.outcome


async def _cancel(key: str, hub: Hub) -> bool:
    return await hub.retry_while_unavailable(hub.store.cancel, key, uuid.uuid4().hex)


async def _delete(key: str, hub: Hub) -> bool:
    await _cancel(key, hub)
    return await hub.retry_while_unavailable(hub.store.delete, key)
