"""Name lookups: shared while they are young, bounded in number, and abandoned when they hang."""

from __future__ import annotations

import asyncio
import collections
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import ConnectError, ReconnectionPolicy, StreamTimeoutError, Timeout, request_sse
from sseqbridge._http import dial
from sseqbridge._runtime import fork, lookups, loops
from sseqbridge.testing import SSEServer, send
from tests.clock import FakeClock
from tests.requesters import Requester
from tests.support import LOOPS, python, until

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.slow]

DONE = send("[DONE]")
FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]


class Resolver:
    """Replaces getaddrinfo: a lookup of a name in "hang.test" waits for `go`."""

    def __init__(self) -> None:
        self.real = socket.getaddrinfo
        # One for each lookup that was begun, and for each that waits now.
        self.begun: list[str] = []
        self.threads: list[str] = []
        self.hanging: collections.Counter[str] = collections.Counter()
        self.go = threading.Event()
        self.error: Exception | None = None
        # How many lookups of each name wait; all, if it is None.
        self.most: int | None = None

    def __call__(self, host: str | bytes, port: Any, *args: Any) -> Any:
        # httpx's transport passes bytes.
        host = host if isinstance(host, str) else host.decode()
        self.begun.append(host)
        self.threads.append(threading.current_thread().name)
        if host.endswith("hang.test") and (self.most is None or self.begun.count(host) <= self.most):
            self.hanging[host] += 1
            self.go.wait(60)
            self.hanging[host] -= 1
            if self.error is not None:
                raise self.error
        return self.real("127.0.0.1", port, *args)

    @property
    def waiting(self) -> int:
        """The number of lookups that hang now."""
        return sum(self.hanging.values())


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    replacement = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", replacement)
    # No lookup of another test counts.
    monkeypatch.setattr(lookups, "_resolvers", {})
    yield replacement
    replacement.go.set()
    until(lambda: not any(thread.name == "sseqbridge-resolver" for thread in threading.enumerate()))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = loops.new_event_loop()
    yield loop
    loop.close()


async def begun(resolver: Resolver, count: int) -> None:
    while len(resolver.begun) < count:
        await asyncio.sleep(0.001)


def start(name: str) -> asyncio.Task[Any]:
    """Start a lookup on the running loop."""
    return asyncio.create_task(asyncio.get_running_loop().getaddrinfo(name, 80))


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


def test_concurrent_lookups_of_one_name_share_a_thread(resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        same = [start("one.hang.test") for _ in range(10)]
        other = start("two.hang.test")
        await begun(resolver, 2)
        resolver.go.set()
        for response in await asyncio.gather(*same):
            assert response[0][4] == ("127.0.0.1", 80)
        await other
        assert resolver.begun == ["one.hang.test", "two.hang.test"]
        assert set(resolver.threads) == {"sseqbridge-resolver"}
        # Results are not cached.
        await start("one.hang.test")
        assert len(resolver.begun) == 3

    loop.run_until_complete(main())


def test_lookups_of_several_loops_share_a_thread(
    resolver: Resolver, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the other loop may take more than a second to start.
    monkeypatch.setattr(lookups, "_JOIN_SECONDS", 60.0)

    async def main() -> None:
        waiting = start("one.hang.test")
        elsewhere = asyncio.get_running_loop().run_in_executor(None, in_another_loop)
        await begun(resolver, 1)
        [of_process] = lookups._resolvers.values()
        # Until the other loop has joined.
        while sum(len(lookup.requests) for lookup in of_process._running) < 2:
            await asyncio.sleep(0.001)
        resolver.go.set()
        assert await waiting == await elsewhere
        assert len(resolver.begun) == 1

    def in_another_loop() -> Any:
        async def look_up() -> Any:
            return await start("one.hang.test")

        other = loops.new_event_loop()
        try:
            return other.run_until_complete(look_up())
        finally:
            other.close()

    loop.run_until_complete(main())


def test_aborted_request_does_not_cancel_a_shared_lookup(resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        first, second = (start("one.hang.test") for _ in range(2))
        await begun(resolver, 1)
        await cancelled(first)
        resolver.go.set()
        assert await second
        assert len(resolver.begun) == 1

    loop.run_until_complete(main())


def test_abandoned_lookup_is_not_joined(resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        resolver.most = 1
        hung = start("one.hang.test")
        await begun(resolver, 1)
        await cancelled(hung)
        assert await start("one.hang.test")
        assert resolver.waiting == 1

    loop.run_until_complete(main())


def test_lookup_that_is_no_longer_young_is_not_joined(clock: FakeClock, resolver: Resolver) -> None:
    async def main() -> None:
        resolver.most = 1
        hung = start("one.hang.test")
        await begun(resolver, 1)
        clock.advance(2)
        assert await start("one.hang.test")
        assert not hung.done()
        resolver.go.set()
        # Its own request still waits for it.
        assert await hung

    loop = loops.new_event_loop()
    loop.run_until_complete(main())
    loop.close()


def test_failed_lookup_raises_in_every_waiter(resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        waiting = [start("one.hang.test") for _ in range(3)]
        await begun(resolver, 1)
        resolver.error = socket.gaierror(socket.EAI_NONAME, "unknown")
        resolver.go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert results == [resolver.error] * 3

    loop.run_until_complete(main())


def test_stop_iteration_of_a_replaced_getaddrinfo_is_an_error(
    resolver: Resolver, loop: asyncio.AbstractEventLoop
) -> None:
    async def main() -> None:
        resolver.error = StopIteration()
        resolver.go.set()
        with pytest.raises(RuntimeError, match="StopIteration"):
            await start("one.hang.test")

    loop.run_until_complete(main())


def test_failed_lookup_without_waiters_is_not_logged(
    resolver: Resolver, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        waiting = start("one.hang.test")
        await begun(resolver, 1)
        await cancelled(waiting)
        resolver.error = socket.gaierror(socket.EAI_NONAME, "unknown")
        resolver.go.set()
        while resolver.waiting:
            await asyncio.sleep(0.001)
        assert await start("localhost")

    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        loop.run_until_complete(main())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_loop_can_end_during_a_lookup(resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        waiting = start("one.hang.test")
        await begun(resolver, 1)
        await cancelled(waiting)

    loop.run_until_complete(main())
    loop.close()
    resolver.go.set()


def test_lookup_of_a_loop_that_was_closed_is_dropped(resolver: Resolver) -> None:
    left = asyncio.SelectorEventLoop()
    waiting = left.create_task(lookups.look_up("one.hang.test", 80))
    left.run_until_complete(asyncio.wait({waiting}, timeout=0.01))
    until(lambda: resolver.waiting)
    left.close()
    resolver.go.set()
    until(lambda: not resolver.waiting)
    # asyncio warns about the task itself.
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


# Bounds.


def test_threads_are_bounded_for_each_name(resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        most = lookups.MAX_PER_HOST
        for n in range(most):
            waiting = start("one.hang.test")
            await begun(resolver, n + 1)
            await cancelled(waiting)
        queued = start("one.hang.test")
        # Other names have threads.
        assert await start("other.test")
        assert resolver.waiting == most
        assert not queued.done()
        resolver.go.set()
        assert await queued

    loop.run_until_complete(main())


def test_names_that_hang_at_once_leave_threads_to_others(clock: FakeClock, resolver: Resolver) -> None:
    async def main() -> None:
        hung = [start(f"{n}.hang.test") for n in range(300)]
        await begun(resolver, lookups.MAX_AWAITED)
        other = start("other.test")
        await cancelled(*hung)
        assert not other.done()
        # Once no request has waited for them for a moment, others are looked up beside them.
        assert await clock.aadvance_until_done(other)
        assert resolver.waiting == lookups.MAX_AWAITED
        # Requests that were aborted while they waited for a thread look nothing up.
        assert len(resolver.begun) == lookups.MAX_AWAITED + 1

    loop = loops.new_event_loop()
    loop.run_until_complete(main())
    loop.close()


def test_threads_are_bounded_however_many_names_hang(resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        most = lookups.MAX_THREADS
        for n in range(most):
            waiting = start(f"{n}.hang.test")
            await begun(resolver, n + 1)
            await cancelled(waiting)
        queued = [start(f"{n}.test") for n in range(100)]
        await asyncio.sleep(0.01)
        assert resolver.waiting == most
        assert not any(task.done() for task in queued)
        # As soon as one of them returns.
        resolver.go.set()
        await asyncio.gather(*queued)
        assert len(set(resolver.threads)) == 1

    loop.run_until_complete(main())


def test_thread_that_cannot_be_started_is_an_os_error(
    monkeypatch: pytest.MonkeyPatch, resolver: Resolver, loop: asyncio.AbstractEventLoop
) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(lookups, "DaemonThread", fails)
            with pytest.raises(OSError, match="no thread for a name lookup could be started"):
                await start("other.test")
        assert await start("other.test")

    loop.run_until_complete(main())


@pytest.mark.blocks_its_loop
def test_lookup_that_is_cancelled_after_its_end_stays_cancelled(
    resolver: Resolver, loop: asyncio.AbstractEventLoop
) -> None:
    """Its result is on the way to the loop."""
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))

    async def main() -> None:
        waiting = start("one.hang.test")
        await begun(resolver, 1)
        resolver.go.set()
        until(lambda: not any(thread.name == "sseqbridge-resolver" for thread in threading.enumerate()))
        await cancelled(waiting)
        assert await start("two.test")

    loop.run_until_complete(main())
    assert failures == []


def test_forked_child_has_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch, resolver: Resolver, loop: asyncio.AbstractEventLoop
) -> None:
    async def main() -> None:
        hung = [start(f"{n}.hang.test") for n in range(lookups.MAX_AWAITED)]
        await begun(resolver, lookups.MAX_AWAITED)
        with monkeypatch.context() as patch:
            patch.setattr(fork, "process_token", lambda: ("child", 1))
            assert await start("other.test")
        await cancelled(*hung)

    loop.run_until_complete(main())


# The loops of callers.


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_of_the_caller_uses_no_thread_of_its_executor(kind: str, resolver: Resolver) -> None:
    if kind == "asyncio":
        caller = asyncio.new_event_loop()
    else:
        import uvloop

        caller = uvloop.new_event_loop()
    try:
        assert caller.run_until_complete(loops.resolve("other.test", 80))
        assert resolver.threads == ["sseqbridge-resolver"]
    finally:
        caller.close()


def test_loop_with_a_resolver_of_its_own_keeps_it(resolver: Resolver) -> None:
    class Loop(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
            return FOUND

    caller = Loop()
    try:
        assert caller.run_until_complete(loops.resolve("one.hang.test", 80)) == FOUND
    finally:
        caller.close()
    assert resolver.begun == []


# Requests. On a loop of the caller's, httpx's transport uses that loop's own resolver.

own_transport = pytest.mark.own_transport


def named(server: SSEServer) -> str:
    return server.url.replace("127.0.0.1", "one.hang.test")


def test_request_after_one_whose_lookup_hung_succeeds(clock: FakeClock, ask: Requester, resolver: Resolver) -> None:
    resolver.most = 1
    with SSEServer([send(1), DONE]) as server:
        with pytest.raises(StreamTimeoutError) as caught:
            clock.advance_until_done(lambda: ask(named(server), timeout=Timeout(connect=60)), step=5)
        assert caught.value.which == "connect"
        assert resolver.waiting == 1
        assert ask(named(server), timeout=Timeout(connect=None)).items() == [1]


def test_reconnecting_stream_makes_a_lookup_for_each_attempt(
    clock: FakeClock, ask: Requester, resolver: Resolver
) -> None:
    resolver.most = 3
    policy = ReconnectionPolicy(delay=0.01, attempts=10)
    with SSEServer([send(1), DONE]) as server:
        response = clock.advance_until_done(
            lambda: ask(named(server), reconnect=policy, timeout=Timeout(connect=10, total=10_000)), step=1
        )
        assert resolver.waiting == 3
        assert response.items() == [1]


def test_request_on_the_transport_of_httpx_makes_its_own_lookup(clock: FakeClock, resolver: Resolver) -> None:
    resolver.most = 1
    options: dict[str, Any] = {"extensions": {"trace": traced}}
    with SSEServer([send(1), DONE]) as server:
        with pytest.raises(StreamTimeoutError):
            clock.advance_until_done(
                lambda: request_sse(named(server), timeout=Timeout(connect=60), **options), step=5
            )
        assert request_sse(named(server), timeout=Timeout(connect=None), **options).events.collect() == [1]
        assert resolver.begun == ["one.hang.test"] * 2


async def traced(name: str, info: Any) -> None:
    """A trace extension, which the library's own transport leaves to that of httpx."""


@own_transport
def test_request_waits_for_a_lookup_thread_within_its_connect_limit(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, ask: Requester, resolver: Resolver
) -> None:
    monkeypatch.setattr(lookups, "MAX_THREADS", 0)
    with pytest.raises(StreamTimeoutError) as caught:
        clock.advance_until_done(lambda: ask("http://one.hang.test/", timeout=Timeout(connect=60)), step=5)
    assert caught.value.which == "connect"
    assert resolver.begun == []
    monkeypatch.setattr(lookups, "MAX_THREADS", 1)
    with pytest.raises(ConnectError):
        ask("http://other.test:1/")


@own_transport
@pytest.mark.parametrize("kind", LOOPS)
def test_loop_and_process_end_without_waiting_for_a_hung_lookup(kind: str) -> None:
    program = """
import importlib, socket, sys, threading
begun = threading.Event()
def getaddrinfo(*args, **options):
    begun.set()
    threading.Event().wait()
socket.getaddrinfo = getaddrinfo
from sseqbridge import StreamTimeoutError, Timeout, arequest_sse
async def main():
    try:
        await arequest_sse("http://one.hang.test/", timeout=Timeout(connect=0.5))
    except StreamTimeoutError as exc:
        print(exc.which, begun.wait(30), flush=True)
loop = importlib.import_module(sys.argv[1]).new_event_loop()
loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_asyncgens())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
"""
    assert python(program, kind) == (0, "connect True\n", "")


def test_names_of_dialed_hosts_are_resolved_by_the_bounded_threads(resolver: Resolver) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await dial.dial(asyncio.BufferedProtocol(), "other.test", 1)

    asyncio.run(main())
    assert resolver.threads == ["sseqbridge-resolver"]
