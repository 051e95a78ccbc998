"""Asynchronous code of the caller's with every kind of exception: iterate, run, enter, and a log's client function.

The exception is raised in the thread that waits for the code. Afterwards another iteration on the same loop must
deliver its next item, its bridge must have the same loop thread, and the timer that checks cancel flags must run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff

from sseqbridge import Bridge, CallbackError, RequestAbortedError
from sseqbridge.resume import RedisLog
from tests.requesters import Caller

from .callers_code import KINDS_HERE, Fault, Flag

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.slow]


class Guarded:
    """A bridge with a healthy iteration, and the fault of a test."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.fault = Fault(kind)
        self.bridge = Bridge()
        self._go_on: asyncio.Event | None = None
        self._healthy = self.bridge.iterate(self._items)
        assert next(self._healthy) == 1
        self._thread = self.bridge._thread

    async def _items(self) -> AsyncIterator[int]:
        self._go_on = asyncio.Event()
        yield 1
        await self._go_on.wait()
        yield 2
        await asyncio.Event().wait()

    def is_of_the_fault(self, error: BaseException | None) -> bool:
        """Whether an error is the fault's, or was caused by it: generators replace those that end iterations."""
        while error is not None and type(error) is not self.kind:
            error = error.__cause__ or error.__context__
        return error is not None

    def raises(self, call: Callable[[], object], kind: type[BaseException] = BaseException) -> None:
        """Check that a call raises the fault's exception, or one of another type for it."""
        with pytest.raises(kind) as caught:
            call()
        assert self.is_of_the_fault(caught.value)

    def check(self) -> None:
        """Check that the other iteration and its loop were not affected, and close all."""
        assert self._healthy.poll() == []
        self.fault.is_armed = False
        flag = threading.Event()
        with pytest.raises(RequestAbortedError):
            self.bridge.run(self._set(flag), cancel=flag)
        assert self._go_on is not None
        self.bridge.run(self._go_on.set)
        assert self._healthy.next(30) == 2
        assert self.bridge._thread is self._thread is not None
        assert not self._thread.has_ended
        self.bridge.close()
        self._healthy.close()

    @staticmethod
    async def _set(flag: threading.Event) -> None:
        flag.set()
        await asyncio.Event().wait()


@pytest.fixture(params=KINDS_HERE, ids=lambda kind: kind.__name__)
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    made = Guarded(request.param)
    yield made
    made.bridge.close()


class Iterable:
    """An asynchronous iterator that raises in one of its methods."""

    def __init__(self, fault: Fault, method: str) -> None:
        self._fault = fault
        self._method = method
        self._items = iter([1, 2])

    def __aiter__(self) -> Iterable:
        self._raise_in("__aiter__")
        return self

    async def __anext__(self) -> int:
        self._raise_in("__anext__")
        await asyncio.sleep(0)
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self._raise_in("aclose")

    def _raise_in(self, method: str) -> None:
        if method == self._method:
            self._fault()


def raising_generator(fault: Fault, where: str) -> Callable[[], AsyncIterator[int]]:
    async def generator() -> AsyncIterator[int]:
        if where == "first step":
            fault()
        try:
            yield 1
            await asyncio.sleep(0)
            if where == "between items":
                fault()
            yield 2
        finally:
            if where == "cleanup":
                fault()

    return generator


def raising_awaitable(fault: Fault) -> Callable[[], Any]:
    async def opened() -> Any:
        await asyncio.sleep(0)
        await fault.aio()

    return opened


SOURCES: dict[str, Callable[[Fault], Any]] = {
    "function": lambda fault: fault,
    "awaitable of a function": raising_awaitable,
    "generator, first step": lambda fault: raising_generator(fault, "first step"),
    "generator, between items": lambda fault: raising_generator(fault, "between items"),
    "generator, cleanup": lambda fault: raising_generator(fault, "cleanup"),
    "__aiter__": lambda fault: lambda: Iterable(fault, "__aiter__"),
    "__anext__": lambda fault: lambda: Iterable(fault, "__anext__"),
    "aclose": lambda fault: lambda: Iterable(fault, "aclose"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_source_of_iterate(guarded: Guarded, name: str) -> None:
    stream = guarded.bridge.iterate(SOURCES[name](guarded.fault))
    if (name, guarded.kind) == ("__anext__", StopAsyncIteration):
        # The normal end of an iterator.
        assert list(stream) == []
    else:
        guarded.raises(stream.collect)
        assert stream.outcome == "error"
    guarded.check()


@pytest.mark.parametrize("name", ["generator, cleanup", "aclose"])
def test_source_of_iterate_that_is_left(guarded: Guarded, name: str) -> None:
    """The exception has no consumer, and is logged."""
    stream = guarded.bridge.iterate(SOURCES[name](guarded.fault), max_buffered=1)
    assert next(stream) == 1
    stream.close()
    assert stream.outcome == "closed"
    guarded.check()


@pytest.mark.parametrize("name", ["function", "coroutine", "coroutine, after a wait", "cleanup"])
def test_code_of_run(guarded: Guarded, name: str) -> None:
    async def coroutine() -> None:
        if name == "coroutine":
            guarded.fault()
        await asyncio.sleep(0)
        if name == "coroutine, after a wait":
            guarded.fault()
        try:
            waits.set()
            await asyncio.Event().wait()
        finally:
            guarded.fault()

    waits = threading.Event()
    if name == "cleanup":
        # The reason for which the coroutine was cancelled comes first; the exception is logged.
        with pytest.raises(RequestAbortedError):
            guarded.bridge.run(coroutine, cancel=waits)
    else:
        guarded.raises(lambda: guarded.bridge.run(guarded.fault if name == "function" else coroutine))
    guarded.check()


@pytest.mark.parametrize("name", ["function", "entering", "exiting", "during the block"])
def test_manager_of_enter(guarded: Guarded, name: str) -> None:
    class Session:
        async def __aenter__(self) -> Session:
            if name == "entering":
                guarded.fault()
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            guarded.fault()

    @asynccontextmanager
    async def dying() -> AsyncIterator[None]:
        task = asyncio.ensure_future(raising_awaitable(guarded.fault)())
        yield
        await task

    manager: Any = {"function": guarded.fault, "during the block": dying}.get(name, Session)

    def use() -> None:
        with guarded.bridge.enter(manager):
            pass

    if name == "during the block" and guarded.kind in (SystemExit, KeyboardInterrupt):
        # asyncio raises these exits of a session's own task out of the loop, which goes on.
        with suppress(guarded.kind):
            use()
    else:
        guarded.raises(use)
    guarded.check()


@pytest.mark.parametrize("way", ["iterate", "run"])
def test_cancel_flag(guarded: Guarded, way: str) -> None:
    async def never() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    guarded.fault.is_armed = False
    flag = Flag(guarded.fault)

    async def wait() -> None:
        guarded.fault.is_armed = True
        await asyncio.Event().wait()

    def call() -> None:
        if way == "run":
            guarded.bridge.run(wait, cancel=flag)
        else:
            stream = guarded.bridge.iterate(never, cancel=flag)
            guarded.fault.is_armed = True
            stream.next(30)

    guarded.raises(call, CallbackError)
    guarded.check()


LOG_METHODS: dict[str, list[Any]] = {"open": ["k", list], "produce": ["k", list], "cancel": ["k"], "delete": ["k"]}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("method", LOG_METHODS)
def test_function_that_makes_a_logs_client(guarded: Guarded, is_async: bool, method: str) -> None:
    """In a thread of the caller's an exit is the thread's own; on the caller's loop it is a CallbackError."""
    passes = not is_async and not issubclass(guarded.kind, Exception)
    caller = Caller(is_async=is_async)
    with RedisLog(guarded.fault, bridge=guarded.bridge) as log:
        call = getattr(log, f"a{method}" if is_async else method)
        guarded.raises(lambda: caller.run(call(*LOG_METHODS[method])), guarded.kind if passes else CallbackError)
        guarded.check()
    caller.close()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("method", LOG_METHODS)
def test_code_of_a_logs_client(guarded: Guarded, is_async: bool, method: str) -> None:
    """Retries, credential providers and connection classes run on the loop. There is no server."""

    class Retry(redis.asyncio.retry.Retry):
        async def call_with_retry(self, *args: Any, **options: Any) -> Any:
            guarded.fault()
            return await super().call_with_retry(*args, **options)

    caller = Caller(is_async=is_async)
    with RedisLog(lambda: redis.asyncio.Redis(retry=Retry(NoBackoff(), 0)), bridge=guarded.bridge) as log:
        call = getattr(log, f"a{method}" if is_async else method)
        guarded.raises(lambda: caller.run(call(*LOG_METHODS[method])), CallbackError)
        guarded.check()
    caller.close()
