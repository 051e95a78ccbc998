"""The bridge: one daemon thread whose event loop does the work of every stream on it.

Fields of a BaseBridge are written under its lock: by callers' threads when it starts, by its own thread when that ends.
`_counted` is written under the lock as one tuple, and read by any thread. The state of the loop is in LoopState,
which the loop thread writes. Finalizers take no lock. A signal handler may close a bridge while the interrupted
code holds the lock, which is re-entrant: so every step under the lock leaves a state that close() can handle.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from sseqbridge import _accelerators as _fast
from sseqbridge._checks import NotCopyable
from sseqbridge._exceptions import BridgeClosedError, SSEError, UsageError
from sseqbridge._http.client import ClientFactory, ClientPool
from sseqbridge._runtime import fork, loops, patching, threads
from sseqbridge._runtime.loop_watch import LoopWatch

from .channel import post, settle
from .loop_state import LoopState, Startable
from .memory import memory
from .stats import BridgeStats
from .stream_task import StreamTask

if TYPE_CHECKING:
    from typing_extensions import Self

    from sseqbridge._http.request import RequestOptions

__all__ = ["BaseBridge", "has_clients_of_callers", "is_exiting", "run_posted_calls"]

logger = logging.getLogger("sseqbridge")

_EXIT_SECONDS = 0.8


class _Loop(NamedTuple):
    """A loop thread's state, and the future that it runs until."""

    state: LoopState
    stop: asyncio.Future[None]


_NOTHING = BridgeStats(0, 0, 0, 0, 0, 0.0)


def _add(past: BridgeStats, state: LoopState, *, is_open: bool) -> BridgeStats:
    stream_tasks, received, events = state.totals()
    watch = state.loop_watch
    if not is_open:
        stream_tasks = ()
    return BridgeStats(
        open_streams=len(stream_tasks),
        connections=state.connections if is_open else 0,
        events=past.events + events,
        bytes=past.bytes + received,
        buffered=memory.buffered(state.loop) if is_open else 0,
        longest_wait=max(past.longest_wait, 0.0 if watch is None else watch.longest),
    )


class BaseBridge(NotCopyable):
    """A loop thread and its HTTP clients: what a Bridge is without the ways to call asynchronous code."""

    thread_name = "sseqbridge-loop"

    def __init__(self, *, client: ClientFactory | None = None) -> None:
        if client is not None and not callable(client):
            raise UsageError(
                f"`client` must be a function that returns a new httpx.AsyncClient, got {type(client).__name__}. "
                "Pass for example Bridge(client=lambda: httpx.AsyncClient(http2=True))."
            )
        self._factory = client
        self._lock = fork.ForkSafeLock()
        # The process that the next three fields belong to.
        self._process = fork.process_token()
        self._thread: threads.DaemonThread | None = None
        self._state: LoopState | None = None
        # The future that the loop runs until.
        self._stop: asyncio.Future[None] | None = None
        self._closed = False
        # The counters of loops that have ended, and the state of the current one.
        self._counted: tuple[BridgeStats, LoopState | None] = _NOTHING, None

    def __repr__(self) -> str:
        if self._closed:
            return "<Bridge closed>"
        state = self._state
        return "<Bridge not started>" if state is None else f"<Bridge open streams={len(state.stream_tasks)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def stats(self) -> BridgeStats:
        """Return a snapshot of the counters. Thread-safe; safe to call from a signal handler."""
        past, state = self._counted if self._process == fork.process_token() else (_NOTHING, None)
        return past if state is None else _add(past, state, is_open=self._state is state)

    def new_task(self, options: RequestOptions) -> StreamTask:
        """Return the task of a request, for `start`. For use within the package.

        May call a function of the caller's for the headers. Raises UsageError if `options` make no valid request, if
        the bridge is closed, and on the loop thread, which must not wait.
        """
        state = self.started()
        self.check_may_wait("request_sse", "arequest_sse")
        return StreamTask(state, options.for_next_attempt())

    def check_may_wait(self, name: str, async_name: str, stacklevel: int | None = None) -> None:
        """Raise UsageError on a bridge's own thread, which must not wait; warn in a coroutine of another loop.

        For use within the package. `name` and `async_name` are those of the function and its alternative in the
        message. The warning is about the line at `stacklevel`; None means the line that has called the package.
        """
        in_coroutine = loops.in_coroutine()
        is_own = in_coroutine and loops.in_own_loop()
        if is_own or (self._thread is not None and self._thread.ident == threads.thread_id()):
            raise UsageError(f"{name} was called in the bridge's own thread, which must not wait")
        if in_coroutine and not loops.in_notebook():
            message = f"{name} blocks the event loop that runs in this thread; await {async_name} instead"
            warnings.warn(message, RuntimeWarning, stacklevel=stacklevel or _stacklevel_of_caller())

    def start(self, state: LoopState, stream: Startable) -> None:
        """Start a `stream` on the loop of `state`, in the caller's context. For use within the package.

        If an interrupt ends the call, the stream may have been started: the caller aborts it. Raises BridgeClosedError
        if the loop has ended.
        """
        context = contextvars.copy_context()
        with self._lock.native:
            # Under the lock, so that a loop that is ending runs this before its end, or does not get it.
            if self._state is not state:
                raise BridgeClosedError("the bridge was closed during the call")
            try:
                state.post_start(stream, context)
            except BaseException:
                # An interrupt, perhaps after the call was posted.
                stream.abort()
                raise

    def started(self) -> LoopState:
        """Return the state of the loop, starting it if there is none. For use within the package.

        Raises UsageError if the bridge is closed.
        """
        state = self._state
        if state is not None and not self._closed and self._process == fork.process_token():
            # Without the lock: start() looks again, under it.
            return state
        with self._lock.native:
            self._detach_after_fork()
            if self._closed:
                raise UsageError("this Bridge is closed. Make a new one, or omit bridge= to use the process's own.")
            if self._state is None:
                # A start waits.
                loops.check_may_wait()
                self._start()
            assert self._state is not None
            if self._closed:
                # By a signal handler, during the start.
                self._request_stop()
                raise UsageError("this Bridge was closed while it started")
            return self._state

    def _detach_after_fork(self) -> None:
        # Under the lock.
        if self._process != fork.process_token():
            fork.pin(self._state, self._thread, self._stop)
            self._state = self._thread = self._stop = None
            self._counted = _NOTHING, None
            self._process = fork.process_token()

    def _start(self) -> None:
        if patching.is_eventlet():
            raise UsageError(
                "eventlet has patched this process: its threads are green, and the event loop, which needs a thread of "
                "the system, would block them all. Use gevent (gunicorn -k gevent) or threads (-k gthread)."
            )
        # Not a greenlet's wait, during which another greenlet could enter the lock that is held here.
        ready = threads.ThreadWaiter()
        made: list[_Loop | BaseException] = []
        with _bridges_lock.native:
            _bridges.add(self)
        try:
            thread = self._new_thread(made, ready)
            while not ready.wait(1.0) and not thread.has_ended:
                pass
            if not made:
                raise BridgeClosedError("the loop thread has ended before its event loop ran")
            if isinstance(made[0], BaseException):
                raise BridgeClosedError(_loop_failure(made[0])) from made[0]
            self._thread = thread
            self._stop = made[0].stop
            self._count_past(self._counted[1], made[0].state)
            # Last: from here on the bridge has started.
            self._state = made[0].state
        except BridgeClosedError:
            raise
        except BaseException:
            # An interrupt. If the thread was started, this is the only reference to its loop.
            if self._state is None:
                if not made:
                    ready.wait(_EXIT_SECONDS)
                for loop in [loop for loop in made if isinstance(loop, _Loop)]:
                    post(loop.state.loop, settle, loop.stop)
            raise

    def _new_thread(self, made: list[_Loop | BaseException], ready: threads.ThreadWaiter) -> threads.DaemonThread:
        try:
            return threads.DaemonThread(self._main, self.thread_name, made, ready)
        except RuntimeError as exc:
            raise BridgeClosedError(f"the loop thread could not be started: {exc}") from exc

    def _count_past(self, ended: LoopState | None, current: LoopState | None) -> None:
        past, counts = self._counted
        # If another loop was started before this one had ended, its start has counted this one.
        if counts is ended:
            self._counted = past if ended is None else _add(past, ended, is_open=False), current

    def _main(self, made: list[_Loop | BaseException], ready: threads.ThreadWaiter) -> None:
        def announce() -> None:
            made.append(_Loop(state, stop))
            ready.wake()

        loop = None
        cause = None
        try:
            loop = loops.new_event_loop()
            _fast.log_in_use()
            state = LoopState(loop, ClientPool(self._factory), LoopWatch(loop))
            stop = loop.create_future()
            # Only once the loop runs: in an interpreter of its own (mod_wsgi), a thread may be unable to run one.
            loop.call_soon(announce)
            _run_until(loop, stop)
        except BaseException as exc:
            if not made:
                if loop is not None:
                    loop.close()
                made.append(exc)
                ready.wake()
                return
            logger.exception("an exception has ended the loop thread; its streams are aborted")
            cause = exc
        assert loop is not None
        self._end_loop(state, cause)

    def _end_loop(self, state: LoopState, cause: BaseException | None) -> None:
        with self._lock.native:
            # From here on nothing is posted to the loop: the next request starts another one.
            if self._state is state:
                self._state = None
        winding_up = _wind_up(state, partial(_bridge_closed, cause))
        try:
            _run_until(state.loop, state.loop.create_task(winding_up))
        except BaseException:
            logger.exception("closing the loop thread's streams failed")
            # If the loop did not even start it.
            winding_up.close()
        finally:
            state.release_consumers()
            state.loop.close()
            with self._lock.native:
                self._count_past(state, None)

    def close(self) -> None:
        """Abort every stream and end the thread, in about a second at most.

        A request on a closed bridge raises UsageError; after the process's own bridge was closed, the next request
        without `bridge=` starts a new one. Thread-safe; safe to call from a signal handler.
        """
        thread = self._request_stop()
        if thread is not None and thread.ident != threads.thread_id() and loops.may_wait():
            thread.join(_EXIT_SECONDS)

    def _request_stop(self) -> threads.DaemonThread | None:
        with self._lock.native:
            self._detach_after_fork()
            self._closed = True
            if self._state is not None and self._stop is not None:
                # Not loop.stop(): a second call would also stop _wind_up().
                self._state.loop.call_soon_threadsafe(settle, self._stop)
            return self._thread


def _stacklevel_of_caller() -> int:
    """Return the stacklevel of a warning of the calling function for the line that has called the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sseqbridge."):
        level, frame = level + 1, frame.f_back
    return level


def _loop_failure(reason: BaseException) -> str:
    message = f"the loop thread could not make or run its event loop: {reason}"
    if isinstance(reason, OSError) and reason.errno in (errno.EMFILE, errno.ENFILE):
        message += ". Close files and connections, or raise the limit (ulimit -n); the next request tries again"
    return message


def _run_until(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Run the loop until the future is done. Continues after SystemExit and KeyboardInterrupt of a callback.

    Exits that the caller's code raises are caught where it is called (_runtime/callbacks.py). A caller's transport
    can also start tasks and callbacks of its own, which must not end any stream.
    """
    while not future.done():
        try:
            loop.run_until_complete(future)
        except (SystemExit, KeyboardInterrupt) as exc:
            logger.error("a callback on the event loop raised %s; the loop goes on", type(exc).__name__, exc_info=exc)
    future.result()


def _bridge_closed(cause: BaseException | None) -> SSEError:
    if cause is None and _exiting:
        return BridgeClosedError("the interpreter is exiting, and has ended this stream early")
    if cause is None:
        return BridgeClosedError("the bridge that this stream ran on was closed")
    error = BridgeClosedError(
        f"the bridge's thread was ended by {type(cause).__name__}; the next request starts another one"
    )
    error.__cause__ = cause
    return error


async def _wind_up(state: LoopState, reason: Callable[[], SSEError]) -> None:
    await state.aclose(reason, _EXIT_SECONDS / 4)
    loop = asyncio.get_running_loop()
    late = [work.task for work in state.stream_tasks if work.task is not None and not work.task.done()]
    if late:
        # Their consumers wait no longer. A second cancellation would interrupt their cleanup, as of a subprocess.
        await asyncio.wait(late, timeout=_EXIT_SECONDS / 4)
    deadline = loop.time() + _EXIT_SECONDS / 4
    # Tasks first: a generator that a task is still running cannot be closed.
    await _cancel_tasks(loop, deadline)
    loop.set_exception_handler(_ignore_running_generators)
    closing = loop.create_task(loop.shutdown_asyncgens())
    await asyncio.wait({closing}, timeout=_EXIT_SECONDS / 8)
    await _cancel_tasks(loop, max(deadline, loop.time() + _EXIT_SECONDS / 8))


async def _cancel_tasks(loop: asyncio.AbstractEventLoop, deadline: float) -> None:
    """Cancel all other tasks of the loop, and wait until they have ended, at most until `deadline`."""
    # A task that ends can leave another one: asyncio closes each dropped generator in a task of its own.
    while (others := asyncio.all_tasks() - {asyncio.current_task()}) and loop.time() < deadline:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=deadline - loop.time())
        await asyncio.sleep(0)


def _ignore_running_generators(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report an error as asyncio does, unless it is about a generator whose task has been left running."""
    if not getattr(context.get("asyncgen"), "ag_running", False):
        loop.default_exception_handler(context)


_bridges_lock = fork.ForkSafeLock()
_bridges: WeakSet[BaseBridge] = WeakSet()
_exiting = False


def has_clients_of_callers(bridge: BaseBridge) -> bool:
    """Whether the bridge was made with `client=`."""
    return bridge._factory is not None


def run_posted_calls(timeout: float) -> None:
    """Wait until the loop of each bridge has run the callbacks posted so far, at most `timeout` seconds for each."""
    with _bridges_lock.native:
        bridges = tuple(_bridges)
    for bridge in bridges:
        state = bridge._state
        if state is not None and not state.loop.is_closed():
            has_run = threads.OneShotEvent()
            post(state.loop, has_run.set)
            has_run.wait(timeout)


def is_exiting() -> bool:
    """Whether the interpreter is exiting: it has closed all bridges."""
    return _exiting


def _close_all() -> None:
    global _exiting
    _exiting = True
    # A daemon thread may run until the interpreter has exited: most end here, in their reads.
    threads.end_daemons_quietly(BridgeClosedError)
    # Under the lock: a daemon thread may start another bridge.
    with _bridges_lock.native:
        bridges = tuple(_bridges)
    # All stop at once, so that many bridges take no longer than one.
    for bridge in bridges:
        bridge._request_stop()
    for bridge in bridges:
        bridge.close()


threads.at_exit(_close_all)
