"""The producer: writes the entries of one upstream to the log, under a lease.

Runs on the loop thread, except the methods under "In any thread", which only post to the loop. Backpressure
bounds the data that is read from the upstream and not yet written: the upstream's channel, and one append.

| field                    | written by      | guarded by                                            |
|--------------------------|-----------------|-------------------------------------------------------|
| `_stop_reason`           | the loop thread | nothing: any thread reads it, as the flag of `is_set` |
| `is_start_called`        | any thread      | turns True once                                       |
| `start_loop`             | reader, caller  | the same loop, before `start` is called               |
| `_upstream`, the futures | the loop thread | no other thread reads them                            |
| `result`                 | the loop thread | the channel is thread-safe                            |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from sseqbridge._engine.channel import Channel, End, post
from sseqbridge._engine.loop_state import LoopTask
from sseqbridge._exceptions import (
    BridgeClosedError,
    LogError,
    RequestAbortedError,
    SSEError,
    UsageError,
    copy_error,
)
from sseqbridge._runtime.callbacks import is_from_outside

from ._entries import START, begin_fields, end_fields, error_fields, failure_fields
from ._errors import as_callback_error, as_log_error
from ._store import StaleTokenError

if TYPE_CHECKING:
    from ._hub import Hub
    from ._segments import Segment
    from ._store import Claim, FencingToken
    from ._upstream import Upstream

__all__ = ["Producer"]

logger = logging.getLogger("sseqbridge")


class _StopReason(Enum):
    """The reason why a producer's task is cancelled. The first one counts."""

    # The caller was interrupted, or no caller is left: release the lease, as if the process had ended.
    ABORTED = auto()
    # Another producer was elected, or the stream was cancelled: write nothing.
    STALE = auto()
    # No process reads the stream: write its end.
    ABANDONED = auto()
    # The log failed: end this process's readers, and release the lease.
    LOG_FAILED = auto()
    # The log, or the event loop, is closing: release the lease.
    CLOSED = auto()


class Producer(LoopTask):
    """Writes one stream, from the election to the end; it subscribes to its own topic to notice a cancel.

    `call_start` calls `start` in a thread of its own. `result` receives one End when the producer has ended.
    """

    is_reader = False

    def __init__(
        self,
        hub: Hub,
        token: FencingToken,
        claim: Claim,
        call_start: Callable[[Producer], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(hub.state)
        self.position = claim.last or START
        self._begins_stream = claim.begins
        self.result: Channel[Any] = Channel(hub.loop, 1)
        self._hub = hub
        self._token = token
        self._call_start = call_start
        # The number of the next entry.
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._started: asyncio.Future[Upstream] = hub.loop.create_future()
        self._upstream: Upstream | None = None
        self._stop_reason: _StopReason | None = None
        self._log_error: LogError | None = None
        # Whether the call of `start` has begun. From then on its thread passes an upstream or an error on.
        self.is_start_called = False
        # The caller's loop on which `start` is awaited; None in a thread.
        self.start_loop: asyncio.AbstractEventLoop | None = None

    # In any thread.

    def is_set(self) -> bool:
        """Whether the producer is to stop: the cancel flag of requests that `start` makes."""
        return self._stop_reason is not None

    def error_for_start(self, error: BaseException) -> BaseException:
        """Return the error for the caller of `start`, which raised `error`.

        If the producer has aborted the request of `start`, the error is the reason for that.
        """
        if not isinstance(error, RequestAbortedError):
            return error
        if self._stop_reason is _StopReason.CLOSED:
            return BridgeClosedError("the log, or its bridge, was closed before the stream had begun")
        if self._stop_reason is _StopReason.STALE:
            return RequestAbortedError("the stream was cancelled before it had begun")
        return error if self._log_error is None else copy_error(self._log_error)

    def set_upstream(self, upstream: Upstream) -> None:
        """Write this upstream, which has no other consumer from now on. Raises UsageError if it has one."""
        try:
            upstream.open()
            post(self.loop, self._settle, upstream, None)
        except UsageError:
            raise
        except BaseException:
            # An interrupt, perhaps after the upstream was posted. The producer stops first: it would take the abort of
            # its upstream for the end of the stream, and write it.
            self.abort()
            post(self.loop, upstream.abort)
            raise

    def set_start_error(self, error: BaseException) -> None:
        """End without an upstream, because `start` raised. Readers receive an SSEError."""
        post(self.loop, self._settle, None, error)

    def abort(self) -> None:
        """Stop and release the lease, as if the process had ended."""
        post(self.loop, self._stop, _StopReason.ABORTED)

    # On the loop thread.

    def start(self) -> None:
        """Hold the lease, and wait for the upstream."""
        # If the loop cannot even run to its end, the task never gets to its own.
        self.call_at_loop_end(self._end_with_loop)
        self._task = self._hub.spawn(self._run())
        self._task.add_done_callback(self._on_done)

    async def call_start(self) -> None:
        """Call `start` in a thread of its own: the reader that elected this producer is busy reading."""
        await self._call_start(self)

    def _settle(self, upstream: Upstream | None, error: BaseException | None) -> None:
        if self._started.done() or self.finished:
            # The producer was stopped while `start` ran, or an interrupt came after the upstream was posted.
            if upstream is not None:
                upstream.abort()
            return
        self._upstream = upstream
        if upstream is not None:
            self._started.set_result(upstream)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            self._started.set_exception(error)
        else:
            # An interrupt or an exit belongs to the caller's thread: raised in a task, it would end the loop.
            self._stop(_StopReason.ABORTED)

    async def _run(self) -> None:
        topic = self._hub.topic(self._token.key)
        topic.register(self)
        topic.subscribe(self)
        self._renewing = self._hub.spawn(self._keep_renewing())
        try:
            await self._produce()
        finally:
            self._renewing.cancel()
            topic.unregister(self)

    async def _produce(self) -> None:
        try:
            try:
                upstream = await self._started
            except SSEError as error:
                await self._write_end(failure_fields(error))
                raise
            await self._write_all(upstream)
        except StaleTokenError:
            logger.info("another writer took over the log's stream %r: its upstream is aborted", self._token.key)
        except asyncio.CancelledError:
            await self._clean_up()
            raise
        except LogError as error:
            await self._fail_topic(error)
            raise
        except SSEError:
            raise
        except BaseException:
            # Raised by `start` or a callback: another process may begin the stream.
            await self._release()
            raise

    async def _clean_up(self) -> None:
        """Act on the reason of a cancellation. Without one the hub or the loop is closing."""
        if self._log_error is not None:
            await self._fail_topic(self._log_error)
            raise self._log_error
        if self._stop_reason is _StopReason.ABANDONED:
            try:
                await self._write_end(end_fields("abandoned", None))
            except StaleTokenError:
                pass
        elif self._stop_reason is not _StopReason.STALE:
            self._stop_reason = self._stop_reason or _StopReason.CLOSED
            await self._release()

    async def _fail_topic(self, error: LogError) -> None:
        """End this process's readers. Others notice the end of the lease, which is released or expires."""
        if self._stop_reason is None:
            # Else the topic's fail() would stop this producer again.
            self._stop_reason = _StopReason.LOG_FAILED
        topic = self._hub.topics.get(self._token.key)
        if topic is not None:
            topic.fail(error)
        await self._release()

    # Writing.

    async def _write_all(self, upstream: Upstream) -> None:
        refusal = await upstream.refusal()
        if refusal is not None:
            fields, error = refusal
            await self._write_end(fields)
            raise error
        await self._append([begin_fields(begins_stream=self._begins_stream)])
        while True:
            entries = await self._gather(upstream)
            if entries:
                await self._append(entries)
            if upstream.end is not None:
                await self._finish(upstream, upstream.end)
                return

    @staticmethod
    async def _gather(upstream: Upstream) -> list[dict[str, str]]:
        try:
            return await upstream.gather()
        except BaseException as error:
            if not isinstance(error, Exception) and is_from_outside(error, asyncio.current_task()):
                raise
            # The caller's `done` or `on_reconnect` raised. Not even an exit must end the loop.
            upstream.fail(as_callback_error(error, "a function of the upstream's request"))
            return []

    async def _finish(self, upstream: Upstream, end: End) -> None:
        upstream.record_end(end)
        if isinstance(end.error, BridgeClosedError) or (self.state.is_ending and end.outcome != "done"):
            # This process ends, and not the stream: another process may take it over. An iterable that has handled
            # the error of its own stream looks complete.
            await self._release()
            raise end.error or BridgeClosedError("the bridge that the producer ran on was closed")
        if end.error is not None:
            await self._write_end(error_fields(end.error))
            raise end.error
        await self._write_end(end_fields(end.outcome, upstream.done_event))

    async def _append(self, entries: list[dict[str, str]]) -> None:
        await self._hub.retry_while_unavailable(self._hub.store.append, self._token, self._number, entries)
        self._number += len(entries)

    async def _write_end(self, fields: dict[str, str]) -> None:
        await self._hub.retry_while_unavailable(self._hub.store.end, self._token, self._number, fields)

    async def _release(self) -> None:
        assert self._renewing is not None
        # A renewal after the release would take the lease again, until its TTL has elapsed.
        self._renewing.cancel()
        await self._hub.release(self._token)

    async def _keep_renewing(self) -> None:
        settings = self._hub.settings
        patience = settings.abandon_after
        interval = settings.renewal_interval
        if patience is not None:
            interval = min(interval, max(patience / 4, 0.02))
        last_read_at = self.loop.time()
        while True:
            try:
                readers = await self._hub.retry_while_unavailable(self._hub.store.renew, self._token)
            except StaleTokenError:
                self._stop(_StopReason.STALE)
                return
            except Exception as exc:
                self.fail(as_log_error(exc))
                return
            if self.start_loop is not None and self.start_loop.is_closed() and not self._started.done():
                # The loop was closed, and with it the task that awaits `start` was lost.
                self._stop(_StopReason.ABORTED)
                return
            now = self.loop.time()
            topic = self._hub.topics.get(self._token.key)
            if readers or (topic is not None and topic.has_readers):
                last_read_at = now
            elif patience is not None and now - last_read_at >= patience:
                self._stop(_StopReason.ABANDONED)
                return
            await asyncio.sleep(interval)

    def _stop(self, reason: _StopReason) -> None:
        if self._stop_reason is None:
            self._stop_reason = reason
        assert self._task is not None
        self._task.cancel()

    def _end_with_loop(self) -> None:
        if self._upstream is not None:
            # The thread of an iterable does not end with the loop.
            self._upstream.abort()
        self.result.end(End("error", BridgeClosedError("the bridge that the producer ran on was closed")))
        self.mark_finished()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.cancel_call_at_loop_end(self._end_with_loop)
        if task.cancelled():
            # Also before its first step.
            self._stop_reason = self._stop_reason or _StopReason.CLOSED
        upstream = self._upstream
        if upstream is not None and not upstream.is_ended:
            upstream.abort()
        error = None if task.cancelled() else task.exception()
        outcome = (upstream.outcome if upstream is not None else None) or "closed"
        self.result.end(End("error" if error is not None else outcome, error))
        self.mark_finished()

    # As a subscriber.

    def fail(self, error: SSEError) -> None:
        """Stop because the log failed."""
        if self._stop_reason is None and isinstance(error, LogError):
            self._log_error = copy_error(error)
            self._stop(_StopReason.LOG_FAILED)

    def deliver(self, segments: Iterable[Segment]) -> bool:
        """Stop if an entry of a newer fence arrives: of a cancel, or of another producer."""
        for segment in segments:
            self.position = segment.position
            if segment.position.fence > self._token.fence:
                self._stop(_StopReason.STALE)
                return False
        return True

    def on_lease_lost(self) -> None:
        """Ignore it: the next write or renewal shows whether another producer holds the lease."""
