"""A cancelled scope ends the waits of requests in it with Cancelled."""

from __future__ import annotations

import contextvars
import itertools
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sseqbridge import Bridge, CallbackError, Cancelled, cancel_on
from sseqbridge.testing import SSEServer, hold, respond, send, silence
from tests.support import in_thread, is_waiting, until


def in_scope(flag: threading.Event, function: Callable[[], Any]) -> Any:
    """Start `function` in a thread, in a scope of `flag`. The future result is the error that passed through it."""

    def run() -> BaseException | None:
        error: BaseException | None = None
        with cancel_on(flag) as scope:
            try:
                function()
            except BaseException as exc:
                error = exc
                raise
        assert scope.cancelled
        return error

    return in_thread(run)


@pytest.mark.parametrize("steps", [[silence()], [respond(), silence()], [send("1"), silence()]])
def test_a_wait_ends_with_cancelled(client: Any, steps: list[Any]) -> None:
    flag = threading.Event()
    with SSEServer(steps) as server:
        asking = in_scope(flag, lambda: client.get(server.url))
        until(lambda: is_waiting(asking) and server.requests)
        flag.set()
        assert type(asking.result(30)) is Cancelled
        server.requests[0].wait_aborted()


def test_the_sending_of_a_body_ends_with_cancelled(client: Any) -> None:
    flag = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asking = in_scope(flag, lambda: client.post(url, content=itertools.repeat(b"x" * 65_536)))
        connection = listener.accept()[0]
        with connection:
            # Once the socket is full, the thread that produces the body waits.
            until(lambda: is_waiting(asking))
            flag.set()
            assert type(asking.result(30)) is Cancelled


def test_a_response_belongs_to_the_scope_that_reads_it(client: Any) -> None:
    flag = threading.Event()
    with SSEServer([send("1"), silence()]) as server:
        response = client.send(client.build_request("GET", server.url), stream=True)
        reading = in_scope(flag, response.read)
        until(lambda: is_waiting(reading))
        flag.set()
        assert type(reading.result(30)) is Cancelled
        server.requests[0].wait_aborted()


def test_a_silent_response_is_aborted_while_nobody_reads_it(client: Any) -> None:
    flag = threading.Event()
    with SSEServer([send("1"), silence()]) as server, cancel_on(flag):
        response = client.send(client.build_request("GET", server.url), stream=True)
        chunks = response.iter_raw()
        next(chunks)
        flag.set()
        server.requests[0].wait_aborted()
        with pytest.raises(Cancelled):
            next(chunks)


def test_no_request_is_sent_in_a_cancelled_scope(client: Any) -> None:
    flag = threading.Event()
    flag.set()
    with SSEServer([]) as server:
        with cancel_on(flag) as scope:
            client.get(server.url)
        assert scope.cancelled
        assert server.connections == 0


def test_buffered_bytes_are_not_read_in_a_cancelled_scope(client: Any) -> None:
    flag = threading.Event()
    with SSEServer([send("1")]) as server, cancel_on(flag):
        response = client.send(client.build_request("GET", server.url), stream=True)
        until(lambda: Bridge.default().stats().open_streams == 0)
        flag.set()
        with pytest.raises(Cancelled):
            response.read()


def test_a_response_read_outside_of_its_scope_is_complete(client: Any) -> None:
    flag = threading.Event()
    ready = threading.Event()
    with SSEServer(partial(_after, ready)) as server:
        with cancel_on(flag):
            response = client.send(client.build_request("GET", server.url), stream=True)
        reading = in_thread(partial(contextvars.Context().run, response.read))
        until(lambda: is_waiting(reading))
        flag.set()
        ready.set()
        assert reading.result(30) == b"data: 1\n\n"


def _after(ready: threading.Event, request: Any) -> Any:
    yield respond()
    yield hold(ready)
    yield send("1")


def test_an_error_of_a_flag_reaches_the_reader(client: Any) -> None:
    class Broken:
        def is_set(self) -> bool:
            if server.requests:
                raise ZeroDivisionError
            return False

    with SSEServer([silence()]) as server:
        with pytest.raises(CallbackError), cancel_on(Broken()):
            client.get(server.url)
        server.requests[0].wait_aborted()
