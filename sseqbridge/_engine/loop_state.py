"""State that the streams of one event loop share, and the base class of the tasks that run on it.

A LoopState belongs to one event loop of one process. Its fields are written on the loop thread alone, except
for the callbacks at the loop's end, which any thread may add. Callers' threads only read, or post to the loop.
In a forked child the state stays the parent's: its `process` token differs from the child's.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from sseqbridge._exceptions import SSEError, UsageError
from sseqbridge._runtime import fork, threads

from .channel import post, settle
from .scope import Ownership

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._runtime.loop_watch import LoopWatch

    from .channel import Channel

__all__ = ["Cancellable", "LoopState", "LoopTask", "Startable", "Stream"]

logger = logging.getLogger("sseqbridge")

# A set cancel flag aborts within 50 ms: half of that leaves room for a busy loop.
_CANCEL_INTERVAL = 0.025


class Startable(Protocol):
    """A task that is started on the loop.

    `release_consumer` ends its consumer's wait with a BridgeClosedError if the task was not started, or does not end.
    """

    def start(self) -> None: ...
    def abort(self) -> None: ...
    def release_consumer(self) -> None: ...


class Cancellable(Protocol):
    """A stream with a cancel flag of the caller's."""

    @property
    def finished(self) -> bool: ...
    def check_cancel(self, watch: LoopWatch | None) -> None: ...


class Stream(Startable, Protocol):
    """A stream or request of a loop, as its state counts and ends it."""

    task: asyncio.Task[None] | None

    @property
    def channel(self) -> Channel[Any]: ...
    @property
    def received(self) -> int: ...
    @property
    def events(self) -> int: ...
    def abort_on_loop(self, reason: BaseException | None) -> None: ...


class LoopState:
    """The clients, streams, cancel watch and counters of one event loop.

    `loop_watch`, which reports a blocked loop, exists on a bridge's own loop only: another loop has other work.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clients: ClientPool, watch: LoopWatch | None = None) -> None:
        self.loop = loop
        self.clients = clients
        self.loop_watch = watch
        self.process = fork.process_token()
        # Further clients, by their owner: see clients_of(). Any thread changes it, in single, atomic steps.
        self._owned_clients: dict[object, ClientPool] = {}
        self.stream_tasks: set[Stream] = set()
        # An odd version marks a change of the counters under way: a seqlock. Readers take no lock, which a
        # signal handler could find taken.
        self._version = 0
        self._past_bytes = 0
        self._past_events = 0
        # The loop itself refers to its tasks weakly.
        self._closing: set[asyncio.Task[None]] = set()
        self._watched: set[Cancellable] = set()
        self._timer: asyncio.TimerHandle | None = None
        # Keeps the asynchronous generator alive that the loop closes at its end.
        self.at_loop_end: AsyncGenerator[None, None] | None = None
        # Tasks whose start was posted and has not run. Set operations are atomic.
        self._posted: set[Startable] = set()
        # The thread that pops a callback is the only one to call it.
        self._end_callbacks: set[Callable[[], object]] = set()
        self._has_ended = False
        # Whether the loop is ending, and with it every stream, wherever that is.
        self.is_ending = False
        fork.detach_in_children(self)

    def post_start(self, stream: Startable, context: contextvars.Context) -> None:
        """Have the loop start a task. Thread-safe. If the loop ends before it does, the consumer's wait ends."""
        self._posted.add(stream)
        try:
            self.loop.call_soon_threadsafe(self._start, stream, context=context)
        except BaseException:
            self._posted.discard(stream)
            raise

    def _start(self, stream: Startable) -> None:
        try:
            stream.start()
        except BaseException:
            # First, as in every other end: the consumer, once released, does not find it among the open streams.
            for registered in self.stream_tasks.intersection([stream]):
                self.discard(registered)
            stream.release_consumer()
            raise
        finally:
            self._posted.discard(stream)

    @property
    def connections(self) -> int:
        """The number of open connections, in use or idle. Thread-safe."""
        return self.clients.connections + sum(pool.connections for pool in self._owned_clients.copy().values())

    def clients_of(self, owner: object, make: Callable[[], ClientPool]) -> ClientPool:
        """Return the clients that belong to `owner` on this loop, made by its first call. Thread-safe."""
        clients = self._owned_clients.get(owner)
        return self._owned_clients.setdefault(owner, make()) if clients is None else clients

    def close_clients_of(self, owner: object) -> None:
        """Close the idle connections of an owner's clients, without waiting. Thread-safe; safe in finalizers."""
        clients = self._owned_clients.pop(owner, None)
        if clients is not None and self.process == fork.process_token():
            post(self.loop, self._close_clients, clients)

    def _close_clients(self, clients: ClientPool) -> None:
        task = self.loop.create_task(clients.aclose(), name="sseqbridge-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def add(self, stream_task: Stream) -> None:
        """Register a stream that starts."""
        self.stream_tasks.add(stream_task)
        if self.loop_watch is not None:
            self.loop_watch.start()

    def discard(self, stream_task: Stream) -> None:
        """Remove a stream that has ended, and keep its counters."""
        if stream_task not in self.stream_tasks:
            return
        self._version += 1
        self._past_bytes += stream_task.received
        self._past_events += stream_task.events
        self.stream_tasks.discard(stream_task)
        self._version += 1
        if self.loop_watch is not None and not self.stream_tasks:
            self.loop_watch.stop()

    def totals(self) -> tuple[tuple[Stream, ...], int, int]:
        """Return the open streams, and the bytes and events of all streams so far. Thread-safe."""
        while True:
            version = self._version
            # set.copy() is one step: neither another thread nor the garbage collector interrupts it.
            stream_tasks = tuple(self.stream_tasks.copy())
            received = self._past_bytes + sum(stream_task.received for stream_task in stream_tasks)
            events = self._past_events + sum(stream_task.events for stream_task in stream_tasks)
            if not version % 2 and version == self._version:
                return stream_tasks, received, events
            # The loop thread was preempted during discard(): let it run.
            time.sleep(0)

    def watch(self, stream: Cancellable) -> None:
        """Check the stream's cancel flag until the stream is finished, with one timer for all streams."""
        self._watched.add(stream)
        if self._timer is None:
            self._timer = self.loop.call_later(_CANCEL_INTERVAL, self._check_flags)

    def _check_flags(self) -> None:
        self._watched = {stream for stream in self._watched if not stream.finished}
        # Before the flags, which are code of the callers: a flag that raises must not end the watch for all.
        self._timer = self.loop.call_later(_CANCEL_INTERVAL, self._check_flags) if self._watched else None
        for stream in tuple(self._watched):
            stream.check_cancel(self.loop_watch)

    async def aclose(self, reason: Callable[[], SSEError], seconds: float) -> None:
        """Abort every stream and close the clients, in `seconds` each at most.

        Each consumer gets an error that `reason` returns.
        """
        self.is_ending = True
        stream_tasks = tuple(self.stream_tasks)
        for stream_task in stream_tasks:
            stream_task.abort_on_loop(reason())
        tasks = [stream_task.task for stream_task in stream_tasks if stream_task.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        self.release_consumers()
        for clients in (self.clients, *self._owned_clients.copy().values()):
            try:
                await asyncio.wait_for(clients.aclose(), seconds)
            except (Exception, asyncio.CancelledError) as exc:
                logger.debug("closing the HTTP clients failed: %s", type(exc).__name__)

    def release_consumers(self) -> None:
        """End the waits for tasks that did not start or end, and run the callbacks at the loop's end."""
        waited_for: list[Startable] = [*self._posted.copy(), *self.stream_tasks]
        for stream in waited_for:
            stream.release_consumer()
        self._has_ended = True
        while self._end_callbacks:
            self._run_end_callback()

    def detach_after_fork(self) -> None:
        """In a forked child, leave the streams to the parent. Consumers' loops that run at the fork end there."""
        fork.pin(self)
        for stream_task in self.stream_tasks:
            stream_task.channel.closed = True

    def call_at_end(self, callback: Callable[[], object]) -> None:
        """Call `callback` once: on the loop thread when the loop ends, or at once if it has ended. Thread-safe."""
        self._end_callbacks.add(callback)
        if self._has_ended:
            self._run_end_callback()

    def cancel_call_at_end(self, callback: Callable[[], object]) -> None:
        """Remove a callback that call_at_end() added. Thread-safe."""
        self._end_callbacks.discard(callback)

    def _run_end_callback(self) -> None:
        try:
            callback = self._end_callbacks.pop()
        except KeyError:
            return  # Another thread took it first.
        callback()


class LoopTask:
    """A task on an event loop with a consumer elsewhere: its process, its scope, and whether it has ended."""

    def __init__(self, state: LoopState) -> None:
        self.state = state
        self.loop = state.loop
        self._finished = threads.OneShotEvent()
        self.ownership = Ownership()

    # Thread-safe, and safe in finalizers and signal handlers: no lock, no wait.

    def abort(self) -> None:
        """Close the channel and abort the task."""
        raise NotImplementedError

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a forked child, and the stream belongs to its parent."""
        return self.state.process != fork.process_token()

    def check_process(self) -> None:
        """Raise UsageError in a forked child."""
        # As is_inherited, inlined: this runs for every batch.
        if self.state.process != fork.process_token():
            raise UsageError(
                "this stream was opened before a fork and belongs to the parent process. Open a new one in the child."
            )

    def in_loop_thread(self) -> bool:
        """Whether the caller runs on the loop thread, which must not wait."""
        return asyncio._get_running_loop() is self.loop

    @property
    def finished(self) -> bool:
        """Whether the task has ended, and its connection is closed or back in the pool."""
        return self._finished.is_set

    @property
    def is_running(self) -> bool:
        """Whether entries may still arrive."""
        return not self._finished.is_set

    def mark_finished(self) -> None:
        """Wake everything that waits for the task's end."""
        self._finished.set()

    def watch(self, cancellable: Cancellable) -> None:
        """Let the loop check `cancellable` every 25 ms until it is finished."""
        post(self.loop, self.state.watch, cancellable)

    def notify_finished(self, callback: Callable[[], object]) -> None:
        """Call `callback` once: on the loop thread when the task ends, or at once if it has ended."""
        self._finished.notify(callback)

    def call_at_loop_end(self, callback: Callable[[], object]) -> None:
        """Call `callback` once: on the loop thread when the loop ends, or at once if it has ended."""
        self.state.call_at_end(callback)

    def cancel_call_at_loop_end(self, callback: Callable[[], object]) -> None:
        """Remove a callback that call_at_loop_end() added."""
        self.state.cancel_call_at_end(callback)

    # In any thread but the loop's.

    def wait_finished(self, timeout: float) -> None:
        """Wait until the task has ended, for `timeout` seconds at most."""
        self._finished.wait(0 if self.loop.is_closed() else timeout)

    # In a coroutine of any loop.

    async def await_finished(self, timeout: float) -> None:
        """Wait until the task has ended, for `timeout` seconds at most."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        self._finished.notify(partial(post, loop, settle, ended))
        if not self._finished.is_set and not self.loop.is_closed():
            await asyncio.wait({ended}, timeout=timeout)
