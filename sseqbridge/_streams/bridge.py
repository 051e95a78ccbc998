"""Bridge, and the two bridges of the process: one for requests, one for asynchronous code of the application.

The two are made under a lock, in any thread, and read without it; the rest is in BaseBridge.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sseqbridge._engine.bridge import BaseBridge, is_exiting
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import fork
from sseqbridge._signatures import show_members_of, with_hints

if TYPE_CHECKING:
    from sseqbridge._checks import CancelFlag

    from .async_code import Entered
    from .sync import Stream

__all__ = ["Bridge", "async_bridge", "check_bridge", "default_bridge"]

T = TypeVar("T")


_OF_CLIENTS = ("cert", "http2", "limits", "mounts", "proxy", "transport", "trust_env", "verify")
_CLIENT = "Pass client=lambda: httpx.AsyncClient(...), which has it."


@with_hints(
    {
        **dict.fromkeys(_OF_CLIENTS, _CLIENT),
        "proxies": "Pass client=lambda: httpx.AsyncClient(proxy=...).",
        "timeout": "Pass it with a request: timeout=Timeout(...).",
    },
    by_name="Name them, such as Bridge(client=lambda: httpx.AsyncClient(http2=True)).",
)
class Bridge(BaseBridge):
    """A loop thread, and the HTTP client that its streams share.

        with Bridge(client=lambda: httpx.AsyncClient(proxy="http://localhost:3128")) as bridge:
            status, response_headers, it = request_sse(url, headers, data, bridge=bridge)

    Most programs never make one: request_sse uses one for the whole process, and iterate, run and enter another one.
    `client` is a function that returns a new httpx.AsyncClient (or httpx2.AsyncClient), for a proxy, certificates,
    HTTP/2 or a transport of your own. It is called in the threads that make requests, and again if a client must not
    be shared (HTTP/2): let its clients share costly objects, such as an ssl.SSLContext. The clients keep no cookie
    that a server sets.

    The thread starts with the first call. Closing the bridge, or leaving its `with` block, aborts every stream on
    it; their consumers get a BridgeClosedError.

    `thread_name` is the name of the thread, in logs and debuggers.

    Raises UsageError if `client` is not callable.
    """

    @classmethod
    def default(cls) -> Bridge:
        """Return the process's own bridge, which serves requests without `bridge=`; a new one if it was closed."""
        return default_bridge()

    @overload
    def iterate(
        self,
        source: AsyncIterable[T] | Callable[[], AsyncIterable[T]],
        *,
        max_buffered: int = 64,
        cancel: CancelFlag | None = None,
    ) -> Stream[T]: ...
    @overload
    def iterate(
        self,
        source: Awaitable[AsyncIterable[T]] | Callable[[], Awaitable[AsyncIterable[T]]],
        *,
        max_buffered: int = 64,
        cancel: CancelFlag | None = None,
    ) -> Stream[T]: ...
    def iterate(self, source: Any, *, max_buffered: int = 64, cancel: CancelFlag | None = None) -> Stream[Any]:
        """Return the items of an asynchronous iterable as a stream; the iterable runs on this bridge's loop.

        `source`, `max_buffered` (items), `cancel` and the errors are those of the function iterate.
        """
        from . import async_code

        return async_code.iterate(self, source, max_buffered, cancel)

    @overload
    def run(
        self, source: Awaitable[T], *, timeout: float | None = None, cancel: CancelFlag | None = None
    ) -> T: ...
    @overload
    def run(
        self, source: Callable[[], Awaitable[T]], *, timeout: float | None = None, cancel: CancelFlag | None = None
    ) -> T: ...
    @overload
    def run(
        self, source: Callable[[], T], *, timeout: float | None = None, cancel: CancelFlag | None = None
    ) -> T: ...
    def run(self, source: Any, *, timeout: float | None = None, cancel: CancelFlag | None = None) -> Any:
        """Await a coroutine on this bridge's loop, and return its result.

        `source`, `timeout` (seconds), `cancel` and the errors that it raises are those of the function run.
        """
        from . import async_code

        return async_code.run(self, source, timeout, cancel)

    @overload
    def enter(self, source: AbstractAsyncContextManager[T, Any]) -> Entered[T]: ...
    @overload
    def enter(self, source: Callable[[], AbstractAsyncContextManager[T, Any]]) -> Entered[T]: ...
    @overload
    def enter(
        self,
        source: Awaitable[AbstractAsyncContextManager[T, Any]]
        | Callable[[], Awaitable[AbstractAsyncContextManager[T, Any]]],
    ) -> Entered[T]: ...
    def enter(self, source: Any) -> Entered[Any]:
        """Return a context manager that enters an asynchronous one on this bridge's loop.

        `source` and the errors that the context manager raises are those of the function enter.
        """
        from . import async_code

        return async_code.Entered(self, source)


show_members_of(Bridge, BaseBridge)


class _AsyncBridge(Bridge):
    """The bridge of iterate, run and enter."""

    thread_name = "sseqbridge-async"


def check_bridge(bridge: object) -> None:
    """Raise UsageError if `bridge` is neither a Bridge nor None."""
    if bridge is not None and not isinstance(bridge, Bridge):
        raise UsageError(f"`bridge` must be a sseqbridge.Bridge, got {type(bridge).__name__}")


_default_lock = fork.ForkSafeLock()
_default: Bridge | None = None
_async: Bridge | None = None


def default_bridge() -> Bridge:
    """Return the process's own bridge for requests, a new one if it was closed. Thread-safe."""
    global _default
    bridge = _default
    if bridge is not None and not bridge.is_closed:
        # Without the lock: if it is closed from here on, its own methods notice.
        return bridge
    with _default_lock.native:
        # At the exit of the process it stays closed.
        if _default is None or (_default.is_closed and not is_exiting()):
            _default = Bridge()
        return _default


def async_bridge() -> Bridge:
    """Return the process's own bridge for asynchronous code, which may block its loop. Thread-safe."""
    global _async
    with _default_lock.native:
        if _async is None or (_async.is_closed and not is_exiting()):
            _async = _AsyncBridge()
        return _async
