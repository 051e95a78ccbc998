"""The bridge: one daemon thread whose asyncio loop does the network work of every stream.

Which thread writes what: `_thread`, `_state` and `_stop` are written under `_lock`, by callers'
threads when a bridge starts, `_state` by its own when that ends; all that belongs to the loop is
in `LoopState`, written by the loop's thread alone. Nothing that a finalizer calls takes `_lock`. A
signal handler may close a bridge while what it interrupts has the lock, and does not wait for it:
so each step under it leaves what close() can work with. `_counted` is written under `_lock`, as one, and read by any.
The set of all bridges that were started is changed, and looked through, under `_bridges_lock`.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakSet

from sseqbridge import _accelerators as _fast
from sseqbridge._exceptions import BridgeClosedError, SSEError, UsageError
from sseqbridge._http.client import ClientFactory, ClientPool
from sseqbridge._runtime import fork, loops, patching, threads
from sseqbridge._runtime.loop_watch import LoopWatch

from .channel import post, settle
from .loop_state import LoopState
from .stats import BridgeStats
from .stream_task import StreamTask

if TYPE_CHECKING:
    from types import TracebackType

    from sseqbridge._http.request import RequestOptions

__all__ = ["Bridge", "Startable", "default_bridge"]

logger = logging.getLogger("sseqbridge")

_EXIT_SECONDS = 0.8


class _Made(NamedTuple):
    """What a loop's thread has made: its state, and what it runs until."""

    state: LoopState
    stop: asyncio.Future[None]


_NOTHING = BridgeStats(0, 0, 0, 0, 0, 0.0)


def _sum(past: BridgeStats, state: LoopState, *, is_open: bool) -> BridgeStats:
    stream_tasks, received, events = state.totals()
    watch = state.loop_watch
    if not is_open:
        stream_tasks = ()
    return BridgeStats(
        open_streams=len(stream_tasks),
        connections=state.clients.connections if is_open else 0,
        events=past.events + events,
        bytes=past.bytes + received,
        buffered=sum(stream_task.channel.buffered for stream_task in stream_tasks),
        longest_wait=max(past.longest_wait, 0.0 if watch is None else watch.longest),
    )


class Startable(Protocol):
    """What a bridge's loop is to start."""

    def start(self) -> None: ...
    def abort(self) -> None: ...


class Bridge:
    """A loop thread, and the HTTP client that its streams share.

    Most programs never make one: request_sse uses one for the whole process. `client` is a
    function that returns a new httpx.AsyncClient (or httpx2.AsyncClient), for a proxy,
    certificates, HTTP/2 or a transport of your own; it is called in the threads that make
    requests, and again where a client must not be shared (HTTP/2), so let its clients share what
    is costly, such as an ssl.SSLContext. The clients keep no cookie that a server sets.

    The thread starts with the first request. Closing the bridge, or leaving its `with` block,
    aborts every stream on it; their consumers get a BridgeClosedError.
    """

    def __init__(self, *, client: ClientFactory | None = None) -> None:
        if client is not None and not callable(client):
            raise UsageError(
                f"client is a {type(client).__name__}; it is a function that returns a new "
                "httpx.AsyncClient, for example Bridge(client=lambda: httpx.AsyncClient(http2=True))"
            )
        self._factory = client
        self._lock = fork.ForkSafeLock()
        # Whose the three below are.
        self._process = fork.process_token()
        self._thread: threads.DaemonThread | None = None
        self._state: LoopState | None = None
        # What the loop runs until.
        self._stop: asyncio.Future[None] | None = None
        self._closed = False
        # What was counted on loops that have ended, and the one that counts: set as one.
        self._counted: tuple[BridgeStats, LoopState | None] = _NOTHING, None

    def __repr__(self) -> str:
        if self._closed:
            return "<Bridge closed>"
        state = self._state
        return "<Bridge not started>" if state is None else f"<Bridge open streams={len(state.stream_tasks)}>"

    def __enter__(self) -> Bridge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def default(cls) -> Bridge:
        """Return the process's own, which serves the requests that name no other."""
        return default_bridge()

    def stats(self) -> BridgeStats:
        """Return a snapshot of the counters. Any thread may call it, also a signal handler; it waits for nothing."""
        past, state = self._counted if self._process == fork.process_token() else (_NOTHING, None)
        return past if state is None else _sum(past, state, is_open=self._state is state)

    def submit(self, options: RequestOptions) -> StreamTask:
        """Start a request and return its stream_task. For use within the package.

        Raises UsageError for arguments that no request can be built of, for a bridge that is
        closed, and in the bridge's own thread, which must not wait.
        """
        state = self.started()
        self.check_may_wait("request_sse", "arequest_sse", stacklevel=5)
        stream_task = StreamTask(state, options)
        self.start(state, stream_task)
        return stream_task

    def check_may_wait(self, name: str, async_name: str, stacklevel: int) -> None:
        """Raise UsageError in the bridge's own thread, which must not wait; warn in that of another loop."""
        if self._thread is not None and self._thread.ident == threads.thread_id():
            raise UsageError(f"{name} was called in the bridge's own thread, which must not wait")
        if loops.in_coroutine() and not loops.in_notebook():
            told = f"{name} blocks the event loop that runs in this thread; await {async_name} instead"
            warnings.warn(told, RuntimeWarning, stacklevel=stacklevel)

    def start(self, state: LoopState, stream: Startable) -> None:
        """Have the loop start a stream, in the caller's context. Raises BridgeClosedError for a loop that has ended."""
        context = contextvars.copy_context()
        with self._lock.native:
            # Under the lock, so that a loop which is ending has either been posted this before,
            # or is not posted it at all.
            if self._state is not state:
                raise BridgeClosedError("the bridge was closed while the request was made")
            try:
                state.loop.call_soon_threadsafe(stream.start, context=context)
            except BaseException:
                # An interrupt, which may have come when this was posted already.
                stream.abort()
                raise

    def started(self) -> LoopState:
        """Return what belongs to the loop, which this starts where there is none. Raises UsageError once closed."""
        with self._lock.native:
            self._detach_after_fork()
            if self._closed:
                raise UsageError("this Bridge is closed; make a new one, or leave bridge= out for the process's own")
            if self._state is None:
                self._start()
            assert self._state is not None
            if self._closed:
                # In the midst of that, by a signal handler.
                self._ask_to_end()
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
                "eventlet has patched this process: a thread is none there, and the loop that needs one would hold "
                "up all the others. Serve it with gevent (gunicorn -k gevent) or with threads (-k gthread)"
            )
        # Not a greenlet's, which would let another come to the lock that is held here.
        ready = threads.ThreadWaiter()
        made: list[_Made | Exception] = []
        try:
            thread = self._new_thread(made, ready)
            ready.wait(None)
        except BridgeClosedError:
            raise
        except BaseException:
            # An interrupt: nobody else knows of the thread, where it is one already.
            ready.wait(_EXIT_SECONDS)
            for one in [one for one in made if isinstance(one, _Made)]:
                post(one.state.loop, settle, one.stop)
            raise
        if isinstance(made[0], Exception):
            raise BridgeClosedError(_not_made(made[0])) from made[0]
        self._thread = thread
        self._state, self._stop = made[0]
        self._count_past(self._counted[1], made[0].state)
        with _bridges_lock.native:
            _bridges.add(self)

    def _new_thread(self, made: list[_Made | Exception], ready: threads.ThreadWaiter) -> threads.DaemonThread:
        try:
            return threads.DaemonThread(self._main, "sseqbridge-loop", made, ready)
        except RuntimeError as exc:
            raise BridgeClosedError(f"the loop thread could not be started: {exc}") from exc

    def _count_past(self, ended: LoopState | None, current: LoopState | None) -> None:
        past, counts = self._counted
        # Where another loop was started before this one had wound up, that was counted then.
        if counts is ended:
            self._counted = past if ended is None else _sum(past, ended, is_open=False), current

    def _main(self, made: list[_Made | Exception], ready: threads.ThreadWaiter) -> None:
        try:
            loop = loops.new_event_loop()
        except Exception as exc:
            made.append(exc)
            ready.wake()
            return
        _fast.log_in_use()
        state = LoopState(loop, ClientPool(self._factory), LoopWatch(loop))
        stop = loop.create_future()
        made.append(_Made(state, stop))
        ready.wake()
        cause = None
        try:
            _run_until(loop, stop)
        except BaseException as exc:
            logger.exception("the loop thread was ended by an exception; its streams are aborted")
            cause = exc
        with self._lock.native:
            # Nothing is posted from here on; where no stop was asked for, the next request starts anew.
            if self._state is state:
                self._state = None
        reason = None if _exiting and cause is None else partial(_bridge_closed, cause)
        try:
            _run_until(loop, loop.create_task(_wind_up(state, reason)))
        except BaseException:
            logger.exception("winding up the loop thread failed")
        finally:
            state.release_consumers()
            loop.close()
            with self._lock.native:
                self._count_past(state, None)

    def close(self) -> None:
        """Abort every stream and end the thread, in about a second at most.

        Any thread may call it, also a signal handler.
        """
        thread = self._ask_to_end()
        if thread is not None and thread.ident != threads.thread_id() and threads.may_wait():
            thread.join(_EXIT_SECONDS)

    def _ask_to_end(self) -> threads.DaemonThread | None:
        with self._lock.native:
            self._detach_after_fork()
            self._closed = True
            if self._state is not None and self._stop is not None:
                # Not loop.stop(), which, asked for a second time, would end the winding up too.
                self._state.loop.call_soon_threadsafe(settle, self._stop)
            return self._thread


def _not_made(reason: Exception) -> str:
    message = f"the event loop could not be made: {reason}"
    if isinstance(reason, OSError) and reason.errno in (errno.EMFILE, errno.ENFILE):
        message += ". Close files and connections, or raise the limit (ulimit -n); the next request tries again"
    return message


def _run_until(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Run the loop until the future is done, through every exit that a callback of the loop raises.

    Exits of a caller's code are contained where it is called (see _runtime/callbacks.py). A caller's transport can
    still start tasks and callbacks of its own, which must not end any stream.
    """
    while not future.done():
        try:
            loop.run_until_complete(future)
        except (SystemExit, KeyboardInterrupt) as exc:
            logger.error("a callback on the event loop raised %s; the loop goes on", type(exc).__name__, exc_info=exc)
    future.result()


def _bridge_closed(cause: BaseException | None) -> SSEError:
    if cause is None:
        return BridgeClosedError("the bridge that this stream ran on was closed")
    error = BridgeClosedError(f"the bridge's thread was ended by {type(cause).__name__}; the next request starts anew")
    error.__cause__ = cause
    return error


async def _wind_up(state: LoopState, reason: Callable[[], SSEError] | None) -> None:
    await state.aclose(reason, _EXIT_SECONDS / 4)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    deadline = loop.time() + _EXIT_SECONDS / 4
    # What ends may leave another task behind: each generator that is dropped with another is closed by one.
    while (others := asyncio.all_tasks() - {asyncio.current_task()}) and loop.time() < deadline:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=deadline - loop.time())
        await asyncio.sleep(0)


_default_lock = fork.ForkSafeLock()
_default: Bridge | None = None
_bridges_lock = fork.ForkSafeLock()
_bridges: WeakSet[Bridge] = WeakSet()
_exiting = False


def default_bridge() -> Bridge:
    """Return the process's own bridge."""
    global _default
    with _default_lock.native:
        if _default is None:
            _default = Bridge()
        return _default


def _close_all() -> None:
    global _exiting
    _exiting = True
    # A daemon thread may start another one.
    with _bridges_lock.native:
        bridges = tuple(_bridges)
    # All at once, so that many take no longer than one.
    for bridge in bridges:
        bridge._ask_to_end()
    for bridge in bridges:
        bridge.close()


threads.at_exit(_close_all)
