"""Exchanges in callbacks, on a connection whose loop is a fake: the silence limit, and requests that cannot be sent."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sseqbridge._http.callback_exchange import CallbackExchange
from sseqbridge._http.connection import BodyStream, ConnectionState, HTTP11Connection
from sseqbridge._http.h1_heads import ResponseHead
from sseqbridge._http.network_stream import READ_BYTES
from sseqbridge._http.origin import Origin
from sseqbridge._http.transport import Transport

from .response_cases import no_plain, no_tls

pytestmark = pytest.mark.configurations("default")

ORIGIN = Origin("http", "a.example", 80)


class Timer:
    def __init__(self, due: float, callback: Callable[[], object]) -> None:
        self.due = due
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    """Its time passes only in `sleep`, which calls what is due."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(due, callback))
        return self.timers[-1]

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        return self.call_at(self.now + seconds, lambda: callback(*args))

    @property
    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.is_cancelled]

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((timer for timer in self.waiting if timer.due <= end), key=lambda timer: timer.due):
            self.timers.remove(due[0])
            self.now = due[0].due
            due[0].callback()
        self.now = end


class FakeTransport:
    """Records what is written. `error` is raised by the next write."""

    def __init__(self) -> None:
        self.written = b""
        self.error: Exception | None = None
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.written += bytes(data)

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def get_extra_info(self, name: str) -> None:
        return None


class Recorder(CallbackExchange):
    """Notes what it is called with."""

    def __init__(self, connection: HTTP11Connection, timeout: float | None) -> None:
        super().__init__(connection, "GET", timeout)
        self.calls: list[Any] = []

    def head_received(self, head: ResponseHead, body: BodyStream) -> bool:
        self.calls.append(head.status)
        return True

    def data_received(self, data: bytes) -> bool:
        self.calls.append(data)
        return False

    def body_completed(self) -> None:
        self.calls.append("complete")
        self.close()

    def read_completed(self) -> None:
        self.calls.append("read")

    def continue_with(self, result: Any) -> None:
        self.calls.append(result)


class Network:
    """An idle connection on a fake loop and transport."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.pool = Transport(keepalive_expiry=60.0, tls_context=no_tls, plain=no_plain)
        self.transport = FakeTransport()
        loop: Any = self.loop
        self.connection = HTTP11Connection(loop, ORIGIN, self.pool)
        self.connection.connection_made(self.transport)
        self.connection.state = ConnectionState.IDLE

    def begun(self, timeout: float | None) -> Recorder:
        exchange = Recorder(self.connection, timeout)
        exchange.start(b"GET / HTTP/1.1\r\n\r\n")
        return exchange

    def receive(self, data: bytes) -> None:
        self.connection.get_buffer(READ_BYTES)[: len(data)] = data
        self.connection.buffer_updated(len(data))


@pytest.fixture
def network() -> Network:
    return Network()


SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"


def test_exchange_releases_its_connection(network: Network) -> None:
    for _ in range(3):
        exchange = network.begun(10.0)
        network.receive(SHORT)
        assert exchange.calls == [200, b"ab", "complete"]
        assert network.pool.reused_connection(ORIGIN) is network.connection
    assert network.transport.written == 3 * b"GET / HTTP/1.1\r\n\r\n"


def test_received_bytes_extend_the_limit(network: Network) -> None:
    exchange = network.begun(10.0)
    for _ in range(4):
        network.loop.sleep(9.0)
        network.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    assert exchange.calls == []
    network.loop.sleep(9.9)
    assert exchange.calls == []
    network.loop.sleep(0.1)
    assert [type(call) for call in exchange.calls] == [httpx.ReadTimeout]
    assert network.transport.is_aborted


def test_exchanges_share_a_timer(network: Network) -> None:
    for seconds in (10.0, 10.0, 30.0, 30.0):
        exchange = network.begun(seconds)
        network.receive(SHORT)
        assert network.pool.reused_connection(ORIGIN) is network.connection
        network.loop.sleep(1.0)
    assert len([timer for timer in network.loop.waiting if timer.due == 10.0]) == 1
    exchange = network.begun(30.0)
    network.loop.sleep(29.9)
    assert exchange.calls == []
    network.loop.sleep(0.1)
    assert [type(call) for call in exchange.calls] == [httpx.ReadTimeout]


def test_shorter_limit_replaces_the_timer(network: Network) -> None:
    network.begun(600.0)
    network.receive(SHORT)
    assert network.pool.reused_connection(ORIGIN) is network.connection
    exchange = network.begun(5.0)
    network.loop.sleep(5.0)
    assert [type(call) for call in exchange.calls] == [httpx.ReadTimeout]
    assert all(timer.due < 600.0 for timer in network.loop.waiting)


def test_idle_connection_has_no_limit(network: Network) -> None:
    exchange = network.begun(5.0)
    network.receive(SHORT)
    network.loop.sleep(30.0)
    assert exchange.calls == [200, b"ab", "complete"]
    assert not network.transport.is_aborted
    assert network.pool.reused_connection(ORIGIN) is network.connection
    assert network.begun(None).calls == []
    network.loop.sleep(1e6)
    assert not network.transport.is_aborted


def test_limit_within_the_body_is_raised_by_its_reader(network: Network) -> None:
    exchange = network.begun(5.0)
    network.receive(SHORT[:-1])
    network.loop.sleep(5.0)
    assert exchange.calls[:-1] == [200, b"a", "read"]
    response = exchange.calls[-1]
    assert isinstance(response, httpx.Response)
    with pytest.raises(httpx.ReadTimeout):
        response.extensions["sseqbridge_body"].read().send(None)


def test_request_that_tls_cannot_send(network: Network) -> None:
    network.transport.error = ssl.SSLError("renegotiation")
    exchange = network.begun(5.0)
    assert [type(call) for call in exchange.calls] == [httpx.WriteError]
    assert network.transport.is_aborted


def test_fault_while_sending_closes_the_connection(network: Network) -> None:
    network.transport.error = MemoryError()
    with pytest.raises(MemoryError):
        network.begun(5.0)
    assert network.transport.is_aborted


def test_connection_whose_buffer_is_full_is_left_to_a_task(network: Network) -> None:
    network.begun(5.0)
    network.receive(SHORT)
    network.connection.pause_writing()
    assert network.pool.reused_connection(ORIGIN) is None
    network.connection.resume_writing()
    assert network.pool.reused_connection(ORIGIN) is network.connection


def test_end_before_an_answer(network: Network) -> None:
    exchange = network.begun(5.0)
    network.connection.eof_received()
    assert [str(call) for call in exchange.calls] == ["the server closed a connection kept from an earlier request"]


def test_body_that_ends_with_the_connection(network: Network) -> None:
    exchange = network.begun(5.0)
    network.receive(b"HTTP/1.1 200 OK\r\n\r\nab")
    network.connection.eof_received()
    assert exchange.calls == [200, b"ab", "read", "complete"]
    assert network.transport.is_aborted
