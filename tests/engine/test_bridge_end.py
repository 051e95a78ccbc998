"""A loop that cannot run, or has ended, leaves no request waiting; what follows the end of a bridge."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, BridgeClosedError, UsageError, arequest_sse, merge, request_sse
from sseqbridge._engine import bridge as _bridge
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._runtime import loops, threads
from sseqbridge._streams import bridge as _public
from sseqbridge._streams.stream import reader_of
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, send, silence
from tests.resume.support import hub_of
from tests.support import in_thread, is_waiting, python, thread_of, together, until

pytestmark = pytest.mark.slow

RESPONSE = (send({"n": 1}), send("[DONE]"))


@pytest.fixture
def responses() -> Iterator[SSEServer]:
    with SSEServer(RESPONSE) as server:
        yield server


def first_item(url: str) -> Any:
    with request_sse(url) as response:
        return next(response.events)


# A loop that cannot run.


def fail(*args: object) -> None:
    raise RuntimeError("Cannot run the event loop while another loop is running")


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError(), OSError(24, "Too many open files")], ids=repr)
@pytest.mark.parametrize("where", ["run_until_complete", "create_future"])
def test_loop_that_cannot_run_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, responses: SSEServer, where: str, error: Exception
) -> None:
    def broken_loop() -> asyncio.AbstractEventLoop:
        def fail(*args: object) -> None:
            raise error

        kind = type("Broken", (asyncio.SelectorEventLoop,), {where: fail})
        return kind()  # type: ignore[no-any-return]

    with Bridge() as bridge:
        with monkeypatch.context() as patch:
            patch.setattr(loops, "new_event_loop", broken_loop)
            for _ in range(2):
                with pytest.raises(BridgeClosedError, match="the loop thread could not make or run") as caught:
                    request_sse(responses.url, bridge=bridge)
                assert caught.value.__cause__ is error
        # The next request tries again.
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_exit_while_the_loop_is_made_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, responses: SSEServer, error: BaseException
) -> None:
    def broken_loop() -> None:
        raise error

    with Bridge() as bridge:
        with monkeypatch.context() as patch:
            patch.setattr(loops, "new_event_loop", broken_loop)
            with pytest.raises(BridgeClosedError) as caught:
                request_sse(responses.url, bridge=bridge)
            assert caught.value.__cause__ is error
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]


def test_thread_that_ends_at_once_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    def end(bridge: Bridge, *args: object) -> None: ...

    with Bridge() as bridge:
        with monkeypatch.context() as patch:
            patch.setattr(Bridge, "_main", end)
            with pytest.raises(BridgeClosedError, match="has ended before its event loop ran"):
                request_sse(responses.url, bridge=bridge)
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]


def test_loop_that_starts_slowly_is_awaited(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    wait, make = threads.ThreadWaiter.wait, loops.new_event_loop
    elapsed = threading.Event()

    def elapse(waiter: threads.ThreadWaiter, timeout: float | None) -> bool:
        if not elapsed.is_set():
            elapsed.set()
            return False
        return wait(waiter, timeout)

    def make_slowly() -> asyncio.AbstractEventLoop:
        assert elapsed.wait(30)
        return make()

    monkeypatch.setattr(threads.ThreadWaiter, "wait", elapse)
    monkeypatch.setattr(loops, "new_event_loop", make_slowly)
    with Bridge() as bridge:
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]


SUBINTERPRETER = """
import sys
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    new = interpreters.create
else:
    import _xxsubinterpreters as interpreters
    new = lambda kind: interpreters.create(isolated=kind == "isolated")
run = getattr(interpreters, "exec", None) or interpreters.run_string
from sseqbridge.testing import SSEServer, send
with SSEServer([send("a"), send("[DONE]")]) as server:
    made = new(sys.argv[1])
    run(made, f'''
import sys
sys.path[:] = {sys.path!r}
from sseqbridge import BridgeClosedError, request_sse
for _ in range(2):
    try:
        result = request_sse({server.url!r}, decode="text", timeout=30).events.collect()
    except BridgeClosedError as error:
        result = type(error).__name__
    print(result, flush=True)
''')
import os
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_request_in_a_subinterpreter_succeeds_or_fails_at_once(kind: str) -> None:
    """As mod_wsgi has them: on Python 3.10 and 3.11, their threads may be unable to run an event loop."""
    status, out, _ = python(f"import os\nos.environ['SSEQBRIDGE_WITHOUT'] = 'uvloop,msgspec'\n{SUBINTERPRETER}", kind)
    assert status == 0
    results = out.splitlines()
    assert len(results) == 2
    assert set(results) <= ({"BridgeClosedError"} if kind == "isolated" else {"BridgeClosedError", "['a']"})


# A loop that ends before it has started what was posted to it.


def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have starts posted, but never run, as by a loop that has ended at that moment."""

    def post(state: LoopState, stream: Any, context: object) -> None:
        state._posted.add(stream)
        posted.set()

    posted = threading.Event()
    monkeypatch.setattr(LoopState, "post_start", post)
    monkeypatch.setattr(LoopState, "was_posted", posted, raising=False)


def in_a_coroutine(function: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return await function()

    return asyncio.run(main())


@pytest.mark.parametrize("call", ["request_sse", "open", "aopen", "cancel", "acancel", "produce"])
def test_request_that_was_not_started_ends_with_its_bridge(
    call: str, monkeypatch: pytest.MonkeyPatch, responses: SSEServer
) -> None:
    with Bridge() as bridge, MemoryLog(bridge=bridge) as log:
        # The loop runs.
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]
        start = partial(request_sse, responses.url, bridge=bridge)
        calls: dict[str, Callable[[], Any]] = {
            "request_sse": start,
            "open": lambda: log.open("key", start),
            "aopen": lambda: in_a_coroutine(lambda: log.aopen("key", start)),
            "cancel": lambda: log.cancel("key"),
            "acancel": lambda: in_a_coroutine(lambda: log.acancel("key")),
            "produce": lambda: log.produce("key", start),
        }
        with monkeypatch.context() as patch:
            never_run(patch)
            waiting = in_thread(calls[call])
            assert LoopState.was_posted.wait(30)  # type: ignore[attr-defined]
            bridge.close()
            with pytest.raises(BridgeClosedError):
                waiting.result(30)


def test_request_that_cannot_be_posted_is_not_kept(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    with Bridge() as bridge:
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]
        state = bridge.started()

        def interrupted(*args: object, **options: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(state.loop), "call_soon_threadsafe", interrupted, raising=False)
            with pytest.raises(KeyboardInterrupt):
                request_sse(responses.url, bridge=bridge)
        assert state._posted == set()
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]


def test_request_whose_start_fails_ends_with_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, responses: SSEServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Bridge() as bridge:
        with monkeypatch.context() as patch:
            patch.setattr(LoopState, "add", lambda *args: fail())
            with pytest.raises(BridgeClosedError):
                request_sse(responses.url, bridge=bridge)
        assert request_sse(responses.url, bridge=bridge).events.collect() == [{"n": 1}]
    assert [record.exc_info is not None for record in caplog.records if record.name == "asyncio"] == [True]


class BreakingLoop(asyncio.SelectorEventLoop):
    """A loop that cannot run any more once it is broken."""

    is_broken = False

    def _run_once(self) -> None:
        if self.is_broken:
            raise OSError(9, "Bad file descriptor")
        super()._run_once()  # type: ignore[misc]

    def break_down(self) -> None:
        self.is_broken = True


async def hangs(*args: object, **options: object) -> None:
    await asyncio.get_running_loop().create_future()


# The tasks stay where they were when their loop broke, and httpx's transport keeps more of them than the library's own.
@pytest.mark.own_transport
@pytest.mark.leaves("task")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", ["next", "request_sse", "merge", "open", "follow", "cancel", "produce"])
def test_no_call_waits_for_a_loop_that_broke(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "new_event_loop", BreakingLoop)
    with SSEServer([send(1), silence()]) as server, SSEServer([silence()]) as mute:
        bridge = Bridge()
        log = MemoryLog(bridge=bridge)
        opened = request_sse(server.url, bridge=bridge).events
        assert next(opened) == 1
        loop = reader_of(opened).cursor.subscription.loop
        followed = log.open("followed", partial(request_sse, server.url, bridge=bridge))
        assert next(followed) == 1
        if call == "cancel":
            store = hub_of(log).store
            monkeypatch.setattr(store, "cancel", hangs)
        merged = merge([opened])
        calls: dict[str, Callable[[], Any]] = {
            "next": lambda: next(opened),
            "request_sse": lambda: request_sse(mute.url, bridge=bridge),
            "merge": lambda: next(iter(merged)),
            "open": lambda: log.open("other", partial(request_sse, mute.url, bridge=bridge)),
            "follow": lambda: next(followed),
            "cancel": lambda: log.cancel("key"),
            "produce": lambda: log.produce("produced", partial(request_sse, server.url, bridge=bridge)),
        }
        waiting = in_thread(calls[call])
        until(lambda: is_waiting(waiting))
        if call in ("request_sse", "open"):
            mute.wait_for_request(1)
        elif call == "produce":
            server.wait_for_request(3)
            until(lambda: is_waiting(waiting))
        loop.call_soon_threadsafe(loop.break_down)  # type: ignore[attr-defined]
        with pytest.raises(BridgeClosedError):
            waiting.result(30)
        # The next request starts another loop.
        monkeypatch.undo()
        with request_sse(server.url, bridge=bridge) as response:
            assert next(response.events) == 1
        merged.close()
        opened.close()
        followed.close()
        log.close()
        bridge.close()


# The process's own bridge.


def test_default_bridge_that_was_closed_is_replaced(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    monkeypatch.setattr(_public, "_default", None)
    with MemoryLog() as log:
        for number in range(3):
            closed = Bridge.default()
            assert request_sse(responses.url).events.collect() == [{"n": 1}]
            assert log.open(f"key-{number}", lambda: request_sse(responses.url)).collect() == [{"n": 1}]
            closed.close()
            assert Bridge.default() is not closed
            with pytest.raises(UsageError, match="this Bridge is closed"):
                request_sse(responses.url, bridge=closed)
        # Streams of the log outlive the bridge.
        assert log.open("key-0").collect() == [{"n": 1}]
    Bridge.default().close()


def test_many_threads_use_one_new_default_bridge(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    monkeypatch.setattr(_public, "_default", None)
    Bridge.default().close()
    assert len({id(bridge) for bridge in together([Bridge.default] * 30)}) == 1
    assert together([partial(first_item, responses.url)] * 10) == [{"n": 1}] * 10
    Bridge.default().close()


def test_default_bridge_stays_closed_at_the_exit(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    monkeypatch.setattr(_public, "_default", None)
    monkeypatch.setattr(_bridge, "_exiting", True)
    Bridge.default().close()
    with pytest.raises(UsageError, match="this Bridge is closed"):
        request_sse(responses.url)


# Leased clients.


class Recorded:
    """A function that returns new clients, and remembers them."""

    def __init__(self, kind: type[httpx.AsyncClient] = httpx.AsyncClient, **options: Any) -> None:
        self.clients: list[httpx.AsyncClient] = []
        self._new = partial(kind, verify=False, **options)

    def __call__(self) -> httpx.AsyncClient:
        client = self._new()
        self.clients.append(client)
        return client

    @property
    def all_are_closed(self) -> bool:
        return bool(self.clients) and all(client.is_closed for client in self.clients)


def test_clients_of_open_streams_are_closed_with_their_bridge() -> None:
    made = Recorded()
    with SSEServer([send(1), silence()]) as server:
        bridge = Bridge(client=made)
        streams = [request_sse(server.url, bridge=bridge).events for _ in range(3)]
        assert [next(events) for events in streams] == [1, 1, 1]
        bridge.close()
        until(lambda: made.all_are_closed)
        for events in streams:
            with pytest.raises(BridgeClosedError):
                next(events)


# anyio references a task in a cancel scope until it ends, and the loop of this task is closed.
@pytest.mark.leaves("task")
def test_client_of_an_endless_task_is_closed_with_its_bridge() -> None:
    class Stubborn(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    continue

    made = Recorded(transport=Stubborn())
    bridge = Bridge(client=made)
    asking = in_thread(lambda: request_sse("http://127.0.0.1/", bridge=bridge))
    until(lambda: "streams=1" in repr(bridge))
    bridge.close()
    with pytest.raises(BridgeClosedError):
        asking.result(30)
    until(lambda: made.all_are_closed)


def test_client_that_is_leased_while_its_bridge_closes_is_closed(responses: SSEServer) -> None:
    class Closing(Recorded):
        def __call__(self) -> httpx.AsyncClient:
            thread = thread_of(bridge)
            bridge.close()
            thread.join(30)
            return super().__call__()

    made = Closing()
    bridge = Bridge(client=made)
    with pytest.raises(BridgeClosedError, match="while the request was made"):
        request_sse(responses.url, bridge=bridge)
    assert made.all_are_closed


def test_client_of_a_request_that_was_not_started_is_closed(
    monkeypatch: pytest.MonkeyPatch, responses: SSEServer
) -> None:
    made = Recorded()
    with Bridge(client=made) as bridge:
        never_run(monkeypatch)
        waiting = in_thread(lambda: request_sse(responses.url, bridge=bridge))
        assert LoopState.was_posted.wait(30)  # type: ignore[attr-defined]
    with pytest.raises(BridgeClosedError):
        waiting.result(30)
    until(lambda: made.all_are_closed)


def test_client_of_the_caller_stays_open_after_its_loop(responses: SSEServer) -> None:
    async def main() -> httpx.AsyncClient:
        client = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0))
        assert await (await arequest_sse(responses.url, client=client)).events.collect() == [{"n": 1}]
        return client

    assert not asyncio.run(main()).is_closed
