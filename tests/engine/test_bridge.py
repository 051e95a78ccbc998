"""The bridge: its thread, its start, its end, and the context of its requests."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import signal
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import httpx
import pytest

import sseqbridge
from sseqbridge import Bridge, BridgeClosedError, CallbackError, SSEError, UsageError, request_sse
from sseqbridge._engine import bridge as _bridge
from sseqbridge._engine.exchange import Exchange
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._http.client import ClientPool
from sseqbridge._runtime import loops, threads
from sseqbridge._streams import bridge as _public
from sseqbridge.testing import SSEServer, hold, in_turn, send, silence
from tests.support import in_thread, is_waiting, thread_of, together, until

ONE_THEN_SILENCE = (send({"n": 1}), silence())
RESPONSE = (send({"n": 1}), send("[DONE]"))


@pytest.fixture
def silent() -> Iterator[SSEServer]:
    with SSEServer(ONE_THEN_SILENCE) as server:
        yield server


@pytest.fixture
def responses() -> Iterator[SSEServer]:
    with SSEServer(RESPONSE) as server:
        yield server


def threads_of_bridges() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "sseqbridge-loop"}


# Starting.


def test_a_bridge_starts_its_thread_with_the_first_request(responses: SSEServer) -> None:
    before = threads_of_bridges()
    with Bridge() as bridge:
        assert threads_of_bridges() == before
        assert list(request_sse(responses.url, bridge=bridge).events) == [{"n": 1}]
        (thread,) = threads_of_bridges() - before
        assert list(request_sse(responses.url, bridge=bridge).events) == [{"n": 1}]
        assert threads_of_bridges() - before == {thread}
    assert not thread.is_alive()


@pytest.mark.slow
def test_many_first_requests_at_once_start_one_thread(responses: SSEServer) -> None:
    for _ in range(10):
        before = threads_of_bridges()
        with Bridge() as bridge:
            streams = together([partial(request_sse, responses.url, bridge=bridge)] * 30)
            assert [list(it) for _, _, it in streams] == [[{"n": 1}]] * 30
            assert len(threads_of_bridges() - before) == 1


def test_the_process_has_one_bridge_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_public, "_default", None)
    assert len({id(bridge) for bridge in together([_public.default_bridge] * 30)}) == 1


def test_thread_that_cannot_start_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with Bridge() as bridge:
        with monkeypatch.context() as patch:
            patch.setattr(threads, "DaemonThread", fail)
            with pytest.raises(BridgeClosedError, match="can't start new thread") as caught:
                request_sse(responses.url, bridge=bridge)
            assert isinstance(caught.value.__cause__, RuntimeError)
        assert list(request_sse(responses.url, bridge=bridge).events) == [{"n": 1}]


def test_loop_that_cannot_be_made_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    def fail() -> None:
        raise OSError(24, "Too many open files")

    with Bridge() as bridge:
        with monkeypatch.context() as patch:
            patch.setattr(loops, "new_event_loop", fail)
            with pytest.raises(BridgeClosedError, match="Too many open files") as caught:
                request_sse(responses.url, bridge=bridge)
            assert isinstance(caught.value.__cause__, OSError)
        assert list(request_sse(responses.url, bridge=bridge).events) == [{"n": 1}]


def test_client_must_be_a_function() -> None:
    client: Any = httpx.AsyncClient()
    with pytest.raises(UsageError, match="a function that returns"):
        Bridge(client=client)
    asyncio.run(client.aclose())


# Closing.


def test_closing_a_bridge_ends_its_streams_with_a_typed_error(silent: SSEServer) -> None:
    bridge = Bridge()
    streams = [request_sse(silent.url, bridge=bridge).events for _ in range(3)]
    assert next(streams[0]) == {"n": 1}
    assert next(streams[1]) == {"n": 1}
    reading = in_thread(lambda: list(streams[0]))
    until(lambda: is_waiting(reading))
    until(lambda: streams[2].stats.buffered)
    bridge.close()
    with pytest.raises(BridgeClosedError, match="bridge"):
        reading.result(30)
    with pytest.raises(BridgeClosedError):
        next(streams[1])
    # Items received earlier come first.
    assert next(streams[2]) == {"n": 1}
    with pytest.raises(BridgeClosedError):
        next(streams[2])
    assert {it.outcome for it in streams} == {"error"}
    for request in silent.requests:
        request.wait_aborted()
    for it in streams:
        it.close()


def test_closing_a_bridge_ends_the_wait_for_headers() -> None:
    with SSEServer([silence()]) as server:
        with Bridge() as bridge:
            asking = in_thread(lambda: request_sse(server.url, bridge=bridge))
            request = server.wait_for_request()
        with pytest.raises(BridgeClosedError):
            asking.result(30)
        request.wait_aborted()


def test_closed_bridge_refuses_requests(responses: SSEServer) -> None:
    with Bridge() as bridge:
        pass
    with pytest.raises(UsageError, match="closed"):
        request_sse(responses.url, bridge=bridge)
    bridge.close()
    assert responses.requests == []


@pytest.mark.slow
def test_many_threads_close_one_bridge(silent: SSEServer) -> None:
    for n in range(20):
        bridge = Bridge()
        it = request_sse(silent.url, bridge=bridge).events
        assert next(it) == {"n": 1}
        reading = in_thread(partial(list[Any], it))
        assert together([bridge.close] * 20) == [None] * 20
        with pytest.raises(BridgeClosedError):
            reading.result(30)
        silent.wait_for_request(n + 1).wait_aborted()


def test_close_against_requests(responses: SSEServer) -> None:
    for _ in range(20):
        bridge = Bridge()

        def ask(bridge: Bridge = bridge) -> object:
            try:
                return list(request_sse(responses.url, bridge=bridge).events)
            except (BridgeClosedError, UsageError) as exc:
                return type(exc)

        for result in together([ask, ask, ask, bridge.close, ask]):
            assert result in ([{"n": 1}], BridgeClosedError, UsageError, None)


def test_bridge_closed_while_a_request_is_made_refuses_it(responses: SSEServer) -> None:
    # The client function runs while the request is made.
    def factory() -> httpx.AsyncClient:
        bridge.close()
        return httpx.AsyncClient()

    bridge = Bridge(client=factory)
    with pytest.raises(BridgeClosedError, match="while the request was made"):
        request_sse(responses.url, bridge=bridge)


def test_closing_on_the_loop_thread_does_not_deadlock(silent: SSEServer) -> None:
    armed = threading.Event()

    class Closing:
        def is_set(self) -> bool:
            if armed.is_set() and threading.current_thread().name == "sseqbridge-loop":
                bridge.close()
            return False

    bridge = Bridge()
    it = request_sse(silent.url, bridge=bridge, cancel=Closing()).events
    assert next(it) == {"n": 1}
    armed.set()
    with pytest.raises(BridgeClosedError):
        next(it)


def test_open_streams_end_with_an_error_at_exit(monkeypatch: pytest.MonkeyPatch, silent: SSEServer) -> None:
    bridge = Bridge()
    monkeypatch.setattr(_bridge, "_bridges", weakref.WeakSet([bridge]))
    monkeypatch.setattr(_bridge, "_exiting", False)
    # The exit replaces it.
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    it = request_sse(silent.url, bridge=bridge).events
    assert next(it) == {"n": 1}
    with SSEServer([silence()]) as headless:
        asking = in_thread(lambda: request_sse(headless.url, bridge=bridge))
        headless.wait_for_request()
        _bridge._close_all()
        with pytest.raises(BridgeClosedError, match="exiting"):
            asking.result(30)
    with pytest.raises(BridgeClosedError, match="exiting"):
        list(it)
    silent.wait_for_request().wait_aborted()


@pytest.fixture
def interrupted_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Return a function that makes a signal handler call another function during the start of the next loop."""
    make, main = loops.new_event_loop, threading.get_ident()
    before = signal.getsignal(signal.SIGUSR1)

    def set_up(act: Callable[[], object]) -> None:
        handled = threading.Event()

        def handle(*_: object) -> None:
            handled.set()
            act()

        def slowly() -> asyncio.AbstractEventLoop:
            if not handled.is_set():
                signal.pthread_kill(main, signal.SIGUSR1)
                assert handled.wait(30)
            return make()

        signal.signal(signal.SIGUSR1, handle)
        monkeypatch.setattr(loops, "new_event_loop", slowly)

    yield set_up
    signal.signal(signal.SIGUSR1, before)


unix = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on Unix")


@unix
def test_signal_handler_closes_a_bridge_while_it_starts(
    silent: SSEServer, interrupted_start: Callable[[Callable[[], object]], None]
) -> None:
    before, bridge = threads_of_bridges(), Bridge()
    interrupted_start(bridge.close)
    with pytest.raises(UsageError, match="closed"):
        request_sse(silent.url, bridge=bridge)
    until(lambda: threads_of_bridges() == before)
    assert repr(bridge) == "<Bridge closed>"


@unix
def test_interrupted_start_leaves_no_thread(
    silent: SSEServer, interrupted_start: Callable[[Callable[[], object]], None]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = threads_of_bridges()
    interrupted_start(interrupt)
    with Bridge() as bridge:
        with pytest.raises(KeyboardInterrupt):
            request_sse(silent.url, bridge=bridge)
        with request_sse(silent.url, bridge=bridge) as (_, _, it):
            until(lambda: len(threads_of_bridges() - before) == 1)
            assert next(it) == {"n": 1}
    until(lambda: threads_of_bridges() == before)


def test_start_interrupted_after_its_loop_was_made_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch, responses: SSEServer
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = threads_of_bridges()
    with Bridge() as bridge:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Bridge, "_count_past", interrupted)
            request_sse(responses.url, bridge=bridge)
        until(lambda: threads_of_bridges() == before)
        assert list(request_sse(responses.url, bridge=bridge).events) == [{"n": 1}]


def test_start_interrupted_at_its_very_end_keeps_its_loop(responses: SSEServer) -> None:
    class Interrupted(Bridge):
        is_armed = True

        @property
        def _state(self) -> Any:
            return self.__dict__["_state"]

        @_state.setter
        def _state(self, state: Any) -> None:
            self.__dict__["_state"] = state
            if state is not None and self.is_armed:
                self.is_armed = False
                raise KeyboardInterrupt

    with Interrupted() as bridge:
        with pytest.raises(KeyboardInterrupt):
            request_sse(responses.url, bridge=bridge)
        state = bridge.started()
        assert list(request_sse(responses.url, bridge=bridge).events) == [{"n": 1}]
        assert bridge.started() is state


@pytest.mark.slow
def test_bridge_may_start_while_exit_closes_bridges(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    starting: list[Future[list[Any]]] = []

    class Interrupted(weakref.WeakSet[Bridge]):
        def __iter__(self) -> Iterator[Bridge]:
            for found in super().__iter__():
                if not starting:
                    starting.append(in_thread(lambda: list(request_sse(responses.url, bridge=late).events)))
                    # Started now, or blocked until this is over.
                    with contextlib.suppress(TimeoutError):
                        until(starting[0].done, 0.5)
                yield found

    with Bridge() as late, Bridge() as bridge:
        monkeypatch.setattr(_bridge, "_bridges", Interrupted([bridge]))
        monkeypatch.setattr(_bridge, "_exiting", False)
        monkeypatch.setattr(threading, "excepthook", threading.excepthook)
        _bridge._close_all()
        assert repr(bridge) == "<Bridge closed>"
        assert starting[0].result(30) == [{"n": 1}]


def test_totals_are_consistent_while_garbage_collection_adds_streams() -> None:
    class Counted:
        received = events = 1

    def begin(phase: str, info: dict[str, int]) -> None:
        stream_tasks.add(Counted())

    loop = asyncio.new_event_loop()
    state = LoopState(loop, ClientPool())
    stream_tasks: set[Any] = state.stream_tasks
    stream_tasks.update(Counted() for _ in range(50))
    thresholds = gc.get_threshold()
    gc.callbacks.append(begin)
    gc.set_threshold(1)
    try:
        for _ in range(100):
            found, received, _ = state.totals()
            assert len(found) == received >= 50
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(begin)
        loop.close()


def test_repr_shows_the_state_and_no_secrets(silent: SSEServer) -> None:
    bridge = Bridge()
    assert repr(bridge) == "<Bridge not started>"
    with bridge:
        it = request_sse(silent.url, {"Authorization": "secret"}, bridge=bridge).events
        assert repr(bridge) == "<Bridge open streams=1>"
        it.close()
        assert repr(bridge) == "<Bridge open streams=0>"
    assert repr(bridge) == "<Bridge closed>"


def test_callback_at_the_loops_end_runs_once(silent: SSEServer) -> None:
    done: list[str] = []
    with Bridge() as bridge, request_sse(silent.url, bridge=bridge):
        state = bridge.started()
        discarded = partial(done.append, "taken back")
        state.call_at_end(partial(done.append, "at the end"))
        state.call_at_end(discarded)
        state.cancel_call_at_end(discarded)
    until(state.loop.is_closed)
    state.call_at_end(partial(done.append, "after it"))
    # If another thread was first, no callback is left; and discarding a stream twice does nothing.
    state._run_end_callback()
    state.discard(object())  # type: ignore[arg-type]
    assert done == ["at the end", "after it"]


def test_closing_and_dropping_streams_of_a_closed_bridge(silent: SSEServer) -> None:
    with Bridge() as bridge:
        streams = [request_sse(silent.url, bridge=bridge).events for _ in range(2)]
    streams[0].close()
    assert list(streams[0]) == []
    with pytest.warns(ResourceWarning):
        streams.clear()


def test_client_that_cannot_be_closed_delays_nothing(silent: SSEServer) -> None:
    class Failing(httpx.AsyncClient):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError

    bridge = Bridge(client=Failing)
    with request_sse(silent.url, bridge=bridge).events as it:
        assert next(it) == {"n": 1}
    thread = thread_of(bridge)
    bridge.close()
    thread.join(30)
    assert thread.has_ended


def test_surplus_client_that_cannot_be_closed_fails_its_stream() -> None:
    class Failing(httpx.AsyncClient):
        async def aclose(self) -> None:
            await super().aclose()
            raise ZeroDivisionError

    go = threading.Event()
    script = in_turn([send(1), hold(go)], [send(2)])
    with SSEServer(script) as server, Bridge(client=Failing) as bridge:
        first = request_sse(server.url, bridge=bridge).events
        assert next(first) == 1
        # The streams that follow share another client.
        assert request_sse(server.url, bridge=bridge).events.collect() == [2]
        go.set()
        with pytest.raises(CallbackError, match="closing the HTTP client raised ZeroDivisionError"):
            next(first)


@pytest.mark.slow
def test_client_that_hangs_in_its_closing_is_left(silent: SSEServer, caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(httpx.AsyncClient):
        async def aclose(self) -> None:
            await super().aclose()
            await asyncio.get_running_loop().create_future()

    with caplog.at_level(logging.DEBUG, "sseqbridge"), Bridge(client=Hanging) as bridge:
        with request_sse(silent.url, bridge=bridge).events as it:
            assert next(it) == {"n": 1}
        bridge.close()
    assert "closing the HTTP clients failed: TimeoutError" in caplog.text


# Exits and exceptions on the loop thread.


def stop_loop(bridge: Bridge) -> None:
    """Stop the loop of a bridge from outside the library."""
    state = bridge.started()
    state.loop.call_soon_threadsafe(state.loop.stop)


def test_exit_in_the_loop_thread_fails_its_streams(
    silent: SSEServer, responses: SSEServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Bridge() as bridge:
        streams = [request_sse(silent.url, bridge=bridge).events for _ in range(2)]
        assert [next(it) for it in streams] == [{"n": 1}] * 2
        reading = in_thread(lambda: list(streams[1]))
        until(lambda: is_waiting(reading))
        thread = thread_of(bridge)
        stop_loop(bridge)
        with pytest.raises(BridgeClosedError, match="RuntimeError") as caught:
            reading.result(30)
        assert isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(BridgeClosedError):
            next(streams[0])
        thread.join(30)
        for request in silent.requests:
            request.wait_aborted()
        assert repr(bridge) == "<Bridge not started>"
        assert list(request_sse(responses.url, bridge=bridge).events) == [{"n": 1}]
        for it in streams:
            it.close()
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["sseqbridge"]


def test_exit_in_a_transport_fails_its_request_only() -> None:
    def leave(request: httpx.Request) -> httpx.Response:
        raise SystemExit(4)

    with Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(leave))) as bridge:
        for _ in range(2):
            with pytest.raises(SSEError, match="SystemExit") as caught:
                request_sse("http://127.0.0.1/", bridge=bridge)
            assert isinstance(caught.value.__cause__, SystemExit)


def test_closing_a_bridge_whose_thread_was_ended(silent: SSEServer) -> None:
    with Bridge() as bridge:
        it = request_sse(silent.url, bridge=bridge).events
        assert next(it) == {"n": 1}
        stop_loop(bridge)
        with pytest.raises(BridgeClosedError):
            next(it)


class Stubborn(httpx.AsyncBaseTransport):
    """A transport that calls `act` when its request is cancelled."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await self._act()


# anyio references a task in a cancel scope until it ends, and the loop of this task is closed.
@pytest.mark.slow
@pytest.mark.leaves("task")
def test_task_that_ignores_cancellation_delays_no_close() -> None:
    async def go_on() -> None:
        pass

    bridge = Bridge(client=lambda: httpx.AsyncClient(transport=Stubborn(go_on)))
    asking = in_thread(lambda: request_sse("http://127.0.0.1/", bridge=bridge))
    until(lambda: "streams=1" in repr(bridge))
    thread = thread_of(bridge)
    bridge.close()
    with pytest.raises(BridgeClosedError):
        asking.result(30)
    thread.join(30)
    assert thread.has_ended


def test_an_exit_in_a_transport_while_the_bridge_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        raise SystemExit(4)

    bridge = Bridge(client=lambda: httpx.AsyncClient(transport=Stubborn(leave)))
    asking = in_thread(lambda: request_sse("http://127.0.0.1/", bridge=bridge))
    until(lambda: "streams=1" in repr(bridge))
    bridge.close()
    with pytest.raises(SSEError):
        asking.result(30)
    gc.collect()


def test_exception_of_a_transport_is_a_typed_error() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with (
        Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(fail))) as bridge,
        pytest.raises(SSEError) as caught,
    ):
        request_sse("http://127.0.0.1/", bridge=bridge)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_internal_error_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, silent: SSEServer) -> None:
    async def fail(self: Exchange) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Exchange, "open", fail)
    with pytest.raises(SSEError, match="ZeroDivisionError") as caught:
        request_sse(silent.url)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# The calling thread.


def test_request_on_the_loop_thread_is_refused(silent: SSEServer) -> None:
    is_armed = threading.Event()

    class Asking:
        def is_set(self) -> bool:
            if is_armed.is_set() and threading.current_thread().name == "sseqbridge-loop":
                request_sse(silent.url)
            return False

    it = request_sse(silent.url, cancel=Asking()).events
    assert next(it) == {"n": 1}
    is_armed.set()
    with pytest.raises(CallbackError) as caught:
        next(it)
    assert isinstance(caught.value.__cause__, UsageError)
    assert "own thread" in str(caught.value.__cause__)


def test_request_in_a_body_iterator_on_the_loop_is_refused(silent: SSEServer) -> None:
    async def body() -> AsyncIterator[bytes]:
        request_sse(silent.url)
        yield b""

    with pytest.raises(SSEError) as caught:
        request_sse(silent.url, content=body())
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, UsageError):
        cause = cause.__cause__
    assert isinstance(cause, UsageError)


@pytest.mark.blocks_its_loop
def test_request_in_a_coroutine_warns_at_the_callers_line(responses: SSEServer) -> None:
    async def main() -> list[Any]:
        with pytest.warns(RuntimeWarning, match="arequest_sse") as caught:
            response = request_sse(responses.url)
        (warning,) = caught
        assert warning.filename == __file__
        return list(response.events)

    assert asyncio.run(main()) == [{"n": 1}]


@pytest.mark.blocks_its_loop
def test_a_request_in_a_notebook_does_not_warn(monkeypatch: pytest.MonkeyPatch, responses: SSEServer) -> None:
    async def main() -> list[Any]:
        return list(request_sse(responses.url).events)

    monkeypatch.setitem(sys.modules, "ipykernel", sseqbridge)
    assert asyncio.run(main()) == [{"n": 1}]


# Context variables.

tenant = contextvars.ContextVar("tenant", default="nobody")


def test_request_runs_in_the_callers_context(responses: SSEServer) -> None:
    seen = []

    async def note(request: httpx.Request) -> None:
        seen.append(tenant.get())

    def ask(name: str) -> None:
        tenant.set(name)
        list(request_sse(responses.url, bridge=bridge).events)

    with Bridge(client=lambda: httpx.AsyncClient(event_hooks={"request": [note]})) as bridge:
        for name in ("a", "b", "c"):
            contextvars.Context().run(ask, name)
    assert seen == ["a", "b", "c"]
    assert tenant.get() == "nobody"


def test_body_iterator_runs_in_the_callers_context(responses: SSEServer) -> None:
    seen = []

    def body() -> Iterator[bytes]:
        seen.append(tenant.get())
        yield b"{}"

    def ask() -> None:
        tenant.set("a")
        list(request_sse(responses.url, content=body()).events)

    contextvars.Context().run(ask)
    assert seen == ["a"]


def test_two_bridges_share_no_connection(silent: SSEServer) -> None:
    with Bridge() as kept:
        it = request_sse(silent.url, bridge=kept).events
        with Bridge() as closed:
            other = request_sse(silent.url, bridge=closed).events
            until(lambda: other.stats.buffered)
        assert next(other) == {"n": 1}
        with pytest.raises(BridgeClosedError):
            next(other)
        assert next(it) == {"n": 1}
        it.close()
