"""Writing a stream: a producer takes what its upstream's channel gives, and appends it, under a lease.

Everything here runs in the loop's thread but for `Producer.begin` and `refuse`, which belong to
whoever called `start`. What is read of the upstream and not yet written is bounded: by its
channel and what one append takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from sseqbridge._engine.channel import Channel, End, post
from sseqbridge._engine.loop_state import LoopTask
from sseqbridge._exceptions import BridgeClosedError, CallbackError, LogError, SSEError, UsageError
from sseqbridge._streams.stream import reader_of

from ._entries import BEGIN, Position, end_fields, error_fields, failure_fields, refusal_fields
from ._hub import own_error
from ._store import StaleError
from ._upstream import Upstream

if TYPE_CHECKING:
    from sseqbridge._streams.stream import BaseStream

    from ._hub import Hub
    from ._parts import Part
    from ._store import Token

__all__ = ["Producer", "as_callback_error"]

logger = logging.getLogger("sseqbridge")


class Producer(LoopTask):
    """What writes one stream, from the election to the end. A follower of its own stream, to see it cancelled.

    `result` is given one End, once it is over.
    """

    is_reader = False

    def __init__(
        self, hub: Hub, token: Token, last: Position, take_over: Callable[[Producer], Coroutine[Any, Any, None]]
    ) -> None:
        super().__init__(hub.state)
        self.position = last
        self.result: Channel[Any] = Channel(hub.loop, 1)
        self._hub = hub
        self._token = token
        self._take_over = take_over
        # Of the next entry.
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        # Settled with the upstream's stream, or with why there is none.
        self._begun: asyncio.Future[Upstream] = hub.loop.create_future()
        self._upstream: Upstream | None = None
        # Whether the task was cancelled since somebody else writes, or nobody reads, and what to write then.
        self._is_stale = self._is_abandoned = False
        self._failure: LogError | None = None
        self._is_over = self._has_stopped = False

    def is_set(self) -> bool:
        """Whether nothing is to be begun any more: the flag that ends a request of `start`'s which gets no answer."""
        return self._has_stopped

    @property
    def has_begun(self) -> bool:
        """Whether the upstream's stream is there, or why there is none."""
        return self._begun.done()

    async def take_over(self) -> None:
        """Have `start` called, for a reader that is under way."""
        await self._take_over(self)

    # By whoever calls `start`, in any thread.

    def begin(self, stream: BaseStream[Any]) -> None:
        """Write the upstream's stream, which nobody else can read from now on."""
        reader = reader_of(stream)
        reader.check_usable()
        try:
            post(self.loop, self._settle, Upstream(reader, reader.detach()), None)
        except UsageError:
            raise
        except BaseException:
            # An interrupt: the stream has no other reader.
            reader.abort()
            raise

    def refuse(self, error: BaseException) -> None:
        """There is no stream: tell the readers why, where it is the upstream's fault."""
        post(self.loop, self._settle, None, error)

    def abort(self) -> None:
        """End, as if the process had."""
        post(self.loop, self._stop)

    # In the loop's thread.

    def start(self) -> None:
        """Hold the lease, and wait for the upstream's stream."""
        self._task = self._hub.spawn(self._run())
        self._task.add_done_callback(self._done)

    def _settle(self, upstream: Upstream | None, error: BaseException | None) -> None:
        self._upstream = upstream
        if self._begun.done() or self.finished:
            # The producer was cancelled in the meantime.
            if upstream is not None:
                upstream.abort()
        elif upstream is not None:
            self._begun.set_result(upstream)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            self._begun.set_exception(error)
        else:
            # An interrupt, or an exit, is the caller's thread's: raised in a task it would end the loop of all streams.
            self._stop()

    async def _run(self) -> None:
        topic = self._hub.topic(self._token.key)
        topic.enter(self)
        topic.listen(self)
        renewing = self._hub.spawn(self._keep_renewing())
        try:
            await self._write()
        finally:
            renewing.cancel()
            topic.leave(self)

    async def _write(self) -> None:
        try:
            try:
                upstream = await self._begun
            except SSEError as error:
                await self._end(failure_fields(error))
                raise
            await self._write_from(upstream)
        except StaleError:
            logger.info("the log's stream %r is not this producer's any more: its upstream is aborted", self._token.key)
        except asyncio.CancelledError:
            await self._leave()
            raise
        except LogError as error:
            await self._break_off(error)
            raise
        except SSEError:
            raise
        except BaseException:
            # What `start` raised, or a callback: others may have better luck.
            await self._release()
            raise

    async def _leave(self) -> None:
        """The task was cancelled: for whatever reason, this is the end here."""
        if self._failure is not None:
            await self._break_off(self._failure)
            raise self._failure
        if self._is_abandoned:
            try:
                await self._end(end_fields("abandoned", None))
            except StaleError:
                pass
        elif not self._is_stale:
            await self._release()

    async def _break_off(self, error: LogError) -> None:
        """The log fails. Readers elsewhere are told by the lease: given back, if that can be, or run out."""
        self._is_over = True
        self._hub.topic(self._token.key).fail(error)
        await self._release()

    async def _write_from(self, upstream: Upstream) -> None:
        if upstream.head.status != 200:
            body = await upstream.body()
            await self._end(refusal_fields(upstream.head, body))
            raise upstream.status_error(body)
        await self._append([{BEGIN: "200"}])
        while True:
            fields = await self._gathered(upstream)
            if fields:
                await self._append(fields)
            if upstream.end is not None:
                await self._finish(upstream, upstream.end)
                return

    @staticmethod
    async def _gathered(upstream: Upstream) -> list[dict[str, str]]:
        try:
            return await upstream.gather()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # A function of the caller's has raised: `done` or `on_reconnect`. It must not end the loop.
            upstream.fail(as_callback_error(error, "a function of the upstream's request"))
            return []

    async def _finish(self, upstream: Upstream, end: End) -> None:
        upstream.record_end(end)
        if isinstance(end.error, BridgeClosedError):
            # The process ends, and not the stream.
            await self._release()
            raise end.error
        if end.error is not None:
            await self._end(error_fields(end.error))
            raise end.error
        await self._end(end_fields(end.outcome, upstream.done_event))

    async def _append(self, fields: list[dict[str, str]]) -> None:
        await self._hub.retry_while_unavailable(self._hub.store.append, self._token, self._number, fields)
        self._number += len(fields)

    async def _end(self, fields: dict[str, str]) -> None:
        await self._hub.retry_while_unavailable(self._hub.store.end, self._token, self._number, fields)

    async def _release(self) -> None:
        await self._hub.release(self._token)

    async def _keep_renewing(self) -> None:
        terms = self._hub.terms
        patience = terms.abandon_after
        every = terms.renewed_every if patience is None else min(terms.renewed_every, max(patience / 4, 0.02))
        read_at = self.loop.time()
        while True:
            try:
                readers = await self._hub.retry_while_unavailable(self._hub.store.renew, self._token)
            except StaleError:
                self._stop_stale()
                return
            except LogError as error:
                self.fail(error)
                return
            now = self.loop.time()
            if readers or self._hub.topic(self._token.key).is_read:
                read_at = now
            elif patience is not None and now - read_at >= patience:
                self._is_abandoned = True
                self._stop()
                return
            await asyncio.sleep(every)

    def _stop(self) -> None:
        self._has_stopped = True
        assert self._task is not None
        self._task.cancel()

    def _stop_stale(self) -> None:
        self._is_stale = True
        self._stop()

    def _done(self, task: asyncio.Task[None]) -> None:
        upstream = self._upstream
        if upstream is not None and not upstream.is_ended:
            upstream.abort()
        error = None if task.cancelled() else task.exception()
        outcome = (upstream.outcome if upstream is not None else None) or "closed"
        self.result.end(End("error" if error is not None else outcome, error))
        self.mark_finished()

    # As a follower.

    def fail(self, error: SSEError) -> None:
        """The log fails: so does this."""
        if not self._is_over and isinstance(error, LogError):
            self._failure = own_error(error)
            self._stop()

    def deliver(self, parts: Iterable[Part]) -> bool:
        """Look whether it was cancelled."""
        for part in parts:
            self.position = part.position
            if part.position.fence > self._token.fence:
                self._stop_stale()
                return False
        return True

    def lost(self) -> None:
        """The lease has run out, or seems to: writing tells whether somebody else has it."""


def as_callback_error(error: BaseException, function: str) -> SSEError:
    """Return what the readers are told where a function of the caller's has raised."""
    if isinstance(error, SSEError):
        return error
    told = CallbackError(f"{function} raised {type(error).__name__}")
    told.__cause__ = error
    return told
