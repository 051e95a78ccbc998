"""Every way to leave a stream aborts its request: the upstream sees its connection closed."""

from __future__ import annotations

import gc
import itertools
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import httpx
import pytest

from sseqbridge import Bridge, CallbackError, EventStream, RequestAbortedError, SSEResponse, UsageError, request_sse
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import ReceivedRequest, Script, SSEServer, Step, hold, respond, send, silence
from tests.support import in_thread, is_waiting, together, until, until_no_stream_is_open

ONE_THEN_SILENCE = (send({"n": 1}), silence())


def numbers_for_ever(request: ReceivedRequest) -> Iterator[Step]:
    for n in itertools.count(1):
        yield send({"n": n})


def flood(request: ReceivedRequest) -> Iterator[Step]:
    for n in itertools.count(1):
        yield send({"n": n, "padding": "x" * 60_000})


class Ask(Protocol):
    def __call__(self, script: Script | tuple[Step, ...], **options: Any) -> tuple[EventStream[Any], ReceivedRequest]:
        """Return a stream of an upstream that plays `script`, and the request that the upstream received."""


class Serve(Protocol):
    def __call__(self, script: Script | tuple[Step, ...]) -> tuple[SSEServer, Bridge | None]:
        """Start an upstream; return it and the bridge to ask it through."""


@pytest.fixture(params=["http", "https"])
def serve(request: pytest.FixtureRequest, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> Iterator[Serve]:
    with ExitStack() as stack:
        secure = request.param == "https"
        bridge = stack.enter_context(Bridge(client=lambda: httpx.AsyncClient(verify=client_tls))) if secure else None

        def start(script: Script | tuple[Step, ...]) -> tuple[SSEServer, Bridge | None]:
            server = SSEServer(script, ssl_context=server_tls if secure else None)
            return stack.enter_context(server), bridge

        yield start


@pytest.fixture
def ask(serve: Serve) -> Ask:
    def ask(script: Script | tuple[Step, ...], **options: Any) -> tuple[EventStream[Any], ReceivedRequest]:
        server, bridge = serve(script)
        events = request_sse(server.url, bridge=bridge, **options).events
        return events, server.wait_for_request()

    return ask


def wait_for_backpressure(request: ReceivedRequest) -> None:
    """Wait until the upstream cannot send any more."""
    unchanged = 0
    while unchanged < 6:
        sent = request.sent_bytes
        time.sleep(0.01)
        unchanged = unchanged + 1 if sent and sent == request.sent_bytes else 0


# Ways to leave a stream. Each function returns while its caller still references the stream.


def close(events: EventStream[Any]) -> None:
    events.close()


def break_off(events: EventStream[Any]) -> None:
    for _ in events:
        break


def return_early(events: EventStream[Any]) -> None:
    for _ in events:
        return


def fail_in_the_body(events: EventStream[Any]) -> None:
    def loop() -> None:
        for _ in events:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()


def leave_a_generator_around_it(events: EventStream[Any]) -> None:
    around = (event for event in events)
    next(around)
    around.close()


def leave_with(events: EventStream[Any]) -> None:
    with events:
        pass


def leave_with_on_the_response(events: EventStream[Any]) -> None:
    with SSEResponse(events) as (status, _, stream):
        assert (status, stream) == (200, events)


def fail_in_with(events: EventStream[Any]) -> None:
    with pytest.raises(ZeroDivisionError), events:
        raise ZeroDivisionError


WAYS = [
    close,
    break_off,
    return_early,
    fail_in_the_body,
    leave_a_generator_around_it,
    leave_with,
    leave_with_on_the_response,
    fail_in_with,
]


@pytest.mark.parametrize("leave", WAYS)
def test_leaving_aborts_a_silent_stream(ask: Ask, leave: Callable[[EventStream[Any]], None]) -> None:
    events, request = ask(ONE_THEN_SILENCE)
    leave(events)
    request.wait_aborted()
    assert events.outcome == "closed"


@pytest.mark.slow
@pytest.mark.parametrize("leave", WAYS)
def test_leaving_aborts_a_stream_under_backpressure(ask: Ask, leave: Callable[[EventStream[Any]], None]) -> None:
    events, request = ask(flood, max_buffered_bytes=100_000)
    wait_for_backpressure(request)
    leave(events)
    request.wait_aborted()
    assert events.outcome == "closed"


def test_dropping_a_stream_aborts_it_with_a_warning(ask: Ask) -> None:
    events, request = ask(ONE_THEN_SILENCE)
    with pytest.warns(ResourceWarning, match="dropped while it was open"):
        del events
    request.wait_aborted()


@pytest.mark.slow
def test_dropping_a_stream_under_backpressure_aborts_it(ask: Ask) -> None:
    events, request = ask(flood, max_buffered_bytes=100_000)
    next(events)
    wait_for_backpressure(request)
    with pytest.warns(ResourceWarning):
        del events
    request.wait_aborted()


def test_dropping_a_response_aborts_it(serve: Serve) -> None:
    server, bridge = serve(ONE_THEN_SILENCE)
    with pytest.warns(ResourceWarning):
        request_sse(server.url, bridge=bridge)
    server.wait_for_request().wait_aborted()


def test_garbage_collector_aborts_a_stream_in_a_cycle(ask: Ask) -> None:
    events, request = ask(ONE_THEN_SILENCE)
    cycle: list[Any] = [events]
    cycle.append(cycle)
    del events, cycle
    with pytest.warns(ResourceWarning):
        gc.collect()
    request.wait_aborted()


def test_dropping_an_error_response_closes_it_without_a_warning(ask: Ask) -> None:
    events, request = ask((respond(500), send("a"), silence()))
    del events
    request.wait_aborted()


def test_a_set_flag_aborts_without_a_consumer(ask: Ask) -> None:
    cancel = threading.Event()
    events, request = ask(ONE_THEN_SILENCE, cancel=cancel)
    cancel.set()
    request.wait_aborted()
    assert list(events) == []
    assert events.outcome == "closed"


def test_a_set_flag_aborts_a_stream_under_backpressure(ask: Ask) -> None:
    cancel = threading.Event()
    events, request = ask(flood, cancel=cancel, max_buffered_bytes=100_000)
    wait_for_backpressure(request)
    cancel.set()
    request.wait_aborted()
    assert list(events) == []


def test_a_set_flag_ends_a_waiting_loop_quietly(ask: Ask) -> None:
    cancel = threading.Event()
    events, request = ask(ONE_THEN_SILENCE, cancel=cancel)
    assert next(events) == {"n": 1}
    reading = in_thread(lambda: list(events))
    until(lambda: is_waiting(reading))
    cancel.set()
    assert reading.result(30) == []
    request.wait_aborted()
    assert events.outcome == "closed"


def test_a_set_flag_aborts_while_the_headers_are_awaited(serve: Serve) -> None:
    server, bridge = serve((silence(),))
    cancel = threading.Event()
    asking = in_thread(lambda: request_sse(server.url, cancel=cancel, bridge=bridge))
    request = server.wait_for_request()
    cancel.set()
    with pytest.raises(RequestAbortedError, match="before"):
        asking.result(30)
    request.wait_aborted()


def test_closing_the_bridge_aborts_while_the_headers_are_awaited(serve: Serve, client_tls: ssl.SSLContext) -> None:
    server, _ = serve((silence(),))
    with Bridge(client=lambda: httpx.AsyncClient(verify=client_tls)) as bridge:
        asking = in_thread(lambda: request_sse(server.url, bridge=bridge))
        request = server.wait_for_request()
    with pytest.raises(Exception, match="closed"):
        asking.result(30)
    request.wait_aborted()


@pytest.mark.slow
def test_close_ends_a_connection_whose_descriptor_was_inherited(ask: Ask) -> None:
    # As by a forked child: closing our own descriptor would not close the connection.
    events, request = ask(flood, max_buffered_bytes=100_000)
    wait_for_backpressure(request)
    subscription: Any = reader_of(events).cursor.subscription
    stream: Any = subscription.exchange.network_stream
    inherited = os.dup(stream.get_extra_info("socket").fileno())
    try:
        events.close()
        request.wait_aborted()
    finally:
        os.close(inherited)


# Without TLS from here on: the other tests are about threads.


@pytest.fixture
def silent() -> Iterator[SSEServer]:
    with SSEServer(ONE_THEN_SILENCE) as server:
        yield server


@pytest.fixture
def talkative() -> Iterator[SSEServer]:
    with SSEServer(numbers_for_ever) as server:
        yield server


def test_break_aborts_although_the_stream_is_still_a_local_variable(silent: SSEServer) -> None:
    _, _, it = request_sse(silent.url)
    for item in it:
        assert item == {"n": 1}
        break
    silent.wait_for_request().wait_aborted()
    assert it.outcome == "closed"


def test_an_exception_aborts_while_its_traceback_is_alive(silent: SSEServer) -> None:
    def loop() -> None:
        for _ in request_sse(silent.url).events:
            raise LookupError

    with pytest.raises(LookupError) as caught:
        loop()
    silent.wait_for_request().wait_aborted()
    assert caught.traceback


def test_break_within_a_batch_delivers_no_further_item(silent: SSEServer) -> None:
    burst = b"".join(b"data: %d\n\n" % n for n in range(100))
    with SSEServer([burst, silence()]) as server:
        it = request_sse(server.url).events
        assert next(it) == 0
        for item in it:
            assert item == 1
            break
        with pytest.raises(UsageError):
            next(it)


def test_close_in_another_thread_ends_a_blocked_next(silent: SSEServer) -> None:
    it = request_sse(silent.url).events
    assert next(it) == {"n": 1}
    reading = in_thread(lambda: next(it, "ended"))
    until(lambda: is_waiting(reading))
    it.close()
    assert reading.result(30) == "ended"
    assert silent.wait_for_request().aborted.wait(30)


def test_close_in_another_thread_ends_a_blocked_loop(silent: SSEServer) -> None:
    it = request_sse(silent.url).events
    assert next(it) == {"n": 1}
    reading = in_thread(lambda: list(it))
    until(lambda: is_waiting(reading))
    it.close()
    assert reading.result(30) == []


def test_close_waits_until_the_socket_is_closed(silent: SSEServer) -> None:
    it = request_sse(silent.url).events
    it.close()
    assert reader_of(it).cursor.subscription.finished
    assert it.outcome == "closed"


@pytest.mark.slow
def test_close_races_with_a_consumer_about_to_wait(silent: SSEServer) -> None:
    for n in range(100):
        it = request_sse(silent.url).events
        assert next(it) == {"n": 1}
        assert together([partial(next, it, "ended"), it.close]) == ["ended", None]
        silent.wait_for_request(n + 1).wait_aborted()


@pytest.mark.slow
def test_close_races_with_arrival_without_gaps(talkative: SSEServer) -> None:
    for n in range(50):
        it = request_sse(talkative.url).events
        given: list[int] = []

        def read(it: EventStream[Any] = it, given: list[int] = given) -> None:
            given.extend(item["n"] for item in it)

        def close(it: EventStream[Any] = it, given: list[int] = given, least: int = n) -> None:
            until(lambda: len(given) >= 0 and it.stats.events >= least)
            it.close()

        together([read, close])
        assert given == list(range(1, len(given) + 1))
        assert it.outcome == "closed"
        talkative.wait_for_request(n + 1).wait_aborted()


def test_close_is_idempotent(silent: SSEServer) -> None:
    it = request_sse(silent.url).events
    it.close()
    it.close()
    assert it.outcome == "closed"
    assert list(it) == []


def test_two_hundred_threads_close_one_stream(silent: SSEServer) -> None:
    it = request_sse(silent.url).events
    assert next(it) == {"n": 1}
    reading = in_thread(lambda: list(it))
    until(lambda: is_waiting(reading))
    assert together([it.close] * 200) == [None] * 200
    assert reading.result(30) == []
    silent.wait_for_request().wait_aborted()


def test_closing_after_the_natural_end_changes_nothing() -> None:
    with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
        it = request_sse(server.url).events
        assert list(it) == [{"n": 1}]
        it.close()
        assert it.outcome == "done"
        assert not server.requests[0].aborted.is_set()


def test_closing_in_the_loops_body_ends_the_loop(talkative: SSEServer) -> None:
    it = request_sse(talkative.url).events
    seen = []
    for item in it:
        seen.append(item["n"])
        if len(seen) == 3:
            it.close()
    assert seen == [1, 2, 3]


# After a loop was left.


@pytest.mark.parametrize("use", [next, iter, list, EventStream.keep_open, EventStream.next])
def test_use_after_break_raises_usage_error_with_advice(silent: SSEServer, use: Callable[[Any], object]) -> None:
    it = request_sse(silent.url).events
    break_off(it)
    with pytest.raises(UsageError) as caught:
        use(it)
    assert "next(it)" in str(caught.value)
    assert "keep_open" in str(caught.value)


def use_islice(it: EventStream[Any]) -> list[Any]:
    return list(itertools.islice(it, 2))


def use_zip(it: EventStream[Any]) -> list[Any]:
    return [item for _, item in zip(range(2), it, strict=False)]


def use_in(it: EventStream[Any]) -> list[Any]:
    assert {"n": 2} in it
    return [{"n": 1}, {"n": 2}]


def use_unpacking(it: EventStream[Any]) -> list[Any]:
    first, second = itertools.islice(it, 2)
    return [first, second]


@pytest.mark.parametrize("take", [use_islice, use_zip, use_in, use_unpacking])
def test_second_loop_over_a_left_stream_raises_usage_error(
    talkative: SSEServer, take: Callable[[EventStream[Any]], list[Any]]
) -> None:
    it = request_sse(talkative.url).events
    assert take(it) == [{"n": 1}, {"n": 2}]
    talkative.wait_for_request().wait_aborted()
    with pytest.raises(UsageError, match="keep_open"):
        list(it)


def test_keep_open_can_be_left_and_read_on(talkative: SSEServer) -> None:
    it = request_sse(talkative.url).events
    for item in it.keep_open():
        assert item == {"n": 1}
        break
    assert list(itertools.islice(it.keep_open(), 2)) == [{"n": 2}, {"n": 3}]
    assert next(it) == {"n": 4}
    assert next(iter(it.keep_open())) == {"n": 5}
    assert it.outcome is None
    for item in it:
        assert item == {"n": 6}
        break
    talkative.wait_for_request().wait_aborted()


def test_next_continues_at_the_current_position(talkative: SSEServer) -> None:
    it = request_sse(talkative.url).events
    assert [next(it)["n"] for _ in range(50)] == list(range(1, 51))
    assert it.next(timeout=30) == {"n": 51}
    it.close()


def test_next_in_the_loops_body_takes_the_next_item() -> None:
    burst = b"".join(b"data: %d\n\n" % n for n in range(6))
    with SSEServer([burst, burst, send("[DONE]")]) as server:
        it = request_sse(server.url).events
        assert [(item, next(it)) for item in it] == [(0, 1), (2, 3), (4, 5)] * 2


def test_next_in_the_loops_body_may_take_the_next_batch(talkative: SSEServer) -> None:
    it = request_sse(talkative.url).events
    seen = []
    for item in it:
        seen += [item["n"], next(it)["n"], it.next(timeout=30)["n"]]
        if len(seen) > 300:
            break
    assert seen == list(range(1, len(seen) + 1))


def test_next_in_the_loops_body_at_the_end() -> None:
    with SSEServer([send(1), send("[DONE]")]) as server:
        it = request_sse(server.url).events
        assert [(item, next(it, None)) for item in it] == [(1, None)]


def test_two_loops_one_after_the_other_find_the_end_twice() -> None:
    with SSEServer([send(1), send("[DONE]")]) as server:
        it = request_sse(server.url).events
        assert list(it) == [1]
        assert list(it) == []
        assert next(it, "ended") == "ended"


def test_nested_loop_over_the_same_stream_raises_usage_error(talkative: SSEServer) -> None:
    it = request_sse(talkative.url).events

    def loop() -> None:
        for _ in it:
            for _ in it:
                pytest.fail("two loops read one stream")

    with pytest.raises(UsageError, match="being read"):
        loop()
    talkative.wait_for_request().wait_aborted()


def test_a_second_thread_cannot_read_while_the_first_waits(silent: SSEServer) -> None:
    it = request_sse(silent.url).events
    assert next(it) == {"n": 1}
    reading = in_thread(lambda: list(it))
    until(lambda: is_waiting(reading))
    for use in (next, list, EventStream.next):
        with pytest.raises(UsageError, match="being read"):
            use(it)
    it.close()
    assert reading.result(30) == []


def test_a_second_thread_cannot_read_from_within_a_loop(talkative: SSEServer) -> None:
    it = request_sse(talkative.url).events
    for _ in it:
        with pytest.raises(UsageError, match="being read"):
            in_thread(lambda: next(it)).result(30)
        break


def test_a_loop_may_move_from_thread_to_thread(talkative: SSEServer) -> None:
    it = request_sse(talkative.url).events
    loop: list[Iterator[Any]] = [iter(it)]
    assert [in_thread(lambda: next(loop[0])["n"]).result(30) for _ in range(5)] == [1, 2, 3, 4, 5]
    loop.clear()
    talkative.wait_for_request().wait_aborted()


def test_next_that_times_out_leaves_the_stream_open() -> None:
    more = threading.Event()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield send(1)
        while not more.is_set():
            yield b": still here\n\n"
        yield send(2)
        yield send("[DONE]")

    with SSEServer(script) as server:
        it = request_sse(server.url).events
        assert it.next(timeout=30) == 1
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError, match="still open"):
                it.next(timeout=timeout)
        more.set()
        assert it.next(timeout=30) == 2
        with pytest.raises(StopIteration):
            it.next(timeout=30)
        assert it.outcome == "done"


# Flags.


def test_a_flag_set_before_the_call_sends_nothing(silent: SSEServer) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(RequestAbortedError):
        request_sse(silent.url, cancel=cancel)
    assert silent.requests == []


class Flag:
    """A flag of the caller's own, which may raise."""

    def __init__(self) -> None:
        self.value: bool | BaseException = False

    def is_set(self) -> bool:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def test_any_object_with_is_set_is_a_flag(silent: SSEServer) -> None:
    flag = Flag()
    it = request_sse(silent.url, cancel=flag).events
    assert next(it) == {"n": 1}
    flag.value = True
    assert next(it, "ended") == "ended"
    silent.wait_for_request().wait_aborted()


def test_read_on_the_loop_thread_is_refused_and_loses_nothing() -> None:
    """A flag's is_set() runs there: a wait would block the stream that it waits for."""
    go = threading.Event()
    caller = threading.current_thread()
    refused: list[UsageError] = []
    with SSEServer([send(1), hold(go), send(2), send(3)]) as server:
        it = request_sse(server.url).events
        assert next(it) == 1

        class ReadingFlag:
            def is_set(self) -> bool:
                if not refused and threading.current_thread() is not caller:
                    try:
                        next(it)
                    except UsageError as exc:
                        refused.append(exc)
                return False

        with request_sse(server.url, cancel=ReadingFlag()):
            until(lambda: bool(refused))
            go.set()
            assert list(it) == [2, 3]
    assert "thread" in str(refused[0])


def test_a_flag_that_raises_aborts_and_reaches_a_waiting_consumer(silent: SSEServer) -> None:
    flag = Flag()
    it = request_sse(silent.url, cancel=flag).events
    reading = in_thread(lambda: list(it))
    until(lambda: is_waiting(reading))
    flag.value = KeyError("flag")
    with pytest.raises(CallbackError, match=r"is_set\(\) raised KeyError") as caught:
        reading.result(30)
    assert caught.value.__cause__ is flag.value
    silent.wait_for_request().wait_aborted()
    with pytest.raises(CallbackError):
        next(it)


def test_a_flag_that_raises_in_the_consumers_thread_aborts(talkative: SSEServer) -> None:
    flag = Flag()
    it = request_sse(talkative.url, cancel=flag).events
    flag.value = KeyError("flag")
    with pytest.raises(CallbackError) as caught:
        list(it)
    assert caught.value.__cause__ is flag.value
    talkative.wait_for_request().wait_aborted()
    with pytest.raises(CallbackError):
        next(it)


def test_a_flag_that_raises_before_the_call_sends_nothing(silent: SSEServer) -> None:
    flag = Flag()
    flag.value = KeyError("flag")
    with pytest.raises(CallbackError) as caught:
        request_sse(silent.url, cancel=flag)
    assert caught.value.__cause__ is flag.value
    assert silent.requests == []


def test_a_flag_that_raises_while_the_headers_are_awaited() -> None:
    flag = Flag()
    with SSEServer([silence()]) as server:
        asking = in_thread(lambda: request_sse(server.url, cancel=flag))
        request = server.wait_for_request()
        flag.value = KeyError("flag")
        with pytest.raises(CallbackError):
            asking.result(30)
        request.wait_aborted()


def test_a_flag_that_closes_the_stream_itself(silent: SSEServer) -> None:
    # In the loop's thread, where close() must not wait for the loop.
    streams: list[EventStream[Any]] = []

    class Closing:
        def is_set(self) -> bool:
            if streams and threading.current_thread().name == "sseqbridge-loop":
                streams[0].close()
            return False

    it = request_sse(silent.url, cancel=Closing()).events
    assert next(it) == {"n": 1}
    reading = in_thread(lambda: list(it))
    until(lambda: is_waiting(reading))
    streams.append(it)
    assert reading.result(30) == []


def test_a_flag_set_after_all_events_arrived_ends_the_loop() -> None:
    cancel = threading.Event()
    burst = b"".join(b"data: %d\n\n" % n for n in range(100))
    with SSEServer([burst, send("[DONE]")]) as server:
        it = request_sse(server.url, cancel=cancel).events
        until_no_stream_is_open()
        seen = []
        for item in it:
            seen.append(item)
            cancel.set()
        assert seen == [0]
        assert it.outcome == "closed"


def test_a_flag_set_after_the_end_changes_nothing() -> None:
    cancel = threading.Event()
    with SSEServer([send(1), send("[DONE]")]) as server:
        it = request_sse(server.url, cancel=cancel).events
        assert list(it) == [1]
        cancel.set()
        assert list(it) == []
        assert it.outcome == "done"


def test_one_flag_for_many_streams(silent: SSEServer) -> None:
    cancel = threading.Event()
    streams = [request_sse(silent.url, cancel=cancel).events for _ in range(20)]
    cancel.set()
    for n, it in enumerate(streams, 1):
        silent.wait_for_request(n).wait_aborted()
        assert list(it) == []
